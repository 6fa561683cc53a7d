"""Activation normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_scnf.transforms.base import FlowTransform

__all__ = ["ActNorm"]

EPSILON = 1e-6


def channel_statistics(x: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation per channel, over batch and space, each ``(C,)``."""
    rows = x.movedim(-event_dim, -1).reshape(-1, x.shape[-event_dim])
    if len(rows) < 2:
        raise ValueError("initialize: x needs at least two values a channel to measure its spread")
    return rows.mean(0), rows.std(0)


class ActNorm(FlowTransform):
    r"""Per-channel affine layer, :math:`x_c = \exp(\ell_c)\, z_c + b_c`.

    **The layer is the identity** until :meth:`initialize` is called. ``initialize(x)`` sets :math:`b` and
    :math:`\exp \ell` to the mean and standard deviation of ``x``, so that its latents have zero mean and
    unit variance per channel. From then on both are ordinary parameters. A forward pass never initialises
    the layer, so enumeration, several devices and checkpoints all see the same parameters.

    :param event_shape: ``(D,)``, with one scale per feature, or ``(C, H, W)``, with one per channel.

    The log-determinant is :math:`HW \sum_c \ell_c` nats; for vectors H = W = 1.

    >>> layer = ActNorm((4, 8, 8))
    >>> z = layer.initialize(3 + 2 * torch.randn(100, 4, 8, 8))
    >>> bool(z.mean().abs() < 1e-5)
    True

    Reference: Kingma and Dhariwal, *Glow*, 2018, section 3.1.
    """

    def __init__(self, event_shape: Sequence[int] | int) -> None:
        super().__init__(event_shape)
        self.loc = nn.Parameter(torch.zeros(self.event_shape[0]))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape[0]))

    def _per_channel(self, value: Tensor) -> Tensor:
        return value if len(self.event_shape) == 1 else value[:, None, None]

    def _ladj(self, batch: torch.Size) -> Tensor:
        return (self.log_scale.sum() * self.event_shape[1:].numel()).expand(batch)

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        x = z * self._per_channel(self.log_scale.exp()) + self._per_channel(self.loc)
        return x, self._ladj(x.shape[: x.dim() - len(self.event_shape)])

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - self._per_channel(self.loc)) * self._per_channel((-self.log_scale).exp())
        return z, -self._ladj(z.shape[: z.dim() - len(self.event_shape)])

    @torch.no_grad()
    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        mean, std = channel_statistics(x, len(self.event_shape))
        self.loc.copy_(mean)
        self.log_scale.copy_((std + EPSILON).log())
        return self._inverse_ladj(x)[0]
