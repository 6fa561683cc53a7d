"""From pixels in the unit interval to the real line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_scnf._numbers import check_number
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

    settings: ClassVar[tuple[str, ...]] = ("alpha",)

    def __init__(self, event_shape: Sequence[int] | int, alpha: float = 0.05) -> None:
        super().__init__(event_shape)
        self.alpha = check_number("alpha", alpha, at_least=0, below=1)

    @property
    def margin(self) -> float:
        """By how much the support is wider than the unit interval, on either side."""
        return 0.5 * self.alpha / (1 - self.alpha)

    @property
    def codomain(self) -> constraints.Constraint:
        interval = constraints.interval(-self.margin, 1 + self.margin)
        return constraints.independent(interval, len(self.event_shape))

    def _bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """The smallest and the largest contracted value that ``x`` in ``dtype`` can stand for."""
        info = torch.finfo(dtype)
        return max(info.tiny, info.eps * self.alpha / 4), 1 - info.eps / 2

    def _ladj(self, z: Tensor) -> Tensor:
        each = math.log1p(-self.alpha) - F.logsigmoid(z) - F.logsigmoid(-z)
        return each.flatten(-len(self.event_shape)).sum(-1)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        p = (1 - self.alpha) * x + 0.5 * self.alpha
        # Rounding may carry draws to the ends of the interval, or just past them. Bring those back, but leave
        # other values outside as they are: their logit is NaN, as it should be.
        low, high = self._bounds(p.dtype)
        rounding = 4 * torch.finfo(p.dtype).eps
        p = torch.where((p < low) & (p > -rounding), low, p)
        p = torch.where((p > high) & (p < 1 + rounding), high, p)
        z = p.log() - (-p).log1p()
        return z, self._ladj(z)

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(z) - 0.5 * self.alpha) / (1 - self.alpha)
        return x.clamp(-self.margin, 1 + self.margin), -self._ladj(z)
