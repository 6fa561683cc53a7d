"""Classifiers that learn from the labelled rows alone, from scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._numbers import check_whole
from pyro_scnf.baselines.comparator import Task, solve
from pyro_scnf.baselines.scaling import Scale, centred, check_scaling, scaled
from pyro_scnf.baselines.tuning import chosen, tuned

__all__ = [
    "BOOSTS",
    "Classifier",
    "boost",
    "boosting",
    "classified",
    "gradient_boosting",
    "logistic",
    "logistic_regression",
    "nearest_neighbours",
    "random_forest",
]

REPEATS = 3
"""How often the labelled rows are divided into parts, if there are few of them."""

NEIGHBOURS = 5, 1, 2, 3, 7, 10, 15, 20, 30, 50, 100
"""Numbers of neighbours that are tried."""

PENALTIES = 1.0, 0.3, 3.0, 0.1, 10.0, 0.03, 30.0, 0.01, 100.0, 0.003, 0.001, 1e-4
"""Values of scikit-learn's C, the inverse penalty, that are tried."""

LEAVES = 1, 2, 4
"""Least numbers of rows in a leaf of a forest that are tried."""

SEARCH_TREES = 100
"""Trees of a forest in cross-validation, at most."""

MANY = 2000
"""Labelled rows from which boosting ends by a validation set. With fewer, cross-validation ends it."""

MOST_ROUNDS = 1000
"""Trees of each class that boosting may add until then."""


class Classifier(Protocol):
    """What is used of a classifier of scikit-learn."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> object: ...

    def predict_proba(self, X: np.ndarray) -> np.ndarray: ...


def classified(classifier: Classifier, task: Task) -> Tensor:
    """Log-probabilities of the rows to classify, after the classifier has learned from the labelled rows."""
    x, y = task.labelled
    classifier.fit(x.numpy(), y.numpy())
    return torch.from_numpy(classifier.predict_proba(task.x_test.numpy())).log()


# -- nearest neighbours ----------------------------------------------------------------------------
def nearest_neighbours(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "standard",
) -> Tensor:
    """The shares of the classes among the nearest labelled rows, with scikit-learn.

    Cross-validation chooses the number of neighbours. One more neighbour counts, which belongs to all
    classes alike. Without it, a single neighbour would be certain. The other arguments are those of a
    :class:`Comparator`.

    :param scale: how columns are scaled, see :data:`Scale`.
    :raises ValueError: for an unknown word, and as :class:`Comparator` says.

    With a few hundred labels it takes seconds. With 70,000 labelled rows of 50 columns it takes a minute.

    Reference: Cover and Hart, *Nearest Neighbor Pattern Classification*, 1967.
    """
    check_scaling(scale)

    def fit(task: Task) -> Tensor:
        return tuned(scaled(task, scale), NEIGHBOURS, _vote, REPEATS)

    return solve("nearest_neighbours", fit, x, y, x_test, num_classes, seed)


def _vote(task: Task, count: int) -> Tensor:
    count = min(count, int(task.known.sum()))
    neighbours = require("sklearn.neighbors", "datasets").KNeighborsClassifier(count)
    votes = count * classified(neighbours, task).exp()
    return ((votes + 1 / task.num_classes) / (count + 1)).log()


# -- logistic regression ---------------------------------------------------------------------------
def logistic_regression(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    scale: Scale = "standard",
) -> Tensor:
    """Multinomial logistic regression with a squared penalty, with scikit-learn.

    Cross-validation chooses the weight of the penalty. The other arguments are those of a
    :class:`Comparator`.

    :param scale: how columns are scaled, see :data:`Scale`. ``"quantile"`` helps where columns have long
        tails or marks of missing values.
    :raises ValueError: for an unknown word, and as :class:`Comparator` says.

    With a few hundred labels it takes seconds. With 70,000 labelled rows of 50 columns it takes a minute.
    """
    check_scaling(scale)

    def fit(task: Task) -> Tensor:
        return tuned(scaled(task, scale), PENALTIES, _regress, REPEATS)

    return solve("logistic_regression", fit, x, y, x_test, num_classes, seed)


def _regress(task: Task, penalty: float) -> Tensor:
    return classified(logistic(penalty), task)


def logistic(penalty: float) -> Classifier:
    """A logistic regression with scikit-learn's C."""
    return require("sklearn.linear_model", "datasets").LogisticRegression(C=penalty, max_iter=10_000)


# -- trees -----------------------------------------------------------------------------------------
def random_forest(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    trees: int = 500,
) -> Tensor:
    """A random forest, with scikit-learn.

    Cross-validation chooses how many rows a leaf has at least. A split looks at the square root of the number
    of columns. The scale of columns makes no difference. The other arguments are those of a
    :class:`Comparator`.

    :param int trees: number of trees.
    :raises ValueError: for a number out of range, and as :class:`Comparator` says.

    With a few hundred labels it takes seconds. With 70,000 labelled rows of 50 columns it takes five minutes.

    Reference: Breiman, *Random Forests*, 2001.
    """
    trees = check_whole("trees", trees, 1)

    def fit(task: Task) -> Tensor:
        task = centred(task)
        choice = chosen(task, LEAVES, partial(_forest, trees=min(trees, SEARCH_TREES)), REPEATS)
        return choice.of(_forest(task, choice.setting, trees))

    return solve("random_forest", fit, x, y, x_test, num_classes, seed)


def _forest(task: Task, leaf: int, trees: int) -> Tensor:
    forest = require("sklearn.ensemble", "datasets").RandomForestClassifier
    return classified(forest(trees, min_samples_leaf=leaf, random_state=task.seed), task)


@dataclass(frozen=True)
class Boosts:
    """Settings of gradient boosting.

    :ivar float share: share of the columns that a split looks at.
    :ivar int rounds: trees of each class.
    :ivar int leaves: leaves of a tree, at most.
    """

    share: float
    rounds: int
    leaves: int


BOOSTS = tuple(
    Boosts(share, rounds, leaves)
    for share, (rounds, leaves) in product((0.1, 0.03, 0.3, 1.0), ((100, 4), (50, 4), (100, 31)))
)
"""Settings that are tried."""


def gradient_boosting(
    x: Tensor, y: Tensor, x_test: Tensor, *, num_classes: int | None = None, seed: int = 0
) -> Tensor:
    """Gradient boosting of trees, with scikit-learn's ``HistGradientBoostingClassifier``.

    Cross-validation chooses the size of the trees, their number, and how many columns a split looks at. A
    leaf has at least a twentieth of the labelled rows, or two of them, and 20 are enough. scikit-learn's
    default of 20 allows no split at all with 20 labels. With 2,000 labels and more, and two of each class,
    boosting stops when a validation set of labelled rows shows no more progress. The arguments are those of a
    :class:`Comparator`.

    With a few hundred labels of 50 columns it takes seconds, and of 400 columns two minutes. With 70,000
    labelled rows of 50 columns it takes two minutes.

    Reference: Friedman, *Greedy Function Approximation: a Gradient Boosting Machine*, 2001.
    """

    def fit(task: Task) -> Tensor:
        return tuned(task, BOOSTS, boost)

    return solve("gradient_boosting", fit, x, y, x_test, num_classes, seed)


def boost(task: Task, settings: Boosts) -> Tensor:
    """Log-probabilities by gradient boosting."""
    return classified(boosting(settings, task.labelled[1], task.seed), task)


def boosting(settings: Boosts, y: Tensor, seed: int) -> Classifier:
    """A boosting classifier for rows with these labels, 0 and above."""
    rows, counts = len(y), y.unique(return_counts=True)[1]
    # A tenth of the rows is a validation set with rows of each class.
    early = rows >= max(MANY, 10 * len(counts)) and int(counts.min()) > 1
    booster = require("sklearn.ensemble", "datasets").HistGradientBoostingClassifier
    return booster(
        max_features=settings.share,
        max_leaf_nodes=settings.leaves,
        min_samples_leaf=min(20, max(2, rows // 20)),
        max_iter=MOST_ROUNDS if early else settings.rounds,
        early_stopping=early,
        random_state=seed,
    )
