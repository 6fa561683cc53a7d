"""Chains of layers, evaluated in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import TypeGuard, cast, overload

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_scnf.transforms.base import ConditionalFlowTransform, FlowTransform
from pyro_scnf.transforms.bijection import Bijection
from pyro_scnf.transforms.shape import Rearrangement

__all__ = ["Compose", "ConditionalCompose", "compose"]

Layer = FlowTransform | ConditionalFlowTransform


def context_of(layer: Layer, context: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The part of the context that ``layer`` takes: all of it, or nothing if ``layer`` is unconditional."""
    return context if isinstance(layer, ConditionalFlowTransform) else ()


def common_context_dim(layers: Sequence[object]) -> int | None:
    """The context length that all conditional layers share, or ``None`` if there are no such layers.

    :raises ValueError: if two conditional layers expect contexts of different lengths.
    """
    dims = {layer.context_dim for layer in layers if isinstance(layer, ConditionalFlowTransform)}
    if len(dims) > 1:
        raise ValueError(f"layers: the conditional ones expect contexts of different lengths {sorted(dims)}")
    return dims.pop() if dims else None


def all_unconditional(layers: Sequence[Layer]) -> TypeGuard[Sequence[FlowTransform]]:
    """Whether no layer takes a context."""
    return common_context_dim(layers) is None


def check_layers(layers: Sequence[object], name: str, owner: str) -> None:
    """Raise unless there is at least one layer and every one is a layer of this package."""
    if not isinstance(layers, Sequence | nn.ModuleList):
        raise ValueError(f"{owner}: {name} is a {type(layers).__name__}, expected a list of layers")
    if not layers:
        raise ValueError(f"{owner}: {name} is empty")
    for layer in layers:
        if not isinstance(layer, (FlowTransform, ConditionalFlowTransform)):
            raise ValueError(
                f"{owner}: {name} must be FlowTransform or ConditionalFlowTransform, got "
                f"{type(layer).__name__}"
            )


def check_chain(layers: Sequence[Layer], owner: str) -> None:
    """Raise unless every layer is one of this package and fits the next one, in generative order."""
    check_layers(layers, "layers", owner)
    for deeper, layer in pairwise(layers):
        if deeper.event_shape != layer.base_shape:
            raise ValueError(
                f"{owner}: {type(deeper).__name__} gives {tuple(deeper.event_shape)} but the next layer, "
                f"{type(layer).__name__}, takes {tuple(layer.base_shape)}"
            )


def sum_ladjs(ladjs: list[Tensor]) -> Tensor:
    """The log-determinant of a chain, from those of its layers in the order in which they ran."""
    return sum(ladjs[1:], ladjs[0])


class _Chain(Bijection):
    """Runs the layers of a chain, with or without a context."""

    layers: Sequence[Layer]  # an ``nn.ModuleList``

    def _set_layers(self, layers: Sequence[Layer]) -> None:
        self.layers = cast("Sequence[Layer]", nn.ModuleList(layers))

    @property
    def domain(self) -> constraints.Constraint:
        return self.layers[0].domain

    @property
    def codomain(self) -> constraints.Constraint:
        # Layers that only move entries do not change where these may lie.
        moved = takewhile(lambda layer: isinstance(layer, Rearrangement), reversed(self.layers))
        inner = self.layers[max(len(self.layers) - 1 - len(list(moved)), 0)].codomain
        while isinstance(inner, constraints.independent):
            inner = inner.base_constraint
        return constraints.independent(inner, len(self.event_shape))

    @property
    def latent_shape(self) -> torch.Size:
        return self.layers[0].latent_shape

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        ladjs = []
        for layer in self.layers:
            z, ladj = layer._forward_ladj(z, *context_of(layer, context))
            ladjs.append(ladj)
        return z, sum_ladjs(ladjs)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        ladjs = []
        for layer in reversed(self.layers):
            x, ladj = layer._inverse_ladj(x, *context_of(layer, context))
            ladjs.append(ladj)
        return x, sum_ladjs(ladjs)

    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            x = layer._initialize(x, *context_of(layer, context))
        return x


class Compose(_Chain, FlowTransform):
    """Layers one after the other, in generative order: the first is nearest the latent.

    One pass computes the value and the log-determinant. PyTorch's ``ComposeTransform`` runs the layers about
    twice for both.

    :param layers: unconditional layers. The event shape of each is the base shape of the next.
    :raises ValueError: if two neighbours do not fit or a layer is conditional.
    """

    def __init__(self, layers: Sequence[FlowTransform]) -> None:
        check_chain(layers, "Compose")
        if not all_unconditional(layers):
            raise ValueError("Compose: a layer is conditional, use ConditionalCompose (or compose)")
        super().__init__(layers[-1].event_shape, layers[0].base_shape)
        self._set_layers(layers)


class ConditionalCompose(_Chain, ConditionalFlowTransform):
    """:class:`Compose` with at least one conditional layer. All conditional layers see the same context.

    :param layers: layers in generative order. The event shape of each is the base shape of the next.
    :raises ValueError: if two neighbours do not fit, no layer is conditional, or two conditional layers
        expect contexts of different lengths.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        check_chain(layers, "ConditionalCompose")
        context_dim = common_context_dim(layers)
        if context_dim is None:
            raise ValueError("ConditionalCompose: no layer is conditional, use Compose (or compose)")
        super().__init__(layers[-1].event_shape, context_dim, layers[0].base_shape)
        self._set_layers(layers)


@overload
def compose(layers: Sequence[FlowTransform]) -> Compose: ...
@overload
def compose(layers: Sequence[Layer]) -> Compose | ConditionalCompose: ...
def compose(layers: Sequence[Layer]) -> Compose | ConditionalCompose:
    """:class:`ConditionalCompose` if any layer is conditional, else :class:`Compose`.

    :param layers: layers in generative order: the first is nearest the latent.
    :raises ValueError: if two neighbours do not fit, or two conditional layers expect contexts of different
        lengths.
    """
    check_layers(layers, "layers", "compose")
    return Compose(layers) if all_unconditional(layers) else ConditionalCompose(layers)
