"""A preset for data of one's own: chosen by what the data look like, and explained in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_kinds
from pyro_scnf._warn import warn
from pyro_scnf.datasets import Jitter, SemiSupervisedData, nearest_neighbours, pixel_features
from pyro_scnf.datasets.image_features import Features
from pyro_scnf.flows import glow
from pyro_scnf.presets.base import ModelOptions, Preset
from pyro_scnf.presets.components import DRAWS, MANY_COLUMNS, components_preset, suits_components, table_noise
from pyro_scnf.priors import PriorSpec
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.terms import Agreement, Classification, make_terms
from pyro_scnf.training.options import Optimisation

__all__ = ["ImageFlow", "TableFlow", "recommended", "standardise_columns"]

DEEPER = 1000
"""From so many rows on, a table gets a deeper flow."""

LABELLED_ROWS = 64
"""The most labelled rows in a batch."""

SMALL = 256
"""Images of so many pixels or fewer count as small, and get a wider flow."""

WORTHLESS = 0.75
"""From this share of the error of chance on, neighbours are not used."""


def recommended(data: SemiSupervisedData) -> Preset:
    """A preset for a table or for images with few labels. Its ``why`` says what was chosen, and why.

    It looks at the rows, and at those labels alone that ``data.y`` shows. The page *Results* compares its
    test errors with those of other methods. The preset is made for a minute of training on one CPU thread,
    not for the best density. A table of many rows, or of many
    columns, gets another flow and prior than other tables. It warns of many columns with few rows.

    :param data: rows ``(N, D)`` of two or more columns in any units, or images ``(N, C, H, W)`` of even
        height and width: grey levels as integers or whole floating numbers, or other floating numbers.
    :raises ValueError: for rows of another shape, without a labelled row, or of numbers beyond 1e15 or so.

    Use it like this::

        preset = scnf.presets.recommended(data)
        print(preset.why)
        data = preset.prepare(data)
        model = preset.make_model(data)
        preset.fit(model, data)
        model.posterior(preset.augment.prepare(data.x_test))
    """
    check_kinds(data=(data, SemiSupervisedData))
    if not bool((data.y != UNLABELLED).any()):
        raise ValueError("data: y has no labelled row; expected at least one, better some of each class")
    if data.x.dim() == 2 and data.x.shape[1] >= 2:
        return components_preset(data) if suits_components(data.x) else _for_table(data)
    if data.x.dim() == 4 and not any(size % 2 for size in data.x.shape[2:]):
        return _for_images(data)
    shape = tuple(data.x.shape[1:])
    remedy = "pad images of an odd size by a row or column"
    if len(shape) == 1:
        remedy = "the flow couples columns, so it needs two"
    elif len(shape) == 2:
        remedy = "give grey images (H, W) a channel: x[:, None]"
    elif len(shape) == 3 and shape[2] in (1, 3) and shape[0] > shape[2]:
        remedy = "if the channels come last, bring them to the front: x.transpose(0, 3, 1, 2) of an array"
    raise ValueError(
        f"data: x has rows of shape {shape}, expected two or more columns, or images (C, H, W) of even "
        f"height and width; {remedy}"
    )


# -- tables ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TableFlow:
    """A shallow Glow over the columns of a table, with small smooth networks.

    :ivar int columns: number of columns.
    :ivar int steps: steps of flow.
    """

    columns: int
    steps: int

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        net = {"name": "mlp", "hidden": (32, 32), "activation": "tanh"}
        flow = glow(
            (self.columns,),
            steps=self.steps,
            coupling="alternate",
            scale="clamp",
            latent_dim=latent_dim,
            net=net,
        )
        own = {"name": "flow", "steps": 4, "coupling": "alternate", "scale": "clamp", "net": net}
        return SemiConditionalFlow(flow, own if prior == "flow" else prior, num_classes)


def column_spreads(x: Tensor) -> Tensor:
    """A spread for each column of ``x`` ``(N, D)`` that outliers leave alone, ``(D,)`` in float64.

    It is half the distance between the quantiles 0.16 and 0.84, which is the standard deviation of a
    Gaussian. It is the standard deviation where that is less, or where half the distance is 0. For a constant
    column it is 1.
    """
    ordered, last = x.double().sort(0).values, len(x) - 1
    half = (ordered[round(0.84 * last)] - ordered[round(0.16 * last)]) / 2
    std = ordered.std(0)
    spread = torch.where(half > 0, torch.minimum(half, std), std)
    return torch.where(spread > 0, spread, 1.0)


def standardise_columns(x: Tensor) -> Tensor:
    """Features of the rows of a table: columns around their medians, in units of their spread, within ±4."""
    x = x.double()
    return ((x - x.median(0).values) / column_spreads(x)).clamp(-4, 4)


def _for_table(data: SemiSupervisedData) -> Preset:
    rows, columns = data.x.shape
    if columns >= MANY_COLUMNS:
        warn(
            f"data: x has {columns} columns and {rows} rows, too few to tell classes in so many; give "
            "fewer columns, such as 20 principal components of them"
        )
    steps = 4 if rows >= DEEPER else 2
    candidates: dict[str, Features] = {
        "columns in units of their spread": standardise_columns,
        "columns as they are": as_they_are,
    }
    noise = table_noise(data, (0.3 * column_spreads(data.x)).tolist())
    preset = Preset(
        flow=TableFlow(columns, steps),
        augment=noise,
        draws=DRAWS if any(noise.widths) else 1,
        optimisation=Optimisation(ema_decay=0.98),
        steps=300,
        batch_size=256,
        model=ModelOptions(scaled=True),
        terms=(Classification(20.0),),
        prior="gmm:covariance=shared",
        why=(
            f"x is a table of {rows} rows and {columns} columns, {_labels(data)}. "
            f"Flow: a Glow of {steps} steps with small networks, because {rows} rows are "
            f"{'enough for no larger one' if steps > 2 else 'few'}. "
            "Noise in training: 0.3 standard deviations of each column, whatever its unit, so that the "
            f"density does not learn rows by heart. {_PRIOR} {_CLASSIFICATION}"
        ),
    )
    return _with_pairs(preset, data, candidates, Agreement(20.0, purity=0.95))


# -- images ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ImageFlow:
    """A Glow over images. It begins with a squeeze, so no network sees all pixels.

    :ivar shape: ``(C, H, W)``.
    :ivar int levels: number of scales.
    :ivar int steps: steps of flow in each.
    :ivar int width: width of the networks.
    """

    shape: tuple[int, ...]
    levels: int
    steps: int
    width: int

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        flow = glow(
            self.shape,
            levels=self.levels,
            steps=self.steps,
            coupling="alternate",
            scale="clamp",
            latent_dim=latent_dim,
            net={"name": "conv", "width": self.width},
        )
        own = {"name": "flow", "steps": 4, "width": 64, "scale": "clamp"}
        return SemiConditionalFlow(flow, own if prior == "flow" else prior, num_classes)


def _for_images(data: SemiSupervisedData) -> Preset:
    channels, height, width = data.x.shape[1:]
    if channels == height > width and width <= 4:
        warn(
            f"data: x has rows of shape {(channels, height, width)}, taken as {channels} channels of "
            f"{height} by {width} pixels; if they are {width} channels of {channels} by {height} pixels, "
            "bring the channels to the front: x.transpose(0, 3, 1, 2) of an array"
        )
    levels = 2 if height % 4 == width % 4 == 0 else 1
    small = height * width <= SMALL
    bins = _grey_levels(data)
    if bins is None and not data.x.is_floating_point():
        raise ValueError(
            f"data: x has dtype {data.x.dtype} and values from {int(data.x.min())} to {int(data.x.max())}, "
            "expected grey levels from 0 to 255, not all 0, or floating numbers; give x.float() of a tensor"
        )
    spread = float(data.x.double().std()) / (bins or 1)
    candidates: dict[str, Features] = {"pixels": as_they_are, "pixels averaged over squares": pixel_features}
    preset = Preset(
        flow=ImageFlow((channels, height, width), levels, 4 if small else 3, 64 if small else 48),
        augment=Jitter(0.4 * spread, bins=bins),
        optimisation=Optimisation(gradient_clip=50.0, ema_decay=0.98),
        steps=300,
        batch_size=96,
        labelled_batch_size=32,
        model=ModelOptions(labelled_weight=0.1),
        terms=(Classification(200.0, end=0.3),),
        initial_rows=512,
        draws=4 if bins else 1,
        prior="gmm:covariance=shared",
        why=(
            f"x holds {len(data.x)} images of {height} by {width} pixels, {_labels(data)}; "
            f"{f'{bins} grey levels, which are dequantised' if bins else 'values that are no grey levels'}. "
            f"Flow: a light Glow of {levels} level{'s' * (levels > 1)}. "
            "Noise in training: 0.4 standard deviations of the pixels, so that the density does not learn "
            f"images by heart. {_PRIOR} {_CLASSIFICATION}"
        ),
    )
    return _with_pairs(preset, data, candidates, Agreement(300.0, end=0.3, purity=0.95))


def _grey_levels(data: SemiSupervisedData) -> int | None:
    """How many grey levels the images have; ``None`` if their values are no whole numbers from 0 to 255."""
    parts = [part for part in (data.x, data.x_val, data.x_test) if part is not None and len(part)]
    highest = max(float(part.max()) for part in parts)
    whole = all(bool((part == part.round()).all()) and float(part.min()) >= 0 for part in parts)
    return int(highest) + 1 if whole and 1 <= highest <= 255 else None


# -- both --------------------------------------------------------------------------------------------
_PRIOR = (
    "Prior: a Gaussian for each class with one covariance for all (gmm:covariance=shared). Planes in latent "
    "space then separate the classes, as in logistic regression, and few labels suffice for these."
)
_CLASSIFICATION = "Classification term: few labels have to count beside many rows."


def as_they_are(x: Tensor) -> Tensor:
    """Features that are the data."""
    return x


def _labels(data: SemiSupervisedData) -> str:
    known = int((data.y != UNLABELLED).sum())
    return f"{known} of them with one of {data.num_classes} labels"


def _with_pairs(
    preset: Preset, data: SemiSupervisedData, candidates: Mapping[str, Features], agreement: Agreement
) -> Preset:
    """``preset`` with an agreement term for neighbours, if they help, and with sizes of batches that fit.

    Neighbours are nearest in those features of ``candidates`` in which the nearest labelled row tells the
    label of a labelled row best.
    """
    known = data.y != UNLABELLED
    labelled = min(int(known.sum()), preset.labelled_batch_size or LABELLED_ROWS)
    preset = replace(preset, labelled_batch_size=labelled)
    unlabelled = len(known) - int(known.sum())
    labelled = min(labelled, unlabelled // 2)  # a batch has a neighbour of each, and must have room for pairs
    room = min(preset.batch_size, unlabelled - 1) - labelled
    if labelled < 1 or room < 2 or len(known) <= preset.neighbours:
        return _because(preset, "Neighbours: not used, because there are few unlabelled rows.")
    errors = {name: _leave_one_out_error(f(data.x)[known], data.y[known]) for name, f in candidates.items()}
    name = min(errors, key=errors.__getitem__)
    found = (
        f"of the labelled rows, {100 * (1 - errors[name]):.0f} % have the label of the nearest other one "
        f"({name})"
    )
    if errors[name] > WORTHLESS * (1 - 1 / data.num_classes):
        return _because(preset, f"Neighbours: not used, because only so many: {found}.")
    preset = replace(
        preset,
        labelled_batch_size=labelled,
        batch_size=labelled + room // 2 * 2,
        terms=(*make_terms(preset.terms).values(), agreement),
        features=candidates[name],
    )
    return _because(preset, f"Neighbours probably share their label: {found}. Agreement term: they should.")


def _because(preset: Preset, reason: str) -> Preset:
    return replace(preset, why=f"{preset.why} {reason}")


def _leave_one_out_error(features: Tensor, y: Tensor) -> float:
    """How often the nearest other row has another label."""
    if len(y) < 2:
        return 1.0
    nearest = nearest_neighbours(features.flatten(1), 1)[:, 0]
    return float((y[nearest] != y).double().mean())
