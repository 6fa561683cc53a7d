"""Small tools the tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cases import Case
from torch import Tensor, nn

import pyro_scnf as scnf

BATCHES = [(), (3,), (2, 3)]


def perturb(module: nn.Module, size: float = 0.1) -> Any:
    """Move every parameter, so that zero-initialised layers take part."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module


def build(case: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A fresh object of ``case`` with random parameters."""
    return perturb(case.build()).to(dtype)


def data(case: Case, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Values on the data side: normal, or well inside the unit interval."""
    shape = batch + case.event_shape
    if case.unit_interval:
        return 0.05 + 0.9 * torch.rand(shape, dtype=dtype)
    return torch.randn(shape, dtype=dtype)


def context(
    case: Case, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Contexts for a conditional case, nothing for an unconditional one."""
    return (torch.randn(batch + (case.context_dim,), dtype=dtype),) if case.context_dim else ()


def bind(layer: Any, contexts: tuple[Tensor, ...]) -> Any:
    """The plain transform: the layer itself, or it conditioned on its context."""
    return layer.condition(*contexts) if contexts else layer


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference, against the size of ``b`` where that is above 1."""
    return float(((a - b).abs() / b.abs().clamp(min=1.0)).detach().max())


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of every parameter by name, zero where the loss does not depend on it."""
    named = dict(module.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for (name, parameter), grad in zip(named.items(), grads, strict=True)
    }


def gradient_error(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients, relative to that of the second."""
    difference = sum((a[name] - b[name]).square().sum() for name in b)
    return float((difference / sum(grad.square().sum() for grad in b.values())).sqrt())


class Counter:
    """Number of calls seen."""

    def __init__(self) -> None:
        self.calls = 0
        self.rows: list[int] = []


@contextmanager
def counting(owner: Any, name: str) -> Iterator[Counter]:
    """Count calls of ``owner.name`` (an instance's method), with the rows of their first argument."""
    counter, original = Counter(), getattr(owner, name)

    def counted(value: Tensor, *args: Any) -> Any:
        counter.calls += 1
        counter.rows.append(len(value) if value.dim() else 1)
        return original(value, *args)

    object.__setattr__(owner, name, counted)
    try:
        yield counter
    finally:
        object.__delattr__(owner, name)


def toy_flow(
    prior: Any = "gmm",
    num_classes: int = 3,
    dtype: torch.dtype = torch.float32,
    make: Callable[..., Any] = scnf.flows.glow,
    **options: Any,
) -> scnf.SemiConditionalFlow:
    """A semi-conditional flow over the plane with random parameters."""
    flow = make((2,), **{"width": 6, "blocks": 1, **options})
    if prior == "flow":
        prior = {"name": "flow", "steps": 1, "width": 6, "blocks": 1}
    return perturb(scnf.SemiConditionalFlow(flow, prior, num_classes)).to(dtype)


def image_flow(
    prior: Any = "gmm", num_classes: int = 3, dtype: torch.dtype = torch.float32, **options: Any
) -> scnf.SemiConditionalFlow:
    """A semi-conditional flow over 1×4×4 images that factors out half of them."""
    flow = scnf.flows.glow((1, 4, 4), **{"levels": 2, "steps": 1, "width": 6, "blocks": 1, **options})
    if prior == "flow":
        prior = {"name": "flow", "steps": 1, "width": 6, "blocks": 1}
    return perturb(scnf.SemiConditionalFlow(flow, prior, num_classes)).to(dtype)
