"""Options of a run: how it optimises, and on which machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

from pyro_scnf._numbers import check_at_least, check_flag, check_number
from pyro_scnf._spec import as_plain
from pyro_scnf.training.schedules import OPTIMIZERS, SCHEDULES

__all__ = ["Machine", "Optimisation", "plain"]


@dataclass(frozen=True)
class Optimisation:
    """Optimiser, learning rate, averaging and clipping of :func:`~pyro_scnf.training.fit`.

    :ivar str optimizer: one of :data:`~pyro_scnf.training.OPTIMIZERS`.
    :ivar float learning_rate: the largest learning rate of the schedule.
    :ivar float weight_decay: weight decay of the optimiser.
    :ivar betas: decay rates of the optimiser's first and second moments. The schedule ``one-cycle`` moves
        the first one by up to 0.05 around its value: down while the learning rate rises, then up.
    :ivar str schedule: one of :data:`~pyro_scnf.training.SCHEDULES`.
    :ivar float warmup: share of the run during which the learning rate rises, in [0, 1). The schedule
        ``one-cycle`` always rises: 0 means a tenth of the run.
    :ivar ema_decay: decay of the averaged weights, in [0, 1); ``None`` for no average. In a run of S steps it
        is ``1 - 3 / S`` at most, so that the first weights do not count in the last average.
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
        numbers = {
            "learning_rate": check_number("learning_rate", self.learning_rate, at_least=0),
            "weight_decay": check_number("weight_decay", self.weight_decay, at_least=0),
            "warmup": check_number("warmup", self.warmup, at_least=0, below=1),
        }
        if self.ema_decay is not None:
            numbers["ema_decay"] = check_number("ema_decay", self.ema_decay, at_least=0, below=1)
        if self.gradient_clip is not None:
            numbers["gradient_clip"] = check_number("gradient_clip", self.gradient_clip, above=0)
        for name, number in numbers.items():
            object.__setattr__(self, name, number)  # NumPy's numbers are no plain values
        if not isinstance(self.betas, Sequence) or isinstance(self.betas, str) or len(self.betas) != 2:
            raise ValueError(f"betas={self.betas!r}: expected two numbers, 0 <= beta < 1")
        betas = tuple(check_number("betas", beta, at_least=0, below=1) for beta in self.betas)
        object.__setattr__(self, "betas", betas)


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
        check_flag(compile=self.compile, data_on_device=self.data_on_device)
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
