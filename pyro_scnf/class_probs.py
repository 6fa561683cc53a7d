"""The class probabilities p(y)."""

from __future__ import annotations

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_scnf._checks import check_labels, validating
from pyro_scnf._numbers import check_at_least

__all__ = ["ClassProbs", "log_class_probs"]


class ClassProbs(nn.Module):
    """Class probabilities :math:`p(y)`: uniform, given, or learnable.

    :param int num_classes: number of labels K.
    :param probs: ``"uniform"``, ``"learnable"`` (starting uniform), or a tensor ``(K,)`` of
        non-negative class weights, which is normalised.
    :raises ValueError: for another word, for weights of the wrong shape or sign, or for fewer than one
        class.

    >>> ClassProbs(2, torch.tensor([1.0, 3.0]))().probs
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
    def from_labels(cls, y: Tensor, num_classes: int) -> ClassProbs:
        """The label frequencies of ``y``. Entries of -1 (unlabelled) are not counted."""
        y = check_labels(y, num_classes, "y", "ClassProbs.from_labels", unlabelled=True)
        return cls(num_classes, torch.bincount(y[y >= 0], minlength=num_classes).float())

    @property
    def learnable(self) -> bool:
        """Whether the probabilities are parameters."""
        return isinstance(self.logits, nn.Parameter)

    @property
    def log_probs(self) -> Tensor:
        r""":math:`\log p(y)`, normalised, ``(K,)``, in nats."""
        return self.logits.log_softmax(-1)

    def forward(self) -> dist.Categorical:
        """The ``Categorical`` distribution of one label."""
        return dist.Categorical(logits=self.logits)


def log_class_probs(class_probs: ClassProbs | Tensor | None, num_classes: int) -> Tensor | float:
    r""":math:`\log p(y)`, normalised, from any form that the argument ``class_probs`` may have.

    :param class_probs: a :class:`ClassProbs`, non-negative class weights ``(*batch, K)``, or ``None`` for
        the uniform distribution.
    :return: ``(K,)`` or ``(*batch, K)`` in nats. For the uniform distribution, the one number
        :math:`-\log K`.
    :raises ValueError: for the wrong number of classes, or for negative or non-finite weights.
    """
    if class_probs is None:
        return -math.log(num_classes)
    if isinstance(class_probs, ClassProbs):
        return class_probs.log_probs
    if class_probs.shape[-1:] != (num_classes,):
        raise ValueError(
            f"class_probs has shape {tuple(class_probs.shape)}, expected (*batch, {num_classes})"
        )
    if validating(class_probs):
        valid = (class_probs >= 0).all() & class_probs.isfinite().all() & (class_probs.sum(-1) > 0).all()
        if not valid:
            raise ValueError(
                "class_probs holds negative or infinite weights, or only zeros; expected class probabilities "
                "(for unnormalised logarithms, give logits.softmax(-1))"
            )
    return class_probs.log().log_softmax(-1)
