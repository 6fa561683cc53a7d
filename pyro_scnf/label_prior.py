"""The class probabilities p(y)."""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_scnf._checks import check_at_least, check_labels

__all__ = ["LabelPrior"]

LOG_ZERO = -1e30
"""log 0 for enumeration: finite, so that a zero probability times it is zero and not NaN."""


def log_certainty(y: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Log-probabilities ``(B, K)`` of labels ``(B,)`` that are known, in the dtype of ``like``."""
    return torch.where(F.one_hot(y, num_classes).bool(), 0.0, LOG_ZERO).to(like.dtype)


class LabelPrior(nn.Module):
    """Class probabilities :math:`p(y)`: uniform, given, or learnable.

    :param int num_classes: number of labels K.
    :param probs: ``"uniform"``, ``"learnable"`` (starting uniform), or a tensor ``(K,)`` of
        non-negative class weights, which is normalised.
    :raises ValueError: for another word, or weights of the wrong shape or sign.

    >>> LabelPrior(2, torch.tensor([1.0, 3.0]))().probs
    tensor([0.2500, 0.7500])
    """

    logits: Tensor

    def __init__(self, num_classes: int, probs: Literal["uniform", "learnable"] | Tensor = "uniform") -> None:
        super().__init__()
        check_at_least(1, num_classes=num_classes)
        self.num_classes = num_classes
        if isinstance(probs, Tensor):
            if probs.shape != (num_classes,) or not (probs >= 0).all() or not probs.sum() > 0:
                raise ValueError(
                    f"probs: expected {num_classes} non-negative weights with a positive sum, got {probs}"
                )
            self.register_buffer("logits", (probs / probs.sum()).log())
        elif probs == "learnable":
            self.logits = nn.Parameter(torch.zeros(num_classes))
        elif probs == "uniform":
            self.register_buffer("logits", torch.zeros(num_classes))
        else:
            raise ValueError(f"probs={probs!r}: expected 'uniform', 'learnable' or a tensor of class weights")

    @classmethod
    def from_labels(cls, y: Tensor, num_classes: int) -> LabelPrior:
        """The label frequencies of ``y``, entries of -1 (unlabelled) left out."""
        y = check_labels(y, num_classes, "y", "LabelPrior.from_labels", unlabelled=True)
        return cls(num_classes, torch.bincount(y[y >= 0], minlength=num_classes).float())

    def forward(self) -> Any:
        """The ``Categorical`` distribution of one label."""
        return dist.Categorical(logits=self.logits)
