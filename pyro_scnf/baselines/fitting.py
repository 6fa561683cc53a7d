"""Loops of training, and batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from pyro_scnf.baselines.kingma2014 import M1, M2

__all__ = [
    "LABELLED",
    "Batch",
    "descend",
    "jittered",
    "progress",
    "some_labelled",
    "some_rows",
    "train",
]

Batch = tuple[object, ...]
"""The arguments of a model and its guide."""

JITTER = 0.1
"""Standard deviation of noise that makes equal values differ. Without it, their density has no bound."""

LABELLED = 256
"""Labelled rows of a step of :func:`descend`, at most."""

CLIP = 100.0
"""The largest norm of a gradient that :func:`descend` follows."""


def some_rows(x: Tensor, count: int) -> Tensor:
    """``count`` random rows, with repetition."""
    return x[torch.randint(len(x), (count,), device=x.device)]


def some_labelled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """All labelled rows and their labels, or, of more than :data:`LABELLED`, so many random ones."""
    if len(x) <= LABELLED:
        return x, y
    chosen = torch.randint(len(x), (LABELLED,), device=x.device)
    return x[chosen], y[chosen]


def jittered(rows: Tensor) -> Tensor:
    """Rows with a little noise."""
    return rows + JITTER * torch.randn_like(rows)


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
    """Minimise the loss of a model of Kingma et al. (2014), for one of ``rows``, by Adam."""
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


def descend(
    net: nn.Module, loss: Callable[[float], Tensor], steps: int, learning_rate: float, decay: float
) -> None:
    """Minimise a loss by AdamW, whose steps fall to zero along half a cosine.

    :param loss: computes the loss of a batch, after a share of the training.
    :param float decay: the weight decay.
    """
    optimiser = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=decay)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        value = loss(step / steps)
        if not torch.isfinite(value):
            raise RuntimeError(f"the loss is {value.item()}; give scale='standard' or scale='quantile'")
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimiser.step()
