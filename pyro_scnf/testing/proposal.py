"""A density that covers draws of any kind: several modes, strong correlations, tails of any weight."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Proposal"]

DEGREES, CELLS, SHARE = 5.0, 16, 0.3


class Proposal:
    """A distribution of rows ``(n, D)``, fitted to draws.

    First, asinh shortens the tails of each component: ``u = asinh((z - median) / scale)``, with twice the
    distance between the quartiles as scale. Tails as heavy as those of a Cauchy become exponential. Then a
    mixture of multivariate Student-t distributions covers u. One has the moments of all draws. The others
    have those of cells, made of the draws nearest to one of 16 random draws, so that separate modes get
    components of their own.

    :param draws: rows ``(n, D)`` in float64.
    """

    def __init__(self, draws: Tensor) -> None:
        low, self.loc, high = draws.quantile(draws.new_tensor([0.25, 0.5, 0.75]), 0)
        self.scale = 2 * (high - low)
        u = ((draws - self.loc) / self.scale).asinh()
        cell = torch.cdist(u, u[torch.randperm(len(u))[:CELLS]]).argmin(1)
        cells = [u[cell == c] for c in range(CELLS)]
        rows = [u, *(part for part in cells if len(part) > 10 * u.shape[1])]
        sizes = draws.new_tensor([len(part) for part in rows[1:]])
        self.weights = torch.cat([sizes.new_tensor([SHARE]), (1 - SHARE) * sizes / sizes.sum()])
        self.means = torch.stack([part.mean(0) for part in rows])
        self.factors = torch.stack([_cholesky(part) for part in rows])

    def sample(self, n: int) -> Tensor:
        """Draws ``(n, D)``."""
        c = torch.multinomial(self.weights, n, replacement=True)
        noise = torch.randn(n, len(self.loc), dtype=self.loc.dtype)
        spread = (DEGREES / dist.Chi2(self.loc.new_tensor(DEGREES)).sample((n, 1))).sqrt()
        u = self.means[c] + spread * (self.factors[c] @ noise[..., None])[..., 0]
        return self.loc + self.scale * u.sinh()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of rows ``(n, D)`` in nats."""
        v = (z - self.loc) / self.scale
        u = v.asinh()
        parts = zip(self.weights, self.means, self.factors, strict=True)
        terms = [weight.log() + _student_t(u, mean, factor) for weight, mean, factor in parts]
        return torch.stack(terms).logsumexp(0) - (self.scale.log() + v.square().log1p() / 2).sum(-1)


def _student_t(u: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Log-density of rows ``(n, D)`` under a multivariate Student-t, with one solve for all rows."""
    size = u.shape[1]
    square = torch.linalg.solve_triangular(factor, (u - mean).T, upper=False).square().sum(0)
    constant = math.lgamma((DEGREES + size) / 2) - math.lgamma(DEGREES / 2)
    constant -= size / 2 * math.log(DEGREES * math.pi)
    return constant - factor.diagonal().log().sum() - (DEGREES + size) / 2 * (square / DEGREES).log1p()


def _cholesky(rows: Tensor) -> Tensor:
    """Cholesky factor of the covariance of rows ``(n, D)``, with a small diagonal for stability."""
    covariance = torch.cov(rows.T).reshape(2 * rows.shape[1:])
    return torch.linalg.cholesky(covariance + 1e-10 * covariance.diagonal().diag())
