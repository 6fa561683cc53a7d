"""What a training term sees of a step, and the base class of training terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from torch import Tensor

from pyro_scnf._numbers import LARGEST, check_number

__all__ = ["Part", "Scored", "Step", "TrainingTerm"]

Part = Literal["y", "pairs", "labelled", "unlabelled", "view", "evidence", "energy"]
"""The fields of :class:`Step` that a term may need."""


@dataclass(frozen=True)
class Scored:
    r"""Rows of data, scored under every label:

    .. math:: \log p(x_n, y_n = k) = \text{common}_n + \text{given}_{nk} + \text{log\_prior}_{nk}

    :ivar Tensor common: what all labels share: log-determinant of the flow, :math:`\log p(z_{aux})` and the
        largest :math:`\log p(z_f \mid y = k)` over k, ``(B,)``, in nats.
    :ivar Tensor given: :math:`\log p(z_f \mid y = k)` less its largest value over k, ``(B, K)``, in nats.
    :ivar Tensor log_prior: :math:`\log p(y = k)`, ``(K,)``; with evidence about the labels of the rows,
        that evidence, ``(B, K)``.
    :ivar float scale: how many rows of the data set each of the rows stands for.
    :ivar log_class_probs: :math:`\log p(y = k)`, ``(K,)``, whatever the evidence; ``log_prior`` by default.
    """

    common: Tensor
    given: Tensor
    log_prior: Tensor
    scale: float = 1.0
    log_class_probs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.given)

    @cached_property
    def log_posterior(self) -> Tensor:
        r""":math:`\log p(y_n = k \mid x_n)`, with the evidence if there is any, ``(B, K)``."""
        # Leave out the common terms. They are thousands of nats, and cancel.
        return (self.given + self.log_prior).log_softmax(-1)

    @cached_property
    def log_posterior_without_evidence(self) -> Tensor:
        r""":math:`\log p(y_n = k \mid x_n)` by the flow and :math:`p(y)`, without evidence, ``(B, K)``."""
        if self.log_class_probs is None:
            return self.log_posterior
        return (self.given + self.log_class_probs).log_softmax(-1)


@dataclass(frozen=True)
class Step:
    """All that a term may look at. A field that no term needs is ``None``.

    :ivar y: labels of the labelled rows, ``(B,)``.
    :ivar float progress: share of training that is done, 0 to 1.
    :ivar pairs: pairs of rows that probably share their label, ``(P, 2)``. Rows are numbered from 0 through
        the labelled and then the unlabelled ones.
    :ivar labelled: the labelled rows.
    :ivar unlabelled: the unlabelled rows, ``B'`` of them.
    :ivar view: the unlabelled rows, perturbed at random once more.
    :ivar evidence: log-probabilities of the labels of the unlabelled rows, ``(B', K)``.
    :ivar energy: kinetic energy and Jacobian energy of the paths through continuous layers, ``(2,)``, summed
        over the data that the batch stands for.
    """

    y: Tensor | None = None
    progress: float = 0.0
    pairs: Tensor | None = None
    labelled: Scored | None = None
    unlabelled: Scored | None = None
    view: Scored | None = None
    evidence: Tensor | None = None
    energy: Tensor | None = None


@dataclass(frozen=True)
class TrainingTerm:
    r"""Something that training minimises besides the negative log-likelihood.

    A subclass says in ``needs`` what it looks at, and defines :meth:`nats`. Its weight goes from
    ``weight * start`` to ``weight * end`` along half a cosine, over the share ``until`` of training, and then
    stays. So a term can fall, or rise.

    :param float weight: weight of the term, 0 or more.
    :param float start: share of the weight that the term has at the beginning.
    :param float end: share of the weight that the term has at the end.
    :param float until: share of training after which the weight no longer changes, in (0, 1].
    :raises ValueError: for a number out of range.

    Subclasses with options of their own are frozen dataclasses of plain values. A run is resumed only with
    terms that have the same ``repr``.

    :cvar needs: the fields of :class:`Step` that :meth:`nats` reads. They are not ``None`` in its argument.
    :cvar detached: the fields in ``needs`` through which :meth:`nats` lets no gradient flow.
    :cvar per_process: whether :meth:`nats` is no sum over rows. Several processes that share a batch then
        minimise another number than one process with the whole batch.

    Training does not read ``detached`` and ``per_process``. They tell users and
    :func:`~pyro_scnf.testing.check_term` what to expect.
    """

    weight: float = 1.0
    start: float = 1.0
    end: float = 1.0
    until: float = 1.0

    needs: ClassVar[frozenset[Part]] = frozenset()
    detached: ClassVar[frozenset[Part]] = frozenset()
    per_process: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("weight", "start", "end"):
            self._set_number(name, at_least=0, at_most=LARGEST)
        self._set_number("until", above=0, at_most=1)

    def _set_number(self, name: str, **ranges: float) -> None:
        """Check the option ``name``, and make it a ``float``, whose ``repr`` is that of a plain number."""
        number = check_number(f"{type(self).__name__}: {name}", getattr(self, name), **ranges)
        object.__setattr__(self, name, number)

    @property
    def name(self) -> str:
        """Its name in logs and in ``loss.parts``."""
        return type(self).__name__.lower()

    def weight_at(self, progress: float) -> float:
        """The weight when the share ``progress`` of training is done."""
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress / self.until)))
        return self.weight * (self.end + (self.start - self.end) * left)

    def nats(self, step: Step) -> Tensor:
        """What is minimised, without the weight: a scalar, summed over the data that the batch stands for."""
        raise NotImplementedError(f"{type(self).__name__} does not define nats")

    def __call__(self, step: Step) -> Tensor:
        """:meth:`nats` times the weight at this step."""
        return self.weight_at(step.progress) * self.nats(step)
