"""Logistic regression on the latents of a flow, which learn the density of all rows at the same time.

Reference: Nalisnick et al., *Hybrid Models with Deep and Invertible Features*, 2019.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_scnf._numbers import check_scale, check_whole
from pyro_scnf._random import seeded
from pyro_scnf.baselines.comparator import Task, solve
from pyro_scnf.baselines.fitting import descend, jittered, some_labelled, some_rows
from pyro_scnf.baselines.scaling import Scale, check_scaling, reduced, scaled
from pyro_scnf.baselines.tuning import tuned
from pyro_scnf.flows import glow
from pyro_scnf.transforms import FlowTransform

__all__ = ["LatentClassifier", "latent_classifier"]

DIMS = 50, 10
"""Numbers of principal components that are tried, where there are more columns."""

SHARES = 1.0, 0.1
"""Shares of the steps that are tried. Training makes the latents independent of each other and of equal
spread, whatever the classes are. So with few labels an early end may be better."""

BATCH = 256
"""Rows of a step whose density counts."""

INITIAL = 1000
"""Rows from which the flow is initialised."""

LEARNING_RATE, DECAY = 1e-3, 1e-2
"""The step of AdamW and its weight decay."""


class LatentClassifier(nn.Module):
    r"""A flow with a standard normal prior, and a linear classifier of its latents.

    :param int columns: number of columns D.
    :param int num_classes: number of labels K.
    :param float weight: weight :math:`\lambda` of the density.
    """

    def __init__(self, columns: int, num_classes: int, weight: float) -> None:
        super().__init__()
        self.flow = cast(FlowTransform, glow((columns,), coupling="alternate", blocks=1))
        self.head = nn.Linear(columns, num_classes)
        self.weight = weight

    def loss(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        r"""The mean of :math:`-\log p(y \mid z)` and :math:`\lambda` times the mean of :math:`-\log p(x)`.

        :param x: labelled rows ``(B, D)``.
        :param y: their labels ``(B,)``.
        :param rows: rows whose density counts, ``(M, D)``.
        """
        z, log_det = self.flow.inverse_and_ladj(torch.cat([x, rows]))
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi)
        log_density = log_det - 0.5 * z.square().sum(1) - constant
        return F.cross_entropy(self.head(z[: len(x)]), y) - self.weight * log_density[len(x) :].mean()

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the labels of rows ``(B, D)``, ``(B, K)``."""
        return self.head(self.flow.inverse_and_ladj(x)[0])


def latent_classifier(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "quantile",
    weight: float = 0.02,
    steps: int = 1000,
) -> Tensor:
    r"""Logistic regression on the latents of a flow: the hybrid model of Nalisnick et al. (2019).

    The flow is :func:`pyro_scnf.flows.glow`. Its prior is standard normal whatever the label. The loss is the
    mean of :math:`-\log p(y \mid z(x))` of labelled rows and :math:`\lambda` times the mean of
    :math:`-\log p(x)` of all rows. Rows get a little noise in each step, which bounds the density of values
    that repeat. More than 50 columns are reduced to their first 50 principal components. Cross-validation
    chooses whether the first ten take part alone, and whether training ends after a tenth of the steps. The
    other arguments are those of a :class:`Comparator`. The model trains on the device of ``x``, in single
    precision.

    :param scale: how columns are scaled, see :data:`Scale`.
    :param float weight: the weight :math:`\lambda` of the density.
    :param int steps: steps of training.
    :raises ValueError: for an unknown word or a number out of range, for a table of one column, which no
        coupling can change, and as :class:`Comparator` says.

    With 70,000 rows of 50 columns, or 20,000 of 400, it takes three minutes.
    """
    check_scaling(scale)
    weight, steps = check_scale("weight", weight), check_whole("steps", steps, 1)

    def fit(task: Task) -> Tensor:
        columns = task.x.shape[1]
        if columns == 1:
            raise ValueError("latent_classifier: x has one column, expected two or more, as a coupling needs")
        task = reduced(scaled(task, scale), max(DIMS))
        train = partial(_classified, weight=weight, steps=steps)
        return tuned(task, tuple(product(DIMS, SHARES)), train)

    return solve("latent_classifier", fit, x, y, x_test, num_classes, seed)


def _classified(task: Task, setting: tuple[int, float], weight: float, steps: int) -> Tensor:
    """Log-probabilities of the rows to classify, by a model that learns from the task."""
    dims, share = setting
    task = reduced(task, dims)
    task = task.mapped(lambda rows: rows.to(task.device, torch.float32))
    x, y = task.labelled
    y = y.to(x.device)

    def loss(done: float) -> Tensor:
        rows, labels = some_labelled(x, y)
        return model.loss(jittered(rows), labels, jittered(some_rows(task.x, BATCH)))

    with seeded(task.seed, task.device):
        model = LatentClassifier(x.shape[1], task.num_classes, weight).to(x)
        model.flow.initialize(jittered(some_rows(task.x, INITIAL)))
        descend(model, loss, math.ceil(share * steps), LEARNING_RATE, DECAY)
    with torch.no_grad():
        parts = [model(part) for part in task.x_test.split(10_000)]
    return torch.cat(parts).double().cpu().log_softmax(-1)
