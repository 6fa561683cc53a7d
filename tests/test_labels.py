"""``enumerate_labels`` and ``sample_labels``: all label hypotheses of all posterior draws, in one run."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import counting, image_flow, relative, toy_flow
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from test_exactness import bags

import pyro_scnf as scnf

F64 = torch.float64


@pytest.fixture
def flow():
    return toy_flow("flow", dtype=F64)


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=F64)


def prevalence(flow, x, mask=None):
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(shares), infer={"enumerate": "parallel"})
        with poutine.mask(mask=torch.tensor(True) if mask is None else mask):
            pyro.sample("x", flow.condition(y), obs=x)


def draws(count):
    return dist.Dirichlet(torch.ones(3, dtype=F64)).sample((count,))


@pytest.mark.parametrize("count", [1, 3, 6, 50])
def test_posterior_draws_against_a_loop(flow, x, count):
    shares = draws(count)
    with counting(flow.transform, "inverse_and_ladj") as counter:
        joint = scnf.enumerate_labels(lambda x: prevalence(flow, x), (x,), {"shares": shares})
    assert counter.calls == 1
    assert joint.shape == (count, 6, 3)
    assert not joint.requires_grad
    for s in range(count):
        for k in range(3):
            hand = flow.condition(torch.tensor(k)).log_prob(x) + shares[s, k].log()
            assert relative(joint[s, :, k], hand) < 1e-10


@given(count=st.integers(1, 4), rows=st.integers(1, 4), classes=st.integers(1, 4))
def test_any_sizes_even_equal_ones(count, rows, classes):
    """The dimensions of draws, rows and classes are recognised by their position, not by their size."""
    flow = toy_flow("gmm", classes, dtype=F64)
    x = torch.randn(rows, 2, dtype=F64)
    logits = torch.randn(count, classes, dtype=F64)

    def model(x):
        shares = pyro.sample("logits", dist.Normal(torch.zeros(classes, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=shares), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    joint = scnf.enumerate_labels(model, (x,), {"logits": logits})
    assert joint.shape == (count, rows, classes)
    assert relative(joint, flow.class_log_prob(x) + logits.log_softmax(-1)[:, None, :]) < 1e-10


def test_a_model_without_other_latents(flow, x):
    model = scnf.SemiSupervisedModel(flow, torch.tensor([0.5, 0.3, 0.2]))
    joint = scnf.enumerate_labels(model, (x,))
    assert joint.shape == (1, 6, 3)
    assert relative(joint[0], flow.class_log_prob(x) + model.class_probs.log_probs) < 1e-10
    assert relative(joint.logsumexp(-1)[0], model.log_prob(x)) < 1e-10
    assert relative(joint.softmax(-1)[0], model.posterior(x).probs) < 1e-10


def test_observed_labels(flow, x):
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    joint = scnf.enumerate_labels(
        lambda x: poutine.condition(prevalence, {"y": y})(flow, x), (x,), {"shares": draws(4)}
    )
    assert joint.shape == (4, 6, 1)
    model = scnf.SemiSupervisedModel(flow)
    joint = scnf.enumerate_labels(model, (x, y))
    assert joint.shape == (1, 6, 1)
    assert relative(joint[0, :, 0], flow.condition(y).log_prob(x) - math.log(3)) < 1e-10


def test_partly_labelled_rows_keep_their_labels(flow, x):
    model = scnf.SemiSupervisedModel(flow)
    y = torch.tensor([0, -1, 2, -1, -1, 1])
    joint = scnf.enumerate_labels(model, (x, y))[0]
    assert joint.shape == (6, 3)
    probs = joint.softmax(-1)
    known = y >= 0
    assert torch.equal(probs[known].argmax(-1), y[known])
    assert (probs[known].max(-1).values == 1).all()
    assert relative(probs[~known], model.posterior(x[~known]).probs) < 1e-9


def test_two_plates(flow, x):
    """The rows of one plate do not count for the label of the other."""
    model = scnf.SemiSupervisedModel(flow, num_labelled=20, num_unlabelled=40, labelled_weight=3.0)
    args = (x[:2], torch.tensor([0, 1]), x[2:])
    unlabelled = scnf.enumerate_labels(model, args, site="y_unlabelled")
    assert relative(unlabelled[0], flow.class_log_prob(x[2:]) - math.log(3)) < 1e-10
    labelled = scnf.enumerate_labels(model, args, site="y")
    expected = flow.condition(args[1]).log_prob(args[0]) - math.log(3)
    assert labelled.shape == (1, 2, 1)
    assert relative(labelled[0, :, 0], expected) < 1e-10


def test_scales_do_not_count_and_masks_do(flow, x):
    """Scales are weights for training and do not change a likelihood. Masked data count as not observed."""
    shares, keep = draws(5), torch.tensor([True, False, True, True, False, True])
    plain = scnf.enumerate_labels(lambda x: prevalence(flow, x), (x,), {"shares": shares})
    scaled = scnf.enumerate_labels(
        poutine.scale(lambda x: prevalence(flow, x), scale=7.0), (x,), {"shares": shares}
    )
    assert relative(scaled, plain) < 1e-12
    masked = scnf.enumerate_labels(lambda x: prevalence(flow, x, keep), (x,), {"shares": shares})
    prior = shares.log()[:, None, :].expand_as(plain)
    assert relative(masked, torch.where(keep[:, None], plain, prior)) < 1e-10


def test_subsampled_plate(flow, x):
    def model(x):
        with pyro.plate("data", 600, subsample=torch.arange(6)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    joint = scnf.enumerate_labels(model, (x,))
    assert joint.shape == (1, 6, 3)
    assert relative(joint[0], flow.class_log_prob(x) - math.log(3)) < 1e-10


def test_other_sites_of_the_datum_count_and_global_ones_do_not(flow, x):
    words = torch.arange(6) % 4
    table = torch.randn(3, 4, dtype=F64).log_softmax(-1)

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=F64), 1.0))
        pyro.sample("far", dist.Exponential(rate), obs=torch.tensor(1.0, dtype=F64))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)
            pyro.sample("word", dist.Categorical(logits=table[y]), obs=words)
            pyro.sample("wait", dist.Exponential(rate * (1 + y)), obs=torch.ones(6, dtype=F64))

    rate = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    joint = scnf.enumerate_labels(model, (x,), {"rate": rate})
    wait = dist.Exponential(rate[:, None] * torch.arange(1.0, 4.0, dtype=F64)).log_prob(
        torch.ones((), dtype=F64)
    )
    hand = flow.class_log_prob(x) - math.log(3) + table[:, words].T + wait[:, None, :]
    assert relative(joint, hand) < 1e-10


def test_one_label_for_a_group():
    flow = image_flow("flow", dtype=F64)
    x = torch.randn(5, 4, 1, 4, 4, dtype=F64)
    logits = torch.randn(3, dtype=F64)
    joint = scnf.enumerate_labels(lambda x: bags(flow, logits, x), (x,), max_plate_nesting=2)
    hand = flow.class_log_prob(x).sum(0) + logits.log_softmax(-1)
    assert joint.shape == (1, 4, 3)
    assert relative(joint[0], hand) < 1e-10


def test_a_label_inside_two_plates(flow):
    x = torch.randn(5, 4, 2, dtype=F64)

    def model(x):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
        with pyro.plate("group", 4, dim=-1), pyro.plate("member", 5, dim=-2):
            y = pyro.sample("y", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    shares = draws(2)
    joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, max_plate_nesting=2)
    assert joint.shape == (2, 5, 4, 3)
    assert relative(joint, flow.class_log_prob(x) + shares[:, None, None, :].log()) < 1e-10


def test_parameters_of_the_flow_are_left_alone(flow, x):
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    scnf.enumerate_labels(lambda x: prevalence(flow, x), (x,), {"shares": draws(2)})
    assert all(torch.equal(before[k], v) for k, v in flow.state_dict().items())
    assert dict(pyro.get_param_store()) == {}


class TestSampleLabels:
    def test_frequencies(self):
        joint = torch.randn(1, 4, 3, dtype=F64) - 1000.0
        labels = scnf.sample_labels(joint.expand(6000, 4, 3))
        assert labels.shape == (6000, 4)
        frequencies = torch.nn.functional.one_hot(labels, 3).double().mean(0)
        assert (frequencies - joint[0].softmax(-1)).abs().max() < 4 * 0.5 / math.sqrt(6000)

    def test_temperature(self):
        joint = torch.randn(5, 4, 3)
        assert torch.equal(scnf.sample_labels(joint, temperature=0), joint.argmax(-1))
        assert torch.equal(scnf.sample_labels(joint, temperature=1e-4), joint.argmax(-1))
        hot = scnf.sample_labels(joint[:1].expand(6000, 4, 3), temperature=1e4)
        shares = torch.nn.functional.one_hot(hot, 3).double().mean(0)
        assert (shares - 1 / 3).abs().max() < 4 * 0.5 / math.sqrt(6000)
