"""Find examples that look alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import check_finite
from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import at_least_single, check_tensor
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.convert import as_rows
from pyro_scnf.datasets.distances import nearest_rows

__all__ = ["deskew", "link_neighbours", "nearest_neighbours", "pixel_features", "upright_features"]

Features = Callable[[Tensor], Tensor]
"""Computes features ``(N, ...)`` of rows."""


def pixel_features(x: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` as vectors of unit length, averaged over squares of 2×2 pixels.

    The average reduces the effect of small shifts. The unit length removes the effect of brightness, so that
    the nearest images are those at the smallest angle. A black image has features of 0. Images that are less
    than two pixels high or wide are not averaged.

    :raises ValueError: for another shape.
    """
    x = _floating_images(x, "pixel_features")
    if min(x.shape[2:]) >= 2:
        x = F.avg_pool2d(x, 2)
    rows = x.flatten(1)
    if rows.numel():  # squares of very large or very small values would leave the range of their dtype
        largest = rows.abs().amax(1, keepdim=True)
        rows = rows / torch.where(largest > 0, largest, 1)
    return F.normalize(rows)


def _floating_images(x: Tensor, owner: str) -> Tensor:
    """Raise unless ``x`` holds images ``(N, C, H, W)``. Return them in single precision at least."""
    check_tensor(x, "x", owner)
    if x.dim() != 4 or not x.shape[1:].numel():
        raise ValueError(f"{owner}: x has shape {tuple(x.shape)}, expected images (N, C, H, W)")
    return at_least_single(x) if x.is_floating_point() else x.float()


def deskew(x: Tensor) -> Tensor:
    """Shear handwriting upright and centre it, by the moments of its ink.

    :param x: images ``(N, C, H, W)``, 0 where there is no ink.
    :return: the images in floating point, of the same shape.
    :raises ValueError: for another shape.

    Reference: LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, 1998,
    section III (deslanting).
    """
    x = _floating_images(x, "deskew")
    if not len(x):
        return x
    height, width = x.shape[-2:]
    ink = x.sum(1)
    ink = ink / ink.sum((-2, -1), keepdim=True).clamp(min=1e-6)
    # Positions of pixels in the coordinates of affine_grid, which run from -1 to 1 between the borders.
    rows = (2 * torch.arange(height, device=x.device, dtype=x.dtype) + 1) / height - 1
    columns = (2 * torch.arange(width, device=x.device, dtype=x.dtype) + 1) / width - 1
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
    x: Tensor,
    k: int = 5,
    features: Features | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The numbers of the ``k`` rows nearest to each row, by Euclidean distance between their features.

    The order is that of distances in double precision, whatever the offset and the scale of the features. Of
    rows at the same distance, any may be taken. Features count by their spread: bring those in different
    units to one scale first.

    :param x: ``(N, *event_shape)``, of any dtype; an array or a data frame is converted.
    :param int k: number of neighbours. A row is not its own neighbour.
    :param features: computes features ``(N, ...)`` from x, of each row alone. By default they are the
        :func:`pixel_features` of images, whose distances order them by angle, and other data as they are.
    :param chunk: rows compared at a time. They need ``chunk * N`` numbers; by default these are 32 million.
    :return: ``(N, k)``, the nearest row first.
    :raises ValueError: for numbers out of range; for NaN or infinity in x or its features; for features of
        another number of rows.
    """
    return neighbours_of(x, k, features, "nearest_neighbours", chunk)[1]


def neighbours_of(
    x: Tensor, k: int, features: Features | None, owner: str, chunk: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``(N, D)`` of rows, and the numbers and distances ``(N, k)`` of their nearest neighbours.

    The arguments are those of :func:`nearest_neighbours`.
    """
    check_at_least(1, k=k, chunk=1 if chunk is None else chunk)
    x = as_rows(x, "x", owner)
    if k >= len(x):
        raise ValueError(f"k={k}: there are {len(x)} rows, so at most {max(len(x) - 1, 0)} neighbours")
    rows = features_of(x, features, owner)
    return rows, *nearest_rows(rows, int(k), chunk)


def features_of(x: Tensor, features: Features | None, owner: str) -> Tensor:
    """Features ``(N, D)`` of rows, as :func:`nearest_neighbours` describes them.

    :raises ValueError: for what is no function, for NaN or infinity, and for another number of rows.
    """
    if features is not None and not callable(features):
        raise ValueError(f"features={features!r}: expected a function of x")
    if features is None and x.dim() == 4:
        features = pixel_features
    rows = x if features is None else features(x)
    check_finite(rows, "features(x)", owner)
    if len(rows) != len(x):
        raise ValueError(f"features: gave {len(rows)} rows for {len(x)} rows of x, expected one for each")
    return rows.detach()[:, None].flatten(1)


def link_neighbours(
    data: SemiSupervisedData, k: int = 5, features: Features | None = None
) -> SemiSupervisedData:
    """``data`` with the :func:`nearest_neighbours` of every training row.

    :func:`pyro_scnf.training.fit` then makes every batch of pairs of neighbours, for training terms such as
    :class:`~pyro_scnf.terms.Agreement`, which assumes that the two rows of a pair share their label.
    Neighbours are found among labelled and unlabelled rows alike, without use of the labels.

    :param data: a data set from which no more rows will be held out.
    :param int k: number of neighbours of each row.
    :param features: see :func:`nearest_neighbours`.
    :raises ValueError: as :func:`nearest_neighbours` does.
    """
    if not isinstance(data, SemiSupervisedData):
        raise ValueError(f"data is of type {type(data).__name__}, expected a SemiSupervisedData")
    return replace(data, neighbours=nearest_neighbours(data.x, k, features))
