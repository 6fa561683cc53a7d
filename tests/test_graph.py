"""Graphs of nearest neighbours, and the evidence about labels that they give, against dense brute force."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyro_scnf.datasets import digits, label_evidence, neighbour_graph, pixel_features, toy
from pyro_scnf.presets import DIGITS

F64 = torch.float64
K = 3


def rows(count: int = 90, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of three groups that touch, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % K
    centers = 3 * torch.tensor([[0.0, 1.0], [1.0, -0.5], [-1.0, -0.5]], dtype=F64)
    return centers[y] + torch.randn(count, 2, generator=generator, dtype=F64), y


def few(y: Tensor, each: int = 4) -> Tensor:
    """``y`` with ``each`` labels of every class."""
    known = torch.cat([(y == k).nonzero()[:each, 0] for k in y.unique()])
    return torch.full_like(y, -1).index_copy(0, known, y[known])


def dense_weights(x: Tensor, k: int) -> Tensor:
    """The weights of the graph by their definition."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.clone().fill_diagonal_(torch.inf).argsort(1)[:, :k]
    scale = distance.gather(1, order)[:, min(7, k) - 1]
    linked = torch.zeros_like(distance, dtype=torch.bool).scatter(1, order, True)
    return torch.where(linked | linked.T, (-(distance**2) / (scale[:, None] * scale)).exp(), 0.0)


def dense_spreading(weights: Tensor, y: Tensor, alpha: float) -> Tensor:
    """F by its definition, up to a factor."""
    root = weights.sum(1).rsqrt()
    return torch.linalg.solve(
        torch.eye(len(y), dtype=F64) - alpha * root[:, None] * weights * root,
        torch.nn.functional.one_hot(y.clamp(min=0), K).double() * (y >= 0)[:, None],
    )


# -- the graph -------------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 5, 10])
def test_weights_are_those_of_their_definition(k):
    x, _ = rows()
    found = torch.from_numpy(neighbour_graph(x, k).weights().toarray())
    assert torch.equal(found, found.T)
    assert torch.allclose(found, dense_weights(x, k), atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [lambda x: 1e-6 * x, lambda x: 1e5 + x, lambda x: 1e8 * x, lambda x: 1e160 * x, lambda x: 1e-170 * x],
)
def test_neither_offset_nor_scale_changes_the_graph(change):
    x, _ = rows()
    before, after = neighbour_graph(x, 5), neighbour_graph(change(x), 5)
    assert torch.equal(before.neighbours, after.neighbours)
    difference = (before.weights() - after.weights()).toarray()
    assert abs(difference).max() < 1e-5


def test_copies_of_a_row_do_not_cut_it_off():
    """A row with 7 copies has the scale of its nearest other row; one with k copies, that of the graph."""
    x, _ = rows(30)
    copied = torch.cat([x, x[:1].repeat(7, 1), 1e-3 + x[1:2].repeat(12, 1)])
    graph = neighbour_graph(copied, 10)
    others = graph.distances[0][graph.distances[0] > 0]
    assert graph.scales[0] == others[0]
    own = graph.scales[graph.distances[:, 6] > 0]
    assert graph.scales[-1] == torch.cat([own, others[:1].expand(8)]).median()
    weights = torch.from_numpy(graph.weights().toarray())
    assert (weights[0, 30:37] == 1).all()
    assert weights[0, 1:30].max() > 1e-3
    assert weights[-1, 1] > 0.99
    _, links = graph.links(x[:2])
    assert (links[:, 0] == 1).all()
    assert links[0, 9] > 1e-3
    # Where all rows are copies, there is no scale, and every link counts alike.
    assert set(neighbour_graph(torch.ones(12, 2), 8).weights().data) == {1.0}


def test_links_of_other_rows_are_those_of_their_definition():
    x, _ = rows()
    others = rows(20, seed=1)[0]
    graph = neighbour_graph(x, 8)
    near, weights = graph.links(others)
    distance = torch.cdist(others, x, compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.argsort(1)[:, :8]
    assert torch.equal(near, order)
    away = distance.gather(1, order)
    assert torch.allclose(weights, (-(away**2) / (away[:, 6:7] * graph.scales[order])).exp(), atol=1e-12)
    # A row of the graph is at distance 0 from itself.
    assert torch.equal(graph.links(x)[0][:, 0], torch.arange(len(x)))


@pytest.mark.parametrize("far", [1e9, 1e25])
def test_a_far_row_does_not_change_the_links_of_others(far):
    """In proportion to its square, those of the others underflow in single precision."""
    graph, others = neighbour_graph(rows()[0], 8), rows(20, seed=1)[0]
    near, weights = graph.links(torch.cat([others, torch.full((1, 2), far, dtype=F64)]))
    expected = graph.links(others)
    assert torch.equal(near[:-1], expected[0])
    assert torch.allclose(weights[:-1], expected[1], atol=1e-5)


def test_no_rows_have_no_links():
    assert neighbour_graph(digits().x[:20], 3).links(digits().x[:0])[0].shape == (0, 3)


def test_one_feature_may_come_without_a_dimension():
    x, _ = rows()
    found = neighbour_graph(x, 4, lambda x: x.norm(dim=1))
    assert torch.equal(found.neighbours, neighbour_graph(x.norm(dim=1)[:, None], 4).neighbours)


def test_features_are_computed_from_other_rows_too():
    data = digits()
    graph = neighbour_graph(data.x[:200], 5)
    assert torch.equal(graph.rows, pixel_features(data.x[:200]).double())
    assert torch.equal(graph.links(data.x[:50])[0][:, 0], torch.arange(50))


# -- principal components --------------------------------------------------------------------------
def correlated(count: int = 90, seed: int = 0) -> Tensor:
    """Rows of 6 numbers, of which 2 directions hold most of the variance."""
    generator = torch.Generator().manual_seed(9)
    mixed = torch.randn(2, 6, generator=generator, dtype=F64)
    return rows(count, seed)[0] @ mixed + 0.1 * rows(3 * count, seed + 1)[0].reshape(count, 6)


def components_by_svd(x: Tensor, others: Tensor, count: int) -> Tensor:
    return (others - x.mean(0)) @ torch.linalg.svd(x - x.mean(0)).Vh[:count].T


@pytest.mark.parametrize(
    "change", [lambda x: x, lambda x: 1e5 + x, lambda x: 1e160 * x, lambda x: 1e-170 * x]
)
def test_distances_are_those_of_principal_components(change):
    x, others = correlated(), correlated(20, seed=5)
    graph = neighbour_graph(change(x), 8, components=2)
    assert graph.rows.shape == (90, 2)
    assert graph.rows.dtype == F64
    exact = neighbour_graph(components_by_svd(x, x, 2), 8)
    assert torch.equal(graph.neighbours, exact.neighbours)
    unit = ((change(x)[1] - change(x)[0]) / (x[1] - x[0]))[0]
    assert torch.allclose(graph.distances / unit, exact.distances, rtol=1e-4)
    near, weights = graph.links(change(others))
    expected = exact.links(components_by_svd(x, others, 2))
    assert torch.equal(near, expected[0])
    assert torch.allclose(weights, expected[1], atol=1e-4)
    # They are other neighbours than those in all features.
    assert not torch.equal(graph.neighbours, neighbour_graph(change(x), 8).neighbours)


def test_all_components_keep_the_neighbours():
    x = correlated()
    assert torch.equal(neighbour_graph(x, 8, components=6).neighbours, neighbour_graph(x, 8).neighbours)


def test_components_of_features_of_other_rows():
    data = digits()
    graph = neighbour_graph(data.x[:200], 5, "hog", components=20)
    assert graph.rows.shape == (200, 20)
    assert torch.equal(graph.links(data.x[:50])[0][:, 0], torch.arange(50))
    assert graph.links(data.x[:0])[0].shape == (0, 5)


# -- evidence --------------------------------------------------------------------------------------
def dense_poisson(weights: Tensor, y: Tensor) -> Tensor:
    """u of a connected graph by its definition, in units of its mean absolute value."""
    degrees, known = weights.sum(1), y >= 0
    labels = torch.nn.functional.one_hot(y[known], K).double()
    source = torch.zeros(len(y), K, dtype=F64)
    source[known] = labels - labels.mean(0)
    u = torch.linalg.pinv(degrees.diag() - weights, hermitian=True) @ source
    u = u - (degrees[:, None] * u).sum(0) / degrees.sum()
    return u / u.abs().mean()


@pytest.mark.parametrize("shares", [None, (5.0, 3.0, 2.0)])
@pytest.mark.parametrize(("method", "alpha"), [("spreading", 0.5), ("spreading", 0.99), ("poisson", None)])
def test_evidence_is_that_of_its_definition(method, alpha, shares):
    x, y = rows()
    y, others = few(y), rows(20, seed=1)[0]
    graph = neighbour_graph(x, 20)  # connected
    options = {"method": method, "alpha": alpha, "shares": shares, "sharpness": 2.0}
    pure, found = (label_evidence(graph, y, K, **options, mix=mix) for mix in (0.0, 0.1))
    pi = torch.tensor(shares or (1.0, 1.0, 1.0), dtype=F64) / sum(shares or (1, 1, 1))
    weights, (near, links) = dense_weights(x, 20), graph.links(others)
    if method == "spreading":
        spread = dense_spreading(weights, y, alpha)
        scores = spread.log()
        carried = spread * weights.sum(1).rsqrt()[:, None]
        outside = (links[..., None] * carried[near]).sum(1).log()
    else:
        scores = dense_poisson(weights, y) + ((4 + pi) / 13).log()  # 4 labels of each class
        outside = (links[..., None] * scores[near]).sum(1) / links.sum(1, keepdim=True)

    # The same offsets b in all rows, centred. They bring the mean of q near to the shares at sharpness 3.
    offsets = pure.log_probs / 2 - scores
    offsets = offsets - offsets.mean(1, keepdim=True)
    b = offsets.mean(0)
    assert (offsets - b).abs().max() < 1e-4
    assert torch.allclose((3 * (scores + b)).softmax(1).mean(0) - pi, -0.003 * 3 * b, atol=1e-6)
    assert torch.allclose(found.log_probs.exp(), 0.9 * pure.log_probs.exp() + 0.1 * pi)
    expected = 0.9 * (2 * (outside + b)).softmax(1) + 0.1 * pi
    assert torch.allclose(found.of(others).exp(), expected, atol=1e-6)
    assert found.log_probs.logsumexp(-1).abs().max() < 1e-9


def test_the_graph_may_contradict_the_expected_shares():
    """Two clear groups of 150 and 50 rows keep their sizes, though both classes are expected alike."""
    x = torch.cat([rows(150)[0], 100 + rows(50)[0]])
    y = (torch.arange(200) >= 150).long()
    for method in ("spreading", "poisson"):
        found = label_evidence(neighbour_graph(x), few(y), 2, method=method)
        assert torch.equal(found.log_probs.argmax(1), y)


def test_classes_of_a_faint_boundary_get_their_shares():
    """Most labels of one class: a boundary that the labels leave open goes where the shares put it."""
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    y = torch.full((400,), -1)
    order = x[:, 0].argsort()
    y[order[:4]], y[order[250:254]] = 0, 1
    for method in ("spreading", "poisson"):
        for shares in ((0.5, 0.5), (0.75, 0.25)):
            found = label_evidence(neighbour_graph(x), y, 2, method=method, shares=shares, sharpness=8, mix=0)
            assert found.log_probs.exp().mean(0)[0] == pytest.approx(shares[0], abs=0.05)


def test_parts_of_a_graph_say_which_classes_they_hold():
    """Poisson's equation knows nothing of a part with labels of one class. The labels themselves do."""
    x, y = rows(120)
    apart = torch.cat([x, 1e3 + x[y == 0]])
    truth = torch.cat([y, torch.zeros(40, dtype=torch.long)])
    labels = torch.cat([few(y), few(torch.zeros(40, dtype=torch.long))])
    found = label_evidence(neighbour_graph(apart, 5), labels, K, method="poisson", sharpness=4.0, mix=0.01)
    assert (found.log_probs.argmax(1)[120:] == 0).all()
    assert (found.log_probs.argmax(1) == truth).double().mean() > 0.8


@pytest.mark.parametrize("distance", [100.0, 1000.0])
def test_groups_that_a_row_between_them_links_faintly(distance):
    """Each group counts for itself in Poisson learning, and the row between them has the expected shares."""
    x, y = rows(60)
    x = torch.cat([x, x + distance, x.mean(0, keepdim=True) + distance / 2])
    labels = torch.cat([few(y), few(y), torch.tensor([-1])])
    alone = label_evidence(neighbour_graph(x[:60]), few(y), K, method="poisson", sharpness=3.0, mix=0.0)
    found = label_evidence(neighbour_graph(x), labels, K, method="poisson", sharpness=3.0, mix=0.0)
    assert torch.allclose(found.log_probs[:60].exp(), alone.log_probs.exp(), atol=0.05)
    assert torch.allclose(found.log_probs[-1].exp(), torch.tensor(1 / K, dtype=F64))


@pytest.mark.parametrize("method", ["spreading", "poisson"])
def test_evidence_can_be_copied_and_pickled(method):
    x = rows(20, seed=1)[0]
    found = label_evidence(GRAPH, LABELS, K, method=method, sharpness=2.0, mix=0.1)
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(copied.log_probs, found.log_probs)
        assert torch.equal(copied.of(x), found.of(x))


@pytest.mark.parametrize("method", ["spreading", "poisson"])
def test_rows_that_no_label_reaches_have_the_expected_shares(method):
    x, y = rows()
    island = 1e3 + rows(20, seed=1)[0]
    graph = neighbour_graph(torch.cat([x, island]), 5)
    labels = torch.cat([few(y), torch.full((20,), -1)])
    options = {"method": method, "shares": (1, 1, 2), "sharpness": 4.0, "mix": 0.01}
    found = label_evidence(graph, labels, K, **options)
    assert torch.allclose(found.log_probs[-20:].exp(), torch.tensor([0.25, 0.25, 0.5], dtype=F64))
    assert torch.allclose(found.of(island[:3]).exp(), torch.tensor([0.25, 0.25, 0.5], dtype=F64))
    # They do not change what the others get.
    alone = label_evidence(neighbour_graph(x, 5), few(y), K, **options)
    assert torch.allclose(found.log_probs[:-20], alone.log_probs, atol=1e-6)


def a_chain() -> Tensor:
    return torch.arange(600, dtype=F64)[:, None] + 0.01 * rows(600)[0][:, :1]


def with_copies() -> Tensor:
    return (torch.rand(400, 8, dtype=F64, generator=torch.Generator().manual_seed(0)) > 0.8).double()


@pytest.mark.parametrize(("make", "k"), [(a_chain, 2), (with_copies, 10)])
def test_small_traces_of_labels_count_by_their_ratio(make, k):
    """A label 300 links away, or beyond a link of weight 1e-30 between two groups of copies."""
    graph = neighbour_graph(make(), k)
    y = torch.full((len(graph.rows),), -1)
    y[:2], y[2:4], y[-2:] = 0, 1, 2
    spread = dense_spreading(torch.from_numpy(graph.weights().toarray()), y, 0.99)
    reached = spread.sum(1) > 0
    found = label_evidence(graph, y, K, sharpness=1.0, mix=0.0)
    scores, q = found.spread.scores[reached], spread[reached] / spread[reached].sum(1, keepdim=True)
    assert torch.allclose(scores.softmax(1), q, atol=1e-6)
    assert torch.allclose(found.log_probs[~reached].exp(), torch.tensor(1 / K, dtype=F64))


def test_shares_may_be_learned_ones():
    """The evidence is data: it keeps no graph of gradients."""
    logits = torch.zeros(K, requires_grad=True)
    found = label_evidence(GRAPH, LABELS, K, shares=logits.softmax(0), sharpness=1.0, mix=0.1)
    assert torch.equal(found.log_probs, label_evidence(GRAPH, LABELS, K, sharpness=1.0, mix=0.1).log_probs)
    assert not found.log_probs.requires_grad


def test_trust_is_what_the_labelled_rows_deserve():
    """Sharp and nearly unmixed for rows in clear groups; little for labels drawn at random."""
    x, y = rows(300)
    clear = label_evidence(neighbour_graph(4 * x + 40 * y[:, None], 8), few(y, 10), K)
    assert clear.sharpness >= 1
    assert clear.mix <= 0.03  # about one error in as many rows as have labels
    assert (clear.log_probs.argmax(1) == y).all()
    noise = torch.randint(K, (300,), generator=torch.Generator().manual_seed(0))
    none = label_evidence(neighbour_graph(x, 8), few(noise, 10), K)
    assert none.mix == 0.3 or none.sharpness == 0.5
    held = none.log_probs[few(noise, 10) < 0].gather(1, noise[few(noise, 10) < 0][:, None])
    assert -held.mean() < 1.25  # log 3 = 1.10 is that of no evidence


def test_trust_comes_from_hidden_labels_alone():
    """The choice is that of a loop over folds and candidates by hand, with one more row that is wrong."""
    x, y = rows(120, seed=2)
    y, graph = few(y, 2), neighbour_graph(x, 8)
    found = label_evidence(graph, y, K)
    candidates = [
        (t, m)
        for t in (3.0, 2.0, 4.0, 6.0, 8.0, 16.0, 1.0, 0.5)
        for m in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    ]
    best = torch.inf, None
    fold = torch.full_like(y, -1)
    for k in range(K):
        own = (y == k).nonzero()[:, 0]
        fold[own] = torch.arange(2)
    for t, m in candidates:
        loss, wrong, doubts = 0.0, [], []
        for f in range(2):
            shown = y.masked_fill(fold == f, -1)
            held = label_evidence(graph, shown, K, sharpness=t, mix=m).log_probs[fold == f]
            loss -= held.gather(1, y[fold == f][:, None]).sum().item()
            wrong += [(1 - row.max()).log().item() for row in held.exp()]
            balanced = label_evidence(graph, shown, K, sharpness=3.0, mix=0.0).log_probs[fold == f]
            doubts += [max(1e-300, 1 - row.max().item()) for row in balanced.exp()]
        loss -= sum(w * d for w, d in zip(wrong, doubts, strict=True)) / sum(doubts)
        best = min(best, (loss, (t, m)), key=lambda pair: pair[0])
    assert (found.sharpness, found.mix) == best[1]


def test_evidence_of_digits_beats_its_nearest_neighbour_and_trains_a_flow():
    data = digits(labels_per_class=10, seed=0)
    x, x_test = data.x.flatten(1), data.x_test.flatten(1)
    found = label_evidence(neighbour_graph(x), data.y, 10)
    wrong = (found.of(x_test).argmax(1) != data.y_test).double().mean()
    known, labels = data.labelled
    nearest = torch.cdist(x_test.double(), known.flatten(1).double()).argmin(1)
    assert wrong < 0.6 * (labels[nearest] != data.y_test).double().mean()
    told = DIGITS.prepare(replace(data, label_log_prior=found.log_probs), 0)
    model = DIGITS.make_model(told)
    result = DIGITS.fit(model, told, steps=2, terms="classification:targets=evidence", progress=False)
    assert result.finished


# -- what is refused -------------------------------------------------------------------------------
GRAPH = neighbour_graph(rows()[0], 5)
LABELS = few(rows()[1])
REFUSED = {
    "k": (lambda: neighbour_graph(rows(5)[0], 5), "k=5: there are 5 rows, so at most 4 neighbours"),
    "no neighbour": (lambda: neighbour_graph(rows(5)[0], 0), "k=0: expected at least 1"),
    "vector": (lambda: neighbour_graph(torch.zeros(4)), r"neighbour_graph: x has shape \(4,\)"),
    "NaN": (lambda: neighbour_graph(torch.full((4, 2), torch.nan), 2), "neighbour_graph: x holds 8 NaN"),
    "features": (
        lambda: neighbour_graph(rows()[0], 2, "pixel"),
        "features='pixel': expected one of 'pixels', 'deskew', 'hog', or a function of x",
    ),
    "other columns": (
        lambda: GRAPH.links(torch.zeros(4, 3)),
        r"links: x has shape \(4, 3\), expected \(M, 2\), rows like those of the graph",
    ),
    "other images": (
        lambda: neighbour_graph(digits().x[:9], 2, "hog").links(torch.zeros(2, 1, 9, 8)),
        r"links: x has shape \(2, 1, 9, 8\), expected \(M, 1, 8, 8\)",
    ),
    "no component": (lambda: neighbour_graph(rows()[0], 2, components=0), "components=0: expected 1 to 2"),
    "components": (lambda: neighbour_graph(rows()[0], 2, components=3), "components=3: expected 1 to 2"),
    "more components than rows": (
        lambda: neighbour_graph(digits().x[:9], 2, "hog", components=10),
        "components=10: expected 1 to 9",
    ),
    "other length": (
        lambda: label_evidence(GRAPH, LABELS[:5], K),
        "label_evidence: y has 5 labels and the graph 90 rows",
    ),
    "label": (
        lambda: label_evidence(GRAPH, LABELS, 2),
        r"label_evidence: y holds labels -1\.\.2, expected -1\.\.1",
    ),
    "class": (lambda: label_evidence(GRAPH, LABELS, 5), r"no labelled row of class \[3, 4\]"),
    "one label": (
        lambda: label_evidence(GRAPH, few(rows()[1], 1), K),
        "a class has one labelled row, and none is left if it is hidden",
    ),
    "no graph": (
        lambda: label_evidence(rows()[0], LABELS, K),
        r"label_evidence: graph is of type Tensor, expected a NeighbourGraph; give neighbour_graph\(x\)",
    ),
    "words": (lambda: label_evidence(GRAPH, LABELS, K, shares="abc"), "shares='abc': expected 3 positive"),
    "method": (
        lambda: label_evidence(GRAPH, LABELS, K, method="laplace"),
        "method='laplace': expected 'spreading' or 'poisson'",
    ),
    "alpha of Poisson": (
        lambda: label_evidence(GRAPH, LABELS, K, method="poisson", alpha=0.9),
        "alpha=0.9: it would have no effect, because Poisson learning has no alpha",
    ),
    "alpha": (lambda: label_evidence(GRAPH, LABELS, K, alpha=1.0), "alpha=1.0: expected"),
    "shares": (lambda: label_evidence(GRAPH, LABELS, K, shares=(1, 0, 1)), "expected 3 positive numbers"),
    "sharpness": (lambda: label_evidence(GRAPH, LABELS, K, sharpness=0.0), "sharpness=0.0: expected"),
    "mix": (lambda: label_evidence(GRAPH, LABELS, K, mix=1.0), "mix=1.0: expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_graphs_refuse(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_one_label_of_a_class_is_enough_where_trust_is_given():
    x, y = rows()
    found = label_evidence(neighbour_graph(x, 8), few(y, 1), K, sharpness=2.0, mix=0.01)
    assert (found.log_probs.argmax(1) == y).double().mean() > 0.8


def test_toys_of_a_ring_are_labelled_around_it():
    data = toy("circles", seed=0)
    found = label_evidence(neighbour_graph(data.x), data.y, 2)
    assert (found.of(data.x_test).argmax(1) != data.y_test).double().mean() < 0.05
