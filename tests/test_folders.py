"""Output folders: earlier runs and files of the user are safe, one run at a time writes, errors name it."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_as_uninterrupted
from torch import nn
from trainee import EVERY, STEPS, jitter, killed, make_data, make_model, train

import pyro_scnf as scnf
from pyro_scnf.training import FitResult, Machine, fit

HERE = Path(__file__).parent
LOCK = ".run.lock"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- what a new run removes, and when --------------------------------------------------------------
def other_model(data, **changes):
    torch.manual_seed(0)
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((3,), steps=1, width=8), "gmm", 2)
    return scnf.SemiSupervisedModel(flow)


def spoiled(data):
    model = make_model(data)
    nn.init.constant_(model.flow.prior.loc, torch.nan)
    return model


def fails(*args):
    raise RuntimeError("an error of the user's")


def guide_fails(*args, **kwargs):
    raise RuntimeError("an error of the user's")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"steps": 0}, "steps=0"),
    "batch size": ({"batch_size": 0}, "batch_size=0"),
    "labelled batch size": ({"labelled_batch_size": -1}, "labelled_batch_size=-1"),
    "processes": ({"machine": Machine(devices=7)}, "processes"),
    "no name of a folder": ({"out": ""}, "out='': expected the path of a folder"),
    "log": ({"log": "paper"}, "log='paper'"),
    "terms": ({"terms": "consistency"}, "consistency needs a second view"),
    "guide": ({"guide": "none"}, "guide='none'"),
    "guide fails": ({"guide": guide_fails}, "an error of the user's"),
    "augment fails": ({"augment": fails}, "an error of the user's"),
    "augment of another shape": ({"augment": lambda x: x[:, :1]}, r"augment\(x\) has shape \(10, 1\)"),
    "augment of another dtype": (
        {"augment": lambda x: x.double()},
        r"augment\(x\) has dtype torch.float64",
    ),
    "augment of another kind": (
        {"augment": lambda x: x.numpy()},
        "augment: it returns a ndarray, expected a",
    ),
    "augment of nothing": ({"augment": lambda x: None}, "augment: it returns a NoneType, expected a tensor"),
    "augment without sense": ({"augment": lambda x: x * torch.nan}, "training stopped at step 0"),
    "augment of no function": ({"augment": "shift"}, "augment='shift'"),
    "model of another shape": ({"model": other_model}, r"data.x has shape \(120, 2\)|data.x has shape"),
    "model not finite": ({"model": spoiled}, "training stopped at step 0.*flow.prior.loc"),
    "model of another dtype": ({"model": lambda data: make_model(data).half()}, "data.x has dtype"),
}


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")  # Pyro's, beside the error
@pytest.mark.parametrize("wrong", WRONG)
def test_a_run_that_cannot_begin_leaves_all_files_of_an_earlier_one(wrong, tmp_path):
    train(tmp_path, validated=True, steps=2, log="csv")
    before = contents(tmp_path)
    options, message = dict(WRONG[wrong][0]), WRONG[wrong][1]
    data = make_data()
    model = options.pop("model", make_model)(data)
    with pytest.raises((ValueError, RuntimeError), match=message):
        fit(model, data, **{"steps": 2, "out": tmp_path, "log": "csv", "progress": False, **options})
    assert contents(tmp_path) == before


def test_the_first_step_removes_all_that_an_earlier_run_wrote_and_nothing_else(tmp_path):
    train(tmp_path, validated=True, steps=2, log="csv")
    train(tmp_path, validated=True, steps=2, log="csv", resume=True)
    train(tmp_path, validated=True, steps=2, log="tensorboard", resume=True)
    own = ["log/notes.txt", "log/version_1/notes.txt", "log/plots/metrics.csv", "tensorboard/mine/events.txt"]
    own += ["log/version_7/metrics.csv", "tensorboard/version_3/events.out.tfevents.1"]  # of another program
    own += ["notes.ckpt", "tensorboard/events.out.tfevents.own", "log/version_x/metrics.csv.bak", ".last.txt"]
    for name in own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".last.ckpt.partial").write_bytes(b"half")
    assert {"best.ckpt", "log/version_0/metrics.csv"} <= contents(tmp_path).keys()
    train(tmp_path, steps=10, log="csv")  # without validation: there is no best.ckpt
    # A folder of logs in which the user keeps something stays, so the new log gets the next number.
    ours = {"last.ckpt", "log/version_8/metrics.csv", "log/version_8/.by_fit"}
    assert contents(tmp_path).keys() == {*ours, *own}
    assert all((tmp_path / name).read_text() == name for name in own)


def test_logs_of_a_new_run_begin_with_version_0(tmp_path):
    for steps in (20, 10):
        train(tmp_path, steps=steps, log="csv")
        lines = (tmp_path / "log/version_0/metrics.csv").read_text().splitlines()
        assert len(lines) == 1 + steps // 10
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["version_0"]


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_file_of_the_users_with_the_name_of_a_checkpoint_is_not_replaced(name, tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for content in (whole, b"some text"):
        (tmp_path / name).write_bytes(content)
        for resume in (False, True):
            with pytest.raises(ValueError, match=name):
                train(tmp_path, validated=True, resume=resume)
            assert contents(tmp_path) == {name: content}
    (tmp_path / name).write_bytes(b"")  # nothing is lost with an empty file
    train(tmp_path, validated=True, steps=2)


@pytest.mark.parametrize("kind", ["another program", "a path", "zip", "nothing"])
def test_a_whole_file_of_another_program_is_not_taken_for_a_checkpoint_cut_short(kind, tmp_path):
    path = tmp_path / "best.ckpt"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("notes.txt", "mine")
    else:
        settings = argparse.Namespace(lr=1) if kind == "another program" else Path("data")
        hyper = {"state_dict": {}, "global_step": 7, "settings": settings}
        torch.save(None if kind == "nothing" else hyper, path)
    before = contents(tmp_path)
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"best\.ckpt"):
            train(tmp_path, steps=1, resume=resume)
    assert contents(tmp_path) == before


# -- folders that cannot be written ----------------------------------------------------------------
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["file", "below a file", "log", "checkpoint", "lock"])
def test_a_folder_that_cannot_be_written_is_named_before_the_first_step(kind, resume, tmp_path):
    out = tmp_path / "results"
    if kind == "file":
        out.write_text("a file")
    elif kind == "below a file":
        out.write_text("a file")
        out = out / "run"
    else:
        out.mkdir()
        if kind == "log":
            (out / "log").write_text("a file")
        else:
            (out / {"checkpoint": "best.ckpt", "lock": LOCK}[kind]).mkdir()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"out.*{out}"):
        train(out, augment=fails, log="csv", resume=resume)
    assert contents(tmp_path) == before


SLURM = {"NTASKS": "1", "JOB_NAME": "some", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}


@pytest.mark.parametrize("slurm", [{}, {**SLURM, "NODELIST": "localhost"}], ids=["alone", "slurm"])
@pytest.mark.parametrize("place", ["here", "out"])
def test_a_checkpoint_of_another_program_is_not_read(place, slurm, tmp_path, monkeypatch):
    """Lightning goes on from such a file by itself, whoever wrote it."""
    for name in ("here", "out"):
        (tmp_path / name).mkdir()
    train(tmp_path / "other", steps=2, seed=1)
    (tmp_path / "other/last.ckpt").rename(tmp_path / place / "hpc_ckpt_1.ckpt")
    monkeypatch.chdir(tmp_path / "here")
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert_as_uninterrupted(train(tmp_path / "out", validated=True), validated=True)
    names = [path.name for path in (tmp_path / place).iterdir()]
    assert "hpc_ckpt_1.ckpt" in names
    assert place == "out" or len(names) == 1


def test_a_folder_below_the_home_folder_is_found_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    train("~/run", steps=1, log="csv")
    log = "home/run/log/version_0"
    assert contents(tmp_path).keys() == {"home/run/last.ckpt", f"{log}/metrics.csv", f"{log}/.by_fit"}


def test_resume_in_a_new_folder_begins_there(tmp_path):
    assert_as_uninterrupted(train(tmp_path / "a/b", resume=True, validated=True), validated=True)


# -- one run at a time -----------------------------------------------------------------------------
def test_the_lock_names_the_process_and_goes_with_the_run(tmp_path):
    seen = []

    def look(x):
        seen.append((tmp_path / LOCK).read_text())
        return x

    train(tmp_path, augment=look, steps=1)
    assert set(seen) == {f"process {os.getpid()} on {socket.gethostname()}"}
    assert not (tmp_path / LOCK).exists()
    with pytest.raises(RuntimeError, match="user's"):
        train(tmp_path, augment=fails, steps=1)
    assert not (tmp_path / LOCK).exists()


def test_a_second_run_in_the_same_process_is_refused_and_the_first_goes_on(tmp_path):
    refused: list[Path] = []
    data = make_data()
    other = make_model(data)

    def second(x):
        if not refused:
            link = tmp_path / "link"
            link.symlink_to(tmp_path)
            for out in (tmp_path, link):
                for resume in (False, True):
                    with pytest.raises(ValueError, match="this process is training into"):
                        fit(other, data, out=out, resume=resume, progress=False)
                    refused.append(out)
            link.unlink()
        return jitter(x)

    assert_as_uninterrupted(train(tmp_path, augment=second, validated=True), validated=True)
    assert len(refused) == 4


def started(out: Path, options: str, until: str = "last.ckpt") -> subprocess.Popen[str]:
    """A long run in another process that has written the file ``until``."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import trainee; from pathlib import Path; trainee.train(Path({str(out)!r}), {options})"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / until).exists():
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    return process


LONG = "validated=True, steps=100000, schedule='constant'"


def test_a_run_of_another_process_is_named_and_a_killed_one_is_no_obstacle(tmp_path):
    process = started(tmp_path, LONG)
    try:
        for resume in (False, True):
            with pytest.raises(ValueError, match=f"process {process.pid} on {socket.gethostname()} is train"):
                train(tmp_path, resume=resume)
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / LOCK).exists()
    train(tmp_path, validated=True, steps=2)
    assert not (tmp_path / LOCK).exists()


# -- damaged and foreign checkpoints ---------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(folder, validated=True, steps=2)
    return folder


def copy(finished, folder):
    for path in finished.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize(
    "damage", ["half", "a hundred bytes", "empty", "junk", "one byte", "another program"]
)
def test_a_damaged_checkpoint_is_named_and_stays(name, damage, finished, tmp_path):
    copy(finished, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    kept = {"half": len(whole) // 2, "a hundred bytes": 100, "empty": 0}
    if damage in kept:
        path.write_bytes(whole[: kept[damage]])
    elif damage == "junk":
        path.write_bytes(os.urandom(1000))
    elif damage == "one byte":
        bias = torch.load(path, weights_only=True)["state_dict"]["model.flow.prior.loc"]
        at = whole.index(bias.numpy().tobytes()) + 3
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
    else:
        torch.save({"state_dict": {}}, path)
    before = contents(tmp_path)
    model = make_model(make_data(validated=True))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"resume: .*{name}.*(move it away|give another folder)"):
        fit_again(model, tmp_path)
    assert contents(tmp_path) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def fit_again(model, folder, **options):
    options = {"steps": 2, "batch_size": 32, "validate_every": EVERY, "progress": False, **options}
    return fit(model, make_data(validated=True), augment=jitter, out=folder, resume=True, **options)


def test_a_missing_best_is_named(finished, tmp_path):
    copy(finished, tmp_path)
    (tmp_path / "best.ckpt").unlink()
    with pytest.raises(ValueError, match=r"best.ckpt is missing"):
        fit_again(make_model(make_data(validated=True)), tmp_path)


def test_a_best_without_a_last_is_replaced_only_by_its_own_run(finished, tmp_path):
    copy(finished, tmp_path)
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(ValueError, match=r"best.ckpt is of another run: seed 0 -> 1.*There is no last.ckpt"):
        fit_again(make_model(make_data(validated=True)), tmp_path, seed=1)
    assert fit_again(make_model(make_data(validated=True)), tmp_path).finished


def built(data, width=8, classes=2, aux="learnable", prior="gmm", blocks=1):
    torch.manual_seed(0)
    transform = scnf.flows.glow((2,), steps=1, width=width, blocks=blocks)
    flow = scnf.SemiConditionalFlow(transform, prior, classes, aux_scale=aux)
    return scnf.SemiSupervisedModel(flow)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda data: built(data, width=4), "another model.*width 8 -> 4"),
        (lambda data: built(data, blocks=2), "another model.*blocks 1 -> 2"),
        (lambda data: built(data, prior="student-t"), "another model.*prior.name"),
        (
            lambda data: built(data, classes=3),
            r"another model, with another architecture.*\(2, 2\) in the file",
        ),
        (lambda data: scnf.SemiSupervisedModel(built(data).flow, "learnable"), "another model.*class_probs"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(model, said, finished, tmp_path):
    copy(finished, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"resume: .*last.ckpt is of {said}"):
        fit_again(model(None), tmp_path)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_another_dtype_is_named(finished):
    data = make_data(validated=True)
    double = replace(data, x=data.x.double(), x_val=data.x_val.double(), x_test=data.x_test.double())
    options = {"steps": 2, "batch_size": 32, "validate_every": EVERY, "progress": False, "resume": True}
    with pytest.raises(ValueError, match=r"last.ckpt is of another"):
        fit(make_model(data).double(), double, augment=jitter, out=finished, **options)


# -- a disk that is full ---------------------------------------------------------------------------
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named_and_the_older_checkpoint_stays(tmp_path):
    train(tmp_path, validated=True, minutes=1e-9)
    before = contents(tmp_path)
    (tmp_path / ".last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*last.ckpt could not be written, the older file stays"):
        train(tmp_path, validated=True, resume=True)
    assert contents(tmp_path)["last.ckpt"] == before["last.ckpt"]
    assert_as_uninterrupted(train(tmp_path, validated=True, resume=True), validated=True)
    (tmp_path / ".model.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"model.pt could not be written, there is no older file"):
        scnf.save(make_model(make_data()), tmp_path / "model.pt")


# -- Ctrl-C and SIGTERM ----------------------------------------------------------------------------
def test_ctrl_c_says_what_is_kept_and_the_run_goes_on(tmp_path):
    process = started(tmp_path, LONG)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    step = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert f"KeyboardInterrupt: training was interrupted: {tmp_path}/last.ckpt keeps step {step}; " in said
    assert "go on with resume=True (in the examples, --resume)" in said
    assert process.returncode == -signal.SIGINT
    assert not (tmp_path / LOCK).exists()
    options = {"validated": True, "steps": 100000, "schedule": "constant", "minutes": 1e-9}
    assert train(tmp_path, resume=True, **options)[1].steps > step


def test_sigterm_says_what_is_kept_and_ends_with_its_status(tmp_path):
    process = started(tmp_path, LONG)
    process.terminate()
    _, said = process.communicate(timeout=60)
    step = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert f"training was ended by SIGTERM: {tmp_path}/last.ckpt keeps step {step}; go on with" in said
    assert "Traceback" not in said
    assert process.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / LOCK).exists()


class InterruptAt:
    """An augment that presses Ctrl-C in the call with the given number."""

    def __init__(self, number):
        self.left = number

    def __call__(self, x):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return jitter(x)


@pytest.fixture
def heeds_ctrl_c():
    """A process that was started in the background may ignore SIGINT."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_what_an_interrupted_run_says_of_every_state_of_the_folder(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    data = make_data()
    with pytest.raises(KeyboardInterrupt, match="nothing is kept, because no folder was given as `out`"):
        fit(make_model(data), data, augment=InterruptAt(5), steps=9, progress=False)
    with pytest.raises(KeyboardInterrupt, match=f"no checkpoint yet.*first one is written at step {EVERY}"):
        train(tmp_path, augment=InterruptAt(5))
    with pytest.raises(KeyboardInterrupt, match=f"last.ckpt keeps step {EVERY}; go on with resume=True"):
        train(tmp_path, augment=InterruptAt(2 * EVERY + 3))
    with pytest.raises(KeyboardInterrupt, match=f"last.ckpt keeps step {EVERY}; go on with resume=True"):
        train(tmp_path, augment=InterruptAt(3), resume=True)
    with pytest.raises(KeyboardInterrupt, match=r"no step was taken, and .*last.ckpt is still that of the"):
        train(tmp_path, augment=InterruptAt(1))
    assert_as_uninterrupted(train(tmp_path, resume=True))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_exit_of_the_users_own_is_left_alone(tmp_path):
    def leave(x):
        sys.exit(5)

    with pytest.raises(SystemExit) as raised:
        train(tmp_path, augment=leave)
    assert raised.value.code == 5


# -- more steps ------------------------------------------------------------------------------------
MORE = STEPS + 16


def test_a_finished_run_that_gets_more_steps_is_a_longer_run(tmp_path):
    """With a constant rate nothing depends on the length, so the bits are those of one long run."""
    options = {"validated": True, "schedule": "constant", "ema_decay": None}
    first = train(tmp_path, **options)[1]
    assert (first.steps, first.finished) == (STEPS, True)
    assert_as_uninterrupted(train(tmp_path, steps=MORE, resume=True, **options), steps=MORE, **options)


@pytest.mark.parametrize("schedule", ["one-cycle", "linear", "cosine"])
def test_the_rates_of_further_steps_are_those_of_a_run_of_that_length(schedule, tmp_path):
    from pyro_scnf.training import SemiSupervisedTask

    used: list[tuple[int, float, float]] = []
    usual = SemiSupervisedTask.optimizer_step

    def watched(self, epoch, batch_idx, optimizer, closure=None):
        group = optimizer.param_groups[0]
        used.append((self.global_step, group["lr"], group["betas"][0]))
        usual(self, epoch, batch_idx, optimizer, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemiSupervisedTask, "optimizer_step", watched)
        train(tmp_path / "long", schedule=schedule, steps=MORE)
        whole = used[STEPS:]
        train(tmp_path / "short", schedule=schedule)
        used.clear()
        killed("in a step", 9, tmp_path / "short", schedule=schedule, steps=MORE, resume=True)
        assert used == []
        train(tmp_path / "short", schedule=schedule, steps=MORE, resume=True)
    assert [step for step, *_ in used][-1] == MORE - 1
    assert len(used) < MORE - STEPS  # the killed process took some
    for step, rate, beta in used:
        assert (rate, beta) == pytest.approx(whole[step - STEPS][1:])


def test_fewer_steps_are_another_run(finished):
    data = make_data(validated=True)
    with pytest.raises(ValueError, match=r"another run: steps 2 -> 1\. Give the same settings\."):
        fit_again(make_model(data), finished, steps=1)


def test_an_unfinished_run_has_to_finish_first(tmp_path):
    train(tmp_path, minutes=1e-9)
    with pytest.raises(ValueError, match=r"steps 24 -> 40\. .*more steps once it has taken all it was given"):
        train(tmp_path, steps=MORE, resume=True)


# -- from a checkpoint to a model ------------------------------------------------------------------
@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_checkpoint_makes_the_model(name, tmp_path):
    data = make_data(validated=True)
    model = make_model(data, class_probs="learnable", num_labelled=10)
    result = fit(model, data, steps=6, validate_every=3, out=tmp_path, progress=False)
    loaded = scnf.load(tmp_path / name)
    assert isinstance(result, FitResult)
    assert loaded.num_labelled == 10
    if name == "best.ckpt" or result.best_step == 6:
        assert torch.equal(loaded.log_prob(data.x_val), model.log_prob(data.x_val))
    else:
        assert loaded.log_prob(data.x_val).shape == (len(data.x_val),)


def test_a_checkpoint_of_a_model_of_ones_own_goes_into_that_model(tmp_path):
    data = make_data()
    prior = scnf.priors.GaussianMixturePrior
    model = make_model(data, prior)
    fit(model, data, guide="em-ema", steps=3, out=tmp_path, progress=False)
    path = tmp_path / "last.ckpt"
    with pytest.raises(ValueError, match=r"last.ckpt: it does not say how its model was built.*into=model"):
        scnf.load(path)
    other = make_model(data, prior)
    assert not torch.equal(other.log_prob(data.x), model.log_prob(data.x))
    assert scnf.load(path, into=other) is other
    assert torch.equal(other.log_prob(data.x), model.log_prob(data.x))
    for wrong, said in (
        (built(data, width=4), r"another architecture or dtype: flow\..* has shape"),
        (make_model(data).double(), "has dtype torch.float32 in the file and torch.float64 here"),
        (built(data, aux="unit", prior="student-t"), "is only in the"),
    ):
        before = {key: value.clone() for key, value in wrong.state_dict().items()}
        with pytest.raises(ValueError, match=rf"into: .*last.ckpt is of another model.*{said}"):
            scnf.load(path, into=wrong)
        assert all(torch.equal(value, before[key]) for key, value in wrong.state_dict().items())
