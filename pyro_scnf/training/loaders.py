"""The data of a run, as a Lightning data module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_scnf._extras import require
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.training.batches import Batch, StepBatches
from pyro_scnf.training.options import Machine

if TYPE_CHECKING:
    import lightning.pytorch as lightning
else:
    lightning = require("lightning.pytorch", "train")

__all__ = ["Loaders"]

VALIDATION_ROWS = 500
"""About this many validation rows are scored at a time."""

T = TypeVar("T")


class Loaders(lightning.LightningDataModule):
    """Batches for training, one a step, and chunks of the held-out rows for validation.

    :param data: the whole data set.
    :param int batch_size: unlabelled rows a step, see :class:`StepBatches`.
    :param labelled_batch_size: labelled rows a step, see :class:`StepBatches`.
    :param int steps: length of the run.
    :param int seed: seed of the order of rows.
    :param machine: says on which device the data lie, and how many processes pick batches.
    """

    def __init__(
        self,
        data: SemiSupervisedData,
        batch_size: int,
        labelled_batch_size: int | None,
        *,
        steps: int,
        seed: int,
        machine: Machine,
    ) -> None:
        super().__init__()
        self.data, self.steps, self.seed, self.machine = data, steps, seed, machine
        self.batch_size, self.labelled_batch_size = batch_size, labelled_batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        trainer = self._trainer()
        batches = StepBatches(
            self.data,
            self.batch_size,
            self.labelled_batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            device=self._home(),
        )
        # A resumed trainer starts this loader from its beginning, so the loader begins at the trainer's step.
        # The trainer expects it to have the full length.
        return self._loader(batches, range(trainer.global_step, trainer.global_step + self.steps))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        rows = [t for t in (self.data.x_val, self.data.y_val) if t is not None]
        rank, world_size = self._trainer().global_rank, self._trainer().world_size
        # Every process gets the same number of chunks, because processes wait for each other.
        chunks = world_size * math.ceil(len(rows[0]) / (VALIDATION_ROWS * world_size))
        mine = zip(*(t.to(self._home()).tensor_split(chunks)[rank::world_size] for t in rows), strict=True)
        return self._loader(_Chunks(list(mine)))

    def _trainer(self) -> lightning.Trainer:
        assert self.trainer is not None, "loaders are made by a trainer"
        return self.trainer

    def _home(self) -> torch.device | None:
        """The device on which the data lie during the run; ``None`` leaves them on their own."""
        return self._trainer().strategy.root_device if self.machine.data_on_device else None

    def _loader(self, dataset: Dataset[T], sampler: range | None = None) -> DataLoader[T]:
        elsewhere = not self.machine.data_on_device
        workers = self.machine.num_workers if elsewhere else 0
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=elsewhere and self._trainer().strategy.root_device.type == "cuda",
        )


class _Chunks(Dataset[tuple[Tensor, ...]]):
    """Validation rows, cut into chunks: ``(x,)`` or ``(x, y)``."""

    def __init__(self, chunks: list[tuple[Tensor, ...]]) -> None:
        self.chunks = chunks

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.chunks[index]

    def __len__(self) -> int:
        return len(self.chunks)
