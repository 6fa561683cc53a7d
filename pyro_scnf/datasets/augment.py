"""Random changes to the rows of every training batch: what they have in common, and those of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scnf._checks import check_finite
from pyro_scnf._numbers import check_at_least, check_number, check_scale
from pyro_scnf.transforms.dequantize import check_levels, spread

__all__ = ["Augment", "FeatureDropout", "Jitter", "as_augment", "changed_rows"]


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


def changed_rows(change: Callable[[Tensor], object], rows: Tensor) -> Tensor:
    """The rows as a user's ``augment`` changes them.

    :raises ValueError: if it does not return a tensor with one row for each of ``rows``.
    """
    changed = change(rows)
    if not isinstance(changed, Tensor):
        raise ValueError(f"augment: it returns a {type(changed).__name__}, expected a tensor of rows")
    if changed.shape[:1] != rows.shape[:1]:
        number = f"{len(changed)} rows" if changed.dim() else "a tensor without rows"
        raise ValueError(
            f"augment: it returns {number}, expected {len(rows)}, one for each row of x that it is given; "
            "return the rows in their order, and neither add nor drop any"
        )
    return changed


@dataclass(frozen=True)
class Jitter(Augment):
    """Adds Gaussian noise to every training row, after dequantisation if the data are integers.

    :param float scale: standard deviation of the noise.
    :param bins: number of values of integer data. :meth:`prepare` dequantises them with
        :func:`~pyro_scnf.transforms.dequantize`. ``None`` means that data are not integers.
    :raises ValueError: for a ``scale`` that is negative or above 1e15, or ``bins`` below 1. A call raises it
        for what :func:`~pyro_scnf.transforms.dequantize` refuses, and without ``bins`` for integers and NaN.

    Noise may leave the unit interval. Use :class:`ImageAugment` for a flow that begins with a logit.
    """

    scale: float
    bins: int | None = None

    def __post_init__(self) -> None:
        check_scale("scale", self.scale, zero=True)
        check_at_least(1, bins=1 if self.bins is None else self.bins)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        return x + self.scale * torch.randn_like(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Dequantise ``x`` if ``bins`` is given."""
        return _prepared(x, self.bins, "Jitter")


@dataclass(frozen=True)
class FeatureDropout(Augment):
    """Sets random entries of training rows to a fill value, then adds Gaussian noise to all entries.

    The fill value alone would be a value without a density: many entries equal it exactly, so the likelihood
    of a flow can rise without bound there. The noise gives these entries a density, of height
    ``1 / (sqrt(2 pi) scale)`` in a column. Choose ``scale`` as for :class:`Jitter`. A scale of 0 is right
    only for a loss without a likelihood, such as :class:`~pyro_scnf.terms.Classification` alone.

    Rows for validation and testing are complete. A model of the dropped rows is therefore a model of other
    rows than it is tested on: the larger ``rate``, the worse its test likelihood. With ``"consistency"`` it
    is asked for the same class in both views of a row.

    :param float rate: probability that an entry is dropped, below 1. Each entry has its own draw from the
        global generator.
    :param float scale: standard deviation of the noise.
    :param fill: the value of dropped entries: one number, or one for each column of rows ``(*batch, D)`` as a
        tuple, a list, an array or a tensor. ``data.x.mean(0)`` is a good choice, 0 if columns are
        standardised.
    :param bins: number of values of integer data, see :class:`Jitter`. ``fill`` then is a dequantised value,
        in [0, 1].
    :raises ValueError: for numbers out of range. A call raises it for rows of another number of columns than
        ``fill`` has, and as :class:`Jitter` does.

    >>> dropout = FeatureDropout(0.5, scale=0.0, fill=(10.0, 20.0))
    >>> _ = torch.manual_seed(0)
    >>> dropout(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[10.,  2.],
            [10., 20.]])
    """

    rate: float
    scale: float
    fill: float | Sequence[float] = 0.0
    bins: int | None = None

    def __post_init__(self) -> None:
        check_number("rate", self.rate, at_least=0, below=1)
        check_scale("scale", self.scale, zero=True)
        check_at_least(1, bins=1 if self.bins is None else self.bins)
        fill = self.fill.tolist() if hasattr(self.fill, "tolist") else self.fill
        if isinstance(fill, list | tuple):
            if not fill:
                raise ValueError("fill is empty, expected one number, or one for each column")
            fill = tuple(check_number(f"fill[{place}]", value) for place, value in enumerate(fill))
        else:
            fill = check_number("fill", fill)
        object.__setattr__(self, "fill", fill)  # a frozen dataclass may set its fields only like this

    def __call__(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        dropped = torch.rand(x.shape, device=x.device) < self.rate
        x = torch.where(dropped, x.new_tensor(self.fill), x)
        return x + self.scale * torch.randn_like(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Dequantise ``x`` if ``bins`` is given. No entry is dropped."""
        x = _prepared(x, self.bins, "FeatureDropout")
        if isinstance(self.fill, tuple) and x.shape[-1:] != (len(self.fill),):
            raise ValueError(
                f"FeatureDropout: fill has {len(self.fill)} numbers and x the shape {tuple(x.shape)}; "
                "expected one number for each column of rows (*batch, D), or one for all"
            )
        return x


def _prepared(x: Tensor, bins: int | None, owner: str) -> Tensor:
    """``x`` dequantised if ``bins`` is given, and otherwise as it is, checked to be floating and finite."""
    if bins is not None:
        check_levels(x, bins, owner)
        return spread(x, bins)
    check_finite(x, "x", owner)
    if not x.is_floating_point():
        raise ValueError(
            f"{owner}: x has dtype {x.dtype}, expected floating numbers; give {owner}(..., bins=...) if "
            "these are grey levels or counts, and x.to(torch.get_default_dtype()) if they are not"
        )
    return x
