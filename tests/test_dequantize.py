"""Grey levels become values of the unit interval. What holds no grey levels is refused everywhere."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from pyro_scnf.datasets import ImageAugment, Jitter, RandomShift, random_shift
from pyro_scnf.datasets.augment import Augment, as_augment
from pyro_scnf.transforms import Logit, dequantize, quantize

LEVELS = torch.arange(256.0).reshape(1, 1, 16, 16)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
USES = {
    "dequantize": dequantize,
    "ImageAugment": ImageAugment(),
    "shifted": ImageAugment(shift=16),
    "labelled": ImageAugment(shift_labelled=16).labelled,
    "prepare": ImageAugment().prepare,
    "Jitter": Jitter(0.1, bins=256),
    "Jitter.prepare": Jitter(0.1, bins=256).prepare,
}
NO_LEVELS = {
    "scaled": (LEVELS / 255, "x holds 0.003922, expected whole grey levels 0..255; x seems to be scaled"),
    "between": (torch.full_like(LEVELS, 3.7), "x holds 3.7, expected whole grey levels 0..255; round x"),
    "NaN": (LEVELS.masked_fill(LEVELS == 50, torch.nan), "x holds nan, .*fill or drop the gaps"),
    "infinite": (
        LEVELS.masked_fill(LEVELS == 50, torch.inf),
        r"x holds 0\.\.inf, expected integers in 0\.\.255",
    ),
    "above": (LEVELS + 1, r"x holds 1\.\.256, expected integers in 0\.\.255"),
    "below": (LEVELS - 1, r"x holds -1\.\.254, expected integers in 0\.\.255"),
    "standardised": ((LEVELS - 128) / 70, "x holds -1.829, expected whole grey levels 0..255; round x"),
    "truth values": (LEVELS > 3, r"x has dtype torch.bool, .*; give x.long\(\)"),
    "complex": (LEVELS.to(torch.complex64), "x has dtype torch.complex64"),
    "array": (LEVELS.numpy(), "x is .*numpy.ndarray, expected a tensor"),
    "list": (LEVELS.tolist(), "x is .*list, expected a tensor"),
}


@pytest.mark.parametrize("kind", NO_LEVELS)
@pytest.mark.parametrize("use", USES)
def test_what_holds_no_grey_levels_is_refused(use, kind):
    x, message = NO_LEVELS[kind]
    owner = {"shifted": "ImageAugment", "labelled": "ImageAugment", "prepare": "ImageAugment"}.get(use, use)
    with pytest.raises(ValueError, match=f"^{owner.split('.')[0]}: {message}"):
        USES[use](x)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("use", USES)
def test_grey_levels_of_every_dtype_are_taken(use, dtype):
    x = LEVELS.to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = USES[use](x)
        empty = USES[use](x[:0])
    assert found.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert empty.shape == (0, 1, 16, 16)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("bins", [1, 2, 17, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_stay_below_one_and_inside_the_support_of_a_logit(dtype, bins, monkeypatch):
    x = torch.arange(bins).to(dtype).repeat(200, 1)
    logit = Logit((bins,), alpha=0.0)
    almost = 1 - torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    for noise in (None, 0.0, almost):
        if noise is not None:
            monkeypatch.setattr(
                torch, "rand", lambda shape, dtype, u=noise, **_: torch.full(shape, u, dtype=dtype)
            )
        found = dequantize(x, bins)
        assert (found >= 0).all()
        assert (found < 1).all()
        z, ladj = logit.inverse_and_ladj(found)
        assert torch.isfinite(z).all()
        assert torch.isfinite(ladj).all()


@pytest.mark.parametrize("jitter", [0.0, 0.3, 100.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_jittered_images_stay_inside_the_unit_interval(dtype, jitter):
    x = LEVELS.to(dtype).expand(50, 1, 16, 16)
    found = ImageAugment(jitter=jitter, shift=2)(x)
    assert found.dtype == dtype
    assert (found >= 0).all()
    assert (found < 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_in_its_bin(dtype):
    x = LEVELS.to(dtype).expand(20, 1, 16, 16)
    assert torch.equal(quantize(dequantize(x)), x.long())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_floating_images_are_levels(value):
    x = torch.full((2, 1, 4, 4), value)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if value == 0 else "ignore")
        assert torch.equal(quantize(dequantize(x)), x.long())
        assert torch.equal(quantize(dequantize(x, 2), 2), x.long())


def test_images_of_zeros_and_ones_may_be_scaled_already():
    x = torch.eye(4)[None, None]
    for use in USES.values():
        with pytest.warns(UserWarning, match="x is floating and holds only 0 and 1") as caught:
            use(x)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dequantize(x, 2)
        dequantize(x.long())
        dequantize(x.byte())


@pytest.mark.parametrize("function", [dequantize, quantize])
@pytest.mark.parametrize("bins", [0, -1, 2.5, "256", True, None])
def test_bins_are_a_whole_number(function, bins):
    with pytest.raises(ValueError, match="bins="):
        function(torch.zeros(3), bins)


def test_checks_step_aside_where_values_cannot_be_read():
    x = LEVELS.flatten()
    generator = torch.Generator().manual_seed(0)
    found = torch.func.vmap(lambda row: dequantize(row, generator=generator), randomness="different")(x[None])
    assert torch.equal(quantize(found[0]), x.long())
    assert dequantize(x.to("meta")).shape == x.shape
    assert torch.equal(torch.func.vmap(quantize)(x / 256), x.long())


def test_quantize_refuses_what_is_no_value_of_the_unit_interval():
    with pytest.raises(ValueError, match="quantize: x holds 2 NaN"):
        quantize(torch.tensor([0.5, torch.nan, torch.nan]))
    for integers in (torch.tensor([0, 200], dtype=torch.uint8), torch.tensor([True])):
        with pytest.raises(ValueError, match=r"quantize: x has dtype .* integers are grey levels already"):
            quantize(integers)
    with pytest.raises(ValueError, match=r"quantize: x is .*numpy\.ndarray"):
        quantize(np.zeros(3))
    assert quantize(torch.tensor([-torch.inf, -0.1, 1.0, torch.inf])).tolist() == [0, 0, 255, 255]


def test_noise_comes_from_the_generator_given():
    state = torch.get_rng_state()
    first, again = (dequantize(LEVELS, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


# -- other changes to rows -------------------------------------------------------------------------
def test_shifts_do_not_hide_what_is_no_number():
    x = torch.zeros(1, 1, 5, 5)
    x[..., 0, 0] = torch.nan
    for use in (lambda x: random_shift(x, 5), RandomShift(5)):
        with pytest.raises(ValueError, match="x holds 1 NaN or infinite values"):
            use(x)
        with pytest.raises(ValueError, match=r"x is .*numpy\.ndarray"):
            use(x.numpy())
        assert use(x[:0]).shape == (0, 1, 5, 5)


def test_jitter_without_bins_takes_measurements():
    for x in (torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.long)):
        for use in (Jitter(0.1), Jitter(0.1).prepare):
            with pytest.raises(ValueError, match=r"Jitter: x has dtype .*; give Jitter\(\.\.\., bins=...\)"):
                use(x)
    with pytest.raises(ValueError, match="Jitter: x holds 6 NaN"):
        Jitter(0.1)(torch.full((3, 2), torch.nan))
    assert Jitter(0.1)(torch.zeros(0, 2)).shape == (0, 2)


NUMBERS = {
    "scale of a word": (lambda: Jitter("0.1"), "scale='0.1': expected a finite number"),
    "infinite scale": (lambda: Jitter(float("inf")), "scale=inf: expected a finite number"),
    "no bins": (lambda: Jitter(0.1, bins=2.5), "bins=2.5: expected a whole number"),
    "pixels": (lambda: RandomShift(1.5), "pixels=1.5: expected a whole number"),
    "shift": (lambda: ImageAugment(shift=True), "shift=True: expected a whole number"),
    "labelled shift": (lambda: ImageAugment(shift_labelled=-1), "shift_labelled=-1: expected at least 0"),
    "jitter": (lambda: ImageAugment(jitter=None), "jitter=None: expected a finite number"),
    "a word": (lambda: as_augment("jitter"), "augment='jitter': expected an Augment"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_are_none(case):
    call, message = NUMBERS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_by_default_rows_stay_as_they_are():
    x = torch.randn(3, 2)
    assert Augment()(x) is x
    assert as_augment(None).labelled(x) is x
