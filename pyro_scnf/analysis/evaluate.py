"""Errors, likelihoods and calibration on labelled data."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._labels import check_label_log_prior
from pyro_scnf._numbers import check_scale
from pyro_scnf.analysis.calibration import calibration
from pyro_scnf.analysis.label_probs import Average, Prepare, Scoring, check_known_labels, check_rows
from pyro_scnf.metrics import bits_per_dim
from pyro_scnf.models import SemiSupervisedModel

__all__ = ["evaluate"]


def evaluate(
    model: SemiSupervisedModel,
    x: Tensor,
    y: Tensor,
    *,
    label_log_prior: Tensor | None = None,
    temperature: float = 1.0,
    prepare: Prepare | None = None,
    bins: int | None = None,
    draws: int = 1,
    average: Average = "density",
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Test error, likelihood and calibration on labelled data (extra ``analysis``).

    :param x: data ``(N, *event_shape)``; with ``bins``, integers ``0 .. bins - 1``.
    :param y: their labels ``(N,)``, all known.
    :param label_log_prior: evidence about the labels, normalised log-probabilities ``(N, K)``, such as
        :meth:`LabelEvidence.of <pyro_scnf.datasets.LabelEvidence.of>` gives. The figures of the model alone
        stay as they are. Others are added, see below.
    :param float temperature: of the label probabilities, see :func:`label_log_probs`, and
        :func:`fit_temperature` which finds it. NLL and bits per dimension do not depend on it.
    :param prepare: a function of rows that adds the noise of dequantisation, ``preset.augment.prepare`` for
        example. It is called ``draws`` times.
    :param bins: number of grey levels of integer data. They are dequantised ``draws`` times.
    :param int draws: number of dequantisations. NLL and bits per dimension are averaged over them.
    :param average: how to classify with several draws. ``"density"`` averages :math:`p(x, y)`, and so
        estimates the likelihood of the discrete datum. ``"posterior"`` averages :math:`p(y \\mid x)`. With
        few draws of many pixels, the most likely draw alone decides the mean density.
    :param int batch_size: rows scored at a time.
    :param generator: source of the noise of dequantisation, on the device of ``model``; PyTorch's global one
        by default.
    :return: ``test_error_pct`` (per cent), ``test_nll`` (nats per example), ``test_label_nll`` (of the label
        given the data, nats per example), ``test_ece`` (expected calibration error), ``test_brier`` (Brier
        score, from 0 to 2) and, with ``bins``, ``test_bits_per_dim``. With ``label_log_prior``, also error,
        label NLL, calibration error and Brier score of the evidence alone, as ``evidence_error_pct`` and so
        on, and of the model with the evidence in place of :math:`p(y)`, as ``test_with_evidence_error_pct``
        and so on.
    :raises ValueError: for evidence of a wrong shape or type, or that is not normalised; for an unknown
        ``average``; for unknown labels or labels out of range; for no rows; for numbers below 1; for a
        ``temperature`` that is not positive; for several draws without ``bins`` and ``prepare``, or a
        ``generator`` without ``bins``; for data that the flow or :func:`~pyro_scnf.transforms.dequantize`
        refuses; for a model whose likelihoods are NaN or infinite.
    :raises ImportError: without torchmetrics.
    """
    require("torchmetrics.functional.classification", "analysis")  # before the rows are scored
    temperature = check_scale("temperature", temperature)
    scoring = Scoring(prepare, bins, draws, average, batch_size, generator)
    check_rows(model, x, "evaluate")
    y = check_known_labels(y, len(x), model.flow.num_classes, "evaluate")
    if label_log_prior is not None:
        like = torch.zeros((), dtype=torch.float64)
        shape = (len(x),), model.flow.num_classes
        label_log_prior = check_label_log_prior(label_log_prior, *shape, like, "evaluate")
    scores = scoring.of(model, x, "evaluate")
    log_prob = scores.log_density.mean()
    found = {"test_nll": -log_prob.item(), **_figures("test", scores.at(temperature), y)}
    if bins is not None:
        found["test_bits_per_dim"] = bits_per_dim(log_prob, model.flow.event_shape, bins).item()
    if label_log_prior is not None:
        found |= _figures("evidence", label_log_prior.log_softmax(-1), y)
        both = replace(scores, log_class_probs=label_log_prior)
        found |= _figures("test_with_evidence", both.at(temperature), y)
    return found


def _figures(prefix: str, log_probs: Tensor, y: Tensor) -> dict[str, float]:
    """How good label probabilities are, with ``prefix`` before the names of the figures."""
    figures = calibration(log_probs, y)
    return {
        f"{prefix}_error_pct": round(100 - figures["accuracy_pct"], 4),
        f"{prefix}_label_nll": figures["label_nll"],
        f"{prefix}_ece": figures["ece"],
        f"{prefix}_brier": figures["brier"],
    }
