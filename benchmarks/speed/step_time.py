"""Seconds per training step of the MNIST model of Atanov et al. (2019), beside its convolutions alone.

A step is the forward and backward pass of the exact marginal loss, ``elbo(model)(x)``, on the flow of
15.9 million parameters. The floor is every convolution and linear map that the conditioner networks call
in such a step: on inputs of the same shapes, channels-last, forward and backward, and nothing else.
On a GPU there is a third precision, TF32.
Steps and floors are interleaved in one process, for each batch size and precision::

    python -m benchmarks.speed.step_time --json step_time.json
    python -m benchmarks.speed.step_time --device cuda --batch-sizes 32 256 --compile --json step_time.json

Two bounds hold at the first batch size. A step in float32 takes at most 1.20 times as long as its floor.
Where the processor computes in bfloat16, a step in float32 takes at least 1.6 times as long as one in
mixed precision. The exit status is 1 if a bound is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyro_scnf as scnf
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_timing_options, make_parser, whole
from benchmarks.tools.records import write_json
from benchmarks.tools.timing import interleave, ratio, report_bounds
from pyro_scnf.nn import Conditioner

FLOOR_BOUND, BF16_BOUND = 1.20, 1.6
PRECISIONS = {"32": torch.float32, "tf32": torch.float32, "bf16-mixed": torch.bfloat16}


def has_bf16(device: str) -> bool:
    """Whether the device has instructions that multiply in bfloat16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def precisions_of(device: str) -> list[str]:
    """The precisions to time. GPUs also round the factors of float32 products to 10 bits (TF32)."""
    on_gpu = torch.device(device).type == "cuda"
    return ["32", *(["tf32"] if on_gpu else []), *(["bf16-mixed"] if has_bf16(device) else [])]


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Set the precision of convolutions and products, and put the former one back."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16-mixed")


def build_model(prior_width: int | None, device: str, seed: int) -> scnf.SemiSupervisedModel:
    """The paper's model, or a Glow of width 8 on images of the same size if ``prior_width`` is ``None``."""
    torch.manual_seed(seed)
    if prior_width is None:
        flow = scnf.SemiConditionalFlow(scnf.flows.glow((1, 28, 28), levels=2, width=8), "flow", 10)
    else:
        flow = scnf.presets.scnf_mnist(prior_width=prior_width)
    model = scnf.SemiSupervisedModel(flow).to(device)
    model.initialize(torch.rand(64, 1, 28, 28, device=device))
    return model


def training_step(model: nn.Module, x: Tensor, precision: str) -> Callable[[], float]:
    loss_of = scnf.elbo(model)

    def run() -> float:
        model.zero_grad(set_to_none=True)
        with computing_in(precision):
            with autocast(str(x.device), precision):
                loss = loss_of(x) / len(x)
            loss.backward()
        return loss.item()

    return run


def record_calls(model: nn.Module, step: Callable[[], Any]) -> list[tuple[nn.Module, torch.Size]]:
    """Every layer that the conditioners call in one step, with the shape of its input."""
    calls: list[tuple[nn.Module, torch.Size]] = []
    layers = {
        layer
        for net in model.modules()
        if isinstance(net, Conditioner)
        for layer in net.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    hooks = [m.register_forward_hook(lambda m, args, _: calls.append((m, args[0].shape))) for m in layers]
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def floor_of(calls: list[tuple[nn.Module, torch.Size]], precision: str) -> Callable[[], None]:
    """The same convolutions and linear maps, one after the other, on random inputs."""
    dtype = PRECISIONS[precision]
    bare: list[tuple[Callable[..., Tensor], Tensor, list[Tensor]]] = []
    for layer, shape in calls:
        like: dict[str, Any] = {"dtype": dtype, "device": layer.weight.device}
        weights = [p.detach().to(dtype).requires_grad_() for p in layer.parameters()]
        if isinstance(layer, nn.Conv2d):
            # Give the convolution an input of the padded size. The layer pads by itself in the model, and
            # the padding is not part of the floor.
            margin = layer.kernel_size[0] - 1
            x = torch.randn(*shape[:2], shape[2] + margin, shape[3] + margin, **like)
            bare.append((F.conv2d, x.to(memory_format=torch.channels_last).requires_grad_(), weights))
        else:
            bare.append((F.linear, torch.randn(shape, **like).requires_grad_(), weights))

    def run() -> None:
        with computing_in(precision):
            for function, x, weights in bare:
                out = function(x, *weights)
                torch.autograd.grad(out, [x, *weights], torch.ones_like(out))

    return run


def main() -> int:
    parser = make_parser(__doc__)
    add_timing_options(parser, batch_size=32, repeats=7)
    parser.add_argument("--batch-sizes", type=whole, nargs="+", help="several, instead of --batch-size")
    parser.add_argument("--prior-width", type=whole, default=256, help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="time the compiled model as well")
    args = parser.parse_args()
    if args.smoke_test:
        args.batch_sizes, args.repeats, args.threads = [2], 1, 1
    torch.set_num_threads(args.threads)
    sizes = args.batch_sizes or [args.batch_size]
    precisions = precisions_of(args.device)

    width = None if args.smoke_test else args.prior_width
    models = {"eager": build_model(width, args.device, args.seed)}
    if args.compile:
        models["compiled"] = build_model(width, args.device, args.seed)
        models["compiled"].flow.compile()

    machine = environment(args.device, threads=args.threads)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    seconds: dict[str, dict[str, list[float]]] = {}
    ratios: dict[str, dict[str, Any]] = {}
    losses: dict[str, dict[str, float]] = {}
    for size in sizes:
        x = torch.rand(size, 1, 28, 28, device=args.device)
        steps: dict[str, Callable[[], Any]] = {}
        for precision in precisions:
            for name, model in models.items():
                steps[f"{name} {precision}"] = training_step(model, x, precision)
            calls = record_calls(models["eager"], steps[f"eager {precision}"])
            steps[f"floor {precision}"] = floor_of(calls, precision)
        key = str(size)
        losses[key] = {name: step() for name, step in steps.items() if not name.startswith("floor")}
        seconds[key] = interleave(steps, args.repeats, device=args.device)
        ratios[key] = {}
        for precision in precisions:
            for name in models:
                label = f"{name} / floor, {precision}"
                ratios[key][label] = ratio(
                    seconds[key][f"{name} {precision}"], seconds[key][f"floor {precision}"]
                )
        if "tf32" in precisions:
            ratios[key]["float32 / tf32"] = ratio(seconds[key]["eager 32"], seconds[key]["eager tf32"])
        if "bf16-mixed" in precisions:
            ratios[key]["float32 / bf16-mixed"] = ratio(
                seconds[key]["eager 32"], seconds[key]["eager bf16-mixed"]
            )
        print(f"\nbatch {size}{'':12}{'min ms':>9}{'median ms':>11}{'images/s':>10}{'loss, nats':>12}")
        for name, column in seconds[key].items():
            loss = f"{losses[key][name]:12.3f}" if name in losses[key] else ""
            shortest = min(column)
            print(f"{name:21}{1e3 * shortest:9.1f}{1e3 * median(column):11.1f}{size / shortest:10.0f}{loss}")
        for label, value in ratios[key].items():
            print(f"{label:24}{value}")

    first = ratios[str(sizes[0])]
    bounds = {"eager / floor, 32": (first["eager / floor, 32"].value, FLOOR_BOUND)}
    if "bf16-mixed" in precisions:
        bounds["bf16-mixed / float32"] = (1 / first["float32 / bf16-mixed"].value, 1 / BF16_BOUND)
    print()
    status = 0 if args.smoke_test else report_bounds(bounds)
    write_json(
        args.json,
        {
            "benchmark": "step_time",
            "environment": machine,
            "settings": {
                "model": f"scnf_mnist, prior width {width}" if width else "glow, width 8",
                "parameters": sum(p.numel() for p in models["eager"].parameters()),
                "batch_sizes": sizes,
                "repeats": args.repeats,
                "seed": args.seed,
                "smoke_test": args.smoke_test,
            },
            "seconds": seconds,
            "loss_nats_per_row": losses,
            "ratios": {size: {k: asdict(v) for k, v in r.items()} for size, r in ratios.items()},
            "bounds": {"eager / floor, 32": FLOOR_BOUND, "float32 / bf16-mixed": BF16_BOUND},
            "kept": status == 0,
        },
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
