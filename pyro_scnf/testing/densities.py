"""Checks of the densities of a prior and of its draws."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_scnf.testing.case import PARAMETERS, PriorCase, Trait
from pyro_scnf.testing.check import Check, table
from pyro_scnf.testing.compare import require, require_equal, require_shape
from pyro_scnf.testing.proposal import Proposal

__all__ = ["DENSITY_CHECKS"]

DRAWS = 40_000


def density_integrates_to_one(case: PriorCase) -> None:
    """The density integrates to one. The integral is estimated with draws of a :class:`Proposal`.

    The check passes where the estimate is too noisy to tell.
    """
    prior = case.member().requires_grad_(False)
    for k in range(case.num_classes):
        d = prior.condition(torch.tensor(k))
        weights = _weighted_draws(d, _proposal(d))[1]
        if _tells(weights):
            mean, error = weights.mean().item(), _standard_error(weights).item()
            require(
                abs(mean - 1) < 5 * error,
                f"integral of the density of class {k}: {mean:.4f}, with a standard error of {error:.2g}, "
                "expected 1",
            )


def draws_follow_the_density(case: PriorCase) -> None:
    """Draws come from the density that scores them, at temperature 1 and 0.5.

    Two tests. The density q of a :class:`Proposal` exceeds 100 times the density p at no more than 1% of
    the draws of p, since the mean of q(z) / p(z) over them is at most 1. And p gives the regions below the
    quantiles of the draws, by component and by log p, the probability that they have among the draws. The
    second test passes where its estimate is too noisy to tell.
    """
    prior = case.member().requires_grad_(False)
    for k, at in [*((k, 1.0) for k in range(case.num_classes)), (0, 0.5)]:
        d = prior.condition(torch.tensor(k), at)
        proposal, where = _proposal(d), f"class {k} at temperature {at}"
        draws = d.sample((DRAWS,))
        log_p = d.log_prob(draws)
        rare = (log_p < proposal.log_prob(draws.flatten(1)) - math.log(100)).double().mean().item()
        require(
            rare < 0.0125,
            f"draws of {where}: {rare:.1%} lie where the density is far too low, expected at most 1%",
        )
        z, weights = _weighted_draws(d, proposal)
        if not _tells(weights):
            continue
        weights = weights / weights.mean()
        values = torch.cat([draws.flatten(1), log_p[:, None]], 1)
        names = [*(f"component {i}" for i in range(values.shape[1] - 1)), "log_prob"]
        others = torch.cat([z, d.log_prob(z.reshape(draws.shape))[:, None]], 1)
        for level in (0.1, 0.3, 0.5, 0.7, 0.9):
            below = others < values.quantile(level, 0)
            parts = weights[:, None] * (below.double() - level)
            error = (_standard_error(parts).square() + level * (1 - level) / DRAWS).sqrt()
            off = parts.mean(0).abs() / error
            i = int(off.argmax())
            require(
                off[i] < 5,
                f"draws of {where}: {level:.0%} have {names[i]} below its {level:.0%} quantile, by the "
                f"density {parts.mean(0)[i] + level:.1%} do, with a standard error of {error[i]:.1%}",
            )


def _proposal(d: TorchDistributionMixin) -> Proposal:
    """A proposal fitted to draws of ``d``."""
    return Proposal(d.sample((DRAWS,)).flatten(1))


def _weighted_draws(d: TorchDistributionMixin, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """Draws of the proposal q, and their weights p / q for the density p of ``d``."""
    z = proposal.sample(DRAWS)
    log_p = d.log_prob(z.reshape((-1,) + d.event_shape))
    weights = (log_p - proposal.log_prob(z)).exp()
    require(torch.isfinite(weights).all(), "log_prob is NaN, or far too large, at some values")
    return z, weights


def _standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean of rows."""
    return values.std(0) / len(values) ** 0.5


def _tells(weights: Tensor) -> bool:
    """Whether the standard error of the mean is below a twentieth of the mean."""
    return bool(_standard_error(weights) < 0.05 * weights.mean())


def temperature(case: PriorCase) -> None:
    """Draws lie closer together at a low temperature. Temperature 1 is the default.

    The temperature is a factor on the scale of the noise. Near 0 the draws of a class collapse to a point,
    or to one point for each mode of the class. So the check compares the median distance of neighbours
    among the sorted draws, for each component. The distance between modes does not count.
    """
    prior, y = case.member().requires_grad_(False), torch.zeros(DRAWS // 10, dtype=torch.long)

    def draw(temperature: float | None = None) -> Tensor:
        torch.manual_seed(0)
        given = prior.condition(y) if temperature is None else prior.condition(y, temperature)
        return given.sample()

    def gaps(draws: Tensor) -> Tensor:
        return draws.sort(0).values.diff(dim=0).median(0).values

    warm, cold = draw(), draw(1e-9)
    require_equal(draw(1.0), warm, "draws at temperature 1.0, against those without a temperature")
    ratio = (gaps(cold) / gaps(warm)).max().item()
    require(
        ratio < 1e-6,
        f"neighbouring draws at temperature 1e-09 lie {ratio:.3g} times as far apart as at 1",
    )


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
