"""The data sets: sizes, splits by seed, and labels that are really hidden."""

import pytest
import torch

from pyro_scnf import UNLABELLED
from pyro_scnf.datasets import TOYS, digits, hide_labels, toy


@pytest.mark.parametrize("name", TOYS)
def test_toys_have_the_stated_sizes_and_labels(name):
    data = toy(name, seed=3)
    classes = TOYS[name][1]
    assert data.num_classes == classes
    assert data.x.shape == (1000, 2)
    assert data.x_test.shape == (500, 2)
    x, y = data.labelled
    assert torch.equal(y.bincount(minlength=classes), torch.full((classes,), 5))
    assert len(x) + len(data.unlabelled) == 1000
    assert set(data.y_test.tolist()) == set(range(classes))


def test_a_seed_fixes_the_split_and_another_changes_it():
    first, again, other = (toy("moons", seed=s) for s in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.x, other.x)


def test_hidden_labels_are_a_subset_of_the_true_ones():
    y = torch.arange(60) % 3
    hidden = hide_labels(y, per_class=4, seed=0)
    known = hidden != UNLABELLED
    assert known.sum() == 12
    assert torch.equal(hidden[known], y[known])
    with pytest.raises(ValueError, match="per_class=21: class 0 has only 20"):
        hide_labels(y, per_class=21)


def test_hold_out_moves_unlabelled_rows_only():
    data = toy("circles", seed=0)
    held = data.hold_out(100, seed=0)
    assert held.x_val.shape == (100, 2)
    assert len(held.x) == 900
    assert torch.equal(held.labelled[1], data.labelled[1])
    rows = {tuple(row) for row in torch.cat([held.x, held.x_val]).tolist()}
    assert rows == {tuple(row) for row in data.x.tolist()}
    with pytest.raises(ValueError, match="size=990"):
        data.hold_out(990)


def test_digits_are_grey_levels_with_ten_labels_a_class():
    data = digits(seed=0)
    assert data.x.shape == (1437, 1, 8, 8)
    assert data.x_test.shape == (360, 1, 8, 8)
    assert data.x.min() == 0
    assert data.x.max() == 16
    assert torch.equal(data.labelled[1].bincount(), torch.full((10,), 10))


def test_an_unknown_toy_is_named():
    with pytest.raises(ValueError, match="name='rings'"):
        toy("rings")
