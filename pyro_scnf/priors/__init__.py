r"""Class-conditional priors :math:`p(z_f \mid y)`."""

from pyro_scnf.priors.base import ClassConditionalPrior
from pyro_scnf.priors.conditional_flow import ConditionalFlowPrior
from pyro_scnf.priors.mixture import GaussianMixturePrior
from pyro_scnf.priors.spec import PRIORS, PriorSpec, make_prior
from pyro_scnf.priors.student_t import StudentTMixturePrior

__all__ = [
    "PRIORS",
    "ClassConditionalPrior",
    "ConditionalFlowPrior",
    "GaussianMixturePrior",
    "PriorSpec",
    "StudentTMixturePrior",
    "make_prior",
]
