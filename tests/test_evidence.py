"""Evidence about labels: it takes the place of p(y) in single rows of the loss, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro
import pytest
import torch
from cases import GUIDES, PRIORS
from helpers import counting, gradient_error, gradients, perturb, relative, toy_flow
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

import pyro_scnf as scnf
from pyro_scnf import analysis
from pyro_scnf.datasets import SemiSupervisedData, link_neighbours, toy
from pyro_scnf.training import Optimisation, StepBatches, fit
from pyro_scnf.training.batches import fingerprint
from pyro_scnf.transforms import dequantize

F64 = torch.float64
K, LABELLED, UNLABELLED = 3, 4, 6
DETERMINISTIC = ["exact", "em", "em-tempered", "em-hard", "em-ema"]
SIZES = {"batch": {}, "scaled": {"num_labelled": 40, "num_unlabelled": 90, "labelled_weight": 2.0}}
CLASS_PROBS = {
    "uniform": "uniform",
    "learnable": "learnable",
    "given": torch.tensor([0.5, 0.2, 0.3], dtype=F64),
    "impossible": torch.tensor([0.5, 0.5, 0.0], dtype=F64),
}


def log_probs(*shape):
    return (2 * torch.randn(*shape, dtype=F64)).log_softmax(-1)


def problem(prior="gmm", class_probs="learnable", **options):
    model = scnf.SemiSupervisedModel(toy_flow(prior, K, dtype=F64), CLASS_PROBS[class_probs], **options)
    perturb(model.class_probs, 0.5)
    x, u = torch.randn(LABELLED, 2, dtype=F64), torch.randn(UNLABELLED, 2, dtype=F64)
    return model, (x, torch.tensor([0, 1, 0, 1]), u)


def table(model, x):
    """log p(x | y = k), one label at a time."""
    rows = [model.flow.condition(torch.full((len(x),), k)).log_prob(x) for k in range(model.flow.num_classes)]
    return torch.stack(rows, -1)


def unlabelled_by_hand(guide, joint):
    """The negative ELBO of unlabelled rows, (B,), with q from the joint itself."""
    log_q = joint.detach().log_softmax(-1)
    if guide == "em-hard":
        return -joint.gather(1, log_q.argmax(-1, keepdim=True))[:, 0]
    log_q = (log_q / (2.0 if guide == "em-tempered" else 1.0)).log_softmax(-1)
    if guide == "exact":
        return -joint.logsumexp(-1)
    return -(log_q.exp() * (joint - log_q)).sum(-1)


def same(model, loss, expected, tolerance=1e-10):
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert gradient_error(gradients(model, loss), gradients(model, expected)) < tolerance


# -- the loss by hand ----------------------------------------------------------
@pytest.mark.parametrize("about", ["unlabelled", "all"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("class_probs", CLASS_PROBS)
@pytest.mark.parametrize("guide", DETERMINISTIC)
def test_two_plates(guide, class_probs, sizes, about):
    model, (x, y, u) = problem("flow", class_probs, **SIZES[sizes])
    evidence = log_probs(UNLABELLED if about == "unlabelled" else LABELLED + UNLABELLED, K)
    loss = scnf.elbo(model, GUIDES[guide](model))(x, y, u, label_log_prior=evidence)
    log_p = model.class_probs.logits.log_softmax(-1).expand(LABELLED, K)
    first, second = (log_p, evidence) if about == "unlabelled" else evidence.split([LABELLED, UNLABELLED])
    labelled = -(table(model, x) + first)[torch.arange(LABELLED), y].sum()
    unlabelled = unlabelled_by_hand(guide, table(model, u) + second).sum()
    factors = (20.0, 15.0) if sizes == "scaled" else (1.0, 1.0)
    same(model, loss, factors[0] * labelled + factors[1] * unlabelled)


@pytest.mark.parametrize("labels", ["none", "some", "all"])
@pytest.mark.parametrize("sizes", [{}, {"num_labelled": 40, "num_unlabelled": 90}], ids=["batch", "scaled"])
@pytest.mark.parametrize("class_probs", CLASS_PROBS)
@pytest.mark.parametrize("guide", DETERMINISTIC)
def test_one_plate(guide, class_probs, sizes, labels):
    model, (x, y, u) = problem("gmm", class_probs, **sizes)
    rows, known = torch.cat([u, x]), torch.cat([torch.full((UNLABELLED,), -1), y])
    if labels == "all":
        rows, known = x, y
    evidence = log_probs(len(rows), K)
    given = {"none": None, "some": known, "all": known}[labels]
    loss = scnf.elbo(model, GUIDES[guide](model))(rows, given, label_log_prior=evidence)
    joint = table(model, rows) + evidence
    hidden = torch.ones(len(rows), dtype=torch.bool) if labels == "none" else known < 0
    observed = joint.gather(1, known.clamp(min=0)[:, None])[:, 0]
    by_row = torch.where(hidden, unlabelled_by_hand(guide, joint), -observed)
    same(model, loss, by_row.sum() * (130 / len(rows) if sizes else 1.0))


@pytest.mark.parametrize("prior", [name for name, case in PRIORS.items() if case.event_shape == (3,)])
def test_every_prior(prior):
    case = PRIORS[prior]
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((3,), steps=1, width=6, blocks=1), case.build())
    model = scnf.SemiSupervisedModel(perturb(flow).to(F64), "learnable")
    k = flow.num_classes
    x, u, y = torch.randn(4, 3, dtype=F64), torch.randn(6, 3, dtype=F64), torch.arange(4) % k
    evidence = log_probs(10, k)
    joint = table(model, torch.cat([x, u])) + evidence
    expected = -joint[torch.arange(4), y].sum() - joint[4:].logsumexp(-1).sum()
    tolerance = case.tolerances.gradient if prior.startswith("ffjord") else 1e-10
    same(model, scnf.elbo(model)(x, y, u, label_log_prior=evidence), expected, tolerance)


@pytest.mark.parametrize("guide", ["em-sample", "em-copy"])
def test_a_sampled_label_follows_the_evidence(guide):
    """With all probability on one label, the sample is that label, and the loss has no variance."""
    model, (x, y, u) = problem()
    label = torch.tensor([0, 1, 2, 2, 1, 0])
    certain = torch.full((UNLABELLED, K), -torch.inf, dtype=F64).scatter(1, label[:, None], 0.0)
    joint = table(model, x) + model.class_probs.log_probs
    expected = (
        -joint[torch.arange(LABELLED), y].sum() - table(model, u)[torch.arange(UNLABELLED), label].sum()
    )
    loss = scnf.elbo(model, GUIDES[guide](model))(x, y, u, label_log_prior=certain)
    same(model, loss, expected)


@pytest.mark.parametrize("guide", DETERMINISTIC)
def test_certain_evidence_is_a_label(guide):
    """Minus infinity rules a label out. Gradients stay finite."""
    model, (x, y, u) = problem("flow")
    label = torch.tensor([0, 1, 2, 2, 1, 0])
    evidence = log_probs(UNLABELLED, K)
    evidence[::2] = torch.full((3, K), -torch.inf, dtype=F64).scatter(1, label[::2, None], 0.0)
    loss = scnf.elbo(model, GUIDES[guide](model))(x, y, u, label_log_prior=evidence)
    joint = table(model, u) + evidence.clamp(min=-1e30)
    by_row = unlabelled_by_hand(guide, joint)
    known = -table(model, u)[torch.arange(UNLABELLED), label]
    by_row = torch.where(torch.arange(UNLABELLED) % 2 == 0, known, by_row)
    labelled = (table(model, x) + model.class_probs.log_probs)[torch.arange(LABELLED), y]
    same(model, loss, by_row.sum() - labelled.sum())


def test_evidence_against_a_known_label_is_finite():
    """A label that the evidence rules out costs a large number, and no infinity that would stop training."""
    model, (x, y, _) = problem()
    certain = torch.full((LABELLED, K), -torch.inf, dtype=F64).scatter(1, (y[:, None] + 1) % K, 0.0)
    assert torch.isfinite(model.score(x, label_log_prior=certain).log_prior).all()
    loss = scnf.elbo(model)(x, y, label_log_prior=certain)
    assert 1e29 < loss < math.inf
    assert all(torch.isfinite(grad).all() for grad in gradients(model, loss).values())


@pytest.mark.parametrize("guide", DETERMINISTIC)
@pytest.mark.parametrize("form", ["two plates", "one plate"])
def test_uniform_evidence_changes_nothing_under_uniform_class_probabilities(guide, form):
    model, batch = problem(class_probs="uniform")
    args = batch if form == "two plates" else (torch.cat([batch[0], batch[2]]),)
    uniform = torch.full((LABELLED + UNLABELLED, K), -math.log(K), dtype=F64)
    objective = scnf.elbo(model, GUIDES[guide](model))
    same(model, objective(*args, label_log_prior=uniform), objective(*args), 1e-12)


def test_evidence_of_some_rows_takes_the_gradient_from_class_probabilities():
    """Rows with evidence teach p(y) nothing."""
    model, (x, y, u) = problem()
    for guide in ("exact", "em"):
        loss = scnf.elbo(model, GUIDES[guide](model))(x, y, u, label_log_prior=log_probs(10, K))
        assert gradients(model, loss)["class_probs.logits"].abs().max() == 0
        loss = scnf.elbo(model, GUIDES[guide](model))(x, y, u, label_log_prior=log_probs(6, K))
        alone = -(table(model, x) + model.class_probs.log_probs)[torch.arange(LABELLED), y].sum()
        expected = gradients(model, alone)["class_probs.logits"]
        assert relative(gradients(model, loss)["class_probs.logits"], expected) < 1e-12


def test_a_gradient_reaches_the_evidence():
    """The evidence may come from a network that learns with the model."""
    model, (x, y, u) = problem()
    logits = torch.randn(UNLABELLED, K, dtype=F64, requires_grad=True)
    loss = scnf.elbo(model)(x, y, u, label_log_prior=logits.log_softmax(-1))
    (got,) = torch.autograd.grad(loss, logits)
    by_hand = -(table(model, u).detach() + logits.log_softmax(-1)).logsumexp(-1).sum()
    assert relative(got, torch.autograd.grad(by_hand, logits)[0]) < 1e-12


def test_evidence_in_single_precision():
    """The evidence takes the dtype of the model, in both directions."""
    model, (x, y, u) = problem()
    evidence = log_probs(UNLABELLED, K)
    expected = scnf.elbo(model)(x, y, u, label_log_prior=evidence).item()
    rounded = scnf.elbo(model)(x, y, u, label_log_prior=evidence.float())
    assert rounded.dtype == F64
    assert rounded.item() == pytest.approx(expected, rel=1e-5)
    model.float()
    for guide in ("exact", "em", "em-hard"):
        loss = scnf.elbo(model, GUIDES[guide](model))(x.float(), y, u.float(), label_log_prior=evidence)
        assert loss.dtype == torch.float32
    assert scnf.elbo(model)(x.float(), y, u.float(), label_log_prior=evidence).item() == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("guide", ["exact", "em", "em-sample", "em-hard"])
@pytest.mark.parametrize("form", ["two plates", "one plate"])
def test_one_pass_of_the_flow(guide, form):
    model, batch = problem("flow")
    args = batch if form == "two plates" else (torch.cat([batch[0], batch[2]]),)
    objective = scnf.elbo(model, GUIDES[guide](model))
    with counting(model.flow.transform, "inverse_and_ladj") as passes:
        objective(*args, label_log_prior=log_probs(10, K))
    assert passes.rows == [10]


def test_weights_of_rows():
    model, (x, y, u) = problem()
    evidence, weights = log_probs(UNLABELLED, K), torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], dtype=F64)
    loss = scnf.elbo(model, scnf.EMGuide(model))(x, y, u, weights=weights, label_log_prior=evidence)
    labelled = (table(model, x) + model.class_probs.log_probs)[torch.arange(LABELLED), y].sum()
    by_row = unlabelled_by_hand("em", table(model, u) + evidence)
    same(model, loss, (weights * by_row).sum() - labelled)


def test_under_pyros_own_elbo():
    model, batch = problem()
    evidence = log_probs(UNLABELLED, K)
    own = TraceEnum_ELBO(max_plate_nesting=1)
    loss = own.differentiable_loss(model, scnf.exact_guide, *batch, label_log_prior=evidence)
    same(model, loss, scnf.elbo(model)(*batch, label_log_prior=evidence))


# -- what it does not change ---------------------------------------------------
def test_posterior_combines_evidence_and_flow():
    model, (x, _, _) = problem("flow")
    evidence = log_probs(LABELLED, K)
    got = model.posterior(x, label_log_prior=evidence).logits
    assert relative(got, (table(model, x) + evidence).log_softmax(-1)) < 1e-12
    batch = model.posterior(x.reshape(2, 2, 2), label_log_prior=evidence.reshape(2, 2, K)).logits
    assert relative(batch.reshape(4, K), got) < 1e-12
    uniform = torch.full((LABELLED, K), -math.log(K), dtype=F64)
    plain = model.posterior(x, label_log_prior=model.class_probs.log_probs.expand(LABELLED, K))
    assert relative(plain.logits, model.posterior(x).logits) < 1e-12
    assert relative(model.posterior(x, label_log_prior=uniform).logits, model.posterior(x).logits) > 1e-3


def test_score_holds_evidence_beside_class_probabilities():
    model, (x, _, _) = problem("flow")
    evidence = log_probs(LABELLED, K)
    rows = model.score(x, label_log_prior=evidence, scale=2.5)
    assert rows.scale == 2.5
    assert torch.equal(rows.log_prior, evidence)
    assert relative(rows.common[:, None] + rows.given, table(model, x)) < 1e-12
    assert relative(rows.log_class_probs, model.class_probs.log_probs) < 1e-14
    assert relative(rows.log_posterior, model.posterior(x, label_log_prior=evidence).logits) < 1e-12
    assert relative(rows.log_posterior_without_evidence, model.posterior(x).logits) < 1e-12
    assert relative(model.score(x).log_posterior, model.posterior(x).logits) < 1e-12


def moons(evidence=True, **options):
    data = toy("moons", **{"num_train": 60, "num_test": 20, "labels_per_class": 3, "seed": 0, **options})
    logits = torch.randn(len(data.x), 2, generator=torch.Generator().manual_seed(3))
    return replace(data, label_log_prior=logits.log_softmax(-1)) if evidence else data


def test_validation_and_testing_do_not_use_it():
    """After a run with evidence, NLL, error and bits are those of p(y), by hand."""
    data = moons().hold_out(20)
    model = scnf.SemiSupervisedModel(toy_flow("gmm", 2), torch.tensor([0.7, 0.3]))
    model.initialize(data.x, data.y)
    result = fit(model, data, steps=4, batch_size=16, validate_every=2, progress=False)
    log_p = torch.tensor([0.7, 0.3]).log()
    with torch.no_grad():
        validation, test = (table(model, x) + log_p for x in (data.x_val, data.x_test))
        pixels = torch.zeros(20, 2)  # one dequantisation of a black picture of two pixels
        torch.manual_seed(0)
        bits = analysis.evaluate(model, pixels, data.y_test, bins=256)["test_bits_per_dim"]
        torch.manual_seed(0)
        noisy = (table(model, dequantize(pixels, 256)) + log_p).logsumexp(-1).mean()
    assert result.best_nll == pytest.approx(-validation.logsumexp(-1).mean().item(), rel=1e-5)
    found = analysis.evaluate(model, data.x_test, data.y_test)
    assert found["test_nll"] == pytest.approx(-test.logsumexp(-1).mean().item(), rel=1e-5)
    errors = (test.argmax(-1) != data.y_test).float().mean().item()
    assert found["test_error_pct"] == pytest.approx(100 * errors, abs=1e-3)
    assert bits == pytest.approx((8 - noisy / (2 * math.log(2))).item(), rel=1e-5)
    assert relative(model.log_prob(data.x_test), test.logsumexp(-1)) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_evaluate_with_evidence_by_hand(temperature):
    """Figures of the model stay. Those of the evidence, and of both together, are added."""
    data = moons(evidence=False)
    model = scnf.SemiSupervisedModel(toy_flow("gmm", 2), torch.tensor([0.8, 0.2]))
    model.initialize(data.x, data.y)
    x, y = data.x_test, data.y_test
    evidence = (2 * torch.randn(len(x), 2)).log_softmax(-1)
    plain = analysis.evaluate(model, x, y, temperature=temperature)
    found = analysis.evaluate(model, x, y, label_log_prior=evidence, temperature=temperature)
    with torch.no_grad():
        both = (table(model, x) / temperature + evidence).log_softmax(-1)
    for prefix, log_p in (("evidence", evidence), ("test_with_evidence", both)):
        expected = analysis.calibration(log_p, y)
        assert found.pop(f"{prefix}_error_pct") == pytest.approx(100 - expected["accuracy_pct"], abs=1e-3)
        for figure in ("label_nll", "ece", "brier"):
            assert found.pop(f"{prefix}_{figure}") == pytest.approx(expected[figure], rel=1e-4, abs=1e-6)
    assert found == plain


@pytest.mark.parametrize("average", ["density", "posterior"])
def test_evidence_speaks_for_a_class_that_the_model_rules_out(average):
    """It takes the place of p(y), so the likelihood of that class counts."""
    data = moons(evidence=False)
    model = scnf.SemiSupervisedModel(toy_flow("gmm", 2), torch.tensor([1.0, 0.0]))
    evidence = torch.full((len(data.x_test), 2), 0.5).log()
    options = {"label_log_prior": evidence, "average": average}
    found = analysis.evaluate(model, data.x_test, data.y_test, **options)
    with torch.no_grad():
        both = analysis.calibration(table(model, data.x_test).log_softmax(-1), data.y_test)
    assert found["test_with_evidence_label_nll"] == pytest.approx(both["label_nll"], rel=1e-4)


def test_evaluate_takes_a_label_that_evidence_rules_out():
    data = moons(evidence=False)
    model = scnf.SemiSupervisedModel(toy_flow("gmm", 2))
    model.initialize(data.x, data.y)
    certain = torch.where(torch.nn.functional.one_hot(data.y_test, 2).bool(), 0.0, -math.inf)
    found = analysis.evaluate(model, data.x_test, data.y_test, label_log_prior=certain)
    assert found["evidence_error_pct"] == found["test_with_evidence_error_pct"] == 0
    assert found["test_with_evidence_label_nll"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="evaluate: label_log_prior has shape"):
        analysis.evaluate(model, data.x_test, data.y_test, label_log_prior=certain[1:])


def test_enumerated_labels_hold_the_evidence():
    """The evidence is part of the model of these rows, so their enumerated joint has it."""
    model, (x, y, u) = problem()
    evidence = log_probs(UNLABELLED, K)

    def observed(*args):
        return model(*args, label_log_prior=evidence)

    joint = scnf.enumerate_labels(observed, (x, y, u), site="y_unlabelled")
    assert relative(joint[0], table(model, u) + evidence) < 1e-10


def test_draws_with_evidence():
    """Without data, the labels come from the evidence, each row from its own."""
    model, _ = problem()
    evidence = log_probs(4000, K)
    evidence[0] = torch.tensor([-torch.inf, 0.0, -torch.inf], dtype=F64)
    trace = poutine.trace(model).get_trace(n=4000, label_log_prior=evidence)
    labels = trace.nodes["y"]["value"]
    assert labels[0] == 1
    counts = torch.bincount(labels, minlength=K) / 4000
    mean = evidence.exp().mean(0)
    assert ((counts - mean).abs() < 5 * (mean / 4000).sqrt()).all()
    # The rows follow their own evidence, and not only its mean.
    picked = evidence.gather(1, labels[:, None]).exp().mean()
    expected = evidence.exp().square().sum(-1).mean()
    assert abs(picked - expected) < 0.03
    assert trace.nodes["x"]["value"].shape == (4000, 2)
    pyro.set_rng_seed(0)
    with pytest.raises(ValueError, match=r"label_log_prior has shape \(4000, 3\), expected \(5, 3\)"):
        model(n=5, label_log_prior=evidence)


# -- what is refused -----------------------------------------------------------
def wrong_evidence():
    good = torch.full((UNLABELLED, K), -math.log(K), dtype=F64)
    nan = good.clone()
    nan[2, 1] = math.nan
    sums = good.clone()
    sums[3] += 0.1
    return {
        "rows": (good[:5], r"label_log_prior has shape \(5, 3\), expected \(6, 3\)"),
        "classes": (good[:, :2], r"label_log_prior has shape \(6, 2\), expected \(6, 3\)"),
        "vector": (good[:, 0], r"label_log_prior has shape \(6,\), expected \(6, 3\)"),
        "scalar": (good[0, 0], r"label_log_prior has shape \(\), expected \(6, 3\)"),
        "number": (0.5, "label_log_prior is of float, expected a floating tensor"),
        "integer": (good.long(), "label_log_prior is of torch.int64, expected a floating tensor"),
        "list": (good.tolist(), "label_log_prior is of list, expected a floating tensor"),
        "nan": (nan, "label_log_prior is not normalised: the probabilities of row 2 add up to nan"),
        "sums": (sums, "the probabilities of row 3 add up to 1.105, expected 1; give logits.log_softmax"),
        "probabilities": (good.exp(), r"row 0 add up to 4\.\d+, expected 1"),
        "infinite": (good + torch.inf, "row 0 add up to inf, expected 1"),
        "impossible": (good - torch.inf, "row 0 add up to 0, expected 1"),
    }


@pytest.mark.parametrize("kind", wrong_evidence())
def test_evidence_that_is_none(kind):
    model, (x, y, u) = problem()
    wrong, message = wrong_evidence()[kind]
    calls = {
        "two plates": lambda: scnf.elbo(model)(x, y, u, label_log_prior=wrong),
        "one plate": lambda: scnf.elbo(model)(u, label_log_prior=wrong),
        "guide": lambda: scnf.EMGuide(model)(u, label_log_prior=wrong),
        "terms": lambda: scnf.elbo(model, terms="balance")(u, label_log_prior=wrong),
        "posterior": lambda: model.posterior(u, label_log_prior=wrong),
        "score": lambda: model.score(u, label_log_prior=wrong),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=message):
            call()


def test_small_errors_of_rounding_are_no_errors():
    model, (x, y, u) = problem()
    evidence = log_probs(UNLABELLED, K).half()
    assert torch.isfinite(scnf.elbo(model)(x, y, u, label_log_prior=evidence))


# -- in data sets and batches --------------------------------------------------
def numbered(labelled=6, unlabelled=18):
    """Row n holds the number n, and so does its evidence. Labelled rows come first."""
    n = torch.arange(labelled + unlabelled)
    first = (n + 1) / 100
    y = torch.where(n < labelled, n % 2, -1)
    evidence = torch.stack([first, 1 - first], -1).log()
    x = torch.stack([n.float(), torch.zeros(len(n))], -1)
    return SemiSupervisedData(x, y, x[:0], y[:0], 2, label_log_prior=evidence)


def numbers_of(evidence):
    return (evidence[:, 0].exp() * 100 - 1).round().int().tolist()


def aligned(batch):
    return numbers_of(batch.label_log_prior) == batch.x_unlabelled[:, 0].int().tolist()


def test_hold_out_keeps_evidence_with_its_row():
    data = numbered().hold_out(7, seed=3)
    assert numbers_of(data.label_log_prior) == data.x[:, 0].int().tolist()
    assert len(data.label_log_prior) == 17


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("linked", [False, True])
def test_batches_keep_evidence_with_its_row(linked, world_size):
    data = numbered().hold_out(4)
    data = link_neighbours(data, 2) if linked else data
    seen = set()
    for rank in range(world_size):
        batches = StepBatches(data, 12, 4, seed=1, rank=rank, world_size=world_size)
        for step in range(8):
            batch = batches[step]
            assert aligned(batch)
            assert batch.label_log_prior.shape == (12 // world_size, 2)
            seen |= set(numbers_of(batch.label_log_prior))
    assert len(seen) >= 14
    assert StepBatches(replace(numbered(), label_log_prior=None), 12)[0].label_log_prior is None


def test_other_evidence_is_other_data():
    data = numbered()
    changed = data.label_log_prior.clone()
    changed[3] = changed[3].flip(0)
    prints = [
        fingerprint(data),
        fingerprint(replace(data, label_log_prior=None)),
        fingerprint(replace(data, label_log_prior=changed)),
    ]
    assert len(set(prints)) == 3
    assert fingerprint(numbered()) == prints[0]


def test_evidence_without_unlabelled_rows():
    data = numbered()
    known = replace(data, y=torch.arange(24) % 2)
    with pytest.raises(
        ValueError, match="label_log_prior is evidence about unlabelled rows, and there are no"
    ):
        StepBatches(known, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[1:], r"data: label_log_prior has shape \(23, 2\), expected \(24, 2\)"),
        (lambda e: e.exp(), "data: label_log_prior is not normalised"),
        (lambda e: e.long(), "data: label_log_prior is of torch.int64"),
    ],
)
def test_evidence_that_does_not_fit_the_data(change, message):
    data = numbered()
    with pytest.raises(ValueError, match=message):
        StepBatches(replace(data, label_log_prior=change(data.label_log_prior)), 4)


# -- in fit --------------------------------------------------------------------
def fitted(data, guide="exact", **options):
    torch.manual_seed(0)
    model = scnf.SemiSupervisedModel(toy_flow("gmm", 2, steps=1), **options)
    model.initialize(data.x, data.y)
    fit(model, data, guide=guide, steps=12, batch_size=16, labelled_batch_size=4, progress=False)
    return model


@pytest.mark.parametrize("guide", ["exact", "em"])
def test_uniform_evidence_trains_the_same_weights(guide):
    plain = moons(evidence=False)
    uniform = replace(plain, label_log_prior=torch.full((60, 2), -math.log(2)))
    one, other = fitted(plain, guide).state_dict(), fitted(uniform, guide).state_dict()
    assert max(relative(other[name], one[name]) for name in one) < 1e-5


def test_evidence_teaches_labels():
    """The evidence says which of the moons a row belongs to. Wrong evidence teaches the wrong labels."""
    data = moons(evidence=False, num_train=200, num_test=100, labels_per_class=1)
    shown = toy("moons", num_train=200, num_test=100, labels_per_class=100, seed=0)
    assert torch.equal(shown.x, data.x)
    right = torch.nn.functional.one_hot(shown.y, 2) * 0.8 + 0.1
    wrong = right.flip(-1)
    fast, log_likelihoods = Optimisation(learning_rate=0.05), []
    for evidence in (right, wrong):
        torch.manual_seed(0)
        model = scnf.SemiSupervisedModel(toy_flow("gmm", 2))
        told = replace(data, label_log_prior=evidence.log())
        model.initialize(told.x, told.y)
        terms = "classification:weight=10,targets=evidence"
        fit(model, told, terms=terms, optimisation=fast, steps=25, batch_size=100, progress=False)
        posterior = model.posterior(data.x_test).logits
        log_likelihoods.append(posterior.gather(1, data.y_test[:, None]).mean().item())
    assert log_likelihoods[0] > log_likelihoods[1] + 0.2
