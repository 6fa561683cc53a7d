"""Data sets of arrays, data frames, series and lists: converted as meant, or refused by name."""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import replace
from decimal import Decimal
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

import pyro_scnf as scnf
from pyro_scnf.datasets import (
    SemiSupervisedData,
    keep_labels,
    keep_labels_per_class,
    link_neighbours,
    nearest_neighbours,
)
from pyro_scnf.training import fit
from pyro_scnf.training.batches import fingerprint

X = torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.25, 3.0], [1.0, 0.0]])
Y = torch.tensor([0, 1, -1, 1])
TEST = X[:2], Y[:2]


def made(x=X, y=Y, x_test=X[:2], y_test=Y[:2], num_classes=2, **options):
    return SemiSupervisedData(x, y, x_test, y_test, num_classes, **options)


def read_only(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


# -- rows ------------------------------------------------------------------------------------------
ROWS = {
    "float64": X.double().numpy(),
    "float32": X.numpy(),
    "float16": X.half().numpy(),
    "big-endian": X.numpy().astype(">f4"),
    "read-only": read_only(X.numpy()),
    "reversed": X.numpy()[::-1][::-1],
    "columns first": np.asfortranarray(X.numpy()),
    "frame": pd.DataFrame(X.numpy(), columns=["a", "b"]),
    "frame of float64": pd.DataFrame(X.double().numpy(), columns=["a", "b"]),
    "nullable frame": pd.DataFrame(X.numpy(), columns=["a", "b"]).astype("Float64"),
    "frame of two dtypes": pd.DataFrame({"a": X[:, 0].numpy(), "b": X[:, 1].int().numpy()}),
    "numbers as objects": pd.DataFrame(X.numpy(), columns=["a", "b"]).astype(object),
    "list": X.tolist(),
    "list of tensors": list(X),
    "list of arrays": list(X.numpy()),
    "tuple": tuple(map(tuple, X.tolist())),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_are_converted(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = made(ROWS[kind])
    assert data.x.dtype == torch.float32
    assert torch.equal(data.x, X)


def test_other_containers_take_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    assert made(X.numpy(), x_test=X.numpy()[:2]).x.dtype == torch.float64
    assert made(X.tolist(), x_test=X[:2].tolist()).x.dtype == torch.float64


def test_arrays_beside_a_tensor_take_its_dtype():
    data = made(X.double(), x_test=X.numpy()[:2])
    assert data.x_test.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float16, torch.float64])
def test_tensors_keep_their_dtype_and_are_no_copies(dtype):
    x, y = torch.arange(8).reshape(4, 2).to(dtype), Y.clone()
    near, evidence = torch.tensor([[1], [0], [3], [2]]), torch.full((4, 2), 0.5).log()
    data = made(x, y, x[:2], neighbours=near, label_log_prior=evidence, x_val=x)
    assert (data.x is x, data.y is y, data.x_val is x) == (True, True, True)
    assert data.neighbours is near
    assert data.label_log_prior is evidence
    again = replace(data, neighbours=None)
    assert again.x is x
    assert fingerprint(replace(again, neighbours=near)) == fingerprint(data)
    assert torch.equal(pickle.loads(pickle.dumps(data)).x, x)


def test_rows_and_evidence_are_constants():
    x = torch.randn(40, 2).requires_grad_()
    evidence = torch.zeros(40, 2).requires_grad_()
    y = torch.where(torch.arange(40) < 8, torch.arange(40) % 2, -1)
    data = made(x, y, 2 * x[:4], y[:4], x_val=x[:3], label_log_prior=evidence.log_softmax(-1))
    for part in (data.x, data.x_test, data.x_val, data.label_log_prior):
        assert not part.requires_grad
    assert data.x.data_ptr() == x.data_ptr()
    flow = scnf.SemiConditionalFlow(scnf.flows.realnvp((2,), couplings=2), "gmm", 2)
    fit(scnf.SemiSupervisedModel(flow), data, steps=2, progress=False)
    assert x.grad is None
    assert evidence.grad is None


def test_arrays_of_the_right_dtype_share_their_memory():
    array = X.numpy().copy()
    assert made(array).x.data_ptr() == array.ctypes.data


def test_grey_levels_stay_bytes_and_other_integers_become_numbers():
    levels = np.arange(4 * 16, dtype=np.uint8).reshape(4, 1, 4, 4)
    assert made(levels, x_test=levels[:2]).x.dtype == torch.uint8
    for dtype in (np.int64, np.int16, np.uint16, np.uint64):
        data = made(levels.astype(dtype), x_test=levels[:2].astype(dtype))
        assert data.x.dtype == torch.float32
        assert torch.equal(data.x, torch.from_numpy(levels).float())


def test_truth_values_are_zero_and_one():
    for x in (X > 0, (X > 0).numpy(), (X > 0).tolist()):
        assert torch.equal(made(x, x_test=X[:2]).x, (X > 0).float())
    dummies = pd.DataFrame({"a": X[:, 0].numpy(), "b": (X[:, 1] > 0).numpy()})
    assert made(dummies).x[:, 1].tolist() == [1.0, 0.0, 1.0, 0.0]


def gap(frame, row, column, value):
    frame = frame.copy()
    frame.loc[row, column] = value
    return frame


FRAME = pd.DataFrame(X.double().numpy(), columns=["height", "weight"])
REFUSED_ROWS = {
    "words": (FRAME.assign(weight=["a", "b", "c", "d"]), r"x, column 'weight', holds 'a' \(a str\)"),
    "days": (FRAME.assign(weight=pd.Timestamp("2020-01-01")), "x, column 'weight', .* numbers of days"),
    "categories": (FRAME.assign(weight=pd.Categorical(list("abcd"))), "x, column 'weight', holds 'a'"),
    "dates": (FRAME.assign(weight=pd.date_range("2020", periods=4)), "x, column 'weight', holds"),
    "NaN": (
        gap(FRAME, 2, "weight", np.nan),
        "x holds 1 NaN.* the first is in row 2, column 'weight'",
    ),
    "infinity": (gap(FRAME, 1, "height", np.inf), "x holds 1 NaN.*row 1, column 'height'"),
    "NA": (gap(FRAME.convert_dtypes(), 3, "height", pd.NA), "x holds 1 NaN.*row 3, column 'height'"),
    "too large": (gap(FRAME, 2, "height", 1e300), r"x holds 1e\+300 in row 2, column 'height', .* too large"),
    "NaN in an array": (gap(FRAME, 2, "weight", np.nan).to_numpy(), "x holds 1 NaN.*row 2, column 1"),
    "NaN in a tensor": (X.masked_fill(X == 3, torch.nan), "x holds 1 NaN.* row 2, column 1"),
    "NaN in an image": (torch.full((4, 1, 2, 2), torch.nan), r"x holds 16 NaN.* row 0, entry \(0, 0, 0\)"),
    "masked": (np.ma.masked_greater(X.numpy(), 2.5), "x holds 1 NaN.* row 2, column 1"),
    "strings": (np.array([["1", "2"]] * 4), r"x holds '1' \(a numpy.str_\), expected numbers"),
    "objects": ([[None, {}]] * 4, r"x holds \{\} \(a dict\), expected numbers"),
    "complex": (X.to(torch.complex64), "x is a tensor of dtype torch.complex64"),
    "complex array": (X.numpy().astype(complex), "x holds .* expected numbers"),
    "sparse": (X.to_sparse(), "x is a tensor .* layout torch.sparse_coo"),
    "ragged": ([[1.0, 2.0], [1.0]], "x is no table: its rows differ in length"),
    "series": (FRAME["height"], r"x has shape \(4,\), expected a table of rows \(N, D\)"),
    "number": (3.0, r"x has shape \(\), expected a table"),
    "nothing": (None, "x is of type NoneType, expected numbers in a tensor"),
    "word": ("data.csv", "x is of type str, expected numbers in a tensor"),
    "mapping": ({"a": [1.0]}, "x is of type dict, expected numbers in a tensor"),
    "sparse array": (csr_matrix(X.numpy()), r"x is of type csr_matrix, .*give its \.toarray\(\)"),
    "no columns": (torch.zeros(4, 0), r"x has shape \(4, 0\), expected a table of rows"),
}


@pytest.mark.parametrize("kind", REFUSED_ROWS)
def test_rows_that_hold_no_numbers(kind):
    x, message = REFUSED_ROWS[kind]
    with pytest.raises(ValueError, match=f"SemiSupervisedData: {message}"):
        made(x)


@pytest.mark.parametrize("name", ["x_test", "x_val"])
def test_other_rows_are_named(name):
    with pytest.raises(ValueError, match=f"{name} holds 1 NaN or infinite values.* row 2, column 1"):
        made(**{name: X.masked_fill(X == 3, torch.nan)}, **({"y_test": Y.abs()} if name == "x_test" else {}))


def test_columns_that_lose_their_digits_are_warned_of():
    times = FRAME.assign(weight=1.7e9 + np.arange(4.0))
    with pytest.warns(UserWarning, match="x loses digits in column 'weight': torch.float32 holds") as caught:
        made(times)
    assert caught[0].filename == __file__
    seldom = pd.DataFrame({"height": 0.0, "weight": [*[-1.0] * 30, *times["weight"]]})
    with pytest.warns(UserWarning, match="in column 'weight': torch.float32 holds 1700000003 only to 3"):
        made(seldom, [0, 1] * 17)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(times.assign(weight=times["weight"] - times["weight"].mean()))
        made(FRAME.assign(weight=0.1))  # a constant loses nothing
        made(FRAME.assign(weight=[0.1 + 0.2, 0.3, 0.3, 0.3]))  # nor does one that was computed in two ways
        made(x_test=np.array([[0.1, 0.3]]), y_test=[0])
        torch.set_default_dtype(torch.float64)
        made(times, x_test=X[:2].double())


# -- labels ----------------------------------------------------------------------------------------
LABELS = {
    "int32": Y.int(),
    "int8": Y.to(torch.int8),
    "float": Y.double(),
    "NaN": Y.float().masked_fill(Y < 0, torch.nan),
    "array": Y.numpy(),
    "float array": Y.double().numpy(),
    "read-only": read_only(Y.numpy()),
    "column": Y[:, None],
    "list": Y.tolist(),
    "list with a gap": [0, 1, None, 1],
    "list of tensors": list(Y),
    "series": pd.Series(Y.numpy()),
    "series with a gap": pd.Series([0, 1, np.nan, 1]),
    "nullable series": pd.Series([0, 1, pd.NA, 1], dtype="Int64"),
    "objects": pd.Series([0, 1, None, 1], dtype=object),
    "categories": pd.Series(pd.Categorical([0, 1, np.nan, 1])),
    "frame of a column": pd.DataFrame({"y": [0, 1, -1, 1]}),
    "truth values with a gap": [False, True, None, True],
    "masked": np.ma.masked_equal(Y.numpy(), -1),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_converted(kind):
    data = made(y=LABELS[kind])
    assert data.y.dtype == torch.int64
    assert data.y.tolist() == [0, 1, -1, 1]


@pytest.mark.parametrize("kind", ["tensor", "array", "list", "series"])
def test_truth_values_are_labels_of_two_classes(kind):
    y = torch.tensor([True, False, True, True])
    forms = {"tensor": y, "array": y.numpy(), "list": y.tolist(), "series": pd.Series(y.numpy())}
    assert made(y=forms[kind]).y.tolist() == [1, 0, 1, 1]
    with pytest.raises(ValueError, match="y holds truth values, which are labels of 2 classes, not of 3"):
        made(y=forms[kind], num_classes=3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint64])
def test_unsigned_labels(dtype):
    y = torch.tensor([0, 1, 1, 0])
    assert torch.equal(made(y=y.to(dtype)).y, y)
    assert torch.equal(made(y=y.to(dtype).numpy()).y, y)
    with pytest.raises(ValueError, match="y holds"):
        made(y=np.full(4, np.iinfo(np.uint64).max))  # as a signed number it would be -1


ONE_HOT = torch.tensor([[1, 0], [0, 1], [0, 1], [1, 0]])
REFUSED_LABELS = {
    "half": ({"y": Y + 0.5}, r"y holds 0.5 in row 0, expected whole numbers"),
    "half in a list": ({"y": [0, 1.5, 1, 1]}, "y holds 1.5 in row 1, expected whole numbers"),
    "infinite": ({"y": torch.tensor([0, 1, torch.inf, 1])}, "y holds inf in row 2, expected whole numbers"),
    "from 1": ({"y": Y.abs() + 1}, "y holds labels 1..2, expected -1..1; labels count from 0: give y - 1"),
    "from 1 with gaps": (
        {"y": torch.tensor([1, 2, -1, 2])},
        r"y holds labels -1..2, .* count from 0: give torch.where\(y > 0, y - 1, -1\)",
    ),
    "array from 1 with gaps": (
        {"y": np.array([1, 2, np.nan, 2])},
        r"y .* give numpy.where\(y > 0, y - 1, -1\)",
    ),
    "out of range": ({"y": Y * 3}, "y holds labels -3..3, expected -1..1"),
    "words": ({"y": ["cat", "dog", "cat", "dog"]}, r"y holds 'cat' .*pandas.factorize"),
    "series of words": ({"y": pd.Series(["cat", "dog", None, "dog"])}, r"y holds 'cat' .*pandas.factorize"),
    "categories of words": (
        {"y": pd.Series(list("abab")).astype("category")},
        "y holds 'a' .*pandas.factorize",
    ),
    "one-hot": ({"y": ONE_HOT}, r"y has shape \(4, 2\), expected one label for each row.* y.argmax"),
    "one-hot floats": ({"y": ONE_HOT.float()}, r"y has shape \(4, 2\), expected one label for each row"),
    "one-hot frame": ({"y": pd.DataFrame(ONE_HOT.numpy())}, r"y has shape \(4, 2\)"),
    "ragged": ({"y": [[0], [1, 0], [1], [1]]}, "y is no table: its rows differ in length"),
    "a number": ({"y": 1}, "y is of type int, expected a label for each row"),
    "nothing": ({"y": None}, "y is of type NoneType, expected a label for each row"),
    "a word": ({"y": "label"}, "y is of type str, expected a label for each row"),
    "numbers in words": ({"y": pd.Series(list("0101"))}, r"y holds '0' .*pandas.factorize"),
    "hidden": ({"y_test": torch.tensor([0, -1])}, "y_test holds labels -1..0.* row 1 has no label"),
    "gap": ({"y_test": [np.nan, 1.0]}, "y_test .*row 0 has no label"),
    "test out of range": ({"y_test": [0, 2]}, r"y_test holds labels 0\.\.2, expected 0\.\.1"),
    "hidden in validation": ({"x_val": X[:2], "y_val": [0, None]}, "y_val .*row 1 has no label"),
}


@pytest.mark.parametrize("kind", REFUSED_LABELS)
def test_labels_that_are_none(kind):
    changes, message = REFUSED_LABELS[kind]
    with pytest.raises(ValueError, match=f"SemiSupervisedData: {message}"):
        made(**changes)


@pytest.mark.parametrize("kind", [list, pd.Series, pd.Categorical, lambda y: np.array(y, dtype=object)])
def test_the_advice_for_words_works_with_gaps(kind):
    y = kind(["dog", None, "cat", "dog"])
    with pytest.raises(ValueError, match=r"y holds .dog. .*; number the classes: y, classes = ") as raised:
        made(y=y)
    advice = re.search(r"= (pandas.*?\)), which gives -1 to rows that have none", str(raised.value))
    numbers, classes = eval(advice[1], {"pandas": pd, "y": y})
    assert made(y=numbers).y.tolist() == [1, -1, 0, 1]
    assert list(classes) == ["cat", "dog"]


def test_numbers_in_words_are_no_categories():
    words = pd.DataFrame({"a": ["1", "2", "3", "4"], "b": [0.5, 1.0, 1.5, 2.0]})
    for x in (words, words[["a", "a"]].to_numpy(str), [["1", "2"]] * 4):
        with pytest.raises(ValueError, match=r"holds '1' .*they are numbers written as words: give \.astype"):
            made(x)
    with pytest.raises(ValueError, match=r"x, column 'a', holds '1' .* \(pandas.get_dummies\)"):
        made(words.assign(a=["1", "2", "x", None]))
    assert made(words.astype(float)).x[:, 0].tolist() == [1, 2, 3, 4]


def test_decimal_numbers_are_numbers():
    """Parquet files and databases hold them."""
    x = pd.DataFrame(X.numpy()).map(lambda number: Decimal(float(number)))
    assert torch.equal(made(x).x, X)


def test_functions_of_labels_take_the_same_forms():
    y = torch.arange(12) % 3
    for form in (y, y.float(), y.numpy(), y.tolist(), pd.Series(y.numpy())):
        assert torch.equal(keep_labels(form, 3, 6), keep_labels(y, 3, 6))
        assert torch.equal(keep_labels_per_class(form, 1), keep_labels_per_class(y, 1))
    data = made(X.repeat(3, 1), torch.where(y > 0, -1, y), num_classes=3)
    for form in (y.double(), y.numpy(), y.tolist(), pd.Series(y.numpy())):
        assert torch.equal(data.hold_out(2, truth=form).y_val, data.hold_out(2, truth=y).y_val)
    with pytest.raises(ValueError, match=r"keep_labels: y holds 'a' .*pandas.factorize"):
        keep_labels(list("abc"), 3, 3)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, pd.Series])
def test_rows_of_a_published_split(form):
    y = torch.arange(6) % 3
    assert keep_labels(y, 3, form([5, 0, 1])).tolist() == [0, 1, -1, -1, -1, 2]


def test_other_forms_of_labels_to_keep():
    y = torch.arange(6) % 3
    for form in (torch.tensor(3), np.array(3), np.int64(3)):
        assert torch.equal(keep_labels(y, 3, form), keep_labels(y, 3, 3))
    for wrong, message in (
        ([], "labels: no row of class 0, 1, 2 among the 0 given"),
        ([[0], [1, 2]], "labels is no table"),
        (["0"], "labels holds '0'"),
        (torch.tensor(3.0), "labels=3.0: expected a whole number"),
        ([0.0, 1.0, 2.0], "dtype torch.float64; expected"),
    ):
        with pytest.raises(ValueError, match=message):
            keep_labels(y, 3, wrong)


# -- lengths ---------------------------------------------------------------------------------------
LENGTHS = {
    "y": ({"y": Y[1:]}, "y has 3 labels and x has 4 rows"),
    "more of y": ({"y": [0, 1, 1, 1, 1]}, "y has 5 labels and x has 4 rows"),
    "y_test": ({"y_test": Y[:1]}, "y_test has 1 labels and x_test has 2 rows"),
    "y_val": ({"x_val": X, "y_val": Y[:2]}, "y_val has 2 labels and x_val has 4 rows"),
    "only y_val": ({"y_val": Y[:2]}, "y_val is given without x_val"),
    "features": (
        {"x_test": torch.zeros(2, 3)},
        r"x_test has rows of shape \(3,\) and x has rows of shape \(2,\)",
    ),
    "validation": ({"x_val": torch.zeros(2, 1, 2)}, r"x_val has rows of shape \(1, 2\)"),
    "dtype": (
        {"x_test": X[:2].double()},
        r"x_test has dtype torch.float64 and x has .* x_test.to\(torch.float32\)",
    ),
    "bytes": ({"x_val": X.byte()}, r"x_val has dtype torch.uint8 and x .* such as x_val.to\(torch.float32\)"),
    "fractions": (
        {"x": X.long(), "x_test": X[:2].long(), "x_val": X},
        r"x_val has dtype torch.float32 and x has torch.int64; .* such as x.to\(torch.float32\) of",
    ),
    "device": (
        {"y": torch.zeros(4, dtype=torch.long, device="meta")},
        r"y is on meta and x on cpu; give y.to\('cpu'\)",
    ),
    "neighbours": ({"neighbours": [[1], [0]]}, r"neighbours has shape \(2, 1\)"),
    "no neighbours": ({"neighbours": torch.zeros(4, 0, dtype=torch.long)}, r"neighbours has shape \(4, 0\)"),
    "floating neighbours": ({"neighbours": torch.zeros(4, 1)}, "neighbours .* dtype torch.float32"),
    "ragged neighbours": ({"neighbours": [[1], [0, 1], [1], [1]]}, "neighbours is no table"),
    "words": ({"neighbours": [["a"]] * 4}, "neighbours holds 'a' .*expected row numbers"),
    "neighbours of their own": (
        {"neighbours": np.array([[0, 1], [1, 0], [2, 3], [3, 2]])},
        "neighbours: each row names itself, expected other rows",
    ),
    "neighbours outside": ({"neighbours": np.full((4, 1), 4)}, r"neighbours: expected rows 0\.\.3"),
    "evidence": ({"label_log_prior": np.log(np.full((3, 2), 0.5))}, r"label_log_prior has shape \(3, 2\)"),
    "sums": ({"label_log_prior": np.zeros((4, 2))}, "label_log_prior is not normalised"),
    "classes": ({"num_classes": 0}, "num_classes=0: expected at least 1"),
    "half a class": ({"num_classes": 2.0}, "num_classes=2.0: expected a whole number"),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_parts_that_do_not_fit(kind):
    changes, message = LENGTHS[kind]
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_columns_in_another_order():
    with pytest.raises(
        ValueError, match=r"x_test has the columns \['weight', 'height'\].* x_test\[x.columns\]"
    ):
        made(FRAME, x_test=FRAME[["weight", "height"]][:2])


def test_rows_in_another_order():
    frame = FRAME.set_index(pd.Index(list("abcd")))
    y = pd.Series([0, 1, -1, 1], index=list("abcd"))
    with pytest.raises(
        ValueError, match=r"y has the same index as the rows, in another order.* y.loc\[x.index\]"
    ):
        made(frame, y.sort_index(ascending=False))
    assert made(frame, y).y.tolist() == [0, 1, -1, 1]
    assert made(frame, y.reset_index(drop=True)).y.tolist() == [0, 1, -1, 1]


@pytest.mark.filterwarnings("error")
def test_arrays_in_bfloat16():
    """NumPy has no such dtype."""
    x, rows = torch.randn(8, 2).bfloat16(), np.random.default_rng(0).normal(size=(2000, 2))
    made_of = partial(SemiSupervisedData, y=[0, 1] * 4, x_test=rows, y_test=[0, 1] * 1000, num_classes=2)
    assert made_of(x).x_test.dtype == torch.bfloat16
    assert torch.equal(made_of(list(x)).x, x.float())
    torch.set_default_dtype(torch.bfloat16)
    assert torch.equal(made_of(x.tolist()).x_test, torch.from_numpy(rows).bfloat16())


def test_no_rows():
    data = made(x_test=X[:0], y_test=[])
    assert data.x_test.shape == (0, 2)
    examples, labels = data.test_examples()
    assert (len(examples), len(labels)) == (0, 0)
    assert len(made(X[:0], Y[:0]).x) == 0


def test_the_number_of_classes_may_be_a_tensor_or_an_array_of_one_number():
    for number in (Y.max() + 1, np.array(2)):
        assert made(num_classes=number).num_classes == 2
    with pytest.raises(ValueError, match=r"num_classes=2.0: expected a whole number"):
        made(num_classes=torch.tensor(2.0))
    with pytest.raises(ValueError, match="num_classes=True: expected a whole number"):
        made(num_classes=torch.tensor(True))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_rows_to_hold_out_are_a_whole_number(size):
    with pytest.raises(ValueError, match="size="):
        made(y=torch.full((4,), -1)).hold_out(size)


# -- from a data frame to a trained model ----------------------------------------------------------
def test_a_data_frame_trains_a_model():
    generator = np.random.default_rng(0)
    y = generator.integers(2, size=60)
    frame = pd.DataFrame({"a": y * 4 + generator.normal(size=60), "b": generator.normal(size=60)})
    labels = pd.Series(np.where(np.arange(60) < 20, y, np.nan))
    data = link_neighbours(SemiSupervisedData(frame[:50], labels[:50], frame[50:], y[50:], 2).hold_out(10), 3)
    assert data.neighbours.shape == (40, 3)
    assert torch.equal(data.neighbours, nearest_neighbours(data.x.numpy(), 3))
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=8, blocks=1), "gmm", 2)
    model = scnf.SemiSupervisedModel(flow)
    model.initialize(data.x, data.y)
    fit(model, replace(data, neighbours=None), steps=2, progress=False)
