"""One class table a step: how often the prior runs, and when a table is kept."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import counting, gradient_error, gradients, relative, toy_flow
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from pyro.optim import Adam

import pyro_scnf as scnf
from pyro_scnf import sharing

F64 = torch.float64
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, -1, -1, 1, -1])
VIEW = X[2:] + 0.1
PAIRS = torch.tensor([[0, 2], [3, 5]])
FORMS = {"unlabelled": (X,), "labelled": (X, Y.abs()), "partly": (X, Y), "two plates": (X[:2], Y[:2], X[2:])}


@contextmanager
def conditioner_rows(prior: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of each pass through the network of a flow prior of one coupling."""
    rows: list[int] = []
    nets = [m for m in prior.modules() if isinstance(m, scnf.nn.Conditioner)]
    hook = nets[0].last.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    try:
        yield rows
    finally:
        hook.remove()


# With 3 labels, a table of n rows is 3 n rows of the network. A label that is known or drawn costs one row.
PLAIN = {
    ("exact", "unlabelled"): [18],
    ("exact", "labelled"): [6],
    ("exact", "partly"): [18],
    ("exact", "two plates"): [12, 2],
    ("em", "unlabelled"): [18],
    ("em", "labelled"): [6],
    ("em", "partly"): [18],
    ("em", "two plates"): [12, 2],
    ("em-sample", "unlabelled"): [18, 6],  # the guide's table has no graph
    ("em-sample", "labelled"): [6],
    ("em-sample", "partly"): [18, 6],
    ("em-sample", "two plates"): [12, 2, 4],
    ("em-hard", "unlabelled"): [18, 6],
    ("em-hard", "labelled"): [6],
    ("em-hard", "partly"): [18, 6],
    ("em-hard", "two plates"): [12, 2, 4],
    ("em-ema", "unlabelled"): [18],
    ("em-ema", "labelled"): [6],
    ("em-ema", "partly"): [18],
    ("em-ema", "two plates"): [12, 2],
}


@pytest.mark.parametrize(("guide", "form"), PLAIN)
def test_rows_of_the_prior_in_a_step_without_terms(guide, form):
    model = scnf.SemiSupervisedModel(toy_flow("flow"))
    loss = scnf.elbo(model, scnf.make_guide(guide, model))
    with conditioner_rows(model.flow.prior) as rows, counting(model.flow.prior, "class_scores") as tables:
        loss(*FORMS[form]).backward()
    assert sorted(rows) == sorted(PLAIN[guide, form])
    assert tables.calls == (form != "labelled")


TERMS = {
    "unlabelled": ([("balance",)], 18),
    "labelled": ([("classification",)], 18),
    "partly": ([("balance",), ("classification",), ("classification", "balance")], 18),
    "two plates": ([("classification", "balance"), ("classification", "agreement", "balance")], 18),
}


@pytest.mark.parametrize("guide", scnf.GUIDES)
@pytest.mark.parametrize(
    ("form", "terms", "total"), [(form, t, n) for form, (terms, n) in TERMS.items() for t in terms]
)
def test_one_table_a_step_serves_terms_guide_and_model(guide, form, terms, total):
    model = scnf.SemiSupervisedModel(toy_flow("flow"))
    loss = scnf.elbo(model, scnf.make_guide(guide, model), terms)
    options = {"pairs": PAIRS} if "agreement" in terms else {}
    with (
        conditioner_rows(model.flow.prior) as rows,
        counting(model.flow.prior, "class_scores") as tables,
        counting(model.flow.transform, "inverse_and_ladj") as passes,
    ):
        loss(*FORMS[form], **options).backward()
    assert (rows, tables.calls, passes.rows) == ([total], 1, [6])


@pytest.mark.parametrize("guide", scnf.GUIDES)
@pytest.mark.parametrize(
    ("terms", "options", "expected", "encoded"),
    [
        (("balance",), {}, [12, 2], 6),  # labelled rows need no table
        (("agreement",), {"pairs": PAIRS}, [12, 2], 6),
        (("consistency",), {"view": VIEW}, [24, 2], 10),
        (
            ("classification", "agreement", "balance", "consistency", "consistency:kind=probabilities"),
            {"view": VIEW, "pairs": PAIRS},
            [30],
            10,
        ),
    ],
)
def test_rows_of_a_table_are_those_that_terms_need(guide, terms, options, expected, encoded):
    model = scnf.SemiSupervisedModel(toy_flow("flow"))
    loss = scnf.elbo(model, scnf.make_guide(guide, model), terms)
    with (
        conditioner_rows(model.flow.prior) as rows,
        counting(model.flow.prior, "class_scores") as tables,
        counting(model.flow.transform, "inverse_and_ladj") as passes,
    ):
        loss(*FORMS["two plates"], **options).backward()
    assert (rows, tables.calls, passes.rows) == (expected, 1, [encoded])


# -- in a block -------------------------------------------------------------------------------------
def test_a_block_keeps_the_table_of_a_frozen_flow_and_prior():
    flow = toy_flow("gmm").requires_grad_(False)
    model = scnf.SemiSupervisedModel(flow, "learnable")
    loss, logits = scnf.elbo(model, terms="balance"), model.class_probs.logits
    with counting(flow.prior, "class_scores") as tables, scnf.share_encoding():
        first = loss(X)
        assert tables.calls == 1
        second = loss(X)
        flow.log_prob(X), flow.posterior(X), model.score(X)
        assert tables.calls == 1
    assert first.item() == second.item()
    found, expected = (torch.autograd.grad(value, logits)[0] for value in (second, loss(X)))
    assert torch.equal(found, expected)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("graph_of", ["flow and prior", "prior", "flow"])
def test_a_block_does_not_keep_a_table_that_has_a_graph(graph_of):
    """A later evaluation may need a graph of its own."""
    flow = toy_flow("flow").requires_grad_(False)
    for part in graph_of.split(" and "):
        {"flow": flow.transform, "prior": flow.prior}[part].requires_grad_(True)
    loss = scnf.elbo(scnf.SemiSupervisedModel(flow))
    with (
        counting(flow.prior, "class_scores") as tables,
        counting(flow.transform, "inverse_and_ladj") as passes,
        scnf.share_encoding(),
    ):
        for _ in range(3):
            loss(X)
    assert (tables.calls, passes.calls) == (3, 1)


def test_outside_of_an_evaluation_no_table_with_a_graph_is_kept():
    flow = toy_flow("gmm", dtype=F64)
    flow.transform.requires_grad_(False)
    x, grads = X.double(), []
    with counting(flow.prior, "class_scores") as tables, scnf.share_encoding():
        for _ in range(2):
            grads.append(torch.autograd.grad(flow.log_prob(x).sum(), flow.prior.loc)[0])
        assert tables.calls == 2
        with torch.no_grad():
            flow.log_prob(x), flow.log_prob(x)
        assert tables.calls == 3
    assert torch.equal(*grads)


def test_two_backward_passes_in_a_block_with_a_frozen_flow():
    flow = toy_flow("flow", dtype=F64)
    flow.transform.requires_grad_(False)
    model, x = scnf.SemiSupervisedModel(flow), X.double()
    loss = scnf.elbo(model, scnf.EMGuide(model), "balance")
    loss(x).backward()
    once = {name: p.grad.clone() for name, p in flow.prior.named_parameters()}
    flow.zero_grad()
    with scnf.share_encoding():
        for _ in range(2):
            loss(x).backward()
    for name, p in flow.prior.named_parameters():
        assert relative(p.grad, 2 * once[name]) < 1e-12, name


def test_a_table_is_not_stale_after_a_change_of_the_prior():
    flow = toy_flow("gmm").requires_grad_(False)
    with scnf.share_encoding(), counting(flow.transform, "inverse_and_ladj") as passes:
        before = flow.class_table(X)
        flow.prior.loc.add_(1.0)
        after = flow.class_table(X)
        flow.prior.loc.data.add_(1.0)
        last = flow.class_table(X)
    assert passes.calls == 1
    assert torch.equal(last, flow.class_table(X))
    assert not torch.equal(before, after)
    assert not torch.equal(after, last)


# -- the two plates, outside of elbo ----------------------------------------------------------------
def svi_step(model, guide, *args):
    pyros = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    SVI(model, guide, Adam({"lr": 1e-3}), pyros).step(*args)


@pytest.mark.parametrize("terms", [None, ("classification", "balance")])
@pytest.mark.parametrize(("guide", "own"), [("exact", []), ("em", [4]), ("em-sample", [4])])
@pytest.mark.parametrize("share", [False, True])
def test_two_plates_under_plain_svi_run_the_flow_once_for_all_rows(terms, guide, own, share):
    """A guide has its own pass over the unlabelled rows, unless the user opens a block."""
    model = scnf.SemiSupervisedModel(toy_flow("flow"))
    trained = model if terms is None else scnf.with_terms(model, terms)
    guide = scnf.make_guide(guide, model)
    with counting(model.flow.transform, "inverse_and_ladj") as passes:
        if share:
            with scnf.share_encoding():
                svi_step(trained, guide, *FORMS["two plates"])
        else:
            svi_step(trained, guide, *FORMS["two plates"])
    assert passes.rows == ([6] if share else [*own, 6])


@pytest.mark.parametrize("terms", [None, ("classification", "balance")])
@pytest.mark.parametrize("form", FORMS)
def test_plain_svi_has_the_loss_of_elbo(terms, form):
    if terms is not None:
        terms = {"unlabelled": terms[1:], "labelled": terms[:1]}.get(form, terms)
    model = scnf.SemiSupervisedModel(toy_flow("flow", dtype=F64), "learnable")
    args = [a.double() if a.is_floating_point() else a for a in FORMS[form]]
    trained = model if terms is None else scnf.with_terms(model, terms)
    pyros = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    plain = pyros.differentiable_loss(trained, scnf.exact_guide, *args)
    ours = scnf.elbo(model, terms=terms)(*args)
    assert relative(plain, ours) < 1e-12
    assert gradient_error(gradients(model, plain), gradients(model, ours)) < 1e-10


# -- distributions that outlive a block -------------------------------------------------------------
@pytest.mark.parametrize("y", [torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(3)[:, None]])
def test_a_distribution_scores_after_its_block_has_ended(y):
    flow = toy_flow("flow")
    with scnf.share_encoding():
        given = flow.condition(y)
        inside = given.log_prob(X)
    assert torch.allclose(given.log_prob(X), inside, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        next(flow.transform.parameters()).add_(0.5)
    with counting(flow.transform, "inverse_and_ladj") as passes:
        assert torch.equal(given.log_prob(X), flow.condition(y).log_prob(X))
    assert passes.calls == 2
    assert not given.block.entries  # nothing is kept in it any more


def carried(model, *args):
    """The distributions of x and x_unlabelled in a trace. The model's own block goes on with them."""
    nodes = poutine.trace(poutine.enum(model, first_available_dim=-2)).get_trace(*args).nodes
    return nodes["x"]["fn"], nodes["x_unlabelled"]["fn"]


@pytest.mark.parametrize("change", ["transform", "prior.flow"])
def test_a_carried_distribution_sees_changed_parameters(change):
    """A write through ``.data`` is one that PyTorch does not count."""
    flow = toy_flow("flow")
    x, y, u = FORMS["two plates"]
    labelled, unlabelled = carried(scnf.SemiSupervisedModel(flow), x, y, u)
    before = unlabelled.log_prob(u)
    with counting(flow.transform, "inverse_and_ladj") as passes:
        assert torch.equal(unlabelled.log_prob(u), before)
        labelled.log_prob(x)
    assert passes.calls == 0  # it does use its block
    for parameter in flow.get_submodule(change).parameters():
        parameter.data.add_(0.1)
    for found, rows, labels in ((labelled, x, y), (unlabelled, u, torch.arange(3)[:, None])):
        assert relative(found.log_prob(rows), flow.condition(labels).log_prob(rows)) < 1e-6
    assert not torch.allclose(unlabelled.log_prob(u), before)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
@pytest.mark.parametrize("y", [torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(3)[:, None]])
@torch.no_grad()  # PyTorch copies no tensor that has a graph, and the prior's context has one
def test_a_carried_distribution_can_be_copied_and_holds_no_data(clone, y):
    flow = toy_flow("flow")
    with sharing.carried():
        given = flow.condition(y).expand((3, 6) if y.dim() == 2 else (6,))
    found = given.log_prob(X)
    assert given.block.entries  # it has kept what it computed, in a block that nobody else holds
    other = clone(given)
    assert other.block is None
    assert other.owner is not flow
    assert torch.allclose(other.log_prob(X), found, rtol=1e-6, atol=1e-6)
    assert torch.equal(given.log_prob(X), found)


# -- random priors ----------------------------------------------------------------------------------
def random_prior():
    """A flow whose prior has random means."""
    flow = toy_flow("gmm").requires_grad_(False)
    to_pyro_module_(flow)
    del flow.prior.loc
    flow.prior.loc = PyroSample(dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    return flow


def test_a_random_prior_is_never_served_from_a_table():
    flow, y = random_prior(), torch.arange(3)[:, None]
    with scnf.share_encoding():
        first, second = (flow.condition(y).log_prob(X) for _ in range(2))
        assert not torch.equal(first, second)
        with pytest.raises(ValueError, match=r"^prior\.loc is a PyroSample"):
            flow.class_table(X)
        kinds = {key[0] for key in sharing.current().entries}
    assert kinds == {"encoding"}


def test_a_model_with_a_random_prior_scores_the_means_that_it_drew():
    flow, fixed = random_prior(), toy_flow("gmm")

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self, x):
            _ = self.flow.prior.loc  # drawn before the plate: one set of means, not one for each row
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
                pyro.sample("x", self.flow.condition(y), obs=x)

    model, means = Model(), []
    with sharing.evaluation():  # here a block keeps every class table that it may keep
        for _ in range(2):
            trace = poutine.trace(poutine.enum(model, first_available_dim=-2)).get_trace(X)
            trace.compute_log_prob()
            means.append(trace.nodes["flow.prior.loc"]["value"])
            fixed.load_state_dict({**flow.state_dict(), "prior.loc": means[-1]})
            hand = fixed.condition(torch.arange(3)[:, None]).log_prob(X.clone())
            assert relative(trace.nodes["x"]["log_prob"], hand) < 1e-5
    assert not torch.equal(*means)
