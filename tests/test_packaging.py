"""What a user has to install: the declared dependencies, and an extra for each optional capability."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sources import PACKAGE, ROOT, imported_modules, required_modules

import pyro_scnf as scnf
from pyro_scnf._extras import require

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = sorted(PACKAGE.rglob("*.py"))
REQUIRED = sorted({call for path in MODULES for call in required_modules(path)})
OPTIONAL = sorted({module.split(".")[0] for module, _ in REQUIRED})
# Core dependencies too, but slow to import: the package imports them where it uses them.
LATE = ["arviz", "torchvision", "xarray"]
# The examples take embeddings from files, so they run without the encoders and their weights.
ENCODERS = ("text", "vision")


def distributions(requirements: list[str]) -> set[str]:
    """Names of what ``requirements`` bring directly; an extra of this package counts as its contents."""
    found = set()
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                found |= distributions(EXTRAS[extra])
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def owners(module: str) -> set[str]:
    """The installed distributions that ``module`` comes from."""
    return {canonicalize_name(owner) for owner in packages_distributions()[module.split(".")[0]]}


def run(code: str) -> str:
    """What a fresh interpreter prints for ``code``."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("module", "extra"), REQUIRED)
def test_the_extra_that_an_error_names_brings_the_module(module, extra):
    assert extra in EXTRAS
    if extra in ENCODERS and module.split(".")[0] not in packages_distributions():
        pytest.skip(f"{module} is not installed: its weights are large")
    assert owners(module) & distributions(EXTRAS[extra])


def test_the_examples_have_every_capability():
    assert {extra for _, extra in REQUIRED} - {"tensorboard", *ENCODERS} == {
        extra for line in EXTRAS["examples"] for extra in Requirement(line).extras
    }


def test_the_imports_of_the_package_are_its_dependencies():
    """Each import at run time is declared, and each declared dependency is imported."""
    imported = {module.split(".")[0] for path in MODULES for module in imported_modules(path)}
    third_party = imported - sys.stdlib_module_names - {"pyro_scnf"}
    brought = {module: owners(module) & distributions(PROJECT["dependencies"]) for module in third_party}
    assert [module for module, by in brought.items() if not by] == []
    assert set().union(*brought.values()) == distributions(PROJECT["dependencies"])


def test_an_import_loads_no_optional_library():
    code = f"import sys, pyro_scnf; print(sorted(set({OPTIONAL + LATE}) & set(sys.modules)))"
    assert run(code).strip() == "[]"


def test_a_flow_trains_scores_and_loads_without_optional_libraries(tmp_path):
    code = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL + LATE}))  # importing one of them now raises ImportError
import torch
import pyro_scnf as scnf

flow = scnf.SemiConditionalFlow(scnf.flows.glow(2, steps=2, width=8), prior="flow", num_classes=2)
model = scnf.SemiSupervisedModel(flow)
x, y = torch.randn(6, 2), torch.arange(6) % 2
model.initialize(x)
scnf.elbo(model)(x, y, x).backward()
path = {str(tmp_path / "model.pt")!r}
scnf.save(model, path)
with torch.no_grad():
    print(torch.equal(scnf.load(path).flow.log_prob(x), flow.log_prob(x)))
"""
    assert run(code).strip() == "True"


@pytest.mark.parametrize(("module", "extra"), REQUIRED)
def test_a_missing_library_is_named_with_its_extra(module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    hint = f"{module} is needed here; install it with: pip install 'pyro-scnf[{extra}]'"
    with pytest.raises(ImportError, match=f"^{re.escape(hint)}$"):
        require(module, extra)


def test_one_version_everywhere():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert cited is not None
    assert {scnf.__version__, version("pyro-scnf")} == {cited[1]}


def test_a_first_use_of_an_optional_library_leaves_the_random_generators():
    """scikit-learn and Lightning draw numbers while they are imported."""
    code = (
        "import random, numpy, pyro_scnf\n"
        "def state(): return random.getstate(), numpy.random.get_state()[1].tolist()\n"
        "before = state(); pyro_scnf.datasets.toy('moons'); print(state() == before)\n"
        "before = state(); pyro_scnf.training.fit; print(state() == before)"
    )
    assert run(code).split() == ["True", "True"]
