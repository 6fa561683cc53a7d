"""Examples with their options, as commands such as ``toy --data moons``, over several seeds."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tools.deadline import Deadline
from benchmarks.tools.options import add_run_options, whole
from benchmarks.tools.runs import SMOKE, Outcome, train

__all__ = ["add_command_options", "folder_of", "run"]

EXPECTED = 3.0  # minutes of one run of an example that cannot be cut off


def add_command_options(
    parser: argparse.ArgumentParser, commands: Sequence[str], *, seeds: int, runs: str
) -> None:
    """The options of the benchmarks that run commands over seeds.

    :param commands: what runs by default.
    :param int seeds: how many seeds by default.
    :param runs: name of the folder under ``out`` where the runs are kept.
    """
    parser.add_argument(
        "--runs-of",
        nargs="+",
        metavar="COMMAND",
        default=commands,
        help=f"examples with their options, each in quotes (default: {', '.join(commands)})",
    )
    parser.add_argument("--seeds", type=whole, default=seeds)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-root", type=Path, help="for the example mnist")
    add_run_options(parser, runs)


def folder_of(command: str, seed: int, args: argparse.Namespace) -> Path:
    """Where a run is kept."""
    kind = f"{args.device}{'_smoke' if args.smoke_test else ''}"
    return args.runs / kind / command.replace("--", "").replace(" ", "-") / str(seed)


def run(command: str, seed: int, args: argparse.Namespace, deadline: Deadline) -> Outcome:
    """One run of an example, found or trained as far as the deadline allows."""
    example, *options = shlex.split(command)
    options += ["--seed", str(seed), "--device", args.device]
    if args.data_root is not None and example == "mnist":
        options += ["--data-root", str(args.data_root)]
    if args.smoke_test:
        options += SMOKE
    return train(example, options, folder_of(command, seed, args), deadline, expected=EXPECTED)
