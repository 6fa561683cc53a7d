"""Checks of the densities of a prior and of its draws."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scnf.testing.case import PARAMETERS, PriorCase, Trait
from pyro_scnf.testing.check import Check, table
from pyro_scnf.testing.compare import require, require_equal, require_shape

__all__ = ["DENSITY_CHECKS"]

DRAWS = 40_000


def density_integrates_to_one(case: PriorCase) -> None:
    """The density integrates to one. The integral is estimated with draws of a wide Student-t."""
    prior = case.member().requires_grad_(False)
    for k in range(case.num_classes):
        d = prior.condition(torch.tensor(k))
        loc, scale = _moments(d.sample((DRAWS,)).flatten(1))
        wide = dist.MultivariateStudentT(loc.new_tensor(4.0), loc, 1.2 * scale)
        z = wide.sample((DRAWS,))
        weights = (d.log_prob(z.reshape((-1,) + case.event_shape)) - wide.log_prob(z)).exp()
        _require_mean_one(weights, f"integral of the density of class {k}")


def draws_follow_the_density(case: PriorCase) -> None:
    """Draws come from the density that scores them, at temperature 1 and 0.5.

    The mean of q(z) / p(z) over draws z of p is 1, for any density q that is narrower than p.
    """
    prior = case.member().requires_grad_(False)
    for k, at in [*((k, 1.0) for k in range(case.num_classes)), (0, 0.5)]:
        d = prior.condition(torch.tensor(k), at)
        z = d.sample((DRAWS,))
        loc, scale = _moments(z.flatten(1))
        narrow = dist.MultivariateNormal(loc, scale_tril=0.7 * scale)
        weights = (narrow.log_prob(z.flatten(1)) - d.log_prob(z)).exp()
        _require_mean_one(weights, f"mean of q(z) / p(z) over draws z of class {k} at temperature {at}")


def _moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of rows, and a Cholesky factor of their covariance."""
    return draws.mean(0), torch.linalg.cholesky(torch.cov(draws.T).reshape(2 * draws.shape[1:]))


def _require_mean_one(weights: Tensor, what: str) -> None:
    """Raise unless the mean is 1 within five standard errors, and the standard error is below 0.05."""
    mean, error = weights.mean().item(), (weights.std() / len(weights) ** 0.5).item()
    require(error < 0.05, f"{what}: its standard error is {error:.3g}, too large to tell")
    require(
        abs(mean - 1) < 5 * error, f"{what}: {mean:.4f}, with a standard error of {error:.2g}, expected 1"
    )


def temperature(case: PriorCase) -> None:
    """Draws spread less at a lower temperature, and hardly at all near 0. Temperature 1 is the default."""
    prior, y = case.member().requires_grad_(False), torch.zeros(DRAWS // 10, dtype=torch.long)

    def draw(**options: float) -> Tensor:
        torch.manual_seed(0)
        return prior.condition(y, **options).sample()

    warm = draw()
    require_equal(
        draw(temperature=1.0), warm, "draws at temperature 1.0, against those without a temperature"
    )
    for at, factor in ((0.25, 0.9), (1e-9, 1e-6)):
        ratio = (draw(temperature=at).std(0) / warm.std(0)).max().item()
        require(ratio < factor, f"draws at temperature {at} spread {ratio:.3g} times as widely as at 1")


def draws_with_gradients(case: PriorCase) -> None:
    """``rsample``, if the distribution has it, gives parameters a gradient. ``sample`` gives none."""
    prior, y = case.member(), torch.arange(2) % case.num_classes
    require(not prior.condition(y).sample().requires_grad, "sample() requires a gradient")
    d = prior.condition(y)
    if d.has_rsample:
        draws = d.rsample((2,))
        require_shape(draws, (2, 2) + case.event_shape, "two draws by rsample for two labels")
        draws.sum().backward()
        require(
            any(p.grad is not None for p in prior.parameters()), "rsample() gives no parameter a gradient"
        )


SMALL: frozenset[Trait] = frozenset({"small"})
DENSITY_CHECKS: dict[str, Check[PriorCase]] = table(
    Check(density_integrates_to_one, SMALL),
    Check(draws_follow_the_density, SMALL),
    Check(temperature),
    Check(draws_with_gradients, PARAMETERS),
)
"""Checks of densities and draws, by name. Those of priors include them."""
