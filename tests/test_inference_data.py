"""``to_inference_data``: its groups and variables, compared with sums over labels by hand."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import counting, image_flow, relative, toy_flow
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_

import pyro_scnf as scnf

with warnings.catch_warnings():  # ArviZ warns about its own migration
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")

F64 = torch.float64
ARVIZ_1 = int(az.__version__.split(".")[0]) >= 1
LOCS = torch.tensor([-1.5, 1.5], dtype=F64)


@pytest.fixture
def flow():
    return toy_flow("flow", dtype=F64)


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=F64)


def shares_model(flow, x, y=None):
    """A frozen flow and unknown class probabilities. The label is unmarked, as in models for NUTS."""
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(shares), obs=y)
        pyro.sample("x", flow.condition(y), obs=x)


def draw_shares(*shape):
    return dist.Dirichlet(torch.ones(3, dtype=F64)).sample(shape)


def values(data, group, name):
    return torch.as_tensor(data[group][name].values)


def elpd(result):
    return float(result.elpd if ARVIZ_1 else result.elpd_loo)


class TestAgainstQuadrature:
    """Two known Gaussians in unknown proportion, so that all exact values are integrals over one number."""

    GRID = torch.linspace(0, 1, 4003, dtype=F64)[1:-1]

    @staticmethod
    def model(x, locs=LOCS):
        share = pyro.sample("share", dist.Beta(torch.tensor(2.0, dtype=F64), 2.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(share))
            pyro.sample("x", dist.Normal(locs[y.long()], 1.0), obs=x)

    @pytest.fixture
    def data(self):
        y = dist.Bernoulli(torch.tensor(0.3)).sample((30,)).long()
        return dist.Normal(LOCS[y], 1.0).sample()

    def log_likelihood(self, share, x, locs=LOCS):
        """log p(x_n | share), ``(*share.shape, N)``, in nats."""
        parts = dist.Normal(locs, torch.ones_like(locs)).log_prob(x[:, None]).exp()
        return ((1 - share[..., None]) * parts[:, 0] + share[..., None] * parts[:, 1]).log()

    def exact_loo(self, x, locs=LOCS):
        r"""The sum of :math:`\log p(x_n \mid x_{-n})`, which ``arviz.loo`` estimates."""
        each = self.log_likelihood(self.GRID, x, locs)
        prior = dist.Beta(torch.tensor(2.0, dtype=F64), 2.0).log_prob(self.GRID)[:, None]
        joint = prior + each.sum(-1, keepdim=True)
        return float((joint.logsumexp(0) - (joint - each).logsumexp(0)).sum())

    def draws(self, x, count, locs=LOCS):
        """Exact draws from the posterior on the grid."""
        prior = dist.Beta(torch.tensor(2.0, dtype=F64), 2.0).log_prob(self.GRID)
        log_posterior = prior + self.log_likelihood(self.GRID, x, locs).sum(-1)
        return self.GRID[torch.multinomial(log_posterior.softmax(0), count, replacement=True)]

    def test_loo_and_compare(self, data):
        wrong = LOCS + 1.0
        both = {}
        for name, locs in (("right", LOCS), ("wrong", wrong)):
            share = self.draws(data, 2000, locs)

            def model(x, locs=locs):
                return self.model(x, locs)

            both[name] = scnf.to_inference_data(model, (data,), {"share": share}, num_chains=4)
            assert (
                relative(
                    values(both[name], "log_likelihood", "x").flatten(0, 1),
                    self.log_likelihood(share, data, locs),
                )
                < 1e-12
            )
            # the tolerance is the Monte Carlo error of 2000 draws with about one effective parameter
            assert elpd(az.loo(both[name])) == pytest.approx(self.exact_loo(data, locs), abs=0.1)
        table = az.compare(both, round_to="none") if ARVIZ_1 else az.compare(both)
        column = "elpd" if ARVIZ_1 else "elpd_loo"
        assert list(table.index) == ["right", "wrong"]
        difference = table.loc["right", column] - table.loc["wrong", column]
        exact = self.exact_loo(data) - self.exact_loo(data, wrong)
        assert float(difference) == pytest.approx(exact, abs=0.2)

    def test_nuts_and_what_from_pyro_makes_of_it(self, data):
        mcmc = MCMC(NUTS(self.model), num_samples=200, warmup_steps=50, disable_progbar=True)
        mcmc.run(data)
        result = scnf.to_inference_data(self.model, (data,), mcmc)
        share = values(result, "posterior", "share")
        assert share.shape == (1, 200)
        assert torch.equal(share, mcmc.get_samples(group_by_chain=True)["share"])
        assert relative(values(result, "log_likelihood", "x"), self.log_likelihood(share, data)) < 1e-12
        assert result["sample_stats"]["diverging"].dims == ("chain", "draw")
        exact = self.exact_loo(data)
        assert elpd(az.loo(result)) == pytest.approx(exact, abs=0.3)
        if not ARVIZ_1:  # ArviZ 1.0 removed from_pyro
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = az.loo(az.from_pyro(mcmc))
            assert elpd(theirs) < exact - 10

    def test_probabilities_and_labels(self, data):
        share = self.draws(data, 4000)
        result = scnf.to_inference_data(self.model, (data,), {"share": share}, seed=3)
        parts = dist.Normal(LOCS, torch.ones_like(LOCS)).log_prob(data[:, None])
        prior = torch.stack([1 - share, share], -1).log()
        probs = values(result, "posterior", "y_prob")[0]
        assert relative(probs, (parts + prior[:, None]).softmax(-1)) < 1e-12
        y = values(result, "posterior", "y")[0]
        assert set(y.unique().tolist()) == {0, 1}
        error = 4 * 0.5 / math.sqrt(4000)
        assert ((y == 1).double().mean(0) - probs[..., 1].mean(0)).abs().max() < error
        again = scnf.to_inference_data(self.model, (data,), {"share": share}, seed=3)
        assert torch.equal(y, values(again, "posterior", "y")[0])
        other = scnf.to_inference_data(
            self.model, (data,), {"share": share}, seed=torch.Generator().manual_seed(4)
        )
        assert not torch.equal(y, values(other, "posterior", "y")[0])


class TestNames:
    def test_dims_and_coords(self, flow, x):
        result = scnf.to_inference_data(
            lambda x: shares_model(flow, x),
            (x,),
            {"shares": draw_shares(8)},
            num_chains=2,
            constant_data={"y_true": torch.arange(6) % 3, "costs": np.ones(3), "scalar": 2.0},
            sample_stats={"lp": torch.arange(8)},
            coords={"class": ["cat", "dog", "owl"], "axis": ["east", "north"]},
            dims={"shares": ["class"], "x": ["axis"], "costs": ["class"]},
        )
        expected = {
            ("posterior", "shares"): ("chain", "draw", "class"),
            ("posterior", "y"): ("chain", "draw", "datum"),
            ("posterior", "y_prob"): ("chain", "draw", "datum", "class"),
            ("log_likelihood", "x"): ("chain", "draw", "datum"),
            ("observed_data", "x"): ("datum", "axis"),
            ("constant_data", "y_true"): ("datum",),
            ("constant_data", "costs"): ("class",),
            ("constant_data", "scalar"): (),
            ("sample_stats", "lp"): ("chain", "draw"),
        }
        for (group, name), dims in expected.items():
            assert result[group][name].dims == dims, name
        assert {name for group in {g for g, _ in expected} for name in result[group].data_vars} == {
            name for _, name in expected
        }
        assert list(result["posterior"]["class"].values) == ["cat", "dog", "owl"]
        assert list(result["observed_data"]["axis"].values) == ["east", "north"]
        assert list(result["posterior"]["datum"].values) == list(range(6))
        assert (values(result, "sample_stats", "lp") == torch.arange(8).reshape(2, 4)).all()
        owl = result["posterior"]["y_prob"].sel({"class": "owl"})
        assert torch.equal(torch.as_tensor(owl.values), values(result, "posterior", "y_prob")[..., 2])
        assert type(result).__name__ == ("DataTree" if ARVIZ_1 else "InferenceData")

    def test_all_dims_may_be_given_and_default_ones_are_numbered(self, flow, x):
        def export(**options):
            return scnf.to_inference_data(
                lambda x: shares_model(flow, x), (x,), {"shares": draw_shares(4)}, **options
            )

        assert export()["posterior"]["shares"].dims == ("chain", "draw", "shares_dim_0")
        assert export()["observed_data"]["x"].dims == ("datum", "x_dim_0")
        given = export(dims={"x": ["datum", "axis"]})
        assert given["observed_data"]["x"].dims == ("datum", "axis")

    @pytest.mark.parametrize("parallel", [True, False])
    def test_plates_name_dimensions(self, parallel):
        """A label for each group, members inside the groups, and a latent in its own plate."""
        flow = image_flow("gmm", dtype=F64)
        x = torch.randn(5, 4, 1, 4, 4, dtype=F64)

        def model(x):
            with pyro.plate("kind", 3, dim=-1):
                logits = pyro.sample("logits", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            with pyro.plate("group", 4, dim=-1):
                y = pyro.sample("y", dist.Categorical(logits=logits.unsqueeze(-2)))
                with pyro.plate("member", 5, dim=-2):
                    pyro.sample("x", flow.condition(y), obs=x)

        logits = torch.randn(6, 3, dtype=F64)
        options = {"max_plate_nesting": 2, "parallel": parallel}
        result = scnf.to_inference_data(model, (x,), {"logits": logits}, **options)
        assert result["posterior"]["logits"].dims == ("chain", "draw", "kind")
        assert result["posterior"]["y"].dims == ("chain", "draw", "datum")
        assert result["observed_data"]["x"].dims == ("member", "datum", "x_dim_0", "x_dim_1", "x_dim_2")
        assert torch.equal(values(result, "observed_data", "x"), x)
        hand = flow.class_log_prob(x).sum(0) + logits.log_softmax(-1)[:, None]
        assert relative(values(result, "log_likelihood", "x")[0], hand.logsumexp(-1)) < 1e-10
        assert relative(values(result, "posterior", "y_prob")[0], hand.softmax(-1)) < 1e-8

    def test_a_label_inside_two_plates(self, flow):
        x = torch.randn(5, 4, 2, dtype=F64)

        def model(x):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("group", 4, dim=-1), pyro.plate("member", 5, dim=-2):
                y = pyro.sample("y", dist.Categorical(shares))
                pyro.sample("x", flow.condition(y), obs=x)

        result = scnf.to_inference_data(
            model,
            (x,),
            {"shares": draw_shares(3)},
            max_plate_nesting=2,
            constant_data={"y_true": torch.zeros(5, 4, dtype=torch.long)},
        )
        assert result["posterior"]["y_prob"].dims == ("chain", "draw", "member", "group", "class")
        assert result["observed_data"]["x"].dims == ("member", "group", "x_dim_0")
        assert result["constant_data"]["y_true"].dims == ("member", "group")

    @pytest.mark.parametrize("form", ["one", "all"])
    @pytest.mark.parametrize("parallel", [True, False])
    def test_a_latent_of_an_outer_plate(self, flow, form, parallel):
        """Its draws in the shape of Pyro have a dimension of size 1 for the inner plate, which is left out.

        The second bag is masked, and is left out of the latent too.
        """
        x, mask = torch.randn(3, 4, 2, dtype=F64), torch.tensor([[True], [False], [True]])

        def model(x=None):
            with pyro.plate("bags", 3, dim=-2):
                a = pyro.sample("a", dist.Dirichlet(torch.ones(3, dtype=F64)))
                y = pyro.sample("y", dist.Categorical(a))
                with pyro.plate("members", 4, dim=-1), poutine.mask(mask=mask):
                    pyro.sample("x", flow.condition(y), obs=x)

        a = draw_shares(6, 3)
        prior = Predictive(model, num_samples=5)()
        given = a if form == "one" else a[:, :, None]
        if form == "one":
            prior["a"] = prior["a"][:, :, 0]
        options = {"max_plate_nesting": 2, "parallel": parallel, "prior": prior}
        result = scnf.to_inference_data(model, (x,), {"a": given}, **options)
        assert result["posterior"]["a"].dims == ("chain", "draw", "datum", "a_dim_0")
        assert torch.equal(values(result, "posterior", "a")[0], a[:, [0, 2]])
        assert torch.equal(values(result, "prior", "a")[0], prior["a"].reshape(5, 3, 3)[:, [0, 2]])
        assert result["posterior"]["y"].dims == ("chain", "draw", "datum")
        assert result["posterior"]["datum"].values.tolist() == [0, 2]
        hand = flow.class_log_prob(x).sum(1) + a.log()
        assert relative(values(result, "posterior", "y_prob")[0], hand.softmax(-1)[:, [0, 2]]) < 1e-8

    def named(self, flow, x, /, **names):
        """A model whose sites and plates have other names."""
        name = {site: site for site in ("shares", "y", "x", "data", "loc", "kinds")} | names

        def model(x):
            shares = pyro.sample(name["shares"], dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate(name["kinds"], 2):
                pyro.sample(name["loc"], dist.Normal(torch.zeros((), dtype=F64), 1.0))
            with pyro.plate(name["data"], len(x)):
                y = pyro.sample(name["y"], dist.Categorical(shares))
                pyro.sample(name["x"], flow.condition(y), obs=x)

        draws = {name["shares"]: draw_shares(4), name["loc"]: torch.randn(4, 2, dtype=F64)}
        return scnf.to_inference_data(model, (x,), draws, site=name["y"])

    @pytest.mark.parametrize(
        ("kind", "taken"),
        [
            ("shares", "y_prob"),
            ("x", "y_prob"),
            ("shares", "chain"),
            ("shares", "draw"),
            ("shares", "datum"),
            ("shares", "class"),
            ("y", "class"),
            ("y", "datum"),
            ("x", "datum"),
            ("x", "chain"),
        ],
    )
    def test_a_site_with_the_name_of_something_else(self, flow, x, kind, taken):
        with pytest.raises(ValueError, match=f"site '{taken}' has the name of .*; rename the site"):
            self.named(flow, x, **{kind: taken})

    @pytest.mark.parametrize("taken", ["chain", "draw", "datum", "class"])
    def test_a_plate_with_the_name_of_a_dimension(self, flow, x, taken):
        with pytest.raises(ValueError, match=f"plate '{taken}' has the name of .*; rename the plate"):
            self.named(flow, x, kinds=taken)

    def test_names_that_are_free(self, flow, x):
        """The plate of the data is called ``datum`` in the export, so its own name does not matter."""
        for plate in ("chain", "datum"):
            assert self.named(flow, x, data=plate)["posterior"]["y"].dims == ("chain", "draw", "datum")
        assert set(self.named(flow, x, x="class")["observed_data"].data_vars) == {"class"}

    @pytest.mark.parametrize(
        ("owner", "taken", "size"), [("constant_data", "datum", 6), ("sample_stats", "draw", 4)]
    )
    def test_an_array_with_the_name_of_a_dimension(self, flow, x, owner, taken, size):
        arrays = {owner: {taken: torch.arange(size)}}
        with pytest.raises(ValueError, match=f"{owner}: '{taken}' is the name of a dimension"):
            scnf.to_inference_data(
                lambda x: shares_model(flow, x), (x,), {"shares": draw_shares(4)}, **arrays
            )

    def test_an_observed_site_named_like_a_part_of_a_label(self, flow, x):
        """Pyro's ``obs_mask`` makes a site ``y_observed``, which is no data. Another site of this name is."""

        def model(x):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(shares))
                pyro.sample("y_observed", flow.condition(y), obs=x)

        result = scnf.to_inference_data(model, (x,), {"shares": draw_shares(4)})
        assert torch.equal(values(result, "observed_data", "y_observed"), x)
        assert set(result["log_likelihood"].data_vars) == {"y_observed"}


class TestModels:
    @pytest.fixture
    def model(self, flow):
        """The package's model with its class probabilities as a latent."""
        model = scnf.SemiSupervisedModel(flow, "learnable", num_labelled=20, num_unlabelled=40)
        to_pyro_module_(model.class_probs)
        model.class_probs.logits = PyroSample(dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
        return model

    @pytest.fixture
    def logits(self):
        return torch.randn(7, 3, dtype=F64)

    def joint(self, flow, x, logits):
        return flow.class_log_prob(x) + logits.log_softmax(-1)[:, None]

    @pytest.mark.parametrize("parallel", [True, False])
    def test_unlabelled(self, model, flow, x, logits, parallel):
        result = scnf.to_inference_data(model, (x,), {"class_probs.logits": logits}, parallel=parallel)
        hand = self.joint(flow, x, logits)
        assert relative(values(result, "log_likelihood", "x")[0], hand.logsumexp(-1)) < 1e-10
        assert relative(values(result, "posterior", "y_prob")[0], hand.softmax(-1)) < 1e-8

    def test_labelled(self, model, flow, x, logits):
        y = torch.arange(6) % 3
        result = scnf.to_inference_data(model, (x, y), {"class_probs.logits": logits})
        hand = self.joint(flow, x, logits)[:, torch.arange(6), y]
        assert relative(values(result, "log_likelihood", "x")[0], hand) < 1e-10
        assert set(result["posterior"].data_vars) == {"class_probs.logits"}
        assert torch.equal(values(result, "observed_data", "y"), y)

    def test_partly_labelled(self, model, flow, x, logits):
        y = torch.tensor([0, -1, 2, -1, -1, 1])
        known = y >= 0
        result = scnf.to_inference_data(model, (x, y), {"class_probs.logits": logits}, seed=0)
        hand = self.joint(flow, x, logits)
        expected = torch.where(known, hand[:, torch.arange(6), y], hand.logsumexp(-1))
        assert relative(values(result, "log_likelihood", "x")[0], expected) < 1e-10
        drawn = values(result, "posterior", "y")[0]
        assert (drawn[:, known] == y[known]).all()
        assert len(drawn[:, ~known].unique()) > 1
        probs = values(result, "posterior", "y_prob")[0]
        assert relative(probs[:, ~known], hand.softmax(-1)[:, ~known]) < 1e-8

    def test_two_plates(self, model, flow, x, logits):
        args = (x[:2], torch.tensor([0, 2]), x[2:])
        with counting(flow.transform, "inverse_and_ladj") as counter:
            result = scnf.to_inference_data(
                model,
                args,
                {"class_probs.logits": logits},
                site=["y", "y_unlabelled"],
                chunk_size=3,
                constant_data={"y_true": torch.arange(4)},
            )
        assert counter.calls == 1
        assert result["log_likelihood"]["x"].dims == ("chain", "draw", "labelled")
        assert result["log_likelihood"]["x_unlabelled"].dims == ("chain", "draw", "unlabelled")
        assert result["posterior"]["y_unlabelled_prob"].dims == ("chain", "draw", "unlabelled", "class")
        assert result["constant_data"]["y_true"].dims == ("unlabelled",)
        hand = self.joint(flow, x, logits)
        expected = hand[:, torch.arange(2), args[1]]
        assert relative(values(result, "log_likelihood", "x")[0], expected) < 1e-10
        assert (
            relative(values(result, "log_likelihood", "x_unlabelled")[0], hand[:, 2:].logsumexp(-1)) < 1e-10
        )
        assert relative(values(result, "posterior", "y_unlabelled_prob")[0], hand[:, 2:].softmax(-1)) < 1e-8

    def test_no_label_site(self, flow, x):
        def model(x):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("data", len(x)):
                pyro.sample("x", scnf.LabelMarginal(flow, shares), obs=x)

        shares = draw_shares(5)
        result = scnf.to_inference_data(model, (x,), {"shares": shares}, site="x")
        hand = self.joint(flow, x, shares.log()).logsumexp(-1)
        assert relative(values(result, "log_likelihood", "x")[0], hand) < 1e-10
        assert set(result["posterior"].data_vars) == {"shares"}
        assert result["observed_data"]["x"].dims == ("datum", "x_dim_0")

    def test_sites_of_sequential_plates(self, x):
        """A model that makes latents and measurements in loops."""

        def model(x):
            locs = torch.stack(
                [
                    pyro.sample(f"loc_{k}", dist.Normal(torch.zeros((), dtype=F64), 1.0))
                    for k in pyro.plate("kinds", 2)
                ],
                -1,
            )
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
                mean = torch.where(y == 1, locs[..., 1], locs[..., 0])
                for t in pyro.plate("time", 2):
                    pyro.sample(f"x_{t}", dist.Normal(mean, 1.0), obs=x[:, t])

        locs = torch.randn(5, 2, dtype=F64)
        draws = {"loc_0": locs[:, 0], "loc_1": locs[:, 1]}
        result = scnf.to_inference_data(model, (x,), draws)
        hand = dist.Normal(locs[:, None, None], 1.0).log_prob(x[..., None]).sum(2) - math.log(2)
        assert relative(values(result, "log_likelihood", "x_0_x_1")[0], hand.logsumexp(-1)) < 1e-6
        assert relative(values(result, "posterior", "y_prob")[0], hand.softmax(-1)) < 1e-6
        assert result["posterior"]["loc_1"].dims == ("chain", "draw")
        assert result["observed_data"]["x_1"].dims == ("datum",)

    def test_two_kinds_of_data_have_one_likelihood(self, flow, x):
        def model(x, words):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(shares))
                pyro.sample("x", flow.condition(y), obs=x)
                pyro.sample("word", dist.Poisson(1.0 + y), obs=words)

        shares, words = draw_shares(5), torch.arange(6.0, dtype=F64)
        result = scnf.to_inference_data(model, (x, words), {"shares": shares})
        rates = torch.arange(1.0, 4.0, dtype=F64)
        hand = self.joint(flow, x, shares.log()) + dist.Poisson(rates).log_prob(words[:, None])
        assert relative(values(result, "log_likelihood", "x_word")[0], hand.logsumexp(-1)) < 1e-10
        assert set(result["observed_data"].data_vars) == {"x", "word"}


class TestDraws:
    def export(self, flow, x, posterior, **options):
        return scnf.to_inference_data(lambda x: shares_model(flow, x), (x,), posterior, seed=1, **options)

    @pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
    @pytest.mark.parametrize("parallel", [True, False])
    def test_chunks_change_nothing_and_cost_no_pass_of_the_flow(self, flow, x, chunk_size, parallel):
        posterior = {"shares": draw_shares(12)}
        whole = self.export(flow, x, posterior)
        with counting(flow.transform, "inverse_and_ladj") as counter:
            result = self.export(flow, x, posterior, chunk_size=chunk_size, parallel=parallel)
        assert counter.calls == 1
        for group, name in (("posterior", "y"), ("posterior", "y_prob"), ("log_likelihood", "x")):
            assert relative(values(result, group, name), values(whole, group, name)) < 1e-12

    def test_chains_in_either_form(self, flow, x):
        grouped = draw_shares(3, 4)
        a = self.export(flow, x, {"shares": grouped}, group_by_chain=True)
        b = self.export(flow, x, {"shares": grouped.flatten(0, 1).numpy()}, num_chains=3)
        for name in ("shares", "y", "y_prob"):
            assert torch.equal(values(a, "posterior", name), values(b, "posterior", name))
        assert torch.equal(values(a, "posterior", "shares"), grouped)
        hand = flow.class_log_prob(x) + grouped[:, :, None].log()
        assert relative(values(a, "posterior", "y_prob"), hand.softmax(-1)) < 1e-8

    def test_observed_data_may_be_left_out(self, flow, x):
        posterior = {"shares": draw_shares(4)}
        assert "observed_data" not in self.export(flow, x, posterior, observed=False)
        labelled = scnf.to_inference_data(
            lambda x: shares_model(flow, x, torch.arange(6) % 3), (x,), posterior, observed=["y"]
        )
        assert set(labelled["observed_data"].data_vars) == {"y"}

    def test_netcdf(self, flow, x, tmp_path):
        pytest.importorskip("h5netcdf")
        pytest.importorskip("h5py")
        coords = {"class": ["cat", "dog", "owl"]}
        saved = self.export(flow, x, {"shares": draw_shares(4)}, num_chains=2, coords=coords)
        file = str(tmp_path / "result.nc")
        saved.to_netcdf(file, engine="h5netcdf")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = az.from_netcdf(file, engine="h5netcdf")
        for group in ("posterior", "log_likelihood", "observed_data"):
            for name in saved[group].data_vars:
                assert torch.equal(values(loaded, group, name), values(saved, group, name))
                assert loaded[group][name].dims == saved[group][name].dims
        assert list(loaded["posterior"]["class"].values) == coords["class"]

    @pytest.mark.parametrize(
        ("posterior", "options", "message"),
        [
            (None, {}, "no draws"),
            ({}, {}, "no draws"),
            ({"shares": (1, 3)}, {}, "one draw is a point estimate"),
            ({"shares": (0, 3)}, {}, "expected draws"),
            ({"shares": (4, 3), "scale": (5,)}, {}, "numbers of draws differ"),
            ({"shares": (4, 3), "scale": (4,)}, {}, r"no such sites \['scale'\]"),
            ({"prob": (4, 3)}, {}, r"no such sites \['prob'\]"),
            ({"shares": (4,)}, {}, "shape"),
            ({"shares": (4, 3), "y": (4, 6)}, {}, "the label 'y' itself"),
            ({"shares": (10, 3)}, {"num_chains": 3}, "do not divide"),
            ({"shares": (10, 3)}, {"num_chains": 0}, "num_chains"),
            ({"shares": (4,)}, {"group_by_chain": True}, "chains, draws"),
            ({"shares": (2, 4, 3)}, {"group_by_chain": True, "num_chains": 4}, r"\(4, draws"),
            ({"shares": (4, 3)}, {"chunk_size": 0}, "chunk_size=0"),
            ({"shares": (4, 3)}, {"site": "label"}, "no such site"),
            ({"shares": (4, 3)}, {"observed": ["z"]}, "observed: no such sites"),
            ({"shares": (4, 3)}, {"dims": {"z": ["a"]}}, "dims: no such variables"),
            ({"shares": (4, 3)}, {"dims": {"shares": ["a", "b"]}}, "dims: 'shares' has 1 dimensions"),
            ({"shares": (4, 3)}, {"coords": {"klass": [0]}}, "coords: no such dimensions"),
            ({"shares": (4, 3)}, {"coords": {"class": [0]}}, "coords: 'class' has 1 values, but size 3"),
            ({"shares": (4, 3)}, {"sample_stats": {"lp": torch.zeros(5)}}, "sample_stats: "),
        ],
    )
    def test_errors(self, flow, x, posterior, options, message):
        if posterior:
            posterior = {
                name: torch.zeros(shape, dtype=torch.long)
                if name == "y"
                else torch.full(shape, 1 / 3, dtype=F64)
                for name, shape in posterior.items()
            }
        with pytest.raises(ValueError, match=message):
            self.export(flow, x, posterior, **options)

    def test_read_only_arrays(self, flow, x):
        """Pandas 3 gives such arrays. PyTorch warns of them."""
        shares, age = draw_shares(4).numpy(), np.arange(6)
        shares.flags.writeable = age.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            result = self.export(flow, x, {"shares": shares}, constant_data={"age": age})
        assert result["constant_data"]["age"].values.tolist() == list(range(6))

    def test_missing_draws(self, flow, x):
        def model(x):
            pyro.sample("scale", dist.Gamma(1.0, 1.0))
            shares_model(flow, x)

        with pytest.raises(ValueError, match=r"no draws of \['scale'\]"):
            scnf.to_inference_data(model, (x,), {"shares": draw_shares(4)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exported_in_single(dtype, x):
    flow, x = toy_flow("gmm").to(dtype), x.to(dtype)

    def model(x):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(shares))
            pyro.sample("x", flow.condition(y), obs=x)

    data = scnf.to_inference_data(model, (x,), {"shares": draw_shares(4).float()})
    assert data["observed_data"]["x"].dtype == "float32"
    assert torch.equal(values(data, "observed_data", "x"), x.float())


def test_the_package_imports_without_arviz():
    code = "import sys; sys.modules['arviz'] = sys.modules['xarray'] = None; import pyro_scnf"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
