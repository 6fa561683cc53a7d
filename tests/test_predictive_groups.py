"""Predictive groups of ``to_inference_data``, and names of classes."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import toy_flow
from pyro import poutine
from pyro.infer import Predictive
from test_inference_data import ARVIZ_1, az, values

import pyro_scnf as scnf

F64 = torch.float64
KEEP = torch.tensor([True, False, True, True, False, True])
WORDS = ["cat", "dog", "owl"]


@pytest.fixture
def flow():
    return toy_flow("gmm", dtype=F64)


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=F64)


@pytest.fixture
def draws():
    return {"shares": dist.Dirichlet(torch.ones(3, dtype=F64)).sample((8,))}


def make(flow, mask=None, rows=None):
    """A model that draws the data if it is given none."""

    def model(x=None, y=None):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
        pyro.deterministic("twice", 2 * shares)
        plate = pyro.plate("data", 9 if rows is not None else 6, subsample=rows)
        with plate, poutine.mask(mask=torch.tensor(True) if mask is None else mask):
            y = pyro.sample("y", dist.Categorical(shares), obs=y)
            pyro.sample("x", flow.condition(y), obs=x)
            pyro.factor("nothing", torch.zeros(()))

    return model


def predict(model, draws, *args):
    return Predictive(model, draws)(*args)


class TestGroups:
    @pytest.mark.parametrize("form", ["(S, ...)", "chains", "arrays"])
    def test_each_number_is_in_its_place(self, flow, x, draws, form):
        model = make(flow)
        predicted, before = predict(model, draws), Predictive(model, num_samples=5)()
        posterior, options = draws, {"num_chains": 2}
        if form == "chains":
            posterior = {name: v.unflatten(0, (2, 4)) for name, v in draws.items()}
            options = {"group_by_chain": True}
        given = (
            {name: v.numpy() for name, v in predicted.items() if v.numel()} if form == "arrays" else predicted
        )
        data = scnf.to_inference_data(
            model, (x,), posterior, posterior_predictive=given, prior=before, **options
        )
        assert set(data["posterior_predictive"].data_vars) == {"x", "y"}
        assert set(data["prior"].data_vars) == {"shares"}
        assert set(data["prior_predictive"].data_vars) == {"x", "y"}
        for group, name, expected, dims in (
            ("posterior_predictive", "x", predicted["x"].unflatten(0, (2, 4)), ("datum", "x_dim_0")),
            ("posterior_predictive", "y", predicted["y"].unflatten(0, (2, 4)), ("datum",)),
            ("prior", "shares", before["shares"].reshape(1, 5, 3), ("shares_dim_0",)),
            ("prior_predictive", "x", before["x"][None], ("datum", "x_dim_0")),
            ("prior_predictive", "y", before["y"][None], ("datum",)),
        ):
            assert torch.equal(values(data, group, name), expected)
            assert data[group][name].dims == ("chain", "draw", *dims)
        assert data["posterior"]["shares"].shape == (2, 4, 3)

    def test_arviz_checks_and_compares(self, flow, x, draws, tmp_path):
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("Agg")
        model = make(flow)
        plain = scnf.to_inference_data(model, (x,), draws, num_chains=2, seed=0)
        data = scnf.to_inference_data(
            model,
            (x,),
            draws,
            num_chains=2,
            seed=0,
            posterior_predictive=predict(model, draws),
            prior=Predictive(model, num_samples=5)(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert float(az.loo(data).iloc[0] if not ARVIZ_1 else az.loo(data).elpd) == float(
                az.loo(plain).iloc[0] if not ARVIZ_1 else az.loo(plain).elpd
            )
            if ARVIZ_1:
                az.plot_ppc_dist(data)
                az.plot_ppc_dist(data, group="prior_predictive")
                az.plot_prior_posterior(data)
            else:
                for group in ("posterior", "prior"):
                    axes = az.plot_ppc(data, group=group, num_pp_samples=4, random_seed=0)
                    lines = axes.lines  # of the observed data, of 4 draws, and of their mean
                    assert len(lines) >= 2
                az.plot_dist_comparison(data, var_names=["shares"])

    def test_rows_that_are_left_out(self, flow, x, draws):
        model = make(flow, mask=KEEP)
        predicted, before = predict(model, draws), Predictive(model, num_samples=5)()
        data = scnf.to_inference_data(model, (x,), draws, posterior_predictive=predicted, prior=before)
        for group, given in (("posterior_predictive", predicted), ("prior_predictive", before)):
            assert data[group]["datum"].values.tolist() == [0, 2, 3, 5]
            assert torch.equal(values(data, group, "x")[0], given["x"][:, KEEP])
            assert torch.equal(values(data, group, "y")[0], given["y"][:, KEEP])

    def test_rows_that_a_plate_was_given(self, flow, draws):
        rows = torch.tensor([7, 2, 5])
        model, x = make(flow, rows=rows), torch.randn(3, 2, dtype=F64)
        predicted = predict(model, draws)
        data = scnf.to_inference_data(model, (x,), draws, posterior_predictive=predicted)
        assert data["posterior_predictive"]["datum"].values.tolist() == [7, 2, 5]
        assert torch.equal(values(data, "posterior_predictive", "x")[0], predicted["x"])

    def test_cells_of_a_row(self, flow, draws):
        """A mask hides members of a bag. What is not observed is not predicted either."""
        x, mask = torch.randn(3, 2, 2, dtype=F64), torch.tensor([[True, True], [True, False], [False, False]])

        def model(x=None):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("bags", 3, dim=-2):
                y = pyro.sample("y", dist.Categorical(shares))
                with pyro.plate("members", 2, dim=-1), poutine.mask(mask=mask):
                    pyro.sample("x", flow.condition(y), obs=x)

        predicted = predict(model, draws)
        assert predicted["y"].shape == (8, 3, 1)
        data = scnf.to_inference_data(model, (x,), draws, max_plate_nesting=2, posterior_predictive=predicted)
        found = values(data, "posterior_predictive", "x")[0]
        assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "members", "x_dim_0")
        assert torch.equal(found.isnan().any(-1), ~mask[:2].expand(8, -1, -1))
        assert torch.equal(found[:, mask[:2]], predicted["x"][:, mask])
        assert torch.equal(values(data, "posterior_predictive", "y")[0], predicted["y"][:, :2, 0])
        assert torch.equal(values(data, "observed_data", "x").isnan(), found[0].isnan())

    def test_a_label_that_is_known_in_some_rows(self, flow, x, draws):
        y = torch.tensor([0, 1, 2, 0, 1, 2])

        def model(x=None):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("data", 6):
                label = pyro.sample("y", dist.Categorical(shares), obs=y, obs_mask=KEEP)
                pyro.sample("x", flow.condition(label), obs=x)

        predicted = predict(model, draws)
        assert "y_unobserved" in predicted
        data = scnf.to_inference_data(model, (x,), draws, posterior_predictive=predicted)
        assert set(data["posterior_predictive"].data_vars) == {"x", "y"}
        assert (values(data, "posterior_predictive", "y")[0][:, KEEP] == y[KEEP]).all()

    def test_a_part_of_the_data_may_be_given(self, flow, x, draws):
        """New x of rows whose labels are known: a check of the classes one by one."""

        def model(x=None, y=None):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("data", 6):
                label = pyro.sample("y", dist.Categorical(shares), obs=y)
                pyro.sample("x", flow.condition(label), obs=x)

        y = torch.tensor([0, 1, 2, 0, 1, 2])
        predicted = Predictive(model, draws)(None, y)
        data = scnf.to_inference_data(model, (x, y), draws, posterior_predictive=predicted)
        assert torch.equal(values(data, "posterior_predictive", "x")[0], predicted["x"])
        assert (values(data, "posterior_predictive", "y") == y).all()
        with pytest.raises(ValueError, match=r"all draws of .* are the observed data"):
            scnf.to_inference_data(
                model, (x, y * 0), draws, posterior_predictive=Predictive(model, draws)(x, y * 0)
            )
        everything = Predictive(model, draws)(x, y)
        with pytest.raises(ValueError, match=r"all draws of .*'y'.* are the observed data"):
            scnf.to_inference_data(model, (x, y), draws, posterior_predictive=everything)

    def test_draws_of_a_guide_go_in_whole(self, flow, x):
        """With a guide, ``Predictive`` returns the latents too, with dimensions for plates of other sites."""
        model = make(flow)

        def guide(x=None):
            pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))

        drawn = Predictive(model, guide=guide, num_samples=8)()
        posterior = {"shares": drawn["shares"]}
        assert posterior["shares"].shape == (8, 1, 3)
        prior = Predictive(model, num_samples=5)()
        data = scnf.to_inference_data(model, (x,), posterior, posterior_predictive=drawn, prior=prior)
        assert set(data["posterior_predictive"].data_vars) == {"x", "y"}
        assert data["prior"]["shares"].dims == data["posterior"]["shares"].dims
        narrow = {"shares": drawn["shares"][:, 0]}
        data = scnf.to_inference_data(model, (x,), narrow, posterior_predictive=drawn, prior=prior)
        assert data["prior"]["shares"].shape == (1, 5, 3)
        other = {"shares": drawn["shares"].flip(0)}
        with pytest.raises(ValueError, match="its draws of 'shares' are not those of posterior"):
            scnf.to_inference_data(model, (x,), other, posterior_predictive=drawn)

    def test_dims_of_the_data_are_given_once(self, flow, x, draws):
        model = make(flow)
        options = {"posterior_predictive": predict(model, draws)}
        for axes in (["axis"], ["datum", "axis"]):
            data = scnf.to_inference_data(model, (x,), draws, dims={"x": axes}, **options)
            assert data["observed_data"]["x"].dims == ("datum", "axis")
            assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "axis")

    def test_errors(self, flow, x, draws):
        model = make(flow)
        good, before = predict(model, draws), Predictive(model, num_samples=5)()
        observed = Predictive(model, draws)(x)
        for options, message in (
            ({"posterior_predictive": {}}, "posterior_predictive: no draws"),
            ({"posterior_predictive": [1]}, "posterior_predictive is a list"),
            ({"posterior_predictive": {"z": good["x"]}}, r"posterior_predictive: no such sites \['z'\]"),
            ({"posterior_predictive": before}, "posterior_predictive: 5 draws, but 8 in posterior"),
            ({"posterior_predictive": observed}, "all draws of 'x' are the observed data"),
            (
                {"posterior_predictive": {"x": good["x"][:, :4]}},
                "'x' have 4 rows along plate 'data', which has 6",
            ),
            (
                {"posterior_predictive": {"x": good["x"][..., :1]}},
                r"\(8, 6, 1\), expected \(8, 6 \(data\), 2\)",
            ),
            ({"posterior_predictive": {"y": good["y"][:, 0]}}, r"shape \(8,\), expected \(8, 6 \(data\)\)"),
            (
                {"posterior_predictive": {**good, "y": good["y"][:5]}},
                "posterior_predictive: numbers of draws",
            ),
            ({"prior": {"z": before["x"]}}, r"prior: no such sites \['z'\]"),
            ({"prior": {"shares": before["shares"].expand(5, 2, 3)}}, r"\(5, 2, 3\), expected \(5, 3\)"),
            ({"prior": {"x": x.expand(5, 6, 2)}}, "prior: all draws of 'x' are the observed data"),
        ):
            with pytest.raises(ValueError, match=message):
                scnf.to_inference_data(model, (x,), draws, **options)


class TestClassNames:
    def test_they_name_the_classes(self, flow, x, draws):
        model = make(flow)
        data = scnf.to_inference_data(
            model, (x,), draws, class_names=WORDS, coords={"axis": ["a", "b"]}, dims={"x": ["axis"]}
        )
        probs = data["posterior"]["y_prob"]
        assert probs["class"].values.tolist() == WORDS
        owl = torch.as_tensor(probs.sel({"class": "owl"}).values)
        assert torch.equal(owl, values(data, "posterior", "y_prob")[..., 2])

    def test_of_a_data_set(self, flow, draws):
        x, y = torch.randn(6, 2, dtype=F64), torch.arange(6) % 3
        rows = scnf.datasets.SemiSupervisedData(x, y, x, y, 3, class_names=tuple(WORDS))
        data = scnf.to_inference_data(make(flow), (x,), draws, class_names=rows.class_names)
        assert data["posterior"]["class"].values.tolist() == WORDS

    def test_of_two_labels(self, flow, draws):
        x = torch.randn(6, 2, dtype=F64)

        def model(x):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            for name in "ab":
                with pyro.plate(name, 6):
                    y = pyro.sample(f"y_{name}", dist.Categorical(shares))
                    pyro.sample(f"x_{name}", flow.condition(y), obs=x)

        data = scnf.to_inference_data(model, (x,), draws, site=["y_a", "y_b"], class_names=WORDS)
        for name in ("y_a_class", "y_b_class"):
            assert data["posterior"][name].values.tolist() == WORDS

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"class_names": WORDS[:2]}, "class_names: 2 names, but the label 'y' has 3 values"),
            ({"class_names": "cat"}, "class_names='cat': expected a different word for each class"),
            ({"class_names": ["a", "a", "b"]}, "expected a different word"),
            ({"class_names": [0, 1, 2]}, "expected a different word"),
            (
                {"class_names": WORDS, "coords": {"class": WORDS}},
                "coords: 'class' has names by class_names too",
            ),
        ],
    )
    def test_errors(self, flow, x, draws, options, message):
        with pytest.raises(ValueError, match=message):
            scnf.to_inference_data(make(flow), (x,), draws, **options)

    def test_no_hidden_label(self, flow, x, draws):
        y = torch.arange(6) % 3
        with pytest.raises(ValueError, match="class_names: no label is hidden"):
            scnf.to_inference_data(make(flow), (x, y), draws, class_names=WORDS)


def test_labels_of_members_have_no_likelihood_of_their_own(flow):
    """The regime of a group ties its members together. The group has a likelihood."""
    x = torch.randn(4, 3, 2, dtype=F64)

    def model(x):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2, 3, dtype=F64)).to_event(1))
        with pyro.plate("groups", 4, dim=-2):
            r = pyro.sample("r", dist.Bernoulli(torch.tensor(0.5, dtype=F64))).long()
            with pyro.plate("members", 3, dim=-1):
                rows = shares[..., 0, :] * (1 - r[..., None]) + shares[..., 1, :] * r[..., None]
                y = pyro.sample("y", dist.Categorical(rows))
                pyro.sample("x", flow.condition(y), obs=x)

    draws = {"shares": dist.Dirichlet(torch.ones(2, 3, dtype=F64)).sample((8,))}
    options = {"max_plate_nesting": 2}
    alone = scnf.to_inference_data(model, (x,), draws, site="y", **options)
    assert not hasattr(alone, "log_likelihood")
    both = scnf.to_inference_data(model, (x,), draws, site=["r", "y"], **options)
    assert both["log_likelihood"]["x"].dims == ("chain", "draw", "groups")
    assert both["posterior"]["y_prob"].dims == ("chain", "draw", "groups", "members", "y_class")
    assert both["posterior"]["r_prob"].dims == ("chain", "draw", "groups", "r_class")
    log_joint = scnf.enumerate_labels(model, (x,), draws, site="r", **options)
    assert torch.allclose(values(both, "log_likelihood", "x")[0], log_joint.logsumexp(-1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert az.loo(both).n_data_points == 4
