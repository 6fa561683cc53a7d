"""Result files: JSON, either whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_scnf._files import replacing

__all__ = ["read_json", "write_json"]


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
