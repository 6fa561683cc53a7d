"""Label probabilities at a temperature, what calibrates them, and distances from the decision boundary."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers import image_flow, toy_flow
from hypothesis import given
from hypothesis import strategies as st
from pyro.nn.module import PyroSample, to_pyro_module_
from torch import Tensor
from torch.distributions import Categorical, Normal

import pyro_scnf as scnf
from pyro_scnf import analysis, plots
from pyro_scnf._labels import stratified_folds
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.transforms import dequantize

NAN, INF = math.nan, math.inf
UNEVEN = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)


def double_model(prior: object = "gmm", class_probs: Tensor | str = "uniform") -> scnf.SemiSupervisedModel:
    return scnf.SemiSupervisedModel(toy_flow(prior, dtype=torch.float64), class_probs)


def image_model() -> tuple[scnf.SemiSupervisedModel, Tensor]:
    """A model of images whose classes all occur, and integer images."""
    model, x = scnf.SemiSupervisedModel(image_flow("gmm")), torch.randint(9, (300, 1, 4, 4))
    model.initialize(dequantize(x, 9), torch.arange(300) % 3)
    return model, x


def points(rows: int = 200) -> Tensor:
    return torch.randn(rows, 2, dtype=torch.float64)


# -- label probabilities at a temperature ----------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_the_temperature_divides_the_likelihood_alone(temperature):
    model, x = double_model(class_probs=UNEVEN), points()
    found = analysis.label_log_probs(model, x, temperature=temperature, batch_size=7)
    expected = (model.flow.class_log_prob(x) / temperature + UNEVEN.log()).log_softmax(-1)
    assert torch.allclose(found, expected, atol=1e-10)
    if temperature == 1:
        assert torch.allclose(found, model.posterior(x).logits, atol=1e-10)
    assert found.dtype == torch.float64
    assert not found.requires_grad


@pytest.mark.parametrize("prior", ["flowgmm", "gmm:covariance=shared"])
@pytest.mark.parametrize("temperature", [0.25, 9.0])
def test_the_temperature_multiplies_the_variances_of_a_mixture(prior, temperature):
    """With one covariance for all classes, dividing log-densities by T and scaling variances are the same."""
    model, x = double_model(prior, UNEVEN), points()
    found = analysis.label_log_probs(model, x, temperature=temperature)
    z, labels = model.flow.encode(x)[1], torch.arange(3)
    given = model.flow.prior.condition(labels)
    tempered = Normal(given.mean, temperature**0.5 * given.stddev).log_prob(z[:, None]).sum(-1)
    assert torch.allclose(found, (tempered + UNEVEN.log()).log_softmax(-1), atol=1e-10)
    sampled_from = model.flow.prior.condition(labels, temperature=temperature**0.5)
    joint = sampled_from.log_prob(z[:, None]) + UNEVEN.log()
    assert torch.allclose(found, joint.log_softmax(-1), atol=1e-10)


@pytest.mark.parametrize("average", ["density", "posterior"])
def test_the_temperature_divides_the_average_of_the_draws(average):
    model = scnf.SemiSupervisedModel(image_flow("gmm"), UNEVEN.float())
    x, log_p = torch.randint(9, (20, 1, 4, 4)), UNEVEN.log()
    options = {"bins": 9, "draws": 3, "average": average}
    torch.manual_seed(0)
    found = analysis.label_log_probs(model, x, temperature=2.5, **options)
    torch.manual_seed(0)
    joint = torch.stack([model.flow.class_log_prob(dequantize(x, 9)) for _ in range(3)]).double() + log_p
    mean = joint.logsumexp(0) if average == "density" else joint.softmax(-1).mean(0).log()
    assert torch.allclose(found, ((mean - log_p) / 2.5 + log_p).log_softmax(-1), atol=1e-4)


@pytest.mark.filterwarnings("ignore:fit_temperature. the label NLL falls")  # labels drawn at random
@pytest.mark.parametrize("average", ["density", "posterior"])
def test_noise_of_rows_is_drawn_anew_for_each_average(average):
    """Each draw goes through ``prepare``, and so does every function that takes rows."""
    model, x, drawn = double_model(class_probs=UNEVEN), points(20), []

    def prepare(rows: Tensor) -> Tensor:
        drawn.append(rows + torch.randn_like(rows))
        return drawn[-1]

    options = {"prepare": prepare, "draws": 3, "average": average}
    found = analysis.label_log_probs(model, x, **options)
    joint = torch.stack([model.flow.class_log_prob(rows) + UNEVEN.log() for rows in drawn]).detach()
    assert len(drawn) == 3
    by_density, by_posterior = joint.logsumexp(0).log_softmax(-1), joint.softmax(-1).mean(0).log()
    expected = by_density if average == "density" else by_posterior
    assert torch.allclose(found, expected, atol=1e-9)
    y = labels_at(model, x, 3.0)
    for use in (analysis.evaluate, analysis.fit_temperature):
        drawn.clear()
        use(model, x, y, **options)
        assert len(drawn) == 3
    with pytest.raises(ValueError, match=r"prepare=3: expected a function"):
        analysis.label_log_probs(model, x, prepare=3)


@pytest.mark.parametrize("options", [{}, {"draws": 3}, {"draws": 3, "average": "posterior"}])
def test_no_temperature_changes_a_label_if_classes_are_alike(options):
    model, x = image_model()
    labels = []
    for temperature in (0.05, 1.0, 20.0):
        generator = torch.Generator().manual_seed(3)
        found = analysis.label_log_probs(
            model, x, temperature=temperature, bins=9, generator=generator, **options
        )
        labels.append(found.argmax(-1))
    assert torch.equal(labels[0], labels[1])
    assert torch.equal(labels[1], labels[2])
    assert len(labels[0].unique()) > 1


def test_at_a_high_temperature_the_class_probabilities_decide():
    model, x = double_model(class_probs=UNEVEN), points()
    assert len(analysis.label_log_probs(model, x).argmax(-1).unique()) > 1
    hot = analysis.label_log_probs(model, x, temperature=1e9).exp()
    assert torch.allclose(hot, UNEVEN.expand(200, 3), atol=1e-6)


def test_a_class_of_probability_zero_stays_impossible():
    model, x = double_model(class_probs=torch.tensor([0.5, 0.0, 0.5])), points()
    found = analysis.label_log_probs(model, x, temperature=3.0)
    table = model.flow.class_log_prob(x)[:, [0, 2]] / 3.0
    assert (found[:, 1] == -INF).all()
    assert torch.allclose(found[:, [0, 2]], table.log_softmax(-1), atol=1e-10)


def test_no_rows_have_no_label_probabilities():
    assert analysis.label_log_probs(double_model(), points(0)).shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "^temperature=0: expected"),
        ({"temperature": -1.0}, "^temperature=-1.0: expected"),
        ({"temperature": NAN}, "^temperature=nan: expected"),
        ({"temperature": "hot"}, "^temperature='hot': expected"),
        ({"batch_size": 0}, "^batch_size=0: expected at least 1"),
        ({"draws": 2}, "^draws=2: without bins or prepare nothing is drawn"),
        ({"average": "mean"}, "^average='mean': expected 'density' or 'posterior'"),
        ({"x": torch.zeros(2)}, r"^label_log_probs: x has shape \(2,\), expected \(N, 2\)"),
        ({"x": torch.full((3, 2), NAN)}, "^label_log_probs: x holds 6 NaN"),
        ({"x": [[0.0, 1.0]]}, "^label_log_probs: x is .*list"),
    ],
)
def test_label_probabilities_that_cannot_be(options, message):
    model = scnf.SemiSupervisedModel(toy_flow("gmm"))
    with pytest.raises(ValueError, match=message):
        analysis.label_log_probs(model, **{"x": torch.zeros(3, 2), **options})


# -- figures ---------------------------------------------------------------------------------------
def test_figures_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.68, 0.3, 0.02], [0.1, 0.1, 0.8]], dtype=torch.float64)
    found = analysis.calibration(probs.log(), torch.tensor([0, 1, 2]))
    assert found["accuracy_pct"] == pytest.approx(200 / 3)
    assert found["label_nll"] == pytest.approx(-math.log(0.7 * 0.3 * 0.8) / 3)
    squares = 0.3**2 + 0.2**2 + 0.1**2, 0.68**2 + 0.7**2 + 0.02**2, 0.1**2 + 0.1**2 + 0.2**2
    assert found["brier"] == pytest.approx(sum(squares) / 3)
    # 0.7 and 0.68 are in the bin from 10/15 to 11/15, and 0.8 is the lower end of the next but one.
    assert found["ece"] == pytest.approx((2 * abs(0.69 - 0.5) + 0.2) / 3, abs=1e-6)
    assert found.keys() == {"accuracy_pct", "label_nll", "ece", "brier"}


def test_a_label_that_is_all_but_impossible_has_a_finite_likelihood():
    log_probs = torch.tensor([[0.0, -2000.0], [0.0, -2000.0]], dtype=torch.float64)
    found = analysis.calibration(log_probs, torch.tensor([1, 0]))
    assert found["label_nll"] == 1000
    assert found["brier"] == 1


def test_confidence_of_one_belongs_to_the_last_bin():
    probs = torch.tensor([[1.0, 0.0], [0.95, 0.05]], dtype=torch.float64)
    y = torch.tensor([1, 0])
    assert analysis.calibration(probs.log(), y)["ece"] == pytest.approx(abs(0.5 - 0.975), abs=1e-6)
    found = analysis.reliability(probs.log(), y)
    assert found.count.tolist() == [0] * 14 + [2]
    assert found.accuracy[-1] == 0.5
    assert found.confidence[-1] == pytest.approx(0.975)


def test_a_bin_contains_its_lower_end():
    found = analysis.reliability(torch.full((3, 2), 0.5).log(), torch.tensor([0, 1, 0]), bins=4)
    assert found.count.tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize("num_classes", [1, 2, 5, 10])
def test_the_calibration_error_is_the_mean_distance_in_the_bins(num_classes):
    scores = 2 * torch.randn(300, num_classes, dtype=torch.float64)
    scores[:20] = 0  # their confidence, 1 / K, may be the end of a bin
    log_probs, y = scores.log_softmax(-1), torch.randint(num_classes, (300,))
    found = analysis.reliability(log_probs, y)
    assert found.count.sum() == 300
    full = found.count > 0
    assert found.confidence.isnan().equal(~full)
    assert found.accuracy.isnan().equal(~full)
    distance = (found.accuracy - found.confidence)[full].abs() * found.count[full] / 300
    assert analysis.calibration(log_probs, y)["ece"] == pytest.approx(distance.sum().item(), abs=1e-6)
    assert len(analysis.reliability(log_probs, y, bins=4).count) == 4


@pytest.mark.parametrize("use", [analysis.calibration, analysis.reliability])
@pytest.mark.parametrize(
    ("log_probs", "y", "message"),
    [
        (torch.full((3, 2), 0.5), [0, 1, 0], r"log_probs is not .* row 0 add up to 3\.297, .*probs.log\(\)"),
        (torch.full((3, 2), NAN), [0, 1, 0], "log_probs is not normalised"),
        (torch.zeros(3, 1).long(), [0, 0, 0], r"log_probs has shape \(3, 1\) and dtype torch.int64"),
        (torch.zeros(3), [0, 0, 0], r"log_probs has shape \(3,\)"),
        (torch.zeros(3, 0), [0, 0, 0], r"log_probs has shape \(3, 0\)"),
        (np.zeros((3, 1)), [0, 0, 0], r"log_probs is .*numpy\.ndarray"),
        (torch.zeros(3, 1), [0, 0], r"y has shape \(2,\), expected \(3,\)"),
        (torch.zeros(3, 1), [0, 0, 1], "y holds labels 0..1"),
        (torch.zeros(3, 1), [0, 0, -1], "y: expected at least one row, and the label of every row"),
        (torch.zeros(0, 1), [], "y: expected at least one row"),
    ],
)
def test_figures_that_cannot_be(use, log_probs, y, message):
    with pytest.raises(ValueError, match=f"^{use.__name__}: {message}"):
        use(log_probs, torch.tensor(y, dtype=torch.long))


def test_evaluation_at_a_temperature():
    model, x, y = double_model(class_probs=UNEVEN), points(), torch.randint(3, (200,))
    plain, hot = (analysis.evaluate(model, x, y, temperature=t) for t in (1.0, 4.0))
    figures = analysis.calibration(analysis.label_log_probs(model, x, temperature=4.0), y)
    assert hot["test_nll"] == plain["test_nll"]
    assert hot["test_label_nll"] == figures["label_nll"] < plain["test_label_nll"]
    assert hot["test_brier"] == figures["brier"]
    assert hot["test_ece"] == figures["ece"]
    assert hot["test_error_pct"] == pytest.approx(100 - figures["accuracy_pct"], abs=1e-4)
    with pytest.raises(ValueError, match=r"^temperature=0: expected"):
        analysis.evaluate(model, x, y, temperature=0)


# -- one temperature -------------------------------------------------------------------------------
def labels_at(model: scnf.SemiSupervisedModel, x: Tensor, temperature: float, **options: Any) -> Tensor:
    """Labels drawn from the model's label probabilities at a temperature."""
    log_probs = analysis.label_log_probs(model, x, temperature=temperature, **options)
    return Categorical(logits=log_probs).sample()


@pytest.mark.parametrize("truth", [0.5, 4.0])
def test_the_temperature_of_the_labels_is_found(truth):
    model, x = double_model(class_probs=UNEVEN), 2 * points(8000)
    y = labels_at(model, x, truth)
    found = analysis.fit_temperature(model, x, y)
    assert found.temperature == pytest.approx(truth, rel=0.15)
    assert found.after["label_nll"] < found.before["label_nll"]
    assert found.after["ece"] < found.before["ece"]

    def nll(temperature: float) -> float:
        log_probs = analysis.label_log_probs(model, x, temperature=temperature)
        return analysis.calibration(log_probs, y)["label_nll"]

    assert found.before["label_nll"] == nll(1.0)
    assert found.after["label_nll"] == nll(found.temperature)
    assert all(found.after["label_nll"] < nll(found.temperature * factor) for factor in (0.99, 1.01))


def test_a_model_of_images_is_calibrated_on_integers():
    model, x = image_model()
    options = {"bins": 9, "draws": 2, "average": "posterior", "batch_size": 70}
    y = labels_at(model, x, 0.5, **options)
    state = torch.get_rng_state()
    found = [
        analysis.fit_temperature(model, x, y, generator=torch.Generator().manual_seed(seed), **options)
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)
    again = analysis.evaluate(
        model,
        x,
        y,
        temperature=found[0].temperature,
        generator=torch.Generator().manual_seed(1),
        **options,
    )
    assert again["test_label_nll"] == found[0].after["label_nll"]
    assert found[0].before["accuracy_pct"] == found[0].after["accuracy_pct"]


def test_the_model_stays_as_it_is():
    model = scnf.SemiSupervisedModel(toy_flow("gmm"), "learnable")
    model.flow.prior.requires_grad_(False)
    model.flow.prior.eval()
    x = torch.randn(50, 2)
    y = labels_at(model, x, 2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = [
        *(parameter.requires_grad for parameter in model.parameters()),
        *(module.training for module in model.modules()),
    ]
    rng = torch.get_rng_state()
    analysis.fit_temperature(model, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert settings == [
        *(parameter.requires_grad for parameter in model.parameters()),
        *(module.training for module in model.modules()),
    ]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


def test_results_are_those_of_evaluation_mode():
    """The networks have dropout, which would change every result in training mode."""
    net = {"name": "mlp", "hidden": (16, 16), "dropout": 0.5}
    transform = scnf.flows.realnvp((2,), couplings=2, net=net)
    model = scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(transform, "flowgmm", 3))
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.normal_(std=0.5)
    own_prior = scnf.SemiConditionalFlow(transform, "flow", 3)
    x, y = torch.randn(60, 2), torch.arange(60) % 3
    results: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: analysis.evaluate(model, x, y),
        "label_log_probs": lambda: analysis.label_log_probs(model, x).tolist(),
        "fit_temperature": lambda: analysis.fit_temperature(model, x, y),
        "boundary_distance": lambda: analysis.boundary_distance(model, x).tolist(),
        "evaluate_plane": lambda: analysis.evaluate_plane(model, x, points=3).density.tolist(),
        "latent_plane": lambda: analysis.latent_plane(model, x, draws=1, points=3).z.tolist(),
        "swap_labels": lambda: analysis.swap_labels(own_prior, x, y).tolist(),
        "reconstruct": lambda: analysis.reconstruct(own_prior, x, (1,)).tolist(),
    }
    for name, use in results.items():
        model.train()
        found = use()
        assert model.training, name
        assert all(module.training for module in transform.modules()), name
        model.eval()
        assert found == use(), name
        assert not any(module.training for module in model.modules()), name


def test_rows_that_the_model_separates_are_said():
    model, x = double_model(), points(50)
    y = analysis.label_log_probs(model, x).argmax(-1)
    with pytest.warns(UserWarning, match=r"down to the lowest temperature, 0\.01, .* in all rows"):
        found = analysis.fit_temperature(model, x, y)
    assert found.temperature == 0.01
    assert found.after["accuracy_pct"] == 100


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_likelihoods_that_mislead_are_said(strength):
    model, x = double_model("flowgmm"), points(50)
    model.flow.prior.loc.mul_(strength)
    y = analysis.label_log_probs(model, x).argmin(-1)
    with pytest.warns(UserWarning, match=r"up to the highest temperature, 10000, .* no better than p\(y\)"):
        found = analysis.fit_temperature(model, x, y)
    assert found.temperature == 1e4
    assert found.after["label_nll"] == pytest.approx(math.log(3), abs=1e-2)


def test_labels_that_are_all_alike_are_said():
    one = scnf.SemiSupervisedModel(toy_flow("gmm", num_classes=1))
    same = scnf.SemiSupervisedModel(toy_flow("flowgmm"))
    same.flow.prior.loc.zero_()
    certain = scnf.SemiSupervisedModel(toy_flow("gmm"), torch.tensor([1.0, 0.0, 0.0]))
    for model in (one, same, certain):
        with pytest.warns(UserWarning, match="the same likelihood in every row, .* stays 1"):
            found = analysis.fit_temperature(model, torch.randn(9, 2), torch.zeros(9, dtype=torch.long))
        assert found.temperature == 1
        assert found.before == found.after


def test_rows_of_one_class_alone_are_enough_to_fit():
    """The model takes one row in twenty for another class, so the label NLL has its minimum inside."""
    model, x = double_model(), points(400)
    labels = analysis.label_log_probs(model, x).argmax(-1)
    right, wrong = x[labels == labels.mode().values], x[labels != labels.mode().values]
    rows = torch.cat([right, wrong[: len(right) // 20]])
    found = analysis.fit_temperature(model, rows, labels.mode().values.expand(len(rows)))
    assert 0.01 < found.temperature < 1e4
    assert 90 < found.after["accuracy_pct"] < 100


def test_a_class_of_probability_zero_needs_no_labels():
    model, x = double_model(class_probs=torch.tensor([0.5, 0.0, 0.5])), points(500)
    y = labels_at(model, x, 2.0)
    assert 1 < analysis.fit_temperature(model, x, y).temperature < 4
    y[3] = 1
    with pytest.raises(ValueError, match=r"^fit_temperature: y holds labels of class 1, whose probability"):
        analysis.fit_temperature(model, x, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": torch.tensor([0, 1, -1])}, "y: expected at least one row, and the label of every row"),
        ({"y": torch.tensor([0, 1])}, r"y has shape \(2,\), expected \(3,\)"),
        ({"x": torch.zeros(0, 2), "y": torch.zeros(0).long()}, "y: expected at least one row"),
        ({"x": torch.full((3, 2), NAN)}, "x holds 6 NaN"),
        ({"x": torch.zeros(3, 3)}, r"x has shape \(3, 3\)"),
    ],
)
def test_what_no_temperature_can_be_fitted_on(options, message):
    model = scnf.SemiSupervisedModel(toy_flow("gmm"))
    with pytest.raises(ValueError, match=f"^fit_temperature: {message}"):
        analysis.fit_temperature(model, **{"x": torch.zeros(3, 2), "y": torch.tensor([0, 1, 2]), **options})


def test_a_broken_model_is_said():
    model = scnf.SemiSupervisedModel(toy_flow("flowgmm"))
    model.flow.prior.log_scale.fill_(NAN)
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    with (
        pyro.validation_enabled(False),  # otherwise PyTorch refuses the scales
        pytest.raises(ValueError, match=r"the model gives NaN or infinite likelihoods to 4 rows of x"),
    ):
        analysis.fit_temperature(model, x, y)


def test_rows_too_far_to_be_scored_are_said():
    model, x, y = scnf.SemiSupervisedModel(toy_flow("flowgmm")), torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    x[1] = 1e30  # its distance from the means overflows
    for use in (lambda: analysis.evaluate(model, x, y), lambda: analysis.label_log_probs(model, x)):
        with pytest.raises(ValueError, match=r"the model gives NaN or infinite likelihoods to 1 rows of x"):
            use()


def test_a_missing_optimiser_is_named_with_its_extra(monkeypatch):
    model, x = double_model(), points(100)
    y = labels_at(model, x, 2.0)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-scnf\[analysis\]'"):
        analysis.fit_temperature(model, x, y)


# -- temperature from the rows of training --------------------------------------------------------
BY_EM = "gmm:covariance=full,pooled=0.3,fit_means=em,fit_scales=em"


def partly_labelled(prior: str = BY_EM, rows: int = 90) -> tuple[scnf.SemiSupervisedModel, Tensor, Tensor]:
    """A model of three overlapping clouds, and rows of which one in three has a label."""
    model = scnf.SemiSupervisedModel(toy_flow(prior, dtype=torch.float64), UNEVEN, labelled_weight=4.0)
    truth = torch.arange(rows) % 3
    x = points(rows) + 1.5 * torch.tensor([[0.0, 1.0], [1.0, -0.5], [-1.0, -0.5]], dtype=torch.float64)[truth]
    y = torch.where(torch.rand(rows) < 0.33, truth, -1)
    model.initialize(x, y)
    return model, x, y


def loss_with_prior(log_likelihood: Tensor, y: Tensor, temperature: float) -> float:
    """The negative log-posterior of T, written out."""
    log_probs = (log_likelihood / temperature + UNEVEN.log()).log_softmax(-1)
    prior = math.log(temperature / 2.75) ** 2 / (2 * 0.3**2)
    return prior - log_probs.gather(1, y[:, None]).sum().item()


@pytest.mark.parametrize(("folds", "iterations"), [(2, 1), (5, 3)])
def test_cross_validation_hides_one_part_of_the_labels_at_a_time(folds, iterations):
    """Beside copies of the model that EM trains without these labels."""
    model, x, y = partly_labelled()
    known = y >= 0
    counts = [0] * folds
    table = torch.zeros(len(x), 3, dtype=torch.float64)
    dealt = 0
    for k in range(3):
        for place, n in enumerate((y == k).nonzero()[:, 0].tolist()):
            counts[(dealt + place) % folds] += 1
            hidden = y.clone()
            part = stratified_folds(y, folds)
            hidden[part == part[n]] = -1
            assert part[n] == (dealt + place) % folds
            other, kept = copy.deepcopy(model), part != part[n]
            scnf.fit_by_em(other, x[kept], y[kept], iterations=1, tolerance=0.0)
            scnf.fit_by_em(other, x, hidden, iterations=iterations, tolerance=0.0)
            table[n] = other.flow.class_log_prob(x[n : n + 1])[0].detach()
        dealt += int((y == k).sum())
    found = analysis.temperature_from_training(model, x, y, folds=folds, iterations=iterations, batch_size=7)
    best = found.temperature
    assert all(
        loss_with_prior(table[known], y[known], best) < loss_with_prior(table[known], y[known], best * factor)
        for factor in (0.99, 1.01)
    )
    log_probs = (table[known] / best + UNEVEN.log()).log_softmax(-1)
    expected = analysis.calibration(log_probs, y[known])
    assert found.after == pytest.approx(expected, abs=1e-6)
    assert max(counts) - min(counts) <= 1


def test_a_model_that_em_does_not_train_is_scored_on_its_labelled_rows():
    model, x, y = partly_labelled("gmm")
    known = y >= 0
    found = analysis.temperature_from_training(model, x, y)
    table = model.flow.class_log_prob(x[known]).detach()
    assert all(
        loss_with_prior(table, y[known], found.temperature)
        < loss_with_prior(table, y[known], found.temperature * factor)
        for factor in (0.99, 1.01)
    )


def test_many_labels_outweigh_the_prior_of_the_temperature():
    model, x = double_model(class_probs=UNEVEN), 2 * points(6000)
    y = labels_at(model, x, 8.0)
    likely = analysis.fit_temperature(model, x, y).temperature
    many, few = (analysis.temperature_from_training(model, x[:n], y[:n]).temperature for n in (6000, 4))
    assert many == pytest.approx(likely, rel=0.1)
    assert few == pytest.approx(2.75, rel=0.2)


@pytest.mark.parametrize("prior", ["gmm", BY_EM])
def test_rows_without_an_error_leave_the_temperature_near_its_prior(prior, recwarn):
    model, x, _ = partly_labelled(prior)
    y = analysis.label_log_probs(model, x).argmax(-1).masked_fill(torch.arange(len(x)) >= 12, -1)
    assert 0.5 < analysis.temperature_from_training(model, x, y).temperature < 4
    assert not recwarn


def test_cross_validation_leaves_the_model_as_it_is():
    model, x, y = partly_labelled()
    model.flow.prior.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    analysis.temperature_from_training(model, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_labels_at_random_are_not_foretold():
    """The model was fitted to them, with as many columns as rows of a class. Held-out rows tell nothing."""
    torch.manual_seed(0)
    x, y = torch.randn(100, 40, dtype=torch.float64), torch.arange(100) % 2
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((40,), steps=1, width=4), BY_EM.replace("0.3", "0"), 2)
    model = scnf.SemiSupervisedModel(flow.double())
    model.initialize(x, y)
    scnf.fit_by_em(model, x, y, iterations=5)
    assert analysis.evaluate(model, x, y)["test_error_pct"] == 0
    assert analysis.temperature_from_training(model, x, y).after["accuracy_pct"] < 70


@pytest.mark.filterwarnings("ignore:temperature_from_training. all labels have the same likelihood")
@pytest.mark.parametrize("prior", ["gmm", BY_EM])
def test_one_row_alone_has_a_temperature(prior):
    model, x, y = partly_labelled(prior)
    known = (y >= 0).nonzero()[:1, 0]
    assert 0.5 < analysis.temperature_from_training(model, x[known], y[known]).temperature < 10


def test_cross_validation_needs_plain_tables():
    model, x, y = partly_labelled()
    to_pyro_module_(model)
    model.flow.prior.loc = PyroSample(pyro.distributions.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    with pytest.raises(ValueError, match=r"^model: EM trains a part of it, and the prior or the class"):
        analysis.temperature_from_training(model, x, y)


def test_the_best_of_two_minima_is_found():
    """Labels that a weak model always gets right ask for a low temperature, far from the prior."""
    model = scnf.SemiSupervisedModel(toy_flow("flowgmm", num_classes=2, dtype=torch.float64))
    model.flow.prior.loc.mul_(0.02)
    x = points(3000)
    y = analysis.label_log_probs(model, x).argmax(-1)
    table = model.flow.class_log_prob(x).detach()

    def loss(temperature: float) -> float:
        log_probs = (table / temperature).log_softmax(-1).gather(1, y[:, None])
        return math.log(temperature / 2.75) ** 2 / (2 * 0.3**2) - log_probs.sum().item()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the minimum may lie at the bound
        found = analysis.temperature_from_training(model, x, y).temperature
    grid = torch.logspace(-2, 2, 400).tolist()
    assert found < 0.2
    assert loss(found) <= min(map(loss, grid)) * (1 + 1e-6)


def test_a_class_with_one_label_can_be_hidden():
    model, x, y = partly_labelled()
    y[(y == 2).nonzero()[1:, 0]] = -1
    found = analysis.temperature_from_training(model, x, y)
    assert 0.5 < found.temperature < 10
    every = analysis.temperature_from_training(model, x, torch.arange(len(x)) % 3)
    assert 0.5 < every.temperature < 10


@pytest.mark.parametrize("prior", ["gmm", BY_EM])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": torch.full((90,), -1)}, "temperature_from_training: y has no known label"),
        ({"y": torch.full((90,), 3)}, "temperature_from_training: y"),
        ({"y": torch.zeros(4).long()}, r"temperature_from_training: y has shape \(4,\), expected \(90,\)"),
        ({"x": torch.zeros(90, 3)}, r"temperature_from_training: x has shape \(90, 3\)"),
        ({"folds": 1}, "folds"),
        ({"iterations": 0}, "iterations"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_tells_no_temperature_in_training(prior, options, message):
    model, x, y = partly_labelled(prior)
    with pytest.raises(ValueError, match=f"^{message}"):
        analysis.temperature_from_training(model, **{"x": x, "y": y, **options})


def test_training_on_an_impossible_class_or_a_broken_model_is_said():
    model, x, y = partly_labelled()
    model.flow.prior.log_scale.fill_(NAN)
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"^temperature_from_training: the model gives NaN or infinite"),
    ):
        analysis.temperature_from_training(model, x, y)
    without = scnf.SemiSupervisedModel(toy_flow(BY_EM, dtype=torch.float64), torch.tensor([0.5, 0.5, 0.0]))
    with pytest.raises(ValueError, match=r"^temperature_from_training: y holds labels of class 2"):
        analysis.temperature_from_training(without, x, torch.arange(90) % 3)


def test_labels_that_mislead_in_training_are_said():
    model, x = double_model("flowgmm"), points(5000)
    model.flow.prior.loc.mul_(1e3)
    y = analysis.label_log_probs(model, x).argmin(-1)
    with pytest.warns(UserWarning, match=r"up to the highest temperature, 10000, .* no better than p\(y\)"):
        assert analysis.temperature_from_training(model, x, y).temperature == 1e4


@given(
    y=st.lists(st.integers(-1, 3), max_size=40).map(lambda y: torch.tensor(y, dtype=torch.long)),
    folds=st.integers(1, 6),
)
def test_folds_are_even_in_all_and_in_each_class(y, folds):
    part = stratified_folds(y, folds)
    assert torch.equal(part >= 0, y >= 0)
    for rows in (y >= 0, *(y == k for k in range(4))):
        sizes = torch.bincount(part[rows], minlength=folds)
        assert len(sizes) == folds
        assert sizes.max() - sizes.min() <= 1


# -- opinion pools ---------------------------------------------------------------------------------
def test_an_opinion_pool_is_the_normalised_geometric_mean():
    tables = [torch.randn(7, 4, dtype=torch.float64).log_softmax(-1) for _ in range(3)]
    found = analysis.opinion_pool(*tables)
    product = torch.ones(7, 4, dtype=torch.float64)
    for table in tables:
        product = product * table.exp() ** (1 / 3)
    assert torch.allclose(found.exp(), product / product.sum(-1, keepdim=True))
    assert torch.allclose(found, analysis.opinion_pool(*reversed(tables)))
    assert torch.allclose(analysis.opinion_pool(tables[0], tables[0]), tables[0])
    assert analysis.opinion_pool(tables[0].float()).dtype == torch.float64


def test_what_one_opinion_rules_out_is_out():
    certain = torch.tensor([[1.0, 0.0, 0.0]]).log()
    found = analysis.opinion_pool(certain, torch.tensor([[0.2, 0.5, 0.3]]).log())
    assert torch.equal(found.exp(), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "there are no log_probs"),
        ([torch.zeros(2, 1), torch.zeros(3, 1)], r"log_probs have the shapes \[\(2, 1\), \(3, 1\)\]"),
        ([torch.zeros(2, 1), torch.zeros(2, 2)], r"log_probs\[1\] is not normalised"),
        ([torch.zeros(2)], r"log_probs\[0\] has shape \(2,\)"),
        ([torch.eye(2).log(), (1 - torch.eye(2)).log()], "in 2 rows each label is impossible by one"),
    ],
)
def test_opinions_that_cannot_be_pooled(tables, message):
    with pytest.raises(ValueError, match=f"^opinion_pool: {message}"):
        analysis.opinion_pool(*tables)


# -- distances from the boundary -------------------------------------------------------------------
def test_distances_by_hand():
    flow = toy_flow("flowgmm", num_classes=5, dtype=torch.float64)
    flow.prior.log_scale.fill_(math.log(0.3))
    model, x = scnf.SemiSupervisedModel(flow), points(50)
    found = analysis.boundary_distance(model, x, batch_size=7)
    for row, z in enumerate(flow.encode(x)[1]):
        squares = (flow.prior.loc - z).square().sum(-1)
        near = squares.argsort()[:2]
        gap = (flow.prior.loc[near[0]] - flow.prior.loc[near[1]]).norm()
        expected = (squares[near[0]] - squares[near[1]]).abs() / (2 * gap)
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-8)
    assert found.dtype == torch.float64


def test_the_distance_is_that_of_the_change_of_label():
    """Two classes: a step of that length towards the other mean reaches equal probabilities."""
    flow = toy_flow("gmm:covariance=isotropic", num_classes=2, dtype=torch.float64)
    with torch.no_grad():
        flow.prior.log_scale.fill_(0.2)
    model, x = scnf.SemiSupervisedModel(flow), points(20)
    z, (first, second) = flow.encode(x)[1].detach(), flow.prior.loc.detach()
    towards = torch.where(model.posterior(x).logits.argmax(-1)[:, None] == 0, second - first, first - second)
    steps = analysis.boundary_distance(model, x)[:, None] * towards / towards.norm(dim=-1, keepdim=True)
    probs = model.posterior(flow.decode(z + steps)).probs
    assert torch.allclose(probs, torch.full_like(probs, 0.5), atol=1e-6)


def test_distances_of_images_are_those_of_their_deepest_latents():
    flow = image_flow("flowgmm", dtype=torch.float64)
    x = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    found = analysis.boundary_distance(scnf.SemiSupervisedModel(flow), x)
    z = flow.encode(x)[1]
    squares, near = (z[:, None] - flow.prior.loc).flatten(2).square().sum(-1).topk(2, largest=False)
    gap = (flow.prior.loc[near[:, 0]] - flow.prior.loc[near[:, 1]]).flatten(1).norm(dim=-1)
    assert torch.allclose(found, (squares[:, 1] - squares[:, 0]) / (2 * gap), atol=1e-8)


def unequal() -> scnf.SemiSupervisedModel:
    model = scnf.SemiSupervisedModel(toy_flow("flowgmm"))
    model.flow.prior.log_scale[1] += 0.1
    return model


def same_means() -> scnf.SemiSupervisedModel:
    model = scnf.SemiSupervisedModel(toy_flow("flowgmm"))
    model.flow.prior.loc[2] = model.flow.prior.loc[0]
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: double_model("flow"), "its prior is a ConditionalFlowPrior, expected a Gaussian"),
        (lambda: double_model("student-t"), "its prior is a StudentTMixturePrior, expected a Gaussian"),
        (lambda: double_model("gmm:covariance=full"), "its prior has several components a class, or a full"),
        (lambda: double_model("gmm:components=2"), "its prior has several components a class, or a full"),
        (unequal, "the scales of its prior are from 1 to 1.105, expected .* one isotropic scale"),
        (lambda: double_model("flowgmm", UNEVEN), "its class probabilities are not uniform"),
        (lambda: scnf.SemiSupervisedModel(toy_flow("flowgmm", 1)), "it has 1 class, expected at least 2"),
        (same_means, "two classes have the same mean"),
    ],
)
def test_models_without_such_a_boundary(make, message):
    model = make()
    x = torch.zeros(3, 2, dtype=next(model.flow.parameters()).dtype)
    with pytest.raises(ValueError, match=f"^model: {message}"):
        analysis.boundary_distance(model, x)


def test_rows_without_a_distance():
    model = scnf.SemiSupervisedModel(toy_flow("flowgmm"))
    assert analysis.boundary_distance(model, torch.zeros(0, 2)).shape == (0,)
    for x, options, message in (
        (torch.full((3, 2), NAN), {}, "boundary_distance: x holds 6 NaN"),
        (torch.zeros(2), {}, r"boundary_distance: x has shape \(2,\), expected \(N, 2\)"),
        (torch.zeros(3, 2), {"batch_size": 0}, "batch_size=0: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            analysis.boundary_distance(model, x, **options)


# -- the plane of latents --------------------------------------------------------------------------
def test_a_plane_of_latents_is_the_model_in_both_spaces():
    model, x = double_model("gmm:covariance=full", UNEVEN), points(30)
    found = analysis.latent_plane(model, x, draws=20000, points=5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(found.z, model.flow.encode(x)[1])
    assert torch.allclose(model.flow.encode(found.drawn_x)[1], found.drawn_z, atol=1e-6)
    shares = found.drawn_y.bincount(minlength=3) / 20000
    assert torch.allclose(shares.double(), UNEVEN, atol=0.02)
    for k in range(3):
        drawn, given = found.drawn_z[found.drawn_y == k], model.flow.prior.condition(torch.tensor(k))
        assert torch.allclose(drawn.mean(0), given.mean, atol=0.15)
    everything = torch.cat([found.z, found.drawn_z])
    assert (found.latent.low < everything.amin(0)).all()
    assert (found.latent.high > everything.amax(0)).all()
    corner = torch.stack([found.latent.high[0], found.latent.low[1]])  # right and down
    joint = model.flow.prior.class_log_prob(corner) + UNEVEN.log()
    assert torch.allclose(found.latent.probs[0, -1], joint.softmax(-1))
    assert torch.allclose(found.latent.density[0, -1], joint.logsumexp(-1).exp())
    data = analysis.evaluate_plane(model, x, points=5)
    assert torch.equal(found.data.probs, data.probs)
    assert torch.equal(found.data.density, data.density)
    assert not any(value.requires_grad for value in (found.z, found.drawn_x, found.latent.density))


def test_a_plane_of_latents_draws_from_the_generator_given():
    model, x, state = double_model(), points(5), torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        drawn.append(analysis.latent_plane(model, x, draws=9, points=2, generator=generator).drawn_x)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_joint_and_lead_of_a_plane():
    probs = torch.tensor([[[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]]])
    plane = analysis.Plane(torch.zeros(2), torch.ones(2), probs, torch.tensor([[2.0, 4.0]]))
    assert torch.allclose(plane.lead, torch.tensor([[[0.2, -0.2, -0.3], [0.0, 0.0, -0.2]]]))
    assert torch.allclose(plane.joint, torch.tensor([[[1.0, 0.6, 0.4], [1.6, 1.6, 0.8]]]))
    one = analysis.Plane(torch.zeros(2), torch.ones(2), torch.ones(1, 2, 1), torch.ones(1, 2))
    assert torch.equal(one.lead, torch.ones(1, 2, 1))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: image_flow(), {}, r"^model: its event_shape is \(1, 4, 4\), expected \(2,\)"),
        (
            lambda: toy_flow(latent_dim=1),
            {},
            r"^model: its latent_shape is \(1,\), expected \(2,\)",
        ),
        (toy_flow, {"x": torch.zeros(0, 2)}, "^latent_plane: x has no rows"),
        (toy_flow, {"x": torch.zeros(2)}, r"^latent_plane: x has shape \(2,\), expected \(N, 2\)"),
        (toy_flow, {"x": torch.full((3, 2), NAN)}, "^latent_plane: x holds 6 NaN"),
        (toy_flow, {"draws": 0}, "^draws=0: expected at least 1"),
        (toy_flow, {"points": 1}, "^points=1: expected at least 2"),
        (toy_flow, {"generator": 3}, "^generator is a int"),
    ],
)
def test_planes_of_latents_that_cannot_be(make, options, message):
    with pytest.raises(ValueError, match=message):
        analysis.latent_plane(scnf.SemiSupervisedModel(make()), **{"x": torch.zeros(3, 2), **options})


# -- drawings --------------------------------------------------------------------------------------
def drawn(num_classes: int, y: Tensor | None = None, prior: str = "gmm"):
    """The figure of an untrained model, what it shows, and the data."""
    model = scnf.SemiSupervisedModel(toy_flow(prior, num_classes))
    x = 2 * torch.randn(40, 2)
    y = torch.where(torch.arange(40) < 10, torch.arange(40) % num_classes, -1) if y is None else y
    data = SemiSupervisedData(x, y, x[:1], torch.zeros(1), num_classes)
    found = analysis.latent_plane(model, x, draws=30, points=40)
    return plots.latent_plane(found, data), found, data


def contours(panel) -> list:
    from matplotlib.contour import ContourSet

    return [child for child in panel.get_children() if isinstance(child, ContourSet)]


@pytest.mark.parametrize("num_classes", [1, 2, 8])
@pytest.mark.parametrize("prior", ["gmm", "student-t", "flow"])
def test_four_panels_of_a_plane_of_latents(num_classes, prior):
    figure, found, data = drawn(num_classes, prior=prior)
    figure.draw_without_rendering()
    known = data.y >= 0
    for panel, rows in zip(figure.axes[:2], (data.x, found.z), strict=True):
        others, labelled = (c for c in panel.collections if len(c.get_offsets()) > 1)
        np.testing.assert_allclose(others.get_offsets(), rows[~known], rtol=1e-6)
        np.testing.assert_allclose(labelled.get_offsets(), rows[known], rtol=1e-6)
        colours = labelled.get_facecolors()[:, :3]
        np.testing.assert_allclose(colours, plots._figure.class_colours(num_classes)[data.y[known]])
        assert len(labelled.get_paths()[0].vertices) == 4  # a closed triangle
    for panel, rows in zip(figure.axes[2:], (found.drawn_z, found.drawn_x), strict=True):
        (cloud,) = panel.collections
        np.testing.assert_allclose(cloud.get_offsets(), rows, rtol=1e-6)
        colours = cloud.get_facecolors()[:, :3]
        np.testing.assert_allclose(colours, plots._figure.class_colours(num_classes)[found.drawn_y])
    limits = [(*panel.get_xlim(), *panel.get_ylim()) for panel in figure.axes]
    assert limits[0] == limits[3] == pytest.approx(plots._figure.extent_of(found.data))
    assert limits[1] == limits[2] == pytest.approx(plots._figure.extent_of(found.latent))


def test_a_boundary_lies_where_the_label_changes():
    """Class 0 is the left half of both planes, and each boundary is drawn once."""
    across = torch.linspace(0, 1, 40).expand(40, 40)
    plane = analysis.Plane(torch.zeros(2), torch.ones(2), torch.stack([1 - across, across], -1), across + 1)
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    found = analysis.LatentPlane(plane, plane, points, torch.tensor([0, 1]), points, points)
    data = SemiSupervisedData(points, torch.tensor([0, -1]), points, torch.tensor([0, 1]), 2)
    figure = plots.latent_plane(found, data)
    for panel in figure.axes[:2]:
        (boundary,) = [c for c in contours(panel) if list(c.levels) == [0.0]]
        line = np.concatenate([path.vertices for path in boundary.get_paths()])
        np.testing.assert_allclose(line[:, 0], 0.5, atol=1e-6)
        assert np.ptp(line[:, 1]) == pytest.approx(1)


def test_classes_are_shown_one_and_two_deviations_from_their_means():
    model = double_model("flowgmm")
    x = points(20)
    data = SemiSupervisedData(x, torch.full((20,), -1), x, torch.zeros(20), 3)
    found = analysis.latent_plane(model, x, points=400)
    shapes = [c for c in contours(plots.latent_plane(found, data).axes[1]) if list(c.levels) != [0.0]]
    assert len(shapes) == 3
    for mean, shape in zip(model.flow.prior.loc, shapes, strict=True):
        for path, radius in zip(shape.get_paths(), (2.0, 1.0), strict=True):
            distances = np.linalg.norm(path.vertices - mean.numpy(), axis=-1)
            np.testing.assert_allclose(distances, radius, rtol=0.03)


def test_labels_without_rows_are_drawn_as_clusters():
    figure, _, _ = drawn(4, torch.full((40,), -1))
    assert [len(c.get_offsets()) for c in figure.axes[0].collections if c.get_label() == "labelled"] == [0]


def test_a_plane_of_latents_needs_the_data_that_were_encoded():
    _, found, data = drawn(2)
    x, y = data.x, data.y
    for wrong, message in (
        ((found, x), "data is of type Tensor, expected a SemiSupervisedData"),
        ((found.data, data), "plane is of type Plane, expected a LatentPlane"),
        ((found, SemiSupervisedData(x, y, x, y.abs(), 3)), "data have 3 classes and plane has 2"),
        ((found, SemiSupervisedData(x[:9], y[:9], x, y.abs(), 2)), "data.x has 9 rows and plane.z has 40"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.latent_plane(*wrong)


def test_a_reliability_diagram_shows_the_bins_that_have_rows():
    log_probs = (2 * torch.randn(200, 3)).log_softmax(-1)
    found = analysis.reliability(log_probs, torch.randint(3, (200,)), bins=10)
    figure = plots.reliability_diagram({"before": found, "after": found})
    accuracy, counts = figure.axes
    diagonal, *curves = accuracy.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    full = found.count > 0
    assert 0 < full.sum() < 10
    for curve, title in zip(curves, ("before", "after"), strict=True):
        expected = torch.stack([found.confidence, found.accuracy], -1)[full]
        np.testing.assert_allclose(curve.get_xydata(), expected)
        assert curve.get_label() == title
    for number, bars in enumerate(counts.containers):
        assert [bar.get_height() for bar in bars] == found.count.tolist()
        np.testing.assert_allclose([bar.get_x() for bar in bars], np.arange(10) / 10 + number / 20)
        np.testing.assert_allclose([bar.get_width() for bar in bars], 1 / 20)
    assert accuracy.get_legend() is not None
    (alone, _) = plots.reliability_diagram(found).axes
    assert alone.get_legend() is None
    assert len(alone.lines) == 2
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "found is empty, expected a Reliability, or some by title"),
        (torch.zeros(3), "found is of type Tensor, expected a Reliability"),
        ({"before": 0.3}, r"found\['before'\] is of type float, expected a Reliability"),
    ],
)
def test_reliability_diagrams_that_cannot_be_drawn(found, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        plots.reliability_diagram(found)
