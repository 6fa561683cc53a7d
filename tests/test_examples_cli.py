"""The command lines of the examples: what cannot work ends at once, in one line, and writes nothing."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_scnf as scnf
from pyro_scnf.datasets import SemiSupervisedData, digits

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARED = (
    "command_line",
    "common",
    "comparisons",
    "digits",
    "evidence",
    "figures",
    "options",
    "out_folder",
    "threads",
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example in this process, in a folder of its own. It returns its status and its lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # so that the example leaves the environment alone
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    def run(example: str, *options: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", [f"{example}.py", *options])
        try:
            runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
        except SystemExit as end:
            return int(end.code), capsys.readouterr().err.splitlines()
        return 0, capsys.readouterr().out.splitlines()

    yield run
    for name in SHARED:
        sys.modules.pop(name, None)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


REFUSED = {
    "no steps": ("toy --steps 0", "--steps: '0': expected a whole number of at least 1"),
    "half a step": ("toy --steps 1.5", "--steps: '1.5': expected a whole number"),
    "a word": ("toy --steps many", "--steps: 'many': expected a whole number"),
    "seed": ("toy --seed -1", "--seed: '-1': expected a whole number of 0 to 4294967295"),
    "large seed": ("toy --seed 4294967296", "--seed: '4294967296': expected a whole number of 0 to"),
    "threads": ("toy --threads 0", "--threads: '0': expected"),
    "many threads": ("toy --threads 99999999", "--threads: '99999999': expected a whole number of 1 to 1024"),
    "no folder": ("toy --out=", "--out: '': expected the path of a folder"),
    "a link to nothing": ("toy --out link", "--out: out: link cannot be made a folder: .*; give another one"),
    "a folder in place of a file": (
        "toy --out taken",
        "--out: .*the folder taken/model.pt has the name of a",
    ),
    "a table for row numbers": (
        "mnist --data digits --labelled table.csv",
        "error: --labelled: labelled: table.csv is damaged, or no file that np.save wrote",
    ),
    "a negative share": (
        "tabular --smoke-test --test -0.2",
        "--test: test=-0.2: expected a finite number of at least 0",
    ),
    "per cents": ("tabular --smoke-test --test 20%", "--test: test='20%': there .*, a share such as 0.2, or"),
    "no labels": ("digits --labels-per-class 0", "--labels-per-class: '0': expected a whole number"),
    "labels": (
        "toy --labels-per-class 501",
        "--labels-per-class: labels_per_class=501: class 0 has only 500",
    ),
    "too many of a class": (
        "digits --labels-per-class 1000",
        r"--labels-per-class: labels_per_class=1000: class \d has only 1\d\d",
    ),
    "prior": ("toy --prior nonsense", "--prior: prior='nonsense': expected"),
    "option of a prior": ("toy --prior gmm:size=1", "--prior: prior='gmm:size=1': no option 'size'"),
    "module": ("toy --prior my_own.Prior", "--prior: .*my_own"),
    "term": ("toy --terms nonsense", "--terms: terms='nonsense': expected"),
    "evidence": (
        "toy --terms classification:targets=evidence",
        "--terms.*labels: this example has none",
    ),
    "no graph": (
        "digits --graph none --terms classification:targets=evidence",
        "--terms, .*a term needs evidence about labels: --graph hog gives it",
    ),
    "graph": ("digits --graph nonsense", "--graph: invalid choice: 'nonsense'"),
    "no row without a label": (
        "mnist --data digits --labels 1437 --split stratified",
        "error: every row is labelled; give --graph none, and --terms classification",
    ),
    "no file of rows": ("mnist --data digits --labelled rows.npy", "--labelled: .*rows.npy"),
    "an empty file of rows": ("mnist --data digits --labelled a_file", "--labelled: .*a_file is empty"),
    "a damaged file of rows": ("mnist --data digits --labelled a_zip", "--labelled: .*a_zip is damaged"),
    "rows and a number": (
        "mnist --data digits --labelled rows.npy --labels 50",
        "--labelled: --labels would have no effect, because --labelled names the rows",
    ),
    "rows and a split": (
        "mnist --data digits --labelled rows.npy --split stratified",
        "--labelled, --split: --split would have no effect",
    ),
    "guide": ("toy --guide nonsense", "--guide: invalid choice: 'nonsense'"),
    "data": ("toy --data nonsense", "--data: invalid choice: 'nonsense'"),
    "unknown option": ("toy --nonsense 3", "unrecognized arguments: --nonsense 3"),
    "file as a folder": ("toy --out a_file", "--out: .*a_file is no folder"),
    "file above the folder": ("toy --out a_file/run", "--out: .*a_file is no folder"),
    "minutes": ("mnist --minutes 0", "--minutes: '0': expected a number above 0"),
    "no minutes": ("mnist --minutes nan", "--minutes: 'nan': expected a number above 0"),
    "endless minutes": ("mnist --minutes inf", "--minutes: 'inf': expected a number above 0"),
    "data root": (
        "mnist --data-root nowhere",
        "error: --data, --data-root: .*nowhere/MNIST/raw lacks train-images",
    ),
    "data root of a smoke test": ("mnist --smoke-test --data-root nowhere", "nowhere/MNIST/raw lacks"),
    "download of digits": ("mnist --data digits --download", "--data digits: they come with scikit-learn"),
    "latents": ("mnist --latent-dim 785", "--latent-dim: '785': expected a whole number of 1 to 784"),
    "multiple": (
        "mnist --data digits --labels 105",
        "error: --labels: labels=105: split='balanced' needs a multiple",
    ),
    "no table": (
        "tabular --data nowhere.csv --label y",
        "error: --data: source='nowhere.csv': there is no such",
    ),
    "no folder of tables": (
        "tabular --data-root nowhere",
        "--data, --data-root: .*nowhere/miniboone, .*nowhere holds",
    ),
    "no folder told": (
        "tabular --smoke-test --data hepmass",
        "error: --data-root: root=None: expected the folder below which the files of hepmass are",
    ),
    "no column of labels told": ("tabular --data table.csv", r"error: --label: label=None: .*\['x', 'y'\]"),
    "a folder of sets for a file": (
        "tabular --smoke-test --data table.csv --label y --data-root nowhere",
        "error: --data-root: root=.*: it would have no effect, because source is no named table",
    ),
    "a label of a set": (
        "tabular --data miniboone --label y",
        "error: --label: label='y': it would have no effect, because miniboone",
    ),
    "a label of a set of texts": (
        "text --data ag_news --embeddings ready.npz --label y",
        "error: --label: label='y': it would have no effect, because ag_news",
    ),
    "a folder of sets for texts": (
        "text --smoke-test --data table.csv --embeddings ready.npz --data-root nowhere",
        "error: --data-root: root=.*: it would have no effect, because source is no named set",
    ),
    "no embeddings": ("text --smoke-test --embeddings no.npz", "error: --embeddings: .*no.npz"),
    "a split of all labels": (
        "tabular --smoke-test --split stratified",
        "error: --split: split='stratified': it would have no effect, because all labels stay; give labels",
    ),
    "a column of a made table": (
        "tabular --smoke-test --label nowhere",
        r"error: --label: label='nowhere': there is no such column.*'outcome'\]",
    ),
    "a category of a made table": ("tabular --smoke-test --categories no", "error: --categories: .*'no'"),
    "test rows of a made table": ("tabular --smoke-test --test no.csv", "error: --test: test='no.csv'"),
    "labels of a made table": ("tabular --smoke-test --labels 21", "error: --labels: labels=21: split="),
    "a column of made texts": (
        "text --smoke-test --text-column no",
        "error: --text-column: text_column='no'",
    ),
    "a cache of made texts": ("text --smoke-test --cache here", "error: --cache: cache=.*: it would have no"),
    "labels of made images": ("transfer --smoke-test --labels 900", "error: --labels: labels=900: there are"),
    "a cache of made images": ("transfer --smoke-test --cache here", "error: --cache: cache=.*no effect"),
    "a folder of images": ("transfer --smoke-test --test no", "error: --test: test='no': there is no such f"),
    "no comparator": (
        "tabular --smoke-test --comparators nonsense",
        "--comparators: 'nonsense' is in no name: .*latent classifier; or give none",
    ),
    "no name of a folder": (
        "transfer --smoke-test --unlabelled ..",
        "--unlabelled: '..': expected the name of",
    ),
    "no name at all": ("transfer --smoke-test --unlabelled=", "--unlabelled: '': expected the name of"),
    "pixels": ("transfer --size 8", "--size: '8': expected a whole number of 32 to 1024"),
    "no label": ("text --labels 0", "--labels: '0': expected a whole number of at least 1"),
    "too many": ("mnist --data digits --labels 1500", "error: --labels: labels=1500: there are only 1437"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case, run, tmp_path):
    command, message = REFUSED[case]
    (tmp_path / "a_file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "taken" / "model.pt").mkdir(parents=True)
    (tmp_path / "a_zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "table.csv").write_text("x,y\n1,p\n2,q\n")
    np.savez(tmp_path / "ready.npz", x=np.eye(2))
    before = sorted(tmp_path.iterdir())
    example, *options = command.split()
    code, said = run(example, *options)
    assert code == 2
    assert len(said) == 1
    assert re.search(message, said[0])
    assert said[0].startswith(f"{example}.py: error: ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def data_of(run, monkeypatch):
    """The data set of an example with these options, and its command line. Nothing is trained."""
    comparisons, found = importlib.import_module("comparisons"), []
    monkeypatch.setattr(comparisons, "run", lambda args, preset, data: found.append((data, args)))

    def data_of(command: str) -> tuple[SemiSupervisedData, argparse.Namespace]:
        code, said = run(*command.split())
        assert code == 0, said
        return found.pop()

    return data_of


def test_a_table_of_many_rows_end_to_end(run):
    """From 5,000 training rows on, the preset has another flow."""
    rng, rows = np.random.default_rng(0), 7000
    kind = rng.choice(["p", "q"], rows)
    columns = {name: rng.normal(size=rows) + 2 * (kind == "q") for name in "abc"}
    shown = np.where(np.arange(rows) < 100, kind, "")
    pd.DataFrame({**columns, "kind": shown}).to_csv("big.csv", index=False)
    options = ("--data", "big.csv", "--label", "kind", "--steps", "3", "--threads", "1")
    assert run("tabular", *options, "--comparators", "none", "--out", "out")[0] == 0
    assert "test_error_pct" in json.loads(Path("out/metrics.json").read_text())
    assert scnf.load("out/model.pt").flow.event_shape == (3,)


@pytest.mark.parametrize("example", ["tabular", "text", "transfer"])
def test_made_data_take_the_options_of_data_of_your_own(example, data_of):
    data, args = data_of(f"{example} --smoke-test")
    assert (args.data, len(data.labelled[0]), len(data.x_test)) == ("made", 64, 16)
    options = "--labels 9 --split stratified --test 0.5 --seed 3"
    data, args = data_of(f"{example} --smoke-test {options}")
    assert (args.labels, len(data.labelled[0]), len(data.x_test)) == (9, 9, 40)


def test_options_of_made_columns_and_images_are_used(data_of):
    data, _ = data_of("tabular --smoke-test --label ward --categories visits")
    assert data.class_names == ("east", "north", "south")
    assert {"visits=0", "outcome=ill"} <= set(data.column_names)
    large, small = (data_of(f"transfer --smoke-test --size {size}")[0] for size in (64, 32))
    assert torch.equal(large.y, small.y)
    assert not torch.equal(large.x, small.x)
    data, _ = data_of("transfer --smoke-test --unlabelled others")
    assert torch.equal(data.x, data_of("transfer --smoke-test")[0].x)


def test_a_smoke_test_reads_what_it_is_given(data_of, tmp_path):
    (tmp_path / "table.csv").write_text("text,size,age,label\n" + "a,1,7,p\na,2,8,q\n" * 10)
    data, args = data_of("tabular --smoke-test --data table.csv --label label")
    assert (args.data, len(data.x), data.class_names) == ("table.csv", 16, ("p", "q"))
    np.savez(tmp_path / "ready.npz", x=np.random.default_rng(0).normal(size=(20, 3)))
    data, _ = data_of("text --smoke-test --data table.csv --embeddings ready.npz")
    assert (data.x.shape, len(data.x_test)) == ((16, 3), 4)
    rows = np.random.default_rng(0).normal(size=(300, 2))
    np.savez(tmp_path / "miniboone_balanced.npz", X=rows, y=np.arange(300) % 2)
    data, args = data_of("tabular --smoke-test --data-root .")
    assert (args.data, len(data.labelled[0]), len(data.x_test)) == ("miniboone", 200, 30)


@pytest.mark.parametrize("example", ["tabular", "text"])
def test_a_label_may_mean_unknown(example, data_of, run, tmp_path):
    (tmp_path / "t.csv").write_text("text,size,y\n" + "a,1,0\nab,2,1\nb,3,-1\n" * 10)
    np.savez(tmp_path / "ready.npz", x=np.random.default_rng(0).normal(size=(30, 3)))
    command = f"{example} --smoke-test --data t.csv --label y"
    command += " --embeddings ready.npz" if example == "text" else ""
    code, said = run(*command.split())
    assert (code, "--label: label='y' holds -1" in said[-1], "unknown=-1" in said[-1]) == (2, True, True)
    data, _ = data_of(f"{command} --unknown -1")
    assert (data.class_names, int((data.y < 0).sum())) == (("0", "1"), 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["toy --device cuda", "mnist --device cuda --devices 2"])
def test_a_missing_device_is_told(command, run, tmp_path):
    code, said = run(*command.split())
    assert code == 2
    assert "--device" in said[0]
    assert "there are 0 CUDA devices" in said[0]
    assert not list(tmp_path.iterdir())


def test_batches_that_processes_cannot_share(run, tmp_path):
    code, said = run("mnist", "--smoke-test", "--devices", "3")
    assert code == 2
    assert "--devices: labelled_batch_size: 3 processes cannot share 10 of 100 rows" in said[-1]
    assert not list(tmp_path.iterdir())


def test_one_step_is_a_run_and_another_model_does_not_resume_it(run, tmp_path):
    options = ("--threads", "1", "--out", "run")
    code, said = run("toy", "--steps", "1", "--resume", *options)
    assert code == 0
    assert said[0] == "--resume: there is no last.ckpt in run, so this is a new run"
    assert said[-1].startswith("moons: test error ")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    code, said = run("toy", "--steps", "1", "--resume", "--prior", "gmm", *options)
    assert code == 2
    assert said[-1].startswith("toy.py: error: ")
    assert "last.ckpt" in said[-1]
    code, said = run("toy", "--steps", "1", "--resume", "--prior", "gmm", "--threads", "2", "--out", "run")
    assert code == 2
    after = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert after == before  # threads.txt, too


@pytest.mark.parametrize("example", ["toy", "digits", "mnist", "tabular", "text", "transfer"])
def test_files_that_no_example_made_are_not_replaced(example, run, tmp_path):
    for name in ("model.pt", "metrics.json", "samples.png", "threads.txt"):
        (tmp_path / name).write_text("mine")
        code, said = run(example, "--smoke-test", "--out", ".")
        assert code == 2
        assert f"--out: out: a run replaces {name}, and without .by_example beside it" in said[-1]
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_files_that_no_composed_example_made_are_not_replaced(load_example, tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.json").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["outcome.py", "--smoke-test", "--out", "."])
    with pytest.raises(SystemExit):
        load_example("outcome", "__main__")
    assert "a run replaces metrics.json, and without .by_example" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("metrics.json", "mine")]
    load_example("composed")["out_folder"].claim(tmp_path)
    assert (tmp_path / ".by_example").exists()
    load_example("composed")["parse"]("", ".")


def test_files_of_the_user_stay_and_those_of_an_example_are_replaced(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for seed in ("1", "2"):
        assert run("toy", "--steps", "1", "--threads", "1", "--seed", seed, "--out", ".")[0] == 0
        assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["seed"] == int(seed)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_all_names_of_files_are_known():
    """A file that an example writes is looked for before the run."""
    sys.path.insert(0, str(EXAMPLES))
    known = set(importlib.import_module("out_folder").WRITTEN)
    sys.path.pop(0)
    sources = [path.read_text() for path in EXAMPLES.rglob("*.py")]
    named = {name for source in sources for name in re.findall(r"out / \"([^\"{}]+\.[a-z.]+)\"", source)}
    assert named - {"last.ckpt", "best.ckpt"} == known


@pytest.mark.parametrize("preset", ["scnf", "flowgmm"])
def test_labelled_points_alone_are_trained_on(preset, run, tmp_path):
    options = ("--preset", preset, "--data", "circles", "--steps", "2", "--out", "run")
    code, said = run("toy", "--labelled-only", *options)
    assert (code, said[-1].split(":")[0]) == (0, "circles")
    assert (tmp_path / "run" / "boundary.png").exists()


FIGURES = ("error_pct", "label_nll", "ece")


def test_a_file_of_rows_chooses_the_labels_and_all_three_are_reported(run, tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(70))
    options = ("--smoke-test", "--threads", "1", "--out", "run", "--labelled", "rows.npy")
    code, said = run("mnist", *options)
    assert code == 0
    assert any(line.startswith("digits, 70 labels, cpu, flow, seed 0") for line in said)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["settings"]["labelled"] == "rows.npy"
    for prefix, name in (("test", "flow "), ("graph", "graph "), ("test_with_graph", "flow with graph")):
        numbers = [metrics[f"{prefix}_{figure}"] for figure in FIGURES]
        line = next(line for line in said if line.startswith(name))
        assert line.removeprefix(name).replace("%", "").split() == [
            f"{number:.{digits}f}" for number, digits in zip(numbers, (2, 3, 4), strict=True)
        ]
    assert metrics["graph_error_pct"] < 20 < metrics["test_error_pct"]  # four steps teach a flow nothing


def test_a_finished_table_resumes_to_the_same_figures(run, tmp_path):
    options = ("--smoke-test", "--threads", "1", "--graph", "rows", "--comparators", "near", "--out", "run")
    found = []
    for more in ((), ("--resume",)):
        code, said = run("tabular", *options, *more)
        assert code == 0
        found.append(json.loads((tmp_path / "run" / "metrics.json").read_text()))
    assert list(found[0]["comparators"]) == ["nearest neighbours", "nearest neighbours, quantiles"]
    assert found[1]["comparators"].keys() == found[0]["comparators"].keys()
    for prefix in ("test", "graph", "test_with_graph"):
        for figure in FIGURES:
            assert found[1][f"{prefix}_{figure}"] == found[0][f"{prefix}_{figure}"]
    assert (tmp_path / "run" / "reliability.png").exists()
    assert len([line for line in said if line.startswith(("flow ", "graph ", "nearest "))]) == 5


def test_without_a_graph_the_flow_is_alone(run, tmp_path):
    code, said = run("digits", "--smoke-test", "--threads", "1", "--graph", "none", "--out", "run")
    assert code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not [name for name in metrics if "graph" in name]
    assert not [line for line in said if line.startswith(("graph", "flow with"))]
    assert set(metrics["baselines_label_nll"]) == set(metrics["baselines_error_pct"])


def test_methods_without_a_verdict_and_figures_that_fail_cost_nothing(run, tmp_path, monkeypatch):
    """With one label a class, some test rows are far from all rows that a label reaches."""
    monkeypatch.setattr(scnf.SemiConditionalFlow, "sample", lambda *args: 1 / 0)
    options = ("--labels-per-class", "1", "--smoke-test", "--threads", "1", "--graph", "none", "--out", "run")
    with pytest.raises(ZeroDivisionError):
        run("digits", *options)
    assert "test_error_pct" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    baselines = importlib.import_module("digits").baselines(digits(labels_per_class=1))
    assert all(0 < nll < 20 for nll in baselines["baselines_label_nll"].values())


def test_a_finished_run_that_was_logged_elsewhere_has_no_curves(run, tmp_path):
    options = ("--smoke-test", "--threads", "1", "--graph", "none", "--out", "run")
    assert run("mnist", *options, "--log", "tensorboard")[0] == 0
    (tmp_path / "run" / "metrics.json").unlink()
    assert run("mnist", *options, "--resume")[0] == 0
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "curves.png").exists()


def test_a_refusal_of_fit_leaves_no_folder(run, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise ValueError("no")

    monkeypatch.setattr(scnf.presets.Preset, "fit", refuse)
    code, said = run("toy", "--threads", "1", "--out", "run")
    assert (code, said[-1]) == (2, "toy.py: error: no")
    assert not list(tmp_path.iterdir())


def test_no_traceback_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, EXAMPLES / "toy.py", "--prior", "nonsense"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
