"""Small models and the check that every VJP rule has to pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from onnx_gradcam.autodiff.check import check_gradients, gradient_model
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-6


def node_model(
    op_type: str,
    inputs: Mapping[str, Array | None],
    *,
    opset: int = 18,
    outputs: int = 1,
    dynamic: bool = False,
    domain: str = "",
    constants: Sequence[str] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node.

    Args:
        op_type: the operator.
        inputs: name -> value; the values give types and shapes, `None` omits an optional input.
        opset: version of the default operator set.
        outputs: how many outputs the node has: `y`, `y1`, `y2` ...
        dynamic: declare every dimension of the (non-constant) inputs symbolic.
        domain: of the operator.
        constants: inputs to make initializers.
        attributes: of the node.
    """
    names = ["y", *(f"y{i}" for i in range(1, outputs))]
    node = helper.make_node(
        op_type, [k if v is not None else "" for k, v in inputs.items()], names, domain=domain, **attributes
    )
    infos, initializers = [], []
    for name, value in inputs.items():
        if value is None:
            continue
        if name in constants:
            initializers.append(onnx.numpy_helper.from_array(value, name))
            continue
        shape = [f"{name}_{i}" for i in range(value.ndim)] if dynamic else value.shape
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape))
    graph = helper.make_graph([node], op_type, infos, [onnx.ValueInfoProto(name=n) for n in names], initializers)
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def floats(inputs: Mapping[str, Array | None]) -> list[str]:
    """The names of the floating-point inputs."""
    return [k for k, v in inputs.items() if v is not None and v.dtype == np.float32]


def check_node(
    op_type: str,
    inputs: Mapping[str, Array | None],
    *,
    wrt: Sequence[str] | None = None,
    opset: int = 18,
    outputs: int = 1,
    output: str = "y",
    dynamic: bool | None = None,
    runtime: bool = True,
    tolerance: float = TOLERANCE,
    constants: Sequence[str] = (),
    step: float = 1e-4,
    domain: str = "",
    **attributes: Any,
) -> None:
    """Assert that the VJP rule of one node is right, with static and with symbolic shapes.

    The gradient by each tensor of `wrt` (every float32 input by default) must agree with central differences in
    float64, and the emitted graph run by ONNX Runtime in float32 with the float64 gradient.

    Args:
        dynamic: check only symbolic (`True`) or only static (`False`) shapes; both by default.
        runtime: whether ONNX Runtime has kernels for the operator and for what its rule emits.
    """
    feeds = {k: v for k, v in inputs.items() if v is not None and k not in constants}
    wrt = [k for k in floats(inputs) if k not in constants] if wrt is None else list(wrt)
    for symbolic in (False, True) if dynamic is None else (dynamic,):
        model = node_model(
            op_type,
            inputs,
            opset=opset,
            outputs=outputs,
            dynamic=symbolic,
            domain=domain,
            constants=constants,
            **attributes,
        )
        check_model(model, feeds, wrt, output=output, runtime=runtime, tolerance=tolerance, step=step)


def check_model(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    wrt: Sequence[str],
    *,
    output: str | None = None,
    runtime: bool = True,
    tolerance: float = TOLERANCE,
    step: float = 1e-4,
) -> None:
    """Assert that the gradients of a whole model are right; see `check_node`."""
    checks = check_gradients(model, feeds, wrt, output, step=step)
    for check in checks:
        assert check.error < tolerance, str(check)
        assert check.gradient.shape == feeds[check.wrt].shape
    if not runtime:
        return
    rng = np.random.default_rng(1)
    session_model = gradient_model(model, list(wrt), output).to_proto()
    double = check_gradients_inputs(model, feeds, wrt, output, rng)
    try:
        got = _run(session_model, {**feeds, "cotangent": double.cotangent})
    except Exception:
        skip_unless_it_runs(model, feeds)
        raise
    for name, actual, expected in zip(wrt, got, double.gradients, strict=True):
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5 * scale, err_msg=f"ONNX Runtime, {name}")


def check_in_runtime(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    wrt: Sequence[str],
    *,
    step: float = 2e-3,
    tolerance: float = 2e-3,
) -> None:
    """Compare gradients with central differences of ONNX Runtime's own float32 forward pass, of every output.

    For what the reference evaluator does not know; coarse, because float32 differences are.
    """
    forward = quiet_session(model)
    for output in (o.name for o in model.graph.output):
        rng = np.random.default_rng(2)
        (y,) = forward.run([output], feeds)
        v = rng.standard_normal(y.shape).astype(np.float32)
        session = quiet_session(gradient_model(model, list(wrt), output).to_proto())
        gradients = session.run(None, {i.name: {**feeds, "cotangent": v}[i.name] for i in session.get_inputs()})
        for name, gradient in zip(wrt, gradients, strict=True):
            u = rng.standard_normal(feeds[name].shape).astype(np.float32)
            high, low = (
                forward.run([output], {**feeds, name: feeds[name] + h * u})[0].astype(float) for h in (step, -step)
            )
            numeric = float(np.vdot(v, high - low) / (2 * step))
            analytic = float(np.vdot(gradient, u))
            assert abs(numeric - analytic) < tolerance * max(1.0, abs(numeric)), f"{output}, {name}"


class Expected:
    """A float32 cotangent and the float64 gradients it should give."""

    def __init__(self, cotangent: Array, gradients: list[Array]) -> None:
        self.cotangent = cotangent
        self.gradients = gradients


def check_gradients_inputs(
    model: onnx.ModelProto, feeds: Mapping[str, Array], wrt: Sequence[str], output: str | None, rng: np.random.Generator
) -> Expected:
    """The gradients of `model` for a random cotangent, by the reference evaluator in float64."""
    double = as_double(model)
    output = output or model.graph.output[0].name
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feeds.items()}
    (y,) = evaluate(evaluator(double), wide, [output])
    cotangent = rng.standard_normal(y.shape).astype(np.float32)
    graph = gradient_model(double, list(wrt), output).to_proto()
    wanted = {i.name for i in graph.graph.input}
    given = {k: v for k, v in {**wide, "cotangent": cotangent.astype(np.float64)}.items() if k in wanted}
    return Expected(cotangent, evaluate(evaluator(graph), given))


def _run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    session = quiet_session(model)
    return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})


def skip_unless_it_runs(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
    """Skip the test where the installed ONNX Runtime is too old for the operator itself."""
    try:
        _run(model, feeds)
    except Exception as exc:  # noqa: BLE001 - ONNX Runtime's errors have no common base
        pytest.skip(f"this ONNX Runtime does not run the operator itself: {' '.join(str(exc).split())[:120]}")


@functools.cache
def runs_opset(opset: int) -> bool:
    """Whether the installed ONNX Runtime runs models of this opset."""
    try:
        quiet_session(node_model("Relu", {"x": np.zeros(1, np.float32)}, opset=opset))
    except Exception:  # noqa: BLE001 - ONNX Runtime's errors have no common base
        return False
    return True


def needs_opset(opset: int) -> pytest.MarkDecorator:
    """Skip a test where the installed ONNX Runtime is older than the opset."""
    return pytest.mark.skipif(not runs_opset(opset), reason=f"this ONNX Runtime does not run opset {opset}")


OLD_RUNTIME = tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24)
"""Whether ONNX Runtime fails on reductions over nothing and on some padded pools; Python 3.10 has no newer one."""


def quiet_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A CPU session that logs errors only."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
