"""Learning curves of a run, read from its log."""

from __future__ import annotations

import csv
from pathlib import Path

from pyro_scnf.training.folder import MARK

__all__ = ["read_log"]


def read_log(out: str | Path) -> dict[str, dict[int, float]]:
    """The quantities that ``fit(..., out=out, log="csv")`` logged, over all parts of a resumed run.

    :param out: the folder of the run.
    :return: for each quantity, its values by step.
    :raises FileNotFoundError: if there is no log.
    :raises ValueError: if a file of the log is damaged. The message names it.

    A line that a killed run left unfinished is skipped.
    """
    if not isinstance(out, str | Path):
        raise ValueError(f"out is of type {type(out).__name__}, expected the path of a folder")
    numbered = (
        (part.parent.name.split("_")[1], part)
        for part in Path(out).expanduser().glob("log/version_*/metrics.csv")
    )
    parts = [part for _, part in sorted((int(number), part) for number, part in numbered if number.isdigit())]
    of_fit = [part for part in parts if (part.parent / MARK).exists()]
    parts = of_fit or parts  # logs without a mark are of another program, or of an earlier version
    if not parts:
        raise FileNotFoundError(
            f"{Path(out) / 'log'}: there is no log; train with fit(..., out={str(out)!r}, log='csv')"
        )
    curves: dict[str, dict[int, float]] = {}
    for part in parts:
        try:
            _read_part(part, curves)
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{part} is damaged, or no log of fit: {error}") from error
    return curves


def _read_part(part: Path, curves: dict[str, dict[int, float]]) -> None:
    """Add the quantities in one file to ``curves``."""
    with part.open(encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]  # an unfinished number may lack digits
        for row in csv.DictReader(lines):
            if None in row.values() or not row.get("step"):  # fewer columns than the header has
                continue
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    curves.setdefault(name, {})[int(row["step"])] = float(value)
