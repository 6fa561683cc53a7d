r"""One temperature that makes a model as sure of its labels as it should be.

Both functions here divide the log-likelihood by a temperature T and leave the rest of the model as it is,

.. math:: p_T(y \mid x) \propto p(y)\, p(x \mid y)^{1/T}.

They differ in the rows that T is fitted on: labelled rows kept apart, or those of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_scnf._checks import check_row_labels
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import in_double, reference_tensor
from pyro_scnf._warn import warn
from pyro_scnf.analysis.calibration import calibration
from pyro_scnf.analysis.label_probs import (
    Average,
    LabelScores,
    Prepare,
    Scoring,
    check_known_labels,
    check_rows,
)
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.models.em import LearnsByEM
from pyro_scnf.models.exact_em import held_out_scores

__all__ = ["Calibration", "fit_temperature", "temperature_from_training"]

COLDEST, HOTTEST = 1e-2, 1e4
"""The lowest and the highest temperature that is tried."""

TRIED = 200
"""Temperatures between these that are tried before the best one is refined."""

USUAL, SPREAD = 2.75, 0.3
r"""The prior of :func:`temperature_from_training`: :math:`\log T` is normal with this median and deviation.

On ten data sets, one of them with two numbers of labels, the best T of the test rows had the geometric mean
2.8, and its logarithm the deviation 0.4. A smaller deviation is better for few labels.
"""


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
    prepare: Prepare | None = None,
    bins: int | None = None,
    draws: int = 1,
    average: Average = "density",
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
) -> Calibration:
    r"""The temperature that minimises the label NLL of validation rows (extra ``analysis``).

    .. math:: \hat T = \arg\min_T -\sum_n \log p_T(y_n \mid x_n)

    In a Gaussian mixture with one covariance for all classes, T multiplies that covariance: it is the
    :math:`\sigma^2` of FlowGMM. The model itself stays as it is, and so does its density :math:`p(x)`. What
    is fitted is one number. With a uniform :math:`p(y)` no predicted label changes.

    The label NLL is convex in 1/T, so there is one minimum. Where it lies at a bound, 0.01 or 10,000, this
    function warns.

    :param x: validation data ``(N, *event_shape)``, rows that the model was not trained on. If there are none
        to spare, take :func:`temperature_from_training`.
    :param y: their labels ``(N,)``, all known.
    :return: the temperature, and the figures before and after.
    :raises ValueError: for unknown labels or labels out of range; for no rows; for labels of a class of
        probability 0; for a model whose likelihoods are NaN or infinite; for options and data that
        :func:`label_log_probs` refuses.
    :raises ImportError: without torchmetrics or SciPy.

    The other options are those of :func:`label_log_probs`.

    References: Izmailov et al., 2020, section 6.1 and Table 5; Guo et al., 2017.
    """
    owner = "fit_temperature"
    scoring = Scoring(prepare, bins, draws, average, batch_size, generator)
    check_rows(model, x, owner)
    y = check_known_labels(y, len(x), model.flow.num_classes, owner)
    _check_possible(model, y, owner)
    return _calibrated(scoring.of(model, x, owner), y, owner, _most_likely)


def temperature_from_training(
    model: SemiSupervisedModel,
    x: Tensor,
    y: Tensor,
    *,
    folds: int = 5,
    iterations: int = 5,
    batch_size: int = 1000,
) -> Calibration:
    r"""A temperature from the rows that a model was trained on (extra ``analysis``).

    With few labels, none can be spared for validation. A model whose prior EM trains is scored by
    cross-validation: the labels of a part of the labelled rows are hidden, EM goes on without them for a few
    iterations with the flow held fixed, and the hidden labels are compared with what the model then says of
    their rows. Each part has its turn. The model itself stays as it is. The flow and the posteriors of other
    rows still know something of the hidden labels, so T is a little low if rows are few beside their columns.

    Any other model is scored on its labelled rows as they are. It knows their labels already, so T is too
    low, and the figures are too good. They are then no estimate for new rows.

    A few labels leave T uncertain, and if there is no error among them, the label NLL alone would let the
    model be certain. So T is the most probable one with a log-normal prior,

    .. math:: \hat T = \arg\min_T -\sum_n \log p_T(y_n \mid x_n)
        + \frac{(\log T - \log 2.75)^2}{2 \cdot 0.3^2}.

    The prior says that likelihoods of many columns are too sure, by a factor of two or three, because columns
    say the same thing several times. Several hundred labelled rows weigh more than the prior. EM sees the
    rows as they are given, with one draw of their noise, and no evidence about labels.

    :param x: the rows of training ``(N, *event_shape)``, with and without a label, prepared as in training.
    :param y: their labels ``(N,)``, -1 where unknown.
    :param int folds: number of parts that labelled rows are divided into in their order, two or more.
    :param int iterations: iterations of EM for each part.
    :param int batch_size: rows scored at a time.
    :return: the temperature, and the figures before and after, of the labelled rows.
    :raises ValueError: for labels out of range, or no labelled row; for labels of a class of probability 0;
        for numbers out of range; for a model whose likelihoods are NaN or infinite; for data that the flow
        refuses; if EM trains the prior, and a table is a random site.
    :raises ImportError: without torchmetrics or SciPy.
    """
    owner = "temperature_from_training"
    check_at_least(2, folds=folds)
    check_at_least(1, iterations=iterations, batch_size=batch_size)
    check_rows(model, x, owner)
    y = check_row_labels(y, len(x), model.flow.num_classes, owner).cpu()
    known = y >= 0
    if not bool(known.any()):
        raise ValueError(f"{owner}: y has no known label, and nothing tells how sure the model may be")
    _check_possible(model, y[known], owner)
    prior = model.flow.prior
    if isinstance(prior, LearnsByEM) and prior.fitted_by_em:
        x = model.flow.check_data(x, "x", owner)
        sizes = {"folds": int(folds), "iterations": int(iterations), "batch_size": int(batch_size)}
        table = held_out_scores(model, x, y.to(reference_tensor(model).device), **sizes).cpu()
        log_class_probs = in_double(model.class_probs.log_probs.detach()).cpu()
        bad = int((~table.isfinite()).any(-1).sum())
        if bad:
            raise ValueError(f"{owner}: the model gives NaN or infinite likelihoods to {bad} rows of x")
        scores = LabelScores(table, log_class_probs, table.new_zeros(len(table)))
    else:
        scores = Scoring(batch_size=batch_size).of(model, x[known], owner)
    return _calibrated(scores, y[known], owner, _most_probable)


def _check_possible(model: SemiSupervisedModel, y: Tensor, owner: str) -> None:
    """Raise if p(y) rules out a label."""
    impossible = y[model.class_probs.log_probs.cpu()[y] == -math.inf].unique().tolist()
    if impossible:
        raise ValueError(
            f"{owner}: y holds labels of class {', '.join(map(str, impossible))}, whose probability p(y) is "
            "0 in this model; no temperature makes them possible, so leave their rows out"
        )


def _calibrated(
    scores: LabelScores, y: Tensor, owner: str, fit: Callable[[LabelScores, Tensor, str], float]
) -> Calibration:
    """The temperature that ``fit`` finds, and what it changes."""
    possible = scores.log_class_probs > -math.inf  # other labels have no say in the label NLL
    scores = replace(scores, log_likelihood=torch.where(possible, scores.log_likelihood, 0.0))
    table = scores.log_likelihood
    if bool((table.amax(-1) - table.amin(-1) < 1e-9).all()):
        warn(
            f"{owner}: all labels have the same likelihood in every row, so the temperature changes "
            "nothing and stays 1"
        )
        temperature = 1.0
    else:
        temperature = fit(scores, y, owner)
    before, after = (calibration(scores.at(t), y) for t in (1.0, temperature))
    return Calibration(temperature, before, after)


def _most_likely(scores: LabelScores, y: Tensor, owner: str) -> float:
    """Where the slope of the label NLL, which rises with 1/T, is zero. It warns if there is no such point."""
    table = scores.log_likelihood

    def slope(log_temperature: float) -> float:
        """The derivative of the mean label NLL by 1/T."""
        expected = (scores.at(math.exp(log_temperature)).exp() * table).sum(-1)
        return (expected - table.gather(1, y[:, None])[:, 0]).mean().item()

    ends = math.log(COLDEST), math.log(HOTTEST)
    if slope(ends[0]) <= 0:
        return _coldest(owner)
    if slope(ends[1]) >= 0:
        return _hottest(owner)
    root = require("scipy.optimize", "analysis").brentq(slope, *ends, xtol=1e-12, rtol=1e-12)
    return math.exp(root)


def _most_probable(scores: LabelScores, y: Tensor, owner: str) -> float:
    """The mode of T given the labels, with the prior. It warns if the mode lies at a bound."""

    def loss(log_temperature: float) -> float:
        log_probs = scores.at(math.exp(log_temperature)).gather(1, y[:, None])
        return (log_temperature - math.log(USUAL)) ** 2 / (2 * SPREAD**2) - log_probs.sum().item()

    # There may be several local minima: one near the prior, and one far from it where labels are clear.
    places = torch.linspace(math.log(COLDEST), math.log(HOTTEST), TRIED).tolist()
    best = min(range(TRIED), key=[loss(place) for place in places].__getitem__)
    if best == 0:
        return _coldest(owner)
    if best == TRIED - 1:
        return _hottest(owner)
    minimize = require("scipy.optimize", "analysis").minimize_scalar
    around = places[best - 1], places[best + 1]
    return math.exp(minimize(loss, bounds=around, method="bounded", options={"xatol": 1e-10}).x)


def _coldest(owner: str) -> float:
    warn(
        f"{owner}: the label NLL falls down to the lowest temperature, {COLDEST:g}, because the "
        "true label is the most likely one in all rows, or nearly. Such rows cannot tell how sure the "
        "model may be; give more rows, and none that the model was trained on"
    )
    return COLDEST


def _hottest(owner: str) -> float:
    warn(
        f"{owner}: the label NLL falls up to the highest temperature, {HOTTEST:g}, because the "
        "likelihoods of these rows tell their labels no better than p(y) does. Check that y belongs to x"
    )
    return HOTTEST
