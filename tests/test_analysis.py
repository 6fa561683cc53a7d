"""Numbers of a trained model against sums by hand, and the figures made of them."""

from __future__ import annotations

import math
import re
import sys
from copy import deepcopy

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import image_flow, relative, toy_flow

import pyro_scnf as scnf
from pyro_scnf import analysis, plots
from pyro_scnf.datasets import SemiSupervisedData, toy
from pyro_scnf.transforms import dequantize


# -- evaluation ------------------------------------------------------------------------------------
def test_error_likelihood_and_calibration_by_hand():
    model = scnf.SemiSupervisedModel(toy_flow("gmm"), torch.tensor([0.2, 0.3, 0.5]))
    x, y = torch.randn(50, 2), torch.randint(3, (50,))
    found = analysis.evaluate(model, x, y, batch_size=7)
    posterior = model.posterior(x).probs
    confidence, label = posterior.max(-1)
    right = label == y
    assert found["test_error_pct"] == pytest.approx(100 * (1 - right.float().mean().item()), abs=1e-3)
    assert found["test_nll"] == pytest.approx(-model.log_prob(x).mean().item(), rel=1e-5)
    bins = (confidence * 15).ceil().clamp(min=1)
    gaps = [
        (right[bins == b].float().mean() - confidence[bins == b].mean()).abs() * (bins == b).float().mean()
        for b in bins.unique()
    ]
    assert found["test_ece"] == pytest.approx(sum(gaps).item(), abs=1e-5)
    assert found.keys() == {"test_error_pct", "test_nll", "test_label_nll", "test_ece", "test_brier"}


def test_a_model_of_one_class_is_always_right():
    model = scnf.SemiSupervisedModel(toy_flow("gmm", num_classes=1))
    x, y = torch.randn(20, 2), torch.zeros(20, dtype=torch.long)
    found = analysis.evaluate(model, x, y)
    assert found["test_error_pct"] == found["test_ece"] == 0
    assert found["test_nll"] == pytest.approx(-model.log_prob(x).mean().item(), rel=1e-5)


@pytest.mark.parametrize("average", ["density", "posterior"])
def test_several_dequantisations(average):
    model = scnf.SemiSupervisedModel(image_flow("gmm"))
    x, y = torch.randint(9, (20, 1, 4, 4)), torch.randint(3, (20,))
    torch.manual_seed(0)
    found = analysis.evaluate(model, x, y, bins=9, draws=3, average=average)
    torch.manual_seed(0)
    joint = torch.stack([model.flow.class_log_prob(dequantize(x, 9)) for _ in range(3)]) - math.log(3)
    probs = joint.logsumexp(0) if average == "density" else joint.softmax(-1).mean(0)
    error = (probs.argmax(-1) != y).float().mean().item()
    nll = -joint.logsumexp(-1).mean().item()
    assert found["test_error_pct"] == pytest.approx(100 * error, abs=1e-3)
    assert found["test_nll"] == pytest.approx(nll, rel=1e-5)
    assert found["test_bits_per_dim"] == pytest.approx(nll / 16 / math.log(2) + math.log2(9), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "mode"}, "average='mode': expected 'density' or 'posterior'"),
        ({"draws": 0, "bins": 5}, "draws=0: expected at least 1"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"draws": 4}, "draws=4: without bins or prepare nothing is drawn"),
        ({"y": torch.tensor([0, 1, -1])}, "the label of every row"),
        ({"y": torch.tensor([0, 1])}, r"y has shape \(2,\), expected \(3,\)"),
        ({"y": torch.tensor([0, 1, 3])}, "y holds labels 0..3"),
        ({"x": torch.zeros(0, 2), "y": torch.zeros(0, dtype=torch.long)}, "at least one row"),
        ({"y": torch.tensor([0, 1, 2, 0])}, r"y has shape \(4,\), expected \(3,\)"),
        ({"y": torch.tensor([0.0, 1.0, 2.0])}, r"evaluate: y has dtype torch.float32, .* y.long\(\)"),
        ({"y": [0, 1, 2]}, "evaluate: y is .*list, expected a tensor"),
        ({"x": np.zeros((3, 2))}, r"evaluate: x is .*numpy\.ndarray, expected a tensor"),
        (
            {"x": torch.zeros(3, 2).double()},
            r"evaluate: x has dtype torch.float64 .*give x.to\(torch.float32\)",
        ),
        ({"x": torch.zeros(3, 2, dtype=torch.long)}, "evaluate: x has dtype torch.int64, expected floating"),
        ({"x": torch.full((3, 2), torch.nan)}, "evaluate: x holds 6 NaN"),
        ({"x": torch.zeros(2), "y": torch.tensor([0])}, r"x has shape \(2,\), expected \(N, 2\)"),
        ({"x": torch.zeros(3, 3)}, r"evaluate: x has shape \(3, 3\), expected \(\*batch, 2\)"),
        ({"bins": 0}, "bins=0: expected at least 1"),
        ({"bins": 2.5}, "bins=2.5: expected a whole number"),
        ({"bins": 4, "x": torch.rand(3, 2)}, "dequantize: x holds .* scaled or dequantised already"),
        ({"generator": torch.Generator()}, "generator: without bins nothing is drawn"),
        ({"average": 3}, "average=3: expected"),
    ],
)
def test_what_cannot_be_evaluated(options, message):
    model = scnf.SemiSupervisedModel(toy_flow("gmm"))
    with pytest.raises(ValueError, match=message):
        analysis.evaluate(model, **{"x": torch.zeros(3, 2), "y": torch.tensor([0, 1, 2]), **options})


def test_one_row_is_evaluated():
    model = scnf.SemiSupervisedModel(toy_flow("gmm"))
    x = torch.randn(1, 2)
    label = model.posterior(x).probs.argmax(-1)
    found = analysis.evaluate(model, x, label)
    assert found["test_error_pct"] == 0
    assert found["test_nll"] == pytest.approx(-model.log_prob(x).item(), rel=1e-6)


def test_labels_are_decided_as_in_double_precision():
    """What all labels share is so large that single precision rounds the differences between labels away."""
    transform = scnf.flows.glow((1, 4, 4), levels=2, steps=1, width=6, blocks=1)
    flow = scnf.SemiConditionalFlow(transform, "gmm", 3, init_aux_scale=1e-4)
    model, exact = scnf.SemiSupervisedModel(flow), scnf.SemiSupervisedModel(deepcopy(flow).double())
    x = torch.randn(400, 1, 4, 4)
    y = exact.posterior(x.double()).logits.argmax(-1)
    naive = (flow.class_log_prob(x).argmax(-1) != y).sum()
    found = analysis.evaluate(model, x, y, batch_size=150)
    assert found["test_error_pct"] <= 0.25 < 100 * naive / 400
    expected = analysis.evaluate(exact, x.double(), y)
    assert found["test_nll"] == pytest.approx(expected["test_nll"], rel=1e-6)
    assert found["test_ece"] == pytest.approx(expected["test_ece"], abs=1e-3)


def test_dequantisation_draws_from_the_generator_given():
    model = scnf.SemiSupervisedModel(image_flow("gmm"))
    x, y, state = torch.randint(9, (20, 1, 4, 4)), torch.randint(3, (20,)), torch.get_rng_state()
    found = [
        analysis.evaluate(model, x, y, bins=9, draws=2, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_results_draw_nothing():
    model = scnf.SemiSupervisedModel(toy_flow("flow"))
    x, y, state = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1]), torch.get_rng_state()
    analysis.evaluate(model, x, y)
    analysis.evaluate_plane(model, x, points=3)
    analysis.swap_labels(model.flow, x, y)
    analysis.reconstruct(model.flow, x, (1,))
    assert torch.equal(torch.get_rng_state(), state)


# -- latents ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep_aux", [True, False])
def test_a_swap_to_the_own_label_is_the_datum_itself(keep_aux):
    flow = image_flow("flow")
    x, y = torch.randn(5, 1, 4, 4), torch.tensor([0, 2, 1, 1, 0])
    swaps = analysis.swap_labels(flow, x, y, keep_aux=keep_aux)
    assert swaps.shape == (5, 4, 1, 4, 4)
    assert torch.equal(swaps[:, 0], x)
    own = swaps[torch.arange(5), 1 + y]
    z_aux, z_f, _ = flow.encode(x)
    expected = x if keep_aux else flow.decode(z_f, torch.zeros_like(z_aux))
    assert relative(own, expected) < 1e-4
    assert (swaps[:, 1] - swaps[:, 2]).abs().max() > 1e-3


def test_swaps_need_a_prior_that_can():
    with pytest.raises(ValueError, match="its prior is a GaussianMixturePrior, expected one that can encode"):
        analysis.swap_labels(image_flow("gmm"), torch.randn(1, 1, 4, 4), torch.tensor([0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.tensor([0, 1])}, r"swap_labels: y has shape \(2,\), expected \(3,\)"),
        ({"y": torch.tensor([0, 1, -1])}, r"swap_labels: y holds labels -1..1, expected 0..2"),
        ({"y": torch.tensor([0.0, 1.0, 2.0])}, "swap_labels: y has dtype torch.float32"),
        ({"y": [0, 1, 2]}, "swap_labels: y is .*list"),
        ({"x": np.zeros((3, 1, 4, 4))}, r"swap_labels: x is .*numpy\.ndarray"),
        ({"x": torch.zeros(3, 1, 4, 4).double()}, "swap_labels: x has dtype torch.float64"),
        ({"x": torch.zeros(1, 4, 4)}, r"swap_labels: x has shape \(1, 4, 4\), expected \(B, 1, 4, 4\)"),
        ({"keep_aux": "no"}, "keep_aux='no': expected True or False"),
    ],
)
def test_what_cannot_be_swapped(changes, message):
    given = {"x": torch.randn(3, 1, 4, 4), "y": torch.tensor([0, 1, 2]), **changes}
    with pytest.raises(ValueError, match=message):
        analysis.swap_labels(image_flow("flow"), given.pop("x"), given.pop("y"), **given)


def test_no_rows_are_swapped_and_reconstructed():
    flow, x = image_flow("flow"), torch.zeros(0, 1, 4, 4)
    assert analysis.swap_labels(flow, x, torch.zeros(0, dtype=torch.long)).shape == (0, 4, 1, 4, 4)
    assert analysis.reconstruct(flow, x, (3, 5)).shape == (2, 0, 1, 4, 4)


def test_reconstructions_keep_the_deepest_components():
    flow = image_flow("gmm")
    x = torch.randn(3, 1, 4, 4)
    none, half, everything = analysis.reconstruct(flow, x, (0, 8, 16))
    z_aux, z_f, _ = flow.encode(x)
    assert relative(everything, x) < 1e-4
    assert relative(half, flow.decode(z_f, torch.zeros_like(z_aux))) < 1e-5  # 8 of 16 components are z_f
    assert relative(none, flow.decode(torch.zeros_like(z_f), torch.zeros_like(z_aux))) < 1e-5
    for form in ([0, 8, 16], np.array([0, 8, 16]), torch.tensor([0, 8, 16])):
        assert torch.equal(analysis.reconstruct(flow, x, form)[1], half)
    with pytest.raises(ValueError, match=r"reconstruct: x has dtype torch\.float64"):
        analysis.reconstruct(flow, x.double(), (8,))
    for wrong in ((17,), (-1,), (1.5,), (math.nan,), (), ("8",), (True,), 8, None):
        with pytest.raises(ValueError, match=r"kept=.*expected whole numbers of components from 0 to 16"):
            analysis.reconstruct(flow, x, wrong)


# -- the plane -------------------------------------------------------------------------------------
def test_a_plane_is_the_model_on_a_grid():
    model = scnf.SemiSupervisedModel(toy_flow("gmm", dtype=torch.float64))
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    plane = analysis.evaluate_plane(model, x, points=5, margin=1.0)
    assert plane.low.tolist() == [-1.0, 0.0]
    assert plane.high.tolist() == [3.0, 6.0]
    corner = torch.tensor([3.0, 0.0], dtype=torch.float64)  # right and down
    assert relative(plane.density[0, -1], model.log_prob(corner).exp()) < 1e-10
    assert relative(plane.probs[0, -1], model.posterior(corner).probs) < 1e-10
    with pytest.raises(ValueError, match=r"event_shape is \(1, 4, 4\), expected \(2,\)"):
        analysis.evaluate_plane(scnf.SemiSupervisedModel(image_flow()), x)
    for shape in ((4, 3), (0, 2), (2,)):
        with pytest.raises(ValueError, match=re.escape(f"x has shape {shape}, expected (N, 2)")):
            analysis.evaluate_plane(model, torch.zeros(shape))


def test_a_grid_stays_within_the_support():
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=4, blocks=1, logit=0.05), "gmm", 2)
    plane = analysis.evaluate_plane(scnf.SemiSupervisedModel(flow), torch.rand(5, 2), points=9)
    assert plane.low.tolist() == pytest.approx([-0.05 / 2 / 0.95] * 2)
    assert plane.high.tolist() == pytest.approx([1 + 0.05 / 2 / 0.95] * 2)
    assert torch.isfinite(plane.density).all()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.full((3, 2), torch.nan), {}, "evaluate_plane: x holds 6 NaN"),
        (np.zeros((3, 2)), {}, r"evaluate_plane: x is .*numpy\.ndarray"),
        (torch.zeros(3, 2), {"margin": 0}, "margin=0.0: leaves no area"),
        (torch.zeros(3, 2), {"margin": "wide"}, "margin='wide': expected a finite number"),
        (torch.zeros(3, 2), {"margin": math.nan}, "margin=nan: expected a finite number"),
        (torch.zeros(3, 2), {"points": 1}, "points=1: expected at least 2"),
        (torch.zeros(3, 2), {"points": 20.5}, "points=20.5: expected a whole number"),
    ],
)
def test_planes_that_cannot_be(x, options, message):
    with pytest.raises(ValueError, match=message):
        analysis.evaluate_plane(scnf.SemiSupervisedModel(toy_flow("gmm")), x, **options)


def test_a_plane_around_one_point():
    plane = analysis.evaluate_plane(scnf.SemiSupervisedModel(toy_flow("gmm")), torch.zeros(1, 2), points=3)
    assert plane.probs.shape == (3, 3, 3)


# -- logs ------------------------------------------------------------------------------------------
def test_curves_of_all_parts_of_a_run_in_order(tmp_path):
    for part, steps in ((0, (9, 19)), (1, (29,)), (10, (39,))):
        folder = tmp_path / f"log/version_{part}"
        folder.mkdir(parents=True)
        rows = "".join(f"0,{step},{step / 10},\n" for step in steps)
        (folder / "metrics.csv").write_text(f"epoch,step,loss,val_nll\n{rows}0,{steps[-1]},,{part}\n")
    curves = analysis.read_log(tmp_path)
    assert curves == {
        "loss": {9: 0.9, 19: 1.9, 29: 2.9, 39: 3.9},
        "val_nll": {19: 0.0, 29: 1.0, 39: 10.0},
    }
    assert list(curves["loss"]) == [9, 19, 29, 39]
    whole = (tmp_path / "log/version_10/metrics.csv").read_text()
    for unfinished in ("0,49,4.9", "0,49,4.9,1"):  # the whole line ends in 4.9,12.5
        (tmp_path / "log/version_10/metrics.csv").write_text(whole + unfinished)
        assert analysis.read_log(tmp_path) == curves
    (tmp_path / "log/version_1/.by_fit").touch()  # the mark of fit: the others are not of this run
    assert analysis.read_log(tmp_path)["loss"] == {29: 2.9}
    (tmp_path / "log/version_1/.by_fit").unlink()
    (tmp_path / "log/version_old").mkdir()
    (tmp_path / "log/version_old/metrics.csv").write_text("of somebody else\n")
    assert analysis.read_log(tmp_path) == curves
    for damaged in (b"epoch,step,loss\n0,49,4.9,\xff\n", b"epoch,step,loss\n0,49,much\n"):
        (tmp_path / "log/version_1/metrics.csv").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"version_1/metrics\.csv is damaged, or no log of fit"):
            analysis.read_log(tmp_path)
    with pytest.raises(ValueError, match="out is of type int, expected the path of a folder"):
        analysis.read_log(3)
    with pytest.raises(FileNotFoundError, match="there is no log; train with"):
        analysis.read_log(tmp_path / "elsewhere")


# -- figures ---------------------------------------------------------------------------------------
def pixels(figure):
    """What the figure looks like, ``(H, W, 4)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba()).copy())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_in_its_place(channels):
    images = torch.zeros(2, 3, channels, 4, 4)
    images[1, 2] = 1.0
    drawn = plots.image_grid(images, rows="r", columns="c").axes[0].images[0].get_array()
    shown = torch.as_tensor(drawn.data)
    assert shown.shape[:2] == (12, 18)
    inside = torch.zeros(12, 18, dtype=torch.bool)
    for row in (1, 7):
        for column in (1, 7, 13):
            inside[row : row + 4, column : column + 4] = True
    assert shown[~inside].min() == 1  # white between images
    assert (shown[7:11, 13:17] == (1 if channels == 3 else 0)).all()  # one channel is ink
    assert (shown[1:5, 1:5] == (0 if channels == 3 else 1)).all()
    with pytest.raises(ValueError, match=r"images has shape \(2, 3, 4\)"):
        plots.image_grid(torch.zeros(2, 3, 4))


def test_grids_that_cannot_be_drawn():
    for images, message in (
        (torch.zeros(0, 3, 1, 4, 4), r"images has shape \(0, 3, 1, 4, 4\), expected at least one image"),
        (torch.full((1, 1, 1, 2, 2), torch.nan), "images holds 4 NaN"),
        (np.zeros((1, 1, 1, 2, 2)), r"image_grid: images is .*numpy\.ndarray"),
        (torch.zeros(1, 1, 2, 4, 4), r"with C = 1 or 3"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.image_grid(images)


def test_a_grid_of_integers_is_refused():
    levels = torch.full((1, 1, 1, 4, 4), 255, dtype=torch.uint8)
    message = r"images has dtype torch.uint8, expected .* the unit interval; .* images / 255 or .*dequantize"
    with pytest.raises(ValueError, match=message):
        plots.image_grid(levels)
    for remedy in (levels / 255, dequantize(levels, 256)):  # 1 is ink
        assert plots.image_grid(remedy).axes[0].images[0].get_array()[1:5, 1:5].max() < 0.01


def test_curves_are_drawn_as_logged():
    figure = plots.learning_curves({"loss": {1: 3.0, 2: 2.0}, "other": {1: 1.0}})
    (panel,) = figure.axes
    assert panel.get_title() == "loss"
    assert panel.lines[0].get_xydata().tolist() == [[1.0, 3.0], [2.0, 2.0]]
    with pytest.raises(ValueError, match=r"none of them was logged; there are \['other'\]"):
        plots.learning_curves({"other": {1: 1.0}})
    (panel,) = plots.learning_curves({"other": {1: 1.0}}, "other").axes
    assert panel.get_title() == "other"


@pytest.mark.parametrize("points", [1, 20, 21])
def test_a_curve_of_few_points_has_markers(points):
    (panel,) = plots.learning_curves({"loss": dict.fromkeys(range(points), 1.0)}).axes
    (curve,) = panel.lines
    assert curve.get_marker() == ("o" if points <= 20 else "")
    drawn = pixels(panel.figure)
    curve.set_visible(False)
    assert not torch.equal(drawn, pixels(panel.figure))  # the curve is visible, even a single point


@pytest.mark.parametrize("num_classes", [2, 11, 20, 25])
def test_every_class_has_its_own_colour(num_classes):
    y = torch.arange(num_classes)
    x = torch.stack([y / num_classes, torch.zeros(num_classes)], -1).requires_grad_()
    (panel,) = plots.labelled_points({"a": (x, y)}).axes
    drawn = panel.collections[0].get_facecolors()
    assert len(np.unique(drawn, axis=0)) == num_classes
    probs = torch.eye(num_classes)[None].requires_grad_()  # a row of points, each certain of its class
    plane = analysis.Plane(torch.zeros(2), torch.ones(2), probs, torch.ones(1, num_classes).requires_grad_())
    regions = plots.decision_boundary(plane, SemiSupervisedData(x, y, x, y, num_classes)).axes[0]
    np.testing.assert_allclose(regions.images[0].get_array()[0], drawn[:, :3], atol=1e-6)
    np.testing.assert_allclose(regions.collections[1].get_facecolors(), drawn, atol=1e-6)
    if num_classes <= 10:
        np.testing.assert_allclose(
            drawn[:, :3], matplotlib.colormaps["tab10"].colors[:num_classes], atol=1e-6
        )


def test_points_may_be_arrays_frames_and_lists():
    x, y = torch.randn(4, 2), torch.tensor([0, 1, -1, 2])
    frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
    drawn = []
    for pair in ((x, y), (x.numpy(), y.float()), (frame, pd.Series(y.numpy())), [x.tolist(), y.tolist()]):
        (panel,) = plots.labelled_points({"a": pair}).axes
        drawn.append(panel.collections[0])
    assert all(np.array_equal(d.get_facecolors(), drawn[0].get_facecolors()) for d in drawn)
    assert all(np.allclose(d.get_offsets(), drawn[0].get_offsets()) for d in drawn)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"a": (torch.zeros(3, 2), torch.tensor([0, 1]))}, r"sets\['a'\]: y has 2 labels and x has 3 points"),
        ({"a": (torch.zeros(3, 3), torch.zeros(3))}, r"sets\['a'\]: x has shape \(3, 3\), expected points"),
        ({"a": (torch.full((1, 2), torch.nan), [0])}, r"sets\['a'\]: x holds 2 NaN"),
        ({"a": (torch.zeros(1, 2), [-2])}, r"sets\['a'\]: y holds labels -2"),
        ({"a": (torch.zeros(1, 2), ["cat"])}, r"sets\['a'\]: y holds 'cat'"),
        ({"a": torch.zeros(3, 2)}, r"sets\['a'\] is of type Tensor, expected the pair of points and labels"),
        ([(torch.zeros(3, 2), torch.zeros(3))], "sets is of type list, expected points and labels by title"),
    ],
)
def test_points_that_cannot_be_drawn(sets, message):
    with pytest.raises(ValueError, match=message):
        plots.labelled_points(sets)


def test_the_first_set_that_has_points_sets_the_axes():
    none = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    figure = plots.labelled_points({"a": none, "b": (torch.zeros(1, 2), [0])}, margin=2)
    assert figure.axes[0].get_xlim() == (-2, 2)
    assert len(plots.labelled_points({"a": none}).axes) == 1


def test_a_boundary_needs_data_of_its_model():
    x, y = torch.zeros(2, 2), torch.tensor([0, 1])
    plane = analysis.Plane(torch.zeros(2), torch.ones(2), torch.full((4, 4, 2), 0.5), torch.ones(4, 4))
    with pytest.raises(ValueError, match="data is of type Tensor, expected a SemiSupervisedData"):
        plots.decision_boundary(plane, x)
    with pytest.raises(ValueError, match="data have 3 classes and plane has 2"):
        plots.decision_boundary(plane, SemiSupervisedData(x, y, x, y, 3))
    with pytest.raises(ValueError, match=r"data\.x has shape \(2, 8\), expected points of the plane"):
        plots.decision_boundary(plane, SemiSupervisedData(x.repeat(1, 4), y, x.repeat(1, 4), y, 2))


def test_points_with_hidden_labels_are_grey():
    x, y = torch.randn(3, 2), torch.tensor([-1, 0, -1])
    (panel,) = plots.labelled_points({"a": (x, y)}).axes
    hidden, known, other = panel.collections[0].get_facecolors()[:, :3]
    assert hidden.tolist() == other.tolist() == pytest.approx([0.45] * 3)
    assert known.tolist() == pytest.approx(matplotlib.colormaps["tab10"].colors[0])


def test_panels_without_labelled_points():
    x, none = torch.randn(3, 2), torch.zeros(0, dtype=torch.long)
    panels = plots.labelled_points({"a": (x, torch.tensor([0, 1, 1])), "b": (x[:0], none)}).axes
    assert [len(panel.collections[0].get_offsets()) for panel in panels] == [3, 0]
    plane = analysis.Plane(torch.zeros(2), torch.ones(2), torch.full((4, 4, 2), 0.5), torch.ones(4, 4))
    data = SemiSupervisedData(x, torch.full((3,), -1), x, torch.tensor([0, 1, 1]), 2)
    regions = plots.decision_boundary(plane, data).axes[0]
    assert [len(points.get_offsets()) for points in regions.collections] == [3, 0]


def test_the_second_axis_of_a_boundary_points_upwards():
    """The upper half of the plane is of class 1 and dense."""
    upper = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, 4)
    plane = analysis.Plane(torch.zeros(2), torch.ones(2), torch.stack([1 - upper, upper], -1), upper)
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    data = SemiSupervisedData(corners, torch.tensor([0, 1]), corners, torch.tensor([0, 1]), 2)
    figure = plots.decision_boundary(plane, data)
    shown = pixels(figure).float()

    def colour(panel, x, y):
        column, row = panel.transData.transform((x, y)).round().astype(int)
        return shown[len(shown) - 1 - row, column, :3]

    regions, density = figure.axes[:2]
    blue, orange = (torch.tensor(c) for c in matplotlib.colormaps["tab10"].colors[:2])
    for y, expected in ((0.25, blue), (0.75, orange)):
        over_white = 255 * (0.35 * expected + 0.65)
        assert (colour(regions, 0.25, y) - over_white).abs().max() < 3
    assert colour(density, 0.25, 0.75).mean() > colour(density, 0.25, 0.25).mean() + 100


def test_boundary_and_points():
    data = toy("moons", num_train=60, num_test=20)
    plane = analysis.evaluate_plane(scnf.SemiSupervisedModel(toy_flow("gmm", 2)), data.x, points=20)
    boundary = plots.decision_boundary(plane, data)
    assert [len(c.get_offsets()) for c in boundary.axes[0].collections] == [50, 10]
    assert pixels(boundary).float().std() > 10
    points = plots.labelled_points({"a": (data.x_test, data.y_test), "b": (data.x, data.y)})
    assert [panel.get_title() for panel in points.axes] == ["a", "b"]
    assert points.axes[0].get_xlim() == points.axes[1].get_xlim()
    with pytest.raises(ValueError, match="sets is empty"):
        plots.labelled_points({})


def test_figures_leave_the_figures_and_settings_of_the_user_alone():
    from matplotlib import pyplot

    with matplotlib.rc_context({"image.origin": "lower", "image.cmap": "hot"}):
        mine = pyplot.figure()
        settings, open_figures = dict(matplotlib.rcParams), pyplot.get_fignums()
        plots.image_grid(torch.zeros(1, 1, 1, 4, 4))
        plots.labelled_points({"a": (torch.zeros(1, 2), [0])})
        plots.learning_curves({"loss": {1: 1.0}})
        assert dict(matplotlib.rcParams) == settings
        assert pyplot.get_fignums() == open_figures
        assert pyplot.gcf() is mine
        pyplot.close(mine)


def test_figures_leave_pyplot_alone(monkeypatch):
    backend = matplotlib.rcParams["backend"]
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plots.image_grid(torch.zeros(1, 1, 1, 4, 4))
    assert "matplotlib.pyplot" not in sys.modules
    assert matplotlib.rcParams["backend"] == backend


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("matplotlib.figure", "plots", lambda model: plots.image_grid(torch.zeros(1, 1, 1, 4, 4))),
        (
            "torchmetrics.functional.classification",
            "analysis",
            lambda model: analysis.evaluate(model, torch.zeros(1, 2), torch.tensor([0])),
        ),
    ],
)
def test_a_missing_library_is_named_with_its_extra(module, extra, use, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'pyro-scnf\[{extra}\]'"):
        use(scnf.SemiSupervisedModel(toy_flow("gmm")))


def test_one_test_row_of_each_class():
    y = torch.tensor([2, 0, 2, 1, 0])
    x = torch.arange(5.0)[:, None]
    examples, labels = SemiSupervisedData(x[:0], y[:0], x, y, 3).test_examples()
    assert labels.tolist() == [0, 1, 2]
    assert examples[:, 0].tolist() == [1.0, 3.0, 0.0]
