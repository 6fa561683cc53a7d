"""Setup of every test: one thread, a fixed seed, an empty parameter store, validation on.

Here are also the fixtures of tests that run the examples of larger models.
"""

from __future__ import annotations

import json
import runpy
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# No time limit per example: on a slow or busy machine it would fail without a fault of the code.
settings.register_profile("suite", deadline=None, max_examples=10, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def fresh_pyro(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed by the test's name, so that a test draws the same numbers alone and within the suite."""
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(zlib.crc32(request.node.name.encode()))
    yield
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()


COMPOSING = Path(__file__).parents[1] / "examples" / "composing"


@pytest.fixture
def load_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run a file of ``examples/composing`` under a name, in an empty folder, and return what it defines."""
    monkeypatch.syspath_prepend(str(COMPOSING))
    monkeypatch.setattr(sys, "path", list(sys.path))  # the examples append to it
    monkeypatch.chdir(tmp_path)
    yield lambda name, run_name="example": runpy.run_path(str(COMPOSING / f"{name}.py"), run_name=run_name)
    for module in (*(path.stem for path in COMPOSING.glob("*.py")), "command_line", "out_folder"):
        sys.modules.pop(module, None)


@pytest.fixture
def smoke(
    load_example: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], tuple[dict[str, Any], str]]:
    """Run an example for a few steps. It returns its metrics and what it printed."""

    def smoke(name: str) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke-test", "--seed", "3", "--out", "run"])
        load_example(name, "__main__")
        assert (tmp_path / "run" / "estimates.png").exists()
        return json.loads((tmp_path / "run" / "metrics.json").read_text()), capsys.readouterr().out

    return smoke
