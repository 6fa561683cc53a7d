"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pyro_scnf._extras import require

plugins = require("lightning.pytorch.plugins.io", "train")

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(plugins.TorchCheckpointIO):  # type: ignore[misc, name-defined]
    """Writes a checkpoint beside its place, flushes it to disk and only then moves it there.

    A process killed at any moment leaves the old checkpoint or the new one, never half of one. Reading
    takes tensors and plain values only (``weights_only=True``): a checkpoint cannot run code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
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
