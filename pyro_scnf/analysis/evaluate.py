"""Errors, likelihoods and calibration on labelled data."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pyro_scnf._checks import check_row_labels
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_at_least, check_word
from pyro_scnf._shapes import check_event, in_double, reference_tensor
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
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Test error, likelihood and calibration on labelled data (extra ``analysis``).

    :param x: data ``(N, *event_shape)``; with ``bins``, integers ``0 .. bins - 1``.
    :param y: their labels ``(N,)``, all known.
    :param bins: number of grey levels of integer data. They are dequantised ``draws`` times.
    :param int draws: number of dequantisations. NLL and bits per dimension are averaged over them.
    :param average: how to classify with several draws. ``"density"`` averages :math:`p(x, y)`, and so
        estimates the likelihood of the discrete datum. ``"posterior"`` averages :math:`p(y \\mid x)`. With
        few draws of many pixels, the most likely draw alone decides the mean density.
    :param int batch_size: rows scored at a time.
    :param generator: source of the noise of dequantisation, on the device of ``model``; PyTorch's global one
        by default.
    :return: ``test_error_pct`` (per cent), ``test_nll`` (nats per example), ``test_ece`` (expected
        calibration error) and, with ``bins``, ``test_bits_per_dim``.
    :raises ValueError: for an unknown ``average``; for unknown labels or labels out of range; for no rows;
        for numbers below 1; for several draws, or a ``generator``, without ``bins``; for data that the flow
        or :func:`~pyro_scnf.transforms.dequantize` refuses.
    :raises ImportError: without torchmetrics.
    """
    metrics = require("torchmetrics.functional.classification", "analysis")
    check_word("average", average, ("density", "posterior"))
    check_at_least(1, draws=draws, batch_size=batch_size)
    if bins is None and draws > 1:
        raise ValueError(f"draws={draws}: without bins nothing is drawn; give bins, or draws=1")
    if bins is None and generator is not None:
        raise ValueError("generator: without bins nothing is drawn; give bins, or no generator")
    if bins is not None:
        check_at_least(1, bins=bins)
    flow, classes = model.flow, model.flow.num_classes
    if len(check_event(x, flow.event_shape, "x", "evaluate")) != 1:
        raise ValueError(
            f"evaluate: x has shape {tuple(x.shape)}, expected (N, {', '.join(map(str, flow.event_shape))})"
        )
    y = check_row_labels(y, len(x), classes, "evaluate").cpu()
    if not len(y) or bool((y < 0).any()):
        raise ValueError("y: expected at least one row, and the label of every row")
    device, log_class_probs = reference_tensor(model).device, in_double(model.class_probs.log_probs)
    scored: list[
        tuple[Tensor, Tensor]
    ] = []  # of each batch, log-probabilities (rows, K) and log p(x) (rows,)
    for rows in x.split(batch_size):
        rows = rows.to(device)
        inputs = [rows] if bins is None else [dequantize(rows, bins, generator) for _ in range(draws)]
        scores = [flow.scores(flow.check_data(r, "x", "evaluate"))[0] for r in inputs]
        tables = torch.stack([in_double(table) for table, _ in scores]) + log_class_probs  # (draws, rows, K)
        commons = torch.stack([in_double(common) for _, common in scores])
        if average == "density":  # what all labels share weighs the draws, and cancels between labels
            log_probs = (tables + (commons - commons.amax(0))[..., None]).logsumexp(0).log_softmax(-1)
        else:
            log_probs = tables.log_softmax(-1).logsumexp(0) - math.log(draws)
        scored.append((log_probs.cpu(), (commons + tables.logsumexp(-1)).mean(0).cpu()))
    log_posterior, log_density = map(torch.cat, zip(*scored, strict=True))
    calibration_error = torch.zeros(())  # one class is certain, and torchmetrics refuses fewer than two
    if classes > 1:
        # Rounding may carry a probability past 1. torchmetrics would then take all of them for logits.
        probs = log_posterior.exp().clamp(max=1)
        calibration_error = metrics.multiclass_calibration_error(probs, y, num_classes=classes)
    log_prob, wrong = log_density.mean(), in_double(log_posterior.argmax(-1) != y).mean()
    found = {
        "test_error_pct": round(100 * wrong.item(), 4),
        "test_nll": -log_prob.item(),
        "test_ece": calibration_error.item(),
    }
    if bins is not None:
        found["test_bits_per_dim"] = bits_per_dim(log_prob, flow.event_shape, bins).item()
    return found
