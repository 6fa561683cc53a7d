"""Checks of a transform against the protocol of PyTorch and Pyro."""

from __future__ import annotations

import gc
import weakref

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scnf.testing.case import BATCHES, PARAMETERS, Case, perturb
from pyro_scnf.testing.check import Check, table
from pyro_scnf.testing.compare import require, require_close, require_equal, require_shape
from pyro_scnf.transforms import Flip, compose

__all__ = ["PROTOCOL_CHECKS"]


def predicted_shapes(case: Case) -> None:
    """``forward_shape``, ``inverse_shape``, ``domain`` and ``codomain`` predict the shapes."""
    t, _ = case.fresh()
    for batch in BATCHES:
        base, event = torch.Size(batch + case.base_shape), torch.Size(batch + case.event_shape)
        for name, got, expected in (
            ("forward_shape", t.forward_shape(base), event),
            ("inverse_shape", t.inverse_shape(event), base),
            ("inv.forward_shape", t.inv.forward_shape(event), base),
        ):
            require(got == expected, f"{name} gives {tuple(got)}, expected {tuple(expected)}")
    for name, got, shape in (
        ("domain", t.domain, case.base_shape),
        ("codomain", t.codomain, case.event_shape),
    ):
        require(got.event_dim == len(shape), f"{name}.event_dim is {got.event_dim}, expected {len(shape)}")


def support(case: Case) -> None:
    """The codomain holds decoded latents, and it has the limits of the data."""
    t, x = case.fresh((3,))
    require(t.codomain.check(t(case.latents((3,)))).all(), "codomain: x from random latents lies outside")
    require(t.domain.check(case.latents((3,))).all(), "domain: random latents lie outside")
    if case.data == "unit":
        require(
            not t.codomain.check(x + 2).any(), "codomain: holds numbers above 2, but the data are in (0, 1)"
        )
    elif case.data == "real":
        require(t.codomain.check(1e3 * x).all(), "codomain: holds no large numbers, but the data are real")


def pyro_protocol(case: Case) -> None:
    """``t(z)``, ``t.inv(x)`` and ``t.log_abs_det_jacobian(z, x)`` agree with the one-pass methods."""
    t, x = case.fresh((3,))
    values, log_dets = case.tolerances.round_trip, case.tolerances.log_det
    z, ladj = t.inverse_and_ladj(x)
    require_equal(t.inv(x), z, "t.inv(x), against inverse_and_ladj")
    require_close(t(z), x, values, "t(z), for z = t.inv(x)")
    name = "t.log_abs_det_jacobian(z, x)"
    require_close(t.log_abs_det_jacobian(z.clone(), x.clone()), -ladj, log_dets, f"{name} of copies")
    require_close(t.log_abs_det_jacobian(t.inv(x), x), -ladj, log_dets, f"{name} after t.inv(x)")
    fresh = z.clone()
    require_close(t.log_abs_det_jacobian(fresh, t(fresh)), -ladj, log_dets, f"{name} after t(z)")
    require_close(t.inv.log_abs_det_jacobian(x, z), ladj, log_dets, "t.inv.log_abs_det_jacobian(x, z)")
    require(t.inv.inv is t, "t.inv.inv is not t")
    require(t.with_cache(1) is t, "t.with_cache(1) is not t: what it caches outlives an optimiser step")


def transformed_distribution(case: Case) -> None:
    """A ``TransformedDistribution`` on it has the right shapes, density and draws."""
    t, x = case.fresh((3,))
    base = case.base()
    flow = dist.TransformedDistribution(base, [t])
    require(flow.event_shape == case.event_shape, f"its event_shape is {tuple(flow.event_shape)}")
    require(flow.batch_shape == (), f"its batch_shape is {tuple(flow.batch_shape)}, expected ()")
    z, ladj = t.inverse_and_ladj(x)
    require_close(flow.log_prob(x), base.log_prob(z) + ladj, case.tolerances.log_det, "its log_prob")
    drawn = flow.rsample((3,))
    require_shape(drawn, (3,) + case.event_shape, "its draws")
    require(torch.isfinite(flow.log_prob(drawn)).all(), "the log_prob of its own draws is not finite")


def one_pass(case: Case) -> None:
    """One ``log_prob`` runs the layer once, since the log-determinant comes with the value."""
    layer, x, runs = case.member(), case.values((3,)), []
    original = layer._inverse_ladj

    def counted(*args: Tensor) -> tuple[Tensor, Tensor]:
        runs.append(args)
        return original(*args)

    object.__setattr__(layer, "_inverse_ladj", counted)
    t = case.bijection(layer, case.contexts())
    dist.TransformedDistribution(case.base(), [t]).log_prob(x)
    require(len(runs) == 1, f"one log_prob calls _inverse_ladj {len(runs)} times, expected once")


def in_a_chain(case: Case) -> None:
    """The layer computes the same in a chain of :func:`~pyro_scnf.transforms.compose` as alone.

    A chain calls ``_inverse_ladj`` and ``_forward_ladj``. Overriding only the public methods is not enough.
    """
    layer, flip, contexts = case.member(), Flip(case.event_shape), case.contexts((2, 1))
    chain = compose([layer, flip])
    inner = case.values((3,))
    x = flip(inner)
    z, ladj = chain.inverse_and_ladj(x, *contexts)
    alone, alone_ladj = layer.inverse_and_ladj(inner, *contexts)
    require_close(z, alone, case.tolerances.batching, "z of a chain, against the layer alone")
    require_close(
        ladj, alone_ladj, case.tolerances.batching, "log-determinant of a chain, against the layer alone"
    )
    again, back = chain.call_and_ladj(z, *contexts)
    require_close(again, x.expand(again.shape), case.tolerances.round_trip, "x, through a chain and back")
    require_close(back, -ladj, case.tolerances.log_det, "log-determinant of call_and_ladj of a chain")


def log_determinant_has_its_gradient(case: Case) -> None:
    """``log_abs_det_jacobian`` has its gradient even after ``t.inv(x)`` or ``t(z)`` without gradients."""
    t, x = case.fresh((3,))
    with torch.no_grad():
        z = t.inv(x)
    got = t.log_abs_det_jacobian(z, x).requires_grad
    require(
        got or not t.inverse_and_ladj(x)[1].requires_grad,
        "t.log_abs_det_jacobian(z, x) has no gradient after t.inv(x) under torch.no_grad()",
    )
    with torch.no_grad():
        again = t(z)
    got = t.log_abs_det_jacobian(z, again).requires_grad
    require(
        got or not t.call_and_ladj(z)[1].requires_grad,
        "t.log_abs_det_jacobian(z, x) has no gradient after t(z) under torch.no_grad()",
    )


def log_determinant_is_current(case: Case) -> None:
    """``log_abs_det_jacobian`` follows an update of the parameters. ``t.inv(x)`` keeps no tensor alive."""
    layer, contexts, x = case.member(), case.contexts(), case.values((3,))
    t = case.bijection(layer, contexts)
    z = t.inv(x)
    t.log_abs_det_jacobian(z, x)
    perturb(layer)
    got, expected = t.log_abs_det_jacobian(z, x), -t.inverse_and_ladj(x)[1]
    require_close(got, expected, case.tolerances.log_det, "log_abs_det_jacobian(z, x) after an update")
    seen = weakref.ref(t.inv(x))
    gc.collect(0)
    require(seen() is None, "t.inv(x) keeps z in memory")


PROTOCOL_CHECKS: dict[str, Check[Case]] = table(
    Check(predicted_shapes),
    Check(support),
    Check(pyro_protocol),
    Check(transformed_distribution),
    Check(one_pass),
    Check(in_a_chain),
    Check(log_determinant_has_its_gradient, PARAMETERS),
    Check(log_determinant_is_current, PARAMETERS),
)
"""Checks of what PyTorch and Pyro ask of a transform, by name. Those of transforms include them."""
