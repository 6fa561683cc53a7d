"""From the unit interval to standard normal marginals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import at_least_single, in_double
from pyro_scnf.transforms.base import FlowTransform

__all__ = ["MarginalGaussianization"]


class MarginalGaussianization(FlowTransform):
    r"""Every entry through one learnable distribution function, then through normal quantiles.

    From data to latent

    .. math:: z = \Phi^{-1}(F(x)), \qquad F'(x) = B\, w_b \quad \text{for } b \le B x < b + 1,

    where :math:`w` are the masses of B equal cells of the unit interval. They are equal, :math:`F(x) = x`,
    until :meth:`initialize` sets them to the frequencies in a batch, each cell counted once more. The entries
    of that batch are then standard normal, apart from how they depend on each other.

    Take it for grey levels that were spread over their bins (:func:`~pyro_scnf.transforms.dequantize`), with
    one cell for each level. In most images one level is far more frequent than others, such as that of an
    empty background. Its noise has the density of a uniform distribution, and after a :class:`Logit` that of
    an exponential one. No affine coupling can make noise normal that depends on nothing.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param int cells: number of cells B.
    :raises ValueError: for less than one cell.

    The log-determinant from data to latent is
    :math:`\sum \log (B\, w_b) + z^2 / 2 + \log \sqrt{2 \pi}` nats.

    >>> levels = (4 * torch.rand(1000, 3) ** 3).long()  # 0 to 3, most of them 0
    >>> layer = MarginalGaussianization((3,), cells=4)
    >>> z = layer.initialize(pyro_scnf.transforms.dequantize(levels, 4))
    >>> bool(z.mean().abs() < 0.1), bool((z.std() - 1).abs() < 0.1)
    (True, True)

    Reference: Chen and Gopinath, *Gaussianization*, 2001.
    """

    def __init__(self, event_shape: Sequence[int] | int, cells: int = 256) -> None:
        super().__init__(event_shape)
        self.cells = check_whole("cells", cells, 1)
        self.log_weights = nn.Parameter(torch.zeros(self.cells))

    @property
    def codomain(self) -> constraints.Constraint:
        return constraints.independent(constraints.unit_interval, len(self.event_shape))

    def _masses(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mass of each cell, its logarithm, and the mass below and above each cell."""
        log_mass = at_least_single(self.log_weights).log_softmax(0)
        mass = log_mass.exp()
        # Sums of the other cells alone. A sum minus the own mass would be wrong next to a much larger one.
        below = F.pad(mass.cumsum(0)[:-1], (1, 0))
        above = F.pad(mass.flip(0).cumsum(0)[:-1], (1, 0)).flip(0)
        return mass, log_mass, below, above

    def _ladj(self, z: Tensor, log_mass: Tensor) -> Tensor:
        each = log_mass + 0.5 * z.square() + (math.log(self.cells) + 0.5 * math.log(2 * math.pi))
        return each.flatten(-len(self.event_shape)).sum(-1)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        mass, log_mass, below, above = self._masses()
        place = at_least_single(x) * self.cells
        cell = place.detach().nan_to_num().floor().clamp(0, self.cells - 1).long()
        inside = place - cell
        # Take the smaller of both sides: a mass near 1 would be rounded.
        left = below[cell] + mass[cell] * self._off_zero(inside)
        right = above[cell] + mass[cell] * self._off_zero(1 - inside)
        quantile = torch.special.ndtri(torch.minimum(left, right))
        z = torch.where(left < right, quantile, -quantile)
        return z.to(x.dtype), self._ladj(z, log_mass[cell]).to(x.dtype)

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        mass, log_mass, below, above = self._masses()
        dtype, z = z.dtype, at_least_single(z)
        # Not ndtr, which rounds small numbers of single precision to 0.
        left, right = (0.5 * torch.erfc(side * math.sqrt(0.5)) for side in (-z, z))
        cell = torch.where(
            left < right, _last_at_most(below, left), self.cells - 1 - _last_at_most(above.flip(0), right)
        )
        inside = torch.where(
            left < right, (left - below[cell]) / mass[cell], 1 - (right - above[cell]) / mass[cell]
        )
        x = (cell + inside.clamp(0, 1)) / self.cells
        return x.to(dtype), -self._ladj(z, log_mass[cell]).to(dtype)

    @torch.no_grad()
    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        cell = (x * self.cells).floor().clamp(0, self.cells - 1).long()
        log_counts = in_double(torch.bincount(cell.flatten(), minlength=self.cells) + 1).log()
        self.log_weights.copy_(log_counts - log_counts.mean())
        return self._inverse_ladj(x)[0]

    def _off_zero(self, share: Tensor) -> Tensor:
        """Shares of a cell, moved off 0, whose normal quantile is infinite.

        Rounding may carry draws just past the ends of the interval. Values further outside become NaN.
        """
        eps = torch.finfo(share.dtype).eps
        return torch.where((share < eps / 4) & (share > -4 * self.cells * eps), eps / 4, share)


@torch.no_grad()
def _last_at_most(edges: Tensor, values: Tensor) -> Tensor:
    """The number of the last of the ascending ``edges`` that is at most each value. The first one is 0."""
    ascending = edges.cummax(0).values  # a GPU adds in parts, and rounding may leave a step down
    return (torch.searchsorted(ascending, values.contiguous(), right=True) - 1).clamp(min=0)
