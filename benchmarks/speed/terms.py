"""What sharing one class table saves: training terms, and NUTS over class shares.

The class table of a batch is log p(z_f | y = k) of every row and label. Model, guide, training terms and
every gradient that NUTS takes need it. The benchmark uses the digits preset, with the digits as data. It
interleaves steps in one process, and takes two ratios of their times:

* a training step with three terms (classification, agreement of pairs, balance) to a step without terms,
  forward and backward, on the same labelled and unlabelled rows. The bound is 1.20.
* a gradient of the potential that NUTS uses over class shares, with a frozen flow. One gradient computes
  the class table anew, the other finds it in ``share_encoding()``. The bound is that the first takes at
  least 4 times as long. At 256 rows it takes about 22 ms.

The gradient that computes the table is one of a model of the latents z_f. They are encoded before, so that
neither gradient runs f_w. The two potentials differ by a constant. The benchmark stops if losses or
gradients differ that should be equal, and a hook counts how often f_w runs in each training step::

    python -m benchmarks.speed.terms --json terms.json

It also times the step with classification alone, and the step without terms under Pyro's own
``TraceEnum_ELBO``. The exit status is 1 if a ratio misses its bound or a step runs f_w more than once. The
bounds hold for the default settings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from torch import Tensor

import pyro_scnf as scnf
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_timing_options, make_parser, whole
from benchmarks.tools.passes import count_passes
from benchmarks.tools.records import write_json
from benchmarks.tools.timing import interleave, ratio, report_bounds
from pyro_scnf.datasets import SemiSupervisedData, digits, link_neighbours
from pyro_scnf.training import StepBatches

PRESET = scnf.presets.DIGITS.with_graph(None)
TERMS = ("classification", "agreement", "balance")
TERMS_BOUND, TABLE_BOUND = 1.20, 4.0
RUN = 10  # gradients in a row
NONE, ONE, THREE, PYRO = "no terms", "classification", "three terms", "no terms, TraceEnum_ELBO"
ANEW, KEPT = "table computed anew", "table kept"


class Rows(NamedTuple):
    """The batch of every training step. ``pairs`` numbers the rows of ``x`` and then of ``unlabelled``."""

    x: Tensor
    y: Tensor
    unlabelled: Tensor
    pairs: Tensor


def rows_of(data: SemiSupervisedData, batch_size: int, labelled: int | None, device: str) -> Rows:
    """The first batch of training: labelled and unlabelled rows, and pairs of neighbours among them."""
    linked = link_neighbours(data, k=5)
    batch = StepBatches(linked, batch_size, labelled)[0]
    assert batch.x is not None
    assert batch.y is not None
    assert batch.x_unlabelled is not None
    assert batch.pairs is not None
    x, unlabelled = PRESET.augment(batch.x), PRESET.augment(batch.x_unlabelled)
    return Rows(*(t.to(device) for t in (x, batch.y, unlabelled, batch.pairs)))


def training_steps(model: scnf.SemiSupervisedModel, rows: Rows) -> dict[str, Callable[[], float]]:
    """The training steps. Each returns its loss in nats per row."""
    batch = rows.x, rows.y, rows.unlabelled
    none, one, three = scnf.elbo(model), scnf.elbo(model, terms=TERMS[0]), scnf.elbo(model, terms=TERMS)
    pyro_elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)

    def step(loss: Callable[[], Tensor]) -> Callable[[], float]:
        def run() -> float:
            model.zero_grad(set_to_none=True)
            value = loss() / (len(rows.x) + len(rows.unlabelled))
            value.backward()
            return value.item()

        return run

    return {
        NONE: step(lambda: none(*batch)),
        ONE: step(lambda: one(*batch)),
        THREE: step(lambda: three(*batch, pairs=rows.pairs)),
        PYRO: step(lambda: pyro_elbo.differentiable_loss(model, scnf.exact_guide, *batch)),
    }


def gradients(flow: scnf.SemiConditionalFlow, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The gradients for NUTS over class shares, of a frozen flow. Call them inside ``share_encoding()``."""

    def prevalence(observed: Tensor, given: Callable[[Tensor], Any]) -> None:
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(flow.num_classes, device=x.device)))
        with pyro.plate("data", len(observed)):
            y = pyro.sample("y", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("observed", given(y), obs=observed)

    def gradient(observed: Tensor, given: Callable[[Tensor], Any]) -> Callable[[], Tensor]:
        # Start both chains at the same point, so that their gradients can be compared.
        pyro.set_rng_seed(0)
        start, potential, *_ = initialize_model(prevalence, (observed, given), max_plate_nesting=1)
        point = {name: value.detach() for name, value in start.items()}
        return lambda: potential_grad(potential, dict(point))[0]["shares"]

    with torch.no_grad():
        z_f = flow.encode(x)[1]
    return {ANEW: gradient(z_f, flow.prior.condition), KEPT: gradient(x, flow.condition)}


def repeat(function: Callable[[], object], times: int) -> Callable[[], None]:
    """A function that calls ``function`` several times."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def show(seconds: dict[str, list[float]]) -> None:
    for name, column in seconds.items():
        print(f"{name:26}{1e3 * min(column):9.2f}{1e3 * median(column):11.2f}")


def main() -> int:
    parser = make_parser(__doc__)
    add_timing_options(parser, batch_size=PRESET.batch_size, repeats=40)
    parser.add_argument("--labelled-batch-size", type=whole, help="labelled rows (default: all 100)")
    parser.add_argument("--rows", type=whole, default=256, help="rows for NUTS (default: %(default)s)")
    parser.add_argument("--gradients", type=whole, default=30, help="timed rounds of NUTS's gradients")
    parser.set_defaults(threads=1)  # the steps are short, and other threads would mostly wait
    args = parser.parse_args()
    if args.smoke_test:
        args.batch_size, args.labelled_batch_size, args.rows = 20, 10, 20
        args.repeats, args.gradients = 1, 1
    torch.set_num_threads(args.threads)

    torch.manual_seed(args.seed)
    data = digits(seed=args.seed)
    model = PRESET.make_model(data).to(args.device)
    rows = rows_of(data, args.batch_size, args.labelled_batch_size, args.device)
    steps = training_steps(model, rows)
    counted = {name: count_passes(model.flow.transform, step) for name, step in steps.items()}
    passes = {name: count for name, (count, _) in counted.items()}
    losses = {name: loss for name, (_, loss) in counted.items()}
    if abs(losses[PYRO] - losses[NONE]) > 1e-5 * abs(losses[NONE]):
        raise SystemExit(f"elbo(model) gives {losses[NONE]} nats a row, TraceEnum_ELBO {losses[PYRO]}")
    seconds = interleave(steps, args.repeats, warmup=2, device=args.device)

    model.requires_grad_(False)
    x = PRESET.augment.prepare(data.x[: args.rows]).to(args.device)
    with scnf.share_encoding():
        potentials = gradients(model.flow, x)
        found = {name: gradient() for name, gradient in potentials.items()}
        if not torch.allclose(found[ANEW], found[KEPT], rtol=1e-3, atol=1e-3):
            raise SystemExit(f"the gradients differ: {found[ANEW].tolist()} and {found[KEPT].tolist()}")
        # NUTS takes one gradient after the other, so each round has several of one kind.
        several = {name: repeat(gradient, RUN) for name, gradient in potentials.items()}
        timed = interleave(several, args.gradients, warmup=2, device=args.device)
        seconds |= {name: [value / RUN for value in values] for name, values in timed.items()}

    ratios = {
        "one term / none": ratio(seconds[ONE], seconds[NONE]),
        "three terms / none": ratio(seconds[THREE], seconds[NONE]),
        "TraceEnum_ELBO / elbo": ratio(seconds[PYRO], seconds[NONE]),
        "table anew / kept": ratio(seconds[ANEW], seconds[KEPT]),
    }
    bounds = {
        "three terms / none": (ratios["three terms / none"].value, TERMS_BOUND),
        "table kept / anew": (1 / ratios["table anew / kept"].value, 1 / TABLE_BOUND),
        "passes of f_w in a step": (max(passes.values()), 1),
    }

    machine = environment(args.device, threads=args.threads)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        f"digits preset: steps of {len(rows.x)} labelled and {len(rows.unlabelled)} unlabelled rows, "
        f"{len(rows.pairs)} pairs; gradients of {len(x)} rows"
    )
    print(f"{'':26}{'min ms':>9}{'median ms':>11}")
    show(seconds)
    for name, value in ratios.items():
        print(f"{name:26}{value}")
    status = 0
    if not args.smoke_test:
        status = report_bounds(bounds)
        print("a bound is MISSED" if status else "every bound is kept")
    write_json(
        args.json,
        {
            "benchmark": "terms",
            "environment": machine,
            "settings": {
                "labelled_rows": len(rows.x),
                "unlabelled_rows": len(rows.unlabelled),
                "pairs": len(rows.pairs),
                "rows_for_nuts": len(x),
                "repeats": args.repeats,
                "gradients": args.gradients,
                "seed": args.seed,
                "smoke_test": args.smoke_test,
            },
            "f_w_passes": passes,
            "loss_nats_per_row": losses,
            "seconds": seconds,
            "ratios": {name: asdict(value) for name, value in ratios.items()},
            "bounds": {"three terms / none": TERMS_BOUND, "table anew / kept": TABLE_BOUND},
            "kept": status == 0,
        },
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
