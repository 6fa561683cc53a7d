"""The flow inside Pyro programs: inference, prediction, handlers, bigger models."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import mlp
from helpers import counting, gradient_error, gradients, image_flow, perturb, relative, toy_flow
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceTMC_ELBO,
    config_enumerate,
    infer_discrete,
)
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.nn.module import to_pyro_module_
from pyro.optim import Adam
from torch.distributions import constraints

import pyro_scnf as scnf

F64 = torch.float64
OPTIONS = {"max_plate_nesting": 1, "strict_enumeration_warning": False}


@pytest.fixture
def model():
    flow = toy_flow("flow", dtype=F64)
    return scnf.SemiSupervisedModel(flow, torch.tensor([0.5, 0.3, 0.2]))


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=F64)


def hand_posterior(model, x):
    joint = torch.stack([model.flow.condition(torch.full((len(x),), k)).log_prob(x) for k in range(3)], -1)
    return (joint + model.class_probs.log_probs).softmax(-1)


# -- discrete inference ----------------------------------------------------------------
def test_infer_discrete_gives_the_most_probable_label(model, x):
    found = poutine.trace(infer_discrete(model, first_available_dim=-2, temperature=0)).get_trace(x)
    assert torch.equal(found.nodes["y"]["value"], hand_posterior(model, x).argmax(-1))


def test_infer_discrete_draws_from_the_posterior(model, x):
    rows = x[:2].repeat_interleave(3000, 0)
    found = poutine.trace(infer_discrete(model, first_available_dim=-2)).get_trace(rows)
    frequencies = torch.nn.functional.one_hot(found.nodes["y"]["value"].reshape(2, 3000), 3).double().mean(1)
    assert (frequencies - hand_posterior(model, x[:2])).abs().max() < 4 * 0.5 / math.sqrt(3000)


def test_infer_discrete_keeps_known_labels(model, x):
    y = torch.tensor([0, -1, 2, -1, 1, -1])
    found = poutine.trace(infer_discrete(model, first_available_dim=-2, temperature=0)).get_trace(x, y)
    drawn = found.nodes["y"]["value"]
    expected = torch.where(y >= 0, y, hand_posterior(model, x).argmax(-1))
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("form", ["unlabelled", "two plates"])
def test_compute_marginals_gives_the_exact_posterior(model, x, form):
    args, site = (
        ((x,), "y") if form == "unlabelled" else ((x[:2], torch.tensor([0, 1]), x[2:]), "y_unlabelled")
    )
    marginals = TraceEnum_ELBO(**OPTIONS).compute_marginals(model, scnf.exact_guide, *args)
    assert relative(marginals[site].probs, hand_posterior(model, args[-1])) < 1e-10
    assert relative(model.posterior(x).probs, hand_posterior(model, x)) < 1e-10


class TestPartlyLabelled:
    """A batch in which some rows are labelled, under everything of Pyro's that draws or sums over labels."""

    Y = torch.tensor([0, -1, 2, -1, 1, -1])
    KNOWN = Y >= 0

    def hand(self, model, x):
        certain = torch.nn.functional.one_hot(self.Y.clamp(min=0), 3).to(F64)
        return torch.where(self.KNOWN[:, None], certain, hand_posterior(model, x))

    @pytest.mark.parametrize("expand", [False, True])
    @pytest.mark.parametrize("sizes", [{}, {"num_labelled": 30, "num_unlabelled": 50}])
    def test_compute_marginals(self, model, x, sizes, expand):
        model = scnf.SemiSupervisedModel(model.flow, model.class_probs, **sizes)
        configured = config_enumerate(model, expand=expand)
        for one in (model, configured):
            marginals = TraceEnum_ELBO(**OPTIONS).compute_marginals(one, scnf.exact_guide, x, self.Y)
            assert list(marginals) == ["y"]
            assert relative(marginals["y"].probs, self.hand(model, x)) < 1e-10
        assert torch.equal(marginals["y"].sample((9,))[:, self.KNOWN], self.Y[self.KNOWN].expand(9, 3))

    def test_a_marginal_is_a_distribution_like_any_other(self, model, x):
        with torch.no_grad():
            marginal = TraceEnum_ELBO(**OPTIONS).compute_marginals(model, scnf.exact_guide, x, self.Y)["y"]
        again = copy.deepcopy(marginal.expand([2, 6]))
        assert again.sample().shape == (2, 6)
        assert relative(again.probs[1], self.hand(model, x)) < 1e-10
        assert torch.equal(marginal.enumerate_support(expand=False)[:, 0], torch.arange(3))

    @pytest.mark.parametrize("labels", ["none", "some"])
    def test_sample_posterior(self, model, x, labels):
        rows = x.repeat_interleave(1000, 0)
        y = self.Y.repeat_interleave(1000) if labels == "some" else None
        with poutine.trace() as tracer:
            TraceEnum_ELBO(**OPTIONS).sample_posterior(model, scnf.exact_guide, rows, y)
        drawn = tracer.trace.nodes["y"]["value"].reshape(6, 1000)
        shares = torch.nn.functional.one_hot(drawn, 3).double().mean(1)
        expected = self.hand(model, x) if labels == "some" else hand_posterior(model, x)
        assert (shares - expected).abs().max() < 5 * 0.5 / math.sqrt(1000)
        if labels == "some":
            assert (drawn[self.KNOWN] == self.Y[self.KNOWN, None]).all()

    def test_infer_discrete_draws(self, model, x):
        rows, y = x.repeat_interleave(1000, 0), self.Y.repeat_interleave(1000)
        inferred = infer_discrete(config_enumerate(model), first_available_dim=-2)
        drawn = poutine.trace(inferred).get_trace(rows, y).nodes["y"]["value"].reshape(6, 1000)
        shares = torch.nn.functional.one_hot(drawn, 3).double().mean(1)
        assert (shares - self.hand(model, x)).abs().max() < 5 * 0.5 / math.sqrt(1000)

    def test_condition(self, model, x):
        """Labels by ``poutine.condition`` are those of all rows. They may not contradict the known ones."""
        labels = torch.where(self.KNOWN, self.Y, 1)
        conditioned = poutine.condition(model, {"y": labels})
        expected = scnf.elbo(model)(x, labels).item()
        assert scnf.elbo(conditioned)(x, self.Y).item() == pytest.approx(expected, rel=1e-12)
        assert scnf.elbo(poutine.condition(model, {"y": (labels + 1) % 3}))(x, self.Y) > 1e29

    @pytest.mark.parametrize("parallel", [False, True])
    def test_predictive(self, model, x, parallel):
        """Predictive draws the unknown labels from p(y). The known ones are as they are."""
        draws = Predictive(model, num_samples=400, parallel=parallel)(x, self.Y)["y"]
        assert draws.shape == (400, 6)
        assert (draws[:, self.KNOWN] == self.Y[self.KNOWN]).all()
        shares = torch.nn.functional.one_hot(draws[:, ~self.KNOWN], 3).double().mean((0, 1))
        assert (shares - model.class_probs().probs).abs().max() < 5 * 0.5 / math.sqrt(1200)

    def test_several_draws_of_each_label_are_refused(self, model, x):
        """Pyro's tensor Monte Carlo would lose log p(y) of the known labels, which p(y) does not draw."""
        configured = config_enumerate(model, num_samples=7, expand=True)
        loss = TraceTMC_ELBO(max_plate_nesting=1).differentiable_loss
        with pytest.raises(ValueError, match=r"num_samples: some labels of the batch are known"):
            loss(configured, scnf.exact_guide, x, self.Y)
        assert loss(configured, scnf.exact_guide, x, torch.where(self.KNOWN, self.Y, 1)) > 0


# -- what a call draws -----------------------------------------------------------------
class TestGenerators:
    """Draws follow the generator they are given, and leave the global one alone."""

    def draws(self, model):
        y = torch.tensor([0, 2, 1])
        marginal = scnf.LabelMarginal(model.flow, torch.rand(2, 3))
        return {
            "model": lambda g: model(n=6, generator=g),
            "x alone": lambda g: model(y=y, generator=g),
            "some labels": lambda g: model(y=torch.tensor([0, -1, -1]), generator=g),
            "predictive": lambda g: Predictive(model, num_samples=3)(n=2, generator=g)["x"],
            "guided": lambda g: Predictive(model, guide=scnf.EMGuide(model), num_samples=2)(n=3, generator=g)[
                "x"
            ],
            "marginal": lambda g: marginal.sample((4,), generator=g),
        }

    @pytest.mark.parametrize("kind", ["model", "x alone", "some labels", "predictive", "guided", "marginal"])
    def test_same_draws(self, model, kind):
        draw = self.draws(model)[kind]
        state = torch.get_rng_state()
        first, again, other = (draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(draw(None), draw(None))

    def test_a_generator_goes_on(self, model):
        generator = torch.Generator().manual_seed(0)
        first, second = (model(n=5, generator=generator) for _ in range(2))
        assert not torch.equal(first, second)

    def test_where_nothing_is_drawn(self, model, x):
        generator = torch.Generator()
        for call in (model, scnf.EMGuide(model), scnf.elbo(model)):
            with pytest.raises(ValueError, match="generator is for draws of x, and x is given"):
                call(x, generator=generator)
        for draw in self.draws(model).values():
            with pytest.raises(ValueError, match=r"generator is a int, expected a torch.Generator"):
                draw(0)


# -- prediction ---------------------------------------------------------------------------
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_labels_and_data(parallel):
    model = scnf.SemiSupervisedModel(toy_flow("flow"), torch.tensor([0.5, 0.3, 0.2]))
    draws = Predictive(model, num_samples=40, parallel=parallel)(n=25)
    assert draws["y"].shape == (40, 25)
    assert draws["x"].shape == (40, 25, 2)
    shares = torch.nn.functional.one_hot(draws["y"], 3).double().mean((0, 1))
    assert (shares - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 4 * 0.5 / math.sqrt(1000)
    # Each x was drawn given its own label.
    log_prob = model.flow.condition(draws["y"]).log_prob(draws["x"])
    assert (log_prob > model.flow.log_prob(draws["x"]) - 20).all()


def test_predictive_of_a_users_model_draws_images():
    flow = image_flow("flow")

    def model(n):
        with pyro.plate("data", n):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)))
            return pyro.sample("x", flow.condition(y))

    for parallel in (False, True):
        assert Predictive(model, num_samples=4, parallel=parallel)(5)["x"].shape == (4, 5, 1, 4, 4)


def test_draws_given_a_label(model):
    y = torch.tensor([2, 2, 0, 1])
    for conditioned in (poutine.condition(model, {"y": y}), poutine.do(model, {"y": y})):
        pyro.set_rng_seed(3)
        x = conditioned(n=4)
        assert x.shape == (4, 2)
    assert model(y=y).shape == (4, 2)


Y = torch.tensor([0, 1, 2, 0, 1, 2])
ONE_HOT = torch.nn.functional.one_hot(Y, 3)


def wrong_arguments():
    x, w = torch.randn(6, 2, dtype=F64), torch.ones(6, dtype=F64)
    even = torch.full((6, 3), -math.log(3), dtype=F64)
    return {
        "x array": ((x.numpy(),), {}, r"SemiSupervisedModel: x is .*array.*expected a tensor"),
        "x list": ((x.tolist(),), {}, r"SemiSupervisedModel: x is .*list.*expected a tensor"),
        "x integers": ((x.long(),), {}, r"SemiSupervisedModel: x has dtype torch.int64"),
        "x batches": ((x.reshape(2, 3, 2),), {}, r"x has batch shape \(2, 3\)"),
        "no rows": ((x[:0],), {}, "x is empty, expected at least one row"),
        "y array": ((x, Y.numpy()), {}, r"SemiSupervisedModel: y is .*array"),
        "y list": ((x, Y.tolist()), {}, r"SemiSupervisedModel: y is .*list"),
        "y float": ((x, Y.double()), {}, r"y has dtype torch.float64.*y.long\(\)"),
        "y bool": ((x, Y > 0), {}, r"y has dtype torch.bool"),
        "y one-hot": ((x, ONE_HOT), {}, r"y has shape \(6, 3\).*one-hot.*argmax"),
        "y float one-hot": ((x, ONE_HOT.double()), {}, r"y .*one-hot.*argmax"),
        "y column": ((x, Y[:, None]), {}, r"y has shape \(6, 1\), expected \(6,\)"),
        "y range": ((x, Y + 1), {}, r"y holds labels 1..3, expected -1..2"),
        "u array": ((x, Y, x.numpy()), {}, r"SemiSupervisedModel: x_unlabelled is .*array"),
        "u list": ((x, Y, x.tolist()), {}, r"SemiSupervisedModel: x_unlabelled is .*list"),
        "u integers": ((x, Y, x.long()), {}, r"x_unlabelled has dtype torch.int64"),
        "u shape": ((x, Y, x[:, :1]), {}, r"x_unlabelled has shape \(6, 1\)"),
        "u nan": ((x, Y, x * torch.nan), {}, r"x_unlabelled holds 12 NaN"),
        "u unmarked": ((x, Y - 1, x), {}, r"y holds labels -1..1, expected 0..2"),
        "u alone": ((), {"x_unlabelled": x}, "the labelled batch is empty"),
        "weights array": ((x, Y), {"weights": w.numpy()}, r"SemiSupervisedModel: weights is .*array"),
        "weights list": ((x, Y), {"weights": w.tolist()}, r"SemiSupervisedModel: weights is .*list"),
        "weights short": ((x, Y), {"weights": w[1:]}, r"weights has shape \(5,\), expected \(6,\)"),
        "weights column": ((x, Y), {"weights": w[:, None]}, r"weights has shape \(6, 1\), expected \(6,\)"),
        "weights number": ((x, Y), {"weights": 2.0}, r"SemiSupervisedModel: weights is .*float"),
        "weights negative": ((x, Y), {"weights": -w}, "weights has negative or infinite entries"),
        "weights nan": ((x, Y), {"weights": w * torch.nan}, "weights has negative or infinite entries"),
        "weights complex": (
            (x, Y),
            {"weights": w.to(torch.complex128)},
            "weights has dtype torch.complex128",
        ),
        "weights of draws": ((), {"n": 6, "weights": w}, "weights are for rows of data; give x too"),
        "weights of labels": ((), {"y": Y, "weights": w}, "weights are for rows of data; give x too"),
        "evidence array": ((x,), {"label_log_prior": even.numpy()}, "label_log_prior is of ndarray"),
        "evidence list": ((x,), {"label_log_prior": even.tolist()}, "label_log_prior is of list"),
        "n float": ((), {"n": 2.5}, "n=2.5: expected a whole number"),
        "n word": ((), {"n": "3"}, "n='3': expected a whole number"),
        "n flag": ((), {"n": True}, "n=True: expected a whole number"),
        "n none": ((), {"n": 0}, "n=0: expected at least 1"),
        "n negative": ((), {"n": -2}, "n=-2: expected at least 1"),
        "n and x": ((x,), {"n": 6}, "n=6 is a number of rows to draw, and x says how many"),
        "n and y": ((), {"y": Y, "n": 6}, "n=6 is a number of rows to draw, and y says how many"),
        "n and both": ((x, Y, x), {"n": 6}, "n=6 is a number of rows to draw, and x says how many"),
        "nothing": ((), {}, "nothing observed; give n"),
    }


@pytest.mark.parametrize("kind", wrong_arguments())
def test_arguments_are_refused_by_their_names(model, kind):
    """By the model, its loss, and where these look at the arguments too, by the guide and the terms."""
    args, kwargs, message = wrong_arguments()[kind]
    calls = [model, scnf.elbo(model)]
    if kind != "nothing":  # a guide has nothing to do then
        calls.append(scnf.EMGuide(model))
    if args and not kind.startswith(("n", "weights")):
        calls.append(scnf.elbo(model, terms="balance"))
    for call in calls:
        if kind.startswith("evidence") or kind == "nothing":
            message = message.replace("SemiSupervisedModel: ", "")
        with pytest.raises(ValueError, match=message):
            call(*args, **kwargs)


def test_a_single_precision_model_takes_no_double_weights(x):
    model = scnf.SemiSupervisedModel(toy_flow("flow"))
    single, w = x.float(), torch.tensor([1, 0, 2, 1, 3, 1])
    with pytest.raises(ValueError, match=r"dtype torch.float64.*give weights.to\(torch.float32\)"):
        scnf.elbo(model)(single, Y, weights=w.double())
    expected = scnf.elbo(model)(single, Y, weights=w.float()).item()
    for lower in (w, w.bfloat16(), w.half()):  # these lose nothing
        assert scnf.elbo(model)(single, Y, weights=lower).item() == pytest.approx(expected, rel=1e-6)
    kept = scnf.elbo(model)(single, Y, weights=w > 0).item()
    assert kept == pytest.approx(scnf.elbo(model)(single[w > 0], Y[w > 0]).item(), rel=1e-5)


class TestLabelMarginal:
    def test_it_decides_by_what_labels_do_not_share(self):
        """Far from all classes, where the log-probabilities of the labels round to the same number."""
        flow = toy_flow("gmm:covariance=shared")
        x = 1e4 * torch.randn(50, 2)
        probs = torch.tensor([0.5, 0.3, 0.2])
        exact = copy.deepcopy(flow).double().posterior(x.double(), probs.double()).probs
        assert (scnf.LabelMarginal(flow, probs).posterior(x).probs - exact).abs().max() < 1e-2

    def test_batches(self, model, x):
        flow, probs = model.flow, torch.rand(6, 3, dtype=F64)
        marginal = scnf.LabelMarginal(flow, probs)
        hand = (flow.class_log_prob(x) + (probs / probs.sum(-1, keepdim=True)).log()).logsumexp(-1)
        assert relative(marginal.log_prob(x), hand) < 1e-10
        expanded = scnf.LabelMarginal(flow).expand([4, 6])
        assert relative(expanded.log_prob(x), flow.log_prob(x).expand(4, 6)) < 1e-10
        assert expanded.posterior(x).probs.shape == (4, 6, 3)
        assert expanded.sample((5,)).shape == (5, 4, 6, 2)
        for call in (marginal.log_prob, marginal.posterior):
            with pytest.raises(ValueError, match=r"x has batch shape \(5,\) and class_probs \(6,\)"):
                call(x[:5])
        with pytest.raises(ValueError, match=r"a batch of \(6,\) does not expand"):
            marginal.expand([5])

    def test_drawn_labels_that_look_like_one_hot_rows(self, model):
        """Of draws ``(2, 3)`` of three labels, one in 81 does."""
        marginal = scnf.LabelMarginal(model.flow)
        for _ in range(600):
            assert marginal.sample((2, 3)).shape == (2, 3, 2)

    def test_no_rows(self, model, x):
        marginal = scnf.LabelMarginal(model.flow, model.class_probs)
        assert marginal.log_prob(x[:0]).shape == (0,)
        assert marginal.posterior(x[:0]).probs.shape == (0, 3)
        assert marginal.sample((0,)).shape == (0, 2)
        assert marginal.expand([0]).sample((3,)).shape == (3, 0, 2)

    def test_copies_hold_no_graph(self, model, x):
        learnable = scnf.ClassProbs(3, "learnable").double()
        marginal = scnf.LabelMarginal(model.flow, learnable)
        for one in (copy.deepcopy(marginal), pickle.loads(pickle.dumps(marginal))):
            assert relative(one.log_prob(x), marginal.log_prob(x)) < 1e-12
            assert not one.log_class_probs.requires_grad
        assert marginal.log_class_probs.requires_grad

    def test_dtype_is_that_of_the_flow(self):
        flow, x = toy_flow("gmm"), torch.randn(4, 2)
        for probs in (torch.tensor([1.0, 2, 3], dtype=F64), torch.tensor([1, 2, 3])):
            assert scnf.LabelMarginal(flow, probs).log_prob(x).dtype == torch.float32

    def test_a_flow_is_named(self, model):
        for make in (scnf.LabelMarginal, scnf.SemiSupervisedModel):
            for other in (model, model.flow.transform, "glow", None):
                with pytest.raises(ValueError, match=r"flow is a \w+, expected a SemiConditionalFlow"):
                    make(other)

    @pytest.mark.parametrize("probs", [[1.0, 1.0, 1.0], np.ones(3), "uniform", -torch.ones(3), torch.ones(2)])
    def test_weights_of_other_kinds(self, model, probs):
        with pytest.raises(ValueError, match="class_probs"):
            scnf.LabelMarginal(model.flow, probs)


# -- forms of labels -----------------------------------------------------------------------
def test_labels_of_two_plates_may_look_like_one_hot_rows(model):
    """Plates tell what is a label, so that a program does not fail by chance."""

    def cells(y):
        with pyro.plate("b", 2, dim=-2), pyro.plate("a", 3, dim=-1):
            return pyro.sample("x", model.flow.condition(y))

    hot = torch.tensor([[0, 1, 0], [0, 0, 1]])
    assert cells(hot).shape == (2, 3, 2)

    def rows(y):
        with pyro.plate("a", 3, dim=-1):
            return pyro.sample("x", model.flow.condition(y))

    for wrong in (torch.eye(3).long(), torch.eye(3).long()[:2]):
        with pytest.raises(ValueError, match="one-hot rows of integers"):
            rows(wrong)
    hot = torch.eye(3)[torch.tensor([0, 1, 1, 2])]
    for wrong in (hot, hot.bool()):  # no integers
        with pytest.raises(ValueError, match=r"y has dtype torch\.\w+, .* rows as y\.long\(\)\.argmax"):
            model(torch.zeros(4, 2, dtype=F64), wrong)


def test_one_row_of_one_hot_weights_in_a_program(model, x):
    """Without a plate of K rows, K numbers are the weights of one row."""

    def single(x):
        y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3, dtype=F64) / 3))
        return pyro.sample("x", model.flow.condition(y), obs=x)

    found = poutine.trace(single).get_trace(x[0])
    found.compute_log_prob()
    label = found.nodes["y"]["value"].argmax()
    assert relative(found.nodes["x"]["log_prob"], model.flow.class_log_prob(x[0])[label]) < 1e-12
    exact = scnf.elbo(config_enumerate(single))(x[0])
    assert relative(-exact, model.flow.log_prob(x[0])) < 1e-10

    def shared(x):
        y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3, dtype=F64) / 3))
        with pyro.plate("data", len(x)):
            return pyro.sample("x", model.flow.condition(y), obs=x)

    assert poutine.trace(shared).get_trace(x).log_prob_sum().isfinite()
    with pytest.raises(ValueError, match=r"may be 3 labels or the one-hot weights of one row"):
        shared(x[:3])


# -- handlers -------------------------------------------------------------------------------
def test_condition_on_labels_equals_giving_them(model, x):
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    given = scnf.elbo(model)(x, y)
    conditioned = scnf.elbo(poutine.condition(model, {"y": y}))(x)
    assert conditioned.item() == pytest.approx(given.item(), rel=1e-12)


def test_condition_on_data_equals_giving_it(model, x):
    def users(x=None):
        with pyro.plate("data", 6):
            y = pyro.sample("y", model.class_probs(), infer={"enumerate": "parallel"})
            return pyro.sample("x", model.flow.condition(y), obs=x)

    conditioned = poutine.condition(users, {"x": x})
    assert scnf.elbo(conditioned)().item() == pytest.approx(-model.log_prob(x).sum().item(), rel=1e-12)
    # An intervention on x, in contrast, is no evidence about the label.
    intervened = poutine.trace(poutine.do(users, {"x": x})).get_trace()
    assert torch.equal(intervened.nodes["_RETURN"]["value"], x)
    assert not any(node["is_observed"] for node in intervened.nodes.values() if node["type"] == "sample")


def test_scale(model, x):
    scaled = scnf.elbo(poutine.scale(model, scale=2.5))(x)
    assert scaled.item() == pytest.approx(-2.5 * model.log_prob(x).sum().item(), rel=1e-12)


def test_mask(model, x):
    keep = torch.tensor([True, False, True, True, False, False])
    loss = scnf.elbo(poutine.mask(model, mask=keep))(x)
    assert loss.item() == pytest.approx(-model.log_prob(x[keep]).sum().item(), rel=1e-12)


def test_labels_masked_by_pyro(model, x):
    """With ``obs_mask``, the loss is exact if ``config_enumerate`` is applied to the model."""
    y, known = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([True, False, True, False, False, False])

    @config_enumerate
    def users(x):
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", model.class_probs(), obs=y, obs_mask=known)
            pyro.sample("x", model.flow.condition(label), obs=x)

    ours = scnf.elbo(model)(x, torch.where(known, y, -1))
    assert scnf.elbo(users)(x).item() == pytest.approx(ours.item(), rel=1e-10)


def test_noisy_labels(model, x):
    """A label observed through a confusion matrix. The identity matrix shows the label itself."""
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    @config_enumerate
    def users(x, confusion):
        with pyro.plate("data", len(x)):
            truth = pyro.sample("truth", model.class_probs())
            pyro.sample("label", dist.Categorical(confusion[truth]), obs=y)
            pyro.sample("x", model.flow.condition(truth), obs=x)

    sure = torch.eye(3, dtype=F64) * (1 - 3e-12) + 1e-12
    assert scnf.elbo(users)(x, sure).item() == pytest.approx(scnf.elbo(model)(x, y).item(), rel=1e-8)
    blind = torch.full((3, 3), 1 / 3, dtype=F64)
    expected = -model.log_prob(x).sum() + 6 * math.log(3)
    assert scnf.elbo(users)(x, blind).item() == pytest.approx(expected.item(), rel=1e-10)


# -- the latents as sites ---------------------------------------------------------------------
@pytest.mark.parametrize("make", [toy_flow, image_flow])
class TestFlowSitesReparam:
    """For a flow that factors out an auxiliary part (images) and one that does not (the plane)."""

    def build(self, make):
        flow = make("flow", dtype=F64)
        model = scnf.SemiSupervisedModel(flow, "learnable")
        perturb(model.class_probs, 0.5)
        x = torch.randn((5,) + tuple(flow.event_shape), dtype=F64)
        return model, poutine.reparam(model, config={"x": scnf.FlowSitesReparam()}), x

    def test_observed(self, make):
        model, rewritten, x = self.build(make)
        nodes = poutine.trace(rewritten).get_trace(x, torch.zeros(5, dtype=torch.long)).nodes
        sites = {"x_final", "x_ladj"} | ({"x_aux"} if make is image_flow else set())
        assert sites <= set(nodes)
        assert ("x_aux" in nodes) == (make is image_flow)
        _, z_f, ladj = model.flow.encode(x)
        assert relative(nodes["x_final"]["value"], z_f) < 1e-12
        assert torch.equal(nodes["x"]["value"], x)
        assert relative(nodes["x_ladj"]["fn"].log_factor, ladj) < 1e-12

    @pytest.mark.parametrize("labels", [None, [0, -1, 2, -1, -1], [0, 1, 2, 0, 1]])
    def test_the_loss_is_the_same(self, make, labels):
        model, rewritten, x = self.build(make)
        y = None if labels is None else torch.tensor(labels)
        plain, loss = scnf.elbo(model)(x, y), scnf.elbo(rewritten)(x, y)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-11)
        assert gradient_error(gradients(model, loss), gradients(model, plain)) < 1e-10
        with counting(model.flow.transform, "inverse_and_ladj") as counter:
            scnf.elbo(rewritten)(x, y)
        assert counter.calls == 1

    def test_unobserved(self, make):
        model, rewritten, _ = self.build(make)
        trace = poutine.trace(rewritten).get_trace(n=5)
        trace.compute_log_prob()
        nodes = trace.nodes
        assert "x_ladj" not in nodes
        z_aux, z_f, _ = model.flow.encode(nodes["x"]["value"])
        assert relative(nodes["x_final"]["value"], z_f) < 1e-9
        if make is image_flow:
            assert relative(nodes["x_aux"]["value"], z_aux) < 1e-9
        prior = model.flow.prior.condition(nodes["y"]["value"])
        assert relative(nodes["x_final"]["log_prob"], prior.log_prob(z_f)) < 1e-9
        assert nodes["x"]["log_prob"].abs().sum() == 0

    @pytest.mark.parametrize("wide", [False, True])
    def test_rows_outside_of_a_plate_have_noise_of_their_own(self, make, wide):
        model, _, _ = self.build(make)
        given = model.flow.condition(torch.tensor(0) if wide else torch.zeros(40, dtype=torch.long))
        given = given.expand([40]) if wide else given
        rewritten = poutine.reparam(lambda: pyro.sample("x", given), config={"x": scnf.FlowSitesReparam()})
        x = rewritten()
        assert x.shape == (40, *model.flow.event_shape)
        z_aux, z_f, _ = model.flow.encode(x)
        assert (z_f.flatten(1).std(0) > 0.1).all()
        assert (z_aux.flatten(1).std(0) > 0.1).all()

    def test_rows_in_a_sequential_plate_have_noise_of_their_own(self, make):
        model, _, _ = self.build(make)

        def program():
            for i in pyro.plate("views", 1):
                return pyro.sample(f"x{i}", model.flow.condition(torch.zeros(40, dtype=torch.long)))

        z_aux, z_f, _ = model.flow.encode(poutine.reparam(program, config={"x0": scnf.FlowSitesReparam()})())
        assert (z_f.flatten(1).std(0) > 0.1).all()
        assert (z_aux.flatten(1).std(0) > 0.1).all()

    @pytest.mark.parametrize("rows", [(40, 2), (2, 40)])
    def test_rows_beside_a_plate_have_noise_of_their_own(self, make, rows):
        """The plate has two members, along the other dimension."""
        model, _, _ = self.build(make)

        def program():
            with pyro.plate("views", 2, dim=-1 if rows[1] == 2 else -2):
                return pyro.sample("x", model.flow.condition(torch.zeros(rows, dtype=torch.long)))

        z_aux, z_f, _ = model.flow.encode(poutine.reparam(program, config={"x": scnf.FlowSitesReparam()})())
        for z in (z_aux, z_f):
            assert (z.amax(rows.index(40)) > z.amin(rows.index(40))).all()

    def test_infer_discrete(self, make):
        model, rewritten, x = self.build(make)
        found = poutine.trace(infer_discrete(rewritten, first_available_dim=-2, temperature=0)).get_trace(x)
        assert torch.equal(found.nodes["y"]["value"], model.posterior(x).probs.argmax(-1))

    def test_enumerate_labels(self, make):
        model, rewritten, x = self.build(make)
        assert relative(scnf.enumerate_labels(rewritten, (x,)), scnf.enumerate_labels(model, (x,))) < 1e-10

    def test_predictive(self, make):
        model, rewritten, _ = self.build(make)
        draws = Predictive(rewritten, num_samples=3)(n=4)
        assert draws["x_final"].shape == (3, 4) + tuple(model.flow.latent_shape)
        # x is a function of its latents.
        latents = [draws["x_aux"]] if make is image_flow else []
        x = model.flow.decode(draws["x_final"], *latents)
        assert relative(draws["x"], x) < 1e-9


def test_the_deep_latent_in_a_bigger_model():
    """A regression on z_f, which is a site of the rewritten model."""
    flow = toy_flow("flow", dtype=F64)

    def model(x, w):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)), infer={"enumerate": "parallel"})
            x = pyro.sample("x", flow.condition(y), obs=x)
            z_f = flow.encode(x)[1]
            pyro.sample("w", dist.Normal(z_f.sum(-1), 1.0), obs=w)

    x, w = torch.randn(4, 2, dtype=F64), torch.randn(4, dtype=F64)
    expected = -(flow.log_prob(x) + dist.Normal(flow.encode(x)[1].sum(-1), 1.0).log_prob(w)).sum()
    rewritten = poutine.reparam(model, config={"x": scnf.FlowSitesReparam()})
    with counting(flow.transform, "inverse_and_ladj") as counter:
        for form in (model, rewritten):
            assert scnf.elbo(form)(x, w).item() == pytest.approx(expected.item(), rel=1e-11)
    assert counter.calls == 2  # one for each form: the model and the loss share an encoding


# -- members of bigger modules -------------------------------------------------------------------
class Bigger(PyroModule):
    """A flow, a label, and a Bayesian regression of an outcome on the label."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = toy_flow("flow")
        self.effect = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    def forward(self, x, outcome=None):
        effect = self.effect
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", self.flow.condition(y), obs=x)
            return pyro.sample(
                "outcome", dist.Normal(pyro.ops.indexing.Vindex(effect)[..., y], 0.1), obs=outcome
            )


def test_member_of_a_pyro_module():
    model = Bigger()
    x, outcome = torch.randn(20, 2), torch.randn(20)
    guide = AutoNormal(poutine.block(model, hide=["y"]))
    svi = SVI(model, guide, Adam({"lr": 1e-2}), TraceEnum_ELBO(**OPTIONS))
    losses = torch.tensor([svi.step(x, outcome) for _ in range(60)])
    assert losses[-10:].mean() < losses[:10].mean()
    names = set(pyro.get_param_store())
    assert any(name.startswith("flow.") or name.startswith("flow$$$") for name in names)
    before = {id(p) for p in model.flow.parameters()}
    assert {id(pyro.param(name)) for name in names if name.startswith("flow")} == before
    draws = Predictive(guide, num_samples=5)(x, outcome)
    effect = draws["effect"].reshape(5, 3)
    joint = scnf.enumerate_labels(model, (x, outcome), {"effect": effect})
    hand = (
        model.flow.class_log_prob(x)[None, :, :]
        - math.log(3)
        + dist.Normal(effect[:, None, :], 0.1).log_prob(outcome[:, None])
    )
    assert relative(joint, hand) < 1e-4


def test_ready_model_as_a_member():
    class Wrapped(PyroModule):
        def __init__(self):
            super().__init__()
            self.inner = scnf.SemiSupervisedModel(toy_flow("flow"), "learnable")
            self.offset = PyroParam(torch.zeros(2))

        def forward(self, x):
            return self.inner(x - self.offset)

    model, x = Wrapped(), torch.randn(10, 2) + 3
    loss = scnf.elbo(model)(x)
    loss.backward()
    assert model.offset_unconstrained.grad.abs().sum() > 0
    assert loss.item() == pytest.approx(-model.inner.log_prob(x).sum().item(), rel=1e-5)


# -- flows made of PyroModules -----------------------------------------------------------------
class Around(PyroModule):
    """A program of a user's own around a flow."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow


class WithLabelSite(Around):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", self.flow.condition(y), obs=x)


class WithRandomMeans(Around):
    def __init__(self, flow):
        super().__init__(flow)
        del flow.prior.loc
        flow.prior.loc = PyroSample(dist.Normal(torch.zeros(3, 2), 3.0).to_event(2))

    def forward(self, x):
        self.flow.prior.loc  # noqa: B018  # read before the plate
        return WithLabelSite.forward(self, x)


class WithoutLabelSite(Around):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", scnf.LabelMarginal(self.flow), obs=x)


def learnable(flow):
    return scnf.SemiSupervisedModel(flow, "learnable")


def with_empty_guide(model):
    return scnf.exact_guide


def with_autoguide(model):
    return AutoNormal(poutine.block(model, hide=["y"]))


AROUND = {
    "one plate": (learnable, with_empty_guide),
    "one plate, EMGuide": (learnable, scnf.EMGuide),
    "label site": (WithLabelSite, with_empty_guide),
    "random means": (WithRandomMeans, with_autoguide),
    "no label site": (WithoutLabelSite, with_empty_guide),
}


def moved_by_svi(model, guide, *args, steps=2):
    """The parameters of a model that steps of SVI change, and those that they leave."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    svi = SVI(model, guide, Adam({"lr": 0.05}), TraceEnum_ELBO(**OPTIONS))
    for _ in range(steps):
        svi.step(*args)
    now = dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(now[name], before[name])}
    return moved, set(before) - moved


@pytest.mark.parametrize("around", AROUND)
def test_svi_trains_every_parameter_of_a_flow_of_pyro_modules(around):
    """Scoring reads parameters when the call is over, where a ``PyroModule`` registers none."""
    build, guide = AROUND[around]
    flow, x = image_flow(), torch.randn(8, 1, 4, 4)
    if build is WithRandomMeans:
        flow = toy_flow()
        x = torch.randn(8, 2)
    to_pyro_module_(flow)
    model = build(flow)
    moved, left = moved_by_svi(model, guide(model), x)
    assert not left
    assert any("transform" in name for name in moved)


def test_svi_has_the_losses_of_the_same_model_without_pyro_modules():
    x, losses = torch.randn(8, 2, dtype=F64), []
    flow = toy_flow(dtype=F64)
    for converted in (False, True):
        pyro.clear_param_store()
        twin = copy.deepcopy(flow)
        if converted:
            to_pyro_module_(twin)
        svi = SVI(learnable(twin), scnf.exact_guide, Adam({"lr": 0.05}), TraceEnum_ELBO(**OPTIONS))
        losses.append([svi.step(x) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


class Scale(scnf.transforms.FlowTransform):
    """A layer of a user's own."""

    def __init__(self, size):
        super().__init__(size)
        self.scale = torch.nn.Parameter(torch.ones(size))
        self.register_parameter("none", None)

    def _forward_ladj(self, z):
        return z * self.scale, self.scale.log().sum().expand(z.shape[:-1])

    def _inverse_ladj(self, x):
        return x / self.scale, -self.scale.log().sum().expand(x.shape[:-1])


def scaled_flow():
    flow = scnf.SemiConditionalFlow(Scale(2), "gmm", 3)
    to_pyro_module_(flow)
    flow.transform.scale = PyroParam(torch.ones(2), constraint=constraints.positive)
    return flow


BUILDS = pytest.mark.parametrize("build", [scnf.SemiSupervisedModel, WithLabelSite, WithoutLabelSite])


@BUILDS
def test_svi_trains_a_constrained_parameter_of_a_layer(build):
    model = build(scaled_flow())
    _, left = moved_by_svi(model, scnf.exact_guide, torch.randn(8, 2))
    assert not left
    assert (model.flow.transform.scale > 0).all()
    assert dict(pyro.get_param_store())["flow.transform.scale"].equal(model.flow.transform.scale)


@BUILDS
@pytest.mark.parametrize("constrained", [False, True])
def test_svi_leaves_a_frozen_parameter_of_a_layer(build, constrained):
    """Pyro would make trainable what it registers."""
    model = build(scaled_flow())
    if not constrained:
        model.flow.transform.scale = torch.nn.Parameter(torch.ones(2))
    model.flow.transform.requires_grad_(False)
    _, left = moved_by_svi(model, scnf.exact_guide, torch.randn(8, 2))
    assert left == {"flow.transform.scale" + "_unconstrained" * constrained}
    assert not any(p.requires_grad for p in model.flow.transform.parameters())


# -- MCMC --------------------------------------------------------------------------------------
def prevalence_model(flow):
    def model(x):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    return model


def test_nuts_over_class_prevalence_with_a_frozen_flow():
    flow = toy_flow("gmm:separation=8.0", dtype=F64).requires_grad_(False).eval()
    x = flow.sample(torch.tensor([0] * 60 + [1] * 30 + [2] * 10))
    model = prevalence_model(flow)
    kernel = NUTS(model, max_plate_nesting=1, max_tree_depth=4)
    mcmc = MCMC(kernel, num_samples=60, warmup_steps=40, disable_progbar=True)
    with scnf.share_encoding(), counting(flow.transform, "inverse_and_ladj") as counter:
        mcmc.run(x)
    assert counter.calls <= 2
    shares = mcmc.get_samples()["shares"]
    assert (shares.mean(0) - torch.tensor([0.6, 0.3, 0.1], dtype=F64)).abs().max() < 0.12
    with counting(flow.transform, "inverse_and_ladj") as counter:
        joint = scnf.enumerate_labels(model, (x,), mcmc.get_samples())
    assert counter.calls == 1
    assert joint.shape == (60, 100, 3)
    hand = flow.class_log_prob(x) + shares[:, None, :].log()
    assert relative(joint, hand) < 1e-9


def test_autoguide_over_class_prevalence():
    flow = toy_flow("gmm:separation=8.0", dtype=F64).requires_grad_(False).eval()
    x = flow.sample(torch.tensor([0] * 60 + [1] * 30 + [2] * 10))
    model = prevalence_model(flow)
    guide = AutoNormal(poutine.block(model, hide=["y"]))
    svi = SVI(model, guide, Adam({"lr": 0.05}), TraceEnum_ELBO(**OPTIONS))
    with scnf.share_encoding(), counting(flow.transform, "inverse_and_ladj") as counter:
        losses = [svi.step(x) for _ in range(60)]
    assert counter.calls <= 2
    assert losses[-1] < losses[0]
    median = guide.median(x)["shares"]
    assert (median - torch.tensor([0.6, 0.3, 0.1], dtype=F64)).abs().max() < 0.12


def test_nuts_over_a_deep_latent():
    """NUTS samples the site ``x_final`` of the rewritten model, given an outcome that depends on x."""
    options = {"couplings": 2, "net": mlp, "width": None, "blocks": None}
    flow = toy_flow("gmm", num_classes=1, dtype=F64, make=scnf.flows.realnvp, **options)
    flow.requires_grad_(False).eval()
    target = torch.tensor([0.5, -0.5], dtype=F64)

    def model():
        x = pyro.sample("x", flow.condition(torch.tensor(0)))
        pyro.sample("seen", dist.Normal(x, 0.1).to_event(1), obs=target)

    rewritten = poutine.reparam(model, config={"x": scnf.FlowSitesReparam()})
    mcmc = MCMC(NUTS(rewritten, max_tree_depth=5), num_samples=80, warmup_steps=60, disable_progbar=True)
    mcmc.run()
    x = flow.decode(mcmc.get_samples()["x_final"])
    assert (x.mean(0) - target).abs().max() < 0.15


def test_plain_elbo_takes_labelled_data(model, x):
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = Trace_ELBO().loss(model, scnf.exact_guide, x, y)
    assert loss == pytest.approx(scnf.elbo(model)(x, y).item(), rel=1e-12)
