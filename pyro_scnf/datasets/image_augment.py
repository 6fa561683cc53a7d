"""Random changes to images: shifts, flips, small affine maps, dequantisation, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import check_finite
from pyro_scnf._numbers import check_at_least, check_flag, check_number, check_scale
from pyro_scnf._shapes import check_tensor
from pyro_scnf.datasets.augment import Augment
from pyro_scnf.transforms.dequantize import check_levels, spread

__all__ = ["ImageAugment", "RandomShift", "random_affine", "random_shift"]


def random_shift(x: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Shift every image by its own random whole number of pixels. Zeros fill the gap at the border.

    The shift along each axis is uniform in ``-pixels .. pixels``. torchvision's
    ``RandomCrop(size, padding=pixels)`` does the same to one image. This function takes a whole batch, and
    runs on its device.

    :param x: images ``(*batch, C, H, W)`` of any dtype.
    :param int pixels: the largest shift.
    :param generator: random generator on the device of ``x``; by default the global one.
    :raises ValueError: for another shape, for NaN or infinity, or ``pixels`` below 0.

    >>> _ = torch.manual_seed(0)
    >>> random_shift(torch.ones(1, 3, 3), 1)
    tensor([[[0., 1., 1.],
             [0., 1., 1.],
             [0., 0., 0.]]])
    """
    check_at_least(0, pixels=pixels)
    _check_images(x, "random_shift")
    check_finite(x, "x", "random_shift")  # a shift could move such a value out of sight
    return _shift(x, pixels, generator)


def _check_images(x: Tensor, owner: str) -> None:
    check_tensor(x, "x", owner)
    if x.dim() < 3:
        raise ValueError(f"{owner}: x has shape {tuple(x.shape)}, expected images (*batch, C, H, W)")


def _shift(x: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """:func:`random_shift` without its checks."""
    padded = F.pad(x, (pixels, pixels, pixels, pixels))
    batch, (height, width) = x.shape[:-3], x.shape[-2:]
    rows, columns = (
        torch.randint(2 * pixels + 1, (*batch, 1), generator=generator, device=x.device)
        + torch.arange(size, device=x.device)
        for size in (height, width)
    )
    cut = padded.gather(-2, rows[..., None, :, None].expand(*x.shape[:-1], padded.shape[-1]))
    return cut.gather(-1, columns[..., None, None, :].expand(x.shape))


def random_affine(
    x: Tensor,
    *,
    flip: bool = False,
    rotate: float = 0.0,
    zoom: float = 0.0,
    shear: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mirror, shear, rotate and zoom every image about its centre, each by its own random amount.

    The whole batch is resampled in one call, on its device: bilinear, with zeros outside of the image. With
    none of ``rotate``, ``zoom`` and ``shear``, no value is interpolated.

    :param x: images ``(*batch, C, H, W)`` of any dtype. Integers are rounded to integers.
    :param bool flip: mirror each image left to right with probability 1/2. Digits and letters then change
        what they mean.
    :param float rotate: the largest rotation, in degrees. The angle is uniform in ``-rotate .. rotate``; a
        positive one turns clockwise.
    :param float zoom: the largest change of size, below 1. The factor is uniform in ``1 - zoom .. 1 + zoom``.
    :param float shear: the largest angle, in degrees, by which vertical lines are slanted, at most 45.
        The angle is uniform in ``-shear .. shear``.
    :param generator: random generator on the device of ``x``; by default the global one.
    :raises ValueError: for another shape, for NaN or infinity, or for numbers out of range.

    >>> _ = torch.manual_seed(1)
    >>> random_affine(torch.eye(3)[None], rotate=45).round(decimals=1)
    tensor([[[0.4000, 0.4000, 0.0000],
             [0.0000, 1.0000, 0.0000],
             [0.0000, 0.4000, 0.4000]]])
    """
    _check_affine(flip, rotate, zoom, shear)
    _check_images(x, "random_affine")
    check_finite(x, "x", "random_affine")
    return _affine(x, flip, rotate, zoom, shear, generator)


def _check_affine(flip: bool, rotate: float, zoom: float, shear: float) -> None:
    check_flag(flip=flip)
    check_number("rotate", rotate, at_least=0, at_most=180)
    check_number("zoom", zoom, at_least=0, below=1)
    check_number("shear", shear, at_least=0, at_most=45)


def _affine(
    x: Tensor,
    flip: bool,
    rotate: float,
    zoom: float,
    shear: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`random_affine` without its checks."""
    batch, (channels, height, width) = x.shape[:-3], x.shape[-3:]
    if flip:
        mirrored = torch.rand((*batch, 1, 1, 1), generator=generator, device=x.device) < 0.5
        x = torch.where(mirrored, x.flip(-1), x)
    if not (rotate or zoom or shear) or not x.numel():
        return x
    dtype = torch.promote_types(x.dtype, torch.float32)
    draws = 2 * torch.rand((3, batch.numel()), generator=generator, dtype=dtype, device=x.device) - 1
    angle, scale, slope = draws[0] * math.radians(rotate), 1 + zoom * draws[1], draws[2] * math.radians(shear)
    # A pixel takes its value from where the inverse of the map sends it. The map is scale * turn * slant, and
    # its inverse is unslant * unturn / scale. Offsets from the centre are (right, down), in pixels.
    cos, sin, slope = angle.cos() / scale, angle.sin() / scale, slope.tan()
    # affine_grid measures offsets in halves of the width and of the height, hence the aspect.
    aspect, still = height / width, torch.zeros_like(cos)
    to_right = [cos + slope * sin, (sin - slope * cos) * aspect, still]
    to_down = [-sin / aspect, cos, still]
    theta = torch.stack([*to_right, *to_down], -1).reshape(-1, 2, 3)
    images = x.reshape(-1, channels, height, width).to(dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    moved = moved if x.is_floating_point() else moved.round()
    return moved.to(x.dtype).reshape(x.shape)


@dataclass(frozen=True)
class RandomShift(Augment):
    """Shifts training images by up to ``pixels`` with :func:`random_shift`.

    :raises ValueError: for ``pixels`` below 0. A call raises it as :func:`random_shift` does.
    """

    pixels: int

    def __post_init__(self) -> None:
        check_at_least(0, pixels=self.pixels)

    def __call__(self, x: Tensor) -> Tensor:
        return random_shift(x, self.pixels)


@dataclass(frozen=True)
class ImageAugment(Augment):
    """Flips, distorts, shifts, dequantises and jitters integer images.

    A call mirrors the images and maps them by :func:`random_affine`, shifts them (:func:`random_shift`),
    dequantises them and adds Gaussian noise. Interpolated values are rounded to grey levels first, so that
    every value is spread over its bin as in the data. After the noise, values that leave the unit interval
    are reflected back into it. Clamping would pile them up at the ends of the interval, where a density could
    then rise without bound. :meth:`prepare` only dequantises. Both take images ``(*batch, C, H, W)`` of any
    dtype with integer values ``0 .. bins - 1``, return floating images in [0, 1), and draw from the global
    generator. What is left at 0 draws nothing.

    :param int bins: number of grey levels.
    :param int shift: the largest shift, in pixels.
    :param float jitter: standard deviation of the noise; a grey level is ``1 / bins``.
    :param shift_labelled: the largest shift of labelled rows; ``None`` means ``shift``. In all else they
        change like other rows.
    :param bool flip: mirror each image left to right with probability 1/2.
    :param float rotate: the largest rotation, in degrees, see :func:`random_affine`.
    :param float zoom: the largest change of size, as a share, see :func:`random_affine`.
    :param float shear: the largest slant, in degrees, see :func:`random_affine`.
    :raises ValueError: for numbers out of range. A call raises it for what
        :func:`~pyro_scnf.transforms.dequantize` refuses.

    >>> augment = ImageAugment(shift=2, rotate=10, zoom=0.1)
    >>> x = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    >>> augment(x).dtype, bool((augment.prepare(x) < 1 / 256).all())
    (torch.float32, True)
    """

    bins: int = 256
    shift: int = 0
    jitter: float = 0.0
    shift_labelled: int | None = None
    flip: bool = False
    rotate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(1, bins=self.bins)
        check_at_least(0, shift=self.shift)
        check_at_least(0, shift_labelled=0 if self.shift_labelled is None else self.shift_labelled)
        check_scale("jitter", self.jitter, zero=True)
        _check_affine(self.flip, self.rotate, self.zoom, self.shear)

    def __call__(self, x: Tensor) -> Tensor:
        check_levels(x, self.bins, "ImageAugment")  # all of them, before a shift moves some out of sight
        affine = (self.flip, self.rotate, self.zoom, self.shear)
        if any(affine):
            _check_images(x, "ImageAugment")
            x = _affine(x, *affine).round()
        if self.shift:
            _check_images(x, "ImageAugment")
            x = _shift(x, self.shift)
        x = spread(x, self.bins)
        return _reflect(x + self.jitter * torch.randn_like(x)) if self.jitter else x

    def labelled(self, x: Tensor) -> Tensor:
        """Change labelled rows as a call does, but shift them by up to ``shift_labelled``."""
        return self(x) if self.shift_labelled is None else replace(self, shift=self.shift_labelled)(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Dequantise ``x`` with :func:`~pyro_scnf.transforms.dequantize`."""
        check_levels(x, self.bins, "ImageAugment")
        return spread(x, self.bins)


def _reflect(x: Tensor) -> Tensor:
    """Fold the real line onto [0, 1) by reflecting it at the integers."""
    folded = 1 - (x.remainder(2) - 1).abs()
    return folded.clamp(max=1 - torch.finfo(x.dtype).eps / 2)
