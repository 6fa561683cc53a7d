"""The nearest rows of a table, exact in double precision at the price of products in single precision.

In large tables not all pairs are compared. A search proposes near rows, and exact distances order them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scnf._shapes import in_double, no_autocast
from pyro_scnf.datasets.approximate import probably_near

__all__ = ["nearest_rows"]

NUMBERS = 2**25
"""Distances that are held at a time."""

SPARE = 5
"""Rows looked at beyond the k nearest, at least."""

GATHERED = 2**17
"""Numbers of candidates that are held at a time."""

PAIRS = 50_000**2
"""Pairs of rows that are compared by default. Of more pairs, a search looks at a part."""


@torch.no_grad()
def nearest_rows(
    rows: Tensor,
    k: int,
    chunk: int | None = None,
    queries: Tensor | None = None,
    exact: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """The numbers of the ``k`` of ``rows`` ``(N, D)`` that are nearest to each query, the nearest first.

    :param chunk: queries that are compared at a time; by default ``chunk * N`` is at most 32 million.
    :param queries: other rows ``(M, D)``. By default the queries are ``rows``, of which none is near itself.
    :param exact: whether to compare all pairs; by default up to :data:`PAIRS` of them, and with a ``chunk``.
    :return: the numbers and the distances in double precision, each ``(M, k)``.
    :raises ImportError: without usearch, if not all pairs are compared.
    """
    count, both = len(rows), in_double(rows)
    if queries is not None:
        both = torch.cat([both, in_double(queries)])
    table, scale = both - both[:count].mean(0), both.new_ones(())
    if table.numel():
        largest = table.abs().max()
        scale = torch.where(largest > 0, largest, scale)
        table = table / scale
    asked = torch.arange(0 if queries is None else count, len(table), device=rows.device)
    if exact is None:
        exact = chunk is not None or count * len(asked) <= PAIRS
    if exact:
        found, squared = _compared(table, asked, k, count, chunk or max(1, NUMBERS // count))
    else:
        found, squared = _searched(table, asked, k, count)
    return found, squared.sqrt() * scale


def _compared(exact: Tensor, asked: Tensor, k: int, rows: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Which of the first ``rows`` of a table are nearest to the rows ``asked``, and squared distances.

    Matrix products give distances quickly, but differences of large numbers: a few too many rows are taken
    as candidates, and differences of rows in double precision put these in order. If rounding may have hidden
    a nearer row, products in double precision are tried next, and then differences from all rows.
    """
    first = len(exact) - len(asked)
    found = torch.empty((len(asked), k), dtype=torch.long, device=exact.device)
    squared = exact.new_empty((len(asked), k))
    left = asked
    with no_autocast(exact.device.type):
        for table in (exact.float(), exact):
            if not len(left):
                break
            unsure = [left[:0]]
            squares = table.square().sum(1)
            for some in left.split(chunk):
                at = some - first
                found[at], squared[at], sure = _by_products(table, squares, exact, some, k, rows)
                unsure.append(some[~sure])
            left = torch.cat(unsure)
        for row in left:
            found[row - first], squared[row - first] = _from_all(exact, row, k, rows)
    return found, squared


def _searched(exact: Tensor, asked: Tensor, k: int, rows: int) -> tuple[Tensor, Tensor]:
    """The same from candidates that a search proposes. Their distances are exact."""
    first = len(exact) - len(asked)
    itself = int(not first)
    count = min(rows, k + itself + max(k // 2, SPARE))
    candidates = probably_near(exact[:rows], count, exact[rows:] if first else None)
    distances = _distances(exact, asked, candidates.clamp(min=0))
    unfit = (candidates < 0) | (candidates == asked[:, None])
    squared, places = distances.masked_fill(unfit, torch.inf).topk(k, largest=False)
    found = candidates.gather(1, places)
    for row in asked[~squared[:, -1].isfinite()]:
        found[row - first], squared[row - first] = _from_all(exact, row, k, rows)
    return found, squared


def _from_all(exact: Tensor, row: Tensor, k: int, rows: int) -> tuple[Tensor, Tensor]:
    """Which of the first ``rows`` are nearest to one row, by differences from all of them."""
    distances = (exact[:rows] - exact[row]).square().sum(1)
    distances[row : row + 1] = torch.inf  # itself, if it is one of the first
    nearest = distances.topk(k, largest=False)
    return nearest.indices, nearest.values


def _by_products(
    table: Tensor, squares: Tensor, exact: Tensor, some: Tensor, k: int, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the first ``rows`` are nearest to the rows ``some`` ``(B,)``.

    :return: their numbers and squared distances ``(B, k)``, and whether they are certain ``(B,)``.
    """
    inside = (some < rows).nonzero()[:, 0]
    others = rows - bool(len(inside))
    count = min(k + k // 4 + SPARE, others)
    # Half the squared distance, but for the square of the row itself, and negative.
    nearness = (table[some] @ table[:rows].T).sub_(0.5 * squares[:rows])
    nearness[inside, some[inside]] = -torch.inf
    best = nearness.topk(count)
    distances = _distances(exact, some, best.indices)
    nearest = distances.topk(k, largest=False)
    indices = best.indices.gather(1, nearest.indices)
    if count == others:
        return indices, nearest.values, torch.ones_like(some, dtype=torch.bool)
    # Rounding changes the squared distance of a row b from a row a by at most e (|a| + |b|)^2. If b is at
    # most twice as long as a, that is at most 9 e |a|^2; if it is longer, 9 e times the squared distance.
    farthest, g = nearest.values[:, -1], 9 * _epsilon(table) * (table.shape[1] + 8)
    own = in_double(squares[some])
    bound = own - 2 * in_double(best.values[:, -1])  # the least distance of a row that is no candidate
    least = torch.minimum(bound / (1 + g), bound - g * own)
    sure = (farthest <= least) | (g * own <= 1e-9 * farthest)
    # Squares far below the largest one, which is 1, underflow. Nothing is known of distances as small.
    kept = farthest > table.shape[1] * torch.finfo(table.dtype).tiny / torch.finfo(table.dtype).eps
    return indices, nearest.values, (sure & kept) | (farthest == 0)


def _distances(exact: Tensor, some: Tensor, candidates: Tensor) -> Tensor:
    """Squared distances ``(B, C)`` of the rows ``some`` from their ``candidates`` ``(B, C)``."""
    size = max(1, GATHERED // max(1, candidates.shape[1] * exact.shape[1]))
    pieces = zip(some.split(size), candidates.split(size), strict=True)
    return torch.cat([(exact[near] - exact[row][:, None]).square().sum(-1) for row, near in pieces])


def _epsilon(table: Tensor) -> float:
    """The rounding of a product. A user may allow PyTorch to round products in single precision coarsely."""
    coarse = table.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-8 if coarse else torch.finfo(table.dtype).eps
