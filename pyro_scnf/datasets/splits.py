"""Choose the labels to keep: equally many of each class, in proportion to the classes, or of given rows.

A class may get no label at all, and classes may be thinned, so that they differ in size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_at_least, check_number, check_whole, check_word
from pyro_scnf.datasets.convert import as_labels, as_row_numbers, as_rows, check_same_index

__all__ = [
    "SPLITS",
    "Numbers",
    "Shares",
    "as_classes",
    "as_counts",
    "as_shares",
    "check_split",
    "draw_labels",
    "keep_labels",
    "keep_labels_per_class",
    "thin_classes",
]

Numbers = Tensor | np.ndarray | Sequence[int]
"""Whole numbers: those of rows or classes, or one for each class."""

Shares = Tensor | np.ndarray | Sequence[float]
"""A number from 0 to 1 for each class."""


def keep_labels_per_class(y: Tensor, per_class: int | Numbers, seed: int = 0) -> Tensor:
    """Keep ``per_class`` random labels of every class that occurs, and set the others to -1.

    :param y: labels ``(N,)``, as :class:`SemiSupervisedData` takes them. Hidden labels (-1) stay hidden.
    :param per_class: number of labels to keep of each class. One number for all, or a number for each class,
        where 0 leaves a class without labels.
    :param int seed: seed of the choice. The global generator plays no part.
    :raises ValueError: if a class has fewer examples than ``per_class``, or if there are fewer numbers than
        classes.

    >>> y = keep_labels_per_class(torch.tensor([0, 1, 2, 0, 1, 2]), [1, 0, 2])
    >>> y[y >= 0].bincount()
    tensor([1, 0, 2])
    """
    check_at_least(0, seed=seed)
    y = as_labels(y, None, "y", "keep_labels_per_class", unlabelled=True)
    counts = as_counts("per_class", per_class, torch.bincount(y[y != UNLABELLED]))
    return draw_labels(y, counts, f"per_class={per_class}", seed)


def keep_labels(
    y: Tensor,
    num_classes: int,
    labels: int | Numbers,
    split: str = "balanced",
    seed: int = 0,
    *,
    classes: Numbers | None = None,
) -> Tensor:
    """Keep ``labels`` random labels in all, at least one of every class, and set the others to -1.

    ``"balanced"`` keeps the same number of every class, as Kingma et al. (2014) do. ``"stratified"`` keeps
    the proportions of the classes, as Atanov et al. (2019), section 4.2, do. It rounds by the method of
    largest remainders; of two equal remainders, that of the lower class goes first. Except in such ties,
    it keeps as many labels of each class as scikit-learn's ``train_test_split(stratify=y)``, but in other
    rows.

    :param y: labels ``(N,)``, ``0 .. num_classes - 1``, as :class:`SemiSupervisedData` takes them.
    :param int num_classes: number of labels K.
    :param labels: how many labels to keep. For a published split, give the indices ``(n,)`` of the rows that
        keep their labels, as a tensor, an array or a list; ``split`` and ``seed`` then play no part.
    :param str split: one of :data:`SPLITS`.
    :param int seed: seed of the choice. The global generator plays no part.
    :param classes: the classes that keep labels, such as ``range(8)``; by default all. The rows of the other
        classes stay in the data, without labels.
    :raises ValueError: for an unknown ``split``; for fewer labels than classes, or more than examples; if
        ``labels`` is not a multiple of the number of classes (balanced); if a class has too few examples
        (balanced) or too small a share (stratified); for indices that are repeated, out of range, leave out
        one of the ``classes``, or are of another class; for ``classes`` that are repeated or out of range.

    >>> y = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    >>> keep_labels(y, 2, labels=3, split="stratified").unique(return_counts=True)[1]
    tensor([6, 2, 1])
    >>> keep_labels(y, 2, labels=torch.tensor([1, 7]))
    tensor([-1,  0, -1, -1, -1, -1, -1,  1, -1])
    >>> keep_labels(y, 2, labels=3, classes=[1])
    tensor([-1, -1, -1, -1, -1, -1,  1,  1,  1])
    """
    check_at_least(1, num_classes=num_classes)
    if isinstance(labels, Tensor | np.ndarray) and not labels.ndim:
        labels = cast(int, labels.item())  # `check_split` refuses other numbers
    check_split(labels, split, seed)
    chosen = as_classes(classes, num_classes)
    y = as_labels(y, num_classes, "y", "keep_labels")
    if not isinstance(labels, Integral):
        rows = as_row_numbers(labels, "labels", "keep_labels").to(y.device)
        rows = _check_rows(rows, y, chosen, num_classes)
        return torch.full_like(y, UNLABELLED).index_copy(0, rows, y[rows])
    labels = int(labels)
    if labels < len(chosen):
        raise ValueError(f"labels={labels}: expected at least one for each of {len(chosen)} classes")
    sizes = torch.bincount(y, minlength=num_classes)
    available = int(sizes[chosen].sum())
    if labels > available:
        of_them = "" if classes is None else f" of the classes {chosen}"
        raise ValueError(f"labels={labels}: there are only {available} examples{of_them}")
    counts = torch.zeros_like(sizes)
    counts[chosen] = SPLITS[split](sizes[chosen], labels)
    for k in chosen:
        if not counts[k]:
            raise ValueError(
                f"labels={labels}: split={split!r} gives none to class {k}, which has {int(sizes[k])} of "
                f"{available} examples; ask for more labels or for split='balanced'"
            )
    return draw_labels(y, counts, f"labels={labels}", seed)


def thin_classes(
    x: Tensor, y: Tensor, shares: Shares, seed: int = 0, *, keep: Numbers | None = None
) -> tuple[Tensor, Tensor]:
    """Keep a random share of the rows of each class, for classes that differ in size.

    Thin first and hide labels then: ``x, y = thin_classes(x, y, shares)``, ``keep_labels_per_class(y, 100)``.
    The data sets of this package do so by ``shares=``. Rows stay in their order. With the same seed, the rows
    of a smaller share are among those of a larger one.

    :param x: rows ``(N, *event_shape)``, as :class:`SemiSupervisedData` takes them.
    :param y: the labels of all rows, ``(N,)``.
    :param shares: the share of each class ``(K,)``, 0 to 1. The number of rows is rounded.
    :param int seed: seed of the choice. The global generator plays no part.
    :param keep: the numbers of rows that stay, such as those with a label; they count as part of the share.
    :return: the rows kept and their labels.
    :raises ValueError: for rows without a label, or labels and rows that differ in number; for fewer shares
        than classes; if no row is left in all, or of a class whose share is above 0; for row numbers that
        are repeated or out of range, or more of them than the share of their class.

    Izmailov et al., *Semi-supervised learning with normalizing flows*, 2020, appendix K, keep all of MNIST's
    classes 0 to 2, 75 % of 3 to 5, 50 % of 6 to 8, and 25 % of 9.

    >>> x, y = torch.arange(8.0)[:, None], torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    >>> thin_classes(x, y, [1.0, 0.5])[1].bincount()
    tensor([4, 2])
    """
    check_at_least(0, seed=seed)
    rows = as_rows(x, "x", "thin_classes")
    check_same_index(x, y, "y", "thin_classes")
    labels = as_labels(y, None, "y", "thin_classes")
    if len(labels) != len(rows):
        raise ValueError(f"thin_classes: y has {len(labels)} labels and x has {len(rows)} rows")
    sizes = torch.bincount(labels)
    parts = as_shares(shares, len(sizes))
    counts = [round(part * int(size)) for part, size in zip(parts, sizes, strict=False)]
    for k, count in enumerate(counts):
        if not count and parts[k] and sizes[k]:
            raise ValueError(
                f"shares[{k}]={parts[k]}: none of the {int(sizes[k])} rows of class {k} would be left; "
                "give 0 to leave the class out"
            )
    if not any(counts):
        raise ValueError(f"shares={shares}: no row would be left, expected a share above 0")
    stay = torch.zeros_like(labels, dtype=torch.bool)
    if keep is not None:
        numbers = as_row_numbers(keep, "keep", "thin_classes").to(labels.device)
        stay[_check_row_numbers(numbers, len(labels), "keep")] = True
    for k, (count, needed) in enumerate(zip(counts, torch.bincount(labels[stay]).tolist(), strict=False)):
        if needed > count:
            raise ValueError(
                f"shares[{k}]={parts[k]}: {count} of {int(sizes[k])} rows of class {k} would be left, and "
                f"{needed} of them were named to stay; give a larger share"
            )
    kept = _choose(labels, counts, seed, stay)
    return rows[kept.to(rows.device)], labels[kept]


def as_classes(classes: Numbers | None, num_classes: int) -> list[int]:
    """The classes that keep labels, in order; all of them for ``None``.

    :raises ValueError: unless they are distinct numbers ``0 .. num_classes - 1``.
    """
    if classes is None:
        return list(range(num_classes))
    given = _members(classes)
    if not given:
        raise ValueError(f"classes={classes!r}: expected the numbers of one or more classes, such as [0, 1]")
    chosen = [check_whole(f"classes[{i}]", k, 0, num_classes - 1) for i, k in enumerate(given)]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"classes={given}: expected each class once")
    return sorted(chosen)


def as_counts(name: str, value: object, sizes: Tensor) -> list[int]:
    """How many labels of each class are kept, from one number for all or one for each class.

    One number counts for the classes that occur.

    :param sizes: the sizes of the classes, ``(K,)``.
    """
    given = _members(value)
    if given is None:
        count = check_whole(name, value, 0)
        return [count if size else 0 for size in sizes]
    _check_number_of(name, given, len(sizes))
    return [check_whole(f"{name}[{k}]", count, 0) for k, count in enumerate(given)]


def as_shares(shares: object, num_classes: int) -> list[float]:
    """Raise unless ``shares`` holds a number from 0 to 1 for each class, or for more. Return them."""
    given = _members(shares)
    if given is None:
        raise ValueError(f"shares={shares!r}: expected a list of numbers from 0 to 1, one for each class")
    _check_number_of("shares", given, num_classes)
    return [check_number(f"shares[{k}]", share, at_least=0, at_most=1) for k, share in enumerate(given)]


def _members(value: Any) -> list[object] | None:
    """The members of a list, a tuple, a range, an array or a tensor; ``None`` for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, list | tuple | range) else None


def _check_number_of(name: str, given: list[object], num_classes: int) -> None:
    if len(given) < num_classes:
        raise ValueError(
            f"{name} has {len(given)} numbers, but the labels are 0..{num_classes - 1}; expected one for "
            "each class"
        )


def check_split(labels: object, split: str, seed: int) -> None:
    """Raise for a number of labels that is none, an unknown ``split``, or a ``seed`` below 0.

    Rows in place of a number are not checked.
    """
    if labels is None or isinstance(labels, str | float | bool | np.bool_ | np.floating):
        raise ValueError(f"labels={labels!r}: expected a whole number, or the numbers of rows")
    check_word("split", split, SPLITS)
    check_at_least(0, seed=seed)


def _balanced(sizes: Tensor, labels: int) -> Tensor:
    """The same number of labels for every class."""
    if labels % len(sizes):
        raise ValueError(
            f"labels={labels}: split='balanced' needs a multiple of the {len(sizes)} classes; "
            "'stratified' does not"
        )
    return torch.full_like(sizes, labels // len(sizes))


def _stratified(sizes: Tensor, labels: int) -> Tensor:
    """Labels in proportion to class sizes, rounded down, plus one where the remainder is largest."""
    shares = labels * sizes
    counts, remainders = shares // sizes.sum(), shares % sizes.sum()
    counts[remainders.argsort(descending=True, stable=True)[: labels - counts.sum()]] += 1
    return counts


SPLITS: dict[str, Callable[[Tensor, int], Tensor]] = {"balanced": _balanced, "stratified": _stratified}
"""Ways to choose labels, by name. From the sizes ``(K,)`` of the classes that keep labels and the number of
labels, each computes how many labels of every such class are kept, ``(K,)``."""


def draw_labels(y: Tensor, counts: Tensor | Sequence[int], given: str, seed: int) -> Tensor:
    """Keep ``counts[k]`` random labels of each class k. The error names ``given``, the user's argument."""
    counts = [int(count) for count in counts]
    sizes = torch.bincount(y[y != UNLABELLED], minlength=len(counts))
    for k, count in enumerate(counts):
        if sizes[k] < count:
            raise ValueError(f"{given}: class {k} has only {sizes[k]} examples, expected at least {count}")
    return torch.where(_choose(y, counts, seed), y, UNLABELLED)


def _choose(y: Tensor, counts: Sequence[int], seed: int, first: Tensor | None = None) -> Tensor:
    """Choose ``counts[k]`` random rows of each class k. Return where they are, as truth values ``(N,)``.

    :param first: rows to choose before all others, as truth values ``(N,)``.
    """
    generator = torch.Generator().manual_seed(int(seed))
    chosen = torch.zeros_like(y, dtype=torch.bool)
    for k, count in enumerate(counts):
        rows = (y == k).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        if first is not None:
            rows = torch.cat([rows[first[rows]], rows[~first[rows]]])
        chosen[rows[:count]] = True
    return chosen


def _check_rows(rows: Tensor, y: Tensor, classes: list[int], num_classes: int) -> Tensor:
    """Raise unless ``rows`` are distinct row indices that cover the ``classes``. Return them as int64."""
    rows = _check_row_numbers(rows, len(y), "labels", "a number, or ")
    present = set(y[rows].tolist())
    absent = [k for k in classes if k not in present]
    if absent:
        wanted = f"all {num_classes} classes" if len(classes) == num_classes else f"the classes {classes}"
        raise ValueError(
            f"labels: no row of class {', '.join(map(str, absent))} among the {len(rows)} given; expected "
            f"{wanted}. To leave classes out, name those that keep labels by classes="
        )
    others = sorted(present - set(classes))
    if others:
        raise ValueError(f"labels: rows of class {', '.join(map(str, others))}, expected only {classes}")
    return rows


def _check_row_numbers(rows: Tensor, count: int, name: str, otherwise: str = "") -> Tensor:
    """Raise unless ``rows`` are distinct numbers of ``count`` rows. Return them as int64."""
    if rows.dim() != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise ValueError(
            f"{name}: a tensor of shape {tuple(rows.shape)} and dtype {rows.dtype}; expected {otherwise}"
            "integer row indices of shape (n,)"
        )
    rows = rows.long()
    outside = rows[(rows < 0) | (rows >= count)]
    if len(outside):
        raise ValueError(f"{name}: row index {int(outside[0])}, expected 0..{count - 1}")
    repeated = len(rows) - len(rows.unique())
    if repeated:
        raise ValueError(f"{name}: {repeated} of {len(rows)} row indices are repeated, expected each once")
    return rows
