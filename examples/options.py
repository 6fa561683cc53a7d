"""Shared by the examples of tables, texts and photographs: their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from command_line import Parser, refuse, whole
from torch import Tensor

from pyro_scnf.baselines import COMPARATORS
from pyro_scnf.datasets import SPLITS, SemiSupervisedData
from pyro_scnf.presets import LeadingComponents, Preset


def add_options(parser: Parser, second: str) -> None:
    """The options of labels and test rows, of the graph and of the other methods.

    :param second: what a second part of one's own data is, such as ``"a second CSV file"``.
    """
    labels = "training labels to keep; default: 200 of a named set, and all of data of your own"
    parser.add_argument("--labels", type=whole(), help=labels)
    parser.add_argument("--split", default="balanced", choices=SPLITS, help="how labels are chosen")
    share = f"of data of your own: the share of the labelled rows to test on (default: 0.2), or {second}"
    parser.add_argument("--test", type=number_or_path, help=share)
    graph = "rows: a graph of near rows gives evidence about labels; default: the preset's"
    parser.add_argument("--graph", choices=("none", "rows"), help=graph)
    names = f"other methods: those with this in their name; none for none; {', '.join(COMPARATORS)}"
    parser.add_argument("--comparators", default="", help=names)


def number_or_path(text: str) -> float | Path:
    """Reads ``--test``."""
    return float(text) if text.replace(".", "", 1).isdecimal() else Path(text)


def labels_of(labels: int | None, named: bool) -> int | None:
    """How many labels to keep, given ``--labels``; ``None`` for all."""
    return 200 if named and labels is None else labels


def comparators_of(args: argparse.Namespace) -> dict[str, Callable[..., Tensor]]:
    """The comparators whose name contains ``--comparators``."""
    found = {name: method for name, method in COMPARATORS.items() if args.comparators in name}
    if not found and args.comparators != "none":
        refuse(f"--comparators: {args.comparators!r} is in no name: {', '.join(COMPARATORS)}; or give none")
    return found


def with_graph(args: argparse.Namespace, preset: Preset, data: SemiSupervisedData) -> Preset:
    """``preset`` with the graph of ``--graph``."""
    if args.graph is None:
        return preset
    return preset.with_graph(LeadingComponents(data.x) if args.graph == "rows" else None)


def tell_progress(done: int, items: int) -> None:
    """Say how far an encoder is."""
    print(f"encoded {done} of {items}", flush=True)
