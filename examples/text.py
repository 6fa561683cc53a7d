"""Texts with few labels: what a flow learns from the unlabelled ones, beside other methods.

A pretrained encoder turns each text into a row of numbers. A semi-conditional flow is trained on the rows.
Writes metrics.json, model.pt, checkpoints and a reliability diagram to ``--out``:

    python examples/text.py --data ag_news --data-root data --labels 200 --out out/ag_news
    python examples/text.py --data reviews.csv --text-column review --label stars --out out/reviews

A CSV file of your own has a column of texts and a column of labels, with blanks where nobody knows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import comparisons
import numpy as np
import torch
from command_line import parse, refusing
from options import add_options, labels_of, tell_progress

import pyro_scnf as scnf
from pyro_scnf.datasets import TEXTS, SemiSupervisedData, text

WORDS = {"cooking": "salt stew oven simmer butter", "sailing": "mast reef harbour tide keel"}
COMMON = "the a of with then some before very"


def mean_of_words(texts: list[str]) -> torch.Tensor:
    """An encoder that needs no weights: a random point for each word, and their mean for a text."""
    words = set(" ".join(texts).split())
    points = {word: np.random.default_rng(list(word.encode())).normal(size=8) for word in words}
    return torch.tensor(np.array([np.mean([points[word] for word in line.split()], 0) for line in texts]))


def made_texts(seed: int) -> SemiSupervisedData:
    """400 made sentences of two classes, 40 of them labelled."""
    rng, lines = np.random.default_rng(seed), ["text,label"]
    for row in range(400):
        topic = rng.choice(list(WORDS))
        words = rng.choice(f"{WORDS[topic]} {COMMON}".split(), 12)
        lines.append(f"{' '.join(words)},{topic if row < 80 else ''}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sentences.csv"
        file.write_text("\n".join(lines) + "\n")
        return text(file, test=0.5, encoder=mean_of_words, seed=seed)


def main() -> dict[str, object]:
    parser = common.parser(__doc__.splitlines()[0])
    add_options(parser, "a second CSV file")
    parser.add_argument("--data", default="ag_news", help=f"{', '.join(TEXTS)}, or a CSV file of your own")
    parser.add_argument("--data-root", type=Path, help="folder below which the files of a named set are")
    parser.add_argument("--embeddings", type=Path, help=".npz file of embeddings, in place of the encoder")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings; default: in ~/.cache")
    parser.add_argument("--text-column", default="text", help="of a CSV file: the column of texts")
    parser.add_argument("--label", default="label", help="of a CSV file: the column of labels")
    args = parse(parser, "text")
    torch.manual_seed(args.seed)
    named = args.data in TEXTS
    options = {"root": args.data_root} if named else {"text_column": args.text_column, "label": args.label}
    with refusing(args, "data", "data_root", "embeddings", "cache", "labels", "split", "test"):
        if args.smoke_test and named and args.data_root is None and args.embeddings is None:
            data = made_texts(args.seed)
        else:
            told = None if args.embeddings else tell_progress
            files = {"test": args.test, "embeddings": args.embeddings, "cache": args.cache, "progress": told}
            args.labels = labels_of(args.labels, named)
            choice = {"labels": args.labels, "split": args.split, "seed": args.seed}
            data = text(args.data, **options, **files, **choice)
        preset = scnf.presets.recommended(data)
    return comparisons.run(args, preset, data)


if __name__ == "__main__":
    main()
