"""The folder that an example writes to, and what can be known of it before anything is written."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FIGURES = ("boundary", "curves", "estimates", "latents", "reconstructions", "reliability", "samples", "swaps")
RECORDS = ("metrics.json", "metrics.json.partial", "model.pt", "threads.txt")
WRITTEN = (*RECORDS, *(f"{name}.png" for name in FIGURES))
"""The files that the examples write there themselves. ``fit`` looks after its checkpoints and logs."""

MARK = ".by_example"
"""The empty file that tells a folder of an example from one of the user's."""


def folder(text: str) -> Path:
    """Reads ``--out``."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: expected the path of a folder")
    return Path(text).expanduser()


def check(out: Path) -> None:
    """Raise if files cannot be written to the folder ``out``, or if others have their names there."""
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
    there = [path for path in (out / name for name in WRITTEN) if path.exists() or path.is_symlink()]
    taken = [path for path in there if path.is_dir()]
    if taken:
        raise ValueError(f"out: the folder {taken[0]} has the name of a file; move it, or give another --out")
    if there and not (out / MARK).is_file():
        raise ValueError(
            f"out: a run replaces {there[0]}, and without {MARK} beside it, it may be a file of yours; move "
            f"it, or give another --out. If an example made it, create an empty file {MARK} there"
        )


def claim(out: Path) -> None:
    """Make the folder ``out`` that of an example, whose files later runs may replace."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """:func:`claim` the folder. If a check raises, leave it as it was, with the ``threads.txt`` it had."""
    files = [out / "threads.txt", out / MARK]
    before = [file.read_bytes() if file.exists() else None for file in files]
    try:
        claim(out)
        yield
    except (ValueError, ImportError):
        for file, content in zip(files, before, strict=True):
            file.unlink(missing_ok=True) if content is None else file.write_bytes(content)
        with suppress(OSError):  # it is not empty
            out.rmdir()
        raise
