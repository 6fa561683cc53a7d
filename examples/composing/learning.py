"""A plain training loop for a flow within a larger model, with all rows in each step, from several starts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

import pyro
import torch
from torch import Tensor

Made = TypeVar("Made")
STEPS, STARTS, EVALUATIONS = 400, 3, 10


def learn(
    args: argparse.Namespace, make: Callable[[], tuple[torch.nn.Module, Made]], x: Tensor, *data: Tensor
) -> Made:
    """Minimise ``loss(x, *data)`` several times, and keep what has the lowest loss.

    The starts differ in random numbers alone, and now and then one of them ends in a worse optimum. Its loss
    shows it, without a look at the truth. Each step adds a little noise to x. The flow would otherwise put
    density onto single points.

    :param make: returns an objective of :func:`pyro_scnf.elbo`, and what to keep of it.
    """
    steps, starts = (5, 1) if args.smoke_test else (STEPS, STARTS)
    lowest = math.inf
    for _ in range(starts):
        pyro.clear_param_store()  # or a guide would begin where the one before has ended
        loss, made = make()
        loss(x, *data)  # after the first call, it has the parameters of model and guide
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(x + 0.2 * torch.randn_like(x), *data).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            value = sum(loss(x, *data).item() for _ in range(EVALUATIONS)) / EVALUATIONS
        if value < lowest:
            lowest, best = value, made
    return best
