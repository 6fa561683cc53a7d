"""Labels from a crowd: annotators of different quality, and a flow that learns from what they say.

Some points have votes of two annotators out of five. Each annotator has an unknown confusion matrix (Dawid
and Skene, 1979). A first flow learns from majorities of the votes: a tie is no label. A second flow, the same
at the start, learns together with the matrices and the shares of the classes, while labels are summed out.
NUTS then samples matrices and shares given each flow, from the points with votes. It takes a flow to be true:
with more points, intervals would be narrower than its errors. The wrong model is that of the first flow.

    python examples/composing/crowd_labels.py --out out/crowd_labels
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pyro
import pyro.distributions as dist
import torch
from annotators import CONFUSION, SHARES, VOTED, majority, simulate
from composed import K, nuts, parse
from estimates import error_pct, estimate, finish
from learning import learn
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_mean
from pyro.ops.indexing import Vindex
from torch import Tensor

import pyro_scnf as scnf


def make_model(flow: scnf.SemiConditionalFlow | None = None) -> Callable[..., None]:
    """A model of points ``(N, 2)`` and votes ``(N, A)``, -1 for none. Without a flow, of the votes alone."""

    def model(x: Tensor, votes: Tensor) -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(K)))
        rows = dist.Dirichlet(1 + torch.eye(K)).expand([votes.shape[1], K]).to_event(2)
        confusion = pyro.sample("confusion", rows)
        with pyro.plate("data", len(votes)):
            y = pyro.sample("y", dist.Categorical(share), infer={"enumerate": "parallel"})
            if flow is not None:
                pyro.module("flow", flow)
                pyro.sample("x", flow.condition(y), obs=x)
            says = dist.Categorical(Vindex(confusion)[..., :, y, :])
            pyro.sample("votes", says.mask(votes >= 0).to_event(1), obs=votes.clamp(min=0))

    return model


def main() -> dict[str, object]:
    args = parse(__doc__.splitlines()[0], "crowd_labels")
    (y, x, votes), (y_test, x_test, _) = simulate(2000), simulate(4000)
    voted = x[:VOTED], votes[:VOTED]
    guess, clear = majority(votes)
    agreed = torch.where(clear, guess, scnf.UNLABELLED)
    start = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=4, width=32), "gmm", K)
    start.initialize(x, agreed)

    def make_first() -> tuple[scnf.Objective, scnf.SemiConditionalFlow]:
        loss = scnf.elbo(scnf.SemiSupervisedModel(deepcopy(start), class_probs="learnable"))
        return loss, loss.model.flow

    def make_guided(flow: scnf.SemiConditionalFlow | None) -> tuple[torch.nn.Module, AutoNormal]:
        guide = AutoNormal(poutine.block(make_model(flow), hide=["y"]), init_loc_fn=init_to_mean)
        return scnf.elbo(make_model(flow), guide), (flow, guide)

    flows = {"first": learn(args, make_first, x, agreed)}
    flows["votes"], guide = learn(args, lambda: make_guided(None), x, votes)
    draws = {"votes": {site: value[None] for site, value in guide.median().items()}}
    flows["joint"], guide = learn(args, lambda: make_guided(deepcopy(start)), x, votes)
    metrics = {"error_pct_majority": error_pct(guess[:VOTED], y[:VOTED])}
    for name in ("first", "joint"):
        flow = flows[name].requires_grad_(False).eval()
        draws[name] = nuts(args, make_model(flow), *voted, start=guide.median())
        scores = flow.class_log_prob(x_test) + SHARES.log()
        metrics[f"error_pct_{name}_flow"] = error_pct(scores.argmax(-1), y_test)
    for name, flow in flows.items():
        probs = scnf.enumerate_labels(make_model(flow), voted, draws[name]).softmax(-1).mean(0)
        metrics[f"error_pct_with_{name}"] = error_pct(probs.argmax(-1), y[:VOTED])

    def estimates(name: str) -> dict[str, dict[str, list[float]]]:
        of = draws[name]["confusion"]
        rows = {f"votes on class {k}": estimate(of[:, :, k], CONFUSION[:, k]) for k in range(K)}
        return {"share": estimate(draws[name]["share"], SHARES), **rows}

    return finish(args, estimates("joint"), estimates("first"), **metrics)


if __name__ == "__main__":
    main()
