"""Glow for images, vectors and 2-D toys, unconditional or conditional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch

from pyro_scnf._shapes import as_event_shape
from pyro_scnf._spec import recorded
from pyro_scnf.flows.builder import CouplingBuilder
from pyro_scnf.nn import NetSpec
from pyro_scnf.transforms import (
    ActNorm,
    InvertibleConv1x1,
    Logit,
    Squeeze,
    compose,
    kept_channels,
    multi_scale,
)
from pyro_scnf.transforms.compose import Layer

__all__ = ["glow"]


@recorded
def glow(
    event_shape: Sequence[int] | int,
    *,
    levels: int | None = None,
    steps: int | Sequence[int] = 4,
    width: int = 64,
    blocks: int = 2,
    coupling: Literal["double", "alternate"] = "double",
    scale: str = "sigmoid",
    conv: Literal["lu", "plain"] = "lu",
    logit: float | None = None,
    latent_dim: int | None = None,
    context_dim: int = 0,
    net: NetSpec | Sequence[NetSpec] | None = None,
) -> Layer:
    r"""A multi-scale Glow: ``levels`` times (squeeze, ``steps`` steps, factor-out).

    A step, from data to latent, is actnorm, invertible 1×1 convolution and affine coupling.
    Vectors are not squeezed. The base is the vector :math:`[z_{aux}, z_f]`; the result's
    ``latent_shape``, ``latent_dim`` and ``aux_dim`` tell the two apart.

    :param event_shape: ``(C, H, W)`` or ``(D,)``.
    :param int levels: number of scales; by default as many as the image can be halved, at most 3,
        and 1 for vectors.
    :param steps: steps of flow per level, one number for all or one for each, from the data on.
    :param int width: hidden width of the conditioners.
    :param int blocks: residual blocks of the conditioners.
    :param coupling: ``"double"`` changes both halves in every step (two nets), ``"alternate"`` one
        half, in turns.
    :param scale: scale function of the couplings: ``"sigmoid"``, ``"tanh"`` or ``"clamp"``.
    :param conv: parameterisation of the 1×1 convolutions; ``"plain"`` starts at the identity.
    :param logit: contraction :math:`\alpha` of a leading :class:`~pyro_scnf.transforms.Logit`, for
        data in the unit interval; none by default.
    :param int latent_dim: how many of the deepest components form :math:`z_f`; by default all of
        the deepest scale.
    :param int context_dim: 0 gives an unconditional flow, more a conditional one.
    :param net: conditioners to use instead of residual networks, one for all levels or a list with one
        for each, from the data on: a word (``"conv:width=96"``), a dict, or a function
        ``net(in_channels, out_channels, context_dim=...)``, see :func:`~pyro_scnf.nn.make_net`.
    :raises ValueError: if the image cannot be halved ``levels`` times, among others.

    >>> flow = glow((3, 16, 16), levels=2, steps=1, width=8)
    >>> flow.latent_shape, flow.aux_dim
    (torch.Size([24, 4, 4]), 384)

    Reference: Kingma and Dhariwal, *Glow*, 2018.
    """
    shape = as_event_shape(event_shape)
    if coupling not in ("double", "alternate"):
        raise ValueError(f"coupling={coupling!r}: expected 'double' or 'alternate'")
    levels = _default_levels(shape) if levels is None else levels
    each = (steps,) * levels if isinstance(steps, int) else tuple(steps)
    if levels < 1 or len(each) != levels or min(each) < 1:
        raise ValueError(
            f"levels={levels}, steps={steps}: expected at least 1 of each, and steps for each level"
        )
    one = net is None or isinstance(net, str | Mapping) or callable(net)
    nets = [net] * levels if one else list(cast("Sequence[NetSpec]", net))
    if len(nets) != levels:
        raise ValueError(f"net: a list of {len(nets)} networks for {levels} levels, expected one for each")
    builders = [
        CouplingBuilder(width, blocks, scale, context_dim, cast("NetSpec | None", each)) for each in nets
    ]
    init: Literal["identity", "orthogonal"] = "identity" if conv == "plain" else "orthogonal"
    preprocessing = [] if logit is None else [Logit(shape, logit)]

    stages: list[Layer] = []  # from the data on
    for level, build in enumerate(builders):
        layers: list[Layer] = []
        if len(shape) == 3:
            layers.append(Squeeze(shape))
            shape = layers[-1].base_shape
        for step in range(each[level]):
            layers += [ActNorm(shape), InvertibleConv1x1(shape, conv, init)]
            if coupling == "double":
                layers += reversed(build.double(shape))
            else:
                layers.append(build.split(shape, flip=bool(step % 2)))
        stages.append(compose(layers[::-1]))
        if level < levels - 1:
            shape = torch.Size((kept_channels(shape[0]),)) + shape[1:]
    scales = multi_scale(stages[::-1], latent_dim)
    return compose([scales, *preprocessing]) if preprocessing else scales


def _default_levels(shape: torch.Size) -> int:
    if len(shape) == 1:
        return 1
    levels, (height, width) = 0, shape[1:]
    while height % 2 == 0 and width % 2 == 0 and levels < 3:
        height, width, levels = height // 2, width // 2, levels + 1
    return max(levels, 1)
