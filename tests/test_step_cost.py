"""What a call of the model does once only, and that nothing is lost by it; the figures of the benchmarks."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pyro
import pytest
import torch
from helpers import counting, toy_flow
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam
from pyro.poutine.messenger import Messenger
from torch import nn

import pyro_scnf as scnf
from pyro_scnf import sharing

X, Y = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


class ParamSites(Messenger):
    """How often each parameter's site came by."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def _pyro_param(self, msg) -> None:
        self.counts[msg["name"]] += 1


def learnable(prior: str = "gmm", **options) -> scnf.SemiSupervisedModel:
    return scnf.SemiSupervisedModel(toy_flow(prior), "learnable", **options)


# -- parameter sites --------------------------------------------------------------
class Outer(PyroModule):
    """A bigger model with ours in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scnf = learnable()

    def forward(self, *args):
        return self.scnf(*args)


@pytest.mark.parametrize("args", [(X,), (X, Y), (X, torch.where(Y > 1, -1, Y)), (X, Y, X + 1)])
@pytest.mark.parametrize("build", [lambda: learnable(classification_weight=0.5), Outer])
def test_each_parameter_has_one_site_a_call(build, args):
    model = build()
    for _ in range(2):
        with ParamSites() as sites:
            scnf.elbo(model)(*args)
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


def test_svi_with_pyros_optimiser_moves_every_parameter():
    model = learnable("flow")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    svi = SVI(model, scnf.exact_guide, Adam({"lr": 0.01}), elbo)
    for _ in range(3):  # zero-initialised last layers stop gradients at first
        svi.step(X, Y, X + 1)
    unmoved = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert unmoved == []


# -- sharing ----------------------------------------------------------------------
def test_an_encoding_depends_on_every_parameter_and_buffer():
    module = nn.Sequential(nn.BatchNorm1d(2), toy_flow("flow"), nn.Linear(2, 2, bias=False))
    expected = [*module.parameters(), *module.buffers()]
    assert {id(t) for t in sharing._tensors(module)} == {id(t) for t in expected}


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


# -- the benchmarks' arithmetic ---------------------------------------------------
@pytest.fixture(scope="module")
def timing():
    path = Path(__file__).parents[1] / "benchmarks" / "_timing.py"
    spec = importlib.util.spec_from_file_location("_timing", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["_timing"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["_timing"]


def test_ratio_is_of_the_least_disturbed_times(timing):
    found = timing.ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])
    assert (found.value, found.median) == (2.0, 2.0)
    assert (found.low, found.high) == (1.75, 3.0)


def test_ratio_of_a_single_round(timing):
    found = timing.ratio([3.0], [2.0])
    assert (found.value, found.median, found.low, found.high) == (1.5,) * 4


def test_interleaved_steps_all_run_in_every_round(timing):
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = timing.interleave(steps, 3, warmup=1)
    assert "".join(calls) == "abcbcacababc"  # each round starts one further on
    assert {len(column) for column in seconds.values()} == {3}


def test_a_missed_bound_is_an_error(timing, capsys):
    assert timing.report_bounds({"a": (1.0, 1.2), "b": (1.2, 1.2)}) == 0
    assert timing.report_bounds({"a": (1.0, 1.2), "b": (1.3, 1.2)}) == 1
    assert timing.report_bounds({"a": (float("nan"), 1.2)}) == 1
    assert "MISSED" in capsys.readouterr().out
