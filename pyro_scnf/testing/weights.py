"""Checks of a training term in a loss: its weight, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pyro_scnf.flows import ffjord, realnvp
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.objective import elbo
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.terms import Part, TrainingTerm
from pyro_scnf.testing.case import F64
from pyro_scnf.testing.check import Check, table
from pyro_scnf.testing.compare import gradients, require, require_close, require_equal
from pyro_scnf.testing.steps import TermCase

__all__ = ["WEIGHT_CHECKS"]


# -- its weight ------------------------------------------------------------------------------------------
def linear_in_its_weight(case: TermCase) -> None:
    """With the weight w, the term is w times its nats."""
    step = case.any_step()
    for weight in (0.5, 1.0, 3.0):
        term = replace(case.build(), weight=weight, start=1.0, end=1.0)
        expected = weight * term.nats(step)
        require_close(term(step), expected, case.tolerances.batching, f"the term with the weight {weight}")


def weight_follows_its_schedule(case: TermCase) -> None:
    """The weight goes from ``weight * start`` to ``weight * end`` along half a cosine, and then stays."""
    for start, end, until in ((1.0, 0.25, 1.0), (0.0, 1.5, 0.5)):
        term = replace(case.build(), weight=2.0, start=start, end=end, until=until)
        for done in (0.0, 0.25, 0.5, 0.75, 1.0):
            progress = done * until
            share = end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
            _require_weight(case, term, progress, 2 * share)
        _require_weight(case, term, 1.0, 2 * end)


def _require_weight(case: TermCase, term: TrainingTerm, progress: float, weight: float) -> None:
    step = replace(case.any_step(), progress=progress)
    what = f"the term at progress {progress} ({term})"
    require_close(term(step), weight * term.nats(step), case.tolerances.batching, what)


# -- in a loss ---------------------------------------------------------------------------------------------
def weight_zero_changes_nothing(case: TermCase) -> None:
    """With the weight 0, the loss and its gradients are those without the term, bit for bit."""
    model, arguments, extra = _problem(case)
    evidence = {name: value for name, value in extra.items() if name == "label_log_prior"}
    plain = elbo(model)(*arguments, **evidence)
    objective = elbo(model, terms=[replace(case.build(), weight=0.0)])
    loss = objective(*arguments, **extra)
    require(list(objective.parts) == ["nll"], "with the weight 0, the term is part of the loss")
    require_equal(loss, plain, "loss with the weight 0, against that without the term")
    expected = gradients(model, plain)
    for name, grad in gradients(model, loss).items():
        require_equal(
            grad, expected[name], f"gradient of {name} with the weight 0, against that without the term"
        )


def no_pass_of_the_flow(case: TermCase) -> None:
    """A loss with the term runs the flow once, as without it."""
    model, arguments, extra = _problem(case)
    objective = elbo(model, terms=case.build())
    with _passes() as rows:
        objective(*arguments, **extra)
    require(len(rows) == 1, f"a loss with the term runs the flow {len(rows)} times, expected once")


def _problem(case: TermCase) -> tuple[SemiSupervisedModel, tuple[Tensor, ...], dict[str, Tensor]]:
    """A small model, a batch for it, and the keyword arguments that the term needs."""
    (labelled, unlabelled), k, needs = case.rows, case.num_classes, case.build().needs
    transform = ffjord(2, hidden=(4,)) if "energy" in needs else realnvp(2, couplings=2, width=4, blocks=1)
    flow = SemiConditionalFlow(transform, "gmm", k).to(F64)
    x, other, view = (torch.randn(rows, 2, dtype=F64) for rows in (labelled, unlabelled, unlabelled))
    pairs = torch.randint(labelled + unlabelled, (unlabelled, 2))
    evidence = torch.randn(unlabelled, k, dtype=F64).log_softmax(-1)
    given: dict[str, tuple[Part, Tensor]] = {
        "pairs": ("pairs", pairs),
        "view": ("view", view),
        "label_log_prior": ("evidence", evidence),
    }
    extra = {name: value for name, (part, value) in given.items() if part in needs}
    return SemiSupervisedModel(flow), (x, torch.randint(k, (labelled,)), other), extra


@contextmanager
def _passes() -> Iterator[list[int]]:
    """Collect the number of rows of each pass of any semi-conditional flow."""
    rows: list[int] = []
    usual = SemiConditionalFlow._encode

    def counted(flow: SemiConditionalFlow, xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        rows.append(sum(len(x) for x in xs))
        return usual(flow, xs)

    SemiConditionalFlow._encode = counted  # type: ignore[assignment, method-assign]
    try:
        yield rows
    finally:
        SemiConditionalFlow._encode = usual  # type: ignore[method-assign]


WEIGHT_CHECKS: dict[str, Check[TermCase]] = table(
    Check(linear_in_its_weight),
    Check(weight_follows_its_schedule),
    Check(weight_zero_changes_nothing),
    Check(no_pass_of_the_flow),
)
"""Checks of the weight of a term and of its cost, by name."""
