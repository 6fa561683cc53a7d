"""Labels as users write them: a column of words, numbers or truth values, with gaps where nobody knows.

Here a column becomes labels ``0 .. K - 1`` and the names of the classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import refuse_unused
from pyro_scnf._warn import warn

__all__ = [
    "CODE",
    "GAPS",
    "NUMBER",
    "RANGE",
    "as_classes_with_names",
    "as_named_labels",
    "column_of",
    "plain_word",
    "range_word",
]

GAPS = frozenset({"", "nan", "NaN", "<NA>", "NaT", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None"})
"""Words that mean a gap: nothing, and what Python, pandas, R, databases and spreadsheets write for it."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""A word that is a number."""

NO_LABEL = re.compile(r"[?.-]+|unknown|missing|un[-_ ]?labell?ed|no[-_ ]?label", re.IGNORECASE)
"""A word that may mean a gap, but may also be the name of a class."""

CODE = re.compile(r"[+-]?0\d+")
"""A number that begins with zeros, as in codes: 007 is a name, and 7 another one."""

BOUND = r"(-?inf|[+-]?\d+\.?\d*(?:e[+-]?\d+)?)"
RANGE = re.compile(rf"[\[(]{BOUND}, {BOUND}[\])]")
"""A word that is a range, as pandas.cut names it."""


def column_of(table: Any, name: object, argument: str) -> Any:
    """The column ``name`` of a data frame.

    :param argument: the argument that holds the name, for the message.
    :raises ValueError: if there is no such column, or several. The message lists the columns.
    """
    columns = list(table.columns)
    if name not in columns:
        index = list(getattr(getattr(table, "index", None), "names", []))
        remedy = ". It is in the index: give the table's .reset_index()" if name in index else ""
        raise ValueError(f"{argument}={name!r}: there is no such column, expected one of {columns}{remedy}")
    if columns.count(name) > 1:
        raise ValueError(f"{argument}={name!r}: {columns.count(name)} columns have this name; rename them")
    return table[name]


def as_classes_with_names(
    column: Iterable[object], given: str, *, unknown: object = None
) -> tuple[Tensor, tuple[str, ...]]:
    """The labels of a column as numbers, and the names of the classes.

    Words, whole numbers, truth values and ranges of ``pandas.cut`` are labels. Gaps are ``None``, NaN,
    ``pandas.NA``, words of blanks alone, and the words that programs write for a gap, such as ``NA``,
    ``NULL`` and ``None``. A warning tells of words such as ``?`` and ``unknown``, which are classes unless
    ``unknown`` names them.

    Integers and floating numbers without a fraction (``10.0``, which a gap in a column of integers leads to)
    are the same label. If all labels are numbers, words are numbers, too (``"10"``, ``"10.0"``), except for
    those that begin with zeros. These are codes, and keep them: ``"007"``. Beside ``"7"`` they are refused.

    Ordered categories of pandas are in their order. Other classes are in the order of their names, and in
    that of numbers or ranges if all of them are numbers or ranges.

    :param column: the labels ``(N,)``: a list, an array or a series.
    :param given: what the user calls the column, for messages, such as ``"label='genre'"``.
    :param unknown: a further label that means a gap, such as ``"unknown"``, or -1. The number -1 beside two
        or more others is refused unless ``unknown`` says what it means. It has to occur.
    :return: labels ``(N,)`` in int64, -1 where there is none, and the names ``(K,)``.
    :raises ValueError: for less than two classes, for numbers with a fraction, for one number with and
        without zeros before it, for a label ``unknown`` that does not occur, and for anything else than
        words, numbers, truth values and ranges.

    >>> as_classes_with_names(["dog", None, "cat", " "], "label='animal'")
    (tensor([ 1, -1,  0, -1]), ('cat', 'dog'))
    >>> as_classes_with_names([10.0, float("nan"), 9.0], "label='grade'")
    (tensor([ 1, -1,  0]), ('9', '10'))
    >>> as_classes_with_names(["010", "009"], "label='code'")
    (tensor([1, 0]), ('009', '010'))
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
    meant = _meant(distinct, gap)
    if gap is not None and not meant:
        reason = f"{given} holds no such label, but {_shown(sorted(distinct))}"
        refuse_unused(reason, unknown=unknown)
    words = [None if word in meant else word for word in words]
    distinct -= meant
    _warn_of_gaps(words, given)
    names_of = {word: word for word in distinct}
    if distinct and all(NUMBER.fullmatch(word) for word in distinct):
        names_of = {word: _whole_number(word, given) for word in distinct}
        _check_codes(set(names_of.values()), given)
    names = sorted(set(names_of.values()), key=_order(column, set(names_of.values()), given))
    if "-1" in names and len(names) > 2 and gap is None and all(map(NUMBER.fullmatch, names)):
        raise ValueError(
            f"{given} holds -1 beside {len(names) - 1} other numbers. If it means that there is no "
            "label, give unknown=-1; if it is a class, give words in place of numbers"
        )
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
            alike = [name for name in names if _same(word, name)]
            remedy = f"; {alike[0]!r} is the same number, write both alike" if alike else ""
            raise ValueError(
                f"{given} holds {word!r} in row {row}, expected one of the classes {', '.join(names)}{remedy}"
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
        word = plain_word(entry)
        return None if word in GAPS else word
    if isinstance(entry, bool | np.bool_ | Integral):
        return str(bool(entry)) if isinstance(entry, bool | np.bool_) else str(int(entry))
    if isinstance(entry, Decimal) and entry.is_finite() and entry == entry.to_integral_value():
        return str(int(entry))
    if isinstance(entry, Real | Decimal):
        number = float(entry)
        if not np.isinf(number):
            whole = number.is_integer()
            return None if np.isnan(number) else str(int(number)) if whole else repr(number)
    if type(entry).__name__ == "Interval":
        return range_word(entry)
    kind = type(entry)
    raise ValueError(
        f"{given} holds {str(entry)[:40]!r} (a {kind.__module__}.{kind.__qualname__}), expected words, whole "
        "numbers, truth values or ranges of pandas.cut, and gaps for unknown labels".replace("builtins.", "")
    )


def _warn_of_gaps(words: Sequence[str | None], given: str) -> None:
    """Warn of a class whose name says that there is no label."""
    classes = {word for word in words if word is not None}
    signs = {"+", "-"} if {"+", "-"} <= classes else set()  # of which the second is a class, too
    for word in sorted(word for word in classes - signs if NO_LABEL.fullmatch(word)):
        warn(
            f"{given} holds {word!r} in {words.count(word)} rows, which counts as a class; if it means that "
            f"there is no label, give unknown={word!r}"
        )


def plain_word(text: str) -> str:
    """A word without blanks around it, and with each accent in one letter, as most programs write it."""
    return unicodedata.normalize("NFC", text.strip())


def range_word(entry: object) -> str:
    """A range of ``pandas.cut`` as a word, ``"(5, 10]"``.

    It is the same for ``(5.0, 10.0]``, which a gap in a column leads to.
    """
    return re.sub(r"\.0(?=[,\])])", "", str(entry))


def _meant(words: set[str], gap: str | None) -> set[str]:
    """The words that are equal to ``gap``. Codes are equal to a number only if nothing else is."""
    if gap is None:
        return set()
    same = {word for word in words if word == gap or _same(word, gap)}
    return {word for word in same if word == gap or not CODE.fullmatch(word)} or same


def _same(word: str, other: str) -> bool:
    """Whether two labels are the same number."""
    both_numbers = NUMBER.fullmatch(word) and NUMBER.fullmatch(other)
    return bool(both_numbers) and float(word) == float(other)


def _whole_number(word: str, given: str) -> str:
    """A number as it is written without a fraction, ``"3"`` for ``"3.0"``. Codes stay as they are."""
    if CODE.fullmatch(word):
        return word
    if re.fullmatch(r"[+-]?\d+", word):
        return str(int(word))
    number = float(word)
    if not number.is_integer():
        raise ValueError(
            f"{given} holds the number {word}, expected classes: words, whole numbers or truth values. If it "
            "is a measurement, cut it into ranges first (pandas.cut); if each number is a class, write it as "
            "a word, such as '4.5 stars'"
        )
    return str(int(number))


def _check_codes(names: set[str], given: str) -> None:
    """Raise if two of the names are one number."""
    first: dict[int, str] = {}
    for name in sorted(names):
        other = first.setdefault(int(name), name)
        if other != name:
            raise ValueError(
                f"{given} holds {other!r} and {name!r}, which are the same number. Write them alike if they "
                "are one class; otherwise give words in place of numbers"
            )


def _order(column: Any, names: set[str], given: str) -> Callable[[str], Any]:
    """By what classes are sorted: the order that the column itself gives, or numbers, ranges or words."""
    accessor = getattr(column, "cat", column)  # that of a series
    if getattr(accessor, "ordered", False) is True and hasattr(accessor, "categories"):
        ranks = {_word(entry, given): rank for rank, entry in enumerate(accessor.categories.tolist())}
        if names <= ranks.keys():
            return ranks.__getitem__
    if all(NUMBER.fullmatch(name) for name in names):
        return int
    if all(RANGE.fullmatch(name) for name in names):
        return lambda name: tuple(map(float, name[1:-1].split(", ")))
    return str
