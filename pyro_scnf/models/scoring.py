"""What training terms see of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import get_args

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED, validating
from pyro_scnf._numbers import check_number
from pyro_scnf._state import Parts
from pyro_scnf.models.paths import continuous_layers, path_energy
from pyro_scnf.models.semi_supervised import SemiSupervisedModel
from pyro_scnf.terms import Part, Scored, Step, TrainingTerm, active, needs_of

__all__ = ["Arguments", "ForTerms", "Rows", "check_needs", "check_used", "divide", "score_step"]

HINTS: dict[Part, str] = {
    "y": "labels: give x and y",
    "labelled": "labelled rows: give x and y",
    "unlabelled": "unlabelled rows: give x_unlabelled, or x with labels of -1",
    "pairs": "pairs of rows: give pairs, or link_neighbours(data)",
    "view": "a second view of the unlabelled rows: give view, or augment",
    "evidence": "evidence about the unlabelled rows: give label_log_prior",
    "energy": "a continuous flow: give a model with one, such as flows.ffjord",
}
"""What a term needs, in words, and where a user gives it."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of a model's call."""

    x: Tensor | None = None
    y: Tensor | None = None
    x_unlabelled: Tensor | None = None
    _: KW_ONLY
    weights: Tensor | None = None
    label_log_prior: Tensor | None = None

    @classmethod
    def of(cls, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Arguments:
        """Those arguments of a call that every model has. A model of a user's own may have others."""
        known = {field.name for field in fields(cls)}
        return cls(*args[:3], **{name: value for name, value in kwargs.items() if name in known})


@dataclass(frozen=True)
class ForTerms:
    """What only training terms look at.

    :ivar pairs: pairs of rows ``(P, 2)``, numbered from 0 through both batches, the labelled one first.
    :ivar view: the unlabelled rows, perturbed once more.
    :ivar float progress: share of training that is done, 0 to 1.
    """

    pairs: Tensor | None = None
    view: Tensor | None = None
    progress: float = 0.0

    def __post_init__(self) -> None:
        check_number("progress", self.progress, at_least=0, at_most=1)


@dataclass(frozen=True)
class Rows:
    """Rows of one kind: those of ``x`` that ``mask`` picks, or all of them.

    :ivar bool balanced: whether they were chosen by class, so that p(y) says nothing of their labels.
    """

    x: Tensor
    evidence: Tensor | None
    scale: float
    mask: Tensor | None = None
    balanced: bool = False

    def __len__(self) -> int:
        return len(self.x) if self.mask is None else int(self.mask.sum())

    @property
    def picked_x(self) -> Tensor:
        """The data of these rows alone."""
        return self.x if self.mask is None else self.x[self.mask]

    def only(self, mask: Tensor) -> Rows:
        """Those that ``mask`` picks."""
        evidence = None if self.evidence is None else self.evidence[mask]
        return replace(self, mask=mask, evidence=evidence)

    def score(self, model: SemiSupervisedModel) -> Scored:
        """These rows under every label."""
        rows = model.score(self.x, scale=self.scale)
        if self.mask is not None:
            rows = replace(rows, common=rows.common[self.mask], given=rows.given[self.mask])
        if self.evidence is not None:
            return replace(rows, log_prior=self.evidence)
        return replace(rows, log_prior=model.uniform_log_probs) if self.balanced else rows


def score_step(
    model: SemiSupervisedModel, terms: Mapping[str, TrainingTerm], batch: Arguments, extra: ForTerms
) -> Step:
    """What ``terms`` need to see of a batch. Terms of weight 0 at this moment need nothing.

    Inside :func:`~pyro_scnf.share_encoding`, :math:`f_w` and the prior run once for all rows, and the model
    that follows uses the same encodings and class tables.

    :raises ValueError: if a term needs a part that the batch lacks, or if the batch has weights, pairs or a
        view that do not go with the terms.
    """
    _check_batch(model, terms, batch, extra)
    known, labelled, unlabelled = divide(model, batch)
    evidence = None if unlabelled is None else unlabelled.evidence
    view = None
    if extra.view is not None:
        if unlabelled is None:
            raise ValueError("view: it perturbs the unlabelled rows, and there are none")
        view = Rows(extra.view, evidence, unlabelled.scale)
        if len(view) != len(unlabelled):
            raise ValueError(
                f"view: {len(view)} rows, expected one for each of {len(unlabelled)} unlabelled rows"
            )
        if validating(extra.view) and torch.equal(extra.view, unlabelled.picked_x):
            raise ValueError(
                "view: it holds the unlabelled rows unchanged, expected rows perturbed at random; in fit, "
                "augment has to change rows"
            )
    rows: dict[Part, Rows | None] = {"labelled": labelled, "unlabelled": unlabelled, "view": view}
    current = active(terms, extra.progress)
    needs = needs_of(current)
    continuous = "energy" in needs and continuous_layers(model.flow) > 0
    given = {"y": known, "pairs": extra.pairs, "evidence": evidence, "energy": continuous, **rows}
    check_needs(current, given)
    energy = _energy(model, batch, labelled, unlabelled) if "energy" in needs else None
    wanted = {part: some for part, some in rows.items() if some is not None and part in needs}
    scored = _score(model, batch, wanted)
    return Step(
        known if "y" in needs else None,
        extra.progress,
        extra.pairs if "pairs" in needs else None,
        scored.get("labelled"),
        scored.get("unlabelled"),
        scored.get("view"),
        evidence if "evidence" in needs else None,
        energy,
    )


def divide(model: SemiSupervisedModel, batch: Arguments) -> tuple[Tensor | None, Rows | None, Rows | None]:
    """The known labels, the labelled rows and the unlabelled rows of a batch."""
    x, u, evidence = batch.x, batch.x_unlabelled, batch.label_log_prior
    y, _ = model.check_batch(x, batch.y, u, batch.weights)
    assert x is not None  # _check_batch raises otherwise
    if u is not None:
        first, second = model.split_evidence(evidence, len(x), len(u))
        scale = _scale(model.sizes.of_labelled(len(x)), len(x))
        labelled = Rows(x, first, scale, balanced=model.balanced_labels)
        return y, labelled, Rows(u, second, _scale(model.sizes.of_unlabelled(len(u)), len(u)))
    checked = None if evidence is None else model.check_evidence(evidence, len(x))
    whole = Rows(x, checked, _scale(model.sizes.of_batch(len(x), y), len(x)))
    known = None if y is None else y != UNLABELLED
    if y is None or known is None or not bool(known.any()):
        return None, None, whole
    labelled = replace(whole, balanced=model.balanced_labels)
    if bool(known.all()):
        return y, labelled, None
    return y[known], labelled.only(known), whole.only(~known)


def _scale(size: int | None, rows: int) -> float:
    return 1.0 if size is None else size / rows


def _energy(
    model: SemiSupervisedModel, batch: Arguments, labelled: Rows | None, unlabelled: Rows | None
) -> Tensor:
    """The energy of the rows of a batch, scaled up to the data set."""
    assert batch.x is not None  # _check_batch raises otherwise
    scales = [rows.scale for rows in (labelled, unlabelled) if rows is not None]
    if batch.x_unlabelled is None:  # rows of one batch all have the same scale
        return path_energy(model.flow, [batch.x], scales[:1])
    return path_energy(model.flow, [batch.x, batch.x_unlabelled], scales)


def _score(model: SemiSupervisedModel, batch: Arguments, wanted: Mapping[Part, Rows]) -> dict[Part, Scored]:
    """Score rows with one pass of the flow and one call of the prior. The model's rows share the pass."""
    tables = {id(rows.x): rows.x for rows in wanted.values()}
    all_rows = {id(x): x for x in (batch.x, batch.x_unlabelled) if x is not None} | tables
    if len(all_rows) > 1:
        model.flow.encode_together(*all_rows.values())
    if len(tables) > 1:
        model.flow.scores(*tables.values())
    return {part: rows.score(model) for part, rows in wanted.items()}


# -- checks ----------------------------------------------------------------------------------------
def _check_batch(
    model: SemiSupervisedModel, terms: Mapping[str, TrainingTerm], batch: Arguments, extra: ForTerms
) -> None:
    """Raise for arguments that no term uses, or that do not go with the terms."""
    if batch.x is None:
        raise ValueError(f"terms: {', '.join(terms)}: nothing is observed, expected x")
    if Parts.of((model.flow.prior, model.class_probs)).are_random:
        raise ValueError(
            f"terms: {', '.join(terms)}: the prior or p(y) has a PyroSample, expected plain parameters"
        )
    if extra.pairs is not None and batch.x_unlabelled is None:
        raise ValueError("pairs are for (x, y, x_unlabelled): they number the rows of both batches")
    looking = active(terms, extra.progress)
    if batch.x_unlabelled is not None:  # weights are then those of unlabelled rows
        looking = {name: term for name, term in looking.items() if term.needs - {"labelled", "y"}}
    if batch.weights is not None and looking:
        raise ValueError(
            f"weights: they are for rows that the training terms {', '.join(looking)} see, and terms cannot "
            "weigh single rows; leave out the weights or these terms"
        )
    if extra.view is not None:
        owner = type(model).__name__
        model.flow.check_data(extra.view, "view", owner)
        if extra.view.shape[1:] != model.flow.event_shape:
            raise ValueError(
                f"{owner}: view has shape {tuple(extra.view.shape)}, expected one batch dimension, as "
                "x_unlabelled has"
            )


def check_used(terms: Mapping[str, TrainingTerm], extra: ForTerms) -> None:
    """Raise if there are pairs or a view, and no term that uses them."""
    needs = needs_of(terms)
    for part, given in (("pairs", extra.pairs), ("view", extra.view)):
        if given is not None and part not in needs:
            names = ", ".join(terms) or "none at all"
            raise ValueError(f"{part}: given, but no training term uses them (terms: {names})")


def check_needs(terms: Mapping[str, TrainingTerm], given: Mapping[Part, object]) -> None:
    """Raise if a term needs a part that is missing: one that is ``None`` or ``False``."""
    for name, term in terms.items():
        for part in sorted(term.needs):
            if part not in get_args(Part):
                raise ValueError(f"terms: {name} needs {part!r}, expected one of {', '.join(get_args(Part))}")
            if given[part] is None or given[part] is False:
                raise ValueError(f"terms: {name} needs {HINTS[part]}")
