"""Name a prior by a word, a dict, an import path, a class or a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

from torch import nn

from pyro_scnf._spec import read_spec, remember
from pyro_scnf.priors.base import ClassConditionalPrior
from pyro_scnf.priors.conditional_flow import ConditionalFlowPrior
from pyro_scnf.priors.mixture import GaussianMixturePrior, StudentTMixturePrior

__all__ = ["PRIORS", "PriorSpec", "make_prior"]

PRIORS: dict[str, Callable[..., ClassConditionalPrior]] = {
    "flow": ConditionalFlowPrior,
    "gmm": GaussianMixturePrior,
    "flowgmm": partial(GaussianMixturePrior, covariance="isotropic", learn_means=False, learn_scales=False),
    "student-t": StudentTMixturePrior,
}
"""Priors by name. ``flowgmm`` is the prior of FlowGMM, with fixed random means and fixed unit scales."""

PriorSpec = str | Mapping[str, object] | Callable[..., ClassConditionalPrior] | ClassConditionalPrior
"""The ways to name a prior, see :func:`make_prior`."""


def make_prior(
    spec: PriorSpec, event_shape: Sequence[int] | int, num_classes: int | None
) -> ClassConditionalPrior:
    """The prior that ``spec`` names, over latents of ``event_shape`` and ``num_classes`` labels.

    :param spec: one of

        * a word of :data:`PRIORS`, ``"gmm"``;
        * a word with options, ``"gmm:covariance=full,learn_means=False"``;
        * the import path of your own class, ``"my_package.my_module.MyPrior:width=32"``;
        * a mapping with the key ``name`` and the options, ``{"name": "gmm", "scale": 0.5}``;
        * a class or function, called with ``event_shape, num_classes``;
        * a ready module, returned as it is.
    :raises ValueError: for an unknown word, malformed options, or a missing ``num_classes``.

    >>> prior = make_prior("gmm:covariance=full", (4,), 3)
    >>> prior.covariance
    'full'
    """
    if isinstance(spec, nn.Module):
        return cast(ClassConditionalPrior, spec)
    if num_classes is None:
        raise ValueError(f"num_classes: needed to build the prior {spec!r}")
    named = read_spec(spec, PRIORS, "prior")
    try:
        prior = named.factory(event_shape, num_classes, **named.options)
    except TypeError as error:
        raise ValueError(f"prior={spec!r}: {error}") from error
    remember(prior, named.description)
    return prior
