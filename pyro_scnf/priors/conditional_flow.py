r"""A conditional flow as prior: :math:`h_\phi` of the semi-conditional flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_scnf._checks import check_finite
from pyro_scnf._numbers import check_at_least, refuse_unused
from pyro_scnf._shapes import check_event, in_double
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

    ``condition(y)`` embeds the label and conditions the flow on the embedding. By default :math:`h_\phi` is
    a conditional :func:`~pyro_scnf.flows.glow` on the flattened :math:`z_f`.

    :param event_shape: shape of :math:`z_f`.
    :param int num_classes: number of labels K. With ``context_dim`` there are no labels, and it stays 1.
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
    :param int context_dim: condition on real vectors of this length (covariates) instead of labels. There is
        no embedding then.
    :param flow: a conditional transform to use instead of the Glow. Its latent side must be a vector. The
        options of the Glow cannot be given beside it.
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
        context_dim: int | None = None,
        flow: Layer | None = None,
        net: NetSpec | None = None,
    ) -> None:
        super().__init__(event_shape, num_classes)
        base_scale = check_base_scale(base, base_scale, ("base", "base_scale"))
        self.embedding: nn.Embedding | None = None
        if context_dim is None:
            context_dim = num_classes if embedding_dim is None else embedding_dim
            check_at_least(1, embedding_dim=context_dim)
            self.embedding = nn.Embedding(num_classes, context_dim)
            if context_dim == num_classes:
                nn.init.eye_(self.embedding.weight)
        else:
            check_at_least(1, context_dim=context_dim)
            labels = f"context_dim={context_dim} conditions on covariates, not on labels"
            refuse_unused(
                labels, embedding_dim=embedding_dim, num_classes=num_classes if num_classes > 1 else None
            )
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
        self.context_dim = context_dim
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
        return Transformed(base, [self.flow.condition(context)])

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
