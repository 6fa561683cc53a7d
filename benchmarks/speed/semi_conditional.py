"""The cost of many labels, and of EM, on the MNIST flow of Atanov et al. (2019).

The flow has 15.9 million parameters. The benchmark takes two ratios of whole steps, forward and backward
on the same batch, interleaved in one process:

* log p(x), summed over K labels, to log p(x | y) of one label. The flow f_w runs once in both steps, and
  only the prior is evaluated K times. The bound is 1.15 at K = 10.
* an EM-SGD step, ``elbo(model, EMGuide(model))``, to the exact step, ``elbo(model)``. Guide and model
  share one encoding. The bound is 1.10.

A hook counts how often f_w runs in each step::

    python -m benchmarks.speed.semi_conditional --json semi_conditional.json

The exit status is 1 if a ratio misses its bound or a step runs f_w more than once. The bounds hold for
the default settings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from statistics import median

import torch
from torch import Tensor

import pyro_scnf as scnf
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_timing_options, make_parser, whole
from benchmarks.tools.passes import count_passes
from benchmarks.tools.records import write_json
from benchmarks.tools.timing import interleave, ratio, report_bounds

MARGINAL_BOUND, EM_BOUND = 1.15, 1.10
ONE_LABEL, MARGINAL, EXACT, EM = "one label", "marginal", "exact step", "EM step"


def steps_of(model: scnf.SemiSupervisedModel, x: Tensor, y: Tensor) -> dict[str, Callable[[], float]]:
    """The four steps. Each returns its loss in nats per row."""
    flow = model.flow
    exact, em = scnf.elbo(model), scnf.elbo(model, scnf.EMGuide(model))

    def step(loss: Callable[[], Tensor]) -> Callable[[], float]:
        def run() -> float:
            model.zero_grad(set_to_none=True)
            value = loss() / len(x)
            value.backward()
            return value.item()

        return run

    return {
        ONE_LABEL: step(lambda: -flow.condition(y).log_prob(x).sum()),
        MARGINAL: step(lambda: -flow.log_prob(x).sum()),
        EXACT: step(lambda: exact(x)),
        EM: step(lambda: em(x)),
    }


def main() -> int:
    parser = make_parser(__doc__)
    add_timing_options(parser, batch_size=32, repeats=7)
    parser.add_argument("--prior", choices=["flow", "gmm"], default="flow", help="default: %(default)s")
    parser.add_argument("--latent-dim", type=whole, default=196, help="size of z_f (default: %(default)s)")
    parser.add_argument("--prior-width", type=whole, default=256, help="default: %(default)s")
    parser.add_argument("--num-classes", type=whole, default=10, help="K (default: %(default)s)")
    args = parser.parse_args()
    if args.smoke_test:
        args.batch_size, args.repeats, args.threads = 2, 1, 1
    torch.set_num_threads(args.threads)

    torch.manual_seed(args.seed)
    if args.smoke_test:
        glow = scnf.flows.glow((1, 28, 28), levels=2, width=8)
        flow = scnf.SemiConditionalFlow(glow, args.prior, args.num_classes)
    else:
        flow = scnf.presets.scnf_mnist(
            args.prior,
            latent_dim=args.latent_dim,
            prior_width=args.prior_width if args.prior == "flow" else None,
            num_classes=args.num_classes,
        )
    model = scnf.SemiSupervisedModel(flow).to(args.device)
    x = torch.rand(args.batch_size, *flow.event_shape, device=args.device)
    y = torch.randint(args.num_classes, (args.batch_size,), device=args.device)
    model.initialize(x, y)
    steps = steps_of(model, x, y)

    counted = {name: count_passes(flow.transform, step) for name, step in steps.items()}
    passes = {name: count for name, (count, _) in counted.items()}
    losses = {name: loss for name, (_, loss) in counted.items()}
    seconds = interleave(steps, args.repeats, device=args.device)
    ratios = {
        "marginal / one label": ratio(seconds[MARGINAL], seconds[ONE_LABEL]),
        "EM step / exact step": ratio(seconds[EM], seconds[EXACT]),
        "exact step / marginal": ratio(seconds[EXACT], seconds[MARGINAL]),
    }

    machine = environment(args.device, threads=args.threads)
    parameters = {
        "f_w": sum(p.numel() for p in flow.transform.parameters()),
        "all": sum(p.numel() for p in flow.parameters()),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        f"{'glow, width 8' if args.smoke_test else 'scnf_mnist'}, prior {args.prior}, "
        f"z_f {flow.transform.latent_dim} of {flow.event_shape.numel()}, K = {args.num_classes}, "
        f"N = {args.batch_size}, {parameters['all']:,} parameters ({parameters['f_w']:,} of them f_w)"
    )
    print(f"{'':12}{'f_w passes':>11}{'min ms':>9}{'median ms':>11}{'loss, nats a row':>18}")
    for name, column in seconds.items():
        shortest, middle = 1e3 * min(column), 1e3 * median(column)
        print(f"{name:12}{passes[name]:11}{shortest:9.0f}{middle:11.0f}{losses[name]:18.3f}")
    for name, value in ratios.items():
        print(f"{name:22}{value}")
    bounds = {
        "marginal / one label": (ratios["marginal / one label"].value, MARGINAL_BOUND),
        "EM step / exact step": (ratios["EM step / exact step"].value, EM_BOUND),
        "passes of f_w in a step": (max(passes.values()), 1),
    }
    status = 0 if args.smoke_test else report_bounds(bounds)

    write_json(
        args.json,
        {
            "benchmark": "semi_conditional",
            "environment": machine,
            "settings": {
                "prior": args.prior,
                "latent_dim": args.latent_dim,
                "prior_width": args.prior_width,
                "num_classes": args.num_classes,
                "rows": args.batch_size,
                "dtype": str(x.dtype),
                "repeats": args.repeats,
                "seed": args.seed,
                "smoke_test": args.smoke_test,
            },
            "parameters": parameters,
            "f_w_passes": passes,
            "loss_nats_per_row": losses,
            "seconds": seconds,
            "ratios": {name: asdict(value) for name, value in ratios.items()},
            "bounds": {"marginal / one label": MARGINAL_BOUND, "EM step / exact step": EM_BOUND},
            "kept": status == 0,
        },
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
