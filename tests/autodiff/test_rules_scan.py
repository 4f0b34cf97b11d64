"""The VJP rule of Scan, and of what expands to it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.helpers import check_in_runtime, check_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.errors import UnsupportedError


def normal(*shape, seed=71):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.8).astype(np.float32)


def parse(text):
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}')


STEP = """(float[2,2] h, int64 n, float[2,3] x, float[2,3] z) => (float[2,2] h1, int64 n1, float[2,2] p, float[2,3] q) {
    w = Constant<value = float[3,2] {0.5, -0.3, 0.8, 0.2, -0.6, 0.4}>()
    one = Constant<value_int = 1>()
    n1 = Add(n, one)
    count = Cast<to = 1>(n1)
    xw = MatMul(x, w)
    s = Add(h, xw)
    h1 = Tanh(s)
    p = Mul(h1, count)
    q = Mul(z, x)
}"""


def test_states_sequences_and_outputs():
    model = parse(f"""m (float[2,2] h0, int64 n0, float[t,2,3] x, float[t,2,3] z)
            => (float[2,2] y, float[t,2,2] a, float[t,2,3] b) {{
        y, n, a, b = Scan<num_scan_inputs = 2, body = step {STEP}>(h0, n0, x, z)
    }}""")
    feeds = {"h0": normal(2, 2), "n0": np.array(3, np.int64), "x": normal(4, 2, 3), "z": normal(4, 2, 3, seed=72)}
    check_model(model, feeds, ["h0", "x"], output="y")
    check_model(model, feeds, ["h0", "x"], output="a")
    check_model(model, feeds, ["x", "z"], output="b")


def test_two_outputs_into_one_score():
    model = parse(f"""m (float[2,2] h0, int64 n0, float[t,2,3] x, float[t,2,3] z) => (float[t,2,3] y) {{
        h, n, a, b = Scan<num_scan_inputs = 2, body = step {STEP}>(h0, n0, x, z)
        r = ReduceSum<keepdims = 0>(a)
        s = ReduceMax<keepdims = 0>(h)
        rs = Mul(r, s)
        y = Mul(b, rs)
    }}""")
    feeds = {"h0": normal(2, 2), "n0": np.array(0, np.int64), "x": normal(3, 2, 3), "z": normal(3, 2, 3, seed=72)}
    check_model(model, feeds, ["h0", "x", "z"])


@pytest.mark.parametrize("directions", ["[0,1]", "[1,0]", "[1,1]"])
@pytest.mark.parametrize("output_directions", ["[0,1]", "[1,0]"])
def test_axes_and_directions(directions, output_directions):
    # The reference evaluator scans along the first axis and forward only.
    model = parse(f"""m (float[2,2] h0, int64 n0, float[2,4,3] x, float[2,3,4] z)
            => (float[2,2] y, float[2,2,4] a, float[2,4,3] b) {{
        y, n, a, b = Scan<num_scan_inputs = 2, scan_input_axes = [1,-1], scan_input_directions = {directions},
            scan_output_axes = [-1,1], scan_output_directions = {output_directions}, body = step {STEP}>(h0, n0, x, z)
    }}""")
    feeds = {"h0": normal(2, 2), "n0": np.array(3, np.int64), "x": normal(2, 4, 3), "z": normal(2, 3, 4, seed=72)}
    for outputs, wrt in ((["y", "a"], ["h0", "x"]), (["b"], ["x", "z"])):
        chosen = onnx.ModelProto()
        chosen.CopyFrom(model)
        del chosen.graph.output[:]
        chosen.graph.output.extend(o for o in model.graph.output if o.name in outputs)
        check_in_runtime(chosen, feeds, wrt)


def test_a_state_that_only_passes_through():
    model = parse("""m (float[3] k, float[t,3] x) => (float[t,3] y) {
        k1, y = Scan<num_scan_inputs = 1, body = step (float[3] c, float[3] s) => (float[3] c1, float[3] o) {
            c1 = Identity(c)
            o = Mul(c, s)
        }>(k, x)
    }""")
    check_model(model, {"k": normal(3), "x": normal(4, 3, seed=72)}, ["k", "x"])


CAPTURING = """m (float[3] k, float[3] h, float[t,3] x) => (float[3] y) {
    y = Scan<num_scan_inputs = 1, body = step (float[3] c, float[3] s) => (float[3] c1) {
        p = Mul(k, s)
        c1 = Add(c, p)
    }>(h, x)
}"""


def test_captured_constants_are_used():
    feeds = {"k": normal(3, seed=73), "h": normal(3), "x": normal(4, 3, seed=72)}
    check_model(parse(CAPTURING), feeds, ["h", "x"])


def test_captured_tensors_have_gradients():
    feeds = {"k": normal(3, seed=73), "h": normal(3), "x": normal(4, 3, seed=72)}
    check_model(parse(CAPTURING), feeds, ["k", "h", "x"])


def test_a_tensor_that_is_an_input_and_captured():
    model = parse("""m (float[3] k, float[t,3] x) => (float[3] y) {
        y = Scan<num_scan_inputs = 1, body = step (float[3] c, float[3] s) => (float[3] c1) {
            p = Mul(k, s)
            c1 = Mul(c, p)
        }>(k, x)
    }""")
    check_model(model, {"k": 1 + normal(3) / 4, "x": 1 + normal(4, 3, seed=72) / 4}, ["k", "x"])


@pytest.mark.parametrize("b", [True, False])
def test_a_branch_inside(b):
    model = parse("""m (bool b, float[3] h, float[3] k, float[t,3] x) => (float[3] y) {
        y = Scan<num_scan_inputs = 1, body = step (float[3] c, float[3] s) => (float[3] c1) {
            p = If (b) <then_branch = one () => (float[3] u) { u = Mul(s, k) },
                        else_branch = two () => (float[3] v) { v = Sin(c) }>
            c1 = Add(c, p)
        }>(h, x)
    }""")
    feeds = {"b": np.array(b), "h": normal(3), "k": normal(3, seed=74), "x": normal(4, 3, seed=72)}
    check_model(model, feeds, ["h", "k", "x"])


def test_a_scan_inside_is_refused():
    model = parse("""m (float[3] h, float[t,3] x) => (float[3] y) {
        y = Scan<num_scan_inputs = 1, body = step (float[3] c, float[3] s) => (float[3] c1) {
            c1 = Scan<num_scan_inputs = 1, body = inner (float[3] d, float[3] e) => (float[3] d1) {
                d1 = Mul(d, e)
            }>(c, x)
        }>(h, x)
    }""")
    with pytest.raises(UnsupportedError, match="no VJP rule for Scan inside of a subgraph"):
        gradient_model(model, ["h"])
