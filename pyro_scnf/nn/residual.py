"""Residual conditioner networks, for vectors and for images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_scnf._numbers import check_at_least, check_word
from pyro_scnf.nn.conditioners import ChannelNorm, Conditioner, check_sizes
from pyro_scnf.nn.convolutions import make_conv

__all__ = ["PooledConvNet", "ResidualConvNet", "ResidualMLP", "SkipConvNet"]

Norm = Literal["final", "blocks", "none"]


def _check_residual(in_channels: int, out_channels: int, context_dim: int, width: int, blocks: int) -> None:
    check_sizes(in_channels, out_channels, context_dim)
    check_at_least(1, width=width)
    check_at_least(0, blocks=blocks)


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
        _check_residual(*sizes, context_dim, width, blocks)

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


class _PooledBlock(nn.Module):
    """A residual block of a convolution, and of a map of each pixel and of the mean over all pixels."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.before, self.between = ChannelNorm(width, 3), ChannelNorm(width, 3)
        self.conv = make_conv(width, width, kernel_size)
        self.pixel, self.mean = make_conv(width, width, 1), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.between(self.conv(self.before(x).relu())).relu()
        return x + self.pixel(h) + self.mean(h.mean((-2, -1)))[..., None, None]


class PooledConvNet(Conditioner):
    """A residual network for images, whose blocks also see the mean over all pixels.

    What a small image shows as a whole, such as its class, reaches every pixel after one block. Each block is
    a convolution and a 1×1 convolution, with a norm before both ``relu``. A linear function of the mean
    over the pixels is added to the second one.

    :param int in_channels: input channels.
    :param int out_channels: output channels.
    :param int width: channels between the layers.
    :param int blocks: number of residual blocks.
    :param int context_dim: length of the context vector, 0 for none.
    :param int kernel_size: kernel size of the first and the last layer and of the blocks, an odd number.
        Images that are one pixel high or wide need 1.
    :raises ValueError: for a size out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        blocks: int = 1,
        context_dim: int = 0,
        kernel_size: int = 3,
    ) -> None:
        _check_residual(in_channels, out_channels, context_dim, width, blocks)
        super().__init__(
            make_conv(in_channels, width, kernel_size),
            nn.Sequential(
                *(_PooledBlock(width, kernel_size) for _ in range(blocks)), ChannelNorm(width, 3), nn.ReLU()
            ),
            make_conv(width, out_channels, kernel_size),
            width,
            3,
            context_dim,
        )


class _SignedParts(nn.Module):
    """The positive part and the negative part of every channel, as twice as many channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], -3).relu()


class _Accumulator(nn.Module):
    """The sum of a layer of the input and of a layer of every block's output; each has its own layer."""

    def __init__(self, blocks: Iterable[nn.Module], skips: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks, self.skips = nn.ModuleList(blocks), nn.ModuleList(skips)

    def forward(self, h: Tensor) -> Tensor:
        first, *others = self.skips
        total: Tensor = first(h)
        for block, skip in zip(self.blocks, others, strict=True):
            h = block(h)
            total = total + skip(h)
        return total


class SkipConvNet(Conditioner):
    """The image network of FlowGMM's Real NVP, which adds up what every residual block says.

    The first layer is a norm, the positive and the negative parts of all channels, and a convolution to
    ``width`` channels. ``blocks`` residual blocks follow, with a norm before each of their two ``relu``.
    1×1 convolutions of the first layer's output and of every block's output are added up. The last layer is
    a norm, ``relu`` and a 1×1 convolution, which starts at zero.

    :param int in_channels: input channels.
    :param int out_channels: output channels.
    :param int width: channels between the layers.
    :param int blocks: number of residual blocks.
    :param int context_dim: length of the context vector, 0 for none.
    :param int kernel_size: kernel size of the first layer and the blocks, an odd number. Images that are one
        pixel high or wide need 1.
    :raises ValueError: for a size out of range.

    The released code differs in three points. Its norms are batch norms. With these the density of a row
    depends on the other rows of the batch, and every forward pass in training changes the state of the
    network. The norms here are a :class:`ChannelNorm`, which is set from data once and then learns. Its
    convolutions have weight norm, whose purpose the data-dependent start serves here. It pads with zeros;
    all networks of this module pad by reflection.

    Reference: Izmailov et al., *Semi-Supervised Learning with Normalizing Flows*, 2020, after Dinh et al.,
    *Real NVP*, 2017.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        blocks: int = 4,
        context_dim: int = 0,
        kernel_size: int = 3,
    ) -> None:
        _check_residual(in_channels, out_channels, context_dim, width, blocks)

        def norm() -> ChannelNorm:
            return ChannelNorm(width, 3)

        def conv() -> nn.Conv2d:
            return make_conv(width, width, kernel_size)

        accumulator = _Accumulator(
            [ResidualBlock(conv, norm) for _ in range(blocks)],
            [make_conv(width, width, 1) for _ in range(blocks + 1)],
        )
        super().__init__(
            nn.Sequential(
                ChannelNorm(in_channels, 3), _SignedParts(), make_conv(2 * in_channels, width, kernel_size)
            ),
            nn.Sequential(accumulator, norm(), nn.ReLU()),
            make_conv(width, out_channels, 1),
            width,
            3,
            context_dim,
        )
