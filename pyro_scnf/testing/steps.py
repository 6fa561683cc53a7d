"""Training terms to be checked, and the hand-made steps that checks give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

import torch
from torch import Tensor

from pyro_scnf._checks import LOG_ZERO
from pyro_scnf.terms import Part, Scored, Step, TrainingTerm
from pyro_scnf.testing.case import F64, AnyCase, check_build

__all__ = [
    "PARTS",
    "TABLES",
    "TermCase",
    "has_rows",
    "join",
    "leaves",
    "map_tensors",
    "rename",
    "reorder",
    "rescale",
]

PARTS: tuple[Part, ...] = get_args(Part)
TABLES: tuple[Part, ...] = ("labelled", "unlabelled", "view")
"""The parts that are :class:`~pyro_scnf.terms.Scored`."""

SCALES: dict[Part, float] = {"labelled": 2.5, "unlabelled": 1.5, "view": 1.5}


@dataclass(frozen=True)
class TermCase(AnyCase[TrainingTerm]):
    """A training term to be checked.

    :param build: a callable without arguments that makes a fresh term.
    :param int num_classes: number of labels K.
    :param rows: number of labelled and of unlabelled rows in a step, at least 2 of each.
    :param common: the derivative of the term by ``common`` of a row that stands for itself alone, by the name
        of the part: ``{"view": -1.0}`` for a term that holds minus the log-likelihood of the view. It is 0
        for the parts that are not named, as in a term of label posteriors.
    :param Tolerances tolerances: how closely numbers must agree. ``batching`` and ``float32`` matter here.
    :param skip: names of checks to leave out.
    :param int seed: seed of the random numbers.
    :raises ValueError: for a ``build`` that is no such callable, fewer than two rows or classes, or the name
        of a part that holds no tables.
    """

    num_classes: int = 3
    rows: tuple[int, int] = (4, 6)
    common: Mapping[Part, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_build(self.build, "")
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes}: expected at least 2")
        if len(self.rows) != 2 or min(self.rows) < 2:
            raise ValueError(f"rows={self.rows}: expected two numbers of at least 2")
        unknown = sorted(set(self.common) - set(TABLES))
        if unknown:
            raise ValueError(f"common={dict(self.common)}: expected the parts {', '.join(TABLES)} alone")

    def steps(self, dtype: torch.dtype = F64) -> dict[str, Step]:
        """Random steps with every part, by a description: one with evidence about labels, one without.

        A term that needs evidence gets the first one only.
        """
        kinds = {"with evidence": True}
        if "evidence" not in self.build().needs:
            kinds["without evidence"] = False
        return {name: self.step(evidence, dtype) for name, evidence in kinds.items()}

    def any_step(self) -> Step:
        """The first of :meth:`steps`."""
        return next(iter(self.steps().values()))

    def step(self, evidence: bool, dtype: torch.dtype = F64) -> Step:
        """A random step with every part. Labels are known with certainty in none of its tables."""
        (labelled, unlabelled), k = self.rows, self.num_classes
        log_probs = _log_probs((k,), dtype)
        about = {n: _log_probs((n, k), dtype) if evidence else log_probs for n in {labelled, unlabelled}}

        def scored(part: Part, rows: int) -> Scored:
            # As in images, these are thousands of nats. A posterior that adds them first loses its digits.
            common = -2e4 + 1e3 * torch.randn(rows, dtype=dtype)
            given = -5 + 2 * torch.randn(rows, k, dtype=dtype)
            return Scored(common, given, about[rows], SCALES[part], log_probs)

        return Step(
            torch.randint(k, (labelled,)),
            0.25,
            torch.randint(labelled + unlabelled, (unlabelled, 2)),
            scored("labelled", labelled),
            scored("unlabelled", unlabelled),
            scored("view", unlabelled),
            about[unlabelled] if evidence else None,
            torch.rand(2, dtype=dtype),
        )

    def ruled_out(self, evidence: bool, dtype: torch.dtype = F64) -> Step:
        """A random step in which some labels are impossible, as in a batch with known or excluded labels.

        The last class has probability 0 in :math:`p(y)`. Every other row can only have the label 0, by
        ``given`` and by the evidence.
        """
        step, k = self.step(evidence, dtype), self.num_classes
        shift = torch.zeros(k, dtype=dtype)
        shift[-1] = -torch.inf

        def change(name: str, value: Tensor) -> Tensor:
            if name in ("y", "pairs", "energy") or name.endswith("common"):
                return torch.zeros_like(value) if name == "y" else value
            if name.endswith("log_class_probs") or value.dim() == 1:
                return (value + shift).log_softmax(-1)
            value = value.clone()
            if name.endswith("given"):
                value[::2, 1:-1] = LOG_ZERO
                return value
            value[:, -1] = LOG_ZERO
            value[::2, 1:] = LOG_ZERO  # the labels of these rows are known
            return value.log_softmax(-1).clamp(min=LOG_ZERO)

        return map_tensors(step, change)


def _log_probs(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype).log_softmax(-1)


# -- what a check does to a step -------------------------------------------------------------------
def map_tensors(step: Step, change: Callable[[str, Tensor], Tensor]) -> Step:
    """A step whose tensors are changed one by one. ``change`` gets their names, such as ``"view.given"``."""

    def changed(part: Step | Scored, prefix: str) -> dict[str, Any]:
        new: dict[str, Any] = {}
        for item in fields(part):
            value, name = getattr(part, item.name), f"{prefix}{item.name}"
            if isinstance(value, Tensor):
                new[item.name] = change(name, value)
            elif isinstance(value, Scored):
                new[item.name] = replace(value, **changed(value, f"{name}."))
        return new

    return replace(step, **changed(step, ""))


def leaves(step: Step) -> tuple[Step, dict[str, Tensor]]:
    """A copy of a step whose real tensors are leaves that take gradients, and these leaves by name."""
    found: dict[str, Tensor] = {}

    def change(name: str, value: Tensor) -> Tensor:
        if value.is_floating_point():
            found[name] = value = value.detach().clone().requires_grad_()
        return value

    return map_tensors(step, change), found


def rename(step: Step, order: Tensor) -> Step:
    """The same step with other names of the classes: the new class j is the old class ``order[j]``."""
    new = order.argsort()

    def change(name: str, value: Tensor) -> Tensor:
        if name == "y":
            return new[value]
        return value if name in ("pairs", "energy") or name.endswith("common") else value[..., order]

    return map_tensors(step, change)


def reorder(step: Step, labelled: Tensor, unlabelled: Tensor, pairs: Tensor) -> Step:
    """The same step with its labelled rows, its unlabelled rows and its pairs in another order."""
    renumbered = torch.cat([labelled.argsort(), len(labelled) + unlabelled.argsort()])

    def change(name: str, value: Tensor) -> Tensor:
        if name == "pairs":
            return renumbered[value[pairs]]
        if not has_rows(name, value):
            return value
        return value[labelled if name == "y" or name.startswith("labelled") else unlabelled]

    return map_tensors(step, change)


def join(first: Step, second: Step) -> Step:
    """A step with the rows of two. Both must have the same class probabilities."""
    assert first.y is not None
    assert second.y is not None
    assert first.unlabelled is not None
    one, other, unlabelled = len(first.y), len(second.y), len(first.unlabelled)
    tensors = {}

    def renumber(pairs: Tensor, before: int, after: int, boundary: int) -> Tensor:
        return torch.where(pairs < boundary, pairs + before, pairs + before + after)

    def collect(name: str, value: Tensor) -> Tensor:
        tensors[name] = renumber(value, one, unlabelled, other) if name == "pairs" else value
        return value

    def change(name: str, value: Tensor) -> Tensor:
        if name == "energy":
            return value + tensors[name]
        if name == "pairs":
            value = renumber(value, 0, other, one)
        return torch.cat([value, tensors[name]]) if name == "pairs" or has_rows(name, value) else value

    map_tensors(second, collect)
    return map_tensors(first, change)


def has_rows(name: str, value: Tensor) -> bool:
    """Whether a tensor has an entry for each row. Class probabilities alone and energies have none."""
    if name == "energy":
        return False
    return not name.endswith("log_class_probs") and not (name.endswith("log_prior") and value.dim() == 1)


def rescale(step: Step, factor: float) -> Step:
    """A step whose rows stand for ``factor`` times as many data."""
    tables = {part: getattr(step, part) for part in TABLES}
    scaled = {part: replace(rows, scale=factor * rows.scale) for part, rows in tables.items()}
    assert step.energy is not None
    return replace(step, **scaled, energy=factor * step.energy)
