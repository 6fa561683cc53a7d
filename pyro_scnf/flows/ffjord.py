"""FFJORD for images, vectors and 2-D toys, unconditional or conditional."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import as_event_shape
from pyro_scnf._spec import recorded
from pyro_scnf.flows.builder import check_levels, data_layers, default_levels, of_all_scales
from pyro_scnf.nn import Dynamics
from pyro_scnf.nn.dynamics import LayerName
from pyro_scnf.transforms import (
    ActNorm,
    ConditionalContinuousFlow,
    ContinuousFlow,
    Squeeze,
    compose,
    kept_channels,
)
from pyro_scnf.transforms.compose import Layer
from pyro_scnf.transforms.continuous import Divergence
from pyro_scnf.transforms.solver import SolverSpec

__all__ = ["ffjord"]


@recorded
def ffjord(
    event_shape: Sequence[int] | int,
    *,
    levels: int | None = None,
    blocks: int = 1,
    hidden: Sequence[int] = (64, 64, 64),
    layer: LayerName | None = None,
    activation: Literal["tanh", "softplus"] | None = None,
    solver: SolverSpec = "dopri5",
    divergence: Divergence | None = None,
    end_time: float = 0.5,
    learn_end_time: bool = True,
    logit: float | None = None,
    gaussianize: int | None = None,
    quantiles: int | None = None,
    latent_dim: int | None = None,
    context_dim: int = 0,
) -> Layer:
    r"""FFJORD: continuous flows, in one or several scales.

    From data to latent, each level is a squeeze (for images), then ``blocks`` times an actnorm and a
    :class:`~pyro_scnf.transforms.ContinuousFlow`, and a factor-out of half of the channels before the next
    level. The latent side is the vector :math:`[z_{aux}, z_f]`.

    :param event_shape: ``(C, H, W)`` or ``(D,)``.
    :param int levels: number of scales; by default as many as the image can be halved, at most 3, and 1 for
        vectors.
    :param int blocks: continuous flows in each level.
    :param hidden: widths of the hidden layers of a velocity field.
    :param layer: how time enters these layers, see :class:`~pyro_scnf.nn.Dynamics`: ``"concatsquash"`` by
        default for vectors, and ``"concat"`` for images.
    :param activation: ``"tanh"`` by default for vectors, and ``"softplus"`` for images.
    :param solver: see :class:`~pyro_scnf.transforms.ContinuousFlow`, also for the next three.
    :param divergence: ``"exact"``, ``"gaussian"`` or ``"rademacher"``.
    :param float end_time: the time at which the latent is reached.
    :param bool learn_end_time: whether that time is a parameter.
    :param logit: contraction :math:`\alpha` of a :class:`~pyro_scnf.transforms.Logit` next to the data, for
        data in the unit interval. By default there is no logit.
    :param int gaussianize: cells of a :class:`~pyro_scnf.transforms.MarginalGaussianization` next to the
        data, in place of the logit. For dequantised images, give the number of grey levels.
    :param int quantiles: bins of a :class:`~pyro_scnf.transforms.QuantileSpline` next to the data, in place
        of the logit: for columns of a table in any units.
    :param int latent_dim: how many components, the deepest ones, form :math:`z_f`. By default all components
        of the deepest level do.
    :param int context_dim: length of the context. 0 gives an unconditional flow.
    :raises ValueError: for options out of range, two of ``logit``, ``gaussianize`` and ``quantiles``, or an
        image that cannot be halved ``levels`` times.
    :raises ImportError: without torchdiffeq.

    Grathwohl et al. use one block for points in the plane, and for MNIST two blocks of convolutions of width
    64 before and after each squeeze, which takes days on a GPU.

    >>> flow = ffjord((1, 8, 8), levels=2, hidden=(16,))
    >>> flow.latent_shape, flow.aux_dim
    (torch.Size([8, 2, 2]), 32)

    Reference: Grathwohl et al., *FFJORD*, 2019.
    """
    shape = as_event_shape(event_shape)
    levels = default_levels(shape) if levels is None else check_whole("levels", levels, 1)
    check_levels(shape, levels, coupled=False)
    blocks = check_whole("blocks", blocks, 1)
    context_dim = check_whole("context_dim", context_dim, 0)
    images = len(shape) == 3
    if layer is None:
        layer = "concat" if images else "concatsquash"
    if activation is None:
        activation = "softplus" if images else "tanh"

    make: Callable[..., Layer] = ContinuousFlow
    if context_dim:
        make = partial(ConditionalContinuousFlow, context_dim=context_dim)

    def continuous(shape: torch.Size) -> Layer:
        return make(
            shape,
            Dynamics(shape, hidden, layer, activation, context_dim),
            solver=solver,
            divergence=divergence,
            end_time=end_time,
            learn_end_time=learn_end_time,
        )

    preprocessing = data_layers(shape, logit, gaussianize, quantiles)
    stages: list[Layer] = []  # the one nearest the data comes first
    for level in range(levels):
        layers: list[Layer] = []
        if images:
            layers.append(Squeeze(shape))
            shape = layers[-1].base_shape
        for _ in range(blocks):
            layers += [ActNorm(shape), continuous(shape)]
        stages.append(compose(layers[::-1]))
        if level < levels - 1:
            shape = torch.Size((kept_channels(shape[0]),)) + shape[1:]
    return of_all_scales(stages, preprocessing, latent_dim)
