"""Training terms with one fault each, and the checks that must find it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from helpers import toy_flow
from third_party import Entropy, ViewLikelihood

from pyro_scnf.terms import TrainingTerm
from pyro_scnf.testing import TermCase

TEACHER = toy_flow()


def square(value):
    return value.square()


# -- what it is --------------------------------------------------------------------------------------------
class NeedsNothing(Entropy):
    needs = frozenset()


class NeedsAnUnknownPart(Entropy):
    needs = frozenset({"unlabelled", "neighbours"})


class DetachesWhatItLacks(Entropy):
    detached = frozenset({"view"})


class OneNumberARow(Entropy):
    def nats(self, step):
        return step.unlabelled.log_posterior.max(-1).values


class DoublePrecisionTerm(Entropy):
    """It gives float64 for tables in float32."""

    def nats(self, step):
        return super().nats(step).double()


class HiddenOption(Entropy):
    """Its option is no field, so that a change of it would go unnoticed when a run is resumed."""

    def __init__(self, sharpness=2.0):
        super().__init__()
        object.__setattr__(self, "sharpness", sharpness)

    def nats(self, step):
        return self.sharpness * super().nats(step)


@dataclass(frozen=True)
class FunctionAsOption(Entropy):
    """The ``repr`` of a function has an address."""

    shape: Callable = square

    def nats(self, step):
        return self.shape(super().nats(step).sqrt())


@dataclass(frozen=True)
class OptionMissingInRepr(Entropy):
    def __repr__(self):
        return "OptionMissingInRepr()"


@dataclass(frozen=True)
class DrawsAtTheStart(Entropy):
    """Each object draws a factor of its own."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "factor", 1 + float(torch.rand(())))

    def nats(self, step):
        return self.factor * super().nats(step)


@dataclass(frozen=True)
class HoldsALambda(Entropy):
    """A lambda cannot be pickled."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "shape", lambda value: value)

    def nats(self, step):
        return self.shape(super().nats(step))


class CountsSteps(Entropy):
    """It falls with the number of its calls."""

    def nats(self, step):
        calls = getattr(self, "calls", 0) + 1
        object.__setattr__(self, "calls", calls)
        return super().nats(step) / calls


class ChangesTheTables(Entropy):
    def nats(self, step):
        value = super().nats(step)
        step.unlabelled.given.detach().sub_(1.0)
        return value


class DrawsAtEachCall(Entropy):
    def nats(self, step):
        return super().nats(step) * (1 + torch.rand(()))


# -- what it reads -----------------------------------------------------------------------------------------
class NeedsTooMuch(Entropy):
    """A part that it does not read is computed for it."""

    needs = frozenset({"unlabelled", "view"})


class ReadsWhatIsThere(Entropy):
    """It uses the view that another term needs."""

    def nats(self, step):
        value = super().nats(step)
        return value if step.view is None else value + 0 * step.view.given.sum()


class DetachesInSecret(Entropy):
    def nats(self, step):
        value = super().nats(step)
        return value.detach() + 0 * value


class DetachesNothing(Entropy):
    """It declares that no gradient flows, and one does."""

    detached = frozenset({"unlabelled"})


class ForgetsTheFlow(ViewLikelihood):
    """It lacks the part of the likelihood that all classes share."""

    def nats(self, step):
        rows = step.view
        return -rows.scale * (rows.given + rows.log_prior).logsumexp(-1).sum()


# -- what changes its value --------------------------------------------------------------------------------
class FavoursTheFirstClass(Entropy):
    def nats(self, step):
        return -step.unlabelled.scale * step.unlabelled.log_posterior[:, 0].clamp(min=-1e30).sum()


class FavoursTheFirstRow(Entropy):
    def nats(self, step):
        return super().nats(step) - step.unlabelled.scale * step.unlabelled.log_posterior[0].max()


class EntropyOfTheMean(Entropy):
    """It is no sum over rows, and does not say so."""

    def nats(self, step):
        rows = step.unlabelled
        mean = (rows.log_posterior.logsumexp(0) - math.log(len(rows))).clamp(min=-1e30)
        return -rows.scale * len(rows) * (mean.exp() * mean).sum()


class MeanOverRows(Entropy):
    """It does not grow with the data that the rows stand for."""

    def nats(self, step):
        return super().nats(step) / step.unlabelled.scale


# -- numbers -----------------------------------------------------------------------------------------------
class NoBound(Entropy):
    """For a label of probability 0 it takes 0 times minus infinity."""

    def nats(self, step):
        log_p = step.unlabelled.log_posterior
        return -step.unlabelled.scale * (log_p.exp() * log_p).sum()


class InfiniteGradient(Entropy):
    """The value is finite where labels are impossible, and the gradient is not."""

    def nats(self, step):
        return step.unlabelled.scale * torch.special.entr(step.unlabelled.log_posterior.exp()).sum()


class CommonTermsFirst(Entropy):
    """Thousands of nats that all classes share round away the digits of the posterior."""

    def nats(self, step):
        rows = step.unlabelled
        log_p = (rows.common[:, None] + rows.given + rows.log_prior).log_softmax(-1)
        return -rows.scale * (log_p.exp() * log_p.clamp(min=-1e30)).sum()


# -- its weight --------------------------------------------------------------------------------------------
class SquaredWeight(Entropy):
    def __call__(self, step):
        return self.weight_at(step.progress) * super().__call__(step)


class FallsInALine(Entropy):
    def weight_at(self, progress):
        done = min(1.0, progress / self.until)
        return self.weight * (self.start + (self.end - self.start) * done)


class NeverEnds(Entropy):
    """It forgets that the weight stays after ``until``."""

    def weight_at(self, progress):
        left = 0.5 * (1 + math.cos(math.pi * progress / self.until))
        return self.weight * (self.end + (self.start - self.end) * left)


class NeverZero(Entropy):
    def weight_at(self, progress):
        return max(1e-6, super().weight_at(progress))


class AsksATeacher(Entropy):
    """It runs a flow of its own."""

    def nats(self, step):
        with torch.no_grad():
            teacher = TEACHER.log_prob(torch.zeros(1, 2)).sum()
        return super().nats(step) + 0 * teacher


# -- which checks find what --------------------------------------------------------------------------------
TERMS_FOUND_BY_ONE: dict[type[TrainingTerm], str] = {
    NeedsNothing: "kind",
    NeedsAnUnknownPart: "kind",
    DetachesWhatItLacks: "kind",
    OneNumberARow: "one_number",
    DoublePrecisionTerm: "one_number",
    OptionMissingInRepr: "repr_rebuilds_it",
    HoldsALambda: "copies",
    ReadsWhatIsThere: "needs_are_exact",
    DetachesNothing: "gradient_stops_where_declared",
    ForgetsTheFlow: "response_to_common",
    FavoursTheFirstClass: "renamed_classes",
    MeanOverRows: "scales_with_the_data",
    NoBound: "ruled_out_labels",
    InfiniteGradient: "ruled_out_labels",
    CommonTermsFirst: "float32",
    FallsInALine: "weight_follows_its_schedule",
    NeverEnds: "weight_follows_its_schedule",
    AsksATeacher: "no_pass_of_the_flow",
}
"""The one check that each of these fails."""

TERMS_FOUND_BY_SEVERAL: dict[type[TrainingTerm], set[str]] = {
    HiddenOption: {"repr_rebuilds_it", "linear_in_its_weight"},
    FunctionAsOption: {"repr_rebuilds_it"},
    DrawsAtTheStart: {"repr_rebuilds_it"},
    CountsSteps: {"changes_nothing"},
    ChangesTheTables: {"changes_nothing"},
    DrawsAtEachCall: {"changes_nothing", "copies"},
    NeedsTooMuch: {"needs_are_exact", "gradient_stops_where_declared"},
    EntropyOfTheMean: {"adds_up_over_rows", "ruled_out_labels"},
    DetachesInSecret: {"gradient_stops_where_declared"},
    FavoursTheFirstRow: {"order_of_rows", "adds_up_over_rows"},
    SquaredWeight: {"linear_in_its_weight", "weight_follows_its_schedule"},
    NeverZero: {"weight_zero_changes_nothing", "weight_follows_its_schedule"},
}
"""Checks that must be among those that each of these fails."""


def term_case(cls: type[TrainingTerm]) -> TermCase:
    """What each of them claims to be."""
    return TermCase(cls, common={"view": -1.0} if issubclass(cls, ViewLikelihood) else {})
