"""Setup of the doctests: a fixed seed, an empty parameter store, and the imports that examples leave out."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch

import pyro_scnf


@pytest.fixture(autouse=True)
def _doctest_session(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        doctest_namespace.update(pyro=pyro, torch=torch, pyro_scnf=pyro_scnf)
