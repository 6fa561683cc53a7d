"""Shared by the examples of larger models: data whose truth is known, a trained flow, NUTS, and the results.

Every example writes ``metrics.json`` and ``estimates.png``. Both hold the truth beside the posterior mean and
the 95 % interval of each unknown.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.datasets import SemiSupervisedData

sys.path.append(str(Path(__file__).parents[1]))  # command_line serves all examples
from command_line import Parser, checked_folder, whole

K = 3
Estimates = Mapping[str, Mapping[str, list[float]]]


def parse(description: str, name: str) -> argparse.Namespace:
    """Read the options that each of these examples has, and seed PyTorch."""
    parser = Parser(description)
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="seed of data and inference")
    parser.add_argument("--out", type=Path, help="folder for metrics and figures")
    parser.add_argument("--smoke-test", action="store_true", help="take only a few steps, as a test")
    args = parser.parse_args()
    args.out = checked_folder(Path("out") / name if args.out is None else args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    return args


def petals(y: Tensor) -> Tensor:
    """Points ``(*batch, 2)`` of three classes: bent clouds around a circle, which overlap a little."""
    radius = 2 + 0.3 * torch.randn(y.shape)
    angle = 2 * math.pi * y / K + 0.55 * torch.randn(y.shape)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def train(args: argparse.Namespace, labelled: int = 90, rows: int = 1500) -> scnf.SemiConditionalFlow:
    """A flow trained on points of all classes alike, the first ``labelled`` of them with labels.

    Its parameters are frozen: the model around it has few unknowns then, and the flow runs once per datum.
    """
    y = torch.arange(rows) % K
    x, known = petals(y), torch.where(torch.arange(rows) < labelled, y, scnf.UNLABELLED)
    steps = 10 if args.smoke_test else 800
    preset = replace(scnf.presets.TOY, steps=steps, terms=(), held_out=0, prior="gmm")
    data = SemiSupervisedData(x, known, x[:K], y[:K], K)
    model = preset.make_model(data)
    preset.fit(model, data, seed=args.seed, progress=False)
    return model.flow.requires_grad_(False).eval()


def nuts(
    args: argparse.Namespace, model: Callable[..., object], *data: object, nesting: int = 1
) -> dict[str, Tensor]:
    """Posterior draws of the continuous sites of ``model``, whose discrete sites are summed out."""
    warmup, draws = (5, 5) if args.smoke_test else (200, 400)
    kernel = NUTS(model, max_plate_nesting=nesting)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    with scnf.share_encoding():  # the flow and its prior run once for the whole chain
        mcmc.run(*data)
    return mcmc.get_samples()


def estimate(draws: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """The mean and the central 95 % interval of draws ``(S, *shape)`` beside the ``truth`` ``(*shape)``."""
    draws, truth = draws.reshape(len(draws), -1), truth.flatten()
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype), 0)
    values = {"truth": truth, "mean": draws.mean(0), "low": low, "high": high}
    return {name: value.tolist() for name, value in values.items()}


def finish(
    args: argparse.Namespace,
    estimates: Estimates,
    wrong: Estimates | None = None,
    **metrics: float,
) -> dict[str, object]:
    """Write ``metrics.json`` and ``estimates.png``, and print all of it.

    :param estimates: by name, what :func:`estimate` returns. The intervals should hold the truth.
    :param wrong: likewise, from a simpler model that leaves something out. They need not.
    :param metrics: further numbers by name.
    """
    wrong = wrong or {}
    result = {**metrics, "estimates": estimates, "wrong_model": wrong, "seed": args.seed}
    (args.out / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(estimates, wrong).savefig(args.out / "estimates.png", dpi=110)
    for name, value in metrics.items():
        print(f"{name}: {value:.3f}")
    for name, rows in (*estimates.items(), *((f"wrong model, {name}", rows) for name, rows in wrong.items())):
        for truth, mean, low, high in zip(*rows.values(), strict=True):
            print(f"{name}: {mean:.3f}, 95 % interval {low:.3f} to {high:.3f}, truth {truth:.3f}")
    print(f"written to {args.out}")
    return result


def draw(estimates: Estimates, wrong: Estimates) -> Figure:
    """One panel for each name: intervals, means and the truth."""
    figure = Figure(figsize=(3.2 * len(estimates), 3.4), layout="constrained")
    panels = figure.subplots(1, len(estimates), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, estimates.items(), strict=True):
        for these, label, colour, shift in (
            (rows, "95 % interval and mean", "tab:blue", 0.0),
            (wrong.get(name), "of the wrong model", "tab:red", 0.15),
        ):
            if these:
                place = [number + shift for number in range(len(these["truth"]))]
                axes.vlines(place, these["low"], these["high"], color=colour)
                axes.plot(place, these["mean"], "o", color=colour, label=label)
        axes.plot(range(len(rows["truth"])), rows["truth"], "kx", label="truth")
        axes.set(title=name, xticks=range(len(rows["truth"])))
        axes.margins(x=0.2, y=0.1)
    panels[0].legend(fontsize="small")
    return figure
