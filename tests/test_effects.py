"""The flow inside Pyro programs: inference, prediction, handlers, bigger models."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import mlp
from helpers import counting, gradient_error, gradients, image_flow, perturb, relative, toy_flow
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
    infer_discrete,
)
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.optim import Adam

import pyro_scnf as scnf

F64 = torch.float64
OPTIONS = {"max_plate_nesting": 1, "strict_enumeration_warning": False}


@pytest.fixture
def model():
    flow = toy_flow("flow", dtype=F64)
    return scnf.SemiSupervisedModel(flow, torch.tensor([0.5, 0.3, 0.2]))


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=F64)


def hand_posterior(model, x):
    joint = torch.stack([model.flow.condition(torch.full((len(x),), k)).log_prob(x) for k in range(3)], -1)
    return (joint + model.class_probs.log_probs).softmax(-1)


# -- discrete inference ----------------------------------------------------------------
def test_infer_discrete_gives_the_most_probable_label(model, x):
    found = poutine.trace(infer_discrete(model, first_available_dim=-2, temperature=0)).get_trace(x)
    assert torch.equal(found.nodes["y"]["value"], hand_posterior(model, x).argmax(-1))


def test_infer_discrete_draws_from_the_posterior(model, x):
    rows = x[:2].repeat_interleave(3000, 0)
    found = poutine.trace(infer_discrete(model, first_available_dim=-2)).get_trace(rows)
    frequencies = torch.nn.functional.one_hot(found.nodes["y"]["value"].reshape(2, 3000), 3).double().mean(1)
    assert (frequencies - hand_posterior(model, x[:2])).abs().max() < 4 * 0.5 / math.sqrt(3000)


def test_infer_discrete_keeps_known_labels(model, x):
    y = torch.tensor([0, -1, 2, -1, 1, -1])
    found = poutine.trace(infer_discrete(model, first_available_dim=-2, temperature=0)).get_trace(x, y)
    drawn = found.nodes["y"]["value"]
    expected = torch.where(y >= 0, y, hand_posterior(model, x).argmax(-1))
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("form", ["unlabelled", "two plates"])
def test_compute_marginals_gives_the_exact_posterior(model, x, form):
    args, site = (
        ((x,), "y") if form == "unlabelled" else ((x[:2], torch.tensor([0, 1]), x[2:]), "y_unlabelled")
    )
    marginals = TraceEnum_ELBO(**OPTIONS).compute_marginals(model, scnf.exact_guide, *args)
    assert relative(marginals[site].probs, hand_posterior(model, args[-1])) < 1e-10
    assert relative(model.posterior(x).probs, hand_posterior(model, x)) < 1e-10


# -- prediction ---------------------------------------------------------------------------
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_labels_and_data(parallel):
    model = scnf.SemiSupervisedModel(toy_flow("flow"), torch.tensor([0.5, 0.3, 0.2]))
    draws = Predictive(model, num_samples=40, parallel=parallel)(n=25)
    assert draws["y"].shape == (40, 25)
    assert draws["x"].shape == (40, 25, 2)
    shares = torch.nn.functional.one_hot(draws["y"], 3).double().mean((0, 1))
    assert (shares - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 4 * 0.5 / math.sqrt(1000)
    # Each x was drawn given its own label.
    log_prob = model.flow.condition(draws["y"]).log_prob(draws["x"])
    assert (log_prob > model.flow.log_prob(draws["x"]) - 20).all()


def test_predictive_of_a_users_model_draws_images():
    flow = image_flow("flow")

    def model(n):
        with pyro.plate("data", n):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)))
            return pyro.sample("x", flow.condition(y))

    for parallel in (False, True):
        assert Predictive(model, num_samples=4, parallel=parallel)(5)["x"].shape == (4, 5, 1, 4, 4)


def test_draws_given_a_label(model):
    y = torch.tensor([2, 2, 0, 1])
    for conditioned in (poutine.condition(model, {"y": y}), poutine.do(model, {"y": y})):
        pyro.set_rng_seed(3)
        x = conditioned(n=4)
        assert x.shape == (4, 2)
    assert model(y=y).shape == (4, 2)


# -- handlers -------------------------------------------------------------------------------
def test_condition_on_labels_equals_giving_them(model, x):
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    given = scnf.elbo(model)(x, y)
    conditioned = scnf.elbo(poutine.condition(model, {"y": y}))(x)
    assert conditioned.item() == pytest.approx(given.item(), rel=1e-12)


def test_condition_on_data_equals_giving_it(model, x):
    def users(x=None):
        with pyro.plate("data", 6):
            y = pyro.sample("y", model.class_probs(), infer={"enumerate": "parallel"})
            return pyro.sample("x", model.flow.condition(y), obs=x)

    conditioned = poutine.condition(users, {"x": x})
    assert scnf.elbo(conditioned)().item() == pytest.approx(-model.log_prob(x).sum().item(), rel=1e-12)
    # An intervention on x, in contrast, is no evidence about the label.
    intervened = poutine.trace(poutine.do(users, {"x": x})).get_trace()
    assert torch.equal(intervened.nodes["_RETURN"]["value"], x)
    assert not any(node["is_observed"] for node in intervened.nodes.values() if node["type"] == "sample")


def test_scale(model, x):
    scaled = scnf.elbo(poutine.scale(model, scale=2.5))(x)
    assert scaled.item() == pytest.approx(-2.5 * model.log_prob(x).sum().item(), rel=1e-12)


def test_mask(model, x):
    keep = torch.tensor([True, False, True, True, False, False])
    loss = scnf.elbo(poutine.mask(model, mask=keep))(x)
    assert loss.item() == pytest.approx(-model.log_prob(x[keep]).sum().item(), rel=1e-12)


def test_labels_masked_by_pyro(model, x):
    """With ``obs_mask``, the loss is exact if ``config_enumerate`` is applied to the model."""
    y, known = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([True, False, True, False, False, False])

    @config_enumerate
    def users(x):
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", model.class_probs(), obs=y, obs_mask=known)
            pyro.sample("x", model.flow.condition(label), obs=x)

    ours = scnf.elbo(model)(x, torch.where(known, y, -1))
    assert scnf.elbo(users)(x).item() == pytest.approx(ours.item(), rel=1e-10)


def test_noisy_labels(model, x):
    """A label observed through a confusion matrix. The identity matrix shows the label itself."""
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    @config_enumerate
    def users(x, confusion):
        with pyro.plate("data", len(x)):
            truth = pyro.sample("truth", model.class_probs())
            pyro.sample("label", dist.Categorical(confusion[truth]), obs=y)
            pyro.sample("x", model.flow.condition(truth), obs=x)

    sure = torch.eye(3, dtype=F64) * (1 - 3e-12) + 1e-12
    assert scnf.elbo(users)(x, sure).item() == pytest.approx(scnf.elbo(model)(x, y).item(), rel=1e-8)
    blind = torch.full((3, 3), 1 / 3, dtype=F64)
    expected = -model.log_prob(x).sum() + 6 * math.log(3)
    assert scnf.elbo(users)(x, blind).item() == pytest.approx(expected.item(), rel=1e-10)


# -- the latents as sites ---------------------------------------------------------------------
@pytest.mark.parametrize("make", [toy_flow, image_flow])
class TestFlowSitesReparam:
    """For a flow that factors out an auxiliary part (images) and one that does not (the plane)."""

    def build(self, make):
        flow = make("flow", dtype=F64)
        model = scnf.SemiSupervisedModel(flow, "learnable")
        perturb(model.class_probs, 0.5)
        x = torch.randn((5,) + tuple(flow.event_shape), dtype=F64)
        return model, poutine.reparam(model, config={"x": scnf.FlowSitesReparam()}), x

    def test_observed(self, make):
        model, rewritten, x = self.build(make)
        nodes = poutine.trace(rewritten).get_trace(x, torch.zeros(5, dtype=torch.long)).nodes
        sites = {"x_final", "x_ladj"} | ({"x_aux"} if make is image_flow else set())
        assert sites <= set(nodes)
        assert ("x_aux" in nodes) == (make is image_flow)
        _, z_f, ladj = model.flow.encode(x)
        assert relative(nodes["x_final"]["value"], z_f) < 1e-12
        assert torch.equal(nodes["x"]["value"], x)
        assert relative(nodes["x_ladj"]["fn"].log_factor, ladj) < 1e-12

    @pytest.mark.parametrize("labels", [None, [0, -1, 2, -1, -1], [0, 1, 2, 0, 1]])
    def test_the_loss_is_the_same(self, make, labels):
        model, rewritten, x = self.build(make)
        y = None if labels is None else torch.tensor(labels)
        plain, loss = scnf.elbo(model)(x, y), scnf.elbo(rewritten)(x, y)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-11)
        assert gradient_error(gradients(model, loss), gradients(model, plain)) < 1e-10
        with counting(model.flow.transform, "inverse_and_ladj") as counter:
            scnf.elbo(rewritten)(x, y)
        assert counter.calls == 1

    def test_unobserved(self, make):
        model, rewritten, _ = self.build(make)
        trace = poutine.trace(rewritten).get_trace(n=5)
        trace.compute_log_prob()
        nodes = trace.nodes
        assert "x_ladj" not in nodes
        z_aux, z_f, _ = model.flow.encode(nodes["x"]["value"])
        assert relative(nodes["x_final"]["value"], z_f) < 1e-9
        if make is image_flow:
            assert relative(nodes["x_aux"]["value"], z_aux) < 1e-9
        prior = model.flow.prior.condition(nodes["y"]["value"])
        assert relative(nodes["x_final"]["log_prob"], prior.log_prob(z_f)) < 1e-9
        assert nodes["x"]["log_prob"].abs().sum() == 0

    def test_infer_discrete(self, make):
        model, rewritten, x = self.build(make)
        found = poutine.trace(infer_discrete(rewritten, first_available_dim=-2, temperature=0)).get_trace(x)
        assert torch.equal(found.nodes["y"]["value"], model.posterior(x).probs.argmax(-1))

    def test_enumerate_labels(self, make):
        model, rewritten, x = self.build(make)
        assert relative(scnf.enumerate_labels(rewritten, (x,)), scnf.enumerate_labels(model, (x,))) < 1e-10

    def test_predictive(self, make):
        model, rewritten, _ = self.build(make)
        draws = Predictive(rewritten, num_samples=3)(n=4)
        assert draws["x_final"].shape == (3, 4) + tuple(model.flow.latent_shape)
        # x is a function of its latents.
        latents = [draws["x_aux"]] if make is image_flow else []
        x = model.flow.decode(draws["x_final"], *latents)
        assert relative(draws["x"], x) < 1e-9


def test_the_deep_latent_in_a_bigger_model():
    """A regression on z_f, which is a site of the rewritten model."""
    flow = toy_flow("flow", dtype=F64)

    def model(x, w):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)), infer={"enumerate": "parallel"})
            x = pyro.sample("x", flow.condition(y), obs=x)
            z_f = flow.encode(x)[1]
            pyro.sample("w", dist.Normal(z_f.sum(-1), 1.0), obs=w)

    x, w = torch.randn(4, 2, dtype=F64), torch.randn(4, dtype=F64)
    expected = -(flow.log_prob(x) + dist.Normal(flow.encode(x)[1].sum(-1), 1.0).log_prob(w)).sum()
    rewritten = poutine.reparam(model, config={"x": scnf.FlowSitesReparam()})
    with counting(flow.transform, "inverse_and_ladj") as counter:
        for form in (model, rewritten):
            assert scnf.elbo(form)(x, w).item() == pytest.approx(expected.item(), rel=1e-11)
    assert counter.calls == 2  # one for each form: the model and the loss share an encoding


# -- members of bigger modules -------------------------------------------------------------------
class Bigger(PyroModule):
    """A flow, a label, and a Bayesian regression of an outcome on the label."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = toy_flow("flow")
        self.effect = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    def forward(self, x, outcome=None):
        effect = self.effect
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", self.flow.condition(y), obs=x)
            return pyro.sample(
                "outcome", dist.Normal(pyro.ops.indexing.Vindex(effect)[..., y], 0.1), obs=outcome
            )


def test_member_of_a_pyro_module():
    model = Bigger()
    x, outcome = torch.randn(20, 2), torch.randn(20)
    guide = AutoNormal(poutine.block(model, hide=["y"]))
    svi = SVI(model, guide, Adam({"lr": 1e-2}), TraceEnum_ELBO(**OPTIONS))
    losses = torch.tensor([svi.step(x, outcome) for _ in range(60)])
    assert losses[-10:].mean() < losses[:10].mean()
    names = set(pyro.get_param_store())
    assert any(name.startswith("flow.") or name.startswith("flow$$$") for name in names)
    before = {id(p) for p in model.flow.parameters()}
    assert {id(pyro.param(name)) for name in names if name.startswith("flow")} == before
    draws = Predictive(guide, num_samples=5)(x, outcome)
    effect = draws["effect"].reshape(5, 3)
    joint = scnf.enumerate_labels(model, (x, outcome), {"effect": effect})
    hand = (
        model.flow.class_log_prob(x)[None, :, :]
        - math.log(3)
        + dist.Normal(effect[:, None, :], 0.1).log_prob(outcome[:, None])
    )
    assert relative(joint, hand) < 1e-4


def test_ready_model_as_a_member():
    class Wrapped(PyroModule):
        def __init__(self):
            super().__init__()
            self.inner = scnf.SemiSupervisedModel(toy_flow("flow"), "learnable")
            self.offset = pyro.nn.PyroParam(torch.zeros(2))

        def forward(self, x):
            return self.inner(x - self.offset)

    model, x = Wrapped(), torch.randn(10, 2) + 3
    loss = scnf.elbo(model)(x)
    loss.backward()
    assert model.offset_unconstrained.grad.abs().sum() > 0
    assert loss.item() == pytest.approx(-model.inner.log_prob(x).sum().item(), rel=1e-5)


# -- MCMC --------------------------------------------------------------------------------------
def prevalence_model(flow):
    def model(x):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    return model


def test_nuts_over_class_prevalence_with_a_frozen_flow():
    flow = toy_flow("gmm:separation=8.0", dtype=F64).requires_grad_(False).eval()
    x = flow.sample(torch.tensor([0] * 60 + [1] * 30 + [2] * 10))
    model = prevalence_model(flow)
    kernel = NUTS(model, max_plate_nesting=1, max_tree_depth=4)
    mcmc = MCMC(kernel, num_samples=60, warmup_steps=40, disable_progbar=True)
    with scnf.share_encoding(), counting(flow.transform, "inverse_and_ladj") as counter:
        mcmc.run(x)
    assert counter.calls <= 2
    shares = mcmc.get_samples()["shares"]
    assert (shares.mean(0) - torch.tensor([0.6, 0.3, 0.1], dtype=F64)).abs().max() < 0.12
    with counting(flow.transform, "inverse_and_ladj") as counter:
        joint = scnf.enumerate_labels(model, (x,), mcmc.get_samples())
    assert counter.calls == 1
    assert joint.shape == (60, 100, 3)
    hand = flow.class_log_prob(x) + shares[:, None, :].log()
    assert relative(joint, hand) < 1e-9


def test_autoguide_over_class_prevalence():
    flow = toy_flow("gmm:separation=8.0", dtype=F64).requires_grad_(False).eval()
    x = flow.sample(torch.tensor([0] * 60 + [1] * 30 + [2] * 10))
    model = prevalence_model(flow)
    guide = AutoNormal(poutine.block(model, hide=["y"]))
    svi = SVI(model, guide, Adam({"lr": 0.05}), TraceEnum_ELBO(**OPTIONS))
    with scnf.share_encoding(), counting(flow.transform, "inverse_and_ladj") as counter:
        losses = [svi.step(x) for _ in range(60)]
    assert counter.calls <= 2
    assert losses[-1] < losses[0]
    median = guide.median(x)["shares"]
    assert (median - torch.tensor([0.6, 0.3, 0.1], dtype=F64)).abs().max() < 0.12


def test_nuts_over_a_deep_latent():
    """NUTS samples the site ``x_final`` of the rewritten model, given an outcome that depends on x."""
    options = {"couplings": 2, "net": mlp, "width": None, "blocks": None}
    flow = toy_flow("gmm", num_classes=1, dtype=F64, make=scnf.flows.realnvp, **options)
    flow.requires_grad_(False).eval()
    target = torch.tensor([0.5, -0.5], dtype=F64)

    def model():
        x = pyro.sample("x", flow.condition(torch.tensor(0)))
        pyro.sample("seen", dist.Normal(x, 0.1).to_event(1), obs=target)

    rewritten = poutine.reparam(model, config={"x": scnf.FlowSitesReparam()})
    mcmc = MCMC(NUTS(rewritten, max_tree_depth=5), num_samples=80, warmup_steps=60, disable_progbar=True)
    mcmc.run()
    x = flow.decode(mcmc.get_samples()["x_final"])
    assert (x.mean(0) - target).abs().max() < 0.15


def test_plain_elbo_takes_labelled_data(model, x):
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = Trace_ELBO().loss(model, scnf.exact_guide, x, y)
    assert loss == pytest.approx(scnf.elbo(model)(x, y).item(), rel=1e-12)
