"""The API pages leave nothing public out, code fits the page, and results are read from their records.

Sphinx itself checks that the pages build and that their examples run.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import io
import json
import pkgutil
import re
import runpy
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pyro_scnf as scnf
from pyro_scnf.terms import Scored, Step

DOCS = Path(__file__).parents[1] / "docs"
TEXTS = [page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.rst"))]
PAGES = "\n".join(TEXTS)
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


@pytest.mark.parametrize("module", sorted(DOCUMENTED_MODULES))
def test_exported_names_are_documented(module: str) -> None:
    """autodoc lists classes and functions of a module by itself, but not constants of another module."""
    page = next(text for text in TEXTS if f".. automodule:: {module}\n" in text)
    by_hand = set(re.findall(r"^\.\. (?:auto)?(?:class|function|data):: (\w+)(?:\(\))?$", page, re.MULTILINE))
    automatic = ":no-members:" not in page.split(f".. automodule:: {module}\n", 1)[1].split("\n\n", 1)[0]
    contents = importlib.import_module(module)
    for name in contents.__all__:
        member = getattr(contents, name)
        listed = automatic and (inspect.isclass(member) or inspect.isfunction(member))
        assert listed or name in by_hand, f"{module}.{name} is on no API page"


# Parts that users reach through a word, a factory or a subclass.
INNER = {
    "Bijection",
    "LocationScalePrior",
    "Moments",
    "CouplingBuilder",
    "SigmoidScale",
    "TanhScale",
    "ClampScale",
}


@pytest.mark.parametrize("package", [scnf.transforms, scnf.flows, scnf.nn, scnf.priors])
def test_package_exports_the_classes_of_its_modules(package: ModuleType) -> None:
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        classes = {name for name in getattr(module, "__all__", ()) if inspect.isclass(getattr(module, name))}
        assert classes - INNER <= set(package.__all__)


# -- what a reader sees ----------------------------------------------------------------------------
WIDTH = 88  # characters of code that the theme shows without scrolling
CODE = r"^(?:\.\. (?:testcode|testoutput|code-block)::|(?!\.\. ).*::$).*\n((?: {4}.*\n|\n)*)"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.rst")), ids=lambda page: page.stem)
def test_code_fits_the_page(page: Path) -> None:
    for block in re.findall(CODE, page.read_text(encoding="utf-8"), re.MULTILINE):
        long = [line.strip() for line in block.splitlines() if len(line.removeprefix("    ")) > WIDTH]
        assert not long


@pytest.mark.parametrize("source", sorted(Path(scnf.__file__).parent.rglob("*.py")), ids=lambda s: s.stem)
def test_examples_in_docstrings_fit_the_page(source: Path) -> None:
    """A docstring is indented on its page as in its source, so its lines have less room."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, documented)]
    for docstring in filter(None, docstrings):
        for example in doctest.DocTestParser().get_examples(docstring):
            code = [f">>> {line}" for line in example.source.splitlines()]
            for line in (*code, *example.want.splitlines()):
                assert example.indent + len(line) <= WIDTH + 2, line


def test_formulas_need_no_network() -> None:
    pytest.importorskip("sphinx")
    conf = runpy.run_path(str(DOCS / "conf.py"))
    files = [DOCS / file for file in conf["html_static_path"]]  # an absolute path stays as it is
    assert conf["mathjax_path"] in [file.name for file in files if file.is_file()]
    assert all((DOCS / "_static" / file).is_file() for file in conf["html_css_files"])


# -- training terms --------------------------------------------------------------------------------
def first_column(page: str, heading: str) -> set[str]:
    """The first column of the first table after ``heading``, without its markup."""
    text = (DOCS / page).read_text(encoding="utf-8").split(heading, 1)[1]
    table = re.split(r"^=+  =+$", text, maxsplit=2, flags=re.MULTILINE)[1]
    return set(re.findall(r'^(?::class:)?`+(?:~pyro_scnf\.terms\.)?"?(\w+)"?`+ ', table, re.MULTILINE))


def test_page_lists_all_that_a_term_sees() -> None:
    assert first_column("own_term.rst", "What a term sees\n") == {f.name for f in fields(Step)}
    computed = {name for name, member in vars(Scored).items() if isinstance(member, cached_property)}
    expected = {f.name for f in fields(Scored)} | computed
    assert first_column("own_term.rst", "Scored rows are a") == expected


def test_pages_list_every_term() -> None:
    assert first_column("training.rst", "Training terms\n---") == set(scnf.TERMS)
    classes = {type(term).__name__ for term in scnf.make_terms(scnf.TERMS.values()).values()}
    assert first_column("maths.rst", "The terms of this package are") == classes


def test_terms_on_command_lines_exist() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.rst"))
    words = " ".join(re.findall(r"--terms ((?:[\w.]+:\S+ ?)+)", pages)).split()
    terms = scnf.make_terms([word for word in words if not word.startswith("my_package.")])
    assert "classification" in terms


# -- the page of results ---------------------------------------------------------------------------
RECORDS = DOCS.parent / "benchmarks" / "results"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    return folder


@pytest.fixture
def page(tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Builds a page with directives from the files in ``records``: its warnings, then its content."""
    application = pytest.importorskip("sphinx.application")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    monkeypatch.setattr(importlib.import_module("results"), "RESULTS", records)

    def build(directives: str) -> str:
        (tmp_path / "images").symlink_to(DOCS / "images")
        (tmp_path / "index.rst").write_text(f"Page\n====\n\n{directives}\n", encoding="utf-8")
        warnings = io.StringIO()
        out, options = tmp_path / "out", {"extensions": ["results"], "exclude_patterns": ["records"]}
        with docutils.docutils_namespace(), docutils.patch_docutils():
            application.Sphinx(
                tmp_path, None, out, out, "pseudoxml", options, status=None, warning=warnings, freshenv=True
            ).build()
        return warnings.getvalue() + (out / "index.pseudoxml").read_text(encoding="utf-8")

    docutils = importlib.import_module("sphinx.util.docutils")
    return build


def copy_record(name: str, folder: Path, new_name: str | None = None, **changes: Any) -> dict[str, Any]:
    record = {**json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8")), **changes}
    (folder / f"{new_name or name}.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def test_every_record_is_shown_on_the_page(page: Callable[[str], str], records: Path) -> None:
    for file in RECORDS.glob("*.json"):
        copy_record(file.stem, records)
    text = page((DOCS / "results.rst").read_text(encoding="utf-8").split("=======\n", 1)[1])
    assert "WARNING" not in text
    for file in RECORDS.glob("*.json"):
        assert text.count(f"benchmarks/results/{file.stem}.json") == 1


def test_accuracy_is_mean_and_deviation_of_the_runs(page: Callable[[str], str], records: Path) -> None:
    figures = copy_record("accuracy_cpu", records)["results"]["digits"]
    text = page(".. results:: accuracy").replace("\N{NO-BREAK SPACE}", " ")
    for figure, digits in (("test_error_pct", 2), ("test_bits_per_dim", 3)):
        values = torch.tensor(figures[figure]["runs"], dtype=torch.float64)
        assert f"{values.mean():.{digits}f} ± {values.std():.{digits}f}" in text
    assert "LabelSpreading (kNN)" in text


def test_each_run_is_followed_by_its_own_baselines(page: Callable[[str], str], records: Path) -> None:
    results = copy_record("recommended_cpu", records)["results"]
    text = page(".. results:: recommended").replace("\N{NO-BREAK SPACE}", " ")
    for figures in results.values():
        values = torch.tensor(figures["baselines_error_pct"]["logistic regression"]["runs"]).double()
        assert f"{values.mean():.2f} ± {values.std():.2f}" in text
    assert text.count("logistic regression") == len(results) > 1


def test_ratios_are_those_of_the_record(page: Callable[[str], str], records: Path) -> None:
    ratios = copy_record("peers_cpu", records)["times_networks_alone"]
    text = page(".. results:: peers")
    assert all(f"{ratio['median']:.2f}" in text for ratio in ratios.values())


def test_another_device_appears_by_its_file(page: Callable[[str], str], records: Path) -> None:
    environment = copy_record("accuracy_cpu", records)["environment"]
    copy_record("accuracy_cpu", records, "accuracy_cuda", environment={**environment, "gpu": "A GPU"})
    text = page(".. results:: accuracy")
    assert "A GPU" in text
    assert environment["processor"] in text


def test_lines_of_a_published_table_are_ours_and_in_brackets_the_paper_s(
    page: Callable[[str], str], records: Path
) -> None:
    ours: dict[str, Any] = {
        "both": {
            "accuracy_pct": {"mean": 98.0, "std": 1.0, "runs": [97.0, 99.0]},
            "minutes": {"mean": 5.0, "std": 0.0, "runs": [5.0, 5.0]},
        },
        "of one seed": {"nll": {"mean": 0.5, "std": 0.0, "runs": [0.5]}},
        "of nobody": {},
    }
    record = {
        "environment": {"processor": "A processor"},
        "paper": {"both": {"accuracy_pct": "99.4 ± 1.1"}, "of one seed": {}, "of nobody": {"ece": "0.82"}},
        "ours": ours,
        "runs": {"both": "Toy(name='moons')"},
        "complete": False,
    }
    (records / "flowgmm_table7_cpu.json").write_text(json.dumps(record), encoding="utf-8")
    text = page(".. results:: flowgmm_table7").replace("\N{NO-BREAK SPACE}", " ")
    assert "WARNING" not in text
    assert "This measurement is not complete." in text
    cells = [
        "".join(entry.split())
        for entry in re.findall(r"<entry>(.*?)(?=<entry>|<row>|<bullet_list)", text, re.S)
    ]
    rows = [
        [cell.removeprefix("<paragraph>").partition("<tbody>")[0] for cell in cells[i : i + 6]]
        for i in range(0, 24, 6)
    ]
    assert rows == [
        ["", "accuracy,%", "NLL,nats", "ECE", "minutes", "seeds"],
        ["both", "98.00±1.41(99.4±1.1)", "", "", "5.0±0.0", "2"],
        ["ofoneseed", "", "0.500", "", "", "1"],
        ["ofnobody", "", "", "(0.82)", "", "notrun"],
    ]


def test_each_data_set_has_a_table_with_its_differences(page: Callable[[str], str], records: Path) -> None:
    def accuracy(*runs: float) -> dict[str, Any]:
        return {"accuracy_pct": {"runs": list(runs)}}

    ours = {
        "flow, moons, 20 labels": accuracy(90.0, 92.0),
        "trees, as is, moons, 20 labels": accuracy(80.0, 81.0),
        "flow, two_blobs, 5 labels": accuracy(70.0),
        "trees, as is, two_blobs, 5 labels": {},
    }
    found = {"mean": -10.5, "interval_95": [-16.0, -5.0], "runs": [-10.0, -11.0]}
    record = {
        "environment": {"processor": "A processor"},
        "paper": {name: {} for name in ours},
        "ours": ours,
        "paired_accuracy": {"trees, as is, moons, 20 labels less flow, moons, 20 labels": found},
    }
    (records / "flowgmm_table1_cpu.json").write_text(json.dumps(record), encoding="utf-8")
    text = page(".. results:: flowgmm_table1").replace("\N{NO-BREAK SPACE}", " ")
    assert "WARNING" not in text
    tables = re.findall(r"<table.*?(?=<table|<bullet_list)", text, re.S)
    first, second = (re.sub(r"(<[^>]*>|\s)+", " ", each) for each in tables)
    heading = "moons, 20 labels accuracy, % accuracy less that of flow, % (95 % interval; seeds) seeds"
    assert heading in first
    assert "flow 91.00 ± 1.41 2 trees, as is 80.50 ± 0.71 -10.50 (-16.00 to -5.00; 2) 2" in first
    assert "two blobs, 5 labels accuracy, % seeds flow 70.00 1 trees, as is not run" in second


def test_runs_that_failed_are_lines_of_a_published_table(page: Callable[[str], str], records: Path) -> None:
    paper = {name: {"error_pct": "1.9", "bits_per_dim": ""} for name in ("one", "two")}
    record = {
        "environment": {"processor": "A processor"},
        "paper": paper,
        "ours": {"one": [], "two": []},
        "failed": {"two": [0]},
    }
    (records / "atanov2019_table3_cpu.json").write_text(json.dumps(record), encoding="utf-8")
    text = re.sub(r"<[^>]*>|\s+", " ", page(".. results:: atanov2019_table3"))
    assert re.search(r"one\s+1.9\s+not run\s+two\s+1.9\s+training failed", text)


def test_counts_of_intervals_stand_beside_those_of_the_wrong_model(
    page: Callable[[str], str], records: Path
) -> None:
    minutes = {"cpu_minutes": {"mean": 2.0, "std": 1.0, "runs": [1.0, 2.0, 3.0]}}
    counts = {"share": [3, 1], "picked": [2]}
    found = {"estimates": counts, "wrong_model": {"share": [0, 2]}, "figures": minutes}
    record = {"environment": {"processor": "A processor"}, "coverage": {"prevalence": found}}
    (records / "coverage_cpu.json").write_text(json.dumps(record), encoding="utf-8")
    text = page(".. results:: coverage").replace("\N{NO-BREAK SPACE}", " ")
    assert "WARNING" not in text
    rows = re.sub(r"<[^>]*>|\s+", " ", text)
    assert re.search(r"prevalence\s*: share\s+3, 1\s+0, 2\s+3\s+2\.0 ± 1\.0", rows)
    assert re.search(r"prevalence\s*: picked\s+2\s+3\s+2\.0 ± 1\.0", rows)


def test_only_records_not_yet_shown_are_other_measurements(page: Callable[[str], str], records: Path) -> None:
    copy_record("peers_cpu", records)
    copy_record("step_time_cpu", records, "something_new_cuda")
    text = page(".. results:: peers\n\n.. results::")
    assert text.count("peers_cpu.json") == text.count("something_new_cuda.json") == 1


def test_missing_record_is_a_message(page: Callable[[str], str]) -> None:
    text = page(".. results:: accuracy")
    assert "There is no measurement yet" in text
    assert "accuracy_DEVICE.json" in text
    assert "python -m benchmarks.all --device DEVICE --only accuracy" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"environment": {}}'])
def test_broken_record_is_named(page: Callable[[str], str], records: Path, content: str) -> None:
    (records / "accuracy_cpu.json").write_text(content, encoding="utf-8")
    assert "accuracy_cpu.json: not a record of a benchmark" in page(".. results:: accuracy")
