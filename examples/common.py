"""What the examples share: command line, evaluation, pictures, output folder."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

import pyro_scnf as scnf
from pyro_scnf.transforms import dequantize


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
def evaluate(
    model: scnf.SemiSupervisedModel,
    x: Tensor,
    y: Tensor,
    *,
    bins: int | None = None,
    draws: int = 1,
    average: Literal["density", "posterior"] = "density",
    batch_size: int = 1000,
) -> dict[str, float]:
    """Test error in per cent, NLL in nats per example, expected calibration error, bits per dimension.

    With ``bins``, ``x`` are integers and dequantised ``draws`` times; NLL and bits are averaged over
    draws. Labels are judged by the mean density, which is a discrete datum's likelihood, or by the mean
    posterior: with few draws of many pixels the most likely one would decide alone.
    """
    device = model.class_probs.logits.device
    log_prior = model.class_probs.log_probs
    pieces = []
    for rows in x.to(device).split(batch_size):
        inputs = [rows] if bins is None else [dequantize(rows, bins) for _ in range(draws)]
        pieces.append(torch.stack([model.flow.class_log_prob(r) for r in inputs]) + log_prior)
    joint = torch.cat(pieces, 1).cpu()  # (draws, N, K)
    probs = joint.logsumexp(0).softmax(-1) if average == "density" else joint.softmax(-1).mean(0)
    k = probs.shape[-1]
    accuracy = multiclass_accuracy(probs, y, num_classes=k, average="micro")
    log_prob = joint.logsumexp(-1).mean()
    metrics = {
        "test_error_pct": round(100 * (1 - accuracy.item()), 4),
        "test_nll": -log_prob.item(),
        "test_ece": multiclass_calibration_error(probs, y, num_classes=k).item(),
    }
    if bins is not None:
        metrics["test_bits_per_dim"] = scnf.bits_per_dim(log_prob, model.flow.event_shape, bins).item()
    return metrics


def draw_grid(path: Path, images: Tensor, rows: str, columns: str) -> None:
    """Images ``(rows, columns, C, H, W)`` in the unit interval in one figure, apart by two pixels."""
    tiles = torch.nn.functional.pad(images.cpu().clamp(0, 1), (1, 1, 1, 1), value=1.0)
    count, (channels, height, width) = tiles.shape[:2], tiles.shape[2:]
    canvas = tiles.permute(0, 3, 1, 4, 2).reshape(count[0] * height, count[1] * width, channels)
    figure, panel = plt.subplots(figsize=(0.5 * count[1] + 0.5, 0.5 * count[0] + 0.5), layout="constrained")
    panel.imshow(canvas if channels == 3 else 1 - canvas[..., 0], cmap="gray", vmin=0, vmax=1)
    panel.set(xticks=[], yticks=[], xlabel=columns, ylabel=rows)
    figure.savefig(path, dpi=100)
    plt.close(figure)


@torch.no_grad()
def swap_labels(flow: scnf.SemiConditionalFlow, x: Tensor, y: Tensor, *, keep_aux: bool = True) -> Tensor:
    """Each of ``x`` ``(B, *event_shape)`` and, beside it, itself under every label.

    Encoded under its own label ``y`` and decoded under each, ``(B, 1 + K, *event_shape)``. Without
    ``keep_aux`` the factored-out part is zeroed, as in Figure 4 of Atanov et al. (2019).
    """
    z_aux, z_f, _ = flow.encode(x)
    style = flow.prior.encode(z_f, y)
    shape, k = (len(x), flow.num_classes), flow.num_classes
    labels = torch.arange(k, device=x.device).expand(shape)
    swapped = flow.prior.decode(style[:, None].expand(*shape, *style.shape[1:]), labels)
    aux = z_aux[:, None].expand(*shape, -1) if keep_aux else torch.zeros(*shape, z_aux.shape[-1]).to(x)
    return torch.cat([x[:, None], flow.decode(swapped, aux)], 1)


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
    torch.save({"settings": settings, "state_dict": model.state_dict()}, out / "model.pt")
    partial = out / "metrics.json.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(out / "metrics.json")  # whole or not there: it says that all is written
