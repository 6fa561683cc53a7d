"""Training a partly labelled model, from the first step to the best weights."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import reference_tensor
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.models.scoring import check_needs
from pyro_scnf.terms import Part, Terms, TrainingTerm, make_terms, needs_of
from pyro_scnf.training.batches import StepBatches, fingerprint
from pyro_scnf.training.checkpoint import Checkpoints
from pyro_scnf.training.loaders import Loaders
from pyro_scnf.training.options import Machine, Optimisation
from pyro_scnf.training.task import SemiSupervisedTask
from pyro_scnf.training.trainer import Log, make_trainer, quiet

if TYPE_CHECKING:
    from lightning.pytorch import utilities
else:
    utilities = require("lightning.pytorch.utilities", "train")

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """The outcome of :func:`fit`.

    :ivar int steps: optimiser steps of the whole run, including those before it was resumed.
    :ivar bool finished: whether the run took all its steps or ran out of ``patience``. It is ``False`` if
        ``minutes`` ended the call.
    :ivar int best_step: step whose weights the model has.
    :ivar best_nll: validation NLL of these weights, nats per example; ``None`` without validation data.
    :ivar float seconds: wall-clock time of this call.
    :ivar float seconds_in_all: wall-clock time of this call, plus that of the earlier calls that it resumed,
        up to their checkpoints.
    :ivar int rank: number of this process among those that trained. Process 0 should write files.
    """

    steps: int
    finished: bool
    best_step: int
    best_nll: float | None
    seconds: float
    seconds_in_all: float
    rank: int


def fit(
    model: SemiSupervisedModel,
    data: SemiSupervisedData,
    *,
    guide: str | Callable[..., object] = "exact",
    terms: Terms = (),
    optimisation: Optimisation | None = None,
    machine: Machine | None = None,
    steps: int = 1000,
    batch_size: int = 256,
    labelled_batch_size: int | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    validate_every: int = 50,
    patience: int | None = None,
    seed: int = 0,
    minutes: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    log: Log | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Train ``model`` in place, on one device or many.

    With validation data (``data.x_val``) the model ends with the weights of the best validation NLL. Without
    validation data it ends with the last weights. Either way they are averaged weights, unless
    ``optimisation.ema_decay`` is ``None``. Checkpoints are written every ``validate_every`` steps. If a run
    is killed at any moment and then resumed, its result is exactly that of an uninterrupted run.

    :param model: an initialised model (``model.initialize``).
    :param data: training data. :meth:`~pyro_scnf.datasets.SemiSupervisedData.hold_out` sets rows aside for
        validation. :func:`~pyro_scnf.datasets.link_neighbours` makes every batch consist of pairs.
    :param guide: a word of :data:`pyro_scnf.GUIDES`, or a guide of your own.
    :param terms: what training minimises besides the negative log-likelihood: words, dicts or objects, see
        :func:`~pyro_scnf.terms.make_terms`.
    :param optimisation: optimiser, schedule, averaging and clipping, see :class:`Optimisation`.
    :param machine: device, processes and precision, see :class:`Machine`.
    :param int steps: optimiser steps.
    :param int batch_size: unlabelled rows a step, over all processes.
    :param labelled_batch_size: labelled rows a step, over all processes; all of them by default.
    :param augment: changes rows before the model sees them: an :class:`~pyro_scnf.datasets.Augment` or a
        function of x. By default rows stay as they are.
    :param int validate_every: steps between validations and checkpoints.
    :param patience: stop after this many validations in a row without a better NLL.
    :param int seed: seed of the order of rows and of all noise.
    :param minutes: write a checkpoint and stop before this time is up. A later call with ``resume`` goes
        on. With validation data the run stops only at a validation, and always reaches the first one.
    :param out: folder of the checkpoints ``last.ckpt`` and ``best.ckpt`` and of the log. Every node must see
        it. By default it is a temporary folder.
    :param bool resume: go on from ``out/last.ckpt`` if there is one. Without ``resume``, the checkpoints and
        logs of an earlier run in ``out`` are removed.
    :param log: log the loss every 10 steps, and every validation: ``"csv"`` to ``out/log``, or
        ``"tensorboard"`` (extra ``tensorboard``) to ``out/tensorboard``.
    :param bool progress: show a progress bar.
    :raises ValueError: for options out of range; for ``patience`` without validation data; for ``log``
        without ``out``; for a term that needs what the data lack (labels, neighbours, evidence, ``augment``
        for a view), or neighbours that no term uses; if the checkpoint to resume from was made with other
        settings.
    :raises RuntimeError: if the loss or its gradient becomes NaN or infinite. The message names the step
        and the term, and ``out`` keeps the checkpoints from before.
    """
    optimisation = Optimisation() if optimisation is None else optimisation
    machine = Machine() if machine is None else machine
    if not isinstance(optimisation, Optimisation):
        raise ValueError(f"optimisation={optimisation!r}: expected an Optimisation")
    if not isinstance(machine, Machine):
        raise ValueError(f"machine={machine!r}: expected a Machine")
    check_at_least(1, steps=steps, validate_every=validate_every)
    steps, seed = int(steps), int(seed)  # torch takes no number of NumPy
    _check_options(data, patience, minutes, log, out)
    named = make_terms(terms)
    _check_terms(named, data, augment)
    _check_launch(data, machine, out)
    # Find wrong sizes and wrong evidence here, before the files of an earlier run are removed.
    StepBatches(data, batch_size, labelled_batch_size, world_size=machine.processes)
    started, home = time.perf_counter(), reference_tensor(model).device
    task = SemiSupervisedTask(
        model,
        guide,
        optimisation,
        terms=named.values(),
        steps=steps,
        augment=augment,
        seed=seed,
        settings={
            "batch_size": batch_size,
            "labelled_batch_size": labelled_batch_size,
            "validate_every": validate_every,
            "machine": machine,
            "data": fingerprint(data),
        },
    )
    loaders = Loaders(data, batch_size, labelled_batch_size, steps=steps, seed=seed, machine=machine)
    if machine.compile:
        model.flow.compile()
    with TemporaryDirectory() as scratch, quiet():
        folder = Path(scratch if out is None else out)
        seconds = None if minutes is None else 60 * minutes
        kept = Checkpoints(folder, steps, min(validate_every, steps), patience, seconds)
        if not resume:
            _clear(folder)
        trainer = make_trainer(
            kept,
            optimisation=optimisation,
            machine=machine,
            validate=data.x_val is not None,
            log=log,
            progress=progress,
        )
        last = folder / "last.ckpt"
        try:
            trainer.fit(
                task,
                datamodule=loaders,
                ckpt_path=last if resume and last.exists() else None,
                weights_only=True,
            )
        finally:
            model.to(home)  # Lightning leaves the model on the CPU
        kept.load_best(model)
        trainer.strategy.barrier()  # a temporary folder is removed next; all processes must have read it
    total, seconds_here = int(trainer.global_step), time.perf_counter() - started
    return FitResult(
        total,
        total >= steps or kept.settled,
        kept.best_step,
        kept.best_nll,
        seconds_here,
        kept.seconds_before + seconds_here,
        trainer.global_rank,
    )


@utilities.rank_zero_only
def _clear(folder: Path) -> None:
    """Remove the checkpoints and logs of an earlier run."""
    for name in ("last.ckpt", "best.ckpt"):
        (folder / name).unlink(missing_ok=True)
    for name in ("log", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _check_options(
    data: SemiSupervisedData,
    patience: int | None,
    minutes: float | None,
    log: str | None,
    out: str | Path | None,
) -> None:
    """Raise for options that are out of range or do not fit together."""
    check_at_least(1, patience=1 if patience is None else patience)
    if patience is not None and data.x_val is None:
        raise ValueError("patience: no x_val to judge by; hold rows out with data.hold_out(size)")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes={minutes}: expected a positive number")
    if log not in (None, "csv", "tensorboard"):
        raise ValueError(f"log={log!r}: expected 'csv', 'tensorboard' or None")
    if log is not None and out is None:
        raise ValueError(f"log={log!r}: give `out`, the folder to write to")


def _check_terms(
    terms: Mapping[str, TrainingTerm], data: SemiSupervisedData, augment: Callable[[Tensor], Tensor] | None
) -> None:
    """Raise if a term needs what the data lack at any step, or if no term uses the neighbours."""
    labelled = bool((data.y != UNLABELLED).any())
    unlabelled = bool((data.y == UNLABELLED).any())
    given: dict[Part, object] = {
        "y": labelled,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "pairs": data.neighbours is not None,
        "view": unlabelled and augment is not None,
        "evidence": data.label_log_prior is not None,
    }
    for name, term in terms.items():
        _check_comparable(name, term)
    check_needs({name: term for name, term in terms.items() if term.weight > 0}, given)
    if data.neighbours is not None and "pairs" not in needs_of(terms):
        raise ValueError(
            "data: its neighbours are linked, but no training term uses pairs; add a term such as "
            "'agreement:weight=10', or give replace(data, neighbours=None)"
        )


def _check_comparable(name: str, term: TrainingTerm) -> None:
    """Raise if the ``repr`` of a term does not tell its options, since a resumed run compares them by it."""
    known = {"needs", "detached", *(field.name for field in fields(term))}
    unseen = sorted(set(vars(term)) - known)
    if unseen or " at 0x" in repr(term):
        what = f"the attribute {', '.join(unseen)}" if unseen else "a field that is no plain value"
        raise ValueError(
            f"terms: {name} has {what}, which a resumed run cannot compare; expected a "
            "@dataclass(frozen=True) whose options are fields of numbers and strings"
        )


def _check_launch(data: SemiSupervisedData, machine: Machine, out: str | Path | None) -> None:
    """Raise if the processes that were started, or the data, do not fit ``machine``."""
    processes = machine.processes
    if torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) != processes:
        raise ValueError(
            f"devices * num_nodes is {processes}, but torchrun started {os.environ['WORLD_SIZE']} processes"
        )
    if machine.num_nodes > 1 and out is None:
        raise ValueError(f"num_nodes={machine.num_nodes}: give `out`, a folder that all nodes see")
    if data.x_val is not None and len(data.x_val) < processes:
        raise ValueError(f"x_val: {len(data.x_val)} rows for {processes} processes; hold out more")
