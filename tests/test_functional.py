"""Densities inside ``torch.func``: maps over rows, labels, weights, contexts and parameters, and derivatives.

Each mapped call must give what the batched call gives, with validation on.
"""

# ruff: noqa: B023  # each function is used within its turn of the loop

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from cases import CLOSED_PRIORS, CONDITIONAL_TRANSFORMS, TRANSFORMS
from helpers import perturb, toy_flow
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import pyro_scnf as scnf
from pyro_scnf import sharing
from pyro_scnf import transforms as T
from pyro_scnf.testing import PriorCase

F64 = torch.float64
ROWS = 4
BLOCKS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "alone": nullcontext,
    "shared": scnf.share_encoding,
}
blocks = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
priors = pytest.mark.parametrize("case", CLOSED_PRIORS.values(), ids=CLOSED_PRIORS)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def model_of(case: PriorCase) -> scnf.SemiSupervisedModel:
    """A model with random parameters around a prior. Of vectors, two components are factored out."""
    shape = tuple(case.event_shape)
    transform: Any = T.ActNorm(shape)
    if len(shape) == 1:
        transform = scnf.flows.realnvp(shape[0] + 2, couplings=2, width=6, blocks=1, latent_dim=shape[0])
    flow = scnf.SemiConditionalFlow(transform, case.build(), case.num_classes)
    return perturb(scnf.SemiSupervisedModel(flow, "learnable")).double()


def rows_of(model: scnf.SemiSupervisedModel, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, *model.flow.event_shape, dtype=F64)


def labels_of(model: scnf.SemiSupervisedModel, rows: int = ROWS) -> Tensor:
    return torch.arange(rows) % model.flow.num_classes


def weights_of(model: scnf.SemiSupervisedModel, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, model.flow.num_classes, dtype=F64).softmax(-1)


def even(model: scnf.SemiSupervisedModel) -> Tensor:
    """The same weight for each class."""
    return torch.full((model.flow.num_classes,), 1 / model.flow.num_classes, dtype=F64)


Density = Callable[[scnf.SemiSupervisedModel, Tensor], Tensor]
ONE = torch.tensor(1)


def _batch(m: scnf.SemiSupervisedModel, x: Tensor) -> torch.Size:
    return x.shape[: x.dim() - len(m.flow.event_shape)]


DENSITIES: dict[str, Density] = {
    "flow.log_prob": lambda m, x: m.flow.log_prob(x),
    "flow.log_prob of class_probs": lambda m, x: m.flow.log_prob(x, m.class_probs),
    "flow.log_prob of class weights": lambda m, x: m.flow.log_prob(x, even(m)),
    "flow.class_log_prob": lambda m, x: m.flow.class_log_prob(x),
    "flow.class_table": lambda m, x: m.flow.class_table(x),
    "flow.common_log_prob": lambda m, x: m.flow.common_log_prob(x),
    "flow.posterior": lambda m, x: m.flow.posterior(x).probs,
    "flow.posterior of class_probs": lambda m, x: m.flow.posterior(x, m.class_probs).logits,
    "flow.encode, z_aux": lambda m, x: m.flow.encode(x)[0],
    "flow.encode, z_f": lambda m, x: m.flow.encode(x)[1],
    "flow.encode, log-determinant": lambda m, x: m.flow.encode(x)[2],
    "flow.decode": lambda m, x: m.flow.decode(m.flow.encode(x)[1]),
    "flow.condition": lambda m, x: m.flow.condition(ONE).log_prob(x),
    "flow.condition, colder": lambda m, x: m.flow.condition(ONE, 0.5).log_prob(x),
    "flow.condition of weights": lambda m, x: m.flow.condition(even(m)).log_prob(x),
    "flow.condition, masked": lambda m, x: m.flow.condition(ONE).mask(torch.tensor(True)).log_prob(x),
    "flow.condition, expanded": lambda m, x: m.flow.condition(ONE).expand(_batch(m, x)).log_prob(x),
    "flow.base": lambda m, x: m.flow.base(ONE).log_prob(m.flow.encode_flat(x)[0]),
    "prior.condition": lambda m, x: m.flow.prior.condition(ONE).log_prob(m.flow.encode(x)[1]),
    "prior.class_log_prob": lambda m, x: m.flow.prior.class_log_prob(m.flow.encode(x)[1]),
    "prior.class_scores": lambda m, x: m.flow.prior.class_scores(m.flow.encode(x)[1])[1],
    "model.log_prob": lambda m, x: m.log_prob(x),
    "model.posterior": lambda m, x: m.posterior(x).probs,
    "model.posterior of evidence": lambda m, x: (
        m.posterior(x, label_log_prior=even(m).log().expand(*_batch(m, x), -1)).probs
    ),
    "model.score": lambda m, x: m.score(x).common,
    "marginal": lambda m, x: scnf.LabelMarginal(m.flow).log_prob(x),
    "marginal of class_probs": lambda m, x: scnf.LabelMarginal(m.flow, m.class_probs).log_prob(x),
    "marginal.posterior": lambda m, x: scnf.LabelMarginal(m.flow).posterior(x).probs,
}
"""Densities of rows by data alone. Each takes any batch, also none, and gives a tensor for each row."""

SMOOTH = (
    "flow.log_prob",
    "flow.class_log_prob",
    "flow.posterior",
    "flow.condition",
    "flow.decode",
    "marginal",
)
"""Those whose derivatives of all kinds are compared. The others are made of the same parts."""


def gradient(value: Tensor, leaf: Tensor, create_graph: bool = False) -> Tensor:
    """The gradient by backward. It is zero if ``value`` does not depend on ``leaf``."""
    options = {"allow_unused": True, "materialize_grads": True, "create_graph": create_graph}
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(value, leaf, **options)[0]


# -- maps over rows, and derivatives by data -------------------------------------------------------
@priors
@blocks
class TestRows:
    def test_map(self, case, block):
        model = model_of(case)
        x = rows_of(model)
        for density in DENSITIES.values():
            with block():
                expected = density(model, x)
                assert len(expected) == ROWS
                close(vmap(lambda row: density(model, row))(x), expected)
                close(vmap(lambda row: density(model, row[None])[0])(x), expected)
                close(density(model, x), expected)

    def test_gradients_of_single_rows(self, case, block):
        model = model_of(case)
        x = rows_of(model)
        for density in DENSITIES.values():
            leaf = x.clone().requires_grad_()
            with block():
                expected = gradient(density(model, leaf).square().sum(), leaf)
                close(vmap(grad(lambda row: density(model, row).square().sum()))(x), expected)


@priors
class TestDerivatives:
    def test_jacobians(self, case):
        """All ways to a Jacobian agree with one backward pass for each output."""
        model = model_of(case)
        x = rows_of(model, 1)[0]
        tangent = torch.randn_like(x)
        for name in SMOOTH:

            def function(row: Tensor) -> Tensor:
                return DENSITIES[name](model, row)

            with scnf.share_encoding():
                expected = jacobian(function, x)
                close(jacobian(function, x, vectorize=True), expected)
                close(jacobian(function, x, vectorize=True, strategy="forward-mode"), expected)
                close(jacrev(function)(x), expected)
                close(jacfwd(function)(x), expected)
                close(vmap(jacrev(function))(x[None])[0], expected)
                along = (expected.flatten(expected.dim() - x.dim()) * tangent.flatten()).sum(-1)
                close(jvp(function, (x,), (tangent,))[1], along)
                out, pull = vjp(function, x)
                close(pull(torch.ones_like(out))[0], expected.reshape(-1, *x.shape).sum(0))
                with forward_ad.dual_level():
                    dual = forward_ad.make_dual(x, tangent)
                    close(forward_ad.unpack_dual(function(dual)).tangent, along)

    def test_second_derivatives(self, case):
        model = model_of(case)
        x = rows_of(model, 2)
        direction = torch.randn_like(x)
        size = x[0].numel()
        for name in SMOOTH:

            def function(row: Tensor) -> Tensor:
                return DENSITIES[name](model, row).square().sum()

            expected = torch.stack([torch.autograd.functional.hessian(function, row) for row in x])
            with scnf.share_encoding():
                close(vmap(hessian(function))(x), expected)
                leaf = x.clone().requires_grad_()
                first = gradient(function(leaf), leaf, create_graph=True)
                second = gradient((first * direction).sum(), leaf)
            along = expected.reshape(2, size, size) @ direction.reshape(2, size, 1)
            close(second, along.reshape(x.shape))

    def test_penalty_on_gradients_reaches_the_parameters(self, case):
        """Backward through a gradient by data, against differences of the penalty."""
        model = model_of(case)
        x = rows_of(model)

        def penalty() -> Tensor:
            leaf = x.clone().requires_grad_()
            with scnf.share_encoding():
                value = model.log_prob(leaf).sum() + model.posterior(leaf).probs[:, 0].sum()
                return gradient(value, leaf, create_graph=True).square().sum()

        parameters = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(penalty(), parameters, allow_unused=True, materialize_grads=True)
        assert any(g.abs().sum() > 0 for g in grads)
        directions = [torch.randn_like(p) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        with torch.no_grad():
            values = []
            for step in (1e-6, -2e-6):
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(step * d)
                with torch.enable_grad():
                    values.append(penalty().detach())
        close(slope, (values[0] - values[1]) / 2e-6, 1e-4)


# -- maps over labels, class weights, evidence, temperatures ---------------------------------------
@priors
@blocks
class TestLabels:
    def test_map_over_labels(self, case, block):
        model = model_of(case)
        flow, x, y = model.flow, rows_of(model), labels_of(model)
        z = flow.encode(x)[1].detach()
        with block():
            expected = flow.condition(y).log_prob(x)
            close(vmap(lambda x, y: flow.condition(y).log_prob(x))(x, y), expected)
            close(vmap(lambda y: flow.condition(y).log_prob(x))(y), flow.condition(y[:, None]).log_prob(x))
            close(
                vmap(lambda y: flow.prior.condition(y).log_prob(z[0]))(y),
                flow.prior.condition(y).log_prob(z[0]),
            )
            table = flow.class_log_prob(x)
            enumerated = torch.arange(flow.num_classes)
            rows = vmap(lambda row: flow.condition(enumerated).log_prob(row))(x)
            close(rows, table)
            close(vmap(lambda k: flow.condition(k).log_prob(x), out_dims=1)(enumerated), table)

    def test_map_over_weights_of_classes(self, case, block):
        model = model_of(case)
        flow, x, w = model.flow, rows_of(model), weights_of(model)
        with block():
            close(vmap(lambda x, w: flow.condition(w).log_prob(x))(x, w), flow.condition(w).log_prob(x))
            close(vmap(flow.log_prob)(x, w), flow.log_prob(x, w))
            close(vmap(lambda w: flow.log_prob(x, w))(w), flow.log_prob(x, w[:, None]))
            close(vmap(lambda x, w: flow.posterior(x, w).probs)(x, w), flow.posterior(x, w).probs)
            close(
                vmap(lambda x, w: scnf.LabelMarginal(flow, w).log_prob(x))(x, w),
                scnf.LabelMarginal(flow, w).log_prob(x),
            )
            close(
                vmap(lambda x, w: model.posterior(x, label_log_prior=w.log()).probs)(x, w),
                model.posterior(x, label_log_prior=w.log()).probs,
            )
            leaf = w.clone().requires_grad_()
            slopes = gradient((flow.condition(leaf).log_prob(x) + flow.log_prob(x, leaf)).sum(), leaf)
            one = grad(lambda w, x: flow.condition(w).log_prob(x) + flow.log_prob(x, w))
            close(vmap(one)(w, x), slopes)

    def test_map_over_temperatures(self, case, block):
        model = model_of(case)
        flow, x, y = model.flow, rows_of(model), labels_of(model)
        temperatures = torch.tensor([0.5, 2.0], dtype=F64)
        with block():
            expected = torch.stack([flow.condition(y, float(t)).log_prob(x) for t in temperatures])
            close(vmap(lambda t: flow.condition(y, t).log_prob(x))(temperatures), expected)
            slopes = jacfwd(lambda t: flow.condition(y, t).log_prob(x))(temperatures[0])
            leaf = temperatures[0].clone().requires_grad_()
            close(slopes.sum(), gradient(flow.condition(y, leaf).log_prob(x).sum(), leaf))


# -- maps over parameters ----------------------------------------------------------------------------
class Call(nn.Module):
    """A density of a model as a module's call, for ``functional_call``."""

    def __init__(self, model: scnf.SemiSupervisedModel, density: Density) -> None:
        super().__init__()
        self.model, self.density = model, density

    def forward(self, x: Tensor) -> Tensor:
        return self.density(self.model, x)


@priors
@blocks
class TestParameters:
    def test_ensembles(self, case, block):
        """Stacked parameters of several models give what each model gives."""
        models = [model_of(case) for _ in range(3)]
        x = rows_of(models[0])
        for density in DENSITIES.values():
            members = [Call(model, density) for model in models]
            parameters, buffers = stack_module_state(members)
            with block():
                expected = torch.stack([member(x) for member in members])
                call = vmap(lambda p, b, x: functional_call(members[0], (p, b), (x,)), in_dims=(0, 0, None))
                close(call(parameters, buffers, x), expected)

    def test_gradients_of_single_rows(self, case, block):
        model = model_of(case)
        x = rows_of(model)
        for name in ("flow.class_log_prob", "model.log_prob", "flow.condition", "marginal of class_probs"):
            call = Call(model, DENSITIES[name])
            parameters = {key: p.detach() for key, p in call.named_parameters()}
            with block():
                found = vmap(grad(lambda p, x: functional_call(call, p, (x,)).sum()), in_dims=(None, 0))(
                    parameters, x
                )
                for i, row in enumerate(x):
                    own = dict(call.named_parameters())
                    plain = torch.autograd.grad(
                        call(row).sum(), own.values(), allow_unused=True, materialize_grads=True
                    )
                    for key, value in zip(own, plain, strict=True):
                        close(found[key][i], value)


@pytest.mark.parametrize("prior", ["gmm", "flow"])
def test_second_derivatives_of_the_loss(prior):
    """The loss goes twice through backward. (Pyro's sum over labels does not go through ``torch.func``.)"""
    model = scnf.SemiSupervisedModel(toy_flow(prior, dtype=F64))
    leaf = torch.randn(ROWS, 2, dtype=F64, requires_grad=True)
    values = []
    for total in (scnf.elbo(model)(leaf), -model.log_prob(leaf).sum()):
        first = gradient(total, leaf, create_graph=True)
        values.append(gradient(first.square().sum(), leaf))
    close(values[0], values[1])


@pytest.mark.parametrize("prior", ["gmm", "flow"])
def test_nothing_computed_inside_is_kept_for_data_from_outside(prior):
    """The data belong to no transform, but what is computed from them inside does."""
    flow = toy_flow(prior, dtype=F64)
    x, w = torch.randn(ROWS, 2, dtype=F64), torch.full((3,), 1 / 3, dtype=F64)

    def score(w: Tensor) -> Tensor:
        return flow.condition(w).log_prob(x).sum() + flow.log_prob(x, w).sum()

    expected = grad(score)(w)
    with scnf.share_encoding():
        close(grad(score)(w), expected)
        assert not sharing.current().entries
        flow.class_log_prob(x)
        count = len(sharing.current().entries)
        close(grad(score)(w), expected)
        close(jacfwd(score)(w), expected)
        assert len(sharing.current().entries) == count
        own = list(flow.parameters())
        slopes = torch.autograd.grad(flow.log_prob(x).sum(), own, allow_unused=True, materialize_grads=True)
    plain = torch.autograd.grad(flow.log_prob(x).sum(), own, allow_unused=True, materialize_grads=True)
    for got, want in zip(slopes, plain, strict=True):
        close(got, want)


@pytest.mark.parametrize("prior", ["gmm", "flow"])
def test_a_temperature_of_one_keeps_its_gradient_where_tables_are_shared(prior):
    flow, y = toy_flow(prior, dtype=F64).requires_grad_(False), torch.tensor([0, 1, 2, 0])
    x, slopes = torch.randn(ROWS, 2, dtype=F64), []
    for block in BLOCKS.values():
        temperature = torch.ones((), dtype=F64, requires_grad=True)
        with block():
            flow.class_table(x)
            slopes.append(gradient(flow.condition(y, temperature).log_prob(x).sum(), temperature))
    assert slopes[0].abs() > 1e-3
    close(slopes[1], slopes[0])


# -- layers -----------------------------------------------------------------------------------------
LAYERS = {**TRANSFORMS, **{f"conditional-{name}": case for name, case in CONDITIONAL_TRANSFORMS.items()}}


@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
class TestLayers:
    def directions(self, case: Any) -> list[tuple[Callable[..., Any], Tensor]]:
        layer = case.member()
        return [(layer.inverse_and_ladj, case.values((3,))), (layer.call_and_ladj, case.latents((3,)))]

    def test_derivatives(self, case):
        contexts = case.contexts((3,))
        for function, value in self.directions(case):
            leaf = value.clone().requires_grad_()
            ladj = function(leaf, *contexts)[1]
            slopes = gradient(ladj.sum(), leaf)
            close(vmap(grad(lambda v, *c: function(v, *c)[1]))(value, *contexts), slopes)
            one = [c[0] for c in contexts]
            for part in range(2):

                def output(v: Tensor) -> Tensor:
                    return function(v, *one)[part]

                expected = jacobian(output, value[0])
                close(jacobian(output, value[0], vectorize=True), expected)
                close(jacobian(output, value[0], vectorize=True, strategy="forward-mode"), expected)
                close(jacrev(output)(value[0]), expected)
                close(jacfwd(output)(value[0]), expected)

    def test_second_derivatives(self, case):
        contexts = case.contexts((3,))
        for function, value in self.directions(case):

            def total(v: Tensor, *c: Tensor) -> Tensor:
                out, ladj = function(v, *c)
                return out.square().sum() + ladj.square().sum()

            direction = torch.randn_like(value)
            leaf = value.clone().requires_grad_()
            first = gradient(total(leaf, *contexts), leaf, create_graph=True)
            second = gradient((first * direction).sum(), leaf)
            along = vmap(lambda v, d, *c: jvp(grad(lambda u: total(u, *c)), (v,), (d,))[1])
            close(along(value, direction, *contexts), second, 1e-6)

    def test_map_over_contexts(self, case):
        if not case.context_dim:
            return
        (c,) = case.contexts((3,))
        for function, value in self.directions(case):
            expected = function(value, c[:, None])
            for got, want in zip(vmap(lambda c: function(value, c))(c), expected, strict=True):
                close(got, want)
            leaf = c.clone().requires_grad_()
            slopes = gradient(function(value, leaf)[1].sum(), leaf)
            close(vmap(grad(lambda c, v: function(v, c)[1]))(c, value), slopes)

    def test_map_over_parameters(self, case):
        layers = [case.member() for _ in range(2)]
        if not any(True for _ in layers[0].parameters()):
            return
        parameters, buffers = stack_module_state(layers)
        contexts = case.contexts((3,))

        class Inverse(nn.Module):
            def __init__(self, layer: nn.Module) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, x: Tensor) -> Any:
                z, ladj = self.layer.inverse_and_ladj(x, *contexts)
                return z, ladj, *self.layer.call_and_ladj(z, *contexts)

        parameters, buffers = stack_module_state([Inverse(layer) for layer in layers])
        x, base = case.values((3,)), Inverse(layers[0])
        found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
        for i, layer in enumerate(layers):
            for got, want in zip(found, Inverse(layer)(x), strict=True):
                close(got[i], want, 1e-7)


# -- checks outside, draws inside --------------------------------------------------------------------
@pytest.mark.parametrize("prior", ["gmm", "flow"])
def test_checks_come_back_outside(prior):
    flow, x = toy_flow(prior, dtype=F64), torch.randn(ROWS, 2, dtype=F64)
    bad = x.clone()
    bad[0, 0] = torch.nan
    for density in (flow.log_prob, flow.posterior, flow.condition(ONE).log_prob, flow.class_table):
        with pytest.raises(ValueError, match="holds 1 NaN or infinite values"):
            density(bad)
    with pytest.raises(ValueError, match=r"holds labels 0\.\.7"):
        flow.condition(torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="class_probs holds negative"):
        flow.log_prob(x, torch.tensor([-1.0, 1.0, 1.0], dtype=F64))
    with pytest.raises(ValueError, match="adds up to"):
        flow.condition(torch.full((2, 3), 0.9, dtype=F64))


@pytest.mark.parametrize("prior", ["gmm", "flow"])
def test_shapes_and_dtypes_are_checked_inside(prior):
    """These checks read no values."""
    flow = toy_flow(prior, dtype=F64)
    with pytest.raises(ValueError, match="x has shape"):
        vmap(flow.log_prob)(torch.randn(ROWS, 3, dtype=F64))
    with pytest.raises(ValueError, match="expected floating numbers"):
        vmap(flow.log_prob)(torch.ones(ROWS, 2, dtype=torch.long))


def test_draws_inside():
    """Each mapped call draws for itself. (Not by ``rsample``, which PyTorch's own normal refuses there.)"""
    flow, y = toy_flow("gmm", dtype=F64), torch.zeros(ROWS, dtype=torch.long)
    x = vmap(flow.sample, randomness="different")(y)
    assert x.shape == (ROWS, 2)
    assert len(x[:, 0].unique()) == ROWS


# -- export --------------------------------------------------------------------
class ExportedDensity(nn.Module):
    """A flow whose call is its log-density, as a program exports it."""

    def __init__(self, flow: scnf.SemiConditionalFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


@pytest.mark.parametrize("prior", ["flow", "gmm", "gmm:covariance=full", "flowgmm"])
def test_an_exported_density_is_that_of_the_flow(prior: str) -> None:
    flow, x = toy_flow(prior), torch.randn(ROWS, 2)
    exported = torch.export.export(ExportedDensity(flow), (x,)).module()
    close(exported(x), flow.log_prob(x), 1e-5)
