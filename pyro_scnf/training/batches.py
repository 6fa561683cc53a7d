"""Batches as a function of the step number."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_scnf._checks import UNLABELLED, check_at_least
from pyro_scnf.datasets import SemiSupervisedData

__all__ = ["Batch", "StepBatches", "derive_seed"]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed of what is named: unlike sums of small numbers, no two names meet by accident."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def fingerprint(data: SemiSupervisedData) -> str:
    """What tells these data from others: a digest of training and validation rows, labels and links."""
    digest = hashlib.blake2b(digest_size=8)
    for value in (data.x, data.y, data.neighbours, data.x_val):
        if value is not None:
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Batch(NamedTuple):
    """One training step's data.

    :ivar int step: number of the step.
    :ivar x: labelled data ``(B_l, *event_shape)`` and
    :ivar y: their labels ``(B_l,)``; both ``None`` if nothing is labelled.
    :ivar x_unlabelled: unlabelled data ``(B_u, *event_shape)``, ``None`` if everything is labelled.
    :ivar pairs: ``(P, 2)``, rows of the two together, labelled ones first, that are neighbours; ``None``
        if the data have none.
    """

    step: int
    x: Tensor | None
    y: Tensor | None
    x_unlabelled: Tensor | None
    pairs: Tensor | None = None


class _Passes:
    """Shuffled passes over ``size`` rows, one after the other: no row comes again before all have come."""

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


class StepBatches(Dataset):
    """Labelled and unlabelled rows of any training step, ``batches[step]``.

    Both kinds are drawn in shuffled passes of their own, so their proportion in a batch is what you
    say it is, whatever it is in the data: with 85 labelled and 171 unlabelled rows a third of every
    batch is labelled, as in the SCNF code. A batch depends on the seed and the step alone, so
    training can go on from any step without replaying what came before.

    If the data have ``neighbours``, unlabelled rows come with them: one random neighbour for each
    labelled row, then rows of a pass, then a neighbour for each of those, ``batch_size`` in all. Labels
    of neighbours, where known, are not used. Rows that are neighbours of many come more often than
    others, and so count more in the density that is learned.

    :param data: training data; tensors may lie on any device, and batches lie where they do.
    :param int batch_size: unlabelled rows a step, over all processes; at most all there are.
    :param labelled_batch_size: labelled rows a step, over all processes; all of them by default.
        With more than there are, rows repeat.
    :param int seed: of the order.
    :param int rank: this process, of
    :param int world_size: so many; each takes an equal share of the same global batch.
    :raises ValueError: for sizes below 1, or that the processes cannot share equally; with neighbours,
        if ``batch_size`` less the labelled rows is no even number above 0.
    """

    def __init__(
        self,
        data: SemiSupervisedData,
        batch_size: int,
        labelled_batch_size: int | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        if not len(data.x):
            raise ValueError("data: x is empty, expected at least one row")
        self.x, self.y = data.x.to(device), data.y.to(device)
        self.seed = seed
        self.labelled_rows, self.unlabelled_rows = (
            rows.nonzero()[:, 0].cpu() for rows in (data.y != UNLABELLED, data.y == UNLABELLED)
        )
        self.rank, self.world_size = rank, world_size
        labelled, unlabelled = len(self.labelled_rows), len(self.unlabelled_rows)
        self.labelled_size = self._share(
            "labelled_batch_size", labelled if labelled_batch_size is None else labelled_batch_size, labelled
        )
        self.unlabelled_size = self._share(
            "batch_size", min(batch_size, unlabelled or batch_size), unlabelled
        )
        self.paired = data.neighbours is not None
        if data.neighbours is not None:
            self.table = self._check_neighbours(data.neighbours)
        self._labelled = _Passes(labelled, seed, "labelled")
        self._unlabelled = _Passes(unlabelled, seed, "unlabelled")

    def _share(self, name: str, rows: int, available: int) -> int:
        """Rows of one process."""
        if not available:
            return 0
        check_at_least(1, **{name: rows})
        if rows % self.world_size:
            raise ValueError(
                f"{name}: {self.world_size} processes cannot share {rows} of {available} rows equally; "
                f"give a multiple of {self.world_size}"
            )
        return rows // self.world_size

    def _check_neighbours(self, neighbours: Tensor) -> Tensor:
        """The table of neighbours, where the index is."""
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

    def __getitem__(self, step: int) -> Batch:
        labelled, pairs = self._mine(self._labelled, self.labelled_rows, step, self.labelled_size), None
        if self.paired:
            unlabelled, pairs = self._with_neighbours(step, labelled)
        else:
            unlabelled = self._mine(self._unlabelled, self.unlabelled_rows, step, self.unlabelled_size)
        return Batch(
            step,
            self.x[labelled] if len(labelled) else None,
            self.y[labelled] if len(labelled) else None,
            self.x[unlabelled] if len(unlabelled) else None,
            pairs,
        )

    def _mine(self, passes: _Passes, rows: Tensor, step: int, size: int) -> Tensor:
        """This process's share of a global batch, as rows of the data."""
        if not size:
            return rows[:0]
        total = size * self.world_size
        return rows[passes.rows(step * total, total)[self._share_of(size)]]

    def _share_of(self, size: int) -> slice:
        return slice(self.rank * size, (self.rank + 1) * size)

    def _with_neighbours(self, step: int, labelled: Tensor) -> tuple[Tensor, Tensor]:
        n, free = self.labelled_size, (self.unlabelled_size - self.labelled_size) // 2
        anchors = self._mine(self._unlabelled, self.unlabelled_rows, step, free)
        # Drawn for the global batch, so that the pairs do not depend on how many share it.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "neighbours", step))
        near = []
        for rows, size in ((labelled, n), (anchors, free)):
            chosen = torch.randint(self.table.shape[1], (size * self.world_size,), generator=generator)
            near.append(self.table[rows, chosen[self._share_of(size)]])
        unlabelled = torch.cat([near[0], anchors, near[1]])
        # By their numbers in the batch: the labelled, their neighbours, the anchors, their neighbours.
        first = torch.cat([torch.arange(n), 2 * n + torch.arange(free)])
        second = torch.cat([n + torch.arange(n), 2 * n + free + torch.arange(free)])
        return unlabelled, torch.stack([first, second], -1).to(self.y.device)
