"""Check a wheel of the package, and the package as installed from it without any extra.

Usage: check_wheel.py WHEEL, outside the checkout, by the environment that the wheel was installed in.
"""

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import torch

import pyro_scnf as scnf

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
# Libraries that only extras bring. Matplotlib is not one: releases of ArviZ before 1.0 bring it too.
OPTIONAL = ("lightning", "torchmetrics", "sklearn", "tensorboard")


def check_contents(wheel: Path) -> None:
    """The wheel holds the committed files of the package, the licence, and what describes them."""
    tracked = subprocess.check_output(["git", "-C", CHECKOUT, "ls-files", "pyro_scnf"], text=True).split()
    info = f"pyro_scnf-{scnf.__version__}.dist-info"
    with ZipFile(wheel) as file:
        names = set(file.namelist())
        licence = file.read(f"{info}/licenses/LICENSE").decode()
    assert "pyro_scnf/py.typed" in names
    added = ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")
    expected = {*tracked, *(f"{info}/{name}" for name in added)}
    assert names == expected, f"the wheel and the checkout differ in {sorted(names ^ expected)}"
    assert licence == (CHECKOUT / "LICENSE").read_text()


def check_metadata() -> None:
    found = metadata("pyro-scnf")
    assert found["Version"] == scnf.__version__
    assert found["License-Expression"] == PROJECT["license"]
    assert found["Requires-Python"] == PROJECT["requires-python"]
    assert set(found.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert {url.split(", ")[1] for url in found.get_all("Project-URL")} == set(PROJECT["urls"].values())


def check_imports() -> None:
    """Every module imports, or its error names the extra to install."""
    assert not Path(scnf.__file__).is_relative_to(CHECKOUT / "pyro_scnf"), "the checkout was imported"
    present = [name for name in OPTIONAL if find_spec(name)]
    assert present == [], f"the environment holds {present}, which only extras bring"
    extras = set()
    for module in pkgutil.walk_packages(scnf.__path__, "pyro_scnf."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            hint = re.search(r"pip install 'pyro-scnf\[(\w+)\]'$", str(error))
            if hint is None:
                raise
            extras.add(hint[1])
    assert extras == {"train"}, extras


def check_use() -> None:
    """A model learns for one step, scores, and comes back from its file."""
    flow = scnf.SemiConditionalFlow(scnf.flows.glow(2, steps=2, width=8), prior="gmm", num_classes=2)
    model = scnf.SemiSupervisedModel(flow)
    x, y = torch.randn(6, 2), torch.arange(6) % 2
    model.initialize(x)
    scnf.elbo(model)(x, y, x).backward()
    with TemporaryDirectory() as folder, torch.no_grad():
        scnf.save(model, Path(folder) / "model.pt")
        loaded = scnf.load(Path(folder) / "model.pt")
        assert torch.equal(loaded.flow.log_prob(x), flow.log_prob(x))


assert not Path.cwd().is_relative_to(CHECKOUT), "run this outside the checkout"
check_contents(Path(sys.argv[1]))
check_metadata()
check_imports()
check_use()
print(f"pyro-scnf {scnf.__version__} works from its wheel in {Path(scnf.__file__).parent}")
