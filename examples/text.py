"""Texts with few labels: what a flow learns from the unlabelled ones, beside other methods.

A pretrained encoder turns each text into a row of numbers. A semi-conditional flow is trained on the rows.
Writes metrics.json, model.pt, checkpoints and a reliability diagram to ``--out``:

    python examples/text.py --data ag_news --data-root data --labels 200 --out out/ag_news
    python examples/text.py --data reviews.csv --text-column review --label stars --out out/reviews

A CSV file of your own has a column of texts and a column of labels, with blanks where nobody knows.
"""

from __future__ import annotations

from pathlib import Path

import common
import comparisons
import numpy as np
import pandas as pd
import torch
from command_line import parse, refusing
from options import add_options, fill_in_data, tell_progress

import pyro_scnf as scnf
from pyro_scnf.datasets import TEXTS, text

WORDS = {"cooking": "salt stew oven simmer butter", "sailing": "mast reef harbour tide keel"}
COMMON = "the a of with then some before very"


def mean_of_words(texts: list[str]) -> torch.Tensor:
    """An encoder that needs no weights: a random point for each word, and their mean for a text."""
    words = set(" ".join(texts).split())
    points = {word: np.random.default_rng(list(word.encode())).normal(size=8) for word in words}
    return torch.tensor(np.array([np.mean([points[word] for word in line.split()], 0) for line in texts]))


def made_texts(seed: int) -> pd.DataFrame:
    """400 made sentences of two classes, 80 of them labelled."""
    rng = np.random.default_rng(seed)
    topics = rng.choice(list(WORDS), 400)
    texts = [" ".join(rng.choice(f"{WORDS[topic]} {COMMON}".split(), 12)) for topic in topics]
    return pd.DataFrame({"text": texts, "label": [*topics[:80], *[None] * 320]})


def main() -> dict[str, object]:
    parser = common.parser(__doc__.splitlines()[0])
    add_options(parser, "a second CSV file")
    own = "or a CSV file of your own; default: ag_news, or made texts for --smoke-test"
    parser.add_argument("--data", help=f"{', '.join(TEXTS)}, {own}")
    parser.add_argument("--data-root", type=Path, help="folder below which the files of a named set are")
    parser.add_argument("--embeddings", type=Path, help=".npz file of embeddings, in place of the encoder")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings; default: in ~/.cache")
    parser.add_argument("--text-column", default="text", help="of a CSV file: the column of texts")
    parser.add_argument("--label", default="label", help="of a CSV file: the column of labels")
    parser.add_argument("--unknown", help="of a CSV file: a label that means none, such as -1")
    args = parse(parser, "text")
    torch.manual_seed(args.seed)
    made = fill_in_data(args, "ag_news", TEXTS)
    columns = {"text_column": args.text_column, "label": args.label, "unknown": args.unknown}
    files = {"root": args.data_root, "test": args.test, "embeddings": args.embeddings, "cache": args.cache}
    encoder = {"encoder": mean_of_words} if made else {}
    choice = {"labels": args.labels, "split": args.split, "seed": args.seed}
    told = tell_progress if args.embeddings is None else None
    with refusing(args, "data", "data_root", "embeddings"):
        source = made_texts(args.seed) if made else args.data
        data = text(source, **columns, **files, **encoder, **choice, progress=told)
        preset = scnf.presets.recommended(data)
    return comparisons.run(args, preset, data)


if __name__ == "__main__":
    main()
