"""The benchmarks' own arithmetic, and how ``benchmarks.all`` decides what to run and what to write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import image_flow, toy_flow

import pyro_scnf as scnf
from benchmarks import all as runner
from benchmarks.accuracy import coverage, images, recommended
from benchmarks.papers import flowgmm
from benchmarks.speed import terms
from benchmarks.tools import timing
from benchmarks.tools.code_version import code_version
from benchmarks.tools.neighbours import neighbours
from benchmarks.tools.options import add_run_options, add_timing_options, make_parser
from benchmarks.tools.passes import count_passes
from benchmarks.tools.records import write_json
from pyro_scnf.datasets import SemiSupervisedData, digits

ROOT = Path(__file__).parents[1]


# -- ratios and bounds -------------------------------------------------------------
def test_ratio_is_of_the_least_disturbed_times():
    found = timing.ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])
    assert (found.value, found.median) == (2.0, 2.0)
    assert (found.low, found.high) == (1.75, 3.0)


def test_ratio_of_a_single_round():
    found = timing.ratio([3.0], [2.0])
    assert (found.value, found.median, found.low, found.high) == (1.5,) * 4


def test_interleaved_steps_all_run_in_every_round():
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = timing.interleave(steps, 3, warmup=1)
    assert "".join(calls) == "abcbcacababc"  # each round starts one further on
    assert {len(column) for column in seconds.values()} == {3}


def test_a_missed_bound_is_an_error(capsys):
    assert timing.report_bounds({"a": (1.0, 1.2), "b": (1.2, 1.2)}) == 0
    assert timing.report_bounds({"a": (1.0, 1.2), "b": (1.3, 1.2)}) == 1
    assert timing.report_bounds({"a": (float("nan"), 1.2)}) == 1
    assert "MISSED" in capsys.readouterr().out


def test_lines_of_a_table_are_compared_seed_by_seed():
    def runs(*accuracies):
        return [{"finished": value is not None, "accuracy_pct": value} for value in accuracies]

    made = {
        "FlowGMM": runs(90.0, 95.0, 91.0, None),
        "FlowGMM-cons, probabilities": runs(91.0, 97.0, None, 93.0),
        "FlowGMM Sup (n_l labels)": runs(96.0),  # one seed tells no error
        "FlowGMM Sup (all labels)": runs(98.0, 99.0),  # has other labels
    }
    difference = {
        "mean": 1.5,
        "standard_error": pytest.approx(0.5),
        "interval_95": pytest.approx([1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5], abs=1e-3),
        "runs": [1.0, 2.0],
    }
    assert flowgmm.paired("3", made) == {"FlowGMM-cons, probabilities less FlowGMM": difference}
    assert flowgmm.paired("K", made) == {}
    flow, other = "flow, ag_news, 200 labels", "Pi model, ag_news, 200 labels"
    made = {flow: runs(85.0, 86.0), other: runs(86.0, 88.0), "Pi model, miniboone, 20 labels": runs(1.0, 2.0)}
    assert flowgmm.paired("1", made) == {f"{other} less {flow}": difference}
    for table, rows in flowgmm.TABLES.items():
        assert {flowgmm.base_of(table, row) for row in rows} <= {None, *(row.name for row in rows)}


def test_lines_whose_data_are_missing_are_left_out(tmp_path, monkeypatch, capsys):
    """Yahoo Answers has files of two classes or of ten. The lines of the others are not run."""
    for name in ("train_2class.csv", "test_2class.csv"):
        (tmp_path / name).write_text('"a text",science\n"a word",society\n')
    options = f"--table 1 --seeds 1 --data-root {tmp_path} --out {tmp_path / 'out'}"
    line = "nearest neighbours, yahoo, 800 labels"
    monkeypatch.setattr("sys.argv", ["flowgmm", *options.split(), "--only", line])
    assert flowgmm.main() == 1
    found = capsys.readouterr().out
    assert f"{line}: not run, because data are missing: --data-root: Yahoo Answers there has 2" in found
    assert f"{line}: 0 seeds" in found


# -- data with few labels ----------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "labels"), [("wine", 15), ("breast cancer", 20), ("12 columns, 3 classes of 1 cluster", 100)]
)
def test_few_rows_are_labelled_and_no_test_row_is_a_training_row(name, labels):
    data, again, other = (recommended.SETS[name](seed, None) for seed in (0, 0, 1))
    assert len(data.labelled[0]) == labels
    assert data.labelled[1].unique().tolist() == list(range(data.num_classes))
    assert not (data.x[:, None] == data.x_test).all(-1).any()
    assert torch.equal(data.x, again.x)
    assert not torch.equal(data.x, other.x)


def test_the_other_methods_see_labelled_rows_alone():
    data = recommended.SETS["wine"](0, None)
    hidden = replace(data, x=torch.where(data.y[:, None] < 0, 1e6, data.x))
    assert recommended.baselines(hidden) == recommended.baselines(data)


# -- what images show --------------------------------------------------------------
def few_images():
    x, y = torch.randint(256, (6, 1, 4, 4)).float(), torch.tensor([0, 0, 1, 2, 2, 2])
    return SemiSupervisedData(x, y, x, y, 3)


def test_images_of_classes_far_apart_show_the_class_asked_for():
    flow = image_flow("gmm").eval()
    with torch.no_grad():
        flow.prior.loc.copy_(20 * torch.eye(3, 8)[..., None, None])
        flow.prior.log_scale.zero_()
    found = images.judged(
        scnf.SemiSupervisedModel(flow), few_images(), lambda x: flow.posterior(x).probs.argmax(-1), 6, 256
    )
    assert found == {"samples_pct": 100, "worst_class_pct": 100, "samples_at_1_pct": 100}


@pytest.mark.parametrize("seen", range(3))
def test_images_that_always_show_the_same_class(seen):
    """Draws are right by chance. A swap is right if the image is of another class, for one of two labels."""
    model, data = scnf.SemiSupervisedModel(image_flow("flow").eval()), few_images()
    found = images.judged(model, data, lambda x: torch.full((len(x),), seen), 6, 256)
    swaps = 100 * (data.y_test != seen).sum().item() / 12
    assert found == pytest.approx(
        {
            "samples_pct": 100 / 3,
            "worst_class_pct": 0,
            "samples_at_1_pct": 100 / 3,
            "swaps_pct": swaps,
            "swaps_with_aux_pct": swaps,
        }
    )


def test_all_labels_are_those_of_the_same_digits():
    data, judge = images.all_labels("digits", "digits", "", 3)
    few = digits(seed=3)
    known = few.y >= 0
    assert torch.equal(data.y[known], few.y[known])
    assert (data.y >= 0).all()
    assert judge.error_pct < 3


# -- intervals that hold the truth -------------------------------------------------
def interval(truth: list[float], low: list[float], high: list[float]) -> dict[str, list[float]]:
    return {"truth": truth, "mean": truth, "low": low, "high": high}


@pytest.fixture
def cover(tmp_path, monkeypatch):
    """Run the benchmark with an example that writes what it is told, or fails. It returns what it did."""
    results: dict[str, dict] = {}
    started: list[str] = []

    def run_example(example, options, out, *, minutes=None):
        name = f"{example} {options[1]}"
        started.append(name)
        if name not in results:
            return 1, 0.1
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "metrics.json", results[name])
        return 0, 0.1

    def call(*options: str) -> tuple[int, list[str], dict]:
        started.clear()
        path = tmp_path / "coverage.json"
        fixed = ("--runs", str(tmp_path / "runs"), "--json", str(path), "--seeds", "2")
        monkeypatch.setattr(sys, "argv", ["coverage", *fixed, *options])
        return coverage.main(), list(started), json.loads(path.read_text())

    monkeypatch.setattr(coverage, "run_example", run_example)
    monkeypatch.setattr(coverage, "find_examples", lambda: ["one", "two"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return call, results


def test_intervals_that_hold_the_truth_are_counted_and_runs_are_not_repeated(cover):
    call, results = cover
    first = {"share": interval([0.5, 0.3], [0.4, 0.31], [0.6, 0.4])}
    second = {"share": interval([0.5, 0.3], [0.1, 0.2], [0.4, 0.3])}
    wrong = {"share": interval([0.5, 0.3], [0.6, 0.6], [0.7, 0.7])}
    results["composing/one 0"] = {"estimates": first, "wrong_model": wrong, "error_pct": 2.0, "seed": 0}
    status, started, record = call("--only", "one")
    assert (status, started, record["complete"]) == (1, ["composing/one 0", "composing/one 1"], False)
    assert record["coverage"]["one"]["estimates"] == {"share": [1, 0]}
    results["composing/one 1"] = {"estimates": second, "wrong_model": first, "error_pct": 3.0, "seed": 1}
    status, started, record = call("--only", "one")
    assert (status, started, record["complete"]) == (0, ["composing/one 1"], True)
    found = record["coverage"]["one"]
    assert (found["estimates"], found["wrong_model"]) == ({"share": [1, 1]}, {"share": [1, 0]})
    assert found["figures"]["error_pct"]["runs"] == [2.0, 3.0]
    assert found["figures"].keys() == {"error_pct", "cpu_minutes"}
    results |= {f"composing/two {seed}": results["composing/one 0"] for seed in range(2)}
    status, started, record = call()
    assert (status, started, record["complete"]) == (0, ["composing/two 0", "composing/two 1"], True)
    assert record["coverage"].keys() == {"one", "two"}


@pytest.mark.parametrize("sizes", [(2, 3, 1), (13, 13)])
def test_intervals_of_many_or_of_varying_components_are_counted_together(sizes):
    rows = [interval([0.5] * n, [0.1] * n, [0.6] * (n - 1) + [0.4]) for n in sizes]
    runs = [{"estimates": {"age": row}} for row in rows]
    found = coverage.covered(runs, "estimates")["age"]
    assert found == {
        "per_cent": pytest.approx(100 * (sum(sizes) - len(sizes)) / sum(sizes)),
        "of": sum(sizes),
    }


def test_the_examples_of_larger_models_are_found_by_their_main():
    found = coverage.find_examples()
    assert {"prevalence", "sequence", "class_means"} <= set(found)
    assert not {"composed", "estimates"} & set(found)
    assert sorted((*runner.QUICK, *runner.SLOW)) == found


# -- what the gradients for NUTS compute -------------------------------------------
def test_only_one_of_the_two_gradients_evaluates_the_prior():
    flow = toy_flow("flow").requires_grad_(False)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    with scnf.share_encoding():
        gradients = terms.gradients(flow, x)
        prior = {name: count_passes(flow.prior.flow, run) for name, run in gradients.items()}
        encoder = {name: count_passes(flow.transform, run)[0] for name, run in gradients.items()}
    assert {name: passes for name, (passes, _) in prior.items()} == {terms.ANEW: 1, terms.KEPT: 0}
    assert encoder == {terms.ANEW: 0, terms.KEPT: 0}
    torch.testing.assert_close(prior[terms.ANEW][1], prior[terms.KEPT][1])


# -- neighbours --------------------------------------------------------------------
def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_neighbours_end_with_the_block_also_by_an_error():
    started: list[subprocess.Popen] = []

    def fail() -> None:
        with neighbours(2, 0.1) as processes:
            started.extend(processes)
            assert all(running(process.pid) for process in started)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(started) == 2
    assert not any(running(process.pid) for process in started)


def test_a_neighbour_that_ends_early_is_an_error():
    def end_one() -> None:
        with neighbours(2, 0.1) as processes:
            processes[0].kill()
            processes[0].wait()

    with pytest.raises(RuntimeError, match="1 of 2 neighbours ended early"):
        end_one()


def test_a_neighbour_ends_when_its_parent_is_killed():
    code = (
        "import time\n"
        "from benchmarks.tools.neighbours import neighbours\n"
        "with neighbours(1, 0.1) as processes:\n"
        "    print(processes[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    neighbour = int(parent.stdout.readline())
    assert running(neighbour)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while running(neighbour) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(neighbour)


# -- the version of the code -------------------------------------------------------
def test_code_version_sees_code_and_options_but_no_comments(tmp_path):
    path = tmp_path / "code.py"

    def version(text: str, options: tuple[str, ...] = ()) -> str:
        path.write_text(text)
        return code_version([path], tmp_path, options)

    plain = version("def f(x):\n    return x + 1\n")
    assert version('def f(x):\n    """Words."""\n    return (x +  # why\n            1)\n') == plain
    assert version("def f(x):\n    return x + 2\n") != plain
    assert version("def f(x):\n    return x + 1\n", ("--table", "2")) != plain


# -- what is run, and what is written ----------------------------------------------
@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run ``benchmarks.all`` on one benchmark, a script that stands in for a real one."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("pyro_scnf", "benchmarks/tools", "examples"):
        (tmp_path / name).mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.setattr(runner, "ROOT", tmp_path)

    def call(script: str, *options: str, resumes: bool = False, **settings) -> tuple[int, dict, str]:
        (folder / "one.py").write_text(f"import json, pathlib, sys, time\nargv = sys.argv\n{script}\n")
        benchmark = runner.Benchmark("one", "cpu", "one", 0.001, resumes=resumes, **settings)
        monkeypatch.setattr(runner, "BENCHMARKS", (benchmark,))
        out, work = tmp_path / "results", tmp_path / "work"
        folders = [] if "--dry-run" in options else ["--work", str(work)]
        monkeypatch.setattr(sys, "argv", ["all", "--out", str(out), *folders, *options])
        status = runner.main()
        result = out / "one_cpu.json"
        return status, json.loads(result.read_text()) if result.exists() else {}, capsys.readouterr().out

    return call


def write(record: str) -> str:
    return f"pathlib.Path(argv[argv.index('--json') + 1]).write_text(json.dumps({record}))"


def test_a_complete_result_is_not_measured_again_until_the_code_changes(call):
    status, record, _ = call(write("{'value': 1}"))
    assert (status, record["value"], record["complete"]) == (0, 1, True)
    stamp = record["run"]
    _, record, printed = call(write("{'value': 1}") + "  # another comment")
    assert record["run"] == stamp
    assert "in an earlier call" in printed
    _, record, _ = call(write("{'value': 2}"))
    assert record["value"] == 2
    assert record["run"]["version"] != stamp["version"]


def test_a_failure_is_reported_and_leaves_the_result_and_the_log(call, tmp_path):
    call(write("{'value': 1}"))
    status, record, printed = call("raise ValueError('it broke')")
    assert (status, record["value"]) == (1, 1)
    assert "failed" in printed
    assert "it broke" in printed
    assert "it broke" in (tmp_path / "work" / "logs" / "one_cpu.txt").read_text()


def test_a_script_that_writes_nothing_has_failed(call):
    status, record, printed = call("")
    assert (status, record) == (1, {})
    assert "wrote no result" in printed


def test_a_missed_bound_is_reported_each_time(call):
    script = write("{'kept': False}") + "; sys.exit(1)"
    for _ in range(2):
        status, record, printed = call(script)
        assert (status, record["kept"]) == (1, False)
        assert "bound missed" in printed


def test_a_partial_result_goes_on_and_never_replaces_a_complete_one(call):
    partial = write("{'value': 2, 'complete': False}")
    status, record, printed = call(partial, resumes=True)
    assert (status, record["value"], record["complete"]) == (0, 2, False)
    assert "goes on" in printed
    _, record, _ = call(write("{'value': 3}"), resumes=True)
    assert (record["value"], record["complete"]) == (3, True)
    _, record, _ = call(partial, resumes=True)
    assert record["value"] == 3


def test_a_benchmark_is_killed_at_the_deadline_or_not_started(call, tmp_path):
    begun = time.monotonic()
    status, record, printed = call("time.sleep(60)", "--minutes", "0.02")
    assert time.monotonic() - begun < 30
    assert (status, record) == (0, {})
    assert "cut off" in printed
    status, record, printed = call(write("{}"), "--minutes", "0")
    assert (status, record) == (0, {})
    assert "not started" in printed


def test_a_dry_run_smoke_tests_and_never_skips(call):
    for _ in range(2):
        status, record, _ = call(write("{'smoke': '--smoke-test' in argv}"), "--dry-run")
        assert (status, record["smoke"]) == (0, True)


def test_what_is_missing_is_said(call):
    _, record, printed = call(write("{}"), packages=("no_such_package",))
    assert record == {}
    assert "needs no_such_package" in printed
    _, record, printed = call(write("{}"), mnist=True)
    assert record == {}
    assert "needs --data-root" in printed


def test_every_benchmark_has_a_line_in_the_readme():
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for benchmark in runner.BENCHMARKS:
        assert f"{benchmark.name}_" in readme
        assert f"{benchmark.module.replace('.', '/')}.py" in readme
        assert (ROOT / "benchmarks" / f"{benchmark.module.replace('.', '/')}.py").exists()
    for result in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert result.name in readme


def test_results_are_whole_or_absent(tmp_path):
    path = tmp_path / "folder" / "result.json"
    write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(path.parent.iterdir()) == [path]


# -- command lines -----------------------------------------------------------------
@pytest.mark.parametrize(
    "option", ["--batch-size=0", "--repeats=1.5", "--threads=-1", "--seed=-1", "--minutes=0", "--minutes=nan"]
)
def test_numbers_that_cannot_be_are_refused(option, capsys):
    parser = make_parser("a benchmark")
    add_timing_options(parser, batch_size=8, repeats=2)
    add_run_options(parser, "runs")
    with pytest.raises(SystemExit):
        parser.parse_args([option])
    assert f"argument {option.split('=')[0]}: " in capsys.readouterr().err
    given = parser.parse_args(["--batch-size", "1", "--seed", "0", "--minutes", "0.5"])
    assert (given.batch_size, given.seed, given.minutes) == (1, 0, 0.5)
