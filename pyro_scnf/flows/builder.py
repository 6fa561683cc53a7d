"""What the ready-made flows share: conditioners and couplings by event shape, and checks of their options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_scnf._numbers import check_number, check_whole, check_word, refuse_unused
from pyro_scnf.nn import NetSpec, make_net
from pyro_scnf.transforms import (
    AffineCoupling,
    ConditionalAffineCoupling,
    ConditionalMaskedAffineCoupling,
    FlowTransform,
    Logit,
    MarginalGaussianization,
    MaskedAffineCoupling,
    QuantileSpline,
    compose,
    kept_channels,
    multi_scale,
)
from pyro_scnf.transforms.compose import Layer
from pyro_scnf.transforms.scale import SCALES

__all__ = [
    "CouplingBuilder",
    "builders_of_levels",
    "check_levels",
    "data_layers",
    "default_levels",
    "for_each_level",
    "halvings",
    "of_all_scales",
]


def for_each_level(name: str, values: object, levels: int) -> list[Any]:
    """The option ``name``, which gives a value for each level, as a list."""
    if isinstance(values, str | bytes | Tensor) or not isinstance(values, Iterable):
        raise ValueError(f"{name}={values!r}: expected one value for all levels, or a list with one for each")
    each = list(values)
    if len(each) != levels:
        raise ValueError(f"{name}: a list of {len(each)} values for levels={levels}, expected one for each")
    return each


def halvings(image: torch.Size) -> int:
    """How often the sides of an image can be halved."""
    times, (height, width) = 0, image[1:]
    while height % 2 == 0 and width % 2 == 0:
        height, width, times = height // 2, width // 2, times + 1
    return times


def default_levels(shape: torch.Size) -> int:
    """1 for vectors. For images, how often they can be halved, at most 3."""
    if len(shape) == 1:
        return 1
    if not halvings(shape):
        raise ValueError(f"event_shape={tuple(shape)}: a level halves the image, expected even H and W")
    return min(3, halvings(shape))


def check_levels(shape: torch.Size, levels: int, coupled: bool = True) -> None:
    """Raise unless an event of this shape can be cut ``levels`` times.

    :param coupled: whether the deepest level has couplings. They need two channels there, too.
    """
    if len(shape) == 3:
        if halvings(shape) < levels:
            raise ValueError(
                f"levels={levels}, event_shape={tuple(shape)}: each level halves the image, and it can be "
                f"halved {halvings(shape)} times"
            )
        return
    channels = shape[0]
    for level in range(levels):
        last = level == levels - 1
        if channels < 2 and (coupled or not last):
            what = "channel coupling" if coupled else "factor-out"
            raise ValueError(
                f"levels={levels}, event_shape={tuple(shape)}: a {what} needs 2 channels or more, and level "
                f"{level + 1} has {channels}"
            )
        channels = channels if last else kept_channels(channels)


def data_layers(
    shape: torch.Size, logit: float | None, gaussianize: int | None, quantiles: int | None
) -> list[FlowTransform]:
    """The layer next to the data that one of the options asks for, if any."""
    layers: dict[str, FlowTransform] = {}
    if gaussianize is not None:
        layers["gaussianize"] = MarginalGaussianization(shape, check_whole("gaussianize", gaussianize, 1))
    if quantiles is not None:
        bins = check_whole("quantiles", quantiles, 4)
        if len(shape) != 1:
            raise ValueError(f"quantiles={bins}, event_shape={tuple(shape)}: only for vectors (D,)")
        layers["quantiles"] = QuantileSpline(shape, bins)
    if logit is not None:
        logit = check_number("logit", logit, at_least=0, below=1)
        for other in layers:
            refuse_unused(f"{other} takes its place", logit=logit)
        layers["logit"] = Logit(shape, logit)
    if len(layers) > 1:
        refuse_unused("quantiles takes its place", gaussianize=gaussianize)
    return list(layers.values())


def of_all_scales(
    stages: Sequence[Layer], preprocessing: Sequence[FlowTransform], latent_dim: int | None
) -> Layer:
    """The whole flow.

    :param stages: one for each scale. The one nearest the data comes first.
    :param preprocessing: what :func:`data_layers` returned.
    :param latent_dim: number of components of :math:`z_f`, see :func:`~pyro_scnf.transforms.multi_scale`.
    """
    scales = multi_scale(stages[::-1], latent_dim)
    return compose([scales, *preprocessing]) if preprocessing else scales


class CouplingBuilder:
    """Makes couplings with the same kind of conditioner, scale function and context length.

    :param int width: hidden width of the residual networks, 64 by default.
    :param int blocks: number of residual blocks in each of these networks, 2 by default.
    :param str scale: scale function of the couplings.
    :param int context_dim: length of the context. 0 makes unconditional couplings.
    :param net: conditioners to use instead of the residual networks, see :func:`~pyro_scnf.nn.make_net`.
    :raises ValueError: for an option out of range, or ``width`` or ``blocks`` beside ``net``.
    """

    def __init__(
        self,
        width: int | None,
        blocks: int | None,
        scale: str,
        context_dim: int = 0,
        net: NetSpec | None = None,
    ) -> None:
        check_word("scale", scale, SCALES)
        if net is not None:
            refuse_unused("net gives the networks; say their size there", width=width, blocks=blocks)
        self.width = 64 if width is None else check_whole("width", width, 1)
        self.blocks = 2 if blocks is None else check_whole("blocks", blocks, 0)
        self.context_dim = check_whole("context_dim", context_dim, 0)
        self.scale, self.spec = scale, net

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


def builders_of_levels(
    levels: int,
    net: NetSpec | Sequence[NetSpec] | None,
    width: int | None,
    blocks: int | None,
    scale: str,
    context_dim: int,
) -> list[CouplingBuilder]:
    """A :class:`CouplingBuilder` for each level, the level nearest the data first.

    :param net: conditioners of all levels, or a list with those of each level.
    """
    one = net is None or isinstance(net, str | Mapping) or callable(net)
    nets: list[Any] = [net] * levels if one else for_each_level("net", net, levels)
    return [CouplingBuilder(width, blocks, scale, context_dim, spec) for spec in nets]
