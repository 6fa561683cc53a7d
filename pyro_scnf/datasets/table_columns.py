"""Columns of a table as numbers. What has to be known for this is learnt from the training rows alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_scnf._warn import warn
from pyro_scnf.datasets.label_columns import CODE, NUMBER, RANGE
from pyro_scnf.datasets.rounding import check_resolution, noise_of
from pyro_scnf.datasets.table_cells import (
    DATE_REMEDY,
    Cells,
    TableCells,
    are_blank,
    as_level,
    as_number,
    check_apart,
)

__all__ = ["BLANKS", "TableColumns", "fit_columns"]

BLANKS = ("indicate", "refuse")
"""What to do with cells that hold nothing."""

LEVELS = 20
"""The most levels of a category that have a column of their own."""

FEW = 10
"""So few levels are never too many for the rows."""

DIFFERENT = 0.8
"""If the levels of a column are more than this share of its rows, it tells rows apart, and is no category."""

NEAR_NUMBER = re.compile(r"[^\w\s]?\s*[+-]?[.,]?\d[\d.,' ]*([eE][+-]?\d+)?\D{0,8}")
"""Words such as 1,234 or 12 kg or $5."""

DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{2}|\d{4})([T ].*)?")


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
            numbers = [as_number(cell) for cell in cells]
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
    :ivar known: all levels of the training rows.
    """

    name: str
    levels: tuple[str, ...]
    known: frozenset[str]

    def __call__(self, cells: Cells, rows: Cells, given: str) -> dict[str, Cells]:
        """The columns of 0 and 1 for the cells of the ``rows``, by name.

        It warns of levels that no training row has.
        """
        words = np.array([as_level(cell) for cell in cells[rows]], dtype=object)
        unknown = [word for word in words if word not in self.known]
        if unknown:
            become = "other" if "other" in self.levels else "none of the levels"
            warn(
                f"{given}: column {self.name!r} holds levels that no training row has, such as "
                f"{unknown[0][:40]!r}, in {len(unknown)} of {len(rows)} rows; they count as {become}"
            )
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

    Columns that are constant in these rows, but for errors of arithmetic, are left out.

    :raises ValueError: for columns that are blank in all rows; for numbers that the default dtype rounds too
        coarsely; for words that are dates, numbers with a unit or with separators, or different in almost all
        rows; if no column is left.
    """
    columns: list[NumberColumn | CategoryColumn] = []
    for name, cells in table.columns.items():
        given, some = f"{table.given}: column {name!r}", cells[rows]
        blank = are_blank(some)
        if blank.all():
            raise ValueError(f"{given} holds nothing in all {len(rows)} training rows; leave it out")
        named = name in table.categories
        numbers = None if named else _ordered(some[~blank], given)
        if numbers is not None:
            _warn_of_codes(some, given)
            check_resolution(numbers, given)
            median = float(numbers[(len(numbers) - 1) // 2])  # the lower one, which is a value of the column
            columns.append(NumberColumn(name, median, bool(blank.any())))
        else:
            levels = _levels(some, rows, given, named)
            columns.append(CategoryColumn(name, levels, frozenset(map(as_level, some))))
    made = encoded(columns, table, rows)
    names = tuple(name for name, numbers in made.items() if np.ptp(numbers) > noise_of(numbers).max())
    if not names:
        raise ValueError(
            f"{table.given}: no column is left, because all of {list(table.columns)} are constant in the "
            "training rows; expected a column besides the label that differs between rows"
        )
    return TableColumns(tuple(columns), names)


def _warn_of_codes(cells: Cells, given: str) -> None:
    """Warn of words that begin with zeros, as codes do, and count as numbers."""
    code = next((cell for cell in cells if isinstance(cell, str) and CODE.fullmatch(cell)), None)
    if code is not None:
        warn(
            f"{given} holds {code!r}, a number with zeros before it, and counts as a column of numbers; if "
            "it holds codes, give it to categories="
        )


def _ordered(cells: Cells, given: str) -> Cells | None:
    """Cells without a blank as numbers in ascending order; ``None`` if one is a word."""
    numbers = [as_number(cell) for cell in cells] if cells.dtype == object else cells
    if cells.dtype == object and None in numbers:
        return None
    ordered = np.sort(np.asarray(numbers, dtype=np.float64))
    if cells.dtype == object:
        check_apart((cell for cell in cells if NUMBER.fullmatch(str(cell))), ordered, given)
    return ordered


def _levels(cells: Cells, rows: Cells, given: str, named: bool) -> tuple[str, ...]:
    """The levels of a category that have a column."""
    blanks = int(are_blank(cells).sum())
    counts = Counter(as_level(cell) for cell in cells if cell is not None)
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
    """Numbers and ranges in their order, and words after them in theirs."""
    if RANGE.fullmatch(word):
        return float(word[1:].partition(",")[0]), word
    return (float(word) if NUMBER.fullmatch(word) else np.inf, word)


def _check_no_numbers(cells: Cells, rows: Cells, given: str, counts: Counter[str]) -> None:
    """Raise if most of many words are almost numbers."""
    if 2 * sum(bool(NEAR_NUMBER.fullmatch(word)) for word in counts) <= len(counts):
        return
    place, word = next(
        (i, cell) for i, cell in enumerate(cells) if cell is not None and as_number(cell) is None
    )
    raise ValueError(
        f"{given} holds {word!r} in row {rows[place]}, and most of its words are numbers or look like them; "
        "write numbers alone, such as 1234.5, and leave unknown ones blank. If the words are names, give the "
        "column to categories="
    )
