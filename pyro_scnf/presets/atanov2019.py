"""Complete models of the literature, with their sizes and initial values."""

from __future__ import annotations

import math

from pyro_scnf.flows import atanov2019_mnist
from pyro_scnf.priors import PriorSpec
from pyro_scnf.semi_conditional import SemiConditionalFlow

__all__ = ["scnf_mnist"]


def scnf_mnist(
    prior: PriorSpec = "flow", *, latent_dim: int = 196, prior_width: int = 256, num_classes: int = 10
) -> SemiConditionalFlow:
    r"""SCNF for MNIST as released with Atanov et al. (2019), Appendix E.

    :param prior: ``"flow"`` is the paper's SCNF-Glow: two levels of four conditional steps on the
        flattened :math:`z_f`; ``"gmm"`` its SCNF-GMM: learnable means, one shared diagonal. Anything
        else goes to :func:`~pyro_scnf.priors.make_prior` as it is.
    :param int latent_dim: size of :math:`z_f`.
    :param int prior_width: width of the conditional networks: 256 in the released code (9,574,676
        parameters, 15,875,447 in all), 64 in the paper's text.
    :param int num_classes: number of labels K.

    Base scales are learnable and start at :math:`\ln 2`, as in the released code.
    """
    if prior == "flow":
        prior = {
            "name": "flow",
            "levels": 2,
            "steps": 4,
            "width": prior_width,
            "blocks": 4,
            "conv": "plain",
            "base_scale": math.log(2),
        }
    elif prior == "gmm":
        prior = {"name": "gmm", "covariance": "shared", "scale": math.log(2)}
    return SemiConditionalFlow(atanov2019_mnist(latent_dim), prior, num_classes, init_aux_scale=math.log(2))
