"""Glow for images, vectors and 2-D toys, unconditional or conditional."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import torch

from pyro_scnf._numbers import check_flag, check_whole, check_word
from pyro_scnf._shapes import as_event_shape
from pyro_scnf._spec import recorded
from pyro_scnf.flows.builder import (
    builders_of_levels,
    check_levels,
    data_layers,
    default_levels,
    for_each_level,
    of_all_scales,
)
from pyro_scnf.nn import NetSpec
from pyro_scnf.transforms import (
    ActNorm,
    InvertibleConv1x1,
    Squeeze,
    compose,
    kept_channels,
)
from pyro_scnf.transforms.compose import Layer
from pyro_scnf.transforms.scale import ScaleName

__all__ = ["glow"]


@recorded
def glow(
    event_shape: Sequence[int] | int,
    *,
    levels: int | None = None,
    steps: int | Sequence[int] = 4,
    width: int | None = None,
    blocks: int | None = None,
    coupling: Literal["double", "alternate"] = "double",
    scale: ScaleName = "sigmoid",
    conv: Literal["lu", "plain"] = "lu",
    logit: float | None = None,
    gaussianize: int | None = None,
    quantiles: int | None = None,
    latent_dim: int | None = None,
    factor_out: bool = True,
    context_dim: int = 0,
    net: NetSpec | Sequence[NetSpec] | None = None,
) -> Layer:
    r"""A multi-scale Glow. From data to latent, each level is a squeeze, ``steps`` steps and a factor-out.

    From data to latent, a step is an actnorm, an invertible 1×1 convolution and an affine coupling.
    Vectors are not squeezed. The latent side is the vector :math:`[z_{aux}, z_f]`. The flow's ``aux_dim``
    and ``latent_dim`` are the lengths of the two parts, and ``latent_shape`` is the shape of :math:`z_f`.

    :param event_shape: ``(C, H, W)`` or ``(D,)``.
    :param int levels: number of scales; by default as many as the image can be halved, at most 3,
        and 1 for vectors.
    :param steps: steps of flow in a level: one number for all levels, or a list with one number for each
        level, the level nearest the data first. Without ``factor_out`` it may be 0 in some levels, which
        then only squeeze.
    :param int width: hidden width of the conditioners, 64 by default.
    :param int blocks: residual blocks of the conditioners, 2 by default.
    :param coupling: ``"double"`` changes both halves of the channels in every step, with two networks.
        ``"alternate"`` changes one half, and the other half in the next step.
    :param scale: scale function of the couplings: ``"sigmoid"``, ``"tanh"`` or ``"clamp"``.
    :param conv: parameterisation of the 1×1 convolutions: ``"lu"``, which starts at a random orthogonal
        matrix, or ``"plain"``, which starts at the identity.
    :param logit: contraction :math:`\alpha` of a :class:`~pyro_scnf.transforms.Logit` next to the data, for
        data in the unit interval. By default there is no logit.
    :param int gaussianize: cells of a :class:`~pyro_scnf.transforms.MarginalGaussianization` next to the
        data, in place of the logit. For dequantised images, give the number of grey levels.
    :param int quantiles: bins of a :class:`~pyro_scnf.transforms.QuantileSpline` next to the data, in place
        of the logit: for columns of a table in any units.
    :param int latent_dim: how many components, the deepest ones, form :math:`z_f`. By default all
        components of the deepest level do.
    :param bool factor_out: whether half of the channels leave the flow between two levels. If not, all
        components are deepest ones, and go through every level.
    :param int context_dim: length of the context. 0 gives an unconditional flow.
    :param net: conditioners to use instead of residual networks of ``width`` and ``blocks``: a word
        (``"conv:width=96"``), a dict, or a function ``net(in_channels, out_channels, context_dim=...)``, see
        :func:`~pyro_scnf.nn.make_net`. A list gives one of these for each level, the level nearest the data
        first.
    :raises ValueError: for options out of range, ``width`` or ``blocks`` beside ``net``, two of ``logit``,
        ``gaussianize`` and ``quantiles``, or an image that cannot be halved ``levels`` times.

    >>> flow = glow((3, 16, 16), levels=2, steps=1, width=8)
    >>> flow.latent_shape, flow.aux_dim
    (torch.Size([24, 4, 4]), 384)

    Reference: Kingma and Dhariwal, *Glow*, 2018.
    """
    shape = as_event_shape(event_shape)
    check_word("coupling", coupling, ("double", "alternate"))
    check_word("conv", conv, ("lu", "plain"))
    check_flag(factor_out=factor_out)
    levels = default_levels(shape) if levels is None else check_whole("levels", levels, 1)
    check_levels(shape, levels)
    each: list[Any] = [steps] * levels if isinstance(steps, Real) else for_each_level("steps", steps, levels)
    each = [check_whole("steps", number, 1 if factor_out else 0) for number in each]
    if not any(each):
        raise ValueError(f"steps={steps!r}: no level has a step of flow, expected at least one that has")
    builders = builders_of_levels(levels, net, width, blocks, scale, context_dim)
    init: Literal["identity", "orthogonal"] = "identity" if conv == "plain" else "orthogonal"
    preprocessing = data_layers(shape, logit, gaussianize, quantiles)

    stages: list[Layer] = []  # the one nearest the data comes first
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
        if factor_out or not stages:
            stages.append(compose(layers[::-1]))
        else:
            stages = [compose([compose(layers[::-1]), *stages])]
        if factor_out and level < levels - 1:
            shape = torch.Size((kept_channels(shape[0]),)) + shape[1:]
    return of_all_scales(stages, preprocessing, latent_dim)
