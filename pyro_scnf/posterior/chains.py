"""Posterior draws as a user has them: mappings of arrays, or an ``MCMC`` object, in chains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_scnf._numbers import check_at_least
from pyro_scnf.posterior.draws import count_draws

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["as_tensors", "diverging", "read_draws"]


def as_tensors(values: Mapping[str, ArrayLike], owner: str) -> dict[str, Tensor]:
    """Arrays by name as tensors. NumPy arrays and lists are converted.

    :param owner: the argument of the user, for messages.
    :raises ValueError: if ``values`` is no mapping, or holds something else than numbers.
    """
    if isinstance(values, MCMC):
        raise ValueError(f"{owner} is an MCMC object, expected its draws; give mcmc.get_samples()")
    if not isinstance(values, Mapping):
        raise ValueError(f"{owner} is a {type(values).__name__}, expected a mapping of arrays by name")
    tensors = {}
    for name, array in values.items():
        try:
            tensors[name] = array if isinstance(array, Tensor) else torch.as_tensor(_writable(array))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{owner}: {name!r} holds something else than numbers: {error}") from None
    return tensors


def _writable(array: ArrayLike) -> np.ndarray:
    """A NumPy array that PyTorch takes without a warning. One that is read-only is copied."""
    return np.require(np.asarray(array), requirements=["C", "W"])


def read_draws(
    draws: Mapping[str, ArrayLike] | MCMC,
    num_chains: int | None,
    group_by_chain: bool,
    expected: torch.Size | None = None,
    owner: str = "posterior",
) -> tuple[dict[str, Tensor], torch.Size]:
    """Draws ``(S, ...)``, chain after chain, and the numbers of chains and of draws in each chain."""
    samples: Mapping[str, ArrayLike]
    if num_chains is not None:
        check_at_least(1, num_chains=num_chains)
    if isinstance(draws, MCMC):
        samples, group_by_chain = draws.get_samples(group_by_chain=True), True
    else:
        samples = draws
    if samples is None or (isinstance(samples, Mapping) and not samples):
        raise ValueError(f"{owner}: no draws, expected arrays by the name of their site")
    tensors = as_tensors(samples, owner)
    if group_by_chain:
        shapes = {name: tuple(values.shape[:2]) for name, values in tensors.items()}
        first = next(iter(shapes.values()))
        if len(first) < 2 or len(set(shapes.values())) > 1 or num_chains not in (None, first[0]):
            chains = "chains" if num_chains is None else num_chains
            raise ValueError(f"{owner}: expected shapes ({chains}, draws, ...), got {shapes}")
        tensors = {name: values.flatten(0, 1) for name, values in tensors.items()}
        num_chains = first[0]
    count, chains = count_draws(tensors, owner), 1 if num_chains is None else num_chains
    if count % chains:
        raise ValueError(f"num_chains={num_chains}: {count} draws do not divide into so many chains")
    shape = torch.Size((chains, count // chains))
    if expected not in (None, shape):
        raise ValueError(f"{owner}: {tuple(shape)} chains and draws, but {tuple(expected)} in posterior")
    return tensors, shape


def diverging(posterior: Mapping[str, ArrayLike] | MCMC, shape: torch.Size) -> dict[str, Tensor]:
    """Which draws of an ``MCMC`` object ended a divergent trajectory, if its kernel records it."""
    if not isinstance(posterior, MCMC):
        return {}
    divergences = posterior.diagnostics().get("divergences")
    if divergences is None:
        return {}
    ended = torch.zeros(shape, dtype=torch.bool)
    for chain in range(shape[0]):
        ended[chain, divergences[f"chain {chain}"]] = True
    return {"diverging": ended.flatten()}
