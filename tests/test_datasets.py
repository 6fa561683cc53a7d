"""The data sets: their sizes, splits by seed, hidden labels, image files and augmentation.

The tests write image files in the formats of the real ones. The real torchvision classes read them.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from sklearn.model_selection import train_test_split
from torch import Tensor

from pyro_scnf import UNLABELLED
from pyro_scnf.datasets import (
    IMAGES,
    TOYS,
    digits,
    enlarged_digits,
    images,
    keep_labels,
    keep_labels_per_class,
    toy,
)

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
    assert counts_of(keep_labels(labels_of([10, 10, 10], 0), 3, 5, "stratified"), 3) == [2, 2, 1]


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
