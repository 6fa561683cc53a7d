"""The API pages leave nothing public out. (That they build, and their examples run, is Sphinx's to say.)"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import pyro_scnf as scnf

API = Path(__file__).parents[1] / "docs" / "api"
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in sorted(API.glob("*.rst")))
DOCUMENTED_MODULES = set(re.findall(r"^\.\. automodule:: (\S+)$", PAGES, re.MULTILINE)) - {"pyro_scnf"}


def in_a_documented_module(name: str) -> bool:
    member = getattr(scnf, name)
    return any(
        getattr(getattr(scnf, module.removeprefix("pyro_scnf."), None), name, None) is member
        for module in DOCUMENTED_MODULES
    )


@pytest.mark.parametrize("name", [n for n in scnf.__all__ if not inspect.ismodule(getattr(scnf, n))])
def test_public_name_is_documented(name: str) -> None:
    by_hand = re.search(rf"^\.\. auto(class|function|data):: {name}$", PAGES, re.MULTILINE)
    assert by_hand or in_a_documented_module(name)


@pytest.mark.parametrize("name", [n for n in scnf.__all__ if inspect.ismodule(getattr(scnf, n))])
def test_public_module_has_a_page(name: str) -> None:
    assert f"pyro_scnf.{name}" in DOCUMENTED_MODULES


# Parts that users reach through a word or a factory, not by class.
INNER = {"CouplingBuilder", "SigmoidScale", "TanhScale", "ClampScale"}


@pytest.mark.parametrize("package", [scnf.transforms, scnf.flows, scnf.nn, scnf.priors])
def test_package_exports_the_classes_of_its_modules(package: ModuleType) -> None:
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        classes = {name for name in module.__all__ if inspect.isclass(getattr(module, name))}
        assert classes - INNER <= set(package.__all__)
