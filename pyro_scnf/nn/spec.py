"""Name the conditioner networks of a flow by a word, a dict, an import path or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from pyro_scnf._spec import read_spec
from pyro_scnf.nn.conditioners import MLP, ConvNet, ResidualConvNet, ResidualMLP

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
}
"""Conditioners by name: two for vectors, then two for images."""

_CONVOLUTIONAL = ("conv", "residual-conv")


def make_net(
    spec: NetSpec, event_shape: torch.Size, in_channels: int, out_channels: int, context_dim: int = 0
) -> nn.Module:
    """The conditioner that ``spec`` names, for events of ``event_shape``.

    :param spec: a word of :data:`NETS`, a word with options (``"conv:width=96"``), a mapping with the
        key ``name``, the import path of a class or function of your own, or a :data:`NetFactory`.
    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param int in_channels: channels of the input.
    :param int out_channels: channels of the output.
    :param int context_dim: length of the context vector, 0 for none.
    :raises ValueError: for an unknown word or option, or a network for vectors if events are images, or the
        other way round.

    If the image is one pixel high or wide, convolutions have a kernel of one pixel, because padding by
    reflection needs more pixels.

    >>> net = make_net("mlp:hidden=(8, 8),activation=tanh", torch.Size((4,)), 2, 4)
    >>> net(torch.randn(3, 2)).shape
    torch.Size([3, 4])
    """
    named = read_spec(spec, NETS, "net")
    options = dict(named.options)
    word = None if named.description is None else named.description["name"]
    if word in NETS:
        images = len(event_shape) == 3
        if images != (word in _CONVOLUTIONAL):
            kind = "images" if images else "vectors"
            fitting = [name for name in NETS if (name in _CONVOLUTIONAL) == images]
            raise ValueError(f"net={spec!r}: events are {kind}, expected {' or '.join(map(repr, fitting))}")
        if images and min(event_shape[1:]) == 1:
            options.setdefault("kernel_size", 1)
    try:
        return named.factory(in_channels, out_channels, context_dim=context_dim, **options)
    except TypeError as error:
        raise ValueError(f"net={spec!r}: {error}") from error
