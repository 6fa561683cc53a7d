"""The examples of groups: hospitals with a hidden regime, and bags with one label, beside sums by hand."""

from __future__ import annotations

import itertools
import math
import sys

import pyro.distributions as dist
import pytest
import torch
from helpers import counting, relative, toy_flow
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model

import pyro_scnf as scnf

F64 = torch.float64


@pytest.fixture
def flow():
    return toy_flow("gmm", dtype=F64).requires_grad_(False)


def log_density(model, args, draws):
    """The log-density that NUTS sees, of one draw, in nats and in the space of the sites."""
    start = {name: values[0] for name, values in draws.items()}
    _, potential, transforms, _ = initialize_model(
        model, args, max_plate_nesting=2, initial_params=None, skip_jit_warnings=True
    )
    there = {name: transforms[name](value) for name, value in start.items()}
    jacobian = sum(transforms[name].log_abs_det_jacobian(start[name], there[name]).sum() for name in start)
    return -potential(there) + jacobian


class TestHospitals:
    @pytest.fixture
    def example(self, load_example):
        torch.set_default_dtype(F64)
        return load_example("hierarchy")

    @pytest.fixture
    def draws(self, example):
        flat = dist.Dirichlet(torch.ones(3))
        return {
            "mean": flat.sample((2,)),
            "outbreak": flat.sample((2,)),
            "concentration": torch.tensor([5.0, 20.0]),
            "share": flat.sample((2, 2, 1)),
        }

    def by_hand(self, example, flow, x, draws, s, g):
        """log p(x, r, y_1, y_2) of one hospital, ``(2, 3, 3)``."""
        scores, share = flow.class_log_prob(x[g]), draws["share"][s, g, 0]
        outbreak, odds = draws["outbreak"][s], example["REGIMES"].log()
        joint = torch.zeros(2, 3, 3)
        for r, a, b in itertools.product(range(2), range(3), range(3)):
            probs = (share if r == 0 else 0.5 * share + 0.5 * outbreak).log()
            joint[r, a, b] = odds[r] + probs[a] + probs[b] + scores[0, a] + scores[1, b]
        return joint

    def test_regimes_and_labels(self, example, flow, draws):
        x = torch.randn(2, 2, 2)
        model = example["make_model"](flow)
        with counting(flow.transform, "inverse_and_ladj") as counter:
            r = scnf.enumerate_labels(model, (x,), draws, site="r", max_plate_nesting=2, parallel=True)
        assert counter.calls == 1
        y = scnf.enumerate_labels(model, (x,), draws, site="y", max_plate_nesting=2, parallel=True)
        for s, g in itertools.product(range(2), range(2)):
            joint = self.by_hand(example, flow, x, draws, s, g)
            assert relative(r[s, g], joint.logsumexp((1, 2))) < 1e-9
            assert relative(y[s, g, 0], joint.logsumexp((0, 2))) < 1e-9
            assert relative(y[s, g, 1], joint.logsumexp((0, 1))) < 1e-9

    def test_the_density_of_nuts(self, example, flow, draws):
        x = torch.randn(2, 2, 2)
        model = example["make_model"](flow)
        found = log_density(model, (x,), draws)
        mean, concentration = draws["mean"][0], draws["concentration"][0]
        prior = (
            dist.Dirichlet(torch.ones(3)).log_prob(mean)
            + dist.Dirichlet(torch.tensor([1.0, 1.0, 4.0])).log_prob(draws["outbreak"][0])
            + dist.LogNormal(3.5, 0.5).log_prob(concentration)
            + dist.Dirichlet(concentration * mean).log_prob(draws["share"][0, :, 0]).sum()
        )
        data = sum(self.by_hand(example, flow, x, draws, 0, g).logsumexp((0, 1, 2)) for g in range(2))
        assert found.item() == pytest.approx(float(prior + data), rel=1e-9)

    def test_the_simpler_model_has_no_regime(self, example, flow, draws):
        x = torch.randn(2, 2, 2)
        given = poutine.condition(
            example["make_model"](flow, regimes=False), {name: v[0] for name, v in draws.items()}
        )
        joint = scnf.enumerate_labels(given, (x,), max_plate_nesting=2)[0]
        hand = flow.class_log_prob(x) + draws["share"][0].log()
        assert relative(joint, hand) < 1e-9


class TestBags:
    MASK = torch.tensor([[True, False, False], [True, True, True]])

    @pytest.fixture
    def example(self, load_example):
        torch.set_default_dtype(F64)
        return load_example("bags")

    @pytest.fixture
    def draws(self, example):
        return {"share": dist.Dirichlet(torch.ones(3)).sample((4,))}

    def by_hand(self, flow, x, share):
        """log p(x, y) of each bag, from the members that are there."""
        members = torch.where(self.MASK[..., None], flow.class_log_prob(x), 0.0)
        return members.sum(1) + share.log()[..., None, :]

    def test_labels_of_bags(self, example, flow, draws):
        x = torch.randn(2, 3, 2)
        args = (x, self.MASK)
        joint = scnf.enumerate_labels(example["make_model"](flow), args, draws, max_plate_nesting=2)
        assert relative(joint, self.by_hand(flow, x, draws["share"])) < 1e-9
        other = torch.where(self.MASK[..., None], x, 9.0)  # what the mask hides plays no part
        hidden = scnf.enumerate_labels(
            example["make_model"](flow), (other, self.MASK), draws, max_plate_nesting=2
        )
        assert relative(hidden, joint) < 1e-9

    def test_the_density_of_nuts(self, example, flow, draws):
        x, share = torch.randn(2, 3, 2), draws["share"][0]
        prior = dist.Dirichlet(torch.ones(3)).log_prob(share)
        found = log_density(example["make_model"](flow), (x, self.MASK), draws)
        hand = self.by_hand(flow, x, share).logsumexp(-1).sum() + prior
        assert found.item() == pytest.approx(float(hand), rel=1e-9)
        careless = log_density(example["make_careless"](flow), (x, self.MASK), draws)
        each = (flow.class_log_prob(x) + share.log()).logsumexp(-1)
        constant = 2 * math.log(3)  # what the evaluator of NUTS adds for two labels under the mask
        assert careless.item() == pytest.approx(float(each[self.MASK].sum() + prior) + constant, rel=1e-9)


@pytest.mark.parametrize("name", ["hierarchy", "bags"])
def test_it_runs_from_start_to_end(smoke, name):
    metrics, _ = smoke(name)
    for rows in metrics["estimates"].values():
        assert {"truth", "mean", "low", "high"} == set(rows)
        assert all(low <= mean <= high for _, mean, low, high in zip(*rows.values(), strict=True))


def test_a_folder_that_cannot_be_made_is_told(load_example, monkeypatch, capsys, tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(sys, "argv", ["bags.py", "--out", "run"])
    with pytest.raises(SystemExit):
        load_example("bags", "__main__")
    assert capsys.readouterr().err.startswith("bags.py: error: --out: ")
