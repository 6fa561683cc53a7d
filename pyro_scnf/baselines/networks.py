"""Networks with dropout: supervised, and with consistency between two passes of unlabelled rows."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_scnf._numbers import check_whole
from pyro_scnf._random import seeded
from pyro_scnf.baselines.comparator import Task, solve
from pyro_scnf.baselines.fitting import LABELLED, descend, some_labelled, some_rows
from pyro_scnf.baselines.scaling import Scale, check_scaling, scaled
from pyro_scnf.baselines.tuning import tuned

__all__ = ["dropout_net", "pi_model"]

WIDTH = 512
"""Width of both hidden layers."""

BATCH = 256
"""Unlabelled rows of a step."""

LEARNING_RATE = 1e-3

DECAYS = 1.0, 0.0
"""Weight decays that are tried."""

CONSISTENCY = 30.0, 3.0
"""Weights of the consistency that are tried. The released code of FlowGMM has both, for different data."""

PASSES = 20
"""How often training sees each labelled row, at least."""


def dropout_net(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "quantile",
    steps: int = 1000,
) -> Tensor:
    """A network with two hidden layers of 512 and dropout of one half, as in the code of FlowGMM.

    It learns from the labelled rows alone. Cross-validation chooses the weight decay. The other arguments
    are those of a :class:`Comparator`. The network trains on the device of ``x``, in single precision.

    :param scale: how columns are scaled, see :data:`Scale`.
    :param int steps: steps of training, at least. Training sees each labelled row 20 times or more.
    :raises ValueError: for an unknown word or a number out of range, and as :class:`Comparator` says.

    With a few hundred labels it takes half a minute. With 70,000 labelled rows of 50 columns it takes three
    minutes.

    Reference: Izmailov et al., *Semi-Supervised Learning with Normalizing Flows*, 2020.
    """
    check_scaling(scale)
    steps = check_whole("steps", steps, 1)

    def fit(task: Task) -> Tensor:
        train = partial(_trained, steps=steps, consistency=0.0)
        return tuned(scaled(task, scale), DECAYS, lambda task, decay: train(task, decay=decay))

    return solve("dropout_net", fit, x, y, x_test, num_classes, seed)


def pi_model(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "quantile",
    steps: int = 1000,
) -> Tensor:
    r"""The :math:`\Pi` model: the network of :func:`dropout_net`, consistent on unlabelled rows.

    Each unlabelled row passes twice, with two draws of dropout. The loss adds the mean squared difference of
    the two softmaxes, without a gradient of the second. The weight of this term rises over the first half of
    training. Cross-validation chooses it. The other arguments are those of a :class:`Comparator`. The network
    trains on the device of ``x``, in single precision.

    :param scale: how columns are scaled, see :data:`Scale`.
    :param int steps: steps of training, at least. Training sees each labelled row 20 times or more.
    :raises ValueError: for an unknown word or a number out of range, and as :class:`Comparator` says.

    With 70,000 rows of 50 columns and a few hundred labels it takes three minutes.

    Reference: Laine and Aila, *Temporal Ensembling for Semi-Supervised Learning*, 2017; Izmailov et al.,
    *Semi-Supervised Learning with Normalizing Flows*, 2020, for the network and the weight.
    """
    check_scaling(scale)
    steps = check_whole("steps", steps, 1)

    def fit(task: Task) -> Tensor:
        train = partial(_trained, steps=steps, decay=0.0)
        return tuned(scaled(task, scale), CONSISTENCY, lambda task, weight: train(task, consistency=weight))

    return solve("pi_model", fit, x, y, x_test, num_classes, seed)


def _network(columns: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(columns, WIDTH),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(WIDTH, classes),
    )


def _trained(task: Task, steps: int, decay: float, consistency: float) -> Tensor:
    """Log-probabilities of the rows to classify, by a network that learns from the task."""
    x, y = (part.to(task.device) for part in task.labelled)
    x, others = x.float(), task.unlabelled.to(task.device, torch.float32)

    def loss(done: float) -> Tensor:
        rows, labels = some_labelled(x, y)
        supervised = F.cross_entropy(net(rows), labels)
        if not consistency:
            return supervised
        return supervised + consistency * rise(done) * disagreement(net, some_rows(others, BATCH))

    with seeded(task.seed, task.device):
        net = _network(x.shape[1], task.num_classes).to(task.device, torch.float32)
        enough = math.ceil(PASSES * len(x) / LABELLED)
        descend(net, loss, max(steps, enough), LEARNING_RATE, decay)
    net.eval()
    with torch.no_grad():
        return net(task.x_test.to(task.device, torch.float32)).double().cpu().log_softmax(-1)


def disagreement(net: nn.Module, x: Tensor) -> Tensor:
    """The mean squared difference of the softmaxes of two passes, without a gradient of the second."""
    with torch.no_grad():
        target = net(x).softmax(-1)
    return F.mse_loss(net(x).softmax(-1), target)


def rise(done: float) -> float:
    """The share of the full weight of consistency, after the share ``done`` of training."""
    return math.exp(-5 * (1 - min(1.0, 2 * done)) ** 2)
