r"""What a graph says about labels: label spreading, and how far to trust it.

Label spreading solves, over the graph of all rows,

.. math:: F = \alpha S F + (1 - \alpha) Y, \qquad S = D^{-1/2} W D^{-1/2},

where W holds the weights of links, D their sums and Y the known labels. Class mass normalisation makes it
probabilities:

.. math:: q_n(k) \propto F_{nk} \, \pi_k / m_k,

where :math:`\pi` are the expected shares of the classes and m those of the normalised F. Evidence changes
these shares more or less, by a sharpness t, and is mixed with them:

.. math:: (1 - \epsilon) \, \frac{(q_n(k) / \pi_k)^t \, \pi_k}{\sum_j (q_n(j) / \pi_j)^t \, \pi_j}
    + \epsilon \, \pi_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_number, check_scale, check_whole
from pyro_scnf.datasets.convert import as_labels
from pyro_scnf.datasets.graph import NeighbourGraph

__all__ = ["LabelEvidence", "label_evidence"]

FOLDS = 5
"""Parts into which labelled rows are divided for cross-validation."""

RESIDUAL = 1e-30
"""Where the solver stops: at this residual, relative to the labels. A larger one would do in dense data. But
F may fall to 1e-15 of its value along one link to a far row, and the ratios of such small numbers decide."""

SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0, 0.5)
MIXES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""What cross-validation chooses from. Of equally good ones it takes the first."""


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """What a graph says about the labels of its rows, and of others, as :func:`label_evidence` makes it.

    :ivar NeighbourGraph graph: the graph.
    :ivar Tensor log_probs: normalised log-probabilities of the labels of its rows, ``(N, K)``.
    :ivar float sharpness: the sharpness t.
    :ivar float mix: the share :math:`\\epsilon` of the expected shares in them.
    """

    graph: NeighbourGraph
    log_probs: Tensor
    sharpness: float
    mix: float
    _spread: _Spread

    def of(self, x: Tensor) -> Tensor:
        """Log-probabilities ``(M, K)`` of the labels of other rows, from their neighbours in the graph.

        :param x: ``(M, *event_shape)``.
        :raises ValueError: as :meth:`NeighbourGraph.links` does.
        """
        near, weights = (table.cpu() for table in self.graph.links(x))
        potential = (weights[..., None] * self._spread.carried[near]).sum(1)
        probs = self._spread.probs(potential)
        return _trusted(probs, self.sharpness, self.mix, self._spread.shares).to(self.graph.rows)


@dataclass(frozen=True, eq=False)
class _Spread:
    """Label spreading from one choice of labelled rows, on the CPU, as SciPy solves it there.

    :ivar Tensor potential: F, ``(N, K)``.
    :ivar Tensor carried: what links carry, :math:`D^{-1/2} F`, ``(N, K)``.
    :ivar Tensor factors: what class mass normalisation multiplies, ``(K,)``.
    :ivar Tensor shares: expected shares of the classes, ``(K,)``.
    """

    potential: Tensor
    carried: Tensor
    factors: Tensor
    shares: Tensor

    def probs(self, potential: Tensor) -> Tensor:
        """q of rows ``(B, K)`` of which F is known up to a factor. Without any, it is the expected shares."""
        mass = potential * self.factors
        total = mass.sum(-1, keepdim=True)
        return torch.where(total > 0, mass / total.clamp(min=1e-300), self.shares)


class _Spreading:
    """Label spreading on a graph, for any choice of labelled rows."""

    def __init__(self, graph: NeighbourGraph, alpha: float, shares: Tensor) -> None:
        sparse = require("scipy.sparse", "datasets")
        weights = graph.weights()
        self.root = torch.as_tensor(weights.sum(axis=1)).double().rsqrt()
        scale = sparse.diags_array(self.root.numpy())
        self.system = sparse.eye_array(len(self.root)) - alpha * (scale @ weights @ scale)
        self.shares, self.solve = shares, require("scipy.sparse.linalg", "datasets").cg

    def of(self, y: Tensor) -> _Spread:
        """Spread the labels ``y`` ``(N,)``, -1 where unknown."""
        columns = []
        for k in range(len(self.shares)):
            start = (y == k).double().numpy()
            solution, failed = self.solve(self.system, start, rtol=RESIDUAL, atol=0, maxiter=10_000)
            if failed:
                raise RuntimeError("label_evidence: label spreading did not converge; give a smaller alpha")
            columns.append(torch.from_numpy(solution).clamp(min=0))
        potential = torch.stack(columns, -1)
        reached = potential.sum(-1) > 0
        mean = (potential[reached] / potential[reached].sum(-1, keepdim=True)).mean(0)
        factors = torch.where(mean > 0, self.shares / mean.clamp(min=1e-300), 0.0)
        return _Spread(potential, self.root[:, None] * potential, factors, self.shares)


def _trusted(probs: Tensor, sharpness: float, mix: float, shares: Tensor) -> Tensor:
    sharp = (sharpness * (probs / shares).log() + shares.log()).softmax(-1)
    return ((1 - mix) * sharp + mix * shares).log()


def label_evidence(
    graph: NeighbourGraph,
    y: Tensor,
    num_classes: int,
    *,
    alpha: float = 0.99,
    shares: Sequence[float] | Tensor | None = None,
    sharpness: float | None = None,
    mix: float | None = None,
) -> LabelEvidence:
    """Label spreading from the labelled rows of a graph, with class mass normalisation (extra ``datasets``).

    How far the graph can be trusted is chosen on labelled rows: ``sharpness`` and ``mix`` have the least
    label NLL of rows whose labels were hidden, a fifth of each class at a time (cross-validation), and of one
    more row, on which the graph is wrong. No other label takes part. A row that no label reaches gets the
    expected shares; so does one on which F is below about 1e-30.

    :param y: labels ``(N,)``, -1 where unknown.
    :param int num_classes: number of labels K.
    :param float alpha: how far labels travel, between 0 and 1.
    :param shares: expected share of each class ``(K,)``; equal ones by default.
    :param sharpness: the sharpness t, to choose it yourself. At 1, label spreading is taken as it is.
    :param mix: the share of ``shares`` in the evidence, in [0, 1), likewise.
    :raises ValueError: for numbers out of range, wrong labels, or a class without a labelled row; if a class
        has fewer than two labelled rows and ``sharpness`` or ``mix`` is to be chosen.
    :raises ImportError: without SciPy.

    Reference: Zhou et al., *Learning with Local and Global Consistency*, 2004; Zhu, Ghahramani and Lafferty,
    2003, for class mass normalisation.
    """
    if not isinstance(graph, NeighbourGraph):
        raise ValueError(
            f"label_evidence: graph is of type {type(graph).__name__}, expected a NeighbourGraph; give "
            "neighbour_graph(x)"
        )
    num_classes = check_whole("num_classes", num_classes, 1)
    alpha = check_number("alpha", alpha, above=0, below=1)
    y = as_labels(y, num_classes, "y", "label_evidence", unlabelled=True).cpu()
    if len(y) != len(graph.rows):
        raise ValueError(f"label_evidence: y has {len(y)} labels and the graph {len(graph.rows)} rows")
    pi = _shares(shares, num_classes)
    counts = torch.bincount(y[y != UNLABELLED], minlength=num_classes)
    if not bool((counts > 0).all()):
        none = (counts == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"label_evidence: y has no labelled row of class {none}; a graph cannot find a class"
        )
    spreading = _Spreading(graph, alpha, pi)
    powers = SHARPNESS if sharpness is None else (check_scale("sharpness", sharpness),)
    mixes = MIXES if mix is None else (check_number("mix", mix, at_least=0, below=1),)
    best = powers[0], mixes[0]
    if len(powers) * len(mixes) > 1:
        best = _chosen(spreading, y, counts, list(product(powers, mixes)))
    spread = spreading.of(y)
    log_probs = _trusted(spread.probs(spread.potential), *best, pi)
    return LabelEvidence(graph, log_probs.to(graph.rows), *best, spread)


def _shares(shares: Sequence[float] | Tensor | None, num_classes: int) -> Tensor:
    if shares is None:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    given = shares.tolist() if hasattr(shares, "tolist") else shares
    try:
        found = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"shares={shares!r}: expected {num_classes} positive numbers") from error
    if found.shape != (num_classes,) or not bool((found > 0).all()) or not math.isfinite(found.sum()):
        raise ValueError(f"shares={shares!r}: expected {num_classes} positive numbers")
    return found / found.sum()


def _chosen(
    spreading: _Spreading,
    y: Tensor,
    counts: Tensor,
    candidates: Sequence[tuple[float, float]],
) -> tuple[float, float]:
    """Sharpness and mix by cross-validation on the labelled rows.

    Where no hidden label contradicts the graph, they would let it be certain. So one more row counts, on
    which the graph is wrong (the rule of succession).
    """
    folds = min(FOLDS, int(counts.min()))
    if folds < 2:
        raise ValueError(
            "label_evidence: a class has one labelled row, and none is left if it is hidden; give sharpness "
            "and mix, or more labels"
        )
    part = torch.full_like(y, UNLABELLED)
    for k in range(len(counts)):
        rows = (y == k).nonzero()[:, 0]
        part[rows] = torch.arange(len(rows)) % folds
    probs, truth = [], []
    for fold in range(folds):
        hidden = part == fold
        spread = spreading.of(y.masked_fill(hidden, UNLABELLED))
        probs.append(spread.probs(spread.potential[hidden]))
        truth.append(y[hidden])
    held, labels = torch.cat(probs), torch.cat(truth)[:, None]

    def nll(candidate: tuple[float, float]) -> float:
        log_probs = _trusted(held, *candidate, spreading.shares)
        doubt = (-log_probs.amax(-1).exp() + 1).clamp(min=1e-300).log() - math.log(max(1, len(counts) - 1))
        return -(log_probs.gather(1, labels).sum() + doubt.mean()).item()

    return min(candidates, key=nll)
