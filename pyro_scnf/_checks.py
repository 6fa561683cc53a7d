"""Checks of the labels, contexts and data that a user passes in."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "LOG_ZERO",
    "UNLABELLED",
    "check_at_least",
    "check_context",
    "check_finite",
    "check_labels",
    "check_row_labels",
    "check_temperature",
    "validating",
]


UNLABELLED = -1
"""Marks an unknown label in ``y``."""

LOG_ZERO = -1e30
"""log 0 for enumeration. It is finite: enumeration may multiply it by a probability of zero, and zero times
minus infinity is NaN."""


def validating() -> bool:
    """Whether to run the checks that read tensor values, as set by ``pyro.enable_validation``."""
    return bool(Distribution._validate_args)


def check_finite(x: Tensor, name: str, owner: str) -> None:
    """Raise if ``x`` holds NaN or infinity."""
    if validating() and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{owner}: {name} holds {bad} NaN or infinite values, expected finite ones")


def check_labels(y: Tensor, num_classes: int, name: str, owner: str, unlabelled: bool = False) -> Tensor:
    """Raise unless ``y`` holds integer class labels. Return them as int64.

    :param y: labels ``0 .. num_classes - 1`` of any shape; with ``unlabelled``, also -1 for an unknown one.
    """
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(
            f"{owner}: {name} has dtype {y.dtype}, expected integer class labels 0..{num_classes - 1}"
        )
    lowest = -1 if unlabelled else 0
    if validating() and y.numel():
        low, high = int(y.min()), int(y.max())
        if low < lowest or high >= num_classes:
            raise ValueError(
                f"{owner}: {name} holds labels {low}..{high}, expected {lowest}..{num_classes - 1}"
            )
    return y.long()


def check_context(y: Tensor, num_classes: int, owner: str) -> Tensor:
    """Raise unless ``y`` holds labels or class weights. Return labels as int64 and weights unchanged.

    :param y: integer labels ``(*batch,)``, or floating class weights ``(*batch, K)``.
    """
    if not y.is_floating_point():
        return check_labels(y, num_classes, "y", owner)
    if y.dim() == 0 or y.shape[-1] != num_classes:
        raise ValueError(
            f"{owner}: y is a floating tensor of shape {tuple(y.shape)}; expected integer labels, or "
            f"one-hot or relaxed class weights of shape (*batch, {num_classes})"
        )
    check_finite(y, "y", owner)
    return y


def check_row_labels(y: Tensor, rows: int, num_classes: int, owner: str) -> Tensor:
    """Raise unless ``y`` holds one label for each row, -1 where it is unknown. Return it as int64."""
    y = check_labels(y, num_classes, "y", owner, unlabelled=True)
    if y.shape != (rows,):
        raise ValueError(f"{owner}: y has shape {tuple(y.shape)}, expected ({rows},)")
    return y


def check_temperature(temperature: float) -> float:
    """Raise unless ``temperature`` is a positive number. Return it."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a positive number")
    return temperature


def check_at_least(minimum: int, **values: int) -> None:
    """Raise for the first of the named ``values`` that is below ``minimum``."""
    for name, value in values.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least {minimum}")
        if value < minimum:
            raise ValueError(f"{name}={value}: expected at least {minimum}")
