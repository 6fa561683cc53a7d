"""Checkpoints of the last step and of the best step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from pyro_scnf._extras import require
from pyro_scnf._files import read_plain, write_plain
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.saving import load
from pyro_scnf.training.folder import BEST, LAST, clear

if TYPE_CHECKING:
    import lightning.pytorch as lightning
    from lightning.pytorch import callbacks
    from lightning.pytorch.plugins import io as plugins
    from torch.serialization import MAP_LOCATION
else:
    callbacks = require("lightning.pytorch.callbacks", "train")
    plugins = require("lightning.pytorch.plugins.io", "train")

__all__ = ["AtomicCheckpointIO", "Checkpoints"]


class AtomicCheckpointIO(plugins.TorchCheckpointIO):
    """Writes a checkpoint completely or not at all, and runs no code when it reads one.

    A process that is killed at any moment leaves the old checkpoint or the new one. It may also leave an
    unfinished file ``.NAME.partial``, which the next checkpoint replaces. Only tensors and plain values are
    read (``weights_only=True``), so a checkpoint cannot run code.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None
    ) -> None:
        write_plain(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: MAP_LOCATION = "cpu", weights_only: bool | None = None
    ) -> dict[str, object]:
        checkpoint: dict[str, object] = read_plain(path, "a checkpoint", map_location)
        return checkpoint


class _Progress(TypedDict):
    """What ``last.ckpt`` says about the validations and the time so far."""

    best_step: int
    best_nll: float | None
    waited: int
    seconds_in_all: float


class Checkpoints(callbacks.Checkpoint):
    """Writes ``last.ckpt`` and ``best.ckpt``, and decides when to stop.

    ``last.ckpt`` is written at regular steps and at the end, ``best.ckpt`` when ``val_nll`` is the lowest so
    far. With validation, the run writes checkpoints and decides whether to stop each time it validates. It
    always validates the last step. ``last.ckpt`` does not hold the name of the folder, so a run can also go
    on from a copy of the folder.

    :param folder: folder of the two files.
    :param bool fresh: whether the run begins anew. The files of an earlier run are then removed after the
        first step, since by then the new run has passed every check.
    :param int steps: length of the run.
    :param int every: steps between checkpoints.
    :param patience: stop after this many validations in a row without a better NLL.
    :param seconds: stop before this time is up, counted from the construction of this object. With
        validation the run stops at a validation, and so validates only where an uninterrupted run would.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        every: int,
        patience: int | None = None,
        seconds: float | None = None,
        *,
        fresh: bool,
    ) -> None:
        self.folder, self.steps, self.every, self.fresh = folder, steps, every, fresh
        self.saved_step: int | None = None
        self.patience, self.seconds = patience, seconds
        self.best_step, self.waited = 0, 0
        self.best_nll: float | None = None
        self.started = self.latest = time.monotonic()
        self.seconds_before = 0.0

    @property
    def settled(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def in_words(self, *, named: bool) -> str:
        """What is kept of the run, and how to go on.

        :param bool named: whether the user named the folder. A temporary one goes.
        """
        if not named:
            return "nothing is kept, because no folder was given as `out`"
        if self.saved_step is not None:
            return (
                f"{self.folder / LAST} keeps step {self.saved_step}; go on with resume=True (in the "
                "examples, --resume)"
            )
        if (self.folder / LAST).exists():
            return f"no step was taken, and {self.folder / LAST} is still that of the earlier run"
        return (
            f"{self.folder} has no checkpoint yet, so a call with resume=True starts at step 0; the first "
            f"one is written at step {self.every}"
        )

    @property
    def seconds_in_all(self) -> float:
        """Wall-clock time of this run, plus that of earlier parts of the run up to their checkpoints."""
        return self.seconds_before + time.monotonic() - self.started

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        # Each process may have made its own temporary folder. All use that of process 0.
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # The earlier run may have been killed after patience ran out, but before it could stop.
        trainer.should_stop |= self.settled
        if trainer.global_step:
            self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: object
    ) -> None:
        if self.fresh and trainer.is_global_zero:
            clear(self.folder)
        self.fresh = False
        at_end = trainer.global_step >= self.steps
        if at_end:
            trainer.should_stop = True  # Lightning validates before it stops
        if trainer.enable_validation:
            return
        # Several processes decide together. That costs time, so they do it every tenth step.
        look = trainer.world_size == 1 or trainer.global_step % 10 == 0
        late = look and self._late(trainer)
        if late or at_end or trainer.global_step % self.every == 0:
            self.best_step = trainer.global_step
            self._save_last(trainer)
            trainer.should_stop |= late

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        nll = float(trainer.callback_metrics["val_nll"])
        nll = math.inf if math.isnan(nll) else nll
        self.waited += 1
        if self.best_nll is None or nll < self.best_nll:
            self.best_step, self.best_nll, self.waited = trainer.global_step, nll, 0
            trainer.save_checkpoint(self.folder / BEST, weights_only=False)
        self._save_last(trainer)
        trainer.should_stop |= self.settled or self._late(trainer)

    def _save_last(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        self.saved_step = trainer.global_step

    def _late(self, trainer: lightning.Trainer) -> bool:
        """Whether the deadline would pass before the next check, if the next interval takes as long as the
        last one."""
        if self.seconds is None:
            return False
        now, before = time.monotonic(), self.latest
        self.latest = now
        late = 2 * now - before - self.started > self.seconds
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def state_dict(self) -> dict[str, object]:
        progress: _Progress = {
            "best_step": self.best_step,
            "best_nll": self.best_nll,
            "waited": self.waited,
            "seconds_in_all": self.seconds_in_all,
        }
        return dict(progress)

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        progress = cast(_Progress, state_dict)
        self.best_step, self.best_nll = progress["best_step"], progress["best_nll"]
        self.waited, self.seconds_before = progress["waited"], progress["seconds_in_all"]

    def load_best(self, model: SemiSupervisedModel) -> None:
        """Give ``model`` the best weights if there was validation, else the last weights.

        If the run averaged weights, these are the averaged ones.
        """
        load(self.folder / (LAST if self.best_nll is None else BEST), into=model)
