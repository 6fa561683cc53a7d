"""Name a part of a model by a word, a dict, an import path, a class or a function.

A word and an import path are strings, so a command line can give them, too. Wrong options are found here, by
the signature of the factory, before it is called.
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
from torch import Tensor

__all__ = ["Named", "as_plain", "describe", "read_spec", "recorded", "remember"]

P = ParamSpec("P")
T = TypeVar("T")

SPEC = "_spec"
"""Name of the attribute that :func:`remember` sets and :func:`describe` reads."""


TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words for truth values in an option string, in lower or upper case."""

_TRUTH_VALUES = (bool, "bool", bool | None, "bool | None")
"""Annotations of options that are truth values."""

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Named(Generic[T]):
    """A factory and its options.

    :ivar factory: makes the part.
    :ivar dict options: keyword arguments for the factory.
    :ivar description: the options and the key ``name``; ``None`` if the factory has no name.
    :ivar str label: what the user wrote, for error messages.
    """

    factory: Callable[..., T]
    options: dict[str, object]
    description: dict[str, object] | None
    label: str

    def make(self, positional: Mapping[str, object] | None = None, **keywords: object) -> T:
        """Call the factory with its options, after checks of their names.

        :param positional: the values that the factory gets first, by the names that messages use.
        :param keywords: what it gets by keyword, besides its options.
        :raises ValueError: for an option that the factory does not have, a missing one, or a factory that
            cannot be called in this way; and for a ``ValueError`` of the factory, with ``label`` before it.
            Other errors of the factory pass.
        """
        first = positional or {}
        try:
            signature = inspect.signature(self.factory)
        except (TypeError, ValueError):  # some classes of the interpreter have none
            signature = None
        if signature is not None:
            self._check_options(signature, first, keywords)
        try:
            return self.factory(*first.values(), **keywords, **self.options)
        except ValueError as error:
            raise ValueError(f"{self.label}: {error}") from error
        except TypeError as error:
            if signature is not None:  # the call fits, so the error is one of the factory's own
                raise
            raise ValueError(f"{self.label}: {error}") from error

    def _check_options(
        self, signature: inspect.Signature, first: Mapping[str, object], keywords: Mapping[str, object]
    ) -> None:
        """Raise unless a factory with this ``signature`` takes the options."""
        parameters = list(signature.parameters.values())
        in_order = [p.name for p in parameters if p.kind in _BY_POSITION]
        filled = {*in_order[: len(first)], *keywords}
        free = {p.name: p for p in parameters if p.kind not in _VARIABLE and p.name not in filled}
        anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        there_are = f"expected one of {', '.join(free)}" if free else "it has no options"
        for option, value in self.options.items():
            if option in free:
                declared = free[option].annotation
                if declared in _TRUTH_VALUES and not isinstance(value, bool | np.bool_):
                    raise ValueError(f"{self.label}: {option}={value!r}: expected True or False")
            elif not anything or option in filled or not isinstance(option, str):
                raise ValueError(f"{self.label}: no option {option!r}, {there_are}")
        empty = inspect.Parameter.empty
        missing = [n for n, p in free.items() if p.default is empty and n not in self.options]
        if missing:
            raise ValueError(f"{self.label}: it needs the option {' and '.join(map(repr, missing))}")
        try:
            signature.bind(*first.values(), **keywords, **self.options)
        except TypeError as error:
            given = ", ".join([*first, *(f"{name}=..." for name in keywords)])
            raise ValueError(f"{self.label}: it cannot be called with ({given}): {error}") from error


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
        return Named(name, options, None, f"{kind}={getattr(name, '__qualname__', repr(name))}")
    word, _, text = name.partition(":")
    word = word.strip()
    options = {**_read_options(text, kind), **options}
    if "name" in options:
        raise ValueError(f"{kind}={spec!r}: no option may be called 'name', which is the key of the word")
    factory = known.get(word) or _import(word, known, kind)
    return Named(factory, options, {"name": word, **options}, f"{kind}={name!r}")


def _read_options(text: str, kind: str) -> dict[str, object]:
    """``"key=value,key=value"`` as a dict. A value that is neither a Python literal nor one of ``TRUTH`` is a
    string.
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
        except (ValueError, TypeError):
            word = ast.get_source_segment(source, item.value) or ""
            value = TRUTH.get(word.lower(), word)
        options[str(item.arg)] = value
    return options


def _import(path: str, known: Mapping[str, object], kind: str) -> Callable[..., T]:
    """The class or function at the import path ``path``.

    :raises ValueError: if ``path`` is no import path, there is no such module or name, the module fails while
        it is imported, or what it names cannot be called. The message tells these apart.
    """
    module, _, name = path.rpartition(".")
    expected = f"expected one of {', '.join(map(repr, known))} or the import path of a class"
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{kind}={path!r}: {expected}")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{kind}={path!r}: {expected}; there is no module {error.name!r}") from error
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f"{kind}={path!r}: the module {module!r} fails at its import, {cause}") from error
    try:
        factory: Callable[..., T] = getattr(found, name)
    except AttributeError as error:
        raise ValueError(f"{kind}={path!r}: the module {module!r} has no {name!r}") from error
    if not callable(factory):
        raise ValueError(f"{kind}={path!r}: {expected}, got a {type(factory).__name__}")
    return factory


# -- how a part was built --------------------------------------------------------------------------
def as_plain(value: object) -> object:
    """A copy of ``value`` in numbers, strings, ``None``, lists, tuples and dicts of Python's own types.

    NumPy's numbers become Python's, arrays and tensors become nested lists, and an object with a method
    ``as_spec`` becomes what that returns.

    :raises TypeError: if it holds anything else.
    """
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [as_plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.ndarray | Tensor):
        return as_plain(value.tolist())
    if value is None:
        return None
    as_spec = getattr(value, "as_spec", None)
    if callable(as_spec):
        return as_plain(as_spec())
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
