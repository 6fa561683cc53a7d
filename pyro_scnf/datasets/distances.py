"""The nearest rows of a table, exact in double precision at the price of products in single precision."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scnf._shapes import in_double, no_autocast

__all__ = ["nearest_rows"]

SPARE = 5
"""Rows looked at beyond the k nearest, at least."""

GATHERED = 2**17
"""Numbers of candidates that are held at a time."""


@torch.no_grad()
def nearest_rows(rows: Tensor, k: int, chunk: int) -> Tensor:
    """The numbers of the ``k`` rows nearest to each of ``rows`` ``(N, D)``, the nearest first.

    Matrix products give distances quickly, but differences of large numbers: a few too many rows are taken
    as candidates, and differences of rows in double precision put these in order. If rounding may have hidden
    a nearer row, products in double precision are tried next, and then differences from all rows.

    :param int chunk: rows compared at a time.
    """
    exact = in_double(rows)
    exact = exact - exact.mean(0)
    if exact.numel():
        largest = exact.abs().max()
        exact = exact / torch.where(largest > 0, largest, 1)
    found = torch.empty((len(rows), k), dtype=torch.long, device=rows.device)
    left = torch.arange(len(rows), device=rows.device)
    with no_autocast(rows.device.type):
        for table in (exact.float(), exact):
            if not len(left):
                break
            unsure = [left[:0]]
            squares = table.square().sum(1)
            for some in left.split(chunk):
                found[some], sure = _by_products(table, squares, exact, some, k)
                unsure.append(some[~sure])
            left = torch.cat(unsure)
        for row in left:
            distances = (exact - exact[row]).square().sum(1)
            distances[row] = torch.inf
            found[row] = distances.topk(k, largest=False).indices
    return found


def _by_products(
    table: Tensor, squares: Tensor, exact: Tensor, some: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The nearest rows ``(B, k)`` of the rows ``some`` ``(B,)``, and whether these are certain ``(B,)``."""
    count = min(k + k // 4 + SPARE, len(table) - 1)
    # Half the squared distance, but for the square of the row itself, and negative.
    nearness = (table[some] @ table.T).sub_(0.5 * squares)
    nearness[torch.arange(len(some), device=some.device), some] = -torch.inf
    best = nearness.topk(count)
    distances = _distances(exact, some, best.indices)
    nearest = distances.topk(k, largest=False)
    indices = best.indices.gather(1, nearest.indices)
    if count == len(table) - 1:
        return indices, torch.ones_like(some, dtype=torch.bool)
    # Rounding changes the squared distance of a row b from a row a by at most e (|a| + |b|)^2. If b is at
    # most twice as long as a, that is at most 9 e |a|^2; if it is longer, 9 e times the squared distance.
    farthest, g = nearest.values[:, -1], 9 * _epsilon(table) * (table.shape[1] + 8)
    own = in_double(squares[some])
    others = own - 2 * in_double(best.values[:, -1])  # the least distance of a row that is no candidate
    least = torch.minimum(others / (1 + g), others - g * own)
    return indices, (farthest <= least) | (farthest == 0) | (g * own <= 1e-9 * farthest)


def _distances(exact: Tensor, some: Tensor, candidates: Tensor) -> Tensor:
    """Squared distances ``(B, C)`` of the rows ``some`` from their ``candidates`` ``(B, C)``."""
    size = max(1, GATHERED // max(1, candidates.shape[1] * exact.shape[1]))
    pieces = zip(some.split(size), candidates.split(size), strict=True)
    return torch.cat([(exact[near] - exact[row][:, None]).square().sum(-1) for row, near in pieces])


def _epsilon(table: Tensor) -> float:
    """The rounding of a product. A user may allow PyTorch to round products in single precision coarsely."""
    coarse = table.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-8 if coarse else torch.finfo(table.dtype).eps
