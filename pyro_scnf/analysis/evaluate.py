"""Errors, likelihoods and calibration on labelled data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyro_scnf._checks import check_row_labels
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import reference_tensor
from pyro_scnf.metrics import bits_per_dim
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.transforms import dequantize

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    model: SemiSupervisedModel,
    x: Tensor,
    y: Tensor,
    *,
    bins: int | None = None,
    draws: int = 1,
    average: Literal["density", "posterior"] = "density",
    batch_size: int = 1000,
) -> dict[str, float]:
    """Test error, likelihood and calibration on labelled data (extra ``analysis``).

    :param x: data ``(N, *event_shape)``; with ``bins``, integers ``0 .. bins - 1``.
    :param y: their labels ``(N,)``, all known.
    :param bins: number of grey levels of integer data. They are dequantised ``draws`` times, with noise from
        the global generator.
    :param int draws: number of dequantisations. NLL and bits per dimension are averaged over them.
    :param average: how to classify with several draws. ``"density"`` averages :math:`p(x, y)`, and so
        estimates the likelihood of the discrete datum. ``"posterior"`` averages :math:`p(y \\mid x)`. With
        few draws of many pixels, the most likely draw alone decides the mean density.
    :param int batch_size: rows scored at a time.
    :return: ``test_error_pct`` (per cent), ``test_nll`` (nats per example), ``test_ece`` (expected
        calibration error) and, with ``bins``, ``test_bits_per_dim``.
    :raises ValueError: for an unknown ``average``; for unknown labels or labels out of range; for no rows;
        for numbers below 1; for several draws without ``bins``.
    :raises ImportError: without torchmetrics.
    """
    metrics = require("torchmetrics.functional.classification", "analysis")
    if average not in ("density", "posterior"):
        raise ValueError(f"average={average!r}: expected 'density' or 'posterior'")
    check_at_least(1, draws=draws, batch_size=batch_size)
    if bins is None and draws > 1:
        raise ValueError(f"draws={draws}: without bins nothing is drawn; give bins, or draws=1")
    classes = model.flow.num_classes
    y = check_row_labels(y, len(x), classes, "evaluate").cpu()
    if not len(y) or bool((y < 0).any()):
        raise ValueError("y: expected at least one row, and the label of every row")
    device, log_class_probs = reference_tensor(model).device, model.class_probs.log_probs
    pieces = []
    for rows in x.split(batch_size):
        rows = rows.to(device)
        inputs = [rows] if bins is None else [dequantize(rows, bins) for _ in range(draws)]
        pieces.append(torch.stack([model.flow.class_log_prob(r) for r in inputs]) + log_class_probs)
    joint = torch.cat(pieces, 1).cpu()  # (draws, N, K)
    probs = joint.logsumexp(0).softmax(-1) if average == "density" else joint.softmax(-1).mean(0)
    accuracy, calibration_error = torch.ones(()), torch.zeros(())  # one class is always right, and certain
    if classes > 1:  # torchmetrics refuses fewer
        accuracy = metrics.multiclass_accuracy(probs, y, num_classes=classes, average="micro")
        calibration_error = metrics.multiclass_calibration_error(probs, y, num_classes=classes)
    log_prob = joint.logsumexp(-1).mean()
    found = {
        "test_error_pct": round(100 * (1 - accuracy.item()), 4),
        "test_nll": -log_prob.item(),
        "test_ece": calibration_error.item(),
    }
    if bins is not None:
        found["test_bits_per_dim"] = bits_per_dim(log_prob, model.flow.event_shape, bins).item()
    return found
