"""The folder that an example writes to, and what can be known of it before anything is written."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

ENDINGS = (".json", ".partial", ".png", ".pt", ".txt")
"""The files that the examples write there themselves, besides checkpoints and logs."""


def folder(text: str) -> Path:
    """Reads ``--out``."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: expected the path of a folder")
    return Path(text).expanduser()


def check(out: Path) -> None:
    """Raise if files cannot be written to the folder ``out``, or if folders have the names of files."""
    above = [out.absolute(), *out.absolute().parents]
    place = next(path for path in above if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"out: {place} is no folder that can be written to; give another one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: {out} cannot be made a folder: {error.strerror}; give another one") from error
    finally:
        for path in above[: above.index(place)]:
            with suppress(OSError):  # it could not be made, or another program uses it
                path.rmdir()
    taken = [path for path in sorted(out.glob("*")) if path.suffix in ENDINGS and path.is_dir()]
    if taken:
        raise ValueError(f"out: the folder {taken[0]} has the name of a file; move it, or give another --out")
