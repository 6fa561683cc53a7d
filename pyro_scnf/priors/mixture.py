r"""Mixture priors: one Gaussian or Student-t component for each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from pyro_scnf._copies import Portable
from pyro_scnf._numbers import (
    check_at_least,
    check_flag,
    check_number,
    check_scale,
    check_temperature,
    check_word,
)
from pyro_scnf._shapes import as_event_shape, at_least_single, in_double
from pyro_scnf._warn import warn
from pyro_scnf.distributions import Independent, Transformed
from pyro_scnf.priors.base import ClassConditionalPrior

__all__ = ["GaussianMixturePrior", "StudentTMixturePrior"]

Cast = Callable[[Tensor], Tensor]
"""Changes the precision of a table."""

Means = Literal["auto", "random", "antipodal", "latents"]


class _LocationScalePrior(ClassConditionalPrior):
    """Tables that hold a location and a scale for each class. A label picks from them."""

    loc: Tensor
    log_scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        num_classes: int,
        scale_shape: tuple[int, ...],
        *,
        means: Means,
        separation: float,
        scale: float,
        learn_means: bool,
        learn_scales: bool,
    ) -> None:
        super().__init__(event_shape, num_classes)
        check_word("means", means, get_args(Means))
        check_flag(learn_means=learn_means, learn_scales=learn_scales)
        scale, separation = check_scale("scale", scale), check_scale("separation", separation, zero=True)
        self.means = means
        self._table("loc", self._initial_means(separation), learn_means)
        self._table("log_scale", torch.full(scale_shape, math.log(scale)), learn_scales)

    def condition(self, y: Tensor, temperature: float = 1.0) -> TorchDistributionMixin:
        # PyTorch neither solves triangular systems nor draws Gamma variates in half precision.
        return self._given(self._check(y), check_temperature(temperature), at_least_single)

    def _given(self, y: Tensor, temperature: float, cast: Cast) -> TorchDistributionMixin:
        """:meth:`condition` with tables in another precision, that of ``cast(table)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define _given")

    def _wide_class_log_prob(self, z_f: Tensor) -> Tensor:
        given = self._given(self._labels(z_f), 1.0, in_double)
        return given.log_prob(in_double(z_f)).movedim(0, -1)

    def _table(self, name: str, value: Tensor, learn: bool) -> None:
        """Register ``value`` under ``name``, as a parameter or as a buffer."""
        if learn:
            setattr(self, name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _initial_means(self, separation: float) -> Tensor:
        shape = (self.num_classes,) + tuple(self.event_shape)
        if self.means != "antipodal":
            return separation * torch.randn(shape)
        if self.num_classes != 2:
            raise ValueError(f"means='antipodal' needs 2 classes, got num_classes={self.num_classes}")
        direction = torch.randn(shape[1:])
        direction = separation * direction / direction.norm()
        return torch.stack([direction, -direction])

    def _pick(self, table: Tensor, y: Tensor, event_dim: int) -> Tensor:
        """Entries of ``table`` ``(*S, K, *event)`` for labels ``y``, or their weighted sum for class weights.

        ``S`` is empty unless the table is a ``PyroSample``, and so a random draw itself. The dimensions
        ``S`` then broadcast against the batch dimensions of ``y``.
        """
        if not y.is_floating_point():
            return Vindex(table)[(..., y) + (slice(None),) * event_dim]
        flat = table.flatten(-event_dim) if event_dim else table[..., None]
        picked = (y[..., None] * flat).sum(-2)  # no matmul: under autocast it would round to bfloat16
        event = table.shape[table.dim() - event_dim :]
        return picked.reshape(picked.shape[:-1] + event)

    def _event(self, value: Tensor) -> Tensor:
        """``value`` ``(*batch,)`` with an axis of length 1 for each event dimension."""
        return value.reshape(value.shape + (1,) * len(self.event_shape))

    @torch.no_grad()
    def initialize(self, z_f: Tensor, y: Tensor) -> None:
        """Set means to those of the labelled latents of their class, as ``means`` says.

        ``"latents"`` sets all of them. ``"auto"`` sets learned means of classes that have a labelled row, and
        warns if only some classes have one. Means that an option fixes, or that are a random site, stay.

        :param z_f: latents ``(B, *event_shape)``.
        :param y: their labels ``(B,)``, -1 where unknown.
        :raises ValueError: with ``"latents"``, if a class has no labelled row or the means are a random site;
            for wrong labels.
        """
        y = self._check_rows(z_f, y)
        known = [k for k in range(self.num_classes) if (y == k).any()]
        missing = [k for k in range(self.num_classes) if k not in known]
        if self.means == "latents" and missing:
            raise ValueError(f"means='latents': no labelled example of class {missing} in y")
        if self.means == "latents" and "loc" not in (*self._parameters, *self._buffers):
            raise ValueError("means='latents': loc is a random site, which no data can set; leave means out")
        if self.means != "latents" and not (self.means == "auto" and "loc" in self._parameters):
            return
        if known and missing:
            warn(
                f"means='auto': y has no labelled row of class {missing}, so their means stay random, while "
                "those of the other classes start at their labelled latents. Give initialize a labelled row "
                "of each class; means='random' starts all means alike, without this warning"
            )
        for k in known:
            self.loc[k].copy_(z_f[y == k].mean(0))


class GaussianMixturePrior(_LocationScalePrior):
    r"""One Gaussian for each class, :math:`\mathcal N(z_f \mid \mu_y, \Sigma_y)`.

    Summed over ``y`` the Gaussians form a mixture (GMM).

    :param event_shape: shape of :math:`z_f`.
    :param int num_classes: number of labels K.
    :param covariance: ``"diagonal"`` (a diagonal for each class), ``"shared"`` (one diagonal for all
        classes, as in the SCNF code), ``"isotropic"`` (one scale for each class, as in FlowGMM) or
        ``"full"`` (a Cholesky factor for each class).
    :param means: initial means: ``"random"`` (standard normal times ``separation``), ``"antipodal"``
        (two classes, opposite points of norm ``separation``), ``"latents"`` (random until
        :meth:`initialize` sets them to the class means of labelled latents; it raises if a class has none)
        or ``"auto"``. This is ``"latents"`` for learned means, and ``"random"`` for fixed ones and for
        classes without a labelled row.
    :param float separation: see ``means``.
    :param float scale: initial standard deviation.
    :param bool learn_means: whether means are parameters. Otherwise they are fixed.
    :param bool learn_scales: whether scales are parameters. Otherwise they are fixed.
    :raises ValueError: for an unknown word or a number out of range.

    Reference: Atanov et al., 2019, section 3.4; Izmailov et al., *FlowGMM*, 2020, section 3.
    """

    off_diagonal: Tensor

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        num_classes: int,
        *,
        covariance: Literal["diagonal", "shared", "isotropic", "full"] = "diagonal",
        means: Means = "auto",
        separation: float = 1.0,
        scale: float = 1.0,
        learn_means: bool = True,
        learn_scales: bool = True,
    ) -> None:
        check_at_least(1, num_classes=num_classes)
        event = as_event_shape(event_shape)
        dim = event.numel()
        shapes: dict[str, tuple[int, ...]] = {
            "diagonal": (num_classes, *event),
            "shared": event,
            "isotropic": (num_classes,),
            "full": (num_classes, dim),
        }
        check_word("covariance", covariance, shapes)
        super().__init__(
            event_shape,
            num_classes,
            shapes[covariance],
            means=means,
            separation=separation,
            scale=scale,
            learn_means=learn_means,
            learn_scales=learn_scales,
        )
        self.covariance = covariance
        if covariance == "full":
            self._table("off_diagonal", torch.zeros(num_classes, dim, dim), learn_scales)

    def _given(self, y: Tensor, temperature: float, cast: Cast) -> TorchDistributionMixin:
        event_dim = len(self.event_shape)
        loc = self._pick(cast(self.loc), y, event_dim)
        if self.covariance == "full":
            return self._full(y, loc, temperature, cast)
        if self.covariance == "shared":
            log_scale = cast(self.log_scale)
        elif self.covariance == "isotropic":
            log_scale = self._event(self._pick(cast(self.log_scale), y, 0))
        else:
            log_scale = self._pick(cast(self.log_scale), y, event_dim)
        return Independent(dist.Normal(loc, temperature * log_scale.exp()), event_dim)

    def _full(self, y: Tensor, loc: Tensor, temperature: float, cast: Cast) -> TorchDistributionMixin:
        off_diagonal = self._pick(cast(self.off_diagonal), y, 2).tril(-1)
        diagonal = self._pick(cast(self.log_scale), y, 1).exp()
        scale_tril = temperature * (off_diagonal + torch.diag_embed(diagonal))
        # PyTorch cannot validate a batch of no rows.
        validate = None if loc.numel() else False
        flat = _MultivariateNormal(
            loc.flatten(-len(self.event_shape)), scale_tril=scale_tril, validate_args=validate
        )
        if len(self.event_shape) == 1:
            return flat
        reshape = torch.distributions.ReshapeTransform(flat.event_shape, self.event_shape)
        return Transformed(flat, [reshape])


class _MultivariateNormal(Portable, dist.MultivariateNormal):
    """``MultivariateNormal`` that can be copied at any time."""


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


class StudentTMixturePrior(_LocationScalePrior):
    r"""A product of Student-t distributions for each class.

    Its tails are heavier than those of a Gaussian, so it assigns distant points to a class less surely.

    :param float df: initial degrees of freedom, above 2 so that variances exist. With a million the
        distribution is nearly the Gaussian, which is :class:`GaussianMixturePrior`.
    :param bool learn_df: whether the degrees of freedom are a parameter. Otherwise they are fixed.
    :raises ValueError: for an unknown word or a number out of range.

    The other parameters are those of :class:`GaussianMixturePrior`, with a diagonal scale for each class.

    Reference: Izmailov et al., *FlowGMM*, 2020.
    """

    raw_df: Tensor

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        num_classes: int,
        *,
        df: float = 5.0,
        learn_df: bool = False,
        means: Means = "auto",
        separation: float = 1.0,
        scale: float = 1.0,
        learn_means: bool = True,
        learn_scales: bool = True,
    ) -> None:
        event = as_event_shape(event_shape)
        df = check_number("df", df, above=2, at_most=LARGEST_DF)
        check_flag(learn_df=learn_df)
        super().__init__(
            event_shape,
            num_classes,
            (num_classes, *event),
            means=means,
            separation=separation,
            scale=scale,
            learn_means=learn_means,
            learn_scales=learn_scales,
        )
        self._table("raw_df", torch.tensor(math.log(df - 2.0)), learn_df)

    @property
    def df(self) -> Tensor:
        """Degrees of freedom."""
        return 2.0 + self.raw_df.exp()

    def _given(self, y: Tensor, temperature: float, cast: Cast) -> TorchDistributionMixin:
        event_dim = len(self.event_shape)
        loc = self._pick(cast(self.loc), y, event_dim)
        scale = temperature * self._pick(cast(self.log_scale), y, event_dim).exp()
        return Independent(_StudentT(2.0 + cast(self.raw_df).exp(), loc, scale), event_dim)
