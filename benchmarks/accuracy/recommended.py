"""Test errors of ``presets.recommended`` beside logistic regression and one nearest neighbour.

    python -m benchmarks.accuracy.recommended --seeds 3 --json recommended.json
    python -m benchmarks.accuracy.recommended --data-root data --only mnist

Few rows are labelled: 5 or 10 of each class, or 5 %. The flow also has the unlabelled rows. The two others
learn from the labelled rows, the first with these standardised. A seed sets the split of the data, the choice
of labels and the training. No test label is used before the errors are counted. Finished runs are found in
``--runs`` and not repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn import datasets as sklearn_datasets
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import pyro_scnf as scnf
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_run_options, make_parser
from benchmarks.tools.records import found_or_made, write_json
from benchmarks.tools.summaries import show, summarise
from pyro_scnf import analysis
from pyro_scnf.datasets import SemiSupervisedData, digits, enlarged_digits, images, keep_labels

PACKAGES = ("lightning", "scikit-learn")
EXPECTED = 3.0  # minutes of one run on a busy machine


def split(x: Tensor, y: Tensor, test: float, labels: float, way: str, seed: int) -> SemiSupervisedData:
    """Rows in random order, the share ``test`` of them for testing; ``labels`` of the others labelled.

    :param labels: labels of each class with ``way="balanced"``, else the share of labelled rows.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    count, classes = round(test * len(x)), int(y.max()) + 1
    held, rest = order[:count], order[count:]
    number = round(labels * classes if way == "balanced" else labels * len(rest))
    shown = keep_labels(y[rest], classes, number, way, seed)
    return SemiSupervisedData(x[rest], shown, x[held], y[held], classes)


def table(name: str, labels_per_class: int, seed: int, root: Path | None) -> SemiSupervisedData:
    """A table of scikit-learn, three tenths of it for testing."""
    bunch = getattr(sklearn_datasets, f"load_{name}")()
    x, y = torch.as_tensor(bunch.data).float(), torch.as_tensor(bunch.target)
    return split(x, y, 0.3, labels_per_class, "balanced", seed)


def twelve_columns(classes: int, clusters: int, seed: int, root: Path | None) -> SemiSupervisedData:
    """A synthetic table of 12 columns: 2000 training rows, 5 % of them labelled, and 1000 test rows."""
    x, y = sklearn_datasets.make_classification(
        3000,
        12,
        n_informative=6,
        n_redundant=2,
        n_classes=classes,
        n_clusters_per_class=clusters,
        random_state=seed,
    )
    return split(torch.as_tensor(x).float(), torch.as_tensor(y), 1 / 3, 0.05, "stratified", seed)


def mnist(seed: int, root: Path | None) -> SemiSupervisedData:
    """5000 training images, 100 of them labelled, and the first 2000 test images."""
    assert root is not None
    data = images("mnist", root, labels=100, seed=seed)
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))
    labelled, others = (data.y >= 0).nonzero()[:, 0], order[data.y[order] < 0]
    rows = torch.cat([labelled, others])[:5000].sort().values
    return SemiSupervisedData(data.x[rows], data.y[rows], data.x_test[:2000], data.y_test[:2000], 10)


SETS: dict[str, Callable[[int, Path | None], SemiSupervisedData]] = {
    "wine": partial(table, "wine", 5),
    "breast cancer": partial(table, "breast_cancer", 10),
    "digits as a table": partial(table, "digits", 10),
    "12 columns, 2 classes of 2 clusters": partial(twelve_columns, 2, 2),
    "12 columns, 3 classes of 1 cluster": partial(twelve_columns, 3, 1),
    "digits 8x8": lambda seed, root: digits(seed=seed),
    "digits 28x28": lambda seed, root: enlarged_digits(seed=seed),
    "mnist": mnist,
}
"""Data sets by name: a function of the seed and of torchvision's folder."""
NEED_ROOT = ("mnist",)


def baselines(data: SemiSupervisedData) -> dict[str, float]:
    """Test errors in per cent of methods that learn from the labelled rows alone."""
    x, y = data.labelled
    methods = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)),
        "1-nearest neighbour": KNeighborsClassifier(1),
        "1-nearest neighbour, standardised": make_pipeline(StandardScaler(), KNeighborsClassifier(1)),
    }
    test = data.x_test.flatten(1).double().numpy(), data.y_test.numpy()
    known = x.flatten(1).double().numpy(), y.numpy()
    return {name: 100 * (1 - method.fit(*known).score(*test)) for name, method in methods.items()}


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run: train what is recommended, and count the errors of all methods."""
    data = SETS[name](seed, args.data_root)
    torch.manual_seed(seed)
    start, cpu = time.perf_counter(), time.process_time()
    preset = scnf.presets.recommended(data)
    data = preset.prepare(data, seed)
    model = preset.make_model(data)
    steps = 2 if args.smoke_test else preset.steps
    preset.fit(model, data, steps=steps, seed=seed, progress=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    scores = analysis.evaluate(
        model,
        data.x_test,
        data.y_test,
        prepare=preset.augment.prepare if preset.augment.bins is None else None,
        bins=preset.augment.bins,
        draws=preset.draws,
        average="posterior",
    )
    return {
        "test_error_pct": scores["test_error_pct"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "baselines_error_pct": baselines(data),
        "why": preset.why,
    }


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", choices=SETS, metavar="SET", help="by default all that can be read"
    )
    parser.add_argument("--data-root", type=Path, help="torchvision's root folder, for mnist")
    add_run_options(parser, "recommended")
    args = parser.parse_args()
    if args.smoke_test:
        args.seeds = 1
    readable = [name for name in SETS if args.data_root is not None or name not in NEED_ROOT]
    args.only = args.only or readable
    unreadable = [name for name in args.only if name not in readable]
    if unreadable:
        parser.error(f"--only {' '.join(unreadable)}: needs --data-root")
    return args


def main() -> int:
    args = parse()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", "ActNorm|.*density of such values", UserWarning)
    deadline = Deadline(args.minutes)
    folder = args.runs / ("smoke" if args.smoke_test else "full")
    done: dict[str, list[dict[str, Any]]] = {}
    for name in args.only:
        for seed in range(args.seeds):
            path = folder / name.replace(" ", "-") / f"{seed}.json"
            found = found_or_made(path, partial(run, name, seed, args), partial(deadline.allows, EXPECTED))
            if found is not None:
                done.setdefault(name, []).append(found)
        if name in done:
            print(f"{name}: {len(done[name])} of {args.seeds} seeds. {done[name][0]['why']}")
            show(summarise(done[name]))
        write_json(args.json, record(done, args))
    return 0


def record(done: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, object]:
    """What the result file holds."""
    return {
        "benchmark": "recommended",
        "environment": environment("cpu", PACKAGES, args.threads),
        "settings": {"seeds": args.seeds, "smoke_test": args.smoke_test},
        "results": {name: summarise(runs) for name, runs in done.items()},
        "complete": all(len(done.get(name, ())) == args.seeds for name in args.only),
    }


if __name__ == "__main__":
    sys.exit(main())
