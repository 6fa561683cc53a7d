"""Batches depend on the step alone. Learning rates follow the closed form of their schedule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.training import OPTIMIZERS, SCHEDULES, StepBatches, make_optimizer, make_schedule
from pyro_scnf.training.batches import derive_seed


def numbered(labelled: int, unlabelled: int) -> SemiSupervisedData:
    """Row n holds the number n. Labelled rows come first, and their label is the parity of n."""
    x = torch.arange(labelled + unlabelled).float()[:, None]
    y = torch.where(x[:, 0] < labelled, x[:, 0] % 2, -1.0).long()
    return SemiSupervisedData(x, y, x[:0], y[:0], 2)


def rows(batch):
    """The numbers of the labelled rows and those of the unlabelled rows of a batch."""
    return [[] if x is None else x[:, 0].int().tolist() for x in (batch.x, batch.x_unlabelled)]


sizes = st.integers(1, 12)


@given(sizes, sizes, sizes, sizes, st.integers(0, 5))
def test_every_pass_covers_every_row_once(labelled, unlabelled, labelled_size, size, seed):
    batches = StepBatches(numbered(labelled, unlabelled), size, labelled_size, seed=seed)
    drawn = [rows(batches[step]) for step in range(30)]
    for kind, (count, first) in enumerate([(labelled, 0), (unlabelled, labelled)]):
        sequence = list(itertools.chain.from_iterable(d[kind] for d in drawn))
        for start in range(0, len(sequence) - count + 1, count):
            assert sorted(sequence[start : start + count]) == list(range(first, first + count))
    assert all(len(a) == labelled_size and len(b) == min(size, unlabelled) for a, b in drawn)


@given(sizes, sizes, st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(labelled, unlabelled, steps):
    data = numbered(labelled, unlabelled)
    used = StepBatches(data, 5, 3, seed=2)
    for step in steps:
        batch = used[step]
        assert batch.step == step
        assert rows(batch) == rows(StepBatches(data, 5, 3, seed=2)[step])
        assert torch.equal(batch.y, batch.x[:, 0].long() % 2)


def test_another_seed_and_another_pass_are_another_order():
    data = numbered(20, 20)
    one, other = (StepBatches(data, 20, seed=seed) for seed in (0, 1))
    orders = [*rows(one[0]), *rows(one[1]), *rows(other[0])]
    labelled, unlabelled = orders[::2], [[r - 20 for r in order] for order in orders[1::2]]
    assert len(set(map(tuple, labelled + unlabelled))) == 6


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 20))
def test_the_processes_share_the_batch_of_one(world_size, labelled_share, share, step):
    data = numbered(10, 15)
    arguments = (data, world_size * share, world_size * labelled_share)
    shares = [
        rows(StepBatches(*arguments, rank=rank, world_size=world_size)[step]) for rank in range(world_size)
    ]
    whole = rows(StepBatches(*arguments)[step])
    for kind in range(2):
        assert list(itertools.chain.from_iterable(s[kind] for s in shares)) == whole[kind]
    assert {(len(a), len(b)) for a, b in shares} == {(labelled_share, share)}


def test_all_labelled_rows_are_the_default():
    assert sorted(rows(StepBatches(numbered(7, 9), 4)[3])[0]) == list(range(7))


@pytest.mark.parametrize(("size", "taken"), [(4, 4), (9, 9), (20, 9)])
def test_if_every_row_is_labelled_a_step_has_batch_size_of_them(size, taken):
    batches = StepBatches(numbered(9, 0), size)
    assert [len(rows(batches[step])[0]) for step in range(3)] == [taken] * 3
    assert len(batches) == math.ceil(9 / taken)
    drawn = list(itertools.chain.from_iterable(rows(batches[step])[0] for step in range(9)))
    assert sorted(drawn[:9]) == list(range(9))
    with pytest.raises(ValueError, match=f"^batch_size: 5 processes cannot share {taken} of 9 rows equally"):
        StepBatches(numbered(9, 0), size, world_size=5)


def test_more_labelled_rows_than_there_are_repeat():
    assert sorted(rows(StepBatches(numbered(3, 9), 4, 6)[1])[0]) == [0, 0, 1, 1, 2, 2]


def test_without_labelled_or_unlabelled_rows_there_are_none():
    batch = StepBatches(numbered(0, 9), 4)[0]
    assert (batch.x, batch.y, len(batch.x_unlabelled)) == (None, None, 4)
    batch = StepBatches(numbered(9, 0), 4, 5)[0]
    assert (len(batch.x), len(batch.y), batch.x_unlabelled) == (5, 5, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((numbered(4, 9), 0), "batch_size=0: expected at least 1"),
        ((numbered(4, 0), "8"), "batch_size='8': expected a whole number of at least 1"),
        ((numbered(4, 9), None), "batch_size=None: expected a whole number of at least 1"),
        ((numbered(4, 9), 4, 0), "labelled_batch_size=0: expected at least 1"),
        ((numbered(4, 9), 4, "2"), "labelled_batch_size='2': expected a whole number of at least 1"),
        ((numbered(4, 9), 5, 4), "^batch_size: 2 processes cannot share 5 of 9 rows equally"),
        ((numbered(4, 9), 64, 4), "^batch_size: 2 processes cannot share 9 of 9 rows equally"),
        ((numbered(5, 9), 4), "^labelled_batch_size: 2 processes cannot share 5 of 5 rows equally"),
        ((numbered(0, 0), 4), "data: x is empty"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StepBatches(*arguments, world_size=2)


def test_seeds_of_all_names_differ():
    names = itertools.product(range(5), ("noise", "labelled", "validation"), range(50), range(4))
    seeds = [derive_seed(*name) for name in names]
    assert len(set(seeds)) == len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)


# -- optimisers and schedules ----------------------------------------------------------------------
def rates(name, steps, warmup=0.0, learning_rate=0.5):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], learning_rate)
    schedule = make_schedule(name, optimizer, steps=steps, warmup=warmup)
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def test_linear_is_that_of_the_paper():
    expected = [1e-3 * (1 - e / 500) for e in range(500)]
    assert rates("linear", 500, learning_rate=1e-3) == pytest.approx(expected)


def test_cosine():
    expected = [0.25 * (1 + math.cos(math.pi * s / 40)) for s in range(40)]
    assert rates("cosine", 40) == pytest.approx(expected)


def test_constant_and_warm_up():
    assert rates("constant", 5) == [0.5] * 5
    rise = [0.5 * s / 5 for s in range(1, 5)]
    assert rates("constant", 8, warmup=0.5) == pytest.approx([*rise, *[0.5] * 4])
    assert rates("linear", 8, warmup=0.5) == pytest.approx([*rise, 0.5, 0.375, 0.25, 0.125])
    half = 0.25 * (1 + math.cos(math.pi / 4))
    assert rates("cosine", 8, warmup=0.5)[4:6] == pytest.approx([0.5, half])


def test_two_drops():
    """The schedule of FlowGMM on synthetic data: a tenth from half of the run on, a hundredth from 80 %."""
    expected = [1e-4] * 10 + [1e-5] * 6 + [1e-6] * 4
    assert rates("two-drops", 20, learning_rate=1e-4) == pytest.approx(expected)
    rise = [0.5 * s / 5 for s in range(1, 5)]
    assert rates("two-drops", 14, warmup=4 / 14) == pytest.approx(
        [*rise, *[0.5] * 5, *[0.05] * 3, *[0.005] * 2]
    )


def test_one_cycle_rises_to_the_rate_and_falls():
    used = rates("one-cycle", 100)
    assert used.index(max(used)) == 9  # the rise takes a tenth of the steps
    assert max(used) == pytest.approx(0.5)
    assert used[0] == pytest.approx(0.5 / 25)
    assert used[-1] == pytest.approx(0.5 / 25 / 1e4)
    assert rates("one-cycle", 100, warmup=0.3).index(max(rates("one-cycle", 100, warmup=0.3))) == 29


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_shortest_runs_have_rates(name, steps):
    assert all(0 < rate <= 0.5 for rate in rates(name, steps))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_by_name(name):
    made = make_optimizer(
        name, [torch.nn.Parameter(torch.zeros(1))], learning_rate=0.1, weight_decay=0.2, betas=(0.3, 0.4)
    )
    assert type(made).__name__.lower() == name
    group = made.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.2, (0.3, 0.4))


def test_unknown_names_are_refused():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(ValueError, match=r"optimizer='sgd': expected one of 'adam', 'adamw', 'adamax'"):
        make_optimizer("sgd", parameters, learning_rate=0.1)
    optimizer = torch.optim.SGD(parameters, 0.1)
    with pytest.raises(ValueError, match=r"schedule='step': expected one of 'one-cycle', 'linear'"):
        make_schedule("step", optimizer, steps=3)
    with pytest.raises(ValueError, match=r"warmup=1: expected a finite number of at least 0 and below 1"):
        make_schedule("linear", optimizer, steps=3, warmup=1)
