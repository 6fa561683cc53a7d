"""Conditioners and couplings for the ready-made flows, chosen by event shape."""

from __future__ import annotations

import torch
from torch import nn

from pyro_scnf._numbers import check_at_least
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
    """Makes couplings with the same kind of conditioner, scale function and context length.

    :param int width: hidden width of the residual networks.
    :param int blocks: number of residual blocks in each of these networks.
    :param str scale: scale function of the couplings.
    :param int context_dim: length of the context. 0 makes unconditional couplings.
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
        """A coupling that changes one half of the channels, given the other half.

        If the number of channels is odd, the middle one changes without ``flip`` and stays with ``flip``.
        """
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
        """The two layers of a double coupling, in generative order.

        From data to latent, the leading channels change first. Then the trailing ones change, given the
        new leading ones.
        """
        return [self.split(event_shape), self.split(event_shape, flip=True)]

    def checkerboard(self, event_shape: torch.Size, invert: bool = False) -> Layer:
        """A coupling that changes the pixels of one colour of a checkerboard, given the others."""
        channels = event_shape[0]
        net = self.net(event_shape, channels, 2 * channels)
        if self.context_dim:
            return ConditionalMaskedAffineCoupling(
                event_shape, net, context_dim=self.context_dim, scale=self.scale, invert=invert
            )
        return MaskedAffineCoupling(event_shape, net, scale=self.scale, invert=invert)
