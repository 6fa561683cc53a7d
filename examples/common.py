"""Shared by the examples: the options that all have, one call that trains, and the files that they write."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import threads  # before torch
import torch
from command_line import Parser, refusing, whole
from out_folder import claimed, folder

import pyro_scnf as scnf
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.presets import Preset
from pyro_scnf.terms import needs_of
from pyro_scnf.training import FitResult, Machine, StepBatches


def parser(description: str) -> Parser:
    """The options that every example has."""
    parser = Parser(description)
    prior = f"p(z_f | y): {', '.join(scnf.PRIORS)}, with options (gmm:covariance=full), or an import path"
    parser.add_argument("--prior", help=f"{prior}; default: the preset's")
    parser.add_argument("--guide", default="exact", choices=scnf.GUIDES, help="how to treat unknown labels")
    terms = f"training terms: {', '.join(scnf.TERMS)}, with options (balance:weight=2); default: the preset's"
    parser.add_argument("--terms", nargs="*", help=terms)
    seed = "seed of the data split and of training"
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help=seed)
    parser.add_argument("--steps", type=whole(), help="optimiser steps; by default those of the preset")
    parser.add_argument("--out", type=folder, help="folder for metrics, figures and checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=whole(1, threads.MOST), help="CPU threads; default: the fastest")
    parser.add_argument("--smoke-test", action="store_true", help="take only a few steps, as a test")
    return parser


def train(
    args: argparse.Namespace,
    preset: Preset,
    model: scnf.SemiSupervisedModel,
    data: SemiSupervisedData,
    smoke_steps: int,
    *,
    machine: Machine,
    minutes: float | None = None,
    log: str | None = None,
) -> FitResult:
    """``preset.fit`` with the options of the command line. It first sets the number of CPU threads."""
    with refusing(
        args, "terms", "labels", "labels_per_class", "batch_size", "labelled_batch_size", "devices"
    ):
        preset = preset if args.terms is None else replace(preset, terms=args.terms)
        if data.label_log_prior is None and "evidence" in needs_of(scnf.make_terms(preset.terms)):
            remedy = "--graph hog gives it" if hasattr(args, "graph") else "this example has none"
            raise ValueError(f"a term needs evidence about labels: {remedy}")
        data = preset.prepare(data, args.seed)
        StepBatches(data, preset.batch_size, preset.labelled_batch_size, world_size=machine.processes)
    loss, some = scnf.elbo(model), slice(min(preset.batch_size, 128))
    rows, labels = (data.unlabelled[some], ()) if len(data.unlabelled) else (data.x[some], (data.y[some],))

    def step() -> None:
        loss(*(part.to(args.device) for part in (preset.augment.prepare(rows), *labels))).backward()
        model.zero_grad(set_to_none=True)

    given = 1 if args.threads is None and machine.devices > 1 else args.threads  # processes share the cores
    steps = (smoke_steps if args.smoke_test else preset.steps) if args.steps is None else args.steps
    run = {"guide": args.guide, "seed": args.seed, "out": args.out, "resume": args.resume}
    with refusing(args), claimed(args.out):
        args.threads = threads.set_threads(step, args.out, given=given, resume=args.resume)
        return preset.fit(model, data, machine=machine, steps=steps, minutes=minutes, log=log, **run)


def save(args: argparse.Namespace, model: scnf.SemiSupervisedModel, metrics: Mapping[str, object]) -> None:
    """Write the model to ``model.pt``, for ``scnf.load``, and then ``metrics.json``."""
    scnf.save(model, args.out / "model.pt")
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro_scnf": scnf.__version__,
    }
    partial = args.out / "metrics.json.partial"
    partial.write_text(json.dumps({**metrics, "settings": settings, "versions": versions}, indent=2) + "\n")
    partial.replace(args.out / "metrics.json")
