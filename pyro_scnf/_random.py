"""Global random generators: they serve a generator of the user's, and stay as they are."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch

__all__ = ["drawing_from", "import_quietly", "seeded"]


def import_quietly(module: str) -> ModuleType:
    """Import ``module``. Some libraries draw random numbers while they are imported; nobody notices that."""
    if module in sys.modules:
        return importlib.import_module(module)
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        return importlib.import_module(module)
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global generators of the CPU and of ``device``. Afterwards they are as they were before."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        # torch.manual_seed would seed every GPU, those that are not put back included.
        torch.default_generator.manual_seed(seed)
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def drawing_from(generator: torch.Generator | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let what draws from the global generators draw from ``generator`` instead.

    With ``None`` it draws from the global generators.

    :raises ValueError: if ``generator`` is something else.
    """
    if generator is None:
        yield
        return
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator is a {type(generator).__name__}, expected a torch.Generator")
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    with seeded(int(seed), device):
        yield
