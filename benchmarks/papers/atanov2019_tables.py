"""Tables 2 and 3 of Atanov et al. (2019), theirs beside ours: MNIST with 100 labels.

    python benchmarks/mnist_tables.py --table 2 --device cuda --minutes 9 --data-root data --json table2.json

Each run is ``examples/mnist.py`` in a process of its own, with the options given after ``--``. What ran
before with the same options is found in ``--out`` and not repeated, what was cut off is resumed, so the
command can be given again and again, ``--minutes`` at a time, until every row is there; unfinished rows
are printed as such. Seeds are label splits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _timing import environment, write_json

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist.py"
RESERVE = 1.0  # minutes that a run needs besides training: start, evaluation, figures
SHORTEST = 0.5  # minutes of training that are worth a start


@dataclass(frozen=True)
class Row:
    """A line of a table: what the paper reports, and the options that make ours."""

    name: str
    error: str
    bits: str
    options: tuple[str, ...]


CLF = ("--clf-weight", "1.0")  # the paper's coefficient is not recorded anywhere
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
        # 196 is the first row of Table 2, and the same run.
        Row(f"dim z_f = {d}", error, "", () if d == 196 else ("--latent-dim", str(d)))
        for d, error in ((48, "2.6"), (98, "2.0"), (196, "1.9"), (392, "61.4"), (784, "91.1"))
    ),
}


def run(row: Row, seed: int, args: Any, minutes: float | None) -> tuple[dict[str, Any] | None, bool]:
    """The metrics of one run, found or trained (on) for at most ``minutes``, and whether it failed."""
    options = [*row.options, *args.options, *(["--smoke-test"] if args.smoke_test else [])]
    folder = args.out / args.preset / ("_".join(o.strip("-") for o in options) or "default") / str(seed)
    metrics = folder / "metrics.json"
    found = json.loads(metrics.read_text()) if metrics.exists() else None
    if (found and found["finished"]) or (minutes is not None and minutes < SHORTEST):
        return found, False
    command = [sys.executable, str(EXAMPLE), "--preset", args.preset, "--seed", str(seed), "--resume"]
    command += ["--device", args.device, "--out", str(folder), *options]
    if args.data_root is not None:
        command += ["--data-root", str(args.data_root)]
    if minutes is not None:
        command += ["--minutes", f"{minutes:.2f}"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        print(f"{row.name}, seed {seed}: failed with exit status {code}, see {folder / 'output.txt'}")
        return found, True
    return json.loads(metrics.read_text()), False


def summary(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=int, choices=TABLES, default=2)
    # The others have terms of their own, and the rows would not be what they are called.
    parser.add_argument("--preset", default="paper", choices=("paper", "paper-small-h"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, help="for this call, all runs together")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out") / "mnist_tables")
    parser.add_argument("--json", type=Path, help="where to write the record")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows with this in their name")
    parser.add_argument("--smoke-test", action="store_true", help="a few steps a run, to see that it runs")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="for examples/mnist.py")
    args = parser.parse_args()
    if args.minutes is not None and args.minutes < RESERVE + SHORTEST:
        parser.error(
            f"--minutes: expected {RESERVE + SHORTEST} or more, a run needs {RESERVE} besides training"
        )
    rows = [row for row in TABLES[args.table] if args.only in row.name]
    started = time.monotonic()

    def left() -> float | None:
        if args.minutes is None:
            return None
        return args.minutes - (time.monotonic() - started) / 60 - RESERVE

    records: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    failed = 0
    for seed in range(args.seeds):  # all rows once before any again
        for row in rows:
            metrics, broken = run(row, seed, args, left())
            failed += broken
            if metrics is not None:
                records[row.name].append(metrics)

    print(f"Table {args.table}, preset {args.preset}: test error in %, bits/dim; theirs, then ours")
    for row in rows:
        done = [m for m in records[row.name] if m["finished"]]
        paper = f"{row.name:26}{row.error:>12}{row.bits:>16}"
        if done:
            errors = summary([m["test_error_pct"] for m in done], 2)
            bits = summary([m["test_bits_per_dim"] for m in done], 4)
            minutes = summary([m["seconds_in_all"] / 60 for m in done], 1)
            print(f"{paper}  |{errors:>16}{bits:>18}  {len(done)} seeds, {minutes} min")
        else:
            steps = [m["steps"] for m in records[row.name]]
            print(f"{paper}  |  {f'not finished, at step {max(steps)}' if steps else 'not run'}")
    write_json(
        args.json,
        {
            "benchmark": "mnist_tables",
            "table": args.table,
            "preset": args.preset,
            "options": args.options,
            "environment": environment(args.device, ("torch", "pyro-ppl", "lightning")),
            "paper": {row.name: {"error_pct": row.error, "bits_per_dim": row.bits} for row in rows},
            "ours": records,
        },
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
