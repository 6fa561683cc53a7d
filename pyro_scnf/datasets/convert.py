"""Arrays, data frames, series and lists as tensors of rows and of labels.

Tensors stay as they are. Everything else is converted, and what cannot be is refused by its row and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED, check_labels, validating
from pyro_scnf._warn import warn
from pyro_scnf.datasets.rounding import coarse_columns

__all__ = [
    "as_floats",
    "as_labels",
    "as_row_numbers",
    "as_rows",
    "check_same_columns",
    "check_same_index",
]

LARGEST = 2**31
"""No label is as large as this."""


# -- rows ------------------------------------------------------------------------------------------
def as_rows(value: object, name: str, owner: str, dtype: torch.dtype | None = None) -> Tensor:
    """Data ``(N, *event_shape)`` as a tensor of finite numbers.

    Tensors keep their dtype, except for truth values. Arrays, data frames and lists become ``dtype``, unless
    they are uint8.

    :param dtype: the default one by default.
    :raises ValueError: for anything that holds no numbers, for NaN and infinity, and for less than two
        dimensions.
    """
    given = f"{owner}: {name}"
    names = _column_names(value)
    if isinstance(value, Tensor):
        x = _check_dense(value, given)
        x = x.to(torch.get_default_dtype()) if x.dtype == torch.bool else x
    else:
        value = _numbers(value, given)
        x = _tensor(value, dtype)
    if x.dim() < 2 or not x.shape[1:].numel():
        raise ValueError(
            f"{given} has shape {tuple(x.shape)}, expected a table of rows (N, D), or images (N, C, H, W); "
            "one feature has the shape (N, 1), and one row (1, D)"
        )
    _check_finite(x, value, names, given)
    if isinstance(value, np.ndarray) and x.dim() == 2:
        _warn_of_rounding(x, value, names, given)
    return x


def as_floats(value: object, name: str, owner: str) -> Tensor:
    """A table of numbers as a tensor. Tensors stay as they are; others become the default dtype."""
    return value if isinstance(value, Tensor) else _tensor(_numbers(value, f"{owner}: {name}"))


def as_row_numbers(value: object, name: str, owner: str) -> Tensor:
    """Numbers of rows as a tensor, integers if they are given as integers."""
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{owner}: {name} is no table: its rows differ in length") from error
    array = array if array.size else array.astype(np.int64)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{owner}: {name} holds {_example(array)}, expected row numbers")
    return torch.from_numpy(_plain(array.astype(np.int64) if array.dtype.kind == "u" else array))


def check_same_columns(x: object, other: object, name: str, owner: str) -> None:
    """Raise if two data frames have other columns, or the same ones in another order."""
    ours, theirs = _column_names(x), _column_names(other)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"{owner}: {name} has the columns {theirs}, and x has {ours}; expected the same in the same "
            f"order, give {name}[x.columns]"
        )


def _column_names(value: object) -> list[object] | None:
    """The names of the columns of a data frame; ``None`` for anything else."""
    if isinstance(value, Tensor) or not hasattr(value, "to_numpy") or not hasattr(value, "columns"):
        return None
    return list(value.columns)


def check_same_index(x: object, y: object, name: str, owner: str) -> None:
    """Raise if the indices of a data frame ``x`` and a series ``y`` are the same in another order."""
    if not all(hasattr(value, "iloc") for value in (x, y)):
        return
    ours: Any = x.index  # type: ignore[attr-defined]
    theirs: Any = y.index  # type: ignore[attr-defined]
    if len(ours) == len(theirs) and not ours.equals(theirs) and set(ours) == set(theirs):
        raise ValueError(
            f"{owner}: {name} has the same index as the rows, in another order. Rows are matched by their "
            f"place; give {name}.loc[x.index]"
        )


def _check_dense(x: Tensor, given: str) -> Tensor:
    if x.is_complex() or x.is_quantized or x.layout != torch.strided:
        raise ValueError(
            f"{given} is a tensor of dtype {x.dtype} and layout {x.layout}, expected real numbers in a dense "
            "tensor"
        )
    return x


def _numbers(value: Any, given: str) -> np.ndarray:
    """``value`` as an array of numbers or truth values. Missing ones are NaN."""
    if isinstance(value, np.ma.MaskedArray):  # np.asarray would drop the mask
        return np.ma.filled(value.astype(np.float64), np.nan)
    if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
        rows = torch.stack([row.detach().cpu() for row in value])
        return (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()  # NumPy has no bfloat16
    names = _column_names(value)
    if names is not None and hasattr(value, "iloc"):
        columns = [value.iloc[:, place].to_numpy() for place in range(len(names))]
        if not all(column.dtype == columns[0].dtype and column.dtype.kind in "biuf" for column in columns):
            parts = [
                _numbers_of(column, f"{given}, column {name!r},")
                for name, column in zip(names, columns, strict=True)
            ]
            return np.stack(parts, 1) if parts else np.zeros((len(value.index), 0))
    try:
        array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    except ValueError as error:
        raise ValueError(f"{given} is no table: its rows differ in length") from error
    if not array.ndim and array.dtype.kind not in "biuf":
        remedy = "; give its .toarray()" if hasattr(value, "toarray") else ""
        raise ValueError(
            f"{given} is of type {type(value).__name__}, expected numbers in a tensor, an array, a data "
            f"frame or lists{remedy}"
        )
    return _numbers_of(array, given)


def _numbers_of(array: np.ndarray, given: str) -> np.ndarray:
    """An array of numbers. One of objects has to hold numbers; ``None`` and other gaps become NaN."""
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind == "O":
        flat = [_number(entry) for entry in array.flat]
        if None not in flat:
            return np.array(flat, dtype=np.float64).reshape(array.shape)
    remedy = "turn words into numbers (pandas.get_dummies)"
    words = [entry for entry in array.flat if array.dtype.kind != "O" or _number(entry) is None]
    if all(map(_is_written_number, words)):
        remedy = "they are numbers written as words: give .astype(float)"
    if array.dtype.kind in "mM":
        remedy = "turn times into numbers of days or seconds"
    raise ValueError(f"{given} holds {_example(array)}, expected numbers; {remedy}, or leave them out")


def _is_written_number(entry: object) -> bool:
    """Whether an entry is a word that is a number."""
    try:
        return isinstance(entry, str) and float(entry) == float(entry)
    except ValueError:
        return False


def _number(entry: object) -> float | None:
    """A number, NaN for a gap, and ``None`` for anything else."""
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        return float("nan")
    return float(entry) if isinstance(entry, Real | np.bool_ | Decimal) else None


def _example(array: np.ndarray) -> str:
    """What an array holds, for a message: its dtype, and the first entry that is no number."""
    for entry in array.flat:
        if array.dtype.kind != "O" or _number(entry) is None:
            kind = type(entry)
            shown = repr(entry.item() if isinstance(entry, np.generic) else entry)
            return f"{shown[:40]} (a {kind.__module__}.{kind.__qualname__})".replace("builtins.", "")
    return f"an array of dtype {array.dtype}"


def _plain(array: np.ndarray) -> np.ndarray:
    """``array`` as ``torch.from_numpy`` takes it: writable, in order and in the byte order of the machine."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    return plain if plain.flags.writeable else plain.copy()


def _tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of ``dtype``, which is the default one by default; of uint8 if the array is."""
    if array.dtype == np.uint8:
        return torch.from_numpy(_plain(array))
    if array.dtype.kind == "u" or array.dtype == np.longdouble:  # torch lacks some of these dtypes
        array = array.astype(np.float64)
    return torch.from_numpy(_plain(array)).to(dtype or torch.get_default_dtype())


def _check_finite(x: Tensor, value: object, names: Sequence[object] | None, given: str) -> None:
    """Raise for NaN or infinity in ``x``. Name the first one's row and column."""
    if not x.is_floating_point() or not x.numel() or not validating(x):
        return
    low, high = x.aminmax()
    if torch.isfinite(low) and torch.isfinite(high):
        return
    bad = (~torch.isfinite(x)).nonzero()
    place = tuple(bad[0].tolist())
    where = f"row {place[0]}, {_column(place[1:], names)}"
    if isinstance(value, np.ndarray) and np.isfinite(value[place]):
        raise ValueError(
            f"{given} holds {value[place]:.4g} in {where}, which is too large for {x.dtype}; use another unit"
        )
    raise ValueError(
        f"{given} holds {len(bad)} NaN or infinite values, expected finite ones; the first is in {where}. "
        "Fill the gaps, or leave these rows or columns out"
    )


def _column(place: Sequence[int], names: Sequence[object] | None) -> str:
    if names is not None:
        return f"column {names[place[0]]!r}"
    return f"column {place[0]}" if len(place) == 1 else f"entry {tuple(place)}"


def _warn_of_rounding(x: Tensor, value: np.ndarray, names: Sequence[object] | None, given: str) -> None:
    """Warn of columns that the dtype of ``x`` rounds coarsely, such as times in seconds since 1970."""
    if not x.numel() or not x.is_floating_point() or value.dtype.kind == "b":
        return
    if x.dtype != torch.bfloat16 and value.dtype == x.numpy().dtype:  # as most are, and large
        return
    coarse = coarse_columns(x, value.astype(np.float64))
    if coarse:
        column, (number, lost) = next(iter(coarse.items()))
        warn(
            f"{given} loses digits in {_column([column], names)}: {x.dtype} holds {number:.10g} only to "
            f"{lost:.2g}. Subtract the mean of such numbers first"
        )


# -- labels ----------------------------------------------------------------------------------------
def as_labels(
    value: object, num_classes: int | None, name: str, owner: str, *, unlabelled: bool = False
) -> Tensor:
    """Labels ``(N,)`` as an int64 tensor.

    Whole numbers of any dtype are labels; so are truth values if there are two classes. With ``unlabelled``,
    -1, NaN, ``None`` and other gaps are -1.

    :param num_classes: number of labels K; ``None`` if any number is a label.
    :raises ValueError: for anything else, and for labels out of range.
    """
    given = f"{owner}: {name}"
    labels = value if isinstance(value, Tensor) else _label_tensor(value, given)
    labels = _check_dense(labels, given)
    if labels.dim() == 2 and labels.shape[1] == 1:  # a data frame of one column
        labels = labels[:, 0]
    if labels.dim() != 1:
        raise ValueError(
            f"{given} has shape {tuple(labels.shape)}, expected one label for each row, (N,); give one-hot "
            f"rows as {name}.argmax(-1)"
        )
    if labels.dtype == torch.bool and num_classes not in (None, 2):
        raise ValueError(f"{given} holds truth values, which are labels of 2 classes, not of {num_classes}")
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        labels = labels.double()
    if labels.is_floating_point():
        labels = _whole(labels, given)
    labels = labels.long()
    if not unlabelled and validating(labels) and bool((labels == UNLABELLED).any()):
        row = int((labels == UNLABELLED).nonzero()[0])
        raise ValueError(
            f"{given} holds labels {UNLABELLED}..{int(labels.max())}, expected {_range(0, num_classes)}: row "
            f"{row} has no label, and every row here needs one; leave such rows out"
        )
    try:
        return check_labels(labels, num_classes or LARGEST, name, owner, unlabelled)
    except ValueError as error:
        if num_classes is not None and int(labels.max()) == num_classes and not bool((labels == 0).any()):
            remedy = f"{name} - 1"
            if bool((labels == UNLABELLED).any()):  # they have to stay -1
                library = "torch" if isinstance(value, Tensor) else "numpy"
                remedy = f"{library}.where({name} > 0, {name} - 1, {UNLABELLED})"
            raise ValueError(f"{error}; labels count from 0: give {remedy}") from error
        raise


def _range(lowest: int, num_classes: int | None) -> str:
    return f"{lowest}.." + ("" if num_classes is None else str(num_classes - 1))


def _label_tensor(value: object, given: str) -> Tensor:
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise ValueError(f"{given} is of type {type(value).__name__}, expected a label for each row")
    try:
        array = _numbers(np.asarray(value) if hasattr(value, "cat") else value, given)
    except ValueError as error:
        raise ValueError(
            f"{str(error).split(', expected numbers')[0]}, expected whole numbers; number the "
            "classes: y, classes = pandas.factorize(pandas.Series(y), sort=True), which gives -1 to rows "
            "that have none"
        ) from error
    return torch.from_numpy(_plain(array.astype(np.float64) if array.dtype.kind in "uf" else array))


def _whole(labels: Tensor, given: str) -> Tensor:
    """Floating labels as whole numbers. NaN becomes -1."""
    labels = labels.nan_to_num(nan=UNLABELLED, posinf=torch.inf, neginf=-torch.inf)
    if validating(labels):
        wrong = (labels != labels.floor()) | (labels.abs() >= LARGEST)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{given} holds {float(labels[row]):.4g} in row {row}, expected whole numbers, the labels of "
                "the rows"
            )
    return labels
