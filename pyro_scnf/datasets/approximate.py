"""Rows that are probably near, found without comparing all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scnf._extras import require

__all__ = ["probably_near"]


def probably_near(rows: Tensor, count: int, queries: Tensor | None = None) -> Tensor:
    """The numbers of ``count`` of ``rows`` that are near each query, ``(M, count)`` (extra ``datasets``).

    They come from a navigable small-world graph (HNSW), which links each row to near and to far ones. A
    search follows the links, and misses few of the nearest rows. A number is -1 where too few rows were
    found. The same rows give the same numbers.

    :param rows: ``(N, D)`` in double precision.
    :param queries: ``(M, D)``; ``rows`` by default, and then a row counts as near itself.

    Reference: Malkov and Yashunin, *Efficient and Robust Approximate Nearest Neighbor Search Using
    Hierarchical Navigable Small World Graphs*, 2018.
    """
    index = require("usearch.index", "datasets").Index(ndim=rows.shape[1], metric="l2sq", dtype="f64")
    # Several threads would add the rows in another order each time.
    index.add(torch.arange(len(rows)).numpy(), rows.cpu().numpy(), threads=1)
    sought = rows if queries is None else queries
    found = index.search(sought.cpu().numpy(), count, threads=torch.get_num_threads())
    numbers = torch.from_numpy(found.keys.astype("int64"))
    missing = torch.arange(count) >= torch.from_numpy(found.counts.astype("int64"))[:, None]
    return numbers.masked_fill(missing, -1).to(rows.device)
