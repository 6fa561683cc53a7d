"""Ten labels and a thousand points in the plane.

Trains a semi-conditional flow on a 2-D toy data set in which five points a class are labelled, and
writes ``metrics.json``, a checkpoint and two figures to ``--out``:

    python examples/toy.py --data moons --prior flow --guide exact --seed 0 --out out/moons

The model has to do two things that pull against each other: follow the density of a thousand
points without copying them, and let ten labels decide which class a whole cluster belongs to. Points
are jittered while training and weights averaged for the former; a classification term on the
labelled rows does the latter without bending the density towards ten points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.datasets import TOYS, SemiSupervisedData, toy
from pyro_scnf.training import fit

JITTER = 0.05  # standard deviation, half that of the noise in the data
HELD_OUT = 100


def tanh_net(in_channels: int, out_channels: int, context_dim: int = 0) -> torch.nn.Module:
    """A small smooth conditioner: with a thousand points, kinks are noise."""
    return scnf.nn.MLP(in_channels, out_channels, (32, 32), torch.nn.Tanh, context_dim=context_dim)


def build_model(data: SemiSupervisedData, prior: str) -> scnf.SemiSupervisedModel:
    """A Glow on the plane, half of it conditional on the label if the prior is a flow."""
    style: dict[str, Any] = {"coupling": "alternate", "scale": "clamp", "net": tanh_net}
    with_flow = prior == "flow"
    flow = scnf.SemiConditionalFlow(
        scnf.flows.glow((2,), steps=4 if with_flow else 10, **style),
        {"name": "flow", "steps": 6, **style} if with_flow else prior,
        data.num_classes,
    )
    return scnf.SemiSupervisedModel(
        flow,
        num_labelled=len(data.labelled[0]),
        num_unlabelled=len(data.unlabelled),
        classification_weight=20.0,
    )


def jitter(x: Tensor) -> Tensor:
    return x + JITTER * torch.randn_like(x)


@torch.no_grad()
def draw_boundary(path: Path, model: scnf.SemiSupervisedModel, data: SemiSupervisedData) -> None:
    """Density, class regions and training points, the labelled ones large."""
    low, high = data.x.amin(0) - 0.4, data.x.amax(0) + 0.4
    axes = [torch.linspace(low[i].item(), high[i].item(), 200) for i in range(2)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)
    probs, density = model.posterior(grid).probs, model.log_prob(grid).exp()
    colours = plt.get_cmap("tab10").colors
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    region = torch.einsum("hwk,kc->hwc", probs, torch.tensor(colours[: probs.shape[-1]]))
    extent = (low[0].item(), high[0].item(), low[1].item(), high[1].item())
    panels[0].imshow(region, origin="lower", extent=extent, alpha=0.35, aspect="auto")
    panels[0].scatter(*data.unlabelled.T, s=3, c="0.45", linewidths=0, label="unlabelled")
    x, y = data.labelled
    panels[0].scatter(*x.T, s=70, c=[colours[k] for k in y], edgecolors="k", label="labelled")
    panels[0].set_title("p(y | x) and the training points")
    panels[0].legend(loc="upper right", fontsize=8)
    image = panels[1].imshow(density, origin="lower", extent=extent, cmap="magma", aspect="auto")
    panels[1].set_title("p(x)")
    figure.colorbar(image, ax=panels[1])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_samples(path: Path, model: scnf.SemiSupervisedModel, data: SemiSupervisedData) -> None:
    """Test data beside draws from the model, coloured by class."""
    y = torch.arange(data.num_classes).repeat_interleave(len(data.y_test) // data.num_classes)
    x = model.flow.sample(y)
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharex=True, sharey=True, layout="constrained")
    for panel, points, labels, title in (
        (panels[0], data.x_test, data.y_test, "test data"),
        (panels[1], x, y, "draws from p(x | y)"),
    ):
        panel.scatter(*points.T, s=6, c=labels, cmap="tab10", vmin=0, vmax=9, linewidths=0)
        panel.set_title(title)
    low, high = data.x.amin(0) - 0.4, data.x.amax(0) + 0.4
    panels[0].set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> dict[str, float]:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--data", default="moons", choices=TOYS)
    parser.add_argument("--labels-per-class", type=int, default=5)
    args = parser.parse_args()
    out = args.out or Path("out") / f"toy-{args.data}"
    out.mkdir(parents=True, exist_ok=True)
    # The networks are so small that a second thread costs more than it brings.
    torch.set_num_threads(args.threads or 1)
    torch.manual_seed(args.seed)

    data = toy(args.data, labels_per_class=args.labels_per_class, seed=args.seed)
    data = data.hold_out(HELD_OUT, args.seed)
    model = build_model(data, args.prior)
    model.initialize(data.x, data.y)
    result = fit(
        model,
        data,
        guide=args.guide,
        steps=args.steps or (20 if args.smoke_test else 1500),
        augment=jitter,
        seed=args.seed,
        out=out,
        resume=args.resume,
        device=args.device,
    )
    metrics = {
        **common.evaluate(model, data.x_test, data.y_test),
        "val_nll": result.best_nll,
        "best_step": result.best_step,
        "seconds": result.seconds,
    }
    common.save(out, model, metrics, vars(args))
    draw_boundary(out / "boundary.png", model, data)
    draw_samples(out / "samples.png", model, data)
    print(
        f"{args.data}: test error {metrics['test_error_pct']:.2f} %, "
        f"NLL {metrics['test_nll']:.3f} nats, {metrics['seconds']:.0f} s; written to {out}"
    )
    return metrics


if __name__ == "__main__":
    main()
