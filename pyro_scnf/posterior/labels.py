"""All label hypotheses of a model, for all posterior draws, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_scnf._checks import LOG_ZERO, check_temperature
from pyro_scnf.posterior.draws import broadcasting_hint, count_draws, find_label, over_plates, trace_draws
from pyro_scnf.sharing import share_encoding

__all__ = ["enumerate_labels", "sample_labels"]


@torch.no_grad()
def enumerate_labels(
    model: Callable[..., Any],
    args: Sequence[Any] = (),
    posterior: Mapping[str, Tensor] | None = None,
    *,
    site: str = "y",
    max_plate_nesting: int = 1,
    parallel: bool = True,
) -> Tensor:
    r""":math:`\log p(x_n, y_n = k \mid \theta_s)` for every draw, datum and label, in one run of the model.

    Class probabilities are its softmax over k, the pointwise marginal log-likelihood its logsumexp,
    label draws a ``Categorical`` of it. The model runs once, and the flow in it once per x, for all
    draws together. Draws are conditioned on *inside* the enumeration; Pyro's
    ``Predictive(infer_discrete(model), posterior_samples)`` silently ignores them.

    Discrete sites that are neither observed nor marked are enumerated too, as NUTS does it. Other
    ones than the label are summed out, if they lie in the label's own plates.

    :param model: any Pyro model with a discrete site (enumerated, observed, or partly observed by
        Pyro's ``obs_mask``) in a plate.
    :param args: its positional arguments.
    :param posterior: draws of its continuous latents by site name, ``(S, *plates, *event)``; draws of
        one value if empty, S = 1.
    :param str site: the label; the terms counted are those in its plates, summed over any plates
        inside them (the members of a group that shares the label). Any observed site will do where
        a model has no label: the result is then its log-likelihood.
    :param int max_plate_nesting: depth of plates in the model.
    :param bool parallel: with ``True``, draws come to the model with a batch dimension to the left of
        its plates, ``(S, 1, *event)`` for a global latent of a model with one plate; it must let them
        broadcast (``Vindex(loc)[..., y]``, not ``loc[y]``). With ``False`` the model is run draw by
        draw and sees what it sees in training; an unchanged flow still runs once per x.
    :return: ``(S, N, K)`` in nats, with one N for each plate of the label; ``(S, N, 1)`` if it is
        observed.
    :raises ValueError: if the site does not exist or is in no plate, if draws differ in number, belong
        to no site, or are missing for one, or if a sum over labels has no pointwise terms.
    """
    posterior = {} if posterior is None else dict(posterior)
    num_draws = count_draws(posterior)
    with share_encoding():
        if parallel:
            return _log_joint(model, args, posterior, site, max_plate_nesting, parallel)
        each = [{name: draws[s : s + 1] for name, draws in posterior.items()} for s in range(num_draws)]
        return torch.cat([_log_joint(model, args, one, site, max_plate_nesting, parallel) for one in each])


def _log_joint(
    model: Callable[..., Any],
    args: Sequence[Any],
    posterior: Mapping[str, Tensor],
    site: str,
    nesting: int,
    parallel: bool,
) -> Tensor:
    trace = trace_draws(model, args, posterior, nesting, parallel)
    label = find_label(trace, site, posterior)
    plates = {frame.name for frame in label["cond_indep_stack"]}
    dim = label["infer"].get("_enumerate_dim")
    joint = torch.zeros(())
    with broadcasting_hint(parallel):
        trace.compute_log_prob()
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or name in posterior or not _is_term(node):
                continue
            if {frame.name for frame in node["cond_indep_stack"]} >= plates:
                joint = joint + _sum_inner_plates(node, plates)
            elif dim is not None and node["log_prob"].dim() >= -dim and node["log_prob"].shape[dim] > 1:
                raise ValueError(f"site {name!r} depends on the label {site!r} but lies outside its plates")
        joint = _sum_other_labels(joint, trace, label, nesting)
    joint = joint[..., None] if dim is None else joint.movedim(dim, -1)
    joint = over_plates(joint, label, nesting, event_dim=1)
    if trace.nodes[site] is label:
        return joint
    return _merge_observed(joint, over_plates(trace.nodes[site]["value"].movedim(dim, -1), label, nesting, 1))


def _is_term(node: Any) -> bool:
    """Whether a site is part of the generative model."""
    infer = node["infer"]
    return not (
        poutine.util.site_is_subsample(node) or infer.get("_deterministic") or infer.get("training_only")
    )


def _sum_inner_plates(node: Mapping[str, Any], plates: set[str]) -> Tensor:
    """The log-probability of a site, masked, not scaled, and summed over plates not among ``plates``.

    A mask does not bear on what is enumerated: its probabilities add up to one.
    """
    mask = None if "_enumerate_dim" in node["infer"] else node["mask"]
    log_prob = scale_and_mask(node["unscaled_log_prob"], mask=mask)
    for frame in node["cond_indep_stack"]:
        if frame.name not in plates:
            log_prob = log_prob.sum(frame.dim, keepdim=True)
    return log_prob


def _sum_other_labels(joint: Tensor, trace: Any, label: Any, nesting: int) -> Tensor:
    """Sum discrete sites other than the label out of the joint."""
    enumerated = {
        node["infer"]["_enumerate_dim"]: node
        for node in trace.nodes.values()
        if node["type"] == "sample" and "_enumerate_dim" in node["infer"]
    }
    plates = {frame.name for frame in label["cond_indep_stack"]}
    for dim in range(-joint.dim(), -1 - nesting):
        node = enumerated.get(dim)
        if joint.shape[dim] == 1 or node is label:
            continue
        if node is None:
            raise ValueError(
                f"log-probabilities have an unexpected dimension {dim} of size {joint.shape[dim]}, left of "
                f"max_plate_nesting={nesting} plates and the draws"
            )
        if {frame.name for frame in node["cond_indep_stack"]} != plates:
            raise ValueError(
                f"site {node['name']!r} is enumerated in other plates than {label['name']!r}: "
                "data share it, and none has a log-probability of its own"
            )
        joint = joint.logsumexp(dim, keepdim=True)
    return joint


def _merge_observed(joint: Tensor, value: Tensor) -> Tensor:
    """Put all probability of the rows with an observed label on it.

    :param joint: ``(S, N, K)``, alike for all K where the label is observed.
    :param value: ``(S, N, K)``, the label under each hypothesis: the observed one, or k.
    """
    known = (value == value[..., :1]).all(-1, keepdim=True)
    is_label = value[..., :1] == torch.arange(joint.shape[-1], device=value.device)
    certain = torch.where(is_label, joint.logsumexp(-1, keepdim=True), LOG_ZERO)
    return torch.where(known, certain, joint)


def sample_labels(
    log_joint: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    r"""One label per draw and datum from the ``(S, N, K)`` of :func:`enumerate_labels`.

    :param float temperature: 1 samples the posterior, 0 takes its mode.
    :param generator: source of randomness, the global one by default.
    :return: labels ``(S, N)``.
    """
    if temperature == 0:
        return log_joint.argmax(-1)
    probs = (log_joint.log_softmax(-1) / check_temperature(temperature)).softmax(-1)
    return torch.multinomial(probs.flatten(0, -2), 1, generator=generator).reshape(probs.shape[:-1])
