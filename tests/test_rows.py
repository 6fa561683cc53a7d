"""Rows of data: those that plates are given, those that masks leave out, and the sizes of data sets."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import relative, toy_flow
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceEnum_ELBO
from pyro.optim import Adam

import pyro_scnf as scnf

with warnings.catch_warnings():  # ArviZ warns about its own migration
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")

F64 = torch.float64
ROWS = torch.tensor([7, 2, 5])
KEEP = torch.tensor([True, False, True, True, False, True])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def flow():
    return toy_flow("gmm", dtype=F64)


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=F64)


@pytest.fixture
def shares():
    return dist.Dirichlet(torch.ones(3, dtype=F64)).sample((4,))


def prior():
    return pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))


def by_hand(flow, x, shares):
    """log p(x, y = k), ``(S, N, K)``."""
    return flow.class_log_prob(x) + shares.log()[:, None]


@pytest.mark.parametrize("fails", [False, True])
def test_enumerating_labels_leaves_the_parameter_store_as_it_was(flow, x, fails):
    def model(x):
        pyro.module("flow", flow)
        scale = pyro.param("mine", torch.ones((), dtype=F64))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
            pyro.sample("x", flow.condition(y), obs=scale * x)
        if fails:
            raise KeyError("no")

    mine = pyro.param("mine", torch.full((), 2.0, dtype=F64))
    if fails:
        with pytest.raises(KeyError):
            scnf.enumerate_labels(model, (x,))
    else:
        expected = flow.class_log_prob(2 * x) - math.log(3)
        torch.testing.assert_close(scnf.enumerate_labels(model, (x,))[0], expected)
    assert list(pyro.get_param_store()) == ["mine"]
    assert pyro.param("mine") is mine


def values(data, group, name):
    return torch.as_tensor(data[group][name].values)


def coords(data, group, dim="datum"):
    return data[group][dim].values.tolist()


def export(model, args, draws, **options):
    return scnf.to_inference_data(model, args, draws, seed=0, **options)


# -- plates that see some of their rows ------------------------------------------------------------
class TestRandomRows:
    """Nobody can name rows that a plate draws, so every such plate is refused, wherever it stands."""

    def models(self, flow):
        def data(x):
            share = prior()
            with pyro.plate("data", 6, subsample_size=3) as rows:
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[rows])

        def outer(x):
            share = prior()
            with pyro.plate("group", 2, 1, dim=-2) as group, pyro.plate("data", 3, dim=-1):
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x.reshape(2, 3, 2)[group])

        def inner(x):
            share = prior()
            with pyro.plate("data", 3, dim=-1):
                y = pyro.sample("y", dist.Categorical(share))
                with pyro.plate("member", 2, 1, dim=-2) as member:
                    pyro.sample("x", flow.condition(y), obs=x.reshape(2, 3, 2)[member])

        def steps(x):
            share = prior()
            with pyro.plate("data", 6):
                y = pyro.sample("y", dist.Categorical(share))
            for n in pyro.plate("steps", 2, subsample_size=1):
                with pyro.plate("data_again", 6):
                    pyro.sample(f"x_{n}", flow.condition(y), obs=x)

        def blocked(x):
            share = prior()
            with poutine.block(hide=["rows"]):
                plate = pyro.plate("rows", 6, subsample_size=3)
            with plate as rows:
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[rows])

        return {
            "data": (data, "plate 'data' draws 3 of its 6 rows at random.*subsample=rows"),
            "outer": (outer, "plate 'group' draws 1 of its 2 rows"),
            "inner": (inner, "plate 'member' draws 1 of its 2 rows"),
            "steps": (steps, "plate 'steps' draws 1 of its 2 rows"),
            "blocked": (blocked, "plate 'rows' has 3 of 6 rows, and a handler in the model hides which"),
        }

    @pytest.mark.parametrize("kind", ["data", "outer", "inner", "steps", "blocked"])
    @pytest.mark.parametrize("parallel", [True, False])
    def test_refused_by_name(self, flow, x, shares, kind, parallel):
        model, message = self.models(flow)[kind]
        options = {"max_plate_nesting": 2, "parallel": parallel}
        for call in (scnf.enumerate_labels, scnf.to_inference_data):
            with pytest.raises(ValueError, match=message):
                call(model, (x,), {"shares": shares}, **options)

    def test_a_plate_of_all_rows_is_none(self, flow, x, shares):
        def model(x, size):
            share = prior()
            with pyro.plate("data", 6, subsample_size=size) as rows:
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[rows])

        joint = scnf.enumerate_labels(model, (x, 6), {"shares": shares})
        assert relative(joint, by_hand(flow, x, shares)) < 1e-10

    @pytest.mark.parametrize("rows", [[], None])
    def test_a_plate_without_rows(self, flow, x, shares, rows):
        def model(x):
            share = prior()
            with pyro.plate("data", 6 if rows is not None else 0, subsample=rows):
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[:0])

        for call in (scnf.enumerate_labels, scnf.to_inference_data):
            with pytest.raises(ValueError, match="plate 'data' has no rows"):
                call(model, (x,), {"shares": shares})


class TestGivenRows:
    def model(self, flow, **plate):
        def run(x):
            share = prior()
            with pyro.plate("data", 9, **plate) as rows:
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[rows])

        return run

    @pytest.mark.parametrize("given", ["subsample", "list", "condition", "outer condition", "by pyro"])
    @pytest.mark.parametrize("parallel", [True, False])
    def test_rows_keep_their_numbers(self, flow, shares, given, parallel):
        x = torch.randn(9, 2, dtype=F64)

        def by_pyro(x):
            share = prior()
            with pyro.plate("data", 9, subsample=ROWS):
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=pyro.subsample(x, event_dim=1))

        at_random = self.model(flow, subsample_size=3)
        model = {
            "subsample": self.model(flow, subsample=ROWS),
            "list": self.model(flow, subsample=ROWS.tolist()),
            "condition": poutine.condition(at_random, {"data": ROWS}),
            "outer condition": at_random,
            "by pyro": by_pyro,
        }[given]
        handler = poutine.condition(data={"data": ROWS} if given == "outer condition" else {})
        with handler:
            joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, parallel=parallel)
            result = export(model, (x,), {"shares": shares}, parallel=parallel)
        hand = by_hand(flow, x[ROWS], shares)
        assert relative(joint, hand) < 1e-10
        assert relative(values(result, "log_likelihood", "x")[0], hand.logsumexp(-1)) < 1e-10
        assert torch.equal(values(result, "observed_data", "x"), x[ROWS])
        for group in ("posterior", "log_likelihood", "observed_data"):
            assert coords(result, group) == ROWS.tolist()

    def test_the_scale_of_the_plate_plays_no_part(self, flow, shares):
        x = torch.randn(9, 2, dtype=F64)
        joint = scnf.enumerate_labels(self.model(flow, subsample=ROWS), (x,), {"shares": shares})
        assert relative(joint.logsumexp(-1), by_hand(flow, x[ROWS], shares).logsumexp(-1)) < 1e-10

    @pytest.mark.parametrize("parallel", [True, False])
    def test_nested_plates_with_given_rows(self, flow, shares, parallel):
        x = torch.randn(4, 9, 2, dtype=F64)
        groups = torch.tensor([3, 1])

        def model(x):
            share = prior()
            members = pyro.plate("member", 9, subsample=ROWS, dim=-1)
            with members as member, pyro.plate("group", 4, subsample=groups, dim=-2) as group:
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[group[:, None], member])

        options = {"max_plate_nesting": 2, "parallel": parallel}
        some = x[groups][:, ROWS]
        hand = flow.class_log_prob(some) + shares.log()[:, None, None]
        joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, **options)
        assert joint.shape == (4, 2, 3, 3)
        assert relative(joint, hand) < 1e-10
        result = export(model, (x,), {"shares": shares}, **options)
        assert result["log_likelihood"]["x"].dims == ("chain", "draw", "group", "member")
        assert coords(result, "log_likelihood", "group") == [3, 1]
        assert coords(result, "observed_data", "member") == ROWS.tolist()
        assert relative(values(result, "log_likelihood", "x")[0], hand.logsumexp(-1)) < 1e-10

    @pytest.mark.parametrize("parallel", [True, False])
    def test_other_rows_in_each_run_are_refused(self, flow, shares, parallel):
        x, options = torch.randn(200, 2, dtype=F64), {"parallel": parallel}

        def plate(x):
            share, rows = prior(), torch.randperm(200)[:50]
            with pyro.plate("data", 200, subsample=rows):
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[rows])

        def own(x):
            share, rows = prior(), torch.randperm(200)[:50]
            with pyro.plate("data", 50):
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[rows])

        for model, message in (
            (plate, "plate 'data' has other rows"),
            (own, "site 'x' observes other values"),
        ):
            with pytest.raises(ValueError, match=message):
                export(model, (x,), {"shares": shares}, observed=False, **options)
            if not parallel:  # one run for all draws has one set of rows
                with pytest.raises(ValueError, match=message):
                    scnf.enumerate_labels(model, (x,), {"shares": shares}, **options)


def test_draws_of_other_rows(x):
    """Draws of a latent of each row are those of the rows that the plate has."""

    def model(x):
        with pyro.plate("data", 6, subsample=torch.tensor([4, 1])) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=F64)))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x[rows, 0])

    z = torch.randn(3, 6, dtype=F64)
    with pytest.raises(ValueError, match="draws of 'z' have 6 rows along plate 'data', which has 2 here"):
        scnf.enumerate_labels(model, (x,), {"z": z})
    some = z[:, [4, 1]]
    hand = torch.tensor([0.7, 0.3], dtype=F64).log() + dist.Normal(
        some[..., None] + torch.arange(2.0, dtype=F64), 1.0
    ).log_prob(x[[4, 1], :1])
    assert relative(scnf.enumerate_labels(model, (x,), {"z": some}), hand) < 1e-6


# -- masks -----------------------------------------------------------------------------------------
def around(flow, x, mask, y=None, where="row"):
    """A model in which ``mask`` leaves out whole rows, in one of several ways."""
    share = prior()
    with pyro.plate("data", len(x)):
        if where == "row":
            with poutine.mask(mask=mask):
                y = pyro.sample("y", dist.Categorical(share), obs=y)
                pyro.sample("x", flow.condition(y), obs=x)
        else:
            y = pyro.sample("y", dist.Categorical(share).mask(mask), obs=y)
            pyro.sample("x", flow.condition(y).mask(mask), obs=x)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("way", ["plate", "handler", "distribution"])
class TestMaskedRows:
    def model(self, flow, way, labelled):
        y = LABELS if labelled else None
        if way == "handler":
            return poutine.mask(lambda x: around(flow, x, torch.tensor(True), y), mask=KEEP)
        where = "distribution" if way == "distribution" else "row"
        return lambda x: around(flow, x, KEEP, y, where)

    def hand(self, flow, x, shares, labelled):
        joint = by_hand(flow, x, shares)
        return joint.gather(-1, LABELS[None, :, None].expand(len(shares), -1, 1)) if labelled else joint

    def test_they_have_no_numbers(self, flow, x, shares, way, labelled, parallel):
        if way == "handler":
            draws = {}
            model = poutine.mask(scnf.SemiSupervisedModel(flow), mask=KEEP)
            args, shares = (x, LABELS if labelled else None), torch.full((1, 3), 1 / 3, dtype=F64)
        else:
            draws, model, args = {"shares": shares}, self.model(flow, way, labelled), (x,)
        joint = scnf.enumerate_labels(model, args, draws, parallel=parallel)
        hand = self.hand(flow, x, shares, labelled)
        assert relative(joint[:, KEEP], hand[:, KEEP]) < 1e-10
        assert joint[:, ~KEEP].isnan().all()
        if not labelled:
            with pytest.raises(ValueError, match=r"row \(0, 1\) has no probabilities"):
                scnf.sample_labels(joint)

    def test_they_are_not_exported(self, flow, x, shares, way, labelled, parallel):
        model = self.model(flow, way, labelled)
        result = export(
            model if way != "handler" else self.model(flow, "plate", labelled),
            (x,),
            {"shares": shares},
            parallel=parallel,
            num_chains=2,
            constant_data={"true": LABELS},
            coords={"datum": list("abcdef")} if labelled else None,
        )
        hand = self.hand(flow, x, shares, labelled)[:, KEEP]
        kept = ["a", "c", "d", "f"] if labelled else [0, 2, 3, 5]
        for group in ("log_likelihood", "observed_data", "constant_data"):
            assert coords(result, group) == kept
        assert relative(values(result, "log_likelihood", "x").flatten(0, 1), hand.logsumexp(-1)) < 1e-10
        assert torch.equal(values(result, "observed_data", "x"), x[KEEP])
        assert torch.equal(values(result, "constant_data", "true"), LABELS[KEEP])
        if labelled:
            assert torch.equal(values(result, "observed_data", "y"), LABELS[KEEP])
        else:
            assert relative(values(result, "posterior", "y_prob").flatten(0, 1), hand.softmax(-1)) < 1e-8
            assert coords(result, "posterior") == kept
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loo = az.loo(result, pointwise=True)
        assert loo.n_data_points == 4


def test_no_row_at_all(flow, x, shares):
    with pytest.raises(ValueError, match="nothing is observed in its plates"):
        export(lambda x: around(flow, x, torch.tensor(False)), (x,), {"shares": shares})
    assert scnf.enumerate_labels(poutine.mask(scnf.SemiSupervisedModel(flow), mask=False), (x,)).isnan().all()


@pytest.mark.parametrize("parallel", [True, False])
def test_masked_rows_of_a_model_without_labels(flow, x, shares, parallel):
    def model(x):
        share = prior()
        with pyro.plate("data", len(x)), poutine.mask(mask=KEEP):
            pyro.sample("x", scnf.LabelMarginal(flow, share), obs=x)

    hand = by_hand(flow, x, shares).logsumexp(-1)[:, KEEP]
    options = {"site": "x", "parallel": parallel}
    joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, **options)
    assert joint[:, ~KEEP].isnan().all()
    assert relative(joint[:, KEEP, 0], hand) < 1e-10
    result = export(model, (x,), {"shares": shares}, **options)
    assert coords(result, "log_likelihood") == coords(result, "observed_data") == [0, 2, 3, 5]
    assert relative(values(result, "log_likelihood", "x")[0], hand) < 1e-10


class TestMissingData:
    """A row whose x alone is masked has the prior of its label, and no likelihood."""

    def model(self, flow, y=None, obs_mask=None):
        def run(x):
            share = prior()
            with pyro.plate("data", len(x)):
                label = pyro.sample("y", dist.Categorical(share), obs=y, obs_mask=obs_mask)
                with poutine.mask(mask=KEEP):
                    pyro.sample("x", flow.condition(label), obs=x)

        return run

    def test_hidden_labels(self, flow, x, shares):
        joint = scnf.enumerate_labels(self.model(flow), (x,), {"shares": shares})
        assert relative(joint[:, ~KEEP], shares.log()[:, None].expand(-1, 2, -1)) < 1e-10
        result = export(self.model(flow), (x,), {"shares": shares})
        assert coords(result, "log_likelihood") == coords(result, "observed_data") == [0, 2, 3, 5]

    def test_known_labels_are_data(self, flow, x, shares):
        joint = scnf.enumerate_labels(self.model(flow, LABELS), (x,), {"shares": shares})
        assert relative(joint[:, ~KEEP, 0], shares.log()[:, [1, 1]]) < 1e-10
        result = export(self.model(flow, LABELS), (x,), {"shares": shares})
        assert coords(result, "log_likelihood") == list(range(6))
        seen = values(result, "observed_data", "x")
        assert seen[~KEEP].isnan().all()  # what stands under the mask is not observed
        assert torch.equal(seen[KEEP], x[KEEP])
        assert torch.equal(values(result, "observed_data", "y"), LABELS)

    @pytest.mark.parametrize("parallel", [True, False])
    def test_labels_known_in_some_rows(self, flow, x, shares, parallel):
        known = torch.tensor([True, True, False, False, False, False])
        model = self.model(flow, LABELS, known)
        joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, parallel=parallel)
        hand = by_hand(flow, x, shares)
        assert relative(joint[:, 2:4], hand[:, 2:4]) < 1e-10
        assert relative(joint[:, 4], shares.log()) < 1e-10
        assert relative(joint[:, 1].logsumexp(-1), shares[:, 1].log()) < 1e-10
        result = export(model, (x,), {"shares": shares}, parallel=parallel)
        assert coords(result, "log_likelihood") == [0, 1, 2, 3, 5]  # of row 4 nothing is observed
        assert relative(values(result, "log_likelihood", "x")[0, :, 1], shares[:, 1].log()) < 1e-10
        probs = values(result, "posterior", "y_prob")[0]
        assert torch.equal(probs[:, 1], torch.tensor([0.0, 1.0, 0.0], dtype=F64).expand(4, -1))

    def test_the_ready_model_with_a_masked_factor(self, flow, x):
        """A handler masks x alone. Row 1 keeps its label, which a factor shows; row 4 has nothing."""

        class MaskX(poutine.messenger.Messenger):
            def _pyro_sample(self, msg):
                if msg["name"] == "x":
                    msg["mask"] = KEEP

        model = scnf.SemiSupervisedModel(flow, torch.tensor([0.5, 0.3, 0.2]))
        y = torch.tensor([0, 1, -1, -1, -1, -1])

        def run(x, y):
            pyro.sample("offset", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            with MaskX():
                return model(x, y)

        result = export(run, (x, y), {"offset": torch.zeros(2, dtype=F64)})
        assert coords(result, "log_likelihood") == [0, 1, 2, 3, 5]
        likelihood = values(result, "log_likelihood", "x")[0, 0]
        assert likelihood[1] == pytest.approx(math.log(0.3), rel=1e-6)

    def test_obs_mask_of_data_says_what_to_do(self, flow, x, shares):
        def model(x):
            share = prior()
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x, obs_mask=KEEP)

        with pytest.raises(ValueError, match=r"no draws of \['x_unobserved'\].*poutine.mask instead"):
            scnf.enumerate_labels(model, (x,), {"shares": shares})

    @pytest.mark.parametrize("dtype", [torch.int64, F64])
    def test_single_observations_of_a_row(self, flow, x, shares, dtype):
        """Two sites of a row. A row counts if one is seen, and what is not seen is NaN."""
        words = torch.arange(6).to(dtype)
        no_word = torch.tensor([True, False, False, True, True, True])

        def model(x):
            share = prior()
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(share))
                with poutine.mask(mask=KEEP):
                    pyro.sample("x", flow.condition(y), obs=x)
                with poutine.mask(mask=no_word):
                    pyro.sample("word", dist.Poisson(1.0 + y), obs=words)

        result = export(model, (x,), {"shares": shares})
        assert coords(result, "log_likelihood") == [0, 2, 3, 4, 5]
        word = dist.Poisson(torch.arange(1.0, 4.0, dtype=F64)).log_prob(words.double()[:, None])
        hand = shares.log()[:, None] + torch.where(KEEP[:, None], flow.class_log_prob(x), 0.0)
        hand = (hand + torch.where(no_word[:, None], word, 0.0)).logsumexp(-1)[:, [0, 2, 3, 4, 5]]
        assert relative(values(result, "log_likelihood", "x_word")[0], hand) < 1e-6
        seen = values(result, "observed_data", "word")
        assert seen.isnan().tolist() == [False, True, False, False, False]
        assert seen[[0, 2, 3, 4]].tolist() == [0, 3, 4, 5]


class TestMasksOfPlates:
    def model(self, flow, mask, inner):
        def run(x):
            share = prior()
            if inner:
                with pyro.plate("data", 3, dim=-1):
                    y = pyro.sample("y", dist.Categorical(share))
                    with pyro.plate("member", 2, dim=-2), poutine.mask(mask=mask):
                        pyro.sample("x", flow.condition(y), obs=x)
            else:
                with pyro.plate("data", 3, dim=-1), pyro.plate("member", 2, dim=-2), poutine.mask(mask=mask):
                    y = pyro.sample("y", dist.Categorical(share))
                    pyro.sample("x", flow.condition(y), obs=x)

        return run

    def test_members_of_a_group(self, flow, shares):
        """The label is that of a group. A group counts if one of its members is seen."""
        x = torch.randn(2, 3, 2, dtype=F64)
        mask = torch.tensor([[True, False, False], [True, True, False]])
        model = self.model(flow, mask, inner=True)
        joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, max_plate_nesting=2)
        members = torch.where(mask[..., None], flow.class_log_prob(x), 0.0).sum(0)
        assert relative(joint, members + shares.log()[:, None]) < 1e-10
        result = export(model, (x,), {"shares": shares}, max_plate_nesting=2)
        assert coords(result, "log_likelihood") == coords(result, "observed_data") == [0, 1]
        seen = values(result, "observed_data", "x")
        assert torch.equal(seen.isnan().any(-1), ~mask[:, :2])

    def test_whole_lines_of_two_plates(self, flow, shares):
        x = torch.randn(2, 3, 2, dtype=F64)
        mask = torch.tensor([[True, False, True], [True, False, True]])
        result = export(self.model(flow, mask, inner=False), (x,), {"shares": shares}, max_plate_nesting=2)
        assert coords(result, "log_likelihood", "data") == [0, 2]
        assert coords(result, "log_likelihood", "member") == [0, 1]
        hand = (flow.class_log_prob(x) + shares.log()[:, None, None]).logsumexp(-1)[:, :, [0, 2]]
        assert relative(values(result, "log_likelihood", "x")[0], hand) < 1e-10

    def test_single_cells_of_two_plates(self, flow, shares):
        x, mask = torch.randn(2, 3, 2, dtype=F64), torch.tensor([[True, False, True], [True, True, True]])
        model = self.model(flow, mask, inner=False)
        joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, max_plate_nesting=2)
        assert torch.equal(joint.isnan().all(-1), ~mask.expand(4, -1, -1))
        with pytest.raises(ValueError, match="single cells of the plates"):
            export(model, (x,), {"shares": shares}, max_plate_nesting=2)

    def test_masked_rows_among_given_ones(self, flow, shares):
        x = torch.randn(9, 2, dtype=F64)

        def model(x):
            share = prior()
            with pyro.plate("data", 9, subsample=ROWS), poutine.mask(mask=torch.tensor([True, False, True])):
                y = pyro.sample("y", dist.Categorical(share))
                pyro.sample("x", flow.condition(y), obs=x[ROWS])

        assert coords(export(model, (x,), {"shares": shares}), "log_likelihood") == [7, 5]


@pytest.mark.parametrize("parallel", [True, False])
def test_masks_that_depend_on_the_draw(flow, x, parallel):
    """Such as data beyond a threshold that is itself drawn."""
    limit = torch.tensor([-10.0, 0.0, 10.0], dtype=F64)

    def model(x):
        limit = pyro.sample("limit", dist.Normal(torch.zeros((), dtype=F64), 10.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > limit):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
            pyro.sample("x", flow.condition(y), obs=x)

    joint = scnf.enumerate_labels(model, (x,), {"limit": limit}, parallel=parallel)
    assert torch.equal(joint.isnan().all(-1), x[:, 0] <= limit[:, None])
    with pytest.raises(ValueError, match="site='y': the mask of the data differs between draws"):
        export(model, (x,), {"limit": limit}, parallel=parallel)


@pytest.mark.parametrize("parallel", [True, False])
def test_labels_with_different_masks(flow, x, shares, parallel):
    """Two labels in one plate see the same rows. In two plates each has its own."""

    def model(x, masks):
        share = prior()
        for name, mask in zip("ab", masks, strict=True):
            with pyro.plate(name, len(x)), poutine.mask(mask=mask):
                y = pyro.sample(f"y_{name}", dist.Categorical(share))
                pyro.sample(f"x_{name}", flow.condition(y), obs=x)

    options = {"site": ["y_a", "y_b"], "parallel": parallel}
    result = export(model, (x, (KEEP, ~KEEP)), {"shares": shares}, **options)
    assert coords(result, "log_likelihood", "a") == [0, 2, 3, 5]
    assert coords(result, "log_likelihood", "b") == [1, 4]
    assert result["log_likelihood"]["x_b"].shape == (1, 4, 2)


def test_latents_of_rows_that_are_left_out(x):
    """Draws of a latent in the label's plate lose the same rows."""
    z = torch.randn(3, 6, dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=KEEP):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=F64)))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x[:, 0])

    result = export(model, (x,), {"z": z})
    assert torch.equal(values(result, "posterior", "z")[0], z[:, KEEP])
    assert coords(result, "posterior") == [0, 2, 3, 5]


@pytest.mark.parametrize("parallel", [True, False])
def test_observations_that_depend_on_the_draw(flow, x, parallel):
    """Each draw has its likelihood, but there are no observed data for all of them."""
    shift = torch.randn(4, dtype=F64)

    def model(x):
        shift = pyro.sample("shift", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
            pyro.sample("x", flow.condition(y), obs=x - shift[..., None])

    hand = flow.class_log_prob(x - shift[:, None, None]) - math.log(3)
    joint = scnf.enumerate_labels(model, (x,), {"shift": shift}, parallel=parallel)
    assert relative(joint, hand) < 1e-6
    with pytest.raises(
        ValueError, match=r"site 'x' observes values that depend on the draws.*observed=False"
    ):
        export(model, (x,), {"shift": shift}, parallel=parallel)
    result = export(model, (x,), {"shift": shift}, parallel=parallel, observed=False)
    assert relative(values(result, "log_likelihood", "x")[0], hand.logsumexp(-1)) < 1e-6


def test_weights_of_zero(flow, x, shares):
    """Rows of weight 0 are left out. Other weights are for training and do not change a likelihood."""
    model = scnf.SemiSupervisedModel(flow)
    weights = KEEP.double() * 2.5

    def run(x, y):
        pyro.sample("unused", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        return model(x, y, weights=weights)

    draws = {"unused": torch.zeros(3, dtype=F64)}
    hand = flow.condition(LABELS).log_prob(x) - math.log(3)
    joint = scnf.enumerate_labels(run, (x, LABELS), draws)
    assert joint[:, ~KEEP].isnan().all()
    assert relative(joint[0, KEEP, 0], hand[KEEP]) < 1e-7
    result = export(run, (x, LABELS), draws)
    assert coords(result, "log_likelihood") == coords(result, "observed_data") == [0, 2, 3, 5]
    assert relative(values(result, "log_likelihood", "x")[0, 0], hand[KEEP]) < 1e-7


@pytest.mark.parametrize("scaled", ["x", "both", "plate"])
def test_scales_of_single_sites_are_no_part_of_a_row(flow, x, shares, scaled):
    """A scale says how much a site counts in training. The number of a row is its log-density."""

    def model(x):
        share = prior()
        plate = pyro.plate("data", 60 if scaled == "plate" else 6, subsample=torch.arange(6))
        with plate, poutine.scale(scale=4.0 if scaled == "both" else 1.0):
            y = pyro.sample("y", dist.Categorical(share))
            with poutine.scale(scale=torch.tensor(2.5, dtype=F64) if scaled == "x" else 1.0):
                pyro.sample("x", flow.condition(y), obs=x)

    joint = scnf.enumerate_labels(model, (x,), {"shares": shares})
    assert relative(joint, by_hand(flow, x, shares)) < 1e-10


@pytest.mark.parametrize("parallel", [True, False])
def test_a_plate_without_a_size(flow, x, shares, parallel):
    def model(x):
        share = prior()
        with pyro.plate("data"), poutine.mask(mask=KEEP):
            y = pyro.sample("y", dist.Categorical(share))
            pyro.sample("x", flow.condition(y), obs=x)

    joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, parallel=parallel)
    assert relative(joint[:, KEEP], by_hand(flow, x, shares)[:, KEEP]) < 1e-10
    assert joint[:, ~KEEP].isnan().all()


# -- latents that depend on the label --------------------------------------------------------------
@pytest.mark.parametrize("parallel", [True, False])
def test_draws_of_a_latent_that_depends_on_the_label(x, parallel):
    r"""A draw of z says something about y. The joint is :math:`p(x, y \mid z)`, with z as it was drawn."""
    z, w = torch.randn(4, 6, dtype=F64), torch.tensor([0.25, 0.75], dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(w))
            part = pyro.sample("part", dist.Bernoulli(torch.tensor(0.4, dtype=F64)))
            z = pyro.sample("z", dist.Normal(2.0 * y + part, 1.0))
            pyro.sample("x", dist.Normal(z - y, 1.0), obs=x[:, 0])

    joint = scnf.enumerate_labels(model, (x,), {"z": z}, parallel=parallel)
    k, part = torch.arange(2.0, dtype=F64)[:, None], torch.arange(2.0, dtype=F64)
    log_z = w.log()[:, None] + torch.tensor([0.6, 0.4], dtype=F64).log()
    log_z = log_z + dist.Normal(2 * k + part, 1.0).log_prob(z[..., None, None])  # (S, N, K, parts)
    log_x = dist.Normal(z[..., None] - torch.arange(2.0, dtype=F64), 1.0).log_prob(x[:, :1])
    posterior = log_z.logsumexp(-1) - log_z.logsumexp((-1, -2))[..., None]  # log p(y | z)
    assert relative(joint, posterior + log_x) < 1e-6


# -- sizes of data sets ----------------------------------------------------------------------------
SIZES = {"labelled": {"num_labelled": 90}, "unlabelled": {"num_unlabelled": 60}}
SIZES["both"] = {**SIZES["labelled"], **SIZES["unlabelled"]}
BATCHES = {"labelled": LABELS, "unlabelled": None, "marked": torch.full((6,), -1), "mixed": LABELS - 1}
FACTORS = {
    ("labelled", "labelled"): 15.0,
    ("unlabelled", "unlabelled"): 10.0,
    ("unlabelled", "marked"): 10.0,
    **{("both", batch): 25.0 for batch in BATCHES},
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("sizes", SIZES)
class TestSizes:
    """A size scales the rows of its kind. A batch with rows of the other kind needs both."""

    def losses(self, flow, sizes, batch):
        model = scnf.SemiSupervisedModel(flow, **sizes)
        y = BATCHES[batch]

        def svi(x):
            elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
            loss = SVI(model, scnf.exact_guide, Adam({}), elbo).evaluate_loss(x, y)
            return torch.tensor(loss, dtype=F64)

        return {
            "exact": lambda x: scnf.elbo(model)(x, y),
            "em": lambda x: scnf.elbo(model, scnf.EMGuide(model))(x, y),
            "sample": lambda x: scnf.elbo(model, scnf.EMGuide(model, "sample"))(x, y),
            "svi": svi,
        }

    def test_losses(self, flow, x, sizes, batch):
        plain, scaled = (self.losses(flow, given, batch) for given in ({}, SIZES[sizes]))
        factor = FACTORS.get((sizes, batch))
        for name, loss in scaled.items():
            if factor is None:
                with pytest.raises(ValueError, match=r"num_\w+ too") as caught:
                    loss(x)
                assert "num_labelled" in str(caught.value)
                assert "num_unlabelled" in str(caught.value)
            else:
                assert loss(x).item() == pytest.approx(factor * plain[name](x).item(), rel=1e-10)

    def test_terms(self, flow, x, sizes, batch):
        factor = FACTORS.get((sizes, batch))
        term = "classification" if batch in ("labelled", "mixed") else "consistency"
        options = {} if term == "classification" else {"view": x + 0.1}
        parts = []
        for given in ({}, SIZES[sizes]):
            model = scnf.SemiSupervisedModel(flow, **given)
            loss = scnf.elbo(model, terms=term)
            if given and factor is None:
                with pytest.raises(ValueError, match="num_labelled"):
                    loss(x, BATCHES[batch], **options)
                return
            loss(x, BATCHES[batch], **options)
            parts.append(loss.parts[term].item())
        assert parts[1] == pytest.approx(factor * parts[0], rel=1e-10)

    def test_rows_have_their_own_numbers(self, flow, x, sizes, batch):
        """Sizes play no part in numbers of single rows, nor does a batch have to fit them."""
        model = scnf.SemiSupervisedModel(flow, **SIZES[sizes])
        small = scnf.SemiSupervisedModel(flow, **dict.fromkeys(SIZES[sizes], 2))
        plain = scnf.enumerate_labels(scnf.SemiSupervisedModel(flow), (x, BATCHES[batch]))
        for one in (model, small):
            assert torch.equal(scnf.enumerate_labels(one, (x, BATCHES[batch])), plain)

    def test_examples_of_a_training_step(self, flow, x, sizes, batch):
        from pyro_scnf.training import SemiSupervisedTask

        task = SemiSupervisedTask(scnf.SemiSupervisedModel(flow, **SIZES[sizes]), steps=1)
        factor = FACTORS.get((sizes, batch))
        if factor is None:
            with pytest.raises(ValueError, match="num_labelled"):
                task._examples(x, BATCHES[batch], None)
        else:
            assert task._examples(x, BATCHES[batch], None) == 6 * factor


def test_sizes_of_two_plates(flow, x):
    y, u = LABELS[:2], x[2:]
    first = scnf.elbo(scnf.SemiSupervisedModel(flow))(x[:2], y).item()
    second = scnf.elbo(scnf.SemiSupervisedModel(flow))(u).item()
    for sizes, factors in (({"num_labelled": 20}, (10, 1)), ({"num_unlabelled": 40}, (1, 10))):
        model = scnf.SemiSupervisedModel(flow, **sizes)
        expected = factors[0] * first + factors[1] * second
        for guide in (scnf.exact_guide, scnf.EMGuide(model)):
            assert scnf.elbo(model, guide)(x[:2], y, u).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("sizes", "batch", "message"),
    [
        ({"num_unlabelled": 5}, "unlabelled", "num_unlabelled=5: the batch has 6 unlabelled rows"),
        ({"num_labelled": 5}, "labelled", "num_labelled=5: the batch has 6 labelled rows"),
        ({"num_labelled": 3, "num_unlabelled": 99}, "mixed", "num_labelled=3: the batch has 4 labelled rows"),
        ({"num_labelled": 99, "num_unlabelled": 1}, "mixed", "num_unlabelled=1: the batch has 2 unlabelled"),
        ({"num_labelled": 5}, "two plates", "num_labelled=5: the batch has 6 labelled rows"),
        ({"num_unlabelled": 5}, "two plates", "num_unlabelled=5: the batch has 6 unlabelled rows"),
    ],
)
def test_sizes_smaller_than_the_batch(flow, x, sizes, batch, message):
    model = scnf.SemiSupervisedModel(flow, **sizes)
    args = (x, LABELS, x + 1.0) if batch == "two plates" else (x, BATCHES[batch])
    for loss in (scnf.elbo(model), scnf.elbo(model, scnf.EMGuide(model)), scnf.elbo(model, terms="balance")):
        with pytest.raises(ValueError, match=message):
            loss(*args)


def test_more_rows_are_drawn_than_the_data_set_has(flow):
    """What a model draws is no part of its data set."""
    for sizes in SIZES.values():
        model = scnf.SemiSupervisedModel(flow, **sizes)
        assert model(n=200).shape == (200, 2)
        assert model(y=LABELS.repeat(30)).shape == (180, 2)
        assert Predictive(model, num_samples=2)(n=200)["x"].shape == (2, 200, 2)


# -- containers ------------------------------------------------------------------------------------
class TestArguments:
    @pytest.mark.parametrize("kind", ["tensor", "array", "word", "dict"])
    def test_args_that_are_no_tuple(self, flow, x, shares, kind):
        args = {"tensor": x, "array": x.numpy(), "word": "x", "dict": {"x": x}}[kind]

        def model(x):
            around(flow, x, torch.tensor(True))

        for call in (scnf.enumerate_labels, scnf.to_inference_data):
            with pytest.raises(ValueError, match=r"args is a \w+, expected a tuple .*\(x,\)"):
                call(model, args, {"shares": shares})
        assert scnf.enumerate_labels(model, [x], {"shares": shares}).shape == (4, 6, 3)

    def test_draws_of_other_kinds(self, flow, x, shares):
        def model(x):
            around(flow, x, torch.tensor(True))

        expected = scnf.enumerate_labels(model, (x,), {"shares": shares})
        for draws in (shares.numpy(), shares.tolist()):
            assert torch.equal(scnf.enumerate_labels(model, (x,), {"shares": draws}), expected)
        for draws, message in (
            (shares, "posterior is a Tensor, expected a mapping"),
            ([shares], "posterior is a list, expected a mapping"),
            ({"shares": np.array(["a", "b"])}, "posterior: 'shares' holds something else than numbers"),
            ({"shares": [[1.0], [2.0, 3.0]]}, "posterior: 'shares' holds something else than numbers"),
        ):
            for call in (scnf.enumerate_labels, scnf.to_inference_data):
                with pytest.raises(ValueError, match=message):
                    call(model, (x,), draws)

    def test_options(self, flow, x, shares):
        def model(x):
            around(flow, x, torch.tensor(True))

        for options, message in (
            ({"max_plate_nesting": 0}, "max_plate_nesting=0"),
            ({"max_plate_nesting": 1.0}, "max_plate_nesting=1.0"),
            ({"parallel": "no"}, "parallel='no': expected True or False"),
        ):
            for call in (scnf.enumerate_labels, scnf.to_inference_data):
                with pytest.raises(ValueError, match=message):
                    call(model, (x,), {"shares": shares}, **options)
        for options, message in (
            ({"seed": True}, "seed=True"),
            ({"seed": 1.5}, "seed=1.5"),
            ({"seed": "0"}, "seed='0'"),
            ({"chunk_size": 2.5}, "chunk_size=2.5"),
            ({"group_by_chain": 1}, "group_by_chain=1"),
            ({"num_chains": 2.0}, "num_chains=2.0"),
            ({"site": []}, "expected the name of a label"),
            ({"observed": 1}, "observed=1: expected True, False or names"),
            ({"constant_data": [1, 2]}, "constant_data is a list"),
            ({"constant_data": {"name": ["a"] * 6}}, "constant_data: 'name' holds something else"),
        ):
            with pytest.raises(ValueError, match=message):
                scnf.to_inference_data(model, (x,), {"shares": shares}, **options)
        same = [
            values(scnf.to_inference_data(model, (x,), {"shares": shares}, seed=seed), "posterior", "y")
            for seed in (3, np.int64(3), torch.Generator().manual_seed(3))
        ]
        assert torch.equal(same[0], same[1])
        assert torch.equal(same[0], same[2])

    @pytest.mark.parametrize("rows", [1, 2])
    def test_few_rows(self, flow, x, shares, rows):
        def model(x):
            around(flow, x, torch.tensor(True))

        joint = scnf.enumerate_labels(model, (x[:rows],), {"shares": shares})
        assert relative(joint, by_hand(flow, x[:rows], shares)) < 1e-10
        result = export(model, (x[:rows],), {"shares": shares})
        assert result["log_likelihood"]["x"].shape == (1, 4, rows)


class TestSampleLabels:
    @pytest.mark.parametrize("shape", [(2, 0, 3), (0, 5, 3)])
    def test_no_rows(self, shape):
        for temperature in (0, 1.0):
            assert scnf.sample_labels(torch.zeros(shape), temperature).shape == shape[:-1]

    def test_half_precision_and_one_row(self):
        joint = torch.tensor([0.0, 200.0, 0.0], dtype=torch.bfloat16)
        assert scnf.sample_labels(joint).item() == 1

    @pytest.mark.parametrize(
        ("joint", "options", "message"),
        [
            ([[0.0, 1.0]], {}, "log_joint is of type list"),
            (torch.zeros(2, 3, dtype=torch.long), {}, "expected log-probabilities"),
            (torch.tensor(0.5), {}, "expected log-probabilities"),
            (torch.full((1, 2, 3), -torch.inf), {}, r"row \(0, 0\) has no probabilities, nor have 1 others"),
            (torch.zeros(1, 3), {"temperature": -1}, "temperature=-1"),
            (torch.zeros(1, 3), {"temperature": "0"}, "temperature='0'"),
            (torch.zeros(1, 3), {"temperature": math.nan}, "temperature=nan"),
        ],
    )
    def test_errors(self, joint, options, message):
        with pytest.raises(ValueError, match=message):
            scnf.sample_labels(joint, **options)

    def test_the_global_generator_is_left_alone(self):
        joint, state = torch.randn(4, 5, 3), torch.get_rng_state()
        scnf.sample_labels(joint, generator=torch.Generator().manual_seed(0))
        assert torch.equal(torch.get_rng_state(), state)
