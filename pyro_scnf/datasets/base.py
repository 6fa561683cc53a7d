"""The class of all data sets: few labelled rows, many unlabelled rows, and a test set."""

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
    :ivar Tensor y: labels of ``x``, ``(N,)``, -1 where hidden.
    :ivar Tensor x_test: test data.
    :ivar Tensor y_test: labels of all test data.
    :ivar int num_classes: number of labels K.
    :ivar x_val: unlabelled rows held out for validation; ``None`` before :meth:`hold_out`.
    :ivar y_val: true labels of ``x_val`` if :meth:`hold_out` was given them, else ``None``. They are hidden
        labels. You may watch the validation error, but a model that is chosen by it has seen more labels
        than ``y`` shows.
    :ivar neighbours: ``(N, k)``: for each row of ``x``, the numbers of the k rows most like it. They
        probably share its label. ``None`` before :func:`~pyro_scnf.datasets.link_neighbours`.
    :ivar label_log_prior: evidence about the labels of single rows, from a graph, annotators or another
        model: normalised log-probabilities ``(N, K)``, or ``None``. In training it takes the place of
        :math:`\\log p(y)` in the rows without label. Validation and testing do not use it.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    x_val: Tensor | None = None
    y_val: Tensor | None = None
    neighbours: Tensor | None = None
    label_log_prior: Tensor | None = None

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
        """The first test row of each class, and the labels of these rows."""
        classes = self.y_test.unique()
        rows = torch.stack([(self.y_test == k).nonzero()[0, 0] for k in classes])
        return self.x_test[rows], classes

    def hold_out(self, size: int, seed: int = 0, truth: Tensor | None = None) -> SemiSupervisedData:
        """Move ``size`` random unlabelled rows to ``x_val``, for validation.

        :param int size: number of rows to move. At least one unlabelled row has to stay.
        :param int seed: seed of the choice.
        :param truth: true labels ``(N,)`` of all rows, if known. Those of the moved rows become ``y_val``.
        :raises ValueError: if there are too few unlabelled rows, if rows were held out or linked before, or
            if ``truth`` contradicts ``y``.
        """
        if self.x_val is not None:
            raise ValueError(f"x_val: {len(self.x_val)} rows are held out already; hold out all at once")
        if self.neighbours is not None:
            raise ValueError("neighbours: moving rows would break the links; hold out first, then link")
        rows = (self.y == UNLABELLED).nonzero()[:, 0]
        if not 0 < size < len(rows):
            raise ValueError(
                f"size={size}: expected 1 to {len(rows) - 1}, there are {len(rows)} unlabelled rows"
            )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        keep = torch.ones(len(self.x), dtype=torch.bool)
        keep[rows[order[:size]]] = False
        y_val = None if truth is None else self._check_truth(truth)[~keep]
        evidence = None if self.label_log_prior is None else self.label_log_prior[keep]
        return replace(
            self,
            x=self.x[keep],
            y=self.y[keep],
            x_val=self.x[~keep],
            y_val=y_val,
            label_log_prior=evidence,
        )

    def _check_truth(self, truth: Tensor) -> Tensor:
        """Raise unless ``truth`` holds a label for every row and agrees with ``y``. Return it as int64."""
        truth = check_labels(truth, self.num_classes, "truth", "hold_out")
        if truth.shape != self.y.shape:
            raise ValueError(f"truth has shape {tuple(truth.shape)}, expected {tuple(self.y.shape)}")
        wrong = int(((truth != self.y) & (self.y != UNLABELLED)).sum())
        if wrong:
            raise ValueError(f"truth: contradicts y in {wrong} labelled rows; expected the labels of x")
        return truth
