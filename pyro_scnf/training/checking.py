"""Checks of what a user passes to ``fit``, before the first step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED, check_labels
from pyro_scnf._numbers import check_at_least, check_flag, check_kinds, check_number
from pyro_scnf._shapes import reference_tensor
from pyro_scnf._warn import warn
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.datasets.augment import as_augment, changed_rows
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.models.arguments import check_possible
from pyro_scnf.models.paths import continuous_layers
from pyro_scnf.models.scoring import check_needs
from pyro_scnf.terms import Part, TrainingTerm, needs_of
from pyro_scnf.training.folder import LOGS
from pyro_scnf.training.options import Machine, Optimisation
from pyro_scnf.training.surroundings import noise

__all__ = ["check_launch", "check_objects", "check_options", "check_rows", "check_terms"]

_ROWS = 4096
"""Rows that are checked at a time."""


def check_objects(model: object, data: object, optimisation: object, machine: object) -> None:
    """Raise unless the objects that a run consists of are of the right kinds."""
    check_kinds(model=(model, SemiSupervisedModel), data=(data, SemiSupervisedData))
    check_kinds(optimisation=(optimisation, Optimisation), machine=(machine, Machine))


def check_options(
    data: SemiSupervisedData,
    *,
    steps: int,
    validate_every: int,
    seed: int,
    patience: int | None,
    minutes: float | None,
    log: str | None,
    progress: bool,
    resume: bool,
    out: str | Path | None,
) -> None:
    """Raise for options that are out of range or do not fit together."""
    check_at_least(1, steps=steps, validate_every=validate_every)
    check_at_least(1, patience=1 if patience is None else patience)
    check_flag(resume=resume, progress=progress)
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ValueError(f"seed={seed!r}: expected a whole number")
    if patience is not None and data.x_val is None:
        raise ValueError("patience: no x_val to judge by; hold rows out with data.hold_out(size)")
    if minutes not in (None, math.inf):
        check_number("minutes", minutes, above=0)
    if log is not None and log not in LOGS:
        raise ValueError(f"log={log!r}: expected 'csv', 'tensorboard' or None")
    if log is not None and out is None:
        raise ValueError(f"log={log!r}: give `out`, the folder to write to")
    if resume and out is None:
        raise ValueError("resume=True: give `out`, the folder of the run to go on from")


def check_terms(
    terms: Mapping[str, TrainingTerm],
    model: SemiSupervisedModel,
    data: SemiSupervisedData,
    augment: Callable[[Tensor], Tensor] | None,
) -> None:
    """Raise if a term needs what model or data lack at any step, or if no term uses the neighbours."""
    labelled = bool((data.y != UNLABELLED).any())
    unlabelled = bool((data.y == UNLABELLED).any())
    given: dict[Part, object] = {
        "y": labelled,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "pairs": data.neighbours is not None,
        "view": unlabelled and augment is not None,
        "evidence": data.label_log_prior is not None,
        "energy": continuous_layers(model.flow) > 0,
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


def check_launch(data: SemiSupervisedData, machine: Machine, out: str | Path | None) -> None:
    """Raise if the devices, the processes that were started, or the data do not fit ``machine``."""
    processes = machine.processes
    if machine.device == "cuda":
        _check_gpus(machine.devices)
    if torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) != processes:
        raise ValueError(
            f"devices * num_nodes is {processes}, but torchrun started {os.environ['WORLD_SIZE']} processes"
        )
    if machine.num_nodes > 1 and out is None:
        raise ValueError(f"num_nodes={machine.num_nodes}: give `out`, a folder that all nodes see")
    if data.x_val is not None and len(data.x_val) < processes:
        raise ValueError(f"x_val: {len(data.x_val)} rows for {processes} processes; hold out more")


def _check_gpus(wanted: int) -> None:
    """Raise unless PyTorch finds as many GPUs on this node."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise ValueError(
            "machine.device is 'cuda', but PyTorch finds no GPU here; give Machine(device='cpu'), or see to "
            "it that torch.cuda.is_available() is true"
        )
    if found < wanted:
        raise ValueError(
            f"machine.devices is {wanted}, but PyTorch finds only {found} on this node, and each process "
            f"needs a GPU of its own; give devices={found}"
        )


def check_rows(
    model: SemiSupervisedModel, data: SemiSupervisedData, augment: Callable[[Tensor], Tensor] | None
) -> None:
    """Raise unless the model can score the rows of the data, as they are or as ``augment`` changes them.

    Warn of a class that cannot be learned by its name.
    """
    if data.num_classes != model.flow.num_classes:
        raise ValueError(
            f"data.num_classes is {data.num_classes}, and the model has {model.flow.num_classes} classes; "
            "expected as many, so that each label means the same to both"
        )
    y = check_labels(data.y, model.flow.num_classes, "data.y", "fit", unlabelled=True)
    known, change = y != UNLABELLED, as_augment(augment)
    check_possible(model.class_probs, model.balanced_labels, y, "data.y")
    kinds: list[tuple[str, Tensor, Callable[[Tensor], Tensor]]] = [
        ("data.x", data.x[known], change.labelled),
        ("data.x", data.x[~known], change),
        ("data.x_val", data.x[:0] if data.x_val is None else data.x_val, change.prepare),
    ]
    for name, rows, through in kinds:
        _check_scored(model, name, rows, None if augment is None else through)
    missing = sorted(set(range(data.num_classes)) - set(y[known].tolist()))
    clusters = getattr(model.flow.prior, "means", None) == "clusters"  # meant for such classes
    if missing and known.any() and data.label_log_prior is None and not clusters:
        classes = "class" if len(missing) == 1 else "classes"
        warn(
            f"fit: data has no labelled row of {classes} {', '.join(map(str, missing))}, only of others; "
            "nothing tells which rows belong there, so posteriors of this label mean little. A mixture with "
            "means='clusters' starts such a class amid unlabelled rows"
        )


def _check_scored(
    model: SemiSupervisedModel, name: str, rows: Tensor, change: Callable[[Tensor], Tensor] | None
) -> None:
    """Raise unless the model can score ``rows``. A few are changed only if it cannot score them unchanged."""
    device = reference_tensor(model).device
    try:
        for some in rows.split(_ROWS):
            model.flow.check_data(some.to(device), name, "fit")
    except ValueError:
        if change is None:
            raise
        with noise(0, device):
            changed = changed_rows(change, rows[:2].to(device))
        model.flow.check_data(changed, f"augment({name})", "fit")
