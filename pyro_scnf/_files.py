"""Write files completely or not at all, and read files of tensors and plain values."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION

__all__ = ["is_broken_zip", "read_plain", "replacing", "write_plain"]


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Write the file ``path`` beside its place, flush it to disk, and only then move it there.

    A process killed at any moment leaves the old file or the new one. It may also leave ``.NAME.partial``,
    which the next writer replaces.
    """
    target = Path(path).expanduser().resolve()  # a link keeps pointing to the file
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        kept = "the older file stays as it was" if target.is_file() else "there is no older file"
        reason = f"{error.strerror or error}; {path} could not be written, {kept}"
        raise OSError(error.errno or 0, reason) from error


def write_plain(content: object, path: str | Path) -> None:
    """Write tensors and plain values to the file ``path``, completely or not at all.

    :raises OSError: if it cannot be written. The message names the file. An older file stays.
    """
    checksums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        with replacing(path) as file:
            torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(checksums)


def read_plain(path: str | Path, expected: str, map_location: MAP_LOCATION = "cpu") -> Any:
    """The tensors and plain values in the file ``path``. It cannot run code (``weights_only=True``).

    PyTorch does not compare the checksums in the file. This function does, so that no number is read that
    was not written.

    :param str expected: what the file should be, for the message.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged or holds anything else.
    """
    # Opened outside the try block, because a missing file has its own error.
    with Path(path).expanduser().open("rb") as file:
        try:
            if zipfile.is_zipfile(file):
                broken = zipfile.ZipFile(file).testzip()
                if broken is not None:
                    raise zipfile.BadZipFile(f"wrong checksum of {broken}")
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(f"{path}: it is damaged, or not {expected}: {error!r}") from error


def is_broken_zip(path: str | Path) -> bool:
    """Whether the file was cut short or damaged, so that it no longer is a zip file with true checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is not None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return True
    except RuntimeError:  # whole, but with a password, or compressed in an unknown way
        return False
