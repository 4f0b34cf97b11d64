"""What each axis means, followed through the operators that exporters write."""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import builder, graph

from onnx_gradcam.editor.targets.axes import Axis, Layout, follow, label_input


def show(layout: Layout | None) -> str:
    """`N T4x4+1 C`: letters, grids of tokens, tokens before and after."""
    return "?" if layout is None else " ".join(map(_show, layout))


def _show(axis: Axis | None) -> str:
    if axis is None:
        return "_"
    if axis.kind == "*":
        return "(" + "*".join(_show(part) for part, _ in axis.parts) + ")"
    grid = "x".join(map(str, axis.grid))
    before, after = (f"+{axis.before}" if axis.before else ""), (f"-{axis.after}" if axis.after else "")
    return f"{axis.kind}{grid}{before}{after}"


def layouts(body: str, *, batch: str = "N", **constants) -> dict[str, str]:
    model = graph(
        f"a = Conv<strides=[2, 2]>(x, K) {body} y = ReduceMean<keepdims=0>(a, places)",
        inputs=f"float[{batch},3,8,8] x",
        outputs="float y",
        K=(6, 3, 2, 2),
        places=[2, 3],
        **constants,
    )
    t = builder(model)
    return {str(value.name): show(layout) for value, layout in follow(t).items()}


TOKENS = "m = Reshape(a, merged) k = Transpose<perm=[0, 2, 1]>(m)"
SPLICED = "c = Concat<axis=1>(cls, k) f = Slice(c, zero, one, one) r = Slice(c, one, end, one)"
MERGED = [0, 6, 16]


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("v = Relu(a)", "N C S S"),
        ("v = Transpose<perm=[0, 2, 3, 1]>(a)", "N S S C"),
        ("n = Transpose<perm=[0, 2, 3, 1]>(a) r = Relu(n) v = Transpose<perm=[0, 3, 1, 2]>(r)", "N C S S"),
        ("v = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(a)", "N C S S"),
        ("v = Concat<axis=1>(a, a)", "N C S S"),
        ('v = Resize<mode="nearest">(a, none, double)', "N C S S"),
        ("v = Pad(a, pads)", "N C S S"),
        # Pads that depend on the content of the image: the rank is all that is known.
        ("q = ReduceMax<keepdims=0>(x) i = Cast<to=7>(q) e = Expand(i, eight) v = Pad(a, e)", "N C S S"),
        ("g = GlobalAveragePool(a) h = Sigmoid(g) v = Mul(a, h)", "N C S S"),
        ("v = Flatten(a)", "N (C*S*S)"),
        ("v = ReduceMean<keepdims=0>(a, places)", "N C"),
        ("v = ReduceMean(a, places)", "N C _ _"),
        (f"{TOKENS} v = Relu(k)", "N T4x4 C"),
        (f"{TOKENS} v = MatMul(k, W)", "N T4x4 C"),
        (f"{TOKENS} v = Reshape(k, back)", "N S S C"),
        (f"{TOKENS} f = Reshape(k, flat) g = Gemm(f, W) v = Reshape(g, unflat)", "N T4x4 C"),
        # Heads: channels in two parts, and one again.
        (f"{TOKENS} v = Reshape(k, heads)", "N T4x4 c c"),
        (f"{TOKENS} h = Reshape(k, heads) v = Reshape(h, unflat)", "N T4x4 C"),
        (f"{TOKENS} u = Unsqueeze(k, one) v = Squeeze(u, one)", "N T4x4 C"),
        # A product of two activations: rows of the first, columns of the second.
        (f"{TOKENS} v = MatMul(k, m)", "N T4x4 T4x4"),
        (f"{TOKENS} s = MatMul(k, m) p = Softmax(s) v = MatMul(p, k)", "N T4x4 C"),
        # A matrix over places mixes them.
        (f"{TOKENS} v = MatMul(m, P)", "?"),
        # Joined, picked or cut places are no grid any more, rolled ones not yet; channels do not mind.
        (f"{TOKENS} v = Concat<axis=1>(k, k)", "N _ C"),
        ("b = Slice(a, one, four, two) e = Slice(a, zero, one, two) v = Concat<axis=2>(b, e)", "N C r S"),
        ("v = Gather<axis=2>(a, some)", "N C _ S"),
        ("v = Gather<axis=1>(a, some)", "N C S S"),
        ("v = Slice(a, one, four, one)", "N C S S"),
        (f"{TOKENS} v = Slice(k, one, four, one)", "N _ C"),
        (f"{TOKENS} v = Pad(k, pad_tokens)", "N _ C"),
        (f"{TOKENS} v = Gather<axis=1>(k, first)", "N C"),
    ],
)
def test_follow(body, expected, batch):
    found = layouts(
        body,
        batch=batch,
        merged=[0, 6, 16],
        back=[0, 4, 4, 6],
        flat=[-1, 6],
        unflat=[-1, 16, 6],
        heads=[0, 16, 2, 3],
        W=(6, 6),
        P=(16, 16),
        zero=[0],
        one=[1],
        two=[2],
        four=[4],
        eight=[8],
        some=[0, 2],
        first=0,
        pads=[0, 0, 1, 1, 0, 0, 1, 1],
        pad_tokens=[0, 1, 0, 0, 0, 0],
        double=np.array([1, 1, 2, 2], np.float32),
        none=np.array([], np.float32),
    )
    assert found.get("v", "?") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("t = Concat<axis=1>(cls, k)", "N T4x4+1 C"),
        ("t = Concat<axis=1>(cls, k, register)", "N T4x4+1-2 C"),
        ("c = Concat<axis=1>(cls, k) d = Add(c, position) t = Relu(d)", "N T4x4+1 C"),
        # Registers come between the class token and the patches.
        (f"{SPLICED} t = Concat<axis=1>(f, register, r)", "N T4x4+3 C"),
        ("c = Concat<axis=1>(cls, k) t = Slice(c, one, end, one)", "N T4x4 C"),
        ("c = Concat<axis=1>(cls, k) t = Slice(c, minus, end, one)", "N T4x4 C"),
        ("c = Concat<axis=1>(cls, k) t = Slice(c, zero, one, one)", "N _ C"),
        ("c = Concat<axis=1>(cls, k) t = Slice(c, zero, end, one, two)", "N _ C"),
        ("c = Concat<axis=1>(cls, k) t = Transpose<perm=[1, 0, 2]>(c)", "T4x4+1 N C"),
        ("c = Concat<axis=1>(cls, k) t = Reshape(c, heads)", "N T4x4+1 c c"),
        # With a class token the axis does not split into the grid.
        ("c = Concat<axis=1>(cls, k) t = Reshape(c, single_head)", "N T4x4+1 _ C"),
    ],
)
def test_class_and_register_tokens(body, expected):
    found = layouts(
        "b = Shape<start=0, end=1>(x) s1 = Concat<axis=0>(b, ones) cls = Expand(token, s1)"
        f" s2 = Concat<axis=0>(b, twos) register = Expand(registers, s2) {TOKENS} {body}",
        merged=MERGED,
        token=(1, 1, 6),
        registers=(1, 2, 6),
        ones=[1, 6],
        twos=[2, 6],
        position=(1, 17, 6),
        zero=[0],
        one=[1],
        two=[2],
        minus=[-16],
        end=[2**63 - 1],
        heads=[0, 17, 3, 2],
        single_head=[0, 17, 1, 6],
    )
    assert found["t"] == expected


def test_what_a_pool_reads_is_channels_first_whatever_made_it():
    found = layouts(
        "w = Reshape(a, windows) t = Transpose<perm=[0, 1, 2, 4, 3, 5]>(w) u = Reshape(t, back)"
        " v = GlobalAveragePool(u)",
        windows=[0, 6, 2, 2, 2, 2],
        back=[0, 6, 4, 4],
    )
    assert found["u"] == "N C S S"


@pytest.mark.parametrize(
    ("shape", "body", "expected"),
    [
        ("N,3,8,8", "c = Conv(x, K)", "N C S S"),
        ("N,8,8,3", "n = Transpose<perm=[0, 3, 1, 2]>(x) c = Conv(n, K)", "N S S C"),
        ("1,8,8,3", "n = Transpose<perm=[0, 3, 1, 2]>(x) c = Conv(n, K)", "N S S C"),
        ("N,8,8,3", "m = Mul(x, half) n = Transpose<perm=[0, 3, 1, 2]>(m) p = Pad(n, pads) c = Conv(p, K)", "N S S C"),
        ("N,8,8,1", "n = Reshape(x, one_channel) c = Conv(n, K1)", "N S S C"),
        ("N,3,8,8", "b = BatchNormalization(x, s, s, s, s) c = Flatten(b)", "N C S S"),
        ("N,8,8,3", "n = Transpose<perm=[0, 3, 1, 2]>(x) c = MaxPool<kernel_shape=[2, 2]>(n)", "N S S C"),
        ("N,3,8,8", "r, g, b = Split<axis=1, num_outputs=3>(x) q = Concat<axis=1>(b, g, r) c = Conv(q, K)", "N C S S"),
        ("N,8,8,3", "q = Gather<axis=3>(x, bgr) n = Transpose<perm=[0, 3, 1, 2]>(q) c = Conv(n, K)", "N S S C"),
        ("N,8,8,3", "c = Flatten(x)", "?"),
    ],
)
def test_the_layout_of_the_input_comes_from_the_first_convolution_or_pool(shape, body, expected):
    model = graph(
        f"{body} y = Identity(c)",
        inputs=f"float[{shape}] x",
        outputs="float y",
        K=(6, 3, 2, 2),
        K1=(6, 1, 2, 2),
        half=np.float32(0.5),
        s=np.ones(3, np.float32),
        one_channel=[0, 1, 8, 8],
        pads=[0, 0, 1, 1, 0, 0, 1, 1],
        bgr=[2, 1, 0],
    )
    t = builder(model)
    image = t.find("x")
    assert image is not None
    assert show(label_input(t, image)) == expected


CELLS = "h = Transpose<perm=[0,2,3,1]>(a) w = Reshape(h, cells)"
ROLLED = """
    u = Slice(a, one, last, rows) b = Slice(a, nil, one, rows) c = Concat<axis=2>(u, b)
    h = Transpose<perm=[0,2,3,1]>(c)
"""
UNROLLED = """
    s = Transpose<perm=[0,1,3,2,4,5]>(r) g = Reshape(s, back)
    e = Slice(g, three, last, one) f = Slice(g, nil, three, one) t = Concat<axis=1>(e, f)
"""
WINDOWS = "v = Transpose<perm=[0,1,3,2,4,5]>(w) q = Reshape(v, windows)"


@pytest.mark.parametrize(
    ("body", "constants", "expected"),
    [
        # Windows of 2x2, as attention within windows makes them, and back again.
        (
            f"{CELLS} {WINDOWS} r = Reshape(q, undone) s = Transpose<perm=[0,1,3,2,4,5]>(r) t = Reshape(s, back)",
            {"cells": [0, 2, 2, 2, 2, 6], "windows": [-1, 4, 6], "undone": [-1, 2, 2, 2, 2, 6], "back": [-1, 4, 4, 6]},
            "N S S C",
        ),
        # Patches of 2x2 merged: a coarser grid of more channels.
        (
            f"{CELLS} v = Transpose<perm=[0,1,3,4,2,5]>(w) t = Reshape(v, merged)",
            {"cells": [0, 2, 2, 2, 2, 6], "merged": [0, 2, 2, 24]},
            "N S S C",
        ),
        # The mean over each cell is a pooling.
        (
            "w = Reshape(a, cells) t = ReduceMean<keepdims=0>(w, inner)",
            {"cells": [0, 6, 2, 2, 2, 2], "inner": [3, 5]},
            "N C S S",
        ),
        # Windows of a grid that was rolled, and rolled back behind them.
        (
            f"{ROLLED} w = Reshape(h, cells) {WINDOWS} r = Reshape(q, undone) {UNROLLED}",
            {
                "cells": [0, 2, 2, 2, 2, 6],
                "windows": [-1, 4, 6],
                "undone": [-1, 2, 2, 2, 2, 6],
                "back": [-1, 4, 4, 6],
                "nil": [0],
                "one": [1],
                "three": [3],
                "last": [2**62],
                "rows": [2],
            },
            "N S S C",
        ),
        # A roll that is not undone leaves rolled rows, as a Gather does.
        (
            "h = Gather<axis=2>(a, order) t = Transpose<perm=[0,2,3,1]>(h)",
            {"order": [1, 2, 3, 0]},
            "N r S C",
        ),
        (
            "h = Gather<axis=2>(a, order) t = Gather<axis=2>(h, undo)",
            {"order": [1, 2, 3, 0], "undo": [3, 0, 1, 2]},
            "N C S S",
        ),
        # Windows side by side are no tokens of the image.
        (
            "w = Reshape(a, cells) v = Transpose<perm=[0,3,5,2,4,1]>(w) t = Reshape(v, windows)",
            {"cells": [0, 6, 2, 2, 2, 2], "windows": [-1, 4, 6]},
            "(N*s*s) T2x2 C",
        ),
    ],
)
def test_cells_of_a_grid(body, constants, expected):
    assert layouts(body, **constants)["t"] == expected
