"""Training with two processes gives the same result as with one."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import several
import torch
from trainee import make_data, make_model

from pyro_scnf.terms import TERMS, make_terms
from pyro_scnf.training import Machine, fit

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with the results of one process and of two. All cases share a launch, which is slow."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    here = Path(__file__).parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*launch, "several.py", str(two)], cwd=here, env=environment, check=True)
    dtype = torch.get_default_dtype()
    try:
        several.main(one, devices=1)
    finally:
        torch.set_default_dtype(dtype)
    return one, two


def found(folder, name, rank=0):
    return torch.load(folder / f"{name}.{rank}.pt", weights_only=True)


def per_process(name):
    """Whether a case has a term of which several processes minimise another number than one does."""
    return any(term.per_process for term in several.CASES[name].get("terms", ()))


def test_balance_alone_is_per_process():
    assert [name for name, term in TERMS.items() if term.per_process] == ["balance"]
    tried = {type(term) for case in several.CASES.values() for term in case.get("terms", ())}
    assert tried == set(TERMS.values())


@pytest.mark.parametrize("name", [name for name in several.CASES if per_process(name)])
def test_terms_declared_per_process_do_depend_on_the_number_of_processes(folders, name):
    one, two = (found(folder, name)["weights"] for folder in folders)
    assert any((value - two[key]).abs().max() > 1e-6 for key, value in one.items())


@pytest.mark.parametrize("name", [name for name in several.CASES if not per_process(name)])
def test_two_processes_end_where_one_does(folders, name):
    one, two = (found(folder, name) for folder in folders)
    for key, value in one["weights"].items():
        # Adam divides by the size of the gradient. Where that is tiny, rounding errors of 1e-16 grow.
        torch.testing.assert_close(two["weights"][key], value, rtol=1e-7, atol=1e-9, msg=key)
    assert (two["steps"], two["best_step"]) == (one["steps"], one["best_step"])
    assert one["finished"]
    assert two["best_nll"] == pytest.approx(one["best_nll"], rel=1e-9)


@pytest.mark.parametrize("name", several.CASES)
def test_all_processes_end_with_the_same_bits(folders, name):
    first, second = (found(folders[1], name, rank) for rank in (0, 1))
    assert (first["rank"], second["rank"]) == (0, 1)
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert first["best_nll"] == second["best_nll"]


LOGGED = [name for name in several.CASES if name not in ("in pieces", "no folder") and not per_process(name)]


@pytest.mark.parametrize("name", LOGGED)
def test_logs_are_those_of_the_whole_batch(folders, name):
    logs = [(folder / name / "log/version_0/metrics.csv").read_text() for folder in folders]
    one, two = (list(csv.DictReader(log.splitlines())) for log in logs)
    assert len(one) == len(two) > 3
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        terms = make_terms(several.CASES[name].get("terms"))
        assert {"loss", "grad_norm", "val_nll", *terms, *(["nll"] if terms else [])} <= a.keys()
        for key in a:
            assert a[key] == b[key] or float(a[key]) == pytest.approx(float(b[key]), rel=1e-6), key


def test_pieces_are_the_whole(folders):
    whole, pieces = (found(folders[1], name)["weights"] for name in ("gmm", "in pieces"))
    assert all(torch.equal(value, pieces[key]) for key, value in whole.items())


def test_a_launch_of_other_size_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"devices \* num_nodes is 1, but torchrun started 4 processes"):
        several.train(tmp_path, seed=0, devices=1)


def test_each_process_needs_a_gpu(monkeypatch, tmp_path):
    data, options = make_data(), {"out": tmp_path / "run", "progress": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"machine\.device is 'cuda', but .* no GPU here.*device='cpu'"):
        fit(make_model(data), data, machine=Machine(device="cuda"), **options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"machine\.devices is 2, .* finds only 1 on this node.*devices=1"):
        fit(make_model(data), data, machine=Machine(device="cuda", devices=2), **options)
    assert not list(tmp_path.iterdir())


def test_each_process_needs_rows_to_validate_on():
    data = replace(make_data(validated=True), x_val=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="x_val: 1 rows for 2 processes"):
        fit(make_model(data), data, machine=Machine(devices=2))
    with pytest.raises(ValueError, match="num_nodes=2: give `out`, a folder that all nodes see"):
        fit(make_model(data), data, machine=Machine(num_nodes=2))
