r"""The semi-conditional flow: :math:`p(x \mid y)` with one big flow for all labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalDistribution
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyro_scnf import sharing
from pyro_scnf._checks import UNLABELLED, check_row_labels
from pyro_scnf._numbers import refuse_unused
from pyro_scnf._random import drawing_from
from pyro_scnf._shapes import as_sizes, check_event, common_batch, reference_tensor
from pyro_scnf._state import Parts, State, refuse_stray, state_of, state_with_data
from pyro_scnf.class_probs import ClassProbs, categorical, log_class_probs
from pyro_scnf.distributions import BaseNormal, ConcatDistribution, check_base_scale
from pyro_scnf.given_label import GivenLabel
from pyro_scnf.latent_flow import LatentFlow
from pyro_scnf.priors import PriorSpec, make_prior
from pyro_scnf.transforms import ConditionalFlowTransform
from pyro_scnf.transforms.compose import Layer

__all__ = ["SemiConditionalFlow"]


@ConditionalDistribution.register
class SemiConditionalFlow(LatentFlow):
    r"""Semi-conditional normalizing flow, a Pyro ``ConditionalDistribution`` over x given y.

    .. math::

        x = f_w^{-1}(z_{aux}, z_f), \qquad z_{aux} \sim \mathcal N(0, \operatorname{diag}(\sigma^2)),
        \qquad z_f \sim p(z_f \mid y)

    so that :math:`\log p(x \mid y) = \log|\det \partial f_w / \partial x| + \log \mathcal N(z_{aux})
    + \log p(z_f \mid y)`. The flow does not see the label. It runs **once per x** for all labels, and
    only the small prior is evaluated for each of them.

    The prior may depend on covariates c too, such as an age or a one-hot category: it is then
    :math:`p(z_f \mid y, c)`, and the flow is :math:`p(x \mid y, c)`. Methods take them as ``covariates``,
    ``(*batch, D)``. The transform sees neither labels nor covariates. See
    :class:`~pyro_scnf.priors.ConditionalFlowPrior`.

    :param transform: unconditional bijection :math:`f_w`, from :mod:`pyro_scnf.flows` or your own
        :class:`~pyro_scnf.transforms.FlowTransform`. Its ``latent_shape`` is the shape of :math:`z_f`.
    :param prior: :math:`p(z_f \mid y)`: a word such as ``"flow"`` or ``"gmm"``, a dict, a class or a
        module, see :func:`~pyro_scnf.priors.make_prior`.
    :param int num_classes: number of labels K. It is optional if ``prior`` is a module.
    :param aux_scale: scale of :math:`z_{aux}`, if there is any: ``"learnable"`` or ``"unit"``.
    :param float init_aux_scale: initial value of a learnable scale, 1 by default.
    :raises ValueError: if ``transform`` is no ``FlowTransform``, if the prior's event shape is not the
        flow's latent shape, if ``num_classes`` is not the prior's, or for an ``init_aux_scale`` that nothing
        would use.

    The class probabilities :math:`p(y)` belong to the model around the flow. Methods that need them take
    ``class_probs``, by default a uniform distribution.

    >>> f_w = pyro_scnf.flows.glow((2,), steps=2, width=16)
    >>> flow = SemiConditionalFlow(f_w, "gmm", num_classes=3)
    >>> x = flow.condition(torch.tensor([0, 2])).sample()
    >>> x.shape, flow.class_log_prob(x).shape, flow.posterior(x).probs.shape
    (torch.Size([2, 2]), torch.Size([2, 3]), torch.Size([2, 3]))

    Reference: Atanov et al., *Semi-Conditional Normalizing Flows for Semi-Supervised Learning*,
    2019, equations 3 and 4.
    """

    def __init__(
        self,
        transform: Layer,
        prior: PriorSpec = "flow",
        num_classes: int | None = None,
        *,
        aux_scale: Literal["learnable", "unit"] = "learnable",
        init_aux_scale: float | None = None,
    ) -> None:
        super().__init__(transform)
        self.prior = make_prior(prior, self.transform.latent_shape, num_classes)
        scale = check_base_scale(aux_scale, init_aux_scale, ("aux_scale", "init_aux_scale"))
        self.aux = None
        if self.transform.aux_dim:
            self.aux = BaseNormal((self.transform.aux_dim,), aux_scale, scale)
        else:
            refuse_unused("the flow factors no latents out", init_aux_scale=init_aux_scale)

    @property
    def num_classes(self) -> int:
        """Number of labels K."""
        return self.prior.num_classes

    # -- distributions -------------------------------------------------------------------------
    def base(
        self, y: Tensor, temperature: float = 1.0, covariates: Tensor | None = None
    ) -> ConcatDistribution:
        """The distribution of :math:`[z_{aux}, z_f]` given ``y`` and covariates."""
        prior = self.prior.condition(y, temperature, **self.prior.check_covariates(covariates))
        parts = [prior] if self.aux is None else [self.aux((), temperature), prior]
        return ConcatDistribution(parts, dtype=reference_tensor(self.transform).dtype)

    def condition(
        self, y: Tensor, temperature: float = 1.0, *, covariates: Tensor | None = None
    ) -> GivenLabel:
        r"""The distribution of x given ``y``, for use in ``pyro.sample``.

        :param y: integer labels ``(*batch,)``, or one-hot or relaxed class weights ``(*batch, K)``.
            Labels that Pyro enumerates in parallel have shape ``(K, 1, ...)`` and need no special
            treatment.
        :param float temperature: factor on the scale of all noise. Below 1, samples are cleaner.
        :param covariates: ``(*batch, D)``, if the prior has any. Its batch shape and that of y
            broadcast.
        :return: a distribution with the batch shape of ``y`` (and covariates) and the event shape of x.
        :raises ValueError: for labels out of range or of the wrong type, for covariates that are missing, not
            expected, of a wrong shape or not finite, if a parameter of the flow is a
            ``PyroSample``, or if a Pyro program reads one of the prior outside of a call of its
            ``PyroModule``.
        """
        if Parts.of((self.transform,)).are_random:
            # Pyro scores a site after the model has returned. A PyroSample read at that time is drawn
            # again, and the trace does not record that draw.
            raise ValueError("transform: its parameters cannot be PyroSample; those of a mixture prior can")
        if am_i_wrapped():
            self._register()
        return GivenLabel(self, y, temperature, covariates)

    def _register(self) -> None:
        """Raise for a ``PyroSample`` that becomes no site. In a Pyro program, register other parameters.

        These are the parameters of each ``PyroModule`` that is in a call. Scoring reads them too late, when
        the model has returned.
        """
        parts = refuse_stray(self, *self._scored_by)
        if am_i_wrapped():
            parts.read_parameters()

    def sample(
        self,
        y: Tensor,
        temperature: float = 1.0,
        sample_shape: Sequence[int] | int = (),
        *,
        covariates: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws of x given ``y``, ``(*sample_shape, *batch, *event_shape)``, without gradient.

        :param sample_shape: how many draws for each label. A number S means ``(S,)``.
        :param covariates: ``(*batch, D)``, if the prior has any.
        :param generator: source of the noise; PyTorch's global one by default, which is otherwise left alone.
        :raises ValueError: as in :meth:`condition`, or for a ``sample_shape`` that is no shape.
        """
        shape = as_sizes(sample_shape, "sample_shape", at_least=0)
        with torch.no_grad(), drawing_from(generator, reference_tensor(self).device):
            given = self.condition(y, temperature, covariates=covariates)
            return given.sample(shape)

    # -- what depends on the data -------------------------------------------------------------
    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor | None = None, covariates: Tensor | None = None) -> None:
        """Set every data-dependent parameter of flow and prior from a batch, once, before training.

        :param x: ``(B, *event_shape)``.
        :param y: labels ``(B,)``, -1 where unknown. By default all are unknown.
        :param covariates: ``(B, D)``, if the prior has any.
        """
        owner = f"{type(self).__name__}.initialize"
        x = self.check_data(x, owner=owner)
        if y is None:
            y = torch.full((len(x),), UNLABELLED, device=x.device)
        # All checks come before the transform changes.
        y = check_row_labels(y, len(x), self.num_classes, owner)
        given = self.prior.check_covariates(covariates, len(x))
        self.prior.check_start(y)
        z = self.transform.initialize(x)
        z_f = z[..., self.transform.aux_dim :].reshape(z.shape[:-1] + self.latent_shape)
        self.prior.initialize(z_f, y, **given)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the two slow parts of scoring: the flow, and the prior's own flow if it has one.

        Both are changed in place. :func:`torch.compile`, which receives the arguments, compiles them at
        their first use, once for each shape of batch.
        """
        self.transform.compile(*args, **kwargs)
        inner = getattr(self.prior, "flow", None)
        if isinstance(inner, ConditionalFlowTransform):
            inner.compile(*args, **kwargs)

    # -- densities over all labels -------------------------------------------------------------
    def common_log_prob(self, x: Tensor, *, covariates: Tensor | None = None) -> Tensor:
        r"""The part of :math:`\log p(x \mid y)` that all labels share, ``(*batch,)``, in nats.

        It is :math:`\log|\det \partial f_w / \partial x| + \log \mathcal N(z_{aux})`, plus what all labels
        share in :math:`\log p(z_f \mid y)`.
        """
        return self.scores(x, covariates=covariates)[0][1]

    def scores(self, *xs: Tensor, covariates: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """The :meth:`class_table` and the :meth:`common_log_prob` of several batches ``(B_i, *event_shape)``.

        The prior is called once for all of them.

        :param covariates: ``(*batch, D)``, if the prior has any. They are those of one batch x.
        """
        owner = type(self).__name__
        batches = [check_event(x, self.event_shape, "x", owner) for x in xs]
        # By the shape alone. The rest is checked only if x is scored anew.
        self._register()
        given = tuple(self.prior.check_covariates(covariates).values())
        for c in given:
            if len(xs) > 1:
                raise ValueError(f"{owner}: covariates are those of one batch x, and there are {len(xs)}")
            expected = "a row of covariates for each x"
            common_batch(owner, expected, x=batches[0], covariates=c.shape[:-1])
        compute = partial(self._scores, covariates=covariates)
        return sharing.shared("scores", self._scored_by, compute, xs, *given)

    def find_scores(self, x: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """The :meth:`scores` of x, if :func:`share_encoding` holds them already."""
        return sharing.find("scores", self._scored_by, x, *([] if covariates is None else [covariates]))

    @property
    def _scored_by(self) -> tuple[nn.Module, ...]:
        """The modules that the scores depend on."""
        return (self.transform, self.prior) if self.aux is None else (self.transform, self.prior, self.aux)

    def _scores(self, xs: Sequence[Tensor], covariates: Tensor | None) -> tuple[Tensor, Tensor]:
        encoded = [self.encode(x) for x in xs]
        z_aux, z_f, ladj = encoded[0] if len(xs) == 1 else map(torch.cat, zip(*encoded, strict=True))
        shared, table = self.prior.class_scores(z_f, covariates)
        return table, ladj + shared + self.aux_log_prob(z_aux)

    def class_table(self, x: Tensor, *, covariates: Tensor | None = None) -> Tensor:
        r"""The part of :math:`\log p(x \mid y = k)` that depends on the label, ``(*batch, K)``, in nats.

        It is :math:`\log p(z_f \mid y = k)` less what all labels share, which is in :meth:`common_log_prob`:
        thousands of nats in whose rounding the differences between labels could be lost. Inside
        :func:`share_encoding` with a frozen flow and prior, and inside :func:`pyro_scnf.elbo`, it is computed
        once for each x.
        """
        return self.scores(x, covariates=covariates)[0][0]

    def state_of_prior(self, covariates: Tensor | None = None) -> State | None:
        r"""All that can be seen of what :math:`p(z_f \mid y, c)` depends on, to notice a change.

        ``None`` if it cannot be seen, and if the prior is a ``PyroModule``: its parameters may be random, or
        an effect handler may replace them.
        """
        parts = Parts.of((self.prior,))
        if any(isinstance(module, PyroModule) for module in parts.foreign):
            return None
        return state_of(parts) if covariates is None else state_with_data(parts, covariates)

    def class_log_prob(self, x: Tensor, *, covariates: Tensor | None = None) -> Tensor:
        r""":math:`\log p(x \mid y = k)` for every k, ``(*batch, K)``, in nats, from one pass of the flow.

        :param x: ``(*batch, *event_shape)``.
        :param covariates: ``(*batch, D)``, if the prior has any. Batch shapes broadcast: with
            S draws of the covariates of each row, ``(S, B, D)``, the result is ``(S, B, K)``.
        """
        ((table, common),) = self.scores(x, covariates=covariates)
        return common[..., None] + table

    def log_prob(
        self,
        x: Tensor,
        class_probs: ClassProbs | Tensor | None = None,
        *,
        covariates: Tensor | None = None,
    ) -> Tensor:
        r"""The marginal :math:`\log p(x) = \log \sum_k p(y = k)\, p(x \mid y = k)`, ``(*batch,)``, in nats.

        :param class_probs: :math:`p(y)`, as non-negative class weights ``(*batch, K)`` or ``(K,)``, which
            need not sum to 1, or as a :class:`~pyro_scnf.ClassProbs`. It is uniform by default. A weight of
            exactly 0 gets no gradient.
        :param covariates: ``(*batch, D)``, if the prior has any.
        """
        ((table, common),) = self.scores(x, covariates=covariates)
        return common + (table + self._log_prior(class_probs, table)).logsumexp(-1)

    def posterior(
        self,
        x: Tensor,
        class_probs: ClassProbs | Tensor | None = None,
        *,
        covariates: Tensor | None = None,
    ) -> dist.Categorical:
        r"""The exact label posterior :math:`p(y \mid x)`, a ``Categorical`` of batch ``(*batch,)``.

        Given covariates it is :math:`p(y \mid x, c) \propto p(y)\, p(x \mid y, c)`.
        """
        table = self.class_table(x, covariates=covariates)
        return categorical((table + self._log_prior(class_probs, table)).log_softmax(-1))

    def _log_prior(self, class_probs: ClassProbs | Tensor | None, table: Tensor) -> Tensor | float:
        """:math:`\\log p(y)` of the rows of a class table, in its dtype."""
        log_probs = log_class_probs(class_probs, self.num_classes)
        if not isinstance(log_probs, Tensor):
            return log_probs
        expected = "weights for all rows, (K,), or for each row of x"
        batches = {"x": table.shape[:-1], "class_probs": log_probs.shape[:-1]}
        common_batch(type(self).__name__, expected, **batches)
        return log_probs.to(table.dtype)
