"""Full covariances of mixture components: Cholesky factors, distributions with them, and their M-step."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_scnf._copies import Portable
from pyro_scnf._shapes import in_double
from pyro_scnf.distributions import Transformed

__all__ = ["cholesky", "most_likely_factors", "reshaped"]


class _MultivariateNormal(Portable, dist.MultivariateNormal):
    """``MultivariateNormal`` that can be copied at any time."""


class _MultivariateStudentT(Portable, dist.MultivariateStudentT):
    """Pyro's ``MultivariateStudentT``, with a log-density for many rows and many components.

    Pyro's own solves a system for each pair of a row and a component, of D² numbers each.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        n, df, tril = self.loc.shape[-1], in_double(self.df), self._unbroadcasted_scale_tril
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        gaussian = dist.MultivariateNormal(self.loc, scale_tril=tril, validate_args=False).log_prob(value)
        squared = (-2 * (gaussian + log_det) - n * math.log(2 * math.pi)).clamp(min=0)  # Mahalanobis distance
        normaliser = (0.5 * (df + n)).lgamma() - (0.5 * df).lgamma() - 0.5 * n * (math.pi * df).log()
        tail = (0.5 * (self.df + n)) * (squared / self.df).log1p()
        return normaliser.to(tail.dtype) - log_det - tail


def cholesky(log_scale: Tensor, off_diagonal: Tensor) -> Tensor:
    """The factors ``(*batch, D, D)`` of log-diagonals ``(*batch, D)`` and what stands below the diagonals."""
    return off_diagonal.tril(-1) + torch.diag_embed(log_scale.exp())


def reshaped(flat: TorchDistributionMixin, event_shape: torch.Size) -> TorchDistributionMixin:
    """A distribution of vectors as one of events of another shape."""
    if len(event_shape) == 1:
        return flat
    return Transformed(flat, [torch.distributions.ReshapeTransform(flat.event_shape, event_shape)])


def most_likely_factors(each: Tensor, live: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Log-diagonals and lower triangles of the factors of scatter matrices of one row each.

    The most likely covariance whose variances are not too small has the same axes.

    :param each: mean scatter of the components, ``(P, D, D)``.
    :param live: which components have rows, ``(P,)``. The others are given the identity.
    :param float smallest: no standard deviation along an axis is smaller.
    """
    identity = torch.eye(each.shape[-1]).to(each)
    values, axes = torch.linalg.eigh(torch.where(live[:, None, None], each, identity))
    values = values.clamp(min=smallest**2)
    tril = torch.linalg.cholesky(axes * values[:, None, :] @ axes.mT)
    return tril.diagonal(dim1=-2, dim2=-1).log(), tril.tril(-1)
