"""Naming a prior: by word, by dict, by class or by object, alike in Python and on a command line."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from pyro_scnf.priors.conditional_flow import ConditionalFlowPrior
from pyro_scnf.priors.mixture import GaussianMixturePrior, StudentTMixturePrior

__all__ = ["PRIORS", "PriorSpec", "make_prior"]

PRIORS: dict[str, Callable[..., nn.Module]] = {
    "flow": ConditionalFlowPrior,
    "gmm": GaussianMixturePrior,
    "flowgmm": partial(GaussianMixturePrior, covariance="isotropic", learn_means=False, learn_scales=False),
    "student-t": StudentTMixturePrior,
}
"""Priors by name; ``flowgmm`` has fixed random means and unit scales."""

PriorSpec = str | Mapping[str, Any] | Callable[..., nn.Module] | nn.Module


def make_prior(spec: PriorSpec, event_shape: Any, num_classes: int | None) -> nn.Module:
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
        return spec
    if num_classes is None:
        raise ValueError(f"num_classes: needed to build the prior {spec!r}")
    options: dict[str, Any] = {}
    factory: Any = spec
    if isinstance(spec, Mapping):
        options = dict(spec)
        factory = options.pop("name", None)
        if factory is None:
            raise ValueError(f"prior={dict(spec)!r}: expected a key 'name'")
    if isinstance(factory, str):
        word, _, text = factory.partition(":")
        options = {**_parse_options(text), **options}
        factory = PRIORS.get(word) or _import(word)
    try:
        return factory(event_shape, num_classes, **options)
    except TypeError as error:
        raise ValueError(f"prior={spec!r}: {error}") from error


def _parse_options(text: str) -> dict[str, Any]:
    options = {}
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (equals and key.isidentifier()):
            raise ValueError(f"prior option {item!r}: expected key=value")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def _import(path: str) -> Callable[..., nn.Module]:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"prior={path!r}: expected one of {', '.join(map(repr, PRIORS))} or the import path of a class"
        ) from None
