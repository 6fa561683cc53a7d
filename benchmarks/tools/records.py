"""Result files: JSON, either whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["read_json", "write_json"]


def write_json(path: Path | None, record: Mapping[str, object]) -> None:
    """Write ``record`` to ``path``, if one was given.

    The file is written beside its place and then renamed. A reader therefore never sees half a file,
    and a process that is killed leaves the old file as it was.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)


def read_json(path: Path | None) -> dict[str, Any]:
    """What ``path`` holds, or an empty dictionary if there is no such file."""
    return {} if path is None or not path.exists() else json.loads(path.read_text())
