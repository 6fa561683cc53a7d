"""Labels that travel along the links of a graph: label spreading and Poisson learning."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._numbers import check_whole
from pyro_scnf.baselines.comparator import Task, solve
from pyro_scnf.baselines.scaling import Scale, check_dims, check_scaling, scaled
from pyro_scnf.baselines.tuning import sample, tuned
from pyro_scnf.datasets import label_evidence, neighbour_graph

__all__ = ["label_spreading", "label_spreading_rbf", "poisson_learning"]

WIDTHS = 4.0, 1.0, 2.0, 8.0, 16.0, 32.0
ALPHAS = 0.2, 0.9
"""What cross-validation tries for the dense graph: inverse squared widths of its kernel in units of the
median squared distance, and scikit-learn's alpha."""

PAIRS = 10_000
"""Pairs of rows whose median distance is taken."""

SEARCHED = 1000, 2000
"""Labelled and unlabelled rows that take part in cross-validation for the dense graph, at most."""

CHUNK = 2000
"""Rows that are classified at a time."""

UNTUNED = 3.0, 0.1
"""Sharpness and mix of evidence about labels, if a class has one label and they cannot be chosen."""


def label_spreading_rbf(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "standard",
    rows: int = 10_000,
) -> Tensor:
    r"""Label spreading on a dense graph with a Gaussian kernel, with scikit-learn's ``LabelSpreading``.

    The graph links all pairs of rows, so a random subsample takes part: all labelled rows, and unlabelled
    ones up to ``rows`` in all. Izmailov et al. (2020) do so. The kernel is
    :math:`\exp(-c \, d^2 / m)` for rows at the distance d, where :math:`m` is the median of :math:`d^2`.
    Cross-validation chooses c and the share of its label that a row takes from its neighbours. The other
    arguments are those of a :class:`Comparator`.

    :param scale: how columns are scaled, see :data:`Scale`.
    :param int rows: rows of the graph, at most. More labelled rows than these are subsampled, too.
    :raises ValueError: for an unknown word or a number out of range, and as :class:`Comparator` says.

    With 10,000 rows it takes a minute or two and two gigabytes of memory.

    Reference: Zhou et al., *Learning with Local and Global Consistency*, 2004.
    """
    check_scaling(scale)
    rows = check_whole("rows", rows, 2)

    def fit(task: Task) -> Tensor:
        labelled = int(task.known.sum())
        task = sample(scaled(task, scale), rows, max(0, rows - labelled))
        return tuned(task, tuple(product(WIDTHS, ALPHAS)), _spread_densely, limits=SEARCHED)

    return solve("label_spreading_rbf", fit, x, y, x_test, num_classes, seed)


def _spread_densely(task: Task, setting: tuple[float, float]) -> Tensor:
    width, alpha = setting
    generator = torch.Generator().manual_seed(task.seed)
    first, second = torch.randint(len(task.x), (2, PAIRS), generator=generator)
    distances = (task.x[first] - task.x[second]).square().sum(1)[first != second]
    spreading = require("sklearn.semi_supervised", "datasets").LabelSpreading(
        gamma=width / max(float(distances.median()), 1e-12), alpha=alpha, max_iter=10_000
    )
    spreading.fit(task.x.float().numpy(), task.y.numpy())
    # A row so far from all others that the kernel is 0 has no probabilities.
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = [spreading.predict_proba(part.float().numpy()) for part in task.x_test.split(CHUNK)]
    return torch.from_numpy(np.concatenate(parts)).nan_to_num(nan=1 / task.num_classes).double().log()


def label_spreading(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "quantile",
    dims: int | None = 20,
    k: int = 10,
) -> Tensor:
    """Label spreading on a graph of nearest neighbours, with balanced classes.

    The graph is :func:`pyro_scnf.datasets.neighbour_graph`, and
    :func:`pyro_scnf.datasets.label_evidence` lets the labels travel, balances the classes and chooses by
    cross-validation how far to trust the graph. The classes are expected to have the shares that they have
    among the labels, each with one label more. Rows to classify get what their neighbours in the graph say.
    The other arguments are those of a :class:`Comparator`.

    :param scale: how columns are scaled, see :data:`Scale`. For embeddings take ``"as-is"``.
    :param dims: number of principal components to measure distances in; ``None`` for all columns. If
        there are fewer, all of them count.
    :param int k: number of neighbours of a row. If there are fewer rows, all of them are neighbours.
    :raises ValueError: for an unknown word or a number out of range, and as :class:`Comparator` says.
    :raises ImportError: without scikit-learn, SciPy, or, beyond 50,000 rows, usearch.

    With 70,000 rows of 50 columns, or 20,000 of 400, it takes a minute or two.

    Reference: Zhou et al., *Learning with Local and Global Consistency*, 2004.
    """
    fit = _on_graph("spreading", scale, dims, k)
    return solve("label_spreading", fit, x, y, x_test, num_classes, seed)


def poisson_learning(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "quantile",
    dims: int | None = 20,
    k: int = 10,
) -> Tensor:
    """Poisson learning on a graph of nearest neighbours, with balanced classes.

    The graph, the arguments, the errors and the cost are those of :func:`label_spreading`.

    Reference: Calder et al., *Poisson Learning: Graph Based Semi-Supervised Learning at Very Low Label
    Rates*, 2020.
    """
    fit = _on_graph("poisson", scale, dims, k)
    return solve("poisson_learning", fit, x, y, x_test, num_classes, seed)


def _on_graph(
    method: Literal["spreading", "poisson"], scale: Scale, dims: int | None, k: int
) -> Callable[[Task], Tensor]:
    """A function that solves a task on a graph of nearest neighbours. It checks its options."""
    check_scaling(scale)
    k = check_whole("k", k, 1)
    dims = check_dims(dims)

    def fit(task: Task) -> Tensor:
        task = scaled(task, scale)
        few = None if dims is None else min(dims, *task.x.shape)
        graph = neighbour_graph(task.x, min(k, len(task.x) - 1), components=few)
        counts = torch.bincount(task.y[task.known])
        sharpness, mix = (None, None) if int(counts.min()) > 1 else UNTUNED
        evidence = label_evidence(
            graph,
            task.y,
            task.num_classes,
            method=method,
            shares=counts + 1,
            sharpness=sharpness,
            mix=mix,
        )
        return evidence.of(task.x_test)

    return fit
