"""Checks of a training term, on hand-made steps."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from pyro_scnf.terms import Part, Step, TermSpec, TrainingTerm, make_terms
from pyro_scnf.testing.case import DEFAULT, F64, Tolerances, Trait
from pyro_scnf.testing.check import Check, isolated, run_all, table
from pyro_scnf.testing.compare import require, require_close, require_equal, require_shape
from pyro_scnf.testing.steps import (
    PARTS,
    TABLES,
    TermCase,
    has_rows,
    join,
    leaves,
    map_tensors,
    rename,
    reorder,
    rescale,
)
from pyro_scnf.testing.weights import WEIGHT_CHECKS

__all__ = ["TERM_CHECKS", "check_term"]


# -- what it is ----------------------------------------------------------------------------------------
def kind(case: TermCase) -> None:
    """It is a training term. It needs parts that exist, and detaches only parts that it needs."""
    term = case.build()
    require(isinstance(term, TrainingTerm), f"{type(term).__name__} is no TrainingTerm")
    for name in ("needs", "detached"):
        given = getattr(term, name)
        known = isinstance(given, frozenset) and given <= set(PARTS)
        require(known, f"{name} is {given!r}, expected a frozenset of {', '.join(PARTS)}")
    require(bool(term.needs), "needs is empty, expected the parts of a step that nats reads")
    without = sorted(term.detached - term.needs)
    require(not without, f"detached holds {', '.join(without)}, expected parts that needs holds as well")


def one_number(case: TermCase) -> None:
    """It is one finite number, in the dtype of the tables."""
    for dtype in (F64, torch.float32):
        for name, step in case.steps(dtype).items():
            value = case.build().nats(step)
            require_shape(value, (), f"nats of a step {name}")
            require(value.dtype == dtype, f"nats of tables in {dtype} has dtype {value.dtype}")
            require(torch.isfinite(value), f"nats of a step {name} is {value.item()}")


def repr_rebuilds_it(case: TermCase) -> None:
    """It is a frozen dataclass, and its ``repr`` holds all its options, as plain values.

    A run is resumed only if the ``repr`` is that of before. An option that the ``repr`` does not hold could
    change unnoticed, and an address would differ in each process.
    """
    term, step = case.build(), case.any_step()
    text = repr(term)
    try:
        call = ast.parse(f"term({text.partition('(')[2]}", mode="eval").body
        options = {str(item.arg): ast.literal_eval(item.value) for item in cast(ast.Call, call).keywords}
    except (SyntaxError, ValueError) as error:
        raise AssertionError(
            f"repr is {text}, expected the name of the class and plain values ({error})"
        ) from error
    names = {item.name for item in fields(term)}
    require(options.keys() == names, f"repr is {text}, expected the options {', '.join(sorted(names))}")
    again = type(term)(**options)
    require(again == term, f"{text} makes {again!r}, which is not equal to it")
    require_equal(again.nats(step), term.nats(step), f"nats of {text}, made anew from its repr")
    for name in sorted(names):
        try:
            setattr(term, name, getattr(term, name))
        except AttributeError:
            continue
        raise AssertionError(f"its option {name} can be set, expected a frozen dataclass")


def copies(case: TermCase) -> None:
    """A deepcopy and a pickle are equal to it, and give the same number."""
    term, step = case.build(), case.any_step()
    value = term.nats(step)
    for name, twin in (("deepcopy", copy.deepcopy(term)), ("pickle", pickle.loads(pickle.dumps(term)))):
        require(twin == term, f"a {name} is not equal to it")
        require_equal(twin.nats(step), value, f"nats of a {name}")


def changes_nothing(case: TermCase) -> None:
    """It changes neither the step nor itself, so that a second call gives the same number."""
    for name, step in case.steps().items():
        term, before = case.build(), _tensors(step)
        saved = {key: value.clone() for key, value in before.items()}
        attributes = dict(vars(term))
        value = term.nats(step)
        for key, tensor in before.items():
            require_equal(tensor, saved[key], f"{key} of a step {name}, after nats")
        require(vars(term) == attributes, f"nats changes its attributes from {attributes} to {vars(term)}")
        require_equal(term.nats(step), value, f"nats of a step {name}, at the second call")


def _tensors(step: Step) -> dict[str, Tensor]:
    """The tensors of a step by name."""
    found: dict[str, Tensor] = {}
    map_tensors(step, lambda name, value: found.setdefault(name, value))
    return found


# -- what it reads ---------------------------------------------------------------------------------------
def needs_are_exact(case: TermCase) -> None:
    """It reads every part that it needs, and no other. What no term needs is ``None`` in training."""
    for name, step in case.steps().items():
        term = case.build()
        value = term.nats(step)
        for part in PARTS:
            unreadable: dict[str, Any] = {part: _Unreadable(part)}
            broken = replace(step, **unreadable)
            if part in term.needs:
                try:
                    term.nats(broken)
                except Exception:
                    continue
                raise AssertionError(f"needs holds {part!r}, which nats does not read")
            try:
                without = term.nats(broken)
            except Exception as error:
                raise AssertionError(f"nats reads {part!r}, which needs lacks ({error})") from error
            require_equal(without, value, f"nats of a step {name} without {part!r}, which needs lacks")


class _Unreadable:
    """Stands for a part of a step. A term that computes with it gets an error."""

    def __init__(self, part: str) -> None:
        self.part = part

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"{self.part}.{name}")


def gradient_stops_where_declared(case: TermCase) -> None:
    """Tables of the parts in ``detached`` get no gradient, and those of the other parts get one."""
    for name, step in case.steps().items():
        term, (tracked, found) = case.build(), leaves(step)
        grads = _gradients(term.nats(tracked), found)
        for part in (part for part in TABLES if part in term.needs):
            size = max(float(g.abs().max()) for key, g in grads.items() if key.startswith(f"{part}."))
            if part in term.detached:
                require(size == 0, f"{part!r} is in detached, and gets a gradient of size {size:.3g} {name}")
            else:
                require(size > 0, f"{part!r} gets no gradient {name}, expected one, or the part in detached")


def _gradients(value: Tensor, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a value by name, zero where it does not depend on a tensor."""
    require(value.requires_grad, "nats has no gradient")
    grads = torch.autograd.grad(value, list(found.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(found.items(), grads, strict=True)
    }


def response_to_common(case: TermCase) -> None:
    """Its derivative by ``common`` is that of the case: 0 for label posteriors, -1 for a log-likelihood."""
    for name, step in case.steps().items():
        tracked, found = leaves(step)
        grads = _gradients(case.build().nats(tracked), found)
        for part in TABLES:
            got, rows = grads[f"{part}.common"], getattr(step, part)
            expected = torch.full_like(got, case.common.get(part, 0.0) * rows.scale)
            what = f"derivative by {part}.common of a step {name}, of rows that stand for {rows.scale} data"
            require_close(got, expected, case.tolerances.batching, what)


# -- what changes its value, and what does not -----------------------------------------------------------
def renamed_classes(case: TermCase) -> None:
    """It does not depend on the order in which the classes are numbered."""
    for name, step in case.steps().items():
        term, order = case.build(), torch.arange(case.num_classes).roll(1)
        what = f"nats of a step {name}, with the classes in another order"
        require_close(term.nats(rename(step, order)), term.nats(step), case.tolerances.batching, what)


def order_of_rows(case: TermCase) -> None:
    """It does not depend on the order of labelled rows, of unlabelled rows and of pairs."""
    for name, step in case.steps().items():
        term, (labelled, unlabelled) = case.build(), case.rows
        orders = (torch.arange(rows).roll(1) for rows in (labelled, unlabelled, unlabelled))
        what = f"nats of a step {name}, with rows and pairs in another order"
        require_close(term.nats(reorder(step, *orders)), term.nats(step), case.tolerances.batching, what)


def adds_up_over_rows(case: TermCase) -> None:
    """It is the sum of what two halves of a batch give, unless it is declared ``per_process``.

    Several processes each have a part of the batch, and minimise this sum.
    """
    term = case.build()
    if term.per_process:
        return
    for name, step in case.steps().items():
        other = _with_class_probs(case.step(name == "with evidence"), step)
        what = f"nats of two batches {name} in one, against the sum of both (per_process is False)"
        parts = term.nats(step) + term.nats(other)
        require_close(term.nats(join(step, other)), parts, case.tolerances.batching, what)


def _with_class_probs(step: Step, other: Step) -> Step:
    """``step`` with the class probabilities of another step, which are its tensors without rows."""
    theirs = _tensors(other)
    kept = map_tensors(step, lambda name, value: value if has_rows(name, value) else theirs[name])
    return replace(kept, energy=step.energy)


def scales_with_the_data(case: TermCase) -> None:
    """It doubles if every row stands for twice as many data."""
    for name, step in case.steps().items():
        term = case.build()
        what = f"nats of a step {name} whose rows stand for twice as many data, against twice the nats"
        require_close(term.nats(rescale(step, 2.0)), 2 * term.nats(step), case.tolerances.batching, what)


# -- numbers ---------------------------------------------------------------------------------------------
def ruled_out_labels(case: TermCase) -> None:
    """It and its gradients are finite where labels are impossible: log-probabilities of -1e30 and -inf."""
    for dtype in (F64, torch.float32):
        for name in case.steps(dtype):
            step, found = leaves(case.ruled_out(name == "with evidence", dtype))
            value = case.build().nats(step)
            require(torch.isfinite(value), f"with labels ruled out, in {dtype}, nats is {value.item()}")
            for key, grad in _gradients(value, found).items():
                require(
                    torch.isfinite(grad).all(), f"with labels ruled out, the gradient by {key} is not finite"
                )


def float32(case: TermCase) -> None:
    """In float32 it and its gradients are those in float64, up to rounding."""
    for name, step in case.steps().items():
        term = case.build()
        double, found = leaves(step)
        low = map_tensors(step, lambda _, v: v.float() if v.is_floating_point() else v)
        single, few = leaves(low)
        value, rounded = term.nats(double), term.nats(single)
        tolerance = case.tolerances.float32
        require_close(
            rounded.double(), value, tolerance, f"nats of a step {name} in float32, against float64"
        )
        grads = _gradients(rounded, few)
        for key, grad in _gradients(value, found).items():
            what = f"gradient by {key} in float32, against float64"
            require_close(grads[key].double(), grad, tolerance, what)


def cuda(case: TermCase) -> None:
    """On a GPU it is what it is on the CPU, up to rounding."""
    for name, step in case.steps(torch.float32).items():
        term = case.build()
        value = term.nats(map_tensors(step, lambda _, v: v.cuda()))
        require(value.device.type == "cuda", f"for a step on the GPU, nats is on {value.device}")
        what = f"nats of a step {name} on the GPU, against the CPU"
        require_close(value.cpu(), term.nats(step), 10 * case.tolerances.float32, what)


CUDA: frozenset[Trait] = frozenset({"cuda"})

TERM_CHECKS: dict[str, Check[TermCase]] = {
    **table(
        Check(kind, gate=True),
        Check(one_number, gate=True),
        Check(repr_rebuilds_it),
        Check(copies),
        Check(changes_nothing),
        Check(needs_are_exact),
        Check(gradient_stops_where_declared),
        Check(response_to_common),
        Check(renamed_classes),
        Check(order_of_rows),
        Check(adds_up_over_rows),
        Check(scales_with_the_data),
        Check(ruled_out_labels),
        Check(float32),
        Check(cuda, CUDA),
    ),
    **WEIGHT_CHECKS,
}
"""Checks of a training term, by name."""


def check_term(
    build: TermCase | TermSpec,
    num_classes: int = 3,
    *,
    common: Mapping[Part, float] | None = None,
    tolerances: Tolerances = DEFAULT,
    skip: Collection[str] = (),
) -> None:
    """Run every check of :data:`TERM_CHECKS` that applies to a training term.

    :param build: a term, or a name of one that :func:`~pyro_scnf.terms.make_terms` takes: a word, an import
        path, a dict, a class or a function. Or a :class:`TermCase`, which has the other arguments and more.
    :param int num_classes: number of labels K.
    :param common: the derivative of the term by ``common`` of a row that stands for itself alone, by the name
        of the part, ``{"view": -1.0}``. It is 0 for the parts that are not named.
    :param Tolerances tolerances: how closely numbers must agree.
    :param skip: names of checks to leave out.
    :raises ConformanceError: an ``AssertionError`` with the term, the failed checks and the numbers.
    :raises ValueError: for anything that is no term, for another argument beside a :class:`TermCase`, or if
        ``skip`` names a check that does not exist.

    >>> check_term("agreement:purity=0.9")
    >>> check_term(pyro_scnf.terms.Consistency(start=0), common={"view": -1.0})
    """
    __tracebackhide__ = True
    if isinstance(build, TermCase):
        if (num_classes, common, tolerances, skip) != (3, None, DEFAULT, ()):
            raise ValueError("build is a TermCase: give it the other arguments")
        case = build
    else:
        make = _builder(build)
        case = TermCase(make, num_classes, common=common or {}, tolerances=tolerances, skip=skip)
    run_all(TERM_CHECKS, case)


def _builder(spec: TermSpec) -> Callable[[], TrainingTerm]:
    """A function that makes the one term that ``spec`` names."""
    if not isinstance(spec, str | Mapping | TrainingTerm) and not callable(spec):
        raise ValueError(f"build={spec!r}: expected a term, or a word, a dict, a class or a function")
    with isolated(0):
        _only(spec)  # an unknown word is an error of the caller, and not of the term
    return partial(_only, spec)


def _only(spec: TermSpec) -> TrainingTerm:
    (term,) = make_terms(spec).values()
    return term
