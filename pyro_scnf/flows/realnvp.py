"""Real NVP for images and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import as_event_shape
from pyro_scnf._spec import recorded
from pyro_scnf.flows.builder import CouplingBuilder, builders_of_levels, data_layers, halvings, of_all_scales
from pyro_scnf.nn import NetSpec
from pyro_scnf.transforms import Squeeze, compose, kept_channels
from pyro_scnf.transforms.compose import Layer
from pyro_scnf.transforms.scale import ScaleName

__all__ = ["realnvp"]


@recorded
def realnvp(
    event_shape: Sequence[int] | int,
    *,
    levels: int | None = None,
    couplings: int | None = None,
    width: int | None = None,
    blocks: int | None = None,
    scale: ScaleName = "tanh",
    logit: float | None = None,
    gaussianize: int | None = None,
    quantiles: int | None = None,
    latent_dim: int | None = None,
    context_dim: int = 0,
    net: NetSpec | Sequence[NetSpec] | None = None,
) -> Layer:
    r"""Real NVP: alternating couplings, without actnorm or 1×1 convolutions.

    *Vectors*: the couplings change the trailing half of the event and then the leading one, in turns.
    *Images*: from data to latent, each level is three checkerboard couplings, a squeeze, three channel
    couplings and a factor-out. The channels that go on change in the first and the third of these channel
    couplings. The deepest level is four checkerboard couplings. The latent side is the vector
    :math:`[z_{aux}, z_f]`.

    :param event_shape: ``(C, H, W)`` or ``(D,)``.
    :param int levels: number of levels for images, 2 by default. Vectors have one level.
    :param int couplings: couplings of a vector flow, 8 by default.
    :param int width: hidden width of the conditioners, 64 by default.
    :param int blocks: residual blocks of the conditioners, 2 by default.
    :param scale: scale function of the couplings: ``"sigmoid"``, ``"tanh"`` or ``"clamp"``.
    :param logit: contraction :math:`\alpha` of a :class:`~pyro_scnf.transforms.Logit` next to the data, for
        data in the unit interval. By default there is no logit.
    :param int gaussianize: cells of a :class:`~pyro_scnf.transforms.MarginalGaussianization` next to the
        data, in place of the logit. For dequantised images, give the number of grey levels.
    :param int quantiles: bins of a :class:`~pyro_scnf.transforms.QuantileSpline` next to the data, in place
        of the logit: for columns of a table in any units.
    :param int latent_dim: how many components, the deepest ones, form :math:`z_f`. By default all
        components of the deepest level do.
    :param int context_dim: length of the context. 0 gives an unconditional flow.
    :param net: conditioners to use instead of residual networks of ``width`` and ``blocks``: a word, a dict
        or a function, see :func:`~pyro_scnf.nn.make_net`. A list gives one of these for each of the
        ``levels`` sizes of the image, the full size first. The couplings of channels see half-size images.
    :raises ValueError: for options out of range, ``levels`` with vectors, ``couplings`` with images,
        ``width`` or ``blocks`` beside ``net``, two of ``logit``, ``gaussianize`` and ``quantiles``,
        or an image that cannot be halved ``levels - 1`` times.

    This is the flow of FlowGMM. Its code keeps the leading channels at a factor-out, and this one the
    trailing ones. The two are the same flow, of square images turned by half a turn with channels reversed.

    References: Dinh et al., *Real NVP*, 2017; Izmailov et al., *Semi-Supervised Learning with Normalizing
    Flows*, 2020.
    """
    shape = as_event_shape(event_shape)
    levels = None if levels is None else check_whole("levels", levels, 1)
    couplings = None if couplings is None else check_whole("couplings", couplings, 1)
    if len(shape) == 1 and levels not in (None, 1):
        raise ValueError(f"levels={levels}: a vector flow has one scale; give `couplings`")
    if len(shape) == 3 and levels is None and not halvings(shape):
        raise ValueError(
            f"event_shape={tuple(shape)}: the second level halves the image, expected even H and W, or "
            "levels=1"
        )
    levels = levels or (1 if len(shape) == 1 else 2)
    builders = builders_of_levels(levels, net, width, blocks, scale, context_dim)
    preprocessing = data_layers(shape, logit, gaussianize, quantiles)
    if len(shape) == 1:
        layers = [builders[0].split(shape, flip=bool(i % 2)) for i in range(couplings or 8)]
        stages: list[Layer] = [compose(layers[::-1])]
    else:
        if couplings is not None:
            raise ValueError(
                f"couplings={couplings}: only for vectors; images have a fixed pattern for each level, give "
                "`levels`"
            )
        stages = _image_stages(shape, builders)
    return of_all_scales(stages, preprocessing, latent_dim)


def _image_stages(shape: torch.Size, builders: Sequence[CouplingBuilder]) -> list[Layer]:
    """The stages of an image flow. The one nearest the data comes first.

    :param builders: makes the couplings of images of each size, the full size first.
    """
    if halvings(shape) < len(builders) - 1:
        raise ValueError(
            f"levels={len(builders)}, event_shape={tuple(shape)}: each level after the first halves the "
            f"image, and it can be halved {halvings(shape)} times"
        )
    stages: list[Layer] = []
    for full, half in pairwise(builders):
        layers: list[Layer] = [full.checkerboard(shape, invert=bool(i % 2)) for i in range(3)]
        layers.append(Squeeze(shape, order="channel-major"))
        shape = layers[-1].base_shape
        layers += [half.split(shape, flip=bool(i % 2)) for i in range(3)]
        stages.append(compose(layers[::-1]))
        shape = torch.Size((kept_channels(shape[0]),)) + shape[1:]
    last = builders[-1]
    stages.append(compose([last.checkerboard(shape, invert=bool(i % 2)) for i in range(4)][::-1]))
    return stages
