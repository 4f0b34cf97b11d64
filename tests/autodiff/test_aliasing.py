"""Weights that an engine changes for the model are kept apart from those that the gradient reads."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support.graphs import graph
from support.helpers import quiet_session

from onnx_gradcam.editor import attachment
from onnx_gradcam.editor.attachment import attach


def classifier(hidden: int, channels: int, group: int = 1):
    return graph(
        f"""
        c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
        r1 = Relu (c1)
        c2 = Conv <pads = [1, 1, 1, 1], group = {group}> (r1, w2)
        r2 = Relu (c2)
        p = GlobalAveragePool (r2)
        f = Flatten (p)
        h = Gemm <transB = 1> (f, f1)
        rh = Relu (h)
        y = Gemm <transB = 1> (rh, f2)
        """,
        w1=(16, 3, 3, 3),
        w2=(channels, 16 // group, 3, 3),
        f1=(hidden, channels),
        f2=(4, hidden),
    )


def negations(model) -> int:
    return Counter(node.op_type for node in model.graph.node)["Neg"]


@pytest.mark.parametrize(
    ("hidden", "channels", "group", "separated"),
    [(16, 16, 1, 2), (8, 16, 1, 1), (16, 24, 1, 0), (16, 16, 4, 2), (8, 16, 16, 0)],
    ids=["both square", "square convolution", "none", "square groups", "depthwise"],
)
@pytest.mark.parametrize("profile", ["portable", "cuda"])
def test_only_square_weights_are_negated(hidden, channels, group, separated, profile):
    model = attach(classifier(hidden, channels, group), method="gradient", profile=profile).to_proto()
    # A runtime that a profile names is not asked to pay for the fault of another.
    assert negations(model) == (2 * separated if profile == "portable" else 0)


@pytest.mark.parametrize(("behind", "separated"), [("n", 1), ("r", 0)], ids=["normalization", "its activation"])
@pytest.mark.parametrize("group", [1, 8], ids=["dense", "depthwise"])
def test_a_convolution_behind_a_normalization_is_negated(behind, separated, group):
    source = graph(
        f"""
        c1 = Conv (x, w1)
        n = BatchNormalization (c1, one, zero, zero, one)
        r = Relu (n)
        c2 = Conv <group = {group}> ({behind}, w2)
        s = Add (c2, b)
        p = GlobalAveragePool (s)
        y = Flatten (p)
        """,
        outputs="float[N,24] y",
        w1=(8, 3, 1, 1),
        w2=(24, 8 // group, 1, 1),
        b=(24, 1, 1),
        one=np.ones(8, np.float32),
        zero=np.zeros(8, np.float32),
    )
    assert negations(attach(source, method="gradient").to_proto()) == 2 * separated


@pytest.mark.parametrize("method", ["gradient", "gradcam", "guided-gradcam"])
def test_no_bit_of_a_result_changes(method, monkeypatch):
    source = classifier(16, 16)
    choices = {"method": method, "layer": "r1"} if method != "gradient" else {"method": method}
    apart = attach(source, **choices).to_proto()
    monkeypatch.setattr(attachment, "separate_weights", lambda _: 0)
    shared = attach(source, **choices).to_proto()
    assert negations(apart) > negations(shared) == 0
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    for a, b in zip(*(quiet_session(m).run(None, feeds) for m in (apart, shared)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_file_holds_each_weight_once():
    source = classifier(16, 16)
    explained = attach(source, method="gradient").to_proto()
    before = sum(len(t.raw_data) for t in source.graph.initializer)
    assert sum(len(t.raw_data) for t in explained.graph.initializer if t.name in {"w1", "w2", "f1", "f2"}) == before
    assert sum(t.dims[:] == source.graph.initializer[1].dims[:] for t in explained.graph.initializer) == 1
