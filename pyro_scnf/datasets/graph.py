"""Graphs of nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._shapes import in_double
from pyro_scnf.datasets.convert import as_rows
from pyro_scnf.datasets.distances import nearest_rows
from pyro_scnf.datasets.image_features import Features, features_of
from pyro_scnf.datasets.neighbours import checked_rows
from pyro_scnf.datasets.projection import Projection, principal_components

__all__ = ["NeighbourGraph", "neighbour_graph"]

LOCAL = 7
"""The neighbour whose distance is the length scale of a row, as in Zelnik-Manor and Perona (2004)."""


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """The k nearest neighbours of N rows, as :func:`neighbour_graph` makes it.

    :ivar Tensor rows: features of the rows, ``(N, D)``, or their principal components.
    :ivar Tensor neighbours: row numbers ``(N, k)``, the nearest first.
    :ivar Tensor distances: ``(N, k)``.
    :ivar features: what distances are measured in, see :func:`~pyro_scnf.datasets.nearest_neighbours`.
    :ivar projection: the principal components of the features, if distances are measured in these.
    :ivar torch.Size event_shape: the shape of a row before its features were computed.
    """

    rows: Tensor
    neighbours: Tensor
    distances: Tensor
    features: str | Features | None
    projection: Projection | None
    event_shape: torch.Size

    @property
    def scales(self) -> Tensor:
        """The length scale of every row ``(N,)``: the distance to its 7th neighbour, or to its last one.

        For a row with so many copies, it is the distance to the nearest other row. If that is no neighbour,
        it is the median scale of the graph.
        """
        return _scales(self.distances, self._typical)

    @property
    def _typical(self) -> Tensor:
        """The median scale of rows that have one; 1 if there are none."""
        own = _scales(self.distances, self.distances.new_zeros(()))
        return own[own > 0].median() if bool((own > 0).any()) else own.new_ones(())

    def weights(self) -> Any:
        r"""The weights of links, a symmetric SciPy ``csr_array`` of shape ``(N, N)``.

        Two rows are linked if one is a neighbour of the other, with the weight
        :math:`\exp(-d^2 / (s s'))`, where d is their distance and s, s' are their :attr:`scales`.
        """
        (n, k), scales = self.neighbours.shape, self.scales
        values = _link(self.distances, scales[:, None], scales[self.neighbours])
        parts = values.flatten().cpu().numpy(), self.neighbours.flatten().cpu().numpy()
        one_way = require("scipy.sparse", "datasets").csr_array(
            (*parts, np.arange(0, n * k + 1, k)), shape=(n, n)
        )
        return one_way.maximum(one_way.T).tocsr()

    def links(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the graph that are nearest to other rows of data, and the weights of links to them.

        :param x: ``(M, *event_shape)``.
        :return: row numbers ``(M, k)``, the nearest first, and weights ``(M, k)``.
        :raises ValueError: for NaN or infinity, or rows of another shape.
        """
        x = as_rows(x, "x", "links")
        if x.shape[1:] != self.event_shape:
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(
                f"links: x has shape {tuple(x.shape)}, expected (M, {expected}), rows like those of the graph"
            )
        queries = _compared(features_of(x, self.features, "links"), self.projection)
        near, distances = nearest_rows(
            self.rows, self.neighbours.shape[1], queries=queries.to(self.rows.device)
        )
        return near, _link(distances, _scales(distances, self._typical)[:, None], self.scales[near])


def _compared(features: Tensor, projection: Projection | None) -> Tensor:
    """What distances are measured in, in double precision."""
    return in_double(features) if projection is None else projection.of(features)


def _scales(distances: Tensor, typical: Tensor) -> Tensor:
    chosen = distances[:, min(LOCAL, distances.shape[1]) - 1]
    other = torch.where(distances > 0, distances, torch.inf).amin(1)
    scales = torch.where(chosen > 0, chosen, other)
    return torch.where(scales.isfinite(), scales, typical)


def _link(distances: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Weights of links. None is 0, which would cut a far row off from its neighbours."""
    return (-(distances / own) * (distances / others)).exp().clamp(min=1e-30)


def neighbour_graph(
    x: Tensor,
    k: int = 10,
    features: str | Features | None = None,
    components: int | None = None,
    exact: bool | None = None,
) -> NeighbourGraph:
    """The graph of the ``k`` nearest neighbours of every row.

    :meth:`NeighbourGraph.links` compares other rows with all rows of the graph, up to 2.5 billion pairs. Of
    more pairs, a search looks at a part, whatever ``exact`` was.

    :param x: ``(N, *event_shape)``; an array or a data frame is converted.
    :param int k: number of neighbours. A row is not its own neighbour.
    :param features: what distances are measured in, see :func:`~pyro_scnf.datasets.nearest_neighbours`.
    :param components: number of principal components of the features to measure distances in. Fewer numbers
        are compared faster, and leave out what tells rows apart least. By default all features count.
    :param exact: whether to compare all pairs of rows, see :func:`~pyro_scnf.datasets.nearest_neighbours`.
    :raises ValueError: as :func:`~pyro_scnf.datasets.nearest_neighbours` does, and for more components than
        there are rows or features.
    :raises ImportError: without usearch, if not all pairs are compared.
    """
    x = checked_rows(x, k, exact, "neighbour_graph")
    rows = features_of(x, features, "neighbour_graph")
    projection = None if components is None else principal_components(rows, components)
    rows = _compared(rows, projection)
    return NeighbourGraph(rows, *nearest_rows(rows, int(k), exact=exact), features, projection, x.shape[1:])
