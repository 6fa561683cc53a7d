"""Checks of a prior that depends on covariates: what these do, and how their batch meets that of labels."""

from __future__ import annotations

from dataclasses import replace

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_scnf.priors import ClassConditionalPrior
from pyro_scnf.testing.case import F64, PriorCase, Trait
from pyro_scnf.testing.check import Check, table
from pyro_scnf.testing.compare import require, require_close, require_shape

__all__ = ["COVARIATE_CHECKS", "at_covariates"]


class AtCovariates(ClassConditionalPrior):
    """A prior given one vector of covariates: a prior of labels alone, for the checks of such."""

    vector: Tensor

    def __init__(self, prior: ClassConditionalPrior) -> None:
        super().__init__(prior.event_shape, prior.num_classes)
        self.prior = prior
        self.register_buffer("vector", torch.linspace(0.5, 1.5, prior.covariates))

    def condition(
        self, y: Tensor, temperature: float = 1.0, covariates: Tensor | None = None
    ) -> TorchDistributionMixin:
        self.check_covariates(covariates)
        return self.prior.condition(y, temperature, **self.prior.check_covariates(self.vector))

    def initialize(self, z_f: Tensor, y: Tensor, covariates: Tensor | None = None) -> None:
        self.check_covariates(covariates)
        rows = self.vector.expand(len(z_f), -1)
        self.prior.initialize(z_f, y, **self.prior.check_covariates(rows, len(z_f)))


def at_covariates(case: PriorCase) -> PriorCase:
    """The case of the prior given one vector of covariates; the same prior if it takes none."""

    def build() -> ClassConditionalPrior:
        prior = case.build()
        return AtCovariates(prior) if getattr(prior, "covariates", 0) else prior

    return replace(case, build=build)


def _covariates(prior: ClassConditionalPrior, *batch: int) -> Tensor:
    return torch.randn(*batch, prior.covariates, dtype=F64)


def covariates_broadcast(case: PriorCase) -> None:
    """Covariates of each row, and several draws of them, give what each row and label gives alone."""
    prior, z, k = case.member(), case.latents((4,)), case.num_classes
    for batch in ((4,), (2, 4), (2, 1)):
        c, where = _covariates(prior, *batch), f"for latents of batch (4,) and covariates of batch {batch}"
        scores = prior.class_log_prob(z, c)
        out = torch.broadcast_shapes((4,), batch)
        require_shape(scores, (*out, k), f"class_log_prob {where}")
        labels = torch.arange(k).reshape((k,) + (1,) * len(out))
        d = prior.condition(labels, 1.0, **prior.check_covariates(c))
        expected = torch.broadcast_shapes(labels.shape, batch)
        require(d.batch_shape == expected, f"the batch_shape is {tuple(d.batch_shape)} {where}, K labels")
        require_shape(d.sample(), expected + case.event_shape, f"a draw {where}, K labels")
        together = d.log_prob(z).movedim(0, -1)
        rows, latents = (t.expand(*out, *t.shape[-1:]) for t in (c, z.flatten(1)))
        for index in torch.cartesian_prod(*map(torch.arange, (*out, k))).tolist():
            *i, label = index
            given = prior.check_covariates(rows[tuple(i)])
            alone = prior.condition(torch.tensor(label), 1.0, **given)
            one = alone.log_prob(latents[tuple(i)].reshape(case.event_shape))
            for name, value in (("class_log_prob", scores), ("log_prob", together)):
                require_close(
                    value[tuple(index)], one, case.tolerances.batching, f"{name} {where}, against one alone"
                )


def covariates_matter(case: PriorCase) -> None:
    """The density depends on the covariates."""
    prior, z = case.member(), case.latents((4,))
    first, second = prior.class_log_prob(z, _covariates(prior, 2, 1))
    difference = (first - second).abs().max().item()
    require(difference > 1e-4, f"log_prob under two covariates differs by no more than {difference:.3g}")


def covariates_learn(case: PriorCase) -> None:
    """The density gives covariates a gradient. One that is latent learns from it."""
    prior = case.member()
    c = _covariates(prior, 4).requires_grad_()
    score = prior.class_log_prob(case.latents((4,)), c).logsumexp(-1).sum()
    (gradient,) = torch.autograd.grad(score, c, allow_unused=True)
    require(gradient is not None, "the covariates get no gradient")
    require(torch.isfinite(gradient).all(), "the gradient of the covariates is not finite")
    require((gradient.abs().sum(-1) > 0).all(), "the gradient of the covariates is zero")


COVARIATES: frozenset[Trait] = frozenset({"covariates"})
COVARIATE_CHECKS: dict[str, Check[PriorCase]] = table(
    Check(covariates_broadcast, COVARIATES),
    Check(covariates_matter, COVARIATES),
    Check(covariates_learn, COVARIATES),
)
"""Checks of priors that take covariates, by name. Those of priors include them."""
