"""Columns of a table as numbers. What has to be known for this is learnt from the training rows alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from pyro_scnf.datasets.labelled import GAPS, NUMBER

__all__ = ["BLANKS", "TableCells", "TableColumns", "fit_columns", "read_cells"]

BLANKS = ("indicate", "refuse")
"""What to do with cells that hold nothing."""

LEVELS = 20
"""The most levels of a category that have a column of their own."""

FEW = 10
"""So few levels are never too many for the rows."""

DIFFERENT = 0.8
"""If the levels of a column are more than this share of its rows, it tells rows apart, and is no category."""

INFINITE = re.compile(r"([+-]?)inf(inity)?", re.IGNORECASE)
NEAR_NUMBER = re.compile(r"[^\w\s]?\s*[+-]?[.,]?\d[\d.,' ]*([eE][+-]?\d+)?\D{0,8}")
"""Words such as 1,234 or 12 kg or $5."""

DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{2}|\d{4})([T ].*)?")
DATE_REMEDY = (
    "turn dates into numbers first, such as days since the first one, (dates - dates.min()).dt.days, or into "
    "a month or weekday for categories=; or leave the column out"
)

Cells = np.ndarray[Any, Any]
"""The cells of a column ``(N,)``: floating numbers with NaN for blanks, or objects of Python, each a number,
a truth value, a word, or ``None`` for a blank."""


# -- cells -----------------------------------------------------------------------------------------
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
        counts = {name: int(_blank(cells).sum()) for name, cells in self.columns.items()}
        found = [f"{name!r} in {count} rows" for name, count in counts.items() if count]
        if found:
            raise ValueError(
                f"blanks='refuse': {self.given} holds blanks in {', '.join(found)}; fill them, leave these "
                "rows or columns out, or give blanks='indicate'"
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
    :raises ValueError: for two columns of one name, for dates, and for cells that are neither numbers, truth
        values nor words. The message names the column and the row.
    """
    names = [str(name) for name in table.columns]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{given}: two columns have the name {twice[0]!r}; rename one")
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
        return column.to_numpy(dtype=np.float32 if floating else np.float64, na_value=np.nan)
    cells = np.empty(len(column), dtype=object)
    cells[:] = [_cell(entry, row, given) for row, entry in enumerate(column.tolist())]
    return cells


def _cell(entry: object, row: int, given: str) -> object:
    """A number, a truth value, a word, or ``None`` for a blank."""
    if isinstance(entry, str):
        word = entry.strip()
        return None if word in GAPS else word
    if isinstance(entry, bool | np.bool_):
        return bool(entry)
    if isinstance(entry, Real | Decimal):
        number = float(entry)
        return None if number != number else number
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        return None
    kind = type(entry)
    remedy = DATE_REMEDY if hasattr(entry, "year") else "leave the column out"
    raise ValueError(
        f"{given} holds {str(entry)[:40]!r} (a {kind.__module__}.{kind.__qualname__}) in row {row}, expected "
        f"numbers, truth values or words; {remedy}".replace("builtins.", "")
    )


def _number(cell: Any) -> float | None:
    """A cell as a number, NaN for a blank; ``None`` for a word that is none."""
    if not isinstance(cell, str):
        return np.nan if cell is None else float(cell)
    if NUMBER.fullmatch(cell):
        return float(cell)
    sign = INFINITE.fullmatch(cell)
    if sign:
        return -np.inf if sign[1] == "-" else np.inf
    return {"true": 1.0, "false": 0.0}.get(cell.lower())


def _level(cell: object) -> str:
    """The name of a level. 3.0 is the level 3, because a blank turns integers into such numbers."""
    if cell is None:
        return "blank"
    word = str(cell)
    return word.partition(".")[0] if re.fullmatch(r"[+-]?\d+\.0+", word) else word


def _blank(cells: Cells) -> Cells:
    """Where cells are blank, as truth values."""
    if cells.dtype == object:
        return np.array([cell is None for cell in cells], dtype=bool)
    return np.isnan(cells)


# -- columns ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers or truth values.

    :ivar str name: its name.
    :ivar float fill: what a blank becomes.
    :ivar bool indicated: whether a further column tells the blanks.
    """

    name: str
    fill: float
    indicated: bool

    def __call__(self, cells: Cells, rows: Cells, given: str) -> dict[str, Cells]:
        """The columns of numbers for the cells of the ``rows``, by name."""
        cells = cells[rows]
        if cells.dtype == object:
            numbers = [_number(cell) for cell in cells]
            if None in numbers:
                place = numbers.index(None)
                raise ValueError(
                    f"{given}: column {self.name!r} holds {cells[place]!r} in row {rows[place]}, and numbers "
                    "in the training rows; expected a number or a blank"
                )
            cells = np.array(numbers, dtype=np.float64)
        infinite = np.isinf(cells)
        if infinite.any():
            place = int(infinite.argmax())
            raise ValueError(
                f"{given}: column {self.name!r} holds {cells[place]} in row {rows[place]}, expected finite "
                "numbers; leave the cell blank, or leave the row out"
            )
        blank = np.isnan(cells)
        columns = {self.name: np.where(blank, cells.dtype.type(self.fill), cells)}
        return {**columns, f"{self.name} is blank": blank.astype(np.float64)} if self.indicated else columns


@dataclass(frozen=True)
class CategoryColumn:
    """A column of words, or of other values that are names.

    :ivar str name: its name.
    :ivar levels: the levels that have a column of 0 and 1.
    """

    name: str
    levels: tuple[str, ...]

    def __call__(self, cells: Cells, rows: Cells, given: str) -> dict[str, Cells]:
        """The columns of 0 and 1 for the cells of the ``rows``, by name."""
        words = np.array([_level(cell) for cell in cells[rows]], dtype=object)
        if "other" in self.levels:
            words[~np.isin(words, self.levels)] = "other"
        return {f"{self.name}={level}": (words == level).astype(np.float64) for level in self.levels}


@dataclass(frozen=True)
class TableColumns:
    """How a table becomes numbers.

    :ivar columns: its columns.
    :ivar names: the names of the columns of numbers that are kept.
    """

    columns: tuple[NumberColumn | CategoryColumn, ...]
    names: tuple[str, ...]

    def __call__(self, table: TableCells, rows: Cells) -> Any:
        """The ``rows`` of a table as a data frame of numbers ``(M, D)``."""
        import pandas

        made = encoded(self.columns, table, rows)
        return pandas.DataFrame({name: made[name] for name in self.names})


def encoded(
    columns: Sequence[NumberColumn | CategoryColumn], table: TableCells, rows: Cells
) -> dict[str, Cells]:
    """Columns of numbers ``(M,)`` by name, for the ``rows`` of a table.

    :raises ValueError: for words in a column of numbers, for infinity, and for two columns of one name.
    """
    made: dict[str, Cells] = {}
    for column in columns:
        for name, numbers in column(table.columns[column.name], rows, table.given).items():
            if name in made:
                raise ValueError(
                    f"{table.given}: two columns of numbers would have the name {name!r}; rename one"
                )
            made[name] = numbers
    return made


def fit_columns(table: TableCells, rows: Cells) -> TableColumns:
    """Learn from the training ``rows`` of a table how its columns become numbers.

    Columns that are constant in these rows are left out.

    :raises ValueError: for columns that are blank in all rows; for words that are dates, numbers with a unit
        or with separators, or different in almost all rows; if no column is left.
    """
    columns: list[NumberColumn | CategoryColumn] = []
    for name, cells in table.columns.items():
        given, some = f"{table.given}: column {name!r}", cells[rows]
        blank = _blank(some)
        if blank.all():
            raise ValueError(f"{given} holds nothing in all {len(rows)} training rows; leave it out")
        named = name in table.categories
        numbers = None if named else _fill(some[~blank])
        if numbers is not None:
            columns.append(NumberColumn(name, numbers, bool(blank.any())))
        else:
            columns.append(CategoryColumn(name, _levels(some, rows, given, named)))
    made = encoded(columns, table, rows)
    names = tuple(name for name, numbers in made.items() if (numbers != numbers[0]).any())
    if not names:
        raise ValueError(
            f"{table.given}: no column is left, because all of {list(table.columns)} are constant in the "
            "training rows; expected a column besides the label that differs between rows"
        )
    return TableColumns(tuple(columns), names)


def _fill(cells: Cells) -> float | None:
    """The lower median of cells without a blank, which is a value of the column; ``None`` for words."""
    numbers = [_number(cell) for cell in cells] if cells.dtype == object else cells
    if cells.dtype == object and None in numbers:
        return None
    return float(np.sort(np.asarray(numbers, dtype=np.float64))[(len(cells) - 1) // 2])


def _levels(cells: Cells, rows: Cells, given: str, named: bool) -> tuple[str, ...]:
    """The levels of a category that have a column."""
    blanks = int(_blank(cells).sum())
    counts = Counter(_level(cell) for cell in cells if cell is not None)
    if not named and all(DATE.fullmatch(word) for word in counts):
        raise ValueError(f"{given} holds {next(iter(counts))!r}, a date; {DATE_REMEDY}")
    apart = len(counts) > max(FEW, DIFFERENT * counts.total())
    if not named and (apart or len(counts) > LEVELS):
        _check_no_numbers(cells, rows, given, counts)
    if apart:
        raise ValueError(
            f"{given} holds {len(counts)} different values in {counts.total()} training rows, first "
            f"{next(iter(counts))[:40]!r}. Names, identifiers and free text tell rows apart, and are no "
            "categories; leave the column out, or give texts to datasets.text"
        )
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:LEVELS]
    levels = sorted(kept, key=_order)
    levels += ["other"] * (len(kept) < len(counts) and "other" not in kept)
    levels += ["blank"] * (blanks > 0 and "blank" not in kept)
    return tuple(levels[1:] if len(levels) == 2 else levels)


def _order(word: str) -> tuple[float, str]:
    """Numbers in their order, and words after them in theirs."""
    return (float(word) if NUMBER.fullmatch(word) else np.inf, word)


def _check_no_numbers(cells: Cells, rows: Cells, given: str, counts: Counter[str]) -> None:
    """Raise if most of many words are almost numbers."""
    if 2 * sum(bool(NEAR_NUMBER.fullmatch(word)) for word in counts) <= len(counts):
        return
    place, word = next(
        (i, cell) for i, cell in enumerate(cells) if cell is not None and _number(cell) is None
    )
    raise ValueError(
        f"{given} holds {word!r} in row {rows[place]}, and most of its words are numbers or look like them; "
        "write numbers alone, such as 1234.5, and leave unknown ones blank. If the words are names, give the "
        "column to categories="
    )
