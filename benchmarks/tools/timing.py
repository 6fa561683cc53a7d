"""Interleaved timing, ratios with their spread, and bounds on them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

__all__ = ["Ratio", "interleave", "ratio", "report_bounds"]


def interleave(
    steps: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each step in each of ``repeats`` rounds.

    Every round runs all steps. The order of the steps rotates from round to round, so that neither a
    drift of the machine nor a place in the round favours one step. The garbage collector runs between
    rounds, never within a step.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # Later collections then skip the objects that the libraries made on import.
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

    :ivar value: ratio of the shortest times. It decides whether a bound is kept. Other work on the
        machine can only add time, so the shortest time is the least disturbed one.
    :ivar median: median over rounds of the ratio within a round.
    :ivar low: lower quartile of the ratios within a round.
    :ivar high: upper quartile of the ratios within a round.
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


def report_bounds(bounds: Mapping[str, tuple[float, float]]) -> int:
    """Print each ``name: (measured, bound)``; the exit status, 1 if any bound is missed."""
    missed = 0
    for name, (measured, bound) in bounds.items():
        kept = measured <= bound
        missed += not kept
        print(f"{'kept  ' if kept else 'MISSED'}  {name}: {measured:.3f}, bound {bound:.2f}")
    return int(missed > 0)
