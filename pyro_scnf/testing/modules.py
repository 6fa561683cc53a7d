"""Checks of any module: copies, files, dtypes, devices, repeated use.

A check compares scores of a module, one number for each row of data. Many of the faults that it finds come
from a cache inside a layer: stale values after an optimiser step, a freed graph, a batch of data in a file.
"""

from __future__ import annotations

import copy
import io
import pickle

import pyro
import torch
from pyro.nn.module import PyroModule, to_pyro_module_
from torch import Tensor, nn

from pyro_scnf.testing.case import F64, PARAMETERS, ModuleCase, perturb
from pyro_scnf.testing.check import Check, run_all, table
from pyro_scnf.testing.compare import require, require_close, require_equal

__all__ = ["MODULE_CHECKS", "check_module"]

ROWS = 5

# The caches of transforms and of Pyro's modules. They are never part of what a module computes.
UNSEEN = ("_memo", "_inv", "_compiled", "_parameters", "_buffers", "_modules")


def _fresh(case: ModuleCase) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return case.member(torch.float32), case.inputs(ROWS)


def _to(inputs: tuple[Tensor, ...], target: torch.dtype | str) -> tuple[Tensor, ...]:
    """Move inputs to a device, or the real ones among them to a dtype."""
    return tuple(
        v.to(target) if v.is_floating_point() or not isinstance(target, torch.dtype) else v for v in inputs
    )


# -- files and copies ----------------------------------------------------------------------------------
def state_dict_restores(case: ModuleCase) -> None:
    """A fresh instance that loads the state dict from a file has the same score."""
    module, inputs = _fresh(case)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = case.build()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    require_equal(
        case.score(fresh, *inputs),
        case.score(module, *inputs),
        "score of a fresh instance with the state dict",
    )


def pickles(case: ModuleCase) -> None:
    """The score after pickling is the same."""
    module, inputs = _fresh(case)
    before = case.score(module, *inputs)
    require_equal(case.score(pickle.loads(pickle.dumps(module)), *inputs), before, "score after pickling")


def saves(case: ModuleCase) -> None:
    """The score after ``torch.save`` and ``torch.load`` of the whole module is the same."""
    module, inputs = _fresh(case)
    before = case.score(module, *inputs)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    require_equal(
        case.score(torch.load(file, weights_only=False), *inputs), before, "score of the saved module"
    )


def files_hold_no_data(case: ModuleCase) -> None:
    """A pickle of the module does not grow with use, so it holds no data."""
    module = case.member(torch.float32)
    size = len(pickle.dumps(module))
    case.score(module, *case.inputs(200 * ROWS))
    after = len(pickle.dumps(module))
    require(after <= size + 200, f"pickled, it takes {after} bytes after scoring a batch, and {size} before")


def deepcopies(case: ModuleCase) -> None:
    """A deepcopy after a backward pass has the same score, and shares no parameter with the original."""
    module, inputs = _fresh(case)
    before = case.score(module, *inputs)
    if before.requires_grad:
        before.sum().backward()
    twin = copy.deepcopy(module)
    require_equal(case.score(twin, *inputs), before, "score of a deepcopy")
    perturb(module)
    require_equal(case.score(twin, *inputs), before, "score of a deepcopy once the original has changed")


# -- repeated use ----------------------------------------------------------------------------------------
def second_backward(case: ModuleCase) -> None:
    """Two forward and backward passes on the same tensors give the same gradients."""
    module, inputs = _fresh(case)
    grads = []
    for _ in range(2):
        module.zero_grad()
        case.score(module, *inputs).sum().backward()
        grads.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
    require(len(grads[0]) > 0, "no parameter got a gradient")
    for name, first in grads[0].items():
        require_equal(grads[1][name], first, f"gradient of {name} in the second backward pass")


def update_is_seen(case: ModuleCase) -> None:
    """The score follows an update of the parameters in place, such as that of an optimiser."""
    module, inputs = _fresh(case)
    before = case.score(module, *inputs)
    perturb(module)
    after = case.score(module, *inputs)
    require(not torch.equal(after, before), "the score is the same although every parameter has changed")
    fresh = case.build()
    fresh.load_state_dict(module.state_dict())
    require_equal(
        after, case.score(fresh, *inputs), "score after an update, against that of a fresh instance"
    )


def change_of_data_is_seen(case: ModuleCase) -> None:
    """The score follows a change of the data in place."""
    module, inputs = _fresh(case)
    before = case.score(module, *inputs)
    inputs[0].mul_(0.9)
    after = case.score(module, *inputs)
    require_equal(
        after,
        case.score(module, inputs[0].clone(), *inputs[1:]),
        "score after a change of the data in place, against that of a copy",
    )
    require(not torch.equal(after, before), "the score is the same although the data have changed")


def gradients_after_none(case: ModuleCase) -> None:
    """A score under ``torch.no_grad()`` does not take the gradients from the next score."""
    module, inputs = _fresh(case)
    with torch.no_grad():
        value = case.score(module, *inputs)
    require(not value.requires_grad, "the score requires a gradient under torch.no_grad()")
    again = case.score(module, *inputs)
    require(again.requires_grad, "after a score under torch.no_grad(), the score has no gradient")
    require_close(again, value, 1e-5, "score with gradients, against the score without")
    again.sum().backward()
    require(
        any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()),
        "no parameter got a gradient other than zero",
    )


def scoring_changes_nothing(case: ModuleCase) -> None:
    """Scoring changes no parameter, buffer, attribute or input, in training mode either."""
    module, inputs = _fresh(case)
    module.train()
    before, saved = _snapshot(module), [v.clone() for v in inputs]
    case.score(module, *inputs)
    after = _snapshot(module)
    require(before.keys() == after.keys(), f"scoring adds or removes {sorted(before.keys() ^ after.keys())}")
    for name, value in before.items():
        now = after[name]
        if isinstance(value, Tensor) and isinstance(now, Tensor):
            require_equal(now, value, f"{name} after scoring")
        else:
            require(
                type(value) is type(now) and value == now, f"scoring changes {name} from {value} to {now}"
            )
    for number, (now, value) in enumerate(zip(inputs, saved, strict=True)):
        require_equal(now, value, f"input {number} after scoring")


def _snapshot(module: nn.Module) -> dict[str, object]:
    """Tensors (copied) and plain attributes of a module and its parts, by name."""
    seen: dict[str, object] = {
        name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())
    }
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if name in UNSEEN or name.startswith("_pyro"):
                continue
            plain = value is None or isinstance(value, (bool, int, float, str))
            copied = value.clone() if isinstance(value, Tensor) else value if plain else type(value)
            seen[f"{prefix}.{name}".lstrip(".")] = copied
    return seen


def training_mode(case: ModuleCase) -> None:
    """The score is the same after ``train()`` and ``eval()``."""
    module, inputs = _fresh(case)
    require_equal(
        case.score(module.train(), *inputs), case.score(module.eval(), *inputs), "score in training mode"
    )


# -- dtypes and devices ------------------------------------------------------------------------------------
def float64(case: ModuleCase) -> None:
    """``.double()`` reaches every part and keeps the score up to rounding. ``.float()`` undoes it."""
    module, inputs = _fresh(case)
    single = case.score(module, *inputs)
    double = case.score(module.double(), *_to(inputs, F64))
    require(double.dtype == F64, f"after .double() the score has dtype {double.dtype}")
    for name, value in module.state_dict().items():
        require(
            not value.is_floating_point() or value.dtype == F64,
            f"after .double() {name} has dtype {value.dtype}",
        )
    require_close(single.double(), double, case.tolerances.float32, "score in float32, against float64")
    require_equal(case.score(module.float(), *inputs), single, "score after .double() and .float()")


def meta_device(case: ModuleCase) -> None:
    """``.to("meta")``, a device that computes shapes only, moves every part."""
    module, inputs = _fresh(case)
    shape = case.score(module, *inputs).shape
    with pyro.validation_enabled(False):
        out = case.score(module.to("meta"), *_to(inputs, "meta"))
    require(out.device.type == "meta", f"after .to('meta') the score is on {out.device}")
    require(
        out.shape == shape, f"on the meta device the score has shape {tuple(out.shape)}, not {tuple(shape)}"
    )


def cuda(case: ModuleCase) -> None:
    """The score on a GPU is that on the CPU up to rounding. Moving back restores it."""
    module, inputs = _fresh(case)
    before = case.score(module, *inputs)
    after = case.score(module.to("cuda"), *_to(inputs, "cuda"))
    require(after.device.type == "cuda", f"after .to('cuda') the score is on {after.device}")
    require_close(after.cpu(), before, 10 * case.tolerances.float32, "score on the GPU, against the CPU")
    require_equal(case.score(module.to("cpu"), *inputs), before, "score after .to('cuda') and .to('cpu')")


# -- Pyro's modules and parameter store ---------------------------------------------------------------------
def becomes_a_pyro_module(case: ModuleCase) -> None:
    """``to_pyro_module_`` makes it a ``PyroModule`` with the same parameters and score."""
    module, inputs = _fresh(case)
    before, names = case.score(module, *inputs), {key for key, _ in module.named_parameters()}
    to_pyro_module_(module)
    require(isinstance(module, PyroModule), "to_pyro_module_ makes no PyroModule of it")
    now = {key for key, _ in module.named_parameters()}
    require(now == names, f"to_pyro_module_ adds or removes parameters: {sorted(now ^ names)}")
    require_equal(case.score(module, *inputs), before, "score as a PyroModule")


def copies_from_the_param_store(case: ModuleCase) -> None:
    """Copies and state dicts work after ``pyro.module``, which puts weak references on parameters."""
    module, inputs = _fresh(case)
    before = case.score(module, *inputs)
    pyro.module("subject", module.eval())  # in training mode it warns of what is frozen
    require_equal(case.score(copy.deepcopy(module), *inputs), before, "score of a copy after pyro.module")
    fresh = case.build()
    fresh.load_state_dict(module.state_dict())
    require_equal(case.score(fresh, *inputs), before, "score from a state dict after pyro.module")


MODULE_CHECKS: dict[str, Check[ModuleCase]] = table(
    Check(state_dict_restores),
    Check(pickles),
    Check(saves),
    Check(files_hold_no_data),
    Check(deepcopies),
    Check(second_backward, PARAMETERS),
    Check(update_is_seen, PARAMETERS),
    Check(change_of_data_is_seen),
    Check(gradients_after_none, PARAMETERS),
    Check(scoring_changes_nothing),
    Check(training_mode),
    Check(float64),
    Check(meta_device),
    Check(cuda, frozenset({"cuda"})),
    Check(becomes_a_pyro_module),
    Check(copies_from_the_param_store, PARAMETERS),
)
"""Checks of any module that scores data, by name. Those of transforms and priors include them."""


def check_module(case: ModuleCase) -> None:
    """Run every check of :data:`MODULE_CHECKS` that applies to a module.

    :raises ConformanceError: an ``AssertionError`` with the module, the failed checks and the numbers.
    """
    run_all(MODULE_CHECKS, case)
