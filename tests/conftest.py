"""What every test starts from: one thread, a fixed seed, an empty parameter store, validation on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pyro
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# Time limits per example say more about the machine than about the code.
settings.register_profile("suite", deadline=None, max_examples=10, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def fresh_pyro(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed from the test's own name, so that a test gives the same figures alone and in the suite."""
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(zlib.crc32(request.node.name.encode()))
    yield
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()
