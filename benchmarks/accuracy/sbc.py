"""Simulation-based calibration of larger models around a frozen flow, sampled by NUTS.

    python -m benchmarks.accuracy.sbc --json sbc.json
    python -m benchmarks.accuracy.sbc --only shares --simulations 40

The models are shares of classes, a confusion matrix of annotators, and an outcome whose mean depends on the
label. Each data set is drawn from the model itself, x from the flow. If inference is right, the ranks of the
true values are uniform. Two runs must be caught: one infers the outcome with noise 1.5 times as large as it
is, and one starts its chains at random values, where classes may have swapped their means. Finished
simulations are found in ``--runs`` and not repeated; after a change of the code, give another folder. Several
processes may run different models into the same folder.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_median, init_to_uniform
from pyro.ops.indexing import Vindex
from torch import Tensor

import pyro_scnf as scnf
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_run_options, make_parser, whole
from benchmarks.tools.records import write_json
from pyro_scnf.analysis import calibration
from pyro_scnf.posterior import SBCResult, sbc
from pyro_scnf.posterior.sbc_result import LEVELS

K, ROWS, ANNOTATORS = 3, 30, 2
NOISE, WRONG = 0.5, 1.5
WARMUP, DRAWS, KEPT = 100, 300, 49
SIMULATIONS, CHUNK = 100, 5
EXPECTED = 0.6  # minutes of a chunk on a busy machine
Model = Callable[..., None]


def make_flow() -> scnf.SemiConditionalFlow:
    """A flow of the plane, its parameters moved at random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=2, width=8), "gmm", K)
        for parameter in flow.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return flow.requires_grad_(False).eval()


def shares(flow: scnf.SemiConditionalFlow) -> Model:
    def model() -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.ones(K)))
        with pyro.plate("rows", ROWS):
            y = pyro.sample("y", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y))

    return model


def annotators(flow: scnf.SemiConditionalFlow) -> Model:
    """Each annotator gives each row a vote. Most votes are right, by the prior of the rows."""

    def model() -> None:
        prior = torch.ones(ANNOTATORS, K, K) + 3 * torch.eye(K)
        confusion = pyro.sample("confusion", dist.Dirichlet(prior).to_event(2))
        with pyro.plate("rows", ROWS):
            y = pyro.sample("y", dist.Categorical(torch.ones(K) / K), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y))
            for a in range(ANNOTATORS):
                pyro.sample(f"vote_{a}", dist.Categorical(Vindex(confusion)[..., a, y, :]))

    return model


def outcome(flow: scnf.SemiConditionalFlow) -> Model:
    """An outcome around the mean of its class. The prior tells the means apart."""

    def model(noise: float) -> None:
        mean = pyro.sample("mean", dist.Normal(1.5 * torch.arange(-1.0, K - 1), 0.5).to_event(1))
        with pyro.plate("rows", ROWS):
            y = pyro.sample("y", dist.Categorical(torch.ones(K) / K), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y))
            pyro.sample("t", dist.Normal(Vindex(mean)[..., y], noise))

    return model


class Case(NamedTuple):
    """A model, its data, and how it is inferred."""

    make: Callable[[scnf.SemiConditionalFlow], Model]
    observed: tuple[str, ...]
    args: tuple[float, ...] = ()
    factor: float = 1.0
    """By what inference multiplies the arguments."""
    start: Callable[..., object] = init_to_median
    """Where a chain starts."""
    is_right: bool = True
    """Whether uniform ranks are expected."""


VOTES = tuple(f"vote_{a}" for a in range(ANNOTATORS))
CASES = {
    "shares": Case(shares, ("x",)),
    "annotators": Case(annotators, ("x", *VOTES)),
    "outcome": Case(outcome, ("x", "t"), (NOISE,)),
    "outcome_wrong": Case(outcome, ("x", "t"), (NOISE,), factor=WRONG, is_right=False),
    "outcome_started_anywhere": Case(outcome, ("x", "t"), (NOISE,), start=init_to_uniform, is_right=False),
}


def nuts(case: Case, smoke: bool) -> Callable[..., dict[str, Tensor]]:
    """Inference by NUTS, with one chain."""
    warmup, draws = (5, KEPT) if smoke else (WARMUP, DRAWS)

    def infer(model: Callable[..., object], *args: float) -> dict[str, Tensor]:
        options = {"init_strategy": case.start, "jit_compile": True, "ignore_jit_warnings": True}
        kernel = NUTS(model, max_plate_nesting=1, **options)
        mcmc = MCMC(kernel, draws, warmup_steps=warmup, disable_progbar=True)
        with scnf.share_encoding():  # the flow and its prior run once for the whole chain
            mcmc.run(*(case.factor * value for value in args))
        return mcmc.get_samples()

    return infer


def read(folder: Path) -> SBCResult | None:
    """The simulations in ``folder``."""
    merged: SBCResult | None = None
    for path in sorted(folder.glob("*.pt")):
        one = SBCResult(**torch.load(path, weights_only=True))
        merged = one if merged is None else merged.merge(one)
    return merged


def simulate(case: str, start: int, folder: Path, smoke: bool) -> None:
    """Run a chunk of simulations and write them to a file, which is whole or absent."""
    chosen = CASES[case]
    found = sbc(
        chosen.make(make_flow()),
        nuts(chosen, smoke),
        chosen.args,
        observed=chosen.observed,
        num_simulations=CHUNK,
        start=start,
        label="y",
        thin=KEPT,
    )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{start:05}.part"
    torch.save(vars(found), unfinished)
    unfinished.replace(folder / f"{start:05}.pt")


def figures(found: SBCResult) -> dict[str, object]:
    """What the simulations of a model say."""
    assert found.ess is not None
    assert found.label_log_probs is not None
    assert found.labels is not None
    p_values = found.p_values()
    return {
        "simulations": len(found.numbers),
        "names": list(found.names),
        "coverage_pct": {
            f"{100 * level:g}": (100 * row).tolist()
            for level, row in zip(LEVELS, found.coverage(), strict=True)
        },
        "p_values": p_values.tolist(),
        "calibrated": bool(p_values.min() > 0.05 / len(p_values)),
        "simulations_with_ess_below_draws": int((found.ess < found.num_draws).sum()),
        "median_ess": found.ess.median().item(),
        "labels": calibration(found.label_log_probs.flatten(0, 1), found.labels.flatten()),
    }


def record(args: argparse.Namespace) -> dict[str, object]:
    """What the result file holds."""
    results = {case: read(args.runs / case) for case in CASES}
    shown = {case: figures(found) for case, found in results.items() if found is not None}
    return {
        "benchmark": "sbc",
        "environment": environment("cpu", ("arviz",)),
        "settings": {
            "simulations": args.simulations,
            "rows": ROWS,
            "warmup": WARMUP,
            "draws": DRAWS,
            "kept": KEPT,
            "smoke_test": args.smoke_test,
        },
        "sbc": shown,
        "not_as_expected": [
            case
            for case, one in shown.items()
            if one["simulations"] >= SIMULATIONS and one["calibrated"] != CASES[case].is_right
        ],
        "complete": all(r is not None and len(r.numbers) >= args.simulations for r in results.values()),
    }


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--simulations", type=whole, default=SIMULATIONS, help=f"in chunks of {CHUNK}; default: %(default)s"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="run these models")
    add_run_options(parser, "sbc")
    args = parser.parse_args()
    if args.smoke_test:
        args.simulations, args.only, args.runs = CHUNK, args.only[:1], args.runs / "smoke"
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
    deadline = Deadline(args.minutes)
    for start in range(0, args.simulations, CHUNK):
        for case in args.only:
            done = args.runs / case / f"{start:05}.pt"
            if not done.exists() and deadline.allows(EXPECTED):
                simulate(case, start, done.parent, args.smoke_test)
            if done.exists():
                print(f"{case}: simulations {start} to {start + CHUNK - 1}", flush=True)
    found = record(args)
    write_json(args.json, found)
    return int(bool(found["not_as_expected"]) and not args.smoke_test)


if __name__ == "__main__":
    sys.exit(main())
