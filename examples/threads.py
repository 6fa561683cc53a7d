"""Choose the number of CPU threads of an example. Import this module before torch.

torch loads OpenMP, which then reads its settings. By default, threads that wait spin for long and keep cores
from other processes. Here they soon sleep; ``benchmarks/speed/threads.py`` says what that costs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # GNU's OpenMP; others sleep at once

import torch

ROUNDS, SECONDS = 5, 8.0  # measure one to five rounds; start no further one after 8 seconds
GAIN, MOST = 1.15, 1024  # choose more threads only if they are faster by this factor; never more than MOST


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fastest(step: Callable[[], object]) -> int:
    """The number of threads that runs ``step`` fastest now, out of 1, 2, 4, ... up to the number of cores.

    The state of the random generator does not change.
    """
    candidates = [2**i for i in range(available_cores().bit_length())]
    seconds: dict[int, list[float]] = {threads: [] for threads in candidates}
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        for turn in range(ROUNDS + 1):  # the first one warms up
            for threads in candidates:
                torch.set_num_threads(threads)
                begun = time.perf_counter()
                step()
                if turn:
                    seconds[threads].append(time.perf_counter() - begun)
            if turn and time.perf_counter() - started > SECONDS:
                break
    best = 1
    for threads in candidates[1:]:
        if median(seconds[threads]) * GAIN < median(seconds[best]):
            best = threads
    return best


def set_threads(step: Callable[[], object], out: Path, *, given: int | None, resume: bool) -> int:
    """Set the number of threads, print it, and write it to ``out``, beside the checkpoints.

    It is the number ``given``. Without that, a resumed run takes its earlier number, because another number
    would round differently. A new run takes the fastest number.
    """
    file = out / "threads.txt"
    if given is not None:
        threads, reason = given, "as given"
    elif resume and file.exists():
        text = file.read_text(errors="replace").strip()
        if not text.isdecimal() or not 1 <= int(text) <= MOST:
            raise ValueError(f"{file} holds {text[:20]!r}, expected 1 to {MOST}; give --threads N")
        threads, reason = int(text), "as before"
    else:
        threads, reason = fastest(step), "measured now; --threads N overrides"
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{threads}\n")
    print(f"CPU threads: {threads} ({reason})")
    return threads
