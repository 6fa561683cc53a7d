"""Going on from a checkpoint: whether it is sound, of this model, and of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_scnf._files import read_plain
from pyro_scnf.saving import misfits
from pyro_scnf.training.folder import BEST, LAST
from pyro_scnf.training.same_run import check_same_run
from pyro_scnf.training.task import SemiSupervisedTask

__all__ = ["find_checkpoint"]


def find_checkpoint(folder: Path, task: SemiSupervisedTask) -> Path | None:
    """The checkpoint from which ``task`` goes on in ``folder``; ``None`` if there is none yet.

    :raises ValueError: if a checkpoint there is damaged, or is of another run or another model.
    """
    last, best = folder / LAST, folder / BEST
    if not last.exists():
        # A run that was killed in its first validation leaves such a file. Another one would be replaced.
        if best.exists():
            _check(best, task, f"There is no {LAST} to go on from, and a new run would replace this file")
        return None
    checkpoint = _check(last, task)
    if checkpoint["callbacks"]["Checkpoints"]["best_nll"] is not None:
        if not best.exists():
            raise ValueError(
                f"resume: {best} is missing, which holds the best weights so far; put it back, or start anew "
                "without resume"
            )
        _check(best, task)
    return last


def _check(path: Path, task: SemiSupervisedTask, note: str = "The file stays") -> dict[str, Any]:
    """The content of the checkpoint, if ``task`` can go on from it."""
    anew = f"{note}. To start anew, move it away or give another folder"
    try:
        checkpoint: dict[str, Any] = read_plain(path, "a checkpoint of training")
        class_probs, is_best = task.model.class_probs, path.name == BEST
        check_same_run(checkpoint, task.settings, class_probs, str(path), best=is_best)
    except ValueError as error:
        raise ValueError(f"resume: {error}. {anew}") from error
    wrong = misfits(checkpoint["state_dict"], task)
    if wrong:
        raise ValueError(
            f"resume: {path} is of another model, with another architecture or dtype: {wrong}. Give the "
            f"model of that run. {anew}"
        )
    return checkpoint
