"""The machine a figure belongs to, and how busy it is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["QUIET", "THREAD_SETTINGS", "busy_cores", "environment"]

QUIET = 0.2
"""The most work of others, in cores, on a machine that counts as idle."""

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables that set threads. Unset them to measure what the code chooses by itself."""


def environment(
    device: str = "cpu", packages: Sequence[str] = (), threads: int | None = None
) -> dict[str, object]:
    """The machine and the versions that a figure belongs to.

    :param packages: whose versions matter besides those of torch and Pyro.
    :param threads: of torch, if all that was measured ran with the same number.
    """
    record: dict[str, object] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        **({} if threads is None else {"threads": threads}),
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


def busy_cores(seconds: float = 2.0) -> float | None:
    """How many cores' worth of work other processes do, or ``None`` where the system does not say.

    This process sleeps meanwhile. The figure comes from ``/proc/stat``, which Linux has.
    """
    before = _idle_seconds()
    if before is None:
        return None
    start = time.perf_counter()
    time.sleep(seconds)
    elapsed = time.perf_counter() - start
    after = _idle_seconds()
    assert after is not None
    return max(0.0, (os.cpu_count() or 1) - (after - before) / elapsed)


def _idle_seconds() -> float | None:
    """Seconds that all cores together have been idle or waiting for a disk since the system started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    fields = stat.read_text().split("\n", 1)[0].split()  # cpu user nice system idle iowait ...
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
