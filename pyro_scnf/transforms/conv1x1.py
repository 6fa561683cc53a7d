"""Invertible linear mixing of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_scnf._numbers import check_word
from pyro_scnf._shapes import at_least_single, no_autocast, over_batch
from pyro_scnf.transforms.base import FlowTransform

__all__ = ["InvertibleConv1x1"]


class InvertibleConv1x1(FlowTransform):
    r"""Invertible 1×1 convolution: :math:`z_{:ij} = W x_{:ij}` at every pixel.

    The matrix is that of the direction from data to latent. Scoring is therefore one convolution, and
    sampling is one solve. For vectors it is an invertible linear layer.

    :param event_shape: ``(D,)`` or ``(C, H, W)``; ``W`` is :math:`C \times C`.
    :param parameterization: ``"lu"``: :math:`W = P L (U + \mathrm{diag}(\sigma \odot e^{s}))` with
        fixed permutation ``P`` and signs :math:`\sigma`, so that :math:`\log|\det W| = \sum s`;
        ``"plain"``: an unconstrained ``W``, whose determinant and inverse are computed in float64.
    :param init: ``"orthogonal"`` (a random rotation) or ``"identity"``.

    The log-determinant of the inverse direction is :math:`HW \log|\det W|` nats.

    Reference: Kingma and Dhariwal, *Glow*, 2018, section 3.2.
    """

    permutation: Tensor
    diagonal_sign: Tensor

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        parameterization: Literal["lu", "plain"] = "lu",
        init: Literal["orthogonal", "identity"] = "orthogonal",
    ) -> None:
        super().__init__(event_shape)
        check_word("parameterization", parameterization, ("lu", "plain"))
        check_word("init", init, ("orthogonal", "identity"))
        self.parameterization = parameterization
        channels = self.event_shape[0]
        weight = torch.eye(channels)
        if init == "orthogonal":
            nn.init.orthogonal_(weight)
        if parameterization == "plain":
            self.weight = nn.Parameter(weight)
            return
        permutation, lower, upper = torch.linalg.lu(weight)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("diagonal_sign", diagonal.sign())  # Transform itself uses the name `sign`
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """The triangular factors of ``W``: L with ones on its diagonal, and U with :math:`\\sigma e^s`."""
        lower = self.lower.tril(-1) + torch.eye(
            len(self.lower), dtype=self.lower.dtype, device=self.lower.device
        )
        return lower, self.upper.triu(1) + torch.diag(self.diagonal_sign * self.log_diagonal.exp())

    def _ladj(self, batch: torch.Size) -> Tensor:
        """:math:`HW \\log|\\det W|` for every element of the batch."""
        if self.parameterization == "lu":
            log_det = self.log_diagonal.sum()
        else:
            log_det = torch.linalg.slogdet(self.weight.double())[1].to(self.weight.dtype)
        return (log_det * self.event_shape[1:].numel()).expand(batch)

    def _multiply(self, weight: Tensor, x: Tensor) -> Tensor:
        if len(self.event_shape) == 1:
            # With a batch dimension, because F.linear of one vector breaks vectorised forward mode.
            return over_batch(lambda flat: F.linear(flat, weight), x, 1)
        return over_batch(lambda flat: F.conv2d(flat, weight[..., None, None]), x, 3)

    def _matrix(self) -> Tensor:
        if self.parameterization == "plain":
            return self.weight
        lower, upper = self._factors()
        return self.permutation @ lower @ upper

    def _inverse_matrix(self) -> Tensor:
        if self.parameterization == "plain":
            return torch.linalg.inv(self.weight.double()).to(self.weight.dtype)
        # PyTorch solves triangular systems in single and double precision only.
        lower, upper, right = (at_least_single(t) for t in (*self._factors(), self.permutation.T))
        x = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, x, upper=True).to(self.permutation.dtype)

    # Leave autocast for the flow's own arithmetic. Half precision is good enough for the networks inside
    # couplings, but not for the latents and the log-determinant.
    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        with no_autocast(x.device.type):
            z = self._multiply(self._matrix(), x)
        return z, self._ladj(z.shape[: z.dim() - len(self.event_shape)])

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        with no_autocast(z.device.type):
            x = self._multiply(self._inverse_matrix(), z)
        return x, -self._ladj(x.shape[: x.dim() - len(self.event_shape)])
