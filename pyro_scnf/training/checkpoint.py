"""Checkpoints that are whole or not there, of the last step and of the best."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_scnf._extras import require

callbacks = require("lightning.pytorch.callbacks", "train")
plugins = require("lightning.pytorch.plugins.io", "train")

__all__ = ["AtomicCheckpointIO", "Checkpoints"]


class AtomicCheckpointIO(plugins.TorchCheckpointIO):  # type: ignore[misc, name-defined]
    """Writes a checkpoint beside its place, flushes it to disk and only then moves it there.

    A process killed at any moment leaves the old checkpoint or the new one, never half of one; what it
    left beside it, ``.NAME.partial``, the next one replaces. Reading takes tensors and plain values only
    (``weights_only=True``): a checkpoint cannot run code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)


class Checkpoints(callbacks.Checkpoint):  # type: ignore[misc, name-defined]
    """``last.ckpt`` at regular steps and at the end, ``best.ckpt`` by ``val_nll``; says when to stop.

    With validation, that is where checkpoints are written and decisions made, and the last step is
    validated whatever its number. What was decided is part of ``last.ckpt``, names of folders are not:
    a run goes on from a copy as from the original.

    :param folder: of the two files.
    :param int steps: length of the run.
    :param int every: steps between checkpoints.
    :param patience: stop after so many validations without a better NLL.
    :param seconds: stop before this time is up, counted from here; with validation at a checkpoint, so
        that nothing is validated that a whole run would not.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        every: int,
        patience: int | None = None,
        seconds: float | None = None,
    ) -> None:
        self.folder, self.steps, self.every = folder, steps, every
        self.patience, self.seconds = patience, seconds
        self.best_step, self.waited = 0, 0
        self.best_nll: float | None = None
        self.started = self.latest = time.monotonic()

    @property
    def settled(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))  # each process may have its own

    def on_train_start(self, trainer: Any, task: Any) -> None:
        trainer.should_stop |= self.settled  # killed between the checkpoint and its end

    def on_train_batch_end(self, trainer: Any, task: Any, *args: Any) -> None:
        at_end = trainer.global_step >= self.steps
        if at_end:
            trainer.should_stop = True  # Lightning validates before it stops
        if trainer.enable_validation:
            return
        # Several processes decide together, which is not free.
        look = trainer.world_size == 1 or trainer.global_step % 10 == 0
        late = look and self._late(trainer)
        if late or at_end or trainer.global_step % self.every == 0:
            self.best_step = trainer.global_step
            self._save_last(trainer)
            trainer.should_stop |= late

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        nll = float(trainer.callback_metrics["val_nll"])
        nll = math.inf if math.isnan(nll) else nll
        self.waited += 1
        if self.best_nll is None or nll < self.best_nll:
            self.best_step, self.best_nll, self.waited = trainer.global_step, nll, 0
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=False)
        self._save_last(trainer)
        trainer.should_stop |= self.settled or self._late(trainer)

    def _save_last(self, trainer: Any) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)

    def _late(self, trainer: Any) -> bool:
        """Whether as much time again as since the last look would be too much."""
        if self.seconds is None:
            return False
        now, before = time.monotonic(), self.latest
        self.latest = now
        late = 2 * now - before - self.started > self.seconds
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def state_dict(self) -> dict[str, Any]:
        return {"best_step": self.best_step, "best_nll": self.best_nll, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_step, self.best_nll = state_dict["best_step"], state_dict["best_nll"]
        self.waited = state_dict["waited"]

    def load_best(self, model: nn.Module) -> None:
        """Give ``model`` the best weights if validation said which they are, else the last; averaged ones,
        where these were kept."""
        name = "last.ckpt" if self.best_nll is None else "best.ckpt"
        weights = torch.load(self.folder / name, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "model."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
