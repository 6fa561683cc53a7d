"""Data without spread, in odd units, or with repeated values: what is said, and that training stays sane."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import pyro_scnf as scnf
from pyro_scnf.transforms import ActNorm

ROWS = 200


def model(dim, prior="gmm:means=random"):
    glow = scnf.flows.glow((dim,), steps=1, width=8)
    return scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(glow, prior, 2))


def curve(x, steps=60, learning_rate=3e-3):
    """The loss of each step, nats a row."""
    torch.manual_seed(0)
    made = model(x.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.initialize(x)
    loss, optimizer = scnf.elbo(made), torch.optim.Adam(made.parameters(), lr=learning_rate)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(x) / len(x)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return torch.tensor(values)


def table():
    return torch.randn(ROWS, 3)


def with_column(column):
    return torch.cat([table(), column.reshape(ROWS, 1)], 1)


COLUMNS = {
    "constant": lambda: torch.full((ROWS,), 7.5),
    "zero": lambda: torch.zeros(ROWS),
    "large constant": lambda: torch.full((ROWS,), 1e8),
    "rounding around zero": lambda: 1e-12 * torch.randn(ROWS),
    "rounding around 1e6": lambda: 1e6 + 0.06 * torch.randn(ROWS).round(),
    "binary": lambda: torch.randint(2, (ROWS,)).float(),
    "one in a hundred": lambda: (torch.arange(ROWS) % 100 == 0).float(),
    "mostly zero": lambda: torch.randn(ROWS) * (torch.arange(ROWS) % 5 < 2),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_without_density_is_named_and_training_stays_sane(name):
    x = with_column(COLUMNS[name]())
    with pytest.warns(UserWarning, match=r"^initialize: x .*feature 3\b.*has no bound"):
        model(4).initialize(x)
    values = curve(x)
    assert values.isfinite().all()
    assert values.max() < values[0] + 1  # no step throws the density away


@pytest.mark.parametrize("name", ["constant", "large constant", "rounding around zero", "binary"])
def test_several_columns_and_the_flow_alone(name):
    x = torch.cat([COLUMNS[name]()[:, None], table(), COLUMNS["zero"]()[:, None]], 1)
    flow = scnf.flows.glow((5,), steps=1, width=8)
    with pytest.warns(UserWarning, match="has no bound") as said:
        flow.initialize(x)
    text = " ".join(str(warning.message) for warning in said)
    assert "0, 4" in text or ("feature 0" in text and "feature 4" in text)
    assert all(warning.filename == __file__ for warning in said)  # the line of the user


def test_a_constant_channel_of_images():
    x = torch.rand(20, 3, 4, 4)
    x[:, 1] = 0.5
    flow = scnf.flows.glow((3, 4, 4), levels=1, steps=1, width=8)
    with pytest.warns(UserWarning, match=r"channel 1 "):
        flow.initialize(x)
    assert flow.inverse_and_ladj(x)[0].isfinite().all()


def test_few_rows_repeat_values_by_chance():
    """Half of the first eight lengths agree, because they were measured to a tenth."""
    lengths = torch.tensor([1.4, 1.4, 1.3, 1.5, 1.4, 1.7, 1.4, 1.5, 1.4, 1.5, 1.5, 1.6])
    x = torch.stack([lengths, torch.randn(12)], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(2).initialize(x[:8])
        model(2).initialize(x)


def test_copies_of_few_rows():
    with pytest.warns(UserWarning, match="200 rows, of which only 5 differ"):
        model(3).initialize(table()[:5].repeat(40, 1))


COMBINATIONS = {
    "copy": (lambda x: x[:, :1], "0, 3"),
    "another unit": (lambda x: 3 - 2 * x[:, :1], "0, 3"),
    "sum": (lambda x: x.sum(1, keepdim=True), "0, 1, 2, 3"),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_features_that_follow_from_others(name):
    make, columns = COMBINATIONS[name]
    x = 100 + 10 * table()
    with pytest.warns(UserWarning, match=f"linear relations between features {columns}:"):
        model(4).initialize(torch.cat([x, make(x)], 1))


def test_one_row_has_no_spread():
    with pytest.raises(ValueError, match="x needs at least two values a channel"):
        model(3).initialize(table()[:1])
    with pytest.raises(ValueError, match="x has no rows"):
        model(3).initialize(table()[:0])


def test_nothing_is_said_of_ordinary_data():
    integers = torch.randint(0, 12, (ROWS, 3)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (table(), table()[:2], 1e-4 * table(), 1e6 + table(), integers):
            model(3).initialize(x)


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0.0), (1e5, 0.0), (1e3, 1e5), (1e-3, 1.0)])
def test_training_is_the_same_in_every_unit(scale, offset):
    """An optimiser's step on an actnorm means the same whether lengths are in metres or in nanometres."""
    torch.manual_seed(1)
    x = table()
    shifted = curve(offset + scale * x) - 3 * math.log(scale)
    assert (shifted - curve(x)).abs().max() < 0.02


def test_an_actnorm_of_a_channel_without_spread_does_not_amplify_it():
    x = torch.cat([torch.randn(50, 1), 3.0 + torch.zeros(50, 1)], 1)
    layer = ActNorm((2,))
    with pytest.warns(UserWarning, match="feature 1"):
        z = layer.initialize(x)
    assert torch.equal(z[:, 1], torch.zeros(50))
    assert layer.inverse_and_ladj(x + 1e-3)[0][:, 1].abs().max() < 1e-2


def test_dead_units_of_a_network_are_not_amplified():
    net = scnf.nn.ResidualMLP(2, 2, width=4, blocks=1)
    with torch.no_grad():
        net.first.weight[0].zero_()  # its output is the same for all rows
    net.initialize(torch.randn(30, 2))
    scales = [norm.log_scale for norm in net.modules() if hasattr(norm, "log_scale")]
    assert scales
    assert all((scale > -10).all() for scale in scales)


def test_a_table_in_a_small_unit_is_no_rounding_noise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(3).initialize(1e-9 * table())


def test_grades_are_not_taken_for_copies_alone():
    with pytest.warns(UserWarning, match=r"initialize: x has 200 rows, .*Keep one .* copies.*Dequantise"):
        model(2).initialize(torch.randint(1, 6, (ROWS, 2)).float())
