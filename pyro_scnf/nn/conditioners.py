r"""Conditioner networks, which compute scale and shift inside a coupling.

All of them consist of a *first* layer, a *body* and a *last* layer. The last layer starts at zero, so a new
coupling ignores its input. A context vector :math:`c` enters by :math:`h = \mathrm{first}(x) + V c`. This is
the same map as concatenating ``c`` to the input, but cheaper for many contexts. With K contexts of shape
``(K, 1, E)`` and B rows of ``x``, the first layer runs on B rows. Only body and last layer run on ``K * B``
rows, in one batched call.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pyro_scnf._copies import PortableModule
from pyro_scnf._numbers import check_at_least, check_whole
from pyro_scnf._shapes import over_batch
from pyro_scnf.transforms.actnorm import center_and_spread

__all__ = ["ChannelNorm", "Conditioner", "check_hidden", "check_sizes"]


class ChannelNorm(nn.Module):
    """An affine map of each channel. It is the identity until ``Conditioner.initialize`` sets it from data.

    It is :class:`~pyro_scnf.transforms.ActNorm` as a plain layer of a network, without log-determinant.

    :param int channels: number of channels.
    :param int event_dim: 1 for vectors, 3 for images.
    """

    def __init__(self, channels: int, event_dim: int) -> None:
        super().__init__()
        check_at_least(1, channels=channels, event_dim=event_dim)
        shape = (channels,) + (1,) * (event_dim - 1)
        self.loc = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        # Cast the parameters to x's dtype. Under autocast x is bfloat16, and a float32 parameter would
        # promote every later layer back to float32.
        scale = (-self.log_scale).exp()
        return (x - self.loc.to(x.dtype)) * scale.to(x.dtype)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        center, spread = center_and_spread(x, self.event_dim)
        self.loc.copy_(center.reshape(self.loc.shape))
        self.log_scale.copy_(spread.log().reshape(self.loc.shape))


class Conditioner(PortableModule):
    """A network of a first layer, a body, and a last layer that starts at zero.

    The context is added to the output of the first layer. Inputs may have any number of batch dimensions.

    :param first: the first layer.
    :param body: everything between the first and the last layer.
    :param last: the last layer. Its weight and bias are set to zero.
    :param int width: channels of the first layer's output.
    :param int event_dim: 1 for vectors, 3 for images.
    :param int context_dim: length of the context vector, 0 for none.
    """

    def __init__(
        self,
        first: nn.Module,
        body: nn.Module,
        last: nn.Linear | nn.Conv2d,
        width: int,
        event_dim: int,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, width=width, event_dim=event_dim)
        check_at_least(0, context_dim=context_dim)
        self.first, self.body, self.last = first, body, last
        self.context = nn.Linear(context_dim, width, bias=False) if context_dim else None
        self.event_dim = event_dim
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The output of the network. The batch shapes of ``x`` and ``context`` broadcast.

        :param x: ``(*batch, C)`` or ``(*batch, C, H, W)``.
        :param context: ``(*batch, E)``, if the network was built with ``context_dim``.
        :raises ValueError: for a context that the network was not built for, or a missing one.
        """
        if (self.context is None) != (context is None):
            built, given = ("without", "got one") if self.context is None else ("with", "got none")
            raise ValueError(f"context: this net was built {built} context_dim, but {given}")
        h = over_batch(self.first, x, self.event_dim)
        if self.context is not None:
            bias = self.context(context)
            h = h + bias.reshape(bias.shape + (1,) * (self.event_dim - 1))
        return over_batch(self._tail, h, self.event_dim)

    def _tail(self, h: Tensor) -> Tensor:
        return self.last(self.body(h))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Pass ``x`` through the network and set each :class:`ChannelNorm` from its input, first to last."""
        hooks = [
            module.register_forward_pre_hook(lambda norm, args: norm.initialize(args[0]))
            for module in self.modules()
            if isinstance(module, ChannelNorm)
        ]
        try:
            if hooks:
                self(x, context)
        finally:
            for hook in hooks:
                hook.remove()


def check_sizes(in_channels: int, out_channels: int, context_dim: int) -> None:
    check_at_least(1, in_channels=in_channels, out_channels=out_channels)
    check_at_least(0, context_dim=context_dim)


def check_hidden(hidden: object) -> list[int]:
    """Raise unless ``hidden`` holds the width of at least one layer. Return the widths."""
    if isinstance(hidden, str) or not isinstance(hidden, Iterable):
        raise ValueError(f"hidden={hidden!r}: expected the widths of all hidden layers, such as (64, 64)")
    widths = [check_whole("hidden", size, 1) for size in hidden]
    if not widths:
        raise ValueError("hidden is empty: expected at least one width")
    return widths
