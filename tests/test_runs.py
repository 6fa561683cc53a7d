"""Models that do not broadcast over posterior draws: they run draw by draw, and never give a wrong number."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import counting, image_flow, relative, toy_flow
from pyro.ops.indexing import Vindex
from test_draws import mixture, mixture_by_hand, prevalence

import pyro_scnf as scnf

F64 = torch.float64
THIRD = torch.full((3,), 1 / 3, dtype=F64)


def normal():
    return dist.Normal(torch.zeros((), dtype=F64), 1.0)


class Counted:
    """A model that counts its runs."""

    def __init__(self, model):
        self.model, self.runs = model, 0

    def __call__(self, *args):
        self.runs += 1
        return self.model(*args)


# -- models whose result for all draws at once is wrong, without an error ----------------------------
def total(x):
    """Adds the draws up."""
    shift = pyro.sample("shift", normal())
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(THIRD))
        pyro.sample("x", dist.Normal(y + shift.sum(), 1.0), obs=x)


def squeezed(x):
    """Takes draws for rows, if there are as many."""
    shift = pyro.sample("shift", normal())
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(THIRD))
        pyro.sample("x", dist.Normal(y + shift.squeeze(), 1.0), obs=x)


def logits_of_draws(x):
    """Takes draws for labels, if there are as many."""
    shift = pyro.sample("shift", normal())
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(logits=shift.squeeze() * torch.arange(3.0, dtype=F64)))
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


def first_draw(x):
    """Takes the first draw for all of them."""
    shift = pyro.sample("shift", normal())
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(THIRD))
        pyro.sample("x", dist.Normal(y + shift.flatten()[0], 1.0), obs=x)


def last_draw(x):
    shift = pyro.sample("shift", normal())
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(THIRD))
        pyro.sample("x", dist.Normal(y + shift.flatten()[-1], 1.0), obs=x)


def by_hand(model, x, shift):
    k = torch.arange(3, dtype=F64)
    if model is logits_of_draws:
        prior = (shift[:, None] * k).log_softmax(-1)[:, None]
        return prior + dist.Normal(k, 1.0).log_prob(x[:, None])
    return THIRD.log() + dist.Normal(k + shift[:, None, None], 1.0).log_prob(x[:, None])


@pytest.mark.parametrize("model", [total, squeezed, logits_of_draws, first_draw, last_draw])
@pytest.mark.parametrize(("count", "rows"), [(3, 3), (3, 5), (5, 5), (4, 5)])
def test_a_wrong_result_is_found(model, count, rows):
    x, shift = torch.randn(rows, dtype=F64), torch.randn(count, dtype=F64)
    hand = by_hand(model, x, shift)
    with pytest.warns(UserWarning, match=f"'{model.__name__}' does not broadcast over.*Vindex") as caught:
        found = scnf.enumerate_labels(model, (x,), {"shift": shift})
    assert len(caught) == 1
    assert relative(found, hand) < 1e-6
    for few in (1, 2):
        found = scnf.enumerate_labels(model, (x,), {"shift": shift[:few]})
        assert relative(found, hand[:few]) < 1e-6


def test_these_results_would_be_wrong():
    """Otherwise the test above would show nothing."""
    x, shift = torch.randn(3, dtype=F64), torch.randn(3, dtype=F64)
    for model in (total, squeezed, logits_of_draws, first_draw, last_draw):
        found = scnf.enumerate_labels(model, (x,), {"shift": shift}, parallel=True)
        assert relative(found, by_hand(model, x, shift)) > 1e-2


@pytest.mark.parametrize("rows", [3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_errors_of_shapes(rows, count):
    x, loc = torch.randn(rows, dtype=F64), torch.randn(count, 3, dtype=F64)
    model = Counted(mixture)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = scnf.enumerate_labels(model, (x,), {"loc": loc})
    assert relative(found, mixture_by_hand(x, loc)) < 1e-6
    assert [str(w.message)[:20] for w in caught] == (["the model 'Counted' "] if count > 2 else [])
    assert all(w.filename == __file__ for w in caught)
    assert model.runs == (count + 1 if count > 2 else count)


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_a_model_that_broadcasts_runs_at_most_three_times_and_its_flow_once(count, runs):
    flow, x = toy_flow("flow", dtype=F64), torch.randn(6, 2, dtype=F64)
    shares = dist.Dirichlet(torch.ones(3, dtype=F64)).sample((count,))
    model = Counted(lambda x: prevalence(flow, x))
    with counting(flow.transform, "inverse_and_ladj") as counter, warnings.catch_warnings():
        warnings.simplefilter("error")
        joint = scnf.enumerate_labels(model, (x,), {"shares": shares})
    assert (model.runs, counter.calls) == (runs, 1)
    assert relative(joint, flow.class_log_prob(x) + shares.log()[:, None]) < 1e-10
    with counting(flow.transform, "inverse_and_ladj") as counter, scnf.share_encoding():
        for _ in range(3):
            scnf.enumerate_labels(model, (x,), {"shares": shares})
    assert counter.calls == 1


@pytest.mark.parametrize("prior", ["gmm", "flow"])
def test_rounding_of_large_numbers_is_no_difference(prior):
    """Thousands of nats in single precision, with a prior whose means have draws."""
    flow, x = image_flow(prior), 40 * torch.randn(7, 1, 4, 4)
    shift = torch.randn(5, 1, 4, 4)

    def model(x):
        at = pyro.sample("at", dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)))
            pyro.sample("x", flow.condition(y), obs=x - at)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joint = scnf.enumerate_labels(model, (x,), {"at": shift})
    assert joint.abs().max() > 1000


def test_other_errors_are_the_ones_to_see():
    x, shift = torch.randn(6, dtype=F64), torch.randn(4, dtype=F64)

    def at_random(x):
        with pyro.plate("data", 6, subsample_size=3) as rows:
            y = pyro.sample("y", dist.Categorical(THIRD))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x[rows])

    def broken(x):
        shift = pyro.sample("shift", normal())
        raise ValueError(f"a draw of shape {tuple(shift.shape)}")

    def without_memory(x):
        shift = pyro.sample("shift", normal())
        if shift.numel() > 1:
            raise torch.OutOfMemoryError("too large")
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(THIRD))
            pyro.sample("x", dist.Normal(y + shift, 1.0), obs=x)

    negative = torch.tensor([1.0, 2.0, -1.0, 1.0], dtype=F64)

    def of_scale(x):
        scale = pyro.sample("scale", dist.Normal(torch.ones((), dtype=F64), 1.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(THIRD))
            pyro.sample("x", dist.Normal(y, scale), obs=x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, draws, error, message in (
            (total, {"shift": shift, "other": shift}, ValueError, r"no such sites \['other'\]"),
            (total, {}, ValueError, r"no draws of \['shift'\]"),
            (at_random, {}, ValueError, "draws 3 of its 6 rows at random"),
            (broken, {"shift": shift}, ValueError, r"a draw of shape \(\)"),  # of the run for one draw
            (without_memory, {"shift": shift}, torch.OutOfMemoryError, "too large"),
            (of_scale, {"scale": negative}, ValueError, "scale"),  # the third draw
        ):
            for call in (scnf.enumerate_labels, scnf.to_inference_data):
                if call is scnf.to_inference_data and not draws:
                    continue
                with pytest.raises(error, match=message):
                    call(model, (x,), draws)


def test_models_that_draw_numbers_themselves():
    x, shift = torch.randn(6, dtype=F64), torch.randn(4, dtype=F64)

    def noise_in_data(x):
        total(x + torch.rand(6, dtype=F64))

    def noise_in_means(x):
        shift = pyro.sample("shift", normal())
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(THIRD))
            pyro.sample("x", dist.Normal(y + shift + torch.rand(6, dtype=F64), 1.0), obs=x)

    for model, message in (
        (noise_in_data, "site 'x' observes other values in another run"),
        (noise_in_means, "'noise_in_means' gives other log-probabilities in another run.*parallel=True"),
    ):
        with pytest.raises(ValueError, match=message):
            scnf.enumerate_labels(model, (x,), {"shift": shift})
        assert scnf.enumerate_labels(model, (x,), {"shift": shift}, parallel=True).shape == (4, 6, 3)


class TestExport:
    @staticmethod
    def two_labels(x, broadcasts):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3, dtype=F64), 3.0).to_event(1))
        for name in "ab":
            with pyro.plate(name, len(x)):
                y = pyro.sample(f"y_{name}", dist.Categorical(THIRD))
                at = Vindex(loc)[..., y] if broadcasts else loc[y]
                pyro.sample(f"x_{name}", dist.Normal(at, 1.0), obs=x)

    @pytest.mark.parametrize("chunk_size", [None, 1, 2, 3])
    def test_one_warning_for_all_labels_and_chunks(self, chunk_size):
        x, loc = torch.randn(3, dtype=F64), torch.randn(7, 3, dtype=F64)
        options = {"site": ["y_a", "y_b"], "chunk_size": chunk_size, "seed": 0}
        right = scnf.to_inference_data(lambda x: self.two_labels(x, True), (x,), {"loc": loc}, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = scnf.to_inference_data(lambda x: self.two_labels(x, False), (x,), {"loc": loc}, **options)
        ours = [str(w.message) for w in caught if "does not broadcast" in str(w.message)]
        assert len(ours) == (1 if chunk_size in (None, 3) else 0)
        for name in ("x_a", "x_b"):
            a, b = (torch.as_tensor(d["log_likelihood"][name].values) for d in (data, right))
            assert relative(a, b) < 1e-10

    def test_runs_for_each_size_of_a_chunk(self):
        x, loc = torch.randn(3, dtype=F64), torch.randn(13, 3, dtype=F64)
        model = Counted(lambda x: self.two_labels(x, True))
        scnf.to_inference_data(model, (x,), {"loc": loc}, site="y_a", chunk_size=5)
        assert model.runs == 1 + (1 + 2) + 1 + (1 + 2)  # to learn the sites; chunks of 5, 5 and 3


def test_a_wrong_label_is_found_beside_thousands_of_nats_that_labels_share():
    """Log-densities of 1e5 nats have steps of 0.008, so labels are compared with each other."""
    shares = dist.Dirichlet(torch.tensor([30.0, 40.0, 30.0])).sample((5,))
    x = torch.full((5,), 450.0)

    def first_share(x):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(share.reshape(-1, 3)[0]))
            pyro.sample("x", dist.Normal(0.001 * y, 1.0), obs=x)

    with pytest.warns(UserWarning, match="'first_share' does not broadcast"):
        joint = scnf.enumerate_labels(first_share, (x,), {"share": shares})
    expected = shares.log()[:, None] + dist.Normal(0.001 * torch.arange(3), 1.0).log_prob(x[:, None])
    assert torch.allclose(joint.log_softmax(-1), expected.double().log_softmax(-1), atol=0.02)
    assert not torch.allclose(joint[0].softmax(-1), joint[1].softmax(-1), atol=0.02)
