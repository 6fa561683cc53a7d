"""Checks of a class-conditional prior: labels, densities, draws, enumeration."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from functools import partial

import torch
from pyro.distributions.conditional import ConditionalDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_scnf._checks import UNLABELLED
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.objective import elbo
from pyro_scnf.priors import ClassConditionalPrior, PriorSpec, make_prior
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.testing.case import DEFAULT, F64, PARAMETERS, ModuleCase, PriorCase, Tolerances, Trait
from pyro_scnf.testing.check import Check, run_all, table
from pyro_scnf.testing.compare import (
    gradient_error,
    gradients,
    require,
    require_close,
    require_equal,
    require_gradients,
    require_shape,
)
from pyro_scnf.testing.covariates import COVARIATE_CHECKS, at_covariates
from pyro_scnf.testing.densities import DENSITY_CHECKS
from pyro_scnf.testing.modules import MODULE_CHECKS
from pyro_scnf.transforms import ActNorm

__all__ = ["PRIOR_CHECKS", "check_prior"]


# -- what it is, and shapes ----------------------------------------------------------------------------
def kind(case: PriorCase) -> None:
    """It is a prior of this package and of Pyro, with the shape and classes that the case states."""
    prior = case.build()
    require(isinstance(prior, ClassConditionalPrior), f"{type(prior).__name__} is no ClassConditionalPrior")
    require(isinstance(prior, ConditionalDistribution), "Pyro does not take it for a ConditionalDistribution")
    shape = tuple(prior.event_shape)
    require(shape == case.event_shape, f"event_shape is {shape}, expected {case.event_shape}")
    require(
        prior.num_classes == case.num_classes,
        f"num_classes is {prior.num_classes}, expected {case.num_classes}",
    )
    d = prior.condition(torch.tensor(0))
    require(
        isinstance(d, TorchDistributionMixin),
        f"condition(y) returns a {type(d).__module__}.{type(d).__name__}, not a distribution of Pyro's",
    )


def batch_shapes(case: PriorCase) -> None:
    """The distribution, its draws and its scores have the batch shape of the labels, also if enumerated."""
    prior, k = case.member(), case.num_classes
    for y in (
        torch.tensor(k - 1),
        torch.arange(3) % k,
        torch.arange(k)[:, None],
        torch.arange(k)[:, None, None],
    ):
        d, where = prior.condition(y), f"for labels of shape {tuple(y.shape)}"
        require(d.batch_shape == y.shape, f"the batch_shape is {tuple(d.batch_shape)} {where}")
        require(d.event_shape == case.event_shape, f"the event_shape is {tuple(d.event_shape)} {where}")
        draw = d.sample()
        require_shape(draw, y.shape + case.event_shape, f"a draw {where}")
        require_shape(d.sample((2,)), (2,) + y.shape + case.event_shape, f"two draws {where}")
        score = d.log_prob(draw)
        require_shape(score, y.shape, f"log_prob {where}")
        require(
            score.dtype == draw.dtype == F64, f"in float64, a draw has {draw.dtype}, its score {score.dtype}"
        )
        require(torch.isfinite(score).all(), f"the log_prob of its own draw is not finite {where}")


def integer_labels(case: PriorCase) -> None:
    """Labels in int32 give the same density as labels in int64."""
    prior, z, y = case.member(), case.latents((3,)), torch.arange(3) % case.num_classes
    expected = prior.condition(y).log_prob(z)
    require_equal(prior.condition(y.to(torch.int32)).log_prob(z), expected, "log_prob for labels in int32")


# -- labels --------------------------------------------------------------------------------------------
def enumerated_labels(case: PriorCase) -> None:
    """Labels of shape ``(K, 1)`` score latents of batch ``(B,)`` as a loop over both does."""
    prior, z = case.member(), case.latents((5,))
    together = prior.condition(torch.arange(case.num_classes)[:, None]).log_prob(z)
    require_shape(together, (case.num_classes, 5), "log_prob of 5 latents under K enumerated labels")
    for k in range(case.num_classes):
        alone = torch.stack([prior.condition(torch.tensor(k)).log_prob(row) for row in z])
        require_close(
            together[k],
            alone,
            case.tolerances.batching,
            f"log_prob under enumerated labels, class {k}, against a loop",
        )


def class_log_prob(case: PriorCase) -> None:
    """``class_log_prob`` agrees with ``condition(k)`` for every class k, in several batches."""
    prior = case.member()
    for batch in ((), (4,), (2, 3)):
        z = case.latents(batch)
        out = prior.class_log_prob(z)
        require_shape(out, batch + (case.num_classes,), f"class_log_prob of latents of batch {batch}")
        for k in range(case.num_classes):
            require_close(
                out[..., k],
                prior.condition(torch.full(batch, k)).log_prob(z),
                case.tolerances.batching,
                f"class_log_prob of class {k}, against condition({k})",
            )


def label_matters(case: PriorCase) -> None:
    """The density depends on the label."""
    prior, z = case.member(), case.latents((8,))
    first, *others = [prior.condition(torch.full((8,), k)).log_prob(z) for k in range(case.num_classes)]
    for k, other in enumerate(others, 1):
        difference = (other - first).abs().max().item()
        require(
            difference > 1e-4, f"log_prob under classes 0 and {k} differs by no more than {difference:.3g}"
        )


def one_hot_labels(case: PriorCase) -> None:
    """One-hot class weights give the same density as the label."""
    prior, y = case.member(), torch.arange(case.num_classes)
    z, weights = case.latents((case.num_classes,)), one_hot(torch.arange(case.num_classes)).to(F64)
    d = prior.condition(weights)
    require(d.batch_shape == y.shape, f"for one-hot labels the batch_shape is {tuple(d.batch_shape)}")
    for extra in (False, True):
        weighted, labelled = (weights[:, None], y[:, None]) if extra else (weights, y)
        require_close(
            prior.condition(weighted).log_prob(z),
            prior.condition(labelled).log_prob(z),
            case.tolerances.batching,
            f"log_prob for one-hot labels of shape {tuple(weighted.shape)}, against the labels",
        )


def relaxed_labels(case: PriorCase) -> None:
    """The density for class weights is continuous in the weights and gives them a gradient."""
    prior, z, k = case.member(), case.latents((5,)), case.num_classes
    logits = torch.randn(5, k, dtype=F64, requires_grad=True)
    score = prior.condition(logits.softmax(-1)).log_prob(z)
    require_shape(score, (5,), "log_prob for class weights")
    (gradient,) = torch.autograd.grad(score.sum(), logits)
    require((gradient.abs().sum(-1) > 0).all(), "the gradient of the class weights is zero")
    y = torch.zeros(5, dtype=torch.long)
    nearly = 1e-7 / k + (1 - 1e-7) * one_hot(y, k).to(F64)
    expected = prior.condition(y).log_prob(z)
    require_close(
        prior.condition(nearly).log_prob(z), expected, 1e-4, "log_prob for weights that are nearly one-hot"
    )


def enumeration(case: PriorCase) -> None:
    """Pyro's sum over labels in a ``SemiSupervisedModel`` equals the sum by hand, gradients included."""
    prior, k = case.member(), case.num_classes
    flow = SemiConditionalFlow(ActNorm(case.event_shape).double(), prior)
    model = SemiSupervisedModel(flow, torch.arange(1.0, k + 1.0, dtype=F64))
    x, y = case.latents((6,)), torch.arange(6) % k
    by_class = [flow.condition(torch.full((6,), label)).log_prob(x) for label in range(k)]
    joint = torch.stack(by_class, -1) + model.class_probs.logits.log_softmax(-1)
    known = joint.gather(-1, y[:, None])[:, 0]
    mixed = torch.where(torch.arange(6) % 2 == 0, y, -1)
    for name, labels, terms in (
        ("unlabelled", None, joint.logsumexp(-1)),
        ("partly labelled", mixed, torch.where(mixed >= 0, known, joint.logsumexp(-1))),
    ):
        loss, expected = elbo(model)(x, labels), -terms.sum()
        require_close(
            loss, expected, case.tolerances.log_det, f"loss of {name} data, against the sum by hand"
        )
        error = gradient_error(gradients(model, loss), gradients(model, expected))
        require(
            error <= case.tolerances.log_det,
            f"gradient of the loss of {name} data, against the sum by hand: the error is {error:.3g}, "
            f"the tolerance {case.tolerances.log_det:g}",
        )


# -- gradients and precision ---------------------------------------------------------------------------
def every_parameter_learns(case: PriorCase) -> None:
    """The densities of all classes give every parameter a gradient, finite and not zero."""
    prior = case.member()
    prior.class_log_prob(case.latents((5,))).logsumexp(-1).sum().backward()
    require_gradients(prior)


def gradients_of_batched_labels(case: PriorCase) -> None:
    """The gradient through ``class_log_prob`` is that of one class at a time."""
    prior, z = case.member(), case.latents((4,))
    alone = [prior.condition(torch.full((4,), k)).log_prob(z) for k in range(case.num_classes)]
    error = gradient_error(
        gradients(prior, prior.class_log_prob(z).logsumexp(-1).sum()),
        gradients(prior, torch.stack(alone).logsumexp(0).sum()),
    )
    require(
        error <= case.tolerances.batching,
        f"gradient through class_log_prob, against one class at a time: the error is {error:.3g}, "
        f"the tolerance {case.tolerances.batching:g}",
    )


def autocast(case: PriorCase) -> None:
    """Under autocast to bfloat16, densities stay in float32. Networks may lose digits."""
    prior, z = case.member(torch.float32), case.latents((4,), torch.float32)
    y = torch.arange(4) % case.num_classes
    labels = [y, one_hot(y, case.num_classes).float()] if case.relaxed else [y]
    for label in labels:
        exact = prior.condition(label).log_prob(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = prior.condition(label).log_prob(z)
        require(low.dtype == torch.float32, f"under autocast log_prob has dtype {low.dtype}")
        require_close(low, exact, case.tolerances.autocast, "log_prob under autocast, against that without")


# -- initial values from data --------------------------------------------------------------------------
def initializes(case: PriorCase) -> None:
    """``initialize`` takes labelled and unlabelled (-1) latents, and leaves a finite density that learns."""
    k = case.num_classes
    _initialize(case, torch.arange(8 * (k + 1)) % (k + 1) - 1)


def initializes_without_labels(case: PriorCase) -> None:
    """``initialize`` takes a batch without labels as well, or raises a ``ValueError``."""
    with suppress(ValueError):  # a prior may need labels
        _initialize(case, torch.full((16,), UNLABELLED))


def _initialize(case: PriorCase, y: Tensor) -> None:
    """Initialise a prior with labels ``y``. Raise unless it stays finite and its parameters learn."""
    prior, z = case.member(), 4 + 3 * case.latents((len(y),))
    learnt = [parameter.requires_grad for parameter in prior.parameters()]
    prior.initialize(z, y)
    for name, value in prior.state_dict().items():
        require(torch.isfinite(value).all(), f"after initialize {name} is not finite")
    require(torch.isfinite(prior.class_log_prob(z)).all(), "after initialize class_log_prob is not finite")
    now = [parameter.requires_grad for parameter in prior.parameters()]
    require(now == learnt, "initialize changes requires_grad of a parameter")


def as_module(case: PriorCase) -> ModuleCase:
    """The case for :data:`MODULE_CHECKS`. The score sums the log-densities given a label and under all."""

    def inputs(rows: int) -> tuple[Tensor, ...]:
        return case.latents((rows,), torch.float32), torch.arange(rows) % case.num_classes

    def score(prior: ClassConditionalPrior, z: Tensor, y: Tensor) -> Tensor:
        return prior.condition(y).log_prob(z) + prior.class_log_prob(z).logsumexp(-1)

    return ModuleCase(case.build, inputs, score, tolerances=case.tolerances, perturbation=case.perturbation)


RELAXED: frozenset[Trait] = frozenset({"relaxed"})

LABEL_CHECKS: dict[str, Check[PriorCase]] = {
    **table(
        Check(kind, gate=True),
        Check(batch_shapes),
        Check(integer_labels),
        Check(enumerated_labels),
        Check(class_log_prob),
        Check(label_matters),
        Check(one_hot_labels, RELAXED),
        Check(relaxed_labels, RELAXED),
        Check(enumeration),
        Check(every_parameter_learns, PARAMETERS),
        Check(gradients_of_batched_labels, PARAMETERS),
        Check(autocast),
        Check(initializes),
        Check(initializes_without_labels),
    ),
    **DENSITY_CHECKS,
    **table(*(check.seen_as(as_module) for check in MODULE_CHECKS.values())),
}
"""Checks of a prior of labels alone, by name."""

PRIOR_CHECKS = {
    **table(*(check.seen_as(at_covariates) for check in LABEL_CHECKS.values())),
    **COVARIATE_CHECKS,
}
"""Checks of a prior, by name."""


def check_prior(
    build: PriorCase | PriorSpec,
    event_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    *,
    relaxed: bool = False,
    tolerances: Tolerances = DEFAULT,
    skip: Collection[str] = (),
) -> None:
    """Run every check of :data:`PRIOR_CHECKS` that applies to a prior.

    :param build: a class or function, called with ``event_shape, num_classes``, or another name of a prior
        that :func:`~pyro_scnf.make_prior` takes. Every check makes a fresh prior from it. Or a
        :class:`PriorCase`, which has the other arguments and some more.
    :param event_shape: shape of :math:`z_f`. The Monte Carlo checks run if it holds at most 16 numbers.
    :param int num_classes: number of labels K.
    :param bool relaxed: whether ``condition`` also takes class weights ``(*batch, K)``.
    :param Tolerances tolerances: how closely numbers must agree.
    :param skip: names of checks to leave out.
    :raises ConformanceError: an ``AssertionError`` with the prior, the failed checks and the numbers.
    :raises ValueError: if an argument is missing or stands beside a :class:`PriorCase`, ``build`` is a ready
        prior, or ``skip`` names a check that does not exist.

    >>> check_prior(pyro_scnf.priors.StudentTMixturePrior, (4,), 3)
    >>> check_prior({"name": "gmm", "covariance": "full"}, (4,), 3, relaxed=True)
    """
    __tracebackhide__ = True
    if isinstance(build, PriorCase):
        if (event_shape, num_classes, relaxed, tolerances, skip) != (None, None, False, DEFAULT, ()):
            raise ValueError("build is a PriorCase: give it the other arguments")
    else:
        if event_shape is None or num_classes is None:
            raise ValueError(
                "event_shape or num_classes is missing: give the shape of z_f and the number of labels"
            )
        if isinstance(build, ClassConditionalPrior):
            name = type(build).__name__
            raise ValueError(
                f"build is a ready prior: give its class, or a function that makes a fresh one, such as "
                f"check_prior({name}, {tuple(event_shape)}, {num_classes})"
            )
        make = partial(make_prior, build, event_shape, num_classes)
        build = PriorCase(make, event_shape, num_classes, relaxed, tolerances=tolerances, skip=skip)
    run_all(PRIOR_CHECKS, build)
