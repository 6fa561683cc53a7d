"""Traces of a model and a guide: errors where their loss would be silently wrong, and the depth of plates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor

from pyro_scnf._checks import validating
from pyro_scnf.distributions import ConcatDistribution

__all__ = [
    "NOT_SUMMED",
    "NO_JACOBIAN",
    "check_sites",
    "is_delta",
    "is_discrete",
    "is_subsample",
    "plate_depth",
    "trace_depth",
]

NO_JACOBIAN = (
    "TransformReparam leaves out the log-determinant of the observed site {!r}, so the loss would be wrong: "
    "use pyro_scnf.FlowSitesReparam for this site"
)

NOT_SUMMED = (
    "the site {!r} has num_samples in its infer, so a few draws would stand for all its values, and the "
    "result would not be exact: leave num_samples out"
)


def check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise an error if the loss of two traces is wrong because of a site.

    :raises RuntimeError: if a latent is neither in the guide nor enumerated, if the guide samples a site that
        the model observes or lacks, if scale, mask or plates of a latent differ between model and guide, or
        if an observed site has lost its log-determinant.
    """
    guided = _latents(guide_trace)
    own = {name: site for name, site in guided.items() if not (site["infer"] or {}).get("is_auxiliary")}
    auxiliary = {name: site for name, site in guided.items() if name not in own and name not in model_trace}
    left = dict(own)
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or is_subsample(site):
            continue
        left.pop(name, None)
        in_guide = guided.get(name)
        if site["is_observed"]:
            if in_guide is not None and not _is_masked(in_guide):
                raise RuntimeError(
                    f"the guide samples the site {name!r}, which is observed: the loss would be off by the "
                    "guide's entropy. Leave this site out of the guide"
                )
            if name.endswith("_base") and isinstance(_innermost(site["fn"]), ConcatDistribution):
                data = name.removesuffix("_base")
                if data in model_trace.nodes and is_delta(model_trace.nodes[data]["fn"]):
                    raise RuntimeError(NO_JACOBIAN.format(data))
        elif in_guide is not None:
            carriers = _carriers(name, own, auxiliary) if is_delta(in_guide["fn"]) else []
            for each in (*carriers, in_guide):
                _check_alike(name, site, each)
        elif "_enumerate_dim" not in (site["infer"] or {}) and not _is_masked(site):
            _refuse_latent(name, site["fn"])
        elif (site["infer"] or {}).get("num_samples"):
            raise RuntimeError(NOT_SUMMED.format(name))
    for name, site in left.items():
        if not (_is_masked(site) or _is_point(site["fn"])):
            raise RuntimeError(
                f"the guide samples the site {name!r}, which the model lacks: the loss would be off by the "
                "guide's entropy. Leave this site out of the guide, or sample it in the model too"
            )


def _latents(trace: Trace) -> dict[str, Message]:
    """The sites of a guide that it samples, by name."""
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in sites.items() if not (site["is_observed"] or is_subsample(site))}


def _carriers(name: str, own: Mapping[str, Message], auxiliary: Mapping[str, Message]) -> list[Message]:
    """The auxiliary sites of an autoguide that hold the entropy of a latent.

    Their names begin with that of the latent, or they are joint sites of several latents.
    """

    def owner(site: str) -> str:
        return max((latent for latent in own if site.startswith(f"{latent}_")), key=len, default="")

    owners = {site: owner(site) for site in auxiliary}
    wanted = name if name in owners.values() else ""
    return [auxiliary[site] for site, latent in owners.items() if latent == wanted]


def _check_alike(name: str, site: Message, guided: Message) -> None:
    """Raise if model and guide do not weigh a latent in the same way, or do not tell its rows apart alike."""
    different = [] if _equal(site["scale"], guided["scale"]) else ["scale"]
    masks = _mask_of(site), _mask_of(guided)
    if masks[0] is not False and not _equal(*masks):  # with False, the prior is flat
        different.append("mask")
    plates = [sorted(f.name for f in one["cond_indep_stack"] if f.vectorized) for one in (site, guided)]
    # With draws that have a gradient, plates only say how a density is summed up. So does to_event.
    if not getattr(guided["fn"], "has_rsample", False) and plates[0] != plates[1]:
        different.append(f"plates ({plates[0]} and {plates[1]})")
    if different and not _is_point(guided["fn"]):
        raise RuntimeError(
            f"the site {name!r} differs between model and guide in {', '.join(different)}: the loss would be "
            "no bound of the likelihood. Put it in the guide under the plates, with their sizes, and under "
            "the weights, poutine.scale and poutine.mask that it has in the model. Handlers around a model "
            "have to be around its guide too. A joint autoguide cannot do so for rows of a subsample: take "
            "AutoNormal"
        )


def _mask_of(site: Message) -> Tensor | bool:
    """Which rows of a site count, by all masks together."""
    masks = [site["mask"], getattr(site["fn"], "_mask", None)]
    found: Tensor | bool = True
    for mask in masks:
        found = found if mask is None else mask & found
    return found


def _equal(first: Tensor | float, second: Tensor | float) -> bool:
    """Whether two scales or masks are the same."""
    if first is second:
        return True
    if not (isinstance(first, Tensor) or isinstance(second, Tensor)):
        return math.isclose(first, second, rel_tol=1e-6)
    one, other = (torch.as_tensor(value).float() for value in (first, second))
    if not validating(one, other):
        return True
    try:
        return bool(torch.isclose(one.to(other.device), other, rtol=1e-5, atol=0).all())
    except RuntimeError:  # the shapes do not go together
        return False


def _refuse_latent(name: str, fn: object) -> None:
    """Raise for a latent that would be drawn from its prior, unless it is not random at all."""
    if is_delta(fn):
        return
    if not is_discrete(fn):
        raise RuntimeError(
            f"the site {name!r} is neither observed nor in the guide: it would be drawn from its prior, and "
            "the loss would be no bound of the likelihood. Sample it in the guide (an autoguide does), or "
            "observe it. If it is noise, draw it without pyro.sample, or mask its density, fn.mask(False). "
            "If poutine.do sets its value, hide the site that is left, with poutine.block"
        )
    if getattr(fn, "has_enumerate_support", False):
        raise RuntimeError(
            f"the discrete site {name!r} is neither enumerated nor in the guide: it would be drawn once from "
            'its prior instead of summed out. Mark it, infer={"enumerate": "parallel"}, or apply '
            "config_enumerate to the model, or sample it in the guide"
        )
    raise RuntimeError(
        f"the discrete site {name!r} is neither observed nor in the guide, and has too many values to "
        "enumerate: it would be drawn once from its prior. Sample it in the guide, or observe it"
    )


def plate_depth(
    model: Callable[..., object],
    guide: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    scored: bool,
) -> int:
    """How deep the plates of a model and a guide are nested, found out by one run of both.

    :param bool scored: whether to score the sites, to find dimensions that no plate declares. Later, when
        labels are enumerated, dimensions to the left of all plates can no longer be told apart.
    """
    with poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    traces = [prune_subsample_sites(trace) for trace in (guide_trace, model_trace)]
    if scored and is_validation_enabled():
        for trace in traces:
            trace.compute_log_prob()
            for site in trace.nodes.values():
                if site["type"] == "sample":
                    check_site_shape(site, max_plate_nesting=cast(int, math.inf))
    return max(map(trace_depth, traces))


def trace_depth(trace: Trace) -> int:
    """How deep the plates of a trace are nested, by their dimensions, without the plate of particles."""
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    frames = (f for site in sites for f in site["cond_indep_stack"] if f.name != "num_particles_vectorized")
    return max((abs(frame.dim) for frame in frames if frame.dim is not None), default=0)


def _is_masked(site: Message) -> bool:
    """Whether the density of a site is left out of the loss."""
    return site["mask"] is False or getattr(site["fn"], "_mask", None) is False


def is_delta(fn: object) -> bool:
    """Whether a distribution has a single value."""
    return isinstance(_innermost(fn), dist.Delta)


def _is_point(fn: object) -> bool:
    """Whether a distribution has a single value, and no density that stands for that of another one."""
    inner = _innermost(fn)
    return isinstance(inner, dist.Delta) and not bool((inner.log_density != 0).any())


def is_discrete(fn: object) -> bool:
    """Whether the values of a distribution are discrete."""
    if getattr(fn, "has_enumerate_support", False):
        return True
    try:
        return bool(fn.support.is_discrete)  # type: ignore[attr-defined]
    except (AttributeError, NotImplementedError, ValueError):
        return False


def is_subsample(site: Message) -> bool:
    """Whether a site is the choice of rows of a plate."""
    return type(site["fn"]).__name__ == "_Subsample"


def _innermost(fn: object) -> object:
    """A distribution without what masks, expands and reinterprets it."""
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn
