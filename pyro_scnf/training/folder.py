"""The output folder of a run: one run at a time writes to it, and files of the user stay."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pyro_scnf._files import is_broken_zip, read_plain

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "BEST",
    "LAST",
    "LOCK",
    "LOGS",
    "MARK",
    "check_folder",
    "check_replaceable",
    "clear",
    "held",
    "is_checkpoint",
]

LAST, BEST = "last.ckpt", "best.ckpt"
LOCK = ".run.lock"
"""The file that is locked during a run."""

LOGS = {"csv": "log", "tensorboard": "tensorboard"}
"""Where each kind of log goes."""

MARK = ".by_fit"
"""The empty file that tells a log of a run from one of the user's."""

_WRITTEN = re.compile(rf"metrics\.csv|hparams\.yaml|events\.out\.tfevents\..*|{re.escape(MARK)}")
"""The files in a version of a log."""

_held: set[Path] = set()
"""Locks of this process. The operating system tells processes apart, but not runs in one process."""


def check_folder(out: str | Path, log: str | None) -> Path:
    """Make the folder ``out``. Raise if files cannot be written there. Return it.

    :param log: the kind of log that will be written, if any.
    """
    if not isinstance(out, str | os.PathLike) or not str(out).strip():
        raise ValueError(f"out={out!r}: expected the path of a folder")
    folder = Path(out).expanduser()
    names = ["", *([] if log is None else [LOGS[log]])]
    for place in (folder / name for name in names):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"out={str(out)!r}: {place} is no folder, and cannot be made one: {error.strerror}; give "
                "the path of a folder"
            ) from error
        if not os.access(place, os.W_OK):
            raise ValueError(f"out={str(out)!r}: nothing can be written to {place}; give another folder")
    for name in (LAST, BEST):
        if (folder / name).is_dir():
            raise ValueError(f"out={str(out)!r}: a folder has the name of the checkpoint {folder / name}")
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder for one run.

    The lock is a file that names the process and its host. The operating system frees it when the process
    ends, however it ends. A file that a killed process left is therefore no obstacle.

    :raises ValueError: if another run holds the folder, or nothing can be written there.
    """
    path = folder.resolve() / LOCK
    if path in _held:
        raise ValueError(_busy(folder, "this process"))
    file = _lock(folder, path)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)
        file.close()


def _lock(folder: Path, path: Path) -> IO[str]:
    """The locked file, with the name of this process in it."""
    while True:
        try:
            file = path.open("a+")
        except OSError as error:
            raise ValueError(f"out: {path} cannot be written: {error.strerror}") from error
        try:
            _lock_file(file)
            if _is_at(path, file):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                os.fsync(file.fileno())
                return file
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read() or "another process"
            file.close()
            raise ValueError(_busy(folder, owner)) from error
        except OSError as error:
            file.close()
            raise ValueError(f"out: {path} cannot be written: {error.strerror}") from error
        file.close()  # the run before removed it in the meantime


def _lock_file(file: IO[str]) -> None:
    """Lock the open ``file`` for this process, where the file system knows locks."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether the open ``file`` still is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _busy(folder: Path, owner: str) -> str:
    return (
        f"out: {owner} is training into {folder} now (its lock is {LOCK}); wait for the end of that run, or "
        "give another folder"
    )


def is_checkpoint(content: object) -> bool:
    """Whether this is the content of a checkpoint of a :class:`~pyro_scnf.training.SemiSupervisedTask`."""
    return isinstance(content, dict) and {"settings", "state_dict", "global_step"} <= content.keys()


def check_replaceable(folder: Path) -> None:
    """Raise if a file that a new run would replace was not written by a run."""
    for path in (folder / LAST, folder / BEST):
        if path.is_file() and not _may_be_ours(path):
            raise ValueError(
                f"out: a run replaces {path}, and the file there is no checkpoint of a run; move it, or give "
                "another folder"
            )


def _may_be_ours(path: Path) -> bool:
    """Whether a run wrote the file, as far as can be told. A checkpoint that was cut short counts as one."""
    with path.open("rb") as file:
        if file.read(2) not in (b"", b"P", b"PK"):  # checkpoints are zip files
            return False
    try:
        return is_checkpoint(read_plain(path, "a checkpoint"))
    except ValueError:  # a run writes only what can be read, so a whole file is of another program
        return is_broken_zip(path)


def clear(folder: Path) -> None:
    """Remove the checkpoints and logs of an earlier run, and nothing else."""
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)
        (folder / f".{name}.partial").unlink(missing_ok=True)
    for kind in LOGS.values():
        for version in (folder / kind).glob("version_*"):
            _clear_version(version)


def _clear_version(version: Path) -> None:
    if version.is_symlink() or not (version / MARK).is_file():  # it is the user's
        return
    for path in version.iterdir():
        if path.is_file() and _WRITTEN.fullmatch(path.name):
            path.unlink()
    with suppress(OSError):  # a file of the user is in it
        version.rmdir()
