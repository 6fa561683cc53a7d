"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from pyro_scnf._numbers import check_at_least, check_number

__all__ = ["OPTIMIZERS", "SCHEDULES", "make_optimizer", "make_schedule"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
}
"""Optimisers by name. ``adam`` and ``adamax`` add weight decay to the gradient as an L2 penalty. ``adamw``
shrinks the weights directly."""

SCHEDULES = ("one-cycle", "linear", "cosine", "constant", "two-drops")
"""Schedules by name. ``one-cycle`` is torch's ``OneCycleLR``. The others begin with a warm-up. After it,
``linear`` and ``cosine`` fall to zero, ``constant`` stays, and ``two-drops`` falls to a tenth after half of
the steps that are left, and to a hundredth after four fifths of them."""


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
    """The factor on the learning rate: it rises to 1 over ``warmup`` steps, then falls or stays.

    It is a class because checkpoints keep the state of an object, but not that of a closure.
    """

    def __init__(self, name: str, steps: int, warmup: int) -> None:
        self.name, self.steps, self.warmup = name, steps, warmup

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.name == "linear":
            return 1 - done
        if self.name == "two-drops":
            return 1.0 if done < 0.5 else 0.1 if done < 0.8 else 0.01
        return 0.5 * (1 + math.cos(math.pi * done)) if self.name == "cosine" else 1.0


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, *, steps: int, warmup: float = 0.0, done: int = 0
) -> LRScheduler:
    """The schedule ``name``, one of :data:`SCHEDULES`. Step it once after every optimiser step.

    :param int steps: length of the whole run.
    :param float warmup: share of the run during which the learning rate rises, in [0, 1). ``"one-cycle"``
        always rises, so there 0 means a tenth.
    :param int done: steps that the optimiser has taken already, under an earlier schedule.
    :raises ValueError: for an unknown name or a number out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r}: expected one of {', '.join(map(repr, SCHEDULES))}")
    check_at_least(1, steps=steps)
    check_at_least(0, done=done)
    warmup = check_number("warmup", warmup, at_least=0, below=1)
    if name == "one-cycle":
        # torch divides by the length of a phase minus one step. Keep the phases longer than one step.
        steps = max(steps, 2)
        rise = max(warmup or 0.1, 1.5 / steps)
        beta = optimizer.param_groups[0].get("betas", (0.9,))[0]
        swing = min(0.05, beta, (1 - beta) / 2)
        return OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=rise,
            base_momentum=beta - swing,
            max_momentum=beta + swing,
            last_epoch=done - 1,
        )
    return LambdaLR(optimizer, _Factor(name, steps, round(warmup * steps)), last_epoch=done - 1)
