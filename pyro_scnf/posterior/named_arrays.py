"""Arrays with named dimensions, grouped into xarray data sets as ArviZ wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyro
from torch import Tensor

from pyro_scnf._shapes import at_least_single

if TYPE_CHECKING:
    import xarray
    from numpy.typing import ArrayLike

__all__ = ["SAMPLE", "Groups", "Variable", "make_datasets", "name_dims"]

SAMPLE = ["chain", "draw"]
"""ArviZ's names for the dimensions of the draws."""

Variable = tuple[list[str], np.ndarray]
"""Names of the dimensions, and values."""

Groups = dict[str, dict[str, Variable]]
"""Variables by name, by the name of their group."""


def name_dims(
    name: str,
    values: Tensor,
    lead: Sequence[str],
    inner: Sequence[str] = (),
    given: Mapping[str, Sequence[str]] | None = None,
) -> Variable:
    """Name the dimensions of a variable.

    :param lead: names of the first dimensions.
    :param inner: default names of the next ones. The rest are numbered, ``{name}_dim_0`` and so on.
    :param given: the user's names by variable. They replace the defaults, and may repeat the last of
        ``lead``.
    :raises ValueError: if the user's names are too few or too many.
    """
    lead, rest = list(lead), values.dim() - len(lead)
    numbered = [f"{name}_dim_{i}" for i in range(rest - len(inner))]
    names = list((given or {}).get(name, [*inner, *numbered]))
    for start in range(len(lead)):  # some of the first ones too, such as datum without chain and draw
        if names[: len(lead) - start] == lead[start:] and len(names) == len(lead) - start + rest:
            names = names[len(lead) - start :]
    if len(names) != rest:
        raise ValueError(f"dims: {name!r} has {rest} dimensions after {lead}, got names for them {names}")
    return lead + names, at_least_single(values.detach()).cpu().numpy()  # NumPy has no bfloat16


def make_datasets(
    groups: Groups, coords: Mapping[str, ArrayLike], defaults: Mapping[str, ArrayLike]
) -> dict[str, xarray.Dataset]:
    """One ``xarray.Dataset`` for each group that is not empty.

    :param coords: the user's values along dimensions.
    :param defaults: values along dimensions without values in ``coords``. All others count from 0.
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
    """The dimensions of a variable with their sizes."""
    return list(zip(variable[0], variable[1].shape, strict=True))
