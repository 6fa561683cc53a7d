"""Distributions of latents: Gaussian noise with a learnable scale, and independent parts side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_scnf._copies import Portable, PortableModule
from pyro_scnf._numbers import check_scale, check_temperature, check_word, refuse_unused
from pyro_scnf._shapes import as_sizes, in_double

__all__ = ["BaseNormal", "ConcatDistribution", "Transformed"]

if TYPE_CHECKING:
    # Pyro creates this class while it is imported, so type checkers and editors cannot find it there.
    class TransformedDistribution(torch.distributions.TransformedDistribution, TorchDistributionMixin):
        """``pyro.distributions.TransformedDistribution``."""

        def log_prob(self, value: Tensor) -> Tensor: ...
        def sample(self, sample_shape: Sequence[int] = ()) -> Tensor: ...
        def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor: ...
else:
    TransformedDistribution = dist.TransformedDistribution


def check_expansion(distribution: torch.distributions.Distribution, batch_shape: Sequence[int]) -> None:
    """Raise unless the batch shape of ``distribution`` can be expanded to ``batch_shape``.

    :raises ValueError: if it cannot.
    """
    before, after = distribution.batch_shape, torch.Size(batch_shape)
    try:
        possible = torch.broadcast_shapes(before, after) == after
    except RuntimeError:
        possible = False
    if not possible:
        raise ValueError(f"batch_shape={tuple(after)}: a batch of {tuple(before)} does not expand to it")


def check_base_scale(
    scale: object, init_scale: object, names: tuple[str, str] = ("scale", "init_scale")
) -> float | None:
    """Raise unless these are options of a :class:`BaseNormal`. Return ``init_scale`` as a ``float``.

    :param names: what the user calls the two options.
    """
    check_word(names[0], scale, ("learnable", "unit"))
    if init_scale is None:
        return None
    number = check_scale(names[1], init_scale)
    if scale == "unit" and number != 1:
        refuse_unused(f"{names[0]}='unit' fixes the scale at 1", **{names[1]: init_scale})
    return number


class Transformed(Portable, TransformedDistribution):
    """``TransformedDistribution`` that can be copied at any time, and whose ``expand`` checks the shape.

    A transform with a batch of its own would widen an expansion that is too narrow.
    """

    def expand(self, batch_shape: Sequence[int], _instance: Transformed | None = None) -> Transformed:
        """The same distribution with the batch shape ``batch_shape``.

        :raises ValueError: if its batch cannot be expanded to that shape.
        """
        check_expansion(self, batch_shape)
        new = self._get_checked_instance(Transformed, _instance)
        expanded: Transformed = super().expand(batch_shape, _instance=new)
        return expanded


class Independent(Portable, dist.Independent):
    """``Independent`` that can be copied at any time."""


class Mixture(Portable, dist.MixtureSameFamily):
    """``MixtureSameFamily`` that can be copied at any time."""

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        if not shape.numel():  # PyTorch's Categorical cannot draw nothing
            empty: Tensor = self.component_distribution.sample().new_empty(shape)
            return empty
        drawn: Tensor = super().sample(torch.Size(sample_shape))
        return drawn

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        raise NotImplementedError(
            "a mixture of several components in a class has no draws with a gradient (has_rsample is False); "
            "call sample, or give the prior components=1"
        )


class BaseNormal(PortableModule):
    r"""Zero-mean Gaussian base with diagonal scale :math:`\operatorname{softplus}(\rho)`.

    It is a module so that ``.to(...)`` moves it together with the flow. A distribution would keep its dtype
    and device.

    :param event_shape: shape of one draw.
    :param scale: ``"learnable"``, where :math:`\rho` is a parameter, or ``"unit"``, the standard normal.
    :param float init_scale: initial standard deviation of a learnable scale, 1 by default.
    :raises ValueError: for an unknown ``scale``, an ``init_scale`` that is no positive number, or another
        one than 1 beside the unit scale.
    """

    zero: Tensor

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        scale: Literal["learnable", "unit"] = "learnable",
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        init = check_base_scale(scale, init_scale) or 1.0
        self.event_shape = as_sizes(event_shape)
        self.raw_scale: nn.Parameter | None = None
        if scale == "learnable":
            inverse = init + math.log(-math.expm1(-init))  # of softplus
            self.raw_scale = nn.Parameter(torch.full(self.event_shape, inverse))
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # has the dtype and device

    def forward(
        self, batch_shape: Sequence[int] = (), temperature: float = 1.0, *, double: bool = False
    ) -> Independent:
        """The distribution with the batch shape ``batch_shape`` and its scale multiplied by ``temperature``.

        :param bool double: whether to score in double precision, whatever that of the module.
        :raises ValueError: if ``temperature`` is not positive.
        """
        scale = F.softplus(self.raw_scale) if self.raw_scale is not None else torch.ones_like(self.zero)
        zero, scale = (in_double(self.zero), in_double(scale)) if double else (self.zero, scale)
        normal = dist.Normal(zero, scale * check_temperature(temperature), validate_args=False)
        return Independent(normal.expand(torch.Size(batch_shape) + self.event_shape), len(self.event_shape))


class ConcatDistribution(Portable, dist.TorchDistribution):
    """Independent parts, flattened and concatenated into one vector event.

    Each part keeps its own batch shape in :meth:`log_prob`. With one part of batch ``()`` and one of batch
    ``(K, 1)``, a value of shape ``(B, D)`` costs B evaluations of the first density and K·B of the second.
    Enumerating a label is cheap for this reason: only the second part depends on it.

    :param parts: distributions whose batch shapes broadcast.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        parts: Sequence[TorchDistributionMixin],
        validate_args: bool | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.parts, self.dtype = list(parts), dtype
        self.sizes = [part.event_shape.numel() for part in self.parts]
        self.has_rsample = all(part.has_rsample for part in self.parts)
        batch_shape = torch.broadcast_shapes(*(part.batch_shape for part in self.parts))
        super().__init__(batch_shape, torch.Size((sum(self.sizes),)), validate_args=validate_args)

    def expand(
        self, batch_shape: Sequence[int], _instance: ConcatDistribution | None = None
    ) -> ConcatDistribution:
        new = self._get_checked_instance(ConcatDistribution, _instance)
        check_expansion(self, batch_shape)
        new.parts, new.sizes, new.has_rsample = self.parts, self.sizes, self.has_rsample
        new.dtype = self.dtype
        super(ConcatDistribution, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            return self.join([part.expand(self.batch_shape).sample(shape) for part in self.parts])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return self.join([part.expand(self.batch_shape).rsample(shape) for part in self.parts])

    def split(self, value: Tensor) -> list[Tensor]:
        """Cut a concatenated ``value``, ``(*batch, D)``, into the events of the parts."""
        pieces = value.split(self.sizes, -1)
        return [
            v.reshape(v.shape[:-1] + part.event_shape) for v, part in zip(pieces, self.parts, strict=True)
        ]

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Undo :meth:`split`. The batch shapes of the events broadcast."""
        flat = [
            v.reshape(v.shape[: v.dim() - len(part.event_shape)] + (size,)).to(self.dtype or v.dtype)
            for v, part, size in zip(values, self.parts, self.sizes, strict=True)
        ]
        batch = torch.broadcast_shapes(*(v.shape[:-1] for v in flat))
        return torch.cat([v.expand(batch + v.shape[-1:]) for v in flat], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if not value.numel():  # PyTorch's Independent cannot score a batch of no rows
            return value.new_zeros(torch.broadcast_shapes(value.shape[:-1], self.batch_shape))
        total = sum(part.log_prob(v) for part, v in zip(self.parts, self.split(value), strict=True))
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))
