"""The command lines of the examples. What cannot work is refused in one line, before anything is written."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import out_folder
import torch

import pyro_scnf as scnf


def refuse(message: object) -> NoReturn:
    """End the program with a message of one line and the exit status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def refusing(args: argparse.Namespace, *names: str) -> Iterator[None]:
    """Refuse what the library refuses. The message names its option, or those of ``names`` that are given."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        argument, _, value = str(error).replace("=", ":").partition(":")  # as the library begins messages
        option = {"source": "data", "root": "data_root"}.get(argument, argument)
        known = hasattr(args, option) and (getattr(args, option) is not None or value.startswith("None:"))
        found = [option] if known else [name for name in names if getattr(args, name, None) is not None]
        options = ", ".join(f"--{name.replace('_', '-')}" for name in found)
        refuse(f"{options}: {error}" if options else error)


class Parser(argparse.ArgumentParser):
    """Options with their defaults in the help, and errors of one line."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message: str) -> NoReturn:
        refuse(f"{message} (--help lists the options)")


def whole(at_least: int = 1, at_most: float = math.inf) -> Callable[[str], int]:
    """Reads a whole number in a range."""
    expected = f"at least {at_least}" if at_most == math.inf else f"{at_least} to {at_most}"

    def read(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or not at_least <= int(text) <= at_most:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of {expected}")
        return int(text)

    return read


def positive(text: str) -> float:
    """Reads a positive number."""
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")


def parse(parser: Parser, out: str) -> argparse.Namespace:
    """Read the command line, and check what depends on the machine or on other options.

    :param out: the default of ``--out`` inside the folder ``out``. It may name options in braces.
    """
    args = parser.parse_args()
    args.out = Path("out") / out.format(**vars(args)) if args.out is None else args.out
    with refusing(args):
        out_folder.check(args.out)
    found, wanted = torch.cuda.device_count(), getattr(args, "devices", 1)
    if getattr(args, "device", "cpu") == "cuda" and found < wanted:
        refuse(f"--device, --devices: there are {found} CUDA devices, not {wanted}; --device cpu needs none")
    if getattr(args, "log", None) == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        refuse("--log: tensorboard is not installed: pip install 'pyro-scnf[tensorboard]'")
    with refusing(args, "terms"):
        scnf.make_terms(getattr(args, "terms", None))
    if getattr(args, "resume", False) and not (args.out / "last.ckpt").exists():
        print(f"--resume: there is no last.ckpt in {args.out}, so this is a new run")
    return args
