"""A model run for all posterior draws at once, its discrete sites enumerated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["DRAWS", "broadcasting_hint", "count_draws", "find_label", "over_plates", "trace_draws"]

DRAWS = "_posterior_draws"
"""The plate of the draws."""


def count_draws(posterior: Mapping[str, Tensor]) -> int:
    """Number of draws S, 1 if nothing is drawn.

    :raises ValueError: if sites differ in it, or there are none.
    """
    counts = {name: len(draws) if draws.dim() else 0 for name, draws in posterior.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"posterior: numbers of draws differ, {counts}")
    count = next(iter(counts.values()), 1)
    if not count:
        raise ValueError(f"posterior: expected draws in the first dimension of each site, got {counts}")
    return count


@contextmanager
def broadcasting_hint(parallel: bool) -> Iterator[None]:
    """Add to errors of the model what may be their cause."""
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        if parallel:
            error.add_note(
                "The model ran for all draws at once. If it is not written to broadcast over them, "
                "parallel=False runs it draw by draw."
            )
        raise


class _Draws(Messenger):
    """Sets latents to their draws, which lie in a plate to the left of the model's own."""

    def __init__(self, posterior: Mapping[str, Tensor], max_plate_nesting: int, parallel: bool) -> None:
        super().__init__()
        self.posterior, self.nesting, self.parallel = posterior, max_plate_nesting, parallel

    def _pyro_sample(self, msg: Any) -> None:
        draws = self.posterior.get(msg["name"])
        if draws is None or msg["infer"].get("_deterministic"):
            return
        event_dim = msg["fn"].event_dim
        plates = draws.dim() - 1 - event_dim  # 0 for a global site; autoguides give it plates of size 1
        if not 0 <= plates <= self.nesting:
            raise ValueError(
                f"posterior: draws of {msg['name']!r} have shape {tuple(draws.shape)}, expected (S, *plates, "
                f"*event) with {event_dim} event dimensions and at most {self.nesting} plates"
            )
        pad = (1,) * (self.nesting - plates)
        msg["value"] = draws.reshape(draws.shape[:1] + pad + draws.shape[1:]) if self.parallel else draws[0]
        msg["is_observed"] = True


def trace_draws(
    model: Callable[..., Any],
    args: Sequence[Any],
    posterior: Mapping[str, Tensor],
    max_plate_nesting: int,
    parallel: bool,
) -> Any:
    """The trace of the model, draws in a plate :data:`DRAWS`, discrete sites enumerated left of it.

    :param bool parallel: whether the model sees the dimension of the draws; if not, there is one.
    :raises ValueError: if draws belong to no site, or a site is neither observed, drawn nor enumerated.
    """

    def all_draws() -> None:
        plate = pyro.plate(DRAWS, count_draws(posterior), dim=-1 - max_plate_nesting)
        with plate, _Draws(posterior, max_plate_nesting, parallel):
            model(*args)

    with broadcasting_hint(parallel), poutine.enum(first_available_dim=-2 - max_plate_nesting):
        trace = poutine.trace(config_enumerate(all_draws)).get_trace()
    sites = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    unknown = sorted(posterior.keys() - sites.keys())
    if unknown:
        raise ValueError(f"posterior: no such sites {unknown}; the model has {list(sites)}")
    missing = [
        name
        for name, node in sites.items()
        if not node["is_observed"]
        and "_enumerate_dim" not in node["infer"]
        and not poutine.util.site_is_subsample(node)
    ]
    if missing:
        raise ValueError(f"posterior: no draws of {missing}, which are neither observed nor enumerated")
    return trace


def find_label(trace: Any, site: str, posterior: Mapping[str, Tensor]) -> Any:
    """The node of the label ``site``; of its unobserved part, if Pyro split it for an ``obs_mask``.

    :raises ValueError: if there is no such site, it was drawn, or it is in no plate.
    """
    label = trace.nodes.get(site)
    if label is None or label["type"] != "sample":
        names = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
        raise ValueError(f"site={site!r}: no such site; the model has {names}")
    if site in posterior:
        raise ValueError(f"posterior holds draws of the label {site!r} itself; leave them out")
    if label["infer"].get("_deterministic"):
        label = trace.nodes.get(f"{site}_unobserved")
        if label is None:
            raise ValueError(f"site={site!r} is deterministic, expected one with a distribution")
    frames = label["cond_indep_stack"]
    if len(frames) < 2 or any(frame.dim is None for frame in frames):
        raise ValueError(f"site={site!r}: expected it in a (vectorised) plate of data")
    return label


def over_plates(value: Tensor, node: Any, nesting: int, event_dim: int = 0) -> Tensor:
    """Bring ``(*batch, *event)``, batch dimensions where Pyro has them, to one for each plate of the node.

    :return: ``(S, *plates, *event)``.
    """
    frames = sorted(node["cond_indep_stack"], key=lambda frame: frame.dim)  # the draws come first
    sizes = [1] * (1 + nesting)
    for frame in frames:
        sizes[frame.dim] = frame.size
    batch, event = torch.Size(sizes), value.shape[value.dim() - event_dim :]
    value = value.reshape(value.shape[max(value.dim() - event_dim - len(batch), 0) :]).expand(batch + event)
    return value.reshape(torch.Size(frame.size for frame in frames) + event)
