"""Balance: label posteriors should average to the class probabilities."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["imbalance"]


def imbalance(log_posterior: Tensor, log_prior: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(\bar p \,\|\, p(y))`, where :math:`\bar p` is the mean posterior.

    A batch is a sample of the data, so its posteriors should average to :math:`p(y)`. Pairs alone do not
    ensure this: one label for all rows satisfies every pair.

    :param log_posterior: :math:`\log p(k \mid x_n)`, ``(B, K)``.
    :param log_prior: :math:`\log p(y)`, ``(K,)``. Classes of probability 0 are left out.
    :return: a scalar in nats.
    """
    live = log_prior.isfinite()
    log_posterior, log_prior = log_posterior[:, live], log_prior[live]
    mean = log_posterior.logsumexp(0) - math.log(len(log_posterior))
    return (mean.exp() * (mean - log_prior)).sum()
