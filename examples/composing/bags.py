"""One label for several points: bags of one to six members, such as the photographs of one object.

The label lies in the plate of the bags, and the members in a plate inside it. A mask says how many members a
bag has. The more there are, the surer is the label of the bag. NUTS samples the class shares of the bags. The
wrong model gives each member a label of its own. It takes the members for independent data, so its intervals
are too narrow.

    python examples/composing/bags.py --out out/bags
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from composed import K, nuts, parse, petals, train
from estimates import error_pct, estimate, finish
from pyro import poutine
from torch import Tensor

import pyro_scnf as scnf

BAGS, LARGEST = 240, 6
SHARES = torch.tensor([0.6, 0.3, 0.1])


def make_model(flow: scnf.SemiConditionalFlow) -> Callable[..., None]:
    """A model of points ``(bags, members, 2)``. ``mask`` says which of the members are there."""

    def model(x: Tensor, mask: Tensor) -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(K)))
        with pyro.plate("bags", x.shape[0], dim=-2):
            y = pyro.sample("y", dist.Categorical(share), infer={"enumerate": "parallel"})
            with pyro.plate("members", x.shape[1], dim=-1), poutine.mask(mask=mask):
                pyro.sample("x", flow.condition(y), obs=x)

    return model


def make_careless(flow: scnf.SemiConditionalFlow) -> Callable[..., None]:
    """Likewise, with a label for each member."""

    def model(x: Tensor, mask: Tensor) -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(K)))
        bags, members = pyro.plate("bags", x.shape[0], dim=-2), pyro.plate("members", x.shape[1], dim=-1)
        with bags, members, poutine.mask(mask=mask):
            y = pyro.sample("y", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    return model


def main() -> dict[str, object]:
    args = parse(__doc__.splitlines()[0], "bags")
    flow = train(args)
    y, sizes = dist.Categorical(SHARES).sample((BAGS,)), 1 + torch.arange(BAGS) % LARGEST
    x, mask = petals(y[:, None].expand(-1, LARGEST)), torch.arange(LARGEST) < sizes[:, None]

    model = make_model(flow)
    draws = nuts(args, model, x, mask, nesting=2)
    careless = nuts(args, make_careless(flow), x, mask, nesting=2)
    log_joint = scnf.enumerate_labels(model, (x, mask), draws, max_plate_nesting=2)
    probs = log_joint.softmax(-1).mean(0)
    metrics = {}
    for size in (1, 2, LARGEST):
        some = probs[sizes == size]
        metrics[f"error_pct_of_{size}"] = error_pct(some.argmax(-1), y[sizes == size])
        metrics[f"doubt_pct_of_{size}"] = 100 * (1 - some.max(-1).values.mean().item())
    return finish(
        args,
        {"share": estimate(draws["share"], SHARES)},
        wrong={"share": estimate(careless["share"], SHARES)},
        **metrics,
    )


if __name__ == "__main__":
    main()
