"""Plain loaders train, validate, test and predict; no call changes the state of the process."""

from __future__ import annotations

import gc
import random
import signal
import warnings
import weakref
from dataclasses import replace
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import perturb
from lightning.pytorch.callbacks import ModelCheckpoint
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam
from torch.distributions import Distribution
from torch.utils.data import DataLoader, TensorDataset
from trainee import jitter, make_data, make_model, train

import pyro_scnf as scnf
from pyro_scnf import analysis
from pyro_scnf.datasets import Augment, ImageAugment, SemiSupervisedData
from pyro_scnf.training import Optimisation, SemiSupervisedTask, StepBatches, fit


def trainer(**options: Any) -> lightning.Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return lightning.Trainer(accelerator="cpu", **{**quiet, **options})


def rows(data):
    """All rows with their labels, -1 where hidden."""
    return TensorDataset(data.x, data.y)


# Lightning's own advice and warnings, which a trainer of the user's own gives.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*' does not have many workers", "ignore:.*LeafSpec", "ignore:.*have no `val_dataloader`"
)


def some_data():
    """A dozen labels among sixty rows."""
    data = make_data()
    y = torch.where(torch.arange(60) < 12, torch.arange(60) % 2, -1)
    return replace(data, x=data.x[:60], y=y)


# -- training --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mixed", "labelled", "unlabelled", "x alone", "tensors"])
def test_plain_batches_train_with_the_loss_of_the_model(kind):
    data = some_data()
    y = {"labelled": torch.arange(60) % 2, "unlabelled": torch.full((60,), -1)}.get(kind, data.y)
    parts = (data.x,) if kind == "x alone" else (data.x, y)
    loader = DataLoader(data.x if kind == "tensors" else TensorDataset(*parts), batch_size=20)
    model = make_model(data)
    losses = []

    class Watching(SemiSupervisedTask):
        def training_step(self, batch, batch_idx):
            x = batch if kind == "tensors" else batch[0]
            labels = batch[1] if len(parts) == 2 and kind != "tensors" else torch.full((len(x),), -1)
            with torch.no_grad():
                joint = self.model.flow.class_log_prob(x) + self.model.class_probs.log_probs
                chosen = joint.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
                expected = -torch.where(labels < 0, joint.logsumexp(-1), chosen).mean()
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
            return loss

    before = [p.clone() for p in model.parameters()]
    trainer(max_epochs=2).fit(Watching(model, steps=6), loader)
    assert len(losses) == 6
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_each_step_of_a_plain_loader_has_its_own_noise_and_progress():
    data, drawn = some_data(), []

    def augment(x):
        drawn.append(torch.rand(()).item())
        return x

    for _ in range(2):
        task = SemiSupervisedTask(make_model(data), steps=6, augment=augment)
        # Gradients of two batches are added up, so two batches belong to the same optimiser step.
        trainer(max_epochs=2, accumulate_grad_batches=2).fit(task, DataLoader(data.x, batch_size=20))
    assert len(set(drawn)) == 6
    assert drawn[:6] == drawn[6:]


def test_em_counts_all_batches_of_a_step():
    """Gradients of three batches make one optimiser step, whose M-step sees the rows of all three."""
    data = some_data()
    model = make_model(data, "gmm:fit_means=em")
    model.flow.prior.begun.fill_(True)  # the tables as they are do not count
    task = SemiSupervisedTask(model, steps=1)
    trainer(max_steps=1, accumulate_grad_batches=3).fit(task, DataLoader(data.x[:60], batch_size=20))
    kept = model.flow.prior.em_decay
    assert model.flow.prior.moments.count.sum().item() == pytest.approx(kept * 60, rel=1e-4)
    trainer(max_steps=1).fit(task, DataLoader(data.x[:10], batch_size=10))
    assert model.flow.prior.moments.count.sum().item() == pytest.approx(kept * (kept * 60 + 10), rel=1e-4)


def test_step_batches_are_a_finite_data_set():
    data = some_data()
    batches = StepBatches(data, 20)
    assert len(batches) == 3  # 48 unlabelled rows
    for loader in (batches, DataLoader(batches, batch_size=None)):
        given = list(loader)
        assert [batch.step for batch in given] == [0, 1, 2]
        assert all(
            torch.equal(batch.x_unlabelled, batches[step].x_unlabelled) for step, batch in enumerate(given)
        )
    assert batches[1000].step == 1000
    assert batches[torch.tensor(3)].step == 3
    with pytest.raises(IndexError, match="step=-1: expected a number of at least 0"):
        batches[-1]
    model = make_model(data)
    run = trainer(max_epochs=2)
    run.fit(SemiSupervisedTask(model, steps=6, augment=jitter), DataLoader(batches, batch_size=None))
    assert run.global_step == 6


class Noting(SemiSupervisedTask):
    """It notes the number of each batch, the progress and the rows, which its augment has changed."""

    def __init__(self, model, **options):
        super().__init__(model, augment=jitter, **options)
        self.numbers, self.progress, self.rows = [], [], []
        loss = self.objective[0]

        def noted(*arguments, progress, **rest):
            self.progress.append(progress)
            self.rows.append(arguments[-1].clone())
            return loss(*arguments, progress=progress, **rest)

        for name in ("terms", "parts", "expected", "named_parameters"):
            noted.__dict__[name] = getattr(loss, name)
        self.objective = [noted]

    def _loss(self, batch):
        self.numbers.append(batch.step)
        return super()._loss(batch)


def step_loaders(batches):
    yield batches
    yield DataLoader(batches, batch_size=None)
    yield DataLoader(batches, batch_size=None, num_workers=2, persistent_workers=True)


@pytest.mark.parametrize("kind", range(3))
def test_epochs_over_step_batches_go_on_where_the_last_one_ended(kind):
    data = some_data()
    batches = StepBatches(data, 20)  # three steps an epoch
    task = Noting(make_model(data), steps=8)
    trainer(max_steps=8).fit(task, [*step_loaders(batches)][kind])
    assert task.numbers == list(range(8))
    assert task.progress == [step / 8 for step in range(8)]
    noise = [rows - batches[step].x_unlabelled for step, rows in enumerate(task.rows)]
    assert all(0 < value.abs().mean() < 0.2 for value in noise)
    assert not any(torch.allclose(noise[step], noise[step + 3]) for step in range(5))


def test_a_task_of_ones_own_trainer_ends_as_fit_does():
    data = make_data()
    constant = Optimisation(schedule="constant", ema_decay=None, gradient_clip=None)
    options = {"steps": 8, "augment": jitter, "seed": 3, "terms": "classification:weight=2,end=0.5"}
    ours, own = make_model(data), make_model(data)
    fit(ours, data, batch_size=64, optimisation=constant, progress=False, **options)
    batches = StepBatches(data, 64, seed=3)
    assert len(batches) < 8
    task = SemiSupervisedTask(own, optimisation=constant, **options)
    trainer(max_steps=8).fit(task, DataLoader(batches, batch_size=None))
    assert all(map(torch.equal, ours.parameters(), own.parameters()))


@pytest.mark.parametrize("stop", [2, 3, 4])  # the epochs have three steps
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_a_resumed_trainer_of_ones_own_ends_as_an_uninterrupted_one(stop, tmp_path):
    data = some_data()
    models = [make_model(data) for _ in range(2)]

    def run(model, steps, start=None):
        task = SemiSupervisedTask(model, steps=8, augment=jitter)
        here = trainer(max_steps=steps)
        here.fit(task, DataLoader(StepBatches(data, 20), batch_size=None), ckpt_path=start, weights_only=True)
        here.save_checkpoint(tmp_path / "some.ckpt")

    run(models[0], 8)
    run(models[1], stop)
    run(models[1], 8, tmp_path / "some.ckpt")
    assert all(map(torch.equal, *(model.parameters() for model in models)))


@pytest.mark.parametrize("step", [1, 2, 3])  # two steps in each epoch, of two batches and of one
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_checkpoint_of_a_step_resumes_where_gradients_accumulate(step, tmp_path):
    data, models = some_data(), []

    def run(start=None, **options):
        models.append(make_model(data))
        here = trainer(max_steps=4, accumulate_grad_batches=2, **options)
        task = SemiSupervisedTask(models[-1], steps=4, augment=jitter)
        here.fit(task, DataLoader(StepBatches(data, 20), batch_size=None), ckpt_path=start, weights_only=True)

    each_step = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    run(callbacks=[each_step], enable_checkpointing=True)
    run(tmp_path / f"step={step}.ckpt")
    assert all(map(torch.equal, *(model.parameters() for model in models)))


def test_an_order_that_the_user_chose_stays():
    data = some_data()
    task = Noting(make_model(data), steps=6)
    trainer(max_epochs=2).fit(task, DataLoader(StepBatches(data, 20), batch_size=None, sampler=[7, 5, 9]))
    assert task.numbers == [7, 5, 9, 7, 5, 9]
    task = Noting(make_model(data), steps=6)
    batches = DataLoader(StepBatches(data, 20), batch_size=None)
    trainer(max_epochs=3, overfit_batches=2).fit(task, batches)
    assert task.numbers == [0, 1] * 3


def test_progress_counts_optimiser_steps():
    data = some_data()
    task = Noting(make_model(data), steps=4)
    loader = DataLoader(StepBatches(data, 20), batch_size=None)
    trainer(max_steps=4, accumulate_grad_batches=3).fit(task, loader)
    assert task.numbers == list(range(12))
    assert task.progress == [step / 4 for step in range(4) for _ in range(3)]


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "options", "length"),
    [
        (12, 48, {}, 3),
        (12, 40, {}, 2),
        (12, 5, {}, 1),
        (50, 0, {"labelled_batch_size": 20}, 3),
        (50, 0, {}, 3),
        (15, 0, {}, 1),
        (12, 48, {"world_size": 2}, 3),
        (12, 48, {"steps": 7}, 7),
        (12, 48, {"steps": 7, "seed": 1}, 7),
    ],
)
def test_by_default_a_loop_shows_every_unlabelled_row(labelled, unlabelled, options, length):
    x = torch.arange(labelled + unlabelled).float()[:, None]
    y = torch.where(x[:, 0] < labelled, 0, -1)
    batches = StepBatches(SemiSupervisedData(x, y, x, y.clamp(min=0), 1), 20, **options)
    assert len(batches) == len(list(batches)) == length


def test_a_loop_over_pairs_shows_every_unlabelled_row_as_an_anchor():
    data = make_data(linked=True)
    batches = StepBatches(data, 24)
    unlabelled, size = data.x[data.y < 0], batches.unlabelled_size
    free = (size - batches.labelled_size) // 2
    anchors = torch.cat([batch.x_unlabelled[batches.labelled_size :][:free] for batch in batches])
    assert len(anchors) >= len(unlabelled) > len(anchors) - free
    assert len(anchors.unique(dim=0)) == len(unlabelled.unique(dim=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"rank": 2, "world_size": 2}, "rank=2: expected a number below world_size=2"),
        ({"rank": -1}, "rank=-1: expected at least 0"),
        ({"world_size": 0}, "world_size=0: expected at least 1"),
    ],
)
def test_numbers_of_steps_and_processes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        StepBatches(some_data(), 20, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda x, y: [x, y, y],
            r"the loader gives a list \(Tensor, Tensor, Tensor\); expected x, \(x,\) or",
        ),
        (lambda x, y: {"x": x, "y": y}, r"the loader gives a dict \(dict\); expected"),
        (lambda x, y: [x, y.float()], "the loader: y has dtype torch.float32, expected integer class labels"),
        (lambda x, y: [x, y + 7], r"the loader: y holds labels 6..8"),
        (lambda x, y: [x, y[:3]], r"the loader: y has shape \(3,\), expected \(60,\)"),
        (lambda x, y: [x.double(), y], "x has dtype torch.float64"),
        (lambda x, y: [x[:, :1], y], r"x has shape"),
    ],
)
def test_batches_of_another_kind_are_refused_by_name(given, message):
    data = some_data()
    loader = DataLoader([given(data.x, data.y)], batch_size=None)
    with pytest.raises(ValueError, match=message):
        trainer(max_steps=1).fit(SemiSupervisedTask(make_model(data), steps=1), loader)


# -- validation, test, prediction ------------------------------------------------------------------
@pytest.mark.parametrize("prefix", ["val", "test"])
def test_held_out_rows_are_scored_and_predicted_as_the_model_does(prefix):
    data = some_data()
    model = make_model(data)
    perturb(model.flow)
    task = SemiSupervisedTask(model, steps=1)
    posterior = model.posterior(data.x).probs.detach()
    nll = -model.log_prob(data.x).mean().item()
    known = data.y >= 0
    error = 100 * (posterior.argmax(-1) != data.y)[known].float().mean().item()
    run = trainer()
    score = run.validate if prefix == "val" else run.test
    for parts in ((data.x,), (data.x, data.y)):
        loader = DataLoader(TensorDataset(*parts), batch_size=25)
        (found,) = score(task, loader, verbose=False)
        assert found[f"{prefix}_nll"] == pytest.approx(nll, rel=1e-5)
        assert found.keys() == {f"{prefix}_nll", *([f"{prefix}_error"] if len(parts) == 2 else [])}
        probs = torch.cat(run.predict(task, loader))
        torch.testing.assert_close(probs, posterior)
    assert found[f"{prefix}_error"] == pytest.approx(error)


def test_a_checkpoint_of_fit_is_scored_by_a_task_with_other_settings(tmp_path):
    data = make_data(validated=True)
    model = make_model(data)
    result = fit(model, data, steps=4, validate_every=2, out=tmp_path, progress=False)
    task = SemiSupervisedTask(make_model(data), steps=1)
    (found,) = trainer().test(
        task, DataLoader(data.x_val, batch_size=41), ckpt_path=tmp_path / "best.ckpt", verbose=False
    )
    assert found["test_nll"] == pytest.approx(result.best_nll, rel=1e-5)
    loaded = SemiSupervisedTask.load_from_checkpoint(tmp_path / "best.ckpt", model=make_model(data), steps=1)
    assert torch.equal(loaded.model.log_prob(data.x), model.log_prob(data.x))
    with pytest.raises(ValueError, match="the checkpoint is of another run: "):
        trainer(max_steps=9).fit(task, DataLoader(data.x, batch_size=9), ckpt_path=tmp_path / "last.ckpt")


def test_a_frozen_model_is_named():
    data = some_data()
    model = make_model(data)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model: no parameter has requires_grad=True"):
        fit(model, data, steps=1, progress=False)


def test_images_are_dequantised_for_validation_test_and_prediction():
    x, y = torch.randint(0, 16, (9, 1, 4, 4), dtype=torch.uint8), torch.arange(9) % 2
    flow = scnf.SemiConditionalFlow(
        scnf.flows.glow((1, 4, 4), levels=1, steps=1, width=4, logit=0.05), "gmm", 2
    )
    task = SemiSupervisedTask(scnf.SemiSupervisedModel(flow), steps=1, augment=ImageAugment(bins=16))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    (found,) = trainer().test(task, loader, verbose=False)
    assert found.keys() == {"test_nll", "test_error", "test_bits_per_dim"}
    assert torch.cat(trainer().predict(task, loader)).shape == (9, 2)


def test_the_label_is_decided_where_rounding_cannot_reach():
    """Rows far out have log-densities of millions of nats, and classes that differ by one."""
    data = some_data()
    model = make_model(data)
    with torch.no_grad():
        model.flow.prior.loc.copy_(torch.tensor([[0.0, 0.0], [1e-4, 0.0]]))
    x = 3e3 * torch.randn(200, 2)
    truth = model.posterior(x).probs.argmax(-1)
    rounded = model.flow.class_log_prob(x).argmax(-1)
    assert (rounded != truth).any()
    (found,) = trainer().validate(
        SemiSupervisedTask(model, steps=1), DataLoader(TensorDataset(x, truth), batch_size=50), verbose=False
    )
    assert found["val_error"] == 0


# -- the state of the process ----------------------------------------------------------------------
def state_of_the_process():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "validation": Distribution._validate_args,
        "filters": list(warnings.filters),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def state_of_the_store():
    return {name: (id(value), value.tolist()) for name, value in pyro.get_param_store().named_parameters()}


class DrawsEverywhere(Augment):
    """It draws from every global generator, in training and in validation."""

    def __call__(self, x):
        random.random()
        return x + 0.05 * torch.randn_like(x) + 0.01 * np.random.rand() * random.random()  # noqa: NPY002

    def prepare(self, x):
        return self(x)


@pytest.mark.parametrize("how", ["finished", "validated", "resumed", "failed", "interrupted", "no gradients"])
def test_fit_leaves_the_process_as_it_was(how, tmp_path):
    def fail(x):
        torch.rand(3)
        raise KeyboardInterrupt if how == "interrupted" else RuntimeError("no")

    data = make_data(validated=how != "finished")
    model = make_model(data)
    pyro.param("mine", torch.ones(2), constraint=dist.constraints.positive)
    torch.manual_seed(5)
    before, store = state_of_the_process(), state_of_the_store()
    options = {
        "steps": 8,
        "validate_every": 4,
        "progress": False,
        "out": tmp_path,
        "augment": DrawsEverywhere(),
    }
    if how in ("failed", "interrupted"):
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            fit(model, data, **{**options, "augment": fail})
    elif how == "resumed":
        fit(model, data, minutes=1e-9, **options)
        fit(model, data, resume=True, **options)
    else:
        with torch.set_grad_enabled(how != "no gradients"):
            assert fit(model, data, **options).finished
    assert state_of_the_process() == before
    assert state_of_the_store() == store != {}
    assert torch.equal(pyro.param("mine"), torch.ones(2))


def test_after_fit_another_model_trains_by_svi_and_the_first_one_is_freed():
    data = make_data()
    model = make_model(data)
    fit(model, data, steps=1, progress=False)
    parameter = weakref.ref(next(model.parameters()))
    del model
    gc.collect()
    assert parameter() is None
    svi = SVI(make_model(data), scnf.exact_guide, Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    batch = StepBatches(data, 20)[0]
    svi.step(batch.x, batch.y, batch.x_unlabelled)


def test_what_is_drawn_before_changes_nothing_within(tmp_path):
    weights = []
    for number in range(2):
        torch.rand(number)
        np.random.rand(number)  # noqa: NPY002
        random.seed(number)
        weights.append(train(tmp_path / str(number), validated=True, augment=DrawsEverywhere())[0])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_noise_of_numpy_is_that_of_an_uninterrupted_run(tmp_path):
    whole, _ = train(tmp_path / "whole", validated=True, augment=DrawsEverywhere())
    finished = False
    while not finished:
        options = {"validated": True, "augment": DrawsEverywhere(), "minutes": 1e-9, "resume": True}
        pieces, result = train(tmp_path / "pieces", **options)
        finished = result.finished
    assert all(torch.equal(value, pieces[name]) for name, value in whole.items())


@pytest.mark.parametrize("call", ["fit", "validate", "test", "predict"])
def test_steps_in_a_trainer_of_ones_own_draw_nothing_from_the_users_generators(call):
    data = some_data()
    task = SemiSupervisedTask(make_model(data), guide="em-sample", steps=3, augment=DrawsEverywhere())
    # The loader draws a seed from a generator of its own, not from the global one.
    loader = DataLoader(rows(data), batch_size=20, generator=torch.Generator())
    run = trainer(max_steps=3)
    before = state_of_the_process()
    if call in ("fit", "predict"):
        getattr(run, call)(task, loader)
    else:
        getattr(run, call)(task, loader, verbose=False)
    assert state_of_the_process() == before


# -- data that the model cannot score --------------------------------------------------------------
def images(dtype=torch.uint8):
    x = torch.randint(0, 256, (40, 1, 4, 4)).to(dtype)
    y = torch.where(torch.arange(40) < 8, torch.arange(40) % 2, -1)
    return SemiSupervisedData(x, y, x, torch.zeros(40, dtype=torch.long), 2)


def image_model():
    flow = scnf.SemiConditionalFlow(
        scnf.flows.glow((1, 4, 4), levels=1, steps=1, width=4, logit=0.05), "gmm", 2
    )
    return scnf.SemiSupervisedModel(flow)


@pytest.mark.parametrize(
    ("data", "augment", "message"),
    [
        (images, None, "fit: data.x has dtype torch.uint8, expected floating numbers.*dequantize"),
        (lambda: images(torch.float32), None, r"fit: data.x holds \d+ values outside \["),
        (lambda: images(torch.float64), None, "fit: data.x has dtype torch.float64"),
        (images, lambda x: x.roll(1, -1), r"fit: augment\(data.x\) has dtype torch.uint8"),
        (images, lambda x: (x / 256).double(), r"fit: augment\(data.x\) has dtype torch.float64"),
        # A function of x changes training rows alone, so it cannot dequantise those for validation.
        (
            lambda: images().hold_out(9),
            lambda x: x / 256,
            r"fit: augment\(data.x_val\) has dtype torch.uint8",
        ),
    ],
)
def test_data_that_the_model_cannot_score_are_named_before_the_first_step(data, augment, message):
    with pytest.raises(ValueError, match=message):
        fit(image_model(), data(), augment=augment, steps=3, progress=False)


def test_a_lower_precision_is_converted_and_a_higher_one_refused():
    data = make_data()
    options = {"steps": 2, "progress": False}
    double = replace(data, x=data.x.double(), x_test=data.x_test.double())
    with pytest.raises(ValueError, match=r"data.x has dtype torch.float64 and the parameters torch.float32"):
        fit(make_model(data), double, **options)
    assert fit(make_model(data).double(), data, **options).finished
    with pytest.raises(ValueError, match=r"fit: data.x has shape \(.*, 3\), expected \(\*batch, 2\)"):
        fit(make_model(data), replace(data, x=torch.randn(120, 3), x_test=torch.randn(20, 3)), **options)


def test_a_class_without_a_label_is_named():
    data = make_data()
    y = torch.where(data.y == 1, -1, data.y)
    with pytest.warns(UserWarning, match="data has no labelled row of class 1, only of others") as caught:
        fit(make_model(data), replace(data, y=y), steps=1, progress=False)
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make_model(data), replace(data, y=torch.full_like(y, -1)), steps=1, progress=False)
        fit(make_model(data), data, steps=1, progress=False)
        clusters = scnf.SemiConditionalFlow(scnf.flows.realnvp((2,), couplings=2), "gmm:means=clusters", 2)
        fit(scnf.SemiSupervisedModel(clusters), replace(data, y=y), steps=1, progress=False)


class OwnGuide(PyroModule):
    """A guide that learns q(y | x) of the unlabelled rows by a network of its own."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 2)

    def forward(self, x, y=None, x_unlabelled=None, **rest):
        with pyro.plate("unlabelled", len(x_unlabelled)):
            q = dist.Categorical(logits=self.net(x_unlabelled))
            pyro.sample("y_unlabelled", q, infer={"enumerate": "parallel"})


def test_a_guide_with_parameters_is_trained_and_one_that_hides_them_is_refused(tmp_path):
    data = make_data()
    guide = OwnGuide()
    before = guide.net.weight.detach().clone()
    constant = Optimisation(schedule="constant", ema_decay=None)
    options = {"steps": 4, "progress": False, "optimisation": constant}
    finished = False
    while not finished:
        pieces = {"out": tmp_path, "minutes": 1e-9, "resume": True}
        finished = fit(make_model(data), data, guide=guide, **pieces, **options).finished
    assert (guide.net.weight - before).abs().max() > 1e-3

    def hides(x, y=None, x_unlabelled=None, **rest):
        logits = pyro.param("logits", torch.zeros(2))
        with pyro.plate("unlabelled", len(x_unlabelled)):
            q = dist.Categorical(logits=logits)
            pyro.sample("y_unlabelled", q, infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match=r"nothing would train its parameters .*logits, since a"):
        fit(make_model(data), data, guide=hides, **options)
    assert fit(make_model(data), data, guide=lambda *args, **kwargs: None, **options).finished


def test_data_of_another_number_of_classes_are_refused():
    data = make_data()
    model = make_model(data)
    with pytest.raises(ValueError, match=r"data\.num_classes is 3, and the model has 2 classes"):
        fit(model, replace(data, num_classes=3), progress=False)


def test_labels_whose_class_has_probability_0_are_refused():
    data = make_data()
    flow, probs = make_model(data).flow, torch.tensor([1.0, 0.0])
    model = scnf.SemiSupervisedModel(flow, probs)
    first = (data.y == 1).nonzero()[0, 0].item()
    with pytest.raises(ValueError, match=rf"data\.y: row {first} has the label 1, whose class probability"):
        fit(model, data, steps=1, progress=False)
    assert fit(
        scnf.SemiSupervisedModel(flow, probs, balanced_labels=True), data, steps=1, progress=False
    ).finished


def test_objects_of_another_kind_are_named():
    data = make_data()
    model = make_model(data)
    x, y, preset = data.x, data.y, scnf.presets.TOY
    for call in (
        lambda: fit(model.flow, data),
        lambda: SemiSupervisedTask(model.flow, steps=1),
        lambda: analysis.evaluate(model.flow, x, y),
        lambda: analysis.label_log_probs(model.flow, x),
        lambda: analysis.fit_temperature(model.flow, x, y),
        lambda: analysis.boundary_distance(model.flow, x),
        lambda: analysis.evaluate_plane(model.flow, x),
        lambda: analysis.latent_plane(model.flow, x),
    ):
        with pytest.raises(ValueError, match=r"^model is of type SemiConditionalFlow, expected a SemiSup"):
            call()
    for call in (lambda: analysis.swap_labels(model, x, y), lambda: analysis.reconstruct(model, x, [1])):
        with pytest.raises(ValueError, match=r"^flow is of type SemiSupervisedModel, expected a SemiCond"):
            call()
    for call in (
        lambda: fit(model, (x, y)),
        lambda: scnf.presets.recommended((x, y)),
        lambda: preset.prepare((x, y)),
        lambda: preset.make_model((x, y)),
        lambda: StepBatches((x, y), 7),
    ):
        with pytest.raises(ValueError, match=r"^data is of type tuple, expected a SemiSupervisedData"):
            call()
