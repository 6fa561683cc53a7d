"""One run of a model, and what it says of every label of every row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scnf._checks import LOG_ZERO
from pyro_scnf.given_label import scored_in_double
from pyro_scnf.posterior.draws import (
    Site,
    broadcasting_hint,
    find_label,
    over_plates,
    sample_sites,
    trace_draws,
)
from pyro_scnf.posterior.joint import sum_out
from pyro_scnf.posterior.rows import Observed, seen_rows

__all__ = ["LabelTable", "tabulate"]


class LabelTable(NamedTuple):
    """What one run of a model says of the labels of its rows."""

    joint: Tensor
    """:math:`\\log p(x_n, y_n = k \\mid \\theta_s)` of what is not masked, ``(S, *plates, K)``."""
    seen: Tensor
    """Whether anything of the row is observed, ``(S, *plates)``."""
    modelled: Tensor
    """Whether anything of the row is observed, or its label is in the model, ``(S, *plates)``."""
    shared: tuple[str, ...]
    """Hidden sites that several rows have in common."""
    observed: Observed
    rounding: float
    """The relative error of a number in the coarsest dtype of the model."""

    def without_masked_rows(self) -> Tensor:
        """The joint, with NaN in rows that masks take out of the model altogether."""
        if bool(self.modelled.all()):
            return self.joint
        return self.joint.masked_fill(~self.modelled[..., None], math.nan)

    def difference(self, draw: int, other: LabelTable) -> float:
        """The largest difference in nats between a draw of this run, and a run for this draw alone.

        It is 0 up to rounding errors of sums of hundreds of terms, and infinite if other rows are seen. What
        the labels of a row share may be thousands of nats, whose rounding would hide a wrong label. Both runs
        share it, so labels are compared with each other too.
        """
        ours, theirs = self.joint[draw], other.joint[0]
        if ours.shape != theirs.shape or not (
            torch.equal(self.seen[draw], other.seen[0])
            and torch.equal(self.modelled[draw], other.modelled[0])
        ):
            return math.inf
        impossible = (ours < LOG_ZERO / 2) & (theirs < LOG_ZERO / 2)
        same = (ours == theirs) | (ours.isnan() & theirs.isnan()) | impossible
        apart = (ours - theirs).abs().masked_fill(same, 0.0).nan_to_num(math.inf)
        possible = theirs.isfinite() & (theirs > LOG_ZERO / 2)
        size, share = _largest(theirs[possible]), max(self.rounding, 1e-11)
        if _largest(apart) > 256 * share * (1 + size):
            return _largest(apart)
        ours, theirs = (
            table - table.masked_fill(~possible, -math.inf).amax(-1, True) for table in (ours, theirs)
        )
        among = (ours - theirs)[possible & ~same]
        allowed = 256 * share * (1 + _largest(theirs[possible])) + 8 * share * size
        return _largest(among) if _largest(among) > allowed else 0.0


def _largest(values: Tensor) -> float:
    """The largest absolute value, 0 if there is none."""
    return float(values.abs().max()) if values.numel() else 0.0


def tabulate(
    model: Callable[..., object],
    args: Sequence[object],
    posterior: Mapping[str, Tensor],
    label_name: str,
    nesting: int,
    parallel: bool,
) -> LabelTable:
    """Run the model for some draws and look at every label of every row."""
    trace = trace_draws(model, args, posterior, nesting, parallel)
    sites = sample_sites(trace)
    label = find_label(sites, label_name, posterior)
    with broadcasting_hint(parallel):
        with scored_in_double():
            trace.compute_log_prob()
        joint, shared = sum_out(trace, sites, label, posterior, nesting)
    dim = label["infer"].get("_enumerate_dim")
    whole = sites[label_name]  # the label with its observed part, if Pyro split it
    if dim is not None and whole is not label:
        value = over_plates(whole["value"].movedim(dim, -1), label, nesting, event_dim=1)
        joint = _merge_observed(joint, value)
    shape = joint.shape[:-1]
    seen, modelled = (
        rows.to(joint.device).expand(shape) for rows in seen_rows(sites, label, posterior, nesting)
    )
    observed = Observed.of(trace, sites, posterior, nesting)
    return LabelTable(joint, seen, modelled, shared, observed, _rounding(sites.values()))


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


def _rounding(sites: Iterable[Site]) -> float:
    tensors = [
        torch.as_tensor(value) for site in sites for value in (site["value"], site["unscaled_log_prob"])
    ]
    return max((torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point()), default=0.0)
