"""Images changed afresh for every training batch: shifted, dequantised, jittered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import check_at_least
from pyro_scnf.transforms import dequantize

__all__ = ["ImageAugment", "RandomShift", "random_shift"]


def random_shift(x: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Move every image by its own whole number of pixels; zeros come in at the border.

    The number is uniform in ``-pixels .. pixels``, in each of both directions: to every image of a
    batch, on its device, what torchvision's ``RandomCrop(size, padding=pixels)`` does to one.

    :param x: images ``(*batch, C, H, W)`` of any dtype.
    :param int pixels: the furthest shift.
    :param generator: of the device of ``x``; by default the global one.
    :raises ValueError: for another shape, or ``pixels`` below 0.

    >>> _ = torch.manual_seed(0)
    >>> random_shift(torch.ones(1, 3, 3), 1)
    tensor([[[0., 1., 1.],
             [0., 1., 1.],
             [0., 0., 0.]]])
    """
    check_at_least(0, pixels=pixels)
    if x.dim() < 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected images (*batch, C, H, W)")
    padded = F.pad(x, (pixels, pixels, pixels, pixels))
    batch, (height, width) = x.shape[:-3], x.shape[-2:]
    rows, columns = (
        torch.randint(2 * pixels + 1, (*batch, 1), generator=generator, device=x.device)
        + torch.arange(size, device=x.device)
        for size in (height, width)
    )
    cut = padded.gather(-2, rows[..., None, :, None].expand(*x.shape[:-1], padded.shape[-1]))
    return cut.gather(-1, columns[..., None, None, :].expand(x.shape))


@dataclass(frozen=True)
class RandomShift:
    """:func:`random_shift` by up to ``pixels``, as an ``augment`` for :func:`pyro_scnf.training.fit`.

    :raises ValueError: for ``pixels`` below 0.
    """

    pixels: int

    def __post_init__(self) -> None:
        check_at_least(0, pixels=self.pixels)

    def __call__(self, x: Tensor) -> Tensor:
        return random_shift(x, self.pixels)


@dataclass(frozen=True)
class ImageAugment:
    """Integer images for training, as an ``augment`` for :func:`pyro_scnf.training.fit`.

    Called, it shifts (:func:`random_shift`), dequantises and jitters with Gaussian noise; what noise
    takes out of the unit interval is reflected back into it, since clamping would heap it up at the
    ends, where a density could rise without bound. :meth:`prepare`, for validation and test data,
    dequantises only. Both take images ``(*batch, C, H, W)`` of any dtype, integers
    ``0 .. bins - 1``, to floating ones in [0, 1), and draw from the global generator.

    :param int bins: number of grey levels.
    :param int shift: the furthest shift, in pixels.
    :param float jitter: standard deviation of the noise, where a grey level is ``1 / bins``.
    :raises ValueError: for ``bins`` below 1, or ``shift`` or ``jitter`` below 0.

    >>> augment = ImageAugment(shift=2)
    >>> x = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    >>> augment(x).dtype, bool((augment.prepare(x) < 1 / 256).all())
    (torch.float32, True)
    """

    bins: int = 256
    shift: int = 0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(1, bins=self.bins)
        check_at_least(0, shift=self.shift)
        if not 0 <= self.jitter < float("inf"):
            raise ValueError(f"jitter={self.jitter}: expected a finite number of at least 0")

    def __call__(self, x: Tensor) -> Tensor:
        if self.shift:
            x = random_shift(x, self.shift)
        x = self.prepare(x)
        return _reflect(x + self.jitter * torch.randn_like(x)) if self.jitter else x

    def prepare(self, x: Tensor) -> Tensor:
        """Dequantised only: :func:`~pyro_scnf.transforms.dequantize`."""
        return dequantize(x, self.bins)


def _reflect(x: Tensor) -> Tensor:
    """Fold the real line onto [0, 1), by reflection at the integers."""
    folded = 1 - (x.remainder(2) - 1).abs()
    return folded.clamp(max=1 - torch.finfo(x.dtype).eps / 2)
