"""Optional libraries: imported where used, with an error that names the extra."""

from __future__ import annotations

from types import ModuleType

from pyro_scnf._random import import_quietly

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of this package brings it.

    :param module: its full name, such as ``"lightning.pytorch"``.
    :param extra: one of the extras that ``pyproject.toml`` lists.
    :raises ImportError: if the module is not installed.
    """
    try:
        return import_quietly(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed here; install it with: pip install 'pyro-scnf[{extra}]'"
        ) from error
