"""What the ready-made flows are built from: conditioners and couplings chosen by event shape."""

from __future__ import annotations

import torch
from torch import nn

from pyro_scnf._checks import check_at_least
from pyro_scnf.nn import NetSpec, make_net
from pyro_scnf.transforms import (
    AffineCoupling,
    ConditionalAffineCoupling,
    ConditionalMaskedAffineCoupling,
    MaskedAffineCoupling,
)
from pyro_scnf.transforms.compose import Layer

__all__ = ["CouplingBuilder"]


class CouplingBuilder:
    """Makes couplings of one style: one conditioner family, one scale function, one context length.

    :param int width: hidden width of the residual networks.
    :param int blocks: their number of residual blocks.
    :param str scale: scale function.
    :param int context_dim: 0 makes unconditional couplings, more makes conditional ones.
    :param net: conditioners to use instead of the residual networks, see :func:`~pyro_scnf.nn.make_net`.
    """

    def __init__(
        self, width: int, blocks: int, scale: str, context_dim: int = 0, net: NetSpec | None = None
    ) -> None:
        check_at_least(0, context_dim=context_dim)
        self.scale, self.context_dim = scale, context_dim
        self.width, self.blocks, self.spec = width, blocks, net

    def net(self, event_shape: torch.Size, in_channels: int, out_channels: int) -> nn.Module:
        """A conditioner for events of ``event_shape``."""
        kind = "residual-mlp" if len(event_shape) == 1 else "residual-conv"
        residual = {"name": kind, "width": self.width, "blocks": self.blocks}
        spec = residual if self.spec is None else self.spec
        return make_net(spec, event_shape, in_channels, out_channels, self.context_dim)

    def split(self, event_shape: torch.Size, flip: bool = False) -> Layer:
        """Coupling of channel halves. Without ``flip``, an odd middle channel is among those that change."""
        channels = event_shape[0]
        if channels < 2:
            raise ValueError(f"event_shape={tuple(event_shape)}: a channel coupling needs 2 channels or more")
        split = channels // 2 if not flip else channels - channels // 2
        net = self.net(event_shape, split, 2 * (channels - split))
        if self.context_dim:
            return ConditionalAffineCoupling(
                event_shape, net, context_dim=self.context_dim, scale=self.scale, flip=flip, split=split
            )
        return AffineCoupling(event_shape, net, scale=self.scale, flip=flip, split=split)

    def double(self, event_shape: torch.Size) -> list[Layer]:
        """The double coupling, in generative order.

        From data to latent, the leading channels change first. Then the trailing ones change, given the
        new leading ones.
        """
        return [self.split(event_shape), self.split(event_shape, flip=True)]

    def checkerboard(self, event_shape: torch.Size, invert: bool = False) -> Layer:
        """Coupling of the two colours of a checkerboard."""
        channels = event_shape[0]
        net = self.net(event_shape, channels, 2 * channels)
        if self.context_dim:
            return ConditionalMaskedAffineCoupling(
                event_shape, net, context_dim=self.context_dim, scale=self.scale, invert=invert
            )
        return MaskedAffineCoupling(event_shape, net, scale=self.scale, invert=invert)
