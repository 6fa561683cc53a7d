"""Name a prior by a word, a dict, an import path, a class or a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import as_event_shape
from pyro_scnf._spec import read_spec, remember
from pyro_scnf.flows import ffjord
from pyro_scnf.nn.dynamics import LayerName
from pyro_scnf.priors.base import ClassConditionalPrior
from pyro_scnf.priors.conditional_flow import ConditionalFlowPrior
from pyro_scnf.priors.mixture import GaussianMixturePrior
from pyro_scnf.priors.student_t import StudentTMixturePrior
from pyro_scnf.transforms import Flatten, compose
from pyro_scnf.transforms.continuous import Divergence
from pyro_scnf.transforms.solver import SolverSpec

__all__ = ["PRIORS", "PriorSpec", "make_prior"]


def _flowgmm(event_shape: Sequence[int] | int, num_classes: int, **options: Any) -> GaussianMixturePrior:
    """The prior of FlowGMM: a mixture whose defaults are fixed random means and fixed unit scales."""
    for what in ("means", "scales"):
        if options.get(f"fit_{what}") is None and options.get(f"learn_{what}") is None:
            options[f"fit_{what}"] = "fixed"
    options = {"covariance": "isotropic", "means": "random", **options}
    return GaussianMixturePrior(event_shape, num_classes, **options)


def _ffjord(
    event_shape: Sequence[int] | int,
    num_classes: int = 1,
    *,
    blocks: int = 1,
    hidden: Sequence[int] = (64, 64, 64),
    layer: LayerName = "concatsquash",
    activation: Literal["tanh", "softplus"] = "tanh",
    solver: SolverSpec = "dopri5",
    divergence: Divergence = "exact",
    base: Literal["learnable", "unit"] = "learnable",
    base_scale: float | None = None,
    embedding_dim: int | None = None,
    covariates: int = 0,
) -> ConditionalFlowPrior:
    """Conditional FFJORD, proposed in appendix C of the SCNF paper."""
    shape = as_event_shape(event_shape)
    dim = check_whole("embedding_dim", num_classes if embedding_dim is None else embedding_dim, 1)
    dim += check_whole("covariates", covariates, 0)
    flow = ffjord(
        shape.numel(),
        blocks=blocks,
        hidden=hidden,
        layer=layer,
        activation=activation,
        solver=solver,
        divergence=divergence,
        context_dim=dim,
    )
    return ConditionalFlowPrior(
        shape,
        num_classes,
        flow=compose([flow, Flatten(shape)]) if len(shape) == 3 else flow,
        base=base,
        base_scale=base_scale,
        embedding_dim=embedding_dim,
        covariates=covariates,
    )


_flowgmm.__signature__ = inspect.signature(GaussianMixturePrior)  # type: ignore[attr-defined]

PRIORS: dict[str, Callable[..., ClassConditionalPrior]] = {
    "flow": ConditionalFlowPrior,
    "gmm": GaussianMixturePrior,
    "flowgmm": _flowgmm,
    "student-t": StudentTMixturePrior,
    "ffjord": _ffjord,
}
"""Priors by name.

``flow`` is a conditional flow, ``gmm`` one Gaussian and ``student-t`` one Student-t for each class. Where
``initialize`` sees labelled rows, the means of these two start at the labelled latents of their class
(``means="auto"``). ``flowgmm`` is the prior of FlowGMM, with fixed random means and fixed unit scales.
``ffjord`` is a conditional continuous flow with the options ``blocks``, ``hidden``, ``layer``,
``activation``, ``solver`` and ``divergence`` of :func:`~pyro_scnf.flows.ffjord`, and ``base``,
``base_scale``, ``embedding_dim`` and ``covariates`` of :class:`ConditionalFlowPrior`. Its divergence is
exact unless told otherwise, which costs about as many passes as :math:`z_f` has components.
"""

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
    :raises ValueError: for an unknown word or option, a value that an option cannot have, or a missing
        ``num_classes``; for a ready module of another ``event_shape`` or number of classes.

    >>> prior = make_prior("gmm:covariance=full", (4,), 3)
    >>> prior.covariance
    'full'
    """
    prior = spec if isinstance(spec, nn.Module) else _build(spec, event_shape, num_classes)
    if not isinstance(prior, ClassConditionalPrior):
        raise ValueError(f"prior: got a {type(prior).__name__}, expected a ClassConditionalPrior")
    shape = as_event_shape(event_shape)
    if prior.event_shape != shape:
        raise ValueError(
            f"prior: its event_shape {tuple(prior.event_shape)} is not that of the latents, {tuple(shape)}"
        )
    if num_classes not in (None, prior.num_classes):
        raise ValueError(f"num_classes={num_classes}, but the prior has {prior.num_classes}")
    return prior


def _build(
    spec: PriorSpec, event_shape: Sequence[int] | int, num_classes: int | None
) -> ClassConditionalPrior:
    """A new prior, which remembers how it was built."""
    if num_classes is None:
        raise ValueError(f"num_classes: needed to build the prior {spec!r}")
    named = read_spec(spec, PRIORS, "prior")
    if isinstance(named.factory, nn.Module):
        raise ValueError(
            f"prior: a ready {type(named.factory).__name__} takes no options; give the module itself"
        )
    check_whole("num_classes", num_classes, 1)
    prior = named.make({"event_shape": as_event_shape(event_shape), "num_classes": num_classes})
    remember(prior, named.description)
    return prior
