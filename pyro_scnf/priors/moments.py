r"""Sufficient statistics of a mixture, and the closed-form M-step of expectation-maximisation.

A row z counts for component k with the weight :math:`q_k`, its posterior probability times the weight of the
row. The statistics of a component are

.. math:: n_k = \sum q_k, \qquad m_k = \frac{\sum q_k z}{n_k}, \qquad S_k = \sum q_k (z - m_k)(z - m_k)^\top

(of :math:`S_k` the diagonal alone, unless the covariance is full). They are kept centred, because sums of
squares would lose their digits where the means are far from 0.

References: Dempster, Laird and Rubin, 1977; Cappé and Moulines, *On-line expectation-maximization algorithm
for latent data models*, 2009 (forgetting).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scnf._processes import SumsOverSteps, averaged_over_processes
from pyro_scnf._shapes import in_double

__all__ = ["FEWEST", "SMALLEST_SCALE", "TINY", "Moments", "log_std"]

SMALLEST_SCALE = 1e-4
"""EM makes no scale smaller. A component of one row, or of equal rows, would otherwise get the scale 0."""

FEWEST = 1e-6
"""EM leaves a component alone if its rows weigh less than this in all."""

TINY = torch.finfo(torch.float64).tiny
"""Divides the statistics of a component without rows."""


class Moments(SumsOverSteps):
    """Weighted count, mean and scatter of the rows of each component.

    :param int components: number of components P.
    :param int dim: numbers D in a row.
    :param bool full: whether the scatter is a matrix.
    """

    sums = ("count", "weight", "mean", "scatter")

    count: Tensor
    weight: Tensor
    mean: Tensor
    scatter: Tensor

    def __init__(self, components: int, dim: int, full: bool) -> None:
        super().__init__()
        self.full = full
        self.register_buffer("count", torch.zeros(components))
        self.register_buffer("weight", torch.zeros(components, dim))
        self.register_buffer("mean", torch.zeros(components, dim))
        self.register_buffer("scatter", torch.zeros((components, dim, dim) if full else (components, dim)))

    @torch.no_grad()
    def add(self, z: Tensor, q: Tensor, u: Tensor | None = None) -> None:
        """Add rows, those of all processes together. Their weights are averaged over the processes.

        :param z: ``(B, D)``.
        :param q: weight of each row in each component, ``(B, P)``.
        :param u: further weights, which do not count in ``count``: of each number, ``(B, P, D)``, or of each
            row, ``(B, P)``, if the scatter is a matrix.
        """
        z, q = in_double(z), in_double(q)
        center = self._center(z)
        z = z - center
        if u is None or self.full:
            w = q if u is None else q * in_double(u)
            parts = [q.sum(0), w.sum(0)[:, None].expand(-1, z.shape[1]), w.T @ z]
            parts.append(torch.einsum("bp,bi,bj->pij", w, z, z) if self.full else w.T @ z.square())
        else:
            w = q[..., None] * in_double(u)
            parts = [q.sum(0), w.sum(0), torch.einsum("bpd,bd->pd", w, z)]
            parts.append(torch.einsum("bpd,bd->pd", w, z.square()))
        sizes = [part.numel() for part in parts]
        averaged = averaged_over_processes(torch.cat([part.flatten() for part in parts])).split(sizes)
        count, weight, first, second = (s.reshape(p.shape) for s, p in zip(averaged, parts, strict=True))
        self._merge(count, weight, first, second, center)

    @torch.no_grad()
    def add_components(self, mean: Tensor, covariance: Tensor, weight: Tensor | float) -> None:
        """Add what rows of equal weights, drawn from the components, would say on average.

        :param mean: ``(P, D)``.
        :param covariance: ``(P, D, D)`` if the scatter is a matrix, else variances ``(P, D)``.
        :param weight: weight of the rows of each component, a number or ``(P,)``.
        """
        mean, covariance = in_double(mean), in_double(covariance)
        count = torch.as_tensor(weight, dtype=mean.dtype, device=mean.device).expand(len(mean))
        each = count[:, None].expand_as(mean)
        second = self._like_scatter(each) * (covariance + self._outer(mean))
        self._merge(count, each, each * mean, second, torch.zeros_like(mean[0]))

    def _center(self, z: Tensor) -> Tensor:
        """A point near the rows, the same in all processes: the mean so far, or that of these rows."""
        if bool(self.count.sum() > 0):
            wide = in_double(self.count)
            return (wide[:, None] * in_double(self.mean)).sum(0) / wide.sum()
        total = torch.cat([z.sum(0), z.new_full((1,), float(len(z)))])
        total = averaged_over_processes(total)
        return total[:-1] / total[-1].clamp(min=1)

    def _merge(self, count: Tensor, weight: Tensor, first: Tensor, second: Tensor, center: Tensor) -> None:
        """Add sums of rows less ``center`` to the centred statistics."""
        before, mean = in_double(self.weight), in_double(self.mean)
        total = before + weight
        safe = torch.where(total > 0, total, 1.0)
        own = first / torch.where(weight > 0, weight, 1.0)  # mean of the new rows
        spread = second - (self._outer(own) * self._like_scatter(weight))
        shift = own + center - mean
        cross = self._outer(shift) * self._like_scatter(before * weight / safe)
        self.scatter.copy_(in_double(self.scatter) + spread + cross)
        self.mean.copy_(mean + shift * weight / safe)
        self.weight.copy_(total)
        self.count.add_(count)

    def _outer(self, v: Tensor) -> Tensor:
        return v[:, :, None] * v[:, None, :] if self.full else v.square()

    def _like_scatter(self, weight: Tensor) -> Tensor:
        return weight[:, :, None] if self.full else weight

    @torch.no_grad()
    def about(self, loc: Tensor) -> Tensor:
        """The scatter about other points ``(P, D)`` than the means, in double precision."""
        away = in_double(self.mean) - in_double(loc)
        return in_double(self.scatter) + self._outer(away) * self._like_scatter(in_double(self.weight))

    @torch.no_grad()
    def forget(self, keep: float) -> None:
        """Multiply the weight of all rows so far by ``keep``."""
        for value in (self.count, self.weight, self.scatter):
            value.mul_(keep)

    def clear(self) -> None:
        """Forget all rows, also if a statistic has become infinite."""
        for value in (self.count, self.weight, self.mean, self.scatter):
            value.zero_()


def log_std(variance: Tensor) -> Tensor:
    """Log of the standard deviation, no smaller than that of :data:`SMALLEST_SCALE`."""
    return 0.5 * variance.clamp(min=SMALLEST_SCALE**2).log()
