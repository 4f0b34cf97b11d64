"""The one composition: a model goes in, the same model with a heatmap comes out.

Here alone the backward pass and the methods meet. `plan` has decided what is explained and how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from . import __version__
from .autodiff.profiles import PROVIDERS, conform, differentiate
from .errors import TargetError, UnsupportedError
from .graph.builder import Builder, Value
from .graph.model import Model
from .heatmap import finish
from .linearize import finite_cotangent, linear_cotangent
from .metadata import Carried, Metadata
from .plan import Options, Plan, plan
from .targets.axes import letters
from .targets.score import Score

__all__ = ["Explained", "append_cotangent", "attach"]


@dataclass(eq=False)
class Explained:
    """An explained model.

    Attributes:
        model: the model with the explanation in it.
        metadata: what it says of itself.
        reason: why this layer, in words.
        warnings: what the user should know.
    """

    model: Model
    metadata: Metadata
    reason: str
    warnings: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write the model; see `Model.save`."""
        self.model.save(path)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a proto; external weights stay references."""
        return self.model.to_proto()


def attach(source: str | Path | bytes | onnx.ModelProto, options: Options | None = None, **choices: Any) -> Explained:
    """Add the explanation to a model.

    Args:
        source: path, bytes or proto of the model.
        options: what to explain and how.
        choices: fields of `Options`, in place of those of `options`.

    Raises:
        ModelError: the file is not a usable model.
        TargetError: what was asked for is not in the model.
        UnsupportedError: the model cannot be explained this way.

    Example::

        attach("model.onnx", layer="auto").save("explained.onnx")
    """
    work = plan(source, replace(options or Options(), **choices))
    if work.refusal is not None:
        raise UnsupportedError(work.refusal)
    t, score = work.t, work.score
    classes, class_input, maps, gradient = append_cotangent(work)
    cam = work.method.function(t, maps, gradient)
    sizes = [work.image.shape[axis] for axis in work.spatial_axes]
    heatmap = finish(t, cam, _picture_size(t, work.image, work.spatial_axes, sizes))
    names = {name: _free_name(t, name) for name in ("heatmap", "cam", "heatmap_class")}
    batch = score.tensor.shape[0]
    results = [
        t.output(t.refine(heatmap, (batch, *sizes)), names["heatmap"]),
        t.output(t.refine(cam, (batch, *work.layer.chosen.grid)), names["cam"]),
        t.output(t.refine(classes, (batch,)), names["heatmap_class"]),
    ]
    left = _beyond(t, results, work.options.profile)
    if work.options.expose_activation:
        t.expose(work.layer.chosen.tensor)
    t.finish()
    model = t.model
    metadata = _metadata(work, class_input, names)
    model.metadata.update(metadata.to_props())
    model.check()
    return Explained(model, metadata, work.layer.reason, work.warnings + left)


def _beyond(t: Builder, results: Sequence[Value], profile: str) -> list[str]:
    """Write the rest, which is no gradient, for the profile's provider too, and say what it will not run."""
    if profile not in PROVIDERS:
        return []
    left = conform(t, PROVIDERS[profile], results, strict=False)[1]
    return [f"{why} of {profile}, so ONNX Runtime computes it on the CPU" for why in left]


def append_cotangent(work: Plan) -> tuple[Value, str, Value, Value]:
    """Append what every method needs.

    Returns:
        The explained class of every sample, `int64 [N]`; the name of the input that chooses it, empty where it is
        fixed; the activation maps, `float32 [N, C, *spatial]`; and their cotangent, with sizes of one along the
        spatial axes where it is the same at every place.
    """
    t, target = work.t, work.layer.chosen
    classes, class_input = _classes(t, work)
    maps = t.cast(target.canonical(t, target.tensor), np.float32)
    return classes, class_input, maps, _cotangent(t, work, maps, classes)


def _classes(t: Builder, work: Plan) -> tuple[Value, str]:
    """The explained class of every sample, `int64 [N]`, and the name of the input that chooses it."""
    score, options = work.score, work.options
    best = _best_class(t, score)
    if options.class_input == "none":
        if options.target is None:
            return best, ""
        if score.classes is not None and not 0 <= options.target < score.classes:
            raise TargetError(f"class {options.target} is out of range; the model has classes 0 to {score.classes - 1}")
        return t.op("Expand", t.ints(options.target), t.op("Shape", best), shape=best.shape), ""
    name = _free_name(t, "target_class")
    if options.class_input == "required":
        wanted = t.input(name, np.int64, (score.tensor.shape[0],))
    else:
        wanted = t.default_input(name, np.array([-1], np.int64))
    chosen = t.op("Where", wanted < t.const(0, np.int64), best, wanted)
    # Broadcasting takes several classes for one picture as well: the reshape refuses them.
    chosen = t.op("Reshape", chosen, t.shape_of(best), shape=best.shape)
    # Looking the class up in a table makes a class out of range an error instead of an empty map.
    return t.op("Gather", _every_class(t, score), chosen, shape=best.shape), name


def _every_class(t: Builder, score: Score) -> Value:
    """The numbers of all classes, `int64 [K]`."""
    if score.classes is not None:
        return t.const(np.arange(score.classes, dtype=np.int64))
    count = t.op("Squeeze", t.op("Shape", score.tensor, start=score.class_axis, end=score.class_axis + 1))
    return t.op("Range", t.const(0, np.int64), count, t.const(1, np.int64))


def _best_class(t: Builder, score: Score) -> Value:
    """The class with the highest score, `int64 [N]`."""
    batch = score.tensor.shape[0]
    if score.single_logit:
        flat = t.op("Reshape", score.tensor, t.ints(-1), shape=(batch,))
        threshold = 0.5 if score.activation == "sigmoid" and score.tensor is score.output else 0.0
        return t.cast(flat > threshold, np.int64)
    best = t.op("ArgMax", score.tensor, axis=score.class_axis, keepdims=0)
    return t.op("Reshape", best, t.ints(-1), shape=(batch,)) if best.rank != 1 else best


def _cotangent(t: Builder, work: Plan, maps: Value, classes: Value) -> Value:
    """The cotangent of the activation maps for the chosen classes, read like the maps."""
    score, head = work.score, work.head
    sign = None
    if score.single_logit:
        column = t.op("Unsqueeze", classes, t.ints(1))
        sign = t.cast(column, np.float32) * 2.0 - 1.0
    if work.weights == "linear" and head is not None:
        return linear_cotangent(t, head, score, maps, classes, sign)
    seed = _seed(t, score, classes, sign)
    if work.weights == "finite" and head is not None:
        return finite_cotangent(t, head, score, maps, seed, work.path)
    (gradient,) = differentiate(t, {score.tensor: seed}, [work.layer.chosen.tensor], work.options.profile)
    return t.cast(work.layer.chosen.canonical(t, gradient), np.float32)


def _seed(t: Builder, score: Score, classes: Value, sign: Value | None) -> Value:
    """The cotangent of the score: one at the explained class, and for a single logit its sign."""
    if sign is not None:
        return t.reshape_like(t.cast(sign, score.tensor.dtype), score.tensor)
    hot = t.op("Equal", t.op("Unsqueeze", classes, t.ints(1)), _every_class(t, score))
    return t.reshape_like(t.cast(hot, score.tensor.dtype), score.tensor)


def _picture_size(t: Builder, image: Value, axes: tuple[int, int], sizes: Sequence[int | str | None]) -> Value:
    if all(isinstance(size, int) for size in sizes):
        return t.ints(*(size for size in sizes if isinstance(size, int)))
    return t.op("Gather", t.op("Shape", image), t.ints(*axes))


def _free_name(t: Builder, name: str) -> str:
    """`name`, or with a prefix where the model has a tensor of that name already."""
    while t.taken(name):
        name = f"gradcam_{name}"
    return name


def _metadata(work: Plan, class_input: str, names: Mapping[str, str]) -> Metadata:
    carried, options = Carried.from_props(work.t.model.metadata), work.options
    assert work.layout is not None  # noqa: S101 - `plan` refuses a model without one
    return Metadata(
        version=__version__,
        method=work.method.name,
        preset="default",
        weights=work.weights,
        derivative="straight-through" if work.quantised is not None else "exact",
        target_tensor=work.layer.chosen.tensor.name,
        score_tensor=work.score.tensor.name,
        image_input=work.image.name,
        layout=letters(work.layout),
        scores_output=work.score.output.name,
        activation=work.score.activation,
        single_logit=work.score.single_logit,
        class_input=class_input,
        labels=list(options.labels) if options.labels is not None else carried.labels,
        preprocessing=dict(options.preprocessing) if options.preprocessing is not None else carried.preprocessing,
        profile=options.profile,
        disabled_optimizers=["Pad_Fusion"] if work.hazards else [],
        **names,
    )
