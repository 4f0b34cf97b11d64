"""Gradients in float64 and inputs for the tests of number types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator

Array = np.ndarray[Any, Any]


def given(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Those of `feeds` that the model has an input for."""
    names = {i.name for i in model.graph.input}
    return {k: a for k, a in feeds.items() if k in names}


def normal(*shape: int, seed: int = 71) -> Array:
    """Normally distributed numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.8).astype(np.float32)


def exact_gradient(model: onnx.ModelProto, feeds: Mapping[str, Array], v: Array) -> list[Array]:
    """The gradients by all `feeds` for the cotangent `v`, in float64."""
    double = as_double(model)
    emitted = gradient_model(double, list(feeds)).to_proto()
    return evaluate(
        evaluator(emitted), given(emitted, {k: a.astype(float) for k, a in {**feeds, "cotangent": v}.items()})
    )
