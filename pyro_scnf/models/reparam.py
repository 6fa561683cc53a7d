"""The latents of a semi-conditional flow as sample sites."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam

from pyro_scnf.distributions import ConcatDistribution

__all__ = ["FlowSitesReparam"]


class FlowSitesReparam(Reparam):
    r"""Rewrite a site ``x`` of a semi-conditional flow into the sites of its latents.

    ``x ~ flow.condition(y)`` becomes ``x_aux`` (:math:`z_{aux}`, if the flow factors out), ``x_final``
    (:math:`z_f`) and, if x is observed, a factor ``x_ladj``; x itself is a deterministic function of
    them. The joint density is unchanged. Use it to put the deep latent into a bigger model, or with
    :func:`pyro.poutine.reparam` to keep label-independent terms out of an enumerated sum.

    >>> flow = pyro_scnf.SemiConditionalFlow(pyro_scnf.flows.glow((2,), steps=1), "gmm", 3)
    >>> model = pyro.poutine.reparam(pyro_scnf.SemiSupervisedModel(flow), {"x": FlowSitesReparam()})
    >>> trace = pyro.poutine.trace(model).get_trace(n=4)
    >>> [name for name in trace.nodes if name.startswith("x")]
    ['x_final', 'x']
    """

    def apply(self, msg: Any) -> Any:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        try:
            (transform,), base = fn.transforms, fn.base_dist
            assert isinstance(base, ConcatDistribution)
        except (AttributeError, ValueError, AssertionError):
            raise ValueError(
                f"FlowSitesReparam: site {name!r} is a {type(fn).__name__}, expected the distribution that "
                "SemiConditionalFlow.condition returns"
            ) from None
        suffixes = ["aux", "final"][-len(base.parts) :]
        latents: list[Any] = [None] * len(base.parts)
        if value is not None:
            z, ladj = transform.inverse_and_ladj(value)
            latents = base.split(z)
        # A value that is not observed is an initial one (of an autoguide or a sampler).
        infer: Any = {"is_observed": msg["is_observed"]}
        latents = [
            pyro.sample(f"{name}_{suffix}", part, obs=latent, infer=infer)
            for suffix, part, latent in zip(suffixes, base.parts, latents, strict=True)
        ]
        if value is None:
            value, _ = transform.call_and_ladj(base.join(latents))
        elif msg["is_observed"]:
            pyro.factor(f"{name}_ladj", ladj, has_rsample=False)
        # Masked by a tensor and not by False: the zeros are then of the dtype of x.
        nothing = torch.zeros((), dtype=torch.bool, device=value.device)
        return {
            "fn": dist.Delta(value, event_dim=fn.event_dim).mask(nothing),
            "value": value,
            "is_observed": True,
        }
