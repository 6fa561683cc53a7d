"""Comparators: one suite that all of them pass, and each method against a computation by hand."""

from __future__ import annotations

import math
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from helpers import perturb
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from pyro_scnf import baselines
from pyro_scnf.baselines import (
    COMPARATORS,
    autoencoders,
    fitting,
    graphs,
    latent,
    mixture,
    networks,
    pseudo_labels,
    scaling,
    supervised,
    tuning,
)
from pyro_scnf.baselines.comparator import Task, solve, surprised
from pyro_scnf.datasets import label_evidence, neighbour_graph, toy

# -- an easy table ---------------------------------------------------------------------------------
CLASSES, COLUMNS, TRAIN, TEST, LABELS = 3, 6, 1000, 200, 5


def easy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three classes, each a Gaussian that differs from the others in all columns; and few labels."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(CLASSES, COLUMNS, generator=generator)
    truth = torch.arange(TRAIN + TEST) % CLASSES
    x = centres[truth] + 0.7 * torch.randn(TRAIN + TEST, COLUMNS, generator=generator)
    x = x * torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 1.0]) + 5
    y = torch.where(torch.arange(TRAIN) < CLASSES * LABELS, truth[:TRAIN], -1)
    return x[:TRAIN], y, x[TRAIN:], truth[TRAIN:]


# Small sizes, so that the suite takes seconds.
QUICK: dict[str, dict[str, Any]] = {
    "random forest": {"trees": 20},
    "dropout net": {"steps": 60},
    "Pi model": {"steps": 60},
    "label spreading, dense": {"rows": 300},
    "M1": {"steps": 80},
    "M2": {"steps": 40},
    "M1+M2": {"steps": 60},
    "latent classifier": {"steps": 40},
}
FEWER: list[tuple[ModuleType, str, Any]] = [
    (tuning, "FOLDS", 2),
    (supervised, "BOOSTS", (supervised.Boosts(0.3, 40, 4),)),
    (pseudo_labels, "BOOSTS", (supervised.Boosts(0.3, 40, 4),)),
    (pseudo_labels, "THRESHOLDS", (0.9,)),
    (pseudo_labels, "SEARCHED", (100, 100)),
    (graphs, "SEARCHED", (100, 100)),
    (networks, "WIDTH", 64),
    (networks, "LEARNING_RATE", 1e-2),
    (networks, "CONSISTENCY", (3.0,)),
    (networks, "DECAYS", (1.0,)),
    (autoencoders, "HIDDEN", 32),
    (autoencoders, "LATENTS", (3, 5)),
    (autoencoders, "M1_RATE", 1e-2),
    (autoencoders, "M2_RATE", 1e-2),
    (autoencoders, "ALPHAS", (20.0,)),
    (latent, "SHARES", (1.0,)),
    (latent, "DIMS", (4,)),
]


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in FEWER:
            patch.setattr(module, name, value)
        yield


def call(name: str, *args: torch.Tensor, **options: Any) -> torch.Tensor:
    return COMPARATORS[name](*args, **QUICK.get(name, {}), **options)


@cache
def outcome(name: str) -> torch.Tensor:
    """Probabilities of the easy table, with a fourth class that has no label."""
    x, y, x_test, _ = easy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(name, x, y, x_test, num_classes=CLASSES + 1)


def agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.argmax(1) == b.argmax(1)).double().mean())


every = pytest.mark.parametrize("name", COMPARATORS)


# -- what all comparators do -----------------------------------------------------------------------
@every
def test_probabilities_of_all_classes(name):
    probs = outcome(name)
    assert probs.shape == (TEST, CLASSES + 1)
    assert probs.dtype == torch.float64
    assert torch.allclose(probs.sum(1), torch.ones(TEST).double())
    assert bool((probs[:, CLASSES] == 0).all())
    assert probs[:, :CLASSES].min() >= 1 / (CLASSES * LABELS + 2) / CLASSES - 1e-12


@every
def test_easy_classes_are_found(name):
    truth = easy()[3]
    probs = outcome(name)
    assert float((probs.argmax(1) == truth).double().mean()) > 0.9
    assert -probs.gather(1, truth[:, None]).log().mean() < 0.45  # a constant has log 3 = 1.1


@every
def test_equal_arguments_give_equal_probabilities_and_leave_no_trace(name):
    """In double precision, without gradients and in another place of the generators as well."""
    x, y, x_test, _ = (part.clone() for part in easy())
    expected = outcome(name)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    pyro.get_param_store().setdefault("m1.encoder$$$first.weight", torch.ones(2))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with torch.no_grad():
        probs = call(name, x.double(), y, x_test.double(), num_classes=CLASSES + 1)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert torch.equal(probs, expected)
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    assert list(pyro.get_param_store().keys()) == ["m1.encoder$$$first.weight"]
    assert all(torch.equal(a, b) for a, b in zip((x, y, x_test), easy()[:3], strict=True))
    assert torch.is_grad_enabled()


@every
def test_a_row_is_classified_alike_whatever_rows_are_beside_it(name):
    """Nothing is learned from the rows to classify."""
    x, y, x_test, _ = easy()
    alone = call(name, x, y, x_test[:20], num_classes=CLASSES + 1)
    assert torch.allclose(alone, outcome(name)[:20], atol=1e-5)


@every
def test_another_order_of_rows_changes_little(name):
    x, y, x_test, _ = easy()
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(1))
    probs = call(name, x[order], y[order], x_test, num_classes=CLASSES + 1)
    assert agreement(probs, outcome(name)) > 0.9


# The others draw numbers for every class.
SYMMETRIC = [
    "nearest neighbours",
    "logistic regression, quantiles",
    "self-training, logistic",
    "label spreading, dense",
    "label spreading, quantiles",
    "Poisson learning, as is",
    "Gaussian mixture",
    "M1",
]


@pytest.mark.parametrize("name", SYMMETRIC)
def test_renamed_classes_rename_the_columns(name):
    x, y, x_test, _ = easy()
    new = torch.tensor([2, 3, 0, 1, -1])  # the last one is that of -1
    probs = call(name, x, new[y], x_test, num_classes=CLASSES + 1)
    assert torch.allclose(probs[:, new[:-1]], outcome(name), atol=2e-3)
    assert bool((probs[:, 1] == 0).all())


@every
def test_tables_as_small_as_can_be(name):
    """Two rows, each with a label; then one row more without; then a class that is alone."""
    x = torch.tensor([[0.0, 1.0], [4.0, -1.0], [3.5, -1.0]])
    for rows in (2, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            probs = call(name, x[:rows], torch.tensor([0, 1, -1])[:rows], x)
        assert torch.allclose(probs.sum(1), torch.ones(3).double())
    alone = call(name, x, torch.tensor([-1, 2, -1]), x)
    assert torch.equal(alone, F.one_hot(torch.full((3,), 2)).double())
    assert call(name, x, torch.tensor([0, 1, -1]), x[:0], num_classes=4).shape == (0, 4)


@every
def test_every_row_may_be_labelled(name):
    x, _, x_test, truth = easy()
    x, y = x[:60], torch.arange(60) % CLASSES
    probs = call(name, x, y, x_test)
    assert float((probs.argmax(1) == truth).double().mean()) > 0.8


@every
def test_a_table_of_one_column(name):
    x, y = torch.linspace(0, 1, 30)[:, None], torch.full((30,), -1)
    y[:3], y[-3:] = 0, 1
    if name == "latent classifier":
        with pytest.raises(ValueError, match=r"^latent_classifier: x has one column, expected two or more"):
            call(name, x, y, x)
    else:
        probs = call(name, x, y, x[[0, -1]])
        assert probs.argmax(1).tolist() == [0, 1]


# -- refusals --------------------------------------------------------------------------------------
@every
def test_rows_and_labels_are_checked(name):
    owner = getattr(COMPARATORS[name], "func", COMPARATORS[name]).__name__
    x, y, x_test, _ = easy()
    x[3, 2] = torch.nan
    message = (
        f"{owner}: x holds 1 NaN or infinite values, expected finite ones; the first is in row 3, column 2"
    )
    with pytest.raises(ValueError, match=f"^{message}"):
        call(name, x, y, x_test)


X, Y = torch.rand(6, 2), torch.tensor([0, 1, -1, -1, 1, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.rand(6, 1, 2, 2)},
            "m: x has shape (6, 1, 2, 2), expected a table (N, D); give x.flatten",
        ),
        ({"x": torch.rand(6)}, "m: x has shape (6,), expected a table of rows (N, D)"),
        ({"x_test": torch.rand(4, 3)}, "m: x_test has 3 columns and x has 2; expected the same columns"),
        ({"x_test": torch.full((1, 2), torch.inf)}, "m: x_test holds 2 NaN or infinite values"),
        ({"y": Y[:4]}, "m: y has 4 labels and x has 6 rows; expected a label for each row, -1 where"),
        ({"y": Y[:, None].expand(-1, 2)}, "m: y has shape (6, 2), expected one label for each row"),
        ({"y": torch.full((6,), -1)}, "m: y has no label in 6 rows, expected at least one; give the labels"),
        ({"y": Y - 1}, "m: y holds labels -2..0, expected -1.."),
        ({"num_classes": 1}, "m: y holds labels -1..1, expected -1..0"),
        ({"num_classes": 0}, "num_classes=0: expected at least 1"),
        ({"num_classes": 2.0}, "num_classes=2.0: expected a whole number"),
        ({"seed": -1}, "seed=-1: expected 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296: expected 0 to 4294967295"),
    ],
)
def test_wrong_data(change, message):
    given = {"x": X, "y": Y, "x_test": X, "num_classes": None, "seed": 0, **change}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        solve("m", lambda task: pytest.fail("the task was solved"), **given)


def test_frames_and_lists_are_rows_and_labels():
    frame, y = pd.DataFrame(X.numpy(), columns=["a", "b"]), pd.Series([0, 1, None, None, 1, 0])
    expected = baselines.nearest_neighbours(X, Y, X)
    for x, labels in ((frame, y), (X.tolist(), Y.tolist())):
        found = baselines.nearest_neighbours(x, labels, frame)
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"x_test has the columns \['b', 'a'\], and x has \['a', 'b'\]"):
        baselines.nearest_neighbours(frame, y, frame[["b", "a"]])
    with pytest.raises(ValueError, match="y has the same index as the rows, in another order"):
        baselines.nearest_neighbours(frame, y[::-1], frame)


WRONG_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "nearest_neighbours": [{"scale": "unit"}],
    "logistic_regression": [{"scale": None}],
    "random_forest": [{"trees": 0}],
    "dropout_net": [{"scale": "none"}, {"steps": 0}],
    "pi_model": [{"scale": "none"}, {"steps": 1.5}],
    "self_training": [{"base": "forest"}, {"scale": "none"}],
    "label_spreading_rbf": [{"scale": "none"}, {"rows": 1}],
    "label_spreading": [{"scale": "none"}, {"dims": 0}, {"k": 0}],
    "poisson_learning": [{"scale": "none"}, {"dims": 0}, {"k": 0}],
    "gaussian_mixture": [{"scale": "none"}, {"dims": 0}, {"components": 0}],
    "m1": [{"steps": 0}],
    "m2": [{"scale": "none"}, {"dims": 0}, {"steps": 0}],
    "m1m2": [{"latent_dim": 0}, {"steps": 0}],
    "latent_classifier": [{"scale": "none"}, {"weight": 0}, {"steps": 0}],
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_wrong_options(name):
    for option in WRONG_OPTIONS[name]:
        ((word, value),) = option.items()
        with pytest.raises(ValueError, match=f"^{word}={re.escape(repr(value))}: expected"):
            getattr(baselines, name)(X, Y, X, **option)


def test_every_option_has_a_wrong_value():
    common = {"x", "y", "x_test", "num_classes", "seed"}
    functions = {getattr(value, "func", value).__name__ for value in COMPARATORS.values()}
    for name in functions:
        options = set(baselines.__dict__[name].__kwdefaults__) - common
        assert options == {word for option in WRONG_OPTIONS.get(name, []) for word in option}


# -- cross-validation ------------------------------------------------------------------------------
def make_task(y: list[int], seed: int = 0, columns: int = 2) -> Task:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(len(y), columns, generator=generator, dtype=torch.double)
    labels = torch.tensor(y)
    return Task(x, labels, x[:4], int(labels.max()) + 1, seed, torch.device("cpu"))


def test_parts_hold_each_labelled_row_once_and_leave_a_label_of_each_class(monkeypatch):
    monkeypatch.setattr(tuning, "FOLDS", 5)
    task = make_task([0] * 12 + [1] * 2 + [2] + [-1] * 20)
    for repeats in (1, 3):
        parts = list(tuning.folds(task, repeats))
        counts = torch.bincount(torch.cat(parts), minlength=35)
        assert counts.tolist() == [repeats] * 14 + [0] * 21  # the only row of its class is in no part
        assert len(parts) == 5 * repeats
        for rows in parts:
            left = task.without_labels(rows)
            assert left.y[left.known].unique().tolist() == [0, 1, 2]
            assert torch.equal(left.x_test, task.x[rows])
    assert not torch.equal(parts[0], parts[5])
    assert list(tuning.folds(make_task([0, 1, -1]))) == []


def test_parts_do_not_depend_on_the_names_of_classes():
    y = torch.tensor([0, 1, 2] * 7 + [-1] * 5)
    renamed = torch.tensor([1, 2, 0, -1])[y]
    task = make_task(y.tolist())
    pairs = zip(tuning.folds(task), tuning.folds(replace(task, y=renamed)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_sample_keeps_the_shares_and_every_class():
    task = make_task([0] * 60 + [1] * 30 + [2] + [-1] * 50)
    part = tuning.sample(task, 31, 20)
    assert torch.bincount(part.y + 1).tolist() == [20, 20, 10, 1]
    rows = [int((task.x == row).all(1).nonzero()) for row in part.x]
    assert len(set(rows)) == 51
    assert torch.equal(task.y[rows], part.y)
    assert tuning.sample(task, 91, 50) is task


def test_the_setting_and_the_temperature_of_the_least_loss_are_chosen():
    """A method that is right four times of five. It says so, is too sure, or is wrong."""
    task = make_task([0, 1] * 50 + [-1] * 10)
    truth, seen = task.y.clone(), []
    guess = torch.where(torch.arange(110) % 10 < 2, 1 - truth, truth)

    def fit(task: Task, setting: str) -> torch.Tensor:
        rows = [int((task.x == row).all(1).nonzero()) for row in task.x_test]
        if len(rows) != 4:
            assert bool((task.y[rows] == -1).all())  # the labels are hidden
            seen.append((setting, len(rows)))
        sure = {"right": 0.8, "wrong": 0.8, "sure": 0.9999}[setting]
        said = 1 - guess[rows] if setting == "wrong" else guess[rows]
        return torch.where(F.one_hot(said, 2).bool(), sure, 1 - sure).double().log()

    assert tuning.chosen(task, ("wrong", "right"), fit) == tuning.Choice("right", 1.0)
    assert sum(count for setting, count in seen if setting == "wrong") == 100
    tempered = tuning.chosen(task, ("sure",), fit)
    odds = math.log(0.9999 / 0.0001) / math.log(4)
    assert 0.6 * odds < tempered.temperature < 1.6 * odds
    found = tempered.of(fit(task, "sure")).exp()
    assert torch.allclose(found.max(1).values, torch.full((4,), 0.8).double(), atol=0.05)
    assert torch.equal(tuning.tuned(task, ("sure",), fit), tempered.of(fit(task, "sure")))
    assert tuning.chosen(make_task([0, 1, -1]), ("sure", "right"), fit) == tuning.Choice("sure")


def test_few_labels_choose_no_extreme_temperature():
    """Ten rows on which a timid method is right do not make it certain."""

    def timid(task: Task, setting: None) -> torch.Tensor:
        rows = [int((task.x == row).all(1).nonzero()) for row in task.x_test]
        probs = torch.where(F.one_hot(truth[rows], 2).bool(), 0.6, 0.4)
        return probs.double().log()

    found = {}
    for count in (4, 400):
        task = make_task([0, 1] * (count // 2))
        truth = task.y
        found[count] = tuning.chosen(task, (None,), timid).temperature
    assert found[400] < found[4] < 1


def test_the_rule_of_succession():
    probs = surprised(torch.tensor([[0.0, -torch.inf], [math.log(0.5), math.log(0.5)]]), 8)
    assert torch.allclose(probs, torch.tensor([[0.95, 0.05], [0.5, 0.5]]))


# -- scales ----------------------------------------------------------------------------------------
def test_all_training_rows_and_no_others_decide_the_scale():
    x = torch.cat([torch.randn(500, 2).exp(), torch.full((20, 2), 100.0)]).double()
    task = Task(x, torch.full((520,), -1), 5 * x, 2, 0, torch.device("cpu"))
    standard = scaling.scaled(task, "standard")
    assert torch.allclose(standard.x.mean(0), torch.zeros(2).double(), atol=1e-9)
    assert torch.allclose(standard.x.std(0, correction=0), torch.ones(2).double())
    assert torch.allclose(standard.x_test, (5 * x - x.mean(0)) / x.std(0, correction=0))
    normal = scaling.scaled(task, "quantile").x[:500]
    assert (normal.quantile(torch.tensor([0.25, 0.5, 0.75]).double(), 0).diff(dim=0) - 0.65).abs().max() < 0.1
    assert scaling.scaled(task, "as-is") is task
    unit = scaling.to_unit_interval(task)
    assert float(unit.x.min()) == 0
    assert float(unit.x_test.max()) == 1


@pytest.mark.parametrize("name", ["quantile", "unit interval", "trees"])
@pytest.mark.parametrize(("factor", "offset"), [(1e-9, 0), (1e-30, 0), (1e200, 0), (1, 1e9), (-1e-12, -1e-3)])
def test_the_unit_of_a_column_makes_no_difference(name, factor, offset):
    """scikit-learn takes steps below 1e-7 for none, as there are in a column of wavelengths in metres."""
    ways = {
        "quantile": lambda task: scaling.scaled(task, "quantile"),
        "unit interval": scaling.to_unit_interval,
        "trees": scaling.centred,
    }
    task = make_task([0, 1] * 200, columns=3)
    task = replace(task, x=torch.cat([task.x[:, :2], (task.x[:, 2:] > 0.5).double()], 1))
    expected = ways[name](task)
    found = ways[name](task.mapped(lambda rows: factor * rows + offset))
    for part in ("x", "x_test"):
        there = getattr(found, part).float().double()
        turned = 1 - there if name == "unit interval" else -there
        wanted = getattr(expected, part)
        assert (wanted - (turned if factor < 0 else there)).abs().max() < 1e-5


def test_a_forest_sees_small_steps_on_a_large_number():
    data = toy("moons", labels_per_class=20)
    x, x_test = data.x.double(), data.x_test.double()
    for factor, offset in ((1e-9, 0.0), (1.0, 1e9)):
        rows, others = factor * x + offset, factor * x_test + offset
        found = baselines.random_forest(rows, data.y, others, trees=50)
        assert (found.argmax(1) == data.y_test).double().mean() > 0.85


def test_principal_components_are_taken_of_wide_tables():
    task = make_task([0, 1] * 20, columns=6)
    assert scaling.reduced(task, 6) is scaling.reduced(task, None) is task
    part = scaling.reduced(task, 2)
    centred = task.x - task.x.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)
    assert torch.allclose(part.x.abs(), (centred @ axes).abs())
    assert torch.allclose(part.x_test, part.x[:4])


# -- supervised ------------------------------------------------------------------------------------
def test_one_more_neighbour_belongs_to_all_classes():
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0]]).double()
    task = Task(x, torch.tensor([0, 1, 1, -1]), x[3:], 2, 0, torch.device("cpu"))
    expected = torch.tensor([[(0 + 0.5) / 3, (2 + 0.5) / 3]]).double()
    assert torch.allclose(supervised._vote(task, 2).exp(), expected)
    assert torch.allclose(supervised._vote(task, 99).exp(), torch.tensor([[1.5 / 4, 2.5 / 4]]).double())


def test_a_penalty_is_chosen_and_the_labelled_rows_decide_alone():
    x, y, x_test, _ = easy()
    x, x_test, known = x - x.mean(0), x_test - x.mean(0), y >= 0
    found = baselines.logistic_regression(x, y, x_test, scale="as-is")
    alone = baselines.logistic_regression(x[known], y[known], x_test, scale="as-is")
    assert agreement(found, alone) > 0.98
    task = Task(x.double(), y, x_test.double(), CLASSES, 0, torch.device("cpu"))
    choice = tuning.chosen(task, supervised.PENALTIES, supervised._regress, supervised.REPEATS)
    model = LogisticRegression(C=choice.setting, max_iter=10_000).fit(
        x[known].double().numpy(), y[known].numpy()
    )
    by_hand = torch.from_numpy(model.predict_log_proba(x_test.double().numpy())) / choice.temperature
    assert torch.allclose(found, surprised(by_hand.log_softmax(1), CLASSES * LABELS))


def test_boosting_splits_with_few_labels_and_stops_early_with_many():
    settings = supervised.Boosts(1.0, 20, 4)
    single = torch.cat([torch.arange(2000) % 2, torch.tensor([2])])
    few, many, lone = (supervised.boosting(settings, y, 3) for y in (single[:15], single[:2000], single))
    assert few.get_params()["min_samples_leaf"] == 2
    assert (few.get_params()["max_iter"], few.get_params()["early_stopping"]) == (20, False)
    assert many.get_params()["min_samples_leaf"] == 20
    assert (many.get_params()["max_iter"], many.get_params()["early_stopping"]) == (1000, True)
    assert few.get_params()["random_state"] == 3
    assert (lone.get_params()["max_iter"], lone.get_params()["early_stopping"]) == (20, False)
    lone.fit(torch.randn(2001, 2).numpy(), single.numpy())  # a validation set would need two rows of class 2


# -- networks --------------------------------------------------------------------------------------
def test_consistency_is_the_difference_of_two_draws_of_dropout():
    torch.manual_seed(0)
    net, x = networks._network(4, 3), torch.randn(6, 4)
    torch.manual_seed(1)
    found = networks.disagreement(net, x)
    torch.manual_seed(1)
    second, first = net(x).softmax(-1).detach(), net(x).softmax(-1)
    expected = (first - second).square().sum() / 18
    assert torch.allclose(found, expected)
    assert found > 0
    parameters = list(net.parameters())
    pairs = zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    )
    assert all(torch.allclose(a, b) for a, b in pairs)


def test_consistency_rises_over_half_of_training():
    assert [round(networks.rise(done), 4) for done in (0, 0.25, 0.5, 1)] == [0.0067, 0.2865, 1, 1]


def test_consistency_learns_from_unlabelled_rows():
    x, y, x_test, _ = easy()
    known = y >= 0
    options = {"scale": "as-is", "steps": 30}
    moved = torch.where(known[:, None], x, x + 1)
    assert torch.equal(
        baselines.dropout_net(x, y, x_test, **options), baselines.dropout_net(moved, y, x_test, **options)
    )
    assert not torch.equal(
        baselines.pi_model(x, y, x_test, **options), baselines.pi_model(moved, y, x_test, **options)
    )


# -- self-training ---------------------------------------------------------------------------------
def test_self_training_is_that_by_hand():
    """Labels with a high probability count as known, until there are none left or ten rounds are over."""
    x, y, x_test, _ = easy()
    x, x_test = (x - x.mean(0)).double()[:120], (x_test - x.mean(0)).double()
    task = Task(x, y[:120], x_test, CLASSES, 0, torch.device("cpu"))
    labels, rounds = y[:120].clone(), []
    while len(rounds) < 10:
        known = labels >= 0
        model = LogisticRegression(C=0.05, max_iter=10_000).fit(x[known].numpy(), labels[known].numpy())
        probs = torch.from_numpy(model.predict_proba(x.numpy()))
        sure = ~known & (probs.max(1).values > 0.9)
        if not bool(sure.any()):
            break
        labels[sure] = probs.argmax(1)[sure]
        rounds.append(int(sure.sum()))
    assert len(rounds) > 2
    known = labels >= 0
    model = LogisticRegression(C=0.05, max_iter=10_000).fit(x[known].numpy(), labels[known].numpy())
    expected = torch.from_numpy(model.predict_proba(x_test.numpy()))
    assert torch.allclose(pseudo_labels._trained(task, supervised.logistic(0.05), 0.9).exp(), expected)


@pytest.mark.parametrize("base", ["logistic", "boosting"])
def test_self_training_learns_from_unlabelled_rows(base):
    x, y, x_test, _ = easy()
    known = y >= 0
    found = baselines.self_training(x, y, x_test, base=base, scale="as-is")
    alone = baselines.self_training(x[known], y[known], x_test, base=base, scale="as-is")
    assert not torch.allclose(found, alone, atol=1e-3)


# -- graphs ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["spreading", "poisson"])
def test_labels_travel_as_in_the_evidence_of_the_graph(method):
    x, y, x_test, _ = easy()
    y[0] = -1  # shares are not equal
    function = baselines.label_spreading if method == "spreading" else baselines.poisson_learning
    found = function(x, y, x_test, scale="as-is", dims=3, k=7)
    graph = neighbour_graph(x.double(), 7, components=3)
    shares = torch.tensor([5, 6, 6])
    evidence = label_evidence(graph, y, CLASSES, method=method, shares=shares)
    assert torch.allclose(found, surprised(evidence.of(x_test.double()), CLASSES * LABELS - 1))


def test_the_dense_graph_has_all_labelled_rows_and_some_others(monkeypatch):
    x, y, x_test, _ = easy()
    tasks: list[Task] = []
    original = graphs._spread_densely

    def spy(task: Task, setting: tuple[float, float]) -> torch.Tensor:
        tasks.append(task)
        return original(task, setting)

    monkeypatch.setattr(graphs, "_spread_densely", spy)
    baselines.label_spreading_rbf(x, y, x_test, scale="as-is", rows=100)
    known = y >= 0
    final = tasks[-1]
    assert len(final.x) == 100
    assert torch.equal(
        final.x[final.known],
        x.double()[known][torch.cdist(final.x[final.known], x[known].double()).argmin(1)],
    )
    assert int(final.known.sum()) == CLASSES * LABELS
    baselines.label_spreading_rbf(x, y, x_test, scale="as-is", rows=9)
    assert torch.bincount(tasks[-1].y).tolist() == [3, 3, 3]


def test_the_kernel_of_the_dense_graph():
    """One step of label spreading by hand, and rows that are far from everything."""
    task = make_task([0, 1, 0, 1, -1, -1, -1, -1])
    far = replace(task, x_test=torch.full((1, 2), 1e6).double())
    assert torch.allclose(graphs._spread_densely(far, (4.0, 0.2)).exp(), torch.tensor([[0.5, 0.5]]).double())
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(8, (2, graphs.PAIRS), generator=generator)
    squares = (task.x[first] - task.x[second]).square().sum(1)[first != second]
    kernel = (-4 / squares.median() * torch.cdist(task.x, task.x).square()).exp()
    links = kernel.clone().fill_diagonal_(0)  # scikit-learn leaves the diagonal out of the graph
    root = links.sum(1).rsqrt()
    labels = F.one_hot(task.y + 1, 3)[:, 1:].double()
    spread = torch.linalg.solve(torch.eye(8).double() - 0.2 * root[:, None] * links * root, 0.8 * labels)
    spread = spread / spread.sum(1, keepdim=True)
    expected = kernel[:4] @ spread
    found = graphs._spread_densely(task, (4.0, 0.2)).exp()
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True), atol=1e-3)


# -- the mixture of Gaussians ----------------------------------------------------------------------
def small_mixture() -> tuple[Task, mixture.Gaussians]:
    task = make_task([0, 1, 1, 0] + [-1] * 12)
    return task, mixture._start(task).split(2)


def test_a_step_of_em_is_that_by_hand():
    task, model = small_mixture()
    weight, rows, gaussians = 0.3, len(task.x), len(model.means)
    assert model.classes.tolist() == [0, 0, 1, 1]
    prior = task.x.var(0, correction=0).diag()
    parts, value = torch.zeros(rows, gaussians).double(), 0.0
    for n in range(rows):
        for c in range(gaussians):
            if task.y[n] in (-1, model.classes[c]):
                normal = MultivariateNormal(model.means[c], model.covariances[c])
                parts[n, c] = (model.log_shares[c] + normal.log_prob(task.x[n])).exp()
        own = 1.0 if task.y[n] >= 0 else weight
        value += own * float(parts[n].sum().log())
        parts[n] *= own / parts[n].sum()
    for c in range(gaussians):
        covariance = model.covariances[c]
        value += float(model.log_shares[c])
        value -= 0.5 * 10 * float(covariance.logdet() + (covariance.inverse() @ prior).trace())
    better, found = mixture.em_step(task, model, weight)
    assert found == pytest.approx(value / (4 + 12 * weight))
    for c in range(gaussians):
        count = parts[:, c].sum()
        mean = sum(parts[n, c] * task.x[n] for n in range(rows)) / count
        scatter = sum(parts[n, c] * torch.outer(task.x[n] - mean, task.x[n] - mean) for n in range(rows))
        assert torch.allclose(better.means[c], mean)
        assert torch.allclose(better.covariances[c], (scatter + 10 * prior) / (count + 10))
        assert float(better.log_shares[c].exp()) == pytest.approx(
            float((count + 1) / (parts.sum() + gaussians))
        )


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_steps_of_em_raise_their_sum(weight):
    task, model = small_mixture()
    values = []
    for _ in range(40):
        model, value = mixture.em_step(task, model, weight)
        values.append(value)
    assert all(b > a - 1e-12 for a, b in pairwise(values))
    assert values[-1] > values[0] + 0.1
    end = mixture._converged(task, small_mixture()[1], weight)
    assert abs(mixture.em_step(task, end, weight)[1] - values[-1]) < 0.01


def test_gaussians_are_split_along_their_longest_axis():
    covariance = torch.tensor([[[4.0, 0], [0, 1]], [[1.0, 0], [0, 9]]]).double()
    start = mixture.Gaussians(
        torch.tensor([0.5, 0.5]).double().log(), torch.zeros(2, 2).double(), covariance, torch.arange(2)
    )
    model = start.split(3)
    assert torch.allclose(model.log_shares.exp(), torch.full((6,), 1 / 6).double())
    expected = torch.tensor([[2.0, 0], [0, 0], [2, 0], [0, 3], [0, 0], [0, 3]]).double()
    assert torch.allclose(model.means.abs(), expected)
    assert torch.allclose(model.means.sum(0), torch.zeros(2).double())
    assert torch.equal(model.covariances, covariance[[0, 0, 0, 1, 1, 1]])


def test_several_gaussians_fit_a_class_of_two_clusters():
    data = toy("moons", num_train=600, num_test=200, labels_per_class=20, noise=0.05)
    right = {}
    for components in (1, 4):
        probs = baselines.gaussian_mixture(
            data.x, data.y, data.x_test, scale="standard", components=components
        )
        right[components] = float((probs.argmax(1) == data.y_test).double().mean())
    assert right[4] > right[1] + 0.02


# -- autoencoders ----------------------------------------------------------------------------------
def test_m1_learns_codes_of_all_rows_and_a_regression_on_one_length():
    x, y, x_test, _ = easy()
    task = Task(x.double(), y, x_test.double(), CLASSES, 0, torch.device("cpu"))
    coded = autoencoders._coded(scaling.to_unit_interval(task), 3, 40)
    assert coded.x.shape == (TRAIN, 3)
    assert torch.allclose(coded.x.std(0, correction=0), torch.ones(3).double())
    both = replace(coded, x=torch.cat([coded.x, coded.x], 1), x_test=torch.cat([coded.x_test] * 2, 1))
    found = autoencoders._regress_some(both, ((3, 6), 1.0))
    assert torch.allclose(found, supervised._regress(coded, 1.0), atol=1e-4)


# -- the latent classifier -------------------------------------------------------------------------
def test_the_loss_of_the_latent_classifier_is_that_by_hand():
    model = perturb(latent.LatentClassifier(3, 2, 0.7)).double()
    x, y, rows = torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0]), torch.randn(5, 3).double()

    def encode(row: torch.Tensor) -> torch.Tensor:
        return model.flow.inverse_and_ladj(row[None])[0][0]

    density, classes = 0.0, 0.0
    for row in rows:
        jacobian = torch.autograd.functional.jacobian(encode, row)
        squares = encode(row).square().sum()
        density += -0.5 * squares - 1.5 * math.log(2 * math.pi) + jacobian.det().abs().log()
    for row, label in zip(x, y, strict=True):
        scores = model.head.weight @ encode(row) + model.head.bias
        classes += -(scores - scores.logsumexp(0))[label]
    assert torch.allclose(model.loss(x, y, rows), classes / 4 - 0.7 * density / 5)
    assert torch.allclose(model(x)[1], model.head.weight @ encode(x[1]) + model.head.bias)


def test_the_latent_classifier_trains_flow_and_head_on_all_rows(monkeypatch):
    task = make_task([0, 1] * 6 + [-1] * 30)
    seen: list[tuple[int, ...]] = []
    original = latent.LatentClassifier.loss

    def spy(self: nn.Module, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        seen.append((len(x), len(rows)))
        assert not any(bool((task.x.float() == row).all(1).any()) for row in rows)  # noise is added
        assert torch.cdist(rows, task.x.float()).min(1).values.max() < 8 * fitting.JITTER
        return original(self, x, y, rows)

    monkeypatch.setattr(latent.LatentClassifier, "loss", spy)
    latent._classified(task, (2, 0.5), weight=1.0, steps=4)
    assert seen == [(12, 256)] * 2
