"""What becomes of each class? Survival times with right censoring, and visits, beside features x.

The label is hidden. Each class has its own Weibull distribution of the time until an event, and its own rate
of visits. A study ends before some events, so their times are censored: all that is known is that the event
comes later. Visits are counted while a person is observed. NUTS samples the parameters of the classes, and
the labels are summed out. Outcome and features tell more about the label together than alone. The wrong model
takes the end of each person's observation for the event.

    python examples/composing/outcome.py --out out/outcome
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from composed import K, nuts, parse, petals, train
from estimates import error_pct, estimate, finish
from pyro.ops.indexing import Vindex
from torch import Tensor

import pyro_scnf as scnf

PEOPLE = 300
SHARES = torch.tensor([0.5, 0.3, 0.2])
SCALES, SHAPES = torch.tensor([8.0, 3.0, 1.0]), torch.tensor([1.0, 1.5, 2.0])  # years; 1: a constant hazard
VISITS = torch.tensor([0.5, 2.0, 6.0])  # in a year


def make_model(flow: scnf.SemiConditionalFlow) -> Callable[..., None]:
    """A model of features ``(N, 2)``, years observed, whether the event has come, and visits."""

    def model(x: Tensor, years: Tensor, event: Tensor, visits: Tensor) -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(K)))
        scale = pyro.sample("scale", dist.LogNormal(torch.ones(K), 1.0).to_event(1))
        shape = pyro.sample("shape", dist.LogNormal(torch.zeros(K), 0.5).to_event(1))
        rate = pyro.sample("rate", dist.LogNormal(torch.zeros(K), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)
            scale, shape = Vindex(scale)[..., y], Vindex(shape)[..., y]
            pyro.sample("years", dist.Weibull(scale, shape).mask(event), obs=years)
            later = -((years / scale) ** shape)  # log-probability that the event comes later
            pyro.factor("censored", torch.where(event, 0.0, later))
            pyro.sample("visits", dist.Poisson(Vindex(rate)[..., y] * years), obs=visits)

    return model


def simulate() -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Labels, and what is observed. A person is in the study for one to six years, unless the event comes."""
    y = dist.Categorical(SHARES).sample((PEOPLE,))
    until, end = dist.Weibull(SCALES[y], SHAPES[y]).sample(), 1 + 5 * torch.rand(PEOPLE)
    years = torch.minimum(until, end)
    return y, (petals(y), years, until <= end, dist.Poisson(VISITS[y] * years).sample())


def main() -> dict[str, object]:
    args = parse(__doc__.splitlines()[0], "outcome")
    flow = train(args)
    y, (x, years, event, visits) = simulate()
    model = make_model(flow)
    draws = nuts(args, model, x, years, event, visits)
    wrong = nuts(args, model, x, years, torch.ones_like(event), visits)

    both = scnf.enumerate_labels(model, (x, years, event, visits), draws)
    features = flow.class_log_prob(x)
    alone = {"x": features + draws["share"][:, None].log(), "outcome": both - features}
    scores = {"both": both, **{f"{name}_alone": score for name, score in alone.items()}}
    probs = {name: score.softmax(-1).mean(0) for name, score in scores.items()}
    truths = {"share": SHARES, "scale": SCALES, "shape": SHAPES, "rate": VISITS}
    return finish(
        args,
        {name: estimate(draws[name], truth) for name, truth in truths.items()},
        wrong={name: estimate(wrong[name], truths[name]) for name in ("scale", "shape")},
        censored_pct=100 * (~event).double().mean().item(),
        **{f"error_pct_{name}": error_pct(p.argmax(-1), y) for name, p in probs.items()},
        **{f"label_nll_{name}": -p.gather(-1, y[:, None]).log().mean().item() for name, p in probs.items()},
    )


if __name__ == "__main__":
    main()
