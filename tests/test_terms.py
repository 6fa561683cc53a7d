"""Training terms: the checks of ``pyro_scnf.testing``, values by hand, and losses with terms."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from dataclasses import dataclass, fields, replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import GUIDES, PRIORS, TERMS
from helpers import counting, each, gradient_error, gradients, perturb, relative, toy_flow
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from trainee import jitter

import pyro_scnf as scnf
from pyro_scnf.datasets import link_neighbours, toy
from pyro_scnf.terms import (
    Agreement,
    Balance,
    Classification,
    Consistency,
    Energy,
    Scored,
    Step,
    TrainingTerm,
    active,
    make_terms,
    needs_of,
    weighted,
)
from pyro_scnf.testing import TERM_CHECKS
from pyro_scnf.training import fit

F64 = torch.float64
BUILT = {name: case.build() for name, case in TERMS.items()}
LABELLED, UNLABELLED = 4, 6


@each(TERM_CHECKS, TERMS)
def test_conformance(name, check):
    TERM_CHECKS[check](TERMS[name])


# -- values by hand ------------------------------------------------------------
def log_posteriors(given, log_prior):
    """log p(k | x_n) as a list of lists, one number at a time."""
    out = []
    for n in range(len(given)):
        prior = log_prior[n] if log_prior.dim() == 2 else log_prior
        joint = [given[n, k] + prior[k] for k in range(given.shape[1])]
        total = torch.stack(joint).exp().sum().log()
        out.append([value - total for value in joint])
    return out


def by_hand(term, step):
    """What a term minimises, in loops over rows and labels."""
    if isinstance(term, Energy):
        return step.energy[0] + term.jacobian * step.energy[1]
    shown = step.unlabelled if step.labelled is None else step.labelled
    k = shown.given.shape[1]
    total = torch.zeros((), dtype=shown.given.dtype)
    if isinstance(term, Classification) and term.targets == "labels":
        rows = log_posteriors(shown.given, shown.log_prior)
        for n, label in enumerate(step.y.tolist()):
            total = total - shown.scale * rows[n][label]
        return total
    u = step.unlabelled
    rows = log_posteriors(u.given, u.log_prior)
    if isinstance(term, Classification):
        for n, row in enumerate(log_posteriors(u.given, u.log_class_probs)):
            for label in range(k):
                total = total - u.scale * step.evidence[n, label].exp() * row[label]
    elif isinstance(term, Agreement):
        one_hot = [[math.log(1.0) if j == y else -math.inf for j in range(k)] for y in step.y.tolist()]
        every = torch.tensor(one_hot, dtype=u.given.dtype).exp().unbind()
        probs = [*every, *(torch.stack(row).exp() for row in rows)]
        for i, j in step.pairs.tolist():
            same = sum(probs[i][a] * probs[j][a] for a in range(k))
            other = sum(probs[i][a] * probs[j][b] for a in range(k) for b in range(k) if a != b)
            likelihood = term.purity * same + (1 - term.purity) / (k - 1) * other
            total = total - u.scale * likelihood.log()
    elif isinstance(term, Balance):
        prior = u.log_prior.detach() if u.log_prior.dim() == 2 else u.log_prior.detach()[None]
        for label in range(k):
            mean = sum(row[label].exp() for row in rows) / len(rows)
            about = (
                sum(p[label].exp() for p in prior) / len(prior) if prior.dim() == 2 else prior[label].exp()
            )
            total = total + u.scale * len(rows) * mean * (mean / about).log()
    elif term.kind == "likelihood":
        for n, row in enumerate(rows):
            best = max(range(k), key=lambda label: row[label].item())
            total = total - step.view.scale * (step.view.common[n] + step.view.given[n, best])
    else:
        for one, other in zip(rows, log_posteriors(step.view.given, step.view.log_prior), strict=True):
            for label in range(k):
                total = total + u.scale * (one[label].exp() - other[label].exp()) ** 2
    return total


@pytest.mark.parametrize("name", TERMS)
def test_values_by_hand(name):
    for step in TERMS[name].steps().values():
        value, expected = BUILT[name].nats(step), by_hand(BUILT[name], step)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)


def test_no_two_members_are_the_same():
    """The loops above tell the members apart: each has a value of its own on the same step."""
    step = TERMS["classification-evidence"].step(True)
    members = [BUILT[name] for name in scnf.TERMS]
    members += [Classification(targets="evidence"), Consistency(kind="probabilities"), Agreement(purity=0.7)]
    values = {round(by_hand(term, step).item(), 9) for term in members}
    assert len(values) == len(members)


def test_evidence_takes_the_place_of_class_probabilities_in_the_posterior():
    given = torch.randn(2, 3, dtype=F64)
    evidence, probs = torch.randn(2, 3, dtype=F64).log_softmax(-1), torch.randn(3, dtype=F64).log_softmax(-1)
    rows = Scored(torch.zeros(2, dtype=F64), given, evidence, log_class_probs=probs)
    assert relative(rows.log_posterior, (given + evidence).log_softmax(-1)) < 1e-14
    assert relative(rows.log_posterior_without_evidence, (given + probs).log_softmax(-1)) < 1e-14
    assert torch.equal(
        Scored(rows.common, given, probs).log_posterior_without_evidence, (given + probs).log_softmax(-1)
    )
    assert len(rows) == 2


def test_agreement_at_weight_one_is_the_likelihood_of_pairs():
    """The labels of a pair have the joint probability A_kl / K. The loss has a constant log K more."""
    flow = toy_flow("flow", dtype=F64)
    model = scnf.SemiSupervisedModel(flow)
    x, y, u = torch.randn(2, 2, dtype=F64), torch.tensor([0, 2]), torch.randn(3, 2, dtype=F64)
    pairs = torch.tensor([[0, 2], [3, 4]])  # a labelled and an unlabelled row, and two unlabelled rows
    loss = scnf.elbo(model, terms=Agreement(purity=0.9))(x, y, u, pairs=pairs)
    joint = torch.full((3, 3), 0.05 / 3, dtype=F64).fill_diagonal_(0.9 / 3)
    known, free = flow.class_log_prob(x), flow.class_log_prob(u)
    mixed = sum(joint[0, k] * (known[0, 0] + free[0, k]).exp() for k in range(3)).log()
    two = sum(joint[k, m] * (free[1, k] + free[2, m]).exp() for k in range(3) for m in range(3)).log()
    alone = known[1, 2] - math.log(3)
    assert relative(loss, -(mixed + two + alone) + 2 * math.log(3)) < 1e-10


# -- in a loss -----------------------------------------------------------------
def problem(term, evidence=False, **sizes):
    """A model with learned class probabilities, a batch in two plates, and what ``term`` needs besides."""
    classes = 3
    flow = toy_flow("flow", classes, dtype=F64)
    if "energy" in term.needs:
        f_w = scnf.flows.ffjord(2, hidden=(4,), solver="rk4:steps=3")
        flow = perturb(scnf.SemiConditionalFlow(f_w, "gmm", classes)).double()
    model = scnf.SemiSupervisedModel(flow, "learnable", **sizes)
    perturb(model.class_probs, 0.5)
    batch = (
        torch.randn(LABELLED, 2, dtype=F64),
        torch.randint(classes, (LABELLED,)),
        torch.randn(UNLABELLED, 2, dtype=F64),
    )
    extra = {}
    if "pairs" in term.needs:
        extra["pairs"] = torch.randint(LABELLED + UNLABELLED, (5, 2))
    if "view" in term.needs:
        extra["view"] = batch[2] + 0.3 * torch.randn(UNLABELLED, 2, dtype=F64)
    if evidence or "evidence" in term.needs:
        extra["label_log_prior"] = torch.randn(UNLABELLED, classes, dtype=F64).log_softmax(-1)
    return model, batch, extra


def table(flow, x):
    """log p(x | y = k), one label at a time."""
    rows = [flow.condition(torch.full((len(x),), k)).log_prob(x) for k in range(flow.num_classes)]
    return torch.stack(rows, -1)


def hand_step(model, y, x, u, extra, labelled_scale, unlabelled_scale):
    """The step of a batch. ``given`` holds all of log p(x | y), and ``common`` nothing."""
    log_probs = model.class_probs.logits.log_softmax(-1)
    evidence = extra.get("label_log_prior")

    def rows(value, scale, prior):
        return Scored(value.new_zeros(len(value)), table(model.flow, value), prior, scale, log_probs)

    about = log_probs if evidence is None else evidence
    unlabelled = rows(u, unlabelled_scale, about)
    view = rows(extra["view"], unlabelled_scale, about) if "view" in extra else None
    labelled = rows(x, labelled_scale, log_probs)
    energy = labelled_scale * energy_of(model.flow, x) + unlabelled_scale * energy_of(model.flow, u)
    return Step(y, 0.0, extra.get("pairs"), labelled, unlabelled, view, evidence, energy)


def energy_of(flow, x):
    """Kinetic and Jacobian energy of the rows of ``x``, 0 without a continuous layer."""
    with scnf.transforms.record_solves(energies=True) as record:
        flow.encode(x)
    return sum((torch.stack([e.kinetic.sum(), e.jacobian.sum()]) for e in record.energies), torch.zeros(2))


def nll_by_hand(step):
    """-log p(x, y) of the labelled rows and -log p(x) of the unlabelled ones."""
    known, free = step.labelled, step.unlabelled
    joint = (known.given + known.log_prior)[torch.arange(len(step.y)), step.y]
    return -known.scale * joint.sum() - free.scale * (free.given + free.log_prior).logsumexp(-1).sum()


def same(model, loss, expected, tolerance=1e-10):
    assert loss.dtype == F64
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert gradient_error(gradients(model, loss), gradients(model, expected)) < tolerance


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sizes", [{}, {"num_labelled": 40, "num_unlabelled": 90}], ids=["batch", "scaled"])
@pytest.mark.parametrize("name", TERMS)
def test_two_plates_by_hand(name, sizes, progress):
    term = BUILT[name]
    model, (x, y, u), extra = problem(term, evidence=progress == 0.3, **sizes)
    step = hand_step(model, y, x, u, extra, *((10.0, 15.0) if sizes else (1.0, 1.0)))
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress / term.until)))
    weight = term.weight * (term.end + (term.start - term.end) * share)
    expected = nll_by_hand(step) + weight * by_hand(term, step)
    objective = scnf.elbo(model, terms=term)
    same(model, objective(x, y, u, **extra, progress=progress), expected)
    assert objective.parts["nll"].item() == pytest.approx(nll_by_hand(step).item(), rel=1e-10)


def one_plate(term, labels):
    """A batch in one plate, of which the first rows have labels."""
    model, (x, y, u), extra = problem(term, num_labelled=80, num_unlabelled=20)
    extra.pop("pairs", None)
    rows = torch.cat([x, u])
    y = {"none": None, "some": torch.cat([y, torch.full((UNLABELLED,), -1)]), "all": y}[labels]
    if labels == "all":
        rows = x
    order = torch.arange(len(rows)).flip(0)  # the rows with labels come last
    return model, rows[order], None if y is None else y[order], extra


ALONE = [name for name, term in BUILT.items() if "pairs" not in term.needs]


@pytest.mark.parametrize("guide", ["exact", "em"])
@pytest.mark.parametrize("name", ALONE)
def test_one_plate_with_unknown_labels_by_hand(name, guide):
    term = replace(BUILT[name], start=1.0)
    model, rows, y, extra = one_plate(term, "some")
    known = y >= 0
    scale = 100 / len(rows)
    given = dict(extra)
    if "label_log_prior" in extra:  # in this form it is that of all rows
        given["label_log_prior"] = torch.randn(len(rows), 3, dtype=F64).log_softmax(-1)
        extra["label_log_prior"] = given["label_log_prior"][~known]
    step = hand_step(model, y[known], rows[known], rows[~known], extra, scale, scale)
    if "label_log_prior" in extra:
        labelled = replace(step.labelled, log_prior=given["label_log_prior"][known])
        step = replace(step, labelled=labelled)
    loss = scnf.elbo(model, GUIDES[guide](model), term)(rows, y, **given)
    same(model, loss, nll_by_hand(step) + term.weight * by_hand(term, step))


@pytest.mark.parametrize(
    ("labels", "names"), [("none", ["balance", "consistency"]), ("all", ["classification"])]
)
def test_one_plate_of_one_kind_of_rows_by_hand(labels, names):
    for name in names:
        term = BUILT[name]
        model, rows, y, extra = one_plate(term, labels)
        if "view" in extra:
            extra["view"] = rows + 0.3 * torch.randn_like(rows)
        scale = 100 / len(rows)
        step = hand_step(model, y, rows, rows, extra, scale, scale)
        plain = scnf.elbo(model)(rows, y)
        same(model, scnf.elbo(model, terms=term)(rows, y, **extra), plain + by_hand(term, step))


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", TERMS)
def test_the_guide_makes_no_difference_to_a_term(name, guide):
    term = replace(BUILT[name], start=1.0)
    model, (x, y, u), extra = problem(term, num_labelled=40, num_unlabelled=90)
    step = hand_step(model, y, x, u, extra, 10.0, 15.0)
    evidence = {key: value for key, value in extra.items() if key == "label_log_prior"}
    made = GUIDES[guide](model)
    losses = []
    for objective, given in ((scnf.elbo(model, made, term), extra), (scnf.elbo(model, made), evidence)):
        torch.manual_seed(0)
        losses.append(objective(x, y, u, **given))
    same(model, losses[0], losses[1] + term.weight * by_hand(term, step))


@pytest.mark.parametrize("guide", ["exact", "em", "em-sample", "em-hard"])
@pytest.mark.parametrize("form", ["two plates", "one plate"])
def test_all_terms_together_cost_one_pass(guide, form):
    terms = [Classification(), Agreement(), Balance(), Consistency(), Classification(targets="evidence")]
    if form == "one plate":
        terms.pop(1)
    every = Consistency(kind="probabilities")
    object.__setattr__(every, "needs", frozenset().union(*(term.needs for term in terms)))
    model, (x, y, u), extra = problem(every)
    args = (x, y, u)
    if form == "one plate":
        args = torch.cat([x, u]), torch.cat([y, torch.full((UNLABELLED,), -1)])
        extra["label_log_prior"] = torch.randn(10, 3, dtype=F64).log_softmax(-1)
    objective = scnf.elbo(model, GUIDES[guide](model), terms)
    with counting(model.flow.transform, "inverse_and_ladj") as passes:
        loss = objective(*args, **extra)
    assert passes.rows == [LABELLED + 2 * UNLABELLED]
    assert len(objective.parts) == 1 + len(terms)
    assert relative(sum(objective.parts.values()), loss.detach()) < 1e-14
    assert not any(part.requires_grad for part in objective.parts.values())


def test_terms_of_weight_zero_need_nothing():
    """A term that begins at 0 is not computed at the beginning: no pass for its view, and no view at all."""
    term = Consistency(2.0, start=0.0)
    model, (x, y, u), extra = problem(term)
    objective = scnf.elbo(model, terms=term)
    assert needs_of(active(objective.terms, 0.0)) == frozenset()
    assert needs_of(active(objective.terms, 0.5)) == term.needs
    with counting(model.flow.transform, "inverse_and_ladj") as passes:
        assert torch.equal(objective(x, y, u), scnf.elbo(model)(x, y, u))
        assert list(objective.parts) == ["nll"]
        assert torch.equal(objective(x, y, u, **extra), scnf.elbo(model)(x, y, u))
    assert passes.rows == [LABELLED + UNLABELLED] * 4
    with pytest.raises(ValueError, match="terms: consistency needs a second view of the unlabelled rows"):
        objective(x, y, u, progress=0.5)


def test_weighted_and_parts():
    step = TERMS["balance"].any_step()
    terms = make_terms(["balance:weight=3", Balance(0.0), "classification:start=0,end=2"])
    values = weighted(terms, replace(step, progress=1.0))
    assert list(values) == ["balance", "classification"]
    assert values["balance"] == 3 * Balance().nats(step)
    assert values["classification"] == 2 * Classification().nats(step)


EVERY = ["classification:weight=3", "agreement", "balance", "consistency", "consistency:kind=probabilities"]


@pytest.mark.parametrize("make", [scnf.elbo, scnf.with_terms])
def test_losses_with_terms_pickle_and_copy(make):
    """Another process gets them by pickle. Copies have the loss, and hold no batch."""
    model, (x, y, u), _ = problem(Balance())
    batch = x.repeat(100, 1), y.repeat(100), u.repeat(100, 1)  # each of them takes more than 3000 bytes
    extra = {"pairs": torch.tensor([[0, 5], [6, 7]]), "view": batch[2] + 0.1}
    made = make(model, terms=EVERY)

    def loss(form):
        if make is scnf.elbo:
            return form(*batch, **extra)
        own = TraceEnum_ELBO(max_plate_nesting=1)
        return own.differentiable_loss(form, scnf.exact_guide, *batch, **extra)

    size = len(pickle.dumps(made))
    expected = loss(made)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert relative(loss(twin), expected) < 1e-12
    assert len(pickle.dumps(made)) < size + 3000  # the numbers of ``parts``, and Pyro's marks on parameters


def test_terms_under_autocast():
    """Networks may run in bfloat16. The terms themselves, and their sum, are in float32."""
    model, batch, _ = problem(Balance())
    model.float()
    x, y, u = batch[0].float(), batch[1], batch[2].float()
    extra = {"pairs": torch.tensor([[0, 5], [6, 7]]), "view": u + 0.1}
    objective = scnf.elbo(model, terms=EVERY)
    expected = objective(x, y, u, **extra)
    plain = objective.parts
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(x, y, u, **extra)
    assert loss.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in objective.parts.values())
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert all(objective.parts[name].item() == pytest.approx(plain[name].item(), abs=1.0) for name in plain)


# -- what a loss refuses -------------------------------------------------------
MISSING = {
    "pairs": "pairs of rows: give pairs",
    "view": "a second view of the unlabelled rows: give view, or augment",
    "label_log_prior": "evidence about the unlabelled rows: give label_log_prior",
}


@pytest.mark.parametrize("name", TERMS)
def test_each_missing_part_is_named(name):
    term = replace(BUILT[name], start=1.0)
    model, (x, y, u), extra = problem(term)
    objective = scnf.elbo(model, terms=term)
    objective(x, y, u, **extra)
    for part in extra:
        with pytest.raises(ValueError, match=f"terms: {term.name} needs {MISSING[part]}"):
            objective(x, y, u, **{key: value for key, value in extra.items() if key != part})
    alone = {key: value for key, value in extra.items() if key not in ("pairs", "view")}
    if "labelled" in term.needs:
        with pytest.raises(ValueError, match=f"terms: {term.name} needs labelled rows: give x and y"):
            objective(u)
    if "unlabelled" in term.needs:
        if alone:
            alone["label_log_prior"] = torch.randn(LABELLED, 3, dtype=F64).log_softmax(-1)
        with pytest.raises(ValueError, match=f"terms: {term.name} needs "):
            objective(x, y, **alone)
    if term.needs == {"unlabelled"}:
        with pytest.raises(ValueError, match=f"terms: {term.name} needs unlabelled rows"):
            objective(x, y)


def test_pairs_and_views_that_no_term_uses():
    model, (x, y, u), extra = problem(Consistency())
    view, pairs = extra["view"], torch.tensor([[0, 5]])
    with pytest.raises(ValueError, match=r"pairs: given, but no training term uses them \(terms: none"):
        scnf.elbo(model)(x, y, u, pairs=pairs)
    with pytest.raises(ValueError, match=r"view: given, but no training term uses them \(terms: balance\)"):
        scnf.elbo(model, terms="balance")(x, y, u, view=view)
    with pytest.raises(ValueError, match="pairs: given, but no training term uses"):
        scnf.with_terms(model, "balance")(x, y, u, pairs=pairs)
    with pytest.raises(ValueError, match=r"pairs are for \(x, y, x_unlabelled\)"):
        scnf.elbo(model, terms="agreement")(torch.cat([x, u]), pairs=pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"Agreement: pairs has shape \(3,\)"),
        (torch.zeros(3, 2), "dtype torch.float32"),
        (torch.tensor([[0, 10]]), r"Agreement: pairs holds 0..10, expected rows 0..9"),
        (torch.tensor([[-1, 2]]), r"pairs holds -1..2"),
        (torch.zeros(3, 2, dtype=torch.bool), "dtype torch.bool"),
        (torch.zeros(3, 2, dtype=torch.uint8), "dtype torch.uint8"),
        ([[0, 5]], "pairs is a list, expected a tensor"),
    ],
)
def test_pairs_that_are_none(pairs, message):
    model, batch, _ = problem(Agreement())
    with pytest.raises(ValueError, match=message):
        scnf.elbo(model, terms="agreement")(*batch, pairs=pairs)


@pytest.mark.parametrize("view", ["rows", "shape", "nan"])
def test_views_that_are_none(view):
    model, (x, y, u), extra = problem(Consistency())
    good = extra["view"]
    wrong, message = {
        "rows": (good[1:], "view: 5 rows, expected one for each of 6 unlabelled rows"),
        "shape": (good[:, :1], "view has shape"),
        "nan": (good / torch.zeros(()), "view holds 12 NaN or infinite values"),
    }[view]
    with pytest.raises(ValueError, match=message):
        scnf.elbo(model, terms="consistency")(x, y, u, view=wrong)


@pytest.mark.parametrize("progress", [-0.1, 1.5, math.nan])
def test_progress_is_a_share(progress):
    model, batch, _ = problem(Balance())
    for call in (scnf.elbo(model), scnf.elbo(model, terms="balance"), scnf.with_terms(model, "balance")):
        with pytest.raises(ValueError, match=f"progress={progress}: expected a finite number from 0 to 1"):
            call(*batch, progress=progress)


def test_weights_of_rows_go_only_with_terms_of_other_rows():
    model, (x, y, u), _ = problem(Balance())
    guide, weights = scnf.EMGuide(model), torch.rand(UNLABELLED, dtype=F64)
    plain = scnf.elbo(model, guide)(x, y, u, weights=weights)
    loss = scnf.elbo(model, guide, Classification(2.0))(x, y, u, weights=weights)
    log_p = (table(model.flow, x) + model.class_probs.log_probs).log_softmax(-1)
    same(model, loss, plain - 2 * log_p[torch.arange(LABELLED), y].sum())
    for terms in ("balance", ["classification", "balance"]):
        with pytest.raises(ValueError, match="rows that the training terms balance see"):
            scnf.elbo(model, guide, terms)(x, y, u, weights=weights)
    with pytest.raises(ValueError, match="rows that the training terms classification see"):
        scnf.elbo(model, guide, "classification")(x, y, weights=torch.ones(LABELLED, dtype=F64))
    assert scnf.elbo(model, guide, "balance:weight=0")(x, y, u, weights=weights).isfinite()


def test_a_random_prior_has_no_tables():
    flow = toy_flow("gmm", dtype=F64)
    to_pyro_module_(flow.prior)
    flow.prior.loc = PyroSample(dist.Normal(torch.zeros(3, 2, dtype=F64), 1.0).to_event(2))
    model = scnf.SemiSupervisedModel(flow)
    with pytest.raises(ValueError, match=r"terms: balance: the prior or p.y. has a PyroSample"):
        scnf.elbo(model, terms="balance")(torch.randn(5, 2, dtype=F64))
    model = scnf.SemiSupervisedModel(toy_flow("gmm", dtype=F64), "learnable")
    to_pyro_module_(model.class_probs)
    model.class_probs.logits = PyroSample(dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"terms: balance: the prior or p.y. has a PyroSample"):
        scnf.elbo(model, terms="balance")(torch.randn(5, 2, dtype=F64))


@pytest.mark.parametrize("progress", [None, 0.0, 0.5, 1.0])
def test_progress_reaches_terms_that_are_part_of_the_model(progress):
    """``elbo`` of a model with terms is ``elbo`` of the model and these terms."""
    model, terms = scnf.SemiSupervisedModel(toy_flow("gmm", dtype=F64)), "classification:weight=5,end=0.1"
    x, u, y = torch.randn(3, 2, dtype=F64), torch.randn(4, 2, dtype=F64), torch.tensor([0, 1, 2])
    given = {} if progress is None else {"progress": progress}
    inside = scnf.elbo(scnf.with_terms(model, terms))
    expected = scnf.elbo(model, terms=terms)(x, y, u, **given)
    assert inside(x, y, u, **given).item() == pytest.approx(expected.item(), rel=1e-12)
    assert list(inside.parts) == ["nll", "classification"]
    paired = scnf.elbo(scnf.with_terms(model, "agreement"))
    assert paired(x, y, u, pairs=torch.tensor([[3, 4]]), **given).isfinite()


def test_terms_need_a_semi_supervised_model():
    def model(x):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)

    for make in (scnf.elbo, scnf.with_terms):
        with pytest.raises(ValueError, match="they need a SemiSupervisedModel, and the model is a function"):
            make(model, terms="balance")
    assert scnf.elbo(model, terms=None)(torch.zeros(3)).item() == pytest.approx(1.5 * math.log(2 * math.pi))


def test_a_term_that_needs_an_unknown_part():
    class Curious(Balance):
        needs = frozenset({"neighbours"})

    model, batch, _ = problem(Balance())
    with pytest.raises(ValueError, match="terms: curious needs 'neighbours', expected one of y, pairs, "):
        scnf.elbo(model, terms=Curious)(*batch)


def test_terms_need_observed_data():
    model, _, _ = problem(Balance())
    with pytest.raises(ValueError, match="terms: balance: nothing is observed, expected x"):
        scnf.elbo(model, terms="balance")(n=3)
    trained = scnf.with_terms(model, "balance")
    for args in ((), (None,), (None, torch.tensor([0, 1, 1]))):
        given = {} if len(args) == 2 else {"n": 3}
        assert trained(*args, **given).shape == (3, 2)
    with pytest.raises(ValueError, match="nothing observed; give n, the number of rows to draw"):
        trained(None)


# -- options -------------------------------------------------------------------
@pytest.mark.parametrize("option", ["weight", "start", "end", "until"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "much", None])
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=f"Balance: {option}={value!r}: expected "):
        Balance(**{option: value})


def test_more_options_out_of_range():
    for until in (0.0, 1.01):
        with pytest.raises(ValueError, match=f"Balance: until={until}: expected a finite number above 0"):
            Balance(until=until)
    for purity in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(
            ValueError, match=f"Agreement: purity={purity}: expected a finite number above 0 and below 1"
        ):
            Agreement(purity=purity)
    with pytest.raises(ValueError, match="Classification: targets='label': expected 'labels' or 'evidence'"):
        Classification(targets="label")
    with pytest.raises(ValueError, match="Consistency: kind='mse': expected 'likelihood' or 'probabilities'"):
        Consistency(kind="mse")
    with pytest.raises(NotImplementedError, match="TrainingTerm does not define nats"):
        TrainingTerm().nats(Step())


def test_options_of_numpy_are_numbers_of_python():
    """A number of NumPy prints in another way, and a run would then not be resumed."""
    term = Agreement(np.float32(2.0), end=np.int64(0), purity=np.float64(0.5))
    assert repr(term) == "Agreement(weight=2.0, start=1.0, end=0.0, until=1.0, purity=0.5)"


def test_weights_over_training():
    term = Balance(4.0, start=0.5, end=2.0, until=0.5)
    weights = [term.weight_at(progress) for progress in (0.0, 0.125, 0.25, 0.5, 0.9, 1.0)]
    quarter = 8.0 - 6.0 * 0.5 * (1 + math.cos(math.pi / 4))
    assert weights == pytest.approx([2.0, quarter, 5.0, 8.0, 8.0, 8.0], abs=1e-14)
    assert Balance(3.0).weight_at(0.7) == 3.0


# -- ways to name terms --------------------------------------------------------
@dataclass(frozen=True)
class OwnTerm(TrainingTerm):
    power: float = 2.0

    needs = frozenset({"unlabelled"})

    def nats(self, step):
        return step.unlabelled.scale * step.unlabelled.log_posterior.exp().pow(self.power).sum()


def sharp():
    return OwnTerm(5.0, power=3.0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, {}),
        ([], {}),
        ("balance", {"balance": Balance()}),
        ("agreement:weight=300,purity=0.9", {"agreement": Agreement(300.0, purity=0.9)}),
        ("classification:targets=evidence", {"classification": Classification(targets="evidence")}),
        ({"name": "consistency", "start": 0, "until": 0.5}, {"consistency": Consistency(start=0, until=0.5)}),
        (Balance, {"balance": Balance()}),
        (sharp, {"ownterm": OwnTerm(5.0, power=3.0)}),
        ({"name": OwnTerm, "power": 1.5}, {"ownterm": OwnTerm(power=1.5)}),
        ("test_terms.OwnTerm:weight=2,power=4", {"ownterm": OwnTerm(2.0, power=4)}),
        (OwnTerm(3.0), {"ownterm": OwnTerm(3.0)}),
        (["balance", OwnTerm(3.0)], {"balance": Balance(), "ownterm": OwnTerm(3.0)}),
        ((spec for spec in ("balance", "agreement")), {"balance": Balance(), "agreement": Agreement()}),
        (
            [Balance(1.0), "balance:weight=2", {"name": "balance", "weight": 3}],
            {"balance": Balance(1.0), "balance_2": Balance(2.0), "balance_3": Balance(3.0)},
        ),
    ],
)
def test_ways_to_name_terms(spec, expected):
    terms = make_terms(spec)
    assert list(terms) == list(expected)
    assert terms == expected


def test_made_terms_can_be_made_again():
    terms = make_terms(["balance", "balance:weight=2"])
    assert make_terms(terms.values()) == terms


def test_names_that_logs_use_for_something_else():
    class NLL(OwnTerm):
        pass

    class Loss(OwnTerm):
        pass

    model, batch, _ = problem(Balance())
    objective = scnf.elbo(model, terms=[NLL, Loss])
    loss = objective(*batch)
    assert list(objective.parts) == ["nll", "nll_2", "loss_2"]
    assert relative(sum(objective.parts.values()), loss.detach()) < 1e-14


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("balanced", r"terms='balanced': expected one of 'agreement', 'balance', "),
        (
            "balance:purity=0.9",
            r"terms='balance:purity=0.9': no option 'purity', expected one of weight, start, end, until$",
        ),
        ("balance:weight", "terms option 'weight': expected key=value pairs"),
        ("balance:weight=-1", "Balance: weight=-1: expected a finite number from 0 to"),
        ("balance:weight=1,weight=2", "terms option 'weight': given twice"),
        ({"weight": 2}, "expected a key 'name'"),
        (dict, r"makes a dict, expected a TrainingTerm"),
        ([3], "terms=3: expected a word, a dict, a class or a function"),
        ("math.pi", "terms='math.pi': .*got a float"),
        ("nowhere.Term", "terms='nowhere.Term': expected one of .* or the import path of a class"),
    ],
)
def test_specs_that_are_none(spec, message):
    with pytest.raises(ValueError, match=message):
        make_terms(spec)


# -- under Pyro's own SVI ------------------------------------------------------
@pytest.mark.parametrize("guide", ["exact", "em", "em-hard", "em-tempered"])
@pytest.mark.parametrize("name", TERMS)
def test_factors_give_the_same_loss_under_pyro(name, guide):
    term = BUILT[name]
    model, batch, extra = problem(term, evidence=True, num_labelled=40, num_unlabelled=90)
    made, own = GUIDES[guide](model), TraceEnum_ELBO(max_plate_nesting=1)
    factors = scnf.with_terms(model, [term, "balance:weight=2"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*invalid dependency")
        loss = own.differentiable_loss(factors, made, *batch, **extra, progress=0.3)
    expected = scnf.elbo(model, made, [term, "balance:weight=2"])(*batch, **extra, progress=0.3)
    same(model, loss, expected)


def test_svi_trains_with_terms():
    term = Consistency(2.0, start=0.0)
    model, batch, extra = problem(term)
    svi = SVI(
        scnf.with_terms(model, term),
        scnf.exact_guide,
        pyro.optim.Adam({"lr": 0.01}),
        TraceEnum_ELBO(max_plate_nesting=1),
    )
    first = scnf.elbo(model, terms=term)(*batch, **extra, progress=1.0).item()
    losses = [svi.step(*batch, **extra, progress=1.0) for _ in range(20)]
    assert losses[0] == pytest.approx(first, rel=1e-10)
    assert losses[-1] < losses[0] - 1


def test_factors_are_no_part_of_the_generative_model():
    term = Agreement(50.0)
    model, batch, extra = problem(term)
    factors = scnf.with_terms(model, [term, "balance"])

    def observed(*args):
        return factors(*args, **extra)

    for site in ("y_unlabelled", "y"):
        joint = scnf.enumerate_labels(observed, batch, site=site)
        assert torch.equal(joint, scnf.enumerate_labels(model, batch, site=site))
    trace = pyro.poutine.trace(observed).get_trace(*batch)
    assert [name for name, site in trace.nodes.items() if site.get("infer", {}).get("training_only")] == [
        "agreement",
        "balance",
    ]
    assert factors(n=4).shape == (4, 2)  # nothing is observed: the model draws, and terms say nothing


# -- in fit --------------------------------------------------------------------
def names_and_keys(model):
    return {name: set(vars(module)) for name, module in model.named_modules()}, list(model.state_dict())


@pytest.mark.parametrize("name", TERMS)
def test_fit_uses_the_weight_of_the_moment_and_leaves_nothing_behind(name):
    seen = []

    class Recorded(type(BUILT[name])):
        def __call__(self, step):
            value = super().__call__(step)
            seen.append((step.progress, value.item(), self.nats(step).item()))
            return value

    term, steps = Recorded(*(getattr(BUILT[name], field.name) for field in fields(BUILT[name]))), 5
    data = toy("moons", num_train=40, num_test=4, labels_per_class=2, seed=0)
    if "pairs" in term.needs:
        data = link_neighbours(data, 2)
    if "evidence" in term.needs:
        data = replace(data, label_log_prior=torch.randn(40, 2).log_softmax(-1))
    flow = toy_flow("gmm", 2)
    if "energy" in term.needs:
        f_w = scnf.flows.ffjord(2, hidden=(4,), solver="rk4:steps=3")
        flow = scnf.SemiConditionalFlow(f_w, "gmm", 2).float()
    model = scnf.SemiSupervisedModel(flow)
    model.initialize(data.x, data.y)
    before = names_and_keys(model)
    fit(model, data, terms=term, steps=steps, batch_size=12, augment=jitter, progress=False)
    assert names_and_keys(model) == before
    active = [k / steps for k in range(steps) if term.weight_at(k / steps) > 0]
    assert [progress for progress, _, _ in seen] == pytest.approx(active)
    assert active[-1] == 0.8
    for progress, value, nats in seen:
        assert value == pytest.approx(term.weight_at(progress) * nats, rel=1e-6)


def test_priors_of_every_kind_give_tables():
    """A term sees the same tables whatever the prior."""
    for name in PRIORS:
        case = PRIORS[name]
        if case.event_shape != (3,):
            continue
        f_w = scnf.flows.glow((3,), steps=1, width=6, blocks=1)
        flow = perturb(scnf.SemiConditionalFlow(f_w, case.build())).to(F64)
        model = scnf.SemiSupervisedModel(flow, "learnable")
        x, u = torch.randn(4, 3, dtype=F64), torch.randn(6, 3, dtype=F64)
        y, k = torch.arange(4) % flow.num_classes, flow.num_classes
        view = u + 0.1
        terms = [Classification(), Balance(3.0), Consistency()]
        loss = scnf.elbo(model, terms=terms)(x, y, u, view=view)
        log_probs = torch.full((k,), -math.log(k), dtype=F64) + 0 * model.class_probs.logits
        step = hand_step(model, y, x, u, {"view": view}, 1.0, 1.0)
        assert relative(step.labelled.log_prior, log_probs) < 1e-12
        same(model, loss, nll_by_hand(step) + sum(term.weight * by_hand(term, step) for term in terms))


# -- what a review found -------------------------------------------------------
def test_a_view_that_is_no_other_view():
    model, (x, y, u), _ = problem(Consistency())
    for kind in ("likelihood", "probabilities"):
        with pytest.raises(ValueError, match="view: it holds the unlabelled rows unchanged"):
            scnf.elbo(model, terms=Consistency(kind=kind))(x, y, u, view=u.clone())
    with pytest.raises(ValueError, match="view: it perturbs the unlabelled rows, and there are none"):
        scnf.elbo(model, terms="consistency:start=0")(x, y, view=x + 0.1)


@dataclass(frozen=True)
class Returns(TrainingTerm):
    kind: str = "rows"
    needs = frozenset({"unlabelled"})

    def nats(self, step):
        return {"rows": step.unlabelled.common, "float": 1.0}[self.kind]


def test_nats_that_are_no_scalar_are_named():
    model, batch, _ = problem(Balance())
    with pytest.raises(ValueError, match=r"nats of returns returns a \(6,\), expected a scalar tensor"):
        scnf.elbo(model, terms=Returns())(*batch)
    with pytest.raises(ValueError, match="nats of returns returns a float, expected a scalar tensor"):
        scnf.elbo(model, terms=Returns(kind="float"))(*batch)


def test_the_terms_of_a_loss_can_be_given_to_another():
    model, batch, _ = problem(Balance())
    loss = scnf.elbo(model, terms=["classification", "balance", "classification:weight=2"])
    again = scnf.elbo(model, terms=loss.terms)
    assert list(again.terms.items()) == list(loss.terms.items())
    assert torch.equal(again(*batch), loss(*batch))
    assert scnf.make_terms({}) == {}


def test_terms_from_a_generator():
    model, batch, _ = problem(Balance())
    names = ["classification", "balance"]
    assert list(scnf.elbo(model, terms=(name for name in names)).terms) == names
    with pytest.raises(ValueError, match="terms: the model has terms already; give all of them in one place"):
        scnf.elbo(scnf.with_terms(model, "balance"), terms=(name for name in names))
    kept = scnf.elbo(scnf.with_terms(model, "balance"), terms=(name for name in ()))
    assert list(kept.terms) == ["balance"]
    assert torch.equal(kept(*batch), scnf.elbo(model, terms="balance")(*batch))


def test_a_model_of_ones_own_may_have_more_arguments_and_another_score():
    class Own(scnf.SemiSupervisedModel):
        def forward(self, *args, shift=0.0, **kwargs):
            pyro.factor("shift", torch.as_tensor(shift, dtype=F64))
            return super().forward(*args, **kwargs)

        def score(self, x, **options):
            rows = super().score(x, **options)
            return replace(rows, given=2 * rows.given)

    model, (x, y, u), _ = problem(Balance())
    own = Own(model.flow)
    plain = scnf.elbo(scnf.SemiSupervisedModel(model.flow))(x, y, u)
    value = scnf.elbo(own, terms="classification")(x, y, u, shift=3.0)
    log_p = (2 * table(model.flow, x) + own.class_probs.log_probs).log_softmax(-1)
    assert relative(value, plain - 3.0 - log_p[torch.arange(LABELLED), y].sum()) < 1e-10


def test_a_model_with_terms_has_its_parameters():
    model, _, _ = problem(Balance())
    own = list(scnf.elbo(scnf.with_terms(model, "balance")).parameters())
    assert {id(p) for p in own} == {id(p) for p in model.parameters()}
