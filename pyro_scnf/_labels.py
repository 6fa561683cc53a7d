"""Known labels and evidence about labels, as log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import LOG_ZERO, UNLABELLED, validating

__all__ = ["check_label_log_prior", "log_certainty", "stratified_folds"]

TOLERANCE = 1e-3, 0.05
"""How far the logarithm of the sum of a row's probabilities may be from 0, in full and in half precision."""


def log_certainty(y: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Log-probabilities ``(B, K)`` of known labels ``(B,)``, in the dtype of ``like``."""
    return torch.where(F.one_hot(y, num_classes).bool(), 0.0, LOG_ZERO).to(like.dtype)


def check_label_log_prior(
    label_log_prior: Tensor, batch: Sequence[int], num_classes: int, like: Tensor, owner: str
) -> Tensor:
    """Raise unless there is a normalised log-probability for each row of ``batch`` and each label.

    :return: the same in the dtype and on the device of ``like``, minus infinity replaced by a large number.
    """
    given = f"{owner}: label_log_prior"
    if not isinstance(label_log_prior, Tensor):
        kind = type(label_log_prior).__name__
        raise ValueError(
            f"{given} is of {kind}, expected a floating tensor of log-probabilities; give "
            "torch.as_tensor(label_log_prior)"
        )
    if not label_log_prior.is_floating_point():
        raise ValueError(
            f"{given} is of {label_log_prior.dtype}, expected a floating tensor of log-probabilities"
        )
    shape = (*batch, num_classes)
    if label_log_prior.shape != shape:
        raise ValueError(
            f"{given} has shape {tuple(label_log_prior.shape)}, expected {shape}, a log-probability for each "
            "row and label"
        )
    if validating(label_log_prior) and label_log_prior.numel():
        totals = label_log_prior.logsumexp(-1).flatten()
        worst = int((totals.abs().nan_to_num(nan=torch.inf)).argmax())
        half = torch.finfo(label_log_prior.dtype).bits < 32
        if not totals[worst].abs() <= TOLERANCE[half]:
            raise ValueError(
                f"{given} is not normalised: the probabilities of row {worst} add up to "
                f"{float(totals[worst].exp()):.4g}, expected 1; give logits.log_softmax(-1), and log p(y) in "
                "a row of which nothing is known"
            )
    return label_log_prior.to(like).clamp(min=max(LOG_ZERO, torch.finfo(like.dtype).min))


def stratified_folds(y: Tensor, folds: int) -> Tensor:
    """The fold of each labelled row ``(N,)``, -1 for others. Classes are spread evenly."""
    part, dealt = torch.full_like(y, UNLABELLED), 0
    for k in y[y != UNLABELLED].unique():
        rows = (y == k).nonzero()[:, 0]
        part[rows] = (dealt + torch.arange(len(rows), device=y.device)) % folds
        dealt += len(rows)
    return part
