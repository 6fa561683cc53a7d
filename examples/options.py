"""Shared by the examples that read data from files: their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from contextlib import suppress
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
    with suppress(ValueError):
        return float(text)
    return Path(text)


def fill_in_data(
    args: argparse.Namespace, default: str, named: Collection[str] = (), *, small: str = "made"
) -> bool:
    """Fill in ``--data`` and ``--labels``. Return whether a smoke test has to make its data.

    :param default: the data otherwise.
    :param named: the names of published sets, which keep 200 labels by default.
    :param small: the data of a smoke test.
    """
    given = any(getattr(args, name, None) for name in ("data", "data_root", "embeddings", "download"))
    if args.data is None:
        args.data = small if args.smoke_test and not given else default
    if args.labels is None and args.data in named:
        args.labels = 200
    return args.smoke_test and not given


def add_image_files(parser: Parser, names: Collection[str]) -> None:
    """The options of image sets that torchvision reads."""
    parser.add_argument("--data", choices=[*names, "digits"], help="default: mnist, in a smoke test digits")
    parser.add_argument("--data-root", type=Path, help="torchvision's root folder; by default data")
    parser.add_argument("--download", action="store_true", help="fetch missing files of the data set")


def fill_in_image_files(args: argparse.Namespace) -> None:
    """Fill in ``--data`` and ``--data-root``."""
    fill_in_data(args, "mnist", small="digits")
    if args.data == "digits" and (args.data_root or args.download):
        refuse("--data digits: they come with scikit-learn; leave out --data-root and --download")
    args.data_root = args.data_root or Path("data")


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
