"""Checks of a transform, conditional or not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from pyro_scnf.testing.case import (
    BATCHES,
    DEFAULT,
    F64,
    PARAMETERS,
    Case,
    ModuleCase,
    Tolerances,
    unit_interval,
)
from pyro_scnf.testing.check import Check, run_all, table
from pyro_scnf.testing.compare import require, require_close, require_gradients, require_shape
from pyro_scnf.testing.contexts import CONTEXT_CHECKS
from pyro_scnf.testing.modules import MODULE_CHECKS
from pyro_scnf.testing.protocol import PROTOCOL_CHECKS
from pyro_scnf.transforms import ConditionalFlowTransform, FlowTransform
from pyro_scnf.transforms.compose import Layer

__all__ = ["TRANSFORM_CHECKS", "check_transform"]


# -- what it is ----------------------------------------------------------------------------------------
def kind(case: Case) -> None:
    """It is a transform of this package and of Pyro, and has the shapes that the case states."""
    layer = case.build()
    ours, pyros = (
        (ConditionalFlowTransform, ConditionalTransformModule)
        if case.context_dim
        else (FlowTransform, TransformModule)
    )
    require(
        isinstance(layer, ours),
        f"{type(layer).__name__} is no {ours.__name__}; context_dim is {case.context_dim} in the case",
    )
    require(isinstance(layer, pyros), f"Pyro does not take it for a {pyros.__name__}")
    for name, expected in (("event_shape", case.event_shape), ("base_shape", case.base_shape)):
        shape = tuple(getattr(layer, name))
        require(shape == expected, f"{name} is {shape}, expected {expected}")
    length = getattr(layer, "context_dim", 0)
    require(length == case.context_dim, f"context_dim is {length}, expected {case.context_dim}")
    parts = layer.latent_dim + layer.aux_dim
    require(parts == layer.base_shape.numel(), f"latent_dim + aux_dim is {parts}, not the size of base_shape")


def data_in_codomain(case: Case) -> None:
    """The data of the case lie in the codomain of the layer. Other data would give NaN in most checks."""
    t, x = case.fresh((64,))
    if t.codomain.check(x).all():
        return
    given = f"data={case.data!r}" if isinstance(case.data, str) else "data="
    advice = (
        'give data="unit"'
        if t.codomain.check(unit_interval(x.shape, F64)).all()
        else "give data= a callable that makes data inside, such as data=lambda shape: 1 + torch.rand(shape)"
    )
    raise AssertionError(f"{given} gives numbers outside the codomain, {t.codomain}: {advice}")


# -- values and log-determinants -----------------------------------------------------------------------
def round_trip_float32(case: Case) -> None:
    """In float32, data to latent and back is the identity, and the two log-determinants cancel."""
    _round_trip(case, torch.float32, case.tolerances.float32, 10 * case.tolerances.float32)


def round_trip_float64(case: Case) -> None:
    """In float64, data to latent and back is the identity, and the two log-determinants cancel."""
    _round_trip(case, F64, case.tolerances.round_trip, case.tolerances.log_det)


def _round_trip(case: Case, dtype: torch.dtype, values: float, log_dets: float) -> None:
    t, x = case.fresh((16,), dtype)
    z, ladj = t.inverse_and_ladj(x)
    again, back = t.call_and_ladj(z)
    for name, value in (("z", z), ("its log-determinant", ladj), ("x", again), ("its log-determinant", back)):
        require(value.dtype == dtype, f"{name} has dtype {value.dtype}, expected {dtype}")
    require_close(again, x, values, "x, from data to latent and back")
    require_close(
        back, -ladj, log_dets, "log-determinant of call_and_ladj, against minus that of inverse_and_ladj"
    )
    require_close(t.inverse_and_ladj(again)[0], z, values, "z, from latent to data and back")


def log_determinant(case: Case) -> None:
    """The log-determinants of both directions are those of the Jacobians by automatic differentiation."""
    t, x = case.fresh((2,))
    z, ladj = t.inverse_and_ladj(x)
    back = t.call_and_ladj(z.detach())[1]
    tolerance, reference = case.tolerances.log_det, "against the Jacobian by automatic differentiation"
    inverse = _log_det(lambda value: t.inverse_and_ladj(value)[0], x)
    require_close(ladj, inverse, tolerance, f"log-determinant of inverse_and_ladj, {reference}")
    forward = _log_det(lambda value: t.call_and_ladj(value)[0], z)
    require_close(back, forward, tolerance, f"log-determinant of call_and_ladj, {reference}")


def _log_det(function: Callable[[Tensor], Tensor], events: Tensor) -> Tensor:
    """log|det| of the Jacobian of ``function`` at each of ``events`` ``(n, *event)``, in one backward pass.

    The function runs on D copies of each event. Row i of the Jacobian is the gradient of the i-th output of
    the i-th copy.
    """
    n, size = len(events), events[0].numel()
    copies = events.detach().repeat_interleave(size, 0).requires_grad_()
    out = function(copies).reshape(n, size, size)
    (rows,) = torch.autograd.grad(out.diagonal(dim1=1, dim2=2).sum(), copies)
    return torch.linalg.slogdet(rows.reshape(n, size, size)).logabsdet


def batch_shapes(case: Case) -> None:
    """Zero, one and two batch dimensions work. An event alone gives the same as in a batch."""
    for batch in BATCHES:
        t, x = case.fresh(batch)
        z, ladj = t.inverse_and_ladj(x)
        require_shape(z, batch + case.base_shape, f"z of batch {batch}")
        require_shape(ladj, batch, f"log-determinant of batch {batch}")
        again, back = t.call_and_ladj(z)
        require_shape(again, batch + case.event_shape, f"x of batch {batch}")
        require_shape(back, batch, f"log-determinant of the forward direction of batch {batch}")
        rows = zip(
            x.reshape((-1,) + case.event_shape),
            z.reshape((-1,) + case.base_shape),
            ladj.reshape(-1),
            strict=True,
        )
        for event, latent, one in rows:
            alone, alone_ladj = t.inverse_and_ladj(event)
            where = f"of an event alone, against the same event in a batch {batch}"
            require_close(alone, latent, case.tolerances.batching, f"z {where}")
            require_close(alone_ladj, one, case.tolerances.batching, f"log-determinant {where}")


def empty_batch(case: Case) -> None:
    """An empty batch gives an empty batch, in both directions."""
    t, x = case.fresh((0,))
    z, ladj = t.inverse_and_ladj(x)
    require_shape(z, (0,) + case.base_shape, "z of an empty batch")
    require_shape(ladj, (0,), "log-determinant of an empty batch")
    require_shape(t.call_and_ladj(z)[0], x.shape, "x of an empty batch")


def vmap(case: Case) -> None:
    """``torch.func.vmap`` over events and contexts gives the same as a batch, in both directions."""
    layer, x, contexts = case.member(), case.values((4,)), case.contexts((4,))
    z, _ = layer.inverse_and_ladj(x, *contexts)
    for name, function, value in (
        ("inverse_and_ladj", layer.inverse_and_ladj, x),
        ("call_and_ladj", layer.call_and_ladj, z.detach()),
    ):
        mapped, expected = torch.func.vmap(function)(value, *contexts), function(value, *contexts)
        require_close(mapped[0], expected[0], case.tolerances.batching, f"{name} under vmap")
        require_close(
            mapped[1], expected[1], case.tolerances.batching, f"log-determinant of {name} under vmap"
        )


# -- gradients -----------------------------------------------------------------------------------------
def every_parameter_learns(case: Case) -> None:
    """The density gives every parameter a gradient, finite and not zero."""
    layer, x, contexts = case.member(), case.values((5,)), case.contexts()
    z, ladj = layer.inverse_and_ladj(x, *contexts)
    (z.square().flatten(1).sum(-1) - ladj).sum().backward()
    require_gradients(layer, case.idle)


def gradients_by_differences(case: Case) -> None:
    """The gradients by data, latents, contexts and parameters agree with finite differences."""
    layer, contexts = case.member(), case.contexts()
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    for name, function, value in (
        ("inverse_and_ladj", layer.inverse_and_ladj, case.values((3,))),
        ("call_and_ladj", layer.call_and_ladj, case.latents((3,))),
    ):
        by_autograd, by_differences = _slopes(function, (value, *contexts), parameters)
        what = f"slope of {name} and its log-determinant by autograd, against finite differences"
        require_close(by_autograd, by_differences, case.tolerances.gradient, what)


def _slopes(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: tuple[Tensor, ...], parameters: list[nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """Slope of a weighted sum of the outputs along a random direction, by autograd and by differences."""
    leaves, step = [*inputs, *parameters], 1e-6
    for leaf in leaves:
        leaf.requires_grad_()
    directions = [torch.randn_like(leaf) for leaf in leaves]
    weights = torch.randn_like(function(*inputs)[0])

    def total() -> Tensor:
        out, ladj = function(*inputs)
        return (weights * out).sum() + ladj.sum()

    grads = torch.autograd.grad(total(), leaves, allow_unused=True)
    terms = [(g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None]
    ends = []
    with torch.no_grad():
        for size in (step, -2 * step):
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(size * direction)
            ends.append(total())
    return torch.stack(terms).sum(), (ends[0] - ends[1]) / (2 * step)


# -- initial values from data --------------------------------------------------------------------------
def initializes(case: Case) -> None:
    """``initialize`` returns the latents that scoring gives afterwards, and the layer stays invertible."""
    layer, x, contexts = case.member(), case.values((40,)), case.contexts((40,))
    learnt = [parameter.requires_grad for parameter in layer.parameters()]
    z = layer.initialize(x, *contexts)
    require(not z.requires_grad, "the latents that initialize returns require a gradient")
    again, _ = layer.inverse_and_ladj(x, *contexts)
    require_close(again, z, case.tolerances.batching, "z after initialize, against what initialize returned")
    back, _ = layer.call_and_ladj(again, *contexts)
    require_close(back, x, case.tolerances.round_trip, "x, from data to latent and back after initialize")
    now = [parameter.requires_grad for parameter in layer.parameters()]
    require(now == learnt, "initialize changes requires_grad of a parameter")


def as_module(case: Case) -> ModuleCase:
    """The case for :data:`MODULE_CHECKS`. The score sums the log-density of x and a decoded latent."""

    def inputs(rows: int) -> tuple[Tensor, ...]:
        single = torch.float32
        return case.values((rows,), single), case.latents((rows,), single), *case.contexts((rows,), single)

    def score(layer: Layer, x: Tensor, z: Tensor, *contexts: Tensor) -> Tensor:
        t = case.bijection(layer, contexts)
        base = case.base(x.dtype, x.device)
        density = dist.TransformedDistribution(base, [t], validate_args=False).log_prob(x)
        # A layer may store the log-determinant of t(z) until Pyro asks for it. Pyro does not ask here, so the
        # log-determinant stays stored while the layer is copied and saved. Both must still work.
        return density + t(z).flatten(1).sum(-1)

    return ModuleCase(case.build, inputs, score, tolerances=case.tolerances, perturbation=case.perturbation)


TRANSFORM_CHECKS: dict[str, Check[Case]] = {
    **table(
        Check(kind, gate=True),
        Check(data_in_codomain, gate=True),
        Check(round_trip_float32),
        Check(round_trip_float64),
        Check(log_determinant),
        Check(batch_shapes),
        Check(empty_batch),
        Check(vmap),
        Check(every_parameter_learns, PARAMETERS),
        Check(gradients_by_differences),
        Check(initializes),
    ),
    **PROTOCOL_CHECKS,
    **CONTEXT_CHECKS,
    **table(*(check.seen_as(as_module) for check in MODULE_CHECKS.values())),
}
"""Checks of a transform, by name."""


def check_transform(
    build: Case | Callable[[], Layer],
    event_shape: tuple[int, ...] | None = None,
    base_shape: tuple[int, ...] | None = None,
    *,
    context_dim: int = 0,
    data: Literal["real", "unit"] | Callable[[tuple[int, ...]], Tensor] = "real",
    tolerances: Tolerances = DEFAULT,
    skip: Collection[str] = (),
) -> None:
    """Run every check of :data:`TRANSFORM_CHECKS` that applies to a transform.

    :param build: a callable without arguments that makes a fresh transform, or a :class:`Case`, which has
        the other arguments and some more.
    :param event_shape: shape of one datum, ``(D,)`` or ``(C, H, W)``. Small shapes keep the checks fast.
    :param base_shape: shape of the datum on the latent side; ``event_shape`` by default.
    :param int context_dim: length of a context vector; 0 for an unconditional transform.
    :param data: ``"real"``, ``"unit"`` for data in the unit interval, or a callable that makes data of a
        given shape.
    :param Tolerances tolerances: how closely numbers must agree.
    :param skip: names of checks to leave out.
    :raises ConformanceError: an ``AssertionError`` with the transform, the failed checks and the numbers.
    :raises ValueError: if ``event_shape`` is missing, ``build`` is a ready transform or needs arguments, an
        argument stands beside a :class:`Case`, or ``skip`` names a check that does not exist.

    >>> check_transform(lambda: pyro_scnf.transforms.ActNorm((3,)), (3,))
    >>> build = lambda: pyro_scnf.flows.realnvp((4,), width=8, context_dim=2)
    >>> check_transform(build, (4,), context_dim=2)
    """
    __tracebackhide__ = True
    if isinstance(build, Case):
        others = (event_shape, base_shape, context_dim, data, tolerances, skip)
        if others != (None, None, 0, "real", DEFAULT, ()):
            raise ValueError("build is a Case: give it the other arguments")
    else:
        if event_shape is None:
            raise ValueError("event_shape is missing: give the shape of one datum, (D,) or (C, H, W)")
        build = Case(
            build, event_shape, base_shape or (), context_dim, data=data, tolerances=tolerances, skip=skip
        )
    run_all(TRANSFORM_CHECKS, build)
