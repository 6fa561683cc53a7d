"""From pixels in the unit interval to the real line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_scnf.transforms.base import FlowTransform

__all__ = ["Logit"]


class Logit(FlowTransform):
    r"""Contracted logit, from data to latent

    .. math:: z = \operatorname{logit}\bigl((1 - \alpha) x + \alpha / 2\bigr).

    Its inverse :math:`x = (\sigma(z) - \alpha/2) / (1 - \alpha)` undoes the contraction, so that
    reconstructions are exact. The support on the data side is the unit interval, widened by
    :math:`\alpha / 2(1-\alpha)` on both sides.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param float alpha: the contraction, in [0, 1); 0.05 in the SCNF paper.
    :raises ValueError: for ``alpha`` outside [0, 1).

    The log-determinant of the inverse direction is
    :math:`\sum \log(1-\alpha) - \log \sigma(z) - \log \sigma(-z)` nats.

    Reference: Dinh et al., *Real NVP*, 2017, section 4.1.
    """

    def __init__(self, event_shape: Sequence[int] | int, alpha: float = 0.05) -> None:
        super().__init__(event_shape)
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha={alpha}: expected 0 <= alpha < 1")
        self.alpha = float(alpha)

    @property
    def codomain(self) -> constraints.Constraint:
        margin = 0.5 * self.alpha / (1 - self.alpha)
        return constraints.independent(constraints.interval(-margin, 1 + margin), len(self.event_shape))

    def _ladj(self, z: Tensor) -> Tensor:
        each = math.log1p(-self.alpha) - F.logsigmoid(z) - F.logsigmoid(-z)
        return each.flatten(-len(self.event_shape)).sum(-1)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        p = (1 - self.alpha) * x + 0.5 * self.alpha
        z = p.log() - (-p).log1p()
        return z, self._ladj(z)

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(z) - 0.5 * self.alpha) / (1 - self.alpha)
        return x, -self._ladj(z)
