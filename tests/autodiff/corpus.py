"""The node test cases of the ONNX package as gradient checks: loading, and the examination of one case.

Every case is brought to float32 (those written in float16, bfloat16 or float64 test the same operator) and to the
newest opset that ONNX Runtime reads, where its operator has a version there.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, defs
from onnx.backend.test.case.node import collect_testcases
from support.helpers import quiet_session, runs_opset

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.expand import expand_missing
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.load import load

Array = np.ndarray[Any, Any]
RUNTIME_OPSET = max(filter(runs_opset, range(18, 27)))
RUNTIME_IR = 13 if RUNTIME_OPSET == 26 else 11
DIFFERENTIABLE = defs.OpSchema.DifferentiationCategory.Differentiable
FLOAT32_IN_THE_REFERENCE = {
    "CausalConvWithState",
    "Gelu",
    "GroupNormalization",
    "LinearAttention",
    "MeanVarianceNormalization",
}
NO_KERNEL = ("NOT_IMPLEMENTED", "is not a registered function/op", "No Op registered", "fmod attribute must be true")
NOT_SMOOTH = "not smooth at the sample point"
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


@dataclass(frozen=True)
class Case:
    """A model of one node, a value for each of its inputs, and the tensors to differentiate."""

    name: str
    model: onnx.ModelProto
    feeds: Mapping[str, Array]
    wrt: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What became of one (case, output, input): `verdict` is passed, failed, or the reason it was not judged."""

    case: str
    output: str
    wrt: str
    verdict: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.case}: d {self.output} / d {self.wrt}: {self.verdict} {self.detail}"


def operators() -> list[str]:
    """Every operator of the default domain that the schemas call differentiable by some input."""
    names = {s.name for s in defs.get_all_schemas_with_history() if s.domain == "" and _tagged(s)}
    return sorted(names - {"Scatter", "Upsample"})


def _tagged(schema: defs.OpSchema) -> bool:
    return any(i.differentiation_category == DIFFERENTIABLE for i in schema.inputs)


@functools.lru_cache(maxsize=1)
def collected() -> list[Any]:
    """The ONNX package's own node cases of one node: `name`, `model`, `data_sets`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c for c in collect_testcases(None) if len(c.model.graph.node) == 1]


@functools.lru_cache(maxsize=1)
def cases() -> dict[str, list[Case]]:
    """The usable cases, by operator: one node, floating-point output, a differentiable floating-point input."""
    found: dict[str, list[Case]] = {}
    for raw in collected():
        case = _usable(raw)
        if case is not None:
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


@functools.lru_cache(maxsize=1)
def untagged_cases() -> dict[str, list[Case]]:
    """Like `cases`, for operators that have a rule although their schemas call no input differentiable."""
    ruled = {op_type for domain, op_type in rules() if not domain} - set(operators())
    found: dict[str, list[Case]] = {}
    for raw in collected():
        op_type = raw.model.graph.node[0].op_type
        case = _usable(raw, tagged=False) if op_type in ruled else None
        if case is not None:
            found.setdefault(op_type, []).append(case)
    return found


def _usable(raw: Any, *, tagged: bool = True) -> Case | None:
    model = onnx.ModelProto()
    model.CopyFrom(raw.model)
    if model.graph.node[0].domain not in {"", "ai.onnx"}:
        return None
    if any(not i.type.HasField("tensor_type") for i in model.graph.input):
        return None
    (node,) = model.graph.node
    (opset,) = (o for o in model.opset_import if o.domain in {"", "ai.onnx"})
    schema = defs.get_schema(node.op_type, opset.version, "")
    kinds = {i.name: i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
    wrt = [
        name
        for i, name in enumerate(node.input)
        if kinds.get(name) in _FLOATS
        and (not tagged or schema.inputs[min(i, len(schema.inputs) - 1)].differentiation_category == DIFFERENTIABLE)
    ]
    outputs = [name for name in node.output if kinds.get(name) in _FLOATS]
    if not wrt or not outputs:
        return None
    _to_float32(model)
    if opset.version > RUNTIME_OPSET:
        model = _lowered(model)
    feeds = {i.name: _float32(a) for i, a in zip(model.graph.input, raw.data_sets[0][0], strict=True)}
    feeds |= {x: np.asarray(np.nan_to_num(feeds[x], nan=0.5, posinf=3.0, neginf=-3.0)) for x in wrt}
    return Case(raw.name, model, feeds, tuple(dict.fromkeys(wrt)), tuple(outputs))


def _lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at the newest opset of ONNX Runtime; itself where its node is not valid there."""
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    lowered.ir_version = min(model.ir_version, RUNTIME_IR)
    lowered.opset_import[0].version = RUNTIME_OPSET
    try:
        onnx.checker.check_model(lowered)
    except onnx.checker.ValidationError:
        return model
    return lowered


def _to_float32(model: onnx.ModelProto) -> None:
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type in _FLOATS:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for attribute in model.graph.node[0].attribute:
        if attribute.name in {"to", "dtype", "stash_type"} and attribute.i in _FLOATS:
            attribute.i = TensorProto.FLOAT


def _float32(array: Any) -> Array:
    array = onnx.numpy_helper.to_array(array) if isinstance(array, TensorProto) else np.asarray(array)
    floating = np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16
    return array.astype(np.float32) if floating else array


def examine(case: Case) -> Iterator[Finding]:
    """Check every (output, differentiable input) of a case by one random projection each, in both evaluators.

    Axes, sizes and indices are computed by the graph for the reference evaluator and constants for ONNX Runtime, so
    that both ways through a rule are taken; constants for both where a rule wants them. Where the case sits on a kink
    (a rectifier at zero, a tie), it is judged at a point a little beside it.
    """
    for output in case.outputs:
        findings = list(_examine(case, output))
        if any(f.verdict == "refused" for f in findings):
            findings = list(_examine(with_constants(case), output))
        if any(f.verdict == NOT_SMOOTH for f in findings):
            findings = list(_examine(_beside(case), output))
        yield from findings


def with_constants(case: Case) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    fixed = [name for name in case.feeds if name not in case.wrt]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(case.feeds[name], name) for name in fixed)
    kept = [i for i in model.graph.input if i.name in case.wrt]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return replace(case, model=model, feeds={x: case.feeds[x] for x in case.wrt})


def _beside(case: Case) -> Case:
    rng = np.random.default_rng(1)
    moved = {x: case.feeds[x] + rng.uniform(0.01, 0.02, case.feeds[x].shape).astype(np.float32) for x in case.wrt}
    return replace(case, feeds={**case.feeds, **moved})


def _examine(case: Case, output: str) -> Iterator[Finding]:
    double = _double(case, output)
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in case.feeds.items()}
    try:
        forward = evaluator(double)
        (y,) = evaluate(forward, wide, [output])
    except Exception as exc:  # noqa: BLE001 - whatever the reference code raises, this case cannot be judged
        yield from (Finding(case.name, output, x, "the reference evaluator fails", repr(exc)) for x in case.wrt)
        return
    rng = np.random.default_rng(0)
    v = rng.standard_normal(y.shape).astype(np.float32).astype(np.float64)
    try:
        emitted = gradient_model(double, case.wrt, output).to_proto()
    except UnsupportedError as exc:
        if len(case.wrt) > 1:
            for x in case.wrt:
                yield from _examine(replace(case, wrt=(x,)), output)
            return
        verdict = "no rule yet" if str(exc).startswith("no VJP rule for") else "refused"
        if "does not depend" in str(exc):
            (x,) = case.wrt
            flat = all(
                np.array_equal(evaluate(forward, {**wide, x: wide[x] + h}, [output])[0], y) for h in (-1e-6, 1e-6)
            )
            verdict = "passed, zero derivative" if flat else "failed"
        yield Finding(case.name, output, case.wrt[0], verdict, str(exc))
        return
    gradients = evaluate(evaluator(emitted), _given(emitted, wide, v))
    runtime = _in_runtime(with_constants(case), output, v)
    for x, gradient, narrow in zip(case.wrt, gradients, runtime or [None] * len(gradients), strict=True):
        u = rng.standard_normal(wide[x].shape)

        def value(offset: float, x: str = x, u: Array = u) -> float:
            with np.errstate(all="ignore"):
                return float(np.vdot(v, evaluate(forward, {**wide, x: wide[x] + offset * u}, [output])[0]))

        verdict, detail = _judge(gradient, wide[x], u, value)
        if verdict == "passed":
            verdict, detail = _compare(case, output, gradient, narrow, y)
        yield Finding(case.name, output, x, verdict, detail)


def _double(case: Case, output: str) -> onnx.ModelProto:
    """The case in float64; through the operator's body where the reference code computes in float32."""
    if case.model.graph.node[0].op_type not in FLOAT32_IN_THE_REFERENCE:
        return as_double(case.model)
    model = load(case.model)
    expand_missing(model, [output], case.wrt, {})
    return as_double(model.to_proto())


def _given(model: onnx.ModelProto, feeds: Mapping[str, Array], v: Array) -> dict[str, Array]:
    wanted = {i.name for i in model.graph.input}
    return {k: a for k, a in {**feeds, "cotangent": v}.items() if k in wanted}


def _judge(gradient: Array, x: Array, u: Array, value: Callable[[float], float]) -> tuple[str, str]:
    if gradient.shape != x.shape:
        return "failed", f"the gradient has shape {gradient.shape}, the input {x.shape}"
    slopes = _slopes(value, 1e-4) or _slopes(value, 1e-6)
    if slopes is None:
        return NOT_SMOOTH, ""
    coarse, fine = slopes
    analytic = float(np.vdot(gradient, u))
    if not abs(analytic - coarse) <= 1e-6 * max(abs(analytic), abs(coarse)) + 2 * abs(coarse - fine) + 1e-9:
        return "failed", f"analytic {analytic:.9g}, numeric {coarse:.9g} (and {fine:.9g})"
    return "passed", ""


def _compare(case: Case, output: str, gradient: Array, narrow: Array | None, y: Array) -> tuple[str, str]:
    """Whether ONNX Runtime's float32 gradient is the float64 one, where the two agree on the operator itself."""
    if narrow is None:
        return "passed, ONNX Runtime has no kernel", ""
    scale = max(1.0, float(np.abs(gradient).max(initial=0)))
    if np.allclose(narrow, gradient, rtol=1e-4, atol=2e-5 * scale):
        return "passed", ""
    (forward,) = _runtime(case.model).run([output], dict(case.feeds))
    if forward.shape != y.shape or not np.allclose(forward, y, 1e-3, 1e-4):
        return "passed, ONNX Runtime computes the operator otherwise", ""
    return "failed", f"ONNX Runtime is off by {np.abs(narrow - gradient).max():.3g}"


def _slopes(value: Callable[[float], float], step: float) -> tuple[float, float] | None:
    """The central differences at `step` and a tenth of it; `None` where they do not look like a derivative."""
    with np.errstate(all="ignore"):
        far, near = ((value(-h), value(h)) for h in (step, step / 10))
        coarse, fine = (far[1] - far[0]) / (2 * step), (near[1] - near[0]) / (step / 5)
        middle = value(0)
        bends = [abs(low - 2 * middle + high) / h for (low, high), h in ((far, step), (near, step / 10))]
    size = max(abs(coarse), abs(fine), 1e-6)
    # Both steps of a rectifier at zero give the same mean slope; but only at a kink do the two sides differ by as
    # much near by as further away.
    smooth = abs(coarse - fine) <= 1e-3 * size and bends[1] <= 0.5 * bends[0] + 1e-4 * size
    return (coarse, fine) if smooth else None


def _in_runtime(case: Case, output: str, v: Array) -> list[Array] | None:
    """The gradients by ONNX Runtime in float32; `None` where it has no kernel for a node of the emitted graph."""
    model = gradient_model(case.model, case.wrt, output).to_proto()
    try:
        return list(_runtime(model).run(None, _given(model, case.feeds, v.astype(np.float32))))
    except Exception as exc:
        if any(words in str(exc) for words in NO_KERNEL):
            return None
        raise


def _runtime(model: onnx.ModelProto) -> Any:
    capped = onnx.ModelProto()
    capped.CopyFrom(model)
    for opset in capped.opset_import:
        opset.version = min(opset.version, RUNTIME_OPSET) if opset.domain == "" else opset.version
    capped.ir_version = min(capped.ir_version, RUNTIME_IR)
    return quiet_session(capped)
