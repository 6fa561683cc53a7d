"""What the examples share: command line, evaluation, output folder."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

import pyro_scnf as scnf


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every example has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--prior",
        default="flow",
        help=f"p(z_f | y): {', '.join(scnf.PRIORS)}, options after a colon (gmm:covariance=full), or the "
        "import path of your own class",
    )
    parser.add_argument("--guide", default="exact", choices=scnf.GUIDES, help="how the label is dealt with")
    parser.add_argument("--seed", type=int, default=0, help="of the data split and of training")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps, if not the default")
    parser.add_argument("--out", type=Path, default=None, help="folder for metrics, figures and checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=None, help="CPU threads, if not the default")
    parser.add_argument("--smoke-test", action="store_true", help="a few steps, to see that it runs")
    return parser


@torch.no_grad()
def evaluate(model: scnf.SemiSupervisedModel, draws: Sequence[Tensor], y: Tensor) -> dict[str, float]:
    """Test error in per cent, NLL in nats per example and expected calibration error.

    ``draws`` are dequantisations of the same test data (or the data alone, if continuous): a discrete
    datum's likelihood is the mean of its densities, so labels are judged by that. The NLL is averaged
    over draws.
    """
    log_prior = model.label_prior.logits.log_softmax(-1)
    joint = torch.stack([model.flow.class_log_prob(x) for x in draws]) + log_prior
    probs = joint.logsumexp(0).softmax(-1)
    k = probs.shape[-1]
    accuracy = multiclass_accuracy(probs, y, num_classes=k, average="micro")
    return {
        "test_error_pct": round(100 * (1 - accuracy.item()), 4),
        "test_nll": -joint.logsumexp(-1).mean().item(),
        "test_ece": multiclass_calibration_error(probs, y, num_classes=k).item(),
    }


def save(
    out: Path, model: scnf.SemiSupervisedModel, metrics: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Write ``metrics.json`` and the checkpoint ``model.pt`` (settings and a ``state_dict``)."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro_scnf": scnf.__version__,
    }
    record = {**metrics, "settings": settings, "versions": versions}
    (out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    torch.save({"settings": settings, "state_dict": model.state_dict()}, out / "model.pt")
