"""Which hospitals have an outbreak? Class shares of groups, partly pooled, and a hidden regime of each group.

Each hospital has class shares of its own around a common mean, which is unknown, and so is how much hospitals
differ. In a hospital with an outbreak, half of the patients come from another distribution, the same for all
outbreaks. By its prior, most of them are of the last class. Neither outbreaks nor classes are observed. Pyro
sums over the label of each patient and the regime of each hospital, and NUTS samples the rest. The wrong
model knows of no outbreaks.

    python examples/composing/hierarchy.py --out out/hierarchy
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from composed import K, nuts, parse, petals, train
from estimates import error_pct, estimate, finish
from torch import Tensor

import pyro_scnf as scnf

HOSPITALS, PATIENTS = 20, 50
CONCENTRATION, MEAN = 40.0, torch.tensor([0.5, 0.3, 0.2])
OUTBREAK, REGIMES = torch.tensor([0.05, 0.15, 0.80]), torch.tensor([0.7, 0.3])


def in_regime(r: Tensor, share: Tensor, outbreak: Tensor) -> Tensor:
    """Class probabilities of the patients of a hospital with an outbreak (r = 1) or without."""
    return torch.where(r[..., None] == 1, (share + outbreak) / 2, share)


def make_model(flow: scnf.SemiConditionalFlow, regimes: bool = True) -> Callable[..., None]:
    """A model of points ``(hospitals, patients, 2)``."""
    each = {"enumerate": "parallel"}

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Dirichlet(torch.ones(K)))
        outbreak = pyro.sample("outbreak", dist.Dirichlet(torch.tensor([1.0, 1.0, 4.0])))
        concentration = pyro.sample("concentration", dist.LogNormal(3.5, 0.5))
        with pyro.plate("hospitals", x.shape[0], dim=-2):
            share = pyro.sample("share", dist.Dirichlet(concentration[..., None] * mean))
            r = pyro.sample("r", dist.Categorical(REGIMES), infer=each) if regimes else torch.zeros(1, 1)
            with pyro.plate("patients", x.shape[1], dim=-1):
                probs = in_regime(r, share, outbreak)
                y = pyro.sample("y", dist.Categorical(probs), infer=each)
                pyro.sample("x", flow.condition(y), obs=x)

    return model


def main() -> dict[str, object]:
    args = parse(__doc__.splitlines()[0], "hierarchy")
    flow = train(args)
    r = (torch.arange(HOSPITALS) % 3 == 2).long()[:, None]
    share = dist.Dirichlet(CONCENTRATION * MEAN).sample((HOSPITALS, 1))
    y = dist.Categorical(in_regime(r, share, OUTBREAK)).sample((PATIENTS,)).movedim(0, 1)[..., 0]
    x, model = petals(y), make_model(flow)

    draws = nuts(args, model, x, nesting=2)
    wrong = nuts(args, make_model(flow, regimes=False), x, nesting=2)
    chances, labels = (
        scnf.enumerate_labels(model, (x,), draws, site=site, max_plate_nesting=2).softmax(-1).mean(0)
        for site in ("r", "y")
    )

    def shares(draws: dict[str, Tensor]) -> dict[str, dict[str, list[float]]]:
        found = draws["share"][:, :, 0]
        return {f"class {k} by hospital": estimate(found[..., k], share[:, 0, k]) for k in range(K)}

    common = {"mean": estimate(draws["mean"], MEAN), "outbreak": estimate(draws["outbreak"], OUTBREAK)}
    return finish(
        args,
        {**shares(draws), **common},
        wrong=shares(wrong),
        regime_error_pct=error_pct(chances.argmax(-1), r[:, 0]),
        probability_of_the_true_regime=chances.gather(-1, r).mean().item(),
        error_pct=error_pct(labels.argmax(-1), y),
    )


if __name__ == "__main__":
    main()
