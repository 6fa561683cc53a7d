"""A flow whose deepest part are the leading principal components of the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import as_sizes
from pyro_scnf._spec import recorded
from pyro_scnf.nn import MLP
from pyro_scnf.transforms import (
    AffineCoupling,
    Permute,
    PrincipalComponents,
    QuantileSpline,
    compose,
    multi_scale,
)
from pyro_scnf.transforms.compose import Layer

__all__ = ["leading_components"]


@recorded
def leading_components(
    event_shape: Sequence[int] | int, *, latent_dim: int, couplings: int = 2, width: int = 64
) -> Layer:
    """A flow of vectors whose :math:`z_f` are the leading principal components of normal marginals.

    From data to latent: a :class:`~pyro_scnf.transforms.QuantileSpline`,
    :class:`~pyro_scnf.transforms.PrincipalComponents`, and couplings that change the other components given
    the leading ones. No coupling changes the leading ones. So classes keep the shape that they have in these,
    and the couplings, which are the same for all labels, improve the density alone.

    :param event_shape: ``(D,)``, or the number D.
    :param int latent_dim: number of components of :math:`z_f`, those of most variance.
    :param int couplings: couplings of the other components.
    :param int width: width of both hidden layers of their networks.
    :raises ValueError: for another shape, for numbers that are not positive, or more leading components than
        columns.

    >>> flow = leading_components(8, latent_dim=3)
    >>> flow.latent_shape, flow.aux_dim
    (torch.Size([3]), 5)
    """
    shape = as_sizes(event_shape)
    if len(shape) != 1:
        raise ValueError(f"event_shape={tuple(shape)}: expected (D,), the columns of a table")
    (columns,) = shape
    leading = check_whole("latent_dim", latent_dim, 1, columns)
    couplings, width = check_whole("couplings", couplings, 0), check_whole("width", width, 1)
    layers: list[Layer] = [QuantileSpline(shape), PrincipalComponents(shape)]
    others = columns - leading
    changed = (others + 1) // 2  # in one coupling, given all the rest
    for _ in range(couplings if others else 0):
        net = MLP(columns - changed, 2 * changed, (width, width))
        layers.append(AffineCoupling(shape, net, scale="clamp", flip=True, split=columns - changed))
        order = [*range(changed, others), *range(changed), *range(others, columns)]
        layers.append(Permute(shape, torch.tensor(order)))
    return multi_scale([compose(layers[::-1])], leading)
