"""Table 1 of the SCNF paper (Atanov et al., 2019): moons and circles with ten labels, beside our figures.

    python -m benchmarks.papers.toy_table --seeds 5 --out out/toy_table --json toy_table.json

The cells of the paper are two flows f_w (Glow, FFJORD) with two priors (Glow, GMM). Added are a conditional
FFJORD as prior, which the paper proposes without figures, FlowGMM, and a Student-t mixture. All cells of
f_w and prior have the same preset, and about as many parameters. Each seed is another data set and another
choice of labels, the same for all cells. An NLL is in nats; no model can be below 1.013 (moons) and 0.805
(circles) on average.

The figure of each cell, for the first seed, is in the folder ``figures`` of ``--out``. Finished runs are
found in ``--out`` and not repeated, so give the same command again after a call with ``--minutes``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import pyro_scnf as scnf
from benchmarks.papers.flowgmm import lines_of, show
from benchmarks.papers.flowgmm_runs import Metrics, Run
from benchmarks.papers.flowgmm_tables import Row, row
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import make_parser, positive, seed, whole
from benchmarks.tools.records import write_json
from pyro_scnf import analysis, plots
from pyro_scnf.datasets import SemiSupervisedData, toy
from pyro_scnf.presets import FLOWGMM_TOY, TOY, ToyFlow

RESERVE = 0.2  # minutes that a run needs besides training


@dataclass(frozen=True)
class Cell(Run):
    """One model on 1,000 points of the plane with five labels a class.

    :ivar str data: ``"moons"`` or ``"circles"``.
    :ivar str flow: kind of f_w; ``"flowgmm"`` for the flow and the preset of FlowGMM.
    :ivar str prior: a word of :data:`pyro_scnf.PRIORS`.
    """

    data: str = "moons"
    flow: Literal["glow", "ffjord", "flowgmm"] = "glow"
    prior: str = "flow"

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        preset = FLOWGMM_TOY if self.flow == "flowgmm" else replace(TOY, flow=ToyFlow(self.flow))
        steps = 20 if args.smoke_test else preset.steps // (3 if args.quick else 1)
        data, start = preset.prepare(toy(self.data, seed=seed), seed), time.process_time()
        torch.manual_seed(seed)
        model = preset.make_model(data, None if self.flow == "flowgmm" else self.prior)
        result = preset.fit(
            model,
            data,
            steps=steps,
            seed=seed,
            out=folder / "training",
            resume=True,
            minutes=minutes,
            progress=False,
        )
        metrics: Metrics = {"finished": result.finished, "steps": result.steps}
        if not result.finished:
            return metrics
        with scnf.transforms.record_solves() as record:
            model.eval().flow.class_log_prob(data.x_test)
        found = analysis.evaluate(model, data.x_test, data.y_test)
        scnf.save(model, folder / "model.pt")
        return metrics | {
            "error_pct": found["test_error_pct"],
            "nll": found["test_nll"],
            "minutes": result.seconds_in_all / 60,
            "cpu_minutes_of_last_call": (time.process_time() - start) / 60,
            "function_evaluations": record.evaluations,
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }


FIGURES = {
    "error_pct": "error_pct",
    "nll": "nll",
    "cpu_minutes": "cpu_minutes_of_last_call",
    "function_evaluations": "function_evaluations",
    "parameters": "parameters",
}
PAPER: dict[tuple[str, str, str], tuple[str, str]] = {  # error in per cent and NLL, by data, f_w and prior
    ("moons", "glow", "flow"): ("0.6 ± 0.4", "1.11 ± 0.02"),
    ("moons", "glow", "gmm"): ("1.2 ± 1.2", "1.15 ± 0.01"),
    ("moons", "ffjord", "flow"): ("0.3 ± 0.2", "1.12 ± 0.03"),
    ("moons", "ffjord", "gmm"): ("5.3 ± 6.3", "1.15 ± 0.06"),
    ("circles", "glow", "flow"): ("5.0 ± 1.9", "1.68 ± 0.13"),
    ("circles", "glow", "gmm"): ("14.2 ± 9.0", "1.28 ± 0.15"),
    ("circles", "ffjord", "flow"): ("6.2 ± 2.2", "1.7 ± 0.2"),
    ("circles", "ffjord", "gmm"): ("25 ± 2", "0.97 ± 0.05"),
}
NAMES = {"glow": "Glow", "flow": "Glow", "gmm": "GMM", "ffjord": "FFJORD", "student-t": "Student-t"}


def cell(data: str, flow: Literal["glow", "ffjord"], prior: str) -> Row:
    """The line of one f_w and one prior."""
    paper = dict(zip(("error_pct", "nll"), PAPER.get((data, flow, prior), ()), strict=False))
    return row(f"{NAMES[flow]} + {NAMES[prior]}, {data}", Cell(data, flow, prior), FIGURES, **paper)


ROWS = tuple(
    line
    for data in ("moons", "circles")
    for line in (
        cell(data, "glow", "flow"),
        cell(data, "glow", "gmm"),
        cell(data, "ffjord", "flow"),
        cell(data, "ffjord", "gmm"),
        cell(data, "glow", "ffjord"),
        cell(data, "glow", "student-t"),
        row(f"FlowGMM, {data}", Cell(data, "flowgmm"), FIGURES),
    )
)


def draw(line: Row, number: int, args: argparse.Namespace) -> None:
    """The regions of the classes, and the density, of a finished run."""
    run = line.run
    assert isinstance(run, Cell)
    model = scnf.load(run.folder(number, args) / "model.pt")
    data: SemiSupervisedData = toy(run.data, seed=number)
    folder = args.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure = plots.decision_boundary(analysis.evaluate_plane(model, data.x), data)
    figure.savefig(folder / f"{run.slug}.png", dpi=110)


def record(
    rows: Sequence[Row], made: Mapping[str, list[Mapping[str, Any]]], args: argparse.Namespace
) -> dict[str, object]:
    """What the result file holds."""
    return {
        "benchmark": "toy_table",
        "table": "1",
        "settings": {
            "seeds": args.seeds,
            "first_seed": args.first_seed,
            "quick": args.quick,
            "smoke_test": args.smoke_test,
        },
        "environment": environment("cpu", ("lightning", "scikit-learn", "torchdiffeq")),
        **lines_of(rows, made, args.seeds),
    }


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=whole, default=5)
    parser.add_argument("--first-seed", type=seed, default=0)
    parser.add_argument("--quick", action="store_true", help="one seed, and a third of the steps")
    parser.add_argument("--minutes", type=positive, help="for this call; the next call goes on")
    parser.add_argument("--out", "--runs", type=Path, default=Path("out") / "toy_table")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="the lines that contain a TEXT")
    parser.add_argument("--threads", type=whole, default=1)
    args = parser.parse_args()
    if args.quick:
        args.out = args.out / "quick"
    if args.smoke_test or args.quick:
        args.seeds = 1
    return args


def main() -> int:
    args = parse()
    rows = [line for line in ROWS if args.only is None or any(text in line.name for text in args.only)]
    if not rows:
        raise SystemExit(f"--only {args.only!r}: no such line; there are {', '.join(r.name for r in ROWS)}")
    torch.set_num_threads(args.threads)
    deadline = Deadline(args.minutes)
    made: dict[str, list[Mapping[str, Any]]] = {line.name: [] for line in rows}
    for number in range(args.first_seed, args.first_seed + args.seeds):
        for line in rows:
            left = deadline.left()
            metrics = line.run.found_or_made(number, args, None if left is None else left - RESERVE)
            made[line.name].append(metrics)
            write_json(args.json, record(rows, made, args))
            if metrics.get("finished") and number == args.first_seed:
                draw(line, number, args)
    print(f"Table 1, {args.seeds} seeds from {args.first_seed}: mean ± standard deviation")
    show(rows, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
