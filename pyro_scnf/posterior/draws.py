"""A model run for all posterior draws at once, with its discrete sites enumerated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NotRequired, TypedDict, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import config_enumerate
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import InferDict, Message
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_scnf._numbers import check_at_least, check_flag
from pyro_scnf.models.sizes import without_sizes
from pyro_scnf.models.traces import NOT_SUMMED, is_delta

__all__ = [
    "DRAWS",
    "Plate",
    "Site",
    "broadcasting_hint",
    "check_call",
    "count_draws",
    "data_plates",
    "find_label",
    "is_term",
    "over_plates",
    "plate_axes",
    "plates_of",
    "sample_sites",
    "trace_draws",
]

DRAWS = "_posterior_draws"
"""Name of the plate of the draws."""


class Site(TypedDict):
    """A sample site of a trace: the entries of Pyro's ``Message`` that are read here.

    ``Message`` is the type of all kinds of nodes, so Pyro declares each of its entries optional. A sample
    site always has these.
    """

    name: str
    fn: TorchDistributionMixin
    value: Tensor
    is_observed: bool
    infer: InferDict
    mask: bool | Tensor | None
    cond_indep_stack: tuple[CondIndepStackFrame, ...]
    log_prob: NotRequired[Tensor]  # after Trace.compute_log_prob
    unscaled_log_prob: NotRequired[Tensor]


class Plate(NamedTuple):
    """A vectorised plate around a site."""

    name: str
    dim: int
    size: int


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites of a trace by name, without the choices of rows that subsampling plates make."""
    nodes = {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node)
    }
    return cast(dict[str, Site], nodes)


def is_term(site: Site) -> bool:
    """Whether a site is part of the generative model."""
    return not (site["infer"].get("_deterministic") or site["infer"].get("training_only"))


def plates_of(site: Site) -> list[Plate]:
    """The vectorised plates around a site, from left to right.

    A sequential plate has no dimension and is left out. Each step of it has sites of its own.
    """
    frames = site["cond_indep_stack"]
    plates = [Plate(frame.name, frame.dim, frame.size) for frame in frames if frame.dim is not None]
    return sorted(plates, key=lambda plate: plate.dim)


def data_plates(site: Site) -> list[Plate]:
    """The vectorised plates around a site, from left to right, without that of the draws."""
    return [plate for plate in plates_of(site) if plate.name != DRAWS]


def check_call(args: object, max_plate_nesting: object, parallel: object) -> None:
    """Raise for options of a call that a user is likely to get wrong.

    :raises ValueError: if ``args`` is no tuple or list, or for an option of the wrong kind.
    """
    if not isinstance(args, tuple | list):
        raise ValueError(
            f"args is a {type(args).__name__}, expected a tuple of the model's arguments, such as (x,)"
        )
    check_at_least(1, max_plate_nesting=max_plate_nesting)
    if parallel is not None:
        check_flag(parallel=parallel)


def count_draws(posterior: Mapping[str, Tensor], owner: str = "posterior") -> int:
    """Number of draws S of every site. It is 1 if there are no sites.

    :param owner: the argument of the user, for messages.
    :raises ValueError: if it differs between sites, or is 0.
    """
    counts = {name: len(draws) if draws.dim() else 0 for name, draws in posterior.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{owner}: numbers of draws differ, {counts}")
    count = next(iter(counts.values()), 1)
    if not count:
        raise ValueError(f"{owner}: expected draws in the first dimension of each site, got {counts}")
    return count


@contextmanager
def broadcasting_hint(parallel: bool) -> Iterator[None]:
    """Add a note about ``parallel=False`` to errors that a model may raise because of its batch shapes."""
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        if parallel:
            error.add_note(
                "The model ran for all draws at once. If it is not written to broadcast over them, "
                "parallel=False runs it draw by draw."
            )
        raise


def plate_axes(site: Site, count: int) -> list[int] | None:
    """Where the plates of a site are among the batch dimensions of its draws, counted from the right.

    Draws have all dimensions up to the outermost plate, as Pyro gives them, or one for each of its plates.

    :param count: number of batch dimensions of the draws.
    :return: one place for each plate, or ``None`` if the draws have too few dimensions.
    """
    dims = [plate.dim for plate in data_plates(site)]
    if count >= -min(dims, default=0):
        return dims
    return list(range(-count, 0)) if count == len(dims) else None


def _full_batch(site: Site, draws: Tensor) -> torch.Size:
    """The batch shape of draws with each plate at its dimension, and size 1 where the site has no plate.

    :raises ValueError: for draws of another shape.
    """
    fn, plates = site["fn"], data_plates(site)
    given = draws.shape[1 : draws.dim() - fn.event_dim]
    axes = plate_axes(site, len(given))
    full = {plate.dim: plate for plate in plates}
    shape = [full[dim].size if dim in full else 1 for dim in range(min(full, default=0), 0)]
    own = (1,) * len(given) + tuple(fn.batch_shape)  # a site may have batch dimensions without a plate
    if axes is None or any(given[dim] not in (1, own[dim]) for dim in set(range(-len(given), 0)) - set(axes)):
        expected = ", ".join(["S", *map(str, shape), *map(str, fn.event_shape)])
        raise ValueError(
            f"posterior: draws of {site['name']!r} have shape {tuple(draws.shape)}, expected ({expected})"
        )
    for plate, axis in zip(plates, axes, strict=True):
        if plate.size > 0 and given[axis] not in (1, plate.size):
            raise ValueError(
                f"posterior: draws of {site['name']!r} have {given[axis]} rows along plate {plate.name!r}, "
                f"which has {plate.size} here; give the draws of these rows"
            )
    if len(given) >= len(shape):
        return given
    sizes = dict(zip(full, given, strict=True))
    return torch.Size(sizes.get(dim, 1) for dim in range(-len(shape), 0))


class _Draws(Messenger):
    """Sets latents to their draws. The plate of the draws lies to the left of the model's own plates.

    A plate may see some of its rows only if these are given, because nobody could name rows drawn at random.
    """

    def __init__(self, posterior: Mapping[str, Tensor], max_plate_nesting: int, parallel: bool) -> None:
        super().__init__()
        self.posterior, self.nesting, self.parallel = posterior, max_plate_nesting, parallel
        self.at_random: set[str] = set()

    def _pyro_sample(self, msg: Site) -> None:
        if poutine.util.site_is_subsample(cast(Message, msg)):
            self._note_rows(msg["name"], cast(_Subsample, msg["fn"]), msg["value"])
            return
        draws = self.posterior.get(msg["name"])
        if draws is None or msg["infer"].get("_deterministic"):
            return
        if msg["is_observed"]:
            if is_delta(msg["fn"]):
                return  # a reparametrised site, which is a function of others
            raise ValueError(
                f"posterior holds draws of {msg['name']!r}, which the model observes; leave them out"
            )
        event_dim = msg["fn"].event_dim
        count = draws.dim() - 1 - event_dim  # 0 for a global site; autoguides give it plates of size 1
        if not 0 <= count <= self.nesting:
            raise ValueError(
                f"posterior: draws of {msg['name']!r} have shape {tuple(draws.shape)}, expected (S, *plates, "
                f"*event) with {event_dim} event dimensions and at most {self.nesting} plates"
            )
        batch = _full_batch(msg, draws)
        pad = (1,) * (self.nesting - len(batch)) if self.parallel else ()
        draws = draws.reshape(draws.shape[:1] + pad + batch + draws.shape[1 + count :])
        msg["value"] = draws if self.parallel else draws[0]
        msg["is_observed"] = True

    def _note_rows(self, plate: str, fn: _Subsample, rows: Tensor | None) -> None:
        if not fn.size or (rows is not None and not len(rows)):
            raise ValueError(f"plate {plate!r} has no rows, expected at least one")
        if rows is None and fn.subsample_size is not None and fn.subsample_size < fn.size:
            self.at_random.add(plate)

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.at_random and not msg["is_observed"]:  # no handler has set the rows either
            fn = cast(_Subsample, msg["fn"])
            raise ValueError(
                f"plate {msg['name']!r} draws {fn.subsample_size} of its {fn.size} rows at random, so the "
                "results would belong to rows that nobody can name; give the plate all rows, or the ones "
                "that you want with subsample=rows"
            )


def trace_draws(
    model: Callable[..., object],
    args: Sequence[object],
    posterior: Mapping[str, Tensor],
    max_plate_nesting: int,
    parallel: bool,
) -> Trace:
    """The trace of the model with its draws in the plate :data:`DRAWS`.

    The dimensions of enumerated sites lie to the left of that plate.

    :param bool parallel: whether the model sees the dimension of the draws. If not, ``posterior`` holds one.
    :raises ValueError: if draws belong to no site; if a site is neither observed, drawn nor enumerated; or if
        a plate draws its rows itself, or has none.
    """

    def all_draws() -> None:
        plate = pyro.plate(DRAWS, count_draws(posterior), dim=-1 - max_plate_nesting)
        with plate, _Draws(posterior, max_plate_nesting, parallel), without_sizes():
            model(*args)

    with broadcasting_hint(parallel), poutine.enum(first_available_dim=-2 - max_plate_nesting):
        trace = poutine.trace(config_enumerate(all_draws)).get_trace()
    sites = sample_sites(trace)
    for frame in {frame for site in sites.values() for frame in site["cond_indep_stack"]}:
        if frame.full_size not in (None, frame.size) and frame.name not in trace.nodes:
            raise ValueError(
                f"plate {frame.name!r} has {frame.size} of {frame.full_size} rows, and a handler in the "
                "model hides which ones; leave the plate out of poutine.block"
            )
    unknown = sorted(posterior.keys() - sites.keys())
    if unknown:
        raise ValueError(f"posterior: no such sites {unknown}; the model has {list(sites)}")
    for name, site in sites.items():
        if "_enumerate_dim" in site["infer"] and site["infer"].get("num_samples"):
            raise ValueError(NOT_SUMMED.format(name))
    missing = [
        name
        for name, site in sites.items()
        if not site["is_observed"] and "_enumerate_dim" not in site["infer"]
    ]
    if missing:
        hint = (
            "; give draws of them, or their values with poutine.condition. poutine.do leaves the site itself "
            "in the model, where it is drawn and not used: condition it too, or hide it with poutine.block"
        )
        if any(name.endswith("_unobserved") for name in missing):
            hint = "; for data that are missing, use poutine.mask instead of obs_mask, which draws them"
        raise ValueError(f"posterior: no draws of {missing}, which are neither observed nor enumerated{hint}")
    return trace


def find_label(sites: Mapping[str, Site], name: str, posterior: Mapping[str, Tensor]) -> Site:
    """The label called ``name``. If Pyro split it for an ``obs_mask``, the unobserved part.

    :raises ValueError: if there is no such site, if it was drawn, or if it is in no vectorised plate.
    """
    label = sites.get(name)
    if label is None:
        raise ValueError(f"site={name!r}: no such site; the model has {list(sites)}")
    if label["infer"].get("_deterministic"):
        label = sites.get(f"{name}_unobserved")
        if label is None:
            raise ValueError(f"site={name!r} is deterministic, expected one with a distribution")
    for drawn in (name, label["name"]):
        if drawn in posterior:
            raise ValueError(f"posterior holds draws of the label {drawn!r} itself; leave them out")
    frames = label["cond_indep_stack"]
    if len(frames) < 2 or any(frame.dim is None for frame in frames):
        raise ValueError(f"site={name!r}: expected it in a (vectorised) plate of data")
    return label


def over_plates(value: Tensor, site: Site, nesting: int, event_dim: int = 0) -> Tensor:
    """Reshape a value to one batch dimension for each vectorised plate of its site.

    :param value: ``(*batch, *event)``, with the plates at the dimensions where Pyro put them.
    :return: ``(S, *plates, *event)``.
    """
    plates = plates_of(site)  # the draws come first
    sizes = [1] * (1 + nesting)
    for plate in plates:
        sizes[plate.dim] = plate.size
    batch, event = torch.Size(sizes), value.shape[value.dim() - event_dim :]
    value = value.reshape(value.shape[max(value.dim() - event_dim - len(batch), 0) :]).expand(batch + event)
    return value.reshape(torch.Size(plate.size for plate in plates) + event)
