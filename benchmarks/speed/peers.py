"""RealNVP in this and other libraries: what a flow costs on top of its conditioner networks.

Every library builds the same model: ten affine couplings of halves of a 50-dimensional vector, each with
a 25-256-256-50 ReLU network, and a standard normal base. A step is the mean ``log_prob`` of one batch and
its backward pass. The floor is the ten networks alone: forward and backward on the inputs that they get
inside the flow, and nothing else. All steps run in one process, interleaved.

Before anything is timed, every density is checked against its own Jacobian. A library that is not
installed is reported as absent and left out::

    pip install 'pyro-scnf[benchmarks]'
    python -m benchmarks.speed.peers --json peers.json

The exit status is 1 if pyro-scnf takes more than 1.20 times as long as the floor.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms as pyro_transforms
from torch import Tensor, nn

import pyro_scnf as scnf
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_timing_options, make_parser
from benchmarks.tools.records import write_json
from benchmarks.tools.timing import interleave, ratio, report_bounds

DIM, COUPLINGS, HIDDEN = 50, 10, (256, 256)
HALF = DIM // 2
BOUND = 1.20
PACKAGES = ("zuko", "nflows", "normflows")


@dataclass(frozen=True)
class Peer:
    """The model, built with one library.

    :ivar module: holds the parameters.
    :ivar encode: from data to latent, ``(N, D)`` to ``(N, D)``.
    :ivar log_prob: log-density in nats, ``(N, D)`` to ``(N,)``.
    """

    module: nn.Module
    encode: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


def standard_normal(device: str) -> Any:
    zero = torch.zeros(DIM, device=device)
    return dist.Normal(zero, torch.ones_like(zero)).to_event(1)


def ours(device: str) -> Peer:
    def net(in_channels: int, out_channels: int, context_dim: int = 0) -> nn.Module:
        return scnf.nn.MLP(in_channels, out_channels, HIDDEN, context_dim=context_dim)

    flow: Any = scnf.flows.realnvp((DIM,), couplings=COUPLINGS, net=net).to(device)
    density = dist.TransformedDistribution(standard_normal(device), [flow])
    return Peer(flow, lambda x: flow.inverse_and_ladj(x)[0], density.log_prob)


def pyro(device: str) -> Peer:
    layers: list[Any] = []
    for i in range(COUPLINGS):
        if i:
            layers.append(pyro_transforms.Permute(torch.arange(DIM, device=device).flip(0)))
        layers.append(pyro_transforms.affine_coupling(DIM, hidden_dims=list(HIDDEN)).to(device))
    density = dist.TransformedDistribution(standard_normal(device), layers)

    def encode(x: Tensor) -> Tensor:
        density.clear_cache()
        for layer in reversed(layers):
            x = layer.inv(x)
        return x

    def log_prob(x: Tensor) -> Tensor:
        # The cache would return the last step's result, whose graph is gone after its backward pass.
        density.clear_cache()
        return density.log_prob(x)

    return Peer(nn.ModuleList([t for t in layers if isinstance(t, nn.Module)]), encode, log_prob)


def zuko(device: str) -> Peer:
    import zuko as library

    flow = library.flows.RealNVP(DIM, transforms=COUPLINGS, hidden_features=HIDDEN).to(device)
    return Peer(flow, lambda x: flow().transform(x), lambda x: flow().log_prob(x))


def nflows(device: str) -> Peer:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import MLP
    from nflows.transforms import AffineCouplingTransform, CompositeTransform

    class Net(MLP):
        def forward(self, inputs: Tensor, context: None = None) -> Tensor:
            return super().forward(inputs)

    mask = (torch.arange(DIM) < HALF).float()
    layers = [
        AffineCouplingTransform(mask if i % 2 else 1 - mask, lambda n, out: Net([n], [out], HIDDEN))
        for i in range(COUPLINGS)
    ]
    flow = Flow(CompositeTransform(layers), StandardNormal([DIM])).to(device)
    return Peer(flow, flow.transform_to_noise, flow.log_prob)


def normflows(device: str) -> Peer:
    import normflows as library

    layers: list[nn.Module] = []
    for i in range(COUPLINGS):
        if i:
            layers.append(library.flows.Permute(DIM, mode="swap"))
        net = library.nets.MLP([HALF, *HIDDEN, 2 * HALF])
        layers.append(library.flows.AffineCouplingBlock(net))
    flow = library.NormalizingFlow(library.distributions.DiagGaussian(DIM, trainable=False), layers).to(
        device
    )
    return Peer(flow, flow.inverse, flow.log_prob)


LIBRARIES: dict[str, Callable[[str], Peer]] = {
    "pyro-scnf": ours,
    "Pyro": pyro,
    "zuko": zuko,
    "nflows": nflows,
    "normflows": normflows,
}


def build(make: Callable[[str], Peer], device: str, seed: int) -> Peer:
    """Build a peer and draw the weights of all its layers anew.

    Libraries differ in which layers start at zero, and a zero layer would hide errors of the density.
    """
    torch.manual_seed(seed)
    peer = make(device)
    for module in peer.module.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return peer


def density_error(peer: Peer, x: Tensor) -> float:
    """Largest difference in nats between ``log_prob`` and the change-of-variables formula.

    The formula is evaluated with the Jacobian that autograd finds for ``encode``.
    """
    worst = 0.0
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: peer.encode(v[None])[0], row)
        z = peer.encode(row[None])[0]
        log_base = -0.5 * z.square().sum() - 0.5 * DIM * math.log(2 * math.pi)
        expected = log_base + torch.linalg.slogdet(jacobian)[1]
        worst = max(worst, (peer.log_prob(row[None])[0] - expected).abs().item())
    return worst


def step_of(peer: Peer, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        peer.module.zero_grad(set_to_none=True)
        (-peer.log_prob(x).mean()).backward()

    return step


def floor_of(peer: Peer, x: Tensor) -> Callable[[], None]:
    """Forward and backward of the conditioner networks of ``peer`` alone.

    They get the inputs that they get inside the flow. As in the flow, the input of the first network
    needs no gradient, and the inputs of the others do.
    """
    nets = [module for module in peer.module.modules() if isinstance(module, scnf.nn.MLP)]
    inputs: list[Tensor] = [torch.empty(0)] * len(nets)
    hooks = [
        net.register_forward_pre_hook(lambda _, args, i=i: inputs.__setitem__(i, args[0]))
        for i, net in enumerate(nets)
    ]
    peer.log_prob(x)
    for hook in hooks:
        hook.remove()
    inputs = [v.detach().clone().requires_grad_(v.requires_grad) for v in inputs]
    cotangents = [torch.randn(len(x), 2 * HALF, device=x.device) for _ in nets]

    def step() -> None:
        peer.module.zero_grad(set_to_none=True)
        for v in inputs:
            v.grad = None
        outputs = [net(v) for net, v in zip(nets, inputs, strict=True)]
        torch.autograd.backward(outputs, cotangents)

    return step


def main() -> int:
    parser = make_parser(__doc__)
    add_timing_options(parser, batch_size=2000, repeats=40)
    args = parser.parse_args()
    if args.smoke_test:
        args.batch_size, args.repeats, args.threads = 20, 1, 1
    torch.set_num_threads(args.threads)

    torch.manual_seed(args.seed)
    x = torch.randn(args.batch_size, DIM, device=args.device)
    peers, absent = {}, []
    for name, make in LIBRARIES.items():
        try:
            peers[name] = build(make, args.device, args.seed)
        except ModuleNotFoundError as error:
            absent.append(name)
            print(f"{name}: absent, left out ({error}); pip install 'pyro-scnf[benchmarks]'")
    errors = {name: density_error(peer, x[:3]) for name, peer in peers.items()}
    for name, difference in errors.items():
        if not difference < 1e-3:
            raise SystemExit(
                f"{name}: log_prob differs by {difference:.2g} nats from what its Jacobian gives"
            )

    steps = {"networks alone": floor_of(peers["pyro-scnf"], x)}
    steps |= {name: step_of(peer, x) for name, peer in peers.items()}
    seconds = interleave(steps, args.repeats, warmup=3, device=args.device)
    ratios = {name: ratio(column, seconds["networks alone"]) for name, column in seconds.items()}

    machine = environment(args.device, PACKAGES, args.threads)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"RealNVP, D = {DIM}, {COUPLINGS} couplings, nets {HIDDEN}, {args.batch_size} rows, {x.dtype}")
    print(f"{'':16}{'parameters':>11}{'min ms':>9}{'median ms':>11}  times the networks alone")
    for name, column in sorted(seconds.items(), key=lambda item: min(item[1])):
        count = f"{peers[name].num_parameters():,}" if name in peers else ""
        print(f"{name:16}{count:>11}{1e3 * min(column):9.1f}{1e3 * median(column):11.1f}  {ratios[name]}")
    bounds = {"pyro-scnf / networks alone": (ratios["pyro-scnf"].value, BOUND)}
    status = 0 if args.smoke_test else report_bounds(bounds)

    write_json(
        args.json,
        {
            "benchmark": "peers",
            "environment": machine,
            "settings": {
                "dim": DIM,
                "couplings": COUPLINGS,
                "hidden": HIDDEN,
                "rows": args.batch_size,
                "dtype": str(x.dtype),
                "repeats": args.repeats,
                "seed": args.seed,
                "smoke_test": args.smoke_test,
            },
            "parameters": {name: peer.num_parameters() for name, peer in peers.items()},
            "density_error_nats": errors,
            "absent": absent,
            "seconds": seconds,
            "times_networks_alone": {name: asdict(value) for name, value in ratios.items()},
            "bound": BOUND,
            "kept": status == 0,
        },
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
