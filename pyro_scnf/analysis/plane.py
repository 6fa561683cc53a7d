"""A model of two-dimensional data, evaluated on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_scnf._checks import check_finite
from pyro_scnf._modes import evaluating
from pyro_scnf._numbers import LARGEST, check_at_least, check_kinds, check_number
from pyro_scnf._shapes import reference_tensor
from pyro_scnf.models import SemiSupervisedModel

__all__ = ["Plane", "corners_around", "evaluate_plane", "grid"]


@dataclass(frozen=True)
class Plane:
    """A density and its label posterior on a rectangle of the plane.

    :ivar Tensor low: lower left corner ``(2,)``.
    :ivar Tensor high: upper right corner ``(2,)``.
    :ivar Tensor probs: :math:`p(y \\mid x)`, ``(H, W, K)``; rows go upwards.
    :ivar Tensor density: :math:`p(x)`, ``(H, W)``.
    """

    low: Tensor
    high: Tensor
    probs: Tensor
    density: Tensor

    @property
    def joint(self) -> Tensor:
        """:math:`p(x, y)`, ``(H, W, K)``."""
        return self.density[..., None] * self.probs

    @property
    def lead(self) -> Tensor:
        """How much more probable each label is than the most probable other one, ``(H, W, K)``.

        It is 0 on the decision boundary of a class, positive inside and negative outside. With one class it
        is 1 everywhere.
        """
        if self.probs.shape[-1] == 1:
            return torch.ones_like(self.probs)
        first, second = self.probs.topk(2, -1).values.unbind(-1)
        return self.probs - torch.where(self.probs < first[..., None], first[..., None], second[..., None])


@torch.no_grad()
def evaluate_plane(model: SemiSupervisedModel, x: Tensor, *, points: int = 200, margin: float = 0.4) -> Plane:
    """Evaluate the model on a grid that covers the data.

    :param model: a model of data of event shape ``(2,)``.
    :param x: data ``(N, 2)`` to cover.
    :param int points: grid points along each axis.
    :param float margin: how far the grid reaches beyond the data, within the support of the model.
    :raises ValueError: if the model is not one of two-dimensional data; for ``x`` of another shape, without
        rows, or with NaN or infinity; for fewer than 2 grid points; for a ``margin`` that leaves no area.
    """
    check_at_least(2, points=points)
    margin = check_number("margin", margin, at_most=LARGEST)
    check_kinds(model=(model, SemiSupervisedModel))
    if tuple(model.flow.event_shape) != (2,):
        raise ValueError(f"model: its event_shape is {tuple(model.flow.event_shape)}, expected (2,)")
    check_finite(x, "x", "evaluate_plane")
    if x.dim() != 2 or x.shape[1] != 2 or not len(x):
        raise ValueError(
            f"evaluate_plane: x has shape {tuple(x.shape)}, expected (N, 2) with at least one row"
        )
    low, high = corners_around(x, margin)
    low, high = _inside(model.flow.transform.codomain, low, high)
    cells = grid(low, high, points, reference_tensor(model))
    with evaluating(model):
        probs, density = model.posterior(cells).probs, model.log_prob(cells).exp()
    return Plane(low.cpu(), high.cpu(), probs.cpu(), density.cpu())


def corners_around(x: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """The corners of the rectangle that reaches ``margin`` beyond the points ``x`` ``(N, 2)``."""
    low, high = x.amin(0) - margin, x.amax(0) + margin
    if bool((low >= high).any()):
        raise ValueError(f"margin={margin}: leaves no area around x, expected more")
    return low, high


def grid(low: Tensor, high: Tensor, points: int, like: Tensor) -> Tensor:
    """Points of a rectangle ``(points, points, 2)`` in the dtype of ``like``. Rows go upwards."""
    axes = [torch.linspace(low[i].item(), high[i].item(), int(points), dtype=torch.float64) for i in range(2)]
    return torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).to(like)


def _inside(support: constraints.Constraint, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The corners of a rectangle, moved to the ends of an interval that they leave."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if not isinstance(support, constraints.interval):
        return low, high
    return low.clamp(min=support.lower_bound), high.clamp(max=support.upper_bound)
