"""Shared by the examples of larger models: their options, data whose truth is known, a trained flow, NUTS."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_median, init_to_value
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.datasets import SemiSupervisedData

sys.path.append(str(Path(__file__).parents[1]))  # for what serves all examples
import command_line
import out_folder

K = 3


def parse(description: str, name: str) -> argparse.Namespace:
    """Read the options that each of these examples has, and seed PyTorch."""
    parser = command_line.Parser(description)
    seed = command_line.whole(0, 2**32 - 1)
    parser.add_argument("--seed", type=seed, default=0, help="seed of data and inference")
    parser.add_argument("--out", type=out_folder.folder, help="folder for metrics and figures")
    parser.add_argument("--smoke-test", action="store_true", help="take only a few steps, as a test")
    args = command_line.parse(parser, name)
    out_folder.claim(args.out)
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
    args: argparse.Namespace,
    model: Callable[..., object],
    *data: object,
    nesting: int = 1,
    start: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Posterior draws of the continuous sites of ``model``, whose discrete sites are summed out.

    :param start: values of sites at which the chain starts. Other sites start at the median of their prior.
        From a random point, a chain may not get away from where classes have swapped their parameters.
    """
    warmup, draws = (5, 5) if args.smoke_test else (200, 400)
    begin = init_to_value(values=dict(start or {}), fallback=init_to_median)
    kernel = NUTS(model, max_plate_nesting=nesting, init_strategy=begin)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    with scnf.share_encoding():  # the flow and its prior run once for the whole chain
        mcmc.run(*data)
    return mcmc.get_samples()
