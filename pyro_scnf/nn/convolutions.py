"""Convolutions of the conditioner networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import is_wrapped, no_autocast

__all__ = ["make_conv"]


class _ChannelsLast(nn.Conv2d):
    """A convolution that runs channels-last, the fastest layout. Its weight stays in the usual layout.

    Pyro's store holds copies of tensors in other layouts, and ``SVI`` would train the copies.
    """

    def forward(self, x: Tensor) -> Tensor:
        # Neither torch.func nor vectorised forward mode knows this layout.
        if not is_wrapped(x) and forward_ad._current_level < 0:
            x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class _Reflect(_ChannelsLast):
    """A convolution whose output has the size of its input, thanks to padding by reflection."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.margin = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        # Pad without autocast. Autocast would pad in float32, which moves twice the memory, and would convert
        # the values there and back.
        with no_autocast(x.device.type):
            x = F.pad(x, (self.margin,) * 4, mode="reflect")
        return super().forward(x)


def make_conv(in_size: int, out_size: int, kernel_size: int, name: str = "kernel_size") -> nn.Conv2d:
    """A convolution whose output has the size of its input.

    :param str name: what the user calls ``kernel_size``.
    :raises ValueError: for an even ``kernel_size``, or one below 1.
    """
    if check_whole(name, kernel_size, 1) % 2 == 0:
        raise ValueError(f"{name}={kernel_size}: expected an odd number")
    kind = _Reflect if kernel_size > 1 else _ChannelsLast
    return kind(in_size, out_size, kernel_size)
