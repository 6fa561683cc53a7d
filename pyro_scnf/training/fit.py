"""Training a partly labelled model, from the first step to the best weights."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pyro_scnf._checks import check_at_least
from pyro_scnf._extras import require
from pyro_scnf._shapes import reference_tensor
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.models.semi_supervised import SemiSupervisedModel
from pyro_scnf.training.batches import StepBatches, fingerprint
from pyro_scnf.training.checkpoint import AtomicCheckpointIO, Checkpoints
from pyro_scnf.training.task import SemiSupervisedTask, keep_data

lightning = require("lightning.pytorch", "train")
callbacks = require("lightning.pytorch.callbacks", "train")
loggers = require("lightning.pytorch.loggers", "train")
utilities = require("lightning.pytorch.utilities", "train")

__all__ = ["FitResult", "fit"]

_BESIDE_THE_POINT = (
    ".*does not have many workers",  # picking rows takes no time
    ".*dataloader is not resumable",  # it begins where the trainer stands
    ".*LeafSpec.* is deprecated",  # Lightning's own
)


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` did.

    :ivar int steps: optimiser steps taken in all.
    :ivar bool finished: whether the run is over, by its steps or by ``patience``; not if ``minutes``
        ended it.
    :ivar int best_step: step whose weights the model has.
    :ivar best_nll: validation NLL of these, nats per example; ``None`` without validation data.
    :ivar float seconds: wall-clock time of this call.
    :ivar int rank: this process among those that trained; 0 is the one that should write files.
    """

    steps: int
    finished: bool
    best_step: int
    best_nll: float | None
    seconds: float
    rank: int


class _Average(callbacks.WeightAveraging):  # type: ignore[misc, name-defined]
    """Exponential moving average, in one kernel; for a first few steps the weights as they are."""

    def __init__(self, decay: float, start: int) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.start = start

    def on_train_batch_end(self, trainer: Any, task: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, task, *args)
        if trainer.global_step <= self.start:
            self._average_model.n_averaged.zero_()  # the next update copies


class _Bar(callbacks.TQDMProgressBar):  # type: ignore[misc, name-defined]
    """One bar over all steps; validations show in it as numbers."""

    def init_validation_tqdm(self) -> Any:
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar


def fit(
    model: SemiSupervisedModel,
    data: SemiSupervisedData,
    *,
    guide: str | Callable[..., Any] = "exact",
    steps: int = 1000,
    batch_size: int = 256,
    labelled_batch_size: int | None = None,
    optimizer: str = "adamw",
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.99),
    schedule: str = "one-cycle",
    warmup: float = 0.0,
    ema_decay: float | None = 0.995,
    gradient_clip: float | None = 5.0,
    augment: Callable[[Tensor], Tensor] = keep_data,
    augment_labelled: Callable[[Tensor], Tensor] | None = None,
    bins: int | None = None,
    validate_every: int = 50,
    patience: int | None = None,
    minutes: float | None = None,
    device: str = "cpu",
    devices: int = 1,
    num_nodes: int = 1,
    precision: Literal["32", "bf16-mixed"] = "32",
    compile: bool = False,
    resident: bool = True,
    num_workers: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    log: Literal["csv", "tensorboard"] | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Train ``model`` in place, on one device or many.

    With validation data (``data.x_val``) it ends with the weights of the best validation NLL, without
    with the last ones; either are averaged ones unless ``ema_decay`` is ``None``. Checkpoints are
    written every ``validate_every`` steps, and a run that was killed, at whatever moment, and is
    resumed goes on exactly as it would have.

    :param model: an initialised model (``model.initialize``).
    :param data: hold some rows out with :meth:`~pyro_scnf.datasets.SemiSupervisedData.hold_out` to
        have validation data; link them (:func:`~pyro_scnf.datasets.link_neighbours`) for batches of pairs.
    :param guide: one of :data:`pyro_scnf.GUIDES`, or a guide.
    :param int steps: optimiser steps.
    :param int batch_size: unlabelled rows a step, over all processes.
    :param labelled_batch_size: labelled rows a step, likewise; all by default.
    :param str optimizer: one of :data:`~pyro_scnf.training.OPTIMIZERS`.
    :param str schedule: one of :data:`~pyro_scnf.training.SCHEDULES`.
    :param float warmup: share of the run in which the learning rate rises.
    :param ema_decay: decay of the averaged weights; ``None`` for none.
    :param gradient_clip: largest norm of the gradient; ``None`` for none.
    :param augment: applied to every training batch, for example jitter or dequantisation; where
        validation data need preparing too, it has a method ``prepare`` for that.
    :param augment_labelled: applied to labelled rows instead; few as they are, they come again and again.
    :param bins: grey levels of dequantised data: progress and logs then show bits per dimension.
    :param patience: stop after so many validations without a better NLL.
    :param minutes: stop, with a checkpoint, before this time is up; a later call with ``resume`` goes
        on. With validation data this is a validated checkpoint, and the first one is always reached.
    :param str device: ``"cpu"`` or ``"cuda"``.
    :param int devices: processes a node. With more than one, each trains on its share of the same
        batches and gradients are averaged (``DistributedDataParallel``). Start them with ``torchrun``,
        or let Lightning start the script again in each.
    :param precision: ``"bf16-mixed"`` runs the conditioner networks in bfloat16; affine maps,
        log-determinants and densities stay in float32.
    :param bool compile: compile the two passes that take the time, :math:`f_w` and :math:`h_\phi`; the
        model stays compiled.
    :param bool resident: keep the training data on the device; else batches are copied there, from
        pinned memory.
    :param int num_workers: processes that pick batches of data not ``resident``.
    :param seed: of the order of the data and of all noise.
    :param out: folder of the checkpoints ``last.ckpt`` and ``best.ckpt`` and of the log, one that all
        nodes see; a temporary one by default.
    :param bool resume: go on from ``out/last.ckpt`` if there is one; otherwise what an earlier run left
        in ``out`` is removed.
    :param log: write losses and validation figures every 10 steps: ``"csv"`` to ``out/log``, or
        ``"tensorboard"`` (extra ``tensorboard``) to ``out/tensorboard``.
    :param bool progress: show a progress bar.
    :raises ValueError: for options out of range; for ``patience`` without validation data or ``log``
        without ``out``; if the checkpoint to resume from was made with other settings.
    :raises RuntimeError: if the loss or its gradient becomes NaN or infinite, naming step and term;
        ``out`` keeps the last checkpoints, which are from before.
    """
    check_at_least(1, steps=steps, validate_every=validate_every, devices=devices, num_nodes=num_nodes)
    check_at_least(1, patience=1 if patience is None else patience)
    processes = devices * num_nodes
    _check_options(data, precision, ema_decay, gradient_clip, patience, minutes, log, out)
    _check_launch(data, processes, num_nodes, out)
    started, home = time.perf_counter(), reference_tensor(model).device
    rows = {"batch_size": batch_size, "labelled_batch_size": labelled_batch_size}
    settings = {
        **rows,
        "data": fingerprint(data),
        "ema_decay": ema_decay,
        "gradient_clip": gradient_clip,
        "precision": precision,
        "validate_every": validate_every,
        "processes": processes,
    }
    task = SemiSupervisedTask(
        model,
        guide,
        steps=steps,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        betas=betas,
        schedule=schedule,
        warmup=warmup,
        augment=augment,
        augment_labelled=augment_labelled,
        bins=bins,
        seed=seed,
        settings=settings,
    )
    if compile:
        model.flow.compile()
    with TemporaryDirectory() as scratch, _quiet():
        folder = Path(scratch if out is None else out)
        every = min(validate_every, steps)
        seconds = None if minutes is None else 60 * minutes
        kept = Checkpoints(folder, steps, every, patience, seconds)
        if not resume:
            _clear(folder)
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="gpu" if device == "cuda" else device,
            devices=devices,
            num_nodes=num_nodes,
            strategy="ddp" if processes > 1 else "auto",
            use_distributed_sampler=False,  # batches are shared out already
            precision="32-true" if precision == "32" else precision,
            callbacks=_callbacks(kept, steps, ema_decay, progress),
            plugins=[AtomicCheckpointIO()],
            logger=_logger(log, folder),
            log_every_n_steps=10,
            gradient_clip_val=gradient_clip,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0 if data.x_val is None else 1.0,
            val_check_interval=every,
        )
        last = folder / "last.ckpt"
        try:
            trainer.fit(
                task,
                datamodule=_Loaders(data, rows, seed, steps, resident, num_workers),
                ckpt_path=last if resume and last.exists() else None,
                weights_only=True,
            )
        finally:
            model.to(home)  # Lightning leaves it on the CPU
            model.set_progress(0.0)
        kept.load_best(model)
        trainer.strategy.barrier()  # the folder may be temporary
    total = int(trainer.global_step)
    return FitResult(
        total,
        total >= steps or kept.settled,
        kept.best_step,
        kept.best_nll,
        time.perf_counter() - started,
        trainer.global_rank,
    )


@utilities.rank_zero_only
def _clear(folder: Path) -> None:
    """Remove what an earlier run left."""
    for name in ("last.ckpt", "best.ckpt"):
        (folder / name).unlink(missing_ok=True)
    for name in ("log", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


class _Loaders(lightning.LightningDataModule):  # type: ignore[misc, name-defined]
    """Batches by step for training, chunks of the held-out rows for validation."""

    def __init__(
        self,
        data: SemiSupervisedData,
        rows: dict[str, Any],
        seed: int,
        steps: int,
        resident: bool,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.data, self.rows, self.seed, self.steps = data, rows, seed, steps
        self.resident, self.num_workers = resident, num_workers

    def _loader(self, dataset: Any, **options: Any) -> DataLoader:
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        workers = 0 if self.resident else self.num_workers
        return DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu and not self.resident,
            **options,
        )

    def _home(self) -> Any:
        return self.trainer.strategy.root_device if self.resident else None

    def train_dataloader(self) -> DataLoader:
        batches = StepBatches(
            self.data,
            **self.rows,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            device=self._home(),
        )
        # A resumed trainer counts on from its step through a loader of the full length.
        step = self.trainer.global_step
        return self._loader(batches, batch_size=None, sampler=range(step, step + self.steps))

    def val_dataloader(self) -> DataLoader:
        rows = [t for t in (self.data.x_val, self.data.y_val) if t is not None]
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        # Of about equal size, and as many for every process: they meet at each.
        chunks = world_size * math.ceil(len(rows[0]) / (500 * world_size))
        mine = zip(*(t.to(self._home()).tensor_split(chunks)[rank::world_size] for t in rows), strict=True)
        return self._loader(list(mine), batch_size=None)


def _check_options(
    data: SemiSupervisedData,
    precision: str,
    ema_decay: float | None,
    gradient_clip: float | None,
    patience: int | None,
    minutes: float | None,
    log: str | None,
    out: str | Path | None,
) -> None:
    if precision not in ("32", "bf16-mixed"):
        raise ValueError(f"precision={precision!r}: expected '32' or 'bf16-mixed'")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay={ema_decay}: expected None or 0 <= ema_decay < 1")
    if gradient_clip is not None and not gradient_clip > 0:
        raise ValueError(f"gradient_clip={gradient_clip}: expected None or a positive number")
    if patience is not None and data.x_val is None:
        raise ValueError("patience: no x_val to judge by; hold rows out with data.hold_out(size)")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes={minutes}: expected a positive number")
    if log not in (None, "csv", "tensorboard"):
        raise ValueError(f"log={log!r}: expected 'csv', 'tensorboard' or None")
    if log is not None and out is None:
        raise ValueError(f"log={log!r}: give `out`, the folder to write to")


def _check_launch(data: SemiSupervisedData, processes: int, num_nodes: int, out: str | Path | None) -> None:
    if torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) != processes:
        raise ValueError(
            f"devices * num_nodes is {processes}, but torchrun started {os.environ['WORLD_SIZE']} processes"
        )
    if num_nodes > 1 and out is None:
        raise ValueError(f"num_nodes={num_nodes}: give `out`, a folder that all of them see")
    if data.x_val is not None and len(data.x_val) < processes:
        raise ValueError(f"x_val: {len(data.x_val)} rows for {processes} processes; hold out more")


def _callbacks(kept: Checkpoints, steps: int, ema_decay: float | None, progress: bool) -> list[Any]:
    made: list[Any] = [kept]
    if ema_decay is not None:
        made.append(_Average(ema_decay, start=min(steps // 10, 100)))
    if progress:
        made.append(_Bar(refresh_rate=10))
    return made


def _logger(log: str | None, folder: Path) -> Any:
    if log == "csv":
        return loggers.CSVLogger(folder, name="log")
    if log == "tensorboard":
        require("tensorboard", "tensorboard")
        return loggers.TensorBoardLogger(folder, name="tensorboard")
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what Lightning says of things that are as they should be here."""
    chatter = [logging.getLogger(f"lightning.{name}.utilities.rank_zero") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in chatter]
    with warnings.catch_warnings():
        for message in _BESIDE_THE_POINT:
            warnings.filterwarnings("ignore", message)
        for logger in chatter:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(chatter, levels, strict=True):
                logger.setLevel(level)
