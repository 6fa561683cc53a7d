"""Whether numbers lose in the dtype of a tensor what tells rows apart, as seconds since 1970 do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["check_resolution", "coarse_columns", "noise_of"]

RESOLUTION = 1e-3
"""Numbers may be rounded by so much of the difference between two rows, or of a standard deviation."""

NEIGHBOURS = 8
"""Two rows are near if one in so many of all rows lies between them, in the order of their numbers.

A number that more rows share is frequent. These rows have nothing to lose.
"""

RARE = 20
"""Rows besides those of frequent numbers count if they are more than one in so many."""

ENOUGH = 10_000
"""So many rows tell which numbers are frequent."""

NOISE = 64 * np.finfo(np.float64).eps
"""Numbers that differ by at most so much of their size are the same one, computed in two ways.

Whole numbers have no such errors.
"""


def noise_of(numbers: np.ndarray) -> np.ndarray:
    """How far numbers may be apart by errors of arithmetic alone, one for each."""
    whole = bool((numbers == np.round(numbers)).all())
    return np.zeros_like(numbers) if whole else NOISE * np.abs(numbers)


def check_resolution(ordered: np.ndarray, given: str) -> None:
    """Raise if the default dtype is too coarse for numbers ``(N,)`` in ascending order.

    It is too coarse if it changes half of the differences between rows that are near in this order, or more.
    Rows far from all others count for little then, up to about a quarter of all rows. The same is asked of
    the rows without a frequent number, such as a -1 that stands for none.

    :param given: what messages call the numbers.
    """
    dtype = torch.get_default_dtype()
    ordered = ordered[torch.from_numpy(ordered).to(dtype).isfinite().numpy()]  # others are refused elsewhere
    for numbers in (ordered, ordered[_rare(ordered)]):
        pair = _blurred_pair(torch.from_numpy(numbers), dtype)
        if pair is not None:
            first, second, *rounded = (f"{number:.16g}" for number in (*pair, *pair.to(dtype).double()))
            raise ValueError(
                f"{given} holds numbers such as {first} and {second}, which {dtype} rounds to {rounded[0]} "
                f"and {rounded[1]}, too coarsely for the differences between rows; subtract {first} from the "
                "column, take logarithms of very small numbers, leave cells blank that stand for none, or "
                "call torch.set_default_dtype(torch.float64)"
            )


def coarse_columns(x: Tensor, exact: np.ndarray) -> dict[int, tuple[float, float]]:
    """The columns whose numbers ``x`` ``(N, D)`` rounds coarsely, each with a number and what it loses.

    :param exact: the numbers in double precision.
    """
    error, limit = np.abs(exact - x.double().numpy()), _resolution(x.dtype)
    coarse = error.max(0) > limit * exact.std(0)
    found, step = {}, -(-len(exact) // ENOUGH)
    some, errors = exact[::step].T.copy(), error[::step].T.copy()
    for column in range(len(coarse)):
        if coarse[column]:
            numbers, lost = exact[:, column], error[:, column]
        else:
            rare = _rare(some[column])
            numbers, lost = some[column][rare], errors[column][rare]
            if not rare.any() or lost.max() <= limit * numbers.std():
                continue
        if np.ptp(numbers) > noise_of(numbers).max():
            found[column] = float(numbers[lost.argmax()]), float(lost.max())
    return found


def _resolution(dtype: torch.dtype) -> float:
    """Half precision rounds all numbers by more."""
    return max(RESOLUTION, 4 * torch.finfo(dtype).eps)


def _rare(numbers: np.ndarray) -> np.ndarray:
    """Which numbers ``(N,)`` are not frequent; none of them, if they are too few to count."""
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    rare = counts[inverse] <= max(1, len(numbers) // NEIGHBOURS)
    return rare & (RARE * rare.sum() > len(numbers))


def _blurred_pair(numbers: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Two of the ordered ``numbers`` whose difference is lost; ``None`` if ``dtype`` is fine enough."""
    rounded, reach = numbers.to(dtype).double(), max(1, len(numbers) // NEIGHBOURS)
    difference, noise = numbers[reach:] - numbers[:-reach], torch.from_numpy(noise_of(numbers.numpy()))
    change = rounded[reach:] - rounded[:-reach] - difference
    differ = difference > noise[reach:].maximum(noise[:-reach])
    blurred = differ & (change.abs() > _resolution(dtype) * difference)
    if not blurred.any() or 2 * blurred.sum() < differ.sum():
        return None
    places = blurred.nonzero()[:, 0]
    place = int(places[len(places) // 2])
    return numbers[[place, place + reach]]
