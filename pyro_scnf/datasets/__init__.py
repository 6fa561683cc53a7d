"""Partly labelled data sets, split reproducibly by seed: 2-D toys, handwritten digits, images.

scikit-learn makes the toys and ships the digits (extra ``datasets``); torchvision reads the images.
"""

from pyro_scnf.datasets.augment import Augment, FeatureDropout, Jitter
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.evidence import LabelEvidence, label_evidence
from pyro_scnf.datasets.features import FEATURES, deskew, hog_features, pixel_features, upright_features
from pyro_scnf.datasets.graph import NeighbourGraph, neighbour_graph
from pyro_scnf.datasets.image_augment import ImageAugment, RandomShift, random_affine, random_shift
from pyro_scnf.datasets.images import IMAGES, ImageSet, enlarged_digits, images
from pyro_scnf.datasets.neighbours import link_neighbours, nearest_neighbours
from pyro_scnf.datasets.splits import SPLITS, keep_labels, keep_labels_per_class, thin_classes
from pyro_scnf.datasets.toys import TOYS, digits, toy

__all__ = [
    "FEATURES",
    "IMAGES",
    "SPLITS",
    "TOYS",
    "Augment",
    "FeatureDropout",
    "ImageAugment",
    "ImageSet",
    "Jitter",
    "LabelEvidence",
    "NeighbourGraph",
    "RandomShift",
    "SemiSupervisedData",
    "deskew",
    "digits",
    "enlarged_digits",
    "hog_features",
    "images",
    "keep_labels",
    "keep_labels_per_class",
    "label_evidence",
    "link_neighbours",
    "nearest_neighbours",
    "neighbour_graph",
    "pixel_features",
    "random_affine",
    "random_shift",
    "thin_classes",
    "toy",
    "upright_features",
]
