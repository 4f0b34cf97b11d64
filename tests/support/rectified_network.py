"""The network of `oracles/rectified.py`, built from what an oracle stores of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from support.graphs import graph

SEED = 7
"""Seed of the noise; see `oracles/rectified.py`."""


def oracle(name: str) -> dict[str, Any]:
    return dict(np.load(Path(__file__).parents[1] / "oracles" / name))


def network(facts: dict[str, Any]) -> onnx.ModelProto:
    weights = {name.removeprefix("weight/"): value for name, value in facts.items() if name.startswith("weight/")}
    return graph(
        "a = Conv<strides=[2,2]>(x, K, k) b = Relu(a) c = Conv(b, L, l) d = Relu(c) e = Flatten(d) "
        "f = Gemm<transB=1>(e, H, h) g = Relu(f) y = Gemm<transB=1>(g, W, w)",
        inputs="float[N,3,15,15] x",
        outputs="float[N,5] y",
        K=weights["first.weight"],
        k=weights["first.bias"],
        L=weights["second.weight"],
        l=weights["second.bias"],
        H=weights["hidden.weight"],
        h=weights["hidden.bias"],
        W=weights["last.weight"],
        w=weights["last.bias"],
    )


def agree(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal relative to the largest value of each sample, which is what a map in [0, 1] shows."""
    scale = np.abs(expected).max(tuple(range(1, expected.ndim)), keepdims=True)
    assert (scale > 0).all()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)
