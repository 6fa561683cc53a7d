"""Every member of the package, by name: one entry here enters the whole suite.

A case builds a fresh object with small networks. ``pyro_scnf.testing`` holds the checks that every member
passes. ``test_completeness.py`` fails for a public class that no case covers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import pyro_scnf as scnf
from pyro_scnf import flows
from pyro_scnf import nn as snn
from pyro_scnf import transforms as T
from pyro_scnf.flows.builder import CouplingBuilder
from pyro_scnf.terms import Agreement, Balance, Classification, Consistency, Energy
from pyro_scnf.testing import Case, PriorCase, TermCase, Tolerances

WIDTH = 6


# -- conditioners ----------------------------------------------------------------------------------
def mlp(inputs: int, outputs: int, context_dim: int = 0) -> snn.Conditioner:
    return snn.MLP(inputs, outputs, hidden=(WIDTH, WIDTH), activation=torch.nn.Tanh, context_dim=context_dim)


def residual_mlp(inputs: int, outputs: int, context_dim: int = 0, norm: Any = "final") -> snn.Conditioner:
    return snn.ResidualMLP(inputs, outputs, WIDTH, 1, norm, context_dim)


def conv_net(inputs: int, outputs: int, context_dim: int = 0) -> snn.Conditioner:
    return snn.ConvNet(inputs, outputs, WIDTH, context_dim)


def residual_conv_net(
    inputs: int, outputs: int, context_dim: int = 0, norm: Any = "final"
) -> snn.Conditioner:
    return snn.ResidualConvNet(inputs, outputs, WIDTH, 1, norm, context_dim)


def skip_conv_net(inputs: int, outputs: int, context_dim: int = 0) -> snn.Conditioner:
    return snn.SkipConvNet(inputs, outputs, WIDTH, 1, context_dim)


def pooled_conv_net(inputs: int, outputs: int, context_dim: int = 0) -> snn.Conditioner:
    return snn.PooledConvNet(inputs, outputs, WIDTH, 1, context_dim)


# -- continuous flows ------------------------------------------------------------------------------
SOLVER = "dopri5:rtol=1e-6,atol=1e-6,tighter=1"
SOLVED = Tolerances(round_trip=2e-6, log_det=2e-6, batching=2e-6, gradient=1e-4)
"""A few times the tolerance of the solver, which is the same in training and in evaluation mode."""


# -- shapes used throughout ------------------------------------------------------------------------
VECTOR = (4,)
ODD = (5,)
IMAGE = (2, 4, 4)
DEEP = (4, 2, 2)
CONTEXT = 3


def _image_scales(latent_dim: int | None = None) -> T.MultiScale:
    """Two scales of a (1, 4, 4) image: 8 numbers are factored out, 8 are left."""
    outer = T.compose([T.AffineCoupling(DEEP, conv_net(2, 4)), T.Squeeze((1, 4, 4))])
    inner = T.compose([T.ActNorm((2, 2, 2)), T.InvertibleConv1x1((2, 2, 2))])
    return T.MultiScale([inner, outer], latent_dim)


def _vector_scales(latent_dim: int | None = None) -> T.MultiScale:
    """Two scales of a vector of 6: 4 numbers are factored out, 2 are left."""
    return T.MultiScale([T.ActNorm((2,)), T.AffineCoupling((6,), mlp(3, 6))], latent_dim)


def small_atanov2019() -> T.Compose:
    """The layers and their order of ``flows.atanov2019_mnist``, at 1×8×8 and with narrow nets."""
    build = CouplingBuilder(width=WIDTH, blocks=1, scale="sigmoid")

    def step(shape: torch.Size, couplings: list) -> list:
        return [T.InvertibleConv1x1(shape, "plain", "identity"), *couplings, T.ActNorm(shape)]

    def checkerboards(shape: torch.Size) -> list:
        return [layer for k in (False, True) for layer in step(shape, [build.checkerboard(shape, k)])]

    shape = torch.Size((1, 8, 8))
    squeeze = T.Squeeze(shape, "space-major")
    outer = [
        *checkerboards(shape),
        squeeze,
        *step(squeeze.base_shape, build.double(squeeze.base_shape)[::-1]),
    ]
    kept = torch.Size((2, 4, 4))
    inner = [*checkerboards(kept), *step(kept, build.double(kept)[::-1])]
    stages = [T.compose(inner[::-1]), T.compose(outer[::-1])]
    return T.Compose([T.MultiScale(stages, 16), T.Logit(shape, alpha=0.05)])


def fitted(layer: Any) -> Any:
    """A layer whose knots, rotations and scales are those of skewed and correlated data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, *layer.event_shape, generator=generator)
    layer.initialize(x.cumsum(-1) + 0.3 * x.exp())
    return layer


def continuous(
    event_shape: tuple[int, ...], context_dim: int = 0, solver: str = SOLVER, **options: Any
) -> T.ContinuousFlow | T.ConditionalContinuousFlow:
    """A continuous flow with a small velocity field."""
    field = {name: options.pop(name) for name in ("layer", "activation") if name in options}
    net = snn.Dynamics(event_shape, (WIDTH,), context_dim=context_dim, **field)
    if context_dim:
        return T.ConditionalContinuousFlow(
            event_shape, net, context_dim=context_dim, solver=solver, **options
        )
    return T.ContinuousFlow(event_shape, net, solver=solver, **options)


class OwnField(torch.nn.Module):
    """A velocity field of a user, without a method for products of its Jacobian."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(size, WIDTH), torch.nn.SiLU(), torch.nn.Linear(WIDTH, size)
        )

    def forward(self, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.net(z) * (1 + t)


solved = partial(Case, tolerances=SOLVED, skip=("vmap",))


TRANSFORMS: dict[str, Case] = {
    "actnorm-vector": Case(lambda: T.ActNorm(VECTOR), VECTOR),
    "actnorm-image": Case(lambda: T.ActNorm(IMAGE), IMAGE),
    "conv1x1-lu-vector": Case(lambda: T.InvertibleConv1x1(VECTOR), VECTOR),
    "conv1x1-lu-image": Case(lambda: T.InvertibleConv1x1((3, 2, 4)), (3, 2, 4)),
    "conv1x1-lu-identity": Case(lambda: T.InvertibleConv1x1(IMAGE, init="identity"), IMAGE),
    "conv1x1-lu-one-channel": Case(
        # The strict triangles of a 1×1 matrix are empty: there is nothing to learn.
        lambda: T.InvertibleConv1x1((1, 2, 2)),
        (1, 2, 2),
        idle=("lower", "upper"),
    ),
    "conv1x1-plain-vector": Case(lambda: T.InvertibleConv1x1(VECTOR, "plain"), VECTOR),
    "conv1x1-plain-image": Case(lambda: T.InvertibleConv1x1(IMAGE, "plain", "identity"), IMAGE),
    "coupling-vector": Case(lambda: T.AffineCoupling(VECTOR, mlp(2, 4)), VECTOR),
    "coupling-vector-flip": Case(
        lambda: T.AffineCoupling(VECTOR, residual_mlp(2, 4, norm="blocks"), flip=True), VECTOR
    ),
    "coupling-vector-odd": Case(
        lambda: T.AffineCoupling(ODD, residual_mlp(2, 6), scale="tanh", split=2), ODD
    ),
    "coupling-vector-odd-flip": Case(
        lambda: T.AffineCoupling(ODD, residual_mlp(3, 4, norm="none"), scale="clamp", flip=True, split=3), ODD
    ),
    "coupling-image": Case(lambda: T.AffineCoupling(IMAGE, residual_conv_net(1, 2)), IMAGE),
    "coupling-image-tanh": Case(
        lambda: T.AffineCoupling(IMAGE, residual_conv_net(1, 2, norm="blocks"), scale="tanh", flip=True),
        IMAGE,
    ),
    "coupling-image-clamp": Case(lambda: T.AffineCoupling(IMAGE, conv_net(1, 2), scale="clamp"), IMAGE),
    "coupling-image-skip": Case(
        lambda: T.AffineCoupling(IMAGE, skip_conv_net(1, 2), scale="tanh", flip=True), IMAGE
    ),
    "coupling-image-odd": Case(
        lambda: T.AffineCoupling((3, 2, 2), residual_conv_net(1, 4, norm="none"), scale="tanh", split=1),
        (3, 2, 2),
    ),
    "coupling-one-pixel": Case(
        lambda: T.AffineCoupling((4, 1, 1), snn.ResidualConvNet(2, 4, WIDTH, 1, kernel_size=1)), (4, 1, 1)
    ),
    "masked-vector": Case(lambda: T.MaskedAffineCoupling(ODD, mlp(5, 10)), ODD),
    "masked-vector-invert": Case(
        lambda: T.MaskedAffineCoupling(ODD, residual_mlp(5, 10), scale="tanh", invert=True), ODD
    ),
    "masked-image": Case(lambda: T.MaskedAffineCoupling(IMAGE, residual_conv_net(2, 4)), IMAGE),
    "masked-image-invert": Case(
        lambda: T.MaskedAffineCoupling(IMAGE, conv_net(2, 4), scale="tanh", invert=True), IMAGE
    ),
    "coupling-image-pooled": Case(
        lambda: T.AffineCoupling(IMAGE, pooled_conv_net(1, 2), scale="clamp"), IMAGE
    ),
    "masked-image-skip": Case(lambda: T.MaskedAffineCoupling(IMAGE, skip_conv_net(2, 4)), IMAGE),
    "masked-image-odd-sides": Case(
        lambda: T.MaskedAffineCoupling((1, 3, 5), residual_conv_net(1, 2), scale="clamp"), (1, 3, 5)
    ),
    "masked-custom": Case(
        lambda: T.MaskedAffineCoupling(VECTOR, mlp(4, 8), mask=torch.tensor([1.0, 0.0, 0.0, 1.0])), VECTOR
    ),
    "squeeze-space-major": Case(lambda: T.Squeeze((3, 4, 2), "space-major"), (3, 4, 2), (12, 2, 1)),
    "squeeze-channel-major": Case(lambda: T.Squeeze((3, 4, 2), "channel-major"), (3, 4, 2), (12, 2, 1)),
    "flatten-image": Case(lambda: T.Flatten((2, 3, 2)), (2, 3, 2), (12,)),
    "flatten-vector": Case(lambda: T.Flatten(VECTOR), VECTOR),
    "permute-vector": Case(lambda: T.Permute(ODD), ODD),
    "permute-image": Case(lambda: T.Permute((3, 2, 2), torch.tensor([2, 0, 1])), (3, 2, 2)),
    "flip-vector": Case(lambda: T.Flip(VECTOR), VECTOR),
    "flip-image": Case(lambda: T.Flip((3, 2, 2)), (3, 2, 2)),
    "logit-vector": Case(lambda: T.Logit(VECTOR), VECTOR, data="unit"),
    "logit-image": Case(lambda: T.Logit(IMAGE, alpha=1e-3), IMAGE, data="unit"),
    "logit-no-contraction": Case(lambda: T.Logit(VECTOR, alpha=0), VECTOR, data="unit"),
    "gaussianization-vector": Case(lambda: T.MarginalGaussianization(VECTOR, cells=5), VECTOR, data="unit"),
    "gaussianization-image": Case(lambda: T.MarginalGaussianization(IMAGE), IMAGE, data="unit"),
    "quantile-spline": Case(lambda: fitted(T.QuantileSpline(VECTOR, bins=6)), VECTOR),
    "quantile-spline-identity": Case(lambda: T.QuantileSpline((1,), bins=4), (1,)),
    "principal-components": Case(lambda: fitted(T.PrincipalComponents(ODD)), ODD),
    "leading_components": Case(lambda: fitted(flows.leading_components(ODD, latent_dim=2, width=WIDTH)), ODD),
    "glow-quantiles": Case(
        lambda: fitted(flows.glow(VECTOR, steps=1, width=WIDTH, blocks=1, quantiles=5)), VECTOR
    ),
    "compose-vector": Case(
        lambda: T.Compose([T.ActNorm(VECTOR), T.AffineCoupling(VECTOR, mlp(2, 4)), T.Flip(VECTOR)]), VECTOR
    ),
    "compose-nested-image": Case(
        lambda: T.Compose(
            [
                T.Compose([T.ActNorm(DEEP), T.InvertibleConv1x1(DEEP)]),
                T.AffineCoupling(DEEP, residual_conv_net(2, 4)),
                T.Squeeze((1, 4, 4)),
                T.Logit((1, 4, 4)),
            ]
        ),
        (1, 4, 4),
        DEEP,
        data="unit",
    ),
    "multiscale-one": Case(lambda: T.MultiScale([T.ActNorm(IMAGE)]), IMAGE, (32,)),
    "multiscale-image": Case(_image_scales, (1, 4, 4), (16,)),
    "multiscale-image-latent-5": Case(lambda: _image_scales(5), (1, 4, 4), (16,)),
    "multiscale-image-latent-all": Case(lambda: _image_scales(16), (1, 4, 4), (16,)),
    "multiscale-vector": Case(_vector_scales, (6,), (6,)),
    "multiscale-vector-latent-3": Case(lambda: _vector_scales(3), (6,), (6,)),
    "glow-2d": Case(lambda: flows.glow((2,), steps=2, width=WIDTH, blocks=1), (2,)),
    "glow-vector-levels": Case(
        lambda: flows.glow((7,), levels=2, steps=1, width=WIDTH, blocks=1, latent_dim=3), (7,)
    ),
    "glow-image": Case(
        lambda: flows.glow((1, 4, 4), levels=2, steps=1, width=WIDTH, blocks=1), (1, 4, 4), (16,)
    ),
    "glow-image-options": Case(
        lambda: flows.glow(
            (2, 4, 4),
            levels=1,
            steps=2,
            coupling="alternate",
            scale="tanh",
            conv="plain",
            logit=0.05,
            latent_dim=10,
            net=conv_net,
        ),
        (2, 4, 4),
        (32,),
        data="unit",
    ),
    "glow-image-not-factored": Case(
        lambda: flows.glow(
            (1, 8, 8), levels=2, steps=(0, 1), factor_out=False, scale="tanh", net=pooled_conv_net
        ),
        (1, 8, 8),
        (64,),
    ),
    "realnvp-2d": Case(lambda: flows.realnvp((2,), couplings=3, width=WIDTH, blocks=1), (2,)),
    "realnvp-odd": Case(lambda: flows.realnvp(ODD, couplings=2, scale="clamp", net=mlp), ODD),
    "realnvp-image": Case(
        lambda: flows.realnvp((1, 4, 4), levels=2, width=WIDTH, blocks=1, logit=0.05, latent_dim=4),
        (1, 4, 4),
        (16,),
        data="unit",
    ),
    "realnvp-image-nets": Case(
        lambda: flows.realnvp(
            (1, 4, 4),
            logit=0.05,
            latent_dim=16,
            net=["skip-conv:width=5,blocks=1", "skip-conv:width=6,blocks=1"],
        ),
        (1, 4, 4),
        (16,),
        data="unit",
    ),
    "atanov2019-small": Case(small_atanov2019, (1, 8, 8), (64,), data="unit"),
}
"""Unconditional transforms."""


conditional = partial(Case, context_dim=CONTEXT)
solved_given = partial(solved, context_dim=CONTEXT)


def _conditional_coupling(**options: Any) -> T.ConditionalAffineCoupling:
    return T.ConditionalAffineCoupling(VECTOR, mlp(2, 4, CONTEXT), context_dim=CONTEXT, **options)


def _conditional_scales() -> T.ConditionalMultiScale:
    """The outer scale does not see the context, the inner one does."""
    inner = T.ConditionalAffineCoupling((2, 2, 2), conv_net(1, 2, CONTEXT), context_dim=CONTEXT)
    outer = T.compose([T.AffineCoupling(DEEP, conv_net(2, 4)), T.Squeeze((1, 4, 4))])
    return T.ConditionalMultiScale([inner, outer], latent_dim=6)


CONDITIONAL_TRANSFORMS: dict[str, Case] = {
    "coupling-vector": conditional(_conditional_coupling, VECTOR),
    "coupling-vector-flip": conditional(lambda: _conditional_coupling(flip=True, scale="tanh"), VECTOR),
    "coupling-vector-odd": conditional(
        lambda: T.ConditionalAffineCoupling(
            ODD,
            residual_mlp(3, 4, CONTEXT, norm="blocks"),
            context_dim=CONTEXT,
            scale="clamp",
            flip=True,
            split=3,
        ),
        ODD,
    ),
    "coupling-image": conditional(
        lambda: T.ConditionalAffineCoupling(IMAGE, residual_conv_net(1, 2, CONTEXT), context_dim=CONTEXT),
        IMAGE,
    ),
    "coupling-image-flip": conditional(
        lambda: T.ConditionalAffineCoupling(
            IMAGE, conv_net(1, 2, CONTEXT), context_dim=CONTEXT, scale="tanh", flip=True
        ),
        IMAGE,
    ),
    "masked-vector": conditional(
        lambda: T.ConditionalMaskedAffineCoupling(ODD, residual_mlp(5, 10, CONTEXT), context_dim=CONTEXT), ODD
    ),
    "masked-image": conditional(
        lambda: T.ConditionalMaskedAffineCoupling(
            IMAGE, residual_conv_net(2, 4, CONTEXT, norm="blocks"), context_dim=CONTEXT, scale="clamp"
        ),
        IMAGE,
    ),
    "masked-image-skip": conditional(
        lambda: T.ConditionalMaskedAffineCoupling(
            IMAGE, skip_conv_net(2, 4, CONTEXT), context_dim=CONTEXT, scale="tanh"
        ),
        IMAGE,
    ),
    "coupling-image-pooled": conditional(
        lambda: T.ConditionalAffineCoupling(
            IMAGE, pooled_conv_net(1, 2, CONTEXT), context_dim=CONTEXT, scale="clamp"
        ),
        IMAGE,
    ),
    "masked-image-invert": conditional(
        lambda: T.ConditionalMaskedAffineCoupling(
            IMAGE, conv_net(2, 4, CONTEXT), context_dim=CONTEXT, scale="tanh", invert=True
        ),
        IMAGE,
    ),
    "compose-data-first": conditional(  # the first layer to see the data ignores the context
        lambda: T.ConditionalCompose([_conditional_coupling(), T.ActNorm(VECTOR), T.Flip(VECTOR)]), VECTOR
    ),
    "compose-latent-first": conditional(
        lambda: T.ConditionalCompose(
            [T.AffineCoupling(VECTOR, mlp(2, 4)), T.Flip(VECTOR), _conditional_coupling()]
        ),
        VECTOR,
    ),
    "compose-nested": conditional(
        lambda: T.ConditionalCompose(
            [T.ConditionalCompose([_conditional_coupling(), T.ActNorm(VECTOR)]), T.Logit(VECTOR)]
        ),
        VECTOR,
        data="unit",
    ),
    "multiscale": conditional(_conditional_scales, (1, 4, 4), (16,)),
    "glow-2d": conditional(
        lambda: flows.glow((2,), steps=2, width=WIDTH, blocks=1, context_dim=CONTEXT), (2,)
    ),
    "glow-vector-levels": conditional(
        lambda: flows.glow(
            (6,), levels=2, steps=1, conv="plain", coupling="alternate", net=mlp, context_dim=CONTEXT
        ),
        (6,),
    ),
    "glow-image": conditional(
        lambda: flows.glow((1, 4, 4), levels=2, steps=1, width=WIDTH, blocks=1, context_dim=CONTEXT),
        (1, 4, 4),
        (16,),
    ),
    "realnvp-vector": conditional(
        lambda: flows.realnvp(ODD, couplings=3, width=WIDTH, blocks=1, context_dim=CONTEXT), ODD
    ),
    "realnvp-image": conditional(
        lambda: flows.realnvp((1, 4, 4), levels=2, width=WIDTH, blocks=1, context_dim=CONTEXT),
        (1, 4, 4),
        (16,),
    ),
}
"""Conditional transforms, for context vectors of length ``CONTEXT``."""

SOLVED_TRANSFORMS: dict[str, Case] = {
    "continuous-2d": solved(lambda: continuous((2,)), (2,)),
    "continuous-8d": solved(lambda: continuous((8,), layer="concat", activation="softplus"), (8,)),
    "continuous-ignore": solved(
        lambda: continuous(ODD, layer="ignore", learn_end_time=False, end_time=0.8), ODD
    ),
    "continuous-image": solved(
        lambda: continuous((2, 2, 2), layer="concat", activation="softplus", divergence="exact"), (2, 2, 2)
    ),
    "continuous-steps": solved(lambda: continuous(VECTOR, solver="rk4:steps=10"), VECTOR),
    "continuous-adjoint": solved(lambda: continuous((2,), solver=f"{SOLVER},adjoint=True"), (2,)),
    "continuous-own": solved(lambda: T.ContinuousFlow(3, OwnField(3), solver="rk4:steps=10"), (3,)),
    "ffjord-2d": solved(lambda: flows.ffjord(2, blocks=2, hidden=(WIDTH,), solver=SOLVER), (2,)),
    "ffjord-image": solved(
        lambda: flows.ffjord(
            (1, 4, 4), levels=2, hidden=(WIDTH,), solver=SOLVER, divergence="exact", logit=0.05
        ),
        (1, 4, 4),
        (16,),
        data="unit",
    ),
}
"""Unconditional transforms with a solver, which are right to its tolerance."""

CONDITIONAL_SOLVED_TRANSFORMS: dict[str, Case] = {
    "continuous-vector": solved_given(lambda: continuous((3,), CONTEXT), (3,)),
    "continuous-image": solved_given(
        lambda: continuous((1, 2, 2), CONTEXT, layer="concat", activation="softplus"), (1, 2, 2)
    ),
    "continuous-steps": solved_given(lambda: continuous((2,), CONTEXT, "rk4:steps=10"), (2,)),
    "continuous-adjoint": solved_given(
        lambda: continuous((2,), CONTEXT, f"{SOLVER},adjoint=True", layer="ignore"), (2,)
    ),
    "ffjord-vector": solved_given(
        lambda: flows.ffjord(3, hidden=(WIDTH,), solver=SOLVER, context_dim=CONTEXT), (3,)
    ),
}
"""Conditional transforms with a solver."""


# Products of a network lose digits under autocast. A mixture has none.
MIXTURE = Tolerances(autocast=1e-6)


def prior(
    spec: Any,
    event_shape: tuple[int, ...] = (3,),
    num_classes: int = 3,
    tolerances: Tolerances = MIXTURE,
) -> PriorCase:
    build = partial(scnf.make_prior, spec, event_shape, num_classes)
    return PriorCase(build, event_shape, num_classes, relaxed=True, tolerances=tolerances)


flow_prior = partial(prior, tolerances=Tolerances())
solved_prior = partial(prior, tolerances=SOLVED)


def own_flow_prior(event_shape: tuple[int, ...], num_classes: int) -> scnf.priors.ConditionalFlowPrior:
    """A prior made from the user's own conditional flow."""
    flow = flows.realnvp(event_shape, couplings=2, net=mlp, context_dim=CONTEXT)
    return scnf.priors.ConditionalFlowPrior(event_shape, num_classes, embedding_dim=CONTEXT, flow=flow)


_SMALL = {"name": "flow", "steps": 1, "width": WIDTH, "blocks": 1}

PRIORS: dict[str, PriorCase] = {
    "flow": flow_prior(_SMALL),
    "flow-2d": flow_prior(_SMALL, (2,), 2),
    "flow-image": flow_prior({**_SMALL, "coupling": "alternate", "scale": "clamp"}, (2, 2, 2)),
    "flow-levels": flow_prior({**_SMALL, "levels": 2, "conv": "plain", "base_scale": 0.7}, (6,)),
    "flow-embedding": flow_prior({**_SMALL, "embedding_dim": 2, "base": "unit"}),
    "flow-own": flow_prior(own_flow_prior, (3,), 4),
    "gmm": prior("gmm"),
    "gmm-image": prior("gmm", (2, 2, 1)),
    "gmm-shared": prior("gmm:covariance=shared,scale=0.7", (2, 1, 2)),
    "gmm-isotropic": prior("gmm:covariance=isotropic", (2, 1, 2)),
    "gmm-full": prior("gmm:covariance=full"),
    "gmm-full-image": prior("gmm:covariance=full", (2, 1, 2)),
    "gmm-antipodal": prior("gmm:means=antipodal,separation=2.0,fit_means=fixed", (3,), 2),
    "gmm-latents": prior("gmm:means=latents"),
    "gmm-circle": prior("gmm:means=circle,separation=2.0,fit_means=fixed", (2, 1, 1)),
    "gmm-blocks": prior("gmm:means=blocks,separation=2.0,fit_scales=fixed"),
    "gmm-clusters": prior("gmm:means=clusters"),
    "gmm-given": prior({"name": "gmm", "means": [[0.0, 1.0], [2.0, 0.0]], "fit_means": "fixed"}, (2,), 2),
    "gmm-em": prior("gmm:fit_means=em,fit_scales=em"),
    "gmm-em-full": prior("gmm:covariance=full,fit_means=em,fit_scales=em,components=2,fit_weights=em"),
    "gmm-em-means": prior("gmm:covariance=isotropic,fit_means=em", (2, 1, 2)),
    "gmm-components": prior("gmm:components=2", (2, 1, 1)),
    "gmm-components-full": prior("gmm:components=3,covariance=full,fit_weights=fixed", (2, 1, 1)),
    "gmm-components-isotropic": prior("gmm:components=2,covariance=isotropic"),
    "gmm-components-shared": prior("gmm:components=2,covariance=shared,fit_weights=em,em_decay=0.5"),
    "flowgmm": prior("flowgmm"),
    "ffjord": solved_prior(f"ffjord:hidden=[{WIDTH}],solver='{SOLVER}'"),
    "ffjord-image": solved_prior({"name": "ffjord", "hidden": (WIDTH,), "solver": SOLVER}, (2, 1, 1), 2),
    "student-t": prior("student-t"),
    "student-t-image": prior("student-t:df=3.0,fit_df=gradient", (2, 2, 1)),
    "student-t-em": prior("student-t:fit_means=em,fit_scales=em"),
    "student-t-full": prior("student-t:covariance=full,fit_df=gradient", (2, 2, 1)),
    "gmm-pooled-em": prior("gmm:covariance=full,pooled=0.5,fit_scales=em"),
    "student-t-full-em": prior("student-t:covariance=full,components=2,fit_means=em,fit_scales=em"),
    "student-t-components": prior("student-t:components=2,fit_weights=em"),
}
"""Class-conditional priors."""

COVARIATE_PRIORS: dict[str, PriorCase] = {
    "flow": flow_prior({**_SMALL, "covariates": 2}),
    "flow-one-class": replace(flow_prior({**_SMALL, "covariates": 3}, (2, 2, 1), 1), relaxed=False),
    "ffjord": replace(
        solved_prior(f"ffjord:hidden=[{WIDTH}],solver='{SOLVER}',covariates=2", (2,), 2),
        skip=("draws_follow_the_density", "density_integrates_to_one"),  # slow, and nothing new
    ),
}
"""Priors of labels and covariates."""

CLOSED_PRIORS = {name: case for name, case in PRIORS.items() if not name.startswith("ffjord")}
"""Those in closed form, which ``torch.func`` and half precision can run."""

GUIDES: dict[str, Callable[[scnf.SemiSupervisedModel], Any]] = {
    "exact": lambda model: scnf.make_guide("exact", model),
    "em": lambda model: scnf.make_guide("em", model),
    "em-sample": lambda model: scnf.make_guide("em-sample", model),
    "em-hard": lambda model: scnf.make_guide("em-hard", model),
    "em-ema": lambda model: scnf.make_guide("em-ema", model),
    "em-tempered": lambda model: scnf.EMGuide(model, temperature=2.0),
    "em-copy": lambda model: scnf.EMGuide(model, "sample", decay=0.0),
}
"""Guides over the label of a ``SemiSupervisedModel``."""

TERMS: dict[str, TermCase] = {
    "classification": TermCase(Classification),
    "classification-evidence": TermCase(partial(Classification, targets="evidence")),
    "classification-falling": TermCase(partial(Classification, 20.0, end=0.3), 5),
    "agreement": TermCase(Agreement),
    "agreement-impure": TermCase(partial(Agreement, 3.0, end=0.5, until=0.4, purity=0.6), 4, (5, 3)),
    "agreement-two-classes": TermCase(Agreement, 2),
    "balance": TermCase(Balance),
    "balance-falling": TermCase(partial(Balance, 200.0, end=0.0), 4),
    "energy": TermCase(Energy),
    "energy-falling": TermCase(partial(Energy, 0.1, end=0.0, jacobian=0.3)),
    "consistency": TermCase(Consistency, common={"view": -1.0}),
    "consistency-rising": TermCase(
        partial(Consistency, 0.5, start=0.0, until=0.25), 4, (3, 5), common={"view": -1.0}
    ),
    "consistency-probabilities": TermCase(partial(Consistency, kind="probabilities")),
    "consistency-probabilities-rising": TermCase(
        partial(Consistency, 30.0, start=0.0, end=2.0, kind="probabilities"), 4
    ),
}
"""Training terms."""
