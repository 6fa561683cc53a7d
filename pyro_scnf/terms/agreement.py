r"""Agreement of pairs that probably share a label, such as neighbours or two views of one datum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_scnf._checks import validating
from pyro_scnf._labels import log_certainty
from pyro_scnf._numbers import check_number
from pyro_scnf.terms.base import Part, Step, TrainingTerm

__all__ = ["Agreement", "check_pairs", "log_agreement"]


def log_agreement(log_posterior: Tensor, pairs: Tensor, purity: float) -> Tensor:
    r"""The change of a pair's log-likelihood, in nats, if its rows are known to share their label with
    probability ``purity``. A constant :math:`\log K` is left out:

    .. math:: \log \sum_{k, l} p(k \mid x)\, A_{kl}\, p(l \mid x'), \qquad
        A_{kk} = \rho, \quad A_{kl} = \frac{1 - \rho}{K - 1} \quad (k \ne l).

    This is exact if classes are equally probable and :math:`A_{kl}` is the probability of label l given the
    label k of the partner: :math:`\log p(x) + \log p(x')` plus this term is then the log-likelihood of the
    pair less :math:`\log K`.

    :param log_posterior: :math:`\log p(k \mid x_n)`, ``(B, K)``; a known label is one-hot.
    :param pairs: row numbers of the two partners, ``(P, 2)``.
    :param float purity: :math:`\rho` above, in (0, 1).
    :return: ``(P,)``, at most 0.
    :raises ValueError: for a ``purity`` out of range.

    >>> certain = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).log()
    >>> log_agreement(certain, torch.tensor([[0, 1], [0, 2]]), purity=0.9).exp()
    tensor([0.9000, 0.1000])
    """
    purity = check_number("purity", purity, above=0, below=1)
    first, second = log_posterior[pairs[:, 0]], log_posterior[pairs[:, 1]]
    other = (1 - purity) / max(1, log_posterior.shape[-1] - 1)
    same = (first + second).logsumexp(-1).exp()
    # A is a multiple of the identity plus a constant, so one sum over labels takes the place of two.
    return (other + (purity - other) * same).log()


@dataclass(frozen=True)
class Agreement(TrainingTerm):
    r"""Minus :func:`log_agreement`, summed over pairs of rows that probably share their label.

    At weight 1, with equally probable classes and without plate sizes, the loss is the exact negative
    log-likelihood of pairs with joined labels, plus :math:`\log K` for each pair.

    :param float purity: probability that the two rows of a pair share their label, in (0, 1).
    :raises ValueError: for a number out of range.
    """

    purity: float = 0.98

    needs: ClassVar[frozenset[Part]] = frozenset({"pairs", "unlabelled", "y"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_number("purity", above=0, below=1)

    def nats(self, step: Step) -> Tensor:
        assert step.unlabelled is not None
        assert step.y is not None
        assert step.pairs is not None
        rows = step.unlabelled.log_posterior
        check_pairs(step.pairs, len(step.y) + len(rows), "Agreement")
        known = log_certainty(step.y, rows.shape[-1], rows)
        agreement = log_agreement(torch.cat([known, rows]), step.pairs, self.purity)
        return -step.unlabelled.scale * agreement.sum()


def check_pairs(pairs: Tensor, rows: int, owner: str) -> None:
    """Raise unless ``pairs`` holds two row numbers for each pair, ``(P, 2)``."""
    if not isinstance(pairs, Tensor):
        raise ValueError(
            f"{owner}: pairs is a {type(pairs).__name__}, expected a tensor of row numbers (P, 2)"
        )
    if pairs.dtype not in (torch.int32, torch.int64) or pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(
            f"{owner}: pairs has shape {tuple(pairs.shape)} and dtype {pairs.dtype}, expected (P, 2) "
            "row numbers"
        )
    if validating(pairs) and pairs.numel() and (pairs.min() < 0 or pairs.max() >= rows):
        raise ValueError(
            f"{owner}: pairs holds {int(pairs.min())}..{int(pairs.max())}, expected rows 0..{rows - 1}"
        )
