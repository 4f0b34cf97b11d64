"""Comparing an explained model's outputs with the original's."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_gradcam.errors import ModelError
from onnx_gradcam.runtime.agreement import check_agreement, differences, random_feeds
from onnx_gradcam.runtime.runners import in_batches
from onnx_gradcam.runtime.session import InputInfo

SCORES = np.array([[1.0, -4.0, 2.0]], np.float32)


def test_difference_is_relative_to_the_largest_value():
    (difference,) = differences({"y": SCORES}, {"y": SCORES + np.float32(0.004), "heatmap": SCORES})
    assert difference.output == "y"
    assert difference.relative == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "precision", "apart", "agrees"),
    [
        (np.float32, "float32", 0.8e-5, True),
        (np.float32, "float32", 1.3e-5, False),
        (np.float32, "float16", 1.8e-3, True),
        (np.float32, "float16", 2.2e-3, False),
        (np.float64, "quantised", 1.9e-2, True),
        (np.float64, "quantised", 2.1e-2, False),
    ],
)
def test_tolerances(dtype, precision, apart, agrees):
    expected = SCORES.astype(dtype)
    actual = expected.copy()
    actual[0, 0] += 4 * apart
    if agrees:
        assert check_agreement({"y": expected}, {"y": actual}, precision) == pytest.approx(apart, rel=0.05)
    else:
        with pytest.raises(ModelError, match="output 'y' differs"):
            check_agreement({"y": expected}, {"y": actual}, precision)


def test_integers_have_to_be_equal_but_for_the_steps_of_quantised_models():
    labels, steps = np.array([700], np.int64), np.array([-127, 100], np.int8)
    assert check_agreement({"l": labels, "s": steps}, {"l": labels, "s": steps}) == 0
    with pytest.raises(ModelError, match="'l'"):
        check_agreement({"l": labels}, {"l": labels + 1}, "quantised")
    with pytest.raises(ModelError, match="'s'"):
        check_agreement({"s": steps}, {"s": steps + np.int8(1)})
    assert check_agreement({"s": steps}, {"s": steps + np.int8(1)}, "quantised") == pytest.approx(1 / 127)


@pytest.mark.parametrize(
    "actual",
    [
        np.array([[1.0, np.nan, 2.0]], np.float32),
        np.array([[1.0, np.inf, 2.0]], np.float32),
        SCORES[:, :2],
        SCORES.astype(np.float64),
    ],
)
def test_what_no_tolerance_allows(actual):
    with pytest.raises(ModelError, match="differs"):
        check_agreement({"y": SCORES}, {"y": actual}, "quantised")


def test_values_that_are_no_numbers_may_agree():
    odd = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    assert check_agreement({"y": odd}, {"y": odd.copy()}) == 0
    with pytest.raises(ModelError):
        check_agreement({"y": odd}, {"y": -odd})


def test_zeros_agree_with_zeros_only():
    zeros = np.zeros((1, 3), np.float32)
    assert check_agreement({"y": zeros}, {"y": zeros}) == 0
    with pytest.raises(ModelError):
        check_agreement({"y": zeros}, {"y": zeros + np.float32(1e-6)})


def test_strings_and_switches():
    assert check_agreement({"y": np.array(["cat"])}, {"y": np.array(["cat"])}) == 0
    with pytest.raises(ModelError):
        check_agreement({"y": np.array([True])}, {"y": np.array([False])})


def test_a_lost_output_is_an_error():
    with pytest.raises(ModelError, match="lost the output 'y'"):
        check_agreement({"y": SCORES}, {"heatmap": SCORES})


def test_random_feeds_are_of_the_right_kind_and_repeat():
    inputs = [
        InputInfo("f", "float16", ("N", 3)),
        InputInfo("u", "uint8", (400,)),
        InputInfo("i", "int64", ("N",)),
        InputInfo("b", "bool", ()),
    ]
    shapes = {"f": (100, 3), "u": (400,), "i": (2,), "b": ()}
    feeds = random_feeds(inputs, shapes)
    assert {k: (v.dtype.name, v.shape) for k, v in feeds.items()} == {
        "f": ("float16", (100, 3)),
        "u": ("uint8", (400,)),
        "i": ("int64", (2,)),
        "b": ("bool", ()),
    }
    assert 0.8 < feeds["f"].astype(np.float32).std() < 1.2
    assert feeds["u"].min() < 10
    assert feeds["u"].max() > 245
    assert not feeds["i"].any()
    again = random_feeds(inputs, shapes)
    assert all(np.array_equal(feeds[k], again[k]) for k in feeds)


@pytest.mark.parametrize("dtype", ["string", "bfloat16", "seq(tensor(float)"])
def test_what_there_are_no_random_numbers_for(dtype):
    with pytest.raises(ModelError, match=r"the input 's' takes .*, for which there are no random numbers"):
        random_feeds([InputInfo("s", dtype, (1,))], {"s": [1]})


def test_an_input_too_large_to_be_tried():
    with pytest.raises(ModelError, match="the input 'x' of 2147483648 x 3 is too large to be tried"):
        random_feeds([InputInfo("x", "float32", (2**31, 3))], {"x": (2**31, 3)})


def test_a_fixed_batch_too_large_to_be_filled():
    with pytest.raises(ModelError, match="only takes batches of 2147483648, which are too large; export it with"):
        in_batches(lambda *_: {}, np.zeros((1, 3)), [0], 2**31)
