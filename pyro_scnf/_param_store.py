"""Pyro's parameter store, which belongs to the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro

__all__ = ["param_store_kept"]


@contextmanager
def param_store_kept() -> Iterator[None]:
    """Leave the parameter store with the entries that it had before.

    Within the block all of them can be read and trained. What a run adds is removed: it would keep the
    parameters alive, and would stand in the way of another model.
    """
    store = pyro.get_param_store()
    before = store.get_state()
    try:
        yield
    finally:
        store.clear()
        store.set_state(before)
