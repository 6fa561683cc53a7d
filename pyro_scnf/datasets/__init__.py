"""Partly labelled data sets, split reproducibly by seed: toys, digits, images, tables and texts.

scikit-learn makes the toys and ships the digits (extra ``datasets``); torchvision reads the images.
Pretrained encoders turn texts (extra ``text``) and photographs (extra ``vision``) into rows of numbers.
"""

from pyro_scnf.datasets.augment import Augment, FeatureDropout, Jitter
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.embedding_cache import Encoder
from pyro_scnf.datasets.evidence import LabelEvidence, label_evidence
from pyro_scnf.datasets.features import IMAGE_ENCODERS, features
from pyro_scnf.datasets.graph import NeighbourGraph, neighbour_graph
from pyro_scnf.datasets.image_augment import ImageAugment, RandomShift, random_affine, random_shift
from pyro_scnf.datasets.image_features import FEATURES, deskew, hog_features, pixel_features, upright_features
from pyro_scnf.datasets.images import IMAGES, ImageSet, enlarged_digits, images
from pyro_scnf.datasets.neighbours import link_neighbours, nearest_neighbours
from pyro_scnf.datasets.splits import SPLITS, keep_labels, keep_labels_per_class, thin_classes
from pyro_scnf.datasets.table_files import TABLES, TableSet
from pyro_scnf.datasets.table_noise import TableNoise, repeated_widths
from pyro_scnf.datasets.tabular import tabular
from pyro_scnf.datasets.text import SENTENCE_ENCODERS, text
from pyro_scnf.datasets.text_files import TEXTS, TextFile, TextSet
from pyro_scnf.datasets.toys import TOYS, digits, toy

__all__ = [
    "FEATURES",
    "IMAGES",
    "IMAGE_ENCODERS",
    "SENTENCE_ENCODERS",
    "SPLITS",
    "TABLES",
    "TEXTS",
    "TOYS",
    "Augment",
    "Encoder",
    "FeatureDropout",
    "ImageAugment",
    "ImageSet",
    "Jitter",
    "LabelEvidence",
    "NeighbourGraph",
    "RandomShift",
    "SemiSupervisedData",
    "TableNoise",
    "TableSet",
    "TextFile",
    "TextSet",
    "deskew",
    "digits",
    "enlarged_digits",
    "features",
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
    "repeated_widths",
    "tabular",
    "text",
    "thin_classes",
    "toy",
    "upright_features",
]
