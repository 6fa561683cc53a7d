"""Images with few labels, over several choices of labels: errors, density, and what the model draws.

    python -m benchmarks.accuracy.images --data-root data --seeds 3 --json images.json
    python -m benchmarks.accuracy.images --data-root data --runs-of "mnist --preset cpu-hour --graph none"

Each run is ``examples/mnist.py`` or ``examples/digits.py`` in a process of its own, as a user starts it.
Finished runs are found in ``--runs`` and not repeated. Beside the metrics of the run, the record says how
many images of the model show the class that was asked for: images drawn for each class, and test images put
under each other label. A support vector machine on histograms of gradients judges them. It has learned from
all labels of the training images. Its own test error is in the record.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import Tensor

import pyro_scnf as scnf
from benchmarks.tools.commands import add_command_options, folder_of, run
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import make_parser, seed, whole
from benchmarks.tools.records import found_or_made, write_json
from benchmarks.tools.summaries import show, summarise
from pyro_scnf import analysis
from pyro_scnf.datasets import FEATURES, ImageAugment, SemiSupervisedData, digits, enlarged_digits, images

COMMANDS = (
    "digits",
    "mnist --preset cpu --precision bf16-mixed",
    "mnist --preset cpu --precision bf16-mixed --graph none",
)
EXAMPLES = ("digits", "mnist")
PACKAGES = ("lightning", "scikit-learn", "kornia")
MINUTES = 3.0  # to train the classifier and to judge the images of a run


class Judge:
    """A classifier of images that has learned from all training labels.

    :ivar float error_pct: its test error.
    """

    def __init__(self, data: SemiSupervisedData) -> None:
        self.classifier = make_pipeline(PCA(80, random_state=0), SVC(C=10))
        self.classifier.fit(FEATURES["hog"](data.x).numpy(), data.y.numpy())
        self.error_pct = 100 * (self(data.x_test) != data.y_test).double().mean().item()

    def __call__(self, x: Tensor) -> Tensor:
        """The class of each image, and -1 for an image that is not finite."""
        finite = x.isfinite().flatten(1).all(1)
        y = torch.full((len(x),), -1)
        if finite.any():
            features = FEATURES["hog"](x[finite].clamp(min=0))
            y[finite] = torch.as_tensor(self.classifier.predict(features.numpy()))
        return y


@lru_cache
def all_labels(example: str, name: str, root: str, seed: int) -> tuple[SemiSupervisedData, Judge]:
    """The data of a run, with the labels of all training images, and a classifier that knows them.

    :param example: ``"digits"`` or ``"mnist"``, which also has the digits in the size of MNIST.
    :param int seed: seed of the split of the digits; 0 for other data, whose test images are given.
    """
    if example == "digits":
        data = digits(seed=seed)
        known = load_digits()
        label = {image.tobytes(): y for image, y in zip(known.images, known.target, strict=True)}
        data = replace(data, y=torch.tensor([label[x.tobytes()] for x in data.x.double().numpy()]))
    elif name == "digits":
        data = enlarged_digits(labels=1437, split="stratified", seed=seed)
    else:
        data = images(name, root, labels=60_000, split="stratified")
    return data, Judge(data)


def judged(
    model: scnf.SemiSupervisedModel, data: SemiSupervisedData, judge: Judge, each: int, bins: int
) -> dict[str, float]:
    """Shares of images that show the class asked for, in per cent.

    ``samples_pct`` and ``worst_class_pct`` are of draws at temperature 0.7, ``samples_at_1_pct`` of draws
    from the model itself. ``swaps_pct`` is of test images under other labels with z_aux = 0, and
    ``swaps_with_aux_pct`` with the z_aux of the image.

    :param int each: images of each class, and test images to put under the other labels.
    :param int bins: grey levels of the data.
    """
    torch.manual_seed(0)
    flow, classes = model.flow, torch.arange(data.num_classes)
    y = classes.repeat_interleave(each)
    cool, exact = ((judge(flow.sample(y, t)) == y).view(-1, each).double().mean(1) for t in (0.7, 1.0))
    found = {"samples_pct": cool.mean(), "worst_class_pct": cool.min(), "samples_at_1_pct": exact.mean()}
    if isinstance(flow.prior, analysis.SwapsLabels):
        x, own = ImageAugment(bins=bins).prepare(data.x_test[:each]), data.y_test[:each]
        other = (own[:, None] != classes).flatten()
        for name, keep_aux in (("swaps_pct", False), ("swaps_with_aux_pct", True)):
            swapped = analysis.swap_labels(flow, x, own, keep_aux=keep_aux)[:, 1:].flatten(0, 1)
            found[name] = (judge(swapped) == classes.repeat(len(x)))[other].double().mean()
    return {name: 100 * share.item() for name, share in found.items()}


def judge_run(folder: Path, example: str, settings: Mapping[str, Any], each: int) -> dict[str, float]:
    """What :func:`judged` says of the model of a run, and the test error of the classifier."""
    name, root = (example, "") if example == "digits" else (settings["data"], str(settings["data_root"]))
    data, judge = all_labels(example, name, root, settings["seed"] if name == "digits" else 0)
    model, bins = scnf.load(folder / "model.pt"), 17 if example == "digits" else 256
    return {**judged(model, data, judge, each, bins), "classifier_error_pct": judge.error_pct}


def example_of(command: str) -> str:
    """The name of the example that a command runs."""
    return command.partition(" ")[0]


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_command_options(parser, COMMANDS, seeds=1, runs="image_runs")
    parser.add_argument("--first-seed", type=seed, default=10, help="default: %(default)s")
    parser.add_argument(
        "--each",
        type=whole,
        default=100,
        help="images of each class, and test images to put under the other labels (default: %(default)s)",
    )
    args = parser.parse_args()
    others = [command for command in args.runs_of if example_of(command) not in EXAMPLES]
    if others:
        parser.error(f"--runs-of {others[0]!r}: expected {' or '.join(EXAMPLES)}, with options")
    args.runs_of = list(dict.fromkeys(args.runs_of))
    if args.smoke_test:
        args.seeds, args.each = 1, 5
    return args


def main() -> int:
    args = parse()
    deadline, failed = Deadline(args.minutes), False
    done: dict[str, list[dict[str, Any]]] = {}
    for command in args.runs_of:
        for number in range(args.first_seed, args.first_seed + args.seeds):
            outcome, folder = run(command, number, args, deadline), folder_of(command, number, args)
            failed |= outcome.failed
            if not outcome.finished or outcome.metrics is None:
                continue
            found = found_or_made(
                folder / f"judged_{args.each}.json",
                partial(judge_run, folder, example_of(command), outcome.metrics["settings"], args.each),
                partial(deadline.allows, MINUTES),
            )
            if found is not None:
                done.setdefault(command, []).append({**outcome.metrics, **found})
                write_json(args.json, record(done, args))
        if command in done:
            print(f"{command}: {len(done[command])} of {args.seeds} seeds", flush=True)
            show(summarise(done[command]))
    write_json(args.json, record(done, args))
    return int(failed)


def record(done: Mapping[str, Sequence[Mapping[str, Any]]], args: argparse.Namespace) -> dict[str, object]:
    """What the result file holds."""
    return {
        "benchmark": "images",
        "environment": environment(args.device, PACKAGES),
        "settings": {
            "seeds": args.seeds,
            "first_seed": args.first_seed,
            "images_per_class": args.each,
            "smoke_test": args.smoke_test,
        },
        "results": {command: summarise(found) for command, found in done.items()},
        "complete": sum(map(len, done.values())) == len(args.runs_of) * args.seeds,
    }


if __name__ == "__main__":
    sys.exit(main())
