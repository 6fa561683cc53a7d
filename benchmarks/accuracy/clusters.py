"""How well a class without labels is found among the unlabelled rows, by the adjusted Rand index.

    python -m benchmarks.accuracy.clusters --seeds 1 --json clusters.json

Of scikit-learn's digits, ten images of each class are labelled, except of one class, which has no label. The
model is that of ``presets.DIGITS`` with a mixture over all latents, ``gmm:means=clusters``, and knows only
that there are ten classes. Each class in turn goes without labels. The adjusted Rand index compares the true
classes of the test images with the predicted ones: whether an image is of the class without labels
(``rand_index``), and all ten classes (``rand_index_all``). No true label of that class is used before.
Finished runs are found in ``--runs`` and not repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from functools import partial
from statistics import mean
from typing import Any

import torch
from sklearn.metrics import adjusted_rand_score

import pyro_scnf as scnf
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_run_options, make_parser, whole
from benchmarks.tools.records import found_or_made, write_json
from benchmarks.tools.summaries import show, summarise
from pyro_scnf import analysis
from pyro_scnf.datasets import digits

PACKAGES = ("lightning", "scikit-learn")
CLASSES = 10
LATENTS = 64  # all of them: those that the label does not reach would not tell the classes apart
EXPECTED = 1.5  # minutes of one run


def run(hidden: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run: train without labels of the class ``hidden``, and compare the classes of the test images."""
    counts = [0 if k == hidden else args.labels_per_class for k in range(CLASSES)]
    data = digits(labels_per_class=counts, seed=seed)
    preset = scnf.presets.DIGITS.with_graph(None)
    torch.manual_seed(seed)
    start, cpu = time.perf_counter(), time.process_time()
    data = preset.prepare(data, seed)
    model = preset.make_model(data, "gmm:means=clusters", latent_dim=LATENTS)
    preset.fit(model, data, steps=2 if args.smoke_test else args.steps, seed=seed, progress=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    x, truth = data.x_test, data.y_test
    bins, draws = preset.augment.bins, preset.draws
    found = analysis.label_log_probs(model, x, bins=bins, draws=draws, average="posterior").argmax(-1)
    return {
        "rand_index": adjusted_rand_score(truth == hidden, found == hidden),
        "rand_index_all": adjusted_rand_score(truth, found),
        "test_error_pct": 100 * (found != truth).double().mean().item(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=whole, default=1)
    parser.add_argument("--labels-per-class", type=whole, default=10, help="default: %(default)s")
    parser.add_argument("--steps", type=whole, default=120, help="of training (default: %(default)s)")
    parser.add_argument("--threads", type=whole, default=1)
    add_run_options(parser, "clusters")
    args = parser.parse_args()
    args.classes = range(CLASSES)
    if args.smoke_test:
        args.classes, args.seeds = range(1), 1
    return args


def main() -> int:
    args = parse()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", "ActNorm|.*density of such values", UserWarning)
    deadline = Deadline(args.minutes)
    kind = "smoke" if args.smoke_test else f"{args.labels_per_class}-labels-{args.steps}-steps"
    done: dict[str, list[dict[str, Any]]] = {}
    for hidden in args.classes:
        for seed in range(args.seeds):
            path = args.runs / kind / str(hidden) / f"{seed}.json"
            found = found_or_made(path, partial(run, hidden, seed, args), partial(deadline.allows, EXPECTED))
            if found is not None:
                done.setdefault(str(hidden), []).append(found)
        if str(hidden) in done:
            print(f"no labels of class {hidden}: {len(done[str(hidden)])} of {args.seeds} seeds", flush=True)
            show(summarise(done[str(hidden)]))
        write_json(args.json, record(done, args))
    return 0


def record(done: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, object]:
    """What the result file holds."""
    runs = [one for runs in done.values() for one in runs]
    return {
        "benchmark": "clusters",
        "environment": environment("cpu", PACKAGES, args.threads),
        "settings": {
            "seeds": args.seeds,
            "labels_per_class": args.labels_per_class,
            "steps": args.steps,
            "smoke_test": args.smoke_test,
        },
        "results": {f"class {hidden} without labels": summarise(runs) for hidden, runs in done.items()},
        "mean": {name: mean(one[name] for one in runs) for name in ("rand_index", "rand_index_all") if runs},
        "complete": len(runs) == len(args.classes) * args.seeds,
    }


if __name__ == "__main__":
    sys.exit(main())
