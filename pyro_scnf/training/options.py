"""Options of a run: how it optimises, and on which machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

from pyro_scnf._numbers import check_at_least
from pyro_scnf._spec import as_plain
from pyro_scnf.training.schedules import OPTIMIZERS, SCHEDULES

__all__ = ["Machine", "Optimisation", "differences", "plain"]


@dataclass(frozen=True)
class Optimisation:
    """Optimiser, learning rate, averaging and clipping of :func:`~pyro_scnf.training.fit`.

    :ivar str optimizer: one of :data:`~pyro_scnf.training.OPTIMIZERS`.
    :ivar float learning_rate: the largest learning rate of the schedule.
    :ivar float weight_decay: weight decay of the optimiser.
    :ivar betas: decay rates of the optimiser's first and second moments.
    :ivar str schedule: one of :data:`~pyro_scnf.training.SCHEDULES`.
    :ivar float warmup: share of the run during which the learning rate rises, in [0, 1).
    :ivar ema_decay: decay of the averaged weights, in [0, 1); ``None`` for no average.
    :ivar gradient_clip: largest norm of the gradient; ``None`` for no limit.
    :raises ValueError: for an unknown word or a number out of range.

    >>> Optimisation(learning_rate=1e-3, schedule="cosine").optimizer
    'adamw'
    """

    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: str = "one-cycle"
    warmup: float = 0.0
    ema_decay: float | None = 0.995
    gradient_clip: float | None = 5.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")
        for name, number in (("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}={number}: expected a finite number of at least 0")
        for name in ("learning_rate", "weight_decay", "warmup"):
            object.__setattr__(self, name, float(getattr(self, name)))  # NumPy's floats are no plain values
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: expected two numbers, 0 <= beta < 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup}: expected a share of the run, 0 <= warmup < 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: expected None or 0 <= ema_decay < 1")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip={self.gradient_clip}: expected None or a positive number")


@dataclass(frozen=True)
class Machine:
    """Device, processes and precision of :func:`~pyro_scnf.training.fit`.

    :ivar device: ``"cpu"`` or ``"cuda"``.
    :ivar int devices: processes on each node. With more than one, each process trains on its share of the
        same batches, and gradients are averaged (``DistributedDataParallel``). Start them with ``torchrun``,
        or let Lightning start the script again for each.
    :ivar int num_nodes: number of nodes.
    :ivar precision: ``"bf16-mixed"`` runs the conditioner networks in bfloat16. Affine maps,
        log-determinants and densities stay in float32.
    :ivar bool compile: compile the two slow passes, :math:`f_w` and :math:`h_\\phi`. The model stays
        compiled after training.
    :ivar bool data_on_device: keep the training data on the device. Otherwise batches are copied there
        from pinned memory.
    :ivar int num_workers: processes that pick batches, if the data are not on the device.
    :ivar int processes: ``devices * num_nodes``.
    :raises ValueError: for an unknown word or a number out of range.

    Two machines compare equal if they have the same precision and the same number of processes. A run may
    be resumed on any machine that is equal to its own.
    """

    device: Literal["cpu", "cuda"] = field(default="cpu", compare=False)
    devices: int = field(default=1, compare=False)
    num_nodes: int = field(default=1, compare=False)
    precision: Literal["32", "bf16-mixed"] = "32"
    compile: bool = field(default=False, compare=False)
    data_on_device: bool = field(default=True, compare=False)
    num_workers: int = field(default=0, compare=False)
    processes: int = field(init=False)

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device!r}: expected 'cpu' or 'cuda'")
        if self.precision not in ("32", "bf16-mixed"):
            raise ValueError(f"precision={self.precision!r}: expected '32' or 'bf16-mixed'")
        check_at_least(1, devices=self.devices, num_nodes=self.num_nodes)
        check_at_least(0, num_workers=self.num_workers)
        object.__setattr__(self, "processes", self.devices * self.num_nodes)


def plain(value: object) -> object:
    """An option as plain values, for a checkpoint.

    Of a dataclass, only the fields that are compared. Of any other object that is no plain value, its name or
    the name of its type.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.compare}
        return {"type": type(value).__name__, **kept}
    try:
        return as_plain(value)
    except TypeError:
        return getattr(value, "__qualname__", type(value).__qualname__)


def differences(before: Mapping[str, object], now: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """``name before -> now`` for each plain value in which two runs differ."""
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} {old!r} -> {new!r}"
