"""Where do the classes lie? Means and scales in latent space, with a few labels and with none.

A flow has learned from earlier data. In new data the classes have other means and scales, and NUTS samples
these in two chains. With a few labels, each chain starts at a labelled row of each class. Without labels, all
K! ways to number the classes are equally probable (label switching): chains end in different ones, and R-hat
is large. Each draw then takes the numbers for which its means are closest to those of the earlier data.

    python examples/composing/class_means.py --out out/class_means
"""

from __future__ import annotations

from copy import deepcopy

import arviz as az
import pyro.distributions as dist
import torch
from composed import K, nuts, parse, train
from estimates import estimate, finish
from pyro.nn.module import PyroSample, to_pyro_module_
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import pyro_scnf as scnf

WIDTHS = {"loc": 3.0, "log_scale": 1.0}  # of the normal distributions from which the parameters come
MEANS, SCALES = NAMES = [f"flow.prior.{name}" for name in WIDTHS]


class BayesianClasses(scnf.SemiSupervisedModel):
    """Class means and scales are sites. With ``covariance="shared"``, all classes share their scales."""

    def __init__(self, transform: torch.nn.Module, covariance: str = "diagonal") -> None:
        flow = scnf.SemiConditionalFlow(deepcopy(transform), {"name": "gmm", "covariance": covariance}, K)
        to_pyro_module_(flow)
        for name, old in list(flow.prior.named_parameters()):
            delattr(flow.prior, name)
            setattr(flow.prior, name, PyroSample(dist.Normal(torch.zeros_like(old), WIDTHS[name]).to_event()))
        super().__init__(flow)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for name in WIDTHS:  # drawn here, before the plate of the data
            getattr(self.flow.prior, name)
        return super().forward(x, y)


def in_order(draws: dict[str, Tensor], reference: Tensor) -> dict[str, Tensor]:
    """Draws ``(..., K, D)``, numbered so that their means are as close as possible to ``reference``."""
    cost = (reference[:, None] - draws[MEANS][..., None, :, :]).square().sum(-1)
    orders = [torch.as_tensor(linear_sum_assignment(one)[1]) for one in cost.flatten(0, -3)]
    order = torch.stack(orders).reshape(cost.shape[:-1])[..., None]
    return {name: values.gather(-2, order.expand_as(values)) for name, values in draws.items()}


def main() -> dict[str, object]:
    args = parse(__doc__.splitlines()[0], "class_means")
    flow, y = train(args), torch.arange(300) % K
    means, scales = flow.prior.loc + 0.4 * torch.randn(K, 2), 0.2 + 0.7 * torch.rand(K, 2)
    x = flow.decode(means[y] + scales[y] * torch.randn(len(y), 2))
    few, none = torch.where(torch.arange(len(y)) < 5 * K, y, -1), torch.full_like(y, -1)
    rows = flow.encode(x)[1].unflatten(0, (-1, K))  # each holds a row of each class

    def sample(model: BayesianClasses, y: Tensor) -> dict[str, Tensor]:
        chains = [nuts(args, model, x, y, start={MEANS: row} if y is few else {}) for row in rows[:2]]
        return {name: torch.stack([chain[name] for chain in chains]) for name in NAMES}

    own, shared = BayesianClasses(flow.transform), BayesianClasses(flow.transform, "shared")
    found, same, free = sample(own, few), sample(shared, few), sample(own, none)
    runs = {"own_scales": (own, few, found), "shared_scales": (shared, few, same)}
    runs |= {"no_labels": (own, none, free), "in_order": (own, none, in_order(free, flow.prior.loc))}
    metrics, data = {}, {}
    for name, (model, labels, draws) in runs.items():
        data[name] = scnf.to_inference_data(model, (x, labels), draws, group_by_chain=True, seed=args.seed)
        table = az.summary(data[name], var_names=NAMES, round_to="none")
        metrics |= {f"r_hat_{name}": table["r_hat"].max(), f"ess_{name}": table["ess_bulk"].min()}
    compared = az.compare({name: data[name] for name in ("own_scales", "shared_scales")})
    elpd = compared.filter(like="elpd").iloc[:, 0]
    metrics |= {"elpd_gain": elpd["own_scales"] - elpd["shared_scales"], "its_error": compared["dse"].max()}

    def estimates(name: str, suffix: str = "") -> dict[str, dict[str, list[float]]]:
        loc, log_scale = (runs[name][2][site].flatten(0, 1) for site in NAMES)
        scale = log_scale.exp().reshape(len(loc), -1, 2).expand_as(loc)
        return {f"means{suffix}": estimate(loc, means), f"scales{suffix}": estimate(scale, scales)}

    right = estimates("own_scales") | estimates("in_order", ", no labels")
    return finish(args, right, estimates("shared_scales") | estimates("no_labels", ", no labels"), **metrics)


if __name__ == "__main__":
    main()
