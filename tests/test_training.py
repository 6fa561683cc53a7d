"""Training end to end: it learns, says what goes wrong and where, logs, and keeps quiet otherwise."""

from __future__ import annotations

import csv
import itertools
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch.nn.utils import parameters_to_vector
from trainee import EVERY_TERM, grouped, jitter, make_data, make_model, train

import pyro_scnf as scnf
from pyro_scnf.datasets import Augment, toy
from pyro_scnf.datasets.augment import as_augment
from pyro_scnf.priors import GaussianMixturePrior
from pyro_scnf.terms import Agreement, Balance, Classification, Consistency, TrainingTerm
from pyro_scnf.training import Machine, Optimisation, StepBatches, fit

CLASSIFY = "classification:weight=5"


@pytest.fixture
def data():
    return toy("moons", num_train=200, num_test=100, seed=0).hold_out(40)


def build(data, prior="gmm", **options):
    torch.manual_seed(0)
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=2, width=16, blocks=1), prior, 2)
    model = scnf.SemiSupervisedModel(flow, **options)
    model.initialize(data.x, data.y)
    return model


def test_random_class_probabilities_with_a_guide_of_their_own():
    """They have no value that labels could be checked against."""
    data = toy("moons", num_train=200)
    model = build(data, class_probs="learnable")
    to_pyro_module_(model.class_probs)
    del model.class_probs.logits
    model.class_probs.logits = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    guide = AutoNormal(poutine.block(model, expose=["class_probs.logits"]))
    guide(data.x)
    before = parameters_to_vector(guide.parameters())
    assert fit(model, data, guide=guide, steps=3, progress=False).steps == 3
    assert not torch.equal(parameters_to_vector(guide.parameters()), before)


def nll(model, x):
    with torch.no_grad():
        return -model.log_prob(x).mean().item()


@pytest.mark.filterwarnings("ignore:Found 1 module")  # Lightning says that the prior is in evaluation mode
def test_a_trained_model_is_in_evaluation_mode_and_further_training_is_not(data):
    """With dropout, posteriors would differ from call to call, and a second run would train without it."""
    net = {"name": "mlp", "hidden": (8, 8), "dropout": 0.5}
    flow = scnf.SemiConditionalFlow(scnf.flows.realnvp((2,), couplings=2, net=net), "gmm", 2)
    model = scnf.SemiSupervisedModel(flow)
    model.flow.prior.eval()
    modes = []
    dropout = next(module for module in model.modules() if isinstance(module, torch.nn.Dropout))
    dropout.register_forward_pre_hook(
        lambda module, _: modes.append((module.training, model.flow.prior.training))
    )
    for prior_in_training in (False, True):  # fit leaves all in evaluation mode, so the second run trains all
        modes.clear()
        fit(model, data, steps=2, validate_every=2, progress=False)
        assert set(modes) == {(True, prior_in_training), (False, False)}
        assert not any(module.training for module in model.modules())
        assert torch.equal(model.posterior(data.x).probs, model.posterior(data.x).probs)
    model.train()
    with pytest.raises(RuntimeError, match="scoring failed"):
        fit(model, data, steps=2, augment=lambda x: x * torch.inf, progress=False)
    assert not model.training


@pytest.mark.parametrize(
    ("guide", "precision"), [*((guide, "32") for guide in scnf.GUIDES), ("exact", "bf16-mixed")]
)
def test_the_validation_likelihood_improves_under_every_guide(data, guide, precision):
    sizes = {"num_labelled": len(data.labelled[0]), "num_unlabelled": len(data.unlabelled)}
    model = build(data, **sizes)
    before = nll(model, data.x_val)
    result = fit(
        model,
        data,
        guide=guide,
        terms=CLASSIFY,
        machine=Machine(precision=precision),
        steps=60,
        batch_size=64,
        validate_every=20,
        progress=False,
    )
    after = nll(model, data.x_val)
    assert result.steps == 60
    assert after == pytest.approx(result.best_nll, abs=1e-4 if precision == "32" else 0.05)
    assert after < before - 0.1


def test_without_held_out_data_the_last_weights_are_kept():
    data = toy("moons", num_train=50, num_test=20)
    result = fit(build(data), data, steps=3, progress=False)
    assert (result.steps, result.best_step, result.best_nll) == (3, 3, None)


def test_the_last_step_is_validated_whatever_its_number(data, tmp_path):
    result = fit(build(data), data, steps=25, validate_every=10, out=tmp_path, log="csv", progress=False)
    assert result.best_step == 25
    assert [step for step, row in rows_of(tmp_path, "val_nll")] == [9, 19, 24]


def test_until_averaging_begins_the_weights_are_those_of_the_step(data):
    runs = [build(data), build(data)]
    for model, decay in zip(runs, (None, 0.995), strict=True):
        # The schedule is that of 40 steps, a tenth of which is not averaged.
        optimisation = Optimisation(ema_decay=decay)
        fit(model, data, optimisation=optimisation, steps=40, validate_every=4, minutes=1e-9, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in runs), strict=True))


def test_the_average_of_a_short_run_forgets_its_first_weights(data):
    """Its decay is that of 30 steps, 1 - 3 / 30, unless a smaller one is asked for."""
    runs = {decay: build(data) for decay in (0.995, 0.9, 0.5)}
    for decay, model in runs.items():
        fit(model, data, optimisation=Optimisation(ema_decay=decay), steps=30, progress=False)
    weights = {decay: parameters_to_vector(model.parameters()) for decay, model in runs.items()}
    assert torch.equal(weights[0.995], weights[0.9])
    assert not torch.equal(weights[0.9], weights[0.5])


def test_patience_ends_the_run(data):
    options = grouped(steps=40, validate_every=5, learning_rate=0.0, patience=2, progress=False)
    result = fit(build(data), data, **options)
    assert (result.steps, result.finished, result.best_step) == (15, True, 5)


def test_everything_labelled_and_nothing_labelled():
    data = toy("moons", num_train=60, num_test=20, seed=0)
    for y in (torch.arange(60) % 2, torch.full((60,), -1)):
        some = replace(data, y=y)
        model = make_model(some)
        before = nll(model, data.x)
        fit(model, some, **grouped(steps=30, batch_size=32, ema_decay=None, progress=False))
        assert nll(model, data.x) < before


def test_data_kept_elsewhere_give_the_same_weights(tmp_path):
    here, _ = train(tmp_path / "here", validated=True)
    there, _ = train(tmp_path / "there", validated=True, data_on_device=False, num_workers=1)
    assert all(torch.equal(value, there[name]) for name, value in here.items())


# -- options ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number of at least 1"),
        ({"validate_every": None}, "validate_every=None: expected a whole number"),
        ({"validate_every": 0}, "validate_every=0: expected at least 1"),
        ({"precision": "16"}, "precision='16': expected '32' or 'bf16-mixed'"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: expected a finite number of at least 0 and below 1"),
        ({"patience": 0}, "patience=0: expected at least 1"),
        ({"gradient_clip": -1.0}, "gradient_clip=-1.0: expected a finite number above 0"),
        ({"patience": 2}, "patience: no x_val to judge by"),
        ({"minutes": 0}, "minutes=0: expected a finite number above 0"),
        ({"minutes": "5"}, "minutes='5': expected a finite number above 0"),
        ({"seed": 0.5}, "seed=0.5: expected a whole number"),
        ({"resume": True}, "resume=True: give `out`"),
        ({"resume": "no"}, "resume='no': expected True or False"),
        ({"progress": 1}, "progress=1: expected True or False"),
        ({"out": 3}, "out=3: expected the path of a folder"),
        ({"log": "paper"}, "log='paper': expected 'csv', 'tensorboard' or None"),
        ({"log": "csv"}, "log='csv': give `out`"),
        ({"guide": "none"}, "guide='none': expected one of"),
        ({"optimizer": "none"}, "optimizer='none': expected one of"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    data = make_data()
    with pytest.raises(ValueError, match=message):
        fit(make_model(data), data, **grouped(**{"progress": False, **options}))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Optimisation, {"optimizer": "sgd"}, "optimizer='sgd': expected one of 'adam'"),
        (Optimisation, {"schedule": "step"}, "schedule='step': expected one of 'one-cycle'"),
        (Optimisation, {"learning_rate": -1.0}, "learning_rate=-1.0: expected a finite number"),
        (Optimisation, {"weight_decay": float("inf")}, "weight_decay=inf: expected a finite number"),
        (Optimisation, {"betas": (0.9,)}, r"betas=\(0.9,\): expected two numbers"),
        (Optimisation, {"betas": 0.9}, r"betas=0.9: expected two numbers"),
        (
            Optimisation,
            {"betas": (0.9, 1.0)},
            r"betas=1.0: expected a finite number of at least 0 and below 1",
        ),
        (Optimisation, {"warmup": 1.0}, "warmup=1.0: expected a finite number of at least 0 and below 1"),
        (Optimisation, {"learning_rate": "fast"}, "learning_rate='fast': expected a finite number"),
        (Optimisation, {"gradient_clip": float("nan")}, "gradient_clip=nan: expected a finite number above"),
        (Machine, {"compile": "no"}, "compile='no': expected True or False"),
        (Machine, {"data_on_device": 1}, "data_on_device=1: expected True or False"),
        (Machine, {"device": "tpu"}, "device='tpu': expected 'cpu' or 'cuda'"),
        (Machine, {"devices": 0}, "devices=0: expected at least 1"),
        (Machine, {"num_nodes": 0}, "num_nodes=0: expected at least 1"),
        (Machine, {"num_workers": -1}, "num_workers=-1: expected at least 0"),
    ],
)
def test_options_are_checked_where_they_are_written(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_machines_are_equal_if_a_run_may_move_between_them():
    assert Machine() == Machine(device="cuda", compile=True, data_on_device=False, num_workers=2)
    assert Machine(devices=4) == Machine(devices=2, num_nodes=2)
    assert Machine() != Machine(devices=2)
    assert Machine() != Machine(precision="bf16-mixed")
    assert len({Machine(), Machine(device="cuda")}) == 1
    assert Optimisation(betas=[0.9, 0.99]) == Optimisation()


def test_a_run_goes_on_with_other_workers_and_elsewhere(tmp_path):
    train(tmp_path, minutes=1e-9)
    _, result = train(tmp_path, resume=True, data_on_device=False, num_workers=1)
    assert result.finished
    assert result.seconds_in_all > result.seconds - 1


@pytest.mark.parametrize("kind", ["mixed", "unlabelled", "view"])
@pytest.mark.parametrize(
    ("augment", "number"), [(lambda x: torch.cat([x, x, x]), r"\d+ rows"), (lambda x: x[:3], "3 rows")]
)
def test_augment_may_not_change_the_number_of_rows(kind, augment, number):
    data = make_data()
    if kind == "unlabelled":
        data = replace(data, y=torch.full_like(data.y, -1))
    calls = itertools.count()
    change = augment if kind != "view" else lambda x: x if next(calls) % 3 < 2 else augment(x)
    terms = "consistency" if kind == "view" else ()
    with pytest.raises(ValueError, match=rf"^augment: it returns {number}, expected \d+, one for each row"):
        fit(make_model(data), data, augment=change, terms=terms, steps=1, batch_size=16, progress=False)


def test_augment_has_its_say_on_each_kind_of_rows():
    seen = []

    class Watching(Augment):
        bins = 4

        def __call__(self, x):
            seen.append(("training", len(x)))
            return x

        def labelled(self, x):
            seen.append(("labelled", len(x)))
            return x

        def prepare(self, x):
            seen.append(("validation", len(x)))
            return x

    data = make_data(validated=True)
    fit(make_model(data), data, steps=1, batch_size=16, augment=Watching(), progress=False)
    assert seen == [("labelled", 10), ("training", 16), ("validation", 41)]
    with pytest.raises(ValueError, match="augment='shift': expected an Augment, a function of x, or None"):
        fit(make_model(data), data, augment="shift", progress=False)


def test_a_function_with_some_methods_of_the_protocol_is_understood():
    def shift(x):
        return x + 1

    shift.labelled = lambda x: x + 2
    shift.prepare = lambda x: x + 3
    augment = as_augment(shift)
    x = torch.zeros(1)
    assert [augment(x).item(), augment.labelled(x).item(), augment.prepare(x).item()] == [1, 2, 3]
    plain, nothing = as_augment(lambda x: x + 1), as_augment(None)
    assert [plain(x).item(), plain.labelled(x).item(), plain.prepare(x).item()] == [1, 1, 0]
    assert [nothing(x).item(), nothing.labelled(x).item(), nothing.bins] == [0, 0, None]


def test_settings_of_any_kind_can_be_saved_and_compared(tmp_path):
    """NumPy's numbers, functions and tensors among the options do not spoil a checkpoint at the end."""

    @dataclass(frozen=True)
    class Warp(Augment):
        function: Callable = torch.tanh
        factor: float = 1.0
        weights: torch.Tensor | None = None

        def __call__(self, x):
            return self.factor * self.function(x) * self.weights

    data = make_data()
    rate = np.float64(1e-3)
    options = {"steps": np.int64(4), "seed": np.int64(3), "progress": False, "out": tmp_path}
    optimisation = Optimisation(learning_rate=rate, betas=(np.float32(0.5), 0.9))
    warp = Warp(weights=torch.ones(2))
    fit(make_model(data), data, augment=warp, optimisation=optimisation, **options)
    result = fit(make_model(data), data, augment=warp, optimisation=optimisation, resume=True, **options)
    assert result.steps == 4
    for other, change in (
        (replace(warp, factor=2.0), "factor 1.0 -> 2.0"),
        (replace(warp, function=torch.sin), r"function '.*tanh' -> '.*sin'\."),
    ):
        with pytest.raises(ValueError, match=rf"another run: augment\.{change}"):
            fit(make_model(data), data, augment=other, optimisation=optimisation, resume=True, **options)


def test_another_model_is_another_run_and_named(tmp_path):
    data = make_data()
    options = {"steps": 3, "progress": False, "out": tmp_path}
    fit(make_model(data), data, **options)
    for model, message in (
        (make_model(data, "student-t"), "prior.name 'gmm' -> 'student-t'"),
        (make_model(data, class_probs="learnable"), "class_probs.probs .uniform. -> .learnable."),
    ):
        with pytest.raises(ValueError, match=f"another run: {message}"):
            fit(model, data, resume=True, **options)


# -- training terms --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Watch(TrainingTerm):
    """It notes the progress of each step, and counts one nat for each unlabelled row."""

    needs = frozenset({"unlabelled"})
    told: list = field(default_factory=list, compare=False, repr=False)

    def nats(self, step):
        self.told.append(step.progress)
        return 0 * step.unlabelled.given.sum() + step.unlabelled.scale * len(step.unlabelled)


def test_terms_are_told_the_progress_of_training():
    data, watch = make_data(), Watch()
    fit(make_model(data), data, terms=watch, steps=4, progress=False)
    assert watch.told == [0.0, 0.25, 0.5, 0.75]


def test_a_resumed_run_goes_on_with_the_progress_of_the_whole(tmp_path):
    data, watch, finished = make_data(), Watch(), False
    while not finished:
        options = {"steps": 4, "minutes": 1e-9, "resume": True, "out": tmp_path, "progress": False}
        finished = fit(make_model(data), data, terms=watch, **options).finished
    assert watch.told == [0.0, 0.25, 0.5, 0.75]


def test_a_view_is_drawn_only_for_a_step_that_needs_one():
    calls = []

    def augment(x):
        calls.append(len(x))
        return jitter(x)

    data, options = make_data(), {"steps": 3, "batch_size": 16, "augment": augment, "progress": False}
    fit(make_model(data), data, terms=["balance", "classification"], **options)
    assert calls == 3 * [10, 16]  # labelled rows, then unlabelled ones
    calls.clear()
    fit(make_model(data), data, terms=Consistency(start=0.0), **options)
    assert calls == [10, 16] + 2 * [10, 16, 16]


UNKNOWN, KNOWN = torch.full((120,), -1), torch.arange(120) % 2


@pytest.mark.parametrize(
    ("data", "terms", "augment", "message"),
    [
        ({"y": UNKNOWN}, Classification(), jitter, "classification needs labelled rows: give x and y"),
        ({"y": KNOWN}, Balance(), jitter, "balance needs unlabelled rows"),
        ({"y": KNOWN}, Consistency(), jitter, "consistency needs unlabelled rows"),
        ({}, Agreement(), jitter, r"agreement needs pairs of rows: give pairs, or link_neighbours\(data\)"),
        ({}, Consistency(), None, "consistency needs a second view .*: give view, or augment"),
        ({}, Consistency(start=0.0), None, "consistency needs a second view .*: give view, or augment"),
        (
            {},
            Classification(targets="evidence"),
            None,
            "classification needs evidence .*: give label_log",
        ),
        ({}, [Balance(), Agreement()], None, "agreement needs pairs"),
    ],
)
def test_a_term_that_needs_what_the_data_lack_is_refused_at_once(data, terms, augment, message, tmp_path):
    train(tmp_path, steps=2)
    data = replace(make_data(), **data)
    with pytest.raises(ValueError, match=f"terms: {message}"):
        fit(make_model(data), data, terms=terms, augment=augment, out=tmp_path, progress=False)
    assert (tmp_path / "last.ckpt").exists()  # what was there before is left alone


def test_neighbours_that_no_term_uses_are_refused():
    data, options = make_data(linked=True), {"steps": 1, "batch_size": 24, "progress": False}
    for terms in ((), ["classification", "balance"]):
        with pytest.raises(ValueError, match="its neighbours are linked, but no training term uses pairs"):
            fit(make_model(data), data, terms=terms, **options)
    assert fit(make_model(data), data, terms="agreement", **options).finished


def test_terms_of_weight_zero_need_nothing_and_change_nothing(tmp_path):
    plain, _ = train(tmp_path / "plain")
    terms = (Agreement(0.0), Consistency(0.0), Classification(0.0, targets="evidence"), Balance(0.0))
    with_terms, _ = train(tmp_path / "terms", terms=terms)
    assert all(torch.equal(value, with_terms[name]) for name, value in plain.items())


def test_terms_that_are_none():
    data = make_data()
    with pytest.raises(ValueError, match=r"terms.*'entropie'"):
        fit(make_model(data), data, terms="entropie", progress=False)


@dataclass(frozen=True)
class Fails(TrainingTerm):
    """A term that gives ``value`` in the second half of training."""

    value: float = torch.nan
    needs = frozenset({"unlabelled"})

    def nats(self, step):
        return step.unlabelled.given.sum() * 0 + (self.value if step.progress >= 0.5 else 0.0)


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")  # Pyro's, beside the error
@pytest.mark.parametrize(
    ("terms", "named"),
    [
        (["classification", Fails()], "the training term fails"),
        ([Fails(value=torch.inf), "classification"], "the training term fails"),
        ([Fails(value=1.0), Fails(value=-torch.inf)], "the training term fails_2"),
        ([Fails(value=3e38), Fails(value=3e38)], "their sum"),
    ],
)
def test_a_term_that_is_not_finite_is_named(terms, named):
    data = make_data()
    with pytest.raises(RuntimeError, match="training stopped at step 3: the loss is ") as raised:
        fit(make_model(data), data, terms=terms, steps=6, progress=False)
    assert f"the first term that is not finite is {named}." in str(raised.value)


# -- after a step ----------------------------------------------------------------------------------
class CountingPrior(GaussianMixturePrior):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("updates", torch.zeros(()))

    def update(self):
        self.updates += 1


class CountingProbs(scnf.ClassProbs):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("updates", torch.zeros(()))

    def update(self):
        self.updates += 1


def test_guide_prior_and_class_probabilities_are_updated_once_a_step(tmp_path):
    data, finished, pieces = make_data(), False, 0
    while not finished:  # in pieces, so that checkpoints must hold the counts
        model = make_model(data, CountingPrior((2,), 2), class_probs=CountingProbs(2))
        guide = scnf.EMGuide(model, decay=0.9)
        options = {"steps": 3, "minutes": 1e-9, "resume": True, "out": tmp_path, "progress": False}
        finished, pieces = fit(model, data, guide=guide, **options).finished, pieces + 1
    assert pieces == 3
    assert (model.flow.prior.updates, model.class_probs.updates, guide.old.n_averaged) == (3, 3, 3)
    assert not torch.equal(guide.old.module.flow.prior.loc, model.flow.prior.loc)


def test_a_lagged_guide_follows_the_weights():
    """The average of the guide, by hand from the weights after each step."""
    data, seen = make_data(), []

    class Watching(scnf.EMGuide):
        def update(self):
            super().update()
            seen.append(self.model.flow.prior.loc.detach().clone())

    model = make_model(data)
    guide = Watching(model, decay=0.9)
    fit(model, data, guide=guide, **grouped(steps=5, ema_decay=None, progress=False))
    average = seen[0]
    for value in seen[1:]:
        average = 0.9 * average + 0.1 * value
    assert len(seen) == 5
    torch.testing.assert_close(guide.old.module.flow.prior.loc, average)
    assert (seen[0] - seen[-1]).abs().max() > 1e-4


def test_options_are_objects():
    data = make_data()
    for options in ({"optimisation": "adam"}, {"optimisation": Optimisation}, {"machine": "cpu"}):
        (name,) = options
        with pytest.raises(ValueError, match=rf"{name} is of type .*, expected an? {name.title()}"):
            fit(make_model(data), data, steps=1, progress=False, **options)


# -- what is not finite ----------------------------------------------------------------------------
class Break:
    """Augmentation that calls ``harm`` in the step of the given number; each step augments twice."""

    def __init__(self, step, harm):
        self.calls_left, self.harm = 2 * step, harm

    def __call__(self, x):
        self.calls_left -= 1
        return self.harm(x) if self.calls_left < 0 else jitter(x)


def spoil(parameter, value):
    def harm(x):
        parameter.data.fill_(value)
        return x

    return harm


def deform(owner, change):
    """Have ``owner`` return what ``change`` makes of its log-determinant."""

    def harm(x):
        usual = type(owner).inverse_and_ladj

        def changed(value):
            z, ladj = usual(owner, value)
            return z, change(ladj)

        object.__setattr__(owner, "inverse_and_ladj", changed)
        return x

    return harm


HARMS = {
    "the labelled data themselves, after augment": lambda model: lambda x: x / 0,
    "the parameter flow.prior.loc": lambda model: spoil(model.flow.prior.loc, torch.nan),
    "the log-determinant of the flow on labelled data": lambda model: deform(
        model.flow.transform, lambda ladj: ladj + torch.inf
    ),
    "log p(z_f | y) of labelled data": lambda model: spoil(model.flow.prior.loc, 1e30),
}


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")  # Pyro's, beside the error
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("term", HARMS)
def test_the_first_term_that_is_not_finite_is_named(term, validate, tmp_path):
    pyro.enable_validation(validate)
    data = make_data()
    model = make_model(data)
    options = {"steps": 12, "validate_every": 5, "out": tmp_path, "progress": False}
    with pytest.raises(RuntimeError, match="training stopped at step 7: ") as raised:
        fit(model, data, augment=Break(7, HARMS[term](model)), **options)
    assert f"the first term that is not finite is {term}." in str(raised.value)
    # What was saved before is sound, and enough to go on.
    assert fit(make_model(data), data, augment=jitter, resume=True, **options).steps == 12


def test_a_gradient_that_is_not_finite_is_named():
    data = make_data()
    model = make_model(data)
    model.flow.prior.loc.register_hook(lambda grad: grad * torch.inf)
    message = "step 0: the loss is finite, but not the gradient of flow.prior.loc"
    with pytest.raises(RuntimeError, match=message):
        fit(model, data, steps=5, progress=False)


# -- precision -------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", [*scnf.PRIORS, "gmm:covariance=full"])
def test_all_but_the_conditioners_stays_in_float32(data, prior):
    """The last layers of a fresh model's conditioners are 0: whatever rounding there is, is elsewhere."""
    model = build(data, prior)
    x, y = data.labelled
    loss = scnf.elbo(model, terms=[CLASSIFY, "balance"])
    full = loss(x, y, data.unlabelled)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(x, y, data.unlabelled)
        assert model.log_prob(x).dtype == torch.float32
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, rtol=1e-6, atol=0)


# -- logs ------------------------------------------------------------------------------------------
def rows_of(folder, column, version=0):
    """Step and row of each line of the log that has a number in ``column``."""
    with (folder / f"log/version_{version}/metrics.csv").open() as file:
        return [(int(row["step"]), row) for row in csv.DictReader(file) if row[column]]


def test_logs_are_readable_and_a_resumed_run_writes_another(tmp_path):

    class Levels(Augment):
        bins = 256

    options = {"validated": True, "steps": 40, "validate_every": 20, "log": "csv", "augment": Levels()}
    train(tmp_path, minutes=1e-9, **options)
    first = (tmp_path / "log/version_0/metrics.csv").read_text()
    train(tmp_path, resume=True, **options)
    assert (tmp_path / "log/version_0/metrics.csv").read_text() == first
    assert [step for step, _ in rows_of(tmp_path, "loss")] == [9, 19]
    assert [step for step, _ in rows_of(tmp_path, "loss", version=1)] == [29, 39]
    _, row = rows_of(tmp_path, "val_nll")[0]
    assert float(row["val_bits_per_dim"]) == pytest.approx(float(row["val_nll"]) / 2 / 0.6931472 + 8)


def test_the_parts_of_the_loss_are_logged_and_add_up_to_it(tmp_path):
    options = {"steps": 10, "log": "csv", "batch_size": 24}
    train(tmp_path / "plain", **options)
    ((_, row),) = rows_of(tmp_path / "plain", "loss")
    assert row.keys() == {"epoch", "step", "loss", "grad_norm"}
    terms = (*EVERY_TERM, Watch(2.0))
    train(tmp_path / "terms", linked=True, evidence=0, terms=terms, **options)
    ((_, row),) = rows_of(tmp_path / "terms", "loss")
    names = ["classification", "agreement", "classification_2", "consistency", "consistency_2", "balance"]
    assert row.keys() == {"epoch", "step", "loss", "grad_norm", "nll", "watch", *names}
    parts = {name: float(row[name]) for name in ("nll", "watch", *names)}
    assert float(row["loss"]) == pytest.approx(sum(parts.values()), rel=1e-5)
    assert parts["watch"] == pytest.approx(2 * 24 / 34)  # nats per example, of 10 labelled and 24 others
    assert all(abs(part) > 1e-6 for part in parts.values())


class Noisy(Augment):
    """Validation rows get random noise, as dequantised images do."""

    def __call__(self, x):
        return jitter(x)

    def prepare(self, x):
        return x + 0.3 * torch.randn_like(x)


def test_every_validation_has_the_same_noise(tmp_path):
    """The weights do not change here, so a validation that drew its own noise would have another NLL."""
    options = {"validated": True, "learning_rate": 0.0, "log": "csv", "augment": Noisy()}
    found = []
    for seed in (0, 1):
        train(tmp_path / str(seed), seed=seed, **options)
        found.append([row["val_nll"] for _, row in rows_of(tmp_path / str(seed), "val_nll")])
        assert len(found[-1]) == 4
        assert len(set(found[-1])) == 1
    assert found[0] != found[1]


def test_tensorboard(tmp_path, monkeypatch):
    train(tmp_path, log="tensorboard", steps=10)
    assert list((tmp_path / "tensorboard/version_0").glob("events.*"))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-scnf\[tensorboard\]'"):
        train(tmp_path, log="tensorboard", steps=10)


def test_it_says_nothing_beside_the_point_and_leaves_levels_and_filters_alone(tmp_path, capfd):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level, filters = logger.level, list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, validated=True, minutes=1e-9)
        train(tmp_path, validated=True, resume=True, log="csv")
    assert [str(w.message) for w in caught] == []
    assert capfd.readouterr() == ("", "")
    assert (logger.level, warnings.filters) == (level, filters)


# -- Pyro's own loop -------------------------------------------------------------------------------
@pytest.mark.parametrize("guide", ["exact", "em"])
def test_plain_svi_trains_the_same_model(data, guide):
    model = build(data)
    before = nll(model, data.x_val)
    svi = SVI(
        scnf.with_terms(model, CLASSIFY),
        scnf.make_guide(guide, model),
        pyro.optim.ClippedAdam({"lr": 0.01}),
        TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    )
    batches = StepBatches(data, batch_size=64)
    for step in range(40):
        batch = batches[step]
        svi.step(batch.x, batch.y, batch.x_unlabelled, progress=step / 40)
    assert nll(model, data.x_val) < before - 0.1


@pytest.mark.parametrize("wrong", ["batch size", "evidence"])
def test_wrong_options_leave_the_files_of_an_earlier_run(wrong, tmp_path):
    data = make_data()
    options = {"steps": 2, "progress": False, "out": tmp_path}
    fit(make_model(data), data, **options)
    before = (tmp_path / "last.ckpt").read_bytes()
    if wrong == "batch size":
        options["batch_size"] = 0
    else:
        # A data set refuses it, but what it holds can be changed in place.
        data = make_data(evidence=0)
        data.label_log_prior.zero_()
    with pytest.raises(ValueError, match=r"batch_size=0|label_log_prior is not normalised"):
        fit(make_model(data), data, **options)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_terms_that_a_resumed_run_could_not_compare():
    class Hidden(scnf.terms.TrainingTerm):
        def __init__(self, margin):
            super().__init__()
            object.__setattr__(self, "margin", margin)

    @dataclass(frozen=True)
    class Callback(scnf.terms.TrainingTerm):
        function: Callable = max

    data = make_data()
    for term, what in (
        (Hidden(1.0), "the attribute margin"),
        (Callback(function=lambda: 0), "a field that is no plain value"),
    ):
        with pytest.raises(ValueError, match=f"terms: {term.name} has {what}, which a resumed run cannot"):
            fit(make_model(data), data, terms=term, steps=1, progress=False)
