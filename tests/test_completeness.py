"""The tables in ``cases.py`` leave nothing public out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import get_args, get_type_hints

import pytest
from cases import (
    CONDITIONAL_SOLVED_TRANSFORMS,
    CONDITIONAL_TRANSFORMS,
    GUIDES,
    PRIORS,
    SOLVED_TRANSFORMS,
    TERMS,
    TRANSFORMS,
)

import pyro_scnf as scnf
from pyro_scnf.priors import ClassConditionalPrior
from pyro_scnf.terms import TrainingTerm
from pyro_scnf.testing import Case, PriorCase, TermCase
from pyro_scnf.transforms import SCALES, ConditionalFlowTransform, FlowTransform

UNCONDITIONAL = TRANSFORMS | SOLVED_TRANSFORMS
CONDITIONAL = CONDITIONAL_TRANSFORMS | CONDITIONAL_SOLVED_TRANSFORMS


def public_classes(module: ModuleType, base: type) -> set[type]:
    """Concrete public subclasses of ``base``."""
    members = (getattr(module, name) for name in module.__all__)
    return {member for member in members if inspect.isclass(member) and issubclass(member, base)} - {base}


def parts(table: Mapping[str, Case | PriorCase]) -> set[type]:
    """Types of the built objects and everything in them."""
    return {type(module) for entry in table.values() for module in entry.build().modules()}


def tops(table: Mapping[str, Case | PriorCase | TermCase]) -> set[type]:
    return {type(entry.build()) for entry in table.values()}


def test_every_transform_has_a_case():
    assert public_classes(scnf.transforms, FlowTransform) - tops(UNCONDITIONAL) == set()


def test_every_conditional_transform_has_a_case():
    assert public_classes(scnf.transforms, ConditionalFlowTransform) - tops(CONDITIONAL) == set()


def test_every_conditioner_and_scale_has_a_case_of_both_kinds():
    nets = public_classes(scnf.nn, object) - {scnf.nn.Conditioner}
    wanted = nets | set(SCALES.values())
    assert wanted - parts(UNCONDITIONAL) == set()
    assert wanted - parts(CONDITIONAL) == set()


def test_every_prior_has_a_case():
    assert public_classes(scnf.priors, ClassConditionalPrior) - tops(PRIORS) == set()
    assert set(scnf.PRIORS) <= set(PRIORS)


def test_every_training_term_has_a_case():
    assert public_classes(scnf.terms, TrainingTerm) - tops(TERMS) == set()
    assert set(scnf.TERMS) <= set(TERMS)


@pytest.mark.parametrize(("term", "option"), [("Classification", "targets"), ("Consistency", "kind")])
def test_every_word_of_an_option_of_a_term_has_a_case(term, option):
    hints = get_type_hints(getattr(scnf.terms, term))
    built = (case.build() for case in TERMS.values())
    used = {getattr(member, option) for member in built if type(member).__name__ == term}
    assert used == set(get_args(hints[option]))


def test_weights_of_the_cases_fall_and_rise():
    changes = [member.end - member.start for member in (case.build() for case in TERMS.values())]
    assert min(changes) < 0 < max(changes)


def test_every_guide_has_a_case():
    assert set(scnf.GUIDES) <= set(GUIDES)


@pytest.mark.parametrize("flow", [name for name in scnf.flows.FLOWS if name != "atanov2019_mnist"])
def test_every_flow_has_a_case_of_both_kinds(flow):
    assert any(name.startswith(flow) for name in UNCONDITIONAL)
    takes_context = "context_dim" in inspect.signature(scnf.flows.FLOWS[flow]).parameters
    assert takes_context == any(name.startswith(flow) for name in CONDITIONAL)


def test_small_atanov2019_uses_every_kind_of_layer_of_the_real_one():
    real = {type(module) for module in scnf.flows.atanov2019_mnist().modules()}
    assert real == {type(module) for module in TRANSFORMS["atanov2019-small"].build().modules()}
