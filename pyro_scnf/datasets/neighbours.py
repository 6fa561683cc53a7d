"""Which examples look alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import check_at_least
from pyro_scnf.datasets.base import SemiSupervisedData

__all__ = ["deskew", "link_neighbours", "nearest_neighbours", "pixel_features", "upright_features"]


def pixel_features(x: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` as vectors of unit length, averaged over squares of 2×2 pixels.

    The average makes small shifts count less, the unit length makes brightness count for nothing.
    """
    return F.normalize(F.avg_pool2d(x.float(), 2).flatten(1))


def deskew(x: Tensor) -> Tensor:
    """Handwriting ``(N, C, H, W)`` sheared upright and centred, by the moments of its ink; floating.

    Reference: LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, 1998,
    section III (deslanting).
    """
    x = x.float()
    height, width = x.shape[-2:]
    ink = x.sum(1)
    ink = ink / ink.sum((-2, -1), keepdim=True).clamp(min=1e-6)
    # Positions as affine_grid has them, -1 to 1 from border to border.
    rows = (2 * torch.arange(height, device=x.device) + 1) / height - 1
    columns = (2 * torch.arange(width, device=x.device) + 1) / width - 1
    row, column = (ink.sum(-1) * rows).sum(-1), (ink.sum(-2) * columns).sum(-1)
    down, right = rows[:, None] - row[:, None, None], columns - column[:, None, None]
    shear = (ink * down * right).sum((-2, -1)) / (ink * down.square()).sum((-2, -1)).clamp(min=1e-6)
    where = x.new_zeros(len(x), 2, 3)
    where[:, 0, 0] = where[:, 1, 1] = 1
    where[:, 0, 1], where[:, 0, 2], where[:, 1, 2] = shear, column, row
    grid = F.affine_grid(where, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def upright_features(x: Tensor) -> Tensor:
    """:func:`pixel_features` of handwriting without its slant (:func:`deskew`)."""
    return pixel_features(deskew(x))


def nearest_neighbours(
    x: Tensor, k: int = 5, features: Callable[[Tensor], Tensor] | None = None, chunk: int = 2000
) -> Tensor:
    """The ``k`` rows nearest to each row, by Euclidean distance between features, ``(N, k)``, best first.

    :param x: ``(N, *event_shape)``, of any dtype.
    :param int k: how many, the row itself not counted.
    :param features: a function from x to what is compared, ``(N, ...)``. By default images are compared by
        :func:`pixel_features`, and other data as they are.
    :param int chunk: rows compared at a time; memory is ``chunk`` times N numbers.
    :raises ValueError: for ``k`` out of range.
    """
    check_at_least(1, k=k, chunk=chunk)
    if k >= len(x):
        raise ValueError(f"k={k}: there are {len(x)} rows, so at most {len(x) - 1} neighbours")
    if features is None and x.dim() == 4:
        features = pixel_features
    rows = (x if features is None else features(x)).float().flatten(1)
    half_square = 0.5 * rows.square().sum(1)
    found = x.new_empty((len(x), k), dtype=torch.long)
    for start in range(0, len(x), chunk):
        some = slice(start, start + chunk)
        nearness = rows[some] @ rows.T - half_square  # falls with the distance, row by row
        nearness[torch.arange(len(nearness)), torch.arange(start, start + len(nearness))] = -torch.inf
        found[some] = nearness.topk(k).indices
    return found


def link_neighbours(
    data: SemiSupervisedData, k: int = 5, features: Callable[[Tensor], Tensor] | None = None
) -> SemiSupervisedData:
    """``data`` with :func:`nearest_neighbours`, among all training rows, labelled or not.

    :func:`pyro_scnf.training.fit` then has every batch made of pairs of neighbours, which a model with
    an ``agreement_weight`` takes to share their label. No label is looked at.
    """
    return replace(data, neighbours=nearest_neighbours(data.x, k, features))
