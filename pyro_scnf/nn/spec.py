"""Name the conditioner networks of a flow by a word, a dict, an import path or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import as_event_shape
from pyro_scnf._spec import Named, read_spec
from pyro_scnf.nn.plain import MLP, ConvNet
from pyro_scnf.nn.residual import PooledConvNet, ResidualConvNet, ResidualMLP, SkipConvNet

__all__ = ["NETS", "NetFactory", "NetSpec", "make_net"]

NetFactory = Callable[..., nn.Module]
"""A function or class: ``net(in_channels, out_channels, context_dim=...)`` makes a conditioner."""

NetSpec = str | Mapping[str, object] | NetFactory
"""The ways to name a conditioner, see :func:`make_net`."""

NETS: dict[str, NetFactory] = {
    "mlp": MLP,
    "residual-mlp": ResidualMLP,
    "conv": ConvNet,
    "residual-conv": ResidualConvNet,
    "skip-conv": SkipConvNet,
    "pooled-conv": PooledConvNet,
}
"""Conditioners by name: two for vectors, then four for images."""

_CONVOLUTIONAL = ("conv", "residual-conv", "skip-conv", "pooled-conv")


def make_net(
    spec: NetSpec, event_shape: Sequence[int] | int, in_channels: int, out_channels: int, context_dim: int = 0
) -> nn.Module:
    """The conditioner that ``spec`` names, for events of ``event_shape``.

    :param spec: a word of :data:`NETS`, a word with options (``"conv:width=96"``), a mapping with the
        key ``name``, the import path of a class or function of your own, or a :data:`NetFactory`.
    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param int in_channels: channels of the input.
    :param int out_channels: channels of the output.
    :param int context_dim: length of the context vector, 0 for none.
    :raises ValueError: for an unknown word or option, a value that an option cannot have, a ready network, a
        kernel larger than the image, or a network for vectors if events are images, or the other way round.

    If the image is one pixel high or wide, convolutions have a kernel of one pixel, because padding by
    reflection needs more pixels.

    >>> net = make_net("mlp:hidden=(8, 8),activation=tanh", torch.Size((4,)), 2, 4)
    >>> net(torch.randn(3, 2)).shape
    torch.Size([3, 4])
    """
    shape = as_event_shape(event_shape)
    check_at_least(1, in_channels=in_channels, out_channels=out_channels)
    check_at_least(0, context_dim=context_dim)
    if isinstance(spec, nn.Module):
        raise ValueError(
            f"net: got a {type(spec).__name__}, which is a network; expected a word, or a class or function "
            "that makes one, because each coupling needs a network of its own"
        )
    named = read_spec(spec, NETS, "net")
    word = None if named.description is None else named.description["name"]
    if word in NETS:
        images = len(shape) == 3
        if images != (word in _CONVOLUTIONAL):
            kind = "images" if images else "vectors"
            fitting = [name for name in NETS if (name in _CONVOLUTIONAL) == images]
            raise ValueError(f"{named.label}: events are {kind}, expected {' or '.join(map(repr, fitting))}")
        if images:
            _fit_kernel(named, min(shape[1:]))
    channels = {"in_channels": in_channels, "out_channels": out_channels}
    return named.make(channels, context_dim=context_dim)


def _fit_kernel(named: Named[nn.Module], side: int) -> None:
    """Set the default kernel size for images whose shorter side has ``side`` pixels, or check the one given.

    Padding by reflection needs more pixels than it adds.
    """
    if side == 1:
        named.options.setdefault("kernel_size", 1)
    size = named.options.get("kernel_size", 1)
    if isinstance(size, int | np.integer) and size // 2 >= side:
        raise ValueError(
            f"{named.label}: kernel_size={size}: expected at most {2 * side - 1} for images whose shorter "
            f"side has {side} pixels"
        )
