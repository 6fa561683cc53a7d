r"""A conditional flow as prior: :math:`h_\phi` of the semi-conditional flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pyro.distributions.conditional import ConditionalTransformedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_scnf._checks import check_finite
from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import check_event, in_double
from pyro_scnf.distributions import BaseNormal
from pyro_scnf.flows import glow
from pyro_scnf.nn import NetSpec
from pyro_scnf.priors.base import ClassConditionalPrior
from pyro_scnf.transforms import ConditionalFlowTransform, Flatten, compose
from pyro_scnf.transforms.compose import Layer

__all__ = ["ConditionalFlowPrior"]


class ConditionalFlowPrior(ClassConditionalPrior):
    r"""A conditional flow :math:`z_f = h_\phi^{-1}(\epsilon; y)` of noise
    :math:`\epsilon \sim \mathcal N(0, \operatorname{diag}(\sigma^2))`.

    ``condition(y)`` embeds the label and conditions a ``ConditionalTransformedDistribution`` on the
    embedding. By default :math:`h_\phi` is a conditional :func:`~pyro_scnf.flows.glow` on the
    flattened :math:`z_f`.

    :param event_shape: shape of :math:`z_f`.
    :param int num_classes: number of labels K.
    :param int steps: steps of flow per level.
    :param int width: hidden width of the conditioners.
    :param int blocks: residual blocks of the conditioners.
    :param int levels: levels of the conditional flow. It factors components out between levels.
    :param scale: scale function of the couplings: ``"sigmoid"``, ``"tanh"`` or ``"clamp"``.
    :param coupling: ``"double"`` or ``"alternate"``, see :func:`~pyro_scnf.flows.glow`.
    :param conv: parameterisation of the 1×1 convolutions, ``"lu"`` or ``"plain"``.
    :param base: ``"learnable"`` or ``"unit"`` scale of the base noise.
    :param float base_scale: initial value of a learnable scale.
    :param int embedding_dim: length of the label embedding. By default it is K, and labels start one-hot.
    :param int context_dim: condition on real vectors of this length (covariates) instead of labels.
        ``num_classes`` is then ignored, and there is no embedding.
    :param flow: a conditional transform to use instead of the Glow. Its latent side must be a vector.
    :param net: conditioners of the Glow, instead of residual networks: a word, a dict or a function, see
        :func:`~pyro_scnf.nn.make_net`.
    :raises ValueError: for options out of range, or a ``flow`` of another event shape or context length.

    Reference: Atanov et al., *Semi-Conditional Normalizing Flows*, 2019, section 3.3.
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        num_classes: int = 1,
        *,
        steps: int = 4,
        width: int = 64,
        blocks: int = 2,
        levels: int = 1,
        scale: str = "sigmoid",
        coupling: Literal["double", "alternate"] = "double",
        conv: Literal["lu", "plain"] = "lu",
        base: Literal["learnable", "unit"] = "learnable",
        base_scale: float = 1.0,
        embedding_dim: int | None = None,
        context_dim: int | None = None,
        flow: Layer | None = None,
        net: NetSpec | None = None,
    ) -> None:
        super().__init__(event_shape, num_classes)
        self.embedding: nn.Embedding | None = None
        if context_dim is None:
            context_dim = num_classes if embedding_dim is None else embedding_dim
            check_at_least(1, embedding_dim=context_dim)
            self.embedding = nn.Embedding(num_classes, context_dim)
            if context_dim == num_classes:
                nn.init.eye_(self.embedding.weight)
        check_at_least(1, context_dim=context_dim)
        if flow is None:
            flow = glow(
                self.event_shape.numel(),
                levels=levels,
                steps=steps,
                width=width,
                blocks=blocks,
                scale=scale,
                coupling=coupling,
                conv=conv,
                context_dim=context_dim,
                net=net,
            )
            if len(self.event_shape) == 3:
                flow = compose([flow, Flatten(self.event_shape)])
        given = flow.context_dim if isinstance(flow, ConditionalFlowTransform) else None
        if (
            not isinstance(flow, ConditionalFlowTransform)
            or flow.event_shape != self.event_shape
            or given != context_dim
        ):
            raise ValueError(
                f"flow: expected a conditional transform of event_shape {tuple(self.event_shape)} and "
                f"context_dim {context_dim}, got {tuple(flow.event_shape)} and {given}"
            )
        self.context_dim = context_dim
        self.flow = flow
        self.base = BaseNormal(flow.base_shape, base, base_scale)

    def context(self, y: Tensor) -> Tensor:
        """The context vectors ``(*batch, context_dim)`` of labels, class weights or covariates ``y``."""
        if self.embedding is None:
            owner = f"{type(self).__name__}.condition"
            check_event(y, torch.Size((self.context_dim,)), "y (covariates)", owner)
            check_finite(y, "y", owner)
            return y
        y = self._check(y)
        return y @ self.embedding.weight if y.is_floating_point() else self.embedding(y)

    def condition(self, y: Tensor, temperature: float = 1.0) -> TorchDistributionMixin:
        context = self.context(y)
        base = self.base(context.shape[:-1], temperature)
        return ConditionalTransformedDistribution(base, [self.flow]).condition(context)

    def initialize(self, z_f: Tensor, y: Tensor) -> None:
        """Set the actnorms from a batch of latents ``(B, *event_shape)`` with labels ``(B,)``.

        New couplings ignore their context. Label 0 can therefore stand in for an unknown one.
        """
        if self.embedding is not None:
            y = self._check_rows(z_f, y).clamp(min=0)
        self.flow.initialize(z_f, self.context(y))

    def class_log_prob(self, z_f: Tensor) -> Tensor:
        if self.embedding is None:
            raise ValueError("class_log_prob: this prior is conditioned on covariates and has no classes")
        return super().class_log_prob(z_f)

    def _wide_class_log_prob(self, z_f: Tensor) -> Tensor:
        if self.embedding is None:
            return self.class_log_prob(z_f)  # raises
        noise, ladj = self.flow.inverse_and_ladj(z_f, self.context(self._labels(z_f)))
        log_prob = self.base(double=True).log_prob(in_double(noise)) + in_double(ladj)
        return log_prob.movedim(0, -1)

    def encode(self, z_f: Tensor, y: Tensor) -> Tensor:
        r""":math:`z_h = h_\phi(z_f; y)`: what is left of :math:`z_f` once its label ``y`` is known."""
        return self.flow.inverse_and_ladj(z_f, self.context(y))[0]

    def decode(self, z_h: Tensor, y: Tensor) -> Tensor:
        r""":math:`z_f = h_\phi^{-1}(z_h; y)`: the inverse of :meth:`encode`.

        With another ``y`` than in :meth:`encode`, it swaps the label and keeps the rest.
        """
        return self.flow.call_and_ladj(z_h, self.context(y))[0]
