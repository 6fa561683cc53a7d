"""The examples of labels from a crowd and of outcomes: their densities, beside sums over labels by hand."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from helpers import counting, relative, toy_flow
from pyro import poutine
from scipy import stats

import pyro_scnf as scnf

F64 = torch.float64
K = 3


@pytest.fixture
def flow():
    torch.set_default_dtype(F64)
    return toy_flow("gmm", dtype=F64).requires_grad_(False).eval()


def class_scores(flow, x):
    """log p(x | y) in nats, ``(N, K)``, one label at a time."""
    return torch.stack([flow.condition(torch.full((len(x),), k)).log_prob(x) for k in range(K)], -1)


def first_draw(draws):
    return {name: values[0] for name, values in draws.items()}


class TestCrowd:
    VOTES = torch.tensor([[0, -1, 2], [-1, 1, -1], [-1, -1, -1], [2, 1, 0], [1, 1, 1]])

    @pytest.fixture
    def draws(self, flow):
        rows = dist.Dirichlet(torch.full((K,), 0.7)).expand([3, K])  # no row is like a column
        return {
            "share": dist.Dirichlet(torch.ones(K)).sample((4,)),
            "confusion": rows.sample((4,)),
        }

    def by_hand(self, scores, share, confusion):
        """log p(x, votes, y), ``(N, K)``."""
        joint = scores + share.log()
        for n, k, a in itertools.product(range(len(self.VOTES)), range(K), range(3)):
            vote = self.VOTES[n, a]
            if vote >= 0:
                joint[n, k] += confusion[a, k, vote].log()
        return joint

    @pytest.mark.parametrize("with_flow", [True, False])
    def test_the_density_sums_over_labels(self, load_example, flow, draws, with_flow):
        x = torch.randn(len(self.VOTES), 2)
        model = load_example("crowd_labels")["make_model"](flow if with_flow else None)
        fixed = first_draw(draws)
        prior = dist.Dirichlet(torch.ones(K)).log_prob(fixed["share"])
        for a, k in itertools.product(range(3), range(K)):
            prior = prior + dist.Dirichlet(1 + torch.eye(K)[k]).log_prob(fixed["confusion"][a, k])
        scores = class_scores(flow, x) if with_flow else torch.zeros(len(x), K)
        expected = prior + self.by_hand(scores, **fixed).logsumexp(-1).sum()
        loss = scnf.elbo(poutine.condition(model, fixed))(x, self.VOTES)
        assert -loss.item() == pytest.approx(expected.item(), rel=1e-9)

    @pytest.mark.parametrize("with_flow", [True, False])
    def test_labels_of_all_draws(self, load_example, flow, draws, with_flow):
        x = torch.randn(len(self.VOTES), 2)
        model = load_example("crowd_labels")["make_model"](flow if with_flow else None)
        with counting(flow.transform, "inverse_and_ladj") as passes:
            found = scnf.enumerate_labels(model, (x, self.VOTES), draws, parallel=True)
        assert passes.calls == with_flow
        scores = class_scores(flow, x) if with_flow else torch.zeros(len(x), K)
        for s in range(4):
            share, confusion = draws["share"][s], draws["confusion"][s]
            assert relative(found[s], self.by_hand(scores, share, confusion)) < 1e-9

    def test_the_flow_learns_from_votes(self, load_example, flow, draws):
        """The gradient of a point with votes weighs the classes by all that is known of its label."""
        flow.requires_grad_(True)
        model, x = load_example("crowd_labels")["make_model"](flow), torch.randn(len(self.VOTES), 2)
        fixed = first_draw(draws)
        loss = scnf.elbo(poutine.condition(model, fixed))
        loss(x, self.VOTES).backward()
        found = flow.prior.loc.grad.clone()
        scores = class_scores(flow, x)
        weights = self.by_hand(scores.detach().clone(), **fixed).softmax(-1)
        (expected,) = torch.autograd.grad(-(weights * scores).sum(), flow.prior.loc)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    def test_simulated_votes_are_those_of_the_matrices(self, load_example):
        example = load_example("annotators")
        y, x, votes = example["simulate"](60_000)
        asked = votes >= 0
        assert x.shape == (60_000, 2)
        assert asked[: example["VOTED"]].sum(1).eq(example["VOTES"]).all()
        assert not asked[example["VOTED"] :].any()
        assert example["CONFUSION"].sum(-1) == pytest.approx(torch.ones(5, K))
        assert y.bincount() / len(y) == pytest.approx(example["SHARES"], abs=0.01)
        voted = [example["simulate"](example["VOTED"]) for _ in range(200)]
        y, votes = torch.cat([one[0] for one in voted]), torch.cat([one[2] for one in voted])
        for a, k in itertools.product(range(5), range(K)):
            said = votes[(y == k) & (votes[:, a] >= 0), a]
            frequency = said.bincount(minlength=K) / len(said)
            assert frequency == pytest.approx(example["CONFUSION"][a, k], abs=0.03)

    def test_the_majority(self, load_example):
        votes = torch.tensor([[2, -1, 2], [-1, 1, -1], [-1, -1, -1], [2, 0, -1]])
        majority = load_example("annotators")["majority"]
        guess, clear = majority(votes)
        assert guess[:2].tolist() == [2, 1]
        assert clear.tolist() == [True, True, False, False]
        guess, clear = majority(votes[3:].expand(200, -1))
        assert set(guess.tolist()) == {0, 2}
        assert not clear.any()


class TestOutcome:
    YEARS = torch.tensor([0.7, 3.0, 5.5, 1.2], dtype=F64)
    EVENT = torch.tensor([True, False, True, False])
    VISITS = torch.tensor([0.0, 4.0, 2.0, 1.0], dtype=F64)

    @pytest.fixture
    def draws(self, flow):
        normal = dist.LogNormal(torch.zeros(K), 0.5)
        return {
            "share": dist.Dirichlet(torch.ones(K)).sample((4,)),
            **{name: normal.sample((4,)) for name in ("scale", "shape", "rate")},
        }

    def by_hand(self, scores, share, scale, shape, rate):
        """log p(x, outcome, y), ``(N, K)``, from densities and survival functions of SciPy."""
        joint = scores + share.log()
        for n, k in itertools.product(range(len(scores)), range(K)):
            years, weibull = self.YEARS[n].item(), stats.weibull_min(shape[k].item(), scale=scale[k].item())
            joint[n, k] += weibull.logpdf(years) if self.EVENT[n] else weibull.logsf(years)
            joint[n, k] += stats.poisson(rate[k].item() * years).logpmf(self.VISITS[n].item())
        return joint

    def test_the_density_sums_over_labels(self, load_example, flow, draws):
        x, fixed = torch.randn(4, 2), first_draw(draws)
        model = load_example("outcome")["make_model"](flow)
        prior = dist.Dirichlet(torch.ones(K)).log_prob(fixed["share"]).item()
        for name, median, sigma in (("scale", math.e, 1.0), ("shape", 1.0, 0.5), ("rate", 1.0, 1.0)):
            prior += stats.lognorm(sigma, scale=median).logpdf(fixed[name]).sum()
        expected = prior + self.by_hand(class_scores(flow, x), **fixed).logsumexp(-1).sum().item()
        loss = scnf.elbo(poutine.condition(model, fixed))(x, self.YEARS, self.EVENT, self.VISITS)
        assert -loss.item() == pytest.approx(expected, rel=1e-9)

    def test_labels_of_all_draws(self, load_example, flow, draws):
        x, model = torch.randn(4, 2), load_example("outcome")["make_model"](flow)
        args = (x, self.YEARS, self.EVENT, self.VISITS)
        found = scnf.enumerate_labels(model, args, draws, parallel=True)
        for s in range(4):
            one = {name: values[s] for name, values in draws.items()}
            assert relative(found[s], self.by_hand(class_scores(flow, x), **one)) < 1e-9

    def test_times_are_observed_until_the_event_or_the_end(self, load_example):
        example = load_example("outcome")
        runs = [example["simulate"]() for _ in range(60)]
        y = torch.cat([run[0] for run in runs])
        x, years, event, visits = (
            torch.cat(column) for column in zip(*(run[1] for run in runs), strict=True)
        )
        assert len(x) == len(y) == 60 * example["PEOPLE"]
        assert years.max() <= 6
        assert years[~event].min() >= 1
        for k in range(K):
            weibull = stats.weibull_min(example["SHAPES"][k].item(), scale=example["SCALES"][k].item())
            early = event & (years < 1)  # nobody leaves before one year
            assert early[y == k].double().mean().item() == pytest.approx(weibull.cdf(1.0), abs=0.02)
            rate = visits[y == k].sum() / years[y == k].sum()
            assert rate.item() == pytest.approx(example["VISITS"][k].item(), rel=0.05)


EXPECTED = {
    "crowd_labels": {
        *(f"error_pct_{name}" for name in ("majority", "first_flow", "joint_flow")),
        *(f"error_pct_with_{name}" for name in ("votes", "first", "joint")),
    },
    "outcome": {
        "censored_pct",
        *(
            f"{figure}_{of}"
            for figure in ("error_pct", "label_nll")
            for of in ("both", "x_alone", "outcome_alone")
        ),
    },
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.filterwarnings("error")
def test_it_runs_from_start_to_end(smoke, name):
    metrics, _ = smoke(name)
    assert metrics.keys() == {*EXPECTED[name], "estimates", "wrong_model", "seed"}
    for rows in metrics["estimates"].values():
        assert all(low <= mean <= high for _, mean, low, high in zip(*rows.values(), strict=True))
