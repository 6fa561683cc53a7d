"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

__all__ = ["OPTIMIZERS", "SCHEDULES", "make_optimizer", "make_schedule"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
}
"""Optimisers by name. ``adam`` and ``adamax`` take weight decay as an L2 penalty, ``adamw`` apart from it."""

SCHEDULES = ("one-cycle", "linear", "cosine", "constant")
"""Schedules by name: torch's ``OneCycleLR``, or warm-up and then a fall to zero, or none."""


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimiser ``name``, one of :data:`OPTIMIZERS`.

    :raises ValueError: for an unknown name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r}: expected one of {', '.join(map(repr, OPTIMIZERS))}")
    return OPTIMIZERS[name](parameters, lr=learning_rate, weight_decay=weight_decay, betas=betas)


class _Factor:
    """Rises to 1 over ``warmup`` steps, then falls to 0 at ``steps``, or stays.

    A class, since a closure has no place in a checkpoint.
    """

    def __init__(self, name: str, steps: int, warmup: int) -> None:
        self.name, self.steps, self.warmup = name, steps, warmup

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.name == "linear":
            return 1 - done
        return 0.5 * (1 + math.cos(math.pi * done)) if self.name == "cosine" else 1.0


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, *, steps: int, warmup: float = 0.0
) -> LRScheduler:
    """The schedule ``name``, one of :data:`SCHEDULES`, stepped once an optimiser step.

    :param int steps: length of the whole run.
    :param float warmup: share of it in which the learning rate rises, in [0, 1); for ``"one-cycle"``
        0 stands for a tenth, as its rise cannot be left out.
    :raises ValueError: for an unknown name or a share out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r}: expected one of {', '.join(map(repr, SCHEDULES))}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup}: expected a share of the run, 0 <= warmup < 1")
    if name == "one-cycle":
        # torch divides by the length of a phase less one step, and so by 0 for phases of one.
        steps = max(steps, 2)
        rise: Any = max(warmup or 0.1, 1.5 / steps)
        return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=steps, pct_start=rise)
    return LambdaLR(optimizer, _Factor(name, steps, round(warmup * steps)))
