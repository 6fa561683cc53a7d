"""Context variables that have a value within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["during"]

T = TypeVar("T")


@contextmanager
def during(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Give ``variable`` the value ``value`` within a block. Afterwards it has its old value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
