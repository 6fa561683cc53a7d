"""Result files: JSON, either whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyro_scnf._files import replacing

__all__ = ["found_or_made", "read_json", "write_json"]


def write_json(path: Path | None, record: Mapping[str, object]) -> None:
    """Write ``record`` to ``path``, if one was given.

    A reader never sees half a file, and a process that is killed leaves the old file as it was.
    """
    if path is None:
        return
    text = json.dumps(record, indent=2) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def read_json(path: Path | None) -> dict[str, Any]:
    """What ``path`` holds, or an empty dictionary if there is no such file."""
    return {} if path is None or not path.exists() else json.loads(path.read_text())


def found_or_made(
    path: Path, make: Callable[[], Mapping[str, object]], allowed: Callable[[], bool]
) -> dict[str, Any] | None:
    """What ``path`` holds. If there is no such file, make the record and write it there, if that is allowed.

    :return: ``None`` if there is no record, and none may be made.
    """
    if not path.exists():
        if not allowed():
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return read_json(path)
