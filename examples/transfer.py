"""Photographs with few labels, seen by a network that was trained on others, beside other methods.

An ImageNet encoder turns each image into a row of features. A semi-conditional flow is trained on the rows.
Writes metrics.json, model.pt, checkpoints and a reliability diagram to ``--out``:

    python examples/transfer.py --data cifar10 --data-root data --labels 200 --out out/cifar10
    python examples/transfer.py --data photos --out out/photos

A folder of your own has a sub-folder of images for each class, and one, ``unlabelled``, for those without a
label.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common
import comparisons
import numpy as np
import torch
from command_line import parse, refusing, whole
from options import add_options, fill_in_data, tell_progress
from PIL import Image

import pyro_scnf as scnf
from pyro_scnf.datasets import features


def mean_colours(images: torch.Tensor) -> torch.Tensor:
    """An encoder that needs no weights: the mean colours of the four quarters of an image."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def name_of_folder(text: str) -> str:
    """Reads the name of a sub-folder."""
    if Path(text).name != text or text[:1] in ("", "."):
        raise argparse.ArgumentTypeError(f"{text!r}: expected the name of a sub-folder, no path")
    return text


def make_images(folder: Path, unlabelled: str, seed: int) -> None:
    """Write 240 made images of two classes, by day and by night, 80 of them labelled."""
    rng = np.random.default_rng(seed)
    for row in range(240):
        kind = rng.choice(["day", "night"])
        sky = [110, 130, 180] if kind == "day" else [90, 90, 130]
        pixels = np.clip(rng.normal(sky, 90, (8, 8, 3)), 0, 255).astype(np.uint8)
        place = folder / (kind if row < 80 else unlabelled)
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{row:03}.png")


def main() -> dict[str, object]:
    parser = common.parser(__doc__.splitlines()[0])
    add_options(parser, "a second folder")
    own = "or a folder of images of your own; default: cifar10, or made images for --smoke-test"
    parser.add_argument("--data", help=f"cifar10, {own}")
    parser.add_argument("--data-root", type=Path, help="of cifar10: torchvision's root folder")
    parser.add_argument("--cache", type=Path, help="folder that keeps features; default: in ~/.cache")
    parser.add_argument("--size", type=whole(32, 1024), default=128, help="pixels that the encoder sees")
    without = "sub-folder of images without a label; default: unlabelled, if there is one"
    parser.add_argument("--unlabelled", type=name_of_folder, help=without)
    args = parse(parser, "transfer")
    torch.manual_seed(args.seed)
    made = fill_in_data(args, "cifar10", ["cifar10"])
    files = {"root": args.data_root, "test": args.test, "unlabelled": args.unlabelled, "cache": args.cache}
    encoder = {"encoder": mean_colours} if made else {}
    choice = {"labels": args.labels, "split": args.split, "seed": args.seed}
    with refusing(args, "data", "data_root"), tempfile.TemporaryDirectory() as folder:
        if made:
            make_images(Path(folder), args.unlabelled or "unlabelled", args.seed)
        source = folder if made else args.data
        data = features(source, size=args.size, progress=tell_progress, **files, **encoder, **choice)
        preset = scnf.presets.recommended(data)
    return comparisons.run(args, preset, data)


if __name__ == "__main__":
    main()
