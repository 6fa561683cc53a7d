"""Activation normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_scnf.transforms.base import FlowTransform
from pyro_scnf.transforms.degenerate import channel_statistics, smallest_spread

__all__ = ["ActNorm", "center_and_spread"]


def center_and_spread(x: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, each ``(C,)``. A channel without spread has 1 for it.

    Dividing by a spread that is rounding alone would turn that rounding into data.
    """
    mean, std = channel_statistics(x, event_dim)
    return mean, torch.where(std > smallest_spread(mean), std, 1.0)


class ActNorm(FlowTransform):
    r"""Per-channel affine layer, :math:`x_c = \exp(\ell_c)\, z_c + m_c + s_c b_c`.

    **The layer is the identity** until :meth:`initialize` is called. ``initialize(x)`` sets the constants
    :math:`m, s` and the parameter :math:`\exp \ell` to the mean and the standard deviation of ``x``, so that
    its latents have zero mean and unit variance per channel. The parameter :math:`b`, at first 0, is measured
    in standard deviations, so a step of an optimiser means the same in every unit of x. A forward pass never
    initialises the layer, so enumeration, several devices and checkpoints all see the same parameters.

    :param event_shape: ``(D,)``, with one scale per feature, or ``(C, H, W)``, with one per channel.

    The log-determinant is :math:`HW \sum_c \ell_c` nats; for vectors H = W = 1.

    >>> layer = ActNorm((4, 8, 8))
    >>> z = layer.initialize(3 + 2 * torch.randn(100, 4, 8, 8))
    >>> bool(z.mean().abs() < 1e-5)
    True

    Reference: Kingma and Dhariwal, *Glow*, 2018, section 3.1.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, event_shape: Sequence[int] | int) -> None:
        super().__init__(event_shape)
        channels = self.event_shape[0]
        self.loc = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))

    @property
    def _shift(self) -> Tensor:
        return self._per_channel(torch.addcmul(self.center, self.spread, self.loc))

    def _per_channel(self, value: Tensor) -> Tensor:
        return value if len(self.event_shape) == 1 else value[:, None, None]

    def _ladj(self, batch: torch.Size) -> Tensor:
        return (self.log_scale.sum() * self.event_shape[1:].numel()).expand(batch)

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        x = z * self._per_channel(self.log_scale.exp()) + self._shift
        return x, self._ladj(x.shape[: x.dim() - len(self.event_shape)])

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - self._shift) * self._per_channel((-self.log_scale).exp())
        return z, -self._ladj(z.shape[: z.dim() - len(self.event_shape)])

    @torch.no_grad()
    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        center, spread = center_and_spread(x, len(self.event_shape))
        self.center.copy_(center)
        self.spread.copy_(spread)
        self.loc.zero_()
        self.log_scale.copy_(spread.log())
        return self._inverse_ladj(x)[0]
