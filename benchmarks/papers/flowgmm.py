"""The tables of FlowGMM (Izmailov et al., 2020), beside our figures.

    python -m benchmarks.papers.flowgmm --table 3 --seeds 5 --data-root data --out out/flowgmm \\
        --json table3.json

Tables 1 and 2 are tables, texts and image features with few labels, beside other methods on the same rows:
``--data-root`` holds their files, and ``--embeddings`` is a file of ready embeddings of texts. Tables 3 and 4
are MNIST with few labels, 5 is calibration, 7 two toys. The letters are those of appendices: A (EM in place
of gradients), B (where means start, and training them), H (distances between random means), J (Student-t),
K (class imbalance). Each seed is another choice of labels. Lines of one seed have the same labels, so they
can be paired.

All lines on MNIST use the light preset ``flowgmm-mnist-cpu`` on one thread. The number of steps differs, so
that lines with a second view, or with all labels, take about as many minutes as the others.

Finished runs are found in ``--out`` and not repeated. A run that was cut off goes on from its last
checkpoint. So give the same command again, with ``--minutes`` for each call, until every line is there.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.papers.flowgmm_comparisons import RATES, Comparison, Flow
from benchmarks.papers.flowgmm_runs import Baseline, Coverage, Distances, Mnist, Run, Toy
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import make_parser, positive, seed, whole
from benchmarks.tools.records import write_json
from benchmarks.tools.summaries import summarise
from pyro_scnf.baselines import COMPARATORS
from pyro_scnf.datasets import ImageAugment

RESERVE = 1.0  # minutes that a run needs besides training: start and evaluation


@dataclass(frozen=True)
class Row:
    """A line of a table.

    :ivar run: what makes our figures.
    :ivar figures: the figures to show, and the names that they have in the metrics of the run.
    :ivar paper: what the paper reports of this line.
    """

    name: str
    run: Run
    figures: Mapping[str, str]
    paper: Mapping[str, str]


def row(name: str, run: Run, figures: str | Mapping[str, str], **paper: str) -> Row:
    """A line whose figures are named in a string, or mapped to the names in the metrics."""
    return Row(name, run, {f: f for f in figures.split()} if isinstance(figures, str) else figures, paper)


# Trainings take about three minutes on one thread: all rows, all rows and a second view, labelled rows alone.
STEPS, TWO_VIEWS, LABELLED_ONLY = 850, 620, 700
PROBABILITIES = "consistency:kind=probabilities,weight=300000,start=0"
LIKELIHOOD = "consistency:kind=likelihood,weight=1,start=0"
CONS = Mnist(terms=(PROBABILITIES,), steps=TWO_VIEWS)
FLOWGMM, SUPERVISED = Mnist(steps=STEPS), Mnist(unlabelled=False, steps=LABELLED_ONLY)
# With all labels, training sees an image once or twice. Shifts by a pixel are then enough.
ALL_LABELS = Mnist(labels=0, augment=ImageAugment(shift=1), steps=LABELLED_ONLY)

ACCURACY = "accuracy_pct label_nll ece nll minutes"
TEMPERED = {"accuracy_pct": "temp_accuracy_pct", "label_nll": "temp_label_nll", "ece": "temp_ece"}
BRIER = {"accuracy_pct": "accuracy_pct", "label_nll": "label_nll", "ece": "ece", "brier": "brier"}
SHARES = (1.0,) * 3 + (0.75,) * 3 + (0.5,) * 3 + (0.25,)
THINNED = {"shares": SHARES, "steps": STEPS}
L1 = "l1_distance accuracy_pct minutes"
RANDOM = "flowgmm:separation=0.2"
FROM_DATA = "flowgmm:means=latents"

COMPARED = "accuracy_pct label_nll ece cpu_minutes"
OURS = f"{COMPARED} temperature label_nll_at_1 median_nll"


def _key(name: str) -> str:
    """The name of a comparator as a keyword."""
    return name.replace(", ", "_").replace("-", "_").replace(" ", "_")


def compared(data: str, labels: int, **paper: str) -> Iterator[Row]:
    """The lines of a data set: our flow, with and without a graph, FlowGMM's recipe, and every comparator.

    :param paper: accuracies in per cent that the paper reports, by :func:`_key` of the method.
    """
    about, names = f"{data}, {labels} labels", ("FlowGMM", *COMPARATORS)
    theirs = {name: {"accuracy_pct": paper[key]} for name in names if (key := _key(name)) in paper}
    yield row(f"flow, {about}", Flow(data, labels), OURS)
    yield row(f"flow with graph, {about}", Flow(data, labels, graph=True), OURS)
    if data in RATES:
        yield row(f"FlowGMM, {about}", Flow(data, labels, paper=True), OURS, **theirs.get("FlowGMM", {}))
    for name in COMPARATORS:
        yield row(f"{name}, {about}", Comparison(data, labels, name), COMPARED, **theirs.get(name, {}))


TABLES: dict[str, tuple[Row, ...]] = {
    "1": (
        *compared(
            "miniboone",
            20,
            nearest_neighbours="75.3",
            logistic_regression="79.0",
            dropout_net="80.4 ± 0.4",
            label_spreading_dense="79.3",
            Pi_model="80.8 ± 0.01",
            FlowGMM="81.9 ± 0.7",
        ),
        *compared(
            "hepmass",
            20,
            nearest_neighbours="81.2",
            logistic_regression="81.2",
            dropout_net="82.2 ± 0.1",
            label_spreading_dense="84.9",
            Pi_model="87.9 ± 0.2",
            FlowGMM="88.5 ± 0.2",
        ),
        *compared(
            "ag_news",
            200,
            nearest_neighbours="41.6",
            logistic_regression="77.5",
            dropout_net="77.5 ± 0.3",
            label_spreading_dense="36.1",
            Pi_model="80.2 ± 0.3",
            FlowGMM="82.1 ± 1.0",
        ),
        *compared("ag_news", 40),
        *compared(
            "yahoo",
            800,
            nearest_neighbours="19.8",
            logistic_regression="54.9",
            dropout_net="55.7 ± 0.3",
            label_spreading_dense="36.4",
            Pi_model="56.3 ± 0.04",
            FlowGMM="57.9 ± 0.2",
        ),
    ),
    "2": (
        *compared(
            "cifar10",
            250,
            nearest_neighbours="84.81 ± 0.17",
            logistic_regression="88.13 ± 0.41",
            label_spreading_dense="88.64 ± 0.67",
            label_spreading_as_is="87.20 ± 1.10",
            Pi_model="89.84 ± 0.25",
        ),
        *compared(
            "cifar10",
            1000,
            nearest_neighbours="87.99 ± 0.15",
            logistic_regression="90.40 ± 0.1",
            label_spreading_dense="90.24 ± 0.19",
            label_spreading_as_is="89.13 ± 0.15",
            Pi_model="91.54 ± 0.05",
        ),
    ),
    "3": (
        row("FlowGMM Sup (all labels)", ALL_LABELS, ACCURACY, accuracy_pct="99.63"),
        row(
            "FlowGMM Sup (all labels), three times the minutes",
            replace(ALL_LABELS, steps=3 * LABELLED_ONLY),
            ACCURACY,
            accuracy_pct="99.63",
        ),
        row("M1+M2 VAE SSL", Baseline(), "accuracy_pct label_nll ece minutes", accuracy_pct="97.60 ± 0.02"),
        row("M1+M2 VAE SSL, shifted images", Baseline(shifted=True), "accuracy_pct label_nll ece minutes"),
        row("FlowGMM Sup (n_l labels)", SUPERVISED, ACCURACY, accuracy_pct="97.36"),
        row("FlowGMM", FLOWGMM, ACCURACY, accuracy_pct="98.94"),
        row(
            "FlowGMM-cons, likelihood",
            Mnist(terms=(LIKELIHOOD,), steps=TWO_VIEWS),
            ACCURACY,
            accuracy_pct="99.0",
        ),
        row("FlowGMM-cons, probabilities", CONS, ACCURACY),
    ),
    "4": (
        *(
            row(f"M1+M2 VAE SSL, {n} labels", Baseline(labels=n), "accuracy_pct minutes", accuracy_pct=paper)
            for n, paper in (
                (100, "96.67"),
                (600, "97.41 ± 0.05"),
                (1000, "97.60 ± 0.02"),
                (3000, "97.82 ± 0.04"),
            )
        ),
        *(
            row(
                f"FlowGMM-cons, {n} labels",
                Mnist(n, terms=CONS.terms, steps=CONS.steps),
                ACCURACY,
                accuracy_pct=p,
            )
            for n, p in ((100, "98.2"), (600, "98.7"), (1000, "99"), (3000, "99.2"))
        ),
    ),
    "5": (
        row("FlowGMM", SUPERVISED, BRIER, accuracy_pct="97.3", label_nll="0.295", ece="0.024"),
        row(
            "FlowGMM-temp",
            SUPERVISED,
            {**TEMPERED, "brier": "temp_brier", "temperature": "temperature"},
            accuracy_pct="97.3",
            label_nll="0.094",
            ece="0.004",
        ),
    ),
    "7": (
        row(
            "FlowGMM, moons",
            Toy("moons"),
            "accuracy_pct nll minutes",
            accuracy_pct="99.4 ± 1.1",
            nll="0.82 ± 0.68",
        ),
        row(
            "FlowGMM, circles",
            Toy("circles"),
            "accuracy_pct nll minutes",
            accuracy_pct="97.52 ± 0.5",
            nll="0.83 ± 0.04",
        ),
        row(
            "SCNF, moons",
            Toy("moons", scnf=True),
            "accuracy_pct nll minutes",
            accuracy_pct="99.7 ± 0.2",
            nll="1.11 ± 0.02",
        ),
        row(
            "SCNF, circles",
            Toy("circles", scnf=True),
            "accuracy_pct nll minutes",
            accuracy_pct="95 ± 1.9",
            nll="1.68 ± 0.13",
        ),
        row("FlowGMM, moons, labelled only", Toy("moons", labelled_only=True), "accuracy_pct nll minutes"),
        row(
            "FlowGMM, circles, labelled only", Toy("circles", labelled_only=True), "accuracy_pct nll minutes"
        ),
    ),
    "A": (
        row("gradient of the marginal", FLOWGMM, ACCURACY, accuracy_pct="98.94"),
        row("EM, posterior", Mnist(guide="em", steps=STEPS), ACCURACY, accuracy_pct="98.97"),
        row("EM, most probable label", Mnist(guide="em-hard", steps=STEPS), ACCURACY),
    ),
    "B": (
        row("random, fixed", FLOWGMM, ACCURACY),
        row("latents, fixed", Mnist(prior=FROM_DATA, steps=STEPS), ACCURACY),
        row("random, fixed, a quarter of the steps", Mnist(steps=STEPS // 4), ACCURACY),
        row("latents, fixed, a quarter of the steps", Mnist(prior=FROM_DATA, steps=STEPS // 4), ACCURACY),
        row("random, by gradient", Mnist(prior=f"{RANDOM},fit_means=gradient", steps=STEPS), ACCURACY),
        row("random, by EM", Mnist(prior=f"{RANDOM},fit_means=em", steps=STEPS), ACCURACY),
    ),
    "H": tuple(
        row(
            f"D = {d}",
            Distances(d),
            "distance distance_by_root_2d own_by_d others_by_d above_99_pct",
            distance_by_root_2d="1",
            own_by_d="1",
            others_by_d="3",
        )
        for d in (2, 8, 32, 128, 784)
    ),
    "J": (
        row("Gaussian", FLOWGMM, f"below_99_pct {ACCURACY}"),
        row(
            "Student-t, 5 degrees of freedom",
            Mnist(
                prior="student-t:df=5,means=random,separation=0.2,fit_means=fixed,fit_scales=fixed",
                steps=STEPS,
            ),
            f"below_99_pct {ACCURACY}",
            below_99_pct="0.24",
        ),
    ),
    "K": (
        row(
            "by gradient",
            Mnist(class_probs="learnable", balanced_labels=True, **THINNED),
            L1,
            l1_distance="0.16",
        ),
        row("by EM", Mnist(class_probs="em", balanced_labels=True, **THINNED), L1),
        row("by gradient, labels taken as drawn at random", Mnist(class_probs="learnable", **THINNED), L1),
        row("Dirichlet posterior, data sets covered", Coverage(), "covered_fewest covered_mean sets minutes"),
    ),
}


BASES = {"3": "FlowGMM", "A": "gradient of the marginal", "B": "random, fixed", "J": "Gaussian"}
"""The line with which the others of a table are compared, seed by seed."""


def paired(table: str, made: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    """How much more accurate lines are than that of :data:`BASES`, with the same labels, in per cent."""
    if table not in BASES:
        return {}
    labels = {row.name: getattr(row.run, "labels", None) for row in TABLES[table]}
    base, found = BASES[table], {}
    for name, records in made.items():
        both = zip(records, made.get(base, ()), strict=False)
        runs = [
            a["accuracy_pct"] - b["accuracy_pct"] for a, b in both if a.get("finished") and b.get("finished")
        ]
        if name != base and labels[name] == labels[base] and len(runs) > 1:
            error = stdev(runs) / math.sqrt(len(runs))
            found[f"{name} less {base}"] = {"mean": mean(runs), "standard_error": error, "runs": runs}
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
    deadline = Deadline(args.minutes)
    made: dict[str, list[Mapping[str, Any]]] = {each.name: [] for each in rows}
    for number in range(args.first_seed, args.first_seed + args.seeds):
        for each in rows:
            left = deadline.left()
            minutes = None if left is None else left - RESERVE
            made[each.name].append(each.run.found_or_made(number, args, minutes))
            write_json(args.json, record(rows, made, args))
    print(f"Table {args.table}, {args.seeds} seeds from {args.first_seed}: mean ± standard deviation")
    show(rows, made)
    for name, found in paired(args.table, made).items():
        print(f"{name}: {found['mean']:.3f} % of accuracy, standard error {found['standard_error']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
