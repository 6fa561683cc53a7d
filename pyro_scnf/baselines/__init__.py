"""Methods of other authors, to compare with: semi-supervised classifiers that are no normalizing flows.

Every comparator is one function with the signature of :class:`Comparator`. :data:`COMPARATORS` lists them by
name. scikit-learn does most of the work (extra ``datasets``).

>>> from pyro_scnf.datasets import toy
>>> data = toy("moons")
>>> probs = logistic_regression(data.x, data.y, data.x_test, num_classes=2)
>>> probs.shape, probs.dtype
(torch.Size([500, 2]), torch.float64)
"""

from pyro_scnf.baselines.autoencoders import m1, m1m2, m2
from pyro_scnf.baselines.comparator import Comparator
from pyro_scnf.baselines.graphs import label_spreading, label_spreading_rbf, poisson_learning
from pyro_scnf.baselines.kingma2014 import M1, M2
from pyro_scnf.baselines.latent import latent_classifier
from pyro_scnf.baselines.mixture import gaussian_mixture
from pyro_scnf.baselines.networks import dropout_net, pi_model
from pyro_scnf.baselines.pseudo_labels import self_training
from pyro_scnf.baselines.scaling import Scale
from pyro_scnf.baselines.stacked import M1M2
from pyro_scnf.baselines.supervised import (
    gradient_boosting,
    logistic_regression,
    nearest_neighbours,
    random_forest,
)
from pyro_scnf.baselines.table import COMPARATORS

__all__ = [
    "COMPARATORS",
    "M1",
    "M1M2",
    "M2",
    "Comparator",
    "Scale",
    "dropout_net",
    "gaussian_mixture",
    "gradient_boosting",
    "label_spreading",
    "label_spreading_rbf",
    "latent_classifier",
    "logistic_regression",
    "m1",
    "m1m2",
    "m2",
    "nearest_neighbours",
    "pi_model",
    "poisson_learning",
    "random_forest",
    "self_training",
]
