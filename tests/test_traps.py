"""``SemiSupervisedModel`` raises an error in cases where Pyro would silently compute a wrong loss."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import image_flow, toy_flow, with_share
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import (
    SVGD,
    SVI,
    Predictive,
    RBFSteinKernel,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
    WeighedPredictive,
    config_enumerate,
)
from pyro.infer.reparam import TransformReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.nn.module import to_pyro_module_
from pyro.optim import Adam

import pyro_scnf as scnf

F64 = torch.float64
Y = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def model():
    return scnf.SemiSupervisedModel(toy_flow("flow", dtype=F64))


@pytest.fixture
def x():
    return torch.randn(4, 2, dtype=F64)


FORMS = {
    "unlabelled": lambda x: (x,),
    "partly": lambda x: (x, torch.tensor([0, -1, 2, -1])),
    "two plates": lambda x: (x, Y, x + 1),
}
forms = pytest.mark.parametrize("form", FORMS)


DRAWING = {
    "Trace_ELBO": Trace_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "RenyiELBO": lambda: RenyiELBO(num_particles=2),
    "RenyiELBO, vectorised": lambda: RenyiELBO(num_particles=2, vectorize_particles=True),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(num_particles=2),
    "TraceTailAdaptive_ELBO": lambda: TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True),
}
"""Losses of Pyro that ignore the mark ``enumerate``."""


@forms
@pytest.mark.parametrize("elbo", DRAWING)
def test_a_latent_label_that_nothing_sums_out(model, x, form, elbo):
    """Other ELBOs ignore ``enumerate``. They would draw the label from p(y)."""
    args = FORMS[form](x)
    with pytest.raises(RuntimeError, match=r"neither enumerated nor in the guide.*TraceEnum_ELBO"):
        SVI(model, scnf.exact_guide, Adam({"lr": 1e-3}), DRAWING[elbo]()).step(*args)
    if elbo != "TraceTailAdaptive_ELBO":  # it has no loss without gradients
        with pytest.raises(RuntimeError, match="neither enumerated"):
            DRAWING[elbo]().loss(model, scnf.exact_guide, *args)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
def test_plain_elbos_are_fine_with_a_guide_over_the_label(model, x, elbo):
    loss = elbo().loss(model, scnf.EMGuide(model, "sample"), x)
    assert loss == pytest.approx(-model.log_prob(x).sum().item(), rel=1e-10)


def labelling_guide(plate):
    def guide(x, *args):
        with pyro.plate(plate, len(x)):
            pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)), infer={"enumerate": "parallel"})

    return guide


@pytest.mark.parametrize(("plate", "form"), [("data", "labelled"), ("labelled", "two plates")])
def test_a_guide_that_samples_an_observed_label(model, x, plate, form):
    """The loss would be off by the guide's entropy."""
    args = (x, Y) if form == "labelled" else (x, Y, x + 1)
    with pytest.raises(RuntimeError, match="the guide samples the label 'y', which is observed"):
        scnf.elbo(model, labelling_guide(plate))(*args)
    with pytest.raises(RuntimeError, match="which is observed"):
        Trace_ELBO().loss(model, labelling_guide(plate), *args)


def test_a_guide_that_samples_a_label_conditioned_upon(model, x):
    """A label that a handler gives is observed like one given as an argument."""
    conditioned = poutine.condition(model, {"y": Y})
    with pytest.raises(RuntimeError, match="which is observed"):
        scnf.elbo(conditioned, labelling_guide("data"))(x)


@pytest.mark.parametrize("elbo", DRAWING)
def test_a_latent_label_beside_data_conditioned_upon(model, x, elbo):
    """Data that a handler gives are scored like data given as an argument."""
    conditioned = poutine.condition(model, {"x": x})
    for guide in (scnf.exact_guide, scnf.EMGuide(model)):  # without x, EMGuide samples no label
        with pytest.raises(RuntimeError, match="neither enumerated nor in the guide"):
            SVI(conditioned, guide, Adam({"lr": 1e-3}), DRAWING[elbo]()).step(n=4)
    exact = -model.log_prob(x).sum().item()
    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    assert loss.loss(conditioned, scnf.exact_guide, n=4) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(
    "options",
    [{"num_labelled": 40}, {"num_unlabelled": 40}, {"labelled_weight": 2.0}, {"balanced_labels": True}],
)
def test_options_of_labels_and_labels_conditioned_upon(x, options):
    """The model cannot see how many of its rows a handler labels."""
    model = scnf.SemiSupervisedModel(toy_flow("flow", dtype=F64), **options)
    (name,) = options
    for given, kwargs in (({"y": Y}, {"x": x}), ({"x": x, "y": Y}, {"n": 4})):
        with pytest.raises(
            ValueError, match=rf"^{name}=.*labels come from poutine\.condition.*model\(x, y\)"
        ):
            scnf.elbo(poutine.condition(model, given))(**kwargs)
    assert poutine.condition(model, {"y": Y})(n=4).shape == (4, 2)  # it draws


@pytest.mark.parametrize(
    "options",
    [{"num_labelled": 40, "num_unlabelled": 40}, {"labelled_weight": 2.0}, {"balanced_labels": True}],
)
def test_draws_of_a_guide_are_no_labels(x, options):
    """``Predictive`` gives them to the model by ``poutine.condition``."""
    model = scnf.SemiSupervisedModel(toy_flow("flow", dtype=F64), **options)
    drawn = Predictive(model, guide=scnf.EMGuide(model, "sample"), num_samples=3, return_sites=("y", "x"))(x)
    assert drawn["y"].shape == (3, 4)
    assert Predictive(model, {"y": drawn["y"]}, return_sites=("x",))(x)["x"].shape == (3, 4, 2)
    found = WeighedPredictive(model, guide=scnf.EMGuide(model, "sample"), num_samples=3)(x)
    assert found.log_weights.isfinite().all()


def test_labels_conditioned_upon(model, x):
    conditioned = poutine.condition(model, {"y": Y})
    assert scnf.elbo(conditioned)(x).item() == pytest.approx(scnf.elbo(model)(x, Y).item(), rel=1e-12)


def test_draws_in_the_place_of_all_values(x):
    """With ``num_samples``, Pyro's enumeration is an estimate."""
    flow, few = toy_flow("flow", dtype=F64), {"enumerate": "parallel", "num_samples": 7}

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)), infer=few)
            pyro.sample("x", flow.condition(y), obs=x)

    with pytest.raises(RuntimeError, match="the site 'y' has num_samples in its infer"):
        scnf.elbo(model)(x)
    with pytest.raises(ValueError, match="the site 'y' has num_samples in its infer"):
        scnf.enumerate_labels(model, (x,))


def test_weights_of_rows_that_the_model_enumerates(model, x):
    w = torch.rand(4, dtype=F64) + 0.1
    for loss in (scnf.elbo(model), TraceEnum_ELBO(max_plate_nesting=1).loss):
        args = (x,) if isinstance(loss, torch.nn.Module) else (model, scnf.exact_guide, x)
        with pytest.raises(ValueError, match=r"weights: rows of a label that the model enumerates.*EMGuide"):
            loss(*args, weights=w)
    with pytest.raises(ValueError, match="weights: rows of a label"):
        scnf.elbo(model)(x, Y, x + 1, weights=w)


def test_labelled_weight_in_a_partly_labelled_batch(x):
    model = scnf.SemiSupervisedModel(toy_flow("flow", dtype=F64), labelled_weight=2.0)
    with pytest.raises(ValueError, match="labelled_weight needs the labelled rows in a batch of their own"):
        scnf.elbo(model)(x, torch.tensor([0, -1, 2, -1]))


def stepping(model):
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    return SVI(model, scnf.exact_guide, Adam({"lr": 1e-2}), elbo)


def test_svi_of_a_model_whose_names_the_store_has_already(model, x):
    """``SVI`` would train the parameters of the earlier model, and the new one would stay as it is."""
    again = scnf.SemiSupervisedModel(toy_flow("flow", dtype=F64))
    before = [p.detach().clone() for p in model.parameters()]
    stepping(model).step(x)
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    with pytest.raises(RuntimeError, match=r"store holds another tensor for flow\..*pyro\.clear_param_store"):
        stepping(again).step(x)
    assert scnf.elbo(again)(x).item() == pytest.approx(-again.log_prob(x).sum().item(), rel=1e-12)
    pyro.clear_param_store()
    before = [p.detach().clone() for p in again.parameters()]
    stepping(again).step(x)
    assert not all(torch.equal(p, q) for p, q in zip(again.parameters(), before, strict=True))


def test_svi_of_pyro_modules_whose_names_the_store_has_already(model, x):
    """A ``PyroModule`` has other names in the store than a plain one."""
    again = scnf.SemiSupervisedModel(toy_flow("flow", dtype=F64), "learnable")
    for each in (model, again):
        to_pyro_module_(each)
    stepping(model).step(x)
    stepping(model).step(x)  # its own parameters are in the store
    message = r"store holds another tensor for flow\.transform\..*pyro\.clear_param_store"
    for args in ((x,), (x, Y, x + 1)):
        with pytest.raises(RuntimeError, match=message):
            stepping(again).step(*args)
    assert scnf.elbo(again)(x).item() == pytest.approx(-again.log_prob(x).sum().item(), rel=1e-12)
    pyro.clear_param_store()
    before = [p.detach().clone() for p in again.parameters()]
    stepping(again).step(x)
    assert not any(torch.equal(p, q) for p, q in zip(again.parameters(), before, strict=True))


def test_svi_of_a_pyro_module_of_plain_ones_whose_names_the_store_has_already(x):
    def build():
        transform = toy_flow().double().transform
        return scnf.SemiSupervisedModel(PyroModule[scnf.SemiConditionalFlow](transform, "gmm", 3).double())

    stepping(build()).step(x)
    with pytest.raises(RuntimeError, match=r"store holds another tensor for flow\.transform\."):
        stepping(build()).step(x)


def test_two_models_in_one_program_are_trained_if_they_are_named(x):
    models = {"a": scnf.SemiSupervisedModel(toy_flow("gmm")), "b": scnf.SemiSupervisedModel(toy_flow("gmm"))}

    def unnamed(x):
        for name, model in models.items():
            with scope(prefix=name):
                model(x)

    def named(x):
        for name, model in models.items():
            pyro.module(name, model)
        unnamed(x)

    with pytest.raises(RuntimeError, match=r"call pyro\.module\('name', model\) for each of them first"):
        stepping(unnamed).step(x.float())
    pyro.clear_param_store()
    before = {name: model.flow.prior.loc.detach().clone() for name, model in models.items()}
    expected = -sum(model.log_prob(x.float()).sum().item() for model in models.values())
    assert stepping(named).step(x.float()) == pytest.approx(expected, rel=1e-5)
    assert all((model.flow.prior.loc - before[name]).abs().max() > 1e-3 for name, model in models.items())


def test_svi_of_parameters_that_the_store_copies():
    model = scnf.SemiSupervisedModel(image_flow("gmm")).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="store holds another tensor for flow"):
        stepping(model).step(torch.randn(4, 1, 4, 4))


unnoticed = pytest.mark.filterwarnings("ignore:pyro.module (prior|data) did not find params:UserWarning")
FAR = torch.full((3, 2), 9.0, dtype=F64)
STANDARD = dist.Normal(torch.zeros(3, 2, dtype=F64), 1.0).to_event(2)
REPLACED = {
    "lift": lambda m, name: poutine.lift(m, prior={name: STANDARD}),
    "lift, one prior for all": lambda m, name: poutine.lift(m, prior=dist.Normal(0.0, 1.0)),
    "lift, a function for all": lambda m, name: poutine.lift(m, prior=lambda *_, **__: FAR),
    "substitute": lambda m, name: poutine.substitute(m, {name: FAR}),
}


@unnoticed
@pytest.mark.parametrize("replace", REPLACED)
@pytest.mark.parametrize("converted", [False, True])
def test_parameters_of_modules_that_handlers_replace(replace, converted, x):
    """Modules compute with their own tensors. The site of ``lift`` would have its prior for a posterior."""
    model = scnf.SemiSupervisedModel(toy_flow("gmm", dtype=F64), "learnable")
    if converted:
        to_pyro_module_(model)
    names = ["flow.prior.loc", "class_probs.logits"] if converted else ["prior.loc", "logits"]
    for name in names:
        replaced, verb = REPLACED[replace](model, name), replace.partition(",")[0]
        message = rf"poutine\.{verb} would replace the parameter (flow|class_probs)\..* in vain: .*PyroSample"
        for args in ((x,), (x, Y), (x, Y, x + 1)):
            with pytest.raises(RuntimeError, match=message):
                replaced(*args)
            with pytest.raises(RuntimeError, match=message):
                scnf.elbo(replaced)(*args)
        with pytest.raises(RuntimeError, match=message):
            replaced(n=3)
        replaced = REPLACED[replace](poutine.block(model, hide_types=["param"]), name)
        assert scnf.elbo(replaced)(x) == scnf.elbo(model)(x)  # the handler sees no parameter

    def users(x):
        pyro.module("flow", model.flow)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", model.class_probs(), infer={"enumerate": "parallel"})
            pyro.sample("x", model.flow.condition(y), obs=x)

    if replace == "substitute" and not converted:
        changed = poutine.substitute(users, {"prior.loc": FAR})
        assert scnf.elbo(changed)(x) == scnf.elbo(users)(x)


@unnoticed
def test_handlers_replace_parameters_of_other_names(model, x):
    def around(x):
        model(x - pyro.param("shift", torch.zeros(2, dtype=F64)))

    shift = torch.ones(2, dtype=F64)
    expected = -model.log_prob(x - shift).sum().item()
    assert scnf.elbo(poutine.substitute(around, {"shift": shift}))(x).item() == pytest.approx(expected)
    prior = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)
    lifted = poutine.condition(poutine.lift(around, prior={"shift": prior}), {"shift": shift})
    expected -= prior.log_prob(shift).item()
    assert scnf.elbo(lifted)(x).item() == pytest.approx(expected)
    with poutine.lift(prior={"flow.prior.loc": STANDARD, "prior.loc": STANDARD}):
        flow = toy_flow("gmm", dtype=F64).requires_grad_(False).eval()
        assert scnf.SemiSupervisedModel(flow)(x) is x  # Pyro sees no frozen parameters


@unnoticed
def test_handlers_replace_a_pyro_param_of_the_prior_and_not_of_the_transform(x):
    flow = toy_flow("gmm", dtype=F64)
    to_pyro_module_(flow)
    flow.prior.loc = PyroParam(flow.prior.loc.detach().clone())
    last = flow.transform.stages[0].layers[0].net.last
    last.bias = PyroParam(last.bias.detach().clone())
    model = scnf.SemiSupervisedModel(flow)
    changed = poutine.substitute(model, {"flow.prior.loc": FAR})
    found = [scnf.elbo(changed)(*args).item() for args in ((x,), (x, Y, x + 1))]
    flow.prior.loc = FAR
    expected = [scnf.elbo(model)(*args).item() for args in ((x,), (x, Y, x + 1))]
    assert found == pytest.approx(expected, rel=1e-10)
    name = "flow.transform.stages.0.layers.0.net.last.bias"
    with pytest.raises(RuntimeError, match=f"would replace the parameter {name} in vain"):
        scnf.elbo(poutine.substitute(model, {name: last.bias.detach() + 1}))(x)


# -- what must not raise ------------------------------------------------------------------------------
def test_structure_is_looked_at_without_complaint(model, x):
    """Traces, draws from the prior, rendering, and the setup of guides compute no loss."""
    poutine.trace(model).get_trace(x)
    poutine.trace(model).get_trace(x, torch.tensor([0, -1, 2, -1]))
    Predictive(model, num_samples=2)(n=3)
    pyro.infer.inspect.get_dependencies(model, (x,))
    pyro.infer.autoguide.AutoNormal(poutine.block(model, hide=["y"]))(x)


def test_an_elbo_that_guesses_the_depth_of_plates(model, x):
    loss = TraceEnum_ELBO(strict_enumeration_warning=False)
    assert loss.loss(model, scnf.exact_guide, x) == pytest.approx(-model.log_prob(x).sum().item(), rel=1e-10)


def test_plain_elbos_of_labelled_data(model, x):
    conditioned = poutine.condition(model, {"y": Y})
    for elbo in (Trace_ELBO, TraceGraph_ELBO):
        assert elbo().loss(conditioned, scnf.exact_guide, x) == elbo().loss(model, scnf.exact_guide, x, Y)
        assert elbo().loss(model, scnf.exact_guide, x, Y) == pytest.approx(
            scnf.elbo(model)(x, Y).item(), rel=1e-10
        )


@pytest.mark.parametrize("handler", ["sequential", "parallel"])
def test_config_enumerate_on_the_ready_model(model, x, handler):
    exact = -model.log_prob(x).sum().item()
    assert scnf.elbo(config_enumerate(model, handler))(x).item() == pytest.approx(exact, rel=1e-10)


def test_importance_sampling_from_the_guide(model, x):
    """The guide is the exact posterior, so the log-weight of every proposal is log p(x)."""
    posterior = pyro.infer.Importance(model, scnf.EMGuide(model, "sample"), num_samples=3)
    posterior.run(x)
    weights = torch.stack([torch.as_tensor(w) for w in posterior.log_weights])
    assert torch.allclose(weights, model.log_prob(x).sum().expand(3))


def test_known_labels_are_kept_where_nothing_enumerates():
    flow = toy_flow("gmm")
    model = scnf.SemiSupervisedModel(flow, torch.tensor([1.0, 2.0, 1.0])[: flow.num_classes])
    y = torch.tensor([1, 1, 0, -1, -1])
    trace = poutine.trace(model).get_trace(y=y)
    assert torch.equal(trace.nodes["y"]["value"][:3], y[:3])
    assert trace.nodes["x"]["value"].shape == (5, 2)
    draws = Predictive(model, num_samples=40)(flow.sample(y.clamp(min=0)), y)["y"]
    assert (draws[:, :3] == y[:3]).all()
    assert draws[:, 3:].unique().numel() > 1


# -- traps that Pyro leaves open ----------------------------------------------------------------------
def test_tensor_monte_carlo_counts_the_labels_once_more(model, x):
    """``TraceTMC_ELBO`` is off by log K for each row where a label is enumerated."""
    exact = -model.log_prob(x).sum().item()
    found = TraceTMC_ELBO(max_plate_nesting=1).loss(model, scnf.exact_guide, x)
    assert found == pytest.approx(exact + len(x) * math.log(3), rel=1e-10)
    assert scnf.elbo(model)(x).item() == pytest.approx(exact, rel=1e-12)


def test_predictive_draws_labels_from_their_prior(x):
    """Given x, too. ``sample_labels`` draws them from p(y | x)."""
    flow = toy_flow("gmm:separation=6.0", dtype=F64)
    model = scnf.SemiSupervisedModel(flow, torch.tensor([0.5, 0.3, 0.2], dtype=F64))
    x = flow.sample(torch.tensor([0, 1, 2]))
    posterior = model.posterior(x).probs.detach()
    assert (posterior - model.class_probs().probs).abs().max() > 0.3
    found = Predictive(model, num_samples=3000)(x)["y"]
    joint = scnf.enumerate_labels(model, (x,))
    given = scnf.sample_labels(joint.expand(3000, *joint.shape[1:]))
    for draws, expected in ((found, model.class_probs().probs.expand(3, 3)), (given, posterior)):
        shares = torch.nn.functional.one_hot(draws.reshape(3000, 3), 3).double().mean(0)
        assert (shares - expected).abs().max() < 4 * 0.5 / 3000**0.5


@pytest.mark.parametrize("labels", [None, Y])
def test_transform_reparam_of_observed_data(model, x, labels):
    """It leaves out the log-determinant of an observed x."""
    flow, args = model.flow, (x,) if labels is None else (x, labels)
    for config in ({"x": TransformReparam()}, lambda msg: TransformReparam() if msg["name"] == "x" else None):
        rewritten = poutine.reparam(model, config=config)
        with pytest.raises(RuntimeError, match="leaves out the log-determinant of the observed site 'x'"):
            scnf.elbo(rewritten)(*args)
        with pytest.raises(RuntimeError, match=r"use pyro_scnf\.FlowSitesReparam for this site"):
            TraceEnum_ELBO(max_plate_nesting=1).loss(rewritten, scnf.exact_guide, *args)
        assert rewritten(n=3).shape == (3, 2)  # draws are right

    model, x = model.float(), x.float()  # Pyro's masked zeros have the default dtype

    def users(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", model.class_probs(), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    rewritten, exact = poutine.reparam(users, config=config), -model.log_prob(x).sum().item()
    with pytest.raises(RuntimeError, match="leaves out the log-determinant of the observed site 'x'"):
        scnf.elbo(rewritten)(x)
    pyros = TraceEnum_ELBO(max_plate_nesting=1).loss(rewritten, scnf.exact_guide, x)
    assert pyros == pytest.approx(exact + flow.encode(x)[2].sum().item(), rel=1e-5)
    right = poutine.reparam(users, config={"x": scnf.FlowSitesReparam()})
    assert scnf.elbo(right)(x).item() == pytest.approx(exact, rel=1e-5)


def stein(model):
    return SVGD(model, RBFSteinKernel(), Adam({"lr": 0.01}), num_particles=3, max_plate_nesting=1)


def test_svgd_and_a_label():
    """SVGD needs a model without discrete sites: it refuses them, and draws those that are hidden."""
    flow = toy_flow("gmm", dtype=F64).requires_grad_(False)
    x = torch.randn(4, 2, dtype=F64)
    ready = scnf.SemiSupervisedModel(flow.eval())
    with pytest.raises(ValueError, match="Continuous inference cannot handle discrete sample site 'y'"):
        stein(with_share(flow)).step(x)

    def around(x):
        pyro.sample("share", dist.Dirichlet(torch.ones(3, dtype=F64)))
        ready(x)

    with pytest.raises(RuntimeError, match="the label 'y' is hidden from the loss"):
        stein(poutine.block(around, hide=["y"])).step(x)

    def without_label(x):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3, dtype=F64)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", scnf.LabelMarginal(flow, share), obs=x)

    assert stein(without_label).step(x)["share"] > 0


def test_a_random_parameter_of_the_flow_is_refused():
    flow = toy_flow("gmm")
    to_pyro_module_(flow)
    last = flow.transform.stages[0].layers[0].net.last
    last.bias = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pytest.raises(ValueError, match="cannot be PyroSample"):
        flow.condition(torch.tensor([0]))


def random_means():
    flow = toy_flow("gmm")
    to_pyro_module_(flow)
    del flow.prior.loc
    flow.prior.loc = PyroSample(dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    return flow, scnf.ClassProbs(3)


def random_shares():
    probs = scnf.ClassProbs(3)
    to_pyro_module_(probs)
    del probs.logits
    probs.logits = PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))
    return toy_flow("gmm"), probs


READ = {
    "posterior": lambda model, x: model.posterior(x),
    "log_prob": lambda model, x: model.log_prob(x),
    "score": lambda model, x: model.score(x),
    "LabelMarginal": lambda model, x: scnf.LabelMarginal(model.flow, model.class_probs).log_prob(x),
    "EMGuide": lambda model, x: poutine.trace(scnf.EMGuide(model)).get_trace(x),
    "LabelMarginal in a program": lambda model, x: scnf.elbo(
        lambda: pyro.sample("x", scnf.LabelMarginal(model.flow, model.class_probs), obs=x)
    )(),
}


@pytest.mark.parametrize("make", [random_means, random_shares])
@pytest.mark.parametrize("reading", READ)
def test_a_random_parameter_outside_of_a_call(make, reading):
    """It would be a draw from its prior, another one each time."""
    model, x = scnf.SemiSupervisedModel(*make()), torch.randn(4, 2)
    with pytest.raises(ValueError, match="is a PyroSample"):
        READ[reading](model, x)
    assert poutine.trace(model).get_trace(x).nodes["x"]["value"] is x
    assert model(n=3).shape == (3, 2)
