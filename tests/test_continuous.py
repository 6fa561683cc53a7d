"""Continuous flows: against separate solves, other solvers and closed forms; failures and energies."""

from __future__ import annotations

import copy
import math
import re
from contextlib import nullcontext

import pytest
import torch
from cases import SOLVER, OwnField, continuous
from helpers import gradients, perturb, relative
from trainee import jitter

import pyro_scnf as scnf
from pyro_scnf import transforms as T
from pyro_scnf.transforms.solver import ADAPTIVE, FIXED

F64 = torch.float64
TIGHT = "dopri5:rtol=1e-9,atol=1e-9,tighter=1"


def layer(dim: int = 2, context_dim: int = 0, solver: str = TIGHT, size: float = 0.3, **options):
    return perturb(continuous((dim,), context_dim, solver, **options), size).double()


# -- contexts ----------------------------------------------------------------------------------------
def test_contexts_in_one_solve_are_separate_solves():
    flow, x, context = layer(3, 4), torch.randn(7, 3, dtype=F64), torch.randn(5, 1, 4, dtype=F64)
    for method, value in ((flow.inverse_and_ladj, x), (flow.call_and_ladj, x)):
        together = method(value, context)
        assert together[0].shape == (5, 7, 3)
        assert together[1].shape == (5, 7)
        for k in range(5):
            alone = method(value, context[k])
            assert relative(together[0][k], alone[0]) < 1e-8
            assert relative(together[1][k], alone[1]) < 1e-8


def test_easy_contexts_do_not_loosen_the_tolerance_of_a_difficult_one():
    """The error of a step is that of the worst row. A mean over a thousand easy ones would hide it."""
    flow = layer(2, 1, "dopri5:rtol=1e-5,atol=1e-5,tighter=1")
    exact = layer(2, 1)
    with torch.no_grad():
        for each in (flow, exact):
            for inner in each.net.layers:
                inner.context.weight.fill_(1.0)
    exact.load_state_dict(flow.state_dict())
    x = torch.randn(1, 2, dtype=F64)
    context = torch.zeros(1000, 1, dtype=F64)
    context[0] = 6.0
    z, ladj = flow.inverse_and_ladj(x, context)
    right, right_ladj = exact.inverse_and_ladj(x, context[:1])
    alone, alone_ladj = flow.inverse_and_ladj(x, context[:1])
    allowed = 3 * max(relative(alone, right), relative(alone_ladj, right_ladj), 1e-6)
    assert relative(z[:1], right) < allowed
    assert relative(ladj[:1], right_ladj) < allowed


def test_labels_are_enumerated_in_one_solve():
    flow = scnf.SemiConditionalFlow(scnf.flows.glow(2, steps=1, width=4), "ffjord:hidden=[6]", 5)
    x = torch.randn(6, 2)
    with T.record_solves() as one:
        flow.prior.condition(torch.zeros(6, dtype=torch.long)).log_prob(flow.encode(x)[1])
    with T.record_solves() as all_labels:
        flow.class_log_prob(x)
    assert 0 < all_labels.evaluations < 2 * one.evaluations


# -- divergence --------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_estimated_divergence_is_unbiased(noise):
    exact = layer(5)
    estimate = copy.deepcopy(exact)
    estimate.divergence = noise
    x = torch.randn(1, 5, dtype=F64)
    draws = estimate.inverse_and_ladj(x.expand(4000, 5))[1]
    error = draws.mean() - exact.inverse_and_ladj(x)[1]
    assert draws.std() > 0
    assert error.abs() < 4 * draws.std() / math.sqrt(len(draws))


def test_noise_of_the_flow_leaves_label_posteriors_alone():
    f_w = T.compose([layer(2, divergence="rademacher")])
    flow = scnf.SemiConditionalFlow(f_w, "gmm", 3).double()
    perturb(flow.prior)
    x = torch.randn(8, 2, dtype=F64)
    first, second = flow.log_prob(x), flow.log_prob(x)
    assert (first - second).abs().max() > 1e-4
    assert relative(flow.posterior(x).probs, flow.posterior(x).probs) < 1e-7


def test_noise_is_the_same_for_all_contexts_of_a_row():
    flow = layer(2, 1, divergence="rademacher")
    for inner in flow.net.layers:
        torch.nn.init.zeros_(inner.context.weight)
    ladj = flow.inverse_and_ladj(torch.randn(6, 2, dtype=F64), torch.randn(4, 1, 1, dtype=F64))[1]
    assert relative(ladj, ladj[:1].expand(4, 6)) < 1e-12
    assert ladj[0].std() > 0


@pytest.mark.parametrize(("dim", "expected"), [(8, "exact"), (9, "rademacher")])
def test_divergence_by_default(dim, expected):
    assert continuous((dim,)).divergence == expected
    assert continuous((dim,), 2).divergence == "exact"


# -- solvers -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_every_solver_agrees_with_a_tight_one(method):
    options = "rtol=1e-7,atol=1e-7" if method in ADAPTIVE else "steps=400"
    flow, exact = layer(2, solver=f"{method}:{options}"), layer(2)
    exact.load_state_dict(flow.state_dict())
    x = torch.randn(4, 2, dtype=F64)
    tolerance = 5e-3 if method == "euler" else 1e-5
    for got, expected in zip(flow.inverse_and_ladj(x), exact.inverse_and_ladj(x), strict=True):
        assert relative(got, expected) < tolerance


def test_adjoint_gradients_are_those_through_the_solver():
    direct, context = layer(2, 3), torch.randn(4, 1, 3, dtype=F64)
    adjoint = copy.deepcopy(direct)
    adjoint.solver = T.Solver("dopri5", 1e-9, 1e-9, 1.0, adjoint=True)
    x, found = torch.randn(5, 2, dtype=F64), []
    for flow in (direct, adjoint):
        inputs = [x.clone().requires_grad_(), context.clone().requires_grad_()]
        z, ladj = flow.inverse_and_ladj(*inputs)
        loss = z.pow(3).sum() + ladj.sum()
        found.append([*torch.autograd.grad(loss, [*inputs, *flow.parameters()])])
    for one, other in zip(*found, strict=True):
        assert relative(one, other) < 1e-5


def test_evaluation_is_tighter_than_training():
    flow, exact = layer(2, solver="dopri5:rtol=1e-3,atol=1e-3,tighter=0.001", size=0.6), layer(2)
    exact.load_state_dict(flow.state_dict())
    x = torch.randn(16, 2, dtype=F64)
    right = exact.inverse_and_ladj(x)[0]
    in_training = relative(flow.train().inverse_and_ladj(x)[0], right)
    assert relative(flow.eval().inverse_and_ladj(x)[0], right) < 0.3 * in_training


def test_evaluations_are_counted():
    flow = layer(2, solver="rk4:steps=7")
    with T.record_solves() as outer:
        with T.record_solves() as inner:
            flow.inverse_and_ladj(torch.randn(3, 2, dtype=F64))
        flow.call_and_ladj(torch.randn(3, 2, dtype=F64))
    assert (inner.evaluations, outer.evaluations) == (28, 56)
    assert inner.energies == []


def test_autocast_leaves_the_solver_alone():
    flow, x = layer(2).float(), torch.randn(4, 2)
    flow.solver = T.Solver("dopri5")
    plain = flow.inverse_and_ladj(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = flow.inverse_and_ladj(x)
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


# -- energies ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("backwards", [False, True])
def test_energies_of_a_linear_field(backwards):
    """For f(z) = A z the path is exp(A t) z, and both energies are integrals in closed form."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = torch.nn.Parameter(torch.tensor([[0.3, -1.0], [1.0, 0.1]]))

        def forward(self, t, z):
            return z @ self.matrix.T

    flow = T.ContinuousFlow(2, Linear(), solver=TIGHT, end_time=0.8).double()
    x, matrix = torch.randn(5, 2, dtype=F64), flow.net.matrix
    with T.record_solves(energies=True) as record:
        z, ladj = (flow.call_and_ladj if backwards else flow.inverse_and_ladj)(x)
    start = z if backwards else x
    times = torch.linspace(0, 0.8, 4001, dtype=F64)
    path = torch.stack([torch.linalg.matrix_exp(matrix * t) @ start.T for t in times])
    speed = (matrix @ path).square().sum(1)
    (energies,) = record.energies
    assert relative(energies.kinetic, 0.8 * torch.trapezoid(speed, times, dim=0)) < 1e-6
    assert relative(energies.jacobian, 0.8**2 * matrix.square().sum().expand(5)) < 1e-7
    assert relative(ladj, (-0.8 if backwards else 0.8) * matrix.trace().expand(5)) < 1e-8


def test_energies_are_those_of_the_paths_whatever_their_time():
    """Twice the time and half the velocity are the same paths, the same solve and the same energies."""
    fast, found = layer(2, layer="ignore"), []
    slow = copy.deepcopy(fast)
    with torch.no_grad():
        slow.root_end_time.mul_(2**0.5)
        for parameter in (slow.net.layers[-1].map.weight, slow.net.layers[-1].map.bias):
            parameter.div_(2)
    x = torch.randn(5, 2, dtype=F64)
    for flow in (fast, slow):
        with T.record_solves(energies=True) as record:
            z, ladj = flow.inverse_and_ladj(x)
        found.append((z, ladj, record.energies[0].kinetic, record.energies[0].jacobian))
    for one, other in zip(*found, strict=True):
        assert relative(one, other) < 1e-8


def test_energies_can_be_minimised():
    flow = layer(2)
    with T.record_solves(energies=True) as record:
        flow.inverse_and_ladj(torch.randn(5, 2, dtype=F64))
    total = (record.energies[0].kinetic + record.energies[0].jacobian).sum()
    assert all(g.abs().max() > 0 for g in gradients(flow, total).values() if g.numel() > 1)


def small(prior: str = "gmm", num_classes: int = 3) -> scnf.SemiSupervisedModel:
    f_w = scnf.flows.ffjord(2, blocks=2, hidden=(6,), solver=TIGHT)
    flow = scnf.SemiConditionalFlow(f_w, prior, num_classes)
    return perturb(scnf.SemiSupervisedModel(flow, num_labelled=10, num_unlabelled=100)).double()


def energy_by_hand(model: scnf.SemiSupervisedModel, x: torch.Tensor) -> torch.Tensor:
    """The energy of each row, by the flow and by the prior under every label, with the default factor."""
    with T.record_solves(energies=True) as record:
        model.flow.prior.class_log_prob(model.flow.encode(x)[1])
    parts = [(e.kinetic + e.jacobian).reshape(-1, len(x)).mean(0) for e in record.energies]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("prior", ["gmm", f"ffjord:hidden=[5],solver='{TIGHT}'"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_energy_term(prior, shared):
    """Rows count as often as they stand for data, also where a block around has some encodings already."""
    model, y = small(prior), torch.tensor([0, 1])
    x, other = torch.randn(2, 2, dtype=F64), torch.randn(5, 2, dtype=F64)
    expected = 5 * energy_by_hand(model, x).sum() + 20 * energy_by_hand(model, other).sum()
    loss = scnf.elbo(model, terms="energy:weight=0.1")
    plain = scnf.elbo(model)(x, y, other)
    with scnf.share_encoding() if shared else nullcontext():
        if shared:
            model.flow.encode(x)
        total = loss(x, y, other)
    assert relative(loss.parts["energy"], 0.1 * expected) < 1e-6
    assert relative(total, plain + 0.1 * expected) < 1e-6
    assert all(g.isfinite().all() for g in gradients(model, total).values())


def test_the_energy_term_of_rows_given_twice():
    """The same tensor as labelled and as unlabelled rows: each counts by its own scale."""
    model, y, x = small(), torch.tensor([0, 1]), torch.randn(2, 2, dtype=F64)
    loss = scnf.elbo(model, terms="energy")
    loss(x, y, x)
    assert relative(loss.parts["energy"], (5 + 50) * energy_by_hand(model, x).sum()) < 1e-6


def test_the_energy_term_costs_no_further_pass():
    model, x = small(), torch.randn(5, 2, dtype=F64)
    counts = []
    for terms in ((), ("energy", "balance")):
        with T.record_solves() as record:
            scnf.elbo(model, terms=terms)(x)
        counts.append(record.evaluations)
    assert counts[0] == counts[1]


def test_the_energy_term_needs_a_continuous_flow():
    model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(scnf.flows.glow(2, steps=1, width=4), "gmm", 2))
    with pytest.raises(ValueError, match=r"energy needs a continuous flow: give a model with one"):
        scnf.elbo(model, terms="energy")(torch.randn(3, 2))
    data = scnf.datasets.toy("moons", seed=0)
    with pytest.raises(ValueError, match=r"energy needs a continuous flow"):
        scnf.training.fit(model, data, terms="energy", steps=2, progress=False)


# -- fields of one's own -----------------------------------------------------------------------------
def test_a_field_without_tangents_is_differentiated():
    class Plain(torch.nn.Module):
        """A field that hides the method for products of its Jacobian."""

        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, t, z):
            return self.net(t, z)

    flow = layer(3)
    own = T.ContinuousFlow(3, Plain(flow.net), solver=TIGHT).double()
    own.root_end_time = flow.root_end_time
    x = torch.randn(4, 3, dtype=F64)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), T.record_solves(energies=True) as record:
            for got, expected in zip(own.inverse_and_ladj(x), flow.inverse_and_ladj(x), strict=True):
                assert relative(got, expected) < 1e-9
                assert got.requires_grad == grad
        first, second = record.energies
        assert relative(first.jacobian, second.jacobian) < 1e-9


def test_a_field_may_ignore_its_input():
    class Drift(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.speed = torch.nn.Parameter(torch.tensor([1.0, -2.0]))

        def forward(self, t, z):
            return self.speed.expand_as(z)

    x = torch.randn(3, 2)
    z, ladj = T.ContinuousFlow(2, Drift(), end_time=0.5).inverse_and_ladj(x)
    assert relative(z, x + 0.5 * torch.tensor([1.0, -2.0])) < 1e-5
    assert torch.equal(ladj, torch.zeros(3))


def test_fields_of_ones_own_in_inference_mode():
    flow, x = T.ContinuousFlow(3, OwnField(3), solver="rk4:steps=4"), torch.randn(4, 3)
    expected = flow.inverse_and_ladj(x)
    with torch.inference_mode():
        made = torch.randn(2, 3)
        assert flow.inverse_and_ladj(made)[1].isfinite().all()
        got = flow.inverse_and_ladj(x)
    for value, wanted in zip(got, expected, strict=True):
        assert relative(value, wanted.detach()) < 1e-6


# -- what flow and prior consist of ------------------------------------------------------------------
def test_new_fields_ignore_their_context():
    flow, x = continuous((3,), 2), torch.randn(4, 3)
    z, ladj = flow.inverse_and_ladj(x, torch.randn(5, 1, 2))
    assert torch.equal(z, z[:1].expand_as(z))
    assert torch.equal(ladj, ladj[:1].expand_as(ladj))


def test_layers_of_ffjord():
    vector = scnf.flows.ffjord(3, blocks=2)
    image = scnf.flows.ffjord((1, 8, 8), levels=2, logit=0.05)
    kinds = [type(part).__name__ for part in image.modules() if isinstance(part, T.FlowTransform)]
    assert [kinds.count(k) for k in ("ContinuousFlow", "ActNorm", "Squeeze", "Logit")] == [2, 2, 2, 1]
    norms = [part for part in vector.modules() if isinstance(part, T.ActNorm)]
    x = 5 + 3 * torch.randn(200, 3)
    vector.initialize(x)
    assert len(norms) == 2
    assert all((norm.center != 0).all() for norm in norms)
    for flow, gated, activation in ((vector, True, "tanh"), (image, False, "softplus")):
        fields = [part for part in flow.modules() if isinstance(part, scnf.nn.Dynamics)]
        assert {part.activation for part in fields} == {activation}
        assert all((each.gate is not None) == gated for part in fields for each in part.layers)


def test_every_option_of_the_prior_reaches_it():
    options = {
        "blocks": 2,
        "hidden": (5, 4),
        "layer": "concat",
        "activation": "softplus",
        "solver": "rk4:steps=3",
        "divergence": "gaussian",
        "base": "learnable",
        "base_scale": 0.7,
        "embedding_dim": 6,
    }
    prior = scnf.make_prior({"name": "ffjord", **options}, (2, 1, 1), 3)
    layers = [part for part in prior.modules() if isinstance(part, T.ConditionalContinuousFlow)]
    assert len(layers) == 2
    for each in layers:
        assert each.context_dim == 6
        assert (each.solver.method, each.solver.steps, each.divergence) == ("rk4", 3, "gaussian")
        assert each.net.activation == "softplus"
        assert [inner.map.out_features for inner in each.net.layers] == [5, 4, 2]
        assert all(inner.gate is None and inner.slope is not None for inner in each.net.layers)
    assert prior.embedding.weight.shape == (3, 6)
    assert relative(torch.nn.functional.softplus(prior.base.raw_scale), torch.full((2,), 0.7)) < 1e-6


def test_solvers_are_saved_as_they_were_given(tmp_path):
    solver = T.Solver("dopri5", rtol=1e-4, adjoint=True)
    for given in (solver, solver.as_spec()):
        f_w = scnf.flows.ffjord(2, hidden=(4,), solver=given)
        scnf.save(scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(f_w, "gmm", 2)), tmp_path / "model.pt")
        loaded = scnf.load(tmp_path / "model.pt").flow.transform
        assert [part.solver for part in loaded.modules() if isinstance(part, T.ContinuousFlow)] == [solver]


# -- failures ----------------------------------------------------------------------------------------
class Steep(torch.nn.Module):
    """A field that leaves the real numbers before time 1."""

    def forward(self, t, z):
        return 40 * z.square()


def test_errors_of_the_log_determinant_count():
    """A path at rest whose divergence oscillates: a solver that watches the path alone takes one step."""

    class Wave(torch.nn.Module):
        def with_tangents(self, t, z, tangents):
            return torch.zeros_like(z), 30 * torch.cos(30 * t) * tangents.expand(len(tangents), *z.shape)

    flow = T.ContinuousFlow(2, Wave(), solver="dopri5:rtol=1e-7,atol=1e-7", end_time=1.0).double()
    ladj = flow.inverse_and_ladj(torch.randn(3, 2, dtype=F64))[1]
    assert (ladj - 2 * math.sin(30)).abs().max() < 1e-5


def test_tolerances_by_default():
    solver = T.Solver()
    assert solver.tolerances(training=True) == (1e-5, 1e-5)
    assert solver.tolerances(training=False) == pytest.approx((1e-6, 1e-6))
    assert T.Solver("dopri5", adjoint=True).tolerances(training=False) == pytest.approx((1e-6, 1e-6))


def test_numbers_that_are_not_finite_are_named():
    flow, x = layer(2), torch.randn(3, 2, dtype=F64)
    with pytest.raises(T.SolverError, match="the input of the layer is not finite"):
        flow._inverse_ladj(x / 0)
    with torch.no_grad():
        flow.net.layers[0].map.bias[0] = math.nan
    with pytest.raises(T.SolverError, match="the velocity is not finite"):
        flow.inverse_and_ladj(x)
    model = small(num_classes=2).float()
    with torch.no_grad():
        model.flow.transform.stages[0].layers[0].net.layers[0].map.bias[0] = math.nan
    data = scnf.datasets.toy("moons", num_train=60, num_test=4, seed=0)
    with pytest.raises(
        RuntimeError, match=r"the first term that is not finite is the parameter flow\.transform"
    ):
        scnf.training.fit(model, data, steps=2, progress=False)


def test_a_solve_that_ends_in_infinity_is_refused():
    """Equal steps look at the state before each step, and once more at the end."""

    class Jump(torch.nn.Module):
        def forward(self, t, z):
            return torch.where(t > 0.99, torch.inf, 1.0) * torch.ones_like(z)

    flow = T.ContinuousFlow(2, Jump(), solver="euler:steps=1000", end_time=1.0, learn_end_time=False)
    with pytest.raises(T.SolverError, match=r"not finite|no longer finite"):
        flow.inverse_and_ladj(torch.randn(3, 2))
    flow.solver = T.Solver("rk4", steps=1)
    with pytest.raises(T.SolverError, match="the state is not finite"):
        flow.inverse_and_ladj(torch.randn(3, 2))


def test_evaluations_of_each_solve_are_limited_and_counted():
    """The limit is that of one solve, however often the adjoint equation is solved."""
    flow, x = layer(2, solver="dopri5:adjoint=True,max_evaluations=100"), torch.randn(3, 2, dtype=F64)
    with T.record_solves() as record:
        z = flow.inverse_and_ladj(x.requires_grad_())[0]
        forwards = record.evaluations
        for _ in range(8):
            torch.autograd.grad(z.sum(), x, retain_graph=True)
    assert record.evaluations > forwards + 8 * 7


def test_failures_say_where_and_what_to_try():
    message = (
        r"ContinuousFlow of event shape \(2,\): dopri5 with rtol .* stopped after the share 0\.\d+ of the "
    )
    flow = T.ContinuousFlow(2, Steep(), end_time=1.0)
    with pytest.raises(T.SolverError, match=message) as caught:
        flow.inverse_and_ladj(1 + torch.rand(3, 2))
    assert re.search("lower learning rate.*rk4:steps=40", str(caught.value))
    with pytest.raises(T.SolverError, match="more than max_evaluations=10"):
        layer(2, solver="dopri5:max_evaluations=10").inverse_and_ladj(torch.randn(3, 2, dtype=F64))
    with pytest.raises(T.SolverError, match=r"rk4 with 20 steps.*no longer finite"):
        T.ContinuousFlow(2, Steep(), solver="rk4", end_time=1.0).inverse_and_ladj(1 + torch.rand(3, 2))


def test_training_stops_with_the_layer_and_keeps_its_checkpoints(tmp_path):
    """A run that fails can go on from its latest checkpoint, with another learning rate, say."""
    data = scnf.datasets.toy("moons", num_train=60, num_test=4, seed=0)
    f_w = scnf.flows.ffjord(2, blocks=2, hidden=(6,), solver="dopri5:max_evaluations=40")
    model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(f_w, "gmm", 2))
    model.initialize(data.x, data.y)
    options = {"batch_size": 20, "out": tmp_path, "progress": False, "log": None}
    scnf.training.fit(model, data, steps=4, **options)
    before = (tmp_path / "last.ckpt").read_bytes()
    with torch.no_grad():
        for parameter in model.flow.transform.stages[0].layers[0].net.parameters():
            parameter.mul_(100)
    message = r"training stopped at step \d: flow\.transform\.\S+, ContinuousFlow of .* max_evaluations=40"
    with pytest.raises(T.SolverError, match=message):
        scnf.training.fit(model, data, steps=4, batch_size=20, progress=False)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_failing_adjoint_equation_says_so():
    flow = layer(2, solver="dopri5:adjoint=True")
    z, _ = flow.inverse_and_ladj(torch.randn(3, 2, dtype=F64))
    with torch.no_grad():
        for parameter in flow.net.parameters():
            parameter.data.fill_(math.inf)  # ``data``, so that autograd does not notice
    with pytest.raises(T.SolverError, match=r"the velocity is not finite|adjoint"):
        z.sum().backward()


def test_torch_func_is_refused_in_words():
    flow = continuous((2,))
    with pytest.raises(ValueError, match=r"torch\.func.*one batch"):
        torch.func.vmap(flow.inverse_and_ladj)(torch.randn(3, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: T.ContinuousFlow(2, OwnField), "net=.*expected a velocity field"),
        (lambda: T.ContinuousFlow(2, scnf.nn.Dynamics(3)), r"net: its event_shape is \(3,\), expected"),
        (
            lambda: T.ConditionalContinuousFlow(2, scnf.nn.Dynamics(2), context_dim=3),
            "net: its context_dim is 0",
        ),
        (
            lambda: T.ContinuousFlow(2, scnf.nn.Dynamics(2, context_dim=3)),
            "net: its context_dim is 3, expected 0",
        ),
        (
            lambda: scnf.nn.Dynamics(2)(torch.zeros(()), torch.randn(2), torch.randn(3)),
            "context_dim=0, and got one",
        ),
        (
            lambda: scnf.nn.Dynamics(2, context_dim=3)(torch.zeros(()), torch.randn(2)),
            "context_dim=3, and got none",
        ),
        (lambda: T.Solver("rk4", rtol=1e-3), "rtol=0.001: it would have no effect, because rk4 takes equal"),
        (lambda: T.Solver(steps=4), "steps=4: it would have no effect, because dopri5 chooses"),
        (lambda: continuous((2,), solver="newton"), "solver='newton': expected one of 'dopri5'"),
        (lambda: scnf.flows.ffjord(2, levels=3), "levels=3.*a factor-out needs 2 channels"),
        (lambda: scnf.make_prior("ffjord:steps=3", (2,), 3), "no option 'steps'"),
        (lambda: scnf.make_prior("ffjord:covariates=-1", (2,), 1), "covariates=-1"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# -- training ----------------------------------------------------------------------------------------
def test_a_continuous_flow_learns_two_moons():
    torch.manual_seed(0)
    data = scnf.datasets.toy("moons", seed=0)
    f_w = scnf.flows.ffjord(2, hidden=(32, 32), solver="rk4:steps=6")
    model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(f_w, "gmm", 2))
    model.flow.initialize(*data.labelled)
    loss, optimizer = scnf.elbo(model), torch.optim.Adam(model.parameters(), 1e-2)
    start = -model.flow.log_prob(data.x_test).mean()
    for _ in range(40):
        optimizer.zero_grad()
        loss(*data.labelled, data.unlabelled[:300]).backward()
        optimizer.step()
    assert -model.flow.log_prob(data.x_test).mean() < start - 0.3


def test_scores_do_not_depend_on_the_rows_beside_them():
    flow = layer(2, solver=SOLVER, size=0.5)
    x = torch.randn(6, 2, dtype=F64)
    far = torch.cat([x, 30 * torch.randn(4, 2, dtype=F64)])
    for one, other in zip(flow.inverse_and_ladj(x), flow.inverse_and_ladj(far), strict=True):
        assert relative(other[:6], one) < 1e-5


def test_validation_meets_the_same_noise_each_time():
    """An estimated log-determinant does not make the best checkpoint a matter of chance."""
    data = scnf.datasets.toy("moons", num_train=80, num_test=4, seed=0).hold_out(30)
    best = []
    for seed in (0, 1):
        torch.manual_seed(3)
        f_w = T.ContinuousFlow(2, scnf.nn.Dynamics(2, (6,)), solver="rk4:steps=3", divergence="rademacher")
        model = perturb(scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(f_w, "gmm", 2)), 0.3)
        torch.manual_seed(seed)
        options = {"steps": 4, "batch_size": 20, "validate_every": 2, "progress": False, "seed": 0}
        best.append(scnf.training.fit(model, data, **options).best_nll)
    assert best[0] == best[1]


# -- flow matching -----------------------------------------------------------------------------------
def matched(
    coupling: str, steps: int, seed: int = 0, batch_size: int = 64
) -> tuple[scnf.SemiSupervisedModel, torch.Tensor]:
    torch.manual_seed(1)
    data = scnf.datasets.toy("moons", num_train=300, num_test=50, seed=0)
    f_w = scnf.flows.ffjord(2, hidden=(32, 32))
    model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(f_w, "gmm", 2))
    model.initialize(data.x, data.y)
    losses = scnf.training.match_flow(
        model, data, steps=steps, batch_size=batch_size, coupling=coupling, augment=jitter, seed=seed
    )
    return model, losses


@pytest.mark.parametrize(("coupling", "steps", "batch"), [("optimal", 400, 64), ("independent", 1000, 256)])
def test_matched_latents_are_normal(coupling, steps, batch):
    """The flow of the matched field carries the data near to standard normal noise."""
    model, losses = matched(coupling, steps, batch_size=batch)
    assert losses.shape == (steps,)
    assert losses[-50:].mean() < 0.9 * losses[:50].mean()
    z = model.flow.encode(scnf.datasets.toy("moons", num_train=300, num_test=50, seed=0).x)[1].detach()
    assert z.mean(0).abs().max() < 0.2
    assert (torch.cov(z.T) - torch.eye(2)).abs().max() < 0.3


def test_optimal_pairs_are_nearer():
    from pyro_scnf.training.flow_matching import _paired

    x = torch.randn(64, 2)
    torch.manual_seed(0)
    near = _paired(x, "optimal")
    torch.manual_seed(0)
    far = _paired(x, "independent")
    assert torch.equal(near.sort(0).values, far.sort(0).values)
    assert (x - near).square().sum() < 0.7 * (x - far).square().sum()


def test_matching_repeats_leaves_generators_alone_and_sets_the_prior():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, _ = matched("independent", 3)
    torch.manual_seed(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    second, _ = matched("independent", 3)
    third, _ = matched("independent", 3, seed=1)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))
    data = scnf.datasets.toy("moons", num_train=300, num_test=50, seed=0)
    means = torch.stack(
        [first.flow.encode(data.labelled[0][data.labelled[1] == k])[1].mean(0) for k in (0, 1)]
    )
    assert relative(first.flow.prior.loc, means) < 0.2


def test_matching_sees_augmented_rows_and_any_field():
    seen = []

    def change(x):
        seen.append(len(x))
        return 2 * x

    data = scnf.datasets.toy("moons", num_train=60, num_test=4, seed=0)
    f_w = T.ContinuousFlow(2, OwnField(2), solver="rk4:steps=4")
    model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(f_w, "gmm", 2))
    losses = scnf.training.match_flow(
        model, data, steps=3, batch_size=2, augment=change, coupling="independent"
    )
    assert seen == [2, 2, 2]
    assert losses.isfinite().all()
    assert all(parameter.grad is None for parameter in f_w.parameters())
    wide = scnf.training.match_flow(model, data, steps=200, augment=lambda x: 100 * x, coupling="independent")
    assert wide[0] > 1000


def test_matching_refuses_what_cannot_learn():
    data = scnf.datasets.toy("moons", num_train=60, num_test=4, seed=0)
    model = small().float()
    one = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(scnf.flows.ffjord(2, hidden=(4,)), "gmm", 2))
    with pytest.raises(RuntimeError, match=r"match_flow stopped at step \d+: the loss is not finite"):
        scnf.training.match_flow(one, data, steps=50, learning_rate=1e30, coupling="independent")
    frozen = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(scnf.flows.ffjord(2, hidden=(4,)), "gmm", 2))
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match="model: no parameter of its velocity field"):
        scnf.training.match_flow(frozen, data, steps=1)
    with pytest.raises(ValueError, match="needs a transform with one continuous layer"):
        scnf.training.match_flow(model, data, steps=1)


@pytest.mark.parametrize(
    "transform",
    [
        lambda: scnf.flows.glow(2, steps=1, width=4),
        lambda: scnf.flows.ffjord(2, blocks=2, hidden=(4,)),
        lambda: T.compose([scnf.flows.glow(2, steps=1, width=4), scnf.flows.ffjord(2, hidden=(4,))]),
        lambda: scnf.flows.ffjord(4, levels=2, hidden=(4,)),
    ],
)
def test_flow_matching_needs_one_continuous_layer(transform):
    f_w = transform()
    model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(f_w, "gmm", 2))
    data = scnf.datasets.toy("moons", num_train=60, num_test=4, seed=0)
    with pytest.raises(ValueError, match="needs a transform with one continuous layer, the deepest"):
        scnf.training.match_flow(model, data, steps=1)
