"""FFJORD as f_w on scikit-learn's 8×8 digits, beside the Glow of ``presets.DIGITS``, after the same minutes.

    python -m benchmarks.accuracy.continuous_digits --minutes-each 2 --json continuous_digits.json

Both have a hundred labels, no graph, the same prior, augmentation and optimiser. The number of steps of each
is chosen so that training takes ``--minutes-each`` on the CPU's clock: short runs of each are timed first.
FFJORD has two levels of one continuous flow. Its divergence is estimated, in training and in evaluation.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import torch

import pyro_scnf as scnf
from benchmarks.tools.machine import environment
from benchmarks.tools.options import make_parser, positive, seed, whole
from benchmarks.tools.records import write_json
from pyro_scnf import analysis
from pyro_scnf.datasets import SemiSupervisedData, digits
from pyro_scnf.presets import DIGITS, Preset
from pyro_scnf.priors import PriorSpec

TIMED = 20


def _ffjord(prior: PriorSpec, num_classes: int, latent_dim: int | None = None) -> scnf.SemiConditionalFlow:
    """Two levels with a continuous flow each, and the prior of the preset."""
    f_w = scnf.flows.ffjord(
        (1, 8, 8), levels=2, hidden=(32, 32), gaussianize=17, latent_dim=latent_dim, divergence="rademacher"
    )
    own = {"name": "flow", "steps": 4, "width": 64, "scale": "clamp"}
    return scnf.SemiConditionalFlow(f_w, own if prior == "flow" else prior, num_classes)


def trained(
    preset: Preset, data: SemiSupervisedData, steps: int, args: argparse.Namespace
) -> tuple[scnf.SemiSupervisedModel, float]:
    """A model after so many steps, and the seconds of CPU that they took."""
    torch.manual_seed(args.seed)
    model, start = preset.make_model(data), time.process_time()
    preset.fit(model, data, steps=steps, seed=args.seed, validate_every=steps, progress=False, log=None)
    return model, time.process_time() - start


def measured(preset: Preset, data: SemiSupervisedData, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one kind of flow."""
    few = 2 if args.smoke_test else TIMED
    start = trained(preset, data, few, args)[1]  # what every run takes, and a few steps
    more = trained(preset, data, 4 * few, args)[1] - start
    steps = max(few, int(60 * args.minutes_each / (max(more, 1e-3) / (3 * few))))
    model, seconds = trained(preset, data, 2 if args.smoke_test else steps, args)
    torch.manual_seed(args.seed)
    bins, draws = preset.augment.bins, preset.draws
    found = analysis.evaluate(model, data.x_test, data.y_test, bins=bins, draws=draws)
    with scnf.transforms.record_solves() as record:
        model.flow.encode(preset.augment.prepare(data.x_test))
    return {
        "bits_per_dim": found["test_bits_per_dim"],
        "error_pct": found["test_error_pct"],
        "steps": 2 if args.smoke_test else steps,
        "cpu_minutes": seconds / 60,
        "function_evaluations": record.evaluations,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--minutes-each", type=positive, default=2.0, help="default: %(default)s")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--threads", type=whole, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    glow = DIGITS.with_graph(None)
    data, results = digits(labels_per_class=10, seed=args.seed), {}
    for name, preset in (("Glow", glow), ("FFJORD", replace(glow, flow=_ffjord))):
        results[name] = measured(preset, preset.prepare(data, args.seed), args)
        print(name, results[name])
    write_json(
        args.json,
        {
            "benchmark": "continuous_digits",
            "settings": {name: getattr(args, name) for name in ("minutes_each", "seed", "threads")},
            "environment": environment("cpu", ("lightning", "scikit-learn", "torchdiffeq")),
            "flows": results,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
