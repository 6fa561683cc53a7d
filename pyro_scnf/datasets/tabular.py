"""Tables with few labels: numbers, words, truth values and blanks as rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_word, refuse_unused
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.row_choice import choose_rows, drawn_share
from pyro_scnf.datasets.splits import Numbers, Shares, check_split
from pyro_scnf.datasets.table_cells import read_cells
from pyro_scnf.datasets.table_columns import BLANKS, fit_columns
from pyro_scnf.datasets.table_files import TABLES, read_own_table, read_table_set

__all__ = ["tabular"]


def tabular(
    source: Any,
    *,
    label: object = None,
    labels: int | Numbers | None = None,
    test: Any = None,
    root: str | Path | None = None,
    categories: Sequence[object] = (),
    unknown: object = None,
    blanks: str = "indicate",
    split: str = "balanced",
    classes: Numbers | None = None,
    shares: Shares | None = None,
    seed: int = 0,
) -> SemiSupervisedData:
    """A table as rows of numbers ``(N, D)`` of the default dtype, with ``labels`` training labels.

    Training rows stay in the order of the source. With ``test=0`` all rows are training rows, so
    ``data.y == -1`` tells which rows of the source have a blank label, and predictions for
    ``data.x[data.y == -1]`` are in their order.

    What has to be known to turn columns into numbers is learnt from the training rows alone:

    * Numbers stay as they are, in the user's units. Truth values become 0 and 1. Words count as numbers if
      all of a column are plain numbers, such as ``"1.5"``. A warning tells of numbers with zeros before them,
      such as ``"00501"``, which may be codes.
    * Other words, categories of pandas and the columns in ``categories`` become columns of 0 and 1, one for
      each level, named ``"column=level"``. Two levels need only one, that of the second in order. Of more
      than 20 levels, the 20 most frequent have columns, and the rest share ``"column=other"``. A level that
      only test rows have is ``"column=other"`` if there is such a column, and 0 in all columns if not. A
      warning tells such levels.
    * Blanks are ``None``, NaN, ``pandas.NA``, and in words nothing but spaces, ``NA``, ``N/A``, ``NaN``,
      ``NULL`` or ``None``. In a category they are the level ``"column=blank"``, if a training row has one. In
      a column of numbers a blank becomes the lower median, and if a training row has one, a further column
      ``"column is blank"`` of 0 and 1 tells them.
    * Columns of numbers that are constant in the training rows are left out. They carry no information.

    ``column_names`` of the result tells which columns there are.

    :param source: the name of one of :data:`TABLES`; or a table of your own, as a data frame of pandas, whose
        index is no column, or the path of a file: CSV in UTF-8 whose first line names its columns; Parquet,
        for which pyarrow has to be installed; or what ``numpy.savez`` wrote, with arrays ``X`` ``(N, D)`` and
        ``y`` ``(N,)``, and perhaps ``X_test`` and ``y_test``.
    :param label: the column of labels, of your own table: words, whole numbers, truth values or ranges of
        ``pandas.cut``, and a blank where there is no label. The classes are in the order of ordered
        categories of pandas, otherwise of their names. Words such as ``"007"`` stay as they are. Arrays need
        no name of a column.
    :param labels: how many training labels to keep, or the numbers of the rows that keep theirs, see
        :func:`keep_labels`. By default all stay that there are. Row numbers count the rows of the source,
        from 0. These rows are training rows, neither drawn to test on nor left out by ``shares``.
    :param test: a second file or data frame with the same columns in any order, or the share of the labelled
        rows to test on, drawn by ``seed`` in proportion to the classes. The share is 0.2 by default, and 0.1
        of ``"miniboone"``; 0 leaves no test row.
    :param root: the folder below which the files of a named table are.
    :param categories: further columns to treat as categories, such as numbers that are codes.
    :param unknown: a label that means that there is none, besides blanks, such as ``"unknown"`` or -1.
    :param str blanks: what to do with blanks outside of the labels: ``"indicate"`` as above, or
        ``"refuse"``.
    :param str split: how labels are chosen, one of :data:`SPLITS`.
    :param classes: the classes that keep labels; by default all, see :func:`keep_labels`.
    :param shares: the share of the training rows of each class that stays, see :func:`thin_classes`. By
        default all stay.
    :param int seed: seed of the test rows and of the choice of labels.
    :raises ValueError: for columns that are not there, or not in both tables; for infinity; for numbers so
        large that the default dtype rounds off what tells them apart, such as times in seconds since 1970;
        for lines of different lengths in a CSV file, and rows that hold nothing; for columns that hold
        nothing, dates, numbers with a unit or with separators, or a different word in almost every row; for
        blanks if they are refused; if all columns are constant; for less than two classes, and a test row
        without a label; for test rows that are the source itself; for labels that :func:`keep_labels`
        refuses; for options that would have no effect. The message names the column.
    :raises FileNotFoundError: for missing files.
    :raises ImportError: for a Parquet file if pyarrow is not installed.

    References: Roe et al., *Boosted decision trees as an alternative to artificial neural networks for
    particle identification*, 2005 (MiniBooNE); Baldi et al., *Parameterized neural networks for high-energy
    physics*, 2016 (HEPMASS); Izmailov et al., *Semi-supervised learning with normalizing flows*, 2020.

    >>> import pandas as pd
    >>> colour, kind = ["red", "blue", "red", None], ["a", "b", None, None]
    >>> table = pd.DataFrame({"size": [1, 2, 5, 4], "colour": colour, "kind": kind})
    >>> data = tabular(table, label="kind", test=0)
    >>> data.column_names
    ('size', 'colour=blue', 'colour=red', 'colour=blank')
    >>> data.x[data.y == -1]
    tensor([[5., 0., 1., 0.],
            [4., 0., 0., 1.]])
    """
    check_split(0 if labels is None else labels, split, seed)
    check_word("blanks", blanks, BLANKS)
    if isinstance(categories, str) or not isinstance(categories, Sequence):
        raise ValueError(f"categories={categories!r}: expected a list of columns, such as ['colour']")
    share = drawn_share(test)
    if isinstance(source, str) and source in TABLES:
        reason = f"{source} has files of a known form"
        refuse_unused(reason, label=label, categories=list(categories) or None, unknown=unknown)
        if share is None or TABLES[source].test is None:
            refuse_unused(f"{source} has test rows of its own, or draws a share", test=test)
        share = TABLES[source].test if test is None else share
        table = read_table_set(source, root)
    else:
        refuse_unused("source is no named table, and holds the rows itself", root=root)
        table = read_own_table(source, None if test is None or share is not None else test, label, unknown)
        if table.tests is not None and test is not None and share is not None:
            refuse_unused("source has test rows of its own", test=test)
    _check_categories(categories, list(table.rows.columns), label)
    names, own = table.class_names, table.tests is not None
    choice = (labels, split, classes, shares, seed)
    rows, shown, tested = choose_rows(table.y, len(names), None if own else share, *choice)

    cells = read_cells(table.rows, "source", categories)
    cells.refuse_empty((table.y == UNLABELLED).numpy())
    tests = read_cells(table.tests, "test", categories).ordered_like(cells) if own else cells
    if blanks == "refuse":
        for part in (cells, tests) if own else (cells,):
            part.refuse_blanks()
    columns = fit_columns(cells, rows.numpy())
    tested_rows = np.arange(len(table.tests)) if own else tested.numpy()
    y_test: Tensor = table.y[tested] if table.y_test is None else table.y_test
    return SemiSupervisedData(
        columns(cells, rows.numpy()),
        shown,
        columns(tests, tested_rows),
        y_test,
        len(names),
        class_names=names,
        column_names=columns.names,
    )


def _check_categories(categories: Sequence[object], columns: list[object], label: object) -> None:
    """Raise unless all ``categories`` are columns of the table without its labels."""
    for name in categories:
        if name == label:
            raise ValueError(f"categories: {name!r} is the column of labels; leave it out")
        if name not in columns:
            raise ValueError(f"categories: there is no column {name!r}, expected some of {columns}")
