"""Files of texts and their labels: published sets by name, and files and data frames of one's own."""

from __future__ import annotations

import csv
import gzip
import html
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_scnf.datasets.label_columns import as_classes_with_names, as_named_labels, column_of
from pyro_scnf.datasets.row_choice import SHARE, check_other

__all__ = ["DAMAGED", "TEXTS", "Corpus", "TextFile", "TextSet", "read_csv", "read_own", "read_set"]

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a compressed file raises if the file is cut short, changed, or not compressed."""


OTHER_FILES = {
    ".parquet": "read_parquet(path)",
    ".xlsx": "read_excel(path)",
    ".xls": "read_excel(path)",
    ".json": "read_json(path)",
    ".jsonl": "read_json(path, lines=True)",
}
"""What reads files that are no CSV files, by their endings."""


@dataclass(frozen=True)
class Corpus:
    """Texts and their labels.

    :ivar texts: training texts, N of them; test rows may be drawn from them if ``tests`` is ``None``.
    :ivar Tensor y: their labels ``(N,)``, -1 where there is none.
    :ivar tests: test texts, M of them, or ``None``.
    :ivar y_test: their labels ``(M,)``, or ``None``.
    :ivar class_names: the names of the classes ``0 .. K - 1``.
    """

    texts: list[str]
    y: Tensor
    tests: list[str] | None
    y_test: Tensor | None
    class_names: tuple[str, ...]


# -- published sets --------------------------------------------------------------------------------
@dataclass(frozen=True)
class TextFile:
    """A CSV file of a published set.

    :ivar str name: its name.
    :ivar int columns: the number of its columns.
    :ivar int label: the column of labels, counted from 0.
    :ivar text: the columns of text, which are joined by blanks.
    :ivar bool header: whether the first line names the columns.
    """

    name: str
    columns: int
    label: int
    text: tuple[int, ...]
    header: bool = False


@dataclass(frozen=True)
class TextSet:
    """A published set of texts.

    :ivar versions: the files that may be there, best first: training file, test file, and the names of the
        classes, which the files number from 1. Without names, the files hold names.
    :ivar folders: folders that may hold the files, inside the root folder. The root folder itself may, too.
    :ivar clean: turns a text as it is in the file into what it means.
    :ivar str address: where to get the files.
    """

    versions: tuple[tuple[TextFile, TextFile, tuple[str, ...] | None], ...]
    folders: tuple[str, ...]
    clean: Callable[[str], str]
    address: str


def clean_news(text: str) -> str:
    r"""A text of AG-News without escapes: ``\`` stands for a new line, and ``#39;`` has lost its ``&``."""
    return _plain(re.sub(r"(?<![A-Za-z&])(#\d+|quot|amp|lt|gt|nbsp);", r"&\1;", text.replace("\\", " ")))


def clean_answer(text: str) -> str:
    r"""A text of Yahoo! Answers without escapes: ``\n`` stands for a new line, and ``<br />`` for another."""
    return _plain(re.sub(r"<br ?/?>", " ", html.unescape(text.replace("\\n", " ").replace('\\"', '"'))))


def _plain(text: str) -> str:
    return " ".join(html.unescape(text).split())


_NEWS = ("World", "Sports", "Business", "Sci/Tech")
_ANSWERS = (
    "Society & Culture",
    "Science & Mathematics",
    "Health",
    "Education & Reference",
    "Computers & Internet",
    "Sports",
    "Business & Finance",
    "Entertainment & Music",
    "Family & Relationships",
    "Politics & Government",
)
_NEWS_TEST = TextFile("test.csv", 3, 0, (1, 2))

TEXTS: dict[str, TextSet] = {
    "ag_news": TextSet(
        (
            (TextFile("train.csv", 3, 0, (1, 2)), _NEWS_TEST, _NEWS),
            (TextFile("train_subset.csv", 3, 0, (1,), header=True), _NEWS_TEST, _NEWS),
        ),
        ("ag_news", "ag_news_csv"),
        clean_news,
        "https://s3.amazonaws.com/fast-ai-nlp/ag_news_csv.tgz",
    ),
    "yahoo": TextSet(
        (
            (TextFile("train.csv", 4, 0, (1, 2, 3)), TextFile("test.csv", 4, 0, (1, 2, 3)), _ANSWERS),
            (TextFile("train_2class.csv", 2, 1, (0,)), TextFile("test_2class.csv", 2, 1, (0,)), None),
        ),
        ("yahoo", "yahoo_answers", "yahoo_answers_csv"),
        clean_answer,
        "https://s3.amazonaws.com/fast-ai-nlp/yahoo_answers_csv.tgz",
    ),
}
"""Published sets of texts by name, as Zhang et al. (2015) made them of news, and of questions with answers.

``"ag_news"``: four classes. Its training file is ``train.csv`` or, if that is not there, ``train_subset.csv``
with a first line ``label,text,source``. ``"yahoo"``: ten classes in ``train.csv`` and ``test.csv``, or two in
``train_2class.csv`` and ``test_2class.csv`` with a text and the name of its class in each line."""


def read_set(name: str, root: Path) -> Corpus:
    """The texts of a published set, from its files below the folder ``root``.

    :raises FileNotFoundError: if files are missing. The message names the folders and where to get the files.
    :raises ValueError: if a file holds something else. The message names it.
    """
    source = TEXTS[name]
    folders = [root / folder for folder in source.folders] + [root]
    for folder in folders:
        for train, test, names in source.versions:
            if (folder / train.name).is_file() and (folder / test.name).is_file():
                return _read_version(source, folder, train, test, names)
    pairs = " or ".join(f"{train.name} and {test.name}" for train, test, _ in source.versions)
    raise FileNotFoundError(
        f"{name}: none of the folders {', '.join(map(str, folders))} holds {pairs}; unpack "
        f"{source.address} into {root}, or give another root"
    )


def _read_version(
    source: TextSet, folder: Path, train: TextFile, test: TextFile, names: tuple[str, ...] | None
) -> Corpus:
    (texts, labels), (tests, test_labels) = (_read_file(folder, file, source.clean) for file in (train, test))
    given = f"{folder / train.name}, column {train.label},"
    if names is None:
        y, classes = as_classes_with_names(labels, given)
        names = numbers = classes
    else:
        numbers = tuple(str(number + 1) for number in range(len(names)))
        y = as_named_labels(labels, numbers, given)
    y_test = as_named_labels(test_labels, numbers, f"{folder / test.name}, column {test.label},")
    return Corpus(texts, y, tests, y_test, names)


def _read_file(folder: Path, file: TextFile, clean: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """The texts and the labels of a file of a published set."""
    path = folder / file.name
    table = read_csv(path, header=0 if file.header else None)
    if table.shape[1] != file.columns:
        raise ValueError(
            f"{path} holds {table.shape[1]} columns, expected {file.columns}; put the file of the original "
            "data set there"
        )
    columns = [table.iloc[:, place].tolist() for place in file.text]
    texts = [clean(" ".join(str(part) for part in parts)) for parts in zip(*columns, strict=True)]
    return _check_texts(texts, str(path)), table.iloc[:, file.label].tolist()


# -- files and data frames of one's own ------------------------------------------------------------
def read_own(
    source: object, tests: object, text_column: object, label: object, unknown: object = None
) -> Corpus:
    """The texts of a CSV file or a data frame, and of a second one for tests.

    :param source: the path of a CSV file whose first line names the columns, or a data frame.
    :param tests: the same for tests, or ``None``. Each of its rows has a label.
    :param text_column: the name of the column of texts.
    :param label: the name of the column of labels.
    :param unknown: a label that means a gap, see :func:`as_classes_with_names`.
    :raises ValueError: for columns that are not there, or the same one twice, for rows without a text, and
        for tests that are the source itself.
    :raises FileNotFoundError: for files that are not there.
    """
    check_other(source, tests)
    table, of = _table(source, "source")
    if label == text_column:
        raise ValueError(
            f"label={label!r}: it is text_column, too, and texts would tell their labels; expected "
            f"another column, one of {list(table.columns)}"
        )
    texts = _check_texts(column_of(table, text_column, "text_column").tolist(), f"{of}{text_column!r}")
    named = f"label={label!r}"
    y, names = as_classes_with_names(column_of(table, label, "label"), named, unknown=unknown)
    if tests is None:
        return Corpus(texts, y, None, None, names)
    table, of = _table(tests, "test")
    more = _check_texts(column_of(table, text_column, "text_column").tolist(), f"{of}{text_column!r}")
    y_test = as_named_labels(column_of(table, label, "label"), names, f"{named} of test")
    return Corpus(texts, y, more, y_test, names)


def _table(source: Any, argument: str) -> tuple[Any, str]:
    """A data frame, read from a file if need be, and what messages call its columns."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_file():
            known = f", one of the sets {', '.join(map(repr, TEXTS))}," if argument == "source" else SHARE
            raise FileNotFoundError(
                f"{argument}={str(source)!r}: there is no such file; expected the path of a CSV file{known} "
                "or a data frame"
            )
        if path.suffix.lower() in OTHER_FILES:
            raise ValueError(
                f"{argument}={str(source)!r}: expected a CSV file or a data frame; give "
                f"pandas.{OTHER_FILES[path.suffix.lower()]}"
            )
        return read_csv(path, header=0), f"{path}, column "
    if not hasattr(source, "columns") or not hasattr(source, "iloc"):
        raise ValueError(
            f"{argument} is of type {type(source).__name__}, expected the path of a CSV file or a data frame"
        )
    return source, f"{argument}, column "


def read_csv(path: Path, header: int | None) -> Any:
    """A CSV file in UTF-8 as a data frame of words. A gap is an empty word."""
    import pandas

    try:
        if header is not None:
            _check_lines(path)
        table = pandas.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); save it as CSV in UTF-8") from error
    except DAMAGED as error:
        raise ValueError(
            f"{path} cannot be unpacked: {error}; it is cut short or damaged, or was not packed by gzip"
        ) from error
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        reason = str(error).strip()
        raise ValueError(
            f"{path} cannot be read as a CSV file: {reason}; put texts that hold commas or line ends in "
            "double quotes"
        ) from error
    return table if header is None else _with_names(table, path)


def _check_lines(path: Path) -> None:
    """Raise if the columns are not separated by commas, or if a line has fewer columns than the first one.

    pandas fills such a line, as if its last columns were blank. It refuses lines with more columns itself,
    and skips blank lines before the first one.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    limit = csv.field_size_limit(sys.maxsize)  # texts may be long
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            first = next((line for line in lines if len(line) > 1 or "".join(line).strip()), [])
            signs = [sign for sign in (";", "\t", "|") if len(first) == 1 and sign in first[0]]
            if signs:
                raise ValueError(
                    f"{path}: the first line holds {signs[0]!r} and no comma, expected columns separated by "
                    f"commas; give a data frame instead, such as pandas.read_csv(path, sep={signs[0]!r})"
                )
            for line in lines:
                if 0 < len(line) < len(first):
                    raise ValueError(
                        f"{path}: line {lines.line_num} has {len(line)} columns, and the first line has "
                        f"{len(first)}; expected as many commas in each line, also where the last columns "
                        "are blank"
                    )
    finally:
        csv.field_size_limit(limit)


def _with_names(table: Any, path: Path) -> Any:
    """A data frame of words whose first row holds the names of the columns."""
    names = [str(name) for name in table.iloc[0]]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: {names.count(twice[0])} columns have the name {twice[0]!r}; rename them")
    named = table.iloc[1:].reset_index(drop=True)
    named.columns = names
    return named


def _check_texts(texts: Sequence[object], given: str) -> list[str]:
    """Raise unless there is a text in each row, and a row at all."""
    if not texts:
        raise ValueError(f"{given} holds no row, expected texts")
    blank = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if blank:
        raise ValueError(
            f"{given} holds no text in {len(blank)} of {len(texts)} rows, first {texts[blank[0]]!r} in row "
            f"{blank[0]}; leave such rows out"
        )
    return [str(text) for text in texts]
