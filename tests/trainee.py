"""A small training run, in this process or in another that is killed at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.datasets import SemiSupervisedData, link_neighbours, toy
from pyro_scnf.terms import Agreement, Balance, Classification, Consistency, TrainingTerm
from pyro_scnf.training import FitResult, Machine, Optimisation, fit

STEPS, EVERY = 24, 6


def jitter(x: Tensor) -> Tensor:
    return x + 0.05 * torch.randn_like(x)


def grouped(**options: Any) -> dict[str, Any]:
    """Options of ``fit``, those of the optimisation and of the machine in their objects."""
    kinds = {"optimisation": Optimisation, "machine": Machine}
    for name, kind in kinds.items():
        known = {field.name for field in fields(kind) if field.init}
        given = {key: options.pop(key) for key in known & options.keys()}
        if given:
            options[name] = kind(**given)
    return options


def make_data(
    validated: bool = False, linked: bool = False, evidence: int | None = None
) -> SemiSupervisedData:
    """A few rows of a toy.

    :param linked: whether rows have neighbours.
    :param evidence: seed of random evidence about the labels of all rows, if there is to be any.
    """
    data = toy("moons", num_train=120, num_test=20, seed=0)
    if evidence is not None:
        logits = torch.randn(len(data.x), 2, generator=torch.Generator().manual_seed(evidence))
        data = replace(data, label_log_prior=(2 * logits).log_softmax(-1).to(data.x.dtype))
    data = data.hold_out(41) if validated else data
    return link_neighbours(data, 3) if linked else data


PAIRED = (Classification(2.0, end=0.5), Agreement(20.0, end=0.5))
"""Terms for data with neighbours."""

EVERY_TERM: tuple[TrainingTerm, ...] = (
    *PAIRED,
    Classification(3.0, targets="evidence"),
    Consistency(1.0, start=0.0, until=0.5),
    Consistency(5.0, kind="probabilities"),
    Balance(2.0),
)
"""Terms for data with neighbours and evidence, and with an ``augment``. They need a view at every step."""


BY_EM = "gmm:components=2,fit_means=em,fit_scales=em,fit_weights=em,em_decay=0.8"
"""A mixture that EM trains."""


def make_model(
    data: SemiSupervisedData, prior: Any = "gmm", continuous: bool = False, **options: Any
) -> scnf.SemiSupervisedModel:
    torch.manual_seed(0)
    f_w = scnf.flows.glow((2,), steps=1, width=8, blocks=1)
    if continuous:  # equal steps, because adaptive ones depend on the other rows of a batch
        f_w = scnf.flows.ffjord(2, hidden=(8,), solver="rk4:steps=3")
    model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(f_w, prior, 2), **options)
    model.initialize(data.x, data.y)
    return model


def train(
    out: Path,
    validated: bool = False,
    linked: bool = False,
    evidence: int | None = None,
    augment: Callable[[Tensor], Tensor] = jitter,
    prior: Any = "gmm",
    class_probs: str = "uniform",
    **options: Any,
) -> tuple[dict[str, Tensor], FitResult]:
    """The final weights of a run, and the result of ``fit``."""
    data = make_data(validated, linked, evidence)
    model = make_model(data, prior, class_probs=class_probs)
    options = {"steps": STEPS, "batch_size": 32, "validate_every": EVERY, "progress": False, **options}
    result = fit(model, data, augment=augment, out=out, **grouped(**options))
    return {name: value.clone() for name, value in model.state_dict().items()}, result


def _die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _save_half(checkpoint: Any, file: Any) -> None:
    torch.serialization.save(checkpoint, file)
    file.truncate(file.tell() // 2)
    file.flush()
    _die()


def _replace_and_die(self: Path, target: Path) -> None:
    os.replace(self, target)
    _die()


class _At:
    """Calls ``usual``, but ``last`` at the call with the given number."""

    def __init__(self, number: int, usual: Callable[..., Any], last: Callable[..., Any]) -> None:
        self.left, self.usual, self.last = number, usual, last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        return (self.last if self.left == 0 else self.usual)(*args, **kwargs)

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        # Bind to the instance, as a function does. This object can then replace a method of a class.
        return self if owner is None else partial(self, owner)


def _train_and_die(moment: str, number: int, out: Path, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    augment = jitter
    if moment == "in a step":  # each step augments two batches, and the unlabelled one again for a view
        views = any("view" in term.needs for term in options.get("terms", ()))
        augment = _At((2 + views) * number, jitter, _die)
    elif moment == "half written":
        torch.save = _At(number, torch.serialization.save, _save_half)
    elif moment == "not yet moved":
        os.fsync = _At(number, os.fsync, _die)
    elif moment == "just moved":
        Path.replace = _At(number, os.replace, _replace_and_die)
    train(out, augment=augment, **options)


def killed(moment: str, number: int, out: Path, **options: Any) -> None:
    """Train in another process, which SIGKILL ends at the moment of this name with this number."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "pyro_scnf.training"])  # imported once for all runs
    process = context.Process(target=_train_and_die, args=(moment, number, out, options))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it got to the end"
