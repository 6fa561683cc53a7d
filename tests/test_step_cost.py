"""A call of the model visits each parameter once, and sharing stays valid all the same."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pyro
import pytest
import torch
from helpers import counting, image_flow, toy_flow
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_scnf as scnf
from pyro_scnf import sharing

X, Y = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


class ParamSites(Messenger):
    """Counts how often the site of each parameter is visited."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def _pyro_param(self, msg) -> None:
        self.counts[msg["name"]] += 1


def learnable(prior: str = "gmm", **options) -> scnf.SemiSupervisedModel:
    return scnf.SemiSupervisedModel(toy_flow(prior), "learnable", **options)


# -- parameter sites --------------------------------------------------------------
class Outer(PyroModule):
    """A larger model that contains ours."""

    def __init__(self) -> None:
        super().__init__()
        self.scnf = learnable()

    def forward(self, *args):
        return self.scnf(*args)


PRIORS = ("flow", "gmm", "student-t", "flowgmm")
ARGS = [(X,), (X, Y), (X, torch.where(Y > 1, -1, Y)), (X, Y, X + 1)]
TERMS = [["balance"], ["classification"], ["balance", "classification"], ["balance", "classification"]]


@pytest.mark.parametrize("args", ARGS)
@pytest.mark.parametrize("build", [learnable, Outer])
def test_each_parameter_has_one_site_a_call(build, args):
    model = build()
    for _ in range(2):
        with ParamSites() as sites:
            scnf.elbo(model)(*args)
        assert len(sites.counts) == len(list(model.parameters()))
        assert set(sites.counts.values()) == {1}


@pytest.mark.parametrize(("args", "terms"), list(zip(ARGS, TERMS, strict=True)))
@pytest.mark.parametrize("attach", ["elbo", "with_terms"])
def test_training_terms_add_no_site_of_a_parameter(attach, args, terms):
    model = learnable()
    loss = scnf.elbo(model, terms=terms)
    if attach == "with_terms":
        loss = scnf.elbo(scnf.with_terms(model, terms))
    for _ in range(2):
        with ParamSites() as sites:
            loss(*args)
        assert len(sites.counts) == len(list(model.parameters()))
        assert set(sites.counts.values()) == {1}


def test_every_call_has_the_sites_of_its_own_trace():
    model = learnable()
    traces = [poutine.trace(model).get_trace(X, Y) for _ in range(2)]
    for trace in traces:
        found = {id(trace.nodes[name]["value"].unconstrained()) for name in trace.param_nodes}
        assert found == {id(parameter) for parameter in model.parameters()}


def test_sites_are_those_of_a_flow_put_in_later():
    model = learnable()
    model(X, Y)
    pyro.clear_param_store()
    model.flow = toy_flow("gmm")
    trace = poutine.trace(model).get_trace(X, Y)
    found = {id(trace.nodes[name]["value"].unconstrained()) for name in trace.param_nodes}
    assert found == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("terms", [None, ["classification", "balance"]])
def test_svi_with_pyros_optimiser_moves_every_parameter(terms):
    model = learnable("flow")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    trained = model if terms is None else scnf.with_terms(model, terms)
    svi = SVI(trained, scnf.exact_guide, Adam({"lr": 0.01}), elbo)
    # Last layers start at zero, so the layers before them get no gradient in the first step.
    for _ in range(3):
        svi.step(X, Y, X + 1)
    unmoved = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert unmoved == []


# -- values read back from the device ---------------------------------------------
class Reads(TorchDispatchMode):
    """Counts what waits for the device: values that Python reads, and results whose size depends on values.

    On a GPU, all kernels that were started before have to end first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def reads(run) -> int:
    with Reads() as mode:
        run()
    return mode.count


@pytest.mark.parametrize("flow", [partial(toy_flow, prior) for prior in PRIORS] + [image_flow])
def test_scores_read_nothing_from_the_device_without_validation(flow):
    flow = flow()
    x = torch.randn(6, *flow.event_shape)
    assert reads(lambda: flow.log_prob(x)) > 0
    with pyro.validation_enabled(False):
        assert reads(lambda: flow.log_prob(x).sum().backward()) == 0


def test_a_loss_reads_few_values_from_the_device_without_validation():
    loss_of = scnf.elbo(learnable())
    checked = reads(lambda: loss_of(X, Y, X + 1))
    with pyro.validation_enabled(False):
        assert reads(lambda: loss_of(X, Y, X + 1).backward()) <= 6 < checked  # five of them are Pyro's own


# -- sharing ----------------------------------------------------------------------
def test_an_encoding_depends_on_every_parameter_and_buffer():
    module = nn.Sequential(nn.BatchNorm1d(2), toy_flow("flow"), nn.Linear(2, 2, bias=False))
    expected = [*module.parameters(), *module.buffers()]
    assert {id(t) for t in sharing.Parts.of((module,)).tensors[0]} == {id(t) for t in expected}


def test_two_semi_conditional_flows_over_one_flow_share_its_encoding():
    first = toy_flow("gmm")
    second = scnf.SemiConditionalFlow(first.transform, "student-t", 3)
    with counting(first.transform, "inverse_and_ladj") as counter, scnf.share_encoding():
        assert torch.equal(first.encode(X)[1], second.encode(X)[1])
    assert counter.calls == 1


def test_a_changed_prior_leaves_the_encoding_valid():
    flow = toy_flow("gmm")
    with counting(flow.transform, "inverse_and_ladj") as counter, scnf.share_encoding():
        before = flow.log_prob(X)
        with torch.no_grad():
            flow.prior.loc.add_(1.0)
        after = flow.log_prob(X)
    assert counter.calls == 1
    assert torch.equal(after, flow.log_prob(X))
    assert not torch.allclose(before, after)
