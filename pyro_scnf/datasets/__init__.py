"""Partly labelled data sets, split reproducibly by seed: 2-D toys, handwritten digits, images.

scikit-learn makes the toys and ships the digits (extra ``examples``); torchvision reads the images.
"""

from pyro_scnf.datasets.augment import ImageAugment, RandomShift, random_shift
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.images import IMAGES, ImageSet, images
from pyro_scnf.datasets.neighbours import deskew, link_neighbours, nearest_neighbours, pooled
from pyro_scnf.datasets.splits import SPLITS, hide_labels, keep_labels
from pyro_scnf.datasets.toys import TOYS, digits, toy

__all__ = [
    "IMAGES",
    "SPLITS",
    "TOYS",
    "ImageAugment",
    "ImageSet",
    "RandomShift",
    "SemiSupervisedData",
    "deskew",
    "digits",
    "hide_labels",
    "images",
    "keep_labels",
    "link_neighbours",
    "nearest_neighbours",
    "pooled",
    "random_shift",
    "toy",
]
