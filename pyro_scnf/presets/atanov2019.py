"""The MNIST model of Atanov et al. (2019), Appendix E, and the settings of the released code."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_scnf._numbers import check_whole, refuse_unused
from pyro_scnf.datasets import ImageAugment
from pyro_scnf.flows import atanov2019_mnist
from pyro_scnf.presets.base import ModelOptions, Preset
from pyro_scnf.priors import PriorSpec
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.training.options import Optimisation

__all__ = ["MNIST_PAPER", "MNIST_PAPER_SMALL_H", "scnf_mnist"]


def scnf_mnist(
    prior: PriorSpec = "flow",
    *,
    latent_dim: int | None = 196,
    prior_width: int | None = None,
    num_classes: int = 10,
) -> SemiConditionalFlow:
    r"""SCNF for MNIST as released with Atanov et al. (2019), Appendix E.

    :param prior: ``"flow"`` is the paper's SCNF-Glow: two levels of four conditional steps on the
        flattened :math:`z_f`. ``"gmm"`` is its SCNF-GMM: learnable means, random at first, and one shared
        diagonal. Any other prior goes to :func:`~pyro_scnf.priors.make_prior` unchanged.
    :param int latent_dim: number of components of :math:`z_f`, see
        :func:`~pyro_scnf.flows.atanov2019_mnist`.
    :param int prior_width: width of the conditional networks of ``"flow"``: 256 by default, as in the
        released code (9,574,676 parameters, 15,875,447 in all); 64 in the paper's text.
    :param int num_classes: number of labels K.
    :raises ValueError: for options out of range, or ``prior_width`` beside another prior.

    Base scales are learnable and start at :math:`\ln 2`, as in the released code.
    """
    width = 256 if prior_width is None else check_whole("prior_width", prior_width, 1)
    if prior != "flow":
        refuse_unused("it is that of prior='flow'", prior_width=prior_width)
    if prior == "flow":
        prior = {
            "name": "flow",
            "levels": 2,
            "steps": 4,
            "width": width,
            "blocks": 4,
            "conv": "plain",
            "base_scale": math.log(2),
        }
    elif prior == "gmm":
        prior = {"name": "gmm", "covariance": "shared", "means": "random", "scale": math.log(2)}
    flow = atanov2019_mnist(latent_dim)
    init_aux_scale = math.log(2) if flow.aux_dim else None
    return SemiConditionalFlow(flow, prior, num_classes, init_aux_scale=init_aux_scale)


@dataclass(frozen=True)
class _PaperFlow:
    """:func:`scnf_mnist` with conditional networks of one width."""

    prior_width: int

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        latent_dim = 196 if latent_dim is None else latent_dim
        prior_width = self.prior_width if prior == "flow" else None
        return scnf_mnist(prior, latent_dim=latent_dim, prior_width=prior_width, num_classes=num_classes)


def _paper(prior_width: int) -> Preset:
    return Preset(
        flow=_PaperFlow(prior_width),
        augment=ImageAugment(),
        optimisation=Optimisation(
            optimizer="adamax",
            learning_rate=1e-3,
            betas=(0.9, 0.999),
            weight_decay=1e-5,
            schedule="linear",
            ema_decay=None,
            gradient_clip=None,
        ),
        steps=117_500,
        batch_size=171,
        labelled_batch_size=85,  # a third of 256
        validate_every=500,
        model=ModelOptions(class_probs="empirical"),
        initial_rows=512,
        split="stratified",
    )


MNIST_PAPER = _paper(prior_width=256)
"""The model of Appendix E, trained with the settings of the released code."""

MNIST_PAPER_SMALL_H = _paper(prior_width=64)
"""The same as :data:`MNIST_PAPER`, but with conditional networks of width 64, as in the paper's text."""
