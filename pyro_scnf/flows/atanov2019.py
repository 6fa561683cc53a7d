"""The unconditional MNIST flow of the SCNF paper."""

from __future__ import annotations

import torch

from pyro_scnf._spec import recorded
from pyro_scnf.flows.builder import CouplingBuilder
from pyro_scnf.transforms import (
    ActNorm,
    InvertibleConv1x1,
    Logit,
    Squeeze,
    compose,
    kept_channels,
    multi_scale,
)
from pyro_scnf.transforms.compose import Layer

__all__ = ["atanov2019_mnist"]


@recorded
def atanov2019_mnist(latent_dim: int | None = 196) -> Layer:
    r"""The flow :math:`f_w` of Atanov et al. (2019), Appendix E: 6,299,987 parameters.

    From data to latent, a step is a 1×1 convolution (unconstrained, starting at the identity), a coupling
    and an actnorm. The flow has these parts, from data to latent:

    * three checkerboard steps at 28×28, squeeze, two channel steps at 14×14, factor-out;
    * three checkerboard steps at 14×14, squeeze, two channel steps at 7×7, factor-out;
    * three checkerboard steps and two channel steps at 7×7.

    Channel couplings are double. Conditioners are residual networks of width 64 with 4 blocks. Data are
    dequantised images in the unit interval.

    :param int latent_dim: how many of the 784 components, the deepest ones, form :math:`z_f`. The paper
        uses 196 and studies 48, 98, 392 and 784. With ``None`` all components of the deepest level do.
    :raises ValueError: for a ``latent_dim`` out of range.
    """
    build = CouplingBuilder(width=64, blocks=4, scale="sigmoid")

    def step(shape: torch.Size, couplings: list[Layer]) -> list[Layer]:
        return [InvertibleConv1x1(shape, "plain", "identity"), *couplings, ActNorm(shape)]

    def checkerboards(shape: torch.Size) -> list[Layer]:
        return [
            layer
            for invert in (False, True, False)
            for layer in step(shape, [build.checkerboard(shape, invert)])
        ]

    def channels(shape: torch.Size) -> list[Layer]:
        return [layer for _ in range(2) for layer in step(shape, build.double(shape)[::-1])]

    image = torch.Size((1, 28, 28))
    shape, stages = image, []
    for _ in range(2):
        squeeze = Squeeze(shape, "space-major")
        layers = [*checkerboards(shape), squeeze, *channels(squeeze.base_shape)]
        stages.append(compose(layers[::-1]))
        shape = torch.Size((kept_channels(squeeze.base_shape[0]),)) + squeeze.base_shape[1:]
    stages.append(compose([*checkerboards(shape), *channels(shape)][::-1]))
    return compose([multi_scale(stages[::-1], latent_dim), Logit(image, alpha=0.05)])
