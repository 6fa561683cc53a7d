"""Helpers for batch shapes, and the shape errors that all modules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["as_event_shape", "check_event", "no_autocast", "over_batch", "reference_tensor"]


def as_event_shape(shape: Sequence[int] | int, name: str = "event_shape") -> torch.Size:
    """``shape`` as a ``torch.Size``, checked to be ``(D,)`` or ``(C, H, W)``. An integer D means ``(D,)``."""
    size = torch.Size((shape,) if isinstance(shape, int) else tuple(shape))
    if len(size) not in (1, 3) or any(n < 1 for n in size):
        raise ValueError(
            f"{name}={tuple(size)}: expected (D,) for vectors or (C, H, W) for images, all positive"
        )
    return size


def check_event(x: Tensor, event_shape: torch.Size, name: str, owner: str) -> torch.Size:
    """Raise unless the rightmost dimensions of ``x`` are ``event_shape``. Return its batch shape."""
    batch_dim = x.dim() - len(event_shape)
    if batch_dim < 0 or x.shape[batch_dim:] != event_shape:
        raise ValueError(
            f"{owner}: {name} has shape {tuple(x.shape)}, expected (*batch, "
            f"{', '.join(map(str, event_shape))})"
        )
    return x.shape[:batch_dim]


def over_batch(fn: Callable[[Tensor], Tensor], x: Tensor, event_dim: int) -> Tensor:
    """Apply ``fn``, which takes exactly one batch dimension, to ``x`` with any number of them."""
    if x.dim() == event_dim + 1:
        return fn(x)
    out = fn(x.reshape((-1,) + x.shape[x.dim() - event_dim :]))
    return out.reshape(x.shape[: x.dim() - event_dim] + out.shape[1:])


def reference_tensor(module: nn.Module) -> Tensor:
    """A parameter or buffer of ``module``, to give its dtype and device to new tensors.

    A module without any counts as one of the default dtype on the CPU.
    """
    return next(chain(module.parameters(), module.buffers()), torch.zeros(()))


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context without autocast. Where autocast does not exist, as on the meta device, it does nothing."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
