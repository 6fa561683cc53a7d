r"""A conditional flow as prior: the semi-conditional flow's own :math:`h_\phi`."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pyro.distributions.conditional import ConditionalTransformedDistribution
from torch import Tensor, nn

from pyro_scnf._checks import check_at_least, check_finite
from pyro_scnf._shapes import as_event_shape, check_event
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
    :param int levels: levels of the conditional flow, factoring out between them.
    :param scale: scale function of the couplings.
    :param coupling: ``"double"`` or ``"alternate"``.
    :param conv: parameterisation of the invertible mixing.
    :param base: ``"learnable"`` or ``"unit"`` scale of the base noise.
    :param float base_scale: its initial value.
    :param int embedding_dim: length of the label embedding; K by default, where it starts one-hot.
    :param flow: a conditional transform to use instead of the Glow, with vector base.
    :param net: conditioners of the Glow, instead of residual networks: a word, a dict or a function, see
        :func:`~pyro_scnf.nn.make_net`.
    :param int context_dim: condition on real vectors of this length (covariates) instead of labels;
        ``num_classes`` is then ignored and nothing is embedded.

    Reference: Atanov et al., *Semi-Conditional Normalizing Flows*, 2019, section 3.3.
    """

    def __init__(
        self,
        event_shape: Any,
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
            flow = _default_flow(
                self.event_shape,
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
        if flow.event_shape != self.event_shape or getattr(flow, "context_dim", None) != context_dim:
            raise ValueError(
                f"flow: expected a conditional transform of event_shape {tuple(self.event_shape)} and "
                f"context_dim {context_dim}, got {tuple(flow.event_shape)} and "
                f"{getattr(flow, 'context_dim', None)}"
            )
        self.context_dim = context_dim
        self.flow = cast(ConditionalFlowTransform, flow)
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

    def condition(self, y: Tensor, temperature: float = 1.0) -> Any:
        context = self.context(y)
        base = self.base(context.shape[:-1], temperature)
        return ConditionalTransformedDistribution(base, [self.flow]).condition(context)

    def initialize(self, z_f: Tensor, y: Tensor) -> None:
        """Set actnorms from the latents. New couplings ignore their context, so an unknown label may
        be taken for any."""
        if self.embedding is not None:
            y = self._check_rows(z_f, y).clamp(min=0)
        self.flow.initialize(z_f, self.context(y))

    def class_log_prob(self, z_f: Tensor) -> Tensor:
        if self.embedding is None:
            raise ValueError("class_log_prob: this prior is conditioned on covariates and has no classes")
        return super().class_log_prob(z_f)

    def encode(self, z_f: Tensor, y: Tensor) -> Tensor:
        r""":math:`z_h = h_\phi(z_f; y)`: what is left of :math:`z_f` once the label is known."""
        return self.flow.inverse_and_ladj(z_f, self.context(y))[0]

    def decode(self, z_h: Tensor, y: Tensor) -> Tensor:
        r""":math:`z_f = h_\phi^{-1}(z_h; y)`: undoes :meth:`encode`; with another label, swaps it."""
        return self.flow.call_and_ladj(z_h, self.context(y))[0]  # type: ignore[call-arg]


def _default_flow(event_shape: torch.Size, **options: Any) -> Layer:
    """A conditional Glow on the flattened event."""
    shape = as_event_shape(event_shape)
    layers = [glow(shape.numel(), **options)]
    return compose([*layers, Flatten(shape)]) if len(shape) == 3 else layers[0]
