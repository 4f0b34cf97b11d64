"""Check the gradient that an explanation uses against finite differences of the score, or what it adds up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_gradcam.autodiff.check import GradientCheck
from onnx_gradcam.autodiff.modifiers import COMPLETE
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator
from onnx_gradcam.editor.ingredients import Ingredients
from onnx_gradcam.editor.plan import Plan
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.editor.targets.axes import letters
from onnx_gradcam.editor.targets.layer import Candidate
from onnx_gradcam.errors import InputError, ModelError, UnsupportedError
from onnx_gradcam.feeds import Declared, Feeds, View, is_array_file, read_input
from onnx_gradcam.files import ModelSource
from onnx_gradcam.graph.builder import Value
from onnx_gradcam.graph.paths import node_inputs
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["TOLERANCE", "Verification", "check_completeness", "check_explanation", "verify"]

Array = npt.NDArray[Any]

TOLERANCE: Final = 1e-3
"""Allowed relative difference; gradients are computed in single precision, and of float16 models in half."""

_COMPLETE: Final = {np.float16: 1e-2}
"""Allowed distance of the score from what adds up to it, relative to the score or to one, by type; else `_SINGLE`."""
_SINGLE: Final = 1e-4
_GRAIN: Final = 0.05
"""Standard deviation of the noise that breaks ties, relative to the image's."""
_IMAGE_RANK: Final = 3


@dataclass(frozen=True, kw_only=True)
class Verification:
    """One number, computed in two ways: a directional derivative, or with the modifier `libra` the score.

    Attributes:
        target_tensor: the layer whose activation maps are moved; the image for the score.
        analytic: the derivative by the gradient that the explanation uses; or the sum of the image times its gradient
            and what biases contribute.
        numeric: the derivative by finite differences, in double precision; or the score.
        relative: their difference, relative to the larger of the two; or to the score, and to one for smaller scores.
        grain: whether noise was added to the image, because equal values tie at a maximum.
        limit: the largest relative difference that is none.
        kind: which of the two it is, the `derivative` or the `completeness` of what adds up to the score.
    """

    target_tensor: str
    analytic: float
    numeric: float
    relative: float
    grain: bool
    limit: float = TOLERANCE
    kind: Literal["derivative", "completeness"] = "derivative"

    @property
    def agrees(self) -> bool:
        """Whether the two differ by no more than `limit`."""
        return self.relative <= self.limit


def verify(
    model: ModelSource,
    image: str | Path | bytes | Array | None = None,
    /,
    options: Options | None = None,
    *,
    feeds: Mapping[str, Any] | None = None,
    seed: int = 0,
    **choices: Unpack[Choices],
) -> Verification:
    """Check the gradient of an explanation against finite differences along one random direction.

    A gradient changed by `libra` is no derivative. Of it is checked that the image times its gradient, plus what biases
    contribute, adds up to the score.

    Where they differ, the image is tried once more with noise: values that tie at a maximum, as in flat regions of an
    image, have no derivative. A wrong gradient differs there too.

    Args:
        model: path, bytes or proto of a model that is not explained yet.
        image: a path, bytes or `uint8 [H, W, 3]`, which is preprocessed; or the model's input, `[1, ...]`; random
            numbers by default.
        options: what to explain and how; by default the predicted class. Of the levels of a detector that were chosen
            automatically, the first is checked that the score depends on.
        feeds: values of the model's other inputs, as for `Explainer`, but no pictures.
        seed: random seed of the direction.
        choices: fields of `Options`, in place of those of `options`.

    Returns:
        Both derivatives, and whether they agree.

    Raises:
        UnsupportedError: the model cannot be explained this way, or its gradient is not meant to be a derivative.
        InputError: the image cannot be read, or its preprocessing is not known.
        ModelError: the model outputs NaN.

    Example::

        assert verify("model.onnx", "photo.jpg", preprocess="torchvision").agrees
    """
    options = (options or Options()).replaced(choices)
    rows = image if isinstance(image, np.ndarray) and (image.ndim != _IMAGE_RANK or image.dtype.kind == "f") else None
    if image is not None and rows is None:
        rows = _prepared(model, image, options)
    if options.modifier in COMPLETE:
        return check_completeness(model, rows, options, feeds=feeds, seed=seed)
    check = check_explanation(model, rows, options, feeds=feeds, seed=seed)
    grain = rows is not None and not check.relative <= TOLERANCE
    if grain and rows is not None:
        grained = _grained(rows, np.random.default_rng(seed))
        check = check_explanation(model, grained, options, feeds=feeds, seed=seed)
    if not math.isfinite(check.numeric):
        raise ModelError(
            "the model outputs NaN for this input, so there is nothing to compare; check --preprocess and the weights"
        )
    return Verification(
        target_tensor=check.wrt, analytic=check.analytic, numeric=check.numeric, relative=check.relative, grain=grain
    )


def _prepared(model: ModelSource, image: str | Path | bytes | Array, options: Options) -> Array:
    plan = make_plan(model, options)
    if letters(plan.layout) not in {"NCHW", "NHWC"} or is_array_file(image):
        info = Declared(plan.image.name, np.dtype(plan.image.dtype or np.float32).name, tuple(plan.image.shape))
        return read_input(image, info, letters(plan.layout))[None]
    if plan.preprocessing is None:
        raise InputError("the model carries no preprocessing; give it with --preprocess")
    dtype = np.dtype(plan.image.dtype or np.float32).name
    preprocessing = parse_preprocessing(plan.preprocessing).for_input(letters(plan.layout), plan.image.shape, dtype)
    row: Array = prepare(read_image(image), preprocessing)[0][None]
    return row


def _grained(rows: Array, rng: np.random.Generator) -> Array:
    noise = rng.standard_normal(rows.shape) * _GRAIN * (float(rows.astype(np.float64).std()) or 1.0)
    if rows.dtype.kind == "f":
        return (rows + noise).astype(rows.dtype)
    limits = np.iinfo(rows.dtype)
    grained: Array = np.clip(rows + np.rint(noise), limits.min, limits.max).astype(rows.dtype)
    return grained


def check_explanation(
    source: ModelSource,
    image: Array | None = None,
    options: Options | None = None,
    *,
    feeds: Mapping[str, Any] | None = None,
    seed: int = 0,
    step: float = 1e-5,
) -> GradientCheck:
    """Compare the gradient by the activation maps with central differences of the model's own head.

    ONNX Runtime computes the activation maps of `image`; ONNX's reference evaluator evaluates the head behind them in
    float64 at two points along a random direction. If the two differ although every rule is right, the direction
    crosses a kink (a ReLU at zero, or a maximum that moves to another position): try another seed.

    Args:
        source: a model that is not explained yet.
        image: the model's input, one sample, which is repeated to fill a fixed batch size; random numbers by default.
        options: what to explain and how; by default the predicted class. Of the levels of a detector that were chosen
            automatically, the first is checked that the score depends on.
        feeds: values of the model's other inputs.
        seed: random seed.
        step: half the distance of the two points, relative to the root mean square of the activation maps.
    """
    rng = np.random.default_rng(seed)
    options = replace(options or Options(), class_input="none")
    plan = make_plan(source, options)
    if plan.has_levels and plan.refusal is None:
        levels = [replace(options, layer=target.name) for target in plan.targets]
        checks = [check_explanation(source, image, level, feeds=feeds, seed=seed, step=step) for level in levels]
        return next((check for check in checks if check.analytic or check.numeric), checks[0])
    if plan.refusal is not None:
        raise UnsupportedError(plan.refusal)
    if plan.quantised is not None:
        raise UnsupportedError(
            "the gradient through quantised numbers is a surrogate, not a derivative; verify the float model instead"
        )
    if plan.modifier is not None:
        raise UnsupportedError(
            f"gradients changed by {plan.modifier} are not derivatives on purpose; verify without the modifier"
        )
    if len(plan.layers) > 1:
        raise UnsupportedError("only the gradient of one layer can be checked at a time; name one with --layer")
    target = plan.layer.chosen
    head, sides = _head(plan)
    image = _random_image(plan.image, rng) if image is None else image
    rows = plan.image.shape[0]
    if isinstance(rows, int) and len(image) == 1:
        image = np.repeat(image, rows, axis=0)
    maps, *side_values, positions, cotangent, chosen = _run(plan, [target.tensor, *sides], image, feeds)
    # Zeros after a ReLU stay zero: pools over windows of zeros have a kink there.
    direction = rng.standard_normal(positions.shape) * (positions != 0)
    # The score is read for the first row of the batch.
    direction[1:] = 0
    scale = step * (math.sqrt(float(np.mean(np.square(maps, dtype=np.float64)))) or 1.0)
    feeds = {v.name: _wide(a) for v, a in zip(sides, side_values, strict=True)}
    moved = scale * _uncanonical(target, direction, maps.shape)
    model = evaluator(as_double(head))
    up, down = (evaluate(model, {**feeds, target.tensor.name: _wide(maps) + sign * moved})[0] for sign in (1.0, -1.0))
    numeric = _score_of(plan, up - down, int(chosen[0])) / (2 * scale)
    gradient = np.broadcast_to(cotangent, positions.shape)
    return GradientCheck(target.tensor.name, float(np.vdot(gradient, direction)), numeric, gradient)


def check_completeness(
    source: ModelSource,
    image: Array | None = None,
    options: Options | None = None,
    *,
    feeds: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Verification:
    """Compare the score with the sum of the image times its gradient and what every additive constant contributes.

    They are equal with the modifier `libra`; for comparison, the gradient as it is, is added up in the same way.

    Args:
        source: a model that is not explained yet.
        image: the model's input, one sample; random numbers by default.
        options: what to explain and how; by default the predicted class.
        feeds: values of the model's other inputs.
        seed: random seed.

    Example::

        assert check_completeness("model.onnx", options=Options(modifier="libra")).agrees
    """
    options = replace(options or Options(), method="input-x-gradient", layer="auto", weights="auto", class_input="none")
    plan = make_plan(source, options)
    if plan.refusal is not None:
        raise UnsupportedError(plan.refusal)
    image = _random_image(plan.image, np.random.default_rng(seed)) if image is None else image
    rows = plan.image.shape[0]
    if isinstance(rows, int) and len(image) == 1:
        image = np.repeat(image, rows, axis=0)
    ingredients = Ingredients(plan)
    score, left = (
        float(a[0]) for a in _computed(plan, [], [ingredients.score, ingredients.completeness], image, feeds)
    )
    if not math.isfinite(score):
        raise ModelError(f"the score of this input is {score}; check --preprocess and the weights")
    types = {plan.t.wrap(o).dtype for node in plan.path for o in node.outputs}
    limit = max((one for dtype, one in _COMPLETE.items() if np.dtype(dtype) in types), default=_SINGLE)
    return Verification(
        target_tensor=plan.image_input,
        analytic=score - left,
        numeric=score,
        relative=abs(left) / max(abs(score), 1.0),
        grain=False,
        limit=limit,
        kind="completeness",
    )


def _head(plan: Plan) -> tuple[onnx.ModelProto, list[Value]]:
    """The nodes between target tensor and score as a model, and what else they read."""
    t, target = plan.t, plan.layer.chosen.tensor
    computed = {o for node in plan.path for o in node.outputs}
    outside = [v for node in plan.path for v in node_inputs(node) if v not in computed and v is not target.core]
    constants, sides = {}, {}
    for value in map(t.wrap, outside):
        array = value.array()
        if array is None:
            sides[value.name] = value
        else:
            constants[value.name] = onnx.numpy_helper.from_array(array, value.name)
    inputs = [onnx.helper.make_tensor_value_info(v.name, v.elem_type, v.shape) for v in (target, *sides.values())]
    score = plan.score.tensor
    output = onnx.helper.make_tensor_value_info(score.name, score.elem_type, score.shape)
    nodes = [ir.to_proto(node) for node in plan.path]
    graph = onnx.helper.make_graph(nodes, "head", inputs, [output], list(constants.values()))
    imports = [onnx.helper.make_opsetid(d, v) for d, v in t.model.core.opset_imports.items()]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=t.model.core.ir_version), list(
        sides.values()
    )


def _run(plan: Plan, values: Sequence[Value], image: Array, feeds: Mapping[str, Any] | None) -> list[Array]:
    """The values of tensors for `image`, then the activation maps as the method sees them, cotangent and class."""
    ingredients = Ingredients(plan)
    (maps,), (cotangent,) = ingredients.maps, ingredients.cotangents
    return _computed(plan, values, [maps, cotangent, ingredients.classes], image, feeds)


def _computed(
    plan: Plan, values: Sequence[Value], appended: Sequence[Value], image: Array, feeds: Mapping[str, Any] | None
) -> list[Array]:
    """The values of tensors of the model, and of appended ones, for `image`."""
    t = plan.t
    names = [v.name for v in values]
    for value in values:
        if not value.core.is_graph_output():
            t.graph.outputs.append(value.core)
    names += [t.output(value, t.unique("checked")).name for value in appended]
    t.finish()
    session = Session(t.model.to_proto().SerializeToString(), folder=t.model.folder)
    batched = "N" in plan.input_layout
    results = session.run({plan.image_input: image if batched else image[0], **_others(plan, session, image, feeds)})
    return [results[name] for name in names]


def _others(plan: Plan, session: Session, image: Array, given: Mapping[str, Any] | None) -> dict[str, Array]:
    """What the model's other inputs take; a photo is taken to be as large as the model's input."""
    own = session.input(plan.image_input)
    batched = "N" in plan.input_layout
    feeds = Feeds(
        own if batched else replace(own, shape=(1, *own.shape)),
        [info for info in session.inputs if info.name != plan.image_input],
        session.outputs,
        given,
        batched=batched,
        optional=session.optional_inputs,
    )
    feeds.check_count(len(image))
    size = [float(image.shape[axis]) for axis in plan.spatial_axes]
    view = View((size[0], size[1]), (size[0], size[1]), (1, 1)) if len(size) == 2 else None
    values = [feeds.of_image(view, (1, *row.shape), i) for i, row in enumerate(image)]
    return feeds.fed(values).of(range(len(image)))


def _random_image(image: Value, rng: np.random.Generator) -> Array:
    free = {3: 1024, 5: 32}.get(image.rank, 224)
    shape = [d if isinstance(d, int) else 1 if axis == 0 else free for axis, d in enumerate(image.shape)]
    dtype = np.dtype(image.dtype or np.float32)
    if image.is_float:
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def _score_of(plan: Plan, scores: Array, index: int) -> float:
    """The score of one class; a single logit stands for class 1 and, negated, for class 0."""
    flat = scores.reshape(-1)
    if plan.score.single_logit:
        return float(flat[0]) * (2 * index - 1)
    return float(flat[index])


def _uncanonical(target: Candidate, direction: Array, shape: tuple[int, ...]) -> Array:
    """A direction `[N, C, *spatial]` in the target tensor's own layout; zero at class and register tokens."""
    tokens = target.tokens
    if tokens is not None:
        direction = direction.reshape(*direction.shape[:2], -1)
        direction = np.pad(direction, ((0, 0), (0, 0), (tokens.before, tokens.after)))
    axes = [axis for axis in target.unfolded if axis is not None]
    order = [0 if a.kind == "N" else 1 if a.kind == "C" else 2 + a.place for a in axes]
    return np.transpose(direction, order).reshape(shape)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
