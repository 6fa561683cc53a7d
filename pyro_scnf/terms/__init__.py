"""What training may add to the likelihood: functions of label posteriors."""

from pyro_scnf.terms.agreement import log_agreement
from pyro_scnf.terms.balance import imbalance

__all__ = ["imbalance", "log_agreement"]
