"""Continuous flows in this library and in zuko: the same field, data and tolerance.

The field is FFJORD's for points of the plane: three hidden layers of 64 units, with exact divergence and
Dormand-Prince steps. Compared are the time of a solve without gradient for each of its evaluations, the time
of a training step (``log_prob`` of a batch and its backward pass), and the NLL of held-out points after the
same seconds of training. Solves and steps run in one process, interleaved. Beside zuko stands this library
with a field that it differentiates automatically, as FFJORD's own code does.

zuko solves once more, backwards, for the gradient. This library goes back through the steps of the solver. So
evaluations of training steps are not alike, and only their times are compared. If zuko is not installed, it
is reported as absent and left out::

    pip install 'pyro-scnf[benchmarks]'
    python -m benchmarks.speed.continuous --json continuous.json

The exit status is 1 if pyro-scnf takes more than 1.10 times as long as zuko for an evaluation or a step.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import pyro_scnf as scnf
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_timing_options, make_parser, positive
from benchmarks.tools.records import write_json
from benchmarks.tools.timing import interleave, ratio, report_bounds
from pyro_scnf.datasets import toy
from pyro_scnf.transforms import ContinuousFlow, record_solves

BOUND, TOLERANCE = 1.10, 1e-5
SOLVER = f"dopri5:rtol={TOLERANCE},atol={TOLERANCE},tighter=1"


class Counted(nn.Module):
    """A field that counts its evaluations, and hides how products of its Jacobian can be computed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.evaluations = net, 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.net(t, z)


@dataclass(frozen=True)
class Peer:
    """A continuous flow.

    :ivar net: its field, which holds the parameters.
    :ivar encode: from data to latent: value and log-determinant.
    :ivar evaluations: how many evaluations a call of a function makes.
    """

    net: nn.Module
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    evaluations: Callable[[Callable[[], object]], int]

    def log_prob(self, x: Tensor) -> Tensor:
        z, ladj = self.encode(x)
        return ladj - 0.5 * z.square().sum(-1) - math.log(2 * math.pi)


def field(seed: int) -> nn.Module:
    """The same field for all, not at its initial parameters, where solves would need few steps."""
    torch.manual_seed(seed)
    net = scnf.nn.Dynamics(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    return net


def _recorded(call: Callable[[], object]) -> int:
    with record_solves() as record:
        call()
    return record.evaluations


def _of(net: nn.Module) -> Peer:
    """This library's flow along a field."""
    flow = ContinuousFlow(2, net, solver=SOLVER, end_time=1.0, learn_end_time=False)
    return Peer(net, flow.inverse_and_ladj, _recorded)


def ours(seed: int) -> Peer:
    return _of(field(seed))


def differentiated(seed: int) -> Peer:
    return _of(Counted(field(seed)))


def zuko(seed: int) -> Peer:
    from zuko.transforms import FreeFormJacobianTransform

    net = Counted(field(seed))

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        own = tuple(net.parameters())
        return FreeFormJacobianTransform(net, 0.0, 1.0, own, TOLERANCE, TOLERANCE).call_and_ladj(x)

    def evaluations(call: Callable[[], object]) -> int:
        before = net.evaluations
        call()
        return net.evaluations - before

    return Peer(net, encode, evaluations)


MAKERS = {"pyro-scnf": ours, "zuko": zuko, "pyro-scnf, automatic differentiation": differentiated}


def solve(peer: Peer, x: Tensor) -> None:
    with torch.no_grad():
        peer.encode(x)


def step(peer: Peer, x: Tensor) -> None:
    peer.net.zero_grad(set_to_none=True)
    (-peer.log_prob(x).mean()).backward()


def nll_after(make: Callable[[int], Peer], seconds: float, batch_size: int, seed: int) -> dict[str, float]:
    """The NLL of two moons that a new flow has after so many seconds of training, on the CPU's clock."""
    peer, data = make(seed), toy("moons", seed=seed)
    optimizer = torch.optim.Adam(peer.net.parameters(), 5e-3)
    rows, start, steps = torch.Generator().manual_seed(seed), time.process_time(), 0
    while time.process_time() - start < seconds:
        step(peer, data.x[torch.randint(len(data.x), (batch_size,), generator=rows)])
        optimizer.step()
        steps += 1
    with torch.no_grad():
        return {"steps": steps, "nll": float(-peer.log_prob(data.x_test).mean())}


def main() -> int:
    parser = make_parser(__doc__)
    add_timing_options(parser, batch_size=256, repeats=30)
    parser.add_argument("--seconds", type=positive, default=30.0, help="of training (default: %(default)s)")
    args = parser.parse_args()
    if args.smoke_test:
        args.repeats, args.seconds = 2, 0.5
    torch.set_num_threads(args.threads)
    peers, absent = {}, []
    for name, make in MAKERS.items():
        try:
            peers[name] = make(args.seed)
        except ModuleNotFoundError as error:
            absent.append(name)
            print(f"{name}: absent, left out ({error}); pip install 'pyro-scnf[benchmarks]'")
    x = toy("moons", seed=args.seed).x[: args.batch_size]
    reference = peers["pyro-scnf"].encode(x)
    for name, peer in peers.items():
        for got, expected in zip(peer.encode(x), reference, strict=True):
            assert (got - expected).abs().max() < 1e-3, f"{name} solves another equation"
    evaluations = {name: peer.evaluations(lambda p=peer: solve(p, x)) for name, peer in peers.items()}
    solves = interleave({n: lambda p=p: solve(p, x) for n, p in peers.items()}, args.repeats)
    steps = interleave({n: lambda p=p: step(p, x) for n, p in peers.items()}, args.repeats)
    each = {name: [s / evaluations[name] for s in seconds] for name, seconds in solves.items()}
    results: dict[str, dict[str, Any]] = {}
    for name in peers:
        results[name] = {
            "evaluations_per_solve": evaluations[name],
            "ms_per_evaluation": 1e3 * min(each[name]),
            "median_ms_per_evaluation": 1e3 * median(each[name]),
            "ms_per_training_step": 1e3 * min(steps[name]),
            "after_the_same_seconds": nll_after(MAKERS[name], args.seconds, args.batch_size, args.seed),
        }
        print(name, results[name])
    timed = {"evaluation": each, "training step": steps}
    ratios = {
        f"{what}, by that of zuko": ratio(seconds["pyro-scnf"], seconds["zuko"])
        for what, seconds in timed.items()
        if "zuko" in peers
    }
    for name, found in ratios.items():
        print(f"{name}: {found}")
    bounds = {name: (found.value, BOUND) for name, found in ratios.items()}
    status = 0 if args.smoke_test else report_bounds(bounds)
    settings = {name: getattr(args, name) for name in ("batch_size", "repeats", "threads", "seed", "seconds")}
    write_json(
        args.json,
        {
            "benchmark": "continuous",
            "settings": {**settings, "tolerance": TOLERANCE},
            "environment": environment("cpu", ("zuko", "torchdiffeq")),
            "absent": absent,
            "libraries": results,
            "ratios": {name: asdict(found) for name, found in ratios.items()},
            "bounds": dict.fromkeys(ratios, BOUND),
            "kept": status == 0,
        },
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
