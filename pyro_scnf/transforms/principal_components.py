"""Rotation to principal components."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_scnf._shapes import at_least_single, in_double, over_batch
from pyro_scnf.transforms.base import FlowTransform

__all__ = ["PrincipalComponents"]

SMALLEST = 1e-3
"""No component is divided by less than this share of the largest standard deviation."""


class PrincipalComponents(FlowTransform):
    r"""Columns rotated to principal components of standard deviation 1, the leading ones last.

    From data to latent

    .. math:: z = \operatorname{diag}(\sigma)^{-1}\, V^\top (x - m),

    where :math:`V` is orthogonal. **The layer is the identity** until :meth:`initialize` is called.
    ``initialize(x)`` takes m, :math:`\sigma` and :math:`V` from the mean and the covariance of ``x``. They
    are buffers: training leaves them alone. The last latents of a flow form :math:`z_f`. So :math:`z_f` is
    what varies most, and :math:`z_{aux}` what varies least.

    A component of nearly no variance would have a density without bound. It is scaled by a thousandth of the
    largest standard deviation instead, so its latents vary less than 1.

    :param event_shape: ``(D,)``.
    :raises ValueError: for images.

    The log-determinant from data to latent is :math:`-\sum_d \log \sigma_d` nats.

    >>> x = torch.randn(1000, 1) * torch.tensor([3.0, 4.0]) + 0.1 * torch.randn(1000, 2)
    >>> layer = PrincipalComponents(2)
    >>> z = layer.initialize(x)
    >>> bool((z[:, 1] * x[:, 0]).mean().abs() > 2.5)
    True
    >>> bool((z.std(0) - 1).abs().max() < 0.01)
    True

    Reference: Jolliffe, *Principal component analysis*, 2002.
    """

    center: Tensor
    rotation: Tensor
    log_spread: Tensor
    log_det_rotation: Tensor

    def __init__(self, event_shape: Sequence[int] | int) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise ValueError(f"event_shape={tuple(self.event_shape)}: expected (D,), a vector")
        (columns,) = self.event_shape
        self.register_buffer("center", torch.zeros(columns))
        self.register_buffer("rotation", torch.eye(columns))
        self.register_buffer("log_spread", torch.zeros(columns))
        self.register_buffer("log_det_rotation", torch.zeros(()))  # 0 but for rounding

    def _ladj(self, batch: torch.Size) -> Tensor:
        return (self.log_det_rotation - self.log_spread.sum()).expand(batch)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        # With a batch dimension, because a product with one vector breaks vectorised forward mode.
        rotated = over_batch(lambda rows: rows @ self.rotation, x - self.center, 1)
        z = rotated * (-self.log_spread).exp()
        return z, self._ladj(z.shape[:-1])

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        # Not the transpose, which is the inverse of a rounded rotation only to within the rounding.
        # PyTorch solves no system in half precision.
        scaled = at_least_single(z * self.log_spread.exp())
        x = torch.linalg.solve(at_least_single(self.rotation).T, scaled[..., None])[..., 0].to(z.dtype)
        return x + self.center, -self._ladj(x.shape[:-1])

    @torch.no_grad()
    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        rows = in_double(x).flatten(0, -2)
        center = rows.mean(0)
        rows = rows - center
        variances, rotation = torch.linalg.eigh(rows.T @ rows / len(rows))  # ascending
        spread = variances.clamp(min=0).sqrt()
        largest = spread[-1]
        spread = torch.where(largest > 0, spread.clamp(min=SMALLEST * largest), 1.0)
        self.center.copy_(center)
        self.rotation.copy_(rotation)
        self.log_spread.copy_(spread.log())
        self.log_det_rotation.copy_(torch.linalg.slogdet(in_double(self.rotation))[1])
        return self._inverse_ladj(x)[0]
