r"""Velocity fields of continuous flows, with products of their Jacobian.

A field is a network :math:`f(t, z, c)` that gives :math:`dz/dt`. A continuous flow also needs the divergence
of the field. It follows from products :math:`J v` of the Jacobian :math:`J = \partial f / \partial z` with
a few vectors. The layers here carry such products along with their values, in ordinary operations. That is
cheaper than automatic differentiation inside of automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_scnf._copies import PortableModule
from pyro_scnf._numbers import check_whole, check_word
from pyro_scnf._shapes import as_event_shape, over_batch
from pyro_scnf.nn.conditioners import check_hidden

__all__ = ["Dynamics", "LayerName"]

LayerName = Literal["concatsquash", "concat", "ignore"]
LAYERS = ("concatsquash", "concat", "ignore")


def _tanh(h: Tensor) -> tuple[Tensor, Tensor]:
    value = h.tanh()
    return value, torch.addcmul(value.new_ones(()), value, value, value=-1)  # 1 - value²


def _softplus(h: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(h), h.sigmoid()


ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"tanh": _tanh, "softplus": _softplus}
"""Activations by name. Each gives its value and its derivative."""


class _TimedLayer(nn.Module):
    r"""A linear map or a convolution whose output channels depend on time and context.

    :math:`(W h + b) \odot \sigma(\gamma t + \gamma_0 + G c) + \beta t + B c`; without the gate for
    ``"concat"``, and without time for ``"ignore"``.
    """

    gate: nn.Parameter | None
    gate_slope: nn.Parameter | None
    slope: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, event_dim: int, kind: str, context_dim: int) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.map: nn.Linear | nn.Conv2d = (
            nn.Linear(inputs, outputs) if event_dim == 1 else nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        gated = kind == "concatsquash"
        # FFJORD draws the coefficients of time from U(-1, 1), as PyTorch does for a layer with one input.
        for name, there in (("gate_slope", gated), ("gate", gated), ("slope", kind != "ignore")):
            coefficients = nn.Parameter(torch.empty(outputs).uniform_(-1, 1)) if there else None
            self.register_parameter(name, coefficients)
        self.context: nn.Linear | None = None
        if context_dim:
            self.context = nn.Linear(context_dim, outputs * (1 + gated), bias=False)
            nn.init.zeros_(self.context.weight)

    def _over_pixels(self, channels: Tensor) -> Tensor:
        """Numbers for each channel, in a shape that broadcasts over pixels."""
        return channels if self.event_dim == 1 else channels[..., None, None]

    def modulation(self, t: Tensor, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The gate and the shift of the channels at time ``t``, ``None`` where there is none."""
        if t.dim() and self.event_dim == 3:
            t = t[..., 0, 0]  # (*batch, 1), to broadcast against channels
        gate = None
        if self.gate is not None and self.gate_slope is not None:
            gate = self.gate + self.gate_slope * t
        shift = None if self.slope is None else self.slope * t
        if self.context is not None:
            by_context = self.context(context)
            if gate is not None:
                of_gate, by_context = by_context.chunk(2, -1)
                gate = gate + of_gate
            shift = by_context if shift is None else shift + by_context
        if gate is not None:
            gate = self._over_pixels(gate.sigmoid())
        return gate, None if shift is None else self._over_pixels(shift)

    def linear(self, h: Tensor) -> Tensor:
        """:math:`W h`, for any number of batch dimensions."""
        weight = self.map.weight
        if self.event_dim == 1:
            return F.linear(h, weight)
        return over_batch(lambda rows: F.conv2d(rows, weight, padding=1), h, 3)

    def forward(
        self, t: Tensor, h: Tensor, tangents: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        gate, shift = self.modulation(t, context)
        assert self.map.bias is not None
        value = self.linear(h) + self._over_pixels(self.map.bias)
        if tangents is not None:
            tangents = self.linear(tangents)
        if gate is not None:
            value = value * gate
            tangents = None if tangents is None else tangents * gate
        return value if shift is None else value + shift, tangents


class Dynamics(PortableModule):
    r"""A velocity field :math:`dz/dt = f(t, z, c)`: the network of FFJORD, with or without a context.

    Vectors have linear layers, and images 3×3 convolutions that keep the size. Each layer maps :math:`h` to

    .. math:: (W h + b) \odot \sigma(\gamma t + \gamma_0 + G c) + \beta t + B c.

    So time and context enter alike, by a gate and a bias of each channel. :math:`G` and :math:`B` start at
    zero: a new field ignores its context.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param hidden: widths of the hidden layers.
    :param layer: ``"concatsquash"``, the map above; ``"concat"``, without the gate; or ``"ignore"``, without
        gate and time. The context enters all of them.
    :param activation: ``"tanh"`` or ``"softplus"``. Both are smooth, so that a solver can take long steps.
    :param int context_dim: length of the context vector, 0 for none.
    :raises ValueError: for another word, or no hidden layer.

    References: Grathwohl et al., *FFJORD*, 2019; Atanov et al., *Semi-Conditional Normalizing Flows*, 2019,
    appendix C (context).
    """

    settings: ClassVar[tuple[str, ...]] = ("activation",)

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        hidden: Sequence[int] = (64, 64, 64),
        layer: LayerName = "concatsquash",
        activation: Literal["tanh", "softplus"] = "tanh",
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        check_word("layer", layer, LAYERS)
        check_word("activation", activation, ACTIVATIONS)
        self.context_dim = check_whole("context_dim", context_dim, 0)
        widths = [self.event_shape[0], *check_hidden(hidden), self.event_shape[0]]
        event_dim = len(self.event_shape)
        self.layers = nn.ModuleList(
            _TimedLayer(inputs, outputs, event_dim, layer, self.context_dim)
            for inputs, outputs in pairwise(widths)
        )
        self.activation = activation

    def forward(self, t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocity at time ``t``.

        :param t: a scalar, or times that broadcast against z: ``(*batch, 1)``, for images
            ``(*batch, 1, 1, 1)``.
        :param z: ``(*batch, *event_shape)``.
        :param context: ``(*batch, context_dim)``; its batch broadcasts against that of ``z``.
        :return: ``(*batch, *event_shape)``.
        """
        return self._run(t, z, None, context)[0]

    def with_tangents(
        self, t: Tensor, z: Tensor, tangents: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The velocity and products of its Jacobian with ``tangents``, in one pass.

        :param tangents: S vectors, ``(S, *batch, *event_shape)``. Batch dimensions of size 1 broadcast.
        :return: the velocity ``(*batch, *event_shape)`` and the products ``(S, *batch, *event_shape)``.
        """
        velocity, products = self._run(t, z, tangents, context)
        assert products is not None
        return velocity, products

    def _run(
        self, t: Tensor, h: Tensor, tangents: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if (context is None) == bool(self.context_dim):
            given = "none" if context is None else "one"
            raise ValueError(f"context: this field has context_dim={self.context_dim}, and got {given}")
        *inner, last = self.layers
        activation = ACTIVATIONS[self.activation]
        for layer in inner:
            h, tangents = layer(t, h, tangents, context)
            h, slope = activation(h)
            tangents = None if tangents is None else tangents * slope
        return last(t, h, tangents, context)
