"""Other processes that keep a machine busy while something is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["neighbours"]

# A neighbour ends by itself once the process that started it is gone. A benchmark that is killed
# therefore leaves no busy process behind.
_LOOP = """
import os, sys, time
parent, share = int(sys.argv[1]), float(sys.argv[2])
while os.getppid() == parent:
    end = time.perf_counter() + 0.1 * share
    while time.perf_counter() < end:
        pass
    if share < 1:
        time.sleep(0.1 * (1 - share))
"""


@contextmanager
def neighbours(count: int, share: float = 1.0) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within the block, ``count`` other processes compute, each for ``share`` of the time.

    They compute in plain Python. They take time from the cores, but little memory bandwidth. They are
    killed when the block ends, also by an error.

    :raises RuntimeError: if one of them ended before the block.
    """
    command = [sys.executable, "-S", "-c", _LOOP, str(os.getpid()), str(share)]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(command))
        yield started
        ended = [process.returncode for process in started if process.poll() is not None]
        if ended:
            raise RuntimeError(f"{len(ended)} of {count} neighbours ended early, with exit status {ended}")
    finally:
        for process in started:
            process.kill()
            process.wait()
