"""Random changes to training rows: shifts, flips, affine maps, dequantisation, noise, dropped features."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf.datasets import (
    FeatureDropout,
    ImageAugment,
    Jitter,
    RandomShift,
    random_affine,
    random_shift,
    toy,
)
from pyro_scnf.presets import TOY
from pyro_scnf.transforms import quantize

seeds = st.integers(0, 2**31 - 1)
DTYPES = [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


# -- augmentation ------------------------------------------------------------------------------
def crops(image: Tensor, pixels: int) -> dict[tuple[int, int], Tensor]:
    """All results that ``RandomCrop(size, padding=pixels)`` can have for an image ``(C, H, W)``, by shift."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (pixels,) * 4)
    return {
        (pixels - top, pixels - left): padded[:, top : top + height, left : left + width]
        for top in range(2 * pixels + 1)
        for left in range(2 * pixels + 1)
    }


@settings(max_examples=50)
@given(
    batch=st.lists(st.integers(1, 3), max_size=3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    pixels=st.integers(0, 7),
    dtype=st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.float64]),
    seed=seeds,
)
def test_a_shifted_image_is_a_crop_of_the_padded_one(batch, shape, pixels, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 256, (*batch, *shape), generator=generator).to(dtype)
    shifted = random_shift(x, pixels, generator)
    assert shifted.dtype == dtype
    assert shifted.shape == x.shape
    for before, after in zip(x.reshape(-1, *shape), shifted.reshape(-1, *shape), strict=True):
        assert any(torch.equal(after, crop) for crop in crops(before, pixels).values())


def test_shifts_are_uniform_and_of_each_image_its_own():
    image = torch.randint(1, 256, (3, 4, 5), dtype=torch.uint8)
    drawn = random_shift(image.expand(3000, *image.shape), 1)
    known = {crop.numpy().tobytes(): shift for shift, crop in crops(image, 1).items()}
    counts = Counter(known[after.contiguous().numpy().tobytes()] for after in drawn)
    assert set(counts) == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    # Of 3000 draws, about 333 are of each shift, with standard deviation 17.2.
    assert all(abs(count - 3000 / 9) < 5 * 17.3 for count in counts.values())


def test_shifts_come_from_the_global_generator_or_the_one_given():
    x = torch.rand(50, 1, 6, 6)
    torch.manual_seed(1)
    first = random_shift(x, 2)
    assert not torch.equal(first, random_shift(x, 2))
    torch.manual_seed(1)
    assert torch.equal(first, RandomShift(2)(x))
    state = torch.get_rng_state()
    given = random_shift(x, 2, torch.Generator().manual_seed(3))
    assert torch.equal(given, random_shift(x, 2, torch.Generator().manual_seed(3)))
    assert torch.equal(state, torch.get_rng_state())


def test_shifted_images_pass_gradients():
    x = torch.rand(4, 2, 5, 5, requires_grad=True)
    (random_shift(x, 1)).sum().backward()
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}
    assert (x.grad[..., 1:-1, 1:-1] == 1).all()


def test_prepared_images_fall_into_the_bins_of_their_pixels():
    x = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    for augment in (ImageAugment(), ImageAugment(shift=3, jitter=0.2)):
        prepared = augment.prepare(x)
        assert prepared.dtype == torch.float32
        assert torch.equal(quantize(prepared), x.long())
        assert not torch.equal(prepared, augment.prepare(x))
    torch.manual_seed(0)
    plain = ImageAugment()(x)
    torch.manual_seed(0)
    assert torch.equal(plain, ImageAugment().prepare(x))


def test_augmented_images_are_shifted_then_dequantised():
    x = torch.randint(17, (20, 1, 8, 8)).float()
    torch.manual_seed(0)
    shifted = random_shift(x, 2)
    torch.manual_seed(0)
    augmented = ImageAugment(bins=17, shift=2)(x)
    assert torch.equal(quantize(augmented, 17), shifted.long())
    assert augmented.unique().numel() > 1000  # the border is dequantised too


@pytest.mark.parametrize("jitter", [0.01, 0.2, 3.0])
def test_jitter_is_reflected_into_the_unit_interval(jitter):
    x = torch.randint(256, (100, 1, 20, 20), dtype=torch.uint8)
    torch.manual_seed(0)
    jittered = ImageAugment(jitter=jitter)(x)
    assert jittered.min() >= 0
    assert jittered.max() < 1
    torch.manual_seed(0)
    free = ImageAugment().prepare(x)
    free = free + jitter * torch.randn_like(free)
    assert free.min() < 0
    assert free.max() > 1
    for _ in range(30):  # reflect at one end, then at the other, until all values are inside
        free = torch.where(free < 0, -free, free)
        free = torch.where(free > 1, 2 - free, free)
    assert torch.allclose(jittered, free, atol=1e-5)


def test_jitter_to_the_very_end_stays_below_one(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", lambda x: 1 - x)
    jittered = ImageAugment(jitter=1.0)(torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8))
    assert (jittered < 1).all()
    assert (jittered > 0.999).all()


AUGMENT_ERRORS = {
    "pixels": (lambda: random_shift(torch.rand(1, 4, 4), -1), "pixels=-1: expected at least 0"),
    "shape": (
        lambda: random_shift(torch.rand(4, 4), 1),
        r"x has shape \(4, 4\), expected images \(\*batch, C, H, W\)",
    ),
    "pixels of the class": (lambda: RandomShift(-2), "pixels=-2: expected at least 0"),
    "shift": (lambda: ImageAugment(shift=-1), "shift=-1: expected at least 0"),
    "bins": (lambda: ImageAugment(bins=0), "bins=0: expected at least 1"),
    "jitter": (lambda: ImageAugment(jitter=-0.1), "jitter=-0.1: expected a finite number from 0 to"),
    "no jitter": (lambda: ImageAugment(jitter=float("nan")), "jitter=nan: expected a finite number"),
    "values": (lambda: ImageAugment(bins=17)(torch.full((1, 1, 2, 2), 17)), r"expected integers in 0\.\.16"),
}


@pytest.mark.parametrize("case", AUGMENT_ERRORS)
def test_augmentation_refuses(case):
    call, message = AUGMENT_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "augment",
    [RandomShift(2), ImageAugment(17, shift=1, jitter=0.05, flip=True, rotate=9.0), FeatureDropout(0.1, 0.2)],
)
def test_augmentations_can_be_pickled(augment):
    assert pickle.loads(pickle.dumps(augment)) == augment


def test_jitter_dequantises_first_and_does_not_touch_the_test_set():
    x = torch.randint(17, (2000, 1, 2, 2))
    augment = Jitter(0.1, bins=17)
    torch.manual_seed(0)
    noisy = augment(x)
    torch.manual_seed(0)
    prepared = augment.prepare(x)
    assert torch.equal(quantize(prepared, 17), x)
    assert (noisy - prepared).std().item() == pytest.approx(0.1, rel=0.05)
    plain = torch.randn(2000, 2)
    assert torch.equal(Jitter(0.1).prepare(plain), plain)
    assert (Jitter(0.1)(plain) - plain).std().item() == pytest.approx(0.1, rel=0.05)
    with pytest.raises(ValueError, match=r"scale=-1: expected a finite number from 0 to"):
        Jitter(-1)


def test_labelled_images_may_be_shifted_further():
    x = torch.zeros(50, 1, 8, 8, dtype=torch.uint8)
    x[:, :, 4, 4] = 255
    augment = ImageAugment(shift_labelled=2)
    still = (augment(x) > 0.9).nonzero()[:, 2:]
    moved = (augment.labelled(x) > 0.9).nonzero()[:, 2:]
    assert (still == 4).all()
    assert moved.unique().tolist() == [2, 3, 4, 5, 6]
    assert ((ImageAugment(shift=1).labelled(x) > 0.9).nonzero()[:, 2:] - 4).abs().max() == 1


# -- affine maps -------------------------------------------------------------------------------
def blob(height: int, width: int, down: float = 0.0, right: float = 0.0, spread: float = 1.5) -> Tensor:
    """An image ``(1, H, W)`` of a Gaussian spot, at an offset from the centre in pixels."""
    rows = torch.arange(height) - (height - 1) / 2 - down
    columns = torch.arange(width) - (width - 1) / 2 - right
    return torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * spread**2))[None]


def centres(x: Tensor) -> Tensor:
    """Centres of mass of images ``(N, 1, H, W)`` as offsets (right, down) from the middle, ``(N, 2)``."""
    height, width = x.shape[-2:]
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    mass = x.sum((1, 2, 3))
    right, down = (x.sum((1, 2)) * columns).sum(-1), (x.sum((1, 3)) * rows).sum(-1)
    return torch.stack([right, down], -1) / mass[:, None]


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(40, 60), st.integers(40, 60)),
    place=st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    rotate=st.floats(0, 180),
    zoom=st.floats(0, 0.3),
    shear=st.floats(0, 30),
    seed=seeds,
)
def test_a_spot_moves_to_where_its_own_affine_map_says(size, place, rotate, zoom, shear, seed):
    """The map of offsets (right, down) is scale * turn * slant, whatever the shape of the image."""
    right, down = place
    x = blob(*size, down, right).expand(7, 1, *size)
    moved = random_affine(
        x, rotate=rotate, zoom=zoom, shear=shear, generator=torch.Generator().manual_seed(seed)
    )
    if not (rotate or zoom or shear):
        assert torch.equal(moved, x)
        return
    draws = 2 * torch.rand(3, 7, generator=torch.Generator().manual_seed(seed)) - 1
    amounts = (draws * torch.tensor([rotate, zoom, shear])[:, None]).T.tolist()
    for found, (turn, growth, slant) in zip(centres(moved).tolist(), amounts, strict=True):
        angle, slope = math.radians(turn), math.tan(math.radians(slant))
        a, b = right + slope * down, down  # slanted
        a, b = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
        assert found == pytest.approx([(1 + growth) * a, (1 + growth) * b], abs=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quarter_and_half_turns_are_exact(dtype, monkeypatch):
    draw = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.ones_like(draw(*size, **options)))
    square = torch.randint(200, (3, 2, 7, 7)).to(dtype)
    turned = random_affine(square, rotate=90)  # clockwise
    assert turned.dtype == dtype
    assert torch.allclose(turned.double(), square.rot90(-1, (-2, -1)).double(), atol=0.01)
    oblong = torch.randint(200, (3, 2, 5, 8)).to(dtype)
    turned = random_affine(oblong, rotate=180)
    assert torch.allclose(turned.double(), oblong.flip(-1, -2).double(), atol=0.01)


def test_what_lies_outside_is_zero():
    x = torch.ones(200, 1, 16, 16)
    smaller = random_affine(x, zoom=0.5)
    shrunk = (smaller[:, 0, 0, 0] == 0) & (smaller[:, 0, 8, 8] > 0.99)
    whole = (smaller > 0.99).all(-1).all(-1)[:, 0]
    assert shrunk.sum() > 50  # about half of the images, less those that change by a fraction of a pixel
    assert whole.sum() > 50
    assert (smaller >= 0).all()
    assert (smaller <= 1 + 1e-6).all()


@settings(max_examples=20)
@given(
    batch=st.lists(st.integers(1, 3), max_size=3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_without_an_amount_nothing_changes_and_nothing_is_drawn(batch, shape, dtype, seed):
    x = torch.randint(256, (*batch, *shape), generator=torch.Generator().manual_seed(seed)).to(dtype)
    state = torch.get_rng_state()
    same = random_affine(x)
    assert same.dtype == dtype
    assert torch.equal(same, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_tiny_amounts_leave_grey_levels_as_they_are():
    """A map by less than a rounding is the identity, at the border too."""
    x = torch.randint(256, (20, 3, 28, 20), dtype=torch.uint8)
    augmented = ImageAugment(rotate=1e-5, zoom=1e-7, shear=1e-5)(x)
    assert torch.equal(quantize(augmented), x.long())


@settings(max_examples=40)
@given(
    batch=st.lists(st.integers(0, 3), max_size=3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
    bins=st.sampled_from([1, 2, 16, 256]),
    options=st.fixed_dictionaries(
        {
            "flip": st.booleans(),
            "rotate": st.floats(0, 180),
            "zoom": st.floats(0, 0.99),
            "shear": st.floats(0, 45),
            "shift": st.integers(0, 2),
            "jitter": st.sampled_from([0.0, 0.1]),
        }
    ),
    seed=seeds,
)
def test_augmented_images_stay_in_the_unit_interval(batch, shape, dtype, bins, options, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(bins, (*batch, *shape), generator=generator)
    if bins > 2 and x.numel():
        x.view(-1)[0] = bins - 1  # so that it does not look scaled
    x = x.to(dtype)
    before = x.clone()
    augment = ImageAugment(bins, **options)
    for use in (augment, augment.labelled):
        found = use(x)
        assert found.shape == x.shape
        assert found.dtype == (dtype if dtype.is_floating_point else torch.float32)
        assert (found >= 0).all()
        assert (found < 1).all()
    assert torch.equal(x, before)
    assert torch.equal(quantize(augment.prepare(x), bins), x.long())


def test_weights_that_add_up_to_slightly_more_than_one_stay_in_the_interval():
    x = torch.full((50, 1, 9, 9), 2**22 - 1)
    found = ImageAugment(2**22, rotate=30)(x)
    assert found.max() < 1
    assert found[:, :, 4, 4].min() > 0.999


def test_interpolated_values_are_spread_over_whole_bins():
    """An image is flipped and mapped, rounded, shifted and dequantised, in this order."""
    x = torch.randint(17, (30, 2, 9, 8))
    options = {"flip": True, "rotate": 20.0, "zoom": 0.1, "shear": 5.0}
    for dtype in (torch.int64, torch.float32):
        torch.manual_seed(0)
        shifted = random_shift(random_affine(x.to(dtype), **options).round(), 2)
        torch.manual_seed(0)
        found = ImageAugment(17, shift=2, **options)(x.to(dtype))
        assert torch.equal(quantize(found, 17), shifted.long())
    inside = found * 17 - (found * 17).floor()
    assert torch.histc(inside, 10, 0, 1).min() > 0.08 * inside.numel()  # uniform within a bin


def test_each_image_has_its_own_draws_and_they_are_uniform():
    """Angles and factors have the mean and the standard deviation of a uniform distribution."""
    x = blob(41, 41, right=10).expand(3000, 1, 41, 41)
    offsets = centres(random_affine(x, rotate=40, zoom=0.2))
    angle = torch.atan2(offsets[:, 1], offsets[:, 0]) * 180 / math.pi
    factor = offsets.norm(dim=-1) / 10
    for drawn, centre, amount in ((angle, 0, 40), (factor, 1, 0.2)):
        assert ((drawn - centre).abs() < 1.01 * amount).all()
        assert ((drawn - centre).abs().max() > 0.98 * amount).all()
        error = amount / math.sqrt(3 * 3000)
        assert drawn.mean().item() == pytest.approx(centre, abs=5 * error)
        assert drawn.std().item() == pytest.approx(amount / math.sqrt(3), rel=0.05)
    assert torch.corrcoef(torch.stack([angle, factor]))[0, 1].abs() < 5 / math.sqrt(3000)
    slants = centres(random_affine(blob(41, 41, down=10).expand(3000, 1, 41, 41), shear=30))
    slant = torch.atan2(slants[:, 0], slants[:, 1]) * 180 / math.pi
    assert slant.std().item() == pytest.approx(30 / math.sqrt(3), rel=0.05)
    assert (slants[:, 1] - 10).abs().max() < 0.05  # a slant moves nothing up or down


def test_brightness_is_kept_by_turns_and_grows_with_the_area():
    x = blob(61, 61, down=3, right=-4, spread=3).expand(500, 1, 61, 61)
    total = x.sum((1, 2, 3))
    turned = random_affine(x, rotate=180, shear=20).sum((1, 2, 3))
    assert torch.allclose(turned, total, rtol=0.01)
    zoomed = random_affine(x, zoom=0.3)
    factor = centres(zoomed).norm(dim=-1) / 5
    assert torch.allclose(zoomed.sum((1, 2, 3)), total * factor**2, rtol=0.02)
    assert torch.allclose(zoomed.amax((1, 2, 3)), torch.ones(500), atol=0.08)


def test_half_of_the_images_are_mirrored_exactly():
    image = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
    for use in (
        lambda x: random_affine(x, flip=True),
        lambda x: quantize(ImageAugment(flip=True)(x)).to(torch.uint8),
    ):
        drawn = use(image.expand(60, 50, *image.shape)).flatten(0, 1)
        mirrored = (drawn == image.flip(-1)).flatten(1).all(-1)
        plain = (drawn == image).flatten(1).all(-1)
        assert (mirrored ^ plain).all()
        assert mirrored.sum().item() == pytest.approx(1500, abs=5 * math.sqrt(750))


def test_affine_draws_come_from_the_global_generator_or_the_one_given():
    x, options = torch.rand(50, 1, 6, 6), {"flip": True, "rotate": 30.0}
    torch.manual_seed(1)
    first = random_affine(x, **options)
    assert not torch.equal(first, random_affine(x, **options))
    torch.manual_seed(1)
    assert torch.equal(first, random_affine(x, **options))
    state = torch.get_rng_state()
    given = random_affine(x, **options, generator=torch.Generator().manual_seed(3))
    assert torch.equal(given, random_affine(x, **options, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(state, torch.get_rng_state())


def test_affine_maps_pass_gradients():
    x = torch.rand(4, 2, 9, 9, requires_grad=True)
    random_affine(x, flip=True, rotate=10, zoom=0.1)[..., 3:6, 3:6].sum().backward()
    assert x.grad.sum().item() == pytest.approx(4 * 2 * 9, rel=0.01)  # the weights of a value add up to 1


def test_labelled_images_are_mapped_like_others_but_shifted_by_their_own_amount():
    x = torch.randint(256, (40, 1, 12, 12), dtype=torch.uint8)
    augment = ImageAugment(shift=1, shift_labelled=3, flip=True, rotate=15, zoom=0.2, shear=5)
    torch.manual_seed(0)
    labelled = augment.labelled(x)
    torch.manual_seed(0)
    assert torch.equal(labelled, replace(augment, shift=3)(x))
    torch.manual_seed(0)
    assert not torch.equal(labelled, augment(x))


# -- dropped features --------------------------------------------------------------------------
def test_features_are_dropped_independently_with_the_given_probability():
    x = torch.arange(3 * 20000.0).reshape(20000, 3) + 1
    dropped = FeatureDropout(0.3, scale=0.0)(x) == 0
    for column in dropped.T:
        assert column.sum().item() == pytest.approx(6000, abs=5 * math.sqrt(20000 * 0.3 * 0.7))
    assert torch.corrcoef(dropped.T.double())[0, 1].abs() < 5 / math.sqrt(20000)
    kept = FeatureDropout(0.3, scale=0.0)(x)
    assert torch.equal(kept[kept != 0], x[kept != 0])
    assert torch.equal(FeatureDropout(0.0, scale=0.0)(x), x)


def test_noise_comes_after_the_fill_value_and_gives_it_a_density():
    x = torch.randn(4000, 2) + 50
    augment = FeatureDropout(0.5, scale=0.1, fill=(10.0, -10.0))
    found = augment(x)
    for column, fill in zip(found.T, (10.0, -10.0), strict=True):
        filled = column[(column - fill).abs() < 5]
        assert len(filled) == pytest.approx(2000, abs=5 * math.sqrt(1000))
        assert filled.unique().numel() > 0.95 * len(filled)
        assert filled.mean().item() == pytest.approx(fill, abs=5 * 0.1 / math.sqrt(2000))
        assert filled.std().item() == pytest.approx(0.1, rel=0.1)
    kept = (found - x).abs() < 5
    assert (found - x)[kept].std().item() == pytest.approx(0.1, rel=0.1)
    torch.manual_seed(1)
    first = augment(x)
    torch.manual_seed(1)
    assert torch.equal(first, augment.labelled(x))


def test_rows_to_test_on_are_complete():
    x = torch.randn(50, 3)
    assert torch.equal(FeatureDropout(0.9, scale=1.0).prepare(x), x)
    levels = torch.randint(17, (50, 1, 4, 4))
    augment = FeatureDropout(0.5, scale=0.0, fill=0.5, bins=17)
    assert augment.bins == 17
    assert torch.equal(quantize(augment.prepare(levels), 17), levels)
    found = augment(levels)
    assert (found == 0.5).float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(800))
    assert torch.equal(quantize(found, 17)[found != 0.5], levels[found != 0.5])


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
def test_fill_values_of_every_container_are_the_same(form):
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    expected = FeatureDropout(0.5, 0.0, fill=(1.0, 2.0, 3.0))
    augment = FeatureDropout(0.5, 0.0, fill=form([1.0, 2.0, 3.0]))
    assert augment == expected
    assert hash(augment) == hash(expected)
    torch.manual_seed(0)
    found = augment(x)
    assert found.dtype == torch.float64
    assert all((found[..., k] == k + 1).any() for k in range(3))


def test_dropped_features_make_views_for_consistency(tmp_path):
    """``fit`` trains on them, writes what made them, and refuses to go on with something else."""
    data = toy("moons", num_train=60, num_test=20)
    model = TOY.make_model(data)
    augment = FeatureDropout(0.2, scale=0.1, fill=data.x.mean(0))
    options = {"terms": "consistency", "steps": 4, "batch_size": 20, "out": tmp_path, "progress": False}
    TOY.fit(model, data, augment=augment, **options)
    assert model.log_prob(data.x_test).isfinite().all()
    settings = torch.load(tmp_path / "last.ckpt", weights_only=True)["settings"]["augment"]
    fill = settings.pop("fill")
    assert settings == {"type": "FeatureDropout", "rate": 0.2, "scale": 0.1, "bins": None}
    assert list(fill) == data.x.mean(0).tolist()
    assert TOY.fit(TOY.make_model(data), data, augment=augment, resume=True, **options).steps == 4
    with pytest.raises(ValueError, match="augment"):
        TOY.fit(TOY.make_model(data), data, augment=replace(augment, rate=0.3), resume=True, **options)


# -- what is refused ---------------------------------------------------------------------------
IMAGES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
REFUSED = {
    "flip": (lambda: ImageAugment(flip=1), "flip=1: expected True or False"),
    "rotate": (lambda: ImageAugment(rotate=181), "rotate=181: expected a finite number from 0 to 180"),
    "negative angle": (
        lambda: random_affine(IMAGES, rotate=-3),
        "rotate=-3: expected a finite number from 0",
    ),
    "zoom": (lambda: ImageAugment(zoom=1.0), "zoom=1.0: expected a finite number of at least 0 and below 1"),
    "shear": (lambda: ImageAugment(shear=60), "shear=60: expected a finite number from 0 to 45"),
    "no images": (
        lambda: ImageAugment(rotate=3)(IMAGES[0, 0]),
        r"ImageAugment: x has shape \(4, 4\), expected images",
    ),
    "no tensor": (lambda: random_affine(IMAGES.numpy()), "random_affine: x is .*ndarray, expected a tensor"),
    "NaN": (lambda: random_affine(IMAGES / 0, rotate=3), "random_affine: x holds 32 NaN or infinite values"),
    "levels": (lambda: ImageAugment(17, rotate=3)(IMAGES + 17), r"x holds 17\.\.17, expected integers in"),
    "rate": (
        lambda: FeatureDropout(1.0, 0.1),
        "rate=1.0: expected a finite number of at least 0 and below 1",
    ),
    "scale": (lambda: FeatureDropout(0.1, -0.1), "scale=-0.1: expected a finite number from 0 to"),
    "fill": (lambda: FeatureDropout(0.1, 0.1, "mean"), "fill='mean': expected a finite number"),
    "no fill": (lambda: FeatureDropout(0.1, 0.1, ()), "fill is empty, expected one number, or one for each"),
    "fill of a column": (
        lambda: FeatureDropout(0.1, 0.1, (0.0, math.nan)),
        r"fill\[1\]=nan: expected a finite number",
    ),
    "columns": (
        lambda: FeatureDropout(0.1, 0.1, (0.0, 1.0))(torch.zeros(5, 3)),
        r"FeatureDropout: fill has 2 numbers and x the shape \(5, 3\); expected one number for each column",
    ),
    "integers": (
        lambda: FeatureDropout(0.1, 0.1)(torch.zeros(5, 3).long()),
        r"FeatureDropout: x has dtype torch.int64, .*; give FeatureDropout\(\.\.\., bins=\.\.\.\)",
    ),
    "gaps": (
        lambda: FeatureDropout(0.1, 0.1)(torch.full((3, 2), torch.nan)),
        "FeatureDropout: x holds 6 NaN",
    ),
    "bins of dropout": (lambda: FeatureDropout(0.1, 0.1, bins=0), "bins=0: expected at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_maps_and_dropout_refuse(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_empty_batches_pass():
    augment = ImageAugment(flip=True, rotate=10, zoom=0.1)
    assert augment(torch.zeros(0, 1, 4, 4)).shape == (0, 1, 4, 4)
    assert FeatureDropout(0.5, 0.1)(torch.zeros(0, 2)).shape == (0, 2)
