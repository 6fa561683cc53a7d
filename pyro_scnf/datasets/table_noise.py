"""Noise for the columns of tables, which gives a density to values that repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import check_finite
from pyro_scnf._numbers import check_scale
from pyro_scnf.datasets.augment import Augment
from pyro_scnf.datasets.convert import as_rows

__all__ = ["TableNoise", "repeated_widths"]

Columns = Tensor | np.ndarray | Sequence[float]
"""A number for each column."""

SINGLE = torch.finfo(torch.float32).eps

REPEATED = 0.01
"""A value in more than this share of the rows has no density."""

NARROW = 0.01
"""The width of the noise for repeated values off a grid, as a share of the spread of the column."""

FINEST = 64
"""Noise has so many different values or more, between two numbers that a dtype tells apart."""


@dataclass(frozen=True)
class TableNoise(Augment):
    """Adds noise to the rows of a table, of its own width and scale in each column.

    Uniform noise in ``[-width / 2, width / 2)`` dequantises a column. :meth:`prepare` adds it, too, because a
    model of dequantised rows is validated and tested on dequantised rows. Gaussian noise is added to training
    rows alone.

    :param widths: width of the uniform noise in each column ``(D,)``; 0 for none. See
        :func:`repeated_widths`.
    :param scales: standard deviation of the Gaussian noise in each column ``(D,)``. By default there is none.
    :raises ValueError: for numbers that are negative or above 1e15, for no column, or if ``scales`` has
        another number of columns than ``widths``. A call raises it for rows of another number of columns,
        and for NaN and infinity.

    Integers become floating numbers of the default dtype.

    >>> noise = TableNoise(widths=(1.0, 0.0))
    >>> x = noise(torch.tensor([[3, 7], [4, 7]]))
    >>> x.round(), x[:, 1]
    (tensor([[3., 7.],
            [4., 7.]]), tensor([7., 7.]))
    """

    widths: Columns
    scales: Columns = ()

    def __post_init__(self) -> None:
        for name in ("widths", "scales"):  # a frozen dataclass may set its fields only like this
            object.__setattr__(self, name, _scales(name, getattr(self, name)))
        if not self.widths:
            raise ValueError("widths is empty, expected a number for each column, 0 for no noise")
        if self.scales and len(self.scales) != len(self.widths):
            raise ValueError(
                f"scales has {len(self.scales)} numbers and widths has {len(self.widths)}; expected one for "
                "each column, or no scales at all"
            )

    def __call__(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        return x + x.new_tensor(self.scales) * torch.randn_like(x) if any(self.scales) else x

    def prepare(self, x: Tensor) -> Tensor:
        """``x`` ``(*batch, D)`` as floating numbers, with the uniform noise."""
        check_finite(x, "x", "TableNoise")
        if x.shape[-1:] != (len(self.widths),):
            raise ValueError(
                f"TableNoise: widths has {len(self.widths)} numbers and x the shape {tuple(x.shape)}; "
                "expected one number for each column of rows (*batch, D)"
            )
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        return x + x.new_tensor(self.widths) * (torch.rand_like(x) - 0.5) if any(self.widths) else x


def _scales(name: str, value: Any) -> tuple[float, ...]:
    """A list, a tuple, an array or a tensor of scales as a tuple."""
    members = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(members, list | tuple):
        raise ValueError(f"{name}={value!r}: expected a list of numbers, one for each column")
    return tuple(check_scale(f"{name}[{place}]", number, zero=True) for place, number in enumerate(members))


def repeated_widths(x: object) -> tuple[float, ...]:
    r"""The width of the noise that gives a density to each column of a table, for :class:`TableNoise`.

    Values that many rows share have no density: a flow can put an ever narrower peak on them, and the
    likelihood rises without bound. Noise bounds it.

    * A column on a grid, such as integers, truth values or tenths, gets the step of the grid. At most half
      as many values as rows differ in it, and all of them are whole numbers of steps apart, but for rounding.
      For any density p of the noisy values, :math:`\mathbb E_u[\log p] + \log \text{width}` is then a lower
      bound on the log-probability of the value, as :func:`~pyro_scnf.transforms.dequantize` says.
    * Another column gets 1 % of its spread if a value is repeated in more than 1 % of the rows. The spread is
      half the distance between the quantiles 0.16 and 0.84, and the standard deviation where that is 0.
    * A constant column gets 1, and all other columns get 0.

    Widths are in the unit of the column, so densities of the noisy rows are in the user's units.

    :param x: rows ``(N, D)``, as :class:`SemiSupervisedData` takes them. Give training rows.
    :return: a width for each column ``(D,)``.
    :raises ValueError: for anything else than a table with a row, and for values that repeat and are so large
        that their dtype cannot hold the noise.

    >>> rows = [[0.5, 1.3], [1.0, 2.9], [0.5, 3.3], [2.0, 4.7], [2.0, 0.4], [1.0, 0.2]]
    >>> repeated_widths(rows)
    (0.5, 0.0)
    """
    rows = as_rows(x, "x", "repeated_widths")
    if rows.dim() != 2 or not len(rows):
        raise ValueError(f"repeated_widths: x has shape {tuple(rows.shape)}, expected rows of a table (N, D)")
    rounding = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 0.0
    columns = rows.detach().cpu().double().T.contiguous().sort(1).values.numpy()
    return tuple(_width(place, column, rounding) for place, column in enumerate(columns))


def _width(place: int, ordered: np.ndarray, rounding: float) -> float:
    """The width of the noise for a column ``(N,)``, given in ascending order.

    :param place: its number, for the message.
    :param rounding: the relative error of its numbers.
    """
    if ordered[0] == ordered[-1]:
        return 1.0
    low, high = ordered[[round(0.16 * (len(ordered) - 1)), round(0.84 * (len(ordered) - 1))]]
    starts = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    if 2 * len(starts) <= len(ordered):
        values = ordered[starts]
        single = bool((values == values.astype(np.float32)).all())  # it may have been rounded to this before
        step = _grid_step(values, rounding) or (_grid_step(values, SINGLE) if single else None)
        if step is not None and step >= FINEST * rounding * max(abs(low), abs(high)):
            return step
    counts = np.diff(starts, append=len(ordered))
    most, value = int(counts.max()), float(ordered[starts[counts.argmax()]])
    if most == 1 or most <= REPEATED * len(ordered):
        return 0.0
    width = NARROW * float((high - low) / 2 or ordered.std(ddof=1))
    if width < FINEST * rounding * abs(value):
        raise ValueError(
            f"repeated_widths: column {place} of x repeats the value {value:.6g}. Its precision cannot hold "
            f"the noise of width {width:.3g} beside a value of that size; subtract the smallest value of the "
            "column"
        )
    return width


def _grid_step(values: np.ndarray, rounding: float) -> float | None:
    """The step of the grid on which ``values`` lie, in ascending order; ``None`` if they lie on none."""
    exact = bool((values == values.round()).all())
    error = 0.0 if exact else 1.5 * rounding * float(np.abs(values).max())
    gaps = np.diff(values)
    gaps = gaps[gaps > 2 * error]  # nearer values are the same one, rounded in two ways
    if not len(gaps):
        return None
    step = float(gaps.min())
    for reach in (
        1.5,
        10.0,
        100.0,
        np.inf,
    ):  # small gaps tell the step well enough to count it in larger ones
        near = gaps[gaps <= reach * step]
        step = float(near.sum() / (near / step).round().sum())
    off = np.abs(gaps - step * (gaps / step).round()).max()
    return step if step >= 16 * error and off <= max(2 * error, 1e-9 * step) else None
