r"""A mixture of Gaussians, some of whose rows are labelled, by expectation-maximisation.

Every class is one Gaussian, or a mixture of several. A labelled row belongs to the Gaussians of its class.
The shares w, means m and covariances S of the Gaussians c raise

.. math:: \sum_n \lambda_n \log p(x_n) + \sum_c \log w_c
    - \frac{\nu}{2} \sum_c \left(\log \det S_c + \mathrm{tr}(S_c^{-1} T)\right)

in every step. In a labelled row, :math:`p(x_n)` is the sum over the Gaussians of its class. The weight
:math:`\lambda_n` is 1 for labelled rows. For the others it may be less, as there are so many of them. T is
the diagonal of the covariance of all rows: it counts as :math:`\nu` rows of every Gaussian, so that no
covariance is singular.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_scnf._numbers import check_whole
from pyro_scnf.baselines.comparator import Task, solve
from pyro_scnf.baselines.scaling import Scale, check_dims, check_scaling, reduced, scaled
from pyro_scnf.baselines.tuning import tuned

__all__ = ["Gaussians", "em_step", "gaussian_mixture"]

WEIGHTS = 0.1, 1.0, 0.01
"""Weights of unlabelled rows that are tried."""

PRIOR_ROWS = 10.0
"""The weight of the prior of a covariance, in rows."""

ITERATIONS = 200
TOLERANCE = 1e-4
"""Steps at most, and the gain of a row, in nats, below which they end."""


def gaussian_mixture(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "quantile",
    dims: int | None = 50,
    components: int = 1,
) -> Tensor:
    """A mixture of Gaussians by expectation-maximisation, in which labelled rows keep their class.

    It starts from the means of the labelled rows of each class and from one covariance for all, that of
    labelled rows about their means, together with that of all rows. Cross-validation chooses the weight of
    unlabelled rows. The other arguments are those of a :class:`Comparator`.

    :param scale: how columns are scaled, see :data:`Scale`.
    :param dims: number of principal components that take part, if there are more columns; ``None`` for all
        columns.
    :param int components: Gaussians of each class. With several, one of each class is fitted first, and then
        split along its longest axis.
    :raises ValueError: for an unknown word or a number out of range, and as :class:`Comparator` says.

    With 70,000 rows of 50 columns it takes a minute.

    Reference: Dempster, Laird and Rubin, *Maximum Likelihood from Incomplete Data via the EM Algorithm*,
    1977; Nigam et al., *Text Classification from Labeled and Unlabeled Documents using EM*, 2000, for the
    weight of unlabelled rows.
    """
    check_scaling(scale)
    components = check_whole("components", components, 1)
    dims = check_dims(dims)

    def fit(task: Task) -> Tensor:
        return tuned(reduced(scaled(task, scale), dims), WEIGHTS, partial(_solve, components=components))

    return solve("gaussian_mixture", fit, x, y, x_test, num_classes, seed)


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Gaussians, each of which belongs to a class.

    :ivar Tensor log_shares: logarithms of their shares, ``(C,)``.
    :ivar Tensor means: ``(C, D)``.
    :ivar Tensor covariances: ``(C, D, D)``.
    :ivar Tensor classes: their classes, ``(C,)``.
    """

    log_shares: Tensor
    means: Tensor
    covariances: Tensor
    classes: Tensor

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(c, x) of rows ``(N, D)``, ``(N, C)``."""
        columns, constant = [], 0.5 * x.shape[1] * math.log(2 * math.pi)
        for share, mean, factor in zip(
            self.log_shares, self.means, torch.linalg.cholesky(self.covariances), strict=True
        ):
            white = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False)
            volume = factor.diagonal().log().sum() + constant
            columns.append(share - volume - 0.5 * white.square().sum(0))
        return torch.stack(columns, 1)

    def log_classes(self, x: Tensor) -> Tensor:
        """log p(y, x) of rows ``(N, D)``, ``(N, K)``."""
        joint = self.log_joint(x)
        return torch.stack([joint[:, self.classes == k].logsumexp(1) for k in self.classes.unique()], 1)

    def split(self, parts: int) -> Gaussians:
        """Each Gaussian as several ones, whose means lie along its longest axis."""
        values, vectors = torch.linalg.eigh(self.covariances)
        axes = vectors[:, :, -1] * values[:, -1:].sqrt()
        places = torch.linspace(-1, 1, parts, dtype=axes.dtype)
        return Gaussians(
            (self.log_shares - math.log(parts)).repeat_interleave(parts),
            (self.means[:, None] + places[:, None] * axes[:, None]).flatten(0, 1),
            self.covariances.repeat_interleave(parts, 0),
            self.classes.repeat_interleave(parts),
        )


def _solve(task: Task, weight: float, components: int) -> Tensor:
    """The logarithm of p(y, x) of the rows to classify."""
    model = _converged(task, _start(task), weight)
    if components > 1:
        model = _converged(task, model.split(components), weight)
    return model.log_classes(task.x_test)


def _start(task: Task) -> Gaussians:
    x, y = task.labelled
    members = one_hot(y, task.num_classes).to(x)
    means = members.T @ x / members.sum(0)[:, None]
    residuals = x - means[y]
    everything = torch.cov(task.x.T, correction=0).reshape(2 * x.shape[1:]) + _prior(task.x)
    covariance = (residuals.T @ residuals + PRIOR_ROWS * everything) / (len(x) + PRIOR_ROWS)
    classes = torch.arange(task.num_classes)
    return Gaussians(
        means.new_full(classes.shape, -math.log(len(classes))),
        means,
        covariance.repeat(len(classes), 1, 1),
        classes,
    )


def _converged(task: Task, model: Gaussians, weight: float) -> Gaussians:
    """The model after so many steps that another one gains next to nothing."""
    before = -math.inf
    for _ in range(ITERATIONS):
        better, value = em_step(task, model, weight)
        if value - before < TOLERANCE:
            break
        model, before = better, value
    return model


def em_step(task: Task, model: Gaussians, weight: float) -> tuple[Gaussians, float]:
    """The model after one step, and the sum that steps raise before it, divided by the weight of all rows.

    :param float weight: weight of an unlabelled row.
    """
    x, y, prior = task.x, task.y, _prior(task.x)
    weights = torch.where(task.known, 1.0, weight).to(x)
    joint = model.log_joint(x)
    joint = joint.masked_fill((y[:, None] != model.classes) & task.known[:, None], -torch.inf)
    total = joint.logsumexp(1, keepdim=True)
    penalty = torch.linalg.slogdet(model.covariances).logabsdet
    penalty = penalty + (torch.linalg.inv(model.covariances) * prior).sum((1, 2))
    value = weights @ total[:, 0] + model.log_shares.sum() - 0.5 * PRIOR_ROWS * penalty.sum()

    parts = (joint - total).exp() * weights[:, None]
    counts = parts.sum(0)
    means = parts.T @ x / counts[:, None]
    covariances = []
    for mean, part, count in zip(means, parts.T, counts, strict=True):
        centred = x - mean
        scatter = centred.T @ (centred * part[:, None])
        covariances.append((scatter + PRIOR_ROWS * prior) / (count + PRIOR_ROWS))
    shares = (counts + 1) / (counts + 1).sum()
    better = Gaussians(shares.log(), means, torch.stack(covariances), model.classes)
    return better, float(value / weights.sum())


def _prior(x: Tensor) -> Tensor:
    """The diagonal of the covariance of rows. A column that is constant has a small variance."""
    variances = x.var(0, correction=0)
    return variances.clamp(min=max(1e-6 * float(variances.max()), 1e-12)).diag()
