"""Balance: label posteriors should average to the class probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyro_scnf.terms.base import Part, Step, TrainingTerm

__all__ = ["Balance", "imbalance"]


def imbalance(log_posterior: Tensor, log_prior: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(\bar p \,\|\, p(y))`, where :math:`\bar p` is the mean posterior.

    A batch is a sample of the data, so its posteriors should average to :math:`p(y)`. Pairs alone do not
    ensure this: one label for all rows satisfies every pair.

    :param log_posterior: :math:`\log p(k \mid x_n)`, ``(B, K)``.
    :param log_prior: :math:`\log p(y)`, ``(K,)``, or evidence about each row, ``(B, K)``. Of evidence, the
        mean over the rows counts. Classes of probability 0 are left out.
    :return: a scalar in nats.
    """
    if log_prior.dim() == 2:
        log_prior = log_prior.logsumexp(0) - math.log(len(log_prior))
    live = log_prior.isfinite()
    log_posterior, log_prior = log_posterior[:, live], log_prior[live]
    mean = log_posterior.logsumexp(0) - math.log(len(log_posterior))
    return (mean.exp() * (mean - log_prior)).sum()


@dataclass(frozen=True)
class Balance(TrainingTerm):
    """The :func:`imbalance` of the unlabelled rows, times their number.

    The posteriors learn from it, and :math:`p(y)` does not. A learned :math:`p(y)` would follow the
    posteriors, and the term would then be small even if all rows had one label.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"unlabelled"})
    per_process: ClassVar[bool] = True  # the mean posterior is that of the rows of one process

    def nats(self, step: Step) -> Tensor:
        assert step.unlabelled is not None
        rows = step.unlabelled
        return rows.scale * len(rows) * imbalance(rows.log_posterior, rows.log_prior.detach())
