"""How much time Pyro's machinery adds to a training step of a small flow.

The share is largest where the flow is small, so the flow is an eight-step Glow on the plane with a
conditional-flow prior and two classes. The benchmark times forward and backward of ``elbo(model)`` and
of ``elbo(model, EMGuide(model))``, and one ``SVI`` step with Pyro's optimiser. It sets them beside the
same loss written by hand from the flow's own densities. There is no bound::

    python -m benchmarks.speed.overhead --json overhead.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor

import pyro_scnf as scnf
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_timing_options, make_parser
from benchmarks.tools.records import write_json
from benchmarks.tools.timing import interleave, ratio

LABELLED = 10


def by_hand(
    model: scnf.SemiSupervisedModel, x: Tensor, y: Tensor | None, unlabelled: Tensor | None
) -> Tensor:
    """The exact loss in nats: ``-log p(x)``, or ``-log p(x, y) - log p(unlabelled)`` in one pass of f_w."""
    flow = model.flow
    if y is None or unlabelled is None:
        return -model.log_prob(x).sum()
    joint = flow.class_log_prob(torch.cat([x, unlabelled])) + model.class_probs.log_probs
    labelled, rest = joint.split([len(x), len(unlabelled)])
    return -(labelled.gather(-1, y[:, None]).sum() + rest.logsumexp(-1).sum())


def main() -> int:
    parser = make_parser(__doc__)
    add_timing_options(parser, batch_size=64, repeats=60)
    args = parser.parse_args()
    warmup = 3
    if args.smoke_test:
        args.repeats, args.threads, warmup = 1, 1, 0
    torch.set_num_threads(args.threads)

    torch.manual_seed(args.seed)
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=8, width=64), "flow", 2)
    model = scnf.SemiSupervisedModel(flow).to(args.device)
    unlabelled = torch.randn(args.batch_size, 2, device=args.device)
    x = torch.randn(LABELLED, 2, device=args.device)
    y = torch.arange(LABELLED, device=args.device) % 2
    model.initialize(unlabelled)

    exact, em = scnf.elbo(model), scnf.elbo(model, scnf.EMGuide(model))
    svi = SVI(
        model,
        scnf.exact_guide,
        Adam({"lr": 0.0}),
        TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    )

    def backward(loss: Callable[..., Tensor], *batch: Any) -> Callable[[], None]:
        def step() -> None:
            model.zero_grad(set_to_none=True)
            loss(*batch).backward()

        return step

    one, two = (unlabelled, None, None), (x, y, unlabelled)

    def hand(*batch: Any) -> Tensor:
        return by_hand(model, *batch)

    for batch in (one, two):
        if not torch.isclose(exact(*batch), hand(*batch), rtol=1e-5):
            ours, expected = exact(*batch).item(), hand(*batch).item()
            raise SystemExit(f"elbo(model) gives {ours:.6f} nats, the loss by hand {expected:.6f}")
    steps: dict[str, Callable[[], Any]] = {
        "one plate, by hand": backward(hand, *one),
        "one plate, elbo": backward(exact, *one),
        "one plate, EM": backward(em, *one),
        "two plates, by hand": backward(hand, *two),
        "two plates, elbo": backward(exact, *two),
        "two plates, EM": backward(em, *two),
        "two plates, SVI": lambda: svi.step(*two),
    }
    seconds = interleave(steps, args.repeats, warmup=warmup, device=args.device)
    ratios = {
        name: ratio(column, seconds[f"{name.partition(',')[0]}, by hand"]) for name, column in seconds.items()
    }

    machine = environment(args.device, threads=args.threads)
    tensors = len(list(model.parameters()))
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        f"Glow on the plane, {args.batch_size} unlabelled and {LABELLED} labelled rows, {tensors} parameters"
    )
    print(f"{'':20}{'min ms':>8}{'median ms':>11}  times the loss by hand")
    for name, column in seconds.items():
        print(f"{name:20}{1e3 * min(column):8.1f}{1e3 * median(column):11.1f}  {ratios[name]}")

    write_json(
        args.json,
        {
            "benchmark": "overhead",
            "environment": machine,
            "settings": {
                "rows": args.batch_size,
                "labelled_rows": LABELLED,
                "repeats": args.repeats,
                "seed": args.seed,
                "smoke_test": args.smoke_test,
            },
            "parameter_tensors": tensors,
            "seconds": seconds,
            "ratios": {name: asdict(value) for name, value in ratios.items()},
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
