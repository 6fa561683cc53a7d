"""Checks of the options that a user passes in: numbers, switches, words, and objects of a class."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

import numpy as np
from torch import Tensor

__all__ = [
    "LARGEST",
    "LARGEST_WHOLE",
    "check_at_least",
    "check_flag",
    "check_kinds",
    "check_number",
    "check_scale",
    "check_temperature",
    "check_whole",
    "check_word",
    "refuse_unused",
]

LARGEST = 1e15
"""The largest scale or weight. Its square times the data must still be a number in single precision."""

LARGEST_WHOLE = 2**63 - 1
"""The largest size that PyTorch can count."""


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
        ranges = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
        if math.isfinite(at_least) and math.isfinite(at_most):
            ranges = f"from {at_least:g} to {at_most:g}"
        expected = f"a finite number {ranges}".strip()
        raise ValueError(f"{name}={value!r}: expected {expected}")
    return number


def _as_float(value: object) -> float | None:
    """A finite real number as a ``float``; ``None`` for anything else."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def check_scale(name: str, value: object, *, zero: bool = False) -> float:
    """Raise unless ``value`` is a positive number whose square single precision can hold. Return it.

    :param bool zero: whether 0 is allowed, too.
    """
    return check_number(name, value, at_least=0 if zero else 1 / LARGEST, at_most=LARGEST)


def check_whole(name: str, value: object, at_least: int, at_most: int = LARGEST_WHOLE) -> int:
    """Raise unless ``value`` is a whole number in the stated range. Return it as an ``int``."""
    bounded = at_most < LARGEST_WHOLE
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        expected = f"from {at_least} to {at_most}" if bounded else f"of at least {at_least}"
        raise ValueError(f"{name}={value!r}: expected a whole number {expected}")
    number = int(value)
    if not at_least <= number <= at_most:
        expected = f"{at_least} to {at_most}" if bounded or number > at_most else f"at least {at_least}"
        raise ValueError(f"{name}={number}: expected {expected}")
    return number


def check_at_least(minimum: int, **values: object) -> None:
    """Raise for the first of the named ``values`` that is no whole number, or is below ``minimum``."""
    for name, value in values.items():
        check_whole(name, value, minimum)


def check_flag(**values: object) -> None:
    """Raise for the first of the named ``values`` that is neither ``True`` nor ``False``."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name}={value!r}: expected True or False")


def check_kinds(**given: tuple[object, type]) -> None:
    """Raise for the first of the named values that is not of the type beside it."""
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            raise ValueError(f"{name} is of type {type(value).__name__}, expected {article} {kind.__name__}")


def check_word(name: str, value: object, words: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``words``."""
    known = list(words)
    if not isinstance(value, str) or value not in known:
        *first, last = map(repr, known)
        raise ValueError(f"{name}={value!r}: expected {', '.join(first)} or {last}")


def refuse_unused(reason: str, **values: object) -> None:
    """Raise for the first of the named ``values`` that is given, because nothing would use it.

    :param reason: what takes its place.
    """
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"{name}={value!r}: it would have no effect, because {reason}")


def check_temperature(temperature: float) -> float:
    """Raise unless ``temperature`` is a positive number. Return it. A tensor keeps its graph."""
    try:
        number = check_number("temperature", temperature, above=0)
    except RuntimeError:  # inside ``torch.func.vmap`` nobody can read it
        return temperature
    return temperature if isinstance(temperature, Tensor) else number
