"""What one run of a line of FlowGMM's tables does: train a model, or simulate, and measure it."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyro_scnf as scnf
from benchmarks.tools.records import read_json, write_json
from pyro_scnf import analysis
from pyro_scnf.analysis.label_probs import Scoring
from pyro_scnf.baselines import M1M2
from pyro_scnf.datasets import ImageAugment, SemiSupervisedData, enlarged_digits, images, toy
from pyro_scnf.presets import FLOWGMM_MNIST_CPU, FLOWGMM_TOY, TOY
from pyro_scnf.training import Machine

__all__ = ["Baseline", "Coverage", "Distances", "Mnist", "Run", "Toy"]

VALIDATION = 1000
"""Training images without label that are set aside, and then used with their labels to fit a temperature."""

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A line's work for one seed. Subclasses do it in :meth:`measure`."""

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        """The figures of a run, and whether it is ``finished``. If not, its state is in ``folder``."""
        raise NotImplementedError

    @property
    def slug(self) -> str:
        """A name for the folder of its runs. Lines of several tables may share it."""
        chosen = [
            f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default
        ]
        text = "_".join([type(self).__name__.lower(), *chosen])
        return "".join(c if c.isalnum() or c in "=._-" else "-" for c in text)

    def folder(self, seed: int, args: argparse.Namespace) -> Path:
        """Where the run of a seed is kept."""
        folder: Path = args.out / ("smoke" if args.smoke_test else "runs") / self.slug / str(seed)
        return folder

    def found_or_made(self, seed: int, args: argparse.Namespace, minutes: float | None) -> Metrics:
        """The figures of a finished run in its folder, or of a run as far as ``minutes`` allow."""
        folder = self.folder(seed, args)
        found = read_json(folder / "metrics.json")
        if found.get("finished") or (minutes is not None and minutes < 1):
            return found
        folder.mkdir(parents=True, exist_ok=True)
        metrics = self.measure(seed, folder, args, minutes)
        write_json(folder / "metrics.json", metrics)
        return metrics


# -- MNIST -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mnist(Run):
    """FlowGMM on MNIST with the light preset: ten Gaussians over all 784 latents.

    :ivar int labels: labelled images, equally many of each class; 0 for all.
    :ivar bool unlabelled: whether the model sees the images without label.
    :ivar augment: what training does to the images, if not what the preset does.
    :ivar terms: training terms beside those of the preset.
    :ivar prior: the prior, if it is not the preset's.
    :ivar steps: optimiser steps.
    :ivar shares: share of the images of each class that stay.
    """

    labels: int = 1000
    unlabelled: bool = True
    augment: ImageAugment | None = None
    terms: tuple[str, ...] = ()
    prior: str | None = None
    guide: str = "exact"
    class_probs: Literal["uniform", "learnable", "em"] = "uniform"
    balanced_labels: bool = False
    shares: tuple[float, ...] | None = None
    steps: int = 0

    def data(
        self, seed: int, args: argparse.Namespace
    ) -> tuple[SemiSupervisedData, tuple[Tensor, Tensor] | None]:
        """Training and test images, and validation images with their labels."""
        options: dict[str, Any] = {"seed": seed, "shares": self.shares}
        if not self.labels:
            labels: Any = torch.arange(1437 if args.smoke_test else 60_000)
        else:
            labels, options["num_val"] = min(self.labels, 100 if args.smoke_test else self.labels), VALIDATION
        if args.smoke_test:
            options.update({"num_val": 200} if self.labels else {})
            data = enlarged_digits(labels=labels, **options)
        else:
            data = images("mnist", args.data_root, labels=labels, **options)
        validation = None if data.x_val is None or data.y_val is None else (data.x_val, data.y_val)
        data = replace(data, x_val=None, y_val=None)  # the last weights count, not those of the best density
        if not self.unlabelled:
            x, y = data.labelled
            data = replace(data, x=x, y=y)
        return data, validation

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        preset = FLOWGMM_MNIST_CPU
        preset = replace(
            preset,
            augment=self.augment or preset.augment,
            terms=(*scnf.make_terms(preset.terms).values(), *scnf.make_terms(self.terms).values()),
            model=replace(preset.model, class_probs=self.class_probs, balanced_labels=self.balanced_labels),
        )
        data, validation = self.data(seed, args)
        torch.manual_seed(seed)
        model = preset.make_model(data, self.prior)
        # As many rows in a step, whether or not some of them have no label.
        labelled = preset.labelled_batch_size or 0
        labelled += 0 if len(data.unlabelled) else preset.batch_size
        steps, start = 4 if args.smoke_test else self.steps, time.process_time()
        result = preset.fit(
            model,
            data,
            guide=self.guide,
            steps=steps,
            batch_size=10 if args.smoke_test else preset.batch_size,
            labelled_batch_size=10 if args.smoke_test else labelled,
            validate_every=max(1, steps // 4),
            machine=Machine(precision="bf16-mixed"),
            seed=seed,
            out=folder / "training",
            resume=True,
            minutes=minutes,
            progress=False,
        )
        metrics: Metrics = {"finished": result.finished, "steps": result.steps}
        if not result.finished:
            return metrics
        metrics["minutes"] = result.seconds_in_all / 60
        metrics["cpu_minutes_of_last_call"] = (time.process_time() - start) / 60
        scoring = Scoring(bins=preset.augment.bins, draws=preset.draws, average="posterior")
        x, y = (t[:64] if args.smoke_test else t for t in (data.x_test, data.y_test))
        torch.manual_seed(seed)
        scores = scoring.of(model, x, "x_test")
        log_probs = scores.at(1.0)
        metrics |= analysis.calibration(log_probs, y)
        metrics["nll"] = -scores.log_density.mean().item()
        metrics["below_99_pct"] = 100 * (log_probs.exp().amax(-1) < 0.99).double().mean().item()
        if validation is not None:
            fitted = analysis.fit_temperature(model, *validation, **vars(scoring))
            metrics["temperature"] = fitted.temperature
            after = analysis.calibration(scores.at(fitted.temperature), y)
            metrics |= {f"temp_{name}": value for name, value in after.items()}
        if self.shares is not None:
            metrics |= self._imbalance(model, args)
        scnf.save(model, folder / "model.pt")
        return metrics

    def _imbalance(self, model: scnf.SemiSupervisedModel, args: argparse.Namespace) -> Metrics:
        """How far the class probabilities are from those of the training images without label."""
        assert self.shares is not None
        whole = replace(self, labels=0, shares=None).data(0, args)[0]
        sizes = torch.bincount(whole.y, minlength=10) * torch.tensor(self.shares)
        left = sizes - min(self.labels, 100 if args.smoke_test else self.labels) / 10
        truth, found = left / left.sum(), model.class_probs.log_probs.detach().exp().cpu()
        return {"l1_distance": (found - truth).abs().sum().item(), "class_probs": found.tolist()}


@dataclass(frozen=True)
class Baseline(Run):
    """M1+M2 of Kingma et al. (2014) on MNIST, trained for some minutes.

    :ivar int labels: labelled images, equally many of each class.
    :ivar bool shifted: whether training shifts the images as that of FlowGMM does.
    """

    labels: int = 1000
    minutes: float = 3.0
    shifted: bool = False

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        if minutes is not None and minutes < self.minutes + 1:
            return {"finished": False, "steps": 0}
        data = Mnist(labels=self.labels).data(seed, args)[0]
        torch.manual_seed(seed)
        model = M1M2((1, 28, 28), 10)
        augment = FLOWGMM_MNIST_CPU.augment if self.shifted else ImageAugment()
        length: dict[str, Any] = {"steps": 5} if args.smoke_test else {"minutes": self.minutes}
        start = time.perf_counter()
        model.fit(data, augment=augment, seed=seed, **length)
        log_probs = model.posterior(augment.prepare(data.x_test)).logits.log_softmax(-1)
        found = analysis.calibration(log_probs, data.y_test)
        return {"finished": True, "minutes": (time.perf_counter() - start) / 60, **found}


# -- toys ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Toy(Run):
    """FlowGMM, or SCNF, on 1,000 points of the plane with five labels a class.

    A start may lead to a flow that cuts a class in two. So the best of several starts counts. It is chosen by
    the likelihood of the training points, labelled ones with their labels; the test points take no part.

    :ivar int starts: trainings from different initial parameters.
    """

    name: str = "moons"
    starts: int = 3
    scnf: bool = False
    labelled_only: bool = False

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        options = {"factor": 0.4} if self.name == "circles" else {}
        data = toy(self.name, noise=0.05, seed=seed, **options)
        if self.labelled_only:
            x, y = data.labelled
            data = replace(data, x=x, y=y)
        preset = TOY if self.scnf else FLOWGMM_TOY
        steps, start = 20 if args.smoke_test else preset.steps, time.perf_counter()
        x, y = data.labelled
        trained = []
        for number in range(1 if args.smoke_test else self.starts):
            torch.manual_seed(1000 * seed + number)
            model = preset.make_model(data)
            preset.fit(model, data, steps=steps, seed=1000 * seed + number, progress=False)
            with torch.no_grad():
                loss = scnf.elbo(model.eval())(*((x, y, data.unlabelled) if len(data.unlabelled) else (x, y)))
            trained.append((loss.item(), model))
        model = min(trained, key=lambda each: each[0])[1]
        found = analysis.evaluate(model, data.x_test, data.y_test)
        scnf.save(model, folder / "model.pt")
        return {
            "finished": True,
            "minutes": (time.perf_counter() - start) / 60,
            "accuracy_pct": 100 - found["test_error_pct"],
            "nll": found["test_nll"],
        }


# -- simulations -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Distances(Run):
    """Random means of ten unit Gaussians in D dimensions: how far apart, and how sure the labels of draws."""

    dim: int = 784

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        torch.manual_seed(seed)
        prior = scnf.make_prior("flowgmm", (self.dim,), 10).double()
        y = torch.arange(10).repeat(200)
        with torch.no_grad():
            z = prior.condition(y).sample()
            distance = torch.pdist(prior.loc)
            squared = torch.cdist(z, prior.loc).square()
            confidence = prior.class_scores(z)[1].softmax(-1).amax(-1)
        own = squared.gather(-1, y[:, None])[:, 0]
        others = (squared.sum(-1) - own) / 9
        return {
            "finished": True,
            "distance": distance.mean().item(),
            "distance_by_root_2d": distance.mean().item() / math.sqrt(2 * self.dim),
            "own_by_d": own.mean().item() / self.dim,
            "others_by_d": others.mean().item() / self.dim,
            "above_99_pct": 100 * (confidence > 0.99).double().mean().item(),
        }


@dataclass(frozen=True)
class Coverage(Run):
    """Posterior intervals of class probabilities: how many of 20 data sets of a flow they cover.

    The class probabilities and the rows are drawn from the model. A data set counts as covered, for a class,
    if its 95 % interval holds the true probability.
    """

    rows: int = 300
    sets: int = 20
    draws: int = 300
    truth: tuple[float, ...] = field(default=(0.5, 0.3, 0.15, 0.05))

    def measure(self, seed: int, folder: Path, args: argparse.Namespace, minutes: float | None) -> Metrics:
        torch.manual_seed(seed)
        sets, draws = (2, 5) if args.smoke_test else (self.sets, self.draws)
        data = toy("eight_gaussians", seed=seed)
        known = data.y_test < len(self.truth)
        train = SemiSupervisedData(
            data.x_test[known], data.y_test[known], data.x_test[known], data.y_test[known], len(self.truth)
        )
        model = FLOWGMM_TOY.make_model(train, "gmm")
        FLOWGMM_TOY.fit(
            model, train, steps=5 if args.smoke_test else 300, terms=(), seed=seed, progress=False
        )
        flow = model.flow.requires_grad_(False).eval()
        covered = torch.zeros(len(self.truth))
        start = time.perf_counter()
        for number in range(sets):
            torch.manual_seed(1000 * seed + number)
            probs = dist.Dirichlet(torch.ones(len(self.truth))).sample()
            x = flow.sample(dist.Categorical(probs).sample((self.rows,)))
            found = _posterior_draws(flow, x, draws)
            low, high = found.quantile(torch.tensor([0.025, 0.975]), dim=0)
            covered += ((low <= probs) & (probs <= high)).float()
        return {
            "finished": True,
            "covered_fewest": covered.min().item(),
            "covered_mean": covered.mean().item(),
            "sets": sets,
            "minutes": (time.perf_counter() - start) / 60,
        }


def _posterior_draws(flow: scnf.SemiConditionalFlow, x: Tensor, draws: int) -> Tensor:
    """Draws of the class probabilities given rows, over a flow held fixed."""

    def frequencies(x: Tensor) -> None:
        probs = pyro.sample("probs", dist.Dirichlet(torch.ones(flow.num_classes)))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(probs), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    with scnf.share_encoding():
        mcmc = MCMC(NUTS(frequencies, max_plate_nesting=1), draws, draws // 3 + 1, disable_progbar=True)
        mcmc.run(x)
    found: Tensor = mcmc.get_samples()["probs"]
    return found
