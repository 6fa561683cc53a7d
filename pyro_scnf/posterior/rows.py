"""Which rows of the data a model sees: rows that a plate was given, and rows that masks leave out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_scnf.posterior.draws import DRAWS, Site, is_term, plates_of
from pyro_scnf.posterior.named_arrays import Variable

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Observed", "SeenRows", "blank", "cells", "seen_rows"]


# -- plates ----------------------------------------------------------------------------------------
def rows_of_plates(trace: Trace) -> dict[str, Tensor]:
    """The numbers of the rows in each plate of a model."""
    return {
        name: torch.as_tensor(np.asarray(node["value"]))
        for name, node in trace.nodes.items()
        if poutine.util.site_is_subsample(node) and name != DRAWS
    }


# -- masks -----------------------------------------------------------------------------------------
def mask_of(site: Site) -> Tensor:
    """Where a site counts, by its handlers and by its distribution. It broadcasts with the site's batch."""
    mask, own = site["mask"], _mask_of_distribution(site["fn"])
    return torch.as_tensor(True if mask is None else mask) & own.to(getattr(mask, "device", own.device))


def _mask_of_distribution(fn: object) -> Tensor:
    if isinstance(fn, torch.distributions.Independent):
        mask = _mask_of_distribution(fn.base_dist)
        events = min(mask.dim(), fn.reinterpreted_batch_ndims)
        return mask.flatten(mask.dim() - events).any(-1) if events else mask
    if isinstance(fn, MaskedDistribution) and not _is_rewritten(fn):
        return torch.as_tensor(fn._mask) & _mask_of_distribution(fn.base_dist)
    return torch.as_tensor(True)


def _is_rewritten(fn: object) -> bool:
    """Whether a reparametrisation has left this distribution of a site that is now a function of others."""
    return isinstance(fn, MaskedDistribution) and isinstance(fn.base_dist, dist.Delta)


def seen_rows(
    sites: Mapping[str, Site], label: Site, drawn: Collection[str], nesting: int
) -> tuple[Tensor, Tensor]:
    """The rows of which something is observed, and those that have a label or something observed.

    :param label: its plates define the rows.
    :param drawn: the sites that have draws.
    :return: both ``(S, *plates)``, or of sizes that broadcast to that.
    """
    plates = {plate.name for plate in plates_of(label)}
    seen = torch.zeros((), dtype=torch.bool)
    for name, site in sites.items():
        around = {plate.name for plate in plates_of(site)}
        if not site["is_observed"] or not is_term(site) or name in drawn or not around >= plates:
            continue
        if not _is_rewritten(site["fn"]):
            counts = mask_of(site)
            if isinstance(site["fn"], dist.Unit):  # a factor of 0 nats says nothing
                counts = counts.to(site["value"].device) & (site["fn"].log_factor != 0)
            seen = _any_row(counts, site, plates, nesting) | seen.to(counts.device)
    modelled = seen
    if not label["is_observed"]:
        own = _any_row(mask_of(label), label, plates, nesting)
        modelled = own | seen.to(own.device)
    return _at_plates(seen, label, nesting), _at_plates(modelled, label, nesting)


def _any_row(mask: Tensor, site: Site, plates: set[str], nesting: int) -> Tensor:
    """Where a mask holds under some label and for some member of the plates inside ``plates``."""
    while mask.dim() > nesting + 1:
        mask = mask.any(0)
    for plate in plates_of(site):
        if plate.name not in plates and mask.dim() >= -plate.dim:
            mask = mask.any(plate.dim, keepdim=True)
    return mask


def _at_plates(mask: Tensor, site: Site, nesting: int) -> Tensor:
    """A mask with one dimension for each plate of a site, that of the draws first."""
    sizes = (1,) * (1 + nesting - mask.dim()) + tuple(mask.shape)
    return mask.reshape([sizes[plate.dim] for plate in plates_of(site)])


def cells(site: Site, nesting: int) -> Tensor:
    """Where a site counts for the first draw, ``(*plates,)`` or of a shape that broadcasts to that."""
    plates = {plate.name for plate in plates_of(site)}
    return _at_plates(_any_row(mask_of(site), site, plates, nesting), site, nesting)[0]


# -- the same rows in every run --------------------------------------------------------------------
class Observed(NamedTuple):
    """What a run of a model has observed.

    :ivar rows: the numbers of the rows in each plate.
    :ivar values: the values of the observed sites, for the first draw of the run.
    :ivar varying: the sites whose values depend on the draw.
    """

    rows: dict[str, Tensor]
    values: dict[str, Tensor]
    varying: frozenset[str]

    @classmethod
    def of(cls, trace: Trace, sites: Mapping[str, Site], drawn: Collection[str], nesting: int) -> Observed:
        """What the run with this trace has observed."""
        values, varying = {}, set()
        for name, site in sites.items():
            if not site["is_observed"] or not is_term(site) or name in drawn:
                continue
            value, dims = torch.as_tensor(site["value"]), nesting + 1 + site["fn"].event_dim
            while value.dim() > dims:  # under the first label
                value = value[0]
            if value.dim() == dims:
                if not all(_same(other, value[0]) for other in value[1:]):
                    varying.add(name)
                    value = value[:1].clone()  # do not hold those of all draws
                value = value[0]
            values[name] = value
        return cls(rows_of_plates(trace), values, frozenset(varying))

    def check_repeated(self, other: Observed) -> None:
        """Raise if another run with the same first draw has other rows, or has observed other values."""
        for plate, rows in self.rows.items():
            if not _same(rows, other.rows.get(plate)):
                raise ValueError(
                    f"plate {plate!r} has other rows in another run of the model, so its rows have no names; "
                    "give it the same rows each time"
                )
        for name, value in self.values.items():
            if not _same(value, other.values.get(name)):
                raise ValueError(
                    f"site {name!r} observes other values in another run of the model, which draws rows or "
                    "noise itself; draw them once, outside of the model"
                )

    def differs(self, other: Observed, *names: str) -> bool:
        """Whether a run for other draws has observed other values at the named sites; by default, at any."""
        return any(not _same(self.values[name], other.values.get(name)) for name in names or self.values)


def _same(first: Tensor, second: Tensor | None) -> bool:
    """Whether values are the same. NaN, as it may stand under a mask, is the same as NaN."""
    if second is None:
        return False
    dims = max(first.dim(), second.dim())
    first, second = (t.reshape((1,) * (dims - t.dim()) + t.shape) for t in (first, second))
    return torch.equal(first.nan_to_num(), second.nan_to_num())


# -- in exports ------------------------------------------------------------------------------------
class SeenRows:
    """The rows to export along each named dimension. Those of which nothing is observed are left out.

    :param numbers: numbers of the rows along dimensions whose plates were given some rows.
    """

    def __init__(self, numbers: Mapping[str, Tensor]) -> None:
        given = {dim: rows.cpu().numpy() for dim, rows in numbers.items()}
        self.numbers = {dim: rows for dim, rows in given.items() if (rows != np.arange(len(rows))).any()}
        self.seen: dict[str, Tensor] = {}

    def add(self, label: str, seen: Tensor, dims: Sequence[str]) -> None:
        """Note the rows of a label.

        :param seen: the rows of which something is observed, ``(S, *plates)``.
        :raises ValueError: if they differ between draws, form no rectangle, are none at all, or are others
            than those of another label in the same plate.
        """
        if not bool((seen == seen[:1]).all()):
            raise ValueError(
                f"site={label!r}: the mask of the data differs between draws, and a row needs a "
                "log-likelihood in every draw; mask the same rows in all of them"
            )
        seen = seen[0].cpu()
        if not bool(seen.any()):
            raise ValueError(f"site={label!r}: nothing is observed in its plates, so no row has a likelihood")
        grid = torch.ones_like(seen)
        for axis, dim in enumerate(dims):
            line = seen.movedim(axis, 0).reshape(seen.shape[axis], -1).any(-1)
            if not torch.equal(self.seen.setdefault(dim, line), line):
                raise ValueError(
                    f"site={label!r}: its mask leaves other rows of {dim!r} out than that of another label; "
                    "export the labels one by one"
                )
            grid = grid & line.reshape([-1 if i == axis else 1 for i in range(seen.dim())])
        if not torch.equal(grid, seen):
            raise ValueError(
                f"site={label!r}: its mask leaves out single cells of the plates {list(dims)}, and an array "
                "is rectangular; put the data that are there into one plate"
            )

    def select(self, variable: Variable) -> Variable:
        """A variable without the rows that are left out."""
        dims, values = variable
        for axis, dim in enumerate(dims):
            values = self._select(dim, values, axis)
        return dims, values

    def _select(self, dim: str, values: np.ndarray, axis: int = 0) -> np.ndarray:
        seen = self.seen.get(dim)
        if seen is None or bool(seen.all()) or values.shape[axis] != len(seen):
            return values
        return np.compress(seen.numpy(), values, axis)

    def coords(self, given: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
        """The user's values along dimensions, for the rows that are exported."""
        return {dim: self._select(dim, np.asarray(values)) for dim, values in given.items()}

    @property
    def defaults(self) -> dict[str, ArrayLike]:
        """The numbers of the exported rows, by dimension."""
        numbers = {dim: np.arange(len(seen)) for dim, seen in self.seen.items()}
        numbers |= self.numbers
        return {dim: self._select(dim, values) for dim, values in numbers.items()}


def blank(values: Tensor, mask: Tensor, event_dim: int) -> Tensor:
    """``values`` with NaN where the data are masked. Integers become floating numbers for it."""
    if bool(mask.all()):
        return values
    whole = mask.reshape(mask.shape + (1,) * event_dim)
    return torch.where(whole, values if values.is_floating_point() else values.double(), torch.nan)
