r"""Simultaneous bands of the ECDF of uniform ranks.

Under uniform ranks :math:`0, \dots, S`, the counts of ranks below 1, 2, ..., S are binomial, and each depends
on the one before alone. The probability that all of them stay within bounds is therefore a product of S
matrices, without simulation (Säilynoja, Bürkner and Vehtari, 2022, https://arxiv.org/abs/2103.10522).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_scnf._numbers import check_at_least, check_number

__all__ = ["RankBand"]

HALVINGS, DIGITS = 30, 12  # probabilities are right to so many digits


class RankBand:
    """What the ECDF of N independent uniform ranks among S draws does.

    :param int num_ranks: N.
    :param int num_draws: S. A rank is one of 0 to S.
    """

    def __init__(self, num_ranks: int, num_draws: int) -> None:
        check_at_least(1, num_ranks=num_ranks, num_draws=num_draws)
        self.num_ranks, self.num_draws = num_ranks, num_draws
        count = torch.arange(num_ranks + 1, dtype=torch.float64)
        self._more, self._rest = (count - count[:, None]).clamp(min=0), num_ranks - count
        ways = (
            (num_ranks - count[:, None] + 1).lgamma() - (self._more + 1).lgamma() - (self._rest + 1).lgamma()
        )
        self._ways = ways.where(count >= count[:, None], -torch.inf)
        probs = torch.stack([self._added(i / (num_draws + 1), 0) for i in range(1, num_draws + 1)])
        below, above = probs.cumsum(-1), probs.flip(-1).cumsum(-1).flip(-1)
        self.tails = (2 * torch.minimum(below, above)).clamp(max=1)
        """Twice the smaller tail of each count at each point, ``(S, N + 1)``."""

    def counts(self, ranks: Tensor) -> Tensor:
        """How many of the ranks ``(N, C)`` lie below 1, 2, ..., S: ``(C, S)``."""
        points = torch.arange(1, self.num_draws + 1)
        return (ranks.T[:, :, None] < points).sum(1)

    def p_value(self, ranks: Tensor) -> Tensor:
        """The probability that uniform ranks come as near to a bound, or nearer, ``(C,)`` of ``(N, C)``."""
        counts = self.counts(ranks)
        nearest = self.tails[torch.arange(self.num_draws), counts].min(-1).values
        return torch.stack([1 - self._inside(tail) for tail in nearest]).clamp(0, 1).round(decimals=DIGITS)

    def bounds(self, level: float) -> tuple[Tensor, Tensor]:
        """Bounds ``(S,)`` of the counts, which hold at all points with probability ``level`` or more.

        Ranks lie within them exactly if their :meth:`p_value` exceeds ``1 - level``.
        """
        check_number("level", level, above=0, below=1)
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self._inside(torch.tensor(middle, dtype=torch.float64)) >= level - 10**-DIGITS:
                low = middle
            else:
                high = middle
        inside = self._allowed(torch.tensor(low, dtype=torch.float64))
        counts = torch.arange(self.num_ranks + 1).expand_as(inside)
        least = counts.where(inside, self.num_ranks).amin(-1)
        return least, counts.where(inside, 0).amax(-1)

    def _inside(self, tail: Tensor) -> Tensor:
        """The probability that the tails of all counts exceed ``tail``."""
        state = torch.zeros(self.num_ranks + 1, dtype=torch.float64)
        state[0] = 1
        for point, inside in enumerate(self._allowed(tail), 1):
            # Of the ranks that are at least i - 1, a share of 1 / (S + 2 - i) equals i - 1.
            state = (state @ self._added(1 / (self.num_draws + 2 - point))) * inside
        return state.sum()

    def _added(self, share: float, before: int | slice = slice(None)) -> Tensor:
        """Binomial probabilities of counts, if each rank that is not counted yet is so with this probability.

        :param before: the count so far; all of them by default, ``(N + 1, N + 1)``.
        """
        log_prob = self._more[before] * math.log(share) + self._rest * math.log1p(-share)
        return (self._ways[before] + log_prob).exp()

    def _allowed(self, tail: Tensor) -> Tensor:
        return self.tails > tail * (1 + 1e-9)  # equal tails, computed from either end, are equal
