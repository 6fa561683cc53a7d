"""Calibration of label probabilities: how far to trust them, and one temperature that mends them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import validating
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_at_least, check_flag
from pyro_scnf._shapes import check_tensor
from pyro_scnf._warn import warn
from pyro_scnf.analysis.label_probs import Average, LabelScores, Scoring, check_known_labels, check_rows
from pyro_scnf.models import SemiSupervisedModel

__all__ = ["Calibration", "Reliability", "calibration", "fit_temperature", "reliability"]

BINS = 15
"""Bins of equal width between confidence 0 and 1, as in Guo et al. (2017)."""

COLDEST, HOTTEST = 1e-2, 1e4
"""The lowest and the highest temperature that is tried."""


# -- figures ---------------------------------------------------------------------------------------
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
    check_tensor(log_probs, "log_probs", owner)
    if log_probs.dim() != 2 or not log_probs.shape[1] or not log_probs.is_floating_point():
        raise ValueError(
            f"{owner}: log_probs has shape {tuple(log_probs.shape)} and dtype {log_probs.dtype}, expected "
            "floating log-probabilities (N, K)"
        )
    y = check_known_labels(y, len(log_probs), log_probs.shape[1], owner)
    log_probs = log_probs.detach().cpu().double()
    totals = log_probs.logsumexp(-1)
    if validating(log_probs) and not bool((totals.abs() <= 1e-3).all()):
        worst = int(totals.abs().nan_to_num(nan=math.inf).argmax())
        raise ValueError(
            f"{owner}: log_probs is not normalised: the probabilities of row {worst} add up to "
            f"{float(totals[worst].exp()):.4g}, expected 1; give probs.log(), or logits.log_softmax(-1)"
        )
    return log_probs, y


# -- temperature -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and the figures of :func:`calibration` on the rows it was fitted on.

    :ivar float temperature: T. Give it to :func:`evaluate` or :func:`label_log_probs` with new rows.
    :ivar before: the figures at temperature 1.
    :ivar after: the figures at the fitted temperature. They are a little better than those of new rows.
    """

    temperature: float
    before: dict[str, float]
    after: dict[str, float]


def fit_temperature(
    model: SemiSupervisedModel,
    x: Tensor,
    y: Tensor,
    *,
    smooth: bool = False,
    bins: int | None = None,
    draws: int = 1,
    average: Average = "density",
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
) -> Calibration:
    r"""The temperature that minimises the label NLL of validation rows (extra ``analysis``).

    .. math:: \hat T = \arg\min_T -\sum_n \log p_T(y_n \mid x_n), \qquad
        p_T(y \mid x) \propto p(y)\, p(x \mid y)^{1/T}

    In a Gaussian mixture with one covariance for all classes, T multiplies that covariance: it is the
    :math:`\sigma^2` of FlowGMM. The model itself stays as it is, and so does its density :math:`p(x)`. What
    is fitted is one number. With a uniform :math:`p(y)` no predicted label changes.

    The label NLL is convex in 1/T, so there is one minimum. Where it lies at a bound, 0.01 or 10,000, this
    function warns.

    :param x: validation data ``(N, *event_shape)``, best rows that the model was not trained on.
    :param y: their labels ``(N,)``, all known.
    :param bool smooth: for few rows, which a model may classify without an error. Each row then counts as its
        label with the probability :math:`(n_k + 1) / (n_k + 2)` alone, where :math:`n_k` rows have that
        label, and as any other label with equal parts of the rest (Platt's targets).
    :return: the temperature, and the figures before and after.
    :raises ValueError: for unknown labels or labels out of range; for no rows; for labels of a class of
        probability 0; for a model whose likelihoods are NaN or infinite; for options and data that
        :func:`label_log_probs` refuses.
    :raises ImportError: without torchmetrics or SciPy.

    The other options are those of :func:`label_log_probs`.

    References: Izmailov et al., 2020, section 6.1 and Table 5; Guo et al., 2017; Platt, *Probabilistic
    outputs for support vector machines*, 1999.
    """
    check_flag(smooth=smooth)
    owner = "fit_temperature"
    scoring = Scoring(bins, draws, average, batch_size, generator)
    check_rows(model, x, owner)
    y = check_known_labels(y, len(x), model.flow.num_classes, owner)
    impossible = y[model.class_probs.log_probs.cpu()[y] == -math.inf].unique().tolist()
    if impossible:
        raise ValueError(
            f"{owner}: y holds labels of class {', '.join(map(str, impossible))}, whose probability p(y) is "
            "0 in this model; no temperature makes them possible, so leave their rows out"
        )
    scores = scoring.of(model, x, owner)
    temperature = _best_temperature(scores, _targets(y, model.flow.num_classes, smooth))
    before, after = (calibration(scores.at(t), y) for t in (1.0, temperature))
    return Calibration(temperature, before, after)


def _targets(y: Tensor, num_classes: int, smooth: bool) -> Tensor:
    """The probability with which each row counts as each label, ``(N, K)`` in double precision."""
    targets = F.one_hot(y, num_classes).double()
    if not smooth or num_classes == 1:
        return targets
    own = ((targets.sum(0) + 1) / (targets.sum(0) + 2))[y, None]
    return torch.where(targets > 0, own, (1 - own) / (num_classes - 1))


def _best_temperature(scores: LabelScores, targets: Tensor) -> float:
    """Where the slope of the label NLL, which rises with 1/T, is zero. It warns if there is no such point."""
    possible = scores.log_class_probs > -math.inf  # other labels have no say in the label NLL
    table = torch.where(possible, scores.log_likelihood, 0.0)
    if bool((table.amax(-1) - table.amin(-1) < 1e-9).all()):
        warn(
            "fit_temperature: all labels have the same likelihood in every row, so the temperature changes "
            "nothing and stays 1"
        )
        return 1.0

    def slope(log_temperature: float) -> float:
        """The derivative of the mean label NLL by 1/T."""
        expected = (scores.at(math.exp(log_temperature)).exp() * table).sum(-1)
        return (expected - (targets * table).sum(-1)).mean().item()

    ends = math.log(COLDEST), math.log(HOTTEST)
    if slope(ends[0]) <= 0:
        warn(
            f"fit_temperature: the label NLL falls down to the lowest temperature, {COLDEST:g}, because the "
            "true label is the most likely one in all rows, or nearly. Such rows cannot tell how sure the "
            "model may be; give more rows, and none that the model was trained on"
        )
        return COLDEST
    if slope(ends[1]) >= 0:
        warn(
            f"fit_temperature: the label NLL falls up to the highest temperature, {HOTTEST:g}, because the "
            "likelihoods of these rows tell their labels no better than p(y) does. Check that y belongs to x"
        )
        return HOTTEST
    root = require("scipy.optimize", "analysis").brentq(slope, *ends, xtol=1e-12, rtol=1e-12)
    return math.exp(root)
