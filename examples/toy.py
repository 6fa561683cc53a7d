"""Ten labels and a thousand points in the plane.

Trains a semi-conditional flow on a 2-D toy data set. Five points of each class are labelled. Writes
``metrics.json``, ``model.pt``, checkpoints and three figures to ``--out``:

    python examples/toy.py --data moons --prior flow --guide exact --seed 0 --out out/moons
    python examples/toy.py --data circles --flow ffjord --prior gmm --out out/circles
    python examples/toy.py --preset flowgmm --data circles --noise 0.05 --factor 0.4 --out out/circles
"""

from __future__ import annotations

from dataclasses import replace

import common
import torch
from command_line import parse, positive, refusing, whole

import pyro_scnf as scnf
from pyro_scnf import analysis, plots
from pyro_scnf.datasets import TOYS, toy

FLOWS = ("glow", "realnvp", "ffjord")
PRESETS = {"scnf": scnf.presets.TOY, "flowgmm": scnf.presets.FLOWGMM_TOY}


def main() -> dict[str, float | None]:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--data", default="moons", choices=TOYS)
    parser.add_argument("--preset", default="scnf", choices=PRESETS)
    parser.add_argument("--flow", choices=FLOWS, help="f_w; default: the preset's")
    parser.add_argument("--labels-per-class", type=whole(), default=5)
    parser.add_argument("--labelled-only", action="store_true", help="leave out the unlabelled points")
    parser.add_argument("--noise", type=positive, default=0.1, help="standard deviation of the noise")
    parser.add_argument(
        "--factor", type=positive, help="of circles: radius of the inner by that of the outer"
    )
    args = parse(parser, "toy-{data}")
    torch.manual_seed(args.seed)

    preset, known = PRESETS[args.preset], {"labels_per_class": args.labels_per_class}
    known |= {} if args.factor is None else {"factor": args.factor}
    with refusing(args, *known):
        data = toy(args.data, noise=args.noise, seed=args.seed, **known)
        if args.labelled_only:
            preset, data = replace(preset, held_out=0), replace(data, x=data.labelled[0], y=data.labelled[1])
        data = preset.prepare(data, args.seed)
    with refusing(args, "flow", "prior"):
        preset = preset if args.flow is None else replace(preset, flow=scnf.presets.ToyFlow(args.flow))
        model = preset.make_model(data, args.prior).to(args.device)
    machine = scnf.training.Machine(device=args.device)
    result = common.train(args, preset, model, data, smoke_steps=20, machine=machine)

    with scnf.transforms.record_solves() as record:
        model.flow.class_log_prob(data.x_test.to(args.device))
    metrics = {
        **analysis.evaluate(model, data.x_test, data.y_test),
        "function_evaluations": record.evaluations or None,
        "val_nll": result.best_nll,
        "best_step": result.best_step,
        "seconds": result.seconds_in_all,
    }
    common.save(args, model, metrics)
    plane = analysis.evaluate_plane(model, data.x)
    plots.decision_boundary(plane, data).savefig(args.out / "boundary.png", dpi=110)
    if model.flow.transform.latent_dim == 2:
        latents = analysis.latent_plane(model, data.x)
        plots.latent_plane(latents, data).savefig(args.out / "latents.png", dpi=110)
    y = torch.arange(data.num_classes).repeat_interleave(len(data.y_test) // data.num_classes)
    drawn = model.flow.sample(y.to(args.device)).cpu(), y
    points = {"test data": (data.x_test, data.y_test), "draws from p(x | y)": drawn}
    plots.labelled_points(points).savefig(args.out / "samples.png", dpi=110)
    print(
        f"{args.data}: test error {metrics['test_error_pct']:.2f} %, "
        f"NLL {metrics['test_nll']:.3f} nats, {metrics['seconds']:.0f} s; written to {args.out}"
    )
    return metrics


if __name__ == "__main__":
    main()
