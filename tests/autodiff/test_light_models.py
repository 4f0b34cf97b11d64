"""Whole models from the ONNX package: nine classifiers, and the 117 that PyTorch's first exporter wrote.

The classifiers keep their depth, geometry and input size of 224; their weights are drawn anew, and the layers are an
eighth as wide, which makes differences in float64 affordable.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from autodiff.light import ARCHITECTURES, converted, light_model, logits
from support.helpers import check_model, quiet_session

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator
from onnx_gradcam.graph.load import load

SLOPE_IN_THE_CONVERTER = "PRelu of opset 6 with a slope a channel: ONNX's converter leaves an invalid node"
EXCLUDED = {
    "test_PReLU_1d_multiparam": SLOPE_IN_THE_CONVERTER,
    "test_PReLU_2d_multiparam": SLOPE_IN_THE_CONVERTER,
    "test_PReLU_3d_multiparam": SLOPE_IN_THE_CONVERTER,
    "test_operator_non_float_params": "integers only",
}
POSITIVE = {"test_operator_pow", "test_operator_sqrt"}
"""Their inputs are mostly negative, where the result is not a number."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_input_gradient_of_a_classifier(name, capsys):
    model = light_model(name)
    x, output = model.graph.input[0].name, logits(model)
    emitted = gradient_model(model, [x], output).to_proto()
    runtime = quiet_session(emitted)
    double = as_double(load(model).to_proto())
    forward, backward = evaluator(double), evaluator(gradient_model(double, [x], output).to_proto())
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        image = rng.standard_normal((1, 3, 224, 224)).astype(np.float32)
        wide = image.astype(np.float64)
        (scores,) = evaluate(forward, {x: wide}, [output])
        check_forward(model, image, output, scores)
        cotangent = np.zeros(scores.shape, np.float32)
        cotangent.flat[best := int(scores.argmax())] = 1
        (gradient,) = evaluate(backward, {x: wide, "cotangent": cotangent.astype(np.float64)})
        (narrow,) = runtime.run(None, {x: image, "cotangent": cotangent})
        float32 = float(np.abs(narrow - gradient).max() / np.abs(gradient).max())
        slope = error_along_a_direction(forward, {x: wide}, gradient, (output, best), rng) if float32 < 1e-5 else np.nan
        if slope < 1e-5:
            row = f"| {name} | {len(model.graph.node)} | {len(emitted.graph.node)} | {slope:.1e} | {float32:.1e} |"
            with capsys.disabled():
                print(f"\n{row}", end="")  # noqa: T201 - the table in docs/gradients.md
            return
        # A rectifier's input so near zero that a difference crosses it, or that float32 has its sign wrong: of
        # millions there is one now and then. Another image has none.
        found.append(f"{slope:.2g} from differences, {float32:.2g} in float32")
    pytest.fail(f"the gradient is off on every image: {found}")


def error_along_a_direction(forward, feeds, gradient, logit, rng):
    """The derivative of one logit along a random direction of the image, relative to a central difference."""
    output, index = logit
    ((x, image),) = feeds.items()
    u = rng.standard_normal(image.shape)

    def score(offset):
        return evaluate(forward, {x: image + offset * u}, [output])[0].flat[index]

    h = 1e-7  # small, so as to cross few kinks
    return abs((score(h) - score(-h)) / (2 * h) / float(np.vdot(gradient, u)) - 1)


def check_forward(model, image, output, expected):
    """The shipped model, of opset 9, computes in ONNX Runtime what the one raised to opset 18 does in the reference."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    if all(o.name != output for o in shown.graph.output):
        shown.graph.output.append(onnx.ValueInfoProto(name=output))
    (scores,) = quiet_session(shown).run([output], {shown.graph.input[0].name: image})
    assert expected.std() > 0.1
    np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("collection", "size"), [("pytorch-converted", 82), ("pytorch-operator", 35)])
def test_gradients_of_models_that_pytorch_wrote(collection, size, capsys):
    counts, failures, pairs = Counter(), [], 0
    for case in converted(collection):
        if case.name in EXCLUDED:
            counts[f"excluded ({EXCLUDED[case.name]})"] += 1
            continue
        try:
            pairs += check_converted(case)
            counts["passed"] += 1
        except Exception as exc:  # noqa: BLE001 - one line for each that fails
            counts["failed"] += 1
            failures.append(f"{case.name}: {type(exc).__name__}: {exc}")
    with capsys.disabled():
        listed = ", ".join(f"{n} {what}" for what, n in sorted(counts.items(), reverse=True))
        print(f"\n{collection}: {counts.total()} models: {listed}; {pairs} (model, tensor) pairs")  # noqa: T201 - to be read
    assert not failures, "\n".join(failures)
    assert counts.total() == size


def check_converted(case):
    """Differentiate by every floating-point input, weights included; returns how many there were."""
    feeds = {k: np.abs(v) for k, v in case.feeds.items()} if case.name in POSITIVE else case.feeds
    values = {**feeds, **case.weights}
    wrt = [k for k, v in values.items() if np.issubdtype(v.dtype, np.floating)]
    assert wrt
    check_model(load(case.model).to_proto(), values, wrt, step=1e-6)
    return len(wrt)
