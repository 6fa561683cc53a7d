"""The latents of a semi-conditional flow as sample sites."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam, ReparamMessage, ReparamResult
from pyro.poutine.runtime import InferDict
from torch.distributions import TransformedDistribution

from pyro_scnf.distributions import ConcatDistribution
from pyro_scnf.models.guard import enumerates
from pyro_scnf.transforms.one_shot import _OneShotLadj

__all__ = ["FlowSitesReparam"]


class FlowSitesReparam(Reparam):
    r"""Rewrite a site ``x`` of a semi-conditional flow into the sites of its latents.

    ``x ~ flow.condition(y)`` becomes the sites ``x_aux`` (:math:`z_{aux}`, if the flow factors parts out) and
    ``x_final`` (:math:`z_f`). An observed x adds the factor ``x_ladj``. The site x is then a deterministic
    function of its latents, and the joint density is the same. Use it with :func:`pyro.poutine.reparam` to
    make the deep latent a site of a bigger model.

    ``x_final`` is scored in the dtype of the prior. Thousands of standard deviations from all classes, single
    precision rounds the differences between labels away. The site x itself keeps them.

    >>> f_w = pyro_scnf.flows.glow((2,), steps=1)
    >>> flow = pyro_scnf.SemiConditionalFlow(f_w, "gmm", 3)
    >>> model = pyro_scnf.SemiSupervisedModel(flow)
    >>> model = pyro.poutine.reparam(model, {"x": FlowSitesReparam()})
    >>> trace = pyro.poutine.trace(model).get_trace(n=4)
    >>> [name for name in trace.nodes if name.startswith("x")]
    ['x_final', 'x']
    """

    def apply(self, msg: ReparamMessage) -> ReparamResult:
        """Replace a site by the sites of its latents.

        :raises ValueError: if its distribution is not one that :meth:`SemiConditionalFlow.condition` returns.
        """
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if not (
            isinstance(fn, TransformedDistribution)
            and isinstance(fn.base_dist, ConcatDistribution)
            and len(fn.transforms) == 1
            and isinstance(fn.transforms[0], _OneShotLadj)
        ):
            raise ValueError(
                f"FlowSitesReparam: site {name!r} is a {type(fn).__name__}, expected the distribution that "
                "SemiConditionalFlow.condition returns"
            )
        transform, base = fn.transforms[0], fn.base_dist
        suffixes = ["aux", "final"][-len(base.parts) :]
        given: list[torch.Tensor] | list[None] = [None] * len(base.parts)
        if value is not None:
            z, ladj = transform.inverse_and_ladj(value)
            given = base.split(z)
        parts = base.parts
        if value is None and not enumerates():
            # Rows that no plate declares would share their noise. Enumerated labels have dimensions, too, but
            # z_aux does not depend on them.
            parts = [part.expand(fn.batch_shape) for part in parts]
        # An autoguide or a sampler may give an initial value, which is not observed.
        infer: InferDict = {"is_observed": bool(msg["is_observed"])}
        latents = [
            pyro.sample(f"{name}_{suffix}", part, obs=latent, infer=infer)
            for suffix, part, latent in zip(suffixes, parts, given, strict=True)
        ]
        if value is None:
            value, _ = transform.call_and_ladj(base.join(latents))
        elif msg["is_observed"]:
            pyro.factor(f"{name}_ladj", ladj, has_rsample=False)
        # Mask by a tensor. With mask=False, the zeros would not have the dtype of x.
        nothing = torch.zeros((), dtype=torch.bool, device=value.device)
        return {
            "fn": dist.Delta(value, event_dim=len(fn.event_shape)).mask(nothing),
            "value": value,
            "is_observed": True,
        }
