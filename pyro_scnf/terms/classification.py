r"""Classification: :math:`-\log p(y \mid x)` of known labels, or of soft targets from evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_word
from pyro_scnf.terms.base import Step, TrainingTerm

__all__ = ["Classification", "cross_entropy"]


def cross_entropy(log_posterior: Tensor, targets: Tensor) -> Tensor:
    r""":math:`-\sum_k t_{nk} \log p(y_n = k \mid x_n)` of every row, in nats.

    :param log_posterior: :math:`\log p(k \mid x_n)`, ``(B, K)``.
    :param targets: labels ``(B,)``, or class probabilities t, ``(B, K)``. A row with the label -1 gives 0.
    :return: ``(B,)``.

    >>> log_posterior = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    >>> (-cross_entropy(log_posterior, torch.tensor([1, -1]))).exp()
    tensor([0.7500, 1.0000])
    """
    if targets.is_floating_point():
        # A target of 0 adds 0, even where the logarithm is minus infinity.
        return -(targets * torch.where(targets > 0, log_posterior, 0.0)).sum(-1)
    picked = log_posterior.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    return -torch.where(targets == UNLABELLED, 0.0, picked)


@dataclass(frozen=True)
class Classification(TrainingTerm):
    r"""The classification loss of the SCNF paper, :math:`-\sum_n \log p(y_n \mid x_n)` of the labelled rows.

    :param targets: ``"labels"``, or ``"evidence"`` to take the evidence about the unlabelled rows as soft
        targets, :math:`-\sum_n \sum_k q_n(k) \log p(y_n = k \mid x_n)`. The posterior is then that of the
        flow and :math:`p(y)` alone, so the evidence teaches it.
    :raises ValueError: for another word.

    Reference: Atanov et al., *Semi-Conditional Normalizing Flows*, 2019, section 3.2.
    """

    targets: Literal["labels", "evidence"] = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("Classification: targets", self.targets, ("labels", "evidence"))
        needs = ("labelled", "y") if self.targets == "labels" else ("unlabelled", "evidence")
        object.__setattr__(self, "needs", frozenset(needs))

    def nats(self, step: Step) -> Tensor:
        if self.targets == "labels":
            assert step.labelled is not None
            assert step.y is not None
            return step.labelled.scale * cross_entropy(step.labelled.log_posterior, step.y).sum()
        assert step.unlabelled is not None
        assert step.evidence is not None
        rows = step.unlabelled
        return rows.scale * cross_entropy(rows.log_posterior_without_evidence, step.evidence.exp()).sum()
