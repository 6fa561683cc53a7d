"""Checks of the data, labels and contexts that a user passes in.

One rule holds for all of them. Layers, flows, models and losses take tensors: data as floating tensors of the
model's dtype, labels as integers. Anything else raises an error that tells how to convert it. Data sets
(:mod:`pyro_scnf.datasets`) convert arrays, data frames and lists themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_scnf._during import during
from pyro_scnf._shapes import check_event, check_tensor, is_wrapped

__all__ = [
    "LOG_ZERO",
    "UNLABELLED",
    "check_alike",
    "check_context",
    "check_data",
    "check_finite",
    "check_labels",
    "check_row_labels",
    "check_simplex",
    "checked",
    "validate_args",
    "validating",
    "validation_kept",
]


UNLABELLED = -1
"""Marks an unknown label in ``y``."""

LOG_ZERO = -1e30
"""log 0 for enumeration. It is finite: enumeration may multiply it by a probability of zero, and zero times
minus infinity is NaN."""


def validating(*values: Tensor) -> bool:
    """Whether to run checks that read ``values``.

    ``pyro.enable_validation`` switches them on and off. They step aside where nobody can read values: inside
    ``torch.func``, ``torch.compile`` and on the meta device.
    """
    if not Distribution._validate_args or _CHECKED.get() or torch.compiler.is_compiling():
        return False
    return not any(is_wrapped(value) or value.is_meta for value in values)


def validate_args(parameter: Tensor) -> bool | None:
    """``validate_args`` for a distribution: ``False`` if ``parameter`` cannot be read or is empty.

    ``None`` leaves it to Pyro's setting. PyTorch cannot validate a batch of no rows.
    """
    return None if parameter.numel() and validating(parameter) else False


_CHECKED: ContextVar[bool] = ContextVar("checked", default=False)


def checked() -> AbstractContextManager[None]:
    """A block whose data have been checked already, so that reading them a second time is of no use."""
    return during(_CHECKED, True)


@contextmanager
def validation_kept() -> Iterator[None]:
    """Leave the validation of distributions as it is. ``torch.compile`` switches it off for the process."""
    before = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


# -- data ------------------------------------------------------------------------------------------
def check_finite(x: Tensor, name: str, owner: str) -> None:
    """Raise if ``x`` is no tensor, or holds NaN or infinity."""
    check_tensor(x, name, owner)
    if validating(x) and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{owner}: {name} holds {bad} NaN or infinite values, expected finite ones")


def check_data(
    x: Tensor,
    event_shape: torch.Size,
    like: Tensor | None,
    support: constraints.Constraint,
    owner: str,
    name: str = "x",
) -> Tensor:
    """Raise unless ``x`` holds data inside their support. Return them in the dtype of ``like``.

    A lower precision than that of ``like`` is converted, because that loses nothing.

    :param like: a parameter of the module that takes the data, if it has any.
    :param support: where the data may lie. Only intervals are checked.
    """
    check_event(x, event_shape, name, owner)
    dtype = torch.float32 if like is None else like.dtype
    if not x.is_floating_point():
        raise ValueError(
            f"{owner}: {name} has dtype {x.dtype}, expected floating numbers. If these are counts or grey "
            f"levels, spread them with pyro_scnf.transforms.dequantize({name}, bins), since integers have no "
            f"density; if they are measurements, give {name}.to({dtype})"
        )
    x = check_alike(x, like, owner, name)
    check_finite(x, name, owner)
    _check_interval(x, support, name, owner)
    return x


def check_alike(x: Tensor, like: Tensor | None, owner: str, name: str) -> Tensor:
    """Raise unless ``x`` has the dtype and the device of ``like``, if that is given. Return ``x``.

    A lower precision than that of ``like`` is converted, because that loses nothing.
    """
    if like is None:
        return x
    if not x.is_floating_point():
        raise ValueError(
            f"{owner}: {name} has dtype {x.dtype}, expected floating numbers; give {name}.to({like.dtype})"
        )
    if torch.promote_types(x.dtype, like.dtype) != like.dtype:
        raise ValueError(
            f"{owner}: {name} has dtype {x.dtype} and the parameters {like.dtype}; give "
            f"{name}.to({like.dtype}), or convert the model with .to({x.dtype})"
        )
    if x.device != like.device:
        raise ValueError(
            f"{owner}: {name} is on {x.device} and the parameters on {like.device}; give "
            f"{name}.to({str(like.device)!r})"
        )
    return x.to(like.dtype)


def _check_interval(x: Tensor, support: constraints.Constraint, name: str, owner: str) -> None:
    """Raise if ``support`` is an interval for each entry and ``x`` leaves it."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if not isinstance(support, constraints.interval) or not x.numel() or not validating(x):
        return
    low, high = x.min(), x.max()
    if low < support.lower_bound or high > support.upper_bound:
        outside = int(((x < support.lower_bound) | (x > support.upper_bound)).sum())
        raise ValueError(
            f"{owner}: {name} holds {outside} values outside [{support.lower_bound:.4g}, "
            f"{support.upper_bound:.4g}], from {float(low):.4g} to {float(high):.4g}; scale data to the unit "
            f"interval (grey levels by pyro_scnf.transforms.dequantize({name}, bins))"
        )


# -- labels ----------------------------------------------------------------------------------------
def check_labels(
    y: Tensor,
    num_classes: int,
    name: str,
    owner: str,
    unlabelled: bool = False,
    plates: Mapping[int | None, int] | None = None,
) -> Tensor:
    """Raise unless ``y`` holds integer class labels. Return them as int64.

    :param y: labels ``0 .. num_classes - 1`` of any shape; with ``unlabelled``, also -1 for an unknown one.
    :param plates: see :func:`check_context`.
    """
    check_tensor(y, name, owner)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(
            f"{owner}: {name} has dtype {y.dtype}, expected integer class labels 0..{num_classes - 1}; give "
            f"labels as {name}.long(), and one-hot rows as {name}.long().argmax(-1)"
        )
    if not _fits(y.shape, plates):
        _refuse_one_hot_integers(y, num_classes, name, owner)
    lowest = UNLABELLED if unlabelled else 0
    if validating(y) and y.numel():
        low, high = int(y.min()), int(y.max())
        if low < lowest or high >= num_classes:
            raise ValueError(
                f"{owner}: {name} holds labels {low}..{high}, expected {lowest}..{num_classes - 1}"
            )
    return y.long()


def check_row_labels(y: Tensor, rows: int, num_classes: int, owner: str, name: str = "y") -> Tensor:
    """Raise unless ``y`` holds one label for each row, -1 where it is unknown. Return it as int64."""
    y = check_labels(y, num_classes, name, owner, unlabelled=True)
    if y.shape != (rows,):
        raise ValueError(
            f"{owner}: {name} has shape {tuple(y.shape)}, expected ({rows},), a label for each row"
        )
    return y


def check_context(
    y: Tensor, num_classes: int, owner: str, plates: Mapping[int | None, int] | None = None
) -> Tensor:
    """Raise unless ``y`` holds labels or class weights. Return labels as int64 and weights unchanged.

    :param y: integer labels ``(*batch,)``, or floating class weights ``(*batch, K)``.
    :param plates: the sizes of the plates around, by dimension, ``None`` outside of a Pyro program. They tell
        labels of all cells of two plates from one-hot rows, and one row of weights from a label for each row.
    """
    check_tensor(y, "y", owner)
    if not y.is_floating_point():
        return check_labels(y, num_classes, "y", owner, plates=plates)
    if y.dim() == 0 or y.shape[-1] != num_classes:
        raise ValueError(
            f"{owner}: y is a floating tensor of shape {tuple(y.shape)}; expected integer labels (y.long()), "
            f"or one-hot or relaxed class weights of shape (*batch, {num_classes})"
        )
    check_simplex(y, "y", owner)
    ambiguous = y.dim() == 1 and num_classes > 1 and (plates is None or plates.get(-1) == num_classes)
    if ambiguous and validating(y) and bool(((y == 0) | (y == 1)).all()):
        raise ValueError(
            f"{owner}: y={y.tolist()} may be {num_classes} labels or the one-hot weights of one row; give "
            "labels as y.long(), and weights as y[None]"
        )
    return y


def _fits(shape: torch.Size, plates: Mapping[int | None, int] | None) -> bool:
    """Whether each dimension of ``shape`` is a plate of that size."""
    if not plates:
        return False
    return all(size == 1 or plates.get(dim) == size for dim, size in enumerate(shape, -len(shape)))


def _refuse_one_hot_integers(y: Tensor, num_classes: int, name: str, owner: str) -> None:
    """Raise if integers look like several one-hot rows, which would be read as a label for each entry.

    Rows of two classes are left alone, since labels of pairs often look like that.
    """
    if y.dim() < 2 or y.shape[-1] != num_classes or num_classes < 3 or y.shape[:-1].numel() < 2:
        return
    if validating(y) and bool(((y == 1).sum(-1) == 1).all() & ((y == 0) | (y == 1)).all()):
        raise ValueError(
            f"{owner}: {name} has shape {tuple(y.shape)} and holds one-hot rows of integers, which are no "
            f"labels; give labels as {name}.argmax(-1)"
        )


def check_simplex(weights: Tensor, name: str, owner: str) -> None:
    """Raise unless the last dimension of floating ``weights`` holds class weights that add up to 1."""
    if not validating(weights):
        return
    totals = weights.sum(-1)
    tolerance = 1e-3 if torch.finfo(weights.dtype).bits >= 32 else 0.05
    valid = (weights >= 0).all(-1) & ((totals - 1).abs() <= tolerance)
    if not bool(valid.all()):
        row = weights.reshape(-1, weights.shape[-1])[int((~valid).flatten().nonzero()[0])]
        shown = ", ".join(f"{w:.4g}" for w in row[:5].tolist()) + (", ..." if len(row) > 5 else "")
        total = float(row.sum())
        raise ValueError(
            f"{owner}: {name} is floating and holds the row [{shown}], which adds up to {total:.4g}; "
            "expected class weights of at least 0 that add up to 1 (scores.softmax(-1)), or integer labels "
            "(y.long())"
        )
