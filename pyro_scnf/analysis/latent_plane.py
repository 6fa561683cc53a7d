"""A model of two-dimensional data beside its latents, which are two-dimensional, too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scnf._modes import evaluating
from pyro_scnf._numbers import check_at_least, check_kinds
from pyro_scnf._random import drawing_from
from pyro_scnf._shapes import reference_tensor
from pyro_scnf.analysis.label_probs import check_rows
from pyro_scnf.analysis.plane import Plane, corners_around, evaluate_plane, grid
from pyro_scnf.models import SemiSupervisedModel

__all__ = ["LatentPlane", "latent_plane"]

MARGIN = 0.4
"""How far the grids reach beyond the points."""


@dataclass(frozen=True)
class LatentPlane:
    """A model in the plane of its data and in the plane of its latents.

    :ivar Plane data: :math:`p(x)` and :math:`p(y \\mid x)`.
    :ivar Plane latent: :math:`p(z)` and :math:`p(y \\mid z)`.
    :ivar Tensor z: the latents of the data that were given, ``(N, 2)``.
    :ivar Tensor drawn_y: labels drawn from :math:`p(y)`, ``(M,)``.
    :ivar Tensor drawn_z: latents drawn from :math:`p(z \\mid y)`, ``(M, 2)``.
    :ivar Tensor drawn_x: the data of these latents, ``(M, 2)``.
    """

    data: Plane
    latent: Plane
    z: Tensor
    drawn_y: Tensor
    drawn_z: Tensor
    drawn_x: Tensor


@torch.no_grad()
def latent_plane(
    model: SemiSupervisedModel,
    x: Tensor,
    *,
    draws: int = 1000,
    points: int = 200,
    generator: torch.Generator | None = None,
) -> LatentPlane:
    """Encode data, draw from the model, and evaluate it in both planes.

    :func:`pyro_scnf.plots.latent_plane` draws what this function returns.

    :param model: a model of data of event shape ``(2,)`` whose flow factors no latents out.
    :param x: data ``(N, 2)``, at least one row.
    :param int draws: number M of draws.
    :param int points: grid points along each axis of both planes.
    :param generator: source of the draws; PyTorch's global one by default.
    :raises ValueError: if the model is not one of two-dimensional data and latents; for numbers out of range;
        for data that the flow refuses.

    Reference: Figures 1, 2 and 4 of Izmailov et al. (2020).
    """
    check_at_least(1, draws=draws)
    check_at_least(2, points=points)
    check_kinds(model=(model, SemiSupervisedModel))
    flow, like = model.flow, reference_tensor(model)
    for name, shape in (("event_shape", flow.event_shape), ("latent_shape", flow.latent_shape)):
        if tuple(shape) != (2,):
            raise ValueError(f"model: its {name} is {tuple(shape)}, expected (2,)")
    check_rows(model, x, "latent_plane")
    x = flow.check_data(x.to(like.device), "x", "latent_plane")
    if not len(x):
        raise ValueError("latent_plane: x has no rows, expected at least one")
    with evaluating(model):
        z = flow.encode(x)[1]
        with drawing_from(generator, like.device):
            drawn_y = model.class_probs().sample((int(draws),))
            drawn_z = flow.prior.condition(drawn_y).sample()
        drawn_x = flow.decode(drawn_z.to(like.dtype))
        low, high = corners_around(torch.cat([z, drawn_z]), MARGIN)
        table = flow.prior.class_log_prob(grid(low, high, points, like)) + model.class_probs.log_probs
    latent = Plane(low.cpu(), high.cpu(), table.softmax(-1).cpu(), table.logsumexp(-1).exp().cpu())
    data = evaluate_plane(model, x, points=points, margin=MARGIN)
    return LatentPlane(data, latent, *(t.cpu() for t in (z, drawn_y, drawn_z, drawn_x)))
