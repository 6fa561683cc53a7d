"""Options of the command line that several benchmarks have."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

__all__ = ["add_run_options", "add_timing_options", "make_parser", "positive", "seed", "whole"]


def whole(text: str, at_least: int = 1) -> int:
    """Read a whole number of at least 1."""
    if not text.lstrip("+-").isdecimal() or int(text) < at_least:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {at_least}")
    return int(text)


def seed(text: str) -> int:
    """Read a whole number of at least 0."""
    return whole(text, 0)


def positive(text: str) -> float:
    """Read a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return number


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has.

    :param description: the benchmark's docstring, shown as it is written.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--smoke-test",
        action="store_true",
        help="see in seconds that it runs: the figures mean nothing, and no bound is judged",
    )
    return parser


def add_timing_options(parser: argparse.ArgumentParser, *, batch_size: int, repeats: int) -> None:
    """The options of the benchmarks that time steps within one process."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=whole, default=batch_size, help="rows (default: %(default)s)")
    parser.add_argument("--repeats", type=whole, default=repeats, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--threads", type=whole, default=min(2, os.cpu_count() or 1), help="default: %(default)s"
    )
    parser.add_argument("--seed", type=seed, default=0)


def add_run_options(parser: argparse.ArgumentParser, runs: str) -> None:
    """The options of the benchmarks that run examples.

    :param runs: name of the folder under ``out`` where the runs are kept.
    """
    parser.add_argument(
        "--minutes", type=positive, help="for this call, all its runs together; the next call goes on"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("out") / runs,
        help="folder of the runs; those found there are not repeated (default: %(default)s)",
    )
