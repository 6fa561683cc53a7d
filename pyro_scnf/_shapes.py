"""Helpers for batch shapes, and the shape errors that all modules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from numbers import Integral

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch  # PyTorch has no public way to recognise its wrapped tensors

from pyro_scnf._numbers import LARGEST_WHOLE

__all__ = [
    "as_event_shape",
    "as_sizes",
    "at_least_single",
    "check_event",
    "check_tensor",
    "common_batch",
    "first_tensor",
    "in_double",
    "is_wrapped",
    "no_autocast",
    "over_batch",
    "reference_tensor",
]


def as_sizes(
    shape: Sequence[int] | int, name: str = "event_shape", expected: str = "", at_least: int = 1
) -> torch.Size:
    """``shape`` as a ``torch.Size``, checked to hold positive whole numbers. An integer D means ``(D,)``.

    :param expected: what the message says besides.
    :param int at_least: the smallest size, 1 or 0.
    """
    sizes: list[object] = [shape]
    if not isinstance(shape, int | Integral):
        try:
            sizes = [None] if isinstance(shape, str | bytes | dict | set) else list(shape)
        except TypeError:
            sizes = [None]
    whole = [int(n) for n in sizes if isinstance(n, int | Integral) and not isinstance(n, bool)]
    if len(whole) != len(sizes) or min(whole, default=1) < at_least or math.prod(whole) > LARGEST_WHOLE:
        shown = tuple(sizes) if isinstance(shape, torch.Size) else shape
        numbers = "positive whole numbers" if at_least else "whole numbers of at least 0"
        raise ValueError(f"{name}={shown!r}: expected {expected or 'sizes'}, all {numbers}")
    return torch.Size(whole)


def as_event_shape(shape: Sequence[int] | int, name: str = "event_shape") -> torch.Size:
    """``shape`` as a ``torch.Size``, checked to be ``(D,)`` or ``(C, H, W)``. An integer D means ``(D,)``."""
    expected = "(D,) for vectors or (C, H, W) for images"
    sizes = as_sizes(shape, name, expected)
    if len(sizes) not in (1, 3):
        raise ValueError(f"{name}={tuple(sizes)}: expected {expected}, all positive whole numbers")
    return sizes


def check_tensor(value: object, name: str, owner: str) -> None:
    """Raise unless ``value`` is a tensor. The error tells how to make one."""
    if not isinstance(value, Tensor):
        rows = f"{name}.to_numpy()" if hasattr(value, "to_numpy") else name  # a data frame or a series
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise ValueError(
            f"{owner}: {name} is of type {kind}, expected a tensor; give torch.as_tensor({rows})"
        )


def check_event(x: Tensor, event_shape: torch.Size, name: str, owner: str) -> torch.Size:
    """Raise unless the rightmost dimensions of ``x`` are ``event_shape``. Return its batch shape."""
    check_tensor(x, name, owner)
    batch_dim = x.dim() - len(event_shape)
    if batch_dim < 0 or x.shape[batch_dim:] != event_shape:
        raise ValueError(
            f"{owner}: {name} has shape {tuple(x.shape)}, expected (*batch, "
            f"{', '.join(map(str, event_shape))})"
        )
    return x.shape[:batch_dim]


def common_batch(owner: str, expected: str, **batches: torch.Size) -> torch.Size:
    """The batch shape to which the batch shapes of several arguments broadcast.

    :param expected: what the message says if they do not.
    :param batches: the batch shape of each argument, by its name.
    """
    try:
        return torch.broadcast_shapes(*batches.values())
    except RuntimeError:
        shapes = " and ".join(f"{name} {tuple(batch)}" for name, batch in batches.items())
        raise ValueError(
            f"{owner}: the batch shapes of {shapes} do not broadcast; expected {expected}"
        ) from None


def over_batch(fn: Callable[[Tensor], Tensor], x: Tensor, event_dim: int) -> Tensor:
    """Apply ``fn``, which takes exactly one batch dimension, to ``x`` with any number of them."""
    if x.dim() == event_dim + 1:
        return fn(x)
    batch = x.shape[: x.dim() - event_dim]
    out = fn(x.reshape((batch.numel(),) + x.shape[x.dim() - event_dim :]))
    return out.reshape(batch + out.shape[1:])


def is_wrapped(t: Tensor) -> bool:
    """Whether ``t`` is inside ``torch.func``, where nobody can read its values."""
    return not torch.compiler.is_compiling() and functorch.is_functorch_wrapped_tensor(t)


def at_least_single(t: Tensor) -> Tensor:
    """``t`` in single precision if it is in half precision, else as it is."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def in_double(t: Tensor) -> Tensor:
    """``t`` in double precision, if its device has that."""
    return t if t.device.type == "mps" else t.double()


def reference_tensor(module: nn.Module) -> Tensor:
    """A parameter or buffer of ``module``, to give its dtype and device to new tensors.

    A module without any counts as one of the default dtype on the CPU.
    """
    first = first_tensor(module)
    return torch.zeros(()) if first is None else first


def first_tensor(module: nn.Module) -> Tensor | None:
    """The first parameter or buffer of ``module``, if it has any."""
    return next(chain(module.parameters(), module.buffers()), None)


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context without autocast. Where autocast does not exist, as on the meta device, it does nothing."""
    if not _has_autocast(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@torch.compiler.assume_constant_result  # torch.compile in PyTorch 2.11 cannot trace the function itself
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)
