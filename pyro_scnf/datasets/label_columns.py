"""Labels as users write them: a column of words, numbers or truth values, with gaps where nobody knows.

Here a column becomes labels ``0 .. K - 1`` and the names of the classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import refuse_unused
from pyro_scnf._warn import warn

__all__ = ["GAPS", "NUMBER", "as_classes_with_names", "as_named_labels", "column_of"]

GAPS = frozenset({"", "nan", "NaN", "<NA>", "NaT", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None"})
"""Words that mean a gap: nothing, and what Python, pandas, R, databases and spreadsheets write for it."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""A word that is a number."""


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
