"""Pairs that probably share a label: their terms by hand, in the model, in batches and in training."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import counting, relative, toy_flow
from hypothesis import given
from hypothesis import strategies as st

import pyro_scnf as scnf
from pyro_scnf.datasets import (
    SemiSupervisedData,
    deskew,
    link_neighbours,
    nearest_neighbours,
    pixel_features,
    toy,
)
from pyro_scnf.terms import Agreement, Balance, Classification, imbalance, log_agreement
from pyro_scnf.training import StepBatches, fit

F64 = torch.float64


def agreement_matrix(classes: int, purity: float) -> torch.Tensor:
    other = (1 - purity) / (classes - 1)
    return torch.full((classes, classes), other, dtype=F64).fill_diagonal_(purity)


@given(st.integers(2, 6), st.floats(0.05, 0.95), st.integers(0, 99))
def test_agreement_is_the_sum_over_both_labels(classes, purity, seed):
    torch.manual_seed(seed)
    posterior = (3 * torch.randn(7, classes, dtype=F64)).softmax(-1)
    pairs = torch.randint(7, (9, 2))
    given_, matrix = log_agreement(posterior.log(), pairs, purity), agreement_matrix(classes, purity)
    for (i, j), value in zip(pairs.tolist(), given_.tolist(), strict=True):
        assert value == pytest.approx((posterior[i] @ matrix @ posterior[j]).log().item(), abs=1e-10)


def test_pairs_that_say_nothing_have_no_gradient():
    """With a purity of 1/K the label of one partner says nothing about the other."""
    logits = torch.randn(4, 5, dtype=F64, requires_grad=True)
    value = log_agreement(logits.log_softmax(-1), torch.tensor([[0, 1], [2, 3]]), purity=0.2)
    assert torch.allclose(value, torch.tensor(0.2, dtype=F64).log())
    assert torch.autograd.grad(value.sum(), logits)[0].abs().max() < 1e-12


def test_imbalance_is_a_divergence():
    prior = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    certain = torch.eye(3, dtype=F64)[[0, 0, 1, 1, 1, 2, 2, 2, 2, 2]].clamp(min=1e-30).log()
    assert abs(imbalance(certain, prior.log())) < 1e-12
    one_label = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64).clamp(min=1e-30).log().expand(8, 3)
    assert imbalance(one_label, prior.log()).item() == pytest.approx(math.log(5))


def test_a_class_that_cannot_be_plays_no_part():
    flow = toy_flow("gmm", dtype=F64)
    impossible = torch.tensor([0.5, 0.5, 0.0], dtype=F64)
    model = scnf.SemiSupervisedModel(flow, impossible)
    batch = torch.randn(2, 2, dtype=F64), torch.tensor([0, 1]), torch.randn(6, 2, dtype=F64)
    loss = scnf.elbo(model, terms=Balance())(*batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)


def test_balance_does_not_teach_the_class_probabilities():
    model = scnf.SemiSupervisedModel(toy_flow("gmm", dtype=F64), "learnable")
    batch = torch.randn(2, 2, dtype=F64), torch.tensor([0, 1]), torch.randn(6, 2, dtype=F64)
    gradients = []
    for weight in (0.0, 1e6):
        model.zero_grad()
        scnf.elbo(model, terms=Balance(weight))(*batch).backward()
        gradients.append(model.class_probs.logits.grad.clone())
    # The divergence compares the posteriors with p(y). The posteriors depend on p(y) too, and the gradient
    # must pass through them. It must not pass through the p(y) that they are compared with.
    log_prior = model.class_probs.logits.detach().log_softmax(-1).requires_grad_()
    posterior = (model.flow.class_log_prob(batch[2]) + log_prior).log_softmax(-1)
    imbalance(posterior, log_prior.detach()).backward()
    through = log_prior.grad - log_prior.grad.sum() * log_prior.detach().exp()
    assert relative(gradients[1] - gradients[0], 6e6 * through) < 1e-6


def problem(**options):
    flow = toy_flow("flow", dtype=F64)
    x, y, unlabelled = torch.randn(4, 2, dtype=F64), torch.tensor([0, 1, 2, 0]), torch.randn(6, 2, dtype=F64)
    return flow, scnf.SemiSupervisedModel(flow, **options), (x, y, unlabelled)


def test_weight_one_gives_the_exact_likelihood_of_pairs():
    """The labels of a pair have the joint probability A_kl / K. Everything else is as without pairs."""
    flow, model, batch = problem()
    x, y, unlabelled = batch
    pairs = torch.tensor([[0, 5], [6, 7], [8, 9]])  # labelled and unlabelled, then twice two unlabelled rows
    loss = scnf.elbo(model, terms=Agreement(purity=0.9))(*batch, pairs=pairs)
    joint = (torch.full((3, 3), 1 / 3, dtype=F64) * agreement_matrix(3, 0.9)).log()
    labelled = flow.class_log_prob(x).gather(1, y[:, None])[:, 0] - math.log(3)
    p = flow.class_log_prob(unlabelled)
    mixed = labelled[0] + math.log(3) + (joint[y[0]] + p[1]).logsumexp(-1)
    twos = [(joint + p[i][:, None] + p[j]).flatten().logsumexp(-1) for i, j in ((2, 3), (4, 5))]
    alone = (p[0] - math.log(3)).logsumexp(-1)
    expected = labelled[1:].sum() + mixed + sum(twos) + alone
    # The score of each pair leaves a constant log K out.
    assert relative(loss, -(expected - 3 * math.log(3))) < 1e-10


@pytest.mark.parametrize("sizes", [{}, {"num_labelled": 40, "num_unlabelled": 60}])
def test_terms_are_weighted_and_scaled_with_the_unlabelled_plate(sizes):
    torch.manual_seed(3)
    flow, plain, batch = problem(**sizes)
    pairs = torch.tensor([[4, 5], [0, 6]])
    log_posterior = flow.posterior(batch[2]).logits
    known = torch.where(torch.nn.functional.one_hot(batch[1], 3).bool(), 0.0, -torch.inf).to(F64)
    agreement = log_agreement(torch.cat([known, log_posterior]), pairs, 0.8).sum()
    balance = imbalance(log_posterior, torch.full((3,), -math.log(3), dtype=F64))
    factor = sizes.get("num_unlabelled", 6) / 6
    expected = scnf.elbo(plain)(*batch) + factor * (7 * 6 * balance - 5 * agreement)
    loss = scnf.elbo(plain, terms=["agreement:weight=5,purity=0.8", "balance:weight=7"])
    assert relative(loss(*batch, pairs=pairs), expected) < 1e-10
    assert loss.parts.keys() == {"nll", "agreement", "balance"}
    assert relative(loss.parts["agreement"], -5 * factor * agreement) < 1e-10
    assert relative(loss.parts["balance"], 7 * factor * 6 * balance) < 1e-10


def test_terms_fall_in_training():
    _, model, batch = problem()
    pairs, weights = torch.tensor([[4, 5]]), {Classification: 2.0, Agreement: 3.0, Balance: 1.0}
    full = scnf.elbo(model, terms=[term(weight) for term, weight in weights.items()])(*batch, pairs=pairs)
    plain = scnf.elbo(model)(*batch)
    falling = scnf.elbo(model, terms=[term(weight, end=0.2) for term, weight in weights.items()])

    def at(progress):
        return falling(*batch, pairs=pairs, progress=progress)

    assert relative(falling(*batch, pairs=pairs), full) < 1e-10
    assert relative(at(0.0), full) < 1e-10
    assert relative(at(1.0), plain + 0.2 * (full - plain)) < 1e-10
    assert relative(at(0.5), plain + 0.6 * (full - plain)) < 1e-10


def test_pairs_cost_no_pass_of_the_flow_and_leave_the_generative_model_alone():
    flow, model, batch = problem()
    pairs = torch.tensor([[4, 5]])
    with counting(flow.transform, "inverse_and_ladj") as counter:
        scnf.elbo(model, scnf.EMGuide(model), ["agreement", "balance"])(*batch, pairs=pairs)
    assert counter.calls == 1
    trained = partial(scnf.with_terms(model, ["agreement", "balance"]), pairs=pairs)
    joint = scnf.enumerate_labels(trained, batch, site="y_unlabelled")
    assert relative(joint[0], flow.class_log_prob(batch[2]) - math.log(3)) < 1e-10


def test_pairs_without_a_term_and_a_term_without_pairs():
    _, model, batch = problem()
    pairs = torch.tensor([[4, 5]])
    for terms, names in (((), "none at all"), (["classification", "balance"], "classification, balance")):
        with pytest.raises(ValueError, match=f"pairs: given, but no training term uses them .terms: {names}"):
            scnf.elbo(model, terms=terms)(*batch, pairs=pairs)
    with pytest.raises(ValueError, match="terms: agreement needs pairs of rows: give pairs, or link_neigh"):
        scnf.elbo(model, terms="agreement")(*batch)


def test_pairs_have_no_weights():
    _, model, batch = problem()
    weights = torch.ones(6, dtype=F64)
    loss = scnf.elbo(model, scnf.EMGuide(model), "agreement")
    with pytest.raises(ValueError, match="rows that the training terms agreement see"):
        loss(*batch, pairs=torch.tensor([[4, 5]]), weights=weights)
    # Terms of the labelled rows alone do not look at the rows that have weights.
    both = scnf.elbo(model, scnf.EMGuide(model), "classification")
    plain = scnf.elbo(model, scnf.EMGuide(model))
    extra = both(*batch, weights=2 * weights) - plain(*batch, weights=2 * weights)
    assert relative(extra, both(*batch) - plain(*batch)) < 1e-10


def test_pairs_belong_to_two_plates():
    _, model, (x, y, _) = problem()
    with pytest.raises(ValueError, match=r"pairs are for .x, y, x_unlabelled."):
        scnf.elbo(model, terms="agreement")(x, y, pairs=torch.tensor([[0, 1]]))


@pytest.mark.parametrize(
    ("term", "options"),
    [
        (Agreement, {"weight": -1.0}),
        (Balance, {"weight": -1.0}),
        (Agreement, {"purity": 1.0}),
        (Agreement, {"purity": 0.0}),
        (Balance, {"end": -0.5}),
        (Balance, {"until": 0.0}),
    ],
)
def test_options_out_of_range(term, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{term.__name__}: {name}={value}: expected"):
        term(**options)


# -- neighbours and batches of them -----------------------------------------------------------------
@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
def test_neighbours_are_the_nearest_rows(shape):
    x = torch.randn(30, *shape)
    features = x if len(shape) == 1 else pixel_features(x)
    expected = torch.cdist(features, features).fill_diagonal_(1e9).sort().indices[:, :4]
    for chunk in (7, 30, 100):
        assert torch.equal(nearest_neighbours(x, 4, chunk=chunk), expected)


def test_neighbours_by_features_of_ones_own():
    x = torch.tensor([[0.0, 0.0], [1.0, 9.0], [2.0, 0.0], [2.4, 9.0]])
    assert nearest_neighbours(x, 1)[:, 0].tolist() == [2, 3, 0, 1]
    assert nearest_neighbours(x, 1, lambda x: x[:, :1])[:, 0].tolist() == [1, 0, 3, 2]


def test_pooling_forgives_a_shift():
    x = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    x[0, 0, 0, 0] = x[1, 0, 1, 1] = x[2, 0, 2, 2] = 200
    assert nearest_neighbours(x, 1)[:2, 0].tolist() == [1, 0]


def test_deskewed_strokes_stand_upright_in_the_middle():
    slanted = torch.zeros(1, 1, 28, 28)
    for i in range(16):
        slanted[0, 0, 4 + i, 20 - i // 2] = 255
    upright = deskew(slanted)[0, 0] / 255
    columns = upright.sum(0)
    assert columns[12:16].sum() > 0.9 * columns.sum() > 10
    centre = (upright.sum(1) * torch.arange(28)).sum() / upright.sum()
    assert abs(centre - 13.5) < 0.3
    assert deskew(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).abs().max() == 0


def test_neighbours_that_cannot_be_had():
    with pytest.raises(ValueError, match="k=3: there are 3 rows"):
        nearest_neighbours(torch.randn(3, 2), 3)
    data = link_neighbours(toy("moons", num_train=50, num_test=10), 2)
    with pytest.raises(ValueError, match="hold out first, then link"):
        data.hold_out(5)


def linked(labelled: int = 4, unlabelled: int = 20) -> SemiSupervisedData:
    """Row n holds the number n. Its neighbours are the rows n + 1 and n + 2, modulo the number of rows."""
    total = labelled + unlabelled
    x = torch.arange(total).float()[:, None]
    y = torch.where(x[:, 0] < labelled, x[:, 0] % 2, -1.0).long()
    near = (torch.arange(total)[:, None] + torch.tensor([1, 2])) % total
    return SemiSupervisedData(x, y, x[:0], y[:0], 2, neighbours=near)


@given(st.integers(0, 50), st.integers(0, 3))
def test_pairs_of_a_batch_are_neighbours(step, seed):
    batches = StepBatches(linked(), 12, 2, seed=seed)
    batch = batches[step]
    assert (len(batch.x), len(batch.x_unlabelled), len(batch.pairs)) == (2, 12, 7)
    rows = torch.cat([batch.x, batch.x_unlabelled])[:, 0]
    first, second = rows[batch.pairs].T
    assert set(((second - first) % 24).tolist()) <= {1.0, 2.0}
    assert torch.equal(first[:2], batch.x[:, 0])
    assert sorted(batch.pairs.flatten().tolist()) == list(range(14))
    again = StepBatches(linked(), 12, 2, seed=seed)[step]
    assert torch.equal(again.x_unlabelled, batch.x_unlabelled)


def test_anchors_come_in_passes_and_processes_share_them():
    one = [StepBatches(linked(), 12, 4)[s] for s in range(5)]
    anchors = torch.cat([batch.x_unlabelled[4:8, 0] for batch in one])
    assert sorted(anchors.tolist()) == list(range(4, 24))
    shares = [StepBatches(linked(), 12, 4, rank=r, world_size=2)[0] for r in (0, 1)]
    assert torch.equal(torch.cat([share.x for share in shares]), one[0].x)
    assert torch.equal(torch.cat([share.x_unlabelled[2:4] for share in shares]), one[0].x_unlabelled[4:8])


def test_batches_do_not_depend_on_how_many_share_them():
    whole = StepBatches(linked(), 12, 4)[3]
    shares = [StepBatches(linked(), 12, 4, rank=r, world_size=2)[3] for r in (0, 1)]

    def drawn(batch):
        rows = torch.cat([batch.x, batch.x_unlabelled])[:, 0]
        return {tuple(pair) for pair in rows[batch.pairs].tolist()}

    assert drawn(shares[0]) | drawn(shares[1]) == drawn(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.full((24,), -1)}, "both labelled and unlabelled"),
        ({"neighbours": torch.zeros(23, 2, dtype=torch.long)}, r"neighbours has shape \(23, 2\)"),
        ({"neighbours": torch.full((24, 1), 24)}, r"neighbours: expected rows 0..23"),
    ],
)
def test_links_that_do_not_fit_the_data(changes, message):
    with pytest.raises(ValueError, match=message):
        StepBatches(replace(linked(), **changes), 12, 2)


@pytest.mark.parametrize(("size", "free"), [(2, 0), (5, 3)])
def test_batches_too_small_for_pairs(size, free):
    with pytest.raises(ValueError, match=f"leave {free} for pairs"):
        StepBatches(linked(), size, 2)


def test_training_on_pairs_brings_neighbours_to_agree():
    data = link_neighbours(toy("moons", num_train=200, num_test=50, seed=0).hold_out(40), 3)

    def agreement(weight, balance):
        torch.manual_seed(0)
        flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=2, width=16, blocks=1), "gmm", 2)
        model = scnf.SemiSupervisedModel(flow)
        model.initialize(data.x, data.y)
        terms = [Agreement(weight), Balance(balance)]
        fit(model, data, terms=terms, steps=60, batch_size=60, validate_every=30, progress=False)
        with torch.no_grad():
            log_posterior = model.posterior(data.x).logits
            pairs = torch.stack([torch.arange(len(data.x)), data.neighbours[:, 0]], -1)
            return log_agreement(log_posterior, pairs, 0.98).mean()

    assert agreement(50.0, 10.0) > agreement(0.0, 0.0) + 0.01
