"""What the benchmarks share: interleaved timing, ratios with their spread, and a record of the machine."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

__all__ = [
    "Ratio",
    "add_common_arguments",
    "environment",
    "interleave",
    "ratio",
    "report_bounds",
    "write_json",
]


def interleave(
    steps: Mapping[str, Callable[[], Any]], repeats: int, *, warmup: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each step in each of ``repeats`` rounds.

    All steps run in every round, in an order that rotates, so that neither drift of the machine nor
    a step's place in the round favours one of them. The garbage collector runs between rounds, never
    within a step.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # the libraries' own objects need no second look
    gc.disable()
    try:
        for turn in range(warmup + repeats):
            gc.collect()
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                _synchronize(device)
                start = time.perf_counter()
                steps[name]()
                _synchronize(device)
                if turn >= warmup:
                    seconds[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
        gc.unfreeze()
    return seconds


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Ratio:
    """How much longer one step takes than another, in one run.

    :ivar value: ratio of the shortest times. Other work on the machine only ever adds time, so the
        minimum is the least disturbed figure; it decides whether a bound is kept.
    :ivar median: median over rounds of the ratio within a round.
    :ivar low: their lower quartile.
    :ivar high: their upper quartile.
    """

    value: float
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = f"median {self.median:.3f}, quartiles {self.low:.3f}-{self.high:.3f}"
        return f"{self.value:.3f}  (by round: {spread})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """:class:`Ratio` of two columns of :func:`interleave`."""
    rounds = [a / b for a, b in zip(above, below, strict=True)]
    low, _, high = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else rounds * 3
    return Ratio(min(above) / min(below), median(rounds), low, high)


def environment(device: str = "cpu", packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    record = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "pyro-ppl", *packages)},
    }
    if torch.device(device).type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
    return record


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def add_common_arguments(parser: argparse.ArgumentParser, *, batch_size: int, repeats: int) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="rows (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)


def write_json(path: Path | None, record: Mapping[str, Any]) -> None:
    """Write ``record`` to ``path``, if one was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")


def report_bounds(bounds: Mapping[str, tuple[float, float]]) -> int:
    """Print each ``name: (measured, bound)``; the exit status, 1 if any is missed."""
    missed = 0
    for name, (measured, bound) in bounds.items():
        kept = measured <= bound
        missed += not kept
        print(f"{'kept  ' if kept else 'MISSED'}  {name}: {measured:.3f}, bound {bound:.2f}")
    return int(missed > 0)
