r"""Affine couplings: part of the event is shifted and scaled by a function of the rest.

One convention throughout, stated from data to latent (shift, then scale):

.. math:: z_b = (x_b + t(x_a, c)) \odot S(x_a, c), \qquad z_a = x_a,

with log-determinant :math:`\sum \log S` nats. The conditioner gives ``2 C_b`` channels, first the
raw scale, then the shift; :mod:`pyro_scnf.transforms.scale` makes :math:`\log S` of the former. The
context ``c`` is absent in unconditional couplings.

References: Dinh et al., *Real NVP*, 2017; Kingma and Dhariwal, *Glow*, 2018; Atanov et al.,
*Semi-Conditional Normalizing Flows*, 2019, section 3.3 (conditional coupling).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_scnf.transforms.base import ConditionalFlowTransform, FlowTransform
from pyro_scnf.transforms.scale import make_scale

__all__ = [
    "AffineCoupling",
    "ConditionalAffineCoupling",
    "ConditionalMaskedAffineCoupling",
    "MaskedAffineCoupling",
    "checkerboard_mask",
]


class _Coupling:
    """What the split and the masked coupling share: asking the conditioner and summing up."""

    event_shape: torch.Size
    net: nn.Module
    scale: nn.Module
    changed: int

    def _conditioner(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """log-scale and shift, in the precision of ``x`` whatever autocast made of the net."""
        out, dim = self.net(x, *context).to(x.dtype), -len(self.event_shape)
        if out.shape[dim] != 2 * self.changed:  # a narrower one would broadcast, and count once
            raise ValueError(f"net: gives {out.shape[dim]} channels, expected {2 * self.changed}")
        raw, shift = out.chunk(2, dim)
        return self.scale(raw), shift

    def _sum_event(self, log_scale: Tensor) -> Tensor:
        return log_scale.flatten(-len(self.event_shape)).sum(-1)

    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        with torch.no_grad():
            self.net.initialize(self._conditioning_part(x), *context)  # type: ignore[operator]
            return self._inverse_ladj(x, *context)[0]  # type: ignore[attr-defined]

    def _conditioning_part(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _SplitCoupling(_Coupling):
    """Channels split in two: one half conditions, the other changes."""

    def _set_up(self, net: nn.Module, scale: str, flip: bool, split: int | None) -> None:
        channels = self.event_shape[0]
        if split is None:
            if channels % 2:
                raise ValueError(
                    f"event_shape={tuple(self.event_shape)}: a coupling halves the channels, got {channels}; "
                    "give `split`, the number of conditioning channels"
                )
            split = channels // 2
        if not 0 < split < channels:
            raise ValueError(f"split={split}: expected 1 to {channels - 1} of {channels} channels")
        self.net, self.flip, self.split = net, flip, split
        self.changed = channels - split
        self.scale = make_scale(scale, self.changed, len(self.event_shape))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dim, rest = -len(self.event_shape), self.event_shape[0] - self.split
        if self.flip:
            changed, fixed = x.split([rest, self.split], dim)
        else:
            fixed, changed = x.split([self.split, rest], dim)
        return fixed, changed

    def _conditioning_part(self, x: Tensor) -> Tensor:
        return self._parts(x)[0]

    def _join(self, fixed: Tensor, changed: Tensor) -> Tensor:
        event_dim = len(self.event_shape)
        batch = changed.shape[: changed.dim() - event_dim]
        fixed = fixed.expand(batch + fixed.shape[fixed.dim() - event_dim :])
        return torch.cat([changed, fixed] if self.flip else [fixed, changed], -event_dim)

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        fixed, changed = self._parts(z)
        log_scale, shift = self._conditioner(fixed, *context)
        return self._join(fixed, changed * (-log_scale).exp() - shift), -self._sum_event(log_scale)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        fixed, changed = self._parts(x)
        log_scale, shift = self._conditioner(fixed, *context)
        return self._join(fixed, (changed + shift) * log_scale.exp()), self._sum_event(log_scale)


class AffineCoupling(_SplitCoupling, FlowTransform):
    r"""Coupling of channel halves (of feature halves, for vectors).

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param net: conditioner from ``split`` channels to ``2 (C - split)``, see :mod:`pyro_scnf.nn`.
    :param scale: ``"sigmoid"``, ``"tanh"`` or ``"clamp"``.
    :param bool flip: change the leading channels and condition on the trailing ones, not vice versa.
    :param int split: number of conditioning channels; half of them by default.
    :raises ValueError: for an odd number of channels without ``split``, or an unknown ``scale``.

    The *double* coupling of the SCNF paper is two of these, the second flipped
    (:func:`pyro_scnf.flows.glow` builds it).
    """

    def __init__(
        self,
        event_shape: Any,
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

    :param int context_dim: length of the context; ``net`` must have been built for it.

    See :class:`AffineCoupling` for the other parameters and :class:`ConditionalFlowTransform` for
    how batch shapes broadcast.
    """

    def __init__(
        self,
        event_shape: Any,
        net: nn.Module,
        *,
        context_dim: int,
        scale: str = "sigmoid",
        flip: bool = False,
        split: int | None = None,
    ) -> None:
        super().__init__(event_shape, context_dim)
        self._set_up(net, scale, flip, split)


def checkerboard_mask(event_shape: Any, invert: bool = False) -> Tensor:
    """1 where the position sum is odd (the entries that condition), 0 where it is even.

    For images the pattern is the same in every channel, ``(1, H, W)``; for vectors it is ``(D,)``.
    ``invert`` gives the complement, the second phase.
    """
    shape = torch.Size(event_shape)
    axes = shape[1:] if len(shape) == 3 else shape
    grids = torch.meshgrid(*(torch.arange(n) for n in axes), indexing="ij")
    mask = (sum(grids) % 2).to(torch.get_default_dtype())  # type: ignore[union-attr]
    return (1 - mask if invert else mask).reshape((1,) * (len(shape) - len(axes)) + mask.shape)


class _MaskCoupling(_Coupling):
    """Entries with mask 1 condition, those with mask 0 change."""

    mask: Tensor
    free: Tensor

    def _set_up(self, net: nn.Module, scale: str, mask: Tensor | None, invert: bool) -> None:
        mask = checkerboard_mask(self.event_shape) if mask is None else mask.to(torch.get_default_dtype())
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
        self.register_buffer("mask", mask, persistent=False)  # type: ignore[attr-defined]
        self.register_buffer("free", 1 - mask, persistent=False)  # type: ignore[attr-defined]
        self.net = net
        self.changed = self.event_shape[0]
        self.scale = make_scale(scale, self.changed, len(self.event_shape))

    def _conditioning_part(self, x: Tensor) -> Tensor:
        return x * self.mask

    def _masked_conditioner(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._conditioner(x * self.mask, *context)
        return log_scale * self.free, shift * self.free

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._masked_conditioner(z, *context)
        return z * (-log_scale).exp() - shift, -self._sum_event(log_scale)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._masked_conditioner(x, *context)
        return (x + shift) * log_scale.exp(), self._sum_event(log_scale)


class MaskedAffineCoupling(_MaskCoupling, FlowTransform):
    r"""Coupling of two sets of positions, by default the colours of a checkerboard.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param net: conditioner from all ``C`` channels (changing entries zeroed) to ``2 C``.
    :param scale: ``"sigmoid"``, ``"tanh"`` or ``"clamp"``.
    :param mask: zeros (these change) and ones (these condition), broadcasting to ``event_shape``;
        by default :func:`checkerboard_mask`, where the top-left entry changes.
    :param bool invert: use the complement of the mask, the other phase.
    :raises ValueError: if the mask is not made of zeros and ones or does not broadcast.
    """

    def __init__(
        self,
        event_shape: Any,
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

    :param int context_dim: length of the context; ``net`` must have been built for it.
    """

    def __init__(
        self,
        event_shape: Any,
        net: nn.Module,
        *,
        context_dim: int,
        scale: str = "sigmoid",
        mask: Tensor | None = None,
        invert: bool = False,
    ) -> None:
        super().__init__(event_shape, context_dim)
        self._set_up(net, scale, mask, invert)
