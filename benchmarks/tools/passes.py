"""Count the passes of a flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pyro_scnf.nn import Conditioner

__all__ = ["count_passes"]


def count_passes(flow: nn.Module, step: Callable[[], float]) -> tuple[int, float]:
    """How often ``flow`` runs in one step, and the loss of the step.

    A pass of the flow is counted when its first conditioner network runs.
    """
    first = next(module for module in flow.modules() if isinstance(module, Conditioner))
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    hook = first.register_forward_pre_hook(count)
    try:
        loss = step()
    finally:
        hook.remove()
    return passes, loss
