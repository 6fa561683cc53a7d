"""How common is each class? Shares under label shift, from labels that are not missing at random.

The flow has learned from balanced classes. In the new data the classes have other shares. An expert has
labelled some of the new rows, and has picked rare classes more often than their share. The labelled rows
therefore have class probabilities of their own. NUTS samples both, and the unknown labels are summed out.

    python examples/composing/prevalence.py --out out/prevalence
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

SHARES, PICKED = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])


def make_model(flow: scnf.SemiConditionalFlow, at_random: bool = False) -> Callable[..., None]:
    """A model of the new rows. If labels are missing at random, all rows have the same shares."""

    def model(x: Tensor, y: Tensor, x_unlabelled: Tensor) -> None:
        flat = dist.Dirichlet(torch.ones(K))
        share = pyro.sample("share", flat)
        picked = share if at_random else pyro.sample("picked", flat)
        with pyro.plate("labelled", len(x)):
            y = pyro.sample("y", dist.Categorical(picked), obs=y)
            pyro.sample("x", flow.condition(y), obs=x)
        with pyro.plate("unlabelled", len(x_unlabelled)):
            label = pyro.sample("label", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x_unlabelled", flow.condition(label), obs=x_unlabelled)

    return model


def main() -> dict[str, object]:
    args = parse(__doc__.splitlines()[0], "prevalence")
    flow = train(args)
    y, hidden = (dist.Categorical(p).sample((n,)) for p, n in ((PICKED, 60), (SHARES, 300)))
    data = petals(y), y, petals(hidden)

    draws = nuts(args, make_model(flow), *data)
    careless = nuts(args, make_model(flow, at_random=True), *data)
    log_joint = scnf.enumerate_labels(make_model(flow), data, draws, site="label")
    labels = {
        "error_pct": log_joint.softmax(-1).mean(0).argmax(-1),
        "error_pct_with_the_old_shares": flow.posterior(data[2]).probs.argmax(-1),
    }
    return finish(
        args,
        {"share": estimate(draws["share"], SHARES), "picked": estimate(draws["picked"], PICKED)},
        wrong={"share": estimate(careless["share"], SHARES)},
        **{name: error_pct(guess, hidden) for name, guess in labels.items()},
    )


if __name__ == "__main__":
    main()
