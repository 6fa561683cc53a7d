"""Folders of images with one sub-folder for each class, and images as squares of a given size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._warn import warn
from pyro_scnf.datasets.row_choice import SHARE

__all__ = ["LabelledImages", "Picture", "as_square", "check_apart", "content_of", "read_folder"]

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Files with these endings are images. Others are left out."""

UNREADABLE = frozenset(
    {".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".raw", ".svg"}
)
"""Files with these endings are images that Pillow may not read. A warning tells that they are left out."""

UNLABELLED_FOLDER = "unlabelled"
"""The sub-folder of images without a label, if the user names none."""

SPLITS_OF_IMAGES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})
"""Sub-folders of images to train on, to choose by and to test on have such names, in any case of letters."""

Picture = Tensor | Path
"""An image ``(3, H, W)`` in uint8, or the file of one."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and their labels.

    :ivar images: the images, N of them.
    :ivar Tensor y: their labels ``(N,)``, -1 where there is none.
    :ivar class_names: the names of the classes ``0 .. K - 1``.
    """

    images: Sequence[Picture]
    y: Tensor
    class_names: tuple[str, ...]


def read_folder(
    source: object, argument: str, unlabelled: str | None, class_names: tuple[str, ...] | None = None
) -> LabelledImages:
    """Find the images of a folder. Each sub-folder is a class, with all images in it and below it.

    Files and folders whose names begin with a dot are left out. A warning tells of images of other kinds,
    such as HEIC, which are left out, too, and of classes that hold no image themselves, and folders of the
    same names each: these may be the classes.

    :param source: the path of the folder.
    :param str argument: the argument that holds it, for messages.
    :param unlabelled: the sub-folder of images without a label; ``None`` for ``"unlabelled"``, if there is
        one. Images in no sub-folder have no label, either.
    :param class_names: the classes, if they are known. Each image then has to have a label among them. By
        default the sub-folders tell the classes, in the order of their names.
    :raises FileNotFoundError: if there is no such folder, or no such sub-folder of images without a label.
    :raises ValueError: for a sub-folder without images, or with a name like ``"unlabelled"``; for sub-folders
        such as ``train`` and ``test``, and one whose folders all have the names of other sub-folders; for
        less than two classes, for another class than ``class_names``, or an image without a label beside
        them; for a link to an image that is not there.
    """
    if not isinstance(source, str | Path):
        raise ValueError(f"{argument}={source!r}: expected the path of a folder of images")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{argument}={str(source)!r}: there is no such folder; expected one with a sub-folder of images "
            f"for each class{SHARE.rstrip(',') if argument == 'test' else ''}"
        )
    found: dict[str, list[Path]] = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        found[part.name] = list(_images_below(part, {folder.resolve()}))
        if not found[part.name]:
            known = ", ".join(sorted(SUFFIXES))
            raise ValueError(f"{part} holds no image ({known}); put some there, or take the folder away")
    blank = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    _check_files(folder, argument, [*blank, *chain(*found.values())])
    if class_names is None:
        _check_unlabelled(unlabelled, folder, list(found))
    blank += found.pop(unlabelled or UNLABELLED_FOLDER, [])
    if class_names is None:
        class_names = tuple(found)
        if len(class_names) < 2:
            higher = [folder / name for name in class_names if _folders_inside(folder / name)]
            remedy = f"; give source={str(higher[0])!r} if its folders are the classes" if higher else ""
            raise ValueError(
                f"{argument}: {folder} holds {len(class_names)} sub-folders of labelled images, expected one "
                f"for each of two classes or more{remedy}"
            )
        _check_levels(folder, class_names)
    else:
        _check_test(folder, argument, found, blank, class_names)
    files, y = list(blank), [UNLABELLED] * len(blank)
    for number, name in enumerate(class_names):
        files += found.get(name, [])
        y += [number] * len(found.get(name, []))
    return LabelledImages(files, torch.tensor(y, dtype=torch.int64), class_names)


def check_apart(images: LabelledImages, tests: LabelledImages) -> None:
    """Raise if a file is an image to train on and one to test on."""
    files = {item.resolve() for item in images.images if isinstance(item, Path)}
    both = [item for item in tests.images if isinstance(item, Path) and item.resolve() in files]
    if both:
        raise ValueError(
            f"test: {len(both)} of {len(tests.images)} test images are images of source, too, such as "
            f"{both[0]}; expected a folder of other images, or a share of the labelled ones, such as test=0.2"
        )


def _check_levels(folder: Path, names: tuple[str, ...]) -> None:
    """Raise if the classes are one level deeper in the folder than they should be. Warn if they may be."""
    splits = [name for name in names if name.lower() in SPLITS_OF_IMAGES]
    if len(splits) > 1:
        # "train" comes first, and "test" last.
        train, *_, test = sorted(
            splits, key=lambda name: (name.lower()[:2] == "te") - (name.lower()[:2] == "tr")
        )
        raise ValueError(
            f"source: {folder} holds the sub-folders {', '.join(splits)}, which would be classes. Give each "
            f"part by itself, with a sub-folder for each class in it: source={str(folder / train)!r}, "
            f"test={str(folder / test)!r}. If they are classes, rename them"
        )
    inside = {name: _folders_inside(folder / name) for name in names}
    for name, inner in inside.items():
        if inner and set(inner) <= set(names):
            raise ValueError(
                f"source: {folder / name} holds no image itself, but the folders {', '.join(inner)}, which "
                f"have the names of other classes. Move it out of {folder}, and give it as test= if its "
                "images are to test on"
            )
    first, *others = inside.values()
    if others and len(first) > 1 and all(inner == first for inner in others):
        warn(
            f"source: the sub-folders {', '.join(names[:5])} of {folder} are the classes. Each holds no "
            f"image itself, but the folders {', '.join(first[:5])}; if these are the classes, give a "
            "sub-folder as source"
        )


def _folders_inside(folder: Path) -> list[str]:
    """The names of the folders in a folder, if it holds no image itself; otherwise none."""
    inner = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    if any(_is_image(path) for path in inner):
        return []
    return [path.name for path in inner if path.is_dir()]


def _check_unlabelled(unlabelled: str | None, folder: Path, found: list[str]) -> None:
    """Raise unless it is clear which sub-folder, if any, holds the images without a label."""
    if unlabelled is not None:
        if unlabelled not in found:
            raise FileNotFoundError(
                f"unlabelled={unlabelled!r}: {folder} holds no such sub-folder, expected one of {found}"
            )
        return
    alike = [name for name in found if re.fullmatch(r"un[-_ ]?labell?ed", name, re.IGNORECASE)]
    if alike not in ([], [UNLABELLED_FOLDER]):
        name = next(name for name in alike if name != UNLABELLED_FOLDER)
        raise ValueError(
            f"{folder / name}: this sub-folder would be a class; if its images have no label, give "
            f"unlabelled={name!r}, otherwise rename it"
        )


def _check_test(
    folder: Path, argument: str, found: dict[str, list[Path]], blank: list[Path], class_names: tuple[str, ...]
) -> None:
    """Raise unless a folder of test images has sub-folders of known classes, and nothing else."""
    others = [name for name in found if name not in class_names]
    if others or not found:
        raise ValueError(
            f"{argument}: {folder} holds the sub-folders {others}, expected those of the training images: "
            f"{', '.join(class_names)}"
        )
    if blank:
        raise ValueError(f"{argument}: {blank[0]} has no label, and every test image needs one; move it away")


def _images_below(folder: Path, above: set[Path]) -> Iterator[Path]:
    """The images in a folder and below it, in the order of their names.

    :param above: the folders that it is in. A link to one of them holds nothing new.
    """
    inside = {*above, folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name[0] != ".":
            if path.resolve() not in inside:
                yield from _images_below(path, inside)
        elif _is_image(path):
            yield path


def _is_image(path: Path) -> bool:
    """Whether a file has the name of an image, or is a link that has, to whatever."""
    named = path.suffix.lower() in SUFFIXES and path.name[0] != "."
    return named and (path.is_file() or path.is_symlink())


def _check_files(folder: Path, argument: str, images: Sequence[Path]) -> None:
    """Raise for links to nothing. Warn of images of kinds that are left out."""
    lost = next((path for path in images if not path.exists()), None)
    if lost is not None:
        raise ValueError(f"{argument}: {lost} is a link to a missing file; mend it, or take it away")
    below = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in UNREADABLE)
    others = [path for path in below if not any(part[0] == "." for part in path.parts)]
    if others:
        warn(
            f"{argument}: {len(others)} files such as {folder / min(others)} are left out, because images of "
            "their kind cannot be read; save them as PNG or JPEG"
        )


# -- pixels ----------------------------------------------------------------------------------------
def content_of(picture: Picture) -> bytes:
    """What an image depends on: its pixels, or the bytes of its file."""
    return picture.read_bytes() if isinstance(picture, Path) else picture.numpy().tobytes()


def as_square(picture: Picture, size: int) -> Tensor:
    """The largest square in the middle of an image, scaled, as ``(3, size, size)`` from 0 to 1.

    :raises ValueError: if a file cannot be read. The message names it.
    """
    from PIL import Image

    if isinstance(picture, Tensor):
        return _fit(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()), size)
    try:
        with Image.open(picture) as image:
            return _fit(_upright(image, size), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{picture} cannot be read as an image: {error}; mend it, or take it out of the folder"
        ) from error


def _upright(image: Any, size: int) -> Any:
    """An open image file in colours of 8 bits, turned as its camera was."""
    from PIL import ImageOps

    if image.mode[0] in "IF":
        raise ValueError(f"its pixels have the mode {image.mode}, expected 8 bits a channel")
    image.draft("RGB", (size, size))  # a large JPEG is decoded at about the size that is needed
    return ImageOps.exif_transpose(image).convert("RGB")


def _fit(image: Any, size: int) -> Tensor:
    from PIL import Image, ImageOps

    square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
