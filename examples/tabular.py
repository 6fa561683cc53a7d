"""Tables with few labels: what a flow learns from the unlabelled rows, beside other methods.

Numbers, words, truth values and blanks become columns of numbers. A semi-conditional flow is trained on them.
Writes metrics.json, model.pt, checkpoints and a reliability diagram to ``--out``:

    python examples/tabular.py --data miniboone --data-root data --labels 20 --out out/miniboone
    python examples/tabular.py --data patients.csv --label outcome --out out/patients

A table of your own has a column of labels, with blanks where nobody knows. It is a file in CSV or Parquet, or
one that ``numpy.savez`` wrote.
"""

from __future__ import annotations

from pathlib import Path

import common
import comparisons
import numpy as np
import pandas as pd
import torch
from command_line import parse, refusing
from options import add_options, fill_in_data

import pyro_scnf as scnf
from pyro_scnf.datasets import TABLES, tabular


def made_table(seed: int) -> pd.DataFrame:
    """400 made rows of two classes, 80 of them labelled: measurements with blanks, counts and words."""
    rng = np.random.default_rng(seed)
    ill = rng.random(400) < 0.4
    table = pd.DataFrame(
        {
            "temperature": rng.normal(36.8 + 0.8 * ill, 0.4).round(1),
            "pulse": np.where(rng.random(400) < 0.1, np.nan, rng.normal(70 + 12 * ill, 8)),
            "visits": rng.poisson(1 + 2 * ill),
            "smokes": rng.random(400) < 0.2 + 0.3 * ill,
            "ward": rng.choice(["north", "east", "south"], 400),
            "outcome": np.where(ill, "ill", "well"),
        }
    )
    table.loc[80:, "outcome"] = None
    return table


def main() -> dict[str, object]:
    parser = common.parser(__doc__.splitlines()[0])
    add_options(parser, "a second file")
    own = "or a file of your own; default: miniboone, or a made table for --smoke-test"
    parser.add_argument("--data", help=f"{', '.join(TABLES)}, {own}")
    parser.add_argument("--data-root", type=Path, help="folder below which the files of a named table are")
    parser.add_argument("--label", help="of a file of your own: the column of labels")
    parser.add_argument("--unknown", help="of a file of your own: a label that means none, such as -1")
    categories = "of a file of your own: further columns that are categories, such as codes"
    parser.add_argument("--categories", nargs="*", default=[], help=categories)
    args = parse(parser, "tabular")
    torch.manual_seed(args.seed)
    made = fill_in_data(args, "miniboone", TABLES)
    if made and args.label is None:
        args.label = "outcome"
    columns = {"label": args.label, "categories": args.categories, "unknown": args.unknown}
    options = {"root": args.data_root, "test": args.test, **columns}
    choice = {"labels": args.labels, "split": args.split, "seed": args.seed}
    with refusing(args, "data", "data_root"):
        data = tabular(made_table(args.seed) if made else args.data, **options, **choice)
        preset = scnf.presets.recommended(data)
    return comparisons.run(args, preset, data)


if __name__ == "__main__":
    main()
