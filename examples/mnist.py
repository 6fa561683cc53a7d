"""MNIST with a hundred labels: the semi-conditional flow of Atanov et al. (2019), from CPU to many GPUs.

    python examples/mnist.py --preset cpu --data-root data --download --out out/mnist
    python examples/mnist.py --preset paper --device cuda --precision bf16-mixed --minutes 9 --out out/paper
    (the same again with --resume goes on from there)

Writes metrics.json, checkpoints, the log and figures to ``--out``: learning curves, class-conditional
samples, reconstructions from the deepest components (Figure 2 of the paper) and label swaps (Figure 4).

Presets: ``paper`` is Appendix E with the settings of the released code, ``paper-small-h`` has the
conditional networks as narrow as the text says. ``cpu`` and ``fast`` (for a GPU) start at half the
resolution and learn, besides the density, that images most alike share a label.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import pyro_scnf as scnf
from pyro_scnf.datasets import (
    IMAGES,
    SPLITS,
    ImageAugment,
    SemiSupervisedData,
    deskew,
    images,
    keep_labels,
    link_neighbours,
    pixel_features,
)
from pyro_scnf.training import fit
from pyro_scnf.transforms import dequantize

BINS = 256
KEPT = (49, 98, 196, 392, 784)  # deepest components in the reconstructions, as in Figure 2
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Preset:
    """A model and how to train it; options of the command line come on top.

    :ivar flow: ``flow(prior, latent_dim, num_classes)``.
    :ivar fit: options of :func:`pyro_scnf.training.fit`.
    :ivar model: options of :class:`pyro_scnf.SemiSupervisedModel`.
    :ivar latent_dim: components of z_f, of 784.
    :ivar class_probs: p(y): ``"uniform"`` or ``"empirical"``, the frequencies of the labels.
    :ivar split: how labels are chosen, a key of ``SPLITS``.
    :ivar shift_labelled: pixels by which labelled training images are shifted at random.
    :ivar neighbours: so many images most like each are taken to share its label; 0 for none.
    :ivar held_out: training images for validation; without any, the last weights are taken.
    :ivar draws: dequantisations of every test image.
    """

    flow: Callable[[str, int, int], scnf.SemiConditionalFlow]
    fit: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    latent_dim: int = 196
    class_probs: str = "uniform"
    split: str = "balanced"
    shift_labelled: int = 0
    neighbours: int = 0
    held_out: int = 1000
    draws: int = 4


def paper_flow(prior_width: int) -> Callable[[str, int, int], scnf.SemiConditionalFlow]:
    def build(prior: str, latent_dim: int, num_classes: int) -> scnf.SemiConditionalFlow:
        return scnf.presets.scnf_mnist(
            prior, latent_dim=latent_dim, prior_width=prior_width, num_classes=num_classes
        )

    return build


def squeezed_flow(
    steps: tuple[int, int], widths: tuple[int, int]
) -> Callable[[str, int, int], scnf.SemiConditionalFlow]:
    """Squeezed at once, so that no network sees 28×28 pixels; light conditioners, one width a level."""

    def net(in_channels: int, out_channels: int, context_dim: int = 0) -> torch.nn.Module:
        return scnf.nn.ConvNet(in_channels, out_channels, widths[0 if in_channels == 2 else 1], context_dim)

    def build(prior: str, latent_dim: int, num_classes: int) -> scnf.SemiConditionalFlow:
        flow = scnf.flows.glow(
            (1, 28, 28), levels=2, steps=steps, scale="clamp", logit=1e-6, latent_dim=latent_dim, net=net
        )
        options: Any = {"name": "flow", "steps": 4, "width": 96, "scale": "clamp"}
        return scnf.SemiConditionalFlow(flow, options if prior == "flow" else prior, num_classes)

    return build


PAPER: dict[str, Any] = {  # Appendix E and the released code
    "steps": 117_500,
    "batch_size": 171,
    "labelled_batch_size": 85,  # a third of 256
    "optimizer": "adamax",
    "learning_rate": 1e-3,
    "betas": (0.9, 0.999),
    "weight_decay": 1e-5,
    "schedule": "linear",
    "ema_decay": None,
    "gradient_clip": None,
    "validate_every": 500,
}

LIGHT: dict[str, Any] = {
    "steps": 2500,
    "batch_size": 96,
    "labelled_batch_size": 16,
    "learning_rate": 4e-3,
    "schedule": "cosine",
    "warmup": 0.1,
    "gradient_clip": 1000.0,  # of a norm that is about that of a thousand nats
    "ema_decay": 0.998,
    "validate_every": 250,
}

# Strong words on labels, which a light model would take many passes to find by itself, fading out so
# that the density has the last one.
NEIGHBOURLY: dict[str, Any] = {
    "latent_dim": 98,
    "neighbours": 5,
    "shift_labelled": 1,
    "model": {
        "labelled_weight": 0.1,
        "classification_weight": 200.0,
        "agreement_weight": 300.0,
        "balance_weight": 200.0,
        "final_term_share": 0.3,
    },
}

PRESETS = {
    "paper": Preset(
        paper_flow(prior_width=256), PAPER, class_probs="empirical", split="stratified", held_out=0, draws=1
    ),
    "paper-small-h": Preset(
        paper_flow(prior_width=64), PAPER, class_probs="empirical", split="stratified", held_out=0, draws=1
    ),
    "cpu": Preset(squeezed_flow((4, 6), (48, 96)), LIGHT, **NEIGHBOURLY),
    "fast": Preset(
        squeezed_flow((8, 12), (96, 192)),
        {**LIGHT, "steps": 20_000, "batch_size": 480, "labelled_batch_size": 32, "validate_every": 500},
        **NEIGHBOURLY,
    ),
}


def enlarged_digits(labels: int, split: str, seed: int, num_val: int) -> SemiSupervisedData:
    """scikit-learn's 1797 digits at 28×28: nothing to download, to see that everything runs."""
    bunch = load_digits()
    x = torch.nn.functional.interpolate(torch.from_numpy(bunch.images[:, None]), (28, 28), mode="bilinear")
    x, y = (x * 255 / 16).round().to(torch.uint8), torch.from_numpy(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[360:], order[:360]
    shown = keep_labels(y[train], 10, labels, split, seed)
    data = SemiSupervisedData(x[train], shown, x[test], y[test], 10)
    return data.hold_out(num_val, seed, truth=y[train]) if num_val else data


def upright(x: torch.Tensor) -> torch.Tensor:
    """What neighbours are found by: digits without their slant, at half the resolution."""
    return pixel_features(deskew(x))


def load(args: Any, preset: Preset) -> SemiSupervisedData:
    split = args.split or preset.split
    if args.data == "digits":
        data = enlarged_digits(args.labels, split, args.seed, min(preset.held_out, 100))
    else:
        data = images(
            args.data,
            args.data_root,
            labels=args.labels,
            split=split,
            seed=args.seed,
            num_val=preset.held_out,
            download=args.download,
        )
    return link_neighbours(data, preset.neighbours, upright) if preset.neighbours else data


def build_model(args: Any, preset: Preset, data: SemiSupervisedData) -> scnf.SemiSupervisedModel:
    flow = preset.flow(args.prior, args.latent_dim or preset.latent_dim, data.num_classes)
    class_probs: Any = preset.class_probs
    if class_probs == "empirical":
        class_probs = scnf.ClassProbs.from_labels(data.y, data.num_classes)
    options = dict(preset.model)
    if args.clf_weight is not None:
        options["classification_weight"] = args.clf_weight
    return scnf.SemiSupervisedModel(flow, class_probs, **options)


def draw_curves(path: Path, log: Path) -> None:
    """Training loss and validation figures against the step, of all parts of a resumed run."""
    curves: dict[str, dict[int, float]] = {}
    for part in sorted(log.glob("version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with part.open() as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        curves.setdefault(name, {})[int(row["step"])] = float(value)
    names = [n for n in ("loss", "val_nll", "val_bits_per_dim", "val_error", "grad_norm") if n in curves]
    figure, panels = plt.subplots(
        1, max(1, len(names)), figsize=(3.2 * max(1, len(names)), 2.6), squeeze=False
    )
    for panel, name in zip(panels[0], names, strict=False):
        panel.plot(list(curves[name]), list(curves[name].values()), linewidth=1)
        panel.set(title=name, xlabel="step")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


@torch.no_grad()
def draw_figures(out: Path, model: scnf.SemiSupervisedModel, data: SemiSupervisedData) -> None:
    """Samples of each class, reconstructions from the deepest components, label swaps."""
    flow, device = model.flow, model.class_probs.logits.device
    y = torch.arange(data.num_classes, device=device)
    samples = flow.sample(y[:, None].expand(-1, 12), TEMPERATURE)
    common.draw_grid(out / "samples.png", samples, "label", f"draws from p(x | y), temperature {TEMPERATURE}")
    first = torch.stack([(data.y_test == k).nonzero()[0, 0] for k in range(data.num_classes)])
    x, labels = dequantize(data.x_test[first], BINS).to(device), data.y_test[first].to(device)
    z, _ = flow.encode_flat(x)
    deepest = torch.stack([torch.where(torch.arange(784, device=device) >= 784 - d, z, 0.0) for d in KEPT])
    common.draw_grid(
        out / "reconstructions.png",
        flow.transform.call_and_ladj(deepest)[0],
        f"deepest {KEPT[0]} to {KEPT[-1]} kept",
        "test images",
    )
    if hasattr(flow.prior, "decode"):
        swaps = common.swap_labels(flow, x, labels, keep_aux=False)
        common.draw_grid(out / "swaps.png", swaps, "test image", "itself, then as each class, z_aux = 0")


def seconds_before(out: Path) -> float:
    """Training time of the earlier parts of a resumed run, if they came to write it down."""
    metrics = out / "metrics.json"
    return json.loads(metrics.read_text())["seconds_in_all"] if metrics.exists() else 0.0


def parse() -> Any:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument(
        "--data",
        default="mnist",
        choices=[*(n for n, d in IMAGES.items() if d.shape == (1, 28, 28)), "digits"],
        help="digits: those of scikit-learn, enlarged",
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="torchvision's root folder")
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is not there")
    parser.add_argument("--labels", type=int, default=100, help="labelled images")
    parser.add_argument("--split", choices=SPLITS, help="how they are chosen, if not as in the preset")
    parser.add_argument("--latent-dim", type=int, help="components of z_f, of 784")
    parser.add_argument("--clf-weight", type=float, help="weight of the classification loss")
    parser.add_argument("--batch-size", type=int, help="unlabelled images a step, a multiple of --devices")
    parser.add_argument("--labelled-batch-size", type=int, help="labelled images a step, likewise")
    parser.add_argument("--precision", default="32", choices=("32", "bf16-mixed"))
    parser.add_argument("--compile", action="store_true", help="torch.compile both flows")
    parser.add_argument("--devices", type=int, default=1, help="processes to train in")
    parser.add_argument("--minutes", type=float, help="stop training in time; --resume goes on")
    parser.add_argument("--log", default="csv", choices=("csv", "tensorboard"))
    return parser.parse_args()


def main() -> dict[str, float]:
    args = parse()
    preset = PRESETS[args.preset]
    out = args.out or Path("out") / "mnist"
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.smoke_test:
        args.data = "digits"
    torch.manual_seed(args.seed)

    data = load(args, preset)
    model = build_model(args, preset, data)
    model.to(args.device)
    model.initialize(dequantize(data.x[:512], BINS).to(args.device), data.y[:512].to(args.device))
    before = seconds_before(out) if args.resume else 0.0
    options = {**preset.fit}
    for name in ("steps", "batch_size", "labelled_batch_size"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.smoke_test:
        options |= {
            "steps": args.steps or 4,
            "batch_size": 20,
            "labelled_batch_size": 10,
            "learning_rate": 1e-4,
        }
    result = fit(
        model,
        data,
        guide=args.guide,
        augment=ImageAugment(BINS),
        augment_labelled=ImageAugment(BINS, preset.shift_labelled),
        bins=BINS,
        minutes=args.minutes,
        device=args.device,
        devices=args.devices,
        precision=args.precision,
        compile=args.compile,
        seed=args.seed,
        out=out,
        resume=args.resume,
        log=args.log,
        **options,
    )
    if result.rank:
        return {}
    test = slice(64 if args.smoke_test else None)
    metrics: dict[str, Any] = common.evaluate(
        model,
        data.x_test[test],
        data.y_test[test],
        bins=BINS,
        draws=preset.draws,
        average="posterior",
        batch_size=500,
    )
    metrics |= {
        "finished": result.finished,
        "steps": result.steps,
        "best_step": result.best_step,
        "val_nll": result.best_nll,
        "train_error_pct": common.evaluate(model, *data.labelled, bins=BINS)["test_error_pct"],
        "seconds": result.seconds,
        "seconds_in_all": result.seconds + before,
    }
    common.save(out, model, metrics, vars(args))
    if args.log == "csv":
        draw_curves(out / "curves.png", out / "log")
    draw_figures(out, model, data)
    print(
        f"{args.data}, {args.labels} labels, {args.preset}, {args.prior}, seed {args.seed}: "
        f"test error {metrics['test_error_pct']:.2f} %, {metrics['test_bits_per_dim']:.3f} bits/dim, "
        f"calibration error {metrics['test_ece']:.3f}; {result.steps} steps in {result.seconds / 60:.1f} min"
        f"{'' if result.finished else ', not finished: go on with --resume'}; written to {out}"
    )
    return metrics


if __name__ == "__main__":
    main()
