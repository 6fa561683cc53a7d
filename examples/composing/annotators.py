"""A simulated crowd: points with votes of annotators whose quality is known to us, and not to the model.

Of five annotators, two make mistakes of any kind, each at a rate of its own. Three take class 1 for class 2.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from composed import K, petals
from torch import Tensor
from torch.nn.functional import one_hot

import pyro_scnf as scnf

VOTED, VOTES = 240, 2  # rows that have votes, and how many
SHARES = torch.tensor([0.40, 0.35, 0.25])
MIXED_UP = torch.tensor([[0.85, 0.10, 0.05], [0.10, 0.20, 0.70], [0.05, 0.10, 0.85]])
CARELESS = [torch.full((K, K), wrong).fill_diagonal_(1 - 2 * wrong) for wrong in (0.05, 0.12)]
CONFUSION = torch.stack([*CARELESS, MIXED_UP, MIXED_UP, MIXED_UP])
"""Entry a, k, v: how often annotator a says v of class k."""


def simulate(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels ``(N,)``, points ``(N, 2)`` and votes ``(N, A)``, -1 for none. The first rows have votes."""
    y = dist.Categorical(SHARES).sample((rows,))
    said = dist.Categorical(CONFUSION[:, y].movedim(0, 1)).sample()
    asked = torch.rand(said.shape).argsort(1) < VOTES
    asked[VOTED:] = False
    return y, petals(y), said.where(asked, scnf.UNLABELLED)


def majority(votes: Tensor) -> tuple[Tensor, Tensor]:
    """The label with most votes, and whether no other has as many. Ties are broken at random."""
    counts = one_hot(votes + 1, K + 1)[..., 1:].sum(1)
    top = counts.topk(2).values
    return (counts + 0.5 * torch.rand(counts.shape)).argmax(-1), top[:, 0] > top[:, 1]
