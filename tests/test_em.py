"""EM-SGD: when its gradient equals that of the exact marginal, and what it computes otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from cases import GUIDES, PRIORS
from helpers import gradient_error, gradients, perturb, toy_flow
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from test_exactness import F64, batch, check, flow_with, joint_by_hand

import pyro_scnf as scnf


@pytest.fixture
def problem():
    """A model with learnable class probabilities, a labelled batch, and an unlabelled one."""
    flow = toy_flow("flow", dtype=F64)
    model = scnf.SemiSupervisedModel(flow, "learnable")
    perturb(model.class_probs, 0.5)
    x, y = batch(flow, 4, F64)
    other, _ = batch(flow, 6, F64)
    return model, x, y, other


def joint(model, x):
    return joint_by_hand(model.flow, x, model.class_probs.logits)


# -- with current parameters: Fisher's identity -------------------------------------
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (F64, 1e-10)])
@pytest.mark.parametrize("prior", PRIORS)
def test_gradient_equals_that_of_the_exact_marginal(prior, dtype, tolerance):
    flow = flow_with(prior, dtype)
    model = scnf.SemiSupervisedModel(flow, "learnable")
    perturb(model.class_probs, 0.5)
    x, _ = batch(flow, 6, dtype)
    exact, em = scnf.elbo(model)(x), scnf.elbo(model, scnf.EMGuide(model))(x)
    assert em.item() == pytest.approx(exact.item(), rel=tolerance)
    assert gradient_error(gradients(model, em), gradients(model, exact)) < tolerance


@pytest.mark.parametrize("form", ["partly", "labelled", "two plates", "scaled"])
def test_gradient_equality_with_labels(problem, form):
    model, x, y, other = problem
    if form == "scaled":
        model = scnf.SemiSupervisedModel(
            model.flow,
            "learnable",
            num_labelled=40,
            num_unlabelled=600,
            labelled_weight=3.0,
        )
    args = {
        "partly": (torch.cat([x, other]), torch.cat([y, torch.full((6,), -1)])),
        "labelled": (x, y),
        "two plates": (x, y, other),
        "scaled": (x, y, other),
    }[form]
    terms = "classification:weight=0.2" if form == "scaled" else ()
    exact = scnf.elbo(model, terms=terms)(*args)
    check(model, scnf.elbo(model, scnf.EMGuide(model), terms)(*args), exact, 1e-10)


def test_posterior_adds_up_to_one_at_any_size_of_the_logits():
    """With raw float32 logits of tens of thousands of nats, a ``Categorical`` errs by one percent."""
    flow = toy_flow("gmm:covariance=shared,scale=0.002")
    with torch.no_grad():  # means so close that no label has probability 1
        flow.prior.loc.copy_(5e-6 * torch.randn(3, 2))
    x = torch.randn(64, 2)
    assert flow.class_log_prob(x).abs().mean() > 5e4
    guide = scnf.EMGuide(scnf.SemiSupervisedModel(flow))
    site = poutine.trace(poutine.enum(guide, first_available_dim=-2)).get_trace(x).nodes["y"]
    q = site["fn"].log_prob(site["value"]).exp()
    assert ((q > 0.01) & (q < 0.99)).any()
    assert (q.sum(0) - 1).abs().max() < 1e-5


def test_a_guide_of_another_model_is_refused():
    """Its posteriors would be those of the other flow. A second model around the same flow is no other."""
    model, other = (scnf.SemiSupervisedModel(toy_flow()) for _ in range(2))
    guide = scnf.EMGuide(other)
    scnf.elbo(scnf.SemiSupervisedModel(other.flow), guide)
    for use in (
        lambda: scnf.elbo(model, guide),
        lambda: scnf.elbo(scnf.with_terms(model, "balance"), guide),
        lambda: scnf.models.update_after_step(model, guide),
    ):
        with pytest.raises(ValueError, match="guide: this EMGuide is of a model with another flow"):
            use()


def test_precision_of_large_log_probabilities():
    flow = toy_flow("gmm:scale=0.02")
    model = scnf.SemiSupervisedModel(flow)
    x = torch.randn(64, 2)
    assert flow.class_log_prob(x).abs().mean() > 1000
    exact, em = scnf.elbo(model)(x), scnf.elbo(model, scnf.EMGuide(model))(x)
    assert em.item() == pytest.approx(exact.item(), rel=1e-5)
    assert gradient_error(gradients(model, em), gradients(model, exact)) < 1e-3


# -- with a lagging posterior ----------------------------------------------------------
def q_by_hand(model, x, temperature=1.0):
    return (joint(model, x).detach().log_softmax(-1) / temperature).log_softmax(-1)


@pytest.mark.parametrize("form", ["unlabelled", "two plates"])
def test_lagged_em_has_the_gradient_of_q(problem, form):
    """The loss is -Q(theta, theta_old) - H(q), with q from the old parameters. It exceeds -log p(x)."""
    model, x, y, other = problem
    guide = scnf.EMGuide(model, decay=0.9)
    log_q = q_by_hand(model, other)
    perturb(model, 0.1)
    hand = -(log_q.exp() * (joint(model, other) - log_q)).sum()
    args = (other,)
    if form == "two plates":
        hand = hand - joint(model, x).gather(1, y[:, None]).sum()
        args = (x, y, other)
    loss = scnf.elbo(model, guide)(*args)
    check(model, loss, hand, 1e-10)
    exact = scnf.elbo(model)(*args)
    assert loss > exact
    assert gradient_error(gradients(model, loss), gradients(model, exact)) > 1e-3
    assert all(p.grad is None for p in guide.old.parameters())


def test_a_copied_posterior_is_current_after_update(problem):
    model, _, _, other = problem
    guide = scnf.EMGuide(model, decay=0.0)
    perturb(model, 0.1)
    exact = scnf.elbo(model)(other)
    assert scnf.elbo(model, guide)(other) > exact
    guide.update()
    check(model, scnf.elbo(model, guide)(other), exact, 1e-10)


def test_update_without_decay_does_nothing(problem):
    model, _, _, other = problem
    guide = scnf.EMGuide(model)
    before = scnf.elbo(model, guide)(other).item()
    guide.update()
    assert scnf.elbo(model, guide)(other).item() == before
    assert guide.old is None


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_tempered_posterior(problem, temperature):
    model, _, _, other = problem
    log_q = q_by_hand(model, other, temperature)
    hand = -(log_q.exp() * (joint(model, other) - log_q)).sum()
    loss = scnf.elbo(model, scnf.EMGuide(model, temperature=temperature))(other)
    check(model, loss, hand, 1e-10)


# -- sampled and hard assignment ---------------------------------------------------------
def test_sampled_estep_is_unbiased(problem):
    """The loss is -log p(x) for every drawn label. The gradient is right on average."""
    model, _, _, other = problem
    exact = scnf.elbo(model)(other)
    target = torch.cat([g.flatten() for g in gradients(model, exact).values()])
    loss_of, draws = scnf.elbo(model, scnf.EMGuide(model, "sample")), []
    for _ in range(150):
        loss = loss_of(other)
        assert loss.item() == pytest.approx(exact.item(), rel=1e-10)
        draws.append(torch.cat([g.flatten() for g in gradients(model, loss).values()]))
    draws = torch.stack(draws)
    spread = draws.std(0).norm() / math.sqrt(len(draws))
    assert draws.std(0).norm() > 0.01 * target.norm()  # the gradient does vary between draws
    assert (draws.mean(0) - target).norm() < 4 * spread


@pytest.mark.parametrize("form", ["partly", "two plates"])
def test_sampled_estep_with_labels(problem, form):
    model, x, y, other = problem
    args = (x, y, other)
    if form == "partly":
        args = (torch.cat([x, other]), torch.cat([y, torch.full((6,), -1)]))
    exact = scnf.elbo(model)(*args).item()
    guide = scnf.EMGuide(model, "sample")
    assert scnf.elbo(model, guide)(*args).item() == pytest.approx(exact, rel=1e-10)
    assert Trace_ELBO().loss(model, guide, *args) == pytest.approx(exact, rel=1e-10)


def test_memory_of_the_sampled_estep_does_not_grow_with_the_number_of_classes():
    def saved(estep, classes):
        flow = toy_flow("flow", classes)
        # The length of one-hot embeddings is K. Fix it, so that the networks have the same size.
        prior = {"name": "flow", "steps": 1, "width": 6, "blocks": 1, "embedding_dim": 4}
        model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(flow.transform, prior, classes))
        guide = scnf.exact_guide if estep is None else scnf.EMGuide(model, estep)
        total = 0

        def pack(t):
            nonlocal total
            total += t.numel() if t.shape[:1] and t.numel() >= 64 else 0
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            scnf.elbo(model, guide)(torch.randn(64, 2))
        return total

    few, many = saved("sample", 3), saved("sample", 60)
    assert many < 1.1 * few
    assert saved("enumerate", 60) > 4 * saved("enumerate", 3)
    assert saved(None, 60) > 4 * many


def test_hard_assignment(problem):
    """Each row takes its most probable label, so the loss is -max_k log p(x, y = k)."""
    model, x, y, other = problem
    best = joint(model, other).max(-1).values.sum()
    loss = scnf.elbo(model, scnf.EMGuide(model, "hard"))(other)
    check(model, loss, -best, 1e-10)
    known = joint(model, x).gather(1, y[:, None]).sum()
    args = (torch.cat([x, other]), torch.cat([y, torch.full((6,), -1)]))
    check(model, scnf.elbo(model, scnf.EMGuide(model, "hard"))(*args), -best - known, 1e-10)


@pytest.mark.parametrize(("dtype", "default"), [(torch.bfloat16, torch.float32), (torch.float32, F64)])
def test_hard_assignment_in_another_dtype_than_the_default(dtype, default):
    model = scnf.SemiSupervisedModel(toy_flow("gmm", dtype=dtype))
    x = torch.randn(4, 2).to(dtype)
    torch.set_default_dtype(default)
    assert scnf.elbo(model, scnf.EMGuide(model, "hard"))(x).dtype == dtype


# -- weights of single rows ---------------------------------------------------------------------
@pytest.mark.parametrize("estep", ["enumerate", "sample"])
def test_weights_of_rows(problem, estep):
    model, _, _, other = problem
    w = torch.rand(6, dtype=F64) * 3
    hand = -(w * joint(model, other).logsumexp(-1)).sum()
    loss = scnf.elbo(model, scnf.EMGuide(model, estep))(other, weights=w)
    assert loss.item() == pytest.approx(hand.item(), rel=1e-10)
    if estep == "enumerate":
        check(model, loss, hand, 1e-10)


def test_weights_of_unlabelled_rows_beside_labelled_ones(problem):
    model, x, y, other = problem
    w = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 1.0], dtype=F64)
    hand = -(w * joint(model, other).logsumexp(-1)).sum() - joint(model, x).gather(1, y[:, None]).sum()
    check(model, scnf.elbo(model, scnf.EMGuide(model))(x, y, other, weights=w), hand, 1e-10)


def test_weights_of_a_partly_labelled_batch(problem):
    model, x, y, other = problem
    w = torch.rand(10, dtype=F64)
    args = (torch.cat([x, other]), torch.cat([y, torch.full((6,), -1)]))
    rows = torch.cat([joint(model, x).gather(1, y[:, None])[:, 0], joint(model, other).logsumexp(-1)])
    check(model, scnf.elbo(model, scnf.EMGuide(model))(*args, weights=w), -(w * rows).sum(), 1e-10)


def test_weights_of_labelled_rows_need_no_guide(problem):
    model, x, y, _ = problem
    w = torch.rand(4, dtype=F64)
    hand = -(w * joint(model, x).gather(1, y[:, None])[:, 0]).sum()
    check(model, scnf.elbo(model)(x, y, weights=w), hand, 1e-10)


# -- in training -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_trains(name):
    flow = toy_flow("flow")
    model = scnf.SemiSupervisedModel(flow)
    guide = GUIDES[name](model)
    x = torch.randn(40, 2) * torch.tensor([1.0, 0.2]) + 2
    y = torch.where(torch.arange(40) < 6, torch.arange(40) % 3, -1)
    loss_of = scnf.elbo(model, guide)
    optimiser = torch.optim.Adam([p for p in loss_of.parameters() if p.requires_grad], 1e-2)
    before = model.log_prob(x).mean()
    for _ in range(20):
        optimiser.zero_grad()
        loss_of(x, y).backward()
        optimiser.step()
        if hasattr(guide, "update"):
            guide.update()
    assert model.log_prob(x).mean() > before + 0.1


def test_under_svi():
    flow = toy_flow("flow")
    model = scnf.SemiSupervisedModel(flow)
    x = torch.randn(30, 2) + 2
    svi = SVI(model, scnf.EMGuide(model, "sample"), Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_guides_by_name():
    model = scnf.SemiSupervisedModel(toy_flow())
    assert scnf.make_guide("exact", model) is scnf.exact_guide
    found = {name: scnf.make_guide(name, model) for name in scnf.GUIDES[1:]}
    assert {name: guide.estep for name, guide in found.items()} == {
        "em": "enumerate",
        "em-sample": "sample",
        "em-hard": "hard",
        "em-ema": "enumerate",
    }
    assert found["em-ema"].decay == 0.99
    assert found["em"].old is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estep": "soft"}, "estep='soft': expected"),
        ({"estep": "hard", "temperature": 0.5}, r"temperature=0.5.*the same at every temperature"),
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": "warm"}, "temperature='warm'"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"decay": 1}, "decay=1"),
        ({"decay": True}, "decay=True"),
        ({"decay": False}, "decay=False"),
        ({"decay": math.nan}, "decay=nan"),
        ({"decay": "0.9"}, "decay='0.9'"),
    ],
)
def test_options_that_would_have_no_effect_or_no_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        scnf.EMGuide(scnf.SemiSupervisedModel(toy_flow()), **options)


def test_a_guide_is_for_the_model_itself():
    model = scnf.SemiSupervisedModel(toy_flow())
    for other in (model.flow, scnf.with_terms(model, "balance"), poutine.mask(model, mask=True), "gmm"):
        with pytest.raises(ValueError, match=r"model is a \w+, expected a SemiSupervisedModel"):
            scnf.EMGuide(other)


@pytest.mark.parametrize("name", ["em", "em-sample", "em-hard"])
def test_weights_follow_the_rule_of_the_model(name):
    """Integers are exact. A weight of 0 leaves a row out."""
    model = scnf.SemiSupervisedModel(toy_flow())
    guide = scnf.make_guide(name, model)
    x, w = torch.randn(5, 2), torch.tensor([1, 0, 2, 0, 1])
    loss = scnf.elbo(model, guide)(x, weights=w)
    rows = torch.cat([x[[0, 2, 2, 4]]])
    torch.manual_seed(0)
    expected = scnf.elbo(model, guide)(rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"weights has dtype torch.float64"):
        guide(x, weights=w.double())
