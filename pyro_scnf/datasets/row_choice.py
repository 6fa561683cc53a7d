"""Which rows of a data set are there to train on and which to test on, and which labels are shown.

Nothing here looks at the data themselves, but for their labels.
"""

from __future__ import annotations

from functools import partial
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_number, check_whole, refuse_unused
from pyro_scnf.datasets.convert import as_row_numbers
from pyro_scnf.datasets.splits import (
    SPLITS,
    Numbers,
    Shares,
    as_classes,
    check_split,
    draw_labels,
    keep_labels,
    thin_classes,
)

__all__ = ["SHARE", "check_other", "choose_labels", "choose_rows", "drawn_share", "held_out_test"]

TEST_SHARE = 0.2
"""The share of the labelled rows to test on, if the user gives none."""

SHARE = ", a share such as 0.2,"
"""What test data may be besides data, for messages about missing files."""


def drawn_share(test: object) -> float | None:
    """The share of the labelled rows to test on; ``None`` if ``test`` is no number, so data of their own.

    :param test: the user's argument. ``None`` means 0.2.
    """
    if isinstance(test, Tensor | np.ndarray) and not test.ndim:
        test = test.item()
    if isinstance(test, bool | np.bool_):
        raise ValueError(f"test={test}: expected a share such as 0.2, 0 for no test rows, or test data")
    if test is None:
        return TEST_SHARE
    return float(test) if isinstance(test, Real) else None


def check_other(source: object, test: object) -> None:
    """Raise if ``test`` is ``source`` itself: the same file, or the same data frame."""
    files = [Path(data).expanduser() for data in (source, test) if isinstance(data, str | Path)]
    if test is source or (len(files) == 2 and all(map(Path.exists, files)) and files[0].samefile(files[1])):
        raise ValueError(
            "test: it is source itself, so test rows would be training rows; expected other rows, or a share "
            "of the labelled ones, such as test=0.2"
        )


def held_out_test(
    y: Tensor, share: float, seed: int, given: str = "test", keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw test rows among the labelled rows, in proportion to the classes.

    Each class keeps a labelled row to train on. Rows without a label are training rows.

    :param y: labels ``(N,)``, -1 where there is none.
    :param float share: the share of the labelled rows to test on, from 0 to below 1; 0 for none.
    :param int seed: seed of the choice. The global generator plays no part.
    :param given: the argument that holds the share, for messages.
    :param keep: rows that are training rows in any case, as truth values ``(N,)``.
    :return: the numbers of the training rows and of the test rows, both in the order of the data.
    :raises ValueError: for a share out of range, and for one above 0 that leaves no test row.

    >>> y = torch.tensor([0, 0, 0, 0, -1, 1, 1, 1, 1, -1])
    >>> train, test = held_out_test(y, 0.5, seed=0)
    >>> y[test], len(train)
    (tensor([0, 0, 1, 1]), 6)
    """
    share = check_number(given, share, at_least=0, below=1)
    seed = check_whole("seed", seed, 0)
    if not share:
        return torch.arange(len(y)), torch.arange(0)
    sizes = torch.bincount(y[y != UNLABELLED])
    labelled = int(sizes.sum())
    open_to = y if keep is None else y.masked_fill(keep, UNLABELLED)
    most = torch.bincount(open_to[open_to != UNLABELLED], minlength=len(sizes)).minimum(sizes - 1)
    counts = SPLITS["stratified"](sizes, round(share * labelled)).minimum(most.clamp(min=0))
    if not counts.sum():
        named = "" if keep is None else f", and {int(keep.sum())} rows are named to train on"
        raise ValueError(
            f"{given}={share:g}: this share of {labelled} labelled rows leaves no row to test on, because "
            f"each of the {int((sizes > 0).sum())} classes keeps one to train on{named}. Give a larger "
            "share, test data of their own, or 0 for no test rows"
        )
    tested = draw_labels(open_to, counts, given, seed) != UNLABELLED
    return (~tested).nonzero()[:, 0], tested.nonzero()[:, 0]


def choose_labels(
    y: Tensor,
    num_classes: int,
    labels: int | Numbers | None = None,
    split: str = "balanced",
    classes: Numbers | None = None,
    shares: Shares | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Choose the training rows that stay, and those of their labels that are shown.

    :param y: labels ``(N,)``, -1 where there is none.
    :param int num_classes: number of labels K.
    :param labels: how many labels to keep, or the numbers of the rows that keep theirs, see
        :func:`keep_labels`; ``None`` keeps all. These rows stay, whatever ``shares`` are.
    :param str split: how labels are chosen, one of :data:`SPLITS`.
    :param classes: the classes that keep labels; by default all.
    :param shares: the share of the rows of each class that stays, see :func:`thin_classes`. By default all.
    :param int seed: seed of both choices.
    :return: the numbers of the rows that stay ``(M,)``, and their labels ``(M,)``, -1 where hidden.
    :raises ValueError: for what :func:`keep_labels` and :func:`thin_classes` refuse; for ``shares`` of rows
        without a label, and for row numbers of such rows; for another ``split`` if all labels stay.

    >>> rows, shown = choose_labels(torch.tensor([0, 0, -1, 1, 1]), 2, labels=2)
    >>> shown.unique(return_counts=True)
    (tensor([-1,  0,  1]), tensor([3, 1, 1]))
    """
    check_split(0 if labels is None else labels, split, seed)
    if labels is None and split != "balanced":
        refuse_unused("all labels stay; give labels, too", split=split)
    hide = partial(_hide, num_classes, labels, split, classes, seed)
    rows = torch.arange(len(y))
    if shares is None:
        return rows, hide(y)
    gaps = int((y == UNLABELLED).sum())
    if gaps:
        raise ValueError(
            f"shares={shares}: {gaps} of {len(y)} rows have no label, so nobody knows of which class "
            "they are; leave shares out"
        )
    named = hide(y) if _names_rows(labels) else None
    keep = None if named is None else (named != UNLABELLED).nonzero()[:, 0]
    rows = thin_classes(rows[:, None], y, shares, seed, keep=keep)[0][:, 0]
    return rows, hide(y[rows]) if named is None else named[rows]


def _hide(
    num_classes: int,
    labels: int | Numbers | None,
    split: str,
    classes: Numbers | None,
    seed: int,
    y: Tensor,
) -> Tensor:
    """The labels ``(N,)`` as they are shown: all, or those that :func:`keep_labels` keeps, and -1."""
    chosen, gaps = as_classes(classes, num_classes), y == UNLABELLED
    if labels is None:
        return torch.where(torch.isin(y, torch.tensor(chosen)), y, UNLABELLED)
    if not gaps.any():
        return keep_labels(y, num_classes, labels, split, seed, classes=classes)
    if _names_rows(labels):
        asked = as_row_numbers(labels, "labels", "choose_labels").flatten().tolist()
        blank = [row for row in asked if row in range(len(y)) and gaps[int(row)]]
        if blank:
            raise ValueError(f"labels: row {int(blank[0])} has no label in the data; leave it out")
    filled = torch.where(gaps, num_classes, y)  # rows without label as a class that keeps none
    return keep_labels(filled, num_classes + 1, labels, split, seed, classes=chosen)


def _names_rows(labels: object) -> bool:
    """Whether ``labels`` holds numbers of rows, not how many labels to keep."""
    if isinstance(labels, Tensor | np.ndarray):
        return labels.ndim > 0
    return labels is not None and not isinstance(labels, Integral)


def choose_rows(
    y: Tensor,
    num_classes: int,
    share: float | None,
    labels: int | Numbers | None = None,
    split: str = "balanced",
    classes: Numbers | None = None,
    shares: Shares | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw test rows by :func:`held_out_test`, and choose among the others by :func:`choose_labels`.

    Rows that ``labels`` names are training rows. They are neither drawn to test on nor thinned away.

    :param y: labels ``(N,)``, -1 where there is none.
    :param share: the share of the labelled rows to test on; ``None`` for no test row.
    :param labels: how many labels to keep of the other rows, or the numbers of the rows that keep theirs,
        which count all rows.
    :return: the numbers of the training rows ``(M,)``, their labels ``(M,)``, -1 where hidden, and the
        numbers of the test rows.
    """
    named = None
    if share and _names_rows(labels):
        named = choose_labels(y, num_classes, labels, classes=classes)[1] != UNLABELLED
    train, tested = held_out_test(y, share or 0.0, seed, keep=named)
    labels = labels if named is None else named[train].nonzero()[:, 0]
    rows, shown = choose_labels(y[train], num_classes, labels, split, classes, shares, seed)
    return train[rows], shown, tested
