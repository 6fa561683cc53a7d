"""Names of a package that are imported on first use, because they need optional libraries or take time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping

__all__ = ["lazy"]


def lazy(
    package: str, names: Mapping[str, str], eager: Iterable[str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    :param package: its ``__name__``.
    :param names: the module that each lazy name comes from; an empty string for a submodule of that name.
    :param eager: the names that are there already.
    """

    def get(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not names[name]:
            return importlib.import_module(f"{package}.{name}")
        value: object = getattr(importlib.import_module(names[name]), name)
        setattr(sys.modules[package], name, value)  # found at once the next time
        return value

    def list_names() -> list[str]:
        return sorted({*eager, *names})

    return get, list_names
