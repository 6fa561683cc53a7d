"""Warnings that name the user's line."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]

_INNER = ("pyro_scnf", "torch", "pyro", "lightning", "contextlib")


def warn(message: str) -> None:
    """Issue a ``UserWarning`` that names the nearest line outside this package and its libraries."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _INNER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
