"""Which examples look alike."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import check_at_least
from pyro_scnf.datasets.base import SemiSupervisedData

__all__ = ["link_neighbours", "nearest_neighbours"]


def nearest_neighbours(x: Tensor, k: int = 5, pool: int = 2, chunk: int = 2000) -> Tensor:
    """The ``k`` rows most like each row, by the cosine of the angle between them, ``(N, k)``, best first.

    :param x: ``(N, *event_shape)``, of any dtype.
    :param int k: how many, the row itself not counted.
    :param int pool: images are compared after averaging squares of so many pixels a side, which
        forgives small shifts; 1 leaves them as they are.
    :param int chunk: rows compared at a time; memory is ``chunk`` times N numbers.
    :raises ValueError: for ``k`` out of range.
    """
    check_at_least(1, k=k, pool=pool, chunk=chunk)
    if k >= len(x):
        raise ValueError(f"k={k}: there are {len(x)} rows, so at most {len(x) - 1} neighbours")
    features = x.float()
    if x.dim() == 4 and pool > 1:
        features = F.avg_pool2d(features, pool)
    features = F.normalize(features.flatten(1))
    found = x.new_empty((len(x), k), dtype=torch.long)
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        likeness = features[rows] @ features.T
        likeness[torch.arange(len(likeness)), torch.arange(start, start + len(likeness))] = -torch.inf
        found[rows] = likeness.topk(k).indices
    return found


def link_neighbours(data: SemiSupervisedData, k: int = 5, pool: int = 2) -> SemiSupervisedData:
    """``data`` with :func:`nearest_neighbours`, among all training rows, labelled or not.

    :func:`pyro_scnf.training.fit` then has every batch made of pairs of neighbours, which a model with
    an ``agreement_weight`` takes to share their label. No label is looked at.
    """
    return replace(data, neighbours=nearest_neighbours(data.x, k, pool))
