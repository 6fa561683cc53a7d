"""Copies, files, dtypes, devices and repeated use: the checks of ``pyro_scnf.testing`` for any module.

Transforms and priors pass them in ``test_conformance.py`` and ``test_priors.py``. Here are the modules around
them: semi-conditional flows, and models with their guides.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pytest
import torch
from cases import GUIDES
from helpers import each, image_flow, perturb, toy_flow
from torch import Tensor, nn

import pyro_scnf as scnf
from pyro_scnf.models.guides import EMGuide
from pyro_scnf.testing import MODULE_CHECKS, ModuleCase


def flow_case(build: Callable[[], scnf.SemiConditionalFlow], shape: tuple[int, ...]) -> ModuleCase:
    def score(flow: scnf.SemiConditionalFlow, x: Tensor) -> Tensor:
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return flow.log_prob(x) + flow.condition(first).log_prob(x)

    return ModuleCase(build, lambda rows: (torch.randn((rows,) + shape),), score)


class Guided(nn.Module):
    """A model and a guide, as one would train them."""

    def __init__(self, guide: str) -> None:
        super().__init__()
        self.model = scnf.SemiSupervisedModel(toy_flow(), "learnable")
        self.guide = GUIDES[guide](self.model)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        # Some guides draw labels. The seed makes the loss a function of the data again.
        pyro.set_rng_seed(1)
        return scnf.elbo(self.model, self.guide)(x, y)[None]


def guide_case(name: str) -> ModuleCase:
    # A GPU draws other labels than a CPU. The model reads which labels are known, and meta tensors hold no
    # values. It is a PyroModule that has run, and Pyro refuses to make such a one part of another.
    draws = ("cuda",) if name in ("em-sample", "em-copy") else ()
    return ModuleCase(
        lambda: Guided(name),
        lambda rows: (torch.randn(rows, 2), torch.arange(rows) % 4 - 1),
        lambda guided, x, y: guided(x, y),
        skip=("meta_device", "becomes_a_pyro_module", *draws),
    )


CASES: dict[str, ModuleCase] = {
    "semi-conditional-flow": flow_case(lambda: toy_flow("flow"), (2,)),
    "semi-conditional-gmm-image": flow_case(image_flow, (1, 4, 4)),
    **{f"guide-{name}": guide_case(name) for name in GUIDES},
}


@each(MODULE_CHECKS, CASES)
def test_lifecycle(name, check):
    MODULE_CHECKS[check](CASES[name])


def test_a_lagged_copy_starts_equal_and_follows():
    guide = EMGuide(scnf.SemiSupervisedModel(toy_flow()), decay=0.5)
    old = {key: value.clone() for key, value in guide.old.module.named_parameters()}
    new = dict(guide.model.named_parameters())
    assert all(torch.equal(old[key], new[key]) for key in new)
    guide.update()  # the first call of an average copies
    perturb(guide.model)
    before = {key: value.clone() for key, value in guide.old.module.named_parameters()}
    guide.update()
    for key, value in guide.old.module.named_parameters():
        assert torch.allclose(value, 0.5 * before[key] + 0.5 * new[key])
        assert not value.requires_grad


@pytest.mark.parametrize("name", GUIDES)
def test_a_lagging_parameter_copy_is_left_out_of_training(name):
    """What an optimiser is given are the parameters of the current model, each once."""
    guided = Guided(name)
    trainable = {id(p) for p in guided.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in guided.model.parameters()}
