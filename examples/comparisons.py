"""Shared by the examples of tables, texts and photographs: a flow beside other methods on the same rows."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import common
import evidence
from command_line import refuse, refusing
from options import comparators_of, with_graph
from torch import Tensor

from pyro_scnf import analysis, plots
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.presets import Preset
from pyro_scnf.training import Machine

FIGURES = ("error_pct", "label_nll", "ece")


def run(args: argparse.Namespace, preset: Preset, data: SemiSupervisedData) -> dict[str, object]:
    """Train a flow and the comparators. Write the model, ``metrics.json`` and ``reliability.png``.

    One temperature makes the flow as sure as its labelled rows allow. The flow and the graph see the same
    features, so both together are an opinion pool.

    :param args: a command line with the options of ``common.parser`` and of ``options.add_options``.
    :return: the figures of the flow, ``seconds``, and those of each comparator in ``comparators``.
    """
    methods = comparators_of(args)
    if not len(data.x_test):
        refuse("--test: there are no test rows, and nothing to compare the methods on")
    preset = with_graph(args, preset, data)
    print(preset.why)
    data, about = evidence.with_evidence(args, preset, data)
    with refusing(args, "prior"):
        model = preset.make_model(data, args.prior).to(args.device)
    machine = Machine(device=args.device)
    result = common.train(args, preset, model, data, smoke_steps=10, machine=machine)

    prepare = preset.augment.prepare
    temperature = analysis.temperature_from_training(model, prepare(data.x), data.y).temperature
    options = {"temperature": temperature, "prepare": prepare, "draws": preset.draws, "average": "posterior"}
    scores = analysis.evaluate(model, data.x_test, data.y_test, **options)
    found = {"flow": analysis.label_log_probs(model, data.x_test, **options)}
    if about is not None:
        found["graph"] = about.of(data.x_test).cpu()
        found["flow with graph"] = analysis.opinion_pool(found["flow"], found["graph"])
        scores |= figures_of(found["graph"], data.y_test, "graph")
        scores |= figures_of(found["flow with graph"], data.y_test, "test_with_graph")
    scores |= {"temperature": temperature, "seconds": result.seconds_in_all}
    common.save(args, model, scores)
    seconds = {}
    for name, method in methods.items():
        begun = time.perf_counter()
        probs = method(data.x, data.y, data.x_test, num_classes=data.num_classes, seed=args.seed)
        found[name], seconds[name] = probs.log(), time.perf_counter() - begun
    others = {name: {**figures_of(found[name], data.y_test), "seconds": s} for name, s in seconds.items()}
    diagram = {name: analysis.reliability(log_probs, data.y_test) for name, log_probs in found.items()}
    plots.reliability_diagram(diagram).savefig(args.out / "reliability.png", dpi=100)
    metrics = {**scores, "comparators": others}
    common.save(args, model, metrics)

    labels = len(data.labelled[0])
    print(f"\n{len(data.x)} rows, {labels} labels, {len(data.x_test)} test rows, seed {args.seed}")
    report(scores, others)
    print(f"{result.seconds:.0f} s of training; written to {args.out}")
    return metrics


def figures_of(log_probs: Tensor, y: Tensor, prefix: str = "test") -> dict[str, float]:
    """Error in per cent, label NLL in nats and calibration error of label log-probabilities ``(M, K)``."""
    found = analysis.calibration(log_probs.cpu(), y)
    figures = {"error_pct": 100 - found["accuracy_pct"], "label_nll": found["label_nll"], "ece": found["ece"]}
    return {f"{prefix}_{name}": figures[name] for name in FIGURES}


def report(scores: Mapping[str, float], others: Mapping[str, Mapping[str, float]]) -> None:
    """Print one line for the flow, for its graph, for both together, and for each comparator."""
    own = {"flow": "test", "graph": "graph", "flow with graph": "test_with_graph"}
    made = {name: prefix for name, prefix in own.items() if f"{prefix}_ece" in scores}
    lines = {name: [scores[f"{prefix}_{f}"] for f in FIGURES] for name, prefix in made.items()}
    lines |= {name: [figures[f"test_{f}"] for f in FIGURES] for name, figures in others.items()}
    width = max(map(len, lines))
    print(f"{'':{width}}{'test error':>12}{'label NLL':>12}{'calibration error':>20}")
    for name, (error, nll, ece) in lines.items():
        print(f"{name:{width}}{error:10.2f} %{nll:12.3f}{ece:20.4f}")
    print(f"flow: NLL {scores['test_nll']:.3f} nats; temperature {scores['temperature']:.2f}")
