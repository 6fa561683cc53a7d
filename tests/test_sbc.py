"""Simulation-based calibration: right inference passes, wrong inference is caught, and numbers are exact."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.posterior import RankBand, SBCResult, sbc
from pyro_scnf.posterior.runs import Runs
from pyro_scnf.posterior.tables import LabelTable

K, ROWS = 2, 12
Infer = Callable[..., dict[str, Tensor]]


# -- bands -----------------------------------------------------------------------------------------
def test_p_values_are_those_of_all_possible_ranks() -> None:
    """Against a list of all 5**4 outcomes of four ranks among four draws."""
    band = RankBand(4, 4)
    every = torch.tensor(list(itertools.product(range(5), repeat=4))).T
    below = torch.stack([(every < i).sum(0) for i in range(1, 5)])

    def tail(count: int, share: float) -> float:
        probs = [math.comb(4, k) * share**k * (1 - share) ** (4 - k) for k in range(5)]
        return min(1.0, 2 * min(sum(probs[: count + 1]), sum(probs[count:])))

    nearest = [min(tail(int(n), i / 5) for i, n in enumerate(column, 1)) for column in below.T]
    expected = torch.tensor([sum(t <= one + 1e-9 for t in nearest) / len(nearest) for one in nearest])
    found = torch.cat([band.p_value(column[:, None]) for column in every.T])
    torch.testing.assert_close(found.float(), expected)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_band_holds_uniform_ranks_as_often_as_it_says(level: float) -> None:
    band = RankBand(50, 19)
    low, high = band.bounds(level)
    ranks = torch.randint(20, (50, 4000), generator=torch.Generator().manual_seed(0))
    counts = band.counts(ranks)
    held = ((counts >= low) & (counts <= high)).all(-1)
    error = math.sqrt(level * (1 - level) / 4000)
    assert level - 3 * error < held.double().mean() < level + 3 * error + 0.03  # counts are whole numbers
    assert torch.equal(held[:40], band.p_value(ranks[:, :40]) > 1 - level)


# -- a conjugate model -----------------------------------------------------------------------------
def normal() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("x", dist.Normal(mu, 1.0))


def exact(scale: float = 1.0, shift: float = 0.0, draws: int = 39) -> Infer:
    """Draws from the posterior N(sum(x) / 5, 1 / 5), or a changed one."""

    def infer(model: Callable[..., object]) -> dict[str, Tensor]:
        x = pyro.poutine.trace(model).get_trace().nodes["x"]["value"]
        assert x is not None
        return {"mu": x.sum() / 5 + shift + scale * 5**-0.5 * torch.randn(draws)}

    return infer


def run(infer: Infer, number: int = 150, **options: Any) -> SBCResult:
    return sbc(normal, infer, observed="x", num_simulations=number, **options)


def test_exact_draws_are_calibrated() -> None:
    found = run(exact())
    assert found.names == ("mu",)
    assert found.num_draws == 39
    assert found.inside().all()
    assert found.p_values() > 0.05
    torch.testing.assert_close(
        found.coverage()[:, 0], torch.tensor([0.5, 0.8, 0.95]).double(), atol=0.09, rtol=0
    )
    least, most = found.band()
    inside = (found.ecdf_difference() >= least) & (found.ecdf_difference() <= most)
    assert inside.all()


@pytest.mark.parametrize(
    "wrong", [exact(1.5), exact(1 / 1.5), exact(shift=0.25)], ids=["wide", "narrow", "moved"]
)
def test_wrong_draws_are_caught(wrong: Infer) -> None:
    found = run(wrong, 300)
    assert not found.inside().any()
    least, most = found.band()
    assert ((found.ecdf_difference() < least) | (found.ecdf_difference() > most)).any()


def test_coverage_counts_parts_of_ranks() -> None:
    """Each rank once is uniform: the coverage is the level, whatever the number of draws."""
    ranks = torch.arange(8)[:, None]
    found = SBCResult(0, 7, ("a",), torch.arange(8), ranks, ranks.double())
    levels = [0.13, 0.5, 0.95]
    torch.testing.assert_close(found.coverage(levels)[:, 0], torch.tensor(levels).double())


def test_a_quantity_of_the_data_catches_draws_of_the_prior() -> None:
    """Draws from the prior have uniform ranks. The log-likelihood tells that they ignore the data."""
    likelihood = {"loglik": lambda now, data: dist.Normal(now["mu"], 1.0).log_prob(data["x"]).sum()}
    found = run(lambda model: {"mu": torch.randn(39)}, quantities=likelihood)
    assert found.names == ("mu", "loglik")
    assert found.inside().tolist() == [True, False]


def test_ties_are_broken_at_random() -> None:
    found = sbc(_rounded, lambda model: {"mu": torch.randn(39).sign()}, observed="x", num_simulations=200)
    assert found.inside().all()
    assert len(found.ranks.unique()) > 30


def _rounded() -> None:
    value = torch.randn(()).sign()
    pyro.sample("x", dist.Normal(pyro.sample("mu", dist.Delta(value)), 1.0))


# -- a composed model ------------------------------------------------------------------------------
def make_flow() -> scnf.SemiConditionalFlow:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=4), "gmm", K)
        for p in flow.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return flow.requires_grad_(False).eval()


FLOW = make_flow()
GRID = (torch.arange(200) + 0.5) / 200


def composed() -> None:
    share = pyro.sample("share", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("rows", ROWS):
        y = pyro.sample("y", dist.Categorical(share), infer={"enumerate": "parallel"})
        pyro.sample("x", FLOW.condition(y))


def on_grid(model: Callable[..., object]) -> dict[str, Tensor]:
    """Draws of the share by a grid of its values. The prior is flat."""
    share = torch.stack([GRID, 1 - GRID], -1)
    log_prob = scnf.enumerate_labels(model, (), {"share": share}).logsumexp(-1).sum(-1)
    first = GRID[dist.Categorical(logits=log_prob).sample((39,))] + (torch.rand(39) - 0.5) / 200
    return {"share": torch.stack([first, 1 - first], -1)}


@pytest.fixture(scope="module")
def composed_result() -> SBCResult:
    return sbc(composed, on_grid, observed="x", num_simulations=200, label="y", seed=1)


def test_a_composed_model_is_calibrated(composed_result: SBCResult) -> None:
    found = composed_result
    assert found.names == ("share[0]", "share[1]", "log p(y | x)", "count(y = 0)", "count(y = 1)")
    assert found.p_values().min() > 0.05 / len(found.names)
    assert found.label_log_probs is not None
    assert found.label_log_probs.shape == (200, ROWS, K)
    torch.testing.assert_close(found.label_log_probs.exp().sum(-1), torch.ones(200, ROWS).double())
    assert found.labels is not None
    assert torch.equal((found.labels == 1).sum(1).double(), found.truths[:, 4])


def changed_labels(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> SBCResult:
    """The same simulations with other label probabilities than those of the model."""
    run_tables = Runs.tables

    def tables(self: Runs, draws: dict[str, Tensor], site: str) -> list[LabelTable]:
        return [table._replace(joint=change(table.joint)) for table in run_tables(self, draws, site)]

    monkeypatch.setattr(Runs, "tables", tables)
    return sbc(composed, on_grid_once, observed="x", num_simulations=200, label="y", seed=1)


def on_grid_once(model: Callable[..., object]) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runs, "tables", TABLES)
        return on_grid(model)


TABLES = Runs.tables


@pytest.mark.parametrize("power", [2.0, 0.5])
def test_labels_too_sure_or_unsure_are_caught(monkeypatch: pytest.MonkeyPatch, power: float) -> None:
    found = changed_labels(monkeypatch, lambda joint: power * joint)
    assert found.p_values()[2] < 1e-3


def test_labels_of_another_class_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    found = changed_labels(monkeypatch, lambda joint: joint + torch.tensor([2.0, 0.0]))
    assert (found.p_values()[3:] < 1e-3).all()


@pytest.mark.parametrize("apart", [6.0, 60.0])
def test_sure_labels_give_no_false_alarm(apart: float) -> None:
    """Labels that are nearly always, or always, the most likely ones."""

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu + apart * (2 * y - 1), 2.0))

    def infer(conditioned: Callable[..., object]) -> dict[str, Tensor]:
        mu = torch.linspace(-4, 4, 401)
        log_prob = scnf.enumerate_labels(conditioned, (), {"mu": mu}).logsumexp(-1).sum(-1)
        log_prob = log_prob + dist.Normal(0.0, 1.0).log_prob(mu)
        return {"mu": mu[dist.Categorical(logits=log_prob).sample((19,))] + (torch.rand(19) - 0.5) / 50}

    found = sbc(model, infer, observed="x", num_simulations=100, label="y")
    assert found.p_values().min() > 0.05 / len(found.names)


def tied() -> None:
    """Members of a group share a regime."""
    share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("groups", 3, dim=-1):
        r = pyro.sample("r", dist.Categorical(share), infer={"enumerate": "parallel"})
        with pyro.plate("members", 6, dim=-2):
            y = pyro.sample("y", dist.Bernoulli(0.1 + 0.8 * r), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(y, 2.0))


def tied_on_grid(conditioned: Callable[..., object]) -> dict[str, Tensor]:
    """Draws as they come from NumPy, in double precision."""
    share = torch.stack([GRID, 1 - GRID], -1)
    options: dict[str, Any] = {"site": "r", "max_plate_nesting": 2}
    log_prob = scnf.enumerate_labels(conditioned, (), {"share": share}, **options).logsumexp(-1).sum(-1)
    first = GRID[dist.Categorical(logits=log_prob).sample((9,))] + (torch.rand(9) - 0.5) / 200
    return {"share": torch.stack([first, 1 - first], -1).double()}


def test_labels_that_another_site_ties_together_are_drawn_together() -> None:
    """The number of each class varies more than for separate rows."""
    found = sbc(tied, tied_on_grid, observed="x", num_simulations=80, label="y", max_plate_nesting=2)
    assert found.p_values().min() > 0.05 / len(found.names)
    probs = found.label_log_probs
    assert probs is not None
    drawn = dist.Categorical(logits=probs).sample((9,)).sum(-1)  # rows by themselves
    ranks = (drawn < found.truths[:, -1]).sum(0) + (drawn == found.truths[:, -1]).sum(0) // 2
    assert RankBand(80, 9).p_value(ranks[:, None]) < 1e-3


def test_numbers_of_labels_against_sums_by_hand() -> None:
    """Probabilities are averaged over the draws alone, and each row is scored at the true share."""
    seen: dict[str, Any] = {}

    def infer(conditioned: Callable[..., object]) -> dict[str, Tensor]:
        share = torch.tensor([[0.1, 0.9], [0.6, 0.4]])
        seen.update(
            model=conditioned, draws={"share": share, "y": torch.ones(2, ROWS), "x": torch.zeros(2, ROWS, 2)}
        )
        return dict(seen["draws"])

    found = sbc(composed, infer, observed="x", num_simulations=1, label="y")
    truth = {"share": found.truths[0, :2].float()}
    scores = torch.stack(
        [FLOW.condition(torch.full((ROWS,), k)).log_prob(data_of(seen["model"])) for k in range(K)], -1
    )
    each = [(scores + share.log()).log_softmax(-1) for share in (*seen["draws"]["share"], truth["share"])]
    assert found.label_log_probs is not None
    assert found.labels is not None
    expected = torch.stack(each[:2]).exp().mean(0)
    torch.testing.assert_close(found.label_log_probs[0].exp().float(), expected, rtol=1e-4, atol=1e-5)
    total = each[2].gather(-1, found.labels[0][:, None]).sum()
    torch.testing.assert_close(found.truths[0, 2].float(), total, rtol=1e-4, atol=1e-4)


def data_of(model: Callable[..., object]) -> Tensor:
    value = pyro.poutine.trace(model).get_trace().nodes["x"]["value"]
    assert value is not None
    return value


def test_labels_without_probabilities_are_named() -> None:
    def masked() -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(K)))
        with pyro.plate("rows", 4), pyro.poutine.mask(mask=torch.arange(4) > 0):
            y = pyro.sample("y", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(y.float(), 1.0))

    def far() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Uniform(mu + y, mu + y + 1, validate_args=False))

    half = torch.full((3, K), 1 / K)
    with pytest.raises(ValueError, match="label='y': a mask leaves rows out"):
        sbc(masked, lambda model: {"share": half}, observed="x", num_simulations=1, label="y")
    with pytest.raises(ValueError, match=r"row \d has probability 0 under all labels, given draw 0 of infer"):
        sbc(far, lambda model: {"mu": torch.full((3,), 99.0)}, observed="x", num_simulations=1, label="y")


# -- parts of a run --------------------------------------------------------------------------------
def test_a_simulation_is_the_same_alone_and_in_a_run() -> None:
    whole = sbc(composed, on_grid, observed="x", num_simulations=4, label="y", seed=3)
    parts = [
        sbc(composed, on_grid, observed="x", num_simulations=n, label="y", seed=3, start=start)
        for start, n in ((2, 2), (0, 1), (1, 1))
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    for name, value in vars(whole).items():
        other = getattr(merged, name)
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name
    assert not torch.equal(whole.truths, run(exact(), 4, seed=4).truths)


def test_each_simulation_starts_with_an_empty_store() -> None:
    def infer(model: Callable[..., object]) -> dict[str, Tensor]:
        assert "loc" not in pyro.get_param_store()
        pyro.param("loc", torch.zeros(()))
        return exact()(model)

    run(infer, 2)
    assert "loc" not in pyro.get_param_store()


def test_thinning_keeps_draws_evenly_spread() -> None:
    """Draws grow, so the first fifty of them would all lie below the truth."""
    spread = run(lambda model: {"mu": torch.arange(200.0) - 100}, 3, thin=50)
    assert ((spread.ranks >= 24) & (spread.ranks <= 26)).all()
    found = run(exact(draws=200), 3, thin=50)
    assert found.num_draws == 50
    assert found.ess is not None
    assert (found.ess > 100).all()
    slow = run(lambda model: {"mu": exact(draws=20)(model)["mu"].repeat_interleave(10)}, 3, thin=50)
    assert slow.ess is not None
    assert (slow.ess < 60).all()


# -- errors ----------------------------------------------------------------------------------------
def test_errors_name_what_is_wrong() -> None:
    def raises(message: str, error: type[Exception] = ValueError, **changes: object) -> None:
        given: dict[str, Any] = {
            "model": normal,
            "infer": exact(),
            "observed": "x",
            "num_simulations": 1,
            **changes,
        }
        with pytest.raises(error, match=message):
            sbc(**given)

    def broken(model: object) -> dict[str, Tensor]:
        raise OverflowError("too large")

    def observes() -> None:
        normal()
        pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.zeros(()))

    def with_param() -> None:
        pyro.param("loc", torch.zeros(()))
        normal()

    def one_hot() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(y[..., 0], 1.0))

    def alone() -> None:
        normal()
        pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    def both() -> None:
        normal()
        with pyro.plate("others", 2):
            pyro.sample(
                "y", dist.Categorical(pyro.sample("share", dist.Dirichlet(torch.ones(2)).expand([1])))
            )

    raises("observed: no such sites", observed="w")
    raises("observed is empty", observed=[])
    raises("no continuous latent", observed=["x", "mu"])
    raises("sites is empty", sites=[])
    raises(
        "expected it in a .vectorised. plate",
        model=alone,
        infer=lambda model: {"mu": torch.randn(9)},
        label="y",
    )
    raises("and none of .'share'", model=both, infer=exact(), label="y", sites=["mu"])
    raises("expected class numbers", model=one_hot, infer=lambda model: {"mu": torch.randn(9)}, label="y")
    sizes = iter([9, 10])
    raises(
        "simulation 1 of seed 0: 10 draws",
        infer=lambda model: exact(draws=next(sizes))(model),
        num_simulations=2,
    )
    raises("discrete or observed", model=composed, infer=on_grid, sites=["y"])
    raises("label='mu'", label="mu")
    raises("label: no such sites", label="y")
    raises("model observes", model=observes)
    raises("has parameters", model=with_param)
    raises("and none of", infer=lambda model: {"nu": torch.randn(9)})
    raises("of shape", infer=lambda model: {"mu": torch.randn(9, 2)})
    raises("NaN in", infer=lambda model: {"mu": torch.full((9,), math.nan)})
    raises("simulation 7 of seed 0: infer failed: too large", RuntimeError, infer=broken, start=7)
    raises("returned 39 draws", thin=50)
    raises("expected one number", quantities={"all": lambda now, data: data["x"]})
    raises("expected functions fn.values, data. by name", quantities=[len])
    raises("expected functions fn.values, data. by name", quantities={"q": 3})
    raises("'mu' is the name of a latent", quantities={"mu": lambda now, data: 0.0})
    raises("no draws, expected arrays by", RuntimeError, infer=lambda model: None)
    raises("returned 1 draws of 'mu'", infer=lambda model: {"mu": torch.randn(1)})
    raises("in torch.int64, expected", infer=lambda model: {"mu": torch.arange(9)})
    raises("num_simulations=0", num_simulations=0)


def test_results_that_do_not_belong_together_are_refused() -> None:
    one = run(exact(), 2)
    with pytest.raises(ValueError, match="both hold the simulations"):
        one.merge(one)
    with pytest.raises(ValueError, match="seed is 0 here and 1"):
        one.merge(run(exact(), 2, seed=1, start=2))


# -- figure ----------------------------------------------------------------------------------------
def test_the_figure_shows_curves_and_bands() -> None:
    found = sbc(composed, on_grid, observed="x", num_simulations=6)
    figure = scnf.plots.sbc_ranks(found)
    for panel, name, curve in zip(figure.axes, found.names, found.ecdf_difference(), strict=True):
        assert panel.get_title().startswith(name)
        drawn = torch.as_tensor(panel.lines[0].get_ydata())
        torch.testing.assert_close(drawn, curve)
    with pytest.raises(ValueError, match="expected a SBCResult"):
        scnf.plots.sbc_ranks(cast(SBCResult, {}))
