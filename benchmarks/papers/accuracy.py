"""Errors and likelihoods of the examples over several seeds: mean, standard deviation, every run.

    python benchmarks/accuracy.py --seeds 5 --json accuracy.json
    python benchmarks/accuracy.py --runs "toy --data moons --prior gmm" --seeds 5

Each run is the example itself, in a process of its own, as a user starts it. Runs already in ``--out``
are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _timing import environment, write_json

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS = ("toy --data moons", "toy --data circles", "digits")


def run(command: str, seed: int, out: Path) -> dict[str, Any]:
    """The metrics of one example, run or found."""
    folder = out / command.replace("--", "").replace(" ", "-") / str(seed)
    metrics = folder / "metrics.json"
    if not metrics.exists():
        example, *options = shlex.split(command)
        arguments = [f"{example}.py", *options, "--seed", str(seed), "--out", str(folder)]
        subprocess.run(
            [sys.executable, str(EXAMPLES / arguments[0]), *arguments[1:]],
            check=True,
            capture_output=True,
        )
    return json.loads(metrics.read_text())


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and single values of every number in the records, nested ones too."""
    summary: dict[str, Any] = {}
    for key, value in records[0].items():
        values = [record[key] for record in records]
        if isinstance(value, dict):
            if key not in ("settings", "versions"):
                summary[key] = summarise(values)
        elif isinstance(value, int | float):
            spread = stdev(values) if len(values) > 1 else 0.0
            summary[key] = {"mean": mean(values), "std": spread, "runs": values}
    return summary


def show(summary: dict[str, Any], indent: int = 2) -> None:
    for key, value in summary.items():
        if "runs" in value:
            print(f"{' ' * indent}{key:28s} {value['mean']:9.3f} ± {value['std']:.3f}")
        else:
            print(f"{' ' * indent}{key}")
            show(value, indent + 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=RUNS, help="examples with their options, quoted")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--parallel", type=int, default=1, help="runs at a time; `seconds` counts then suffer"
    )
    parser.add_argument("--out", type=Path, default=Path("out") / "accuracy")
    parser.add_argument("--json", type=Path, default=None, help="where to write the record")
    args = parser.parse_args()
    results = {}
    for command in args.runs:
        with ThreadPoolExecutor(args.parallel) as pool:
            records = list(pool.map(lambda seed, c=command: run(c, seed, args.out), range(args.seeds)))
        results[command] = summarise(records)
        print(command)
        show(results[command])
    record = {"environment": environment(packages=("torch", "pyro-ppl", "lightning", "scikit-learn"))}
    write_json(args.json, {**record, "parallel": args.parallel, "results": results})


if __name__ == "__main__":
    main()
