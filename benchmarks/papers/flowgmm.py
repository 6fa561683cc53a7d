"""The tables of FlowGMM (Izmailov et al., 2020), beside our figures.

    python -m benchmarks.papers.flowgmm --table 3 --seeds 5 --data-root data --out out/flowgmm \\
        --json table3.json

Tables 1 and 2 are tables, texts and image features with few labels, beside other methods on the same rows:
``--data-root`` holds their files, and ``--embeddings`` is a file of ready embeddings of texts. Tables 3 and 4
are MNIST with few labels, 5 is calibration, 7 two toys. The letters are those of appendices: A (EM in place
of gradients), B (where means start, and training them), H (distances between random means), J (Student-t),
K (class imbalance). Each seed is another choice of labels. Lines of one seed have the same labels, so they
can be paired.

Finished runs are found in ``--out`` and not repeated. A run that was cut off goes on from its last
checkpoint. So give the same command again, with ``--minutes`` for each call, until every line is there.
After a change of a preset, give another folder. Lines whose data are missing are left out, and the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t as student_t

from benchmarks.papers.flowgmm_runs import Baseline, Mnist
from benchmarks.papers.flowgmm_tables import TABLES, Row, base_of
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import make_parser, positive, seed, whole
from benchmarks.tools.records import write_json
from benchmarks.tools.summaries import summarise

RESERVE = 1.0  # minutes that a run needs besides training: start and evaluation


def paired(table: str, made: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    """How much more accurate lines are than that of :func:`base_of`, with the same labels, in per cent.

    The interval of each mean is one of 95 %, by Student's t.
    """
    labels = {row.name: getattr(row.run, "labels", None) for row in TABLES[table]}
    found = {}
    for row in TABLES[table]:
        name, base = row.name, base_of(table, row)
        if base is None or name == base or labels[name] != labels[base]:
            continue
        both = zip(made.get(name, ()), made.get(base, ()), strict=False)
        runs = [
            a["accuracy_pct"] - b["accuracy_pct"] for a, b in both if a.get("finished") and b.get("finished")
        ]
        if len(runs) > 1:
            error = stdev(runs) / math.sqrt(len(runs))
            reach = float(student_t.ppf(0.975, len(runs) - 1)) * error
            found[f"{name} less {base}"] = {
                "mean": mean(runs),
                "standard_error": error,
                "interval_95": [mean(runs) - reach, mean(runs) + reach],
                "runs": runs,
            }
    return found


def summary(records: Sequence[Mapping[str, Any]], figures: Mapping[str, str]) -> dict[str, Any]:
    """Mean, standard deviation and single values of each figure of a line."""
    chosen = [{f: each[name] for f, name in figures.items() if name in each} for each in records]
    return summarise(chosen) if chosen else {}


def record(
    rows: Sequence[Row], made: Mapping[str, list[Mapping[str, Any]]], args: argparse.Namespace
) -> dict[str, object]:
    """What the result file holds."""
    return {
        "benchmark": "flowgmm",
        "table": args.table,
        "settings": {"seeds": args.seeds, "first_seed": args.first_seed, "smoke_test": args.smoke_test},
        "environment": environment("cpu", ("lightning", "scikit-learn")),
        **lines_of(rows, made, args.seeds),
        "paired_accuracy": paired(args.table, made),
    }


def lines_of(
    rows: Sequence[Row], made: Mapping[str, list[Mapping[str, Any]]], seeds: int
) -> dict[str, object]:
    """The entries of a result file that its lines fill."""
    return {
        "runs": {row.name: repr(row.run) for row in rows},
        "paper": {row.name: dict(row.paper) for row in rows},
        "ours": {row.name: summary(_finished(made[row.name]), row.figures) for row in rows},
        "complete": all(len(_finished(made[row.name])) == seeds for row in rows),
    }


def _finished(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in records if each.get("finished")]


def show(rows: Sequence[Row], made: Mapping[str, list[Mapping[str, Any]]]) -> None:
    """Print lines of a table: our figures, then those of the paper."""
    for each in rows:
        done = _finished(made[each.name])
        print(f"{each.name}: {len(done)} seeds")
        for figure, found in summary(done, each.figures).items():
            theirs = f"   (paper {each.paper[figure]})" if figure in each.paper else ""
            print(f"    {figure:20s} {found['mean']:10.4f} ± {found['std']:.4f}{theirs}")


def chosen(table: str, only: Sequence[str] | None) -> list[Row]:
    """The lines of a table that ``--only`` asks for."""
    rows = list(TABLES[table])
    if only is None:
        return rows
    named = [each for each in rows if each.name in only]
    return named or [each for each in rows if any(text in each.name for text in only)]


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--seeds", type=whole, default=5)
    parser.add_argument("--first-seed", type=seed, default=0)
    parser.add_argument("--data-root", type=Path, help="folder of the data; torchvision's root for MNIST")
    parser.add_argument("--embeddings", type=Path, help=".npz file of embeddings, for texts")
    parser.add_argument("--minutes", type=positive, help="for this call; the next call goes on")
    parser.add_argument(
        "--out",
        "--runs",
        type=Path,
        default=Path("out") / "flowgmm",
        help="folder of the runs (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="TEXT",
        help="the lines of these names, or else those that contain a TEXT",
    )
    parser.add_argument("--threads", type=whole, default=1)
    args = parser.parse_args()
    if args.smoke_test:
        args.seeds = 1
    return args


def main() -> int:
    args = parse()
    rows = chosen(args.table, args.only)
    if not rows:
        names = ", ".join(each.name for each in TABLES[args.table])
        raise SystemExit(f"--only {args.only!r}: no such line; Table {args.table} has {names}")
    on_mnist = [each.name for each in rows if isinstance(each.run, Mnist | Baseline)]
    if on_mnist and args.data_root is None and not args.smoke_test:
        raise SystemExit(
            f"--data-root: missing, and {on_mnist[0]} needs MNIST; give torchvision's root folder"
        )
    torch.set_num_threads(args.threads)
    deadline, missing = Deadline(args.minutes), False
    made: dict[str, list[Mapping[str, Any]]] = {each.name: [] for each in rows}
    for number in range(args.first_seed, args.first_seed + args.seeds):
        for each in rows:
            left = deadline.left()
            minutes = None if left is None else left - RESERVE
            try:
                made[each.name].append(each.run.found_or_made(number, args, minutes))
            except FileNotFoundError as error:
                print(f"{each.name}: not run, because data are missing: {error}", flush=True)
                missing = True
            write_json(args.json, record(rows, made, args))
    print(f"Table {args.table}, {args.seeds} seeds from {args.first_seed}: mean ± standard deviation")
    show(rows, made)
    for name, found in paired(args.table, made).items():
        low, high = found["interval_95"]
        print(f"{name}: {found['mean']:.3f} % of accuracy, 95 % interval {low:.3f} to {high:.3f}")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
