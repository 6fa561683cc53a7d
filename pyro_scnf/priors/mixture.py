r"""A Gaussian, or a mixture of Gaussians, for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_scnf._checks import validate_args
from pyro_scnf._numbers import check_at_least, check_word
from pyro_scnf._shapes import as_event_shape, in_double
from pyro_scnf.distributions import Independent
from pyro_scnf.priors.full_covariance import _MultivariateNormal, reshaped
from pyro_scnf.priors.initial_means import Means
from pyro_scnf.priors.location_scale import Cast, Fit, LocationScalePrior
from pyro_scnf.priors.moments import TINY, log_std

__all__ = ["GaussianMixturePrior"]

Covariance = Literal["diagonal", "shared", "isotropic", "full"]


class GaussianMixturePrior(LocationScalePrior):
    r"""One Gaussian for each class, :math:`\mathcal N(z_f \mid \mu_y, \Sigma_y)`, or several.

    Summed over ``y`` the Gaussians form a mixture (GMM). With J components in a class,

    .. math:: p(z_f \mid y) = \sum_{j=1}^J \pi_{yj}\, \mathcal N(z_f \mid \mu_{yj}, \Sigma_{yj}).

    :param event_shape: shape of :math:`z_f`.
    :param int num_classes: number of labels K. Labels without a labelled row are clusters, which unlabelled
        rows may fill.
    :param covariance: ``"diagonal"`` (a diagonal for each component), ``"shared"`` (one diagonal for all, as
        in the SCNF code), ``"isotropic"`` (one scale for each component, as in FlowGMM) or ``"full"`` (a
        Cholesky factor for each component).
    :param int components: number J of components in each class.
    :param means: initial means. ``"random"``: standard normal times ``separation``. ``"antipodal"``: two
        opposite points of norm ``separation``. ``"circle"``: on a circle of that radius, in the plane of the
        first two numbers; :meth:`initialize` puts three or more classes in the order in which their labelled
        latents lie around the middle. ``"blocks"``: ``separation`` in a block of numbers of its own for each
        component, 0 elsewhere. ``"latents"``: random until :meth:`initialize` sets them to the class means of
        labelled latents, times ``separation``; it raises if a class has none. ``"clusters"``: the same, and
        each class without a labelled row starts amid unlabelled latents that have no labelled one among them.
        ``"auto"``: ``"latents"`` for trained means, and ``"random"`` for fixed ones and for classes without a
        labelled row. Or the means themselves, a tensor or nested lists of shape ``(K * J, *event_shape)``,
        times ``separation``.
    :param float separation: see ``means``.
    :param float scale: initial standard deviation.
    :param fit_means: how means are trained: ``"gradient"``, the default, where they are parameters;
        ``"em"``, where they are buffers that :meth:`update` sets in closed form; or ``"fixed"``.
    :param fit_scales: likewise for the scales.
    :param fit_weights: likewise for the weights of the components in a class, which start equal. There are
        none with ``components=1``.
    :param learn_means: short for ``fit_means="gradient"`` (true) or ``"fixed"`` (false).
    :param learn_scales: likewise for the scales.
    :param float pooled: of full covariances by EM, the share :math:`\lambda` of the pooled one in
        :math:`(1 - \lambda)\Sigma_k + \lambda\bar\Sigma`. The pooled one is the mean of all, weighted by
        their rows. With 1 all components that have rows have the same covariance. Choose more, the fewer
        rows there are.
    :param em_decay: what share of the statistics of EM one step keeps, 0.99 by default. With 0, an M-step
        uses its own batch alone.
    :raises ValueError: for an unknown word, a number out of range, or an option that nothing would use.

    *EM.* After each step, :func:`pyro_scnf.training.fit` adds the posteriors of the batch to sufficient
    statistics, and the M-step takes their maximum (stepwise EM). :func:`pyro_scnf.fit_by_em` runs exact EM
    on all data, with a flow held fixed. No scale becomes smaller than 1e-4. With ``pooled`` between
    0 and 1 an M-step takes no maximum, and the likelihood may fall a little.

    Reference: Atanov et al., 2019, section 3.4; Izmailov et al., *FlowGMM*, 2020, section 3 and Appendices A
    and B; Friedman, *Regularized discriminant analysis*, 1989 (pooled covariances).
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        num_classes: int,
        *,
        covariance: Covariance = "diagonal",
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
        check_at_least(1, num_classes=num_classes)
        event = as_event_shape(event_shape)
        dim = event.numel()
        shapes: dict[str, tuple[int, ...]] = {
            "diagonal": tuple(event),
            "shared": tuple(event),
            "isotropic": (),
            "full": (dim,),
        }
        check_word("covariance", covariance, shapes)
        super().__init__(
            event_shape,
            num_classes,
            shapes[covariance],
            per_component=covariance != "shared",
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
        self.covariance = covariance

    def _component(self, y: Tensor, temperature: float, cast: Cast) -> TorchDistributionMixin:
        event_dim = len(self.event_shape)
        loc = self._of_component(cast(self.loc), y, event_dim)
        if self.full:
            flat, tril = loc.flatten(-event_dim), temperature * self._cholesky(y, cast)
            normal = _MultivariateNormal(flat, scale_tril=tril, validate_args=validate_args(loc))
            return reshaped(normal, self.event_shape)
        if self.covariance == "shared":
            log_scale = cast(self.log_scale)
            log_scale = log_scale.unsqueeze(-1 - event_dim) if self._inner else log_scale
        elif self.covariance == "isotropic":
            log_scale = self._event(self._of_component(cast(self.log_scale), y, 0))
        else:
            log_scale = self._of_component(cast(self.log_scale), y, event_dim)
        scale = temperature * log_scale.exp()
        return Independent(dist.Normal(loc, scale, validate_args=validate_args(loc)), event_dim)

    def _covariances(self) -> Tensor:
        if self.full:
            return super()._covariances()
        log_scale, shape = in_double(self.log_scale), self.moments.mean.shape
        rows = 1 if self.covariance == "shared" else shape[0]
        return (2 * log_scale).exp().reshape(rows, -1).expand(shape)

    def _maximise_scales(self, scatter: Tensor, live: Tensor) -> None:
        count = in_double(self.moments.count)
        if self.full:
            super()._maximise_scales(scatter, live)
        elif self.covariance == "shared":
            self.log_scale.copy_(log_std(scatter.sum(0) / count.sum()).reshape(self.log_scale.shape))
        else:
            each = scatter / count.clamp(min=TINY)[:, None]
            each = each.mean(-1) if self.covariance == "isotropic" else each
            self._replace("log_scale", log_std(each), live)
