"""Checks of a conditional transform: what a context does, and how its batch meets that of the data."""

from __future__ import annotations

from typing import cast

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransformedDistribution,
)

from pyro_scnf.testing.case import F64, Case, Trait
from pyro_scnf.testing.check import Check, table
from pyro_scnf.testing.compare import require, require_close, require_shape
from pyro_scnf.transforms import ConditionalFlowTransform, Flip

__all__ = ["CONTEXT_CHECKS"]

BATCHES: list[tuple[int, ...]] = [(), (1,), (4,), (3, 1), (3, 4), (3, 1, 1), (2, 1, 4)]


def _member(case: Case) -> ConditionalFlowTransform:
    return cast(ConditionalFlowTransform, case.member())


def contexts_broadcast(case: Case) -> None:
    """Contexts broadcast against data of batch (4,): each result is that of one event under one context."""
    layer, x = _member(case), case.values((4,))
    for batch in BATCHES:
        (c,) = case.contexts(batch)
        out, where = (
            torch.broadcast_shapes(batch, (4,)),
            f"of data of batch (4,) and contexts of batch {batch}",
        )
        z, ladj = layer.inverse_and_ladj(x, c)
        require_shape(z, out + case.base_shape, f"z {where}")
        require_shape(ladj, out, f"log-determinant {where}")
        again, back = layer.call_and_ladj(z, c)
        wide_x, wide_c = x.expand(out + case.event_shape), c.expand(out + c.shape[-1:])
        require_close(again, wide_x, case.tolerances.round_trip, f"x {where}, and back")
        require_close(back, -ladj, case.tolerances.log_det, f"log-determinant {where}, and back")
        for index in torch.cartesian_prod(*map(torch.arange, out)).reshape(-1, len(out)).tolist():
            i = tuple(index)
            one, one_ladj = layer.inverse_and_ladj(wide_x[i], wide_c[i])
            require_close(
                z[i], one, case.tolerances.batching, f"z {where}, against one event and context alone"
            )
            require_close(
                ladj[i], one_ladj, case.tolerances.batching, f"log-determinant {where}, against one alone"
            )


def contexts_broadcast_over_latents(case: Case) -> None:
    """Contexts of batch (3, 1) broadcast against latents of batch (4,): a loop over them gives the same."""
    layer, z = _member(case), case.latents((4,))
    (c,) = case.contexts((3, 1))
    x, ladj = layer.call_and_ladj(z, c)
    where = "of latents of batch (4,) and contexts of batch (3, 1)"
    require_shape(x, (3, 4) + case.event_shape, f"x {where}")
    for k in range(3):
        one, one_ladj = case.bijection(layer, (c[k, 0],)).call_and_ladj(z)
        require_close(x[k], one, case.tolerances.batching, f"x {where}, against one context alone")
        require_close(
            ladj[k], one_ladj, case.tolerances.batching, f"log-determinant {where}, against one alone"
        )


def context_matters(case: Case) -> None:
    """The latent of a datum depends on the context."""
    layer, x = _member(case), case.values((4,))
    z, _ = layer.inverse_and_ladj(x, *case.contexts((2, 1)))
    difference = (z[0] - z[1]).abs().max().item()
    require(difference > 1e-4, f"two contexts give latents that differ by no more than {difference:.3g}")


def context_learns(case: Case) -> None:
    """The density gives the context a gradient. An embedding of labels learns from it."""
    layer, x = _member(case), case.values((4,))
    c = case.contexts((4,))[0].requires_grad_()
    z, ladj = layer.inverse_and_ladj(x, c)
    (gradient,) = torch.autograd.grad(z.square().sum() + ladj.sum(), c)
    require(torch.isfinite(gradient).all(), "the gradient of the context is not finite")
    require((gradient.abs().sum(-1) > 0).all(), "the gradient of the context is zero")


def conditional_distribution(case: Case) -> None:
    """Pyro's ``ConditionalTransformedDistribution`` on it has the right shape and density."""
    layer, x = _member(case), case.values((4,))
    (c,) = case.contexts((4,))
    zero = torch.zeros((4,) + case.base_shape, dtype=F64)
    base = dist.Normal(zero, 1.0).to_event(len(case.base_shape))
    flow = ConditionalTransformedDistribution(base, [layer]).condition(c)
    z, ladj = layer.inverse_and_ladj(x, c)
    require(flow.batch_shape == (4,), f"its batch_shape is {tuple(flow.batch_shape)}, expected (4,)")
    require_close(flow.log_prob(x), base.log_prob(z) + ladj, case.tolerances.log_det, "its log_prob")


def conditional_compose(case: Case) -> None:
    """Pyro's ``ConditionalComposeTransformModule`` runs it and finds its parameters."""
    layer, flip, x = _member(case), Flip(case.event_shape), case.values((3,))
    (c,) = case.contexts()
    chain = ConditionalComposeTransformModule([layer, flip])
    expected = layer.inverse_and_ladj(flip.inv(x), c)[0]
    require_close(
        chain.condition(c).inv(x), expected, case.tolerances.batching, "z of Pyro's conditional chain"
    )
    found, own = len(list(chain.parameters())), len(list(layer.parameters()))
    require(found == own, f"Pyro's conditional chain has {found} parameters, the layer {own}")


CONTEXT: frozenset[Trait] = frozenset({"context"})
CONTEXT_CHECKS: dict[str, Check[Case]] = table(
    Check(contexts_broadcast, CONTEXT),
    Check(contexts_broadcast_over_latents, CONTEXT),
    Check(context_matters, CONTEXT),
    Check(context_learns, CONTEXT),
    Check(conditional_distribution, CONTEXT),
    Check(conditional_compose, CONTEXT),
)
"""Checks of conditional transforms, by name. Those of transforms include them."""
