"""Files of tables: published sets by name, and files and data frames of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_scnf.datasets.array_files import read_arrays
from pyro_scnf.datasets.convert import as_labels
from pyro_scnf.datasets.label_columns import as_classes_with_names, as_named_labels, column_of
from pyro_scnf.datasets.row_choice import SHARE, check_other
from pyro_scnf.datasets.table_cells import NAMELESS_REMEDY
from pyro_scnf.datasets.text_files import DAMAGED, read_csv

__all__ = ["TABLES", "Table", "TableSet", "read_own_table", "read_table_set"]

LABEL = "y"
"""The column of labels of tables that have no names of columns."""

ENDINGS = (".csv", ".csv.gz", ".parquet", ".npz")


@dataclass(frozen=True)
class Table:
    """A table and its labels.

    :ivar rows: a data frame of N rows, without the labels.
    :ivar Tensor y: the labels ``(N,)``, -1 where there is none.
    :ivar tests: a data frame of M test rows, or ``None``.
    :ivar y_test: their labels ``(M,)``, or ``None``.
    :ivar class_names: the names of the classes ``0 .. K - 1``.
    """

    rows: Any
    y: Tensor
    tests: Any
    y_test: Tensor | None
    class_names: tuple[str, ...]


# -- published sets --------------------------------------------------------------------------------
@dataclass(frozen=True)
class TableSet:
    """A published table.

    :ivar versions: the files that may be there, best first.
    :ivar read: ``read(*paths)`` makes the arrays ``X`` and ``y`` of the files of a version, and ``X_test``
        and ``y_test`` if they have test rows.
    :ivar str folder: a folder that may hold the files, inside the root folder. The root folder itself may,
        too.
    :ivar class_names: the names of the classes.
    :ivar str address: where to get the files.
    :ivar test: the share of the rows to test on by default; ``None`` if a file holds test rows.
    """

    versions: tuple[tuple[str, ...], ...]
    read: Callable[..., dict[str, np.ndarray]]
    folder: str
    class_names: tuple[str, ...]
    address: str
    test: float | None = None


def _read_miniboone(path: Path) -> dict[str, np.ndarray]:
    """All signal rows, and the first as many background rows."""
    if path.suffix == ".npz":
        return _arrays(path, str(path))
    with path.open(errors="replace") as file:
        counts = file.readline().split()
        if len(counts) != 2 or not all(count.isdecimal() for count in counts):
            raise ValueError(f"{path} begins with {counts[:3]}, expected two numbers of rows")
    x = _numbers(path, sep=r"\s+", skiprows=1)
    signal, background = map(int, counts)
    if len(x) != signal + background:
        raise ValueError(
            f"{path} holds {len(x)} rows, expected the {signal} + {background} of its first line"
        )
    kept = min(signal, background)
    y = np.repeat(np.array([1, 0]), [signal, kept])
    return {"X": x[: signal + kept], "y": y}


def _read_hepmass(train: Path, test: Path) -> dict[str, np.ndarray]:
    """The label is the first column. The test file may have a further last column, the mass."""
    parts = {"": _numbers(train, skiprows=1), "_test": _numbers(test, skiprows=1)}
    width = parts[""].shape[1]
    if parts["_test"].shape[1] not in (width, width + 1) or width < 2:
        raise ValueError(
            f"{test} holds {parts['_test'].shape[1]} columns and {train} holds {width}, expected as many, or "
            "one more in the test file"
        )
    return {
        f"{name}{part}": values
        for part, table in parts.items()
        for name, values in (("X", table[:, 1:width]), ("y", table[:, 0]))
    }


def _numbers(path: Path, **options: Any) -> np.ndarray:
    """A file of numbers in lines ``(N, D)``, in float32."""
    import pandas

    try:
        return pandas.read_csv(path, header=None, dtype=np.float32, **options).to_numpy()
    except (ValueError, pandas.errors.ParserError, pandas.errors.EmptyDataError, *DAMAGED) as error:
        raise ValueError(f"{path} is no table of numbers: {str(error).strip()}") from error


_SIGNAL = ("background", "signal")
_UCI = "https://archive.ics.uci.edu/dataset"

TABLES: dict[str, TableSet] = {
    "miniboone": TableSet(
        (("miniboone_balanced.npz",), ("MiniBooNE_PID.txt",)),
        _read_miniboone,
        "miniboone",
        _SIGNAL,
        f"{_UCI}/199/miniboone+particle+identification",
        test=0.1,
    ),
    "hepmass": TableSet(
        tuple(
            (f"1000_train.csv{train}", f"1000_test.csv{test}")
            for train in ("", ".gz")
            for test in ("", ".gz")
        ),
        _read_hepmass,
        "hepmass",
        _SIGNAL,
        f"{_UCI}/347/hepmass",
    ),
}
"""Published tables by name, both of particle physics, with the classes background and signal.

``"miniboone"``: 50 columns, 72,998 rows: all signal rows and the first as many background rows. Its file is
``MiniBooNE_PID.txt``, or ``miniboone_balanced.npz`` with these rows as arrays ``X`` and ``y``. ``"hepmass"``:
27 columns of simulated collisions with a particle of mass 1000, in ``1000_train.csv`` and ``1000_test.csv``,
or both with ``.gz``. It has 7,000,000 training rows, which take 2 GB of memory or more."""


def read_table_set(name: str, root: object) -> Table:
    """The rows of a published table, from its files below the folder ``root``.

    :raises FileNotFoundError: if files are missing. The message names the folders and where to get the files.
    :raises ValueError: if a file holds something else. The message names it.
    """
    if not isinstance(root, str | Path):
        raise ValueError(f"root={root!r}: expected the folder below which the files of {name} are")
    source, root = TABLES[name], Path(root).expanduser().absolute()
    folders = [root / source.folder, root]
    for folder in folders:
        for files in source.versions:
            paths = [folder / file for file in files]
            if all(path.is_file() for path in paths):
                arrays, given = source.read(*paths), " and ".join(map(str, paths))
                frames = {part: _frame(arrays, part, given) for part in ("", "_test") if f"X{part}" in arrays}
                labels = {
                    part: as_labels(frame.pop(LABEL), 2, f"y{part}", given) for part, frame in frames.items()
                }
                return Table(
                    frames[""], labels[""], frames.get("_test"), labels.get("_test"), source.class_names
                )
    wanted = " or ".join(" and ".join(version) for version in source.versions)
    raise FileNotFoundError(
        f"{name}: none of the folders {', '.join(map(str, folders))} holds {wanted}; get them from "
        f"{source.address}, unpack them into {root}, or give another root"
    )


# -- files and data frames of one's own ------------------------------------------------------------
def read_own_table(source: object, tests: object, label: object, unknown: object = None) -> Table:
    """The rows of a file or a data frame, and of a second one for tests.

    :param source: the path of a file, or a data frame.
    :param tests: the same for tests, or ``None``. Each of its rows has a label.
    :param label: the name of the column of labels.
    :param unknown: a label that means a gap, see :func:`as_classes_with_names`.
    :raises ValueError: for columns that are not there, for a table of labels alone, for files that are no
        tables, and for tests that are the source itself.
    :raises FileNotFoundError: for files that are not there.
    """
    table, more = _read(source, "source")
    if tests is not None:
        if more is not None:
            raise ValueError("test: source has test rows of its own, X_test and y_test; leave test out")
        check_other(source, tests)
        more, further = _read(tests, "test")
        if further is not None:
            raise ValueError("test: expected X and y alone, it holds X_test and y_test, too")
    if label is None and _is_arrays(source):
        label = LABEL
    if label is None:
        raise ValueError(
            f"label=None: expected the name of the column of labels, one of {list(table.columns)}"
        )
    named = f"label={label!r}"
    y, names = as_classes_with_names(column_of(table, label, "label"), named, unknown=unknown)
    rows = table.drop(columns=[label])
    if not len(rows.columns):
        given = f"source={str(source)!r}" if isinstance(source, str | Path) else "source"
        raise ValueError(
            f"{given} holds no column besides the labels, {label!r}; expected at least one more, of numbers "
            "or words that tell about a row"
        )
    if more is None:
        return Table(rows, y, None, None, names)
    y_test = as_named_labels(column_of(more, label, "test: label"), names, f"{named} of test")
    return Table(rows, y, more.drop(columns=[label]), y_test, names)


def _is_arrays(source: object) -> bool:
    return isinstance(source, str | Path) and str(source).lower().endswith(".npz")


def _read(source: Any, argument: str) -> tuple[Any, Any]:
    """A data frame, read from a file if need be, and a second one of test rows or ``None``."""
    if not isinstance(source, str | Path):
        if not hasattr(source, "columns") or not hasattr(source, "iloc"):
            raise ValueError(
                f"{argument} is of type {type(source).__name__}, expected the path of a file "
                f"({', '.join(ENDINGS)}) or a data frame of pandas"
            )
        return source, None
    path, given = Path(source).expanduser(), f"{argument}={str(source)!r}"
    known = f", one of the tables {', '.join(map(repr, TABLES))}," if argument == "source" else SHARE
    if not path.is_file():
        raise FileNotFoundError(
            f"{given}: there is no such file; expected the path of a file ({', '.join(ENDINGS)}){known} or a "
            "data frame"
        )
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return _read_named_csv(path, given), None
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, given), None
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{given}: expected a file whose name ends in {', '.join(ENDINGS)}, or a data frame")
    arrays = _arrays(path, given)
    return _frame(arrays, "", given), _frame(arrays, "_test", given) if "X_test" in arrays else None


def _read_named_csv(path: Path, given: str) -> Any:
    """A CSV file of which each column has a name."""
    table = read_csv(path, header=0)
    unnamed = [place for place, name in enumerate(table.columns) if not str(name).strip()]
    if unnamed:
        raise ValueError(f"{given}: column {unnamed[0]} has no name in the first line. {NAMELESS_REMEDY}")
    return table


def _read_parquet(path: Path, given: str) -> Any:
    import pandas

    try:
        return pandas.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            f"{given}: a .parquet file needs pyarrow; install it with: pip install pyarrow, or give a CSV "
            "file"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{given} cannot be read as a Parquet file: {error}") from error


def _arrays(path: Path, given: str) -> dict[str, np.ndarray]:
    """The arrays of a file that ``numpy.savez`` wrote: ``X``, ``y``, and perhaps ``X_test``, ``y_test``."""
    arrays = read_arrays(path, given, lambda name: f"X{name[1:]}" if name[:1] == "x" else name)
    for part in ("", "_test") if {"X_test", "y_test"} & set(arrays) else ("",):
        if f"X{part}" not in arrays or f"y{part}" not in arrays:
            raise ValueError(f"{given} holds {', '.join(arrays) or 'nothing'}, expected X{part} and y{part}")
    return arrays


def _frame(arrays: dict[str, np.ndarray], part: str, given: str) -> Any:
    """A data frame of an array ``(N, D)`` and its labels. The columns are x0, x1, ... and y."""
    import pandas

    x, y = arrays[f"X{part}"], arrays[f"y{part}"]
    if x.ndim != 2 or x.dtype.kind not in "biuf" or y.shape != x.shape[:1]:
        raise ValueError(
            f"{given}: X{part} has shape {x.shape} and dtype {x.dtype}, and y{part} has shape {y.shape}; "
            "expected numbers (N, D) and a label for each row, (N,)"
        )
    table = pandas.DataFrame(x, columns=[f"x{place}" for place in range(x.shape[1])])
    return table.assign(**{LABEL: y})
