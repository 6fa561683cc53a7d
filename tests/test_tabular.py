"""Tables: columns as numbers, learnt from training rows alone; files; noise for columns."""

from __future__ import annotations

import datetime as dt
import gzip
import importlib.util
import warnings
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_scnf.datasets import TABLES, SemiSupervisedData, TableNoise, repeated_widths, tabular
from pyro_scnf.datasets.label_columns import as_classes_with_names
from pyro_scnf.datasets.row_choice import held_out_test


def mixed(count: int = 40) -> pd.DataFrame:
    """Numbers with and without blanks, truth values, and words of two, three and many levels."""
    i = np.arange(count)
    return pd.DataFrame(
        {
            "length": i / 10,
            "weight": np.where(i % 5 == 0, np.nan, i % 7),
            "visits": i % 4,
            "smokes": i % 3 == 0,
            "sex": np.where(i % 2, "m", "f"),
            "ward": np.array(["north", "east", None], dtype=object)[i % 3],
            "always": 3,
            "kind": np.array(["a", "b", None, "b"], dtype=object)[i % 4],
        }
    )


NAMES = (
    "length",
    "weight",
    "weight is blank",
    "visits",
    "smokes",
    "sex=m",
    "ward=east",
    "ward=north",
    "ward=blank",
)


def column(data: SemiSupervisedData, name: str, test: bool = False) -> list[float]:
    x = data.x_test if test else data.x
    return x[:, data.column_names.index(name)].tolist()


# -- columns ---------------------------------------------------------------------------------------
def test_columns_become_numbers():
    table = mixed()
    data = tabular(table, label="kind", test=0)
    assert data.column_names == NAMES
    assert (data.x.dtype, data.x.shape, data.x_test.shape) == (torch.float32, (40, 9), (0, 9))
    assert data.class_names == ("a", "b")
    assert np.allclose(column(data, "length"), table["length"])
    weights = table["weight"].fillna(table["weight"].quantile(interpolation="lower"))
    assert column(data, "weight") == weights.tolist()
    assert column(data, "weight is blank") == table["weight"].isna().astype(float).tolist()
    assert column(data, "smokes") == table["smokes"].astype(float).tolist()
    assert column(data, "sex=m") == (table["sex"] == "m").astype(float).tolist()
    assert column(data, "ward=blank") == table["ward"].isna().astype(float).tolist()
    assert data.x[:, 6:].sum(1).unique().tolist() == [1.0]


def test_rows_stay_in_the_order_of_the_source():
    table = mixed()
    data = tabular(table, label="kind", test=0)
    assert (data.y == -1).tolist() == table["kind"].isna().tolist()
    assert np.allclose(data.x[data.y == -1][:, 0], table["length"][table["kind"].isna()])
    data = tabular(table, label="kind", test=0.3, seed=4)
    for share in (np.float32(0.3), np.array(0.3), torch.tensor(0.3)):
        assert torch.equal(tabular(table, label="kind", test=share, seed=4).x_test, data.x_test)
    train, tested = held_out_test(as_classes_with_names(table["kind"], "")[0], 0.3, 4)
    assert np.allclose(column(data, "length"), table["length"].to_numpy()[train])
    assert np.allclose(column(data, "length", test=True), table["length"].to_numpy()[tested])


def csv_of(table: pd.DataFrame, path, **options) -> str:
    table.to_csv(path, index=False, **options)
    return str(path)


def npz_of(folder, **arrays) -> str:
    np.savez(folder / "table.npz", **arrays)
    return str(folder / "table.npz")


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_file_says_the_same_as_a_data_frame(ending, tmp_path):
    found = tabular(csv_of(mixed(), tmp_path / f"t.{ending}"), label="kind", seed=1)
    expected = tabular(mixed(), label="kind", seed=1)
    for name in ("x", "y", "x_test", "y_test", "column_names", "class_names"):
        left, right = getattr(found, name), getattr(expected, name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("damage", ["cut", "not packed", "changed"])
def test_a_packed_file_that_is_damaged_is_named(damage, tmp_path):
    path = tmp_path / "t.csv.gz"
    csv_of(mixed(), path)
    packed = path.read_bytes()
    spoiled = {"cut": packed[:-20], "not packed": gzip.decompress(packed)}
    path.write_bytes(spoiled.get(damage, packed[:60] + bytes(20) + packed[80:]))
    with pytest.raises(ValueError, match=r"t\.csv\.gz cannot be unpacked: .*; it is cut short"):
        tabular(path, label="kind")
    for part in ("train", "test"):
        (tmp_path / f"1000_{part}.csv.gz").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"1000_train\.csv\.gz is no table of numbers"):
        tabular("hepmass", root=tmp_path)


def test_a_parquet_file(tmp_path):
    path = tmp_path / "table.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        path.touch()
        with pytest.raises(ImportError, match=r"source='.*table.parquet': .*needs pyarrow"):
            tabular(path, label="kind")
        pytest.skip("pyarrow is not installed")
    mixed().to_parquet(path)
    assert torch.equal(tabular(path, label="kind").x, tabular(mixed(), label="kind").x)


def test_arrays(tmp_path):
    x, y = np.arange(24).reshape(12, 2), np.array(["u", "v"] * 6)
    data = tabular(npz_of(tmp_path, x=x, y=y), test=0)
    assert (data.column_names, data.class_names) == (("x0", "x1"), ("u", "v"))
    assert torch.equal(data.x, torch.from_numpy(x).float())
    path = npz_of(tmp_path, X=x, y=y, X_test=x[:3] + 0.5, y_test=y[:3])
    data = tabular(path)
    assert (len(data.x), data.x_test.tolist(), data.y_test.tolist()) == (
        12,
        (x[:3] + 0.5).tolist(),
        [0, 1, 0],
    )
    with pytest.raises(ValueError, match=r"test=0.2: it would have no effect, because source has test rows"):
        tabular(path, test=0.2)
    with pytest.raises(ValueError, match="test: source has test rows of its own"):
        tabular(path, test=path)


def of_words(words: list[object], more: list[object] | None = None, **options) -> SemiSupervisedData:
    """A table of one column ``v`` and a number, and test rows with ``more``."""
    size = len(words)
    train = pd.DataFrame({"v": pd.Series(words, dtype=object), "n": range(size), "y": [0, 1] * (size // 2)})
    if more is None:
        return tabular(train, label="y", test=0, **options)
    test = pd.DataFrame({"v": pd.Series(more, dtype=object), "n": range(len(more)), "y": 0})
    return tabular(train, label="y", test=test, **options)


AS_NUMBERS = {
    "plain numbers": (["1", " 2.5", "-3e1", ".5"], [1, 2.5, -30, 0.5]),
    "truth values": (["True", "false", "TRUE", "False"], [1, 0, 1, 0]),
    "decimals": ([Decimal("1.5"), 2, np.int64(3), True], [1.5, 2, 3, 1]),
}


@pytest.mark.parametrize("case", AS_NUMBERS)
def test_objects_that_are_numbers(case):
    words, numbers = AS_NUMBERS[case]
    data = of_words(words)
    assert data.column_names == ("v", "n")
    assert column(data, "v") == numbers


@pytest.mark.parametrize("blank", ["", "  ", "NA", "nan", "None", None, pd.NA, np.nan, pd.NaT])
def test_blanks(blank):
    data = of_words(["1", blank, "5", "3"])
    assert (column(data, "v"), column(data, "v is blank")) == ([1, 3, 5, 3], [0, 1, 0, 0])
    data = of_words(["p", blank, "q", "p"])
    assert data.column_names == ("v=p", "v=q", "v=blank", "n")
    data = of_words(["p", blank] * 2)
    assert data.column_names == ("v=blank", "n")
    assert of_words([1, 2, 3, 9], [blank]).x_test.tolist() == [[2, 0]]
    with pytest.raises(ValueError, match=r"blanks='refuse': source holds blanks in 'v' in 1 rows; fill them"):
        of_words(["p", blank, "q", "p"], blanks="refuse")
    with pytest.raises(ValueError, match="blanks='refuse': test holds blanks in 'v' in 2 rows"):
        of_words([1, 2], [blank, blank], blanks="refuse")


def test_many_levels_share_a_column():
    words = [f"w{i:02}" for i in range(25) for _ in range(2 + (i < 20))] + ["w00", None]
    data = of_words(words + ["w00"] * (len(words) % 2), ["w00", "w24", "new", None])
    kept = tuple(f"v=w{i:02}" for i in range(20))
    assert data.column_names == (*kept, "v=other", "v=blank", "n")
    assert data.x[:, :22].sum(1).unique().tolist() == [1.0]
    assert [row.nonzero()[0].tolist() for row in data.x_test[:, :22].numpy()] == [[0], [20], [20], [21]]
    data = of_words(["p", "q", "r", "p"], ["new", "q", None])
    assert data.x_test[:, :3].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_levels_named_as_the_shared_columns_join_them():
    words = ["other"] * 9 + [f"w{i:02}" for i in range(22) for _ in range(2)] + ["blank", None, "w00"]
    data = of_words(words)
    assert sum(name in ("v=other", "v=blank") for name in data.column_names) in (1, 2)
    assert len(set(data.column_names)) == len(data.column_names)
    assert of_words(["blank", "p", None, "q"]).column_names == ("v=blank", "v=p", "v=q", "n")


def test_codes_are_categories_if_that_is_said():
    data = of_words([10.0, 9, 10, None, 8, 8], categories=["v"])
    assert data.column_names == ("v=8", "v=9", "v=10", "v=blank", "n")
    codes = pd.Series(["01", "1.0", "1", "02"] * 2)
    assert of_words(list(codes), categories=("v",)).column_names[:3] == ("v=01", "v=1", "v=02")
    table = pd.DataFrame({"v": pd.Categorical([3, 1, 2, 1], categories=[1, 2, 3, 4]), "y": [0, 1] * 2})
    assert tabular(table, label="y", test=0).column_names == ("v=1", "v=2", "v=3")
    assert tabular(table.astype({"v": "Int64"}), label="y", test=0).column_names == ("v",)


@pytest.mark.parametrize("form", ["frame", "csv"])
def test_rows_to_train_on_are_not_tested_on(form, tmp_path):
    table = mixed().dropna()
    source = table if form == "frame" else csv_of(table, tmp_path / "t.csv")
    with pytest.raises(ValueError, match="test: it is source itself, so test rows would be training rows"):
        tabular(source, label="kind", test=source)
    assert len(tabular(source, label="kind", test=table.copy()).x_test) == len(table)


def test_numbers_that_begin_with_zeros_may_be_codes():
    table = mixed().assign(area=[f"0{i % 3}" for i in range(ROWS)], share="0.5")
    with pytest.warns(UserWarning, match="source: column 'area' holds '0.', a number .* categories=") as told:
        assert "area" in tabular(table, label="kind").column_names
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "area=01" in tabular(table, label="kind", categories=["area"]).column_names


def test_ranges_are_levels_and_classes():
    """A blank among them makes pandas write their bounds as floating numbers. They stay the same ranges."""
    bounds = [-1, 5, 20, 100]
    table = pd.DataFrame({"a": np.arange(40.0), "b": pd.cut(pd.Series(np.arange(40.0)), bounds)})
    table["kind"] = pd.cut(table["a"].where(table["a"] > 3), bounds)
    test = pd.DataFrame({"a": [1.0, 30.0], "b": pd.cut([1, 30], bounds), "kind": pd.cut([1, 30], bounds)})
    data = tabular(table, label="kind", test=test)
    assert data.class_names == ("(-1, 5]", "(5, 20]", "(20, 100]")
    assert data.column_names == ("a", *(f"b={name}" for name in data.class_names))
    assert data.x_test.tolist() == [[1, 1, 0, 0], [30, 0, 0, 1]]
    assert (data.y_test.tolist(), data.y[:4].tolist()) == ([0, 2], [-1] * 4)
    table["b"] = table["b"].where(table["a"] > 0)
    again = tabular(table, label="kind", test=test)
    assert again.column_names == (*data.column_names, "b=blank")
    assert again.x_test[:, :4].equal(data.x_test)


@pytest.mark.parametrize("form", ["frame", "csv", "npz"])
def test_classes_that_are_codes_keep_their_zeros(form, tmp_path):
    table = pd.DataFrame({"a": np.arange(8.0), "y": ["010", "009"] * 4})
    source = table if form == "frame" else csv_of(table, tmp_path / "t.csv")
    if form == "npz":
        source = npz_of(tmp_path, X=table[["a"]].to_numpy(), y=table["y"].to_numpy(str))
    data = tabular(source, label="y", test=0)
    assert (data.class_names, data.y.tolist()) == (("009", "010"), [1, 0] * 4)
    numbers = table.assign(y=[10, 9] * 4)
    with pytest.raises(ValueError, match=r"label='y' of test holds '10' in row 0.*'010' is the same number"):
        tabular(table, label="y", test=numbers)


@pytest.mark.parametrize("form", ["numbers", "words", "objects", "category", "gap"])
def test_codes_of_many_digits_stay_apart(form):
    """As floating numbers they would be one level, and the column constant."""
    codes = [2**60 + i % 3 for i in range(ROWS)]
    column = {
        "numbers": codes,
        "words": [str(code) for code in codes],
        "objects": pd.Series(codes, dtype=object),
        "category": pd.Categorical(codes),
        "gap": pd.array([*codes[:-1], None], dtype="Int64"),
    }[form]
    data = tabular(mixed()[["length", "kind"]].assign(v=column), label="kind", test=0, categories=["v"])
    assert data.column_names[1:4] == tuple(f"v={2**60 + k}" for k in range(3))
    assert data.x[:39, 1:4].argmax(1).tolist() == [i % 3 for i in range(ROWS - 1)]


@pytest.mark.parametrize("form", ["frame", "csv"])
def test_rows_that_hold_nothing_are_refused(form, tmp_path):
    """A spreadsheet may end in them. They would be rows of medians."""
    table = mixed()[["length", "ward", "kind"]].drop(index=[7, 9])
    table = pd.concat([table, pd.DataFrame(index=range(2))])
    labelled = table.copy()
    labelled.iloc[-2:, 2] = "a"
    first, second = (
        part if form == "frame" else csv_of(part, tmp_path / f"{place}.csv")
        for place, part in enumerate((table, labelled))
    )
    with pytest.raises(ValueError, match=r"source: 2 of 40 rows hold nothing, .* first row 38; .*'all'"):
        tabular(first, label="kind")
    assert len(tabular(second, label="kind", test=0).x) == 40


def test_accents_are_one_letter():
    table = mixed().assign(sex=["\u00e9", "e\u0301"] * 20, ward=["a", "b"] * 20)
    assert "sex" not in "".join(tabular(table, label="kind").column_names)  # it is constant


def test_names_of_columns_may_be_numbers():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 2))).assign(y=[0, 1] * 3)
    assert tabular(table, label="y", test=0).column_names == ("0", "1")
    assert tabular(table.rename(columns={"y": 2}), label=2, test=0).column_names == ("0", "1")


def test_the_users_labels_are_kept_and_chosen():
    data = tabular(mixed(80), label="kind", labels=8, seed=2)
    assert data.labelled[1].bincount().tolist() == [4, 4]
    full = mixed(80).assign(kind=["a", "b"] * 40)
    assert len(tabular(full, label="kind", test=0, shares=[1, 0.5]).x) == 60
    data = tabular(mixed().fillna({"kind": "?"}), label="kind", unknown="?", test=0)
    assert torch.equal(data.y, tabular(mixed(), label="kind", test=0).y)
    data = tabular(full, label="kind", classes=[1], test=0)
    assert data.y.unique().tolist() == [-1, 1]


def test_a_second_table_in_any_order_of_columns():
    table = mixed().dropna(subset="kind")
    test = table.iloc[:6, ::-1].assign(sex="x", always=7)
    data = tabular(table, label="kind", test=test)
    assert (len(data.x), data.column_names) == (30, NAMES)
    assert torch.equal(data.x_test[:, :5], data.x[:6, :5])
    assert column(data, "sex=m", test=True) == [0] * 6


def test_test_rows_reach_nothing_but_their_tensors():
    """Other test rows, drawn or given, leave the training rows and their columns as they are."""
    table = mixed(60)
    data = tabular(table, label="kind", seed=3)
    _, tested = held_out_test(as_classes_with_names(table["kind"], "")[0], 0.2, 3)
    rows = tested.tolist()
    for told, change in (
        ("ward", {"weight": 1e6, "ward": "far", "always": 5.5}),
        ("sex", {"visits": None, "smokes": None, "sex": None}),
    ):
        other = table.astype(object)
        for name, value in change.items():
            other.loc[rows, name] = value
        with pytest.warns(UserWarning, match=f"source: column '{told}' holds levels that no training row"):
            found = tabular(other, label="kind", seed=3)
        assert torch.equal(found.x, data.x)
        assert torch.equal(found.y, data.y)
        assert found.column_names == data.column_names
        assert not torch.equal(found.x_test, data.x_test)
        with pytest.warns(UserWarning, match=f"test: column '{told}' holds .* in {len(rows)} of {len(rows)}"):
            apart = tabular(table.drop(index=rows), label="kind", test=other.loc[rows])
        assert torch.equal(apart.x, data.x)
        assert torch.equal(apart.x_test, found.x_test)


SECONDS = 1_700_000_000 + 7 * np.arange(200)
"""Seconds since 1970. Single precision holds multiples of 128 of them."""

HELD = {
    "large and far apart": np.arange(0, 2e9, 1e7) + 1e8,
    "near and small": 1 + np.arange(200) / 1e3,
    "very large, held exactly": 2**60 + 2**40 * np.arange(200),
    "large, held exactly": 2.0**24 + np.arange(0, 400, 2),
    "of single precision": (1 - np.arange(200, dtype=np.float32) / 2**24).astype(np.float64),
    "heavy tails": np.random.default_rng(0).standard_cauchy(200) ** 3,
    "whole numbers, and seconds in few rows": np.where(np.arange(200) < 190, np.arange(200) % 9, SECONDS),
    "mostly constant": np.where(np.arange(200) < 190, 0, 1e9 + np.arange(200) % 2),
    "zeros, and numbers of any size": np.maximum(np.random.default_rng(0).standard_cauchy(200), 0) ** 3,
    "of a common fraction": 2.0**21 + 0.25 + 2 * np.arange(200),
    "rounded by little of the differences": 1e6 * (1 + np.arange(200) / 1e3) + np.arange(200) % 7 / 1e3,
    "two computed in two ways": np.where(np.arange(200) < 150, np.array([0.1 + 0.2, 0.3] * 100), 0.6),
}

BLURRED = {
    "seconds": SECONDS,
    "seconds in two rows": SECONDS[:2],
    "seconds beside a word for none": np.where(np.arange(200) < 60, -1, SECONDS),
    "seconds in a few rows beside a number for none": np.where(np.arange(200) % 8, -1, SECONDS),
    "seconds in a few rows beside two numbers for none": np.where(
        np.arange(200) % 8, -1 - 8 * (np.arange(200) % 2), SECONDS
    ),
    "seconds in a third of the rows, and blanks": np.where(np.arange(200) % 3, np.nan, SECONDS),
    "whole numbers": 20_000_000 + np.arange(200),
    "two numbers that become one": 1e9 + np.arange(200) % 2,
    "few rows with a number that becomes the usual one": 1e9 + (np.arange(200) < 4),
    "whole numbers near the largest exact ones": 5e15 + np.arange(200) % 8,
    "rounded by more than a thousandth of the differences": 1e6 + np.arange(200) + np.arange(200) % 7 / 128.5,
    "fractions": 52.52 + np.arange(200) / 1e7,
}


def of_numbers(numbers: object) -> SemiSupervisedData:
    table = pd.DataFrame({"v": numbers, "n": range(len(numbers))})
    return tabular(table.assign(y=table["n"] % 2), label="y", test=0)


@pytest.mark.parametrize("case", HELD)
def test_numbers_whose_rounding_hides_no_differences(case):
    found = column(of_numbers(HELD[case]), "v")
    assert np.allclose(found, HELD[case], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", BLURRED)
def test_numbers_whose_rounding_hides_what_tells_rows_apart(case):
    with pytest.raises(
        ValueError, match=r"source: column 'v' holds numbers such as .* too coarsely for the diff"
    ):
        of_numbers(BLURRED[case])


SIZE_AND_FAR = st.integers(3, 60).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.floats(1e3, 1e30), max_size=2 * size // 5))
)
"""The number of rows, and the numbers in those rows that are far from the others."""


@settings(max_examples=60)
@given(rows=SIZE_AND_FAR, center=st.floats(-10, 10), sign=st.sampled_from([1, -1]))
def test_rows_far_from_all_others_count_for_little(rows, center, sign):
    size, far = rows
    usual = center + np.arange(size - len(far)) / 10
    data = of_numbers([*usual, *(sign * number for number in far)])
    assert len(data.x[: len(usual), 0].unique()) == len(usual)


@settings(max_examples=60)
@given(rows=SIZE_AND_FAR, center=st.floats(1e9, 1e15), sign=st.sampled_from([1, -1]))
def test_rows_far_from_all_others_hide_nothing(rows, center, sign):
    size, far = rows
    usual = center * (1 + 1e-9 * np.arange(size - len(far)))
    with pytest.raises(ValueError, match="column 'v' holds numbers such as"):
        of_numbers([*usual, *(-sign * number for number in far)])


@pytest.mark.parametrize(
    "sums", [[0.1 + 0.2, 0.3] * 20, np.random.default_rng(0).dirichlet(np.ones(300), 200).sum(1)]
)
def test_a_column_that_only_differs_by_errors_of_arithmetic_is_constant(sums):
    assert of_numbers(sums).column_names == ("n",)


def test_numbers_too_large_for_the_precision_are_told_as_such():
    for numbers in (1e300 * np.arange(1, 41), np.where(np.arange(40) < 39, np.arange(40), 1e300)):
        with pytest.raises(ValueError, match=r"column 'v', which is too large for torch\.float32"):
            of_numbers(numbers)


def test_seconds_since_1970_in_double_precision():
    table = mixed().assign(v=[1_700_000_000 + 7 * i for i in range(40)])
    torch.set_default_dtype(torch.float64)
    try:
        data = tabular(table, label="kind", test=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert column(data, "v") == table["v"].tolist()


# -- refusals --------------------------------------------------------------------------------------
ROWS = 40


def with_column(values: object) -> dict[str, object]:
    return {"source": mixed().assign(v=values)}


REFUSED = {
    "no label": (
        {"label": None},
        r"label=None: expected the name of the column .* one of \['length',.*'kind'\]",
    ),
    "label in the index": (
        {"source": mixed().set_index("kind")},
        r"label='kind': there is no such column.*It is in the index: give the table's \.reset_index\(\)",
    ),
    "another label": ({"label": "class"}, r"label='class': there is no such column.*'kind'\]"),
    "one class": ({"label": "always"}, "label='always' holds only the class '3'"),
    "no file": ({"source": "nowhere.csv"}, "source='nowhere.csv': there is no such file.*'miniboone'"),
    "no table": ({"source": [[1, 2]]}, r"source is of type list, expected the path of a file \(\.csv"),
    "no test file": ({"test": "nowhere.csv"}, "test='nowhere.csv': there is no such file"),
    "no test table": ({"test": [1]}, "test is of type list"),
    "share": ({"test": 1.5}, "test=1.5: expected"),
    "truth value": ({"test": True}, "test=True: expected a share such as 0.2"),
    "root": ({"root": "data"}, "root='data': it would have no effect"),
    "blanks word": ({"blanks": "drop"}, "blanks='drop': expected 'indicate' or 'refuse'"),
    "blanks": ({"blanks": "refuse"}, r"source holds blanks in 'weight' in 8 rows, 'ward' in 13 rows; fill"),
    "split": ({"split": "even"}, "split='even'"),
    "labels": ({"labels": 3}, "labels=3: split='balanced' needs a multiple"),
    "word for categories": ({"categories": "sex"}, r"categories='sex': expected a list of columns"),
    "no category": ({"categories": ["colour"]}, r"categories: there is no column 'colour'.*'length'"),
    "label as category": ({"categories": ["kind"]}, "categories: 'kind' is the column of labels"),
    "set with a label": (
        {"source": "miniboone"},
        "label='kind': it would have no effect, because miniboone has",
    ),
    "set without root": ({"source": "hepmass", "label": None}, "root=None: expected the folder below which"),
    "test of hepmass": (
        {"source": "hepmass", "label": None, "test": 0.1},
        "test=0.1: it would have no effect",
    ),
    "seconds since 1970": (
        with_column([1_700_000_000 + 7 * i for i in range(ROWS)]),
        r"'v' holds numbers such as 1700000133 and 1700000161, which torch.float32 rounds to 1700000128 and "
        r"1700000128, too coarsely .* subtract 1700000133 .* or call torch\.set_default_dtype",
    ),
    "identifiers": (
        with_column([2**60 + i for i in range(ROWS)]),
        r"'v' holds whole numbers beyond 2\*\*53, of which double precision confuses some; give the",
    ),
    "identifiers as words": (
        with_column([str(2**60 + i % 3) for i in range(ROWS)]),
        r"'v' holds whole numbers beyond 2\*\*53, .* give the column to categories= if they are codes",
    ),
    "identifiers as objects": (
        with_column(pd.Series([2**60 + i % 3 for i in range(ROWS)], dtype=object)),
        r"'v' holds whole numbers beyond 2\*\*53, of which double precision confuses some",
    ),
    "identifiers with a gap": (
        with_column(pd.array([None, *(2**60 + i % 3 for i in range(ROWS - 1))], dtype="Int64")),
        r"'v' holds whole numbers beyond 2\*\*53, of which double precision confuses some",
    ),
    "infinity": (
        with_column([0.0] * 7 + [np.inf] + [1.0] * 32),
        "column 'v' holds inf in row 7, expected fin",
    ),
    "infinite word": (with_column(["1"] * 7 + ["-Inf"] * 33), "column 'v' holds -inf in row 8"),
    "all blank": (with_column(None), r"column 'v' holds nothing in all \d+ training rows; leave it out"),
    "names": (with_column([f"n{i}" for i in range(ROWS)]), r"'v' holds \d+ different values .*datasets.text"),
    "times": (with_column(pd.date_range("2020", periods=ROWS)), r"column 'v' holds dates.*\.dt\.days"),
    "days": (
        with_column([dt.date(2020, 1, 2)] * ROWS),
        r"'2020-01-02' \(a datetime.date\) in row 0.*weekday",
    ),
    "written days": (with_column(["2020-01-02", "2021-01-02"] * 20), "column 'v' holds '2020-01-02', a date"),
    "lists": (with_column([[1]] * ROWS), r"column 'v' holds '\[1\]' \(a list\) in row 0, expected numbers"),
    "separators": (
        with_column([f"{i},000" for i in range(ROWS)]),
        "'v' holds '.,000' in row .*such as 1234.5",
    ),
    "units": (with_column([f"{i} kg" for i in range(ROWS)]), "'v' holds '. kg' in row .*categories="),
    "a word beside numbers": (with_column([*range(39), "?"]), r"column 'v' holds '\?' in row 39"),
    "no number in a test row": (
        {"source": mixed().assign(v=1.5), "test": mixed().dropna().assign(v="x")},
        "test: column 'v' holds 'x' in row 0, and numbers in the training rows",
    ),
    "lacking column": (
        {"test": mixed().dropna().drop(columns="sex")},
        r"test lacks \['sex'\]; expected the columns of source, in any order: \['length'",
    ),
    "further column": ({"test": mixed().dropna().assign(v=1)}, r"test also has \['v'\]"),
    "test without labels": ({"test": mixed().drop(columns="kind")}, "test: label='kind': there is no such"),
    "blank test label": ({"test": mixed()}, "label='kind' of test: row 2 has no label"),
    "labels alone": (
        {"source": mixed()[["kind"]]},
        "source holds no column besides the labels, 'kind'; expected at least one more, of numbers or words",
    ),
    "constant": ({"source": mixed()[["always", "kind"]]}, r"no column is left, because all of \['always'\]"),
    "two columns": (
        {"source": pd.concat([mixed(), mixed()[["sex"]]], axis=1)},
        "source: two columns have the name 'sex'",
    ),
    "two made columns": (
        {"source": mixed().rename(columns={"visits": "sex=m"})},
        "two columns of numbers would have the name 'sex=m'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_name(case):
    change, message = REFUSED[case]
    options = {"source": mixed(), "label": "kind", **change}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tabular(options.pop("source"), **options)


def test_files_that_are_no_tables(tmp_path):
    file = tmp_path / "t.csv"
    for content, message in (
        ("a,y\n1,2\n3,4,5\n", "cannot be read as a CSV file"),
        ("", "cannot be read as a CSV file"),
        (
            "a,b,y\n1,2,u\n3,4\n5,6,v\n",
            r"t\.csv: line 3 has 2 columns, and the first line has 3; expected as",
        ),
        ("\n \na,b,y\n1,2,u\n3,4\n", r"t\.csv: line 5 has 2 columns, and the first line has 3"),
        ("a;y\n1;u\n2;v\n", r"the first line holds ';' and no comma.*pandas\.read_csv\(path, sep=';'\)"),
        ("a\ty\n1,5\tu\n", r"the first line holds '\\t' and no comma"),
        ("y\nu\nv\n", r"source='.*t\.csv' holds no column besides the labels, 'y'"),
        (",a,y\n0,1,u\n1,2,v\n", r"column 0 has no name in the first line.*row numbers.*index=False"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            tabular(file, label="y")
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(ValueError, match=r"t\.xlsx': expected a file whose name ends in \.csv"):
        tabular(tmp_path / "t.xlsx", label="y")
    bad = {"a": np.zeros(3)}, {"X": np.zeros(3), "y": np.zeros(3)}, {"X": np.zeros((3, 1)), "y": np.zeros(2)}
    for arrays, message in zip(bad, ("expected X and y", r"shape \(3,\)", r"shape \(2,\)"), strict=True):
        with pytest.raises(ValueError, match=message):
            tabular(npz_of(tmp_path, **arrays))
    with pytest.raises(ValueError, match=r"holds an array of Python objects.*astype.*'None'.* read as gaps"):
        tabular(npz_of(tmp_path, X=np.array([[1, None]]), y=np.zeros(1)))
    twice = {"x": np.zeros((2, 1)), "X": np.ones((2, 1))}
    with pytest.raises(ValueError, match=r"npz' holds x and X, and both names mean X; keep one of them"):
        tabular(npz_of(tmp_path, **twice, y=np.arange(2)))
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"t\.npz' is damaged"):
        tabular(tmp_path / "t.npz")


def test_names_of_columns_are_checked_and_stay():
    x, y = torch.randn(8, 2), [0, 1, -1, -1, -1, -1, -1, -1]
    data = SemiSupervisedData(x, y, x[:2], y[:2], 2, column_names=["a", "b"])
    assert data.column_names == ("a", "b")
    assert data.hold_out(2).column_names == ("a", "b")
    for names, message in (
        (["a"], "column_names has 1 different names, expected 2, one for each column"),
        (["a", "a"], "column_names has 1 different names"),
        ([1, 2], "expected a string for each column"),
        ("ab", "column_names has 1 different names"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(data, column_names=names)
    images = torch.zeros(8, 1, 2, 2)
    with pytest.raises(ValueError, match=r"column_names is given and x has shape \(8, 1, 2, 2\)"):
        SemiSupervisedData(images, y, images[:2], y[:2], 2, column_names=["a"])


# -- published tables ------------------------------------------------------------------------------
def test_miniboone_in_both_forms(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    lines = [" 20 30", *("  ".join(map(str, row)) for row in x)]
    (tmp_path / "MiniBooNE_PID.txt").write_text("\n".join(lines) + "\n")
    data = tabular("miniboone", root=tmp_path, test=0)
    assert torch.equal(data.x, torch.from_numpy(x[:40]))
    assert data.y.tolist() == [1] * 20 + [0] * 20
    assert (data.class_names, data.column_names) == (("background", "signal"), ("x0", "x1", "x2"))
    data = tabular("miniboone", root=tmp_path, labels=10)
    assert (data.y_test.bincount().tolist(), len(data.labelled[0])) == ([2, 2], 10)
    (tmp_path / "miniboone").mkdir()
    np.savez(tmp_path / "miniboone" / "miniboone_balanced.npz", X=x[:10], y=np.arange(10, dtype=np.uint8) % 2)
    data = tabular("miniboone", root=str(tmp_path), test=0)
    assert torch.equal(data.x, torch.from_numpy(x[:10]))
    assert data.y.tolist() == [0, 1] * 5


def test_files_of_miniboone_that_are_something_else(tmp_path):
    file = tmp_path / "MiniBooNE_PID.txt"
    for content, message in (
        ("1.5 2 3\n", "begins with .*expected two numbers of rows"),
        ("\xff\xfe\n", r"MiniBooNE_PID\.txt begins with .*expected two numbers of rows"),
        ("1 2\n1 2\n3 4\n", r"holds 2 rows, expected the 1 \+ 2"),
        ("1 1\n1 b\n3 4\n", r"MiniBooNE_PID\.txt is no table of numbers"),
    ):
        file.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=message):
            tabular("miniboone", root=tmp_path)
    np.savez(tmp_path / "miniboone_balanced.npz", X=np.eye(3), y=np.arange(3))
    with pytest.raises(ValueError, match=r"miniboone_balanced\.npz: y .*0\.\.1"):
        tabular("miniboone", root=tmp_path)


@pytest.mark.parametrize(("train", "test"), [("", ""), (".gz", ""), (".gz", ".gz")])
def test_hepmass(train, test, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype(np.float32), rng.permutation(20) % 2
    for name, ending, rows, mass in (
        ("train", train, slice(14), ""),
        ("test", test, slice(14, 20), ",1000.0"),
    ):
        lines = ["# label,f0,f1,f2" + ",mass" * bool(mass)]
        lines += [
            ",".join([f"{k:.18e}", *map(str, row)]) + mass for k, row in zip(y[rows], x[rows], strict=True)
        ]
        content = ("\n".join(lines) + "\n").encode()
        path = tmp_path / f"1000_{name}.csv{ending}"
        path.write_bytes(gzip.compress(content) if ending else content)
    data = tabular("hepmass", root=tmp_path, labels=4)
    assert torch.equal(data.x, torch.from_numpy(x[:14]))
    assert torch.equal(data.x_test, torch.from_numpy(x[14:]))
    assert data.y_test.tolist() == y[14:].tolist()
    assert (len(data.labelled[0]), data.class_names) == (4, ("background", "signal"))


def test_tests_of_hepmass_with_other_columns(tmp_path):
    (tmp_path / "1000_train.csv").write_text("# label,f0\n1.0,2.0\n0.0,3.0\n")
    (tmp_path / "1000_test.csv").write_text("# label,f0\n1.0\n")
    with pytest.raises(ValueError, match=r"1000_test\.csv holds 1 columns and .*holds 2"):
        tabular("hepmass", root=tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_missing_tables_are_told_with_the_folders_and_where_to_get_them(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        tabular(name, root=tmp_path)
    for part in (name, str(tmp_path), *TABLES[name].versions[0], TABLES[name].address):
        assert part in str(error.value)


# -- noise -----------------------------------------------------------------------------------------
def test_uniform_noise_is_for_all_rows_and_gaussian_noise_for_training():
    noise = TableNoise(widths=[2.0, 0.0, 0.5], scales=torch.tensor([0.0, 3.0, 0.0]))
    assert (noise.widths, noise.scales) == ((2.0, 0.0, 0.5), (0.0, 3.0, 0.0))
    x = torch.full((20_000, 3), 7)
    prepared, trained = noise.prepare(x) - 7, noise(x) - 7
    assert prepared.dtype == torch.float32
    for drawn in (prepared, trained):
        assert torch.allclose(drawn[:, [0, 2]].aminmax(dim=0).max, torch.tensor([1.0, 0.25]), rtol=1e-3)
        assert torch.allclose(drawn[:, [0, 2]].aminmax(dim=0).min, torch.tensor([-1.0, -0.25]), rtol=1e-3)
        assert drawn[:, 0].var() == pytest.approx(4 / 12, rel=0.05)
    assert (prepared[:, 1] == 0).all()
    assert trained[:, 1].std() == pytest.approx(3.0, rel=0.05)


def test_noise_without_widths_draws_as_gaussian_noise_does():
    x, noise = torch.randn(5, 2), TableNoise((0.0, 0.0), scales=(0.5, 2.0))
    torch.manual_seed(0)
    found = noise(x)
    torch.manual_seed(0)
    assert torch.equal(found, x + torch.tensor([0.5, 2.0]) * torch.randn(5, 2))
    assert torch.equal(noise.prepare(x), x)
    assert torch.equal(TableNoise((0.0, 0.0))(x), x)
    assert noise == TableNoise([0, 0], np.array([0.5, 2]))


NO_NOISE = {
    "negative": (lambda: TableNoise((1.0, -1.0)), r"widths\[1\]=-1.0: expected"),
    "word": (lambda: TableNoise("ab"), "widths='ab': expected a list of numbers"),
    "none": (lambda: TableNoise(()), "widths is empty"),
    "scales": (lambda: TableNoise((1.0,), (np.nan,)), r"scales\[0\]=nan"),
    "lengths": (lambda: TableNoise((1.0,), (1.0, 2.0)), "scales has 2 numbers and widths has 1"),
    "columns": (
        lambda: TableNoise((1.0,))(torch.zeros(3, 2)),
        r"widths has 1 numbers and x the shape \(3, 2\)",
    ),
    "NaN": (lambda: TableNoise((1.0,))(torch.full((3, 1), torch.nan)), "TableNoise: x holds 3 NaN"),
    "images": (
        lambda: repeated_widths(torch.zeros(2, 1, 4, 4)),
        r"repeated_widths: x has shape \(2, 1, 4, 4\)",
    ),
    "no row": (lambda: repeated_widths(torch.zeros(0, 2)), r"x has shape \(0, 2\)"),
}


@pytest.mark.parametrize("case", NO_NOISE)
def test_noise_that_cannot_be(case):
    call, message = NO_NOISE[case]
    with pytest.raises(ValueError, match=message):
        call()


@settings(max_examples=100)
@given(
    step=st.sampled_from([1e-3, 0.01, 0.1, 0.25, 1 / 3, 1.0, 2.0, 7.0, 60.0]),
    places=st.lists(st.integers(-300, 300), min_size=2, max_size=40, unique=True),
    offset=st.integers(-50, 50),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_the_width_of_a_grid_is_its_step(step, places, offset, dtype, seed):
    whole = torch.tensor([*places, places[0] + 1])  # two neighbours, so that the step shows
    order = torch.randperm(3 * len(whole), generator=torch.Generator().manual_seed(seed))
    x = ((whole.double() + offset / 10) * step).to(dtype).repeat(3)[order][:, None]
    for same in (x, x.double()):
        (width,) = repeated_widths(same)
        assert width == pytest.approx(step, rel=1e-3)


def test_widths_of_columns_of_all_kinds():
    rng = np.random.default_rng(0)
    size = 2000
    normal = rng.normal(size=size)
    zeros = np.where(np.arange(size) < 400, 0.0, normal)
    mostly = np.where(np.arange(size) < 1900, 0.0, normal)
    rare = np.where(np.arange(size) < 20, 0.0, normal)
    outlier = np.where(np.arange(size) < 20, -999.0, rng.integers(0, 500, size) / 10)
    columns = [
        normal,
        zeros,
        mostly,
        rare,
        outlier,
        rng.random(size) < 0.5,
        rng.integers(0, 10, size),
        0 * normal,
    ]
    widths = repeated_widths(np.stack(columns, 1).astype(np.float32))
    low, high = np.quantile(zeros, [0.16, 0.84])
    assert widths[1] == pytest.approx(0.01 * (high - low) / 2, rel=0.02)
    assert widths[2] == pytest.approx(0.01 * mostly.std(), rel=0.01)
    assert (widths[0], widths[3], widths[5:]) == (0.0, 0.0, (1.0, 1.0, 1.0))
    assert widths[4] == pytest.approx(0.1, rel=1e-4)
    assert repeated_widths(torch.arange(100)[:, None]) == (0.0,)  # most values differ
    assert repeated_widths(torch.arange(1000)[:, None] % 100 * 10**9) == (1e9,)


def test_the_density_of_noisy_values_bounds_their_probability():
    """A density that is flat within each step gives exactly the logarithm of the probability."""
    x = torch.tensor([[0.0], [0.5], [0.5], [1.0], [0.5], [0.0]])
    widths = repeated_widths(x)
    probs = {0.0: 1 / 3, 0.5: 1 / 2, 1.0: 1 / 6}
    noisy = TableNoise(widths).prepare(x)
    density = torch.tensor([probs[0.5 * round(2 * value)] / 0.5 for value in noisy[:, 0].tolist()])
    expected = torch.tensor([probs[value] for value in x[:, 0].tolist()])
    assert torch.allclose(density.log() + np.log(widths[0]), expected.log())


def test_noise_that_a_dtype_cannot_hold_is_refused():
    """Of single precision, 16 million and its neighbour differ by 1. Nothing lies between them."""
    codes = 2.0 * torch.randint(9, (500, 1), generator=torch.Generator().manual_seed(0)) + 2e7
    with pytest.raises(ValueError, match=r"column 0 of x repeats the value 2e\+07"):
        repeated_widths(codes)
    assert repeated_widths(codes.double()) == (2.0,)
    assert repeated_widths(codes - 2e7) == (2.0,)


def test_words_for_gaps_are_no_class(tmp_path):
    file = tmp_path / "r.csv"
    file.write_text("a,y\n1,p\n2,q\n3,NA\n4,p\n5,NULL\n")
    data = tabular(file, label="y", test=0)
    assert (data.class_names, data.y.tolist()) == (("p", "q"), [0, 1, -1, 0, -1])


def test_row_numbers_that_were_saved_are_refused(tmp_path):
    """In a table sorted by its labels, they would tell the labels."""
    pd.DataFrame({"a": [1, 2, 5], "y": ["p", "q", "q"]}).to_csv(tmp_path / "saved.csv")
    table = pd.read_csv(tmp_path / "saved.csv")
    for name in ("Unnamed: 0", "Unnamed: 0.1", "__index_level_0__"):
        with pytest.raises(
            ValueError, match=f"source: column '{name}' has no name.*row numbers.*index=False"
        ):
            tabular(table.rename(columns={"Unnamed: 0": name}), label="y", test=0)


def test_two_columns_of_one_name_are_refused(tmp_path):
    file = tmp_path / "twice.csv"
    file.write_text("a,y,y\n1,p,p\n2,q,q\n")
    with pytest.raises(ValueError, match="2 columns have the name 'y'"):
        tabular(file, label="y", test=0)
