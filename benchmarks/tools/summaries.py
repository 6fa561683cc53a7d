"""Figures of several runs: their mean, standard deviation and single values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

__all__ = ["show", "summarise"]


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and single values of every number in the records, nested ones too."""
    summary: dict[str, Any] = {}
    for key, value in records[0].items():
        values = [record[key] for record in records]
        if isinstance(value, dict):
            if key not in ("settings", "versions"):
                summary[key] = summarise(values)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            spread = stdev(values) if len(values) > 1 else 0.0
            summary[key] = {"mean": mean(values), "std": spread, "runs": values}
    return summary


def show(summary: Mapping[str, Any], indent: int = 2) -> None:
    for key, value in summary.items():
        if "runs" in value:
            print(f"{' ' * indent}{key:28s} {value['mean']:9.3f} ± {value['std']:.3f}")
        else:
            print(f"{' ' * indent}{key}")
            show(value, indent + 2)
