"""Conformance checks of transforms, priors and training terms, for your own test suite.

One line checks a member:

>>> from pyro_scnf.testing import check_prior, check_term, check_transform
>>> check_transform(lambda: pyro_scnf.transforms.InvertibleConv1x1((3,)), (3,))
>>> check_prior(pyro_scnf.priors.GaussianMixturePrior, (4,), num_classes=3)
>>> check_term(pyro_scnf.terms.Agreement(purity=0.9))

A member with a fault raises an ``AssertionError``. It names the member, the failed checks and the numbers:

>>> class Doubling(pyro_scnf.transforms.FlowTransform):
...     def _inverse_ladj(self, x, *context):
...         return x / 2, x.new_zeros(x.shape[:-1])
...
...     def _forward_ladj(self, z, *context):
...         return 2 * z, z.new_zeros(z.shape[:-1])
>>> files = ("pickles", "saves", "files_hold_no_data")  # they need an importable class
>>> check_transform(lambda: Doubling((3,)), (3,), skip=files)  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
pyro_scnf.testing.check.ConformanceError: Doubling ... fails the check log_determinant...

The checks are independent of the test framework. A check seeds its random numbers, so that its result is the
same each time, and leaves the global state as it was.
"""

from pyro_scnf.testing.case import Case, ModuleCase, PriorCase, Tolerances
from pyro_scnf.testing.check import Check, ConformanceError, applicable
from pyro_scnf.testing.modules import MODULE_CHECKS, check_module
from pyro_scnf.testing.priors import PRIOR_CHECKS, check_prior
from pyro_scnf.testing.steps import TermCase
from pyro_scnf.testing.terms import TERM_CHECKS, check_term
from pyro_scnf.testing.transforms import TRANSFORM_CHECKS, check_transform

__all__ = [
    "MODULE_CHECKS",
    "PRIOR_CHECKS",
    "TERM_CHECKS",
    "TRANSFORM_CHECKS",
    "Case",
    "Check",
    "ConformanceError",
    "ModuleCase",
    "PriorCase",
    "TermCase",
    "Tolerances",
    "applicable",
    "check_module",
    "check_prior",
    "check_term",
    "check_transform",
]
