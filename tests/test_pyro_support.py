"""What the page *What works with Pyro* claims: exact values, errors, wrong values, and passes of the flow.

The rows of the page are in ``docs/support.json``. A row names its tests, and the tests here read from it how
exact a value must be and how often the flow may run.
"""

from __future__ import annotations

import ast
import copy
import json
import math
import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import counting, toy_flow, with_share
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.contrib.easyguide import easy_guide
from pyro.infer import (
    HMC,
    MCMC,
    NUTS,
    Importance,
    JitTraceEnum_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
    config_enumerate,
    infer_discrete,
)
from pyro.infer import autoguide as auto
from pyro.infer.reparam import AutoReparam, LocScaleReparam, MinimalReparam
from pyro.nn import PyroModule

import pyro_scnf as scnf

TESTS = Path(__file__).parent
ROWS = json.loads((TESTS.parent / "docs" / "support.json").read_text(encoding="utf-8"))
F64 = torch.float64
PROBS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)


@pytest.fixture
def flow():
    return toy_flow("flow", dtype=F64).requires_grad_(False).eval()


@pytest.fixture
def x():
    return torch.randn(5, 2, dtype=F64)


def by_hand(flow, x, probs=PROBS):
    """log p(x) of each row: one label after the other, without sharing anything."""
    scores = [flow.condition(torch.full((len(x),), k)).log_prob(x) + probs[k].log() for k in range(3)]
    return torch.stack(scores).logsumexp(0)


def ready(flow):
    return scnf.SemiSupervisedModel(flow, PROBS)


def own(flow, subsample_size=None, sequential=False):
    """A model of a user's own, without a global site."""

    def model(x):
        if sequential:
            for i in pyro.plate("data", len(x)):
                y = pyro.sample(f"y_{i}", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{i}", flow.condition(y), obs=x[i])
            return
        with pyro.plate("data", len(x), subsample_size=subsample_size) as rows:
            y = pyro.sample("y", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x[rows])

    return model


def summed(model, x, guide=scnf.exact_guide, elbo=TraceEnum_ELBO, **options):
    options = {"max_plate_nesting": 1, "strict_enumeration_warning": False, **options}
    return elbo(**options).loss(model, guide, x)


def drawn(elbo, **options):
    """A loss that draws the label from an exact guide."""

    def loss(flow, x):
        model = ready(flow)
        return elbo(**options).loss(model, scnf.EMGuide(model, "sample"), x)

    return loss


def marginal(flow):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", scnf.LabelMarginal(flow, PROBS), obs=x)

    return model


def importance(flow, x):
    run = Importance(marginal(flow), num_samples=1).run(x)
    return -float(run.log_weights[0])


def importance_of_the_label(flow, x):
    model = ready(flow)
    run = Importance(model, scnf.EMGuide(model, "sample"), num_samples=1).run(x)
    return -float(run.log_weights[0])


def of_a_module(flow, x):
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self, x):
            own(self.flow)(x)

    return summed(Model(), x)


def two_levels(flow, x):
    def model(x):
        with pyro.plate("outer", 1, dim=-2), pyro.plate("inner", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x[None])

    return summed(model, x, max_plate_nesting=2)


def markov(flow, x):
    """A chain whose steps do not depend on each other has the likelihood of single rows."""

    def model(x):
        before = None
        for t in pyro.markov(range(len(x))):
            probs = PROBS if before is None else pyro.ops.indexing.Vindex(PROBS.expand(3, 3))[..., before, :]
            before = pyro.sample(f"y_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", flow.condition(before), obs=x[t])

    return summed(model, x, max_plate_nesting=0)


EXACT = {
    "TraceEnum_ELBO": lambda f, x: summed(ready(f), x),
    "TraceEnum_ELBO, own model": lambda f, x: summed(own(f), x),
    "TraceEnum_ELBO, depth not given": lambda f, x: summed(ready(f), x, max_plate_nesting=math.inf),
    "TraceEnum_ELBO, EMGuide": lambda f, x: summed(m := ready(f), x, scnf.EMGuide(m)),
    "TraceEnum_ELBO, 3 particles": lambda f, x: summed(ready(f), x, num_particles=3),
    "TraceEnum_ELBO, 3 vectorised": lambda f, x: summed(
        ready(f), x, num_particles=3, vectorize_particles=True
    ),
    "JitTraceEnum_ELBO": lambda f, x: summed(ready(f), x, elbo=JitTraceEnum_ELBO, ignore_jit_warnings=True),
    "elbo": lambda f, x: scnf.elbo(ready(f))(x),
    "elbo, EMGuide": lambda f, x: scnf.elbo(m := ready(f), scnf.EMGuide(m))(x),
    "elbo, 3 particles": lambda f, x: scnf.elbo(ready(f), num_particles=3)(x),
    "Trace_ELBO, EMGuide": drawn(Trace_ELBO),
    "TraceGraph_ELBO, EMGuide": drawn(TraceGraph_ELBO),
    "RenyiELBO, EMGuide": drawn(RenyiELBO, num_particles=2),
    "ReweightedWakeSleep, EMGuide": lambda f, x: drawn(ReweightedWakeSleep, num_particles=2)(f, x)[0],
    "TraceTMC_ELBO, EMGuide": drawn(TraceTMC_ELBO, max_plate_nesting=1),
    "Trace_ELBO, LabelMarginal": lambda f, x: Trace_ELBO().loss(marginal(f), scnf.exact_guide, x),
    "Importance, EMGuide": importance_of_the_label,
    "Importance, LabelMarginal": importance,
    "config_enumerate": lambda f, x: summed(config_enumerate(own(f), "parallel"), x),
    "config_enumerate, expand": lambda f, x: summed(config_enumerate(own(f), "parallel", expand=True), x),
    "mask": lambda f, x: summed(poutine.mask(own(f), mask=torch.ones(len(x), dtype=torch.bool)), x),
    "scale": lambda f, x: summed(poutine.scale(own(f), scale=0.5), x) * 2,
    "infer_config": lambda f, x: summed(
        poutine.infer_config(own(f), config_fn=lambda site: {"enumerate": "parallel"}), x
    ),
    "plate, subsample of all": lambda f, x: summed(own(f, len(x)), x),
    "plate, sequential": lambda f, x: summed(own(f, sequential=True), x, max_plate_nesting=0),
    "plates, nested": two_levels,
    "markov": markov,
    "PyroModule": of_a_module,
    "FlowSitesReparam": lambda f, x: summed(
        poutine.reparam(own(f), config={"x": scnf.FlowSitesReparam()}), x
    ),
    "deepcopy": lambda f, x: summed(copy.deepcopy(ready(f)), x),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact(name, flow, x):
    """The loss is that by hand, and the flow runs as often as the page says."""
    row = ROWS[name]
    expected = -by_hand(flow, x).sum()
    with warnings.catch_warnings(), counting(flow.transform, "inverse_and_ladj") as counter:
        warnings.simplefilter("ignore")
        found = float(EXACT[name](flow, x))
    assert found == pytest.approx(expected.item(), rel=row["error"])
    assert counter.calls == row["passes"]


# -- values of changed programs ---------------------------------------------------------------------
# Each gives the computation that a row is about, and its value by hand. A copy of the flow computes the value
# by hand, so its passes do not count.
Y = torch.tensor([0, 1, 2, 0, 1])
KNOWN = torch.tensor([True, False, True, True, False])


def given(flow, x, y=Y):
    return flow.condition(y).log_prob(x)


def partly(flow, x):
    """log p(x, y) of the rows whose label is known, log p(x) of the others."""
    return torch.where(KNOWN, given(flow, x) + PROBS[Y].log(), by_hand(flow, x)).sum()


def intervened(flow, copied, x):
    return lambda: summed(poutine.do(own(flow), {"y": Y}), x), -given(copied, x).sum()


def conditioned(flow, copied, x):
    expected = -(given(copied, x) + PROBS[Y].log()).sum()
    return lambda: summed(poutine.condition(own(flow), {"y": Y}), x), expected


def substituted(flow, copied, x):
    """A substituted parameter takes the place of the one in the program."""

    def model(x):
        shift = pyro.param("shift", torch.zeros(2, dtype=F64))
        own(flow)(x - shift)

    shift = torch.ones(2, dtype=F64)
    changed = poutine.substitute(model, {"shift": shift})
    return lambda: summed(changed, x), -by_hand(copied, x - shift).sum()


def replayed(flow, copied, x):
    model = poutine.block(own(flow), hide=["data"])
    labels = poutine.trace(model).get_trace(x)
    y = labels.nodes["y"]["value"]
    expected = (given(copied, x, y) + PROBS[y].log()).sum()
    return lambda: poutine.trace(poutine.replay(model, trace=labels)).get_trace(x).log_prob_sum(), expected


def seeded(flow, copied, x):
    def draw(flow):
        return poutine.seed(lambda: ready(flow)(n=4), rng_seed=3)().sum()

    return lambda: draw(flow), draw(copied)


def uncondition(flow, copied, x):
    """The data are drawn anew: their density is that of the drawn values."""
    trace = poutine.trace(poutine.uncondition(own(flow))).get_trace(x)
    drawn, y = trace.nodes["x"]["value"], trace.nodes["y"]["value"]
    assert not torch.equal(drawn, x)
    return trace.log_prob_sum, (given(copied, drawn, y) + PROBS[y].log()).sum()


def lifted(flow, copied, x):
    """A parameter becomes a site. Here it is drawn from the guide at a known value."""

    def model(x):
        shift = pyro.param("shift", torch.zeros(2, dtype=F64))
        own(flow)(x - shift)

    prior, shift = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1), torch.ones(2, dtype=F64)
    random = poutine.lift(model, prior={"shift": prior})
    fixed = poutine.condition(random, {"shift": shift})
    return lambda: summed(fixed, x), -(by_hand(copied, x - shift).sum() + prior.log_prob(shift))


def half_masked(flow, copied, x):
    masked = poutine.mask(own(flow), mask=KNOWN)
    return lambda: summed(masked, x), -by_hand(copied, x)[KNOWN].sum()


def subsampled(flow, copied, x):
    """The mean over all choices of rows is the loss of all rows."""

    def model(x, chosen):
        with pyro.plate("data", len(x), subsample=chosen) as rows:
            y = pyro.sample("y", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x[rows])

    def mean():
        choices = [torch.tensor([i, (i + 1) % 5]) for i in range(5)]
        return sum(summed(lambda x, c=c: model(x, c), x) for c in choices) / 5

    return mean, -by_hand(copied, x).sum()


def stored(flow, copied, x):
    """The store of Pyro, saved and loaded, holds the parameters of the flow."""
    flow.requires_grad_(True)

    def model(x):
        own(pyro.module("flow", flow, update_module_params=True))(x)

    def again():
        with TemporaryDirectory() as folder:
            file = Path(folder) / "store"
            pyro.module("flow", flow)
            pyro.get_param_store().save(file)
            with torch.no_grad():
                for parameter in flow.parameters():
                    parameter.add_(0.1)
            pyro.clear_param_store()
            pyro.get_param_store().load(file)
        return summed(model, x)

    return again, -by_hand(copied, x).sum()


def two_in_one(flow, copied, x):
    """The loss is the sum of both."""
    models = {"a": ready(flow), "b": ready(copy.deepcopy(flow))}

    def both(x):
        for name, model in models.items():
            pyro.module(name, model)
            with scope(prefix=name):
                model(x)

    return lambda: summed(both, x), -2 * by_hand(copied, x).sum()


def loc_scale(flow, copied, x):
    """A centred global site becomes a standard one: the density of the program is that by hand."""

    def model(x):
        shift = pyro.sample("shift", dist.Normal(torch.ones((), dtype=F64), 2.0))
        own(flow)(x - shift)

    rewritten = poutine.reparam(model, config={"shift": LocScaleReparam(0.0)})
    raw = torch.tensor(0.3, dtype=F64)
    fixed = poutine.condition(rewritten, {"shift_decentered": raw})
    prior = dist.Normal(torch.zeros((), dtype=F64), 1.0).log_prob(raw)
    return lambda: summed(fixed, x), -(by_hand(copied, x - (1 + 2 * raw)).sum() + prior)


def rewritten_by(strategy):
    def case(flow, copied, x):
        rewritten = poutine.reparam(ready(flow), config=strategy())
        return lambda: summed(rewritten, x), -by_hand(copied, x).sum()

    return case


def with_missing_labels(flow, copied, x):
    model, y = ready(flow), torch.where(KNOWN, Y, -1)
    return lambda: summed(lambda x: model(x, y), x), -partly(copied, x)


def masked_labels(flow, copied, x):
    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(PROBS), obs=Y, obs_mask=KNOWN)
            pyro.sample("x", flow.condition(y), obs=x)

    return lambda: summed(model, x), -partly(copied, x)


def enumerated(flow, copied, x):
    model = ready(flow)
    return lambda: scnf.enumerate_labels(model, (x,)).logsumexp(-1).sum(), by_hand(copied, x).sum()


def hidden_markov(flow, copied, x):
    """The rows are a chain, whose steps do not depend on each other."""
    steps = PROBS.log().expand(len(x), 3, 3)
    chain = dist.DiscreteHMM(torch.zeros(3, dtype=F64), steps, flow.condition(torch.arange(3)))
    return lambda: chain.log_prob(x), by_hand(copied, x).sum()


CHANGED = {
    "do": intervened,
    "condition": conditioned,
    "substitute, a parameter of the program": substituted,
    "trace and replay": replayed,
    "seed": seeded,
    "uncondition": uncondition,
    "lift, a parameter of the program": lifted,
    "mask, some rows": half_masked,
    "plate, minibatches": subsampled,
    "param store, save and load": stored,
    "two models in one program": two_in_one,
    "LocScaleReparam of a global site": loc_scale,
    "AutoReparam": rewritten_by(AutoReparam),
    "MinimalReparam": rewritten_by(MinimalReparam),
    "labels of which some are -1": with_missing_labels,
    "obs_mask, with config_enumerate": masked_labels,
    "enumerate_labels": enumerated,
    "DiscreteHMM of a chain": hidden_markov,
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed(name, flow, x):
    """The value is that by hand, and the flow runs as often as the page says."""
    row = ROWS[name]
    compute, expected = CHANGED[name](flow, copy.deepcopy(flow), x)
    with counting(flow.transform, "inverse_and_ladj") as counter:
        found = compute()
    assert float(found) == pytest.approx(float(expected), rel=row["error"])
    assert counter.calls == row["passes"]


# -- global sites ------------------------------------------------------------------------------------
def blocked(model):
    return poutine.block(model, hide=["y"])


def easy(model):
    @easy_guide(blocked(model))
    def guide(self, x):
        self.map_estimate("share")

    return guide


GUIDES = {
    "AutoNormal": lambda m: auto.AutoNormal(blocked(m)),
    "AutoDiagonalNormal": lambda m: auto.AutoDiagonalNormal(blocked(m)),
    "AutoMultivariateNormal": lambda m: auto.AutoMultivariateNormal(blocked(m)),
    "AutoLowRankMultivariateNormal": lambda m: auto.AutoLowRankMultivariateNormal(blocked(m)),
    "AutoDelta": lambda m: auto.AutoDelta(blocked(m)),
    "AutoIAFNormal": lambda m: auto.AutoIAFNormal(blocked(m), hidden_dim=[4]),
    "AutoLaplaceApproximation": lambda m: auto.AutoLaplaceApproximation(blocked(m)),
    "EasyGuide": easy,
}


@pytest.mark.parametrize("name", GUIDES)
def test_guide(name, flow, x):
    """The loss is that by hand at the values which the guide has drawn."""
    row = ROWS[name]
    torch.set_default_dtype(F64)
    model = with_share(flow)
    guide = GUIDES[name](model)
    guide(x)
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    with counting(flow.transform, "inverse_and_ladj") as counter:
        pyro.set_rng_seed(1)
        found = elbo.loss(model, guide, x)
    pyro.set_rng_seed(1)
    trace = poutine.trace(guide).get_trace(x)
    share = trace.nodes["share"]["value"]
    expected = by_hand(flow, x, share).sum() + dist.Dirichlet(torch.ones(3)).log_prob(share)
    assert found == pytest.approx((trace.log_prob_sum() - expected).item(), rel=row["error"])
    assert counter.calls == row["passes"]


@pytest.mark.parametrize("name", ["AutoDiscreteParallel", "AutoGuideList"])
def test_a_guide_over_the_label(name, flow, x):
    """The label has a Categorical of its own for each row."""
    torch.set_default_dtype(F64)
    if name == "AutoGuideList":
        model = with_share(flow)
        guide = auto.AutoGuideList(model)
        guide.append(auto.AutoDelta(blocked(model)))
        guide.append(auto.AutoDiscreteParallel(poutine.block(model, expose=["y"])))
    else:
        model = own(flow)
        guide = auto.AutoDiscreteParallel(model)
    guide(x)
    with counting(flow.transform, "inverse_and_ladj") as counter:
        found = summed(model, x, guide)
    share, log_prior = PROBS, 0.0
    if name == "AutoGuideList":
        share = guide(x)["share"]
        log_prior = dist.Dirichlet(torch.ones(3)).log_prob(share)
    q = poutine.trace(guide).get_trace(x).nodes["y"]["fn"].probs
    scores = [flow.condition(torch.full((len(x),), k)).log_prob(x) + share[k].log() for k in range(3)]
    expected = -(q * (torch.stack(scores, -1) - q.log())).sum() - log_prior
    assert found == pytest.approx(expected.item(), rel=ROWS[name]["error"])
    assert counter.calls == ROWS[name]["passes"]


@pytest.mark.parametrize("kernel", [NUTS, HMC], ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize("shared", [False, True])
def test_density_of_chains(kernel, shared, flow, x):
    """The potential energy, whose change of variables is that of Pyro."""
    row = ROWS["NUTS and HMC, density"]
    kernel = kernel(with_share(flow), max_plate_nesting=1)
    kernel.setup(0, x)
    scores = torch.stack([flow.condition(torch.full((5,), k)).log_prob(x) for k in range(3)], -1)
    scope = scnf.share_encoding() if shared else torch.enable_grad()
    with scope, counting(flow.transform, "inverse_and_ladj") as counter:
        for _ in range(3):
            place = {"share": torch.randn(2, dtype=F64)}
            found = kernel.potential_fn(place)
            to_share = kernel.transforms["share"].inv
            share = to_share(place["share"])
            log_prior = dist.Dirichlet(torch.ones(3, dtype=F64)).log_prob(share)
            bent = to_share.log_abs_det_jacobian(place["share"], share)
            expected = -((scores + share.log()).logsumexp(-1).sum() + log_prior + bent)
            assert found.item() == pytest.approx(expected.item(), rel=row["error"])
    assert counter.calls == (1 if shared else 3 * row["passes"])


def test_two_chains_in_two_processes(flow, x):
    kernel = NUTS(with_share(flow), max_plate_nesting=1, max_tree_depth=2)
    options = {"num_chains": 2, "mp_context": "fork", "disable_progbar": True}
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=5, **options)
    mcmc.run(x)
    first, second = mcmc.get_samples(group_by_chain=True)["share"]
    assert first.shape == (5, 3)
    assert not torch.equal(first, second)


# -- passes of what other tests compare -------------------------------------------------------------
ENUM = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
PASSES = {
    "infer_discrete, temperature 0": lambda m, x: infer_discrete(m, first_available_dim=-2, temperature=0)(x),
    "infer_discrete, temperature 1": lambda m, x: infer_discrete(m, first_available_dim=-2)(x),
    "compute_marginals": lambda m, x: TraceEnum_ELBO(**ENUM).compute_marginals(m, scnf.exact_guide, x),
    "sample_posterior": lambda m, x: TraceEnum_ELBO(**ENUM).sample_posterior(m, scnf.exact_guide, x),
    "Predictive, parallel or sequential": lambda m, x: Predictive(m, num_samples=4)(n=2),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes(name, flow, x):
    model = ready(flow)
    with counting(flow.transform, "inverse_and_ladj") as counter:
        PASSES[name](model, x)
    assert counter.calls == ROWS[name]["passes"]


# -- errors and wrong values ------------------------------------------------------------------------
def test_mean_field_refuses_a_drawn_label(flow, x):
    with pytest.raises(NotImplementedError, match="must be fully reparameterized"):
        drawn(TraceMeanField_ELBO)(flow, x)


def test_equalize_refuses_an_enumerated_label(flow, x):
    def model(x):
        with pyro.plate("data", len(x)):
            for name in "ab":
                y = pyro.sample(f"y_{name}", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{name}", flow.condition(y), obs=x)

    with pytest.raises(ValueError, match='at site "y_b", invalid log_prob shape'):
        summed(poutine.equalize(model, ["y_a", "y_b"]), x)


def test_rendering_shows_both_sites(flow, x):
    relations = pyro.infer.inspect.get_model_relations(own(flow), (x,))
    assert relations["observed"] == ["x"]
    assert set(relations["sample_sample"]["x"]) >= {"y"}
    assert relations["plate_sample"] == {"data": ["y", "x"]}


# -- the rows of the page ---------------------------------------------------------------------------
def names_of(path):
    """Functions and methods of a test file as pytest names them."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + m.name for m in members if isinstance(m, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("name", ROWS)
def test_the_tests_of_a_row_exist(name):
    for test in ROWS[name]["tests"]:
        file, _, rest = test.partition("::")
        function, case = re.fullmatch(r"([^\[]+)(?:\[(.+)\])?", rest).groups()
        assert function in names_of(TESTS / file)
        assert case is None or case == name


def test_every_error_is_read():
    """A row with an error names a test that takes the error from the row."""
    readers = r"test_pyro_support\.py::test_(exact|changed|guide|a_guide_over_the_label|density_of_chains)\b"
    for name, row in ROWS.items():
        assert "error" not in row or any(re.match(readers, test) for test in row["tests"]), name


def test_every_case_has_a_row():
    """A case without a row would be tested, and not told."""
    tables = {"test_exact": EXACT, "test_changed": CHANGED, "test_guide": GUIDES, "test_passes": PASSES}
    for function, cases in tables.items():
        named = {n for n, row in ROWS.items() if f"test_pyro_support.py::{function}[{n}]" in row["tests"]}
        assert named == set(cases)
