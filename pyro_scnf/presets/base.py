"""Presets: a model together with the settings that train it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_flag, check_kinds, check_number, check_whole, check_word
from pyro_scnf.class_probs import ClassProbs
from pyro_scnf.datasets import (
    LabelEvidence,
    SemiSupervisedData,
    label_evidence,
    link_neighbours,
    neighbour_graph,
)
from pyro_scnf.datasets.augment import Augment
from pyro_scnf.datasets.image_features import FEATURES, Features
from pyro_scnf.datasets.spreading import METHODS
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.priors import PriorSpec
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.terms import Terms, make_terms, needs_of
from pyro_scnf.training.options import Machine, Optimisation

if TYPE_CHECKING:
    from pyro_scnf.training import FitResult

__all__ = ["FitOptions", "GraphOptions", "MakeFlow", "ModelOptions", "Preset"]


class MakeFlow(Protocol):
    """Builds the flow of a preset."""

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        """A flow whose :math:`z_f` has ``latent_dim`` components; by default the number of the preset."""


@dataclass(frozen=True)
class ModelOptions:
    """Options of :class:`~pyro_scnf.SemiSupervisedModel` that do not depend on the data.

    :ivar class_probs: ``"uniform"``, ``"learnable"``, ``"em"``, or ``"empirical"`` for the frequencies of the
        labels.
    :ivar bool scaled: whether batches are scaled up to the sizes of the data set.
    :ivar float labelled_weight: weight of the labelled rows in the likelihood.
    :ivar bool balanced_labels: whether labelled rows were chosen by class, equally many of each.
    :raises ValueError: for an option out of range.
    """

    class_probs: Literal["uniform", "learnable", "em", "empirical"] = "uniform"
    scaled: bool = False
    labelled_weight: float = 1.0
    balanced_labels: bool = False

    def __post_init__(self) -> None:
        check_word("class_probs", self.class_probs, ("uniform", "learnable", "em", "empirical"))
        check_flag(scaled=self.scaled, balanced_labels=self.balanced_labels)
        check_number("labelled_weight", self.labelled_weight, above=0)


@dataclass(frozen=True)
class GraphOptions:
    """The graph of neighbours from which evidence about labels comes.

    :ivar features: what neighbours are nearest in, a word of :data:`~pyro_scnf.datasets.FEATURES` or a
        function, see :func:`~pyro_scnf.datasets.neighbour_graph`.
    :ivar int neighbours: number of neighbours of each row.
    :ivar components: number of principal components of the features; ``None`` for the features themselves.
    :ivar str method: how labels travel, see :func:`~pyro_scnf.datasets.label_evidence`.
    :ivar shares: expected shares of the classes, likewise; equal ones by default.
    :raises ValueError: for an unknown word, or a number below 1.
    """

    features: str | Features
    neighbours: int = 10
    components: int | None = None
    method: Literal["spreading", "poisson"] = "spreading"
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not callable(self.features):
            check_word("features", self.features, FEATURES)
        check_whole("neighbours", self.neighbours, 1)
        if self.components is not None:
            check_whole("components", self.components, 1)
        check_word("method", self.method, METHODS)

    def evidence(self, data: SemiSupervisedData) -> LabelEvidence:
        """What the graph of all training rows says about their labels, and about those of other rows.

        Cross-validation needs two labelled rows of each class. Without these, the graph is trusted little.

        :raises ValueError: as :func:`~pyro_scnf.datasets.neighbour_graph` and
            :func:`~pyro_scnf.datasets.label_evidence` do.
        """
        graph = neighbour_graph(data.x, self.neighbours, self.features, self.components)
        trusted = int(torch.bincount(data.labelled[1], minlength=data.num_classes).min()) > 1
        return label_evidence(
            graph,
            data.y,
            data.num_classes,
            method=self.method,
            shares=self.shares,
            sharpness=None if trusted else 1.0,
            mix=None if trusted else 0.1,
        )


class FitOptions(TypedDict, total=False):
    """Options of :func:`pyro_scnf.training.fit`."""

    guide: str | Callable[..., object]
    terms: Terms
    optimisation: Optimisation | None
    machine: Machine | None
    steps: int
    batch_size: int
    labelled_batch_size: int | None
    augment: Callable[[Tensor], Tensor] | None
    validate_every: int
    patience: int | None
    seed: int
    minutes: float | None
    out: str | Path | None
    resume: bool
    log: Literal["csv", "tensorboard"] | None
    progress: bool


@dataclass(frozen=True)
class Preset:
    """A model together with the settings that train it. Options given to its methods override the settings.

    :ivar flow: builds the semi-conditional flow.
    :ivar augment: changes rows before the model sees them.
    :ivar optimisation: optimiser, learning rate, averaging and clipping.
    :ivar int steps: optimiser steps.
    :ivar int batch_size: unlabelled rows a step.
    :ivar labelled_batch_size: labelled rows a step; ``None`` for all, or, if every row is labelled, for
        ``batch_size`` of them.
    :ivar int validate_every: steps between validations and checkpoints.
    :ivar model: options of the model around the flow.
    :ivar terms: what training minimises besides the negative log-likelihood, see
        :func:`~pyro_scnf.terms.make_terms`.
    :ivar int initial_rows: how many rows set data-dependent parameters: labelled rows first, because priors
        learn from their labels, then others in the order of the data. At most half of them are labelled if a
        class has no label, because it may start at unlabelled rows. 0 for all rows.
    :ivar str split: how labels are chosen, one of :data:`~pyro_scnf.datasets.SPLITS`.
    :ivar int neighbours: number of nearest rows to link to each row, if a term uses pairs.
    :ivar int held_out: unlabelled rows to hold out for validation; with 0 the last weights are kept.
    :ivar int draws: number of dequantisations of every test row.
    :ivar prior: the prior of :meth:`make_model`, if it is given none.
    :ivar features: what the neighbours are nearest in, see :func:`~pyro_scnf.datasets.link_neighbours`.
    :ivar graph: the graph that gives evidence about the labels of unlabelled rows; ``None`` for no evidence.
    :ivar without_graph: settings by name that :meth:`with_graph` puts in place of these if there is no graph.
    :ivar str why: in words, what was chosen and why, if :func:`recommended` made the preset.
    """

    flow: MakeFlow
    augment: Augment
    optimisation: Optimisation
    steps: int
    batch_size: int
    labelled_batch_size: int | None = None
    validate_every: int = 50
    model: ModelOptions = ModelOptions()
    terms: Terms = ()
    initial_rows: int = 0
    split: Literal["balanced", "stratified"] = "balanced"
    neighbours: int = 5
    held_out: int = 0
    draws: int = 1
    prior: PriorSpec = "flow"
    features: str | Features | None = None
    graph: GraphOptions | None = None
    without_graph: Mapping[str, Any] = field(default_factory=dict, hash=False)
    why: str = ""

    @property
    def uses_pairs(self) -> bool:
        """Whether a term uses pairs of neighbours, so that the data need links."""
        return "pairs" in needs_of(make_terms(self.terms))

    def with_graph(self, features: str | Features | None) -> Preset:
        """This preset with evidence from the graph of other features, or without evidence.

        :param features: see :class:`GraphOptions`. Without any, a preset that had a graph takes the settings
            ``without_graph``.
        """
        if features is None:
            return self if self.graph is None else replace(self, graph=None, **self.without_graph)
        graph = GraphOptions(features) if self.graph is None else replace(self.graph, features=features)
        return replace(self, graph=graph)

    def prepare(self, data: SemiSupervisedData, seed: int = 0) -> SemiSupervisedData:
        """``data`` with the held-out rows, the links and the evidence that the preset trains with.

        What the data have already stays as it is.

        :param int seed: seed of the choice of held-out rows.
        """
        check_kinds(data=(data, SemiSupervisedData))
        if self.held_out and data.x_val is None:
            data = data.hold_out(self.held_out, seed)
        if self.uses_pairs and data.neighbours is None:
            data = link_neighbours(data, self.neighbours, self.features)
        if self.graph is not None and data.label_log_prior is None:
            data = replace(data, label_log_prior=self.graph.evidence(data).log_probs)
        return data

    def make_model(
        self,
        data: SemiSupervisedData,
        prior: PriorSpec | None = None,
        *,
        latent_dim: int | None = None,
    ) -> SemiSupervisedModel:
        """A model for ``data``, initialised from them.

        :param prior: :math:`p(z_f \\mid y)`, see :func:`~pyro_scnf.make_prior`; by default that of the
            preset. ``"flow"`` is the preset's own conditional flow; with options (``"flow:steps=6"``) it is
            one with these options alone.
        :param latent_dim: number of components of :math:`z_f`; by default that of the preset.
        """
        check_kinds(data=(data, SemiSupervisedData))
        options, probs = self.model, self.model.class_probs
        model = SemiSupervisedModel(
            self.flow(self.prior if prior is None else prior, data.num_classes, latent_dim),
            ClassProbs.from_labels(data.y, data.num_classes) if probs == "empirical" else probs,
            num_labelled=len(data.labelled[0]) if options.scaled else None,
            num_unlabelled=(len(data.unlabelled) or None) if options.scaled else None,
            labelled_weight=options.labelled_weight,
            balanced_labels=options.balanced_labels,
        )
        rows = self._rows_to_initialize(data)
        x = model.flow.check_data(self.augment.prepare(data.x[rows]), "data.x", "make_model")
        model.initialize(x, data.y[rows])
        return model

    def _rows_to_initialize(self, data: SemiSupervisedData) -> Tensor:
        """The numbers of ``initial_rows`` rows. If there are more labelled ones, each class has its share."""
        size = self.initial_rows or len(data.x)
        labelled, others = (rows.nonzero()[:, 0] for rows in (data.y != UNLABELLED, data.y == UNLABELLED))
        without_label = len(data.y[labelled].unique()) < data.num_classes
        most = size - min(size // 2, len(others)) if without_label else size
        if len(labelled) > most:
            labelled = labelled[data.y[labelled].argsort(stable=True)]
            labelled = labelled[torch.arange(most) * len(labelled) // most]
        return torch.cat([labelled, others[: size - len(labelled)]]).sort().values

    def fit(
        self, model: SemiSupervisedModel, data: SemiSupervisedData, **options: Unpack[FitOptions]
    ) -> FitResult:
        """Train ``model`` with the settings of the preset (extra ``train``).

        :param options: options of :func:`pyro_scnf.training.fit`. They override those of the preset. If
            every row is labelled, ``batch_size`` overrides ``labelled_batch_size`` of the preset too.
        """
        from pyro_scnf.training import fit

        own: FitOptions = {
            "terms": self.terms,
            "augment": self.augment,
            "optimisation": self.optimisation,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "labelled_batch_size": self.labelled_batch_size,
            "validate_every": self.validate_every,
        }
        check_kinds(data=(data, SemiSupervisedData))
        if "batch_size" in options and not bool((data.y == UNLABELLED).any()):
            own["labelled_batch_size"] = None  # otherwise it would count, and not what the user gave
        chosen: FitOptions = {**own, **options}
        return fit(model, data, **chosen)
