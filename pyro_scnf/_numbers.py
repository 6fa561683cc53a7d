"""Checks of the numbers and switches that a user passes in."""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
from torch import Tensor

__all__ = ["check_at_least", "check_flag", "check_number", "check_temperature"]


def check_number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> float:
    """Raise unless ``value`` is a finite number in the stated range. Return it as a ``float``.

    Words, truth values, NaN and infinity are no numbers here.

    :param str name: the user's argument, for the message.
    """
    number = _as_float(value)
    if number is None or not (above < number < below and at_least <= number <= at_most):
        bounds = (("above", above), ("of at least", at_least), ("below", below), ("of at most", at_most))
        ranges = [f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound)]
        expected = " ".join(["a finite number", " and ".join(ranges)]).strip()
        raise ValueError(f"{name}={value!r}: expected {expected}")
    return number


def _as_float(value: object) -> float | None:
    """A finite real number as a ``float``; ``None`` for anything else."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def check_at_least(minimum: int, **values: object) -> None:
    """Raise for the first of the named ``values`` that is no whole number, or is below ``minimum``."""
    for name, value in values.items():
        if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least {minimum}")
        if value < minimum:
            raise ValueError(f"{name}={value}: expected at least {minimum}")


def check_flag(**values: object) -> None:
    """Raise for the first of the named ``values`` that is neither ``True`` nor ``False``."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name}={value!r}: expected True or False")


def check_temperature(temperature: float) -> float:
    """Raise unless ``temperature`` is a positive number. Return it. A tensor keeps its graph."""
    number = check_number("temperature", temperature, above=0)
    return temperature if isinstance(temperature, Tensor) else number
