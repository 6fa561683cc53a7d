"""The training of the models of Kingma et al. (2014), and the batches of plain loops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_scnf.baselines.kingma2014 import M1, M2

__all__ = ["Batch", "progress", "some_rows", "train"]

Batch = tuple[object, ...]
"""The arguments of a model and its guide."""


def some_rows(x: Tensor, count: int) -> Tensor:
    """``count`` random rows, with repetition."""
    return x[torch.randint(len(x), (count,), device=x.device)]


def progress(steps: int | None, minutes: float | None) -> Iterator[float]:
    """The share of one half of the training that is done before each step: by steps, or by the clock."""
    if steps is not None:
        yield from (step / steps for step in range(steps))
    elif minutes is not None:
        start = time.perf_counter()
        while (done := (time.perf_counter() - start) / (30 * minutes)) < 1:
            yield done


def train(
    part: M1 | M2,
    elbo: Trace_ELBO | TraceEnum_ELBO,
    batch: Callable[[], Batch],
    done: Iterator[float],
    lr: float,
    rows: int,
) -> None:
    """Minimise the loss for one of ``rows`` by Adam."""
    optimiser = torch.optim.Adam(part.parameters(), lr, betas=(0.9, 0.99))
    for share in done:
        optimiser.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - share))
        loss = elbo.differentiable_loss(part.model, part.guide, *batch()) / rows
        if not torch.isfinite(loss):
            name = type(part).__name__
            raise RuntimeError(f"the loss of {name} is {loss.item()}; give a smaller {name.lower()}_lr")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
