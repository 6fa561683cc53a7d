"""What one run of a line of FlowGMM's Tables 1 and 2 does: a flow, or another method, on the same rows."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pyro_scnf as scnf
from benchmarks.papers.flowgmm_runs import Metrics, Run
from pyro_scnf import analysis
from pyro_scnf.analysis.label_probs import Scoring
from pyro_scnf.baselines import COMPARATORS
from pyro_scnf.datasets import SemiSupervisedData, features, tabular, text
from pyro_scnf.datasets.text_files import read_set
from pyro_scnf.presets import LeadingComponents, Preset, flowgmm_table

__all__ = ["RATES", "SETS", "Comparison", "Flow"]

FEW_STEPS = 4
RATES = {"miniboone": 3.0, "hepmass": 10.0, "ag_news": 0.6, "yahoo": 0.2}
"""What the released code multiplies the mean of the rows without label by."""


def _texts(name: str, args: argparse.Namespace, **options: Any) -> SemiSupervisedData:
    return text(name, root=args.data_root, embeddings=args.embeddings, **options)


def _yahoo(classes: int, args: argparse.Namespace, **options: Any) -> SemiSupervisedData:
    """Yahoo Answers. The folder of the data holds files of all ten classes, or of two.

    :raises FileNotFoundError: if it holds the other ones.
    """
    if args.data_root is not None:
        found = len(read_set("yahoo", args.data_root).class_names)
        if found != classes:
            raise FileNotFoundError(f"--data-root: Yahoo Answers there has {found} classes, not {classes}")
    return _texts("yahoo", args, **options)


def _images(name: str, args: argparse.Namespace, **options: Any) -> SemiSupervisedData:
    return features(name, root=args.data_root, **options)


def _table(name: str, args: argparse.Namespace, **options: Any) -> SemiSupervisedData:
    return tabular(name, root=args.data_root, **options)


SETS: dict[str, Callable[..., SemiSupervisedData]] = {
    "miniboone": partial(_table, "miniboone"),
    "hepmass": partial(_table, "hepmass"),
    "ag_news": partial(_texts, "ag_news"),
    "yahoo": partial(_yahoo, 10),
    "yahoo_2_classes": partial(_yahoo, 2),
    "cifar10": partial(_images, "cifar10"),
}
"""Data sets by name: a function of the command line, of the number of labels and of the seed."""


def _made(seed: int) -> SemiSupervisedData:
    """Two clouds of points, for a test of the script."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(400) % 2
    x = torch.randn(400, 4, generator=generator) + 2.0 * truth[:, None]
    shown = torch.where(torch.arange(400) < 20, truth, scnf.UNLABELLED)
    return SemiSupervisedData(x[:300], shown[:300], x[300:], truth[300:], 2)


@dataclass(frozen=True)
class Comparison(Run):
    """A method on a table, or on embeddings of texts or images.

    :ivar str data: a name of :data:`SETS`.
    :ivar int labels: labelled rows, equally many of each class. A seed chooses them, and the test rows of
        sets that have none of their own.
    :ivar str method: a name of :data:`pyro_scnf.baselines.COMPARATORS`.
    """

    data: str = "miniboone"
    labels: int = 20
    method: str = ""

    def rows(self, seed: int, args: argparse.Namespace) -> SemiSupervisedData:
        """The rows of a seed, the same for all methods."""
        return _made(seed) if args.smoke_test else SETS[self.data](args, labels=self.labels, seed=seed)

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        data, start = self.rows(seed, args), time.process_time()
        method = COMPARATORS[self.method]
        probs = method(data.x, data.y, data.x_test, num_classes=data.num_classes, seed=seed)
        seconds = time.process_time() - start
        found = analysis.calibration(probs.log(), data.y_test)
        return {"finished": True, "cpu_minutes": seconds / 60, **found}


@dataclass(frozen=True)
class Flow(Comparison):
    """A flow with a preset.

    :ivar bool graph: whether a graph of near rows gives evidence about labels.
    :ivar bool paper: whether the flow, the prior and the training are those of the released code. Its
        temperature is the best one for the test rows, which flatters its label NLL and calibration error.
    """

    graph: bool = False
    paper: bool = False

    def preset(self, data: SemiSupervisedData) -> Preset:
        """The settings of the line."""
        if not self.paper:
            found = scnf.presets.recommended(data)
            return found.with_graph(LeadingComponents(data.x)) if self.graph else found
        weight = 2000 / (RATES[self.data] * self.labels)
        return flowgmm_table(data.x.shape[1], data.num_classes, labelled_weight=weight)

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        data, start = self.rows(seed, args), time.process_time()
        if self.paper:  # it wants columns in units of their standard deviations
            center, spread = data.x.mean(0), data.x.std(0).clamp(min=1e-6)
            data = replace(data, x=(data.x - center) / spread, x_test=(data.x_test - center) / spread)
        preset, evidence = self.preset(data), None
        if preset.graph is not None:
            graph = preset.graph.evidence(data)
            data, evidence = replace(data, label_log_prior=graph.log_probs), graph.of(data.x_test)
        data = preset.prepare(data, seed)
        torch.manual_seed(seed)
        model = preset.make_model(data)
        steps = FEW_STEPS if args.smoke_test else preset.steps
        out = folder / "training"
        result = preset.fit(
            model, data, steps=steps, seed=seed, out=out, resume=True, minutes=minutes, progress=False
        )
        metrics: Metrics = {"finished": result.finished, "steps": result.steps}
        if not result.finished:
            return metrics
        prepare = preset.augment.prepare
        drawn = {"prepare": prepare, "draws": preset.draws, "average": "posterior"}
        if self.paper:  # the prior of temperature_from_training is not made for its likelihoods
            temperature = analysis.fit_temperature(model, data.x_test, data.y_test, **drawn).temperature
        else:
            temperature = analysis.temperature_from_training(model, prepare(data.x), data.y).temperature
        scores = Scoring(**drawn).of(model, data.x_test, "x_test")
        probs = scores.at(temperature)
        if evidence is not None:
            probs = analysis.opinion_pool(probs, evidence)
        found = analysis.calibration(probs, data.y_test)
        with torch.no_grad():
            rows = prepare(data.x_test).split(1000)
            densities = torch.cat([model.flow.class_log_prob(x).logsumexp(-1) for x in rows])
        return metrics | {
            "cpu_minutes": (time.process_time() - start) / 60,
            **{figure: found[figure] for figure in ("accuracy_pct", "label_nll", "ece")},
            "temperature": temperature,
            "label_nll_at_1": analysis.calibration(scores.at(1.0), data.y_test)["label_nll"],
            # The mean says little: a row of MiniBooNE holds a value a million times too large.
            "median_nll": math.log(data.num_classes) - densities.median().item(),
        }
