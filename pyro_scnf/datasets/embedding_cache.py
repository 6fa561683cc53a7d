"""Pretrained encoders by name, and their embeddings on disk: what was encoded once is read from then on.

Items are encoded in groups. A group has a file whose name is a hash of its items and of the encoder. A
changed item has another hash, so it never gets an embedding of what it was. An encoding that is interrupted
goes on with the first group that has no file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pyro_scnf._files import read_plain, write_plain
from pyro_scnf._numbers import refuse_unused
from pyro_scnf._warn import warn

__all__ = ["EmbeddingCache", "Encode", "Encoder", "Progress", "chosen_encoder", "embed"]

GROUP = 1024
"""Items in a file."""

BATCH = 64
"""Items that are encoded at a time."""

FORMAT = 1
"""Number of this way to write the files. It is part of their hash."""

Item = TypeVar("Item")
Batch = TypeVar("Batch")

Encode = Callable[[Batch], Tensor]
"""Encodes a batch of B items as numbers ``(B, D)``."""

Progress = Callable[[int, int], object]
"""Is told how many items have embeddings, and how many there are."""


@dataclass(frozen=True)
class Encoder(Generic[Batch]):
    """A pretrained encoder that has a name, so that its embeddings can be kept on disk.

    :ivar load: loads the weights. Returns a function that encodes a batch of B items as ``(B, D)``.
    :ivar package: the installed package that brings the weights. Its version is part of the hash of
        embeddings on disk. Without one, give the encoder another name when its weights change.
    :ivar extra: the extra of this package that installs ``package``.
    """

    load: Callable[[], Encode[Batch]]
    package: str | None = None
    extra: str | None = None

    def version(self) -> str:
        """The version of the package, empty without one.

        :raises ImportError: if it is not installed.
        """
        try:
            return "" if self.package is None else version(self.package)
        except PackageNotFoundError as error:
            remedy = self.package if self.extra is None else f"'pyro-scnf[{self.extra}]'"
            raise ImportError(
                f"{self.package} is needed here; install it with: pip install {remedy}"
            ) from error


@dataclass(frozen=True)
class EmbeddingCache:
    """The files of one encoder.

    :ivar Path folder: their folder. It is made when something is written.
    :ivar str name: the first part of their names.
    :ivar str identity: all that decides about embeddings besides the item: name, version and options.
    """

    folder: Path
    name: str
    identity: str

    def key(self, digests: Sequence[bytes]) -> str:
        """The hash of a group of items."""
        sha = hashlib.sha256(f"{FORMAT}\n{self.identity}\n{len(digests)}\n".encode())
        for digest in digests:
            sha.update(hashlib.sha256(digest).digest())
        return sha.hexdigest()

    def path(self, key: str) -> Path:
        """The file of a group."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', self.name)}-{key[:32]}.pt"

    def read(self, key: str, rows: int) -> Tensor | None:
        """The embeddings of a group; ``None`` if there are none, or if the file is damaged.

        A damaged file is named in a warning, and is written anew after that.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            content = read_plain(path, "a file of embeddings")
            found = content.get("embeddings") if isinstance(content, dict) else None
            if not isinstance(found, Tensor) or content.get("key") != key or found.shape[:1] != (rows,):
                raise ValueError(f"{path}: it holds something else than the embeddings of its name")
        except ValueError as error:
            warn(f"{error}. Its {rows} embeddings are computed and written anew")
            return None
        return found

    def write(self, key: str, embeddings: Tensor) -> None:
        """Write the embeddings of a group, completely or not at all. Several processes may do so at once."""
        path = self.path(key)
        own = path.with_name(f"{path.name}.{os.getpid()}")
        write_plain({"key": key, "embeddings": embeddings}, own)
        own.replace(path)

    def check_folder(self) -> None:
        """Raise unless files can be written, before time is spent on what they would hold."""
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise OSError(
                f"cache: {there} is no folder that can be written to, so embeddings cannot be kept in "
                f"{self.folder}; give cache= another folder"
            )


def default_folder() -> Path:
    """The folder of embeddings, if none is given: ``pyro-scnf/embeddings`` in the user's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "pyro-scnf" / "embeddings"


def chosen_encoder(
    encoder: object,
    known: Mapping[str, Encoder[Batch]],
    table: str,
    cache: object,
    options: str = "",
) -> tuple[Callable[[], Encode[Batch]], EmbeddingCache | None]:
    """What loads the encoder that the user chose, and the files of its embeddings.

    :param encoder: a name in ``known``, or a function. Embeddings of a function are not kept, because nothing
        tells whether it has changed.
    :param str table: what the user calls ``known``, for the message.
    :param cache: the folder that the user gave, or ``None`` for :func:`default_folder`.
    :param str options: what decides about embeddings besides the encoder.
    :raises ValueError: for an unknown name, for something else, and for a folder beside a function.
    :raises ImportError: if the package of the encoder is not installed.
    """
    if callable(encoder):
        function: Encode[Batch] = encoder
        reason = "embeddings of a function of your own are not kept, since it may change; to keep them, give "
        refuse_unused(f"{reason}it a name: {table}['my-encoder'] = Encoder(lambda: function)", cache=cache)
        return lambda: function, None
    if not isinstance(encoder, str) or encoder not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"encoder={encoder!r}: expected {names}, or a function of your own")
    if cache is not None and not isinstance(cache, str | Path):
        raise ValueError(f"cache={cache!r}: expected the path of a folder")
    folder = default_folder() if cache is None else Path(cache).expanduser()
    identity = f"{encoder}\n{known[encoder].version()}\n{options}"
    return functools.cache(known[encoder].load), EmbeddingCache(folder, encoder, identity)


def embed(
    items: Sequence[Item],
    digest: Callable[[Item], bytes],
    load: Callable[[], Callable[[list[Item]], Tensor]],
    cache: EmbeddingCache | None,
    *,
    size: Callable[[Item], int] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Embeddings of ``items`` ``(N, D)`` in float32, from the files that have them, computed where none has.

    :param items: one item or more.
    :param digest: the content of an item, or a hash of it.
    :param load: loads the encoder. It is called only if something has to be encoded, and once.
    :param cache: the files; ``None`` keeps nothing.
    :param size: the size of an item. Items of like size are encoded together, so that little is padded.
    :param progress: is called after each group that was encoded.
    :raises ValueError: if ``progress`` is no function, or the encoder returns anything but one row of finite
        numbers for each item.
    :raises OSError: if files cannot be written. It is raised before anything is encoded.
    """
    if progress is not None and not callable(progress):
        raise ValueError(f"progress={progress!r}: expected a function of two numbers, or None")
    encode: Callable[[list[Item]], Tensor] | None = None
    parts: list[Tensor] = []
    for start in range(0, len(items), GROUP):
        group = items[start : start + GROUP]
        key = "" if cache is None else cache.key([digest(item) for item in group])
        found = None if cache is None else cache.read(key, len(group))
        if found is None:
            if encode is None:
                if cache is not None:
                    cache.check_folder()
                encode = load()
            found = _encode(group, encode, size)
            if cache is not None:
                cache.write(key, found)
            if progress is not None:
                progress(start + len(group), len(items))
        if parts and found.shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"encoder: gave rows of {found.shape[1]} numbers and of {parts[0].shape[1]}, expected as "
                "many each time; if its weights have changed, give it another name"
            )
        parts.append(found)
    return torch.cat(parts)


@torch.no_grad()
def _encode(
    group: Sequence[Item],
    encode: Callable[[list[Item]], Tensor],
    size: Callable[[Item], int] | None,
) -> Tensor:
    """Embeddings of the items of a group, in batches of like size."""
    order = list(range(len(group)))
    if size is not None:
        order.sort(key=lambda place: size(group[place]))
    parts = []
    for start in range(0, len(order), BATCH):
        batch = [group[place] for place in order[start : start + BATCH]]
        parts.append(_checked(encode(batch), len(batch)))
        if parts[-1].shape != (len(batch), parts[0].shape[1]):
            raise ValueError(
                f"encoder: gave rows of {parts[0].shape[1]} and of {parts[-1].shape[1]} numbers, expected as "
                "many each time"
            )
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[back]


def _checked(found: object, rows: int) -> Tensor:
    """Raise unless an encoder returned finite numbers ``(rows, D)``. Return them in float32."""
    expected = f"expected a tensor of finite numbers ({rows}, D), a row for each of {rows} items"
    if not isinstance(found, Tensor):
        raise ValueError(f"encoder: gave a {type(found).__name__}, {expected}")
    if found.dim() != 2 or len(found) != rows or not found.shape[1] or found.is_complex():
        raise ValueError(f"encoder: gave shape {tuple(found.shape)} and dtype {found.dtype}, {expected}")
    found = found.detach().to("cpu", torch.float32)
    if not torch.isfinite(found).all():
        raise ValueError(f"encoder: gave NaN or infinity, {expected}")
    return found
