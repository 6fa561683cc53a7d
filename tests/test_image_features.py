"""Features of images: what they are by definition, and what they do not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_scnf.datasets import (
    FEATURES,
    deskew,
    digits,
    hog_features,
    image_features,
    link_neighbours,
    nearest_neighbours,
    neighbour_graph,
    pixel_features,
    upright_features,
)


def strokes(count: int = 6, size: int = 28) -> Tensor:
    """Digits of 8×8 pixels as images of ``size``×``size``."""
    return torch.nn.functional.interpolate(digits().x[:count].float(), (size, size), mode="bilinear")


# -- words -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("word", FEATURES)
def test_a_word_names_a_function(word):
    data = digits(seed=0)
    x = data.x[:60]
    expected = nearest_neighbours(x, 3, FEATURES[word])
    assert torch.equal(nearest_neighbours(x, 3, word), expected)
    assert torch.equal(neighbour_graph(x, 3, word).neighbours, expected)
    graph = neighbour_graph(x, 3, word)
    assert torch.equal(graph.links(x[:9])[0][:, 0], torch.arange(9))
    linked = link_neighbours(data, 2, word).neighbours
    assert torch.equal(linked, nearest_neighbours(data.x, 2, FEATURES[word]))


def test_words_differ():
    x = digits().x[:60]
    assert len({tuple(nearest_neighbours(x, 3, word).flatten().tolist()) for word in FEATURES}) == len(
        FEATURES
    )


# -- averaged pixels -------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_features_have_unit_length_whatever_the_brightness(scale):
    x = torch.rand(6, 1, 8, 8)
    features = pixel_features(x * scale)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(features, pixel_features(x))
    assert nearest_neighbours(x, 2).tolist() == nearest_neighbours(x * scale, 2).tolist()


def test_the_nearest_images_are_those_at_the_smallest_angle():
    x = torch.rand(30, 1, 6, 6)
    flat = torch.nn.functional.avg_pool2d(x, 2).flatten(1).double()
    cosines = torch.nn.functional.cosine_similarity(flat[:, None], flat, dim=-1).fill_diagonal_(-2)
    assert torch.equal(nearest_neighbours(x, 3), cosines.topk(3).indices)


@pytest.mark.parametrize("shape", [(5, 1, 1, 1), (5, 3, 1, 4), (5, 1, 3, 3)])
def test_images_of_any_size_have_features(shape):
    features = pixel_features(torch.rand(shape) + 0.1)
    assert len(features) == 5
    assert torch.isfinite(features).all()


def test_black_images_and_no_images():
    assert (pixel_features(torch.zeros(3, 1, 4, 4)) == 0).all()
    for function in (pixel_features, deskew, upright_features, hog_features):
        assert len(function(torch.zeros(0, 1, 4, 4))) == 0
        assert function(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)).dtype == torch.float32
        assert function(torch.zeros(2, 1, 4, 4, dtype=torch.float64)).dtype == torch.float64
        assert torch.isfinite(function(torch.zeros(2, 1, 4, 4))).all()


# -- histograms of gradients -----------------------------------------------------------------------
def histograms_by_loops(image: Tensor) -> Tensor:
    """The features of one image of 28×28 pixels by their definition, cell by cell."""
    image = torch.nn.functional.pad(image[None, None].double(), (1, 1, 1, 1), mode="replicate")[0, 0]
    across, down = image[1:-1, 2:] - image[1:-1, :-2], image[2:, 1:-1] - image[:-2, 1:-1]
    turn = torch.atan2(down, across) % (2 * math.pi) / (2 * math.pi) * 12
    away = (turn[None] - torch.arange(12)[:, None, None]).abs()
    votes = (1 - torch.minimum(away, 12 - away)).clamp(min=0) * torch.hypot(across, down)
    places = []
    for top in (0, 10):
        for left in (0, 10):
            cells = torch.zeros(12, 4, 4, dtype=torch.double)
            for i in range(4):
                for j in range(4):
                    far = [(torch.arange(28) + 0.5 - at).abs() for at in (top + 6 * i, left + 6 * j)]
                    near = (3 - far[0]).clamp(min=0)[:, None] * (3 - far[1]).clamp(min=0)
                    cells[:, i, j] = (votes * near).sum((1, 2))
            limited = (cells / cells.norm()).nan_to_num().clamp(max=0.2)
            places.append((limited / limited.sum()).nan_to_num().sqrt().flatten())
    found = torch.stack(places, -1).flatten()
    return found / found.norm()


def test_histograms_are_those_of_their_definition(monkeypatch):
    monkeypatch.setattr(image_features, "_deskewed", lambda x: x)
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([strokes(3), torch.rand(1, 1, 28, 28, generator=generator)]).double()
    expected = torch.stack([histograms_by_loops(image[0]) for image in x])
    torch.testing.assert_close(hog_features(x), expected, atol=1e-5, rtol=0)


def test_histograms_follow_the_ink():
    """A digit that is moved and slanted has nearly the same features, and pixels differ."""
    x = torch.zeros(6, 1, 40, 40)
    x[:, :, 6:34, 6:34] = strokes()
    slanted = torch.tensor([[1.0, 0.3, 0.05], [0.0, 1.0, 0.05]]).expand(6, 2, 3)
    grid = torch.nn.functional.affine_grid(slanted, list(x.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    assert (hog_features(x) * hog_features(moved)).sum(1).min() > 0.95
    assert (pixel_features(x) * pixel_features(moved)).sum(1).max() < 0.95


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_histograms_have_unit_length_whatever_the_brightness(scale):
    x = strokes()
    torch.testing.assert_close(hog_features(scale * x), hog_features(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(hog_features(x).norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_slant_is_that_of_the_ink_whatever_its_brightness(scale):
    torch.testing.assert_close(upright_features(scale * strokes()), upright_features(strokes()))


@pytest.mark.parametrize("function", [deskew, upright_features, hog_features])
def test_negative_pixels_are_no_ink(function):
    """The moments of standardised images say nothing of their slant."""
    x = strokes()
    with pytest.raises(ValueError, match=rf"{function.__name__}: x has pixels below 0.*features='pixels'"):
        function((x - x.mean()) / x.std())


@pytest.mark.parametrize("size", [8, 20, 32, 56])
def test_histograms_do_not_depend_on_the_size_of_images(size):
    found = hog_features(strokes(20, size))
    assert found.shape == (20, 768)
    nearest = (found @ hog_features(strokes(20)).T).argmax(1)
    assert torch.equal(nearest, torch.arange(20))


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 1, 3, 40), (2, 3, 5, 5)])
def test_images_of_any_shape_have_histograms(shape):
    found = hog_features(torch.rand(shape) + 0.1)
    assert found.shape == (2, 768)
    assert found.isfinite().all()


def test_colours_are_averaged():
    x = torch.cat([strokes(), 0.5 * strokes().flip(0), 0 * strokes()], 1)
    torch.testing.assert_close(hog_features(x), hog_features(x.mean(1, keepdim=True)), atol=1e-4, rtol=0)


def test_histograms_are_counted_in_batches(monkeypatch):
    """The memory stays that of one batch, and every image gets its own features."""
    expected, sizes = hog_features(strokes(7)), []
    original = image_features._deskewed
    monkeypatch.setattr(image_features, "_deskewed", lambda x: sizes.append(len(x)) or original(x))
    monkeypatch.setattr(image_features, "BATCH", 3)
    torch.testing.assert_close(hog_features(strokes(7)), expected)
    assert sizes == [3, 3, 1]


def test_a_black_image_has_no_histogram():
    assert (hog_features(torch.zeros(2, 1, 4, 4)) == 0).all()


def test_near_histograms_share_their_class_more_often_than_near_pixels():
    data = digits()
    shares = {
        word: (data.y_test[nearest_neighbours(data.x_test, 5, word)] == data.y_test[:, None]).double().mean()
        for word in FEATURES
    }
    assert 1 - shares["hog"] < 0.5 * (1 - shares["pixels"])


@pytest.mark.parametrize("function", [pixel_features, upright_features, hog_features])
def test_features_of_images_refuse_others(function):
    with pytest.raises(ValueError, match=r"x has shape \(4, 2\), expected images"):
        function(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"x is .*numpy.ndarray, expected a tensor"):
        function(torch.zeros(4, 1, 2, 2).numpy())
