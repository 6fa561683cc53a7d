"""Self-training: a classifier learns from the labels that it is sure of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._numbers import check_word
from pyro_scnf.baselines.comparator import Task, solve
from pyro_scnf.baselines.scaling import Scale, check_scaling, scaled
from pyro_scnf.baselines.supervised import BOOSTS, Classifier, boost, boosting, classified, logistic
from pyro_scnf.baselines.tuning import chosen, tuned

__all__ = ["self_training"]

PENALTIES = 1.0, 0.1, 0.01, 10.0
THRESHOLDS = 0.9, 0.75, 0.97
"""Probabilities from which a label is believed, and values of scikit-learn's C, that are tried."""

SEARCHED = 2000, 2000
"""Labelled and unlabelled rows that take part in cross-validation, at most."""


def self_training(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    base: Literal["logistic", "boosting"] = "logistic",
    scale: Scale = "quantile",
) -> Tensor:
    """Self-training, with scikit-learn's ``SelfTrainingClassifier``.

    A classifier learns from the labelled rows and labels the others. The labels that it gives a high
    probability count as known from then on, and it learns again, up to ten times. Cross-validation chooses
    the probability and the settings of the classifier. The other arguments are those of a
    :class:`Comparator`.

    :param base: the classifier: that of :func:`logistic_regression` or of :func:`gradient_boosting`.
    :param scale: how columns are scaled, see :data:`Scale`.
    :raises ValueError: for an unknown word, and as :class:`Comparator` says.

    With 70,000 rows of 50 columns it takes a minute, and with 20,000 rows of 400 columns a few minutes.

    Reference: Yarowsky, *Unsupervised Word Sense Disambiguation Rivaling Supervised Methods*, 1995.
    """
    check_word("base", base, BASES)
    check_scaling(scale)

    def fit(task: Task) -> Tensor:
        return BASES[base](scaled(task, scale))

    return solve("self_training", fit, x, y, x_test, num_classes, seed)


def _with_logistic(task: Task) -> Tensor:
    def fit(task: Task, setting: tuple[float, float]) -> Tensor:
        threshold, penalty = setting
        return _trained(task, logistic(penalty), threshold)

    return tuned(task, tuple(product(THRESHOLDS, PENALTIES)), fit, limits=SEARCHED)


def _with_boosting(task: Task) -> Tensor:
    """Settings of boosting are chosen first, from the labelled rows alone, because this is faster."""
    settings = chosen(task, BOOSTS, boost).setting

    def fit(task: Task, threshold: float) -> Tensor:
        return _trained(task, boosting(settings, task.labelled[1], task.seed), threshold)

    return tuned(task, THRESHOLDS, fit, limits=SEARCHED)


BASES: dict[str, Callable[[Task], Tensor]] = {"logistic": _with_logistic, "boosting": _with_boosting}


def _trained(task: Task, base: Classifier, threshold: float) -> Tensor:
    """Log-probabilities of the rows to classify."""
    if bool(task.known.all()):
        return classified(base, task)
    classifier = require("sklearn.semi_supervised", "datasets").SelfTrainingClassifier(
        base, threshold=threshold
    )
    classifier.fit(task.x.numpy(), task.y.numpy())
    return torch.from_numpy(classifier.predict_proba(task.x_test.numpy())).log()
