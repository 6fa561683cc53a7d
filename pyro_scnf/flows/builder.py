"""What the ready-made flows are built from: conditioners and couplings chosen by event shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pyro_scnf._checks import check_at_least
from pyro_scnf.nn import ResidualConvNet, ResidualMLP
from pyro_scnf.transforms import (
    AffineCoupling,
    ConditionalAffineCoupling,
    ConditionalMaskedAffineCoupling,
    MaskedAffineCoupling,
)
from pyro_scnf.transforms.compose import Layer

__all__ = ["CouplingBuilder", "NetFactory"]

NetFactory = Callable[..., nn.Module]
"""``net(in_channels, out_channels, context_dim=...)`` gives a conditioner."""


class CouplingBuilder:
    """Makes couplings of one style: one conditioner family, one scale function, one context length.

    :param int width: hidden width of the conditioners.
    :param int blocks: residual blocks of the conditioners.
    :param str scale: scale function.
    :param int context_dim: 0 makes unconditional couplings, more makes conditional ones.
    :param net: a :data:`NetFactory` to use instead of the residual networks.
    """

    def __init__(
        self, width: int, blocks: int, scale: str, context_dim: int = 0, net: NetFactory | None = None
    ) -> None:
        check_at_least(0, context_dim=context_dim)
        self.width, self.blocks, self.scale = width, blocks, scale
        self.context_dim, self.factory = context_dim, net

    def net(self, event_shape: torch.Size, in_channels: int, out_channels: int) -> nn.Module:
        if self.factory is not None:
            return self.factory(in_channels, out_channels, context_dim=self.context_dim)
        options: dict[str, Any] = {
            "width": self.width,
            "blocks": self.blocks,
            "context_dim": self.context_dim,
        }
        if len(event_shape) == 1:
            return ResidualMLP(in_channels, out_channels, **options)
        # Reflection needs two pixels each way.
        kernel_size = 3 if min(event_shape[1:]) > 1 else 1
        return ResidualConvNet(in_channels, out_channels, kernel_size=kernel_size, **options)

    def split(self, event_shape: torch.Size, flip: bool = False) -> Layer:
        """Coupling of channel halves; the middle channel of an odd number changes unflipped."""
        channels = event_shape[0]
        if channels < 2:
            raise ValueError(f"event_shape={tuple(event_shape)}: a channel coupling needs 2 channels or more")
        split = channels // 2 if not flip else channels - channels // 2
        net = self.net(event_shape, split, 2 * (channels - split))
        options: dict[str, Any] = {"scale": self.scale, "flip": flip, "split": split}
        if self.context_dim:
            return ConditionalAffineCoupling(event_shape, net, context_dim=self.context_dim, **options)
        return AffineCoupling(event_shape, net, **options)

    def double(self, event_shape: torch.Size) -> list[Layer]:
        """The double coupling in generative order: seen from the data, the leading channels change
        first, then the trailing ones given the new leading ones."""
        return [self.split(event_shape), self.split(event_shape, flip=True)]

    def checkerboard(self, event_shape: torch.Size, invert: bool = False) -> Layer:
        """Coupling of the two colours of a checkerboard."""
        channels = event_shape[0]
        net = self.net(event_shape, channels, 2 * channels)
        options: dict[str, Any] = {"scale": self.scale, "invert": invert}
        if self.context_dim:
            return ConditionalMaskedAffineCoupling(event_shape, net, context_dim=self.context_dim, **options)
        return MaskedAffineCoupling(event_shape, net, **options)
