"""Arrays with named dimensions, grouped into xarray data sets as ArviZ wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyro
from torch import Tensor

__all__ = ["SAMPLE", "Groups", "Variable", "make_datasets", "name_dims"]

SAMPLE = ["chain", "draw"]

Variable = tuple[list[str], np.ndarray]
"""Names of the dimensions, and values."""

Groups = dict[str, dict[str, Variable]]


def name_dims(
    name: str,
    values: Tensor,
    lead: Sequence[str],
    inner: Sequence[str] = (),
    given: Mapping[str, Sequence[str]] | None = None,
) -> Variable:
    """Name the dimensions of a variable: ``lead``, then what the user gave, or ``inner`` and numbers.

    :raises ValueError: if the user's names are too few or too many.
    """
    lead, rest = list(lead), values.dim() - len(lead)
    numbered = [f"{name}_dim_{i}" for i in range(rest - len(inner))]
    names = list((given or {}).get(name, [*inner, *numbered]))
    if lead and names[: len(lead)] == lead:
        names = names[len(lead) :]
    if len(names) != rest:
        raise ValueError(f"dims: {name!r} has {rest} dimensions after {lead}, got names for them {names}")
    return lead + names, values.detach().cpu().numpy()


def make_datasets(
    groups: Groups, coords: Mapping[str, Sequence[Any]], defaults: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """One ``xarray.Dataset`` for each group that is not empty.

    :param coords: the user's values along dimensions.
    :param defaults: values of dimensions that the user gave none for; others are counted from 0.
    :raises ValueError: for values of a dimension that does not exist or has another size.
    """
    import xarray

    sizes = {d: n for group in groups.values() for variable in group.values() for d, n in _sizes(variable)}
    unknown = sorted(coords.keys() - sizes.keys())
    if unknown:
        raise ValueError(f"coords: no such dimensions {unknown}; there are {sorted(sizes)}")
    attrs = {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "pyro_scnf",
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
    }
    datasets = {}
    for group, variables in groups.items():
        used = dict(pair for variable in variables.values() for pair in _sizes(variable))
        values = {d: np.asarray(coords.get(d, defaults.get(d, range(size)))) for d, size in used.items()}
        for d, size in used.items():
            if len(values[d]) != size:
                raise ValueError(
                    f"coords: {d!r} has {len(values[d])} values, but size {size} in group {group!r}"
                )
        if variables:
            drawn = all(dims[:2] == SAMPLE for dims, _ in variables.values())
            datasets[group] = xarray.Dataset(
                variables, values, {**attrs, **({"sample_dims": SAMPLE} if drawn else {})}
            )
    return datasets


def _sizes(variable: Variable) -> list[tuple[str, int]]:
    return list(zip(variable[0], variable[1].shape, strict=True))
