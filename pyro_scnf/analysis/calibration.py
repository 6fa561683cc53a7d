"""Calibration of label probabilities: figures that say how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._numbers import check_at_least
from pyro_scnf.analysis.label_probs import check_known_labels, check_log_probs

__all__ = ["Reliability", "calibration", "reliability"]

BINS = 15
"""Bins of equal width between confidence 0 and 1, as in Guo et al. (2017)."""


def calibration(log_probs: Tensor, y: Tensor) -> dict[str, float]:
    """How good label probabilities are: four figures (extra ``analysis``).

    :param log_probs: normalised log-probabilities ``(N, K)``, as :func:`label_log_probs` returns them.
        Probabilities themselves would not do: the label NLL of a model that is too sure depends on
        probabilities so small that they round to 0.
    :param y: the true labels ``(N,)``.
    :return: ``accuracy_pct`` (per cent); ``label_nll``, the mean of :math:`-\\log p(y \\mid x)`, in nats;
        ``ece``, the expected calibration error with 15 bins of confidence; ``brier``, the mean squared
        distance, from 0 to 2, of the probabilities from the one-hot label.
    :raises ValueError: for log-probabilities that are not normalised; for unknown labels or labels out of
        range; for no rows.
    :raises ImportError: without torchmetrics.
    """
    log_probs, y = _checked(log_probs, y, "calibration")
    probs, num_classes = log_probs.exp(), log_probs.shape[1]
    error = torch.zeros(())  # one class is certain, and torchmetrics refuses fewer than two
    if num_classes > 1:
        metrics = require("torchmetrics.functional.classification", "analysis")
        # torchmetrics would give the confidence 1 a bin of its own, and take rows past 1 for logits.
        inside = probs.clamp(max=_BELOW_ONE)
        error = metrics.multiclass_calibration_error(inside, y, num_classes=num_classes, n_bins=BINS)
    right = (log_probs.argmax(-1) == y).double()
    one_hot = torch.nn.functional.one_hot(y, num_classes)
    return {
        "accuracy_pct": 100 * right.mean().item(),
        "label_nll": -log_probs.gather(1, y[:, None]).mean().item(),
        "ece": error.item(),
        "brier": (probs - one_hot).square().sum(-1).mean().item(),
    }


@dataclass(frozen=True)
class Reliability:
    """Rows in bins of equal width by their confidence, the probability of their most probable label.

    :ivar Tensor confidence: mean confidence of each bin ``(bins,)``, NaN in an empty one.
    :ivar Tensor accuracy: share of its rows whose most probable label is true ``(bins,)``, likewise.
    :ivar Tensor count: number of its rows ``(bins,)``.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def reliability(log_probs: Tensor, y: Tensor, bins: int = BINS) -> Reliability:
    """Confidence against accuracy. :func:`pyro_scnf.plots.reliability_diagram` draws it.

    The calibration error ``ece`` of :func:`calibration` is the mean distance of the two over all rows.

    :param log_probs: normalised log-probabilities ``(N, K)``, as :func:`label_log_probs` returns them.
    :param y: the true labels ``(N,)``.
    :param int bins: number of bins between confidence 0 and 1. A bin contains its lower end; the last one
        contains 1.
    :raises ValueError: for log-probabilities that are not normalised; for unknown labels or labels out of
        range; for no rows; for less than one bin.
    """
    check_at_least(1, bins=bins)
    log_probs, y = _checked(log_probs, y, "reliability")
    best, label = log_probs.max(-1)
    confidence, right = best.exp(), (label == y).double()
    # Single precision, as in torchmetrics, so that both sort a row into the same bin.
    ends = torch.linspace(0, 1, int(bins) + 1)
    index = torch.bucketize(confidence.clamp(max=_BELOW_ONE).float(), ends, right=True) - 1
    sums = torch.zeros(3, int(bins), dtype=torch.float64)
    sums.index_add_(1, index, torch.stack([confidence, right, torch.ones_like(right)]))
    return Reliability(sums[0] / sums[2], sums[1] / sums[2], sums[2].long())


_BELOW_ONE = 1 - 2.0**-24
"""The highest number below 1 in single precision."""


def _checked(log_probs: Tensor, y: Tensor, owner: str) -> tuple[Tensor, Tensor]:
    """Raise unless there are normalised log-probabilities and known labels. Return both on the CPU."""
    log_probs = check_log_probs(log_probs, "log_probs", owner)
    return log_probs, check_known_labels(y, len(log_probs), log_probs.shape[1], owner)
