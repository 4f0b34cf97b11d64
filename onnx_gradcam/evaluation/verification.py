"""Whether the cotangent that an explanation uses is the derivative it claims to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_gradcam.autodiff.check import GradientCheck
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator
from onnx_gradcam.editor.ingredients import Quantities
from onnx_gradcam.editor.plan import Plan, make_plan
from onnx_gradcam.editor.targets.layer import Candidate
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Value
from onnx_gradcam.graph.paths import node_inputs
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.session import Session

__all__ = ["check_explanation"]

Array = npt.NDArray[Any]


def check_explanation(
    source: str | Path | bytes | onnx.ModelProto,
    image: Array | None = None,
    options: Options | None = None,
    *,
    seed: int = 0,
    step: float = 1e-5,
) -> GradientCheck:
    """Compare the cotangent of the activation maps with central differences of the model's own head.

    The activation maps of `image` come from ONNX Runtime; the head behind them is evaluated in float64 by ONNX's
    reference evaluator at two points along a random direction. Where the two disagree although every rule is right,
    the direction crosses a kink (a ReLU at zero, a maximum that changes hands): another seed tells.

    Args:
        source: a model that is not explained yet.
        image: the model's input, one sample, which fills a batch of fixed size; random numbers by default.
        options: what to explain and how; the class with the highest score by default.
        seed: of the random numbers.
        step: half the distance of the two points, relative to the root mean square of the activation maps.

    Raises:
        UnsupportedError: the model cannot be explained this way, or its gradient is a surrogate for quantised numbers.
    """
    rng = np.random.default_rng(seed)
    work = make_plan(source, replace(options or Options(), class_input="none"))
    if work.refusal is not None:
        raise UnsupportedError(work.refusal)
    if work.quantised is not None:
        raise UnsupportedError(
            "the gradient through quantised numbers is a surrogate and no derivative: nothing can be compared with it"
        )
    if work.modifier is not None:
        raise UnsupportedError(
            f"cotangents changed by {work.modifier} are no derivative on purpose: nothing can be compared with them"
        )
    if len(work.layers) > 1:
        raise UnsupportedError("the gradient of one layer is checked at a time; name one with --layer")
    target = work.layer.chosen
    head, sides = _head(work)
    image = _random_image(work.image, rng) if image is None else image
    rows = work.image.shape[0]
    if isinstance(rows, int) and len(image) == 1:
        image = np.repeat(image, rows, axis=0)
    maps, *given, places, cotangent, chosen = _run(work, [target.tensor, *sides], image)
    # Zeros behind a ReLU stay: pools over windows of zeros have a kink there.
    direction = rng.standard_normal(places.shape) * (places != 0)
    # The score is read for the first row of the batch.
    direction[1:] = 0
    scale = step * (math.sqrt(float(np.mean(np.square(maps, dtype=np.float64)))) or 1.0)
    feeds = {v.name: _wide(a) for v, a in zip(sides, given, strict=True)}
    moved = scale * _uncanonical(target, direction, maps.shape)
    model = evaluator(as_double(head))
    up, down = (evaluate(model, {**feeds, target.tensor.name: _wide(maps) + sign * moved})[0] for sign in (1.0, -1.0))
    numeric = _score_of(work, up - down, int(chosen[0])) / (2 * scale)
    gradient = np.broadcast_to(cotangent, places.shape)
    return GradientCheck(target.tensor.name, float(np.vdot(gradient, direction)), numeric, gradient)


def _head(work: Plan) -> tuple[onnx.ModelProto, list[Value]]:
    """The nodes between target tensor and score as a model, and what it reads beside the target tensor."""
    t, target = work.t, work.layer.chosen.tensor
    made = {o for node in work.path for o in node.outputs}
    outside = [v for node in work.path for v in node_inputs(node) if v not in made and v is not target.core]
    constants, sides = {}, {}
    for value in map(t.wrap, outside):
        array = value.array()
        if array is None:
            sides[value.name] = value
        else:
            constants[value.name] = onnx.numpy_helper.from_array(array, value.name)
    inputs = [onnx.helper.make_tensor_value_info(v.name, v.elem_type, v.shape) for v in (target, *sides.values())]
    score = work.score.tensor
    output = onnx.helper.make_tensor_value_info(score.name, score.elem_type, score.shape)
    nodes = [ir.to_proto(node) for node in work.path]
    graph = onnx.helper.make_graph(nodes, "head", inputs, [output], list(constants.values()))
    imports = [onnx.helper.make_opsetid(d, v) for d, v in t.model.core.opset_imports.items()]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=t.model.core.ir_version), list(
        sides.values()
    )


def _run(work: Plan, values: Sequence[Value], image: Array) -> list[Array]:
    """What `values` are for `image`, then the activation maps as the method sees them, cotangent and class."""
    t = work.t
    asked = Quantities(work)
    (maps,), (cotangent,) = asked.maps, asked.cotangents
    names = [v.name for v in values]
    for value in values:
        if not value.core.is_graph_output():
            t.graph.outputs.append(value.core)
    names += [t.output(value, t.unique("checked")).name for value in (maps, cotangent, asked.classes)]
    t.finish()
    session = Session(t.model.to_proto().SerializeToString(), folder=t.model.folder)
    results = session.run({work.image.name: image})
    return [results[name] for name in names]


def _random_image(image: Value, rng: np.random.Generator) -> Array:
    shape = [d if isinstance(d, int) else 1 if axis == 0 else 224 for axis, d in enumerate(image.shape)]
    dtype = np.dtype(image.dtype or np.float32)
    if image.is_float:
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def _score_of(work: Plan, scores: Array, index: int) -> float:
    """The score of one class; a single logit stands for class 1 and, negated, for class 0."""
    flat = scores.reshape(-1)
    if work.score.single_logit:
        return float(flat[0]) * (2 * index - 1)
    return float(flat[index])


def _uncanonical(target: Candidate, direction: Array, shape: tuple[int, ...]) -> Array:
    """A direction `[N, C, *spatial]` in the target tensor's own layout; zero at class and register tokens."""
    tokens = target.tokens
    if tokens is not None:
        direction = direction.reshape(*direction.shape[:2], -1)
        direction = np.pad(direction, ((0, 0), (0, 0), (tokens.before, tokens.after)))
    axes = [axis for axis in target.layout if axis is not None]
    order = [0 if a.kind == "N" else 1 if a.kind == "C" else 2 + a.place for a in axes]
    return np.transpose(direction, order).reshape(shape)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
