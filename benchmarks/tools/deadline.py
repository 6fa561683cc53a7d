"""The time that a call may take."""

from __future__ import annotations

import time

__all__ = ["Deadline"]


class Deadline:
    """When a benchmark has to end.

    :param minutes: from now on, or ``None`` for never.
    """

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def left(self) -> float | None:
        """Minutes left, or ``None`` if there is no end."""
        return None if self._end is None else (self._end - time.monotonic()) / 60

    def allows(self, minutes: float) -> bool:
        """Whether ``minutes`` more would fit."""
        left = self.left()
        return left is None or minutes <= left
