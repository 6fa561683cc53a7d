"""Averages over the processes that train together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["averaged_over_processes"]


def averaged_over_processes(value: Tensor) -> Tensor:
    """The mean of ``value`` over all processes that train together, as that of gradients is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value
