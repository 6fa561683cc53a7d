"""Chains of layers, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_scnf.transforms.base import ConditionalFlowTransform, FlowTransform

__all__ = ["Compose", "ConditionalCompose", "compose"]

Layer = FlowTransform | ConditionalFlowTransform


def context_of(layer: nn.Module, context: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What ``layer`` is to be given of the context: all of it, or nothing if unconditional."""
    return context if isinstance(layer, ConditionalFlowTransform) else ()


def common_context_dim(layers: Sequence[Any]) -> int | None:
    """The one context length of the conditional layers, ``None`` if there are none."""
    dims = {layer.context_dim for layer in layers if isinstance(layer, ConditionalFlowTransform)}
    if len(dims) > 1:
        raise ValueError(f"layers: the conditional ones expect contexts of different lengths {sorted(dims)}")
    return dims.pop() if dims else None


def check_layers(layers: Sequence[Any], name: str, owner: str) -> None:
    """Raise unless there is a layer and every one is ours."""
    if not layers:
        raise ValueError(f"{owner}: {name} is empty")
    for layer in layers:
        if not isinstance(layer, (FlowTransform, ConditionalFlowTransform)):
            raise ValueError(
                f"{owner}: {name} must be FlowTransform or ConditionalFlowTransform, got "
                f"{type(layer).__name__}"
            )


def check_chain(layers: Sequence[Any], owner: str) -> None:
    """Raise unless every layer is ours and each fits the next (generative order)."""
    check_layers(layers, "layers", owner)
    for deeper, layer in pairwise(layers):
        if deeper.event_shape != layer.base_shape:
            raise ValueError(
                f"{owner}: {type(deeper).__name__} gives {tuple(deeper.event_shape)} but the next layer, "
                f"{type(layer).__name__}, takes {tuple(layer.base_shape)}"
            )


class _Chain:
    """Running the layers; shared by the unconditional and the conditional chain."""

    layers: Sequence[Layer]  # an ``nn.ModuleList``

    @property
    def domain(self) -> constraints.Constraint:
        return self.layers[0].domain

    @property
    def codomain(self) -> constraints.Constraint:
        return self.layers[-1].codomain

    @property
    def latent_shape(self) -> torch.Size:
        return self.layers[0].latent_shape

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        total = None
        for layer in self.layers:
            z, ladj = layer._forward_ladj(z, *context_of(layer, context))
            total = ladj if total is None else total + ladj
        return z, total  # type: ignore[return-value]

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        total = None
        for layer in reversed(self.layers):
            x, ladj = layer._inverse_ladj(x, *context_of(layer, context))
            total = ladj if total is None else total + ladj
        return x, total  # type: ignore[return-value]

    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            x = layer._initialize(x, *context_of(layer, context))
        return x


class Compose(_Chain, FlowTransform):
    """Layers one after the other, in generative order (the first is nearest the latent).

    One pass gives value and log-determinant, where PyTorch's ``ComposeTransform`` would run the
    layers about twice.

    :param layers: unconditional layers, each fitting the next.
    :raises ValueError: if two neighbours do not fit or a layer is conditional.
    """

    def __init__(self, layers: Sequence[FlowTransform]) -> None:
        check_chain(layers, "Compose")
        if common_context_dim(layers) is not None:
            raise ValueError("Compose: a layer is conditional, use ConditionalCompose (or compose)")
        super().__init__(layers[-1].event_shape, layers[0].base_shape)
        self.layers = cast("Sequence[Layer]", nn.ModuleList(layers))


class ConditionalCompose(_Chain, ConditionalFlowTransform):
    """:class:`Compose` in which at least one layer is conditional; all of them see one context."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        check_chain(layers, "ConditionalCompose")
        context_dim = common_context_dim(layers)
        if context_dim is None:
            raise ValueError("ConditionalCompose: no layer is conditional, use Compose (or compose)")
        super().__init__(layers[-1].event_shape, context_dim, layers[0].base_shape)
        self.layers = cast("Sequence[Layer]", nn.ModuleList(layers))


def compose(layers: Sequence[Layer]) -> Compose | ConditionalCompose:
    """:class:`ConditionalCompose` if any layer is conditional, else :class:`Compose`."""
    if common_context_dim(layers) is None:
        return Compose(layers)  # type: ignore[arg-type]
    return ConditionalCompose(layers)
