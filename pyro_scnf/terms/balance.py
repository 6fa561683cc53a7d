"""Label posteriors that average to the class probabilities."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["imbalance"]


def imbalance(log_posterior: Tensor, log_prior: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(\bar p \,\|\, p(y))` in nats, a scalar, where :math:`\bar p` is the mean posterior.

    The pairs alone would be content with one label for all; a batch is a sample of the data, so its
    posteriors must average to :math:`p(y)`.

    :param log_posterior: ``(B, K)``.
    :param log_prior: :math:`\log p(y)`, ``(K,)``; a class of probability 0 plays no part.
    """
    live = log_prior.isfinite()
    log_posterior, log_prior = log_posterior[:, live], log_prior[live]
    mean = log_posterior.logsumexp(0) - math.log(len(log_posterior))
    return (mean.exp() * (mean - log_prior)).sum()
