"""The class probabilities p(y)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_scnf._checks import check_labels, validate_args, validating
from pyro_scnf._copies import Portable, PortableModule
from pyro_scnf._numbers import check_number, check_whole, refuse_unused
from pyro_scnf._processes import SumsOverSteps, averaged_over_processes
from pyro_scnf._shapes import in_double
from pyro_scnf._state import refuse_stray
from pyro_scnf._warn import warn

__all__ = [
    "Categorical",
    "ClassProbs",
    "ClassProbsWord",
    "categorical",
    "check_class_probs",
    "log_class_probs",
]


ClassProbsWord = Literal["uniform", "learnable", "em"]
"""How class probabilities are trained, by name."""


class Categorical(Portable, dist.Categorical):
    """Pyro's ``Categorical``, which can be copied at any time."""


class ClassProbs(SumsOverSteps, PortableModule):
    """Class probabilities :math:`p(y)`: uniform, given, or trained.

    :param int num_classes: number of labels K.
    :param probs: ``"uniform"``; ``"learnable"``, parameters that the optimiser trains; ``"em"``, which
        :meth:`update` sets to the frequencies of the label posteriors; or a tensor ``(K,)`` of class weights:
        probabilities, or counts. Weights are finite, at least 0 and not all 0. They are divided by their sum.
        A class of weight 0 has the probability 0. Trained ones start uniform.
    :param float em_decay: what share of the counts of EM one step keeps, 0.99 by default.
    :raises ValueError: for another word, a list or an array, weights of the wrong shape or sign, fewer than
        one class, or ``em_decay`` without ``"em"``.

    >>> ClassProbs(2, torch.tensor([1.0, 3.0]))().probs
    tensor([0.2500, 0.7500])
    """

    sums = ("counts",)

    logits: Tensor
    counts: Tensor
    begun: Tensor

    def __init__(
        self, num_classes: int, probs: ClassProbsWord | Tensor = "uniform", *, em_decay: float | None = None
    ) -> None:
        super().__init__()
        self.num_classes = check_whole("num_classes", num_classes, 1)
        check_class_probs(probs, num_classes, "probs")
        self.fitted_by_em = isinstance(probs, str) and probs == "em"
        if not self.fitted_by_em:
            refuse_unused("probs is not 'em'", em_decay=em_decay)
        self.em_decay = 0.99 if em_decay is None else check_number("em_decay", em_decay, at_least=0, below=1)
        if isinstance(probs, Tensor):
            self.register_buffer("logits", _log_normalised(probs))
        elif probs == "learnable":
            self.logits = nn.Parameter(torch.zeros(num_classes))
        else:
            self.register_buffer("logits", torch.zeros(num_classes))
        if self.fitted_by_em:
            self.register_buffer("counts", torch.zeros(num_classes))
            self.register_buffer("begun", torch.tensor(False))

    @classmethod
    def from_labels(cls, y: Tensor, num_classes: int) -> ClassProbs:
        """The label frequencies of ``y``. Entries of -1 (unlabelled) are not counted.

        It warns if a class has no label, because its probability is then 0.

        :param y: labels ``0 .. num_classes - 1``, and -1 for an unknown one, of any shape.
        :raises ValueError: for labels out of range or of the wrong type, or without any known label.
        """
        owner = "ClassProbs.from_labels"
        check_whole("num_classes", num_classes, 1)
        y = check_labels(y, num_classes, "y", owner, unlabelled=True)
        counts = torch.bincount(y[y >= 0], minlength=num_classes)
        if not counts.any():
            raise ValueError(f"{owner}: y holds no label, expected at least one of 0..{num_classes - 1}")
        missing = (counts == 0).nonzero()[:, 0].tolist()
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            warn(
                f"{owner}: y holds no label of class {shown}, so its probability is 0 and no row is ever "
                "given to it. Give one label of each class or more, or use 'uniform', 'learnable' or 'em'"
            )
        return cls(num_classes, counts)

    @property
    def learnable(self) -> bool:
        """Whether the probabilities are parameters."""
        return isinstance(self.logits, nn.Parameter)

    @property
    def options(self) -> dict[str, str | float]:
        """The arguments that make class probabilities that are trained in the same way."""
        if self.fitted_by_em:
            return {"probs": "em", "em_decay": self.em_decay}
        return {"probs": "learnable" if self.learnable else "uniform"}

    @torch.no_grad()
    def accumulate(self, weights: Tensor) -> None:
        """Add rows to the counts of the E-step. Nothing else changes until :meth:`update`.

        :param weights: weight of each row times its label posterior, ``(B, K)``.
        """
        self.counts.add_(averaged_over_processes(in_double(weights).sum(0)))

    @torch.no_grad()
    def update(self) -> None:
        """A step of stepwise EM: :meth:`maximise`, and then forget a share ``1 - em_decay`` of the counts.

        In the first step, the present probabilities get the weight of an endless run of earlier steps
        whose rows all agreed with them. Without ``"em"``, and without counts, nothing changes.
        """
        if not self.fitted_by_em or not bool(self.counts.sum() > 0):
            return
        if not bool(self.begun):
            earlier = self.em_decay / (1 - self.em_decay) * self.counts.sum()
            self.counts.add_(earlier * self.log_probs.exp())
            self.begun.fill_(True)
        self.maximise()
        self.counts.mul_(self.em_decay)

    @torch.no_grad()
    def maximise(self) -> None:
        """The M-step: set trained probabilities to the frequencies of the counts.

        A class without rows keeps a probability of a millionth, so that it can win some back.
        """
        if bool(self.counts.sum() > 0):
            self.logits.copy_((self.counts / self.counts.sum()).clamp(min=1e-6).log().log_softmax(-1))

    def restart(self) -> None:
        """Forget all counts of the E-step."""
        if self.fitted_by_em:
            self.counts.zero_()
            self.begun.fill_(False)

    @property
    def log_probs(self) -> Tensor:
        r""":math:`\log p(y)`, normalised, ``(K,)``, in nats.

        :raises ValueError: if the logits are a ``PyroSample`` that is read outside of a call.
        """
        refuse_stray(self)
        return self.logits.log_softmax(-1)

    def forward(self) -> Categorical:
        """The ``Categorical`` distribution of one label."""
        return Categorical(logits=self.logits)


def check_class_probs(probs: object, num_classes: int, name: str) -> None:
    """Raise unless ``probs`` is what :class:`ClassProbs` takes.

    :param name: what the user calls it.
    """
    expected = f"expected 'uniform', 'learnable', 'em' or a tensor of {num_classes} class weights"
    if isinstance(probs, str):
        if probs not in get_args(ClassProbsWord):
            raise ValueError(f"{name}={probs!r}: {expected}")
        return
    if not isinstance(probs, Tensor):
        raise ValueError(f"{name} is a {type(probs).__name__}: {expected}; give torch.as_tensor({name})")
    if probs.shape != (num_classes,):
        raise ValueError(f"{name} has shape {tuple(probs.shape)}, expected ({num_classes},)")
    if probs.requires_grad:
        raise ValueError(
            f"{name} requires a gradient, and weights are constants; give 'learnable', or {name}.detach()"
        )
    if probs.dtype == torch.bool or probs.is_complex() or not _are_weights(probs):
        raise ValueError(
            f"{name}: expected {num_classes} finite, non-negative weights with a positive sum, got "
            f"{probs.tolist()}"
        )


def _are_weights(weights: Tensor) -> bool:
    return bool((weights >= 0).all() & weights.isfinite().all() & (weights > 0).any(-1).all())


def _log_normalised(weights: Tensor) -> Tensor:
    r""":math:`\log w_k / \sum_l w_l`, whatever the size of the weights."""
    wide = in_double(weights)
    wide = wide / wide.amax(-1, keepdim=True)
    dtype = weights.dtype if weights.is_floating_point() else torch.get_default_dtype()
    return (wide / wide.sum(-1, keepdim=True)).log().to(dtype)


def log_class_probs(class_probs: ClassProbs | Tensor | None, num_classes: int) -> Tensor | float:
    r""":math:`\log p(y)`, normalised, from any form that the argument ``class_probs`` may have.

    :param class_probs: a :class:`ClassProbs`, a tensor of non-negative class weights ``(*batch, K)``, which
        are divided by their sum, or ``None`` for the uniform distribution. A weight of 0 gets no gradient.
    :return: ``(K,)`` or ``(*batch, K)`` in nats. For the uniform distribution, the one number
        :math:`-\log K`.
    :raises ValueError: for a word, a list or an array, the wrong number of classes, or for negative or
        non-finite weights.
    """
    if class_probs is None:
        return -math.log(num_classes)
    if isinstance(class_probs, ClassProbs):
        if class_probs.num_classes != num_classes:
            raise ValueError(
                f"class_probs: {class_probs.num_classes} classes, but the flow has {num_classes}"
            )
        return class_probs.log_probs
    if not isinstance(class_probs, Tensor):
        raise ValueError(
            f"class_probs is a {type(class_probs).__name__}: expected a ClassProbs, a tensor of class "
            "weights or None; give torch.as_tensor(class_probs)"
        )
    if class_probs.shape[-1:] != (num_classes,):
        raise ValueError(
            f"class_probs has shape {tuple(class_probs.shape)}, expected (*batch, {num_classes})"
        )
    if validating(class_probs) and not _are_weights(class_probs):
        raise ValueError(
            "class_probs holds negative or infinite weights, or only zeros; expected class probabilities "
            "(for unnormalised logarithms, give logits.softmax(-1))"
        )
    # The derivative of log 0 is infinite, and would make the gradients of all weights NaN.
    positive = class_probs > 0
    logs = torch.where(positive, class_probs, 1.0).log()
    return logs.masked_fill(~positive, -math.inf).log_softmax(-1)


def categorical(logits: Tensor) -> Categorical:
    """The distribution of labels with normalised log-probabilities ``(*batch, K)``."""
    return Categorical(logits=logits, validate_args=validate_args(logits))
