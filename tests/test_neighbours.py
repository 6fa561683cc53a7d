"""Nearest rows are those of exact distances, whatever their offset and scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_scnf.datasets import distances, link_neighbours, nearest_neighbours, neighbour_graph, toy

ROWS = 120


def made(kind: str) -> Tensor:
    """Rows that make distances hard to compute by products."""
    base = torch.randn(ROWS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    half = (torch.arange(ROWS) < ROWS // 2)[:, None]
    if kind == "an offset":
        return base + 1e8
    if kind == "an offset in single precision":
        return base.float() + 1e4
    if kind == "large":
        return base * 1e160
    if kind == "small":
        return base * 1e-200
    if kind == "clusters":
        return torch.where(half, base, base + 1e7)
    if kind == "clusters farther than double precision":
        return torch.where(half, base, base + 1e10)
    if kind == "an outlier":
        return torch.cat([torch.full((1, 5), 1e9), base[1:]])
    if kind == "a column of another unit":
        return torch.cat([base[:, :4], 1e9 + base[:, 4:]], 1)
    if kind == "copies":
        return base[:8].repeat(ROWS // 8, 1)
    if kind == "binary":
        return (base > 0).double()
    if kind == "constant":
        return torch.ones(ROWS, 5)
    if kind == "bytes":
        return torch.randint(256, (ROWS, 5), dtype=torch.uint8)
    return base.to(getattr(torch, kind))


KINDS = (
    "float64",
    "float32",
    "bfloat16",
    "an offset",
    "an offset in single precision",
    "large",
    "small",
    "clusters",
    "clusters farther than double precision",
    "an outlier",
    "a column of another unit",
    "copies",
    "binary",
    "constant",
    "bytes",
)


def distances_by_differences(x: Tensor) -> Tensor:
    x = x.double() / x.double().abs().max()
    found = torch.stack([(x - row).square().sum(-1) for row in x])
    return found.fill_diagonal_(torch.inf)


@pytest.mark.parametrize("k", [1, 5, ROWS - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_those_of_exact_distances(kind, k):
    x = made(kind)
    found = nearest_neighbours(x, k, chunk=50)
    exact = distances_by_differences(x)
    assert found.shape == (ROWS, k)
    assert all(len(set(row)) == k for row in found.tolist())
    assert (found != torch.arange(ROWS)[:, None]).all()
    torch.testing.assert_close(exact.gather(1, found), exact.sort(1).values[:, :k], rtol=1e-12, atol=0)


def test_products_of_low_precision_are_not_trusted():
    """A user may let PyTorch round products in single precision to 8 bits."""
    x = made("float32")
    expected = nearest_neighbours(x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert distances._epsilon(x) == 2.0**-8
        assert torch.equal(nearest_neighbours(x), expected)
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_neighbours(x), expected)


def test_products_in_single_precision_suffice_for_plain_data(monkeypatch):
    """Otherwise the search would take several times as long."""
    x, tables = torch.randn(500, 200), []
    original = distances._by_products

    def spied(table, *arguments):
        tables.append(table.dtype)
        return original(table, *arguments)

    monkeypatch.setattr(distances, "_by_products", spied)
    nearest_neighbours(x, chunk=500)
    assert tables == [torch.float32]


@pytest.mark.parametrize("chunk", [1, 7, ROWS, 10 * ROWS, None])
def test_neighbours_do_not_depend_on_the_chunk(chunk):
    x = made("float32")
    assert torch.equal(nearest_neighbours(x, chunk=chunk), nearest_neighbours(x, chunk=50))


@pytest.mark.parametrize("exact", [True, False])
def test_two_rows_are_neighbours(exact):
    assert nearest_neighbours(torch.zeros(2, 3), 1, exact=exact).tolist() == [[1], [0]]


# -- a search in place of all pairs ----------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 5, ROWS - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_finds_nearly_all_neighbours(kind, k):
    x = made(kind)
    found = nearest_neighbours(x, k, exact=False)
    distances = distances_by_differences(x)
    assert all(len(set(row)) == k for row in found.tolist())
    assert (found != torch.arange(ROWS)[:, None]).all()
    own, best = distances.gather(1, found), distances.sort(1).values[:, :k]
    assert (own[:, 1:] >= own[:, :-1] * (1 - 1e-12)).all()
    assert (own <= best * (1 + 1e-9)).double().mean() > 0.97


def test_a_search_of_many_rows():
    """Rows in tight groups, which a search may fail to leave. The same rows give the same neighbours."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(30, 1, 12, generator=generator) + 0.02 * torch.randn(
        30, 100, 12, generator=generator
    )
    x = groups.flatten(0, 1)[torch.randperm(3000, generator=generator)]
    exact, found = nearest_neighbours(x, 10, exact=True), nearest_neighbours(x, 10, exact=False)
    assert (found[:, :, None] == exact[:, None]).any(-1).double().mean() > 0.98
    assert torch.equal(nearest_neighbours(x, 10, exact=False), found)


def test_more_than_a_number_of_pairs_are_searched(monkeypatch):
    """By default, and only then. Rows that the search did not find are compared with all."""
    sought = []

    def nothing(rows, count, queries=None):
        sought.append(len(rows if queries is None else queries))
        return torch.full((sought[-1], count), -1)

    monkeypatch.setattr(distances, "probably_near", nothing)
    monkeypatch.setattr(distances, "PAIRS", 40**2)
    x = made("float64")
    expected = nearest_neighbours(x, exact=True)
    assert torch.equal(nearest_neighbours(x[:40]), nearest_neighbours(x[:40], exact=True))
    assert torch.equal(nearest_neighbours(x, chunk=50), expected)
    assert sought == []
    assert torch.equal(nearest_neighbours(x), expected)
    graph = neighbour_graph(x, 5)
    graph.links(x[:13])
    assert sought == [ROWS, ROWS]
    near, weights = graph.links(x[:14])
    assert sought == [ROWS, ROWS, 14]
    assert torch.equal(near[:, 0], torch.arange(14))
    assert (weights[:, 0] == 1).all()


def test_links_that_a_search_finds(monkeypatch):
    x = made("float64")
    graph = neighbour_graph(x[:100], 5)
    expected = graph.links(x[100:])
    monkeypatch.setattr(distances, "PAIRS", 1)
    for got, exact in zip(graph.links(x[100:]), expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=0)


# -- errors ----------------------------------------------------------------------------------------


REFUSED = {
    "k": (lambda: nearest_neighbours(torch.zeros(4, 2), 4), "k=4: there are 4 rows, so at most 3 neighbours"),
    "one row": (lambda: nearest_neighbours(torch.zeros(1, 2), 1), "k=1: there are 1 rows, so at most 0"),
    "no row": (lambda: nearest_neighbours(torch.zeros(0, 2), 1), "k=1: there are 0 rows, so at most 0"),
    "k=0": (lambda: nearest_neighbours(torch.zeros(4, 2), 0), "k=0: expected at least 1"),
    "half": (lambda: nearest_neighbours(torch.zeros(4, 2), 1.5), "k=1.5: expected a whole number"),
    "chunk": (lambda: nearest_neighbours(torch.zeros(4, 2), 1, chunk=0), "chunk=0: expected at least 1"),
    "exact": (lambda: nearest_neighbours(torch.zeros(4, 2), 1, exact=2), "exact=2: expected True or False"),
    "exact, graph": (
        lambda: neighbour_graph(torch.zeros(4, 2), 1, exact=2),
        "exact=2: expected True or False",
    ),
    "a search in chunks": (
        lambda: nearest_neighbours(torch.zeros(4, 2), 1, chunk=2, exact=False),
        "chunk=2: it would have no effect, because exact=False",
    ),
    "vector": (lambda: nearest_neighbours(torch.zeros(4), 1), r"x has shape \(4,\), expected a table"),
    "NaN": (lambda: nearest_neighbours(torch.full((4, 2), torch.nan), 1), "x holds 8 NaN"),
    "word": (
        lambda: nearest_neighbours(torch.zeros(4, 2), 1, "pixel"),
        "features='pixel': expected one of 'pixels', 'deskew', 'hog', or a function of x",
    ),
    "rows of features": (
        lambda: nearest_neighbours(torch.zeros(4, 2), 1, lambda x: x[1:]),
        "features: gave 3 rows for 4 rows of x",
    ),
    "NaN of features": (
        lambda: nearest_neighbours(torch.zeros(4, 2), 1, lambda x: x / 0),
        r"features\(x\) holds 8 NaN",
    ),
    "rows to link": (
        lambda: link_neighbours(torch.zeros(4, 2), 1),
        "data is of type Tensor, expected a Semi",
    ),
    "links": (lambda: link_neighbours(toy("moons", num_train=20), 20), "k=20: there are 20 rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_neighbours_refuse(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
