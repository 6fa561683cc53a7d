"""Name a part of a model by a word, a dict, an import path, a class or a function.

A word and an import path are strings, so a command line can give them, too.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from typing import Generic, ParamSpec, TypeVar

import numpy as np

__all__ = ["Named", "as_plain", "describe", "read_spec", "recorded", "remember"]

P = ParamSpec("P")
T = TypeVar("T")

SPEC = "_spec"
"""Name of the attribute that :func:`remember` sets and :func:`describe` reads."""


@dataclass(frozen=True)
class Named(Generic[T]):
    """A factory and its options.

    :ivar factory: makes the part.
    :ivar dict options: keyword arguments for the factory.
    :ivar description: the options and the key ``name``; ``None`` if the factory has no name.
    """

    factory: Callable[..., T]
    options: dict[str, object]
    description: dict[str, object] | None


def read_spec(
    spec: str | Mapping[str, object] | Callable[..., T], known: Mapping[str, Callable[..., T]], kind: str
) -> Named[T]:
    """The factory that ``spec`` names, with its options.

    :param spec: a word of ``known``, a word with options (``"gmm:scale=0.5"``), an import path
        (``"my_package.MyPrior:width=32"``), a mapping with the key ``name``, or a class or function.
    :param known: factories by word.
    :param kind: the name of the user's argument, for error messages.
    :raises ValueError: for an unknown word, or options that cannot be read.
    """
    options: dict[str, object] = {}
    name: object = spec
    if isinstance(spec, Mapping):
        options = dict(spec)
        name = options.pop("name", None)
        if name is None:
            raise ValueError(f"{kind}={dict(spec)!r}: expected a key 'name'")
    if not isinstance(name, str):
        if not callable(name):
            raise ValueError(f"{kind}={name!r}: expected a word, a dict, a class or a function")
        return Named(name, options, None)
    word, _, text = name.partition(":")
    options = {**_read_options(text, kind), **options}
    if "name" in options:
        raise ValueError(f"{kind}={spec!r}: no option may be called 'name', which is the key of the word")
    factory = known.get(word) or _import(word, known, kind)
    return Named(factory, options, {"name": word, **options})


def _read_options(text: str, kind: str) -> dict[str, object]:
    """``"key=value,key=value"`` as a dict. A value that is not a Python literal is a string.

    ``true`` and ``false`` are truth values, in lower or upper case.
    """
    source = f"options({text})"
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        call = None
    if (
        not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name))
        or call.args
        or any(item.arg is None for item in call.keywords)
    ):
        raise ValueError(f"{kind} option {text!r}: expected key=value pairs, separated by commas")
    options: dict[str, object] = {}
    for item in call.keywords:
        if item.arg in options:
            raise ValueError(f"{kind} option {item.arg!r}: given twice in {text!r}")
        try:
            value: object = ast.literal_eval(item.value)
        except ValueError:
            word = ast.get_source_segment(source, item.value) or ""
            value = {"true": True, "false": False}.get(word.lower(), word)
        options[str(item.arg)] = value
    return options


def _import(path: str, known: Mapping[str, object], kind: str) -> Callable[..., T]:
    """The class or function at the import path ``path``."""
    module, _, name = path.rpartition(".")
    expected = f"expected one of {', '.join(map(repr, known))} or the import path of a class"
    if not module:
        raise ValueError(f"{kind}={path!r}: {expected}")
    try:
        factory: Callable[..., T] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{kind}={path!r}: {expected} ({error})") from error
    if not callable(factory):
        raise ValueError(f"{kind}={path!r}: {expected}, got a {type(factory).__name__}")
    return factory


# -- how a part was built --------------------------------------------------------------------------
def as_plain(value: object) -> object:
    """A copy of ``value`` in numbers, strings, ``None``, lists, tuples and dicts of Python's own types.

    NumPy's numbers become Python's.

    :raises TypeError: if it holds anything else.
    """
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [as_plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if value is None:
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{value!r} is not a plain value")


def remember(part: object, description: Mapping[str, object] | None) -> None:
    """Store ``description`` on ``part`` if it consists of plain values, else ``None``."""
    try:
        plain = as_plain(description)
    except TypeError:
        plain = None
    setattr(part, SPEC, plain)


def recorded(factory: Callable[P, T]) -> Callable[P, T]:
    """Decorate ``factory`` so that each part it makes remembers its arguments, if these are plain values."""
    signature = inspect.signature(factory)

    @wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> T:
        made = factory(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        remember(made, {"name": factory.__name__, **arguments})
        return made

    return make


def describe(part: object) -> dict[str, object] | None:
    """The name and the options that built ``part``, as plain values; ``None`` if they are not known."""
    description: dict[str, object] | None = getattr(part, SPEC, None)
    return description
