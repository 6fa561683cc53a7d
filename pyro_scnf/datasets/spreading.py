r"""How labels travel along the links of a graph: label spreading and Poisson learning.

Label spreading (Zhou et al., 2004) solves

.. math:: F = \alpha S F + (1 - \alpha) Y, \qquad S = D^{-1/2} W D^{-1/2},

where W holds the weights of links, D their sums and Y the known labels. Poisson learning (Calder et al.,
2020) solves

.. math:: (D - W) u = \sum_{n\ \mathrm{labelled}} (Y_n - \bar Y) \delta_n.

Each gives scores, which are log-probabilities of labels up to sharpness and to one number of each class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._extras import require

__all__ = ["METHODS", "Spread", "learn_by_poisson", "spread_labels"]

SPREADING_RESIDUAL = 1e-30
"""Where the solver stops: at this residual, relative to the labels. A larger one would do in dense data. But
F may fall to 1e-15 of its value along one link to a far row, and the ratios of such small numbers decide."""

POISSON_RESIDUAL = 1e-10
"""The same for Poisson learning, of which differences decide."""

FAINT = 1e-8
"""Entries of S below this are no links of Poisson learning. Across such a link, u would differ so much that
no other difference counted."""


@dataclass(frozen=True, eq=False)
class Spread:
    """What known labels say about every row, on the CPU, as SciPy solves it there.

    :ivar Tensor scores: ``(N, K)``, minus infinity where no label reaches a row.
    :ivar at: computes the scores ``(M, K)`` of other rows from their neighbours and weights ``(M, k)``.
    """

    scores: Tensor
    at: Callable[[Tensor, Tensor], Tensor]


def spread_labels(weights: Any, y: Tensor, shares: Tensor, alpha: float) -> Spread:
    """Label spreading. The scores are log F.

    :param weights: of links, a symmetric ``csr_array`` ``(N, N)``.
    :param y: labels ``(N,)``, -1 where unknown.
    :param shares: expected shares of the classes ``(K,)``. They decide nothing here.
    """
    root, links = _normalised(weights)
    system = require("scipy.sparse", "datasets").eye_array(len(y)) - alpha * links
    labels = one_hot(y + 1, len(shares) + 1)[:, 1:].double()
    potential = _solve(system, labels, SPREADING_RESIDUAL, "give a smaller alpha").clamp(min=0)
    return Spread(potential.log(), partial(_log_carried, root[:, None] * potential))


def _log_carried(carried: Tensor, near: Tensor, links: Tensor) -> Tensor:
    """The logarithm of what the neighbours of other rows bring them."""
    return (links[..., None] * carried[near]).sum(1).log()


def learn_by_poisson(weights: Any, y: Tensor, shares: Tensor, alpha: float) -> Spread:
    """Poisson learning. The scores are u in units of its mean absolute value.

    Where the graph has several parts, each has its own mean label. The labels of a part then say which
    classes are common in it, and ``shares`` count there as one more label.

    The arguments are those of :func:`spread_labels`; ``alpha`` decides nothing here.
    """
    known, classes = y != UNLABELLED, len(shares)
    root, links = _normalised(weights)
    links.data[links.data < FAINT] = 0
    links.eliminate_zeros()
    count, part = require("scipy.sparse.csgraph", "datasets").connected_components(links)
    part = torch.from_numpy(part).long()
    labels = one_hot(y[known], classes).double()
    in_part = torch.zeros(count, classes, dtype=torch.double).index_add_(0, part[known], labels)
    sizes = in_part.sum(1, keepdim=True)
    source = torch.zeros(len(y), classes, dtype=torch.double)
    source[known] = labels - (in_part / sizes.clamp(min=1))[part[known]]
    system = require("scipy.sparse", "datasets").eye_array(len(y)) - links
    u = root[:, None] * _solve(system, root[:, None] * source, POISSON_RESIDUAL, "give method='spreading'")
    # The equation leaves a constant of each part open: the mean of u by the sums of weights is 0.
    degrees = root.pow(-2)[:, None]
    total = torch.zeros(count, classes + 1, dtype=torch.double)
    total.index_add_(0, part, torch.cat([degrees * u, degrees], 1))
    u = u - (total[:, :-1] / total[:, -1:])[part]
    common = ((in_part + shares) / (sizes + 1)).log()
    reached = (sizes > 0)[part]
    scale = u[reached[:, 0]].abs().mean().clamp(min=1e-300)
    scores = (u / scale + common[part]).masked_fill(~reached, -torch.inf)
    return Spread(scores, partial(_mean_score, scores))


def _mean_score(scores: Tensor, near: Tensor, links: Tensor) -> Tensor:
    """The mean score of those neighbours of other rows that a label reaches."""
    found = scores[near]
    links = links * found.isfinite().any(-1)
    mean = (links[..., None] * found.nan_to_num(neginf=0.0)).sum(1)
    return torch.where(links.sum(1, keepdim=True) > 0, mean / links.sum(1, keepdim=True), -torch.inf)


METHODS: dict[str, Callable[[Any, Tensor, Tensor, float], Spread]] = {
    "spreading": spread_labels,
    "poisson": learn_by_poisson,
}


def _normalised(weights: Any) -> tuple[Tensor, Any]:
    """:math:`D^{-1/2}`, ``(N,)``, and S."""
    root = torch.as_tensor(weights.sum(axis=1)).double().rsqrt()
    scale = require("scipy.sparse", "datasets").diags_array(root.numpy())
    return root, (scale @ weights @ scale).tocsr()


def _solve(system: Any, columns: Tensor, residual: float, remedy: str) -> Tensor:
    """Solve for all columns of ``(N, K)`` at once by conjugate gradients, so that each pass reads W once."""
    sparse, shape = require("scipy.sparse.linalg", "datasets"), columns.shape
    together = sparse.LinearOperator(
        (columns.numel(),) * 2, matvec=lambda v: (system @ v.reshape(shape)).ravel(), dtype=system.dtype
    )
    target = columns.numpy().ravel()
    solution, failed = sparse.cg(together, target, rtol=residual, atol=0, maxiter=10_000)
    if failed:
        raise RuntimeError(f"label_evidence: the solver did not converge; {remedy}")
    return torch.from_numpy(solution).reshape(shape)
