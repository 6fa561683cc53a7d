"""Batches as a function of the step number."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_scnf._checks import check_at_least
from pyro_scnf.datasets import SemiSupervisedData

__all__ = ["Batch", "StepBatches", "derive_seed"]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed of what is named: unlike sums of small numbers, no two names meet by accident."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Batch(NamedTuple):
    """One training step's data.

    :ivar int step: number of the step.
    :ivar x: labelled data ``(B_l, *event_shape)`` and
    :ivar y: their labels ``(B_l,)``; both ``None`` if nothing is labelled.
    :ivar x_unlabelled: unlabelled data ``(B_u, *event_shape)``, ``None`` if everything is labelled.
    """

    step: int
    x: Tensor | None
    y: Tensor | None
    x_unlabelled: Tensor | None


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

    :param data: training data; tensors may lie on any device, and batches lie where they do.
    :param int batch_size: unlabelled rows a step, over all processes; at most all there are.
    :param labelled_batch_size: labelled rows a step, over all processes; all of them by default.
        With more than there are, rows repeat.
    :param int seed: of the order.
    :param int rank: this process, of
    :param int world_size: so many; each takes an equal share of the same global batch.
    :raises ValueError: for sizes below 1, or that the processes cannot share equally.
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
        x, y = data.labelled
        self.x, self.y, self.x_unlabelled = x.to(device), y.to(device), data.unlabelled.to(device)
        self.rank, self.world_size = rank, world_size
        self.labelled_size = self._share(
            "labelled_batch_size", len(x) if labelled_batch_size is None else labelled_batch_size, len(x)
        )
        available = len(self.x_unlabelled)
        self.unlabelled_size = self._share("batch_size", min(batch_size, available or batch_size), available)
        if not len(data.x):
            raise ValueError("data: x is empty, expected at least one row")
        self._labelled = _Passes(len(x), seed, "labelled")
        self._unlabelled = _Passes(len(self.x_unlabelled), seed, "unlabelled")

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

    def __getitem__(self, step: int) -> Batch:
        labelled = self._mine(self._labelled, step, self.labelled_size)
        unlabelled = self._mine(self._unlabelled, step, self.unlabelled_size)
        return Batch(
            step,
            None if labelled is None else self.x[labelled],
            None if labelled is None else self.y[labelled],
            None if unlabelled is None else self.x_unlabelled[unlabelled],
        )

    def _mine(self, passes: _Passes, step: int, size: int) -> Tensor | None:
        if not size:
            return None
        total = size * self.world_size
        rows = passes.rows(step * total, total)[self.rank * size : (self.rank + 1) * size]
        return rows.to(self.y.device, non_blocking=True)
