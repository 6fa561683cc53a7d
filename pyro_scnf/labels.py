"""All label hypotheses of a model, for all posterior draws, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_scnf.sharing import share_encoding

__all__ = ["enumerate_labels", "sample_labels"]

_DRAWS = "_posterior_draws"


@torch.no_grad()
def enumerate_labels(
    model: Callable[..., Any],
    args: Sequence[Any] = (),
    posterior: Mapping[str, Tensor] | None = None,
    *,
    site: str = "y",
    max_plate_nesting: int = 1,
) -> Tensor:
    r""":math:`\log p(x_n, y_n = k \mid \theta_s)` for every draw, datum and label, in one run of the model.

    Class probabilities are its softmax over k, the pointwise marginal log-likelihood its logsumexp,
    label draws a ``Categorical`` of it. The model runs once, and the flow in it once per x, for all
    draws together. Draws are conditioned on *inside* the enumeration; Pyro's
    ``Predictive(infer_discrete(model), posterior_samples)`` silently ignores them.

    :param model: any Pyro model with an enumerated (or observed) discrete site in a plate.
    :param args: its positional arguments.
    :param posterior: draws of its continuous latents by site name, ``(S, *event)``; draws of one
        value if empty, S = 1.
    :param str site: the label; the terms counted are those in its plates, summed over any plates
        inside them (the members of a group that shares the label).
    :param int max_plate_nesting: depth of plates in the model.
    :return: ``(S, N, K)`` in nats, with one N for each plate of the label; ``(S, N, 1)`` if it is
        observed.
    :raises ValueError: if the site does not exist or draws differ in number.
    """
    posterior = {} if posterior is None else dict(posterior)
    counts = {name: len(draws) for name, draws in posterior.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"posterior: numbers of draws differ, {counts}")
    num_draws = next(iter(counts.values()), 1)
    # Draws sit in a plate to the left of the model's own.
    values = {
        name: draws.reshape((num_draws,) + (1,) * max_plate_nesting + draws.shape[1:])
        for name, draws in posterior.items()
    }

    def all_draws() -> None:
        with pyro.plate(_DRAWS, num_draws, dim=-1 - max_plate_nesting):
            poutine.condition(model, data=values)(*args)

    with share_encoding(), poutine.enum(first_available_dim=-2 - max_plate_nesting):
        trace = poutine.trace(all_draws).get_trace()
    if site not in trace.nodes:
        names = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
        raise ValueError(f"site={site!r}: no such site; the model has {names}")
    trace.compute_log_prob()
    label = trace.nodes[site]
    plates = {frame.name for frame in label["cond_indep_stack"]}
    terms = [
        _sum_inner_plates(node, plates)
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and name not in posterior
        and not poutine.util.site_is_subsample(node)
        and {frame.name for frame in node["cond_indep_stack"]} >= plates
    ]
    joint = torch.stack(torch.broadcast_tensors(*terms)).sum(0)
    infer: Any = label["infer"]
    dim = infer.get("_enumerate_dim")
    joint = joint[..., None] if dim is None else joint.movedim(dim, -1)
    joint = joint.reshape(joint.shape[-2 - max_plate_nesting :])
    stack: Any = label["cond_indep_stack"]
    frames = sorted(stack, key=lambda frame: frame.dim)  # the draws come first
    sizes = [1] * (1 + max_plate_nesting)
    for frame in frames:
        sizes[frame.dim] = frame.size
    joint = joint.expand((*sizes, joint.shape[-1]))
    return joint.reshape((*(frame.size for frame in frames), joint.shape[-1]))


def _sum_inner_plates(node: Mapping[str, Any], plates: set[str]) -> Tensor:
    """The log-probability of a site, masked, not scaled, and summed over plates not among ``plates``."""
    log_prob = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
    for frame in node["cond_indep_stack"]:
        if frame.name not in plates:
            log_prob = log_prob.sum(frame.dim, keepdim=True)
    return log_prob


def sample_labels(log_joint: Tensor, temperature: float = 1.0) -> Tensor:
    r"""One label per draw and datum from the ``(S, N, K)`` of :func:`enumerate_labels`.

    :param float temperature: 1 samples the posterior, 0 takes its mode.
    :return: labels ``(S, N)``.
    """
    if temperature == 0:
        return log_joint.argmax(-1)
    return dist.Categorical(logits=log_joint.log_softmax(-1) / temperature).sample()
