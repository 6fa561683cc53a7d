"""Tables 2 and 3 of Atanov et al. (2019), their figures beside ours: MNIST with 100 labels.

    python -m benchmarks.papers.atanov2019_tables --table 2 --device cuda --minutes 9 --data-root data \\
        --json table2.json -- --precision bf16-mixed
    python -m benchmarks.papers.atanov2019_tables --table 2 --preset light --seeds 1 --data-root data \\
        --json table2_light.json -- --precision bf16-mixed

The second command is for two CPU cores: a light flow with the loss of the paper.

Each run is ``examples/mnist.py`` in a process of its own, with the options that follow ``--``. Each seed
is another choice of labelled images. Finished runs with the same options are found in ``--runs`` and not
repeated. A run that was cut off goes on from its last checkpoint. So give the same command again, with
``--minutes`` for each call, until every row is there. Rows that are not finished are printed as such.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_run_options, make_parser
from benchmarks.tools.records import write_json
from benchmarks.tools.runs import SMOKE, Outcome, find, train

Outcomes = dict[tuple[str, int], Outcome]
"""Outcomes by name of the row and seed."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    :ivar error: test error in per cent that the paper reports.
    :ivar bits: test bits per dimension that the paper reports, or ``""`` if it reports none.
    :ivar options: what ``examples/mnist.py`` needs to make our figures of this line.
    """

    name: str
    error: str
    bits: str
    options: tuple[str, ...]


# Neither the paper nor its code says which weight it used.
CLF = ("--terms", "classification:weight=1")
TABLES = {
    2: (
        Row("SCNF-GLOW, SGD", "1.9 ± 0.3", "1.145 ± 0.004", ()),
        Row("SCNF-GLOW, EM-SGD, L_clf", "2.0 ± 0.1", "1.151 ± 0.010", ("--guide", "em", *CLF)),
        Row("SCNF-GLOW, EM-SGD", "1.9 ± 0.0", "1.146 ± 0.002", ("--guide", "em")),
        Row("SCNF-GMM, SGD", "14.2 ± 2.4", "1.143 ± 0.011", ("--prior", "gmm")),
        Row(
            "SCNF-GMM, EM-SGD, L_clf",
            "16.9 ± 5.3",
            "1.141 ± 0.006",
            ("--prior", "gmm", "--guide", "em", *CLF),
        ),
        Row("SCNF-GMM, EM-SGD", "13.4 ± 2.8", "1.145 ± 0.005", ("--prior", "gmm", "--guide", "em")),
    ),
    3: tuple(
        # The line of 196 components is the first line of Table 2: the options and the runs are the same.
        Row(f"dim z_f = {d}", error, "", () if d == 196 else ("--latent-dim", str(d)))
        for d, error in ((48, "2.6"), (98, "2.0"), (196, "1.9"), (392, "61.4"), (784, "91.1"))
    ),
}


def folder_of(row: Row, seed: int, args: argparse.Namespace) -> Path:
    """Where a run is kept. Runs with other options are kept elsewhere."""
    chosen = "_".join(option.strip("-") for option in [*row.options, *args.options]) or "default"
    kind = f"{args.device}{'_smoke' if args.smoke_test else ''}"
    return args.runs / kind / args.preset / chosen / str(seed)


def options_of(row: Row, seed: int, args: argparse.Namespace) -> list[str]:
    """The options of ``examples/mnist.py`` for a run."""
    options = ["--preset", args.preset, "--seed", str(seed), "--device", args.device]
    if args.data_root is not None:
        options += ["--data-root", str(args.data_root)]
    return options + [*row.options, *args.options, *(SMOKE if args.smoke_test else ())]


def summary(values: list[float], digits: int) -> str:
    """Mean and, of several values, standard deviation."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def show(row: Row, outcomes: Outcomes) -> None:
    """Print the line of a table: the paper's figures, then ours."""
    records = metrics_of(row, outcomes)
    done = [metrics for metrics in records if metrics["finished"]]
    paper = f"{row.name:26}{row.error:>12}{row.bits:>16}"
    if done:
        errors = summary([m["test_error_pct"] for m in done], 2)
        bits = summary([m["test_bits_per_dim"] for m in done], 4)
        minutes = summary([m["seconds_in_all"] / 60 for m in done], 1)
        print(f"{paper}  |{errors:>16}{bits:>18}  {len(done)} seed(s), {minutes} min")
    elif failed_seeds(row, outcomes):
        print(f"{paper}  |  failed")
    elif records:
        print(f"{paper}  |  not finished, at step {max(metrics['steps'] for metrics in records)}")
    else:
        print(f"{paper}  |  not run")


def metrics_of(row: Row, outcomes: Outcomes) -> list[dict[str, Any]]:
    """Metrics of a row's runs, unfinished ones too."""
    return [each.metrics for (name, _), each in outcomes.items() if name == row.name and each.metrics]


def failed_seeds(row: Row, outcomes: Outcomes) -> list[int]:
    """The seeds of a row whose run ended with an error, for example because training diverged."""
    return [seed for (name, seed), outcome in outcomes.items() if name == row.name and outcome.failed]


def record(rows: list[Row], outcomes: Outcomes, args: argparse.Namespace) -> dict[str, object]:
    """What the result file holds. The settings of single runs are left out, as they name folders."""
    ours = {
        row.name: [
            {key: value for key, value in metrics.items() if key != "settings"}
            for metrics in metrics_of(row, outcomes)
        ]
        for row in rows
    }
    return {
        "benchmark": "atanov2019_tables",
        "table": args.table,
        "preset": args.preset,
        "options": {row.name: shlex.join([*row.options, *args.options]) for row in rows},
        "settings": {"seeds": args.seeds, "smoke_test": args.smoke_test},
        "environment": environment(args.device, ("lightning",)),
        "paper": {row.name: {"error_pct": row.error, "bits_per_dim": row.bits} for row in rows},
        "ours": ours,
        "failed": {row.name: seeds for row in rows if (seeds := failed_seeds(row, outcomes))},
        "complete": all(outcome.finished for outcome in outcomes.values()),
    }


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--table", type=int, choices=TABLES, default=2)
    # Other presets have training terms that the paper has not. The names of the rows would not fit them.
    parser.add_argument("--preset", default="paper", choices=("paper", "paper-small-h", "light"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-root", type=Path)
    add_run_options(parser, "atanov2019_tables")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose name contains TEXT")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="for examples/mnist.py")
    args = parser.parse_args()
    if args.smoke_test:
        args.seeds, args.preset = 1, "light"
    return args


def main() -> int:
    args = parse()
    rows = [row for row in TABLES[args.table] if args.only in row.name]
    if not rows:
        raise SystemExit(
            f"--only {args.only!r}: no such row; Table {args.table} has "
            f"{', '.join(row.name for row in TABLES[args.table])}"
        )
    deadline = Deadline(args.minutes)
    runs = [(row, seed) for seed in range(args.seeds) for row in rows]  # all rows, then the next seed
    outcomes = {(row.name, seed): find(folder_of(row, seed, args)) for row, seed in runs}
    for row, seed in runs:
        outcome = train("mnist", options_of(row, seed, args), folder_of(row, seed, args), deadline)
        outcomes[row.name, seed] = outcome
        write_json(args.json, record(rows, outcomes, args))

    print(f"Table {args.table}, preset {args.preset}: test error in %, bits/dim; theirs, then ours")
    for row in rows:
        show(row, outcomes)
    return int(any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
