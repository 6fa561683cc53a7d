"""Data changed afresh for every training batch: shifted, dequantised, jittered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import check_at_least
from pyro_scnf.transforms import dequantize

__all__ = ["Augment", "ImageAugment", "Jitter", "RandomShift", "as_augment", "random_shift"]


def random_shift(x: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Move every image by its own whole number of pixels. Zeros come in at the border.

    The number is uniform in ``-pixels .. pixels``, for each of the two axes. torchvision's
    ``RandomCrop(size, padding=pixels)`` does the same to one image; this is for a batch, on its device.

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


class Augment:
    """The protocol of ``fit(augment=...)``: what is done to rows on their way into training.

    Subclass it and override what you need. A plain function of x is enough where only training batches
    change: it is taken for :meth:`__call__`.

    :ivar bins: number of grey levels, if :meth:`prepare` dequantises. Logs then show bits per dimension.
    """

    bins: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Rows of a training batch, changed at random; by default what :meth:`prepare` makes of them."""
        return self.prepare(x)

    def labelled(self, x: Tensor) -> Tensor:
        """The labelled rows of a training batch, changed at random; by default like the others.

        They are few, so the same ones come again and again.
        """
        return self(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Rows for validation and testing; by default as they are."""
        return x


class _Function(Augment):
    """A function of x, with those methods of the protocol that it has itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.bins = getattr(function, "bins", None)

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def labelled(self, x: Tensor) -> Tensor:
        return getattr(self.function, "labelled", self.function)(x)

    def prepare(self, x: Tensor) -> Tensor:
        return self.function.prepare(x) if hasattr(self.function, "prepare") else x


def as_augment(augment: Callable[[Tensor], Tensor] | None) -> Augment:
    """The :class:`Augment` that a user's ``augment`` stands for.

    :param augment: an :class:`Augment`, a function of x, or ``None`` to leave data as they are.
    :raises ValueError: for anything else.
    """
    if augment is None:
        return Augment()
    if isinstance(augment, Augment):
        return augment
    if not callable(augment):
        raise ValueError(f"augment={augment!r}: expected an Augment, a function of x, or None")
    return _Function(augment)


@dataclass(frozen=True)
class RandomShift(Augment):
    """:func:`random_shift` by up to ``pixels``.

    :raises ValueError: for ``pixels`` below 0.
    """

    pixels: int

    def __post_init__(self) -> None:
        check_at_least(0, pixels=self.pixels)

    def __call__(self, x: Tensor) -> Tensor:
        return random_shift(x, self.pixels)


@dataclass(frozen=True)
class Jitter(Augment):
    """Gaussian noise on every training row; integers are dequantised first.

    :param float scale: standard deviation of the noise.
    :param bins: number of values of integer data, which :meth:`prepare` dequantises
        (:func:`~pyro_scnf.transforms.dequantize`); ``None`` leaves the data as they are.
    :raises ValueError: for a negative or infinite ``scale``, or ``bins`` below 1.

    Noise may leave the unit interval. Use :class:`ImageAugment` for a flow that begins with a logit.
    """

    scale: float
    bins: int | None = None

    def __post_init__(self) -> None:
        _check_scale("scale", self.scale)
        check_at_least(1, bins=1 if self.bins is None else self.bins)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        return x + self.scale * torch.randn_like(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Dequantised, if ``bins`` is given."""
        return x if self.bins is None else dequantize(x, self.bins)


@dataclass(frozen=True)
class ImageAugment(Augment):
    """Integer images, shifted, dequantised and jittered for training.

    Called, it shifts (:func:`random_shift`), dequantises, and adds Gaussian noise. Noise that leaves the
    unit interval is reflected back into it. Clamping would heap it up at the ends, where a density could
    then rise without bound. :meth:`prepare` only dequantises. Both take images ``(*batch, C, H, W)`` of any
    dtype with integer values ``0 .. bins - 1`` to floating images in [0, 1), and draw from the global
    generator.

    :param int bins: number of grey levels.
    :param int shift: the furthest shift, in pixels.
    :param float jitter: standard deviation of the noise; a grey level is ``1 / bins``.
    :param shift_labelled: the furthest shift of labelled rows; ``None`` for the same as of the others.
    :raises ValueError: for ``bins`` below 1, or for a negative shift or jitter.

    >>> augment = ImageAugment(shift=2)
    >>> x = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    >>> augment(x).dtype, bool((augment.prepare(x) < 1 / 256).all())
    (torch.float32, True)
    """

    bins: int = 256
    shift: int = 0
    jitter: float = 0.0
    shift_labelled: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, bins=self.bins)
        check_at_least(0, shift=self.shift)
        check_at_least(0, shift_labelled=0 if self.shift_labelled is None else self.shift_labelled)
        _check_scale("jitter", self.jitter)

    def __call__(self, x: Tensor) -> Tensor:
        if self.shift:
            x = random_shift(x, self.shift)
        x = self.prepare(x)
        return _reflect(x + self.jitter * torch.randn_like(x)) if self.jitter else x

    def labelled(self, x: Tensor) -> Tensor:
        """Labelled rows, shifted by up to ``shift_labelled``."""
        return self(x) if self.shift_labelled is None else replace(self, shift=self.shift_labelled)(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Dequantised only: :func:`~pyro_scnf.transforms.dequantize`."""
        return dequantize(x, self.bins)


def _check_scale(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value}: expected a finite number of at least 0")


def _reflect(x: Tensor) -> Tensor:
    """Fold the real line onto [0, 1), by reflection at the integers."""
    folded = 1 - (x.remainder(2) - 1).abs()
    return folded.clamp(max=1 - torch.finfo(x.dtype).eps / 2)
