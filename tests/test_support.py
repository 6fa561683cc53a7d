"""Data outside a layer's support are named before anything changes, and own samples are never outside."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import PRIORS
from helpers import perturb

import pyro_scnf as scnf
from pyro_scnf.transforms import Flatten, Logit, MarginalGaussianization, Permute, Squeeze, compose

INTERVAL = r"x holds \d+ values outside \[-0\.02632, 1\.026\]"
NAN, INF = float("nan"), float("inf")


def image_flow(prior="gmm"):
    glow = scnf.flows.glow((1, 8, 8), levels=2, steps=1, width=8, logit=0.05)
    return scnf.SemiConditionalFlow(glow, prior, 3)


def pixels():
    return torch.randint(0, 256, (6, 1, 8, 8))


def one_off(value):
    x = torch.rand(6, 1, 8, 8)
    x[2, 0, 3, 3] = value
    return x


WRONG = {
    "0..255": (lambda: pixels().float(), INTERVAL),
    "standardised": (lambda: torch.randn(6, 1, 8, 8), INTERVAL),
    "one above": (lambda: one_off(1.2), INTERVAL),
    "one below": (lambda: one_off(-0.1), INTERVAL),
    "uint8": (lambda: pixels().to(torch.uint8), "x has dtype torch.uint8.*dequantize"),
    "int64": (pixels, "x has dtype torch.int64.*dequantize"),
    "bool": (lambda: pixels() > 99, "x has dtype torch.bool"),
    "NaN": (lambda: one_off(NAN), "x holds 1 NaN or infinite"),
    "infinity": (lambda: one_off(INF), "x holds 1 NaN or infinite"),
}

USES = {
    "log_prob": lambda m, x: m.log_prob(x),
    "posterior": lambda m, x: m.posterior(x),
    "class_log_prob": lambda m, x: m.flow.class_log_prob(x),
    "encode": lambda m, x: m.flow.encode(x),
    "condition": lambda m, x: m.flow.condition(torch.tensor(0)).log_prob(x),
    "marginal": lambda m, x: scnf.LabelMarginal(m.flow).log_prob(x),
    "score": lambda m, x: m.score(x),
    "loss": lambda m, x: scnf.elbo(m)(x),
    "labelled loss": lambda m, x: scnf.elbo(m)(x, torch.zeros(len(x), dtype=torch.long)),
    "guide": lambda m, x: scnf.EMGuide(m)(x),
    "initialize": lambda m, x: m.initialize(x),
    "layer": lambda m, x: m.flow.transform.inverse_and_ladj(x),
    "layer.inv": lambda m, x: m.flow.transform.inv(x),
    "layer.initialize": lambda m, x: m.flow.transform.initialize(x),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("use", USES)
def test_data_outside_the_support_are_named_and_change_nothing(use, wrong):
    make, match = WRONG[wrong]
    model = scnf.SemiSupervisedModel(image_flow())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=match):
        USES[use](model, make())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_unlabelled_rows_and_the_view_have_names_of_their_own():
    model, x, y = scnf.SemiSupervisedModel(image_flow()), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="x_unlabelled holds"):
        model(x, y, pixels().float())
    with pytest.raises(ValueError, match="view holds"):
        scnf.elbo(model, terms=["consistency"])(x, y, torch.rand(6, 1, 8, 8), view=pixels().float())


@pytest.mark.parametrize("layers", [[Squeeze((1, 4, 4))], [Flatten((1, 4, 4))], [Permute((1, 4, 4))]])
def test_layers_that_only_move_entries_pass_the_interval_on(layers):
    logit = Logit(layers[-1].base_shape)
    chain = compose([logit, *layers])
    with pytest.raises(ValueError, match=INTERVAL):
        chain.inverse_and_ladj(1.5 + torch.zeros(2, 1, 4, 4))
    x = torch.rand(2, 1, 4, 4)
    assert torch.allclose(chain(chain.inv(x)), x, atol=1e-5)


def _gaussianization(size, dtype):
    layer = MarginalGaussianization((size,), 256)
    layer.initialize(torch.rand(100, size) ** 3)
    return layer.to(dtype)


FROM_INTERVAL = {
    **{f"logit {a}": lambda size, _, a=a: Logit((size,), a) for a in (0.0, 1e-6, 0.05, 0.5)},
    "gaussianization": _gaussianization,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FROM_INTERVAL)
def test_a_layer_of_the_interval_scores_all_that_it_can_give(name, dtype):
    make = FROM_INTERVAL[name]
    layer = make(7, dtype)
    z = torch.tensor([-INF, -1e4, -20.0, 0.0, 20.0, 1e4, INF]).to(dtype)
    x = layer(z)
    back, ladj = layer.inverse_and_ladj(x)
    assert back.isfinite().all()
    assert ladj.isfinite()
    assert (back.diff() >= 0).all()
    base = dist.Normal(torch.zeros(1000, dtype=dtype), torch.tensor(20.0, dtype=dtype)).to_event(1)
    wide = dist.TransformedDistribution(base, [make(1000, dtype)])
    assert wide.log_prob(wide.sample((20,))).isfinite().all()


@pytest.mark.parametrize("name", FROM_INTERVAL)
def test_values_beyond_the_interval_become_nan_even_without_validation(name):
    pyro.enable_validation(False)
    z, _ = FROM_INTERVAL[name](2, torch.float32).inverse_and_ladj(torch.tensor([2.0, -1.0]))
    assert z.isnan().all()


FLOWS = {
    "glow": lambda: scnf.flows.glow((2,), steps=3, width=16),
    "glow-tanh": lambda: scnf.flows.glow((2,), steps=3, width=16, scale="tanh"),
    "realnvp": lambda: scnf.flows.realnvp((4,)),
    "images": lambda: scnf.flows.glow((1, 8, 8), levels=2, steps=2, width=8, logit=0.05),
    "images-wide": lambda: scnf.flows.glow((1, 8, 8), levels=2, steps=2, width=8, logit=1e-6),
    "images-real": lambda: scnf.flows.glow((1, 8, 8), levels=2, steps=2, width=8),
}


@pytest.mark.parametrize("temperature", [0.01, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("prior", ["flow:steps=2,width=16", "gmm", "student-t"])
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_scores_its_own_samples_whatever_the_temperature(name, prior, temperature):
    flow = scnf.SemiConditionalFlow(FLOWS[name](), prior, 3)
    perturb(flow, 0.1)
    y = torch.arange(3).repeat(10)
    x = flow.sample(y, temperature)
    assert x.isfinite().all()
    assert flow.condition(y, temperature).log_prob(x).isfinite().all()
    assert flow.log_prob(x).isfinite().all()
    assert flow.posterior(x).probs.isfinite().all()


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_scores_its_own_samples(name):
    case = PRIORS[name]
    prior = case.member(torch.float32)
    y = torch.arange(case.num_classes)
    for temperature in (0.01, 1.0, 100.0):
        given = prior.condition(y, temperature)
        assert given.log_prob(given.sample()).isfinite().all()
