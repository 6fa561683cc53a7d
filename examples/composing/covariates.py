"""Which class, if x depends on an age and a scanner too? Labels and covariates, of which some are missing.

One scanner shifts the points, and with age they move outwards. Unknown labels and scanners are summed out. An
unknown age is a latent site: a guide finds it in training, and in new rows the likelihood weighs draws.

    python examples/composing/covariates.py --out out/covariates
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from composed import K, parse, petals
from estimates import error_pct, estimate, finish
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.nn.functional import one_hot

import pyro_scnf as scnf


def people(rows: int, unlabelled: float) -> list[Tensor]:
    """Points, with label, age and scanner of each, and then these three again, some of them unknown."""
    y, age, scanner = torch.randint(K, (rows,)), torch.randn(rows), torch.randint(2, (rows,))
    shifted = petals(y) * (0.3 * age).exp()[:, None] + torch.tensor([2.5, 0.0]) * scanner[:, None]
    known = torch.rand(3, rows) >= torch.tensor([[unlabelled], [0.3], [0.3]])
    seen = [torch.where(*of) for of in zip(known, (y, age, scanner), (-1, torch.nan, -1), strict=True)]
    return [shifted, y, age, scanner, *seen]


def covariates(age: Tensor, scanner: Tensor) -> Tensor:
    age, scanner = torch.broadcast_tensors(age, scanner)
    return torch.cat([age[..., None], one_hot(scanner, 2)], -1)


def possible(known: Tensor, values: int) -> dist.Categorical:
    """Equally probable values, of which a known one rules out the others."""
    ruled_out = (known[:, None] >= 0) & (known[:, None] != torch.arange(values))
    return dist.Categorical(logits=-1e30 * ruled_out)


def model(flow: scnf.SemiConditionalFlow, x: Tensor, y: Tensor, age: Tensor, scanner: Tensor) -> None:
    pyro.module("flow", flow)
    ages = dist.Normal(pyro.param("loc", torch.zeros(())), pyro.param("log_scale", torch.zeros(())).exp())
    with pyro.plate("missing", int(age.isnan().sum())):
        found = pyro.sample("age", ages)
    with pyro.plate("data", len(x)):
        pyro.sample("known_age", ages.mask(~age.isnan()), obs=age.nan_to_num())
        age = age.expand(*found.shape[:-1], -1).index_copy(-1, age.isnan().nonzero()[:, 0], found)
        y = pyro.sample("y", possible(y, K), infer={"enumerate": "parallel"})
        scanner = pyro.sample("scanner", possible(scanner, 2), infer={"enumerate": "parallel"})
        pyro.sample("x", flow.condition(y, covariates=covariates(age, scanner)), obs=x)


@torch.no_grad()
def infer(*args: Tensor) -> list[Tensor]:
    """Posterior draws of unknown ages, and the probabilities of labels and of scanners."""
    missing = args[3].isnan()
    ages = pyro.param("loc") + pyro.param("log_scale").exp() * torch.randn(300, int(missing.sum()))
    joint = [scnf.enumerate_labels(model, args, {"age": ages}, site=site) for site in ("y", "scanner")]
    picked = dist.Categorical(logits=joint[0].logsumexp(-1)[:, missing].T).sample((300,))
    return [ages.gather(0, picked), *(each.logsumexp(0).softmax(-1) for each in joint)]


def main() -> dict[str, object]:
    pyro.clear_param_store()
    args = parse(__doc__.splitlines()[0], "covariates")
    x, *_, y, age, scanner = people(3000, 0.7)
    prior = "flow:covariates=3,steps=2,width=16,blocks=1"
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=8, blocks=1), prior, K)
    flow.initialize(x, y, torch.zeros(len(x), 3))
    guide = AutoNormal(pyro.poutine.block(model, expose=["age"]))
    svi = SVI(model, guide, ClippedAdam({"lr": 0.01, "lrd": 0.99}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(5 if args.smoke_test else 400):
        svi.step(flow, x, y, age, scanner)
    flow.requires_grad_(False).eval()
    x, y, age, scanner, unlabelled, some_ages, some_scanners = people(200, 1.0)
    ages, labels, scanners = infer(flow, x, unlabelled, some_ages, some_scanners)
    _, without, _ = infer(flow, x, unlabelled, age + torch.nan, unlabelled)
    found = {"error_pct": labels, "error_pct_without_covariates": without}.items()
    metrics = {name: error_pct(p.argmax(-1), y) for name, p in found}
    metrics["p_true_scanner"] = scanners.gather(-1, scanner[:, None])[some_scanners < 0].mean().item()
    return finish(args, {"age": estimate(ages, age[some_ages.isnan()])}, **metrics)


if __name__ == "__main__":
    main()
