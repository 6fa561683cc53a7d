"""Import some names of a package on first use, because they need optional libraries or load slowly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping

from pyro_scnf._random import import_quietly

__all__ = ["lazy"]


def lazy(
    package: str, names: Mapping[str, str], eager: Iterable[str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that imports some names on first use.

    :param package: ``__name__`` of the package.
    :param names: the module from which each lazy name comes; an empty string if the name is a submodule.
    :param eager: names that the package has already.
    """

    def get(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not names[name]:
            return import_quietly(f"{package}.{name}")
        value: object = getattr(import_quietly(names[name]), name)
        setattr(sys.modules[package], name, value)  # the next time, Python finds it without this function
        return value

    def list_names() -> list[str]:
        return sorted({*eager, *names})

    return get, list_names
