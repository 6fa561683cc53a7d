"""The data sets: their sizes, splits by seed, hidden labels, thinned classes and image files.

The tests write image files in the formats of the real ones. The real torchvision classes read them.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from pyro_scnf import UNLABELLED
from pyro_scnf.analysis import evaluate
from pyro_scnf.datasets import (
    IMAGES,
    TOYS,
    digits,
    enlarged_digits,
    images,
    keep_labels,
    keep_labels_per_class,
    thin_classes,
    toy,
)
from pyro_scnf.presets import TOY

seeds = st.integers(0, 2**31 - 1)


# -- toys and digits ---------------------------------------------------------------------------
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


NUMBERS = {
    "name": (lambda: toy(3), "name=3: expected 'moons', 'circles', 'pinwheel' or 'eight_gaussians'"),
    "no tests": (lambda: toy("moons", num_test=0), "num_test=0: expected at least 2"),
    "fewer than classes": (lambda: toy("pinwheel", num_test=4), "num_test=4: expected at least 5"),
    "no training": (lambda: toy("moons", num_train=0), "num_train=0: expected at least 2"),
    "half a row": (lambda: toy("moons", num_train=10.5), "num_train=10.5: expected a whole number"),
    "labels": (
        lambda: toy("moons", num_train=20, labels_per_class=11),
        "labels_per_class=11: class 0 has only 10 examples, expected at least 11",
    ),
    "negative labels": (
        lambda: toy("moons", labels_per_class=-1),
        "labels_per_class=-1: expected at least 0",
    ),
    "noise": (lambda: toy("circles", noise=-0.1), "noise=-0.1: expected a finite number from 0 to"),
    "no noise": (lambda: toy("pinwheel", noise=float("nan")), "noise=nan: expected a finite number"),
    "word": (lambda: toy("moons", noise="low"), "noise='low': expected a finite number"),
    "seed": (lambda: toy("moons", seed=-1), "seed=-1: expected 0 to 4294967295"),
    "large seed": (lambda: digits(seed=2**32), "seed=4294967296: expected 0 to 4294967295"),
    "half a seed": (lambda: toy("moons", seed=0.5), "seed=0.5: expected a whole number"),
    "no test digits": (lambda: digits(num_test=0), "num_test=0: expected 10 to 1787"),
    "all digits": (lambda: digits(num_test=1797), "num_test=1797: expected 10 to 1787"),
    "digits": (
        lambda: digits(labels_per_class=150),
        "labels_per_class=150: class 0 has only 142 examples, expected at least 150",
    ),
    "enlarged": (lambda: enlarged_digits(num_test=1797), "num_test=1797: expected 0 to 1796"),
    "held out": (lambda: enlarged_digits(num_val=-1), "num_val=-1: expected at least 0"),
    "split": (lambda: enlarged_digits(split=None), "split=None: expected 'balanced' or 'stratified'"),
    "whole labels": (lambda: enlarged_digits(labels=100.0), "labels=100.0: expected a whole number"),
    "true labels": (lambda: enlarged_digits(labels=True), "labels=True: expected a whole number"),
    "kept": (
        lambda: keep_labels_per_class(torch.tensor([0, 1]), 1.5),
        "per_class=1.5: expected a whole number",
    ),
    "kept seed": (lambda: keep_labels_per_class(torch.tensor([0, 1]), 1, "0"), "seed='0': expected a whole"),
    "kept labels": (lambda: keep_labels_per_class(torch.tensor([0, -2]), 1), "y holds labels -2"),
    "classes": (lambda: keep_labels(torch.tensor([0, 1]), 0, 2), "num_classes=0: expected at least 1"),
    "hold out": (lambda: toy("moons").hold_out(10, seed=-1), "seed=-1: expected at least 0"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_cannot_be(case):
    call, message = NUMBERS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_data_set_without_test_images():
    data = enlarged_digits(num_test=0)
    assert (len(data.x), len(data.x_test), len(data.y_test)) == (1797, 0, 0)


def test_numbers_of_numpy_are_numbers():
    sizes = {"num_train": np.int64(60), "num_test": np.int32(20), "labels_per_class": np.uint8(3)}
    data = toy("moons", noise=np.float32(0.1), seed=np.int64(1), **sizes)
    assert (len(data.x), len(data.labelled[0])) == (60, 6)
    assert len(data.hold_out(np.int64(5), np.int64(2)).x_val) == 5


# -- held-out rows -----------------------------------------------------------------------------
def test_hold_out_moves_unlabelled_rows_only():
    data = toy("circles", seed=0)
    held = data.hold_out(100, seed=0)
    assert held.x_val.shape == (100, 2)
    assert held.y_val is None
    assert len(held.x) == 900
    assert torch.equal(held.labelled[1], data.labelled[1])
    rows = {tuple(row) for row in torch.cat([held.x, held.x_val]).tolist()}
    assert rows == {tuple(row) for row in data.x.tolist()}
    assert torch.equal(held.x_val, data.hold_out(100, seed=0).x_val)
    assert not torch.equal(held.x_val, data.hold_out(100, seed=1).x_val)
    with pytest.raises(ValueError, match="size=990"):
        data.hold_out(990)
    with pytest.raises(ValueError, match="size=1: none can be held out, there are 0 unlabelled rows"):
        replace(data, x=data.x_test, y=data.y_test).hold_out(1)
    with pytest.raises(ValueError, match="x_val: 100 rows are held out already"):
        held.hold_out(10)


def test_held_out_rows_keep_the_true_labels_they_are_told():
    data = toy("circles", seed=0)
    truth = (data.x.norm(dim=-1) < 0.6).long()  # the inner circle has radius 0.2
    held = data.hold_out(100, seed=0, truth=truth)
    assert torch.equal(held.y_val, (held.x_val.norm(dim=-1) < 0.6).long())
    with pytest.raises(ValueError, match=r"truth has shape \(999,\), expected \(1000,\)"):
        data.hold_out(100, truth=truth[1:])
    with pytest.raises(ValueError, match="truth: contradicts y in 10 labelled rows"):
        data.hold_out(100, truth=1 - truth)
    with pytest.raises(ValueError, match=r"truth holds labels 1\.\.2, expected 0\.\.1"):
        data.hold_out(100, truth=truth + 1)


# -- which labels are kept ---------------------------------------------------------------------
def labels_of(sizes: list[int], seed: int) -> Tensor:
    """Labels with ``sizes[k]`` rows of class k, in random order."""
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]


def counts_of(kept: Tensor, num_classes: int) -> list[int]:
    return torch.bincount(kept[kept != UNLABELLED], minlength=num_classes).tolist()


def test_hidden_labels_are_a_subset_of_the_true_ones():
    y = torch.arange(60) % 3
    hidden = keep_labels_per_class(y, per_class=4, seed=0)
    known = hidden != UNLABELLED
    assert known.sum() == 12
    assert torch.equal(hidden[known], y[known])
    assert torch.equal(keep_labels_per_class(hidden, per_class=4), hidden)
    with pytest.raises(ValueError, match="per_class=21: class 0 has only 20 examples, expected at least 21"):
        keep_labels_per_class(y, per_class=21)
    with pytest.raises(ValueError, match="per_class=-1: expected at least 0"):
        keep_labels_per_class(y, per_class=-1)


def check_kept(kept: Tensor, y: Tensor, labels: int) -> None:
    """Exactly ``labels`` labels are kept. They are true, and every class has at least one."""
    known = kept != UNLABELLED
    assert known.sum() == labels
    assert torch.equal(kept[known], y[known])
    assert torch.equal(kept[known].unique(), y.unique())


@given(sizes=st.lists(st.integers(5, 30), min_size=1, max_size=6), per_class=st.integers(1, 5), seed=seeds)
def test_balanced_labels_are_the_same_number_of_every_class(sizes, per_class, seed):
    y, classes = labels_of(sizes, seed), len(sizes)
    kept = keep_labels(y, classes, per_class * classes, "balanced", seed)
    check_kept(kept, y, per_class * classes)
    assert counts_of(kept, classes) == [per_class] * classes
    assert torch.equal(kept, keep_labels_per_class(y, per_class, seed))


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(20, 200), min_size=2, max_size=6), labels=st.integers(10, 40), seed=seeds)
def test_stratified_labels_are_as_many_a_class_as_scikit_learn_keeps(sizes, labels, seed):
    shares = [labels * size / sum(sizes) for size in sizes]
    assume(min(shares) >= 1)
    y = labels_of(sizes, seed)
    kept = keep_labels(y, len(sizes), labels, "stratified", seed)
    check_kept(kept, y, labels)
    counts = counts_of(kept, len(sizes))
    assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))
    if len({labels * size % sum(sizes) for size in sizes}) == len(sizes):  # scikit-learn draws among ties
        theirs, _ = train_test_split(y.numpy(), train_size=labels, stratify=y.numpy(), random_state=0)
        assert counts == np.bincount(theirs, minlength=len(sizes)).tolist()


def test_of_equal_remainders_the_lower_class_comes_first():
    y = labels_of([10, 10, 10], 0)
    assert counts_of(keep_labels(y, 3, 5, "stratified"), 3) == [2, 2, 1]
    assert counts_of(keep_labels(y, 3, 5, "stratified", classes=[2, 1, 0]), 3) == [2, 2, 1]


def test_kept_labels_depend_on_the_seed_alone():
    y = labels_of([50, 30, 20], seed=0)
    for split, labels in (("balanced", 12), ("stratified", 10)):
        torch.manual_seed(1)
        first = keep_labels(y, 3, labels, split, seed=5)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert torch.equal(first, keep_labels(y, 3, labels, split, seed=5))
        assert torch.equal(state, torch.get_rng_state())
        assert not torch.equal(first, keep_labels(y, 3, labels, split, seed=6))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_given_rows_keep_their_labels_whatever_the_seed(dtype):
    y = labels_of([4, 5, 6], seed=0)
    rows = torch.cat([(y == k).nonzero()[: k + 1, 0] for k in range(3)]).flip(0).to(dtype)
    kept = keep_labels(y, 3, rows, seed=7)
    assert torch.equal((kept != UNLABELLED).nonzero()[:, 0], rows.long().sort().values)
    assert torch.equal(kept[rows.long()], y[rows.long()])


SKEWED = labels_of([30, 19, 1], seed=0)
ONE_EACH = [SKEWED.tolist().index(k) for k in range(3)]
SPLIT_ERRORS = {
    "word": ({"labels": 3, "split": "even"}, "split='even': expected 'balanced' or 'stratified'"),
    "word beside rows": ({"labels": torch.tensor(ONE_EACH), "split": "even"}, "split='even'"),
    "fewer than classes": ({"labels": 2}, "labels=2: expected at least one for each of 3 classes"),
    "more than examples": ({"labels": 51}, "labels=51: there are only 50 examples"),
    "not divisible": ({"labels": 10}, "labels=10: split='balanced' needs a multiple of the 3.*'stratified'"),
    "class too small": ({"labels": 6}, "labels=6: class 2 has only 1 examples, expected at least 2"),
    "share too small": (
        {"labels": 10, "split": "stratified"},
        "labels=10: split='stratified' gives none to class 2, which has 1 of 50 examples; .*'balanced'",
    ),
    "rows out of range": (
        {"labels": torch.tensor([*ONE_EACH, 50])},
        r"labels: row index 50, expected 0\.\.49",
    ),
    "negative row": ({"labels": torch.tensor([*ONE_EACH, -1])}, r"labels: row index -1, expected 0\.\.49"),
    "repeated rows": (
        {"labels": torch.tensor([*ONE_EACH, *ONE_EACH[:2]])},
        "labels: 2 of 5 row indices are repeated",
    ),
    "rows leave classes out": (
        {"labels": torch.tensor(ONE_EACH[:1])},
        "labels: no row of class 1, 2 among the 1 given; expected all 3 classes",
    ),
    "no rows": (
        {"labels": torch.tensor([], dtype=torch.long)},
        "labels: no row of class 0, 1, 2 among the 0 given",
    ),
    "mask": ({"labels": SKEWED == 1}, r"labels: a tensor of shape \(50,\) and dtype torch.bool; expected"),
    "floating rows": ({"labels": torch.tensor([0.0])}, "dtype torch.float32; expected"),
    "matrix of rows": ({"labels": torch.tensor([ONE_EACH])}, r"labels: a tensor of shape \(1, 3\)"),
}


@pytest.mark.parametrize("case", SPLIT_ERRORS)
def test_labels_that_cannot_be_kept(case):
    options, message = SPLIT_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        keep_labels(SKEWED, 3, **options)


def test_labels_to_keep_from_are_all_known():
    with pytest.raises(ValueError, match=r"keep_labels: y holds labels -1\.\.2, expected 0\.\.2"):
        keep_labels(torch.tensor([-1, 0, 1, 2]), 3, 3)
    with pytest.raises(ValueError, match="class 3 has only 0 examples"):
        keep_labels(SKEWED, 4, 4)


# -- images: files made in the real formats ----------------------------------------------------
SIZES = {"train": 150, "test": 40}
TRAIN_COUNTS = [20, 18, 16, 16, 15, 15, 14, 14, 12, 10]


def made(name: str, part: str) -> tuple[Tensor, Tensor]:
    """Random images ``(N, C, H, W)``, all different, and their labels."""
    generator = torch.Generator().manual_seed(len(part))
    x = torch.randint(256, (SIZES[part], *IMAGES[name].shape), generator=generator, dtype=torch.uint8)
    return x, labels_of(TRAIN_COUNTS, seed=1) if part == "train" else torch.arange(SIZES[part]) % 10


def one_row_of_each_class(name: str) -> Tensor:
    y = made(name, "train")[1]
    return torch.stack([(y == k).nonzero()[-1, 0] for k in range(10)])


def idx(values: Tensor) -> bytes:
    """``values`` in the format of MNIST.

    A magic number, whose last byte is the number of dimensions, comes first. Sizes and bytes follow.
    """
    header = np.array([0x0800 + values.dim(), *values.shape], dtype=">i4")
    return header.tobytes() + values.to(torch.uint8).numpy().tobytes()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, prefix in (("train", "train"), ("test", "t10k")):
        x, y = made(name, part)
        (root / IMAGES[name].folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(x[:, 0]))
        (root / IMAGES[name].folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(y))


def write_svhn(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split_list = {}
    for part in SIZES:
        x, y = made(name, part)
        path = root / f"{part}_32x32.mat"
        savemat(path, {"X": x.permute(2, 3, 1, 0).numpy(), "y": y.masked_fill(y == 0, 10)[:, None].numpy()})
        split_list[part] = ["no address", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)


def write_cifar10(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / IMAGES[name].folder

    def write(file: str, content: dict) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, md5(folder / file)]

    (x, y), (x_test, y_test) = (made(name, part) for part in SIZES)
    batches = zip(x.flatten(1).chunk(5), y.chunk(5), strict=True)
    train = [
        write(f"data_batch_{i}", {"data": a.numpy(), "labels": b.tolist()})
        for i, (a, b) in enumerate(batches, 1)
    ]
    test = [write("test_batch", {"data": x_test.flatten(1).numpy(), "labels": y_test.tolist()})]
    meta = write("batches.meta", {"label_names": [str(k) for k in range(10)]})
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", test)
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )


WRITERS = {"mnist": write_idx, "fashion-mnist": write_idx, "svhn": write_svhn, "cifar10": write_cifar10}


@pytest.fixture
def root(request, tmp_path, monkeypatch) -> Path:
    """A folder with the files of the data set ``name``, a parameter of the test. By default it is MNIST."""
    callspec = getattr(request.node, "callspec", None)
    name = callspec.params.get("name", "mnist") if callspec else "mnist"
    (tmp_path / IMAGES[name].folder).mkdir(parents=True, exist_ok=True)
    WRITERS[name](name, tmp_path, monkeypatch)
    return tmp_path


def test_every_image_set_is_tested():
    assert set(WRITERS) == set(IMAGES)


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_read_as_their_files_hold_them(name, root):
    (x, y), (x_test, y_test) = (made(name, part) for part in SIZES)
    data = images(name, root, labels=20)
    assert data.num_classes == IMAGES[name].num_classes
    for ours, theirs in ((data.x, x), (data.x_test, x_test), (data.y_test, y_test)):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert data.y.dtype == torch.int64
    assert torch.equal(data.y, keep_labels(y, 10, 20))
    assert data.x_val is None
    for file in IMAGES[name].files:
        assert (root / IMAGES[name].folder / file).is_file()


@pytest.mark.parametrize("name", IMAGES)
def test_held_out_images_have_true_labels_and_take_none_away(name, root):
    x, y = made(name, "train")
    truth = {image.numpy().tobytes(): int(label) for image, label in zip(x, y, strict=True)}
    options = {"labels": 30, "split": "stratified", "seed": 4}
    data, whole = images(name, root, num_val=25, **options), images(name, root, **options)
    assert data.x_val.shape == (25, *IMAGES[name].shape)
    assert data.y_val.tolist() == [truth[image.numpy().tobytes()] for image in data.x_val]
    assert {image.numpy().tobytes() for image in torch.cat([data.x, data.x_val])} == set(truth)
    for kept, all_kept in zip(data.labelled, whole.labelled, strict=True):
        assert torch.equal(kept, all_kept)
    assert counts_of(data.y, 10) == [4, 4, 3, 3, 3, 3, 3, 3, 2, 2]


def test_a_seed_fixes_the_labels_of_images_and_the_rows_held_out(root):
    first, again, other = (images("mnist", root, labels=20, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)
    rows = one_row_of_each_class("mnist")
    first, again, other = (images("mnist", root, labels=rows, seed=s, num_val=25) for s in (1, 1, 2))
    assert torch.equal(first.x_val, again.x_val)
    assert not torch.equal(first.x_val, other.x_val)


def test_images_of_a_published_split(root):
    rows = one_row_of_each_class("mnist")
    data = images("mnist", str(root), labels=rows)
    assert torch.equal((data.y != UNLABELLED).nonzero()[:, 0], rows.sort().values)


def test_images_that_cannot_be_had(root):
    known = "'mnist', 'fashion-mnist', 'svhn' or 'cifar10'"
    with pytest.raises(ValueError, match=f"name='imagenet': expected {known}"):
        images("imagenet", root)
    with pytest.raises(ValueError, match="labels=151: there are only 150 examples"):
        images("mnist", root, labels=151)
    with pytest.raises(ValueError, match="num_val=-1: expected at least 0"):
        images("mnist", root, num_val=-1)
    with pytest.raises(ValueError, match="num_val=50: expected less than the 50 unlabelled rows"):
        images("mnist", root, num_val=50)


@pytest.mark.parametrize("name", IMAGES)
def test_missing_files_are_named_with_their_folder_and_the_remedy(name, root):
    source = IMAGES[name]
    folder = root / source.folder
    (folder / source.files[1]).unlink()
    with pytest.raises(FileNotFoundError) as error:
        images(name, root)
    assert str(error.value) == (
        f"{name}: {folder} lacks {source.files[1]}; download=True (in the examples, --download) fetches and "
        "unpacks them, or put them there by hand"
    )
    for file in source.files:
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=f"lacks {', '.join(source.files)};"):
        images(name, root)


def rewrite(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, part: str, change) -> None:
    """Write the files of ``part`` anew, their images and labels changed."""
    original = made

    def changed(name, wanted):
        x, y = original(name, wanted)
        return change(x, y) if wanted == part else (x, y)

    monkeypatch.setattr(sys.modules[__name__], "made", changed)
    WRITERS[name](name, root, monkeypatch)


@pytest.mark.parametrize("part", SIZES)
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "svhn"])
def test_files_of_which_labels_are_missing(name, part, root, monkeypatch):
    rewrite(name, root, monkeypatch, part, lambda x, y: (x, y[:-1]))
    size, file = SIZES[part], {"train": "train", "test": "t10k|test"}[part]
    with pytest.raises(
        ValueError, match=rf"{name}: {root}.*: ({file}).* hold {size} images and {size - 1} labels"
    ):
        images(name, root)


def test_batches_of_which_labels_are_missing(root, monkeypatch, tmp_path):
    (tmp_path / IMAGES["cifar10"].folder).mkdir()
    rewrite("cifar10", root, monkeypatch, "train", lambda x, y: (x, y[:-30]))
    with pytest.raises(ValueError, match=r"data_batch_1, .* hold 150 images and 120 labels"):
        images("cifar10", root)


def test_files_of_other_images_or_labels(root, monkeypatch):
    rewrite("mnist", root, monkeypatch, "test", lambda x, y: (x[..., :14], y))
    with pytest.raises(
        ValueError, match=r"t10k-images-idx3-ubyte, .* images of shape \(1, 28, 14\), expected"
    ):
        images("mnist", root)
    monkeypatch.undo()
    rewrite("mnist", root, monkeypatch, "train", lambda x, y: (x, y + 1))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte hold labels 1\.\.10, expected 0\.\.9"):
        images("mnist", root)


def test_options_are_checked_before_files_are_read(tmp_path):
    for options, message in (
        ({"split": "even"}, "split='even'"),
        ({"labels": "all"}, "labels='all': expected a whole number, or the numbers of rows"),
        ({"download": "yes"}, "download='yes': expected True or False"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"num_val": 2.5}, "num_val=2.5"),
    ):
        with pytest.raises(ValueError, match=message):
            images("mnist", tmp_path, **options)
    with pytest.raises(ValueError, match="root=3: expected the path of a folder"):
        images("mnist", 3)


@pytest.mark.parametrize("form", [Tensor.numpy, Tensor.tolist])
def test_a_published_split_may_be_an_array_or_a_list(form, root):
    rows = one_row_of_each_class("mnist")
    assert torch.equal(images("mnist", root, labels=form(rows)).y, images("mnist", root, labels=rows).y)


@pytest.mark.parametrize("name", IMAGES)
def test_damaged_files_are_told_from_missing_ones(name, root):
    path = root / IMAGES[name].folder / IMAGES[name].files[0]
    content = path.read_bytes()
    for damaged in (content[:-100], b""):
        path.write_bytes(damaged)
        with pytest.raises(FileNotFoundError, match=f"{path.parent} holds damaged files, delete them first;"):
            images(name, root)


def test_a_failed_download_is_told(root, monkeypatch):
    def unreachable(self):
        raise URLError("no route")

    monkeypatch.setattr(torchvision.datasets.SVHN, "download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"lacks train_32x32.mat, .*did not help \(.*no route"):
        images("svhn", root, download=True)


def test_download_unpacks_what_is_only_packed(root, monkeypatch):
    folder, resources = root / "MNIST/raw", []
    for file in IMAGES["mnist"].files:
        packed = folder / f"{file}.gz"
        packed.write_bytes(gzip.compress((folder / file).read_bytes()))
        (folder / file).unlink()
        resources.append((packed.name, md5(packed)))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["no address/"])
    with pytest.raises(FileNotFoundError, match="lacks train-images-idx3-ubyte"):
        images("mnist", root)
    assert torch.equal(images("mnist", root, download=True).x, made("mnist", "train")[0])


def test_torchvision_is_imported_only_where_it_is_used():
    code = "import sys, pyro_scnf.datasets; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- classes without labels, and classes that are thinned --------------------------------------
@given(
    sizes=st.lists(st.integers(3, 20), min_size=2, max_size=6),
    counts=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    seed=seeds,
)
def test_each_class_may_keep_its_own_number_of_labels(sizes, counts, seed):
    y, counts = labels_of(sizes, seed), counts[: len(sizes)]
    kept = keep_labels_per_class(y, counts, seed)
    known = kept != UNLABELLED
    assert counts_of(kept, len(sizes)) == counts
    assert torch.equal(kept[known], y[known])
    for form in (tuple, np.array, torch.tensor):
        assert torch.equal(keep_labels_per_class(y, form(counts), seed), kept)
    same = keep_labels_per_class(y, [2] * len(sizes), seed)
    assert torch.equal(same, keep_labels_per_class(y, 2, seed))


@given(
    sizes=st.lists(st.integers(10, 40), min_size=2, max_size=6),
    chosen=st.sets(st.integers(0, 5), min_size=1),
    per_class=st.integers(1, 8),
    split=st.sampled_from(["balanced", "stratified"]),
    seed=seeds,
)
def test_chosen_classes_alone_keep_labels(sizes, chosen, per_class, split, seed):
    """They keep as many as in data of these classes alone."""
    classes = sorted(k for k in chosen if k < len(sizes))
    assume(classes)
    labels = per_class * len(classes)
    alone = [sizes[k] for k in classes]
    assume(split == "balanced" or min(labels * size / sum(alone) for size in alone) >= 1)
    y = labels_of(sizes, seed)
    kept = keep_labels(y, len(sizes), labels, split, seed, classes=classes[::-1])
    known = kept != UNLABELLED
    assert torch.equal(kept[known], y[known])
    expected = counts_of(keep_labels(labels_of(alone, 0), len(alone), labels, split), len(alone))
    found = counts_of(kept, len(sizes))
    assert [found[k] for k in classes] == expected
    assert sum(found) == labels
    for form in (tuple, np.array, torch.tensor):
        assert torch.equal(keep_labels(y, len(sizes), labels, split, seed, classes=form(classes)), kept)
    every = keep_labels(y, len(sizes), 2 * len(sizes), "balanced", seed, classes=range(len(sizes)))
    assert torch.equal(every, keep_labels(y, len(sizes), 2 * len(sizes), "balanced", seed))


def test_given_rows_may_leave_classes_out_if_that_is_said():
    rows = [k for k in ONE_EACH if SKEWED[k] != 1]
    kept = keep_labels(SKEWED, 3, rows, classes=[2, 0])
    assert (kept != UNLABELLED).nonzero()[:, 0].tolist() == sorted(rows)
    assert counts_of(kept, 3) == [1, 0, 1]


X = torch.arange(50.0)[:, None]
CLASS_ERRORS = {
    "counts": (
        lambda: keep_labels_per_class(SKEWED, [1, 1]),
        r"per_class has 2 numbers, but the labels are 0\.\.2; expected one for each class",
    ),
    "a count": (lambda: keep_labels_per_class(SKEWED, [1, 1, -1]), r"per_class\[2\]=-1: expected at least 0"),
    "half a label": (
        lambda: keep_labels_per_class(SKEWED, [1, 0.5, 1]),
        r"per_class\[1\]=0.5: expected",
    ),
    "too many": (
        lambda: keep_labels_per_class(SKEWED, [5, 0, 2]),
        r"per_class=\[5, 0, 2\]: class 2 has only 1 examples, expected at least 2",
    ),
    "of no class": (
        lambda: keep_labels_per_class(SKEWED, [1, 1, 1, 4]),
        "class 3 has only 0 examples, expected at least 4",
    ),
    "a word": (lambda: keep_labels_per_class(SKEWED, "all"), "per_class='all': expected a whole number"),
    "class out of range": (
        lambda: keep_labels(SKEWED, 3, 2, classes=[0, 3]),
        r"classes\[1\]=3: expected 0 to 2",
    ),
    "class twice": (lambda: keep_labels(SKEWED, 3, 2, classes=[1, 1]), r"classes=\[1, 1\]: expected each cl"),
    "no class": (lambda: keep_labels(SKEWED, 3, 2, classes=[]), r"classes=\[\]: expected the numbers of one"),
    "one class": (lambda: keep_labels(SKEWED, 3, 2, classes=1), "classes=1: expected the numbers of one or"),
    "truth values": (
        lambda: keep_labels(SKEWED, 3, 2, classes=[True, False]),
        r"classes\[0\]=True",
    ),
    "few for the classes": (
        lambda: keep_labels(SKEWED, 3, 1, classes=[0, 1]),
        "labels=1: expected at least one for each of 2 classes",
    ),
    "more than they have": (
        lambda: keep_labels(SKEWED, 3, 22, classes=[1, 2]),
        r"labels=22: there are only 20 examples of the classes \[1, 2\]",
    ),
    "not divisible": (lambda: keep_labels(SKEWED, 3, 3, classes=[0, 1]), "needs a multiple of the 2 classes"),
    "small share": (
        lambda: keep_labels(SKEWED, 3, 10, "stratified", classes=[1, 2]),
        "labels=10: split='stratified' gives none to class 2, which has 1 of 20 examples",
    ),
    "absent": (
        lambda: keep_labels(SKEWED, 3, ONE_EACH[:1], classes=[0, 2]),
        r"labels: no row of class 2 among the 1 given; expected the classes \[0, 2\]",
    ),
    "rows of others": (
        lambda: keep_labels(SKEWED, 3, ONE_EACH, classes=[0, 2]),
        r"labels: rows of class 1, expected only \[0, 2\]",
    ),
    "how to leave out": (
        lambda: keep_labels(SKEWED, 3, ONE_EACH[:2]),
        "name those that .* by classes=",
    ),
    "shares": (lambda: thin_classes(X, SKEWED, [1, 1]), r"shares has 2 numbers, but the labels are 0\.\.2"),
    "one share": (lambda: thin_classes(X, SKEWED, 0.5), "shares=0.5: expected a list of numbers from 0 to 1"),
    "share": (
        lambda: thin_classes(X, SKEWED, [1, 1.5, 1]),
        r"shares\[1\]=1.5: expected a finite",
    ),
    "per cent": (
        lambda: thin_classes(X, SKEWED, [100, 75, 50]),
        r"shares\[0\]=100: expected a finite",
    ),
    "NaN": (lambda: thin_classes(X, SKEWED, [1, 1, float("nan")]), r"shares\[2\]=nan: expected a finite"),
    "none left of one": (
        lambda: thin_classes(X, SKEWED, [1, 0.02, 1]),
        r"shares\[1\]=0.02: none of the 19 rows of class 1 would be left; give 0 to leave the class out",
    ),
    "none left": (lambda: thin_classes(X, SKEWED, [0, 0, 0]), r"shares=\[0, 0, 0\]: no row would be left"),
    "rows to keep": (
        lambda: thin_classes(X, SKEWED, [1, 1, 1], keep=[50]),
        r"keep: row index 50, expected 0",
    ),
    "rows to keep twice": (
        lambda: thin_classes(X, SKEWED, [1, 1, 1], keep=[5, 5]),
        "keep: 1 of 2 row indices are repeated",
    ),
    "no rows to keep": (
        lambda: thin_classes(X, SKEWED, [1, 1, 1], keep=[0.5]),
        r"keep: a tensor of shape \(1,\) and dtype torch.float64; expected integer row indices",
    ),
    "lengths": (lambda: thin_classes(X[1:], SKEWED, [1, 1, 1]), "y has 50 labels and x has 49 rows"),
    "hidden": (
        lambda: thin_classes(X, SKEWED.masked_fill(SKEWED == 1, -1), [1, 1, 1]),
        "thin_classes: y holds labels -1",
    ),
    "thinning seed": (lambda: thin_classes(X, SKEWED, [1, 1, 1], seed=-1), "seed=-1: expected at least 0"),
    "classes of images": (
        lambda: images("mnist", "nowhere", classes=range(11)),
        r"classes\[10\]=10: expected 0 to 9",
    ),
    "shares of images": (lambda: images("mnist", "nowhere", shares=[1] * 9), "shares has 9 numbers"),
    "classes of digits": (
        lambda: enlarged_digits(classes=["a"]),
        r"classes\[0\]='a': expected a whole",
    ),
    "shares of digits": (lambda: digits(shares=[2] * 10), r"shares\[0\]=2: expected a finite number"),
    "counts of digits": (lambda: digits(labels_per_class=[1] * 9), "labels_per_class has 9 numbers"),
    "counts of a toy": (
        lambda: toy("moons", labels_per_class=[5, -1]),
        r"labels_per_class\[1\]=-1: expected at least 0",
    ),
    "shares of a toy": (lambda: toy("moons", shares="half"), "shares='half': expected a list"),
    "factor of moons": (
        lambda: toy("moons", factor=0.4),
        "factor=0.4: it would have no effect, because only circles have a factor",
    ),
    "factor": (
        lambda: toy("circles", factor=1),
        "factor=1: expected a finite number .* below 1",
    ),
    "no factor": (lambda: toy("circles", factor="0.4"), "factor='0.4': expected a finite number"),
}


@pytest.mark.parametrize("case", CLASS_ERRORS)
def test_classes_that_cannot_be_chosen_or_thinned(case):
    call, message = CLASS_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@given(
    sizes=st.lists(st.integers(20, 60), min_size=1, max_size=5),
    shares=st.lists(st.floats(0.05, 1) | st.sampled_from([0.0, 1.0]), min_size=5, max_size=5),
    seed=seeds,
)
def test_thinned_classes_keep_their_share_of_rows(sizes, shares, seed):
    y, shares = labels_of(sizes, seed), shares[: len(sizes)]
    assume(any(shares))
    x = torch.arange(len(y))[:, None]
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    kept, labels = thin_classes(x, y, shares, seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(labels, y[kept[:, 0]])
    assert (kept[1:] > kept[:-1]).all()  # in their order
    expected = [round(share * size) for share, size in zip(shares, sizes, strict=True)]
    assert labels.bincount(minlength=len(sizes)).tolist() == expected
    fewer = thin_classes(x, y, [share / 2 if share * 20 > 1 else share for share in shares], seed)[0]
    assert set(fewer[:, 0].tolist()) <= set(kept[:, 0].tolist())
    whole = thin_classes(x, y, [1.0] * len(sizes), seed)
    assert torch.equal(whole[0], x)


def test_thinned_rows_depend_on_the_seed_and_may_come_from_any_container():
    x, y = torch.rand(60, 2), torch.arange(60) % 3
    first, again, other = (thin_classes(x, y, [1, 0.5, 0.25], seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    for form in (Tensor.numpy, Tensor.tolist):
        rows, labels = thin_classes(form(x), form(y), form(torch.tensor([1, 0.5, 0.25])), 1)
        assert torch.equal(rows, first[0])
        assert torch.equal(labels, first[1])


def test_data_sets_thin_training_rows_and_choose_labels_then():
    shares = [1.0] * 3 + [0.75] * 3 + [0.5] * 3 + [0.25]  # as Izmailov et al. (2020) do
    full, thinned = digits(seed=3), digits(seed=3, shares=shares)
    assert torch.equal(thinned.x_test, full.x_test)
    assert torch.equal(thinned.y_test, full.y_test)
    assert torch.equal(thinned.labelled[1].bincount(), torch.full((10,), 10))
    sizes = torch.from_numpy(load_digits().target).bincount() - full.y_test.bincount()
    assert len(thinned.x) == sum(round(share * int(size)) for share, size in zip(shares, sizes, strict=True))
    enlarged = enlarged_digits(labels=40, classes=range(8), shares=shares, num_val=30, seed=1)
    assert counts_of(enlarged.y, 10) == [5] * 8 + [0, 0]
    train = enlarged_digits(labels=1437, split="stratified", seed=1).y
    left = [round(share * size) for share, size in zip(shares, train.bincount().tolist(), strict=True)]
    assert len(enlarged.x) + len(enlarged.x_val) == sum(left)


def test_images_may_leave_classes_out_and_be_thinned(root):
    x, y = made("mnist", "train")
    shares = [1.0] * 5 + [0.5] * 5
    rows, truth = thin_classes(x, y, shares, 2)
    data = images("mnist", root, labels=8, classes=[0, 1, 2, 9], shares=shares, seed=2)
    assert torch.equal(data.x, rows)
    assert torch.equal(data.y, keep_labels(truth, 10, 8, seed=2, classes=[0, 1, 2, 9]))
    assert counts_of(data.y, 10) == [2, 2, 2, 0, 0, 0, 0, 0, 0, 2]
    assert torch.equal(data.x_test, made("mnist", "test")[0])
    picked = (y == 7).nonzero()[:2, 0]
    data = images("mnist", root, labels=picked, classes=[7], num_val=20, seed=2)
    assert counts_of(data.y, 10) == [0] * 7 + [2, 0, 0]
    whole = dict(zip([image.numpy().tobytes() for image in x], y.tolist(), strict=True))
    assert data.y_val.tolist() == [whole[image.numpy().tobytes()] for image in data.x_val]


def test_toys_may_leave_classes_out_and_be_thinned():
    data = toy("pinwheel", labels_per_class=[4, 0, 3, 2, 1], seed=1)
    assert counts_of(data.y, 5) == [4, 0, 3, 2, 1]
    assert torch.equal(data.x, toy("pinwheel", seed=1).x)
    thin = toy("moons", shares=[1.0, 0.2], noise=0.0, seed=1)
    assert len(thin.x) == 500 + 100
    assert torch.equal(thin.labelled[1].bincount(), torch.tensor([5, 5]))
    assert torch.equal(thin.x_test, toy("moons", noise=0.0, seed=1).x_test)
    gone = toy("moons", shares=[1.0, 0.0], seed=1)  # one number counts for the classes that are left
    assert counts_of(gone.y, 2) == [5, 0]
    assert len(gone.x) == 500


@pytest.mark.parametrize("factor", [0.0, 0.4, np.float64(0.9)])
def test_the_inner_circle_has_the_radius_given(factor):
    data = toy("circles", factor=factor, noise=0.0)
    radii = data.x_test.norm(dim=-1)
    assert torch.allclose(radii[data.y_test == 0], torch.ones(250))
    assert torch.allclose(radii[data.y_test == 1], torch.full((250,), float(factor)), atol=1e-6)
    assert torch.equal(toy("circles").x, toy("circles", factor=0.2).x)


@pytest.mark.parametrize(
    ("name", "noise", "factor", "entropy"),
    [
        ("moons", 0.1, None, 1.009),
        ("circles", 0.1, 0.2, 0.804),
        ("moons", 0.05, None, 0.291),
        ("circles", 0.05, 0.4, 0.494),
    ],
)
def test_entropies_of_the_page(name, noise, factor, entropy):
    """The mean of -log p over points of the toy. The density p has a Gaussian at each noiseless point."""
    options = {} if factor is None else {"factor": factor}
    clean, noisy = (
        toy(name, num_train=num, num_test=500, noise=level, seed=5, **options)
        for num, level in ((500, 0.0), (19500, noise))
    )
    curve = torch.cat([clean.x, clean.x_test]).double()
    x = torch.cat([noisy.x, noisy.x_test]).double()
    log_p = torch.cat(
        [
            (-(torch.cdist(rows, curve) ** 2) / (2 * noise**2)).logsumexp(1)
            - math.log(len(curve) * 2 * math.pi * noise**2)
            for rows in x.split(2000)
        ]
    )
    error = log_p.std().item() / math.sqrt(len(x))
    assert -log_p.mean().item() == pytest.approx(entropy, abs=4 * error)
    assert error < 0.008


@pytest.mark.parametrize("class_probs", ["uniform", "learnable"])
def test_a_class_without_labels_goes_through_model_training_and_evaluation(class_probs):
    data = toy("eight_gaussians", labels_per_class=[5] * 7 + [0], num_train=400, num_test=80, noise=0.05)
    preset = replace(TOY, model=replace(TOY.model, class_probs=class_probs), steps=3, batch_size=64)
    data = preset.prepare(data)
    with pytest.warns(UserWarning, match=r"no labelled row of class \[?7"):
        model = preset.make_model(data, prior="gmm")
    with pytest.warns(UserWarning, match="fit: data has no labelled row of class 7, only of others"):
        preset.fit(model, data, progress=False)
    probs = model.posterior(data.x_test).probs
    assert probs.shape == (80, 8)
    assert probs.isfinite().all()
    assert (model.class_probs().probs > 0).all()  # also that of class 7
    results = evaluate(model, data.x_test, data.y_test)
    assert all(math.isfinite(value) for value in results.values())
    samples = model.flow.sample(torch.full((4,), 7))
    assert samples.isfinite().all()


def test_digits_enlarged_to_the_size_of_mnist():
    data = enlarged_digits(labels=50, num_val=30, seed=1)
    assert data.x.shape == (1797 - 360 - 30, 1, 28, 28)
    assert (data.x.dtype, data.x.max().item()) == (torch.uint8, 255)
    assert counts_of(data.y, 10) == [5] * 10
    assert data.x_val.shape == (30, 1, 28, 28)
    small = torch.nn.functional.interpolate(data.x_test.float(), (8, 8), mode="area") * 16 / 255
    means = torch.stack([small.mean(0).flatten(), digits().x.mean(0).flatten()])
    assert torch.corrcoef(means)[0, 1] > 0.98
    assert (means[0] - means[1]).abs().max() < 3  # of 16; bilinear enlargement smooths
    assert torch.equal(enlarged_digits(labels=50, num_val=30, seed=1).x, data.x)
