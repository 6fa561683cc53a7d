"""Principal components of features: fewer numbers, which nearest neighbours are found in faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import at_least_single, in_double

__all__ = ["Projection", "principal_components"]


@dataclass(frozen=True, eq=False)
class Projection:
    """The first principal components of features, as scikit-learn finds them in single precision.

    :ivar Tensor offset: the mean of the features, ``(D,)``.
    :ivar Tensor scale: their largest distance from it. Divided by it, features of any scale can be squared.
    :ivar pca: scikit-learn's ``PCA`` of what is left.
    """

    offset: Tensor
    scale: Tensor
    pca: Any

    def of(self, rows: Tensor) -> Tensor:
        """Components ``(M, components)`` of features ``(M, D)``, in double precision."""
        if not len(rows):
            return in_double(rows.new_zeros(0, self.pca.n_components_))
        found = torch.from_numpy(self.pca.transform(_scaled(rows, self.offset, self.scale)))
        return in_double(found.to(rows.device)) * in_double(self.scale)


def _scaled(rows: Tensor, offset: Tensor, scale: Tensor) -> Any:
    """The features in single precision, on the CPU."""
    return at_least_single(rows).sub(offset).div_(scale).float().cpu().numpy()


def principal_components(rows: Tensor, components: int) -> Projection:
    """The first principal components of the features ``(N, D)``.

    :raises ValueError: unless there are as many components as asked for.
    :raises ImportError: without scikit-learn.
    """
    components = check_whole("components", components, 1, min(rows.shape))
    rows = at_least_single(rows)
    offset = rows.mean(0, dtype=in_double(rows[:0]).dtype).to(rows.dtype)
    largest = torch.maximum(rows.amax(0) - offset, offset - rows.amin(0)).max()
    scale = torch.where(largest > 0, largest, 1)
    pca = require("sklearn.decomposition", "datasets").PCA(components, svd_solver="covariance_eigh")
    return Projection(offset, scale, pca.fit(_scaled(rows, offset, scale)))
