"""Examples as whole commands, each in a process of its own, as a user starts them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tools.deadline import Deadline
from benchmarks.tools.records import read_json

__all__ = ["ROOT", "SMOKE", "Outcome", "find", "run_example", "train"]

ROOT = Path(__file__).parents[2]
RESERVE = 1.5  # minutes that a run needs besides training: start, evaluation, figures
SHORTEST = 1.5  # minutes of training that are worth a start
SMOKE = ("--smoke-test", "--threads", "1")
"""Options of an example that only has to show that it runs, on a machine that may be busy."""
STOPPABLE = ("mnist",)  # the examples that take --minutes and go on with --resume


def run_example(
    example: str,
    options: Sequence[str],
    out: Path,
    *,
    minutes: float | None = None,
    unset: Sequence[str] = (),
) -> tuple[int | None, float]:
    """Run ``examples/EXAMPLE.py OPTIONS --out OUT``; its exit status and the seconds it took.

    What it prints is appended to ``OUT/output.txt``. The package need not be installed: the process
    finds it in the repository.

    :param minutes: kill it after that long; the exit status is then ``None``.
    :param unset: environment variables that the process does not get.
    """
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    command = [sys.executable, str(ROOT / "examples" / f"{example}.py"), *options, "--out", str(out)]
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with (out / "output.txt").open("a") as output:
        try:
            code: int | None = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=None if minutes is None else 60 * minutes,
                env=environment,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    return code, time.perf_counter() - start


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    :ivar metrics: the example's ``metrics.json``, of an unfinished run too; ``None`` if it has none.
    :ivar finished: whether nothing is left to be trained.
    :ivar failed: whether the example ended with an error.
    """

    metrics: dict[str, Any] | None
    finished: bool
    failed: bool = False


def train(
    example: str, options: Sequence[str], out: Path, deadline: Deadline, *, expected: float = SHORTEST
) -> Outcome:
    """Find a run's metrics in ``out``, or run the example as far as ``deadline`` allows.

    A run that was cut off goes on from its last checkpoint if the example can do so, else it starts
    anew. A run that cannot fit the time left is not started.

    :param expected: minutes that a run of an example that cannot be cut off takes, about.
    """
    found = find(out)
    if found.finished:
        return found
    stoppable = example in STOPPABLE
    if not deadline.allows(RESERVE + SHORTEST if stoppable else expected):
        return found
    left = deadline.left()
    options = list(options)
    if stoppable:
        options.append("--resume")
        if left is not None:
            options += ["--minutes", f"{left - RESERVE:.2f}"]
    code, _ = run_example(example, options, out, minutes=left)
    if code:
        print(f"{example} {shlex.join(options)}: failed with exit status {code}, see {out / 'output.txt'}")
        return Outcome(found.metrics, finished=False, failed=True)
    return find(out)


def find(out: Path) -> Outcome:
    """What is in a run's folder."""
    metrics = read_json(out / "metrics.json") or None
    # Examples that cannot be cut off do not write "finished": they write metrics only at their end.
    return Outcome(metrics, finished=metrics is not None and metrics.get("finished", True))
