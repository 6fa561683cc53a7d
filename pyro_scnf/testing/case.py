"""What a check needs to know about a member: how to build it, its shapes, its data, its tolerances."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_scnf._shapes import as_event_shape
from pyro_scnf.priors import ClassConditionalPrior
from pyro_scnf.terms import TrainingTerm
from pyro_scnf.transforms import ConditionalFlowTransform
from pyro_scnf.transforms.compose import Layer
from pyro_scnf.transforms.one_shot import _OneShotLadj

__all__ = [
    "BATCHES",
    "DEFAULT",
    "F64",
    "PARAMETERS",
    "AnyCase",
    "Case",
    "LearnerCase",
    "ModuleCase",
    "PriorCase",
    "Tolerances",
    "Trait",
    "check_build",
    "perturb",
    "unit_interval",
]

F64 = torch.float64
M = TypeVar("M", bound=nn.Module)
Member = TypeVar("Member", covariant=True)
Learner = TypeVar("Learner", bound=nn.Module, covariant=True)

Trait = Literal["parameters", "context", "relaxed", "covariates", "small", "cuda"]
"""What a member or the machine may have. A check may need some of these."""

PARAMETERS: frozenset[Trait] = frozenset({"parameters"})
BATCHES: list[tuple[int, ...]] = [(), (3,), (2, 3)]


@dataclass(frozen=True)
class Tolerances:
    """How closely a number must agree with the same number computed in another way.

    An error is relative to the expected number where that number exceeds 1, and absolute elsewhere. The
    defaults suit layers in closed form. A layer with an ODE solver needs about the tolerances of its solver.

    :param float round_trip: data to latent and back, in float64.
    :param float log_det: log-determinants in nats, in float64, against the Jacobian by automatic
        differentiation and against those of the other direction.
    :param float batching: an event alone against the same event in a batch, in float64.
    :param float gradient: gradients against finite differences, in float64.
    :param float float32: float32 against float64, and the round trip in float32. Log-determinants in
        float32 may be off by ten times as much.
    :param float autocast: densities of a prior under autocast to bfloat16 against those without.
    """

    round_trip: float = 1e-9
    log_det: float = 1e-8
    batching: float = 1e-10
    gradient: float = 1e-5
    float32: float = 1e-4
    autocast: float = 0.05


DEFAULT = Tolerances()


def perturb(module: M, size: float = 0.1) -> M:
    """Add noise to every parameter, in place. Layers that start at zero then take part in a check."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module


def check_build(build: object, arguments: str) -> None:
    """Raise unless ``build`` can be called without arguments.

    :param arguments: arguments of the member, for the example in the message.
    """
    name = getattr(build, "__name__", type(build).__name__)
    expected = (
        f"give a callable without arguments that makes a fresh one, such as lambda: {name}({arguments})"
    )
    if isinstance(build, nn.Module | TrainingTerm):
        raise ValueError(f"build is a ready {name}: {expected}")
    if not callable(build):
        raise ValueError(f"build={build!r}: expected a callable without arguments that makes a fresh member")
    try:
        inspect.signature(build).bind()
    except ValueError:
        return  # Python knows no signature of it, as for some functions written in C
    except TypeError as error:
        raise ValueError(f"build is {name}, and {name}() fails ({error}): {expected}") from None


@dataclass(frozen=True)
class AnyCase(Generic[Member]):
    """What the cases of all kinds share."""

    build: Callable[[], Member]
    tolerances: Tolerances = field(default=DEFAULT, kw_only=True)
    skip: Collection[str] = field(default=(), kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_build(self.build, "...")

    def has(self, trait: Trait) -> bool:
        """Whether the member, or the machine, has ``trait``."""
        return trait == "cuda" and torch.cuda.is_available()

    def describe(self) -> str:
        """The member in words, for messages."""
        return type(self.build()).__name__


@dataclass(frozen=True)
class LearnerCase(AnyCase[Learner]):
    """What the cases of modules share."""

    perturbation: float = field(default=0.1, kw_only=True)

    def member(self, dtype: torch.dtype = F64) -> Learner:
        """A fresh member with random parameters."""
        return perturb(self.build(), self.perturbation).to(dtype)

    def has(self, trait: Trait) -> bool:
        if trait == "parameters":
            return any(parameter.requires_grad for parameter in self.build().parameters())
        return super().has(trait)


@dataclass(frozen=True)
class ModuleCase(LearnerCase[nn.Module]):
    """A module that scores rows of data, to be checked.

    :param build: a callable that makes a fresh module.
    :param inputs: a callable that makes the inputs for a number of rows, the data first.
    :param score: a callable of the module and the inputs. It returns one number for each row, or one for all
        rows. The checks see only those parts of the module that the score depends on.
    :param Tolerances tolerances: how closely numbers must agree. Only ``float32`` matters here.
    :param float perturbation: scale of the noise that is added to the parameters.
    :param skip: names of checks to leave out.
    :param int seed: seed of the random numbers.
    """

    inputs: Callable[[int], tuple[Tensor, ...]]
    score: Callable[..., Tensor]


@dataclass(frozen=True)
class Case(LearnerCase[Layer]):
    """A transform or a conditional transform to be checked.

    :param build: a callable that makes a fresh transform.
    :param event_shape: shape of one datum, ``(D,)`` or ``(C, H, W)``. Small shapes keep the checks fast.
    :param base_shape: shape of the datum on the latent side; ``event_shape`` if empty.
    :param int context_dim: length of a context vector; 0 for an unconditional transform.
    :param data: ``"real"`` for standard normal data, ``"unit"`` for data in the unit interval (between 0.05
        and 0.95), or a callable that makes data of a given shape.
    :param Tolerances tolerances: how closely numbers must agree.
    :param float perturbation: scale of the noise that is added to the parameters. It moves layers that start
        as the identity.
    :param idle: endings of the names of parameters that get no gradient at this shape.
    :param skip: names of checks to leave out.
    :param int seed: seed of the random numbers.
    """

    event_shape: tuple[int, ...]
    base_shape: tuple[int, ...] = ()
    context_dim: int = 0
    data: Literal["real", "unit"] | Callable[[tuple[int, ...]], Tensor] = "real"
    idle: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_shape", tuple(as_event_shape(self.event_shape)))
        check_build(self.build, f"{self.event_shape}" + (f", {self.context_dim}" if self.context_dim else ""))
        base = as_event_shape(self.base_shape or self.event_shape, "base_shape")
        object.__setattr__(self, "base_shape", tuple(base))
        if not (callable(self.data) or self.data in ("real", "unit")):
            raise ValueError(f"data={self.data!r}: expected 'real', 'unit' or a callable")

    def has(self, trait: Trait) -> bool:
        return self.context_dim > 0 if trait == "context" else super().has(trait)

    def describe(self) -> str:
        return f"{super().describe()} of event shape {self.event_shape}"

    def values(self, batch: tuple[int, ...] = (), dtype: torch.dtype = F64) -> Tensor:
        """Random data of shape ``(*batch, *event_shape)``."""
        shape = batch + self.event_shape
        if not isinstance(self.data, str):
            return self.data(shape).to(dtype)
        return torch.randn(shape, dtype=dtype) if self.data == "real" else unit_interval(shape, dtype)

    def latents(self, batch: tuple[int, ...] = (), dtype: torch.dtype = F64) -> Tensor:
        """Standard normal latents of shape ``(*batch, *base_shape)``."""
        return torch.randn(batch + self.base_shape, dtype=dtype)

    def contexts(self, batch: tuple[int, ...] = (), dtype: torch.dtype = F64) -> tuple[Tensor, ...]:
        """A random context of shape ``(*batch, context_dim)``; empty for an unconditional transform."""
        return (torch.randn(batch + (self.context_dim,), dtype=dtype),) if self.context_dim else ()

    def fresh(self, batch: tuple[int, ...] = (), dtype: torch.dtype = F64) -> tuple[_OneShotLadj, Tensor]:
        """A transform with random parameters, conditioned if it is conditional, and data for it."""
        t = self.bijection(self.member(dtype), self.contexts((), dtype))
        return t, self.values(batch, dtype)

    def base(self, dtype: torch.dtype = F64, device: torch.device | str = "cpu") -> dist.Distribution:
        """A standard normal distribution of latents."""
        zero = torch.zeros(self.base_shape, dtype=dtype, device=device)
        return dist.Normal(zero, 1.0, validate_args=False).to_event(len(self.base_shape))

    def bijection(self, layer: Layer, contexts: tuple[Tensor, ...]) -> _OneShotLadj:
        """``layer`` itself, or conditioned on its context."""
        if isinstance(layer, ConditionalFlowTransform):
            return cast(_OneShotLadj, layer.condition(*contexts))
        return layer


def unit_interval(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniform numbers, a little away from both ends."""
    return 0.05 + 0.9 * torch.rand(shape, dtype=dtype)


@dataclass(frozen=True)
class PriorCase(LearnerCase[ClassConditionalPrior]):
    """A class-conditional prior to be checked.

    :param build: a callable without arguments that makes a fresh prior.
    :param event_shape: shape of :math:`z_f`. The Monte Carlo checks run if it holds at most 16 numbers.
    :param int num_classes: number of labels K.
    :param bool relaxed: whether ``condition`` also takes class weights ``(*batch, K)``.
    :param Tolerances tolerances: how closely numbers must agree.
    :param float perturbation: scale of the noise that is added to the parameters.
    :param skip: names of checks to leave out.
    :param int seed: seed of the random numbers.
    """

    event_shape: tuple[int, ...]
    num_classes: int
    relaxed: bool = False
    perturbation: float = field(default=0.2, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_shape", tuple(as_event_shape(self.event_shape)))
        check_build(self.build, f"{self.event_shape}, {self.num_classes}")

    def has(self, trait: Trait) -> bool:
        if trait == "small":
            return torch.Size(self.event_shape).numel() <= 16
        if trait == "covariates":
            return getattr(self.build(), "covariates", 0) > 0
        return self.relaxed if trait == "relaxed" else super().has(trait)

    def describe(self) -> str:
        return f"{super().describe()} of event shape {self.event_shape} and {self.num_classes} classes"

    def latents(self, batch: tuple[int, ...] = (), dtype: torch.dtype = F64) -> Tensor:
        """Standard normal latents of shape ``(*batch, *event_shape)``."""
        return torch.randn(batch + self.event_shape, dtype=dtype)
