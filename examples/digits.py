"""A hundred labelled handwritten digits: one exact model that classifies and draws them.

Trains a semi-conditional flow on the 8×8 digits that scikit-learn ships, of which ten a class are
labelled, and sets its test error beside that of standard methods on the same split. Writes
``metrics.json``, checkpoints and figures to ``--out``:

    python examples/digits.py --prior flow --guide exact --seed 0 --out out/digits

With a hundred labels a flow could learn its labelled images by heart. Three things keep it from that:
labelled rows count little as data (their density is no more interesting than that of the others)
but much for their label; noise of about a grey level is added while training; weights are averaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.datasets import SemiSupervisedData, digits
from pyro_scnf.training import fit
from pyro_scnf.transforms import dequantize

BINS = 17
HELD_OUT = 100
JITTER = 0.05  # standard deviation; a grey level is 1/17
TEST_DRAWS = 8


class Augment:
    """Fresh dequantisation and jitter for every training batch."""

    def __call__(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        return x + JITTER * torch.randn_like(x)

    def prepare(self, x: Tensor) -> Tensor:
        return dequantize(x, BINS)


def light_net(in_channels: int, out_channels: int, context_dim: int = 0) -> torch.nn.Module:
    return scnf.nn.ConvNet(in_channels, out_channels, 96, context_dim)


def build_model(prior: str) -> scnf.SemiSupervisedModel:
    """A Glow of two scales; the 32 deepest of 64 components depend on the label."""
    flow = scnf.SemiConditionalFlow(
        scnf.flows.glow((1, 8, 8), levels=2, steps=4, scale="clamp", net=light_net),
        {"name": "flow", "steps": 4, "width": 64, "scale": "clamp"} if prior == "flow" else prior,
        num_classes=10,
    )
    return scnf.SemiSupervisedModel(flow, labelled_weight=0.1, classification_weight=10.0)


def baselines(data: SemiSupervisedData) -> dict[str, float]:
    """Test error in per cent of methods that see the same labelled and unlabelled digits."""
    x_test = data.x_test.flatten(1).numpy()
    x_labelled, y_labelled = data.labelled
    x_labelled, y_labelled = x_labelled.flatten(1).numpy(), y_labelled.numpy()

    def logistic() -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))

    supervised = {"logistic regression": logistic(), "1-nearest neighbour": KNeighborsClassifier(1)}
    # The held-out rows serve these, which have no early stopping, as unlabelled data.
    semi_supervised = {
        "self-training": SelfTrainingClassifier(logistic()),
        "LabelSpreading (rbf)": LabelSpreading(kernel="rbf", gamma=0.01),
        "LabelSpreading (kNN)": LabelSpreading(kernel="knn", n_neighbors=7),
    }
    errors = {}
    assert data.x_val is not None
    everything = torch.cat([data.x, data.x_val]).flatten(1).numpy()
    labels = torch.cat([data.y, torch.full((len(data.x_val),), scnf.UNLABELLED)]).numpy()
    for name, method in supervised.items():
        errors[name] = 100 * (1 - method.fit(x_labelled, y_labelled).score(x_test, data.y_test.numpy()))
    for name, method in semi_supervised.items():
        errors[name] = 100 * (1 - method.fit(everything, labels).score(x_test, data.y_test.numpy()))
    return errors


@torch.no_grad()
def draw_figures(out: Path, model: scnf.SemiSupervisedModel, data: SemiSupervisedData) -> None:
    """Class-conditional samples and, if the prior can tell style from label, label swaps."""
    flow = model.flow
    y = torch.arange(10)[:, None].expand(10, 12)
    common.draw_grid(out / "samples.png", flow.sample(y, temperature=0.7), "label", "draws from p(x | y)")
    if hasattr(flow.prior, "decode"):
        first = torch.stack([(data.y_test == k).nonzero()[0, 0] for k in range(10)])
        images = common.swap_labels(flow, dequantize(data.x_test[first], BINS), data.y_test[first])
        common.draw_grid(out / "swaps.png", images, "test digit", "itself, then as 0 to 9")


def main() -> dict[str, float]:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--labels-per-class", type=int, default=10)
    args = parser.parse_args()
    out = args.out or Path("out") / "digits"
    out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    data = digits(labels_per_class=args.labels_per_class, seed=args.seed).hold_out(HELD_OUT, args.seed)
    model = build_model(args.prior)
    model.initialize(dequantize(data.x, BINS), data.y)
    result = fit(
        model,
        data,
        guide=args.guide,
        steps=args.steps or (10 if args.smoke_test else 600),
        batch_size=128,
        learning_rate=2e-3,
        gradient_clip=50.0,
        augment=Augment(),
        seed=args.seed,
        out=out,
        resume=args.resume,
        device=args.device,
    )
    metrics: dict[str, Any] = common.evaluate(model, data.x_test, data.y_test, bins=BINS, draws=TEST_DRAWS)
    metrics |= {"val_nll": result.best_nll, "best_step": result.best_step, "seconds": result.seconds}
    metrics["baselines_error_pct"] = baselines(data)
    common.save(out, model, metrics, vars(args))
    draw_figures(out, model, data)

    print(f"\ntest error on {len(data.x_test)} digits, {len(data.labelled[0])} labels, seed {args.seed}")
    for name, error in {"pyro-scnf": metrics["test_error_pct"], **metrics["baselines_error_pct"]}.items():
        print(f"  {name:22s} {error:5.1f} %")
    print(
        f"{metrics['test_bits_per_dim']:.3f} bits/dim, calibration error {metrics['test_ece']:.3f}, "
        f"{metrics['seconds']:.0f} s; written to {out}"
    )
    return metrics


if __name__ == "__main__":
    main()
