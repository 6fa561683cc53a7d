"""The class of all data sets: few labelled rows, many unlabelled rows, and a test set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._labels import check_label_log_prior
from pyro_scnf._numbers import check_at_least, check_whole
from pyro_scnf.datasets.convert import (
    as_floats,
    as_labels,
    as_row_numbers,
    as_rows,
    check_same_columns,
    check_same_index,
)

__all__ = ["SemiSupervisedData"]

OWNER = "SemiSupervisedData"


@dataclass(frozen=True)
class SemiSupervisedData:
    """A training set whose labels are mostly hidden, and a labelled test set.

    Give tensors, or NumPy arrays, data frames, series and lists, which are converted:

    * Tensors of data keep their dtype and are not copied. Those that require a gradient are detached, since
      data are constants. Other data become the default dtype of PyTorch, unless they are uint8, which are
      grey levels. Truth values become 0 and 1.
    * Labels are whole numbers ``0 .. K - 1`` of any dtype; with two classes, truth values too. In ``y``, a
      row without a label holds -1 or a gap (NaN, ``None``, ``pandas.NA``).
    * Rows are matched by their place, not by an index.

    >>> rows, labels = [[0.1, 2.0], [0.3, 1.0], [0.2, 4.0]], [0, None, 1]
    >>> data = SemiSupervisedData(rows, labels, rows[:1], labels[:1], num_classes=2)
    >>> data.x.dtype, data.y
    (torch.float32, tensor([ 0, -1,  1]))

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
        :math:`\\log p(y)` in the rows without label. Validation in ``fit`` and the tests of
        a trainer do not use it.
    :ivar class_names: a name for each label ``0 .. K - 1``, all different, or ``None``.
    :ivar column_names: a name for each column of the rows of a table ``(N, D)``, all different, or ``None``.
    :raises ValueError: for what holds no numbers, such as a column of words; for NaN or infinity in data; for
        labels out of range, or missing in ``y_test`` or ``y_val``; for parts that differ in length, in the
        shape of a row, in dtype, device or columns. The message names the part.
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
    class_names: tuple[str, ...] | None = None
    column_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        classes: object = self.num_classes
        if isinstance(classes, Tensor | np.ndarray) and not classes.ndim:
            classes = classes.item()  # such as y.max() + 1
        self._set("num_classes", check_whole("num_classes", classes, 1))
        for name in ("x_test", "x_val"):
            check_same_columns(self.x, getattr(self, name), name, OWNER)
        self._convert("x", "y", unlabelled=True)
        self._convert("x_test", "y_test")
        if self.x_val is not None:
            self._convert("x_val", "y_val")
        elif self.y_val is not None:
            raise ValueError(f"{OWNER}: y_val is given without x_val, the rows whose labels it holds")
        if self.class_names is not None:
            self._set("class_names", _check_names("class_names", self.class_names, self.num_classes, "class"))
        if self.column_names is not None:
            if self.x.dim() != 2:
                raise ValueError(
                    f"{OWNER}: column_names is given and x has shape {tuple(self.x.shape)}, expected rows of "
                    "a table (N, D)"
                )
            columns = self.x.shape[1]
            self._set("column_names", _check_names("column_names", self.column_names, columns, "column"))
        if self.neighbours is not None:
            self._set("neighbours", self._check_neighbours(self.neighbours))
        if self.label_log_prior is not None:
            evidence = _constant(as_floats(self.label_log_prior, "label_log_prior", OWNER))
            check_label_log_prior(evidence, (len(self.x),), self.num_classes, evidence, "data")
            named = "label_log_prior" if isinstance(self.label_log_prior, Tensor) else None
            self._set("label_log_prior", self._beside("x", evidence, named))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass may set its fields only like this

    def _convert(self, rows: str, labels: str, unlabelled: bool = False) -> None:
        """Convert and check the field ``rows`` and the field ``labels`` of its labels."""
        given, truth = getattr(self, rows), getattr(self, labels)
        like = self.x.dtype if isinstance(self.x, Tensor) and self.x.is_floating_point() else None
        x = _constant(as_rows(given, rows, OWNER, like))
        self._set(rows, x)
        if x.shape[1:] != self.x.shape[1:]:
            raise ValueError(
                f"{OWNER}: {rows} has rows of shape {tuple(x.shape[1:])} and x has rows of shape "
                f"{tuple(self.x.shape[1:])}; expected the same"
            )
        if x.dtype != self.x.dtype:
            # Fractions must not become integers.
            floating = self.x.is_floating_point()
            both = self.x.dtype if floating else torch.promote_types(x.dtype, self.x.dtype)
            convert = " and ".join(
                f"{n}.to({both})" for n, v in (("x", self.x), (rows, x)) if v.dtype != both
            )
            raise ValueError(
                f"{OWNER}: {rows} has dtype {x.dtype} and x has {self.x.dtype}; expected the same, and "
                f"values on the same scale, such as {convert} of tensors"
            )
        if truth is None and labels == "y_val":
            return
        check_same_index(given, truth, labels, OWNER)
        y = as_labels(truth, self.num_classes, labels, OWNER, unlabelled=unlabelled)
        if len(y) != len(x):
            raise ValueError(
                f"{OWNER}: {labels} has {len(y)} labels and {rows} has {len(x)} rows; expected a label for "
                "each row"
            )
        self._set(labels, self._beside(rows, y, labels if isinstance(truth, Tensor) else None))

    def _beside(self, rows: str, value: Tensor, name: str | None) -> Tensor:
        """``value`` on the device of the field ``rows``. If it was given as a tensor, ``name`` it."""
        device = getattr(self, rows).device
        if name is not None and value.device != device:
            raise ValueError(
                f"{OWNER}: {name} is on {value.device} and {rows} on {device}; give "
                f"{name}.to({str(device)!r})"
            )
        return value.to(device)

    def _check_neighbours(self, value: object) -> Tensor:
        """Raise unless there are row numbers of neighbours for each row. Return them as int64."""
        neighbours, rows = as_row_numbers(value, "neighbours", OWNER), len(self.x)
        integers = not (neighbours.is_floating_point() or neighbours.is_complex())
        fits = neighbours.dim() == 2 and len(neighbours) == rows and neighbours.shape[1] > 0
        if not fits or not integers or neighbours.dtype == torch.bool:
            raise ValueError(
                f"{OWNER}: neighbours has shape {tuple(neighbours.shape)} and dtype {neighbours.dtype}, "
                f"expected row numbers ({rows}, k)"
            )
        if neighbours.numel() and (neighbours.min() < 0 or neighbours.max() >= rows):
            raise ValueError(f"{OWNER}: neighbours: expected rows 0..{rows - 1}; hold out first, then link")
        own = torch.arange(rows, device=neighbours.device)[:, None]
        if rows and bool((neighbours == own).any(1).all()):
            raise ValueError(
                f"{OWNER}: neighbours: each row names itself, expected other rows; leave out the first "
                "column of scikit-learn's kneighbors(x)"
            )
        return neighbours.long()

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
        """The first test row of each class that has one, and the labels of these rows."""
        classes = self.y_test.unique()
        rows = [int((self.y_test == k).nonzero()[0, 0]) for k in classes]
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
        check_at_least(1, size=size)
        check_at_least(0, seed=seed)
        rows = (self.y == UNLABELLED).nonzero()[:, 0]
        if not 0 < size < len(rows):
            most = f"expected 1 to {len(rows) - 1}" if len(rows) > 1 else "none can be held out"
            raise ValueError(
                f"size={size}: {most}, there are {len(rows)} unlabelled rows and one has to stay"
            )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(int(seed)))
        keep = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        keep[rows[order[:size].to(rows.device)]] = False
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

    def _check_truth(self, truth: object) -> Tensor:
        """Raise unless ``truth`` holds a label for every row and agrees with ``y``. Return it as int64."""
        labels = as_labels(truth, self.num_classes, "truth", "hold_out").to(self.y.device)
        if labels.shape != self.y.shape:
            raise ValueError(f"truth has shape {tuple(labels.shape)}, expected {tuple(self.y.shape)}")
        wrong = int(((labels != self.y) & (self.y != UNLABELLED)).sum())
        if wrong:
            raise ValueError(f"truth: contradicts y in {wrong} labelled rows; expected the labels of x")
        return labels


def _constant(x: Tensor) -> Tensor:
    """``x`` itself, or detached if it requires a gradient, so that training writes none into it."""
    return x.detach() if x.requires_grad else x


def _check_names(name: str, value: object, count: int, each: str) -> tuple[str, ...]:
    """Raise unless ``value`` holds ``count`` strings, no two alike. Return them as a tuple."""
    names = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not all(isinstance(entry, str) for entry in names):
        raise ValueError(f"{OWNER}: {name} is {value!r}, expected a string for each {each}")
    if len(names) != count or len(set(names)) != len(names):
        raise ValueError(
            f"{OWNER}: {name} has {len(set(names))} different names, expected {count}, one for each {each}"
        )
    return names
