"""A preset for many rows of a table or of embeddings: principal components, and one cloud for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import LARGEST, check_whole
from pyro_scnf._random import seeded
from pyro_scnf._shapes import in_double
from pyro_scnf.datasets import SemiSupervisedData, TableNoise, repeated_widths
from pyro_scnf.datasets.convert import as_rows
from pyro_scnf.flows import leading_components
from pyro_scnf.presets.base import ModelOptions, Preset
from pyro_scnf.priors import PriorSpec
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.training.options import Optimisation
from pyro_scnf.transforms import PrincipalComponents, QuantileSpline

__all__ = ["ComponentsFlow", "LeadingComponents", "components_preset", "suits_components", "table_noise"]

MANY_ROWS = 5000
"""From so many rows on, a table gets this preset."""

MANY_COLUMNS, ROWS_PER_COLUMN = 100, 2
"""So does a table of so many columns, with so many rows for each. A shallow Glow tells no classes there."""

ROWS_TO_COUPLE = 20
"""With fewer rows for each column, couplings of the other components would learn the rows by heart."""

ROWS_PER_COMPONENT = 50
"""Each class has on average so many rows for each component of :math:`z_f`."""

LABELS_PER_COMPONENT = 5
"""With many labels there is one component for so many of them, up to twice the number that rows allow."""

EXPLAINED = 0.9
r""":math:`z_f` has so many principal components that they hold this share of the variance."""

POOLED_ROWS = 200
"""The pooled covariance counts as so many rows of a class for each component of :math:`z_f`."""

LABELLED_WEIGHT = 30.0
"""A labelled row counts as so many others. EM would otherwise move classes to clusters of other labels."""

WEIGHT_PER_LABEL = 0.1
"""With many labels, it counts as so many others for each label, if that is more."""

MOST_OF_LABELLED = 2.0
"""All labelled rows together count at most as so many times all rows."""

PRIOR = "student-t:covariance=full,df=8,fit_means=em,fit_scales=em"

DRAWS = 8
"""Test rows with values that repeat get noise so often. One draw alone makes probabilities uncertain."""

LOOKED_AT = 20_000
"""The principal components are counted on so many rows."""


@dataclass(frozen=True)
class ComponentsFlow:
    """:func:`~pyro_scnf.flows.leading_components` for the rows of a table.

    :ivar int columns: number of columns D.
    :ivar int leading: number of components of :math:`z_f`.
    :ivar int couplings: couplings of the other components.
    :ivar int width: width of both hidden layers of their networks.
    :raises ValueError: for numbers that are not positive, or more leading components than columns.
    """

    columns: int
    leading: int
    couplings: int = 2
    width: int = 64

    def __post_init__(self) -> None:
        check_whole("columns", self.columns, 2)
        check_whole("leading", self.leading, 1, self.columns)
        check_whole("couplings", self.couplings, 0)
        check_whole("width", self.width, 1)

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        leading = self.leading if latent_dim is None else latent_dim
        flow = leading_components(
            self.columns, latent_dim=leading, couplings=self.couplings, width=self.width
        )
        return SemiConditionalFlow(flow, prior, num_classes)


class LeadingComponents:
    """Features of the rows of a table: leading principal components of columns with normal marginals.

    They are what the flow of :class:`ComponentsFlow` begins with. Take them for a graph of near rows:
    ``preset.with_graph(LeadingComponents(data.x))``.

    :param x: rows ``(N, D)`` that quantiles and components are fitted to; of many rows, a part.
    :ivar int leading: number of components. They hold 90 % of the variance.
    :raises ValueError: for less than two rows, another shape, NaN or infinity.
    """

    def __init__(self, x: Tensor) -> None:
        x = self._checked(x)
        if len(x) < 2:
            raise ValueError(f"LeadingComponents: x has {len(x)} rows, expected two or more")
        if len(x) > LOOKED_AT:
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
            x = x[order[:LOOKED_AT].to(x.device)]
        self._columns = x.shape[1]
        self._quantiles = QuantileSpline((x.shape[1],)).to(x)
        self._components = PrincipalComponents((x.shape[1],)).to(x)
        self._components._initialize(self._quantiles._initialize(x))
        shares = (2 * in_double(self._components.log_spread)).exp().flip(0).cumsum(0)
        self.leading = int((shares < EXPLAINED * shares[-1]).sum()) + 1

    def __call__(self, x: Tensor) -> Tensor:
        """The components of rows ``(M, D)``, ``(M, leading)``, those of most variance last."""
        x = self._checked(x).to(self._components.center)
        if x.shape[1] != self._columns:
            raise ValueError(
                f"LeadingComponents: x has {x.shape[1]} columns, expected {self._columns} as in the rows "
                "that it was fitted to"
            )
        z = self._components._inverse_ladj(self._quantiles._inverse_ladj(x)[0])[0]
        return (z * self._components.log_spread.exp())[:, -self.leading :]

    @staticmethod
    def _checked(x: Tensor) -> Tensor:
        """Raise unless there are rows of finite numbers. Return them as floating numbers."""
        x = as_rows(x, "x", "LeadingComponents")
        if x.dim() != 2:
            raise ValueError(
                f"LeadingComponents: x has shape {tuple(x.shape)}, expected rows of a table (N, D)"
            )
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def table_noise(data: SemiSupervisedData, scales: Sequence[float] = ()) -> TableNoise:
    """Noise that gives a density to values of a table that repeat, and Gaussian noise of these scales.

    :raises ValueError: for a column whose noise would be too large. The message names the column.
    """
    widths = repeated_widths(data.x)
    for place, needed in enumerate(map(max, widths, scales or widths)):
        if needed > LARGEST:
            name = f"column {place}" if data.column_names is None else repr(data.column_names[place])
            raise ValueError(
                f"data: {name} of x would get noise of the size {needed:.2g}, and {LARGEST:.0e} is the most; "
                "use a larger unit for it, so that its numbers become small"
            )
    return TableNoise(widths, tuple(scales))


def suits_components(x: Tensor) -> bool:
    """Whether rows ``(N, D)`` are many, or their columns are."""
    rows, columns = x.shape
    return rows >= MANY_ROWS or (columns >= MANY_COLUMNS and rows >= ROWS_PER_COLUMN * columns)


def _most_components(known: int, rows_of_class: float) -> int:
    """The largest number of components for so many labels, and so many rows of a class."""
    by_rows = rows_of_class / ROWS_PER_COMPONENT
    return max(1, int(max(by_rows, min(2 * by_rows, known / LABELS_PER_COMPONENT))))


def _labelled_weight(known: int, rows: int) -> float:
    """As how many other rows a labelled one counts."""
    if known == rows:
        return 1.0
    return min(max(LABELLED_WEIGHT, WEIGHT_PER_LABEL * known), MOST_OF_LABELLED * rows / known)


def components_preset(data: SemiSupervisedData) -> Preset:
    """A preset for a table of many rows or columns. Of the labels it takes only their number.

    Each class is one multivariate Student-t distribution of :math:`z_f`, fitted by expectation-maximisation
    to all rows. Its tails are heavy, so a row far from all classes decides little about them.
    """
    rows, columns = data.x.shape
    noise = table_noise(data)
    with seeded(0, data.x.device):
        leading = LeadingComponents(noise.prepare(data.x)).leading
    known = int((data.y != UNLABELLED).sum())
    leading = min(leading, _most_components(known, rows / data.num_classes))
    spread = sum(width > 0 for width in noise.widths)
    counted = POOLED_ROWS * leading
    pooled = round(counted / (counted + rows / data.num_classes), 2)
    prior = f"{PRIOR},pooled={pooled}"
    weight = _labelled_weight(known, rows)
    couplings = 2 if rows >= ROWS_TO_COUPLE * columns else 0
    no_couplings = "No couplings change the others, because rows are few beside so many columns. "
    counts = f"A labelled row counts {weight:.0f} times, so that EM keeps to the labels. "
    return Preset(
        flow=ComponentsFlow(columns, leading, couplings),
        augment=noise,
        optimisation=Optimisation(learning_rate=5e-3, ema_decay=0.98),
        steps=400,
        batch_size=1024,
        labelled_batch_size=min(known, 256),
        model=ModelOptions(scaled=True, labelled_weight=weight),
        terms=(),
        draws=DRAWS if spread else 1,
        prior=prior if leading < columns else f"{prior},fit_df=gradient",  # training needs a parameter
        why=(
            f"x is a table of {rows} rows and {columns} columns, {known} of them with one of "
            f"{data.num_classes} labels. Flow: quantiles of the columns to normal ones, and principal "
            f"components. The {leading} leading ones, of up to {EXPLAINED:.0%} of the variance, depend on "
            f"the label. {'' if couplings else no_couplings}"
            "Prior: a Student-t distribution with a full covariance for each class, by EM, "
            "because so many rows determine it, and its heavy tails let no outlier decide. "
            f"The pooled covariance of all classes is {pooled:.0%} of that of each, more if rows are few. "
            f"{counts if known < rows else ''}"
            f"Columns whose values repeat: {spread}; noise gives these a density."
        ),
    )
