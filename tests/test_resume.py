"""A run that was killed or stopped, and then resumed, ends with the same bits as an uninterrupted run."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import nn
from trainee import (
    BY_EM,
    EVERY,
    EVERY_TERM,
    PAIRED,
    STEPS,
    grouped,
    jitter,
    killed,
    make_data,
    make_model,
    train,
)

from pyro_scnf.terms import Agreement, Balance, Classification
from pyro_scnf.training import AtomicCheckpointIO, FitResult, fit


@cache
def _uninterrupted(options: tuple[tuple[str, Any], ...]) -> Any:
    with TemporaryDirectory() as folder:
        return train(Path(folder), **dict(options))


def assert_as_uninterrupted(resumed: tuple[dict[str, Any], FitResult], **options: Any) -> None:
    weights, result = resumed
    whole_weights, whole = _uninterrupted(tuple(options.items()))
    for name, value in whole_weights.items():
        assert torch.equal(value, weights[name]), name
    for name in ("steps", "finished", "best_step", "best_nll"):
        assert getattr(result, name) == getattr(whole, name), name


# With steps this large, every validation is worse than the first.
WORSENING: dict[str, Any] = {
    "validated": True,
    "learning_rate": 1.0,
    "schedule": "constant",
    "ema_decay": None,
    "gradient_clip": None,
}
# With validation every sixth step may write a checkpoint of the best, then writes one of the last step.
# Without validation it writes one of the last step only. The numbers below count steps for "in a step", and
# these files for the other moments.
MOMENTS = [
    ("in a step", 3, {"validated": True}),  # there is no checkpoint yet
    ("in a step", 15, {"validated": True}),
    ("half written", 4, {"validated": True}),
    ("not yet moved", 3, {"validated": True}),
    ("just moved", 3, {"validated": True}),  # leaves the best of step 12 and the last of step 6
    ("just moved", 4, {"validated": True}),
    ("in a step", 15, {}),
    ("half written", 2, {}),
    ("just moved", 2, {}),
    ("just moved", 4, {}),  # the file of the final step: nothing is left to do
    ("in a step", 15, {"guide": "em-ema"}),
    ("in a step", 15, {"guide": "em-ema", "ema_decay": None, "validated": True}),
    ("in a step", 15, {"ema_decay": None}),
    ("in a step", 15, {"gradient_clip": None, "guide": "em-sample", "schedule": "linear", "warmup": 0.3}),
    ("in a step", 15, {"precision": "bf16-mixed", "gradient_clip": 0.1, "validated": True}),
    ("in a step", 15, {"optimizer": "adamax", "schedule": "cosine", "labelled_batch_size": 7}),
    ("in a step", 22, {"steps": 23, "validated": True}),
    ("in a step", 15, {"linked": True, "terms": PAIRED}),
    ("in a step", 15, {"evidence": 0}),
    ("in a step", 15, {"prior": BY_EM, "class_probs": "em", "validated": True}),
    ("half written", 2, {"prior": BY_EM, "class_probs": "em", "precision": "bf16-mixed"}),
    ("in a step", 15, {"linked": True, "evidence": 0, "terms": EVERY_TERM}),
    ("in a step", 15, {"linked": True, "evidence": 0, "terms": EVERY_TERM, "guide": "em", "validated": True}),
]


@pytest.mark.parametrize(("moment", "number", "options"), MOMENTS)
def test_killed_and_resumed_equals_uninterrupted(moment, number, options, tmp_path):
    killed(moment, number, tmp_path, **options)
    assert_as_uninterrupted(train(tmp_path, resume=True, **options), **options)
    assert not list(tmp_path.glob(".*"))  # the half-written file is gone


def test_killed_from_outside_at_any_moment(tmp_path):
    code = f"import trainee; trainee.train({str(tmp_path)!r}, validated=True)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    while process.poll() is None and not (tmp_path / "last.ckpt").exists():
        time.sleep(0.001)
    time.sleep(0.1 * random.random())
    process.kill()
    process.wait()
    assert_as_uninterrupted(train(tmp_path, resume=True, validated=True), validated=True)


def test_the_best_of_before_the_kill_is_kept(tmp_path):
    killed("in a step", 20, tmp_path, **WORSENING)
    _, result = resumed = train(tmp_path, resume=True, **WORSENING)
    assert (result.best_step, result.steps) == (EVERY, STEPS)
    assert_as_uninterrupted(resumed, **WORSENING)


def test_patience_that_ran_out_before_the_kill_is_at_its_end(tmp_path):
    # No parameter changes, so nothing improves. The files are best and last of step 6, then last of step 12.
    options = {"validated": True, "learning_rate": 0.0, "patience": 1}
    killed("just moved", 3, tmp_path, **options)
    _, result = resumed = train(tmp_path, resume=True, **options)
    assert (result.steps, result.finished, result.best_step) == (2 * EVERY, True, EVERY)
    assert_as_uninterrupted(resumed, **options)


@pytest.mark.parametrize("options", [{}, {"validated": True}])
def test_a_run_in_pieces_of_limited_time_equals_one(options, tmp_path):
    stops, finished = [], False
    while not finished:
        resumed = train(tmp_path, minutes=1e-9, resume=True, **options)
        stops.append(resumed[1].steps)
        finished = resumed[1].finished
    # With validation a run can stop only where it validates. Without validation it can stop after any step.
    assert stops == list(range(EVERY, STEPS + 1, EVERY) if options else range(1, STEPS + 1))
    assert_as_uninterrupted(resumed, **options)


def test_a_finished_run_resumes_to_itself_from_a_copy_too(tmp_path):
    for options in ({}, {"validated": True}):
        here, there = tmp_path / "here", tmp_path / "there"
        train(here, **options)
        shutil.move(here, there)
        assert_as_uninterrupted(train(there, resume=True, **options), **options)
        shutil.rmtree(there)


def test_what_the_best_was_survives_a_move(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    while train(here, minutes=1e-9, resume=True, **WORSENING)[1].steps < 3 * EVERY:
        pass
    shutil.move(here, there)
    assert_as_uninterrupted(train(there, resume=True, **WORSENING), **WORSENING)


# -- what a checkpoint is --------------------------------------------------------------------------
def test_a_checkpoint_is_plain_and_complete(tmp_path):
    train(tmp_path, validated=True)
    for name in ("last.ckpt", "best.ckpt"):
        found = torch.load(tmp_path / name, weights_only=True)
        assert found["global_step"] == STEPS or name == "best.ckpt"
        assert found["settings"]["optimisation"]["learning_rate"] == 3e-3
        assert len(found["optimizer_states"]) == len(found["lr_schedulers"]) == 1
        current, average = found["current_model_state"], found["state_dict"]
        assert current.keys() == average.keys()
        assert any(not torch.equal(current[key], average[key]) for key in current)


CHANGED = {
    "seed": (0, 1),
    "batch_size": (32, 16),
    "labelled_batch_size": (None, 4),
    "learning_rate": (3e-3, 1e-3),
    "steps": (STEPS, 30),
    "guide": ("exact", "em"),
    "precision": ("32", "bf16-mixed"),
    "optimizer": ("adamw", "adam"),
    "schedule": ("one-cycle", "linear"),
    "ema_decay": (0.995, None),
    "gradient_clip": (5.0, None),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    train(folder, minutes=1e-9)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labelled_weight": 3.0}, "labelled_weight 1.0 -> 3.0"),
        ({"labels_of": 7}, "data '[0-9a-f]{16}' -> '[0-9a-f]{16}'"),
        ({"evidence": 0}, "data '[0-9a-f]{16}' -> '[0-9a-f]{16}'"),
    ],
)
def test_another_objective_or_other_data_are_another_run(stopped, change, message):
    data = make_data(evidence=change.pop("evidence", None))
    if "labels_of" in change:
        data = replace(data, y=data.y.roll(change.pop("labels_of")))
    model = make_model(data, **change)
    with pytest.raises(ValueError, match=f"another run: {message}"):
        fit(
            model,
            data,
            steps=STEPS,
            batch_size=32,
            validate_every=EVERY,
            augment=jitter,
            progress=False,
            out=stopped,
            resume=True,
        )


@pytest.fixture(scope="module")
def stopped_with_terms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped_with_terms")
    train(folder, linked=True, evidence=0, terms=PAIRED, minutes=1e-9)
    return folder


CLASSIFICATION, AGREEMENT = map(repr, PAIRED)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            (PAIRED[0], Agreement(20.0, end=0.5, purity=0.9)),
            f"terms.agreement {AGREEMENT!r} -> {AGREEMENT.replace('0.98', '0.9')!r}",
        ),
        (
            (Classification(3.0, end=0.5), PAIRED[1]),
            f"terms.classification {CLASSIFICATION!r} -> {CLASSIFICATION.replace('2.0', '3.0')!r}",
        ),
        ((PAIRED[1],), f"terms.classification {CLASSIFICATION!r} -> None"),
        ((*PAIRED, Balance()), f"terms.balance None -> {repr(Balance())!r}"),
    ],
)
def test_other_terms_are_another_run(stopped_with_terms, terms, message):
    with pytest.raises(ValueError, match=f"another run: {re.escape(message)}. Give the same settings"):
        train(stopped_with_terms, linked=True, evidence=0, terms=terms, resume=True)


def test_other_evidence_is_other_data(stopped_with_terms):
    for evidence in (1, None):
        with pytest.raises(ValueError, match=r"another run: data '\w{16}' -> '\w{16}'\. Give"):
            train(stopped_with_terms, linked=True, evidence=evidence, terms=PAIRED, resume=True)


def test_the_same_terms_in_other_words_are_the_same_run(stopped_with_terms, tmp_path):
    words = ({"name": "classification", "weight": 2, "end": 0.5}, "agreement:weight=20,end=0.5")
    folder = shutil.copytree(stopped_with_terms, tmp_path / "copy")
    resumed = train(folder, linked=True, evidence=0, terms=words, resume=True)
    assert_as_uninterrupted(resumed, linked=True, evidence=0, terms=PAIRED)


@pytest.mark.parametrize("name", CHANGED)
def test_another_runs_checkpoint_is_refused_and_the_model_left_alone(stopped, name):
    old, new = CHANGED[name]
    data = make_data()
    model = make_model(data)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    options = {"steps": STEPS, "batch_size": 32, "validate_every": EVERY, "progress": False, name: new}
    with pytest.raises(ValueError, match=rf"another run: (\w+\.)?{name} {old!r} -> {new!r}\. "):
        fit(model, data, augment=jitter, out=stopped, resume=True, **grouped(**options))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ([0.3, 0.7], [0.6, 0.4], "class_probs of class 0 0.3 -> 0.6 and of 1 more"),
        (None, [0.9, 0.1], "class_probs of class 0 0.5 -> 0.9 and of 1 more"),
        ([0.3, 0.7], [3.0, 7.0], ""),
        (None, [1.0, 1.0], ""),
    ],
)
def test_other_fixed_class_probabilities_are_another_model(before, now, message, tmp_path):
    data = make_data()
    options = {"steps": 6, "batch_size": 32, "out": tmp_path, "progress": False}
    first = "uniform" if before is None else torch.tensor(before)
    fit(make_model(data, class_probs=first), data, minutes=1e-9, **options)
    model = make_model(data, class_probs=torch.tensor(now))
    if message:
        with pytest.raises(
            ValueError, match=f"another model, and so of another run: {message}. Give the same"
        ):
            fit(model, data, resume=True, **options)
    else:
        assert fit(model, data, resume=True, **options).finished
    torch.testing.assert_close(model.class_probs().probs, torch.tensor(now) / sum(now))


def freeze(model, *names):
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return model


PARTS = ("flow.transform", "flow.prior")


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ((), PARTS[1:], r"requires_grad True -> False of flow\.prior\.\S+"),
        (PARTS[1:], (), r"requires_grad False -> True of flow\.prior\.\S+"),
        ((), PARTS[:1], r"requires_grad True -> False of flow\.transform\..* and of \d+ more"),
        (PARTS[:1], PARTS[1:], r"requires_grad True -> False of .*; requires_grad False -> True of flow\."),
    ],
)
def test_other_frozen_parts_are_another_run(before, now, message, tmp_path):
    data = make_data()
    options = {"steps": 6, "batch_size": 32, "out": tmp_path, "progress": False}
    fit(freeze(make_model(data), *before), data, minutes=1e-9, **options)
    with pytest.raises(ValueError, match=rf"another run: {message}"):
        fit(freeze(make_model(data), *now), data, resume=True, **options)
    assert fit(freeze(make_model(data), *before), data, resume=True, **options).finished


def test_a_checkpoint_that_does_not_tell_what_was_frozen_is_resumed(tmp_path):
    train(tmp_path, minutes=1e-9)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del content["settings"]["requires_grad"]
    torch.save(content, tmp_path / "last.ckpt")
    assert_as_uninterrupted(train(tmp_path, resume=True))


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "some.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, path)
    with pytest.raises(Exception, match=r"pickle|local object"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3), "b": lambda: None}, path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["some.ckpt"]


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path):
    torch.save({"a": nn.Linear(1, 1)}, tmp_path / "some.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "some.ckpt", weights_only=False)
