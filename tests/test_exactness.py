"""Enumeration in Pyro agrees with sums by hand, in values and gradients and in both precisions."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import PRIORS
from helpers import gradient_error, gradients, image_flow, perturb, toy_flow
from pyro import poutine
from pyro.infer import SVI, JitTraceEnum_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam

import pyro_scnf as scnf

F64 = torch.float64
precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-11)])


def flow_with(prior: str, dtype: torch.dtype) -> scnf.SemiConditionalFlow:
    """A random flow with the prior ``prior`` of the table. For image events it factors channels out."""
    case = PRIORS[prior]
    if len(case.event_shape) == 1:
        flow = scnf.flows.glow(case.event_shape, steps=1, width=6, blocks=1)
    else:
        channels, height, width = case.event_shape
        squeezed = scnf.transforms.Squeeze((1, 2 * height, 2 * width))
        layers = [scnf.transforms.ActNorm(squeezed.base_shape), squeezed]
        inner = scnf.transforms.ActNorm((2, height, width))
        assert channels == 2
        flow = scnf.transforms.MultiScale([inner, scnf.transforms.Compose(layers)])
    return perturb(scnf.SemiConditionalFlow(flow, case.build())).to(dtype)


def allowed(prior: str, tolerance: float) -> float:
    """``tolerance``, or that of the solver of a continuous prior."""
    return max(tolerance, PRIORS[prior].tolerances.gradient) if prior.startswith("ffjord") else tolerance


def batch(flow: scnf.SemiConditionalFlow, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn((size,) + tuple(flow.event_shape), dtype=dtype)
    return x, torch.arange(size) % flow.num_classes


def joint_by_hand(flow, x, logits):
    """log p(x, y = k) for every k, one label at a time."""
    rows = [flow.condition(torch.full((len(x),), k)).log_prob(x) for k in range(flow.num_classes)]
    return torch.stack(rows, -1) + logits.log_softmax(-1)


def check(module, loss, expected, tolerance):
    """Assert that ``loss`` and ``expected`` have the same value and the same gradients."""
    assert loss.dtype == expected.dtype
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert gradient_error(gradients(module, loss), gradients(module, expected)) < tolerance


# -- every prior ---------------------------------------------
@precisions
@pytest.mark.parametrize("prior", PRIORS)
def test_marginal_of_unlabelled_data(prior, dtype, tolerance):
    flow = flow_with(prior, dtype)
    model = scnf.SemiSupervisedModel(flow, torch.arange(1.0, 1.0 + flow.num_classes))
    x, _ = batch(flow, 6, dtype)
    expected = -joint_by_hand(flow, x, model.class_probs.logits).logsumexp(-1).sum()
    check(model, scnf.elbo(model)(x), expected, allowed(prior, tolerance))
    pyros = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    check(model, pyros.differentiable_loss(model, scnf.exact_guide, x), expected, allowed(prior, tolerance))


@precisions
@pytest.mark.parametrize("prior", PRIORS)
def test_partly_labelled_batch(prior, dtype, tolerance):
    flow = flow_with(prior, dtype)
    model = scnf.SemiSupervisedModel(flow, "learnable")
    perturb(model.class_probs, 0.5)
    x, y = batch(flow, 6, dtype)
    mixed = torch.where(torch.arange(6) % 2 == 0, y, -1)
    joint = joint_by_hand(flow, x, model.class_probs.logits)
    known = joint.gather(1, y[:, None])[:, 0]
    expected = -torch.where(mixed >= 0, known, joint.logsumexp(-1)).sum()
    check(model, scnf.elbo(model)(x, mixed), expected, allowed(prior, tolerance))


@precisions
@pytest.mark.parametrize("prior", PRIORS)
def test_two_plates(prior, dtype, tolerance):
    flow = flow_with(prior, dtype)
    model = scnf.SemiSupervisedModel(flow, "learnable")
    perturb(model.class_probs, 0.5)
    x, y = batch(flow, 3, dtype)
    other, _ = batch(flow, 5, dtype)
    logits = model.class_probs.logits
    labelled = joint_by_hand(flow, x, logits).gather(1, y[:, None]).sum()
    expected = -labelled - joint_by_hand(flow, other, logits).logsumexp(-1).sum()
    check(model, scnf.elbo(model)(x, y, other), expected, allowed(prior, tolerance))


# -- weights and sizes, with one prior --------------------------
@pytest.fixture
def problem():
    flow = toy_flow("flow", dtype=F64)
    x, y = batch(flow, 4, F64)
    other, _ = batch(flow, 6, F64)
    return flow, x, y, other


def test_fully_labelled_batch_sums_nothing(problem):
    flow, x, y, _ = problem
    model = scnf.SemiSupervisedModel(flow)
    expected = -(flow.condition(y).log_prob(x) - math.log(3)).sum()
    check(model, scnf.elbo(model)(x, y), expected, 1e-12)
    trace = poutine.trace(model).get_trace(x, y)
    assert trace.nodes["y"]["is_observed"]
    assert "_enumerate_dim" not in trace.nodes["y"]["infer"]


@pytest.mark.parametrize("size", [torch.int32, torch.int64])
def test_label_dtypes(problem, size):
    flow, x, y, _ = problem
    model = scnf.SemiSupervisedModel(flow)
    assert scnf.elbo(model)(x, y.to(size)).item() == scnf.elbo(model)(x, y).item()


def test_all_unlabelled_by_minus_one_is_the_marginal(problem):
    flow, x, y, _ = problem
    model = scnf.SemiSupervisedModel(flow)
    check(model, scnf.elbo(model)(x, torch.full_like(y, -1)), -flow.log_prob(x).sum(), 1e-12)


def test_plates_scale_batches_up_to_their_data_sets(problem):
    flow, x, y, other = problem
    model = scnf.SemiSupervisedModel(flow, num_labelled=40, num_unlabelled=600)
    labelled = (flow.condition(y).log_prob(x) - math.log(3)).sum()
    expected = -10 * labelled - 100 * flow.log_prob(other).sum()
    check(model, scnf.elbo(model)(x, y, other), expected, 1e-12)
    # The one plate stands for both data sets together.
    mixed = torch.tensor([0, -1, 2, -1])
    plain = scnf.elbo(scnf.SemiSupervisedModel(flow))(x, mixed)
    check(model, scnf.elbo(model)(x, mixed), 160 * plain, 1e-12)


def test_labelled_weight(problem):
    flow, x, y, other = problem
    model = scnf.SemiSupervisedModel(flow, labelled_weight=7.0)
    labelled = (flow.condition(y).log_prob(x) - math.log(3)).sum()
    check(model, scnf.elbo(model)(x, y, other), -7 * labelled - flow.log_prob(other).sum(), 1e-12)
    check(model, scnf.elbo(model)(x, y), -7 * labelled, 1e-12)


@pytest.mark.parametrize("labelled_weight", [1.0, 5.0])
def test_the_classification_term_stands_beside_the_labelled_weight(problem, labelled_weight):
    flow, x, y, other = problem
    model = scnf.SemiSupervisedModel(flow, "learnable", labelled_weight=labelled_weight)
    perturb(model.class_probs, 0.5)
    joint = joint_by_hand(flow, x, model.class_probs.logits)
    known = joint.gather(1, y[:, None])[:, 0]
    labelled = labelled_weight * known + 0.3 * (known - joint.logsumexp(-1))
    unlabelled = joint_by_hand(flow, other, model.class_probs.logits).logsumexp(-1)
    loss = scnf.elbo(model, terms="classification:weight=0.3")
    check(model, loss(x, y, other), -labelled.sum() - unlabelled.sum(), 1e-10)


def test_the_classification_term_in_a_partly_labelled_batch(problem):
    flow, x, y, _ = problem
    model = scnf.SemiSupervisedModel(flow)
    mixed = torch.tensor([int(y[0]), -1, int(y[2]), -1])
    joint = joint_by_hand(flow, x, model.class_probs.logits)
    known = joint.gather(1, y[:, None])[:, 0]
    rows = torch.where(mixed >= 0, known + 0.3 * (known - joint.logsumexp(-1)), joint.logsumexp(-1))
    check(model, scnf.elbo(model, terms="classification:weight=0.3")(x, mixed), -rows.sum(), 1e-10)


@pytest.mark.parametrize("probs", ["uniform", "learnable", torch.tensor([1.0, 2.0, 5.0])])
def test_class_probabilities(problem, probs):
    flow, x, _, _ = problem
    model = scnf.SemiSupervisedModel(flow, probs)
    p = torch.tensor([1 / 3] * 3 if isinstance(probs, str) else [1 / 8, 2 / 8, 5 / 8], dtype=F64)
    expected = -torch.logsumexp(flow.class_log_prob(x) + p.log(), -1).sum()
    assert scnf.elbo(model)(x).item() == pytest.approx(expected.item(), rel=1e-6)
    assert model.log_prob(x).sum().item() == pytest.approx(-expected.item(), rel=1e-6)
    trainable = any("class_probs" in name for name, _ in model.named_parameters())
    assert trainable == (isinstance(probs, str) and probs == "learnable")


def test_a_weight_of_zero_leaves_the_gradients_of_the_others(problem):
    flow, x, _, _ = problem
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=F64, requires_grad=True)
    kept = torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    (found,) = torch.autograd.grad(flow.log_prob(x, logits.softmax(-1) * kept).sum(), logits)
    rows = flow.class_log_prob(x)[:, ::2] + logits[::2].log_softmax(-1)
    (expected,) = torch.autograd.grad(rows.logsumexp(-1).sum(), logits)
    assert torch.allclose(found, expected, atol=1e-10)


def test_a_class_without_probability_is_never_chosen(problem):
    flow, x, _, _ = problem
    prior = scnf.ClassProbs.from_labels(torch.tensor([0, 2, 2, -1]), 3).double()
    model = scnf.SemiSupervisedModel(flow, prior)
    assert torch.allclose(prior().probs, torch.tensor([1 / 3, 0, 2 / 3], dtype=F64))
    rows = flow.class_log_prob(x)[:, [0, 2]] + torch.tensor([1 / 3, 2 / 3], dtype=F64).log()
    loss = scnf.elbo(model)(x)
    assert loss.item() == pytest.approx(-rows.logsumexp(-1).sum().item(), rel=1e-6)
    assert all(torch.isfinite(g).all() for g in gradients(flow, loss).values())
    assert (model.posterior(x).probs[:, 1] == 0).all()


def test_learning_the_class_probabilities_finds_the_frequencies():
    flow = toy_flow("gmm:separation=30.0,fit_means=fixed", dtype=F64).requires_grad_(False).eval()
    x = flow.sample(torch.tensor([0] * 50 + [1] * 30 + [2] * 20))
    model = scnf.SemiSupervisedModel(flow, "learnable")
    optimiser = torch.optim.Adam(model.class_probs.parameters(), 0.05)
    loss = scnf.elbo(model)
    for _ in range(120):
        optimiser.zero_grad()
        loss(x).backward()
        optimiser.step()
    shares = flow.posterior(x, model.class_probs).probs.mean(0)
    assert torch.allclose(model.class_probs().probs, shares, atol=5e-3)  # the fixed point of EM


# -- a user's own model ----------------------------------------------
@pytest.mark.parametrize("make", [toy_flow, image_flow])
@pytest.mark.parametrize("expand", [False, True])
def test_config_enumerate_on_a_users_own_model(make, expand):
    flow = make("flow", dtype=F64)
    logits = torch.randn(3, dtype=F64)

    @config_enumerate(expand=expand)
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("x", flow.condition(y), obs=x)

    x, _ = batch(flow, 5, F64)
    expected = -flow.log_prob(x, logits.softmax(-1)).sum()
    check(flow, scnf.elbo(model)(x), expected, 1e-11)
    guessed = TraceEnum_ELBO(strict_enumeration_warning=False)  # finds out by itself how deep the plates are
    assert guessed.loss(model, scnf.exact_guide, x) == pytest.approx(expected.item(), rel=1e-11)


def test_subsampling_plate_with_indices():
    flow = toy_flow("flow", dtype=F64)
    x, _ = batch(flow, 20, F64)

    def model(x):
        with pyro.plate("data", 20, subsample_size=5) as index:
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x[index])

    losses = torch.tensor([scnf.elbo(model)(x).item() for _ in range(100)])
    exact = -flow.log_prob(x).sum()
    assert abs(losses.mean() - exact) < 5 * losses.std() / 10
    assert losses.std() > 0


def test_jit_and_vectorised_particles():
    flow = toy_flow("flow", dtype=F64)
    x, _ = batch(flow, 5, F64)
    model = scnf.SemiSupervisedModel(flow)
    expected = -flow.log_prob(x).sum().item()
    options = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
    for vectorise in (False, True):
        loss = TraceEnum_ELBO(num_particles=3, vectorize_particles=vectorise, **options)
        assert loss.loss(model, scnf.exact_guide, x) == pytest.approx(expected, rel=1e-11)
    jit = JitTraceEnum_ELBO(ignore_jit_warnings=True, **options)
    assert jit.loss(model, scnf.exact_guide, x) == pytest.approx(expected, rel=1e-11)


def test_two_enumerated_labels():
    """A second discrete site depends on the first: 3 x 2 hypotheses in one run."""
    flow, other = toy_flow("flow", dtype=F64), toy_flow("gmm", num_classes=2, dtype=F64)
    table = torch.randn(3, 2, dtype=F64)

    @config_enumerate
    def model(x, w):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
            v = pyro.sample("v", dist.Categorical(logits=pyro.ops.indexing.Vindex(table)[y, :]))
            pyro.sample("x", flow.condition(y), obs=x)
            pyro.sample("w", other.condition(v), obs=w)

    x, w = torch.randn(4, 2, dtype=F64), torch.randn(4, 2, dtype=F64)
    hand = (
        flow.class_log_prob(x)[:, :, None]
        - math.log(3)
        + table.log_softmax(-1)
        + other.class_log_prob(w)[:, None, :]
    )
    loss = scnf.elbo(model)(x, w)
    assert loss.item() == pytest.approx(-hand.logsumexp((1, 2)).sum().item(), rel=1e-11)


def test_a_second_modality_on_the_same_label():
    flow, text = toy_flow("flow", dtype=F64), torch.randn(3, 7, dtype=F64).log_softmax(-1)
    image = image_flow("gmm", dtype=F64)

    @config_enumerate
    def model(x, word, picture):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
            pyro.sample("x", flow.condition(y), obs=x)
            pyro.sample("word", dist.Categorical(logits=text[y]), obs=word)
            pyro.sample("picture", image.condition(y), obs=picture)

    x, word, picture = torch.randn(4, 2, dtype=F64), torch.arange(4), torch.randn(4, 1, 4, 4, dtype=F64)
    joint = flow.class_log_prob(x) + text[:, word].T + image.class_log_prob(picture) - math.log(3)
    assert scnf.elbo(model)(x, word, picture).item() == pytest.approx(
        -joint.logsumexp(-1).sum().item(), rel=1e-11
    )


def bags(flow, logits, x):
    """One label per group, shared by its members, so plates are two deep."""
    with pyro.plate("group", x.shape[1], dim=-1):
        y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        with pyro.plate("member", x.shape[0], dim=-2):
            pyro.sample("x", flow.condition(y), obs=x)


def test_nested_plates():
    flow, logits = toy_flow("flow", dtype=F64), torch.randn(3, dtype=F64)
    x = torch.randn(5, 4, 2, dtype=F64)  # five members in each of four groups
    expected = -(flow.class_log_prob(x).sum(0) + logits.log_softmax(-1)).logsumexp(-1).sum()
    loss = scnf.elbo(lambda x: bags(flow, logits, x), max_plate_nesting=2)(x)
    check(flow, loss, expected, 1e-11)


def test_a_group_label_above_a_label_of_each_datum():
    flow = toy_flow("flow", dtype=F64)
    table = torch.randn(2, 3, dtype=F64).log_softmax(-1)

    @config_enumerate
    def model(x):
        with pyro.plate("group", x.shape[1], dim=-1):
            g = pyro.sample("g", dist.Categorical(torch.ones(2, dtype=F64)))
            with pyro.plate("member", x.shape[0], dim=-2):
                y = pyro.sample("y", dist.Categorical(logits=pyro.ops.indexing.Vindex(table)[g, :]))
                pyro.sample("x", flow.condition(y), obs=x)

    x = torch.randn(5, 4, 2, dtype=F64)
    each = (flow.class_log_prob(x)[..., None, :] + table).logsumexp(-1)  # (member, group, g)
    expected = -(each.sum(0) - math.log(2)).logsumexp(-1).sum()
    loss = scnf.elbo(model, max_plate_nesting=2)(x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-11)


# -- training -----------------------------------------------------------
@pytest.mark.parametrize("route", ["svi", "torch"])
def test_training_lowers_the_loss(route):
    flow = toy_flow("flow")
    model = scnf.SemiSupervisedModel(flow, "learnable")
    angle = torch.linspace(0, 6.28, 60)
    x = torch.stack([angle.cos(), angle.sin()], -1) * 2 + 3
    y = torch.where(torch.arange(60) % 10 == 0, (angle / 2.1).long(), -1)
    model.initialize(x, y)
    if route == "svi":
        options = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
        svi = SVI(model, scnf.exact_guide, Adam({"lr": 1e-2}), TraceEnum_ELBO(**options))
        losses = [svi.step(x, y) for _ in range(25)]
    else:
        loss_of, losses = scnf.elbo(model), []
        optimiser = torch.optim.Adam(loss_of.parameters(), 1e-2)
        for _ in range(25):
            optimiser.zero_grad()
            loss = loss_of(x, y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 5
    assert all(math.isfinite(value) for value in losses)


def test_both_routes_take_the_same_steps():
    results = []
    for route in ("svi", "torch"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        flow = toy_flow("flow", dtype=F64)
        model, x = scnf.SemiSupervisedModel(flow), torch.randn(10, 2, dtype=F64)
        if route == "svi":
            options = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
            svi = SVI(model, scnf.exact_guide, Adam({"lr": 1e-2}), TraceEnum_ELBO(**options))
            losses = [svi.step(x) for _ in range(4)]
        else:
            loss_of, losses = scnf.elbo(model), []
            optimiser = torch.optim.Adam(loss_of.parameters(), 1e-2)
            for _ in range(4):
                optimiser.zero_grad()
                loss = loss_of(x)
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        results.append(losses)
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_a_loss_without_gradient_is_the_same_number():
    flow = toy_flow("flow", dtype=F64)
    model, x = scnf.SemiSupervisedModel(flow), torch.randn(6, 2, dtype=F64)
    loss = scnf.elbo(model)
    with torch.no_grad():
        value = loss(x)
    assert not value.requires_grad
    assert value.dtype == F64
    assert value.item() == pytest.approx(loss(x).item(), rel=1e-12)
