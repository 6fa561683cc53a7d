r"""Affine couplings: part of the event is shifted and scaled by a function of the rest.

All couplings follow one convention, from data to latent: shift, then scale,

.. math:: z_b = (x_b + t(x_a, c)) \odot S(x_a, c), \qquad z_a = x_a,

with log-determinant :math:`\sum \log S` nats. The conditioner is a network with ``2 C_b`` output channels:
the raw scale first, then the shift. :mod:`pyro_scnf.transforms.scale` maps the raw scale to :math:`\log S`.
An unconditional coupling has no context ``c``.

References: Dinh et al., *Real NVP*, 2017; Kingma and Dhariwal, *Glow*, 2018; Atanov et al.,
*Semi-Conditional Normalizing Flows*, 2019, section 3.3 (conditional coupling).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_scnf._numbers import check_flag, check_whole
from pyro_scnf._shapes import as_sizes, check_tensor
from pyro_scnf.transforms.base import ConditionalFlowTransform, FlowTransform
from pyro_scnf.transforms.bijection import Bijection
from pyro_scnf.transforms.scale import make_scale

__all__ = [
    "AffineCoupling",
    "ConditionalAffineCoupling",
    "ConditionalMaskedAffineCoupling",
    "MaskedAffineCoupling",
    "checkerboard_mask",
]


def unscaled(z: Tensor, log_scale: Tensor, shift: Tensor) -> Tensor:
    """``z / exp(log_scale) - shift``, kept so far from overflow that the layers around can still score it.

    Noise of a high temperature makes networks give scales that are 0 in floating point. Draws would become
    infinite, and then NaN.
    """
    most = torch.finfo(z.dtype).max
    bound = most ** (1 / 3) if most > 1e30 else most / 16
    return (z * (-log_scale).exp().clamp(max=bound) - shift).clamp(-bound, bound)


def _checked_net(net: object) -> nn.Module:
    """Raise unless ``net`` is a network."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"net={net!r}: expected a network (an nn.Module), such as those of pyro_scnf.nn")
    return net


class _Coupling(Bijection):
    """What the split and the masked coupling share: the conditioner, its initialisation and the sum."""

    net: nn.Module
    scale: nn.Module
    changed: int

    def _conditioner(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale and shift, in the dtype of ``x``. Under autocast the network may return another dtype."""
        out, dim = self.net(x, *context).to(x.dtype), -len(self.event_shape)
        # One channel of scale would broadcast over all channels, and the log-determinant would count it once.
        if out.shape[dim] != 2 * self.changed:
            raise ValueError(f"net: gives {out.shape[dim]} channels, expected {2 * self.changed}")
        raw, shift = out.chunk(2, dim)
        return self.scale(raw), shift

    def _sum_event(self, log_scale: Tensor) -> Tensor:
        return log_scale.flatten(-len(self.event_shape)).sum(-1)

    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        with torch.no_grad():
            set_from_data = getattr(self.net, "initialize", None)  # a plain network has nothing to set
            if set_from_data is not None:
                set_from_data(self._conditioning_part(x), *context)
            return self._inverse_ladj(x, *context)[0]

    def _conditioning_part(self, x: Tensor) -> Tensor:
        """The part of an event that the network sees."""
        raise NotImplementedError(f"{type(self).__name__} does not define _conditioning_part")


class _SplitCoupling(_Coupling):
    """The channels are split in two parts: one conditions, the other changes."""

    def _set_up(self, net: nn.Module, scale: str, flip: bool, split: int | None) -> None:
        channels = self.event_shape[0]
        if channels < 2 or (split is None and channels % 2):
            raise ValueError(
                f"event_shape={tuple(self.event_shape)}: a coupling halves the channels, got {channels}; "
                "give an even number, or `split`, the number of conditioning channels"
            )
        split = channels // 2 if split is None else split
        check_flag(flip=flip)
        self.split = check_whole("split", split, 1, channels - 1)
        self.net, self.flip = _checked_net(net), flip
        self.changed = channels - self.split
        self.scale = make_scale(scale, self.changed, len(self.event_shape))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channels that condition and those that change."""
        dim, rest = -len(self.event_shape), self.event_shape[0] - self.split
        if self.flip:
            changed, fixed = x.split([rest, self.split], dim)
        else:
            fixed, changed = x.split([self.split, rest], dim)
        return fixed, changed

    def _conditioning_part(self, x: Tensor) -> Tensor:
        return self._parts(x)[0]

    def _join(self, fixed: Tensor, changed: Tensor) -> Tensor:
        """Undo :meth:`_parts`. ``fixed`` may lack batch dimensions that ``changed`` has from a context."""
        event_dim = len(self.event_shape)
        batch = changed.shape[: changed.dim() - event_dim]
        fixed = fixed.expand(batch + fixed.shape[fixed.dim() - event_dim :])
        return torch.cat([changed, fixed] if self.flip else [fixed, changed], -event_dim)

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        fixed, changed = self._parts(z)
        log_scale, shift = self._conditioner(fixed, *context)
        return self._join(fixed, unscaled(changed, log_scale, shift)), -self._sum_event(log_scale)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        fixed, changed = self._parts(x)
        log_scale, shift = self._conditioner(fixed, *context)
        return self._join(fixed, (changed + shift) * log_scale.exp()), self._sum_event(log_scale)


class AffineCoupling(_SplitCoupling, FlowTransform):
    r"""Coupling of two halves of the channels, or of the features of a vector.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param net: conditioner from ``split`` channels to ``2 (C - split)``, see :mod:`pyro_scnf.nn`.
    :param scale: ``"sigmoid"``, ``"tanh"`` or ``"clamp"``.
    :param bool flip: condition on the trailing channels and change the leading ones, instead of the reverse.
    :param int split: number of conditioning channels; half of all channels by default.
    :raises ValueError: for an odd number of channels without ``split``, or an unknown ``scale``.

    The *double* coupling of the SCNF paper is two of these, the second one flipped.
    :func:`pyro_scnf.flows.glow` builds it.
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        net: nn.Module,
        *,
        scale: str = "sigmoid",
        flip: bool = False,
        split: int | None = None,
    ) -> None:
        super().__init__(event_shape)
        self._set_up(net, scale, flip, split)


class ConditionalAffineCoupling(_SplitCoupling, ConditionalFlowTransform):
    """:class:`AffineCoupling` whose conditioner also sees a context vector.

    :param int context_dim: length of a context vector; ``net`` must take contexts of this length.

    See :class:`AffineCoupling` for the other parameters and :class:`ConditionalFlowTransform` for
    how batch shapes broadcast.
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        net: nn.Module,
        *,
        context_dim: int,
        scale: str = "sigmoid",
        flip: bool = False,
        split: int | None = None,
    ) -> None:
        super().__init__(event_shape, context_dim)
        self._set_up(net, scale, flip, split)


def checkerboard_mask(event_shape: Sequence[int] | int, invert: bool = False) -> Tensor:
    """The mask of a checkerboard: 1 where row plus column is odd, 0 where it is even.

    Entries with mask 1 condition, those with mask 0 change.

    :param event_shape: ``(D,)`` or ``(C, H, W)``; in a vector the index takes the place of row plus column.
    :param bool invert: exchange ones and zeros.
    :return: ``(D,)`` for vectors, ``(1, H, W)`` for images, whose channels share the pattern.
    """
    check_flag(invert=invert)
    shape = as_sizes(event_shape)
    axes = shape[1:] if len(shape) == 3 else shape
    grids = torch.meshgrid(*(torch.arange(n) for n in axes), indexing="ij")
    mask = (torch.stack(grids).sum(0) % 2).to(torch.get_default_dtype())
    return (1 - mask if invert else mask).reshape((1,) * (len(shape) - len(axes)) + mask.shape)


class _MaskCoupling(_Coupling):
    """Entries with mask 1 condition, those with mask 0 change."""

    mask: Tensor
    free: Tensor

    def _set_up(self, net: nn.Module, scale: str, mask: Tensor | None, invert: bool) -> None:
        check_flag(invert=invert)
        if mask is None:
            mask = checkerboard_mask(self.event_shape)
        check_tensor(mask, "mask", type(self).__name__)
        mask = mask.to(torch.get_default_dtype())
        if invert:
            mask = 1 - mask
        try:
            broadcast = torch.broadcast_shapes(mask.shape, self.event_shape) == self.event_shape
        except RuntimeError:
            broadcast = False
        if not broadcast or not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                f"mask of shape {tuple(mask.shape)}: expected zeros and ones that broadcast to "
                f"event_shape={tuple(self.event_shape)}"
            )
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("free", 1 - mask, persistent=False)
        self.net = _checked_net(net)
        self.changed = self.event_shape[0]
        self.scale = make_scale(scale, self.changed, len(self.event_shape))

    def _conditioning_part(self, x: Tensor) -> Tensor:
        return x * self.mask

    def _masked_conditioner(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._conditioner(x * self.mask, *context)
        return log_scale * self.free, shift * self.free

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._masked_conditioner(z, *context)
        return unscaled(z, log_scale, shift), -self._sum_event(log_scale)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._masked_conditioner(x, *context)
        return (x + shift) * log_scale.exp(), self._sum_event(log_scale)


class MaskedAffineCoupling(_MaskCoupling, FlowTransform):
    r"""Coupling of two sets of positions, by default the two colours of a checkerboard.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param net: conditioner from ``C`` channels to ``2 C``. It sees zeros in place of the entries that change.
    :param scale: ``"sigmoid"``, ``"tanh"`` or ``"clamp"``.
    :param mask: ones where entries condition and zeros where they change. It broadcasts to ``event_shape``.
        By default it is :func:`checkerboard_mask`, where the top-left entry changes.
    :param bool invert: exchange the ones and zeros of the mask.
    :raises ValueError: if the mask is not made of zeros and ones or does not broadcast.
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        net: nn.Module,
        *,
        scale: str = "sigmoid",
        mask: Tensor | None = None,
        invert: bool = False,
    ) -> None:
        super().__init__(event_shape)
        self._set_up(net, scale, mask, invert)


class ConditionalMaskedAffineCoupling(_MaskCoupling, ConditionalFlowTransform):
    """:class:`MaskedAffineCoupling` whose conditioner also sees a context vector.

    :param int context_dim: length of a context vector; ``net`` must take contexts of this length.

    See :class:`MaskedAffineCoupling` for the other parameters and :class:`ConditionalFlowTransform` for
    how batch shapes broadcast.
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        net: nn.Module,
        *,
        context_dim: int,
        scale: str = "sigmoid",
        mask: Tensor | None = None,
        invert: bool = False,
    ) -> None:
        super().__init__(event_shape, context_dim)
        self._set_up(net, scale, mask, invert)
