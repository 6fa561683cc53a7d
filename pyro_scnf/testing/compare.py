"""Comparisons whose errors hold the numbers, with or without pytest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "gradient_error",
    "gradients",
    "relative",
    "require",
    "require_close",
    "require_equal",
    "require_gradients",
    "require_shape",
]


def require(condition: bool | Tensor, message: str) -> None:
    """Raise an ``AssertionError`` with ``message`` unless ``condition`` holds."""
    __tracebackhide__ = True
    if not bool(condition):
        raise AssertionError(message)


def require_shape(value: Tensor, shape: Sequence[int], what: str) -> None:
    """Raise unless ``value`` has this shape."""
    __tracebackhide__ = True
    require(
        tuple(value.shape) == tuple(shape), f"{what}: shape {tuple(value.shape)}, expected {tuple(shape)}"
    )


def require_close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raise unless two tensors have the same shape and :func:`relative` is at most ``tolerance``."""
    __tracebackhide__ = True
    require_shape(got, expected.shape, what)
    error = relative(got, expected)
    if not error <= tolerance:  # also for NaN
        raise AssertionError(
            f"{what}: {_worst(got, expected)}; the error is {error:.3g}, the tolerance {tolerance:g}"
        )


def require_equal(got: Tensor, expected: Tensor, what: str) -> None:
    """Raise unless two tensors have the same shape and are equal bit for bit."""
    __tracebackhide__ = True
    require_shape(got, expected.shape, what)
    if not torch.equal(got, expected):
        raise AssertionError(f"{what}: {_worst(got, expected)}; they must be equal bit for bit")


def require_gradients(module: nn.Module, idle: Sequence[str] = ()) -> None:
    """Raise unless a backward pass has given every parameter a gradient that is finite and not zero.

    :param idle: endings of the names of parameters that need no gradient.
    """
    __tracebackhide__ = True
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or name.endswith(tuple(idle)):
            continue
        if parameter.grad is None:
            raise AssertionError(f"{name} gets no gradient")
        require(torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite")
        require(parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero")


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the size of ``b`` where that is above 1. It is 0 for empty tensors."""
    if not a.numel():
        return 0.0
    return float(((a - b).abs() / b.abs().clamp(min=1.0)).detach().max())


def _worst(got: Tensor, expected: Tensor) -> str:
    """The two entries that differ most, with their index."""
    got, expected = got.detach().double(), expected.detach().double()
    error = ((got - expected).abs() / expected.abs().clamp(min=1.0)).nan_to_num(nan=torch.inf)
    index = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    where = f" at index {index}" if index else ""
    return f"got {float(got[index]):.8g}, expected {float(expected[index]):.8g}{where}"


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of every parameter by name, zero where the loss does not depend on it."""
    named = dict(module.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for (name, parameter), grad in zip(named.items(), grads, strict=True)
    }


def gradient_error(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Norm of the difference of two gradients, relative to the norm of the second."""
    difference = torch.stack([(a[name] - b[name]).square().sum() for name in b]).sum()
    return float((difference / torch.stack([grad.square().sum() for grad in b.values()]).sum()).sqrt())
