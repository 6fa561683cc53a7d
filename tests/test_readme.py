"""The README runs as it stands, is short, and names what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_scnf as scnf

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK_LOOK, *BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(block: str, names: dict[str, Any]) -> None:
    exec(compile(block, "README.md", "exec"), names)


def lines_of_code(block: str) -> int:
    return sum(1 for line in block.splitlines() if line.strip())


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """The names that the README's blocks after the quick look define, run one after the other."""
    pyro.clear_param_store()
    names: dict[str, Any] = {}
    for block in BLOCKS:
        run(block, names)
    return names


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_quick_look_is_five_lines_and_exact() -> None:
    names: dict[str, Any] = {}
    run(QUICK_LOOK, names)
    assert lines_of_code(QUICK_LOOK) == 5
    assert names["x"].shape == (2, 1, 28, 28)
    joint = names["flow"].class_log_prob(names["x"]) - torch.log(torch.tensor(10.0))
    assert torch.allclose(names["log_density"], joint.logsumexp(-1))
    assert torch.allclose(names["class_probs"], joint.softmax(-1), atol=1e-3)


def test_example_finds_the_moons(namespace: dict[str, Any]) -> None:
    error = (namespace["labels"] != namespace["y"]).float().mean()
    assert error < 0.05  # ten labels of a thousand
    assert namespace["log_density"].shape == (1000,)
    assert torch.isfinite(namespace["log_density"]).all()
    assert namespace["points"].shape == (2, 2)


def test_example_is_as_long_as_it_says() -> None:
    block = re.search(r"^## Twenty lines\n+```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert lines_of_code(block[1]) <= 22


def test_prevalence_model_gives_the_exact_marginal(namespace: dict[str, Any]) -> None:
    model, flow, x = namespace["prevalence"], namespace["flow"], namespace["x"][:50]
    share = torch.tensor([0.3, 0.7])
    conditioned = pyro.poutine.condition(model, {"share": share})
    loss = scnf.elbo(conditioned)(x)
    prior = pyro.distributions.Dirichlet(torch.ones(2)).log_prob(share)
    assert torch.allclose(-loss, flow.log_prob(x, share).sum() + prior, rtol=1e-5)


def test_prevalence_model_trains_under_an_autoguide(namespace: dict[str, Any]) -> None:
    pyro.clear_param_store()
    model, x = namespace["prevalence"], namespace["x"][:50]
    guide = AutoNormal(pyro.poutine.block(model, expose=["share"]))
    loss = scnf.elbo(model, guide)(x)
    loss.backward()
    grads = [p.grad for p in guide.parameters()]
    assert grads
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)


def table_words(heading: str) -> set[str]:
    """The quoted words of the first column of the table under ``heading``."""
    rows = README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return set(re.findall(r'^\| `"([a-z-]+)"`', rows, re.MULTILINE))


def test_tables_name_every_prior_and_guide() -> None:
    assert table_words("`prior=`") == set(scnf.PRIORS)
    assert table_words("`make_guide(...)`") == set(scnf.GUIDES)


def test_readme_names_every_training_term() -> None:
    paragraph = next(p for p in README.split("\n\n") if p.startswith("`terms=`"))
    assert set(re.findall(r'`"([a-z]+)"`', paragraph)) == set(scnf.TERMS)


def test_example_prior_specifications_build() -> None:
    prior = scnf.make_prior("gmm:covariance=full,means=latents", (4,), 3)
    assert (prior.covariance, prior.means) == ("full", "latents")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    path = ROOT / target
    assert path.exists()
    if path.suffix == ".png":
        assert path.stat().st_size < 300_000


@pytest.mark.parametrize("name", ["main job", "tests"])
def test_commands_for_ci_are_marked(name: str) -> None:
    block = re.search(rf"^<!-- ci: {name} -->\n```bash\n(.+?)^```$", README, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert block[1].count("\n") == 1  # one command, as the README says
