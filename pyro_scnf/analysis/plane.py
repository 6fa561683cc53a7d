"""A model of two-dimensional data, evaluated on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import reference_tensor
from pyro_scnf.models import SemiSupervisedModel

__all__ = ["Plane", "evaluate_plane"]


@dataclass(frozen=True)
class Plane:
    """A model's density and label posterior on a rectangle of the plane.

    :ivar Tensor low: lower left corner ``(2,)``.
    :ivar Tensor high: upper right corner ``(2,)``.
    :ivar Tensor probs: :math:`p(y \\mid x)`, ``(H, W, K)``; rows go upwards.
    :ivar Tensor density: :math:`p(x)`, ``(H, W)``.
    """

    low: Tensor
    high: Tensor
    probs: Tensor
    density: Tensor


@torch.no_grad()
def evaluate_plane(model: SemiSupervisedModel, x: Tensor, *, points: int = 200, margin: float = 0.4) -> Plane:
    """Evaluate the model on a grid that covers the data.

    :param model: a model of data of event shape ``(2,)``.
    :param x: data ``(N, 2)`` to cover.
    :param int points: grid points along each axis.
    :param float margin: how far the grid reaches beyond the data.
    :raises ValueError: if the model is not one of two-dimensional data; for ``x`` of another shape or without
        rows; for fewer than 2 grid points.
    """
    check_at_least(2, points=points)
    if tuple(model.flow.event_shape) != (2,):
        raise ValueError(f"model: its event_shape is {tuple(model.flow.event_shape)}, expected (2,)")
    if x.dim() != 2 or x.shape[1] != 2 or not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, 2) with at least one row")
    low, high = x.amin(0) - margin, x.amax(0) + margin
    axes = [torch.linspace(low[i].item(), high[i].item(), points) for i in range(2)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).to(reference_tensor(model))
    probs, density = model.posterior(grid).probs, model.log_prob(grid).exp()
    return Plane(low.cpu(), high.cpu(), probs.cpu(), density.cpu())
