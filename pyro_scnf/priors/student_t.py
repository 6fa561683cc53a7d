r"""A Student-t distribution, or a mixture of them, for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_scnf._checks import validate_args
from pyro_scnf._numbers import check_number, check_word
from pyro_scnf._shapes import as_event_shape, in_double
from pyro_scnf.distributions import Independent
from pyro_scnf.priors.full_covariance import _MultivariateStudentT, reshaped
from pyro_scnf.priors.initial_means import Means
from pyro_scnf.priors.location_scale import Cast, Fit, LocationScalePrior
from pyro_scnf.priors.moments import TINY, log_std

__all__ = ["StudentTMixturePrior"]

LARGEST_DF = 1e8
"""The largest initial degrees of freedom. The normaliser loses its digits above, even in double precision."""


class _StudentT(dist.StudentT):
    """A Student-t distribution whose normaliser is computed in double precision.

    It is the difference of two logarithms of the gamma function. These are millions of nats if df is large,
    and single precision would round their difference away.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        df, y = in_double(self.df), (value - self.loc) / self.scale
        half = 0.5 * (df + 1)
        normaliser = half.lgamma() - (0.5 * df).lgamma() - 0.5 * (math.pi * df).log()
        tail = half.to(y.dtype) * (y.square() / self.df).log1p()
        return normaliser.to(y.dtype) - self.scale.log() - tail


class StudentTMixturePrior(LocationScalePrior):
    r"""A product of Student-t distributions for each class, or a multivariate one, or a mixture of several.

    Its tails are heavier than those of a Gaussian, so it assigns distant points to a class less surely.

    :param covariance: ``"diagonal"``: the numbers of an event are independent, each with a tail of its own.
        ``"full"``: a multivariate distribution with a Cholesky factor for each component. All numbers of an
        event then are far out together.
    :param float df: initial degrees of freedom, above 2 so that variances exist. With a million the
        distribution is nearly the Gaussian, which is :class:`GaussianMixturePrior`.
    :param fit_df: ``"fixed"``, or ``"gradient"``, where the degrees of freedom are a parameter.
    :raises ValueError: for an unknown word, a number out of range, or an option that nothing would use.

    The other parameters are those of :class:`GaussianMixturePrior`. EM uses that a Student-t variate is
    Gaussian given its own precision, and weighs each number, or each event, by the expected precision. Its
    M-steps do not decrease the likelihood, unless ``pooled`` is between 0 and 1.

    References: Izmailov et al., *FlowGMM*, 2020, Appendix J; Peel and McLachlan, *Robust mixture modelling
    using the t distribution*, 2000 (EM).
    """

    raw_df: Tensor

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        num_classes: int,
        *,
        covariance: Literal["diagonal", "full"] = "diagonal",
        df: float = 5.0,
        fit_df: Literal["fixed", "gradient"] = "fixed",
        components: int = 1,
        means: Means = "auto",
        separation: float = 1.0,
        scale: float = 1.0,
        fit_means: Fit | None = None,
        fit_scales: Fit | None = None,
        fit_weights: Fit | None = None,
        learn_means: bool | None = None,
        learn_scales: bool | None = None,
        pooled: float = 0.0,
        em_decay: float | None = None,
    ) -> None:
        df = check_number("df", df, above=2, at_most=LARGEST_DF)
        check_word("fit_df", fit_df, ("fixed", "gradient"))
        check_word("covariance", covariance, ("diagonal", "full"))
        event = as_event_shape(event_shape)
        super().__init__(
            event_shape,
            num_classes,
            (event.numel(),) if covariance == "full" else tuple(event),
            full=covariance == "full",
            components=components,
            means=means,
            separation=separation,
            scale=scale,
            fit_means=fit_means,
            fit_scales=fit_scales,
            fit_weights=fit_weights,
            learn_means=learn_means,
            learn_scales=learn_scales,
            pooled=pooled,
            em_decay=em_decay,
        )
        self._table("raw_df", torch.tensor(math.log(df - 2.0)), fit_df)

    @property
    def df(self) -> Tensor:
        """Degrees of freedom."""
        return 2.0 + self.raw_df.exp()

    def _component(self, y: Tensor, temperature: float, cast: Cast) -> TorchDistributionMixin:
        event_dim, df = len(self.event_shape), 2.0 + cast(self.raw_df).exp()
        if df.dim():  # a random site, drawn many times
            df = df.reshape(df.shape + (1,) * len(self._inner))
        loc = self._of_component(cast(self.loc), y, event_dim)
        validate = validate_args(loc)
        if self.full:
            flat = loc.flatten(-event_dim)
            tril = temperature * self._cholesky(y, cast)
            return reshaped(_MultivariateStudentT(df, flat, tril, validate_args=validate), self.event_shape)
        scale = temperature * self._of_component(cast(self.log_scale), y, event_dim).exp()
        return Independent(_StudentT(self._event(df), loc, scale, validate_args=validate), event_dim)

    def _precisions(self, z: Tensor) -> Tensor:
        df, loc = in_double(self.df), in_double(self.loc).reshape(self.moments.mean.shape)
        away = z[:, None] - loc
        if self.full:
            scaled = torch.linalg.solve_triangular(self._wide_factors(), away.permute(1, 2, 0), upper=False)
            return (df + z.shape[1]) / (df + scaled.square().sum(1).T)
        log_scale = in_double(self.log_scale).reshape(loc.shape)
        return (df + 1) / (df + (away * (-log_scale).exp()).square())

    def _covariances(self) -> Tensor:
        if self.full:
            return super()._covariances()
        return (2 * in_double(self.log_scale)).exp().reshape(self.moments.mean.shape)

    def _maximise_scales(self, scatter: Tensor, live: Tensor) -> None:
        if self.full:
            super()._maximise_scales(scatter, live)
        else:
            each = scatter / in_double(self.moments.count).clamp(min=TINY)[:, None]
            self._replace("log_scale", log_std(each), live)
