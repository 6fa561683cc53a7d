"""Find examples that look alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._numbers import check_at_least
from pyro_scnf.datasets.base import SemiSupervisedData

__all__ = ["deskew", "link_neighbours", "nearest_neighbours", "pixel_features", "upright_features"]


def pixel_features(x: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` as vectors of unit length, averaged over squares of 2×2 pixels.

    The average reduces the effect of small shifts. The unit length removes the effect of brightness.
    """
    return F.normalize(F.avg_pool2d(x.float(), 2).flatten(1))


def deskew(x: Tensor) -> Tensor:
    """Shear handwriting upright and centre it, by the moments of its ink.

    :param x: images ``(N, C, H, W)``, 0 where there is no ink.
    :return: the images in floating point, of the same shape.

    Reference: LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, 1998,
    section III (deslanting).
    """
    x = x.float()
    height, width = x.shape[-2:]
    ink = x.sum(1)
    ink = ink / ink.sum((-2, -1), keepdim=True).clamp(min=1e-6)
    # Positions of pixels in the coordinates of affine_grid, which run from -1 to 1 between the borders.
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
    """:func:`pixel_features` of handwriting, after :func:`deskew` has removed its slant."""
    return pixel_features(deskew(x))


def nearest_neighbours(
    x: Tensor, k: int = 5, features: Callable[[Tensor], Tensor] | None = None, chunk: int = 2000
) -> Tensor:
    """The numbers of the ``k`` rows nearest to each row, by Euclidean distance between their features.

    :param x: ``(N, *event_shape)``, of any dtype.
    :param int k: number of neighbours. A row is not its own neighbour.
    :param features: computes features ``(N, ...)`` from x. By default they are the :func:`pixel_features`
        of images, and other data as they are.
    :param int chunk: rows compared at a time. The memory needed is ``chunk * N`` numbers.
    :return: ``(N, k)``, the nearest row first.
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
        nearness = rows[some] @ rows.T - half_square  # within a row: the greater the distance, the less
        nearness[torch.arange(len(nearness)), torch.arange(start, start + len(nearness))] = -torch.inf
        found[some] = nearness.topk(k).indices
    return found


def link_neighbours(
    data: SemiSupervisedData, k: int = 5, features: Callable[[Tensor], Tensor] | None = None
) -> SemiSupervisedData:
    """``data`` with the :func:`nearest_neighbours` of every training row.

    :func:`pyro_scnf.training.fit` then makes every batch of pairs of neighbours, for training terms such as
    :class:`~pyro_scnf.terms.Agreement`, which assumes that the two rows of a pair share their label.
    Neighbours are found among labelled and unlabelled rows alike, without use of the labels.
    """
    return replace(data, neighbours=nearest_neighbours(data.x, k, features))
