"""Optional libraries: imported where used, with an error that names the extra."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, extra: str) -> Any:
    """Import ``module``, or say which extra of this package brings it.

    :raises ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed here; install it with: pip install 'pyro-scnf[{extra}]'"
        ) from error
