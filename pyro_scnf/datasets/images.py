"""Image data sets with few of their labels kept: those that torchvision reads, and enlarged digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_at_least, check_flag, check_whole, check_word
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.row_choice import choose_labels
from pyro_scnf.datasets.splits import Numbers, Shares, as_classes, as_shares, check_split

__all__ = ["IMAGES", "ImageSet", "enlarged_digits", "images"]


@dataclass(frozen=True)
class ImageSet:
    """How to read an image data set, and what it holds.

    :ivar read: ``read(root, train, download)`` gives the images ``(N, C, H, W)`` in uint8 and the labels
        ``(N,)`` in int64 of the training part, or of the test part if ``train`` is false.
    :ivar int num_classes: number of labels K.
    :ivar shape: shape of one image, ``(C, H, W)``.
    :ivar str folder: folder of the files, inside the root folder.
    :ivar files: names of the files.
    """

    read: Callable[[Path, bool, bool], tuple[Tensor, Tensor]]
    num_classes: int
    shape: tuple[int, int, int]
    folder: str
    files: tuple[str, ...]


# Importing torchvision takes long, so each reader imports it only when it is called.
def _read_idx(kind: str, root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision import datasets

    part = getattr(datasets, kind)(root, train, download=download)
    return part.data[:, None], part.targets


def _read_svhn(root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision import datasets

    part = datasets.SVHN(root, "train" if train else "test", download=download)
    return torch.from_numpy(np.ascontiguousarray(part.data)), torch.from_numpy(part.labels)


def _read_cifar10(root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision import datasets

    part = datasets.CIFAR10(root, train, download=download)
    return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)


_IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_SVHN = ("train_32x32.mat", "test_32x32.mat")
_CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

IMAGES: dict[str, ImageSet] = {
    "mnist": ImageSet(partial(_read_idx, "MNIST"), 10, (1, 28, 28), "MNIST/raw", _IDX),
    "fashion-mnist": ImageSet(partial(_read_idx, "FashionMNIST"), 10, (1, 28, 28), "FashionMNIST/raw", _IDX),
    "svhn": ImageSet(_read_svhn, 10, (3, 32, 32), "", _SVHN),
    "cifar10": ImageSet(_read_cifar10, 10, (3, 32, 32), "cifar-10-batches-py", _CIFAR10),
}
"""Image data sets by name: how to read one, and what it holds."""


def images(
    name: str,
    root: str | Path,
    *,
    labels: int | Numbers = 100,
    split: str = "balanced",
    classes: Numbers | None = None,
    shares: Shares | None = None,
    seed: int = 0,
    num_val: int = 0,
    download: bool = False,
) -> SemiSupervisedData:
    """The standard training and test images of a data set, with ``labels`` training labels.

    Images are ``(N, C, H, W)`` in uint8, ``0 .. 255``. Dequantise them with
    :func:`~pyro_scnf.transforms.dequantize`, or train with :class:`ImageAugment`. The ``extra`` images of
    SVHN are left out.

    :param str name: one of :data:`IMAGES`.
    :param root: the ``root`` folder of torchvision's data sets.
    :param labels: how many labels to keep. For a published split, give the row indices ``(n,)`` of the
        labels instead, as a tensor, an array or a list. They count training images in the order of the files.
    :param str split: how labels are chosen, one of :data:`SPLITS`: ``"balanced"`` as in Kingma et al.
        (2014), ``"stratified"`` as in Atanov et al. (2019), who keep 100 of MNIST's 60,000; see
        :func:`keep_labels`.
    :param classes: the classes that keep labels; by default all, see :func:`keep_labels`.
    :param shares: the share of the training images of each class that stays, see :func:`thin_classes`. By
        default all stay, and so do images whose row indices are in ``labels``.
    :param int seed: seed of the choice of labels and of held-out rows. The global generator plays no part.
    :param int num_val: unlabelled rows to hold out with :meth:`~SemiSupervisedData.hold_out`, with their
        true labels as ``y_val``. It does not change which labels are kept.
    :param bool download: fetch missing files, and unpack files that are still packed.
    :raises ValueError: for an unknown name, for labels that :func:`keep_labels` refuses, for shares that
        :func:`thin_classes` refuses, or if ``num_val`` is not below the number of unlabelled rows.
    :raises ValueError: if files hold another number of labels than of images, images of another shape, or
        labels out of range. The message names them.
    :raises FileNotFoundError: if files are missing or damaged, or cannot be fetched.

    References: Kingma et al., *Semi-supervised learning with deep generative models*, 2014, section
    4; Atanov et al., *Semi-conditional normalizing flows for semi-supervised learning*, 2019,
    section 4.2.
    """
    check_word("name", name, IMAGES)
    if not isinstance(root, str | Path):
        raise ValueError(f"root={root!r}: expected the path of a folder")
    check_at_least(0, num_val=num_val)
    check_flag(download=download)
    keep = _Choice(labels, split, classes, shares, seed, num_val)
    keep.check(IMAGES[name].num_classes)
    train, test = _read(name, Path(root).expanduser().absolute(), download)
    return keep.of(train, test, IMAGES[name].num_classes)


def enlarged_digits(
    *,
    labels: int | Numbers = 100,
    split: str = "balanced",
    classes: Numbers | None = None,
    shares: Shares | None = None,
    num_test: int = 360,
    num_val: int = 0,
    seed: int = 0,
) -> SemiSupervisedData:
    """:func:`~pyro_scnf.datasets.digits` enlarged to 28×28 pixels of 256 grey levels, in uint8.

    They stand in for MNIST where nothing can be downloaded.

    :param labels: how many labels to keep, or the row indices of those to keep, see :func:`keep_labels`.
    :param str split: how labels are chosen, one of :data:`SPLITS`.
    :param classes: the classes that keep labels; by default all, see :func:`keep_labels`.
    :param shares: the share of the training images of each class that stays, see :func:`thin_classes`. By
        default all stay.
    :param int num_test: test images.
    :param int num_val: unlabelled rows to hold out, with their true labels as ``y_val``.
    :param int seed: seed of the split, of the choice of labels and of held-out rows.
    :raises ValueError: for labels that :func:`keep_labels` refuses, for shares that :func:`thin_classes`
        refuses, if ``num_val`` is not below the number of unlabelled rows, or if ``num_test`` leaves no
        training images.
    """
    check_at_least(0, num_val=num_val)
    keep = _Choice(labels, split, classes, shares, seed, num_val)
    keep.check(10)
    bunch = require("sklearn.datasets", "datasets").load_digits()
    x = F.interpolate(torch.from_numpy(bunch.images[:, None]), (28, 28), mode="bilinear")
    x, y = (x * 255 / 16).round().to(torch.uint8), torch.from_numpy(bunch.target)
    num_test = check_whole("num_test", num_test, 0, len(x) - 1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(int(seed)))
    train, test = order[num_test:], order[:num_test]
    return keep.of((x[train], y[train]), (x[test], y[test]), 10)


@dataclass(frozen=True)
class _Choice:
    """Which training rows stay, which labels are kept, and how many rows are held out."""

    labels: int | Numbers
    split: str
    classes: Numbers | None
    shares: Shares | None
    seed: int
    num_val: int

    def check(self, num_classes: int) -> None:
        """Raise for what cannot be, before files are read."""
        check_split(self.labels, self.split, self.seed)
        as_classes(self.classes, num_classes)
        if self.shares is not None:
            as_shares(self.shares, num_classes)

    def of(
        self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int
    ) -> SemiSupervisedData:
        """Thin the training rows, hide all but some of their labels, and hold rows out."""
        x, truth = train
        choice = (self.labels, self.split, self.classes, self.shares, self.seed)
        rows, shown = choose_labels(truth, num_classes, *choice)
        data = SemiSupervisedData(x[rows], shown, *test, num_classes)
        hidden = int((data.y == UNLABELLED).sum())
        if self.num_val and self.num_val >= hidden:
            raise ValueError(f"num_val={self.num_val}: expected less than the {hidden} unlabelled rows")
        return data.hold_out(self.num_val, self.seed, truth[rows]) if self.num_val else data


def _read(name: str, root: Path, download: bool) -> list[tuple[Tensor, Tensor]]:
    """The training and the test part. If reading fails, the error names the folder and what is wrong."""
    source = IMAGES[name]
    try:
        parts = [source.read(root, train, download) for train in (True, False)]
    except (RuntimeError, ValueError, URLError) as error:
        folder = root / source.folder
        missing = [file for file in source.files if not (folder / file).is_file()]
        state = f"lacks {', '.join(missing)}" if missing else "holds damaged files, delete them first"
        remedy = (
            f"download=True did not help ({error}), so"
            if download
            else "download=True (in the examples, --download) fetches and unpacks them, or"
        )
        raise FileNotFoundError(f"{name}: {folder} {state}; {remedy} put them there by hand") from error
    for (x, y), train in zip(parts, (True, False), strict=True):
        _check_part(x, y, source, f"{name}: {root / source.folder}", train)
    return parts


def _check_part(x: Tensor, y: Tensor, source: ImageSet, given: str, train: bool) -> None:
    """Raise unless the images and the labels of one part fit together. The message names the files."""
    files = [file for file in source.files if file.startswith(("t10k", "test")) != train]
    given = f"{given}: {', '.join(files)}"
    remedy = "put the files of the original data set there"
    if len(x) != len(y):
        raise ValueError(f"{given} hold {len(x)} images and {len(y)} labels, expected as many; {remedy}")
    if x.shape[1:] != source.shape:
        raise ValueError(
            f"{given} hold images of shape {tuple(x.shape[1:])}, expected {source.shape}; {remedy}"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < source.num_classes:
        raise ValueError(
            f"{given} hold labels {int(y.min())}..{int(y.max())}, expected 0..{source.num_classes - 1}; "
            f"{remedy}"
        )
