"""Bring the columns of a table to one scale. All training rows decide the scale, labelled or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import torch

from pyro_scnf._extras import require
from pyro_scnf._numbers import check_whole, check_word
from pyro_scnf.baselines.comparator import Task

__all__ = ["Scale", "centred", "check_dims", "check_scaling", "reduced", "scaled", "to_unit_interval"]

Scale = Literal["standard", "quantile", "as-is"]
"""How the columns of a table are scaled: ``"standard"`` gives them mean 0 and standard deviation 1.
``"quantile"`` makes each of them normal, by its quantiles. ``"as-is"`` leaves them alone."""

QUANTILES = 1000
"""Quantiles that are told apart."""

LARGEST = 1e30
"""Trees see no larger number. Single precision holds it."""


class Scaler(Protocol):
    """What is used of a transformer of scikit-learn."""

    def fit(self, X: np.ndarray) -> object: ...

    def transform(self, X: np.ndarray) -> np.ndarray: ...


def _changed(task: Task, scaler: Scaler) -> Task:
    """The task with its rows changed by a transformer that has seen all training rows."""
    scaler.fit(task.x.numpy())
    return task.mapped(lambda rows: torch.from_numpy(scaler.transform(rows.numpy())))


def _at_unit_steps(task: Task) -> Task:
    """The task with columns that begin at 0 and whose outermost steps are at least 1.

    scikit-learn's quantiles take values for the smallest or the largest one if they are within 1e-7 of it,
    whatever the unit of the column.
    """
    low, high = task.x.amin(0), task.x.amax(0)
    first = torch.where(task.x > low, task.x, torch.inf).amin(0) - low
    last = high - torch.where(task.x < high, task.x, -torch.inf).amax(0)
    factor = (1 / torch.minimum(first, last)).minimum(1e300 / (high - low))  # of a constant column: 0
    return task.mapped(lambda rows: (rows.clamp(low, high) - low) * factor)


def centred(task: Task) -> Task:
    """The task with columns around 0, half of whose rows are within a unit.

    Trees of scikit-learn see single precision, and no step below 1e-7.
    """
    quarter, middle, last = torch.from_numpy(np.quantile(task.x.numpy(), (0.25, 0.5, 0.75), axis=0))
    width, deviation = last - quarter, task.x.std(0, correction=0)
    width = torch.where(width > 0, width, deviation)
    width = torch.where(width > 0, width, 1)
    return task.mapped(lambda rows: ((rows - middle) / width).clamp(-LARGEST, LARGEST))


def _quantiles(task: Task, distribution: str) -> Task:
    transformer = require("sklearn.preprocessing", "datasets").QuantileTransformer
    count = min(QUANTILES, len(task.x))
    steps = _at_unit_steps(task)
    return _changed(steps, transformer(n_quantiles=count, output_distribution=distribution, subsample=None))


def _standard(task: Task) -> Task:
    return _changed(task, require("sklearn.preprocessing", "datasets").StandardScaler())


def _normal(task: Task) -> Task:
    return _quantiles(task, "normal")


def _unchanged(task: Task) -> Task:
    return task


SCALES: dict[str, Callable[[Task], Task]] = {
    "standard": _standard,
    "quantile": _normal,
    "as-is": _unchanged,
}


def check_scaling(scale: Scale) -> None:
    """Raise unless ``scale`` is a word for a scale."""
    check_word("scale", scale, SCALES)


def check_dims(dims: int | None) -> int | None:
    """Raise unless ``dims`` is a number of principal components, or ``None`` for all columns."""
    return None if dims is None else check_whole("dims", dims, 1)


def scaled(task: Task, scale: Scale) -> Task:
    """The task with all its columns on one scale."""
    return SCALES[scale](task)


def to_unit_interval(task: Task) -> Task:
    """The task with columns that are uniform in the unit interval, by their quantiles."""
    return _quantiles(task, "uniform")


def reduced(task: Task, dims: int | None) -> Task:
    """The task with the first ``dims`` principal components of its rows, if they have more columns than that.

    :param dims: ``None`` for all columns.
    """
    if dims is None or dims >= task.x.shape[1]:
        return task
    pca = require("sklearn.decomposition", "datasets").PCA
    return _changed(task, pca(min(dims, len(task.x)), svd_solver="covariance_eigh"))
