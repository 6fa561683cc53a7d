"""Choose the labels to keep: equally many of each class, in proportion to the classes, or of given rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_at_least, check_word
from pyro_scnf.datasets.convert import as_labels, as_row_numbers

__all__ = ["SPLITS", "Rows", "check_split", "keep_labels", "keep_labels_per_class"]

Rows = Tensor | np.ndarray | Sequence[int]
"""Numbers of rows."""


def keep_labels_per_class(y: Tensor, per_class: int, seed: int = 0) -> Tensor:
    """Keep ``per_class`` random labels of every class that occurs, and set the others to -1.

    :param y: labels ``(N,)``, as :class:`SemiSupervisedData` takes them. Hidden labels (-1) stay hidden.
    :param int per_class: number of labels to keep of each class.
    :param int seed: seed of the choice. The global generator plays no part.
    :raises ValueError: if a class has fewer examples than ``per_class``.
    """
    check_at_least(0, per_class=per_class, seed=seed)
    y = as_labels(y, None, "y", "keep_labels_per_class", unlabelled=True)
    sizes = torch.bincount(y[y != UNLABELLED])
    return _draw(y, torch.where(sizes > 0, per_class, 0), f"per_class={per_class}", seed)


def keep_labels(
    y: Tensor, num_classes: int, labels: int | Rows, split: str = "balanced", seed: int = 0
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
    :raises ValueError: for an unknown ``split``; for fewer labels than classes, or more than examples; if
        ``labels`` is not a multiple of K (balanced); if a class has too few examples (balanced) or too small
        a share (stratified); for indices that are repeated, out of range, or leave out a class.

    >>> y = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    >>> keep_labels(y, 2, labels=3, split="stratified").unique(return_counts=True)[1]
    tensor([6, 2, 1])
    >>> keep_labels(y, 2, labels=torch.tensor([1, 7]))
    tensor([-1,  0, -1, -1, -1, -1, -1,  1, -1])
    """
    check_at_least(1, num_classes=num_classes)
    if isinstance(labels, Tensor | np.ndarray) and not labels.ndim:
        labels = cast(int, labels.item())  # `check_split` refuses other numbers
    check_split(labels, split, seed)
    y = as_labels(y, num_classes, "y", "keep_labels")
    if not isinstance(labels, Integral):
        rows = _check_rows(as_row_numbers(labels, "labels", "keep_labels").to(y.device), y, num_classes)
        return torch.full_like(y, UNLABELLED).index_copy(0, rows, y[rows])
    labels = int(labels)
    if labels < num_classes:
        raise ValueError(f"labels={labels}: expected at least one for each of {num_classes} classes")
    if labels > len(y):
        raise ValueError(f"labels={labels}: there are only {len(y)} examples")
    counts = SPLITS[split](torch.bincount(y, minlength=num_classes), labels)
    return _draw(y, counts, f"labels={labels}", seed)


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
    if not counts.all():
        k = int(counts.argmin())
        raise ValueError(
            f"labels={labels}: split='stratified' gives none to class {k}, which has {int(sizes[k])} of "
            f"{int(sizes.sum())} examples; ask for more labels or for split='balanced'"
        )
    return counts


SPLITS: dict[str, Callable[[Tensor, int], Tensor]] = {"balanced": _balanced, "stratified": _stratified}
"""Ways to choose labels, by name. From class sizes ``(K,)`` and the number of labels, each computes how many
labels of every class are kept, ``(K,)``."""


def _draw(y: Tensor, counts: Tensor, given: str, seed: int) -> Tensor:
    """Keep ``counts[k]`` random labels of each class k. The error names ``given``, the user's argument."""
    generator = torch.Generator().manual_seed(int(seed))
    kept = torch.full_like(y, UNLABELLED)
    for k, count in enumerate(counts.tolist()):
        rows = (y == k).nonzero()[:, 0]
        if len(rows) < count:
            raise ValueError(f"{given}: class {k} has only {len(rows)} examples, expected at least {count}")
        kept[rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)]] = k
    return kept


def _check_rows(rows: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Raise unless ``rows`` are distinct row indices that cover every class. Return them as int64."""
    if rows.dim() != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise ValueError(
            f"labels: a tensor of shape {tuple(rows.shape)} and dtype {rows.dtype}; "
            "expected a number, or integer row indices of shape (n,)"
        )
    rows = rows.long()
    outside = rows[(rows < 0) | (rows >= len(y))]
    if len(outside):
        raise ValueError(f"labels: row index {int(outside[0])}, expected 0..{len(y) - 1}")
    repeated = len(rows) - len(rows.unique())
    if repeated:
        raise ValueError(f"labels: {repeated} of {len(rows)} row indices are repeated, expected each once")
    absent = (torch.bincount(y[rows], minlength=num_classes) == 0).nonzero()[:, 0].tolist()
    if absent:
        raise ValueError(
            f"labels: no row of class {', '.join(map(str, absent))} among the {len(rows)} given; "
            f"expected all {num_classes} classes"
        )
    return rows
