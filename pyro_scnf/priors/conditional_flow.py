r"""A conditional flow as prior: :math:`h_\phi` of the semi-conditional flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_scnf._numbers import check_at_least, refuse_unused
from pyro_scnf._shapes import common_batch, in_double
from pyro_scnf.distributions import BaseNormal, Transformed, check_base_scale
from pyro_scnf.flows import glow
from pyro_scnf.nn import NetSpec
from pyro_scnf.priors.base import ClassConditionalPrior
from pyro_scnf.transforms import ConditionalFlowTransform, Flatten, compose
from pyro_scnf.transforms.compose import Layer
from pyro_scnf.transforms.scale import ScaleName

__all__ = ["ConditionalFlowPrior"]


class ConditionalFlowPrior(ClassConditionalPrior):
    r"""A conditional flow :math:`z_f = h_\phi^{-1}(\epsilon; y)` of noise
    :math:`\epsilon \sim \mathcal N(0, \operatorname{diag}(\sigma^2))`.

    ``condition(y)`` embeds the label and conditions the flow on the embedding e(y). By default
    :math:`h_\phi` is a conditional :func:`~pyro_scnf.flows.glow` on the flattened :math:`z_f`.

    With covariates :math:`c \in \mathbb R^D`, such as an age or a one-hot category, the context of the flow
    is the vector [e(y), c]:

    .. math:: \log p(z_f \mid y, c) = \log \mathcal N\bigl(h_\phi(z_f; [e(y), c])\bigr)
        + \log \Bigl| \det \frac{\partial h_\phi(z_f; [e(y), c])}{\partial z_f} \Bigr|

    Give numbers of about unit scale, since the conditioners take them as they are. For covariates without
    labels, let ``num_classes`` be 1.

    :param event_shape: shape of :math:`z_f`.
    :param int num_classes: number of labels K.
    :param int steps: steps of flow per level, 4 by default.
    :param int width: hidden width of the conditioners, 64 by default.
    :param int blocks: residual blocks of the conditioners, 2 by default.
    :param int levels: levels of the conditional flow, 1 by default. It factors components out between levels.
    :param scale: scale function of the couplings: ``"sigmoid"`` (the default), ``"tanh"`` or ``"clamp"``.
    :param coupling: ``"double"`` (the default) or ``"alternate"``, see :func:`~pyro_scnf.flows.glow`.
    :param conv: parameterisation of the 1×1 convolutions, ``"lu"`` (the default) or ``"plain"``.
    :param base: ``"learnable"`` or ``"unit"`` scale of the base noise.
    :param float base_scale: initial value of a learnable scale, 1 by default.
    :param int embedding_dim: length of the label embedding. By default it is K, and labels start one-hot.
    :param int covariates: number of covariates D, 0 by default.
    :param flow: a conditional transform to use instead of the Glow. Its latent side must be a vector, and its
        context as long as embedding and covariates together. The options of the Glow cannot be given with it.
    :param net: conditioners of the Glow, instead of residual networks of ``width`` and ``blocks``: a word, a
        dict or a function, see :func:`~pyro_scnf.nn.make_net`.
    :raises ValueError: for options out of range, options that nothing would use, or a ``flow`` of another
        event shape or context length.

    Reference: Atanov et al., *Semi-Conditional Normalizing Flows*, 2019, section 3.3.
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        num_classes: int = 1,
        *,
        steps: int | Sequence[int] | None = None,
        width: int | None = None,
        blocks: int | None = None,
        levels: int | None = None,
        scale: ScaleName | None = None,
        coupling: Literal["double", "alternate"] | None = None,
        conv: Literal["lu", "plain"] | None = None,
        base: Literal["learnable", "unit"] = "learnable",
        base_scale: float | None = None,
        embedding_dim: int | None = None,
        covariates: int = 0,
        flow: Layer | None = None,
        net: NetSpec | None = None,
    ) -> None:
        super().__init__(event_shape, num_classes, covariates)
        base_scale = check_base_scale(base, base_scale, ("base", "base_scale"))
        embedding_dim = num_classes if embedding_dim is None else embedding_dim
        check_at_least(1, embedding_dim=embedding_dim)
        self.embedding = nn.Embedding(num_classes, embedding_dim)
        if embedding_dim == num_classes:
            nn.init.eye_(self.embedding.weight)
        options = {
            "levels": levels,
            "steps": steps,
            "width": width,
            "blocks": blocks,
            "scale": scale,
            "coupling": coupling,
            "conv": conv,
            "net": net,
        }
        given = {name: value for name, value in options.items() if value is not None}
        self.context_dim = embedding_dim + self.covariates
        self.flow = self._checked_flow(self._glow(**given) if flow is None else flow)
        if flow is not None:
            refuse_unused("it belongs to the built-in Glow, and flow takes its place", **given)
        self.base = BaseNormal(self.flow.base_shape, base, base_scale)

    def _glow(self, **options: Any) -> Layer:
        """The built-in flow on the flattened latents."""
        flow = glow(self.event_shape.numel(), context_dim=self.context_dim, **options)
        return compose([flow, Flatten(self.event_shape)]) if len(self.event_shape) == 3 else flow

    def _checked_flow(self, flow: object) -> ConditionalFlowTransform:
        """Raise unless ``flow`` is a conditional transform of these latents. Return it."""
        shape, dim = tuple(self.event_shape), self.context_dim
        expected = f"expected a conditional transform of event_shape {shape} and context_dim {dim}"
        if not isinstance(flow, ConditionalFlowTransform):
            raise ValueError(f"flow: {expected}, got a {type(flow).__name__}")
        if flow.event_shape != self.event_shape or flow.context_dim != dim:
            raise ValueError(f"flow: {expected}, got {tuple(flow.event_shape)} and {flow.context_dim}")
        return flow

    def context(self, y: Tensor, covariates: Tensor | None = None) -> Tensor:
        """The context vectors ``(*batch, context_dim)``: label or class weights ``y`` embedded, covariates.

        :param covariates: ``(*batch, D)``, if the prior has any. The batch shapes of both broadcast.
        """
        y, given = self._check(y), self.check_covariates(covariates)
        label = self._embed(y)
        if not given:
            return label
        rows, parts = given["covariates"].shape[:-1], [label, given["covariates"]]
        owner, expected = f"{type(self).__name__}.condition", "a label for each row of covariates"
        batch = common_batch(owner, expected, y=label.shape[:-1], covariates=rows)
        return torch.cat([part.expand(batch + part.shape[-1:]) for part in parts], -1)

    def _embed(self, y: Tensor) -> Tensor:
        """The embedding of labels or class weights. A random embedding, drawn many times, has a batch."""
        table = self.embedding.weight
        if not y.is_floating_point():
            if table.dim() == 2:
                return self.embedding(y)
            y = one_hot(y, self.num_classes)
        # No matmul, since under autocast it would round to bfloat16.
        return (y.to(table.dtype)[..., None] * table).sum(-2)

    @property
    def _batch_of_tables(self) -> torch.Size:
        scale = self.base.raw_scale
        of_scale = torch.Size() if scale is None else scale.shape[: scale.dim() - len(self.base.event_shape)]
        return torch.broadcast_shapes(self.embedding.weight.shape[:-2], of_scale)

    def condition(
        self, y: Tensor, temperature: float = 1.0, covariates: Tensor | None = None
    ) -> TorchDistributionMixin:
        r"""The distribution of :math:`z_f` given ``y`` and covariates, as in the base class.

        :param covariates: ``(*batch, D)``, if the prior has any. The batch shapes of both broadcast.
        """
        context = self.context(y, covariates)
        base = self.base(torch.broadcast_shapes(context.shape[:-1], self._batch_of_tables), temperature)
        return Transformed(base, [self.flow.condition(context)])

    def initialize(self, z_f: Tensor, y: Tensor, covariates: Tensor | None = None) -> None:
        """Set the actnorms from a batch of latents ``(B, *event_shape)`` with labels ``(B,)``.

        New couplings ignore their context. Label 0 can therefore stand in for an unknown one.

        :param covariates: ``(B, D)``, if the prior has any.
        """
        y = self._check_rows(z_f, y).clamp(min=0)
        self.flow.initialize(z_f, self.context(y, **self.check_covariates(covariates, len(z_f))))

    def _wide_class_log_prob(self, z_f: Tensor, covariates: Tensor | None = None) -> Tensor:
        context = self.context(self._labels(z_f, covariates), covariates)
        noise, ladj = self.flow.inverse_and_ladj(z_f, context)
        base = self.base(self._batch_of_tables, double=True)
        log_prob = base.log_prob(in_double(noise)) + in_double(ladj)
        return log_prob.movedim(0, -1)

    def encode(self, z_f: Tensor, y: Tensor, covariates: Tensor | None = None) -> Tensor:
        r""":math:`z_h = h_\phi(z_f; y)`: what is left of :math:`z_f` once its label ``y`` is known."""
        return self.flow.inverse_and_ladj(z_f, self.context(y, covariates))[0]

    def decode(self, z_h: Tensor, y: Tensor, covariates: Tensor | None = None) -> Tensor:
        r""":math:`z_f = h_\phi^{-1}(z_h; y)`: the inverse of :meth:`encode`.

        With another ``y`` than in :meth:`encode`, it swaps the label and keeps the rest. Likewise with other
        covariates.
        """
        return self.flow.call_and_ladj(z_h, self.context(y, covariates))[0]
