"""Sums over the processes that train together, and over their steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from pyro_scnf._shapes import at_least_single

__all__ = ["SumsOverSteps", "averaged_over_processes"]


def averaged_over_processes(value: Tensor) -> Tensor:
    """The mean of ``value`` over all processes that train together, as that of gradients is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value


class SumsOverSteps(nn.Module):
    """A module with buffers that sum over many steps.

    They stay in single precision if the module is converted to a half one. Half precision has too few digits
    to add a small step to a large sum, and float16 ends at 65,504.

    :cvar sums: names of the buffers.
    """

    sums: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: value for name in self.sums if (value := self._buffers.get(name)) is not None}
        super()._apply(fn, recurse)
        for name, value in before.items():
            converted = self._buffers[name]
            if converted is not None and converted.dtype != at_least_single(converted).dtype:
                self._buffers[name] = value.to(converted.device)
        return self
