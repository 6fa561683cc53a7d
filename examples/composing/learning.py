"""A plain training loop for a flow within a larger model, with all rows in each step."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor


def learn(
    args: argparse.Namespace, loss: torch.nn.Module, x: Tensor, *data: Tensor, steps: int = 400
) -> None:
    """Minimise ``loss(x, *data)``, an objective of :func:`pyro_scnf.elbo`.

    Each step adds a little noise to x. The flow would otherwise put density onto single points.
    """
    loss(x, *data)  # after the first call, it has the parameters of model and guide
    steps = 5 if args.smoke_test else steps
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x + 0.2 * torch.randn_like(x), *data).backward()
        optimizer.step()
        schedule.step()
