r"""What mixture priors share: tables of locations and scales, and how these are trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from pyro_scnf._numbers import (
    check_flag,
    check_number,
    check_scale,
    check_temperature,
    check_whole,
    check_word,
    refuse_unused,
)
from pyro_scnf._shapes import at_least_single, in_double
from pyro_scnf.class_probs import categorical
from pyro_scnf.distributions import Mixture
from pyro_scnf.priors.base import ClassConditionalPrior
from pyro_scnf.priors.full_covariance import cholesky, most_likely_factors
from pyro_scnf.priors.initial_means import (
    BY_LABELS,
    Means,
    around_the_circle,
    check_labelled,
    initial_means,
    means_of_rows,
)
from pyro_scnf.priors.moments import FEWEST, SMALLEST_SCALE, TINY, Moments

__all__ = ["Cast", "Fit", "LocationScalePrior"]

Cast = Callable[[Tensor], Tensor]
"""Changes the precision of a table."""

Fit = Literal["fixed", "gradient", "em"]
"""How a table is trained: not at all, by the optimiser, or by the M-step of EM after each step."""


def _fit(what: str, fit: Fit | None, learn: bool | None) -> Fit:
    """How the table ``what`` is trained, from the options ``fit_...`` and ``learn_...``."""
    if learn is not None:
        check_flag(**{f"learn_{what}": learn})
        if fit is not None:
            raise ValueError(
                f"learn_{what}={learn} and fit_{what}={fit!r}: both say how {what} are trained; give one"
            )
        return "gradient" if learn else "fixed"
    check_word(f"fit_{what}", "gradient" if fit is None else fit, get_args(Fit))
    return "gradient" if fit is None else fit


class LocationScalePrior(ClassConditionalPrior):
    """Tables that hold a location and a scale for each component of each class. A label picks from them.

    With J > 1 components in a class the tables have the shape ``(K, J, ...)``, with one ``(K, ...)``.
    """

    loc: Tensor
    log_scale: Tensor
    off_diagonal: Tensor
    log_weights: Tensor
    begun: Tensor

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        num_classes: int,
        scale_shape: tuple[int, ...],
        *,
        per_component: bool = True,
        full: bool = False,
        components: int,
        means: Means,
        separation: float,
        scale: float,
        fit_means: Fit | None,
        fit_scales: Fit | None,
        fit_weights: Fit | None,
        learn_means: bool | None,
        learn_scales: bool | None,
        pooled: float,
        em_decay: float | None,
    ) -> None:
        super().__init__(event_shape, num_classes)
        self.components = check_whole("components", components, 1)
        self.fits = {
            "fit_means": _fit("means", fit_means, learn_means),
            "fit_scales": _fit("scales", fit_scales, learn_scales),
        }
        if components > 1:
            self.fits["fit_weights"] = _fit("weights", fit_weights, None)
        else:
            refuse_unused("with components=1 there are no weights within a class", fit_weights=fit_weights)
        if not self.fitted_by_em:
            refuse_unused("no option fit_... is 'em'", em_decay=em_decay)
        self.pooled = check_number("pooled", pooled, at_least=0, at_most=1)
        if not full or self.fits["fit_scales"] != "em":
            refuse_unused("it needs covariance='full' and fit_scales='em'", pooled=self.pooled or None)
        self.em_decay = 0.99 if em_decay is None else check_number("em_decay", em_decay, at_least=0, below=1)
        scale, separation = check_scale("scale", scale), check_scale("separation", separation, zero=True)
        self.means, self.separation = means if isinstance(means, str) else "given", separation
        self._inner = (components,) if components > 1 else ()
        self._dims: dict[str, int] = {}
        first = (num_classes, *self._inner)
        loc = initial_means(means, num_classes * components, self.event_shape, separation)
        self._table("loc", loc.reshape(*first, *self.event_shape), self.fits["fit_means"])
        shape = (*first, *scale_shape) if per_component else scale_shape
        self._table("log_scale", torch.full(shape, math.log(scale)), self.fits["fit_scales"])
        self.full = full
        if full:  # the scales are the diagonals of Cholesky factors
            below = torch.zeros(*first, *scale_shape, *scale_shape)
            self._table("off_diagonal", below, self.fits["fit_scales"])
        if components > 1:
            self._table("log_weights", torch.zeros(first), self.fits["fit_weights"])
        if self.fitted_by_em:
            self.moments = Moments(num_classes * components, self.event_shape.numel(), full)
            self.register_buffer("begun", torch.tensor(False))

    # -- distributions -------------------------------------------------------------------------
    def condition(
        self, y: Tensor, temperature: float = 1.0, covariates: Tensor | None = None
    ) -> TorchDistributionMixin:
        self.check_covariates(covariates)
        # PyTorch neither solves triangular systems nor draws Gamma variates in half precision.
        return self._given(self._check(y), check_temperature(temperature), at_least_single)

    def _given(self, y: Tensor, temperature: float, cast: Cast) -> TorchDistributionMixin:
        """:meth:`condition` with tables in another precision, that of ``cast(table)``."""
        return self._mix(self._component(y, temperature, cast), y, cast)

    def _component(self, y: Tensor, temperature: float, cast: Cast) -> TorchDistributionMixin:
        """The distribution of each component: of batch ``(*batch, J)``, or ``(*batch,)`` if J is 1."""
        raise NotImplementedError(f"{type(self).__name__} does not define _component")

    def _mix(self, component: TorchDistributionMixin, y: Tensor, cast: Cast) -> TorchDistributionMixin:
        """The mixture of the components of a class."""
        if not self._inner:
            return component
        weights = self._log_weights(y, cast)
        batch = torch.broadcast_shapes(weights.shape, component.batch_shape)
        if batch != component.batch_shape:  # the weights alone are a random site, drawn many times
            component = component.expand(batch)
        return Mixture(categorical(weights.expand(batch)), component)

    def _log_weights(self, y: Tensor, cast: Cast) -> Tensor:
        """Log-weights of the components in the class ``y``, ``(*batch, J)``."""
        return self._pick(cast(self.log_weights), y, 1).log_softmax(-1)

    def _wide_class_log_prob(self, z_f: Tensor, covariates: Tensor | None = None) -> Tensor:
        given = self._given(self._labels(z_f), 1.0, in_double)
        return given.log_prob(in_double(z_f)).movedim(0, -1)

    # -- tables --------------------------------------------------------------------------------
    def _table(self, name: str, value: Tensor, fit: Fit) -> None:
        """Register ``value`` under ``name``, as a parameter or as a buffer."""
        self._dims[name] = value.dim()
        if fit == "gradient":
            setattr(self, name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    @property
    def _batch_of_tables(self) -> torch.Size:
        tables = ((getattr(self, name, None), dims) for name, dims in self._dims.items())
        return torch.broadcast_shapes(*(t.shape[: t.dim() - dims] for t, dims in tables if t is not None))

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

    def _of_component(self, table: Tensor, y: Tensor, event_dim: int) -> Tensor:
        """:meth:`_pick` from a table with ``event_dim`` dimensions for each component."""
        return self._pick(table, y, event_dim + len(self._inner))

    def _cholesky(self, y: Tensor, cast: Cast) -> Tensor:
        """The Cholesky factors of the components, ``(*batch, D, D)``, if these have full covariances."""
        log_scale = self._of_component(cast(self.log_scale), y, 1)
        return cholesky(log_scale, self._of_component(cast(self.off_diagonal), y, 2))

    def _event(self, value: Tensor) -> Tensor:
        """``value`` ``(*batch,)`` with an axis of length 1 for each event dimension."""
        return value.reshape(value.shape + (1,) * len(self.event_shape))

    # -- initial values ------------------------------------------------------------------------
    def check_start(self, y: Tensor) -> None:
        if self.means in ("latents", "clusters") and not self._has_means:
            raise ValueError(
                f"means={self.means!r}: loc is a random site that no data can set; leave means out"
            )
        check_labelled(self.means, y, self.num_classes)

    @property
    def _has_means(self) -> bool:
        """Whether the means are a table, and not a random site."""
        return "loc" in (*self._parameters, *self._buffers)

    @torch.no_grad()
    def initialize(self, z_f: Tensor, y: Tensor, covariates: Tensor | None = None) -> None:
        """Set means to those of the labelled latents of their class, as ``means`` says.

        ``"latents"`` sets all of them. ``"auto"`` sets learned means of classes that have a labelled row, and
        warns if only some classes have one. ``"clusters"`` sets these, and starts each of the other
        classes amid unlabelled latents that have no labelled one among them. With several components in a
        class, these start at latents of it far from one another. If there are fewer different latents than
        components, the others stay random. ``"circle"`` puts three or more classes in the order of their
        labelled latents around the middle. Other means stay, and so do those that are a random site. The
        statistics of EM start anew.

        :param z_f: latents ``(B, *event_shape)``.
        :param y: their labels ``(B,)``, -1 where unknown.
        :raises ValueError: with ``"latents"``, if a class has no labelled row; with ``"latents"`` or
            ``"clusters"``, if the means are a random site; for wrong labels.
        """
        self.check_covariates(covariates)
        y = self._check_rows(z_f, y)
        self.check_start(y)
        of_labels = self.means in BY_LABELS and (self.means != "auto" or self.fits["fit_means"] != "fixed")
        if self._has_means and (of_labels or self.means == "circle"):
            before = self.loc.reshape(self.num_classes, self.components, *self.event_shape)
            if self.means == "circle":
                placed = around_the_circle(before, z_f, y)
            else:
                placed = means_of_rows(self.means, before, z_f, y, self.separation)
            self.loc.copy_(placed.reshape(self.loc.shape))
        self.restart()  # the statistics are of latents that are no more

    # -- expectation-maximisation --------------------------------------------------------------
    @property
    def fitted_by_em(self) -> bool:
        """Whether EM trains any table."""
        return "em" in self.fits.values()

    @torch.no_grad()
    def accumulate(self, z_f: Tensor, weights: Tensor) -> None:
        """Add rows to the statistics of the E-step. Nothing else changes until :meth:`update`.

        :param z_f: latents ``(B, *event_shape)``.
        :param weights: weight of each row times its label posterior, ``(B, K)``.
        """
        flat, rows = in_double(z_f).flatten(1), in_double(weights)
        u = self._precisions(flat)
        if self._inner:
            component = self._component(self._labels(z_f), 1.0, in_double)
            scores = component.log_prob(in_double(z_f).unsqueeze(-1 - len(self.event_shape)))  # (K, B, J)
            within = (scores.movedim(0, 1) + in_double(self.log_weights).log_softmax(-1)).softmax(-1)
            rows = (rows[..., None] * within).flatten(1)
        self.moments.add(flat, rows, u)

    def _precisions(self, z: Tensor) -> Tensor | None:
        """Weights of rows ``(B, D)`` in each component, if they have any.

        One for each number, ``(B, P, D)``; with full covariances one for each row, ``(B, P)``.
        """
        return None

    @torch.no_grad()
    def update(self) -> None:
        """A step of stepwise EM: :meth:`maximise`, then forget a share ``1 - em_decay`` of the statistics.

        In the first step, the present tables get the weight of an endless run of earlier steps whose rows
        all agreed with them. One batch alone could move them far. Without statistics, nothing changes.

        Reference: Cappé and Moulines, 2009.
        """
        if not self.fitted_by_em or not bool(self.moments.count.sum() > 0):
            return
        if not bool(self.begun):
            earlier = self.em_decay / (1 - self.em_decay) * self.moments.count.sum() / len(self.moments.count)
            mean = self.loc.reshape(self.moments.mean.shape)
            self.moments.add_components(mean, self._covariances(), earlier * self._shares())
            self.begun.fill_(True)
        self.maximise()
        self.moments.forget(self.em_decay)

    def _shares(self) -> Tensor:
        """Weight of each component within its class, times their number, ``(P,)``."""
        if not self._inner:
            return torch.ones_like(self.moments.count)
        return self.components * self.log_weights.softmax(-1).flatten()

    def _covariances(self) -> Tensor:
        """Variances ``(P, D)`` of the components, or covariances ``(P, D, D)`` if these are full."""
        if not self.full:
            raise NotImplementedError(f"{type(self).__name__} does not define _covariances")
        tril = self._wide_factors()
        return tril @ tril.mT

    def _wide_factors(self) -> Tensor:
        """The Cholesky factors of all components in double precision, ``(P, D, D)``."""
        (rows, dim), below = self.moments.mean.shape, in_double(self.off_diagonal)
        return cholesky(in_double(self.log_scale).reshape(rows, dim), below.reshape(rows, dim, dim))

    @torch.no_grad()
    def maximise(self) -> None:
        """The M-step: set the tables of ``fit_...="em"`` to their maximum given the statistics."""
        live = self.moments.count > FEWEST
        if self.fits["fit_means"] == "em":
            self._replace("loc", self.moments.mean.reshape(self.loc.shape), live)
        if self.fits["fit_scales"] == "em":
            self._maximise_scales(self.moments.about(self.loc.reshape(self.moments.mean.shape)), live)
        if self.fits.get("fit_weights") == "em":
            counts = self.moments.count.reshape(self.log_weights.shape).clamp(min=FEWEST)
            self.log_weights.copy_((counts / counts.sum(-1, keepdim=True)).log())

    def restart(self) -> None:
        """Forget all statistics of the E-step."""
        if self.fitted_by_em:
            self.moments.clear()
            self.begun.fill_(False)

    def _maximise_scales(self, scatter: Tensor, live: Tensor) -> None:
        """Set the scales of ``live`` components from the scatter about means, ``(P, D)`` or ``(P, D, D)``."""
        if not self.full:
            raise NotImplementedError(f"{type(self).__name__} does not define _maximise_scales")
        count = in_double(self.moments.count)
        each = scatter / count.clamp(min=TINY)[:, None, None]
        if self.pooled:
            each = each.lerp(scatter.sum(0) / count.sum(), self.pooled)
        log_scale, below = most_likely_factors(each, live, SMALLEST_SCALE)
        self._replace("log_scale", log_scale, live)
        self._replace("off_diagonal", below, live)

    def _replace(self, name: str, value: Tensor, live: Tensor) -> None:
        """Set the rows of ``live`` components ``(P,)`` of a table."""
        table: Tensor = getattr(self, name)
        before, after = table.reshape(len(live), -1), value.reshape(len(live), -1).to(table.dtype)
        table.copy_(torch.where(live[:, None], after, before).reshape(table.shape))
