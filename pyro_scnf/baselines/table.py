"""All comparators by name."""

from __future__ import annotations

from functools import partial

from pyro_scnf.baselines.autoencoders import m1, m1m2, m2
from pyro_scnf.baselines.comparator import Comparator
from pyro_scnf.baselines.graphs import label_spreading, label_spreading_rbf, poisson_learning
from pyro_scnf.baselines.latent import latent_classifier
from pyro_scnf.baselines.mixture import gaussian_mixture
from pyro_scnf.baselines.networks import dropout_net, pi_model
from pyro_scnf.baselines.pseudo_labels import self_training
from pyro_scnf.baselines.supervised import (
    gradient_boosting,
    logistic_regression,
    nearest_neighbours,
    random_forest,
)

__all__ = ["COMPARATORS"]

COMPARATORS: dict[str, Comparator] = {
    "nearest neighbours": nearest_neighbours,
    "nearest neighbours, quantiles": partial(nearest_neighbours, scale="quantile"),
    "logistic regression": logistic_regression,
    "logistic regression, quantiles": partial(logistic_regression, scale="quantile"),
    "random forest": random_forest,
    "gradient boosting": gradient_boosting,
    "dropout net": dropout_net,
    "Pi model": pi_model,
    "self-training, logistic": self_training,
    "self-training, boosting": partial(self_training, base="boosting"),
    "label spreading, dense": label_spreading_rbf,
    "label spreading, quantiles": label_spreading,
    "label spreading, as is": partial(label_spreading, scale="as-is", dims=None),
    "Poisson learning, quantiles": poisson_learning,
    "Poisson learning, as is": partial(poisson_learning, scale="as-is", dims=None),
    "Gaussian mixture": gaussian_mixture,
    "M1": m1,
    "M2": m2,
    "M1+M2": m1m2,
    "latent classifier": latent_classifier,
}
"""Comparators by name, with the options that suit tables (``"quantiles"``) or embeddings (``"as is"``).

A function whose own defaults suit both stands here once. Give each the arguments of :class:`Comparator`.
"""
