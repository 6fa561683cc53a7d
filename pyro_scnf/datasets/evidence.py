r"""What a graph says about labels, and how far to trust it.

Labels travel along the links of the graph and give every row n a score s of each class k, see
:mod:`~pyro_scnf.datasets.spreading`. These are balanced and sharpened,

.. math:: q_n(k) \propto \exp(t \, (s_{nk} + b_k)),

and then mixed with the expected shares :math:`\pi` of the classes:
:math:`(1 - \epsilon) \, q_n(k) + \epsilon \, \pi_k`. The numbers :math:`b_k` bring the mean of q near to
:math:`\pi` at the sharpness :math:`t_0` of :data:`BALANCE`. They minimise

.. math:: \frac{1}{N} \sum_n \log \sum_k \exp(t_0 \, (s_{nk} + b_k)) - t_0 \sum_k \pi_k b_k
    + \frac{\lambda t_0^2}{2} \sum_k b_k^2,

so that the mean of :math:`q(k)` is then :math:`\pi_k - \lambda t_0 b_k`. The small :math:`\lambda` lets a
clear graph contradict the expected shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._extras import require
from pyro_scnf._labels import stratified_folds
from pyro_scnf._numbers import check_number, check_scale, check_whole, check_word, refuse_unused
from pyro_scnf.datasets.convert import as_labels
from pyro_scnf.datasets.graph import NeighbourGraph
from pyro_scnf.datasets.spreading import METHODS, Spread

__all__ = ["LabelEvidence", "label_evidence"]

FOLDS = 5
"""Parts into which labelled rows are divided for cross-validation."""

SHARPNESS = (3.0, 2.0, 4.0, 6.0, 8.0, 16.0, 1.0, 0.5)
MIXES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""What cross-validation chooses from. Of equally good ones it takes the first."""

BALANCE = 3.0
"""The sharpness at which classes are balanced. A row then counts for several classes if it is in doubt."""

SLACK = 0.003
"""By how much the share of a class may miss the expected one for each nat that rows are moved (lambda)."""


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """What a graph says about the labels of its rows, and of others, as :func:`label_evidence` makes it.

    :ivar NeighbourGraph graph: the graph.
    :ivar Tensor log_probs: normalised log-probabilities of the labels of its rows, ``(N, K)``.
    :ivar float sharpness: the sharpness t.
    :ivar float mix: the share :math:`\\epsilon` of the expected shares in them.
    :ivar Tensor shares: the expected shares :math:`\\pi`, ``(K,)``.
    :ivar Tensor offsets: the numbers b, ``(K,)``.
    :ivar spread: the scores of the rows, and how to compute those of others.
    """

    graph: NeighbourGraph
    log_probs: Tensor
    sharpness: float
    mix: float
    shares: Tensor
    offsets: Tensor
    spread: Spread

    def of(self, x: Tensor) -> Tensor:
        """Log-probabilities ``(M, K)`` of the labels of other rows, from their neighbours in the graph.

        :param x: ``(M, *event_shape)``.
        :raises ValueError: as :meth:`NeighbourGraph.links` does.
        """
        near, weights = (table.cpu() for table in self.graph.links(x))
        scores = self.spread.at(near, weights)
        probs = _sharpened(scores + self.offsets, self.sharpness, self.shares)
        return _mixed(probs, self.mix, self.shares).to(self.graph.rows)


def _sharpened(balanced: Tensor, sharpness: float, shares: Tensor) -> Tensor:
    """q of rows ``(B, K)`` with the balanced scores s + b. Without any score, it is the expected shares."""
    reached = balanced.isfinite().any(-1, keepdim=True)
    return torch.where(reached, (sharpness * balanced).softmax(-1), shares)


def _mixed(probs: Tensor, mix: float, shares: Tensor) -> Tensor:
    return ((1 - mix) * probs + mix * shares).log()


def _offsets(scores: Tensor, shares: Tensor) -> Tensor:
    """The numbers b ``(K,)`` that bring the mean of q near to ``shares``."""
    sharp = BALANCE * scores[scores.isfinite().any(-1)]

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        offsets = torch.from_numpy(b)
        moved = sharp + offsets
        value = moved.logsumexp(-1).mean() - shares @ offsets + 0.5 * SLACK * offsets.square().sum()
        return value.item(), (moved.softmax(-1).mean(0) - shares + SLACK * offsets).numpy()

    def hessian(b: np.ndarray) -> np.ndarray:
        probs = (sharp + torch.from_numpy(b)).softmax(-1)
        curvature = probs.mean(0).diag() - probs.T @ probs / len(probs) + SLACK * torch.eye(len(shares))
        return curvature.numpy()

    minimize = require("scipy.optimize", "datasets").minimize
    start = np.zeros(len(shares))
    found = minimize(loss, start, jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-8})
    return torch.from_numpy(found.x) / BALANCE


def label_evidence(
    graph: NeighbourGraph,
    y: Tensor,
    num_classes: int,
    *,
    method: Literal["spreading", "poisson"] = "spreading",
    alpha: float | None = None,
    shares: Sequence[float] | Tensor | None = None,
    sharpness: float | None = None,
    mix: float | None = None,
) -> LabelEvidence:
    """What the labelled rows of a graph say about the labels of all rows (extra ``datasets``).

    Labels travel along the links, and the share of each class is brought near to the expected one. How far
    the graph can be trusted is chosen on labelled rows: labels are hidden, a part of each class at a time
    (cross-validation in five parts, or in fewer if a class has fewer labels), and the ``sharpness`` and
    ``mix`` are taken that give these labels the least NLL. One imagined row counts besides: the graph is
    wrong on it, and it is most likely a row in doubt. No other label takes part. A row that no label reaches
    gets the expected shares; so does one so far from labels that its F is below the precision of the solver,
    about 1e-30.

    :param y: labels ``(N,)``, -1 where unknown.
    :param int num_classes: number of labels K.
    :param str method: how labels travel: label ``"spreading"``, or ``"poisson"`` learning.
    :param float alpha: how far labels travel by label spreading, between 0 and 1; 0.99 by default.
    :param shares: expected share of each class ``(K,)``; equal ones by default.
    :param sharpness: the sharpness t, to choose it yourself.
    :param mix: the share of ``shares`` in the evidence, in [0, 1), likewise.
    :raises ValueError: for numbers out of range, wrong labels, or a class without a labelled row; if a class
        has fewer than two labelled rows and ``sharpness`` or ``mix`` is to be chosen.
    :raises ImportError: without SciPy.

    Reference: Zhou et al., *Learning with Local and Global Consistency*, 2004; Calder et al., *Poisson
    Learning: Graph Based Semi-Supervised Learning at Very Low Label Rates*, 2020; Zhu, Ghahramani and
    Lafferty, 2003, for the balance of classes (class mass normalisation, which is not sharpened).
    """
    if not isinstance(graph, NeighbourGraph):
        raise ValueError(
            f"label_evidence: graph is of type {type(graph).__name__}, expected a NeighbourGraph; give "
            "neighbour_graph(x)"
        )
    num_classes = check_whole("num_classes", num_classes, 1)
    check_word("method", method, METHODS)
    if method == "poisson":
        refuse_unused("Poisson learning has no alpha", alpha=alpha)
    alpha = check_number("alpha", 0.99 if alpha is None else alpha, above=0, below=1)
    y = as_labels(y, num_classes, "y", "label_evidence", unlabelled=True).cpu()
    if len(y) != len(graph.rows):
        raise ValueError(f"label_evidence: y has {len(y)} labels and the graph {len(graph.rows)} rows")
    pi = _shares(shares, num_classes)
    counts = torch.bincount(y[y != UNLABELLED], minlength=num_classes)
    if not bool((counts > 0).all()):
        none = (counts == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"label_evidence: y has no labelled row of class {none}; a graph cannot find a class, so "
            "label a row of each, or train without a graph"
        )
    weights = graph.weights()

    def spread(y: Tensor) -> Spread:
        return METHODS[method](weights, y, pi, alpha)

    powers = SHARPNESS if sharpness is None else (check_scale("sharpness", sharpness),)
    mixes = MIXES if mix is None else (check_number("mix", mix, at_least=0, below=1),)
    best = powers[0], mixes[0]
    if len(powers) * len(mixes) > 1:
        best = _chosen(spread, y, pi, powers, mixes)
    found = spread(y)
    offsets = _offsets(found.scores, pi)
    log_probs = _mixed(_sharpened(found.scores + offsets, best[0], pi), best[1], pi)
    return LabelEvidence(graph, log_probs.to(graph.rows), *best, pi, offsets, found)


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
    spread: Callable[[Tensor], Spread],
    y: Tensor,
    shares: Tensor,
    powers: Sequence[float],
    mixes: Sequence[float],
) -> tuple[float, float]:
    """Sharpness and mix by cross-validation on the labelled rows.

    Where no hidden label contradicts the graph, they would let it be certain. So one more row counts, on
    which the graph is wrong (the rule of succession). It may be any hidden row, most likely one in doubt.
    """
    counts = torch.bincount(y[y != UNLABELLED], minlength=len(shares))
    folds = min(FOLDS, int(counts.min()))
    if folds < 2:
        raise ValueError(
            "label_evidence: a class has one labelled row, and none is left if it is hidden; give sharpness "
            "and mix, or more labels"
        )
    part = stratified_folds(y, folds)
    hidden = [part == fold for fold in range(folds)]
    labels = torch.cat([y[rows] for rows in hidden])[:, None]
    balanced = []
    for rows in hidden:
        scores = spread(y.masked_fill(rows, UNLABELLED)).scores
        balanced.append((scores + _offsets(scores, shares))[rows])
    of_hidden = torch.cat(balanced)
    likely = _in_doubt(_sharpened(of_hidden, BALANCE, shares))
    likely = likely / likely.sum()
    losses = {}
    for power in powers:
        sharp = _sharpened(of_hidden, power, shares)
        for mix in mixes:
            log_probs = _mixed(sharp, mix, shares)
            wrong = _in_doubt(log_probs.exp()).log()
            losses[power, mix] = -(log_probs.gather(1, labels).sum() + likely @ wrong).item()
    return min(losses, key=losses.__getitem__)


def _in_doubt(probs: Tensor) -> Tensor:
    """The probability that the likeliest label of a row is wrong, ``(B,)``. It is never quite 0."""
    return (1 - probs.amax(-1)).clamp(min=1e-300)
