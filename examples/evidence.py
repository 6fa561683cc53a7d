"""Shared by the image examples: labelled rows from a file, evidence about labels, and figures with both."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from command_line import Parser, refusing
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf import analysis
from pyro_scnf.datasets import FEATURES, LabelEvidence, SemiSupervisedData
from pyro_scnf.presets import Preset


def add_graph(parser: Parser) -> None:
    """The option ``--graph``."""
    source = "features whose graph of neighbours gives evidence about labels; default: the preset's"
    parser.add_argument("--graph", choices=("none", *FEATURES), help=source)


def labels_of(args: argparse.Namespace) -> int | np.ndarray:
    """How many rows are labelled, or their numbers from the file ``--labelled``."""
    if args.labelled is None:
        return 100 if args.labels is None else int(args.labels)
    for name in ("labels", "split"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} would have no effect, because --labelled names the rows")
    return row_numbers(args.labelled)


def row_numbers(path: Path) -> np.ndarray:
    """The row numbers in a file that ``np.save`` wrote."""
    try:
        rows = np.load(path)
    except OSError as error:
        raise ValueError(f"labelled: {error}") from error
    except (EOFError, ValueError, BadZipFile) as error:
        what = "is damaged, or no file that np.save wrote" if path.stat().st_size else "is empty"
        raise ValueError(f"labelled: {path} {what}") from error
    if not isinstance(rows, np.ndarray):
        raise ValueError(
            f"labelled: {path} holds several arrays, expected one of row numbers, as np.save writes it"
        )
    return rows


def with_graph(args: argparse.Namespace, preset: Preset) -> Preset:
    """``preset`` with the graph of ``--graph``."""
    if args.graph is None:
        return preset
    return preset.with_graph(None if args.graph == "none" else args.graph)


def with_evidence(
    args: argparse.Namespace, preset: Preset, data: SemiSupervisedData
) -> tuple[SemiSupervisedData, LabelEvidence | None]:
    """``data`` with evidence from the preset's graph, and this evidence. Without a graph, the data alone."""
    if preset.graph is None:
        return data, None
    with refusing(args, "graph"):
        if not len(data.unlabelled):
            raise ValueError("every row is labelled; give --graph none, and --terms classification")
        evidence = preset.graph.evidence(data)
    return replace(data, label_log_prior=evidence.log_probs), evidence


def evaluate(
    preset: Preset, model: scnf.SemiSupervisedModel, x: Tensor, y: Tensor, evidence: LabelEvidence | None
) -> dict[str, float]:
    """Figures of the flow alone. With evidence, also those of the graph alone and of both together."""
    about = None if evidence is None else evidence.of(x)
    options = {"bins": preset.augment.bins, "draws": preset.draws, "batch_size": 500}
    found = analysis.evaluate(model, x, y, label_log_prior=about, average="posterior", **options)
    return {name.replace("evidence", "graph"): figure for name, figure in found.items()}


def report(metrics: Mapping[str, object]) -> None:
    """Print error, label NLL and calibration error of the flow alone, of the graph, and of both together."""
    print(f"{'':20}{'test error':>12}{'label NLL':>12}{'calibration error':>20}")
    for prefix, name in (("test", "flow"), ("graph", "graph"), ("test_with_graph", "flow with graph")):
        if f"{prefix}_error_pct" in metrics:
            error, nll, ece = (metrics[f"{prefix}_{figure}"] for figure in ("error_pct", "label_nll", "ece"))
            print(f"{name:20}{error:10.2f} %{nll:12.3f}{ece:20.4f}")
    print(f"flow: {metrics['test_bits_per_dim']:.3f} bits/dim")
