"""Training a partly labelled model, from the first step to the best weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from pyro_scnf._shapes import reference_tensor
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.terms import Terms, make_terms
from pyro_scnf.training.batches import StepBatches, fingerprint
from pyro_scnf.training.checking import check_launch, check_objects, check_options, check_rows, check_terms
from pyro_scnf.training.checkpoint import Checkpoints
from pyro_scnf.training.folder import check_folder, check_replaceable, held
from pyro_scnf.training.interruption import telling
from pyro_scnf.training.loaders import Loaders
from pyro_scnf.training.options import Machine, Optimisation
from pyro_scnf.training.resuming import find_checkpoint
from pyro_scnf.training.surroundings import process_kept
from pyro_scnf.training.task import SemiSupervisedTask
from pyro_scnf.training.trainer import Log, make_trainer, quiet

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
    is killed at any moment and then resumed, its result is exactly that of an uninterrupted run. The global
    random generators, Pyro's parameter store and other state of the process are afterwards as they were
    before.

    Training takes place in training mode, and the model ends in evaluation mode, in which dropout does
    nothing. For a training loop of your own, call ``model.train()`` first. If the model is in training mode
    and some of its parts are in evaluation mode, these parts stay so during training.

    :param model: an initialised model (``model.initialize``).
    :param data: training data. :meth:`~pyro_scnf.datasets.SemiSupervisedData.hold_out` sets rows aside for
        validation. :func:`~pyro_scnf.datasets.link_neighbours` makes every batch consist of pairs.
    :param guide: a word of :data:`pyro_scnf.GUIDES`, or a guide of your own.
    :param terms: what training minimises besides the negative log-likelihood: words, dicts or objects, see
        :func:`~pyro_scnf.terms.make_terms`.
    :param optimisation: optimiser, schedule, averaging and clipping, see :class:`Optimisation`.
    :param machine: device, processes and precision, see :class:`Machine`.
    :param int steps: optimiser steps.
    :param int batch_size: unlabelled rows a step, over all processes; if every row is labelled, the default
        of ``labelled_batch_size``.
    :param labelled_batch_size: labelled rows a step, over all processes; by default all of them, or, if every
        row is labelled, ``batch_size`` of them.
    :param augment: changes rows before the model sees them: an :class:`~pyro_scnf.datasets.Augment` or a
        function of x. By default rows stay as they are.
    :param int validate_every: steps between validations and checkpoints.
    :param patience: stop after this many validations in a row without a better NLL.
    :param int seed: seed of the order of rows and of all noise.
    :param minutes: write a checkpoint and stop before this time is up. A later call with ``resume`` goes
        on. With validation data the run stops only at a validation, and always reaches the first one.
    :param out: folder of the checkpoints ``last.ckpt`` and ``best.ckpt`` and of the log. Every node must see
        it. By default it is a temporary folder. One run at a time may use it, and holds the file
        ``.run.lock`` there. Other files in it are left alone. :func:`pyro_scnf.load` makes a model from a
        checkpoint.
    :param bool resume: go on from ``out/last.ckpt``, or start anew if there is none. A run that has taken all
        its ``steps`` goes on if it is given more. The learning rate and the weights of terms are then those
        that a run of so many steps has at this step. Without ``resume``, the first step removes the
        checkpoints and logs of an earlier run in ``out``.
    :param log: log the loss every 10 steps, and every validation: ``"csv"`` to ``out/log``, or
        ``"tensorboard"`` (extra ``tensorboard``) to ``out/tensorboard``.
    :param bool progress: show a progress bar.
    :raises ValueError: for options out of range; for more GPUs than there are; for ``patience`` without
        validation data; for ``log`` without ``out``; for a term that needs what the data lack (labels,
        neighbours, evidence, ``augment`` for a view), or neighbours that no term uses; for data of another
        shape or dtype than the model's, unless ``augment`` changes that; for labels whose class has
        probability 0; if ``out`` is no folder, cannot be written or is in use; if the checkpoint to resume
        from is damaged, is of another model or was made with other settings. All this is checked before the
        first step.
    :raises OSError: if a checkpoint cannot be written. The older one stays.
    :raises KeyboardInterrupt: for Ctrl-C. The message says which step is kept. After SIGTERM it is
        ``SystemExit(143)``, and the message goes to stderr.
    :raises RuntimeError: if the loss or its gradient becomes NaN or infinite. The message names the step
        and the term, and ``out`` keeps the checkpoints from before.
    """
    optimisation = Optimisation() if optimisation is None else optimisation
    machine = Machine() if machine is None else machine
    check_objects(model, data, optimisation, machine)
    check_options(
        data,
        steps=steps,
        validate_every=validate_every,
        seed=seed,
        patience=patience,
        minutes=minutes,
        log=log,
        progress=progress,
        resume=resume,
        out=out,
    )
    steps, seed = int(steps), int(seed)  # torch takes no number of NumPy
    named = make_terms(terms)
    check_terms(named, model, data, augment)
    check_launch(data, machine, out)
    StepBatches(data, batch_size, labelled_batch_size, world_size=machine.processes)  # checks the sizes
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
    with ExitStack() as stack:
        stack.enter_context(process_kept(torch.device(machine.device)))
        stack.enter_context(quiet())
        scratch = stack.enter_context(TemporaryDirectory())
        folder = Path(scratch) if out is None else check_folder(out, log)
        seconds = None if minutes is None else 60 * minutes
        every = min(validate_every, steps)
        kept = Checkpoints(folder, steps, every, patience, seconds, fresh=not resume)
        trainer = make_trainer(
            kept,
            optimisation=optimisation,
            machine=machine,
            validate=data.x_val is not None,
            log=log,
            progress=progress,
        )
        if trainer.is_global_zero:
            stack.enter_context(held(folder))
        if not resume:
            check_replaceable(folder)
        begin = find_checkpoint(folder, task) if resume else None
        check_rows(model, data, augment)
        if machine.compile:
            model.flow.compile()
        loaders = Loaders(data, batch_size, labelled_batch_size, steps=steps, seed=seed, machine=machine)
        try:
            with telling(lambda: kept.in_words(named=out is not None)):
                trainer.fit(task, datamodule=loaders, ckpt_path=begin, weights_only=True)
        finally:
            task.eval()
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
