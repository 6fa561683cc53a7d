"""Ranks of simulated truths among posterior draws, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scnf._numbers import check_number
from pyro_scnf.posterior.ecdf_band import RankBand

__all__ = ["SBCResult"]

LEVELS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class SBCResult:
    r"""The simulations of :func:`sbc`: N of them, with C ranked components and S draws each.

    ``torch.save(vars(result), path)`` writes it. ``SBCResult(**torch.load(path))`` reads it.

    :ivar int seed: the seed of all simulations.
    :ivar int num_draws: S.
    :ivar tuple names: the C components, such as ``share[0]``, then the quantities of the user, then the
        numbers of the labels.
    :ivar Tensor numbers: the numbers of the simulations ``(N,)``.
    :ivar Tensor ranks: how many of the draws are below the truth, 0 to S, ``(N, C)``.
    :ivar Tensor truths: the simulated values ``(N, C)``.
    :ivar ess: with ``thin``, the smallest effective sample size of a component before thinning, ``(N,)``.
    :ivar label_log_probs: :math:`\log p(y_n = k \mid x)` in nats, averaged over the draws, ``(N, rows, K)``.
    :ivar labels: the simulated labels ``(N, rows)``.
    """

    seed: int
    num_draws: int
    names: tuple[str, ...]
    numbers: Tensor
    ranks: Tensor
    truths: Tensor
    ess: Tensor | None = None
    label_log_probs: Tensor | None = None
    labels: Tensor | None = None

    def coverage(self, levels: Sequence[float] | float = LEVELS) -> Tensor:
        """The share of central intervals that hold the truth, ``(levels, C)``.

        A rank r stands for the part of the unit interval from r / (S + 1) to (r + 1) / (S + 1). Where only a
        fraction of it lies in the interval, that fraction is counted. The expected share is then the level.

        :raises ValueError: for a level that is not between 0 and 1.
        """
        rows = []
        for level in levels if isinstance(levels, Sequence) else [levels]:
            level = check_number("levels", level, above=0, below=1)
            start, size = self.ranks.double() / (self.num_draws + 1), 1 / (self.num_draws + 1)
            overlap = (start + size).clamp(max=(1 + level) / 2) - start.clamp(min=(1 - level) / 2)
            rows.append((overlap.clamp(min=0) / size).mean(0))
        return torch.stack(rows)

    def p_values(self) -> Tensor:
        """How often uniform ranks would stray as far as these do, or farther, for each component ``(C,)``.

        With C components, compare the smallest with 0.05 / C. It is exact for independent draws.
        """
        return self._band.p_value(self.ranks)

    def inside(self, level: float = 0.95) -> Tensor:
        """Whether the ECDF of each component stays in its simultaneous band, ``(C,)``."""
        level = check_number("level", level, above=0, below=1)
        return self.p_values() > 1 - level

    def ecdf_difference(self) -> Tensor:
        """ECDF of the ranks less that of uniform ones, below 1, 2, ..., S: ``(C, S)``."""
        counts = self._band.counts(self.ranks)
        return counts / len(self.ranks) - self._uniform()

    def band(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds ``(S,)`` of :meth:`ecdf_difference`, which hold together with ``level``."""
        low, high = self._band.bounds(level)
        return low / len(self.ranks) - self._uniform(), high / len(self.ranks) - self._uniform()

    def merge(self, other: SBCResult) -> SBCResult:
        """The simulations of both, in the order of their numbers.

        :raises ValueError: if they have a simulation in common, or differ in seed, draws or components.
        """
        if not isinstance(other, SBCResult):
            raise ValueError(f"other is a {type(other).__name__}, expected an SBCResult")
        for name in ("seed", "num_draws", "names"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"merge: {name} is {mine} here and {theirs} in other; expected the same")
        common = sorted(set(self.numbers.tolist()) & set(other.numbers.tolist()))
        if common:
            raise ValueError(f"merge: both hold the simulations {common}; use start= for new ones")
        order = torch.cat([self.numbers, other.numbers]).argsort()

        def joined(name: str) -> Tensor | None:
            first, second = getattr(self, name), getattr(other, name)
            if (first is None) != (second is None):
                raise ValueError(f"merge: only one of the two has {name}; run both with the same options")
            return None if first is None else torch.cat([first, second])[order]

        return SBCResult(
            self.seed,
            self.num_draws,
            self.names,
            torch.cat([self.numbers, other.numbers])[order],
            torch.cat([self.ranks, other.ranks])[order],
            torch.cat([self.truths, other.truths])[order],
            joined("ess"),
            joined("label_log_probs"),
            joined("labels"),
        )

    @property
    def _band(self) -> RankBand:
        return RankBand(len(self.ranks), self.num_draws)

    def _uniform(self) -> Tensor:
        return torch.arange(1, self.num_draws + 1, dtype=torch.float64) / (self.num_draws + 1)
