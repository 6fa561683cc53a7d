"""Labels as users write them: a column of words, numbers or truth values, with gaps where nobody knows.

Here a column becomes labels ``0 .. K - 1`` and the names of the classes, test rows are drawn from the
labelled rows, and the labels to keep are chosen among them. Nothing here looks at the data themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_number, check_whole, refuse_unused
from pyro_scnf._warn import warn
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

__all__ = [
    "SHARE",
    "as_classes_with_names",
    "as_named_labels",
    "choose_labels",
    "choose_rows",
    "column_of",
    "drawn_share",
    "held_out_test",
]

TEST_SHARE = 0.2
"""The share of the labelled rows to test on, if the user gives none."""

SHARE = ", a share such as 0.2,"
"""What test data may be besides data, for messages about missing files."""

GAPS = frozenset({"", "nan", "NaN", "<NA>", "NaT", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None"})
"""Words that mean a gap: nothing, and what Python, pandas, R, databases and spreadsheets write for it."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""A word that is a number."""


# -- columns ---------------------------------------------------------------------------------------
def column_of(table: Any, name: object, argument: str) -> Any:
    """The column ``name`` of a data frame.

    :param argument: the argument that holds the name, for the message.
    :raises ValueError: if there is no such column, or several. The message lists the columns.
    """
    columns = list(table.columns)
    if name not in columns:
        raise ValueError(f"{argument}={name!r}: there is no such column, expected one of {columns}")
    if columns.count(name) > 1:
        raise ValueError(f"{argument}={name!r}: {columns.count(name)} columns have this name; rename them")
    return table[name]


def as_classes_with_names(
    column: Iterable[object], given: str, *, unknown: object = None
) -> tuple[Tensor, tuple[str, ...]]:
    """The labels of a column as numbers, and the names of the classes.

    Words, whole numbers and truth values are labels. Gaps are ``None``, NaN, ``pandas.NA``, words of blanks
    alone, and the words that programs write for a gap, such as ``NA``, ``NULL`` and ``None``. The classes are
    in the order of their names, and in the order of numbers if all of them are numbers, whether they are
    written as words (``"10"``), as integers or as floating numbers without a fraction (``10.0``, which a gap
    in a column of integers leads to).

    :param column: the labels ``(N,)``: a list, an array or a series.
    :param given: what the user calls the column, for messages, such as ``"label='genre'"``.
    :param unknown: a further label that means a gap, such as ``"unknown"``, or -1. The number -1 beside two
        or more others is refused unless ``unknown`` says what it means. It has to occur.
    :return: labels ``(N,)`` in int64, -1 where there is none, and the names ``(K,)``.
    :raises ValueError: for less than two classes, for numbers with a fraction, for a label ``unknown`` that
        does not occur, and for anything else than words, numbers and truth values.

    >>> as_classes_with_names(["dog", None, "cat", " "], "label='animal'")
    (tensor([ 1, -1,  0, -1]), ('cat', 'dog'))
    >>> as_classes_with_names([10.0, float("nan"), 9.0], "label='grade'")
    (tensor([ 1, -1,  0]), ('9', '10'))
    """
    entries = _entries(column, given)
    words = [_word(entry, given) for entry in entries]
    hidden = sum(isinstance(entry, str) and entry.strip() == "None" for entry in entries)
    if hidden:
        warn(
            f"{given} holds the word 'None' in {hidden} rows, which means that they have no label; if it is "
            "a class, give it another name"
        )
    gap = None if unknown is None else _word(unknown, "unknown")
    distinct = {word for word in words if word is not None}
    meant = {word for word in distinct if _same(word, gap)}
    if gap is not None and not meant:
        reason = f"{given} holds no such label, but {_shown(sorted(distinct))}"
        refuse_unused(reason, unknown=unknown)
    words = [None if word in meant else word for word in words]
    distinct -= meant
    if distinct and all(NUMBER.fullmatch(word) for word in distinct):
        names_of = {word: _whole_number(word, given) for word in distinct}
        names = sorted(set(names_of.values()), key=int)
        if "-1" in names and len(names) > 2 and gap is None:
            raise ValueError(
                f"{given} holds -1 beside {len(names) - 1} other numbers. If it means that there is no "
                "label, give unknown=-1; if it is a class, give words in place of numbers"
            )
    else:
        names_of = {word: word for word in distinct}
        names = sorted(distinct)
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no label"
        raise ValueError(f"{given} holds {found} in {len(words)} rows, expected two classes or more")
    numbers = {word: names.index(name) for word, name in names_of.items()}
    y = [UNLABELLED if word is None else numbers[word] for word in words]
    return torch.tensor(y, dtype=torch.int64), tuple(names)


def as_named_labels(column: Iterable[object], names: Sequence[str], given: str) -> Tensor:
    """The labels of a column whose classes have names already, such as those of test rows.

    :param column: the labels ``(N,)``, without a gap.
    :param names: the names of the classes, as :func:`as_classes_with_names` returns them.
    :param given: what the user calls the column, for messages.
    :return: labels ``(N,)`` in int64.
    :raises ValueError: for a gap, and for a label that is no name. The message tells the first row.
    """
    numbers = {name: number for number, name in enumerate(names)}
    y = []
    for row, entry in enumerate(_entries(column, given)):
        word = _word(entry, given)
        if word is None:
            raise ValueError(f"{given}: row {row} has no label, and every row here needs one; leave it out")
        if word not in numbers and NUMBER.fullmatch(word):
            word = _whole_number(word, given)
        if word not in numbers:
            raise ValueError(
                f"{given} holds {word!r} in row {row}, expected one of the classes {', '.join(names)}"
            )
        y.append(numbers[word])
    return torch.tensor(y, dtype=torch.int64)


def _shown(words: Sequence[str]) -> str:
    """Some of the words, for a message."""
    return ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")


def _entries(column: Any, given: str) -> list[object]:
    """The entries of a column as plain values of Python."""
    entries = column.tolist() if hasattr(column, "tolist") else list(column)
    if not isinstance(entries, list) or any(isinstance(entry, list) for entry in entries):
        raise ValueError(f"{given} is no column, expected one label for each row")
    return entries


def _word(entry: object, given: str) -> str | None:
    """A label as a word; ``None`` for a gap."""
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(entry, str):
        word = entry.strip()
        return None if word in GAPS else word
    if isinstance(entry, bool | np.bool_ | Integral):
        return str(bool(entry)) if isinstance(entry, bool | np.bool_) else str(int(entry))
    if isinstance(entry, Real):
        number = float(entry)
        if not np.isinf(number):
            return None if np.isnan(number) else repr(number)
    kind = type(entry)
    raise ValueError(
        f"{given} holds {str(entry)[:40]!r} (a {kind.__module__}.{kind.__qualname__}), expected words, whole "
        "numbers or truth values, and gaps for unknown labels".replace("builtins.", "")
    )


def _same(word: str, other: str | None) -> bool:
    """Whether two labels are equal, as words or as numbers."""
    if other is None or word == other:
        return word == other
    both_numbers = NUMBER.fullmatch(word) and NUMBER.fullmatch(other)
    return bool(both_numbers) and float(word) == float(other)


def _whole_number(word: str, given: str) -> str:
    """A number as it is written without a fraction, ``"3"`` for ``"3.0"``."""
    if re.fullmatch(r"[+-]?\d+", word):
        return str(int(word))
    number = float(word)
    if not number.is_integer():
        raise ValueError(
            f"{given} holds the number {word}, expected classes: words, whole numbers or truth values. If it "
            "is a measurement, cut it into ranges first (pandas.cut)"
        )
    return str(int(number))


# -- rows ------------------------------------------------------------------------------------------
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
    named = hide(y) if rows_named(labels) else None
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
    if rows_named(labels):
        asked = as_row_numbers(labels, "labels", "choose_labels").flatten().tolist()
        blank = [row for row in asked if row in range(len(y)) and gaps[int(row)]]
        if blank:
            raise ValueError(f"labels: row {int(blank[0])} has no label in the data; leave it out")
    filled = torch.where(gaps, num_classes, y)  # rows without label as a class that keeps none
    return keep_labels(filled, num_classes + 1, labels, split, seed, classes=chosen)


def rows_named(labels: object) -> bool:
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
    if share and rows_named(labels):
        named = choose_labels(y, num_classes, labels, classes=classes)[1] != UNLABELLED
    train, tested = held_out_test(y, share or 0.0, seed, keep=named)
    labels = labels if named is None else named[train].nonzero()[:, 0]
    rows, shown = choose_labels(y[train], num_classes, labels, split, classes, shares, seed)
    return train[rows], shown, tested
