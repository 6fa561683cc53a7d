"""Terms that training may add to the likelihood. Each is a function of label posteriors."""

from pyro_scnf.terms.agreement import log_agreement
from pyro_scnf.terms.balance import imbalance

__all__ = ["imbalance", "log_agreement"]
