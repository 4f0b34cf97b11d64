"""VJP rules of recurrent layers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from support.helpers import check_in_runtime, check_model, check_node, node_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.errors import UnsupportedError

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, BATCH, WIDTH, HIDDEN = 4, 2, 3, 2


def inputs(op_type, directions=1, *, bias=True, initial=True, peepholes=True, layout=0):
    rng = np.random.default_rng(51)

    def normal(*shape):
        return (rng.standard_normal(shape) * 0.7).astype(np.float32)

    rows = GATES[op_type] * HIDDEN
    state = (BATCH, directions, HIDDEN) if layout else (directions, BATCH, HIDDEN)
    found = {
        "x": normal(*((BATCH, STEPS) if layout else (STEPS, BATCH)), WIDTH),
        "w": normal(directions, rows, WIDTH),
        "r": normal(directions, rows, HIDDEN),
        "b": normal(directions, 2 * rows) if bias else None,
        "lens": None,
        "h": normal(*state) if initial else None,
    }
    if op_type == "LSTM":
        found["c"] = normal(*state) if initial else None
        found["p"] = normal(directions, 3 * HIDDEN) if peepholes else None
    return found


def outputs(op_type):
    return 3 if op_type == "LSTM" else 2


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize(("direction", "count"), [("forward", 1), ("reverse", 1), ("bidirectional", 2)])
def test_every_input_in_every_direction(op_type, direction, count):
    given = inputs(op_type, count)
    options = {"activations": ["Tanh"] * count} if op_type == "RNN" else {}
    check_node(
        op_type,
        given,
        outputs=outputs(op_type),
        direction=direction,
        hidden_size=HIDDEN,
        dynamic=False,
        **options,
    )


@pytest.mark.parametrize(("op_type", "output"), [("RNN", "y1"), ("GRU", "y1"), ("LSTM", "y1"), ("LSTM", "y2")])
def test_last_states(op_type, output):
    given = inputs(op_type, initial=False, peepholes=False)
    check_node(op_type, given, outputs=outputs(op_type), output=output, direction="reverse", hidden_size=HIDDEN)


@pytest.mark.parametrize("op_type", GATES)
def test_dynamic_batch_and_length(op_type):
    check_node(op_type, inputs(op_type), outputs=outputs(op_type), hidden_size=HIDDEN, dynamic=True)


@pytest.mark.parametrize("op_type", GATES)
def test_constant_weights(op_type):
    given = inputs(op_type, bias=True, initial=False, peepholes=False)
    check_node(op_type, given, wrt=["x"], constants=["w", "r", "b"], hidden_size=HIDDEN)


@pytest.mark.parametrize("op_type", GATES)
def test_only_what_is_needed(op_type):
    given = inputs(op_type, bias=False, initial=False, peepholes=False)
    check_node(op_type, given, hidden_size=HIDDEN)


@pytest.mark.parametrize("op_type", GATES)
def test_batch_first(op_type):
    # ONNX Runtime has no kernel of this layout.
    given = inputs(op_type, layout=1)
    check_node(op_type, given, outputs=outputs(op_type), hidden_size=HIDDEN, layout=1, dynamic=False, runtime=False)


@pytest.mark.parametrize("bias", [True, False])
def test_gru_with_linear_before_reset(bias):
    given = inputs("GRU", 2, bias=bias)
    check_node("GRU", given, hidden_size=HIDDEN, linear_before_reset=1, direction="bidirectional", dynamic=False)


def test_every_output_at_once():
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18]>
        m (float[s,b,3] x, float[2,8,3] w, float[2,8,2] r, float[2,16] bias, float[2,8,4] w2, float[2,8,2] r2)
            => (float[s,2,b,2] y) {
            a, ah, ac = LSTM<hidden_size=2, direction="bidirectional">(x, w, r, bias)
            swapped = Transpose<perm=[0,2,1,3]>(a)
            shape = Constant<value_ints=[0,0,-1]>()
            joined = Reshape(swapped, shape)
            c = LSTM<hidden_size=2, direction="bidirectional">(joined, w2, r2, , , ah, ac)
            y = Add(c, a)
        }""")
    rng = np.random.default_rng(52)
    shapes = {"x": (3, 2, 3), "w": (2, 8, 3), "r": (2, 8, 2), "bias": (2, 16), "w2": (2, 8, 4), "r2": (2, 8, 2)}
    feeds = {k: (rng.standard_normal(s) * 0.7).astype(np.float32) for k, s in shapes.items()}
    check_model(model, feeds, ["x", "w", "bias", "r2"])


CUSTOM = {
    "RNN relu": ("RNN", {"activations": ["Relu"]}),
    "RNN affine": ("RNN", {"activations": ["Affine"], "activation_alpha": [0.8], "activation_beta": [0.1]}),
    "RNN scaled": ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [0.8], "activation_beta": [0.6]}),
    "RNN both ways": (
        "RNN",
        {"activations": ["LeakyRelu", "Softsign"], "activation_alpha": [0.3], "direction": "bidirectional"},
    ),
    "GRU hard": (
        "GRU",
        {"activations": ["HardSigmoid", "Softsign"], "activation_alpha": [0.3], "activation_beta": [0.4]},
    ),
    "GRU defaults": ("GRU", {"activations": ["HardSigmoid", "elu"]}),
    "LSTM hard": ("LSTM", {"activations": ["hardsigmoid", "Tanh", "LeakyRelu"], "activation_alpha": [0.25, 0.2]}),
    "LSTM others": ("LSTM", {"activations": ["Sigmoid", "Softplus", "Softsign"]}),
}


@pytest.mark.parametrize("case", CUSTOM)
def test_activations(case):
    # The reference evaluator knows none of these: the differences are ONNX Runtime's own, in float32.
    if case == "RNN both ways" and ort.__version__.startswith("1.23."):
        pytest.skip("ONNX Runtime 1.23 aborts")
    op_type, attributes = CUSTOM[case]
    given = inputs(op_type, 2 if "direction" in attributes else 1)
    feeds = {k: v for k, v in given.items() if v is not None}
    check_in_runtime(node_model(op_type, given, hidden_size=HIDDEN, **attributes), feeds, list(feeds))


@pytest.mark.parametrize(
    ("op_type", "attributes", "message"),
    [
        ("LSTM", {"clip": 3.0}, "no VJP rule for LSTM with clip"),
        ("LSTM", {"input_forget": 1}, "no VJP rule for LSTM with input_forget"),
        ("RNN", {"activations": ["Sine"]}, "ONNX has no recurrent activation 'Sine'"),
        ("RNN", {"activations": ["Affine"]}, "Affine has no activation_alpha"),
    ],
)
def test_what_is_refused(op_type, attributes, message):
    with pytest.raises(UnsupportedError, match=message):
        gradient_model(node_model(op_type, inputs(op_type), hidden_size=HIDDEN, **attributes), ["x"])


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("constants", [[], ["lens"]], ids=["computed", "constant"])
def test_padded_sequences(op_type, constants):
    # The reference evaluator ignores the lengths.
    given = {**inputs(op_type, 2), "lens": np.array([STEPS, STEPS - 2], np.int32)}
    options = {"activations": ["Tanh"] * 2} if op_type == "RNN" else {}
    model = node_model(
        op_type,
        given,
        hidden_size=HIDDEN,
        outputs=outputs(op_type),
        direction="bidirectional",
        constants=constants,
        **options,
    )
    feeds = {k: v for k, v in given.items() if v is not None and k not in constants}
    check_in_runtime(model, feeds, [k for k, v in feeds.items() if v.dtype == np.float32])


def test_sequences_of_full_length():
    given = {**inputs("GRU"), "lens": np.array([STEPS, STEPS], np.int32)}
    check_node("GRU", given, hidden_size=HIDDEN, constants=["lens"], dynamic=False)
