"""Lightning's trainer, set up for :func:`~pyro_scnf.training.fit`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_scnf._extras import require
from pyro_scnf.training.batches import Batch
from pyro_scnf.training.checkpoint import AtomicCheckpointIO, Checkpoints
from pyro_scnf.training.folder import LOCK, LOGS, MARK
from pyro_scnf.training.options import Machine, Optimisation

if TYPE_CHECKING:
    import lightning.pytorch as lightning
    from lightning.pytorch import callbacks, loggers, utilities
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
    from lightning.pytorch.plugins import environments
    from lightning.pytorch.utilities.types import STEP_OUTPUT
else:
    lightning = require("lightning.pytorch", "train")
    callbacks = require("lightning.pytorch.callbacks", "train")
    loggers = require("lightning.pytorch.loggers", "train")
    environments = require("lightning.pytorch.plugins.environments", "train")
    utilities = require("lightning.pytorch.utilities", "train")

__all__ = ["Log", "make_trainer", "quiet"]

Log = Literal["csv", "tensorboard"]

LOG_EVERY = 10  # steps

_IRRELEVANT = (
    ".*does not have many workers",  # picking rows takes almost no time
    ".*dataloader is not resumable",  # it need not be: the loader begins at the trainer's step
    ".*is smaller than the logging interval",  # a run of a few steps logs its validations
    ".*LeafSpec.* is deprecated",  # Lightning's own code uses it
)
"""Warnings of Lightning that do not apply here."""


class _Average(callbacks.WeightAveraging):
    """Exponential moving average of the weights, updated in one kernel.

    During the first ``start`` steps the average is a copy of the weights.
    """

    def __init__(self, decay: float, start: int) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.start = start

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step <= self.start and self._average_model is not None:
            averaged: Tensor = self._average_model.n_averaged
            averaged.zero_()  # the next update copies


class _Bar(callbacks.TQDMProgressBar):
    """One bar for all training steps. It shows the results of validation, but has no bar for it."""

    def init_validation_tqdm(self) -> Tqdm:
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar


def make_trainer(
    kept: Checkpoints,
    *,
    optimisation: Optimisation,
    machine: Machine,
    validate: bool,
    log: Log | None,
    progress: bool,
) -> lightning.Trainer:
    """The trainer of a run.

    :param kept: writes the checkpoints, and knows the folder and the length of the run.
    :param bool validate: whether there are rows to validate on.
    """
    made: list[callbacks.Callback] = [kept]
    if optimisation.ema_decay is not None:
        # With a longer memory, the average of a short run would hold mostly its first weights.
        decay = min(optimisation.ema_decay, max(0.0, 1 - 3 / kept.steps))
        made.append(_Average(decay, start=min(kept.steps // 10, 100)))
    if progress:
        made.append(_Bar(refresh_rate=10))
    return lightning.Trainer(
        max_steps=kept.steps,
        accelerator="gpu" if machine.device == "cuda" else machine.device,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy="ddp" if machine.processes > 1 else "auto",
        use_distributed_sampler=False,  # StepBatches gives each process its share
        precision="32-true" if machine.precision == "32" else machine.precision,
        callbacks=made,
        plugins=[AtomicCheckpointIO(), *_cluster()],
        # On SLURM, Lightning goes on from any hpc_ckpt_1.ckpt in this folder by itself. The lock is a file.
        default_root_dir=kept.folder / LOCK,
        logger=_logger(log, kept.folder),
        log_every_n_steps=LOG_EVERY,
        gradient_clip_val=optimisation.gradient_clip,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
        val_check_interval=kept.every,
    )


def _cluster() -> list[environments.SLURMEnvironment]:
    """SLURM without Lightning's own way to go on, where SLURM starts the processes."""
    by_slurm = environments.SLURMEnvironment.detect() and not environments.TorchElasticEnvironment.detect()
    return [environments.SLURMEnvironment(auto_requeue=False)] if by_slurm else []


def _logger(log: Log | None, folder: Path) -> loggers.Logger | Literal[False]:
    if log == "csv":
        return _Late(lambda: loggers.CSVLogger(folder, name=LOGS[log]))
    if log == "tensorboard":
        require("tensorboard", "tensorboard")
        return _Late(lambda: loggers.TensorBoardLogger(folder, name=LOGS[log]))
    return False


class _Late(loggers.Logger):
    """A logger that is made when it has something to write.

    By then a new run has removed the logs of an earlier one.
    """

    def __init__(self, make: Callable[[], loggers.CSVLogger | loggers.TensorBoardLogger]) -> None:
        super().__init__()
        self.make = make
        self.made: loggers.Logger | None = None

    name = version = None

    @utilities.rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.made is None:
            made = self.make()
            self.made, self.mark = made, Path(made.log_dir) / MARK
        self.made.log_metrics(metrics, step)  # makes the folder
        self.mark.touch()

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """There are none. The checkpoints hold the settings of a run."""

    def save(self) -> None:
        if self.made is not None:
            self.made.save()

    def finalize(self, status: str) -> None:
        if self.made is not None:
            self.made.finalize(status)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's information messages, and its warnings about choices that are deliberate."""
    talkers = [logging.getLogger(f"lightning.{name}.utilities.rank_zero") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in talkers]
    with warnings.catch_warnings():
        for message in _IRRELEVANT:
            warnings.filterwarnings("ignore", message)
        for logger in talkers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(talkers, levels, strict=True):
                logger.setLevel(level)
