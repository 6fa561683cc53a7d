"""The models of Kingma et al. (2014) as comparators for the rows of a table.

Reference: Kingma, Mohamed, Rezende and Welling, *Semi-supervised Learning with Deep Generative Models*, 2014.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise, product

import pyro
import torch
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_whole
from pyro_scnf._random import seeded
from pyro_scnf.baselines.comparator import Task, solve
from pyro_scnf.baselines.fitting import Batch, jittered, progress, some_rows, train
from pyro_scnf.baselines.kingma2014 import M1, M2
from pyro_scnf.baselines.scaling import Scale, check_dims, check_scaling, reduced, scaled, to_unit_interval
from pyro_scnf.baselines.stacked import M1M2
from pyro_scnf.baselines.supervised import PENALTIES, REPEATS, classified, logistic
from pyro_scnf.baselines.tuning import tuned
from pyro_scnf.datasets import SemiSupervisedData

__all__ = ["m1", "m1m2", "m2"]

HIDDEN = 200
"""Width of all hidden layers."""

LATENTS = 10, 20, 50
"""Lengths of the codes of M1 that are tried, at most the number of columns."""

STYLE = 10
"""Length of the style of M2, at most the number of columns."""

BATCH, LABELLED = 128, 100
"""Rows of a step of M1, which are the unlabelled rows of a step of M2, and its labelled rows."""

KL_WEIGHT = 0.1
M1_RATE, M2_RATE = 2e-3, 5e-3
"""As in :class:`M1M2`."""

ALPHAS = 20.0, 1.0
"""Weights of the classification in M2 that are tried."""


def m1(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    steps: int = 1000,
) -> Tensor:
    """M1: logistic regression on the codes of a variational autoencoder of all rows.

    Columns are brought to the unit interval by their quantiles. Cross-validation chooses the length of a
    code and the weight of the penalty. The other arguments are those of a :class:`Comparator`. The
    autoencoders, :class:`M1`, train on the device of ``x``, in single precision.

    :param int steps: steps of training.
    :raises ValueError: for a number out of range, and as :class:`Comparator` says.

    With 70,000 rows of 50 columns, or 20,000 of 400, it takes a minute.
    """
    steps = check_whole("steps", steps, 1)

    def fit(task: Task) -> Tensor:
        rows, columns = to_unit_interval(task), task.x.shape[1]
        sizes = sorted({min(size, columns) for size in LATENTS})
        tasks = [_coded(rows, size, steps) for size in sizes]
        codes = replace(
            task,
            x=torch.cat([coded.x for coded in tasks], 1),
            x_test=torch.cat([coded.x_test for coded in tasks], 1),
        )
        ends = list(accumulate(sizes, initial=0))
        return tuned(codes, tuple(product(pairwise(ends), PENALTIES)), _regress_some, REPEATS)

    return solve("m1", fit, x, y, x_test, num_classes, seed)


def _regress_some(task: Task, setting: tuple[tuple[int, int], float]) -> Tensor:
    """Logistic regression on the codes of one autoencoder, which are some of the columns."""
    (first, end), penalty = setting
    return classified(logistic(penalty), task.mapped(lambda codes: codes[:, first:end]))


def _coded(task: Task, latent_dim: int, steps: int) -> Task:
    """The task with the mean codes of its rows, which lie in the unit interval, scaled alike."""
    rows = task.x.to(task.device, torch.float32)

    def batch() -> Batch:
        return some_rows(rows, BATCH), len(rows), KL_WEIGHT

    with seeded(task.seed, task.device), pyro.get_param_store().scope():
        model = M1(rows.shape[1:], latent_dim, (HIDDEN, HIDDEN)).to(rows)
        elbo = TraceMeanField_ELBO()
        train(model, elbo, batch, progress(steps, None), M1_RATE, len(rows))

    @torch.no_grad()
    def codes(x: Tensor) -> Tensor:
        parts = [model.encode(part.to(rows)).mean for part in x.split(10_000)]
        return torch.cat(parts).double().cpu()

    return scaled(task.mapped(codes), "standard")


def m2(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "quantile",
    dims: int | None = 50,
    steps: int = 1000,
) -> Tensor:
    """M2: a variational autoencoder of rows given their label, and its classifier, see :class:`M2`.

    Cross-validation chooses the weight of the classification. The other arguments are those of a
    :class:`Comparator`. The model trains on the device of ``x``, in single precision.

    :param scale: how columns are scaled, see :data:`Scale`.
    :param dims: number of principal components that take part, if there are more columns; ``None`` for all
        columns.
    :param int steps: steps of training.
    :raises ValueError: for an unknown word or a number out of range, and as :class:`Comparator` says.

    With 70,000 rows of 50 columns it takes two minutes.
    """
    check_scaling(scale)
    steps = check_whole("steps", steps, 1)
    dims = check_dims(dims)

    def fit(task: Task) -> Tensor:
        task = reduced(scaled(task, scale), dims)
        return tuned(task, ALPHAS, partial(_classified_by_m2, steps=steps))

    return solve("m2", fit, x, y, x_test, num_classes, seed)


def _classified_by_m2(task: Task, alpha: float, steps: int) -> Tensor:
    columns = task.x.shape[1]
    x, y = (part.to(task.device) for part in task.labelled)
    x, others = x.float(), task.unlabelled.to(task.device, torch.float32)

    def batch() -> Batch:
        chosen = torch.randint(len(x), (LABELLED,), device=x.device)
        rows = jittered(x[chosen]), y[chosen], jittered(some_rows(others, BATCH))
        return *rows, (len(x), len(others))

    with seeded(task.seed, task.device), pyro.get_param_store().scope():
        model = M2(columns, task.num_classes, min(STYLE, columns), (HIDDEN,), alpha).to(x)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        train(model, elbo, batch, progress(steps, None), M2_RATE, len(x) + len(others))
    with torch.no_grad():
        return model.classify(task.x_test.to(x)).logits.double().cpu()


def m1m2(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    latent_dim: int = 20,
    steps: int = 1000,
) -> Tensor:
    """M1+M2: M2 on the codes of M1, see :class:`M1M2`.

    Columns are brought to the unit interval by their quantiles. Cross-validation chooses the weight of the
    classification. The other arguments are those of a :class:`Comparator`. The models train on the device of
    ``x``, in single precision.

    :param int latent_dim: length of a code, at most the number of columns.
    :param int steps: steps of training of each of the two models.
    :raises ValueError: for a number out of range, and as :class:`Comparator` says.

    With 70,000 rows of 50 columns it takes three minutes.
    """
    latent_dim, steps = check_whole("latent_dim", latent_dim, 1), check_whole("steps", steps, 1)

    def fit(task: Task) -> Tensor:
        solve_by = partial(_classified_by_both, latent_dim=latent_dim, steps=steps)
        return tuned(to_unit_interval(task), ALPHAS, solve_by)

    return solve("m1m2", fit, x, y, x_test, num_classes, seed)


def _classified_by_both(task: Task, alpha: float, latent_dim: int, steps: int) -> Tensor:
    columns, (x, y) = task.x.shape[1], task.labelled
    # If every row has a label, all rows take part without it, too.
    rows = torch.cat([x, task.unlabelled]).to(task.device, torch.float32)
    labels = torch.cat([y, y.new_full((len(rows) - len(y),), UNLABELLED)])
    data = SemiSupervisedData(
        rows, labels.to(rows.device), rows[: len(y)], y.to(rows.device), task.num_classes
    )
    with seeded(task.seed, task.device):
        model = M1M2(
            (columns,),
            task.num_classes,
            latent_dim=min(latent_dim, columns),
            style_dim=STYLE,
            hidden=(HIDDEN, HIDDEN),
            style_hidden=(HIDDEN,),
            kl_weight=KL_WEIGHT,
            alpha=alpha,
        ).to(rows)
    model.fit(
        data,
        steps=steps,
        batch_size=BATCH,
        labelled_batch_size=LABELLED,
        m1_lr=M1_RATE,
        m2_lr=M2_RATE,
        seed=task.seed,
    )
    return model.posterior(task.x_test.to(rows)).logits.double().cpu()
