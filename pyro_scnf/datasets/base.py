"""What every data set here is: few labels, many without, a test set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED, check_labels

__all__ = ["SemiSupervisedData"]


@dataclass(frozen=True)
class SemiSupervisedData:
    """A training set whose labels are mostly hidden, and a labelled test set.

    :ivar Tensor x: training data ``(N, *event_shape)``, the labelled rows included.
    :ivar Tensor y: their labels ``(N,)``, -1 where hidden.
    :ivar Tensor x_test: test data.
    :ivar Tensor y_test: all test labels.
    :ivar int num_classes: number of labels K.
    :ivar x_val: held-out unlabelled training data, ``None`` before :meth:`hold_out`.
    :ivar y_val: their true labels where :meth:`hold_out` was told them, else ``None``. These are
        hidden labels: a validation error may be watched, but a model chosen by it has seen more
        labels than ``y`` shows.
    :ivar neighbours: ``(N, k)``, the rows of ``x`` that are most like each row and probably share its
        label (:func:`~pyro_scnf.datasets.link_neighbours`), or ``None``.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    x_val: Tensor | None = None
    y_val: Tensor | None = None
    neighbours: Tensor | None = None

    @property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """The labelled rows and their labels (copies)."""
        known = self.y != UNLABELLED
        return self.x[known], self.y[known]

    @property
    def unlabelled(self) -> Tensor:
        """The unlabelled rows (a copy)."""
        return self.x[self.y == UNLABELLED]

    def test_examples(self) -> tuple[Tensor, Tensor]:
        """The first test row of each class, and their labels."""
        classes = self.y_test.unique()
        rows = torch.stack([(self.y_test == k).nonzero()[0, 0] for k in classes])
        return self.x_test[rows], classes

    def hold_out(self, size: int, seed: int = 0, truth: Tensor | None = None) -> SemiSupervisedData:
        """Move ``size`` random unlabelled rows to ``x_val``, to tell when to stop.

        :param truth: the true labels ``(N,)`` of all rows, if at hand; those of the rows moved
            become ``y_val``.
        :raises ValueError: if fewer are unlabelled, if rows were held out or linked before, or if ``truth``
            contradicts ``y``.
        """
        if self.x_val is not None:
            raise ValueError(f"x_val: {len(self.x_val)} rows are held out already; hold out all at once")
        if self.neighbours is not None:
            raise ValueError("neighbours: are those of rows about to move; hold out first, then link")
        rows = (self.y == UNLABELLED).nonzero()[:, 0]
        if not 0 < size < len(rows):
            raise ValueError(
                f"size={size}: expected 1 to {len(rows) - 1}, there are {len(rows)} unlabelled rows"
            )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        keep = torch.ones(len(self.x), dtype=torch.bool)
        keep[rows[order[:size]]] = False
        y_val = None if truth is None else self._check_truth(truth)[~keep]
        return replace(self, x=self.x[keep], y=self.y[keep], x_val=self.x[~keep], y_val=y_val)

    def _check_truth(self, truth: Tensor) -> Tensor:
        """Labels of all rows, equal to ``y`` where it shows them."""
        truth = check_labels(truth, self.num_classes, "truth", "hold_out")
        if truth.shape != self.y.shape:
            raise ValueError(f"truth has shape {tuple(truth.shape)}, expected {tuple(self.y.shape)}")
        wrong = int(((truth != self.y) & (self.y != UNLABELLED)).sum())
        if wrong:
            raise ValueError(f"truth: contradicts y in {wrong} labelled rows; are its rows those of x?")
        return truth
