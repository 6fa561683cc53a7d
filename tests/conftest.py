"""Setup of every test: one thread, a fixed seed, an empty parameter store, validation on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

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
