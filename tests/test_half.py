"""Modules in half precision, in double precision, and data of another dtype than the module's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CLOSED_PRIORS, CONDITIONAL_TRANSFORMS, PRIORS, TRANSFORMS
from helpers import toy_flow
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.testing import PriorCase

LAYERS = {**TRANSFORMS, **{f"conditional-{name}": case for name, case in CONDITIONAL_TRANSFORMS.items()}}
TOLERANCES = {torch.bfloat16: 0.1, torch.float16: 0.015, torch.float64: 1e-12}
"""Largest error against float64 of the same rounded parameters and data, relative where numbers exceed 1."""

layers = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
priors = pytest.mark.parametrize("case", CLOSED_PRIORS.values(), ids=CLOSED_PRIORS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype)[6:])
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.isfinite().all()
    error = (got.double() - expected.double()).abs() / expected.double().abs().clamp(min=1)
    assert float(error.max() if error.numel() else 0.0) <= tolerance


def in_two(module: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """A module in ``dtype``, and in float64 with the same rounded parameters."""
    rounded = module.to(dtype)
    return rounded, copy.deepcopy(rounded).double()


@layers
@dtypes
def test_layers_map_both_ways(case, dtype):
    layer, exact = in_two(case.member(torch.float32), dtype)
    contexts = [c.to(dtype) for c in case.contexts((3,), torch.float32)]
    values = (case.values((3,), torch.float32), case.latents((3,), torch.float32))
    for name, value in zip(("inverse_and_ladj", "call_and_ladj"), values, strict=True):
        rounded = value.to(dtype)
        got = getattr(layer, name)(rounded, *contexts)
        expected = getattr(exact, name)(rounded.double(), *(c.double() for c in contexts))
        for part, want in zip(got, expected, strict=True):
            assert part.dtype == dtype
            near(part, want, TOLERANCES[dtype])


@layers
@halves
def test_layers_start_from_data(case, dtype):
    layer = case.build().to(dtype)
    x = case.values((16,), torch.float32).to(dtype)
    z = layer.initialize(x, *(c.to(dtype) for c in case.contexts((16,), torch.float32)))
    assert z.dtype == dtype
    assert z.isfinite().all()


def drawer(given):
    """``rsample``, or ``sample`` of a distribution that has no draws with a gradient."""
    return given.rsample if given.has_rsample else given.sample


def flow_of(case: PriorCase) -> scnf.SemiConditionalFlow:
    shape, transform = tuple(case.event_shape), None
    if len(shape) == 1:
        transform = scnf.flows.realnvp(shape[0] + 2, couplings=2, width=6, blocks=1, latent_dim=shape[0])
    return scnf.SemiConditionalFlow(
        transform or scnf.transforms.ActNorm(shape), case.build(), case.num_classes
    )


DENSITIES: dict[str, Callable[[scnf.SemiConditionalFlow, Tensor, Tensor], Tensor]] = {
    "log_prob": lambda flow, x, y: flow.log_prob(x),
    "class_log_prob": lambda flow, x, y: flow.class_log_prob(x),
    "class_table": lambda flow, x, y: flow.class_table(x),
    "posterior": lambda flow, x, y: flow.posterior(x).probs,
    "condition": lambda flow, x, y: flow.condition(y).log_prob(x),
    "all labels": lambda flow, x, y: flow.condition(torch.arange(2)[:, None]).log_prob(x),
    "decode": lambda flow, x, y: flow.decode(flow.encode(x)[1]),
    "marginal": lambda flow, x, y: scnf.LabelMarginal(flow).log_prob(x),
    "loss, unlabelled": lambda flow, x, y: scnf.elbo(scnf.SemiSupervisedModel(flow))(x) / len(x),
    "loss, labelled": lambda flow, x, y: scnf.elbo(scnf.SemiSupervisedModel(flow))(x, y) / len(x),
    "loss, both": lambda flow, x, y: (
        scnf.elbo(scnf.SemiSupervisedModel(flow, "learnable"), terms="balance")(x[:2], y[:2], x[2:]) / len(x)
    ),
    "loss, some": lambda flow, x, y: (
        scnf.elbo(scnf.SemiSupervisedModel(flow))(x, torch.cat([y[:2], -torch.ones_like(y[2:])])) / len(x)
    ),
}


@priors
@dtypes
def test_flows_score(case, dtype):
    flow, exact = in_two(flow_of(case), dtype)
    x, y = torch.randn(4, *flow.event_shape).to(dtype), torch.arange(4) % case.num_classes
    for density in DENSITIES.values():
        value = density(flow, x, y)
        assert value.dtype == dtype
        near(value, density(exact, x.double(), y), 2 * TOLERANCES[dtype])


@priors
@halves
def test_flows_draw(case, dtype):
    flow = flow_of(case).to(dtype)
    x, y = torch.randn(4, *flow.event_shape).to(dtype), torch.arange(4) % case.num_classes
    relaxed = torch.full((4, case.num_classes), 1 / case.num_classes, dtype=dtype)
    for draw in (
        flow.sample(y),
        flow.sample(y, 0.5, (3,)),
        flow.sample(relaxed),
        drawer(flow.condition(y))(),
        flow.decode(flow.encode(x)[1], "sample"),
        scnf.LabelMarginal(flow).sample((4,)),
        scnf.SemiSupervisedModel(flow)(n=4),
    ):
        assert draw.dtype == dtype
        assert draw.isfinite().all()
        assert flow.log_prob(draw).isfinite().all()
    flow.initialize(x, y)
    assert flow.log_prob(x).isfinite().all()


@pytest.mark.parametrize("word", ["uniform", "learnable", "em"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_ready_class_probs_are_converted_with_the_flow(word, dtype):
    x = torch.randn(6, 2).to(dtype)
    later = scnf.SemiSupervisedModel(toy_flow(), scnf.ClassProbs(3, word)).to(dtype)
    sooner = scnf.SemiSupervisedModel(toy_flow(dtype=dtype), scnf.ClassProbs(3, word).to(dtype))
    for model in (later, sooner):
        assert scnf.elbo(model)(x).isfinite()


@pytest.mark.parametrize("prior", ["gmm", "flow", "student-t", "gmm:covariance=full"])
@halves
def test_losses_learn_in_half_precision(prior, dtype):
    model = scnf.SemiSupervisedModel(toy_flow(prior), "learnable").to(dtype)
    x, y = torch.randn(6, 2).to(dtype), torch.tensor([0, 1, 2])
    scnf.elbo(model)(x[:3], y, x[3:]).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() and g.dtype == dtype for g in grads)


# -- other dtypes than the module's ------------------------------------------------------------------
@layers
def test_layers_convert_what_is_exact_and_refuse_the_rest(case):
    layer = case.member(torch.float32)
    if not any(True for _ in layer.parameters()):
        return  # a layer without parameters has no dtype
    x, z = case.values((3,), torch.float32), case.latents((3,), torch.float32)
    contexts = case.contexts((3,), torch.float32)
    kind = type(layer).__name__
    for function, value, name in ((layer.inverse_and_ladj, x, "x"), (layer.call_and_ladj, z, "z")):
        with pytest.raises(
            ValueError, match=rf"{kind}: {name} has dtype torch.float64 .*\.to\(torch.float32\)"
        ):
            function(value.double(), *contexts)
        with pytest.raises(ValueError, match=rf"{kind}: {name} has dtype torch.int64, expected floating"):
            function(torch.ones_like(value).long(), *contexts)
        half = value.bfloat16()
        for got, want in zip(function(half, *contexts), function(half.float(), *contexts), strict=True):
            assert got.dtype == torch.float32
            assert torch.equal(got, want)
        for c in contexts:
            with pytest.raises(ValueError, match=rf"{kind}: context has dtype torch.float64"):
                function(value, c.double())
            for got, want in zip(function(value, c.half()), function(value, c.half().float()), strict=True):
                assert torch.equal(got, want)


@pytest.mark.parametrize("prior", ["gmm", "flow"])
def test_flows_convert_what_is_exact_and_refuse_the_rest(prior):
    flow, x = toy_flow(prior), torch.randn(4, 2)
    model, y = scnf.SemiSupervisedModel(flow), torch.tensor([0, 1, 2, 0])
    for use in (
        flow.log_prob,
        flow.posterior,
        flow.encode,
        flow.condition(y).log_prob,
        model.log_prob,
        scnf.LabelMarginal(flow).log_prob,
        scnf.elbo(model),
        flow.decode,
    ):
        with pytest.raises(ValueError, match=r"has dtype torch.float64 .*\.to\(torch.float32\)"):
            use(x.double())
    assert torch.equal(flow.log_prob(x.half()), flow.log_prob(x.half().float()))
    assert torch.equal(flow.condition(y).log_prob(x.half()), flow.condition(y).log_prob(x.half().float()))


@pytest.mark.parametrize("prior", ["gmm", "flow", "student-t", "gmm:covariance=full"])
def test_a_default_dtype_of_double(prior):
    torch.set_default_dtype(torch.float64)
    flow, x, y = toy_flow(prior, dtype=torch.float64), torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    model = scnf.SemiSupervisedModel(flow, "learnable")
    values = [
        flow.log_prob(x),
        flow.sample(y),
        flow.posterior(x).probs,
        scnf.LabelMarginal(flow).sample((2,)),
    ]
    values += [scnf.elbo(model)(x[:2], y[:2], x[2:]), model(n=3)]
    assert all(value.dtype == torch.float64 for value in values)
    single = flow.float()
    assert single.log_prob(x.float()).dtype == single.sample(y).dtype == torch.float32
    assert scnf.elbo(scnf.SemiSupervisedModel(single))(x.float(), y).dtype == torch.float32


# -- no rows -------------------------------------------------------------------------------------------
@layers
@pytest.mark.parametrize("batch", [(0,), (0, 3), (2, 0)])
def test_layers_take_no_rows(case, batch):
    layer, contexts = case.member(torch.float32), case.contexts(batch, torch.float32)
    z, ladj = layer.inverse_and_ladj(case.values(batch, torch.float32), *contexts)
    assert (z.shape, ladj.shape) == (batch + case.base_shape, batch)
    x, ladj = layer.call_and_ladj(case.latents(batch, torch.float32), *contexts)
    assert (x.shape, ladj.shape) == (batch + case.event_shape, batch)
    if contexts:  # also a batch of no contexts over data of one row
        one = case.values((1,), torch.float32)
        assert layer.inverse_and_ladj(one, case.contexts((0,), torch.float32)[0])[0].shape[0] == 0


@priors
def test_priors_take_no_rows(case):
    prior, k = case.member(torch.float32), case.num_classes
    for batch in ((0,), (0, 2), (2, 0)):
        z, y = torch.empty(*batch, *case.event_shape), torch.empty(batch, dtype=torch.long)
        assert prior.class_log_prob(z).shape == (*batch, k)
        shared, table = prior.class_scores(z)
        assert (shared.shape, table.shape) == (batch, (*batch, k))
        for given in (prior.condition(y), prior.condition(torch.empty(*batch, k))):
            assert given.batch_shape == batch
            assert given.sample().shape == z.shape
            assert drawer(given)((3,)).shape == (3, *z.shape)
    assert prior.condition(torch.zeros(2, dtype=torch.long)).sample((0,)).shape == (0, 2, *case.event_shape)


@priors
def test_flows_take_no_rows(case):
    flow, k = flow_of(case), case.num_classes
    model = scnf.SemiSupervisedModel(flow)
    for batch in ((0,), (0, 2)):
        x, y = torch.empty(*batch, *flow.event_shape), torch.empty(batch, dtype=torch.long)
        weights = torch.empty(*batch, k)
        shapes = {
            "log_prob": (flow.log_prob(x), batch),
            "log_prob of weights": (flow.log_prob(x, weights), batch),
            "class_log_prob": (flow.class_log_prob(x), (*batch, k)),
            "class_table": (flow.class_table(x), (*batch, k)),
            "common_log_prob": (flow.common_log_prob(x), batch),
            "posterior": (flow.posterior(x).probs, (*batch, k)),
            "condition": (flow.condition(y).log_prob(x), batch),
            "condition of weights": (flow.condition(weights).log_prob(x), batch),
            "one label": (flow.condition(torch.tensor(1)).log_prob(x), batch),
            "all labels": (
                flow.condition(torch.arange(k).reshape(-1, *[1] * len(batch))).log_prob(x),
                (k, *batch),
            ),
            "base": (flow.base(y).log_prob(flow.encode_flat(x)[0]), batch),
            "sample": (flow.sample(y), x.shape),
            "sample of weights": (flow.sample(weights), x.shape),
            "no samples": (flow.sample(torch.tensor([0, 1]), sample_shape=(0,)), (0, 2, *flow.event_shape)),
            "rsample": (drawer(flow.condition(y))((2,)), (2, *x.shape)),
            "decode": (flow.decode(flow.encode(x)[1]), x.shape),
            "decode, sampled": (flow.decode(flow.encode(x)[1], "sample"), x.shape),
            "model.log_prob": (model.log_prob(x), batch),
            "model.posterior": (model.posterior(x).probs, (*batch, k)),
            "marginal": (scnf.LabelMarginal(flow).log_prob(x), batch),
            "marginal.posterior": (scnf.LabelMarginal(flow).posterior(x).probs, (*batch, k)),
            "marginal.sample": (scnf.LabelMarginal(flow).sample(batch), x.shape),
        }
        wrong = {name: value.shape for name, (value, shape) in shapes.items() if value.shape != shape}
        assert not wrong


@halves
def test_continuous_flows_refuse_half_precision(dtype):
    for flow in (flow_of(PRIORS["ffjord"]), scnf.SemiConditionalFlow(scnf.flows.ffjord(2), "gmm", 2)):
        flow = flow.to(dtype)
        with pytest.raises(ValueError, match=r"dtype torch\.\w*float16.*\.float\(\)"):
            flow.log_prob(torch.randn(4, *flow.event_shape).to(dtype))
