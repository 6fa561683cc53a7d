"""Random changes to the rows of every training batch: shifts, dequantisation, noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import check_finite
from pyro_scnf._numbers import check_at_least, check_number
from pyro_scnf._shapes import check_tensor
from pyro_scnf.transforms.dequantize import check_levels, spread

__all__ = ["Augment", "ImageAugment", "Jitter", "RandomShift", "as_augment", "random_shift"]


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


class Augment:
    """Base class of ``fit(augment=...)``: how rows change before the model sees them.

    Subclass it and override what you need. If only training batches change, a plain function of x is
    enough. ``fit`` uses it as :meth:`__call__`.

    :ivar bins: number of grey levels, if :meth:`prepare` dequantises. Logs then show bits per dimension.
    """

    bins: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Change the rows of a training batch at random. By default, :meth:`prepare` them."""
        return self.prepare(x)

    def labelled(self, x: Tensor) -> Tensor:
        """Change the labelled rows of a training batch at random. By default, treat them like other rows.

        Labelled rows are few, so training sees each of them many times.
        """
        return self(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Prepare rows for validation and testing. By default, leave them as they are."""
        return x


class _Function(Augment):
    """A function of x as an :class:`Augment`. Methods that the function has itself are used."""

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
    """A user's ``augment`` as an :class:`Augment`.

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
    """Shifts training images by up to ``pixels`` with :func:`random_shift`.

    :raises ValueError: for ``pixels`` below 0. A call raises it as :func:`random_shift` does.
    """

    pixels: int

    def __post_init__(self) -> None:
        check_at_least(0, pixels=self.pixels)

    def __call__(self, x: Tensor) -> Tensor:
        return random_shift(x, self.pixels)


@dataclass(frozen=True)
class Jitter(Augment):
    """Adds Gaussian noise to every training row, after dequantisation if the data are integers.

    :param float scale: standard deviation of the noise.
    :param bins: number of values of integer data. :meth:`prepare` dequantises them with
        :func:`~pyro_scnf.transforms.dequantize`. ``None`` means that data are not integers.
    :raises ValueError: for a negative or infinite ``scale``, or ``bins`` below 1. A call raises it for what
        :func:`~pyro_scnf.transforms.dequantize` refuses, and without ``bins`` for integers and NaN.

    Noise may leave the unit interval. Use :class:`ImageAugment` for a flow that begins with a logit.
    """

    scale: float
    bins: int | None = None

    def __post_init__(self) -> None:
        check_number("scale", self.scale, at_least=0)
        check_at_least(1, bins=1 if self.bins is None else self.bins)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        return x + self.scale * torch.randn_like(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Dequantise ``x`` if ``bins`` is given."""
        if self.bins is not None:
            check_levels(x, self.bins, "Jitter")
            return spread(x, self.bins)
        check_finite(x, "x", "Jitter")
        if not x.is_floating_point():
            raise ValueError(
                f"Jitter: x has dtype {x.dtype}, expected floating numbers; give Jitter(scale, bins=...) if "
                "these are grey levels or counts, and x.to(torch.get_default_dtype()) if they are not"
            )
        return x


@dataclass(frozen=True)
class ImageAugment(Augment):
    """Shifts, dequantises and jitters integer images.

    A call shifts the images (:func:`random_shift`), dequantises them and adds Gaussian noise. Values that
    leave the unit interval are reflected back into it. Clamping would pile them up at the ends of the
    interval, where a density could then rise without bound. :meth:`prepare` only dequantises. Both take
    images ``(*batch, C, H, W)`` of any dtype with integer values ``0 .. bins - 1``, return floating images
    in [0, 1), and draw from the global generator.

    :param int bins: number of grey levels.
    :param int shift: the largest shift, in pixels.
    :param float jitter: standard deviation of the noise; a grey level is ``1 / bins``.
    :param shift_labelled: the largest shift of labelled rows; ``None`` means ``shift``.
    :raises ValueError: for ``bins`` below 1, or for a negative shift or jitter. A call raises it for what
        :func:`~pyro_scnf.transforms.dequantize` refuses.

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
        check_number("jitter", self.jitter, at_least=0)

    def __call__(self, x: Tensor) -> Tensor:
        check_levels(x, self.bins, "ImageAugment")  # all of them, before a shift moves some out of sight
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
