"""Fourier transforms against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("length", [None, 6, 4, 9])
@pytest.mark.parametrize(("parts", "options"), [(1, {}), (2, {}), (1, {"onesided": 1}), (2, {"inverse": 1})])
def test_dft(parts, options, length, opset):
    inputs = {"x": floats(2, 6, parts), "length": None if length is None else np.array(length)}
    if opset < 20:
        options = {"axis": 1, **options}
    check_node("DFT", inputs, constants=["length"], dynamic=False, opset=opset, **options)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_dft_along_an_axis(axis):
    inputs = {"x": floats(4, 3, 5, 1), "length": None, "axis": np.array(axis)}
    check_node("DFT", inputs, constants=["axis"], dynamic=False, opset=20)


@pytest.mark.parametrize("length", [None, 7, 8])
def test_inverse_of_a_one_sided_spectrum(length):
    # ONNX Runtime knows no one-sided inverse.
    inputs = {"x": floats(2, 5 if length != 7 else 4, 2), "length": None if length is None else np.array(length)}
    options = {"inverse": 1, "onesided": 1, "opset": 20, "dynamic": False, "runtime": False}
    check_node("DFT", inputs, constants=["length"], **options)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("windowed", [False, True])
def test_stft(onesided, windowed):
    inputs = {
        "x": floats(2, 15, 1),
        "step": np.array(3),
        "window": np.hanning(8)[1:7].astype(np.float32) if windowed else None,
        "length": np.array(6),
    }
    check_node("STFT", inputs, constants=["step", "window", "length"], dynamic=False, onesided=onesided)
