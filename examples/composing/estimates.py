"""Shared by the examples of larger models: estimates beside the truth, as numbers and as a figure.

Every example writes ``metrics.json`` and ``estimates.png``. Both hold the truth beside the posterior mean and
the 95 % interval of each unknown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

Estimates = Mapping[str, Mapping[str, list[float]]]


def estimate(draws: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """The mean and the central 95 % interval of draws ``(S, *shape)`` beside the ``truth`` ``(*shape)``."""
    draws, truth = draws.reshape(len(draws), -1), truth.flatten()
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype), 0)
    values = {"truth": truth, "mean": draws.mean(0), "low": low, "high": high}
    return {name: value.tolist() for name, value in values.items()}


def error_pct(guess: Tensor, truth: Tensor) -> float:
    """The share of wrong guesses, in per cent."""
    return 100 * (guess != truth).double().mean().item()


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
    width = max(3.2 * len(estimates), 4.5)  # the legend needs this much
    figure = Figure(figsize=(width, 3.4), layout="constrained")
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
        axes.set_title(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # thins the numbers out where they are many
        axes.set_xlim(-0.6, len(rows["truth"]) - 0.4)
        axes.margins(y=0.1)
    legends = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    shown = {label: handle for legend in legends for handle, label in legend}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize="small")
    return figure
