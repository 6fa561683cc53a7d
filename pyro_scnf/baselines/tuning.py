"""Settings and temperatures by cross-validation on the labelled rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pyro_scnf.baselines.comparator import Task, surprised

__all__ = ["Choice", "chosen", "folds", "sample", "tuned"]

FOLDS = 5
"""Parts into which labelled rows are divided."""

FEW = 500
"""Labelled rows, up to which cross-validation is repeated with other parts."""

LIMITS = 2000, 5000
"""Labelled and unlabelled rows that take part in cross-validation. A sample is taken of more."""

TEMPERATURES = tuple(2 ** (step / 2) for step in sorted(range(-8, 13), key=abs))
"""What is chosen from. Of equally good ones the first is taken."""

SPREAD = 1.0
"""The standard deviation of the logarithm of a temperature, before any label has been seen."""

S = TypeVar("S")


@dataclass(frozen=True)
class Choice(Generic[S]):
    """What cross-validation has chosen.

    :ivar setting: the setting.
    :ivar float temperature: by which log-probabilities are divided.
    """

    setting: S
    temperature: float = 1.0

    def of(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities ``(M, K)`` at the temperature."""
        return (log_probs / self.temperature).log_softmax(-1)


def tuned(
    task: Task,
    settings: Sequence[S],
    fit: Callable[[Task, S], Tensor],
    repeats: int = 1,
    limits: tuple[int, int] = LIMITS,
) -> Tensor:
    """Log-probabilities ``(M, K)`` of the rows to classify, as :func:`chosen` finds best."""
    choice = chosen(task, settings, fit, repeats, limits)
    return choice.of(fit(task, choice.setting))


def chosen(
    task: Task,
    settings: Sequence[S],
    fit: Callable[[Task, S], Tensor],
    repeats: int = 1,
    limits: tuple[int, int] = LIMITS,
) -> Choice[S]:
    """The setting and the temperature with the least loss in labelled rows whose labels were hidden.

    The loss is the negative log-probability by the rule of succession, as of the rows to classify. A few
    labels say little about a temperature. So its logarithm has a normal prior, which counts as a loss, too.

    :param settings: what is chosen from. Of equally good ones the first is taken. So it is if no class has
        two labelled rows.
    :param fit: computes the log-probabilities ``(M, K)`` of the rows to classify, up to a constant of a row.
    :param int repeats: how often the labelled rows are divided into parts, if there are few of them.
    :param limits: numbers of labelled and of unlabelled rows that take part. A sample is taken of more.

    Reference: Guo et al., *On Calibration of Modern Neural Networks*, 2017, for temperatures.
    """
    task = sample(task, *limits)
    count = int(task.known.sum())
    parts = list(folds(task, repeats if count <= FEW else 1))
    if not parts:
        return Choice(settings[0])
    labels = torch.cat([task.y[rows] for rows in parts])[:, None]
    losses = {}
    for setting in settings:
        log_probs = torch.cat([fit(task.without_labels(rows), setting) for rows in parts])
        for temperature in TEMPERATURES:
            choice = Choice(setting, temperature)
            probs = surprised(choice.of(log_probs), count).gather(1, labels)
            prior = 0.5 * (math.log(temperature) / SPREAD) ** 2
            losses[choice] = prior / count - probs.log().mean().item()
    return min(losses, key=losses.__getitem__)


def folds(task: Task, repeats: int = 1) -> Iterator[Tensor]:
    """The numbers of labelled rows of one part after the other. Each part is about a fifth of every class.

    If a class has a single labelled row, that row is in no part. So every class keeps a labelled row.
    """
    generator = torch.Generator().manual_seed(task.seed)
    for _ in range(repeats):
        part = torch.full_like(task.y, -1)
        for rows in _by_class(task, generator):
            if len(rows) > 1:
                part[rows] = torch.arange(len(rows)) % FOLDS
        for fold in range(FOLDS):
            if bool((part == fold).any()):
                yield (part == fold).nonzero()[:, 0]


def sample(task: Task, labelled: int, unlabelled: int) -> Task:
    """The task with at most so many random rows. Every class keeps about its share, and at least one row."""
    known = task.known
    if int(known.sum()) <= labelled and int((~known).sum()) <= unlabelled:
        return task
    generator = torch.Generator().manual_seed(task.seed)
    place = torch.rand(len(task.y), generator=generator, dtype=torch.double)
    for rows in _by_class(task, generator):
        place[rows] = torch.arange(len(rows)).double() / len(rows)
    parts = known.nonzero()[:, 0], (~known).nonzero()[:, 0]
    kept = [
        rows[place[rows].argsort(stable=True)[:limit]]
        for rows, limit in zip(parts, (labelled, unlabelled), strict=True)
    ]
    return task.part(torch.cat(kept))


def _by_class(task: Task, generator: torch.Generator) -> list[Tensor]:
    """The numbers of the labelled rows of each class in random order, whatever the classes are called."""
    order = torch.randperm(len(task.y), generator=generator)
    return [order[task.y[order] == k] for k in range(task.num_classes)]
