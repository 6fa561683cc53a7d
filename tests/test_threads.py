"""The number of CPU threads that an example chooses, keeps and writes down."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SOURCE = Path(__file__).parents[1] / "examples/threads.py"


def load():
    spec = importlib.util.spec_from_file_location("threads", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def threads(monkeypatch):
    """The module on a machine of two cores. The number of threads and the environment are restored."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    before = torch.get_num_threads()
    module = load()
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    yield module
    torch.set_num_threads(before)


def slow_alone():
    """A step that two threads run faster than one."""
    time.sleep(0.02 if torch.get_num_threads() == 1 else 0.0)


def never():
    raise AssertionError("nothing was to be measured")


@pytest.mark.parametrize("resume", [False, True])
def test_a_given_number_is_used_and_written(threads, tmp_path, resume, capsys):
    out = tmp_path / "run"  # does not exist yet
    if resume:
        out.mkdir()
        (out / "threads.txt").write_text("1\n")
    assert threads.set_threads(never, out, given=2, resume=resume) == 2
    assert torch.get_num_threads() == 2
    assert (out / "threads.txt").read_text() == "2\n"
    assert capsys.readouterr().out == "CPU threads: 2 (as given)\n"


def test_a_resumed_run_keeps_its_number(threads, tmp_path):
    (tmp_path / "threads.txt").write_text("2\n")
    assert threads.set_threads(never, tmp_path, given=None, resume=True) == 2
    assert torch.get_num_threads() == 2
    assert (tmp_path / "threads.txt").read_text() == "2\n"


@pytest.mark.parametrize("content", [b"0\n", b"\xff\xfe2", b"", b"99999999"])
def test_a_file_that_tells_no_number_of_threads_is_named(threads, tmp_path, content):
    (tmp_path / "threads.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"threads\.txt holds .*, expected 1 to 1024; give --threads N"):
        threads.set_threads(never, tmp_path, given=None, resume=True)
    assert (tmp_path / "threads.txt").read_bytes() == content


@pytest.mark.parametrize(("resume", "old"), [(False, None), (False, "1\n"), (True, None)])
def test_a_run_without_a_number_to_keep_measures(threads, tmp_path, resume, old):
    """A new run ignores the number of an older run in the same folder."""
    if old:
        (tmp_path / "threads.txt").write_text(old)
    assert threads.set_threads(slow_alone, tmp_path, given=None, resume=resume) == 2
    assert torch.get_num_threads() == 2
    assert (tmp_path / "threads.txt").read_text() == "2\n"


@pytest.mark.parametrize(
    ("alone", "together", "best", "calls"),
    [
        (1e-3, 2e-3, 1, 12),  # a round to warm up and five to measure, each with one thread and with two
        (1.1e-3, 1e-3, 1, 12),  # faster, but by less than the factor
        (1.2e-3, 1e-3, 2, 12),
        (1.2, 1.0, 2, 8),  # 8.8 seconds have passed after three measured rounds
        (12.0, 10.0, 2, 4),  # at least one round is measured
    ],
)
def test_more_threads_have_to_be_faster_by_a_factor(threads, monkeypatch, alone, together, best, calls):
    """With a clock that only the steps move."""
    seconds = []
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: sum(seconds)))
    step = lambda: seconds.append(alone if torch.get_num_threads() == 1 else together)  # noqa: E731
    assert threads.fastest(step) == best
    assert len(seconds) == calls


@pytest.mark.parametrize(("cores", "candidates"), [(1, {1}), (3, {1, 2}), (4, {1, 2, 4})])
def test_candidates_are_powers_of_two_up_to_the_cores(threads, monkeypatch, cores, candidates):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    seen = set()
    threads.fastest(lambda: seen.add(torch.get_num_threads()))
    assert seen == candidates


def test_measuring_leaves_the_random_generator_as_it_was(threads):
    before = torch.get_rng_state()
    draws = []
    threads.fastest(lambda: draws.append(torch.rand(3)))
    assert not torch.equal(draws[0], draws[1])  # the step did draw
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None), ("PASSIVE", "10000")),
        ((None, "7"), ("PASSIVE", "7")),
        (("ACTIVE", None), ("ACTIVE", None)),
    ],
)
def test_settings_of_the_user_are_kept(monkeypatch, given, expected):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name, value in zip(names, given, strict=True):
        monkeypatch.setenv(name, value or "")  # so that it is restored in either case
        if value is None:
            monkeypatch.delenv(name)
    load()
    assert tuple(map(os.environ.get, names)) == expected
