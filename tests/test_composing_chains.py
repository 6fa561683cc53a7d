"""The examples of chains of labels and of Bayesian class means: their densities, beside sums by hand."""

from __future__ import annotations

import itertools

import pyro.distributions as dist
import pytest
import torch
from helpers import counting, toy_flow
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model

import pyro_scnf as scnf

F64 = torch.float64
K = 3


# -- a chain of labels -------------------------------------------------------------
FIRST = torch.tensor([0.7, 0.2, 0.1], dtype=F64)
TRANSITION = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.5, 0.4], [0.35, 0.05, 0.6]], dtype=F64)
FIXED = {"first": FIRST, "transition": TRANSITION}


@pytest.fixture
def chain(load_example):
    """The model of sequences, and its flow, in double precision."""
    flow = toy_flow(dtype=F64).requires_grad_(False)
    torch.set_default_dtype(F64)
    sequence = load_example("sequence")
    return sequence["make_model"](flow), flow, sequence["smooth"]


def sums_of_paths(flow, x):
    """log p(x_1, ..., x_T, path) of each sequence, for each path of labels, ``(N, K**T)``, and the paths."""
    paths = torch.tensor(list(itertools.product(range(K), repeat=x.shape[1])))
    scores = torch.stack(
        [flow.condition(torch.full(x.shape[:2], k)).log_prob(x) for k in range(K)], -1
    )  # (N, T, K)
    joint = FIRST.log()[paths[:, 0]] + scores[:, 0, paths[:, 0]]
    for t in range(1, x.shape[1]):
        joint = joint + TRANSITION.log()[paths[:, t - 1], paths[:, t]] + scores[:, t, paths[:, t]]
    return joint, paths


def log_likelihood(model, x):
    """That of all sequences, with first and transition probabilities fixed."""
    log_prior = dist.Dirichlet(torch.ones(K)).log_prob(torch.cat([FIRST[None], TRANSITION])).sum()
    return -scnf.elbo(poutine.condition(model, FIXED))(x) - log_prior


def test_the_likelihood_of_sequences_sums_over_all_paths(chain):
    model, flow, _ = chain
    x = 2 * torch.randn(4, 5, 2)
    expected = sums_of_paths(flow, x)[0].logsumexp(-1).sum()
    torch.testing.assert_close(log_likelihood(model, x), expected, rtol=1e-12, atol=0)


def test_it_is_that_of_the_forward_algorithm_and_of_pyro_for_long_sequences(chain):
    model, flow, _ = chain
    x = 2 * torch.randn(6, 30, 2)
    found, scores = log_likelihood(model, x), flow.class_log_prob(x)
    forward = FIRST.log() + scores[:, 0]
    for t in range(1, 30):
        forward = (forward[..., None] + TRANSITION.log()).logsumexp(-2) + scores[:, t]
    torch.testing.assert_close(found, forward.logsumexp(-1).sum(), rtol=1e-12, atol=0)
    # Pyro's distribution takes a step before the first observation.
    steps = torch.cat([FIRST.expand(1, K, K), TRANSITION.expand(29, K, K)]).log()
    hmm = dist.DiscreteHMM(torch.zeros(K), steps, flow.condition(torch.arange(K)))
    torch.testing.assert_close(hmm.log_prob(x).sum(), found, rtol=1e-9, atol=0)


def test_smoothed_labels_are_those_of_all_paths(chain):
    model, flow, smooth = chain
    x = 2 * torch.randn(3, 4, 2)
    joint, paths = sums_of_paths(flow, x)
    probs = joint.softmax(-1)
    expected = [[probs[:, paths[:, t] == k].sum(-1) for k in range(K)] for t in range(4)]
    draws = {name: torch.stack([value, value]) for name, value in FIXED.items()}
    found = smooth(model, x, draws)
    torch.testing.assert_close(found, torch.stack([torch.stack(step, -1) for step in expected], 1))


def test_the_flow_runs_once_for_the_whole_chain_of_nuts(chain):
    model, flow, _ = chain
    x = torch.randn(3, 6, 2)
    kernel = NUTS(model, max_plate_nesting=1)
    with scnf.share_encoding(), counting(flow.transform, "inverse_and_ladj") as passes:
        MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True).run(x)
    assert (passes.calls, passes.rows) == (1, [3])


def test_a_chain_is_estimated(smoke):
    metrics, said = smoke("sequence")
    rows = {f"after {k}": K for k in range(K)}
    assert {name: len(row["truth"]) for name, row in metrics["estimates"].items()} == {"first": K, **rows}
    assert metrics["wrong_model"].keys() == rows.keys()
    assert metrics["estimates"]["after 0"]["truth"] == pytest.approx([0.8, 0.15, 0.05])
    assert metrics["wrong_model"]["after 2"]["truth"] == pytest.approx([0.3, 0.05, 0.65])
    assert f"error_pct: {metrics['error_pct']:.3f}" in said
    assert metrics["seed"] == 3


# -- class means with a prior ------------------------------------------------------
UNKNOWN = {"flow.prior.loc": (K, 2), "flow.prior.log_scale": (K, 2)}


@pytest.fixture
def classes(load_example):
    """The flow that the Bayesian model takes its transform from, and what the example defines."""
    torch.set_default_dtype(F64)
    return toy_flow(dtype=F64).requires_grad_(False), load_example("class_means")


def density_by_hand(flow, x, y, loc, log_scale):
    """log p(x, y, means, scales), for ``log_scale`` of shape (K, 2) or (2,)."""
    log_prior = dist.Normal(0.0, 3.0).log_prob(loc).sum() + dist.Normal(0.0, 1.0).log_prob(log_scale).sum()
    _, z, ladj = flow.encode(x)
    rows = []
    for row, label in enumerate(y.tolist()):
        labels = range(K) if label < 0 else [label]
        normal = dist.Normal(loc, log_scale.exp().expand(K, 2)).to_event(1)
        rows.append(normal.log_prob(z[row])[list(labels)].logsumexp(0) - torch.tensor(K).log())
    return log_prior + ladj.sum() + torch.stack(rows).sum()


@pytest.mark.parametrize("covariance", ["diagonal", "shared"])
@pytest.mark.parametrize("labels", [[0, 1, 2, -1, -1, -1], [-1] * 6])
def test_the_density_that_nuts_samples_is_that_by_hand(classes, covariance, labels):
    flow, example = classes
    x, y = 2 * torch.randn(6, 2), torch.tensor(labels)
    model = example["BayesianClasses"](flow.transform, covariance)
    start, potential, *_ = initialize_model(model, (x, y), max_plate_nesting=1)
    assert {name: tuple(value.shape) for name, value in start.items()} == {
        **UNKNOWN,
        "flow.prior.log_scale": (2,) if covariance == "shared" else (K, 2),
    }
    values = {name: torch.randn_like(value) for name, value in start.items()}
    expected = density_by_hand(flow, x, y, *values.values())
    torch.testing.assert_close(-potential(values), expected, rtol=1e-12, atol=0)


def test_without_labels_every_numbering_of_the_classes_has_the_same_density(classes):
    flow, example = classes
    x, y = 2 * torch.randn(6, 2), torch.tensor([0, 1, 2, -1, -1, -1])
    model = example["BayesianClasses"](flow.transform)
    values = {name: torch.randn(shape) for name, shape in UNKNOWN.items()}
    densities = {}
    for name, labels in (("none", torch.full_like(y, -1)), ("few", y)):
        _, potential, *_ = initialize_model(model, (x, labels), max_plate_nesting=1)
        numbered = [
            {site: value[list(order)] for site, value in values.items()}
            for order in itertools.permutations(range(K))
        ]
        densities[name] = torch.stack([potential(one) for one in numbered])
    torch.testing.assert_close(densities["none"], densities["none"][:1].expand(6), rtol=1e-12, atol=0)
    assert densities["few"].sort().values.diff().min() > 0.01


def test_draws_are_put_in_the_order_of_the_reference(classes):
    _, example = classes
    reference = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    means = reference + 0.3 * torch.randn(2, 7, K, 2)
    draws = {"flow.prior.loc": means, "flow.prior.log_scale": torch.randn(2, 7, K, 2)}
    order = torch.stack([torch.randperm(K) for _ in range(14)]).reshape(2, 7, K)
    assert (order != torch.arange(K)).any()
    mixed = {name: value.gather(-2, order[..., None].expand_as(value)) for name, value in draws.items()}
    found = example["in_order"](mixed, reference)
    assert all(torch.equal(found[name], draws[name]) for name in UNKNOWN)


def test_the_flow_runs_once_for_a_chain_over_class_means(classes):
    flow, example = classes
    model, x = example["BayesianClasses"](flow.transform), torch.randn(5, 2)
    kernel = NUTS(model, max_plate_nesting=1)
    with scnf.share_encoding(), counting(model.flow.transform, "inverse_and_ladj") as passes:
        MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True).run(x, torch.full((5,), -1))
    assert passes.calls == 1


def test_class_means_are_estimated(smoke):
    metrics, said = smoke("class_means")
    names = {f"{what}{which}" for what in ("means", "scales") for which in ("", ", no labels")}
    assert metrics["estimates"].keys() == metrics["wrong_model"].keys() == names
    truths = [metrics["estimates"]["means"]["truth"], metrics["estimates"]["means, no labels"]["truth"]]
    assert truths[0] == truths[1]
    assert metrics["wrong_model"]["scales"]["mean"][:2] == metrics["wrong_model"]["scales"]["mean"][2:4]
    runs = ("own_scales", "shared_scales", "no_labels", "in_order")
    assert {name for name in metrics if name.startswith("r_hat_")} == {f"r_hat_{name}" for name in runs}
    assert f"elpd_gain: {metrics['elpd_gain']:.3f}" in said
