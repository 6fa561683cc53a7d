"""The signature that all comparators share, and the task that each of them solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_whole
from pyro_scnf._random import seeded
from pyro_scnf._shapes import in_double
from pyro_scnf.datasets.convert import as_labels, as_rows, check_same_columns, check_same_index

__all__ = ["Comparator", "Task", "solve", "surprised"]

LARGEST_SEED = 2**32 - 1
"""The largest seed that scikit-learn takes."""


class Comparator(Protocol):
    """A semi-supervised classifier of the rows of a table, as one function.

    A comparator learns from all rows of ``x``, from their known labels, and from nothing else. It chooses its
    settings by cross-validation on the labelled rows. If no class has two labelled rows, it takes defaults
    instead. Every comparator keeps these rules:

    * Its probabilities are mixed with a small share of the uniform distribution, ``1 / (n + 2)`` for n
      labelled rows. This is Laplace's rule of succession: after n rows, the chance of a surprise is about as
      large. So no comparator is certain, and none has an infinite loss.
    * A class without a labelled row has probability 0.
    * Equal arguments give equal probabilities. The global random generators are as before afterwards.
      Cross-validation deals out rows at random, so another order of rows may change the probabilities a
      little, as another seed does.

    Rows and labels may also be arrays, data frames, series or lists, as in
    :class:`~pyro_scnf.datasets.SemiSupervisedData`.

    :param x: training rows ``(N, D)``: the columns of a table, or embeddings.
    :param y: labels ``(N,)``, whole numbers from 0, and -1 or a gap where unknown.
    :param x_test: rows to classify, ``(M, D)``, with the same columns in the same order.
    :param num_classes: number of labels K; by default the largest label of ``y`` plus 1.
    :param int seed: seed of all random choices.
    :return: probabilities ``(M, K)`` in double precision, on the device of ``x``.
    :raises ValueError: for rows that are no table of finite numbers, or have other columns; for
        labels out of range, of another number, or none at all; for options out of range.
    :raises ImportError: without scikit-learn.
    """

    def __call__(
        self, x: Tensor, y: Tensor, x_test: Tensor, *, num_classes: int | None = None, seed: int = 0
    ) -> Tensor: ...


@dataclass(frozen=True)
class Task:
    """Rows to classify, and what there is to learn from. Every class has a labelled row.

    :ivar Tensor x: training rows ``(N, D)``, in double precision on the CPU.
    :ivar Tensor y: labels ``(N,)``, -1 where unknown.
    :ivar Tensor x_test: rows to classify, ``(M, D)``.
    :ivar int num_classes: number of labels K.
    :ivar int seed: seed of random choices.
    :ivar torch.device device: where networks may train.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    num_classes: int
    seed: int
    device: torch.device

    @property
    def known(self) -> Tensor:
        """Which rows are labelled, ``(N,)``."""
        return self.y != UNLABELLED

    @property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """The labelled rows and their labels."""
        return self.x[self.known], self.y[self.known]

    @property
    def unlabelled(self) -> Tensor:
        """The unlabelled rows; all rows, if each has a label."""
        return self.x if bool(self.known.all()) else self.x[~self.known]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Task:
        """The same task, with rows changed by a function of rows."""
        return replace(self, x=change(self.x), x_test=change(self.x_test))

    def without_labels(self, rows: Tensor) -> Task:
        """The same task without the labels of some training rows, which are the rows to classify.

        :param rows: their numbers.
        """
        y = self.y.clone()
        y[rows] = UNLABELLED
        return replace(self, y=y, x_test=self.x[rows])

    def part(self, rows: Tensor) -> Task:
        """The same task with some of its training rows.

        :param rows: their numbers.
        """
        return replace(self, x=self.x[rows], y=self.y[rows])


def solve(
    owner: str,
    fit: Callable[[Task], Tensor],
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    num_classes: int | None,
    seed: int,
) -> Tensor:
    """Check the arguments of a :class:`Comparator`, and let ``fit`` solve the task.

    :param str owner: the comparator, for messages.
    :param fit: computes log-probabilities ``(M, K)`` of the rows to classify. Its classes are those that have
        a labelled row. There are at least two of them.
    """
    if num_classes is not None:
        num_classes = check_whole("num_classes", num_classes, 1)
    seed = check_whole("seed", seed, 0, LARGEST_SEED)
    check_same_columns(x, x_test, "x_test", owner)
    check_same_index(x, y, "y", owner)
    given = _table(x, "x", owner)
    rows, others = (part.detach().cpu().double() for part in (given, _table(x_test, "x_test", owner)))
    if others.shape[1] != rows.shape[1]:
        raise ValueError(
            f"{owner}: x_test has {others.shape[1]} columns and x has {rows.shape[1]}; expected the same "
            "columns in the same order"
        )
    labels = as_labels(y, num_classes, "y", owner, unlabelled=True).cpu()
    if len(labels) != len(rows):
        raise ValueError(
            f"{owner}: y has {len(labels)} labels and x has {len(rows)} rows; expected a label for each row, "
            f"{UNLABELLED} where it is unknown"
        )
    known = labels != UNLABELLED
    if not bool(known.any()):
        raise ValueError(
            f"{owner}: y has no label in {len(labels)} rows, expected at least one; give the labels of some "
            "rows"
        )
    seen = labels[known].unique()
    probs = torch.zeros(len(others), num_classes or int(seen.max()) + 1, dtype=torch.double)
    if len(seen) == 1 or not len(others):
        probs[:, seen] = 1 / len(seen)
    else:
        numbers = torch.full((int(seen.max()) + 2,), UNLABELLED)  # the last one is that of -1
        numbers[seen] = torch.arange(len(seen))
        task = Task(rows, numbers[labels], others, len(seen), seed, given.device)
        with seeded(seed, task.device), torch.inference_mode(False), torch.enable_grad():
            probs[:, seen] = surprised(fit(task), int(known.sum())).detach()
    return probs.to(given.device, in_double(rows[:0].to(given.device)).dtype)


def surprised(log_probs: Tensor, count: int) -> Tensor:
    """Probabilities by the rule of succession after ``count`` labelled rows, see :class:`Comparator`."""
    share = 1 / (count + 2)
    return (1 - share) * log_probs.exp() + share / log_probs.shape[-1]


def _table(x: Tensor, name: str, owner: str) -> Tensor:
    """Raise unless ``x`` is a table of finite numbers. Arrays and data frames keep double precision."""
    rows = as_rows(x, name, owner, torch.float64)
    if rows.dim() != 2:
        raise ValueError(
            f"{owner}: {name} has shape {tuple(rows.shape)}, expected a table (N, D); give {name}.flatten(1)"
        )
    return rows
