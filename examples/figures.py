"""The figures of the image examples, written to ``args.out``."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf import analysis, plots

TEMPERATURE = 0.7
KEPT = (49, 98, 196, 392, 784)  # deepest components in the reconstructions, as in Figure 2


def draw_samples(args: argparse.Namespace, flow: scnf.SemiConditionalFlow) -> None:
    """``samples.png``: twelve draws of each class."""
    y = torch.arange(flow.num_classes, device=args.device)[:, None].expand(-1, 12)
    columns = f"draws from p(x | y), temperature {TEMPERATURE}"
    figure = plots.image_grid(flow.sample(y, TEMPERATURE), rows="label", columns=columns)
    figure.savefig(args.out / "samples.png", dpi=100)


def draw_swaps(
    args: argparse.Namespace, flow: scnf.SemiConditionalFlow, x: Tensor, y: Tensor, keep_aux: bool = True
) -> None:
    """``swaps.png``: images under every label, if the prior separates the label from the style."""
    if isinstance(flow.prior, analysis.SwapsLabels):
        swaps = analysis.swap_labels(flow, x.to(args.device), y.to(args.device), keep_aux=keep_aux)
        columns = "itself, then under each label" + ("" if keep_aux else ", z_aux = 0")
        figure = plots.image_grid(swaps, rows="test image", columns=columns)
        figure.savefig(args.out / "swaps.png", dpi=100)


def draw_paper(args: argparse.Namespace, flow: scnf.SemiConditionalFlow, x: Tensor, y: Tensor) -> None:
    """Figures 2 and 4 of Atanov et al. (2019), samples of each class, and learning curves from a CSV log."""
    draw_samples(args, flow)
    draw_swaps(args, flow, x, y, keep_aux=False)
    images = analysis.reconstruct(flow, x.to(args.device), KEPT)
    rows = f"deepest {KEPT[0]} to {KEPT[-1]} kept"
    figure = plots.image_grid(images, rows=rows, columns="test images")
    figure.savefig(args.out / "reconstructions.png", dpi=100)
    if args.log == "csv" and any(args.out.glob("log/version_*/metrics.csv")):  # it may have logged elsewhere
        curves = analysis.read_log(args.out)
        plots.learning_curves(curves).savefig(args.out / "curves.png", dpi=100)
