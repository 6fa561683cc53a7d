"""How often 95 % intervals hold the truth: the examples of larger models, on 20 simulated data sets each.

    python -m benchmarks.accuracy.coverage --json coverage.json
    python -m benchmarks.accuracy.coverage --only prevalence --seeds 5

Each file of ``examples/composing`` that has a ``main`` is run for each seed, in a process of its own. A seed
sets the data, the training of the flow and the sampler. Of each component of each estimate, the number of
intervals that hold the truth is counted. If intervals are right, 17 of 20 or more do with a probability of
98 %. The intervals of the model that an example calls wrong are counted likewise. Finished runs are found in
``--runs`` and not repeated; after a change of the code, give another folder.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_run_options, make_parser, whole
from benchmarks.tools.records import read_json, write_json
from benchmarks.tools.runs import ROOT, run_example
from benchmarks.tools.summaries import summarise

FOLDER = "composing"
PACKAGES = ("arviz", "lightning", "scikit-learn")
EXPECTED = 4.0  # minutes of one run on a busy machine
SEEDS, EXPECTED_COVERED = 20, 17
KINDS = ("estimates", "wrong_model")
MOST = 12  # components whose intervals are counted one by one
Counts = list[int] | dict[str, float]


def find_examples(folder: Path = ROOT / "examples" / FOLDER) -> list[str]:
    """The names of the files in ``folder`` that define ``main``. The others serve them."""
    files = sorted(folder.glob("*.py"))
    return [file.stem for file in files if "main" in _functions(file)]


def _functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def run(example: str, seed: int, path: Path, args: argparse.Namespace, deadline: Deadline) -> bool:
    """Run an example and write its metrics to ``path``, with its minutes of CPU. Return whether it failed."""
    options = ["--seed", str(seed), *(["--smoke-test"] if args.smoke_test else [])]
    before = os.times()
    code, _ = run_example(f"{FOLDER}/{example}", options, path.parent, minutes=deadline.left())
    after = os.times()
    if code:
        print(f"{example} --seed {seed}: exit status {code}, see {path.parent / 'output.txt'}", flush=True)
    if code == 0:
        seconds = sum(after[2:4]) - sum(before[2:4])  # of child processes, in user and in system mode
        write_json(path, {**read_json(path.parent / "metrics.json"), "cpu_minutes": seconds / 60})
    return bool(code)


def covered(runs: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Counts]:
    """In how many runs each interval holds the truth: for each estimate, a number for each component.

    If components are many, or not the same number in each run, it is the share of all intervals.
    """
    counts: dict[str, Counts] = {}
    for name in runs[0][kind]:
        bounds = [[run[kind][name][bound] for bound in ("low", "truth", "high")] for run in runs]
        held = [[low <= truth <= high for low, truth, high in zip(*one, strict=True)] for one in bounds]
        sizes = {len(row) for row in held}
        if len(sizes) == 1 and max(sizes) <= MOST:
            counts[name] = [sum(column) for column in zip(*held, strict=True)]
        else:
            every = [holds for row in held for holds in row]
            counts[name] = {"per_cent": 100 * mean(every), "of": len(every)}
    return counts


def record(done: Mapping[str, Sequence[Mapping[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    """What the result file holds."""
    figures = {
        example: {
            **{kind: covered(runs, kind) for kind in KINDS},
            "figures": summarise([{k: v for k, v in r.items() if k not in (*KINDS, "seed")} for r in runs]),
        }
        for example, runs in done.items()
        if runs
    }
    return {
        "benchmark": "coverage",
        "environment": environment("cpu", PACKAGES),
        "settings": {"seeds": args.seeds, "interval_pct": 95, "smoke_test": args.smoke_test},
        "expected": {"covered": EXPECTED_COVERED, "of": SEEDS},
        "coverage": figures,
        "complete": all(len(runs) == args.seeds for runs in done.values()),
    }


def show(figures: Mapping[str, Any]) -> None:
    for kind in KINDS:
        for name, counts in figures[kind].items():
            print(f"  {kind.replace('_', ' ')}, {name}: {counts}")


def parse() -> argparse.Namespace:
    examples = find_examples()
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=whole, default=SEEDS, help="data sets (default: %(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=examples,
        metavar="NAME",
        default=examples,
        help="run these (default: all)",
    )
    add_run_options(parser, "coverage")
    args = parser.parse_args()
    if args.smoke_test:
        args.seeds, args.only = 2, args.only[:1]
    return args


def main() -> int:
    args = parse()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the examples, whose tensors are small
    deadline, folder = Deadline(args.minutes), args.runs / ("smoke" if args.smoke_test else "full")
    done: dict[str, list[dict[str, Any]]] = {example: [] for example in args.only}
    failed = False
    for example, runs in done.items():
        for seed in range(args.seeds):
            path = folder / example / str(seed) / "run.json"
            if not path.exists() and deadline.allows(EXPECTED):
                failed |= run(example, seed, path, args, deadline)
            if path.exists():
                runs.append(read_json(path))
                write_json(args.json, record(done, args))
        print(f"{example}: {len(runs)} of {args.seeds} data sets", flush=True)
        if runs:
            show(record(done, args)["coverage"][example])
    write_json(args.json, record(done, args))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
