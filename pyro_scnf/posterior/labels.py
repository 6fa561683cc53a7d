"""All label hypotheses of a model, for all posterior draws, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_scnf._checks import LOG_ZERO
from pyro_scnf._numbers import check_temperature
from pyro_scnf.posterior.draws import (
    Site,
    broadcasting_hint,
    count_draws,
    find_label,
    over_plates,
    plates_of,
    sample_sites,
    trace_draws,
)
from pyro_scnf.sharing import evaluation

__all__ = ["enumerate_labels", "sample_labels"]


@torch.no_grad()
def enumerate_labels(
    model: Callable[..., object],
    args: Sequence[object] = (),
    posterior: Mapping[str, Tensor] | None = None,
    *,
    site: str = "y",
    max_plate_nesting: int = 1,
    parallel: bool = True,
) -> Tensor:
    r""":math:`\log p(x_n, y_n = k \mid \theta_s)` for every draw, datum and label, in one run of the model.

    The softmax of the result over k gives the class probabilities. Its logsumexp over k is the pointwise
    marginal log-likelihood, and :func:`sample_labels` draws labels from it. The model runs once for all
    draws, and its flow once per x. The draws are fixed *inside* the enumeration. Pyro's
    ``Predictive(infer_discrete(model), posterior_samples)`` silently ignores them.

    Discrete sites that are not observed are enumerated even if the model does not mark them, as NUTS does.
    Discrete sites other than the label are summed out. They must lie in the label's own plates.

    :param model: any Pyro model with a discrete site in a plate. The site may be latent, observed, or partly
        observed through Pyro's ``obs_mask``.
    :param args: positional arguments of the model.
    :param posterior: draws of its continuous latents by site name, ``(S, *plates, *event)``. If the model
        has no latents, leave it out: S is then 1.
    :param str site: the label. The sites in its plates are counted, summed over any further plates inside
        these (such as the members of a group that shares the label). If the model has no label, name any
        observed site; the result is then its log-likelihood.
    :param int max_plate_nesting: depth of plates in the model.
    :param bool parallel: with ``True``, the draws have a batch dimension to the left of the model's plates:
        a global latent of a model with one plate has shape ``(S, 1, *event)``. The model must broadcast over
        it (``Vindex(loc)[..., y]``, not ``loc[y]``). With ``False``, the model runs draw by draw on the
        shapes that it has in training. A flow that does not depend on the draws still runs once per x.
    :return: ``(S, N, K)`` in nats, with one N for each plate of the label; ``(S, N, 1)`` if the label is
        observed.
    :raises ValueError: if the site does not exist or is in no plate; if draws differ in number, belong to no
        site, or are missing for a site; or if the data have no log-probabilities of their own, because they
        share a discrete site or because a site outside the label's plates depends on their labels.
    """
    posterior = {} if posterior is None else dict(posterior)
    num_draws = count_draws(posterior)
    with evaluation():
        if parallel:
            return _log_joint(model, args, posterior, site, max_plate_nesting, parallel)
        each = [{name: draws[s : s + 1] for name, draws in posterior.items()} for s in range(num_draws)]
        return torch.cat([_log_joint(model, args, one, site, max_plate_nesting, parallel) for one in each])


def _log_joint(
    model: Callable[..., object],
    args: Sequence[object],
    posterior: Mapping[str, Tensor],
    label_name: str,
    nesting: int,
    parallel: bool,
) -> Tensor:
    trace = trace_draws(model, args, posterior, nesting, parallel)
    sites = sample_sites(trace)
    label = find_label(sites, label_name, posterior)
    plates = _plate_names(label)
    dim = label["infer"].get("_enumerate_dim")
    joint = torch.zeros(())
    with broadcasting_hint(parallel):
        trace.compute_log_prob()
        for name, site in sites.items():
            if name in posterior or not _is_term(site):
                continue
            if _plate_names(site) >= plates:
                joint = joint + _sum_inner_plates(site, plates)
            elif dim is not None and site["log_prob"].dim() >= -dim and site["log_prob"].shape[dim] > 1:
                raise ValueError(
                    f"site {name!r} depends on the label {label_name!r} but lies outside its plates"
                )
        joint = _sum_other_labels(joint, sites, label, nesting)
    joint = joint[..., None] if dim is None else joint.movedim(dim, -1)
    joint = over_plates(joint, label, nesting, event_dim=1)
    whole = sites[label_name]  # the label with its observed part, if Pyro split it
    if dim is None or whole is label:
        return joint
    return _merge_observed(joint, over_plates(whole["value"].movedim(dim, -1), label, nesting, event_dim=1))


def _plate_names(site: Site) -> set[str]:
    return {plate.name for plate in plates_of(site)}


def _is_term(site: Site) -> bool:
    """Whether a site is part of the generative model."""
    return not (site["infer"].get("_deterministic") or site["infer"].get("training_only"))


def _sum_inner_plates(site: Site, plates: set[str]) -> Tensor:
    """The log-probability of a site, masked but not scaled, summed over the plates not among ``plates``.

    The mask does not apply to an enumerated site, whose probabilities add up to 1 whether it is seen or not.
    """
    mask = None if "_enumerate_dim" in site["infer"] else site["mask"]
    log_prob = scale_and_mask(site["unscaled_log_prob"], mask=mask)
    for plate in plates_of(site):
        if plate.name not in plates:
            log_prob = log_prob.sum(plate.dim, keepdim=True)
    return log_prob


def _sum_other_labels(joint: Tensor, sites: Mapping[str, Site], label: Site, nesting: int) -> Tensor:
    """Sum discrete sites other than the label out of the joint."""
    enumerated = {
        site["infer"]["_enumerate_dim"]: site for site in sites.values() if "_enumerate_dim" in site["infer"]
    }
    for dim in range(-joint.dim(), -1 - nesting):
        site = enumerated.get(dim)
        if joint.shape[dim] == 1 or site is label:
            continue
        if site is None:
            raise ValueError(
                f"log-probabilities have an unexpected dimension {dim} of size {joint.shape[dim]}, left of "
                f"max_plate_nesting={nesting} plates and the draws"
            )
        if _plate_names(site) != _plate_names(label):
            raise ValueError(
                f"site {site['name']!r} is enumerated in other plates than {label['name']!r}: "
                "data share it, so no datum has a log-probability of its own"
            )
        joint = joint.logsumexp(dim, keepdim=True)
    return joint


def _merge_observed(joint: Tensor, value: Tensor) -> Tensor:
    """Give all probability of a row whose label is observed to that label.

    :param joint: ``(S, N, K)``, the same for all K where the label is observed.
    :param value: ``(S, N, K)``, the label under each hypothesis k: the observed one where there is one,
        else k.
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
    :param generator: source of randomness, by default the global generator of the tensor's device.
    :return: labels ``(S, N)``.
    :raises ValueError: for a negative temperature.
    """
    if temperature == 0:
        return log_joint.argmax(-1)
    probs = (log_joint.log_softmax(-1) / check_temperature(temperature)).softmax(-1)
    return torch.multinomial(probs.flatten(0, -2), 1, generator=generator).reshape(probs.shape[:-1])
