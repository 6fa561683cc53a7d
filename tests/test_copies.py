"""What users hold can be copied, saved, moved and sent to another process at any time, and holds no more than
it needs.
"""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import CONDITIONAL_TRANSFORMS, GUIDES, PRIORS, TERMS, TRANSFORMS
from helpers import perturb, toy_flow
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf import sharing

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1])


def _saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


CLONES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "save": _saved,
    "send": lambda thing: pickle.loads(ForkingPickler.dumps(thing)),
}
"""``send`` is what ``multiprocessing`` does. It refuses tensors with a graph."""

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": nullcontext,
    "no_grad": torch.no_grad,
    "shared": scnf.share_encoding,
}

clones = pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
deep = pytest.mark.parametrize("clone", [c for n, c in CLONES.items() if n != "copy"], ids=list(CLONES)[1:])
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected.detach(), atol=1e-5, rtol=1e-5)


def svi_step(flow: scnf.SemiConditionalFlow) -> None:
    """A step of SVI through ``pyro.module``. It puts weak references on the parameters."""

    def model(x: Tensor) -> None:
        pyro.module("flow", flow.train(False))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    pyro.infer.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-3}), elbo).step(X)
    assert any(hasattr(p, "unconstrained") for p in flow.parameters())


# -- distributions ---------------------------------------------------------------------------------
RELAXED = torch.tensor([[0.5, 0.3, 0.2]]).expand(5, 3)

Maker = Callable[[scnf.SemiConditionalFlow], Any]
DISTRIBUTIONS: dict[str, Maker] = {
    "condition": lambda flow: flow.condition(Y),
    "condition, colder": lambda flow: flow.condition(Y, 0.5),
    "condition of weights": lambda flow: flow.condition(RELAXED.clone().requires_grad_() * 1.0),
    "condition of all labels": lambda flow: flow.condition(torch.arange(3)[:, None]),
    "condition, expanded": lambda flow: flow.condition(torch.tensor(1)).expand((5,)),
    "condition, masked": lambda flow: flow.condition(Y).mask(torch.arange(5) < 3),
    "condition, to_event": lambda flow: flow.condition(Y).to_event(1),
    "base": lambda flow: flow.base(Y),
    "base, expanded": lambda flow: flow.base(Y).expand((2, 5)),
    "marginal": lambda flow: scnf.LabelMarginal(flow, scnf.ClassProbs(3, "learnable")),
    "marginal, expanded": lambda flow: scnf.LabelMarginal(flow, RELAXED[0] * torch.ones(())).expand((5,)),
}


def use(d: Any) -> Tensor:
    """Draw from a distribution, score the draw and a constant. Return the score of the constant."""
    draw = d.rsample() if d.has_rsample else d.sample()
    d.log_prob(draw)
    d.log_prob(draw.detach().clone())
    return d.log_prob(torch.full_like(draw, 0.3).detach())


@pytest.mark.parametrize("make", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize("prior", ["gmm", "flow"])
class TestDistributions:
    @clones
    @modes
    def test_copies_after_use(self, make, prior, clone, mode):
        flow = toy_flow(prior)
        d = make(flow)
        with mode():
            before = use(d)
            inside = clone(d)
            close(use(inside), before)
        close(use(clone(d)), before)
        assert clone(d).batch_shape == d.batch_shape
        assert clone(d).expand((2, *d.batch_shape)).sample().shape[:1] == (2,)

    @deep
    def test_copies_after_steps_of_svi(self, make, prior, clone):
        flow = toy_flow(prior)
        svi_step(flow)
        d = make(flow)
        before = use(d)
        svi_step(flow)  # the marks come back
        svi_step(flow)
        expected = use(d)
        if isinstance(d, type(flow.condition(Y))):  # others hold parameters as they were
            assert not torch.allclose(before, expected, atol=1e-6)
        close(use(clone(d)), expected)
        svi_step(flow)  # and a copy does not hinder training

    @deep
    def test_copies_are_apart(self, make, prior, clone):
        flow = toy_flow(prior)
        d = make(flow)
        if clone is CLONES["send"]:
            pytest.skip("it shares memory, as tensors that are sent to a process on this machine do")
        twin = clone(d)
        before = use(twin)
        perturb(flow)
        close(use(twin), before)

    def test_a_copy_shares_parameters_and_graphs(self, make, prior):
        flow = toy_flow(prior)
        d = make(flow)
        parameters = [p for p in flow.parameters() if p.requires_grad]
        grads = []
        for given in (d, copy.copy(d)):
            value = given.log_prob(torch.full((5, 2), 0.3)) if "base" not in str(type(d)) else use(given)
            grads.append(
                torch.autograd.grad(
                    value.sum(), parameters, allow_unused=True, materialize_grads=True, retain_graph=True
                )
            )
        assert any(g.abs().sum() > 0 for g in grads[0])
        for got, want in zip(grads[1], grads[0], strict=True):
            close(got, want)

    def test_a_deepcopy_holds_no_graph(self, make, prior):
        d = make(toy_flow(prior))
        use(d)
        twin = copy.deepcopy(d)
        stack, seen = [twin], set()
        while stack:
            thing = stack.pop()
            if id(thing) in seen or isinstance(thing, torch.nn.Module):
                continue
            seen.add(id(thing))
            if isinstance(thing, Tensor):
                assert thing.grad_fn is None
            elif isinstance(thing, list | tuple):
                stack += thing
            elif isinstance(thing, dist.Distribution | torch.distributions.Transform):
                stack += vars(thing).values()


@pytest.mark.parametrize("case", PRIORS.values(), ids=PRIORS)
@deep
def test_distributions_of_every_prior(case, clone):
    prior, y = case.member(torch.float32), torch.arange(3) % case.num_classes
    given = prior.condition(y)
    before = use(given)
    close(use(clone(given)), before)
    flow = scnf.SemiConditionalFlow(scnf.transforms.ActNorm(case.event_shape), prior)
    d = flow.condition(y)
    before = use(d)
    close(use(clone(d)), before)


def test_a_deepcopy_of_model_and_distribution_keeps_them_together():
    flow = toy_flow("flow")
    held = {"flow": flow, "given": flow.condition(Y)}
    twin = copy.deepcopy(held)
    assert twin["given"].owner is twin["flow"]
    assert twin["flow"] is not flow


# -- transforms ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CONDITIONAL_TRANSFORMS.values(), ids=CONDITIONAL_TRANSFORMS)
@clones
@modes
def test_conditioned_transforms_copy_after_use(case, clone, mode):
    """Their context has a graph, as the embedding of a label has."""
    layer = case.member(torch.float32)
    weight = torch.randn(3, case.context_dim, requires_grad=True)
    x, z = case.values((3,), torch.float32), case.latents((3,), torch.float32)
    with mode():
        t = layer.condition(weight * 2.0)
        before = t.inv(x)
        decoded = t(z)
    for given, value, expected in ((t, z, decoded), (t.inv, x, before)):
        twin = clone(given)
        torch.testing.assert_close(twin(value), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(twin.inv(twin(value)), value, atol=1e-2, rtol=1e-2)
    twin = clone(t)
    assert twin.inv.inv is twin


@pytest.mark.parametrize("name", ["glow-2d", "realnvp-image", "atanov2019-small"])
@deep
def test_layers_copy_after_steps_of_svi(name, clone):
    case = TRANSFORMS[name]
    layer, x = case.member(torch.float32), case.values((3,), torch.float32)
    pyro.module("layer", layer.train(False))
    assert any(hasattr(p, "unconstrained") for p in layer.parameters())
    z = layer.inv(x)
    close(clone(layer).inv(x), z)
    close(clone(layer.inv)(x), z)


# -- modules and losses ------------------------------------------------------------------------------
MODULES: dict[str, Callable[[scnf.SemiSupervisedModel], Any]] = {
    "flow": lambda model: model.flow,
    "transform": lambda model: model.flow.transform,
    "prior": lambda model: model.flow.prior,
    "aux": lambda model: scnf.distributions.BaseNormal((2,)),
    "class_probs": lambda model: model.class_probs,
    "conditioner": lambda model: next(m for m in model.modules() if isinstance(m, scnf.nn.Conditioner)),
    "layer.inv": lambda model: model.flow.prior.flow.inv,
    "model": lambda model: model,
    "loss": lambda model: scnf.elbo(model),
    "loss with terms": lambda model: scnf.elbo(model, terms=["balance", "classification"]),
    "model with terms": lambda model: scnf.with_terms(model, "balance"),
    **{f"guide {name}": make for name, make in GUIDES.items() if name != "exact"},
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@clones
def test_modules_copy_after_steps_of_svi(make, clone):
    """Every module that users hold, pickled on its own, with Pyro's marks on its parameters."""
    model = scnf.SemiSupervisedModel(toy_flow("flow"), "learnable")
    thing = make(model)
    pyro.module("thing", thing, update_module_params=False) if thing is not model else None
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    svi = pyro.infer.SVI(model, scnf.exact_guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    svi.step(X[:2], Y[:2], X[2:])
    assert any(hasattr(p, "unconstrained") for p in thing.parameters())
    twin = clone(thing)
    assert type(twin) is type(thing)
    ours, theirs = thing.state_dict(), twin.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(theirs[name], value), name
    if clone is copy.copy:
        assert all(a is b for a, b in zip(thing.parameters(), twin.parameters(), strict=True))
    svi.step(X[:2], Y[:2], X[2:])


@pytest.mark.parametrize("guide", GUIDES)
@deep
def test_losses_copy_after_use(guide, clone):
    model = scnf.SemiSupervisedModel(toy_flow("gmm"), "learnable")
    loss = scnf.elbo(model, GUIDES[guide](model), terms=["balance"])
    loss(X[:2], Y[:2], X[2:]).backward()
    torch.manual_seed(0)
    before = loss(X[:2], Y[:2], X[2:])
    twin = clone(loss)
    torch.manual_seed(0)
    close(twin(X[:2], Y[:2], X[2:]), before)
    twin(X[:2], Y[:2], X[2:]).backward()


def test_a_compiled_flow_copies():
    flow = toy_flow("flow")
    flow.compile(backend="eager")
    d = flow.condition(Y)
    before = use(d)
    for clone in CLONES.values():
        close(use(clone(d)), before)
        close(clone(flow).log_prob(X), flow.log_prob(X))


@pytest.mark.parametrize("name", TERMS)
@clones
def test_what_terms_see_copies(name, clone):
    model = scnf.SemiSupervisedModel(toy_flow("gmm"))
    with torch.no_grad():
        scored = model.score(X)
    step = scnf.terms.Step(Y[:0], 0.5, None, None, scored, None, None)
    twin = clone(step)
    close(twin.unlabelled.given, scored.given)
    assert clone(TERMS[name].build()) == TERMS[name].build()


@clones
def test_data_sets_copy(clone):
    data = scnf.datasets.toy("moons", num_train=20, num_test=4)
    twin = clone(data)
    assert type(twin) is type(data)
    for name, value in vars(data).items():
        assert torch.equal(getattr(twin, name), value) if isinstance(value, Tensor) else True, name


# -- traces ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", ["gmm", "flow"])
@pytest.mark.parametrize("name", ["pickle", "save", "copy"])
@modes
def test_traces_of_functions(prior, name, mode):
    """(A trace with log-densities does not deep-copy, because these are tensors with a graph.)"""
    flow = toy_flow(prior)
    svi_step(flow)
    with mode():
        trace = pyro.poutine.trace(lambda: pyro.sample("x", flow.condition(Y))).get_trace()
        before = trace.nodes["x"]["fn"].log_prob(X)
        twin = CLONES[name](trace)
    close(twin.nodes["x"]["fn"].log_prob(X), before)
    close(twin.nodes["x"]["value"], trace.nodes["x"]["value"])
    copy.deepcopy(trace.nodes["x"]["fn"])


@pytest.mark.parametrize("name", ["pickle", "save", "deepcopy"])
def test_traces_of_models(name):
    """A trace of a model has sites of its parameters. They hold Pyro's marks, which nothing can pickle."""
    model = scnf.SemiSupervisedModel(toy_flow("flow"))
    with torch.no_grad():
        trace = pyro.poutine.trace(pyro.poutine.block(model, hide_types=["param"])).get_trace(X, Y)
    twin = CLONES[name](trace)
    close(twin.nodes["x"]["fn"].log_prob(X), trace.nodes["x"]["fn"].log_prob(X))


@pytest.mark.parametrize("labels", [Y, torch.tensor([0, -1, 2, -1, 0]), None], ids=["all", "some", "none"])
def test_deepcopies_of_traces_with_graphs(labels):
    """Of learnable class probabilities, which are distributions with a graph."""
    model = scnf.SemiSupervisedModel(toy_flow("gmm"), "learnable")
    for program in (model, scnf.EMGuide(model)):
        trace = pyro.poutine.trace(program).get_trace(X, labels)
        twin = copy.deepcopy(trace)
        for name, node in twin.nodes.items():
            if node["type"] == "sample":
                close(node["fn"].log_prob(node["value"]), trace.nodes[name]["fn"].log_prob(node["value"]))


@deep
def test_distributions_of_labels(clone):
    model = scnf.SemiSupervisedModel(toy_flow("gmm"), "learnable")
    marginal = scnf.LabelMarginal(model.flow, model.class_probs)
    for labels in (model.class_probs(), model.posterior(X), model.flow.posterior(X), marginal.posterior(X)):
        assert labels.logits.requires_grad
        twin = clone(labels)
        close(twin.logits, labels.logits)
        close(twin.expand((2, *labels.batch_shape)).probs[0], labels.probs)
        assert type(twin) is type(labels)


# -- moving ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", ["gmm", "flow", "gmm:covariance=full", "student-t"])
def test_a_flow_moves_after_use(prior):
    """What is made after a move has the new dtype. What was made before says what to do."""
    flow = toy_flow(prior)
    held = flow.condition(Y)
    before = use(held)
    flow.double()
    now = flow.condition(Y)
    assert now.rsample().dtype == torch.float64
    value = now.log_prob(torch.full((5, 2), 0.3, dtype=torch.float64))
    assert value.dtype == torch.float64
    close(value.float(), before)
    loss = scnf.elbo(scnf.SemiSupervisedModel(flow))
    assert loss(X.double(), Y).dtype == torch.float64


def _score(given: Any, x: Tensor) -> list[float]:
    return given.log_prob(x).tolist()


@pytest.mark.parametrize("prior", ["gmm", "flow"])
def test_another_process_gets_a_distribution_that_was_used(prior):
    given = toy_flow(prior).condition(Y)
    before = use(given)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(_score, given, torch.full((5, 2), 0.3)).result(timeout=300)  # it may be busy
    close(torch.tensor(found), before)


# -- memory ------------------------------------------------------------------------------------------
class _Probe(torch.autograd.Function):
    """The identity. Its graph holds a token, which tells whether the graph is alive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Any) -> Tensor:
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class _Token:
    pass


def probed() -> tuple[Tensor, weakref.ref[_Token]]:
    """Data with a graph, and a reference that is dead once that graph is gone."""
    token = _Token()
    return _Probe.apply(X.clone().requires_grad_(), token), weakref.ref(token)


HOLDERS: dict[str, Callable[[scnf.SemiSupervisedModel], tuple[Any, Callable[[Tensor], object]]]] = {
    "flow": lambda m: (m.flow, lambda x: (m.flow.log_prob(x), m.flow.posterior(x), m.flow.encode(x))),
    "transform": lambda m: (t := m.flow.transform, lambda x: (t.inv(x), t(x), t.log_abs_det_jacobian(x, x))),
    "transform, flow of Pyro": lambda m: (
        d := dist.TransformedDistribution(dist.Normal(X, 1.0).to_event(1), [m.flow.transform]),
        lambda x: (d.log_prob(x), d.rsample()),
    ),
    "conditioned transform": lambda m: (
        t := m.flow.prior.flow.condition(m.flow.prior.context(Y).detach()),
        lambda x: (t.inv(x), t(x)),
    ),
    "condition": lambda m: (d := m.flow.condition(Y), lambda x: (d.log_prob(x), d.rsample(), d.log_prob(x))),
    "base": lambda m: (d := m.flow.base(Y), lambda x: d.log_prob(m.flow.encode_flat(x)[0])),
    "prior": lambda m: (m.flow.prior, lambda x: m.flow.prior.class_log_prob(x)),
    "marginal": lambda m: (d := scnf.LabelMarginal(m.flow), lambda x: (d.log_prob(x), d.posterior(x))),
    "model": lambda m: (m, lambda x: (m(x), m(x, Y), m(x, Y, x), m.score(x))),
    "guide": lambda m: (g := scnf.EMGuide(m), lambda x: scnf.elbo(m, g)(x)),
    "loss": lambda m: (loss := scnf.elbo(m, terms="balance"), lambda x: loss(x[:2], Y[:2], x[2:])),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("block", [nullcontext, scnf.share_encoding], ids=["alone", "shared"])
def test_nothing_keeps_a_graph_or_a_batch(holder, block):
    """The holder is alive, the results are gone: so are the graph of the data and the data."""
    held, apply = holder(scnf.SemiSupervisedModel(toy_flow("flow")))
    with block():
        x, graph = probed()
        data = weakref.ref(x)
        apply(x)
        del x
    gc.collect()
    assert held is not None
    assert data() is None
    assert graph() is None


@pytest.mark.parametrize("direction", ["inv", "call", "rsample"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_layer_keeps_no_log_determinant_of_a_result_that_is_gone(name, direction):
    """Also where the graph of the log-determinant holds the result, or where the result is the value."""
    case = TRANSFORMS[name]
    layer = case.member()
    flow = dist.TransformedDistribution(case.base(), [layer])
    value = case.values((3,)) if direction == "inv" else case.latents((3,)).requires_grad_()
    uses = {"inv": lambda: layer.inv(value), "call": lambda: layer(value), "rsample": flow.rsample}
    kept = uses[direction]()
    assert direction == "rsample" or layer._memo is not None
    del kept
    gc.collect(0)
    assert layer._memo is None


def test_a_block_outlives_no_data():
    """A distribution that remembers its block holds nothing of it once the block is closed."""
    flow = toy_flow("flow")
    with scnf.share_encoding():
        given = flow.condition(torch.arange(3)[:, None])
        x, graph = probed()
        given.log_prob(x)
        assert sharing.current().entries
        del x
    gc.collect()
    assert given.block.closed
    assert not given.block.entries
    assert graph() is None


def test_parts_of_a_loss_are_numbers():
    loss = scnf.elbo(scnf.SemiSupervisedModel(toy_flow("gmm")), terms="balance")
    loss(X[:2], Y[:2], X[2:])
    assert all(part.grad_fn is None and part.dim() == 0 for part in loss.parts.values())
