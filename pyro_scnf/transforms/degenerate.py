"""Warnings about data that have no density: features without spread, and values or rows that repeat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_scnf._checks import validating
from pyro_scnf._warn import warn

__all__ = ["channel_statistics", "smallest_spread", "warn_of_degenerate"]

SMALLEST_SPREAD = 1e-6
"""A standard deviation below this is taken for rounding noise, unless all are small, as in a small unit."""

MOST_FEATURES = 500
"""With more features, looking for linear relations would take too long."""

NO_VARIANCE = 1e-12
"""The variance of a combination of standardised features that rounding alone can have."""

FEWEST_ROWS = 20
"""With fewer rows, values may repeat by chance."""


def channel_statistics(x: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation per channel, over batch and space, each ``(C,)``."""
    rows = x.movedim(-event_dim, -1).reshape(-1, x.shape[-event_dim])
    if len(rows) < 2:
        raise ValueError("initialize: x needs at least two values a channel to measure its spread")
    return rows.mean(0), rows.std(0)


def smallest_spread(mean: Tensor) -> Tensor:
    """The smallest standard deviation that values around ``mean`` can show, given their floating numbers."""
    return 4 * torch.finfo(mean.dtype).eps * mean.abs()


def warn_of_degenerate(x: Tensor, event_dim: int) -> None:
    """Warn of channels of ``x`` ``(*batch, *event)`` that no density fits, and name them.

    These are channels without spread. In vectors, they are also features with two values alone, or one value
    in half of the rows, and features between which linear relations hold. It also warns of rows that are
    copies.
    """
    if not validating(x):
        return
    kind = "feature" if event_dim == 1 else "channel"
    mean, std = channel_statistics(x, event_dim)
    flat = std <= torch.maximum(smallest_spread(mean), SMALLEST_SPREAD * std.max().clamp(max=1))
    if flat.any():
        numbers = flat.nonzero()[:, 0].tolist()
        first = numbers[0]
        warn(
            f"initialize: x is constant, or nearly so, in {_named(kind, numbers)} ({kind} {first} has mean "
            f"{float(mean[first]):.4g} and standard deviation {float(std[first]):.4g}). A density of such "
            "values has no bound. Leave them out of x, or use a smaller unit"
        )
    if event_dim > 1:
        return
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) < FEWEST_ROWS:
        return
    repeated = [i for i in range(rows.shape[1]) if not flat[i] and _repeats(rows[:, i])]
    if repeated:
        warn(
            "initialize: x has two values, or one in at least half of its rows, in "
            f"{_named(kind, repeated)}. A density of such values has no bound. Dequantise them "
            "(pyro_scnf.transforms.dequantize), or leave them out of x"
        )
    bound = _dependent(rows[:, ~flat]) if len(rows) > rows.shape[1] else []
    if bound:
        numbers = (~flat).nonzero()[:, 0][bound].tolist()
        warn(
            f"initialize: x has linear relations between {_named(kind, numbers)}: some follow from the "
            "others. A density of such values has no bound. Leave those out of x"
        )
    distinct = len(rows.unique(dim=0))
    if 2 * distinct <= len(rows) and len(repeated) + int(flat.sum()) < rows.shape[1]:
        warn(
            f"initialize: x has {len(rows)} rows, of which only {distinct} differ. A density of repeated "
            "rows has no bound. Keep one of each if they are copies. Dequantise them if they are grades or "
            "counts (pyro_scnf.transforms.dequantize)"
        )


def _repeats(values: Tensor) -> bool:
    """Whether there are two values at most, or one of them makes up half."""
    counts = values.unique(return_counts=True)[1]
    return len(counts) <= 2 or 2 * int(counts.max()) >= len(values)


def _dependent(rows: Tensor) -> list[int]:
    """The features that take part in a linear relation that all rows fulfil."""
    if not 1 < rows.shape[1] <= MOST_FEATURES:
        return []
    centered = rows.double() - rows.double().mean(0)
    variances, directions = torch.linalg.eigh((centered / centered.std(0)).T.cov())
    return (directions[:, variances < NO_VARIANCE].abs() > 0.01).any(1).nonzero()[:, 0].tolist()


def _named(kind: str, numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    return f"{kind} {shown}" if len(numbers) == 1 else f"{kind}s {shown}"
