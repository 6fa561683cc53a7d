"""Training end to end: it learns, it resumes to the same result, it stops at a bad loss."""

import pytest
import torch

import pyro_scnf as scnf
from pyro_scnf.datasets import toy
from pyro_scnf.training import fit

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture
def data():
    return toy("moons", num_train=200, num_test=100, seed=0).hold_out(40)


def build(data, **options):
    torch.manual_seed(0)
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=2, width=16, blocks=1), "gmm", 2)
    sizes = {"num_labelled": len(data.labelled[0]), "num_unlabelled": len(data.unlabelled)}
    model = scnf.SemiSupervisedModel(flow, classification_weight=5.0, **sizes, **options)
    model.initialize(data.x, data.y)
    return model


@pytest.mark.parametrize("guide", scnf.GUIDES)
def test_the_validation_likelihood_improves_under_every_guide(data, guide):
    model = build(data)
    with torch.no_grad():
        before = -model.log_prob(data.x_val).mean()
    result = fit(model, data, guide=guide, steps=60, batch_size=64, validate_every=20, progress=False)
    with torch.no_grad():
        after = -model.log_prob(data.x_val).mean()
    assert result.steps == 60
    assert after.item() == pytest.approx(result.best_nll, abs=1e-4)
    assert after < before - 0.1


class Killed(Exception):
    pass


class KillAt:
    """Jitter that dies in a given training step; each step augments twice."""

    def __init__(self, step):
        self.calls_left = 2 * step

    def __call__(self, x):
        if self.calls_left == 0:
            raise Killed
        self.calls_left -= 1
        return x + 0.05 * torch.randn_like(x)


@pytest.mark.parametrize(("guide", "kill_at"), [("exact", 13), ("exact", 20), ("em-sample", 25)])
def test_a_killed_run_resumes_to_the_same_weights(data, tmp_path, guide, kill_at):
    options = {"guide": guide, "steps": 40, "batch_size": 32, "validate_every": 10, "progress": False}
    whole = build(data)
    fit(whole, data, out=tmp_path / "whole", augment=KillAt(10**6), **options)
    with pytest.raises(Killed):
        fit(build(data), data, out=tmp_path / "killed", augment=KillAt(kill_at), **options)
    resumed = build(data)
    result = fit(resumed, data, out=tmp_path / "killed", augment=KillAt(10**6), resume=True, **options)
    assert result.steps == 40
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(data):
    def explode(x):
        return x * 1e30

    with pytest.raises(RuntimeError, match="training stopped at step 0"):
        fit(build(data), data, steps=5, augment=explode, progress=False)


def test_without_held_out_data_the_last_weights_are_kept():
    data = toy("moons", num_train=50, num_test=20)
    result = fit(build(data), data, steps=3, progress=False)
    assert (result.steps, result.best_step, result.best_nll) == (3, 3, None)
