"""Cells of a table: numbers, truth values, words and blanks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

from pyro_scnf.datasets.label_columns import GAPS, NUMBER, plain_word, range_word

__all__ = [
    "DATE_REMEDY",
    "NAMELESS_REMEDY",
    "Cells",
    "TableCells",
    "are_blank",
    "as_level",
    "as_number",
    "check_apart",
    "read_cells",
]

INFINITE = re.compile(r"([+-]?)inf(inity)?", re.IGNORECASE)
NAMELESS = re.compile(r"Unnamed: \d+(\.\d+)?|__index_level_\d+__")
"""What pandas calls a column without a name, such as the row numbers of a table that was saved."""

NAMELESS_REMEDY = "If it holds row numbers, leave it out (table.to_csv(..., index=False)); otherwise name it"
DATE_REMEDY = (
    "turn dates into numbers first, such as days since the first one, (dates - dates.min()).dt.days, or into "
    "a month or weekday for categories=; or leave the column out"
)

Cells = np.ndarray[Any, Any]
"""The cells of a column ``(N,)``: floating numbers with NaN for blanks, or objects of Python, each a number,
a truth value, a word, or ``None`` for a blank."""


@dataclass(frozen=True)
class TableCells:
    """The cells of a table.

    :ivar str given: the argument that holds the table, for messages.
    :ivar columns: the cells of each column, by its name.
    :ivar categories: the columns that the table itself says are categories.
    """

    given: str
    columns: Mapping[str, Cells]
    categories: frozenset[str]

    def refuse_blanks(self) -> None:
        """Raise if a cell is blank. The message names the columns."""
        counts = {name: int(are_blank(cells).sum()) for name, cells in self.columns.items()}
        found = [f"{name!r} in {count} rows" for name, count in counts.items() if count]
        if found:
            raise ValueError(
                f"blanks='refuse': {self.given} holds blanks in {', '.join(found)}; fill them, leave these "
                "rows or columns out, or give blanks='indicate'"
            )

    def refuse_empty(self, unlabelled: Cells) -> None:
        """Raise if a row holds nothing at all, as the last lines of a spreadsheet may.

        :param unlabelled: which rows have no label, as truth values ``(N,)``.
        """
        empty = unlabelled & np.all([are_blank(cells) for cells in self.columns.values()], axis=0)
        if empty.any():
            raise ValueError(
                f"{self.given}: {int(empty.sum())} of {len(empty)} rows hold nothing, not even a label, "
                f"first row {int(empty.argmax())}; leave them out, as table.dropna(how='all') does"
            )

    def ordered_like(self, other: TableCells) -> TableCells:
        """The same table with the columns of ``other`` in their order.

        :raises ValueError: if it has other columns.
        """
        lacking = [name for name in other.columns if name not in self.columns]
        further = [name for name in self.columns if name not in other.columns]
        if lacking or further:
            found = " and ".join(
                f"{verb} {names}" for verb, names in (("lacks", lacking), ("also has", further)) if names
            )
            raise ValueError(
                f"{self.given} {found}; expected the columns of {other.given}, in any order: "
                f"{list(other.columns)}"
            )
        return TableCells(self.given, {name: self.columns[name] for name in other.columns}, self.categories)


def read_cells(table: Any, given: str, categories: Sequence[object] = ()) -> TableCells:
    """The cells of a data frame.

    :param given: the argument that holds the table, for messages.
    :param categories: the columns that the user says are categories.
    :raises ValueError: for two columns of one name or a column without one, for dates, for whole numbers that
        double precision cannot tell apart, and for cells that are neither numbers, truth values nor words.
        The message names the column and the row.
    """
    names = [str(name) for name in table.columns]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{given}: two columns have the name {twice[0]!r}; rename one")
    nameless = [name for name in names if NAMELESS.fullmatch(name)]
    if nameless:
        raise ValueError(f"{given}: column {nameless[0]!r} has no name of its own. {NAMELESS_REMEDY}")
    columns, found = {}, set()
    for place, name in enumerate(names):
        column = table.iloc[:, place]
        if type(column.dtype).__name__ == "CategoricalDtype" or table.columns[place] in categories:
            found.add(name)
        columns[name] = _cells(column, f"{given}: column {name!r}", name in found)
    return TableCells(given, columns, frozenset(found))


def _cells(column: Any, given: str, category: bool) -> Cells:
    """The cells of a series."""
    kind = getattr(column.dtype, "kind", "O")
    if kind in "mM":
        raise ValueError(f"{given} holds dates or times ({column.dtype}); {DATE_REMEDY}")
    if kind in "biuf" and not category:
        floating = column.dtype == np.float32
        numbers = column.to_numpy(dtype=np.float32 if floating else np.float64, na_value=np.nan)
        if kind in "iu":
            check_apart(column.dropna(), numbers, given)
        return numbers
    cells = np.empty(len(column), dtype=object)
    cells[:] = [_cell(entry, row, given) for row, entry in enumerate(column.tolist())]
    return cells


def check_apart(exact: Iterable[Any], numbers: Cells, given: str) -> None:
    """Raise if two ``exact`` numbers have become the same one among ``numbers`` in double precision."""
    some = numbers[~np.isnan(numbers)]
    if not (np.abs(some) > 2**53).any():
        return
    if len({Decimal(str(number)) for number in exact if number == number}) > len(np.unique(some)):
        raise ValueError(
            f"{given} holds whole numbers beyond 2**53, of which double precision confuses some; give the "
            "column to categories= if they are codes, leave it out if they are identifiers, or subtract the "
            "smallest from it"
        )


def _cell(entry: object, row: int, given: str) -> object:
    """A number, a truth value, a word, or ``None`` for a blank."""
    if isinstance(entry, str):
        word = plain_word(entry)
        return None if word in GAPS else word
    if isinstance(entry, bool | np.bool_):
        return bool(entry)
    if isinstance(entry, Integral):
        return int(entry)
    if isinstance(entry, Real | Decimal):
        number = float(entry)
        return None if number != number else number
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        return None
    if type(entry).__name__ == "Interval":  # of pandas.cut
        return range_word(entry)
    kind = type(entry)
    remedy = DATE_REMEDY if hasattr(entry, "year") else "leave the column out"
    raise ValueError(
        f"{given} holds {str(entry)[:40]!r} (a {kind.__module__}.{kind.__qualname__}) in row {row}, expected "
        f"numbers, truth values or words; {remedy}".replace("builtins.", "")
    )


def as_number(cell: Any) -> float | None:
    """A cell as a number, NaN for a blank; ``None`` for a word that is none."""
    if not isinstance(cell, str):
        return np.nan if cell is None else float(cell)
    if NUMBER.fullmatch(cell):
        return float(cell)
    sign = INFINITE.fullmatch(cell)
    if sign:
        return -np.inf if sign[1] == "-" else np.inf
    return {"true": 1.0, "false": 0.0}.get(cell.lower())


def as_level(cell: object) -> str:
    """The name of a level. 3.0 is the level 3, because a blank turns integers into such numbers."""
    if cell is None:
        return "blank"
    word = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    return word.partition(".")[0] if re.fullmatch(r"[+-]?\d+\.0+", word) else word


def are_blank(cells: Cells) -> Cells:
    """Where cells are blank, as truth values."""
    if cells.dtype == object:
        return np.array([cell is None for cell in cells], dtype=bool)
    return np.isnan(cells)
