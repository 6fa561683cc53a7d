"""Features of rows: what looks alike is near in them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import check_finite
from pyro_scnf._extras import require
from pyro_scnf._shapes import at_least_single, check_tensor

__all__ = [
    "FEATURES",
    "Features",
    "deskew",
    "features_of",
    "hog_features",
    "pixel_features",
    "upright_features",
]

Features = Callable[[Tensor], Tensor]
"""Computes features ``(N, ...)`` of rows."""

SIDE = 28
"""Height and width of the images whose gradients are counted."""

DIRECTIONS = 12
"""Directions of gradients that are told apart."""

BATCH = 1000
"""Images whose gradients are counted at a time."""


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
    return F.normalize(_in_range(x).flatten(1))


def _floating_images(x: Tensor, owner: str) -> Tensor:
    """Raise unless ``x`` holds images ``(N, C, H, W)``. Return them in single precision at least."""
    check_tensor(x, "x", owner)
    if x.dim() != 4 or not x.shape[1:].numel():
        raise ValueError(f"{owner}: x has shape {tuple(x.shape)}, expected images (N, C, H, W)")
    return at_least_single(x) if x.is_floating_point() else x.float()


def _ink(x: Tensor, owner: str) -> Tensor:
    """Raise unless ``x`` holds images without a negative pixel. Return them in single precision at least."""
    x = _floating_images(x, owner)
    if bool((x < 0).any()):
        raise ValueError(
            f"{owner}: x has pixels below 0, expected 0 where there is no ink, and more elsewhere; give "
            "images as they were before they were standardised, or features='pixels'"
        )
    return x


def _in_range(x: Tensor) -> Tensor:
    """Every image divided by its largest value. Squares of others might leave the range of their dtype."""
    if not x.numel():
        return x
    largest = x.abs().amax((1, 2, 3), keepdim=True)
    return x / torch.where(largest > 0, largest, 1)


def deskew(x: Tensor) -> Tensor:
    """Shear handwriting upright and centre it, by the moments of its ink.

    :param x: images ``(N, C, H, W)``, 0 where there is no ink.
    :return: the images in floating point, of the same shape.
    :raises ValueError: for another shape, and for pixels below 0.

    Reference: LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, 1998,
    section III (deslanting).
    """
    return _deskewed(_ink(x, "deskew"))


def _deskewed(x: Tensor) -> Tensor:
    if not len(x):
        return x
    height, width = x.shape[-2:]
    ink = _in_range(x).sum(1)
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
    return pixel_features(_deskewed(_ink(x, "upright_features")))


@torch.no_grad()
def hog_features(x: Tensor) -> Tensor:
    """Histograms of oriented gradients of handwriting, after :func:`deskew` (extra ``datasets``).

    Strokes that run alike are near each other, whatever their width and brightness. The image is averaged
    over its channels and scaled to 28×28 pixels. At 2×2 places, the directions of its gradients are counted
    in 12 bins in each of 4×4 cells, 6 pixels apart. The histograms of one place have unit length and limited
    entries, and their square roots are taken, as in RootSIFT.

    :param x: images ``(N, C, H, W)``, 0 where there is no ink.
    :return: ``(N, 768)``, of unit length. A black image has features of 0.
    :raises ValueError: for another shape, and for pixels below 0.
    :raises ImportError: without Kornia.

    Reference: Dalal and Triggs, *Histograms of Oriented Gradients for Human Detection*, 2005; Arandjelović
    and Zisserman, *Three Things Everyone Should Know to Improve Object Retrieval*, 2012, for square roots.
    """
    check_tensor(x, "x", "hog_features")
    sift = require("kornia.feature.siftdesc", "datasets").DenseSIFTDescriptor
    histograms = sift(
        DIRECTIONS, num_spatial_bins=4, spatial_bin_size=6, stride=10, padding=0, rootsift=False
    )

    def of(some: Tensor) -> Tensor:
        upright = _deskewed(_in_range(_ink(some, "hog_features"))).mean(1, keepdim=True)
        places = histograms(F.interpolate(upright, (SIDE, SIDE), mode="bilinear", antialias=True))
        return F.normalize(F.normalize(places, p=1, dim=1).sqrt().flatten(1))

    return torch.cat([of(some) for some in x.split(BATCH)])


FEATURES: dict[str, Features] = {
    "pixels": pixel_features,
    "deskew": upright_features,
    "hog": hog_features,
}
"""What images are compared by, for :func:`neighbour_graph`, :func:`nearest_neighbours` and
:func:`link_neighbours`."""


def features_of(x: Tensor, features: str | Features | None, owner: str) -> Tensor:
    """Features ``(N, D)`` of rows, as :func:`~pyro_scnf.datasets.nearest_neighbours` describes them.

    :raises ValueError: for an unknown word, for NaN or infinity, and for another number of rows.
    """
    if isinstance(features, str) and features in FEATURES:
        features = FEATURES[features]
    if features is not None and not callable(features):
        words = ", ".join(map(repr, FEATURES))
        raise ValueError(f"features={features!r}: expected one of {words}, or a function of x")
    if features is None and x.dim() == 4:
        features = pixel_features
    rows = x if features is None else features(x)
    check_finite(rows, "features(x)", owner)
    if len(rows) != len(x):
        raise ValueError(f"features: gave {len(rows)} rows for {len(x)} rows of x, expected one for each")
    return rows.detach()[:, None].flatten(1)
