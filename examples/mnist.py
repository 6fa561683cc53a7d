"""MNIST with a hundred labels: the semi-conditional flow of Atanov et al. (2019), from CPU to many GPUs.

    python examples/mnist.py --preset cpu --data-root data --download --out out/mnist
    python examples/mnist.py --preset paper --device cuda --precision bf16-mixed --minutes 9 --out out/paper
    (run the second command again with --resume, and training goes on)

Writes metrics.json, model.pt, checkpoints, the log and figures to ``--out``. The presets are described in
``pyro_scnf.presets``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import common
import evidence
import figures
import torch
from command_line import parse, positive, refusing, whole
from options import add_image_files, fill_in_image_files

import pyro_scnf as scnf
from pyro_scnf.datasets import IMAGES, SPLITS, enlarged_digits, images
from pyro_scnf.training import Machine

PRESETS = {name.replace("mnist-", ""): p for name, p in scnf.presets.PRESETS.items() if "mnist-" in name}
SETS = [name for name, images in IMAGES.items() if images.shape == (1, 28, 28)]


def main() -> dict[str, object]:
    parser = common.parser(__doc__.splitlines()[0])
    evidence.add_graph(parser)
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    add_image_files(parser, SETS)
    parser.add_argument("--labels", type=whole(), help="labelled images; by default 100")
    parser.add_argument("--labelled", type=Path, help=".npy file of their row numbers, in place of a choice")
    parser.add_argument("--split", choices=SPLITS, help="how labels are chosen; by default as in the preset")
    parser.add_argument("--latent-dim", type=whole(1, 784), help="components of z_f, out of 784")
    parser.add_argument("--batch-size", type=whole(), help="unlabelled images a step")
    parser.add_argument("--labelled-batch-size", type=whole(), help="labelled images a step")
    parser.add_argument("--precision", default="32", choices=("32", "bf16-mixed"))
    parser.add_argument("--compile", action="store_true", help="torch.compile both flows")
    parser.add_argument("--devices", type=whole(), default=1, help="processes to train in")
    parser.add_argument("--minutes", type=positive, help="stop before this time is up; --resume goes on")
    parser.add_argument("--log", default="csv", choices=("csv", "tensorboard"))
    args = parse(parser, "mnist")
    preset = evidence.with_graph(args, PRESETS[args.preset])
    fill_in_image_files(args)
    if args.smoke_test:
        slow, held_out = replace(preset.optimisation, learning_rate=1e-4), min(preset.held_out, 100)
        preset = replace(preset, batch_size=20, labelled_batch_size=10, held_out=held_out, optimisation=slow)
    given = {name: getattr(args, name) for name in ("batch_size", "labelled_batch_size", "terms")}
    preset = replace(preset, **{name: value for name, value in given.items() if value is not None})
    torch.manual_seed(args.seed)
    files = partial(images, args.data, args.data_root, download=args.download)
    with refusing(args, "data", "data_root", "labels", "labelled", "split"):
        choice = {"labels": evidence.labels_of(args), "split": args.split or preset.split, "seed": args.seed}
        choice["num_val"] = preset.held_out
        data = (enlarged_digits if args.data == "digits" else files)(**choice)
    args.labels = len(data.labelled[0])
    data, about = evidence.with_evidence(args, preset, data)
    with refusing(args, "prior", "latent_dim"):
        model = preset.make_model(data, args.prior, latent_dim=args.latent_dim).to(args.device)
    machine = Machine(args.device, args.devices, precision=args.precision, compile=args.compile)
    result = common.train(args, preset, model, data, 4, machine=machine, minutes=args.minutes, log=args.log)
    if result.rank:
        return {}

    test = slice(64 if args.smoke_test else None)
    metrics: dict[str, object] = {**vars(result), "val_nll": result.best_nll}
    metrics |= evidence.evaluate(preset, model, data.x_test[test], data.y_test[test], about)
    metrics["train_error_pct"] = evidence.evaluate(preset, model, *data.labelled, None)["test_error_pct"]
    common.save(args, model, metrics)
    x, y = data.test_examples()
    figures.draw_paper(args, model.flow, preset.augment.prepare(x), y)
    prior = args.prior or preset.prior
    print(f"{args.data}, {args.labels} labels, {args.preset}, {prior}, seed {args.seed}")
    evidence.report(metrics)
    print(
        f"{result.steps} steps in {result.seconds / 60:.1f} min"
        f"{'' if result.finished else ', not finished: go on with --resume'}; written to {args.out}"
    )
    return metrics


if __name__ == "__main__":
    main()
