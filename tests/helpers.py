"""Small tools the tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.testing import Case, Check, applicable
from pyro_scnf.testing.case import AnyCase, perturb
from pyro_scnf.testing.compare import gradient_error, gradients, relative

__all__ = [
    "Counter",
    "build",
    "context",
    "counting",
    "data",
    "each",
    "gradient_error",
    "gradients",
    "image_flow",
    "perturb",
    "relative",
    "toy_flow",
    "with_share",
]

build, data, context = Case.member, Case.values, Case.contexts


def each(checks: Mapping[str, Check], cases: Mapping[str, AnyCase]) -> pytest.MarkDecorator:
    """Run a test for every case and every check that applies to it, by their names."""
    pairs = [(name, check) for name, case in cases.items() for check in applicable(checks, case)]
    return pytest.mark.parametrize(("name", "check"), pairs)


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


def with_share(flow: scnf.SemiConditionalFlow) -> Callable[[Tensor], None]:
    """A model of a user's own, with a share of each class that a sampler may look for."""

    def model(x: Tensor) -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    return model
