r"""Conditioner networks, which compute scale and shift inside a coupling.

All of them consist of a *first* layer, a *body* and a *last* layer. The last layer starts at zero, so a new
coupling ignores its input. A context vector :math:`c` enters by :math:`h = \mathrm{first}(x) + V c`. This is
the same map as concatenating ``c`` to the input, but cheaper for many contexts. With K contexts of shape
``(K, 1, E)`` and B rows of ``x``, the first layer runs on B rows. Only body and last layer run on ``K * B``
rows, in one batched call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_scnf._copies import PortableModule
from pyro_scnf._numbers import check_at_least, check_whole, check_word
from pyro_scnf._shapes import over_batch
from pyro_scnf.nn.convolutions import make_conv
from pyro_scnf.transforms.actnorm import center_and_spread

__all__ = ["MLP", "ChannelNorm", "Conditioner", "ConvNet", "ResidualConvNet", "ResidualMLP"]

Norm = Literal["final", "blocks", "none"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
}
"""Activations by name."""


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


class ResidualBlock(nn.Module):
    """``x + layer(relu(layer(relu(x))))``. If ``norm`` is given, a norm comes before each ``relu``."""

    def __init__(self, layer: Callable[[], nn.Module], norm: Callable[[], nn.Module] | None) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for _ in range(2):
            if norm is not None:
                modules.append(norm())
            modules += [nn.ReLU(), layer()]
        self.body = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


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


def _check_sizes(in_channels: int, out_channels: int, context_dim: int) -> None:
    check_at_least(1, in_channels=in_channels, out_channels=out_channels)
    check_at_least(0, context_dim=context_dim)


class _ResidualNet(Conditioner):
    """A residual network of linear layers or of convolutions, made by ``layer(in_size, out_size)``."""

    def __init__(
        self,
        layer: Callable[[int, int], nn.Linear | nn.Conv2d],
        event_dim: int,
        sizes: tuple[int, int],
        width: int,
        blocks: int,
        norm: Norm,
        context_dim: int,
    ) -> None:
        check_word("norm", norm, ("final", "blocks", "none"))
        _check_sizes(*sizes, context_dim)
        check_at_least(1, width=width)
        check_at_least(0, blocks=blocks)

        def make_norm() -> nn.Module:
            return ChannelNorm(width, event_dim)

        body: list[nn.Module] = [
            ResidualBlock(lambda: layer(width, width), make_norm if norm == "blocks" else None)
            for _ in range(blocks)
        ]
        if norm != "none":
            body.append(make_norm())
        body.append(nn.ReLU())
        super().__init__(
            layer(sizes[0], width),
            nn.Sequential(*body),
            layer(width, sizes[1]),
            width,
            event_dim,
            context_dim,
        )


class ResidualMLP(_ResidualNet):
    """Residual network of linear layers, for vectors.

    It is ``Linear(in, width)``, then ``blocks`` times ``x + Linear(relu(Linear(relu(x))))``, then a norm,
    ``relu`` and a ``Linear(width, out)`` that starts at zero.

    :param int in_channels: input features.
    :param int out_channels: output features.
    :param int width: features between the layers.
    :param int blocks: number of residual blocks.
    :param norm: ``"final"`` puts a :class:`ChannelNorm` before the last ``relu``, as in the SCNF code;
        ``"blocks"`` puts one before every ``relu``; ``"none"`` uses none.
    :param int context_dim: length of the context vector, 0 for none.
    :raises ValueError: for an unknown ``norm`` or a size out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        blocks: int = 2,
        norm: Norm = "final",
        context_dim: int = 0,
    ) -> None:
        super().__init__(nn.Linear, 1, (in_channels, out_channels), width, blocks, norm, context_dim)


class ResidualConvNet(_ResidualNet):
    """:class:`ResidualMLP` with convolutions and reflection padding, for images.

    The other parameters are those of :class:`ResidualMLP`.

    :param int kernel_size: an odd number. Images that are one pixel high or wide need 1.
    :raises ValueError: for an unknown ``norm`` or a size out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        blocks: int = 4,
        norm: Norm = "final",
        context_dim: int = 0,
        kernel_size: int = 3,
    ) -> None:
        def conv(in_size: int, out_size: int) -> nn.Conv2d:
            return make_conv(in_size, out_size, kernel_size)

        super().__init__(conv, 3, (in_channels, out_channels), width, blocks, norm, context_dim)


class MLP(Conditioner):
    """A plain network of linear layers, for vectors. It is lighter than :class:`ResidualMLP`.

    :param int in_channels: input features.
    :param int out_channels: output features.
    :param hidden: widths of the hidden layers.
    :param activation: module class of the activations, or its name: ``"relu"``, ``"tanh"``, ``"silu"``,
        ``"gelu"`` or ``"elu"``.
    :param int context_dim: length of the context vector, 0 for none.
    :raises ValueError: for an unknown activation, or no hidden width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: Sequence[int] = (64, 64),
        activation: str | Callable[[], nn.Module] = nn.ReLU,
        context_dim: int = 0,
    ) -> None:
        _check_sizes(in_channels, out_channels, context_dim)
        if isinstance(hidden, str) or not isinstance(hidden, Iterable):
            raise ValueError(f"hidden={hidden!r}: expected the widths of all hidden layers, such as (64, 64)")
        hidden = [check_whole("hidden", size, 1) for size in hidden]
        if not hidden:
            raise ValueError("hidden is empty: expected at least one width")
        if isinstance(activation, nn.Module) or not callable(activation):
            check_word("activation", activation, ACTIVATIONS)
            activation = ACTIVATIONS[str(activation)]
        body: list[nn.Module] = [activation()]
        for before, after in pairwise(hidden):
            body += [nn.Linear(before, after), activation()]
        super().__init__(
            nn.Linear(in_channels, hidden[0]),
            nn.Sequential(*body),
            nn.Linear(hidden[-1], out_channels),
            hidden[0],
            1,
            context_dim,
        )


class ConvNet(Conditioner):
    """Three convolutions, 3×3, 1×1 and 3×3, for images, as in Glow.

    It is lighter than :class:`ResidualConvNet`.

    :param int in_channels: input channels.
    :param int out_channels: output channels.
    :param int width: channels between the layers.
    :param int context_dim: length of the context vector, 0 for none.
    :param int kernel_size: kernel size of the first and the last convolution, an odd number. Images that are
        one pixel high or wide need 1.
    :raises ValueError: for a size out of range.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 64, context_dim: int = 0, kernel_size: int = 3
    ) -> None:
        _check_sizes(in_channels, out_channels, context_dim)
        check_at_least(1, width=width)
        super().__init__(
            make_conv(in_channels, width, kernel_size),
            nn.Sequential(nn.ReLU(), make_conv(width, width, 1), nn.ReLU()),
            make_conv(width, out_channels, kernel_size),
            width,
            3,
            context_dim,
        )
