"""Training terms: what training minimises besides the negative log-likelihood.

A term is a function of tables: the scores of the rows of a batch under every label. It sees neither the flow
nor Pyro, so it costs no pass of the flow.
"""

from pyro_scnf.terms.agreement import Agreement, log_agreement
from pyro_scnf.terms.balance import Balance, imbalance
from pyro_scnf.terms.base import Part, Scored, Step, TrainingTerm
from pyro_scnf.terms.classification import Classification, cross_entropy
from pyro_scnf.terms.consistency import Consistency, label_disagreement
from pyro_scnf.terms.energy import Energy
from pyro_scnf.terms.spec import TERMS, Terms, TermSpec, active, make_terms, needs_of, weighted

__all__ = [
    "TERMS",
    "Agreement",
    "Balance",
    "Classification",
    "Consistency",
    "Energy",
    "Part",
    "Scored",
    "Step",
    "TermSpec",
    "Terms",
    "TrainingTerm",
    "active",
    "cross_entropy",
    "imbalance",
    "label_disagreement",
    "log_agreement",
    "make_terms",
    "needs_of",
    "weighted",
]
