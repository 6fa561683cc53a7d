"""Learning curves of a run, read from its log."""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["read_log"]


def read_log(out: str | Path) -> dict[str, dict[int, float]]:
    """The quantities that ``fit(..., out=out, log="csv")`` logged, over all parts of a resumed run.

    :param out: the folder of the run.
    :return: for each quantity, its values by step.
    :raises FileNotFoundError: if there is no log.
    """
    parts = sorted(
        Path(out).glob("log/version_*/metrics.csv"), key=lambda part: int(part.parent.name.split("_")[1])
    )
    if not parts:
        raise FileNotFoundError(
            f"{Path(out) / 'log'}: there is no log; train with fit(..., out={str(out)!r}, log='csv')"
        )
    curves: dict[str, dict[int, float]] = {}
    for part in parts:
        with part.open() as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        curves.setdefault(name, {})[int(row["step"])] = float(value)
    return curves
