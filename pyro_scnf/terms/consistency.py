"""Consistency: two views of a row should have the same label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pyro_scnf._numbers import check_word
from pyro_scnf.terms.base import Part, Step, TrainingTerm

__all__ = ["Consistency", "label_disagreement"]


def label_disagreement(log_posterior: Tensor, other: Tensor) -> Tensor:
    r""":math:`\sum_k (p(k \mid x') - p(k \mid x''))^2` of every row.

    :param log_posterior: :math:`\log p(k \mid x'_n)`, ``(B, K)``.
    :param other: the same of the other view.
    :return: ``(B,)``, at most 2.
    """
    return (log_posterior.exp() - other.exp()).square().sum(-1)


@dataclass(frozen=True)
class Consistency(TrainingTerm):
    r"""The consistency loss of FlowGMM, over the unlabelled rows and a second view of each.

    :param kind: ``"likelihood"`` is :math:`-\sum_n \log p(x''_n \mid y'_n)`, where :math:`y'_n` is the most
        probable label of the first view, without gradient (equation 7). ``"probabilities"`` is the
        :func:`label_disagreement` of the two views (equation 6).
    :raises ValueError: for another word.

    Let its weight rise from 0 (``start=0``), because the labels are arbitrary before the classes are found.

    Reference: Izmailov et al., *Semi-Supervised Learning with Normalizing Flows*, 2020, section 4.1.
    """

    kind: Literal["likelihood", "probabilities"] = "likelihood"

    needs: ClassVar[frozenset[Part]] = frozenset({"unlabelled", "view"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("Consistency: kind", self.kind, ("likelihood", "probabilities"))
        object.__setattr__(self, "detached", frozenset({"unlabelled"} if self.kind == "likelihood" else ()))

    def nats(self, step: Step) -> Tensor:
        assert step.unlabelled is not None
        assert step.view is not None
        first, second = step.unlabelled, step.view
        if self.kind == "probabilities":
            return second.scale * label_disagreement(first.log_posterior, second.log_posterior).sum()
        label = first.log_posterior.argmax(-1, keepdim=True)
        return -second.scale * (second.common + second.given.gather(-1, label)[:, 0]).sum()
