"""Ten labels and a thousand points in the plane.

Trains a semi-conditional flow on a 2-D toy data set. Five points of each class are labelled. Writes
``metrics.json``, ``model.pt``, checkpoints and two figures to ``--out``:

    python examples/toy.py --data moons --prior flow --guide exact --seed 0 --out out/moons
"""

from __future__ import annotations

import common
import torch
from command_line import parse, refusing, whole

import pyro_scnf as scnf
from pyro_scnf import analysis, plots
from pyro_scnf.datasets import TOYS, toy

PRESET = scnf.presets.TOY


def main() -> dict[str, float | None]:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--data", default="moons", choices=TOYS)
    parser.add_argument("--labels-per-class", type=whole(), default=5)
    args = parse(parser, "toy-{data}")
    torch.manual_seed(args.seed)

    with refusing(args, "labels_per_class"):
        data = toy(args.data, labels_per_class=args.labels_per_class, seed=args.seed)
        data = data.hold_out(PRESET.held_out, args.seed)
    with refusing(args, "prior"):
        model = PRESET.make_model(data, args.prior).to(args.device)
    machine = scnf.training.Machine(device=args.device)
    result = common.train(args, PRESET, model, data, smoke_steps=20, machine=machine)

    metrics = {
        **analysis.evaluate(model, data.x_test, data.y_test),
        "val_nll": result.best_nll,
        "best_step": result.best_step,
        "seconds": result.seconds_in_all,
    }
    plane = analysis.evaluate_plane(model, data.x)
    plots.decision_boundary(plane, data).savefig(args.out / "boundary.png", dpi=110)
    y = torch.arange(data.num_classes).repeat_interleave(len(data.y_test) // data.num_classes)
    drawn = model.flow.sample(y.to(args.device)).cpu(), y
    points = {"test data": (data.x_test, data.y_test), "draws from p(x | y)": drawn}
    plots.labelled_points(points).savefig(args.out / "samples.png", dpi=110)
    common.save(args, model, metrics)
    print(
        f"{args.data}: test error {metrics['test_error_pct']:.2f} %, "
        f"NLL {metrics['test_nll']:.3f} nats, {metrics['seconds']:.0f} s; written to {args.out}"
    )
    return metrics


if __name__ == "__main__":
    main()
