"""Batches as a function of the step number."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from pyro_scnf._checks import UNLABELLED, check_row_labels
from pyro_scnf._labels import check_label_log_prior
from pyro_scnf._numbers import check_at_least, check_kinds
from pyro_scnf.datasets import SemiSupervisedData

__all__ = ["Batch", "StepBatches", "as_batch", "as_rows", "derive_seed", "going_on"]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed, hashed from ``parts``.

    Sums of small numbers would often give two streams of noise the same seed. A hash practically never does.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def fingerprint(data: SemiSupervisedData) -> str:
    """A digest of training rows, validation rows, labels, links and evidence. Other data have another one."""
    digest = hashlib.blake2b(digest_size=8)
    for value in (data.x, data.y, data.neighbours, data.x_val, data.label_log_prior):
        if value is not None:
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Batch(NamedTuple):
    """The data of one training step.

    :ivar int step: number of the step.
    :ivar x: labelled data ``(B_l, *event_shape)``; ``None`` if the data have no labels.
    :ivar y: labels of ``x``, ``(B_l,)``; ``None`` if the data have no labels.
    :ivar x_unlabelled: unlabelled data ``(B_u, *event_shape)``; ``None`` if every row is labelled.
    :ivar pairs: pairs of neighbours ``(P, 2)``, as row numbers in ``torch.cat([x, x_unlabelled])``;
        ``None`` if the data have no ``neighbours``.
    :ivar label_log_prior: evidence about the labels of ``x_unlabelled``, ``(B_u, K)``; ``None`` if the data
        have none.
    """

    step: int
    x: Tensor | None
    y: Tensor | None
    x_unlabelled: Tensor | None
    pairs: Tensor | None = None
    label_log_prior: Tensor | None = None


def as_batch(given: object, step: int, num_classes: int) -> Batch:
    """What a loader gives for one training step, as a :class:`Batch`.

    :param given: a :class:`Batch`; x, ``(x,)`` or ``(x, y)`` with labels of -1 where they are unknown.
    :param int step: number of the step, for rows that do not tell it.
    """
    if isinstance(given, Batch):
        return given
    x, y = as_rows(given, num_classes)
    if y is None:
        return Batch(step, None, None, x)
    known = y != UNLABELLED
    if known.all():
        return Batch(step, x, y, None)
    if not known.any():
        return Batch(step, None, None, x)
    return Batch(step, x[known], y[known], x[~known])


def going_on(given: object, loader: object, number: int) -> object:
    """The batch number ``number`` of a run, in place of the one that a loader gives.

    A loop over :class:`StepBatches` begins anew in each epoch, and in a resumed run. The steps of a run go
    on. What comes from any other loader, or in an order that the user chose, stays as it is.
    """
    if isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler):
        loader = loader.dataset
    if not isinstance(given, Batch) or not isinstance(loader, StepBatches) or given.step == number:
        return given
    return loader[number]


def as_rows(given: object, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """x and y in what a loader gives: x, ``(x,)`` or ``(x, y)``."""
    parts = list(given) if isinstance(given, list | tuple) else [given]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if isinstance(given, Batch) or len(parts) not in (1, 2) or len(tensors) < len(parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(
            f"the loader gives a {type(given).__name__} ({kinds}); expected x, (x,) or (x, y), or in "
            "training a Batch of StepBatches, all of tensors"
        )
    x, *labels = tensors
    return x, check_row_labels(labels[0], len(x), num_classes, "the loader") if labels else None


class _Passes:
    """An endless sequence of row numbers: shuffled passes over ``size`` rows, one after the other.

    Each pass has every row once.
    """

    def __init__(self, size: int, *seed: int | str) -> None:
        self.size, self.seed = size, seed
        self._latest: tuple[int, Tensor] | None = None

    def rows(self, start: int, count: int) -> Tensor:
        """Rows ``start .. start + count - 1`` of the endless sequence."""
        pieces = []
        while count:
            number, offset = divmod(start, self.size)
            piece = self._order(number)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return torch.cat(pieces)

    def _order(self, number: int) -> Tensor:
        if self._latest is None or self._latest[0] != number:
            generator = torch.Generator().manual_seed(derive_seed(*self.seed, number))
            self._latest = number, torch.randperm(self.size, generator=generator)
        return self._latest[1]


class StepBatches(Dataset[Batch]):
    """The labelled and unlabelled rows of any training step: ``batches[step]``.

    It is a data set of PyTorch. A loop over it, and a ``DataLoader(batches, batch_size=None)``, give
    ``len(batches)`` batches, those of the steps ``0 .. len(batches) - 1``. ``batches[step]`` gives that of
    any step. In training with :class:`SemiSupervisedTask`, the next epoch goes on where the last one ended.

    Labelled and unlabelled rows are drawn in separate shuffled passes. The two batch sizes set their
    proportion in a batch, whatever it is in the data. With sizes of 85 and 171, for example, a third of
    every batch is labelled, as in the SCNF code. A batch depends only on the seed and the step. Training can
    therefore go on from any step without replaying the steps before it.

    If the data have ``neighbours``, the ``batch_size`` unlabelled rows of a batch are, in this order: a
    random neighbour of each labelled row, some rows of the pass, and a random neighbour of each of those.
    The labels of neighbours are not used, even where they are known. A row that is a neighbour of many
    others is drawn more often, and so has more weight in the learned density.

    :param data: training data.
    :param int batch_size: unlabelled rows a step, over all processes. If the data have fewer unlabelled
        rows, a step takes all of them. If every row is labelled, it is the default of
        ``labelled_batch_size``.
    :param labelled_batch_size: labelled rows a step, over all processes; all of them by default. If the
        data have fewer labelled rows, rows repeat. If every row is labelled, the default is ``batch_size``,
        or all rows if these are fewer.
    :param steps: how many batches a loop or a loader takes. By default as many as show every unlabelled row;
        if every row is labelled, every row.
    :param int seed: seed of the order of rows.
    :param int rank: number of this process.
    :param int world_size: number of processes. Each takes an equal share of the same global batch.
    :param device: device of the batches; by default that of ``data``.
    :raises ValueError: for sizes below 1, or sizes that the processes cannot share equally; with
        neighbours, if ``batch_size`` less the labelled rows is not an even number above 0.
    """

    def __init__(
        self,
        data: SemiSupervisedData,
        batch_size: int,
        labelled_batch_size: int | None = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        check_kinds(data=(data, SemiSupervisedData))
        if not len(data.x):
            raise ValueError("data: x is empty, expected at least one row")
        self.x, self.y = data.x.to(device), data.y.to(device)
        self.seed = seed
        self.labelled_rows, self.unlabelled_rows = (
            rows.nonzero()[:, 0].cpu() for rows in (data.y != UNLABELLED, data.y == UNLABELLED)
        )
        check_at_least(1, world_size=world_size, batch_size=batch_size)
        check_at_least(1, labelled_batch_size=1 if labelled_batch_size is None else labelled_batch_size)
        check_at_least(0, rank=rank)
        if rank >= world_size:
            raise ValueError(f"rank={rank}: expected a number below world_size={world_size}")
        self.rank, self.world_size = rank, world_size
        labelled, unlabelled = len(self.labelled_rows), len(self.unlabelled_rows)
        name, size = "labelled_batch_size", labelled_batch_size
        if size is None:
            # A step with all rows of a large data set would not fit into memory.
            name, size = (name, labelled) if unlabelled else ("batch_size", min(batch_size, labelled))
        self.labelled_size = self._share(name, size, labelled)
        self.unlabelled_size = self._share(
            "batch_size", min(batch_size, unlabelled or batch_size), unlabelled
        )
        self.neighbours = None if data.neighbours is None else self._check_neighbours(data.neighbours)
        self.evidence = None if data.label_log_prior is None else self._check_evidence(data).to(device)
        self._labelled = _Passes(labelled, seed, "labelled")
        self._unlabelled = _Passes(unlabelled, seed, "unlabelled")
        check_at_least(1, steps=1 if steps is None else steps)
        self.steps = self._steps_of_a_pass() if steps is None else steps

    def _steps_of_a_pass(self) -> int:
        """How many steps show every unlabelled row, or every row if all are labelled."""
        share = self.unlabelled_size or self.labelled_size
        if self.neighbours is not None:
            share = self._pairs_of_unlabelled
        return math.ceil((self._unlabelled.size or self._labelled.size) / (share * self.world_size))

    @property
    def _pairs_of_unlabelled(self) -> int:
        """How many pairs of two unlabelled rows a process takes in a step."""
        return (self.unlabelled_size - self.labelled_size) // 2

    def _share(self, name: str, rows: int, available: int) -> int:
        """How many of ``rows`` one process takes."""
        if not available:
            return 0
        if rows % self.world_size:
            raise ValueError(
                f"{name}: {self.world_size} processes cannot share {rows} of {available} rows equally; "
                f"give a multiple of {self.world_size}"
            )
        return rows // self.world_size

    def _check_neighbours(self, neighbours: Tensor) -> Tensor:
        """Raise unless ``neighbours`` fits the data and the batch sizes. Return it on the CPU."""
        rows, free = len(self.x), self.unlabelled_size - self.labelled_size
        if not self.labelled_size or not self.unlabelled_size:
            raise ValueError("neighbours: pairs need both labelled and unlabelled rows")
        if neighbours.dim() != 2 or len(neighbours) != rows or neighbours.is_floating_point():
            raise ValueError(
                f"neighbours has shape {tuple(neighbours.shape)} and dtype {neighbours.dtype}, expected row "
                f"numbers ({rows}, k)"
            )
        if neighbours.min() < 0 or neighbours.max() >= rows:
            raise ValueError(f"neighbours: expected rows 0..{rows - 1}; hold out first, then link")
        if free < 2 or free % 2:
            raise ValueError(
                f"batch_size: {self.unlabelled_size} unlabelled rows a process, of which "
                f"{self.labelled_size} are neighbours of labelled ones, leave {free} for pairs; expected "
                "an even number above 0"
            )
        return neighbours.cpu()

    def _check_evidence(self, data: SemiSupervisedData) -> Tensor:
        """Raise unless the evidence fits the data and is of use. Return it."""
        assert data.label_log_prior is not None
        if not self.unlabelled_size:
            raise ValueError("data: label_log_prior is evidence about unlabelled rows, and there are none")
        like = data.label_log_prior
        return check_label_log_prior(like, (len(self.x),), data.num_classes, like, "data")

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return map(self.__getitem__, range(self.steps))

    def __getitem__(self, step: SupportsIndex) -> Batch:
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step={step}: expected a number of at least 0")
        labelled, pairs = self._mine(self._labelled, self.labelled_rows, step, self.labelled_size), None
        if self.neighbours is not None:
            unlabelled, pairs = self._with_neighbours(self.neighbours, step, labelled)
        else:
            unlabelled = self._mine(self._unlabelled, self.unlabelled_rows, step, self.unlabelled_size)
        return Batch(
            step,
            self.x[labelled] if len(labelled) else None,
            self.y[labelled] if len(labelled) else None,
            self.x[unlabelled] if len(unlabelled) else None,
            pairs,
            None if self.evidence is None else self.evidence[unlabelled],
        )

    def _mine(self, passes: _Passes, rows: Tensor, step: int, size: int) -> Tensor:
        """The share of this process in a global batch, as row numbers of the data."""
        if not size:
            return rows[:0]
        total = size * self.world_size
        return rows[passes.rows(step * total, total)[self._share_of(size)]]

    def _share_of(self, size: int) -> slice:
        """The rows of a global batch that this process takes. Each process takes ``size`` of them."""
        return slice(self.rank * size, (self.rank + 1) * size)

    def _with_neighbours(self, table: Tensor, step: int, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """The unlabelled rows of a step, as row numbers of the data, and the pairs in its batch."""
        n, free = self.labelled_size, self._pairs_of_unlabelled
        anchors = self._mine(self._unlabelled, self.unlabelled_rows, step, free)
        # Draw for the global batch. The pairs then do not depend on the number of processes.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "neighbours", step))
        near = []
        for rows, size in ((labelled, n), (anchors, free)):
            chosen = torch.randint(table.shape[1], (size * self.world_size,), generator=generator)
            near.append(table[rows, chosen[self._share_of(size)]])
        unlabelled = torch.cat([near[0], anchors, near[1]])
        # Rows lie in the batch in this order: labelled rows, their neighbours, anchors, their neighbours.
        first = torch.cat([torch.arange(n), 2 * n + torch.arange(free)])
        second = torch.cat([n + torch.arange(n), 2 * n + free + torch.arange(free)])
        return unlabelled, torch.stack([first, second], -1).to(self.y.device)
