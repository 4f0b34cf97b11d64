"""The one pass behind every exporter: the target layer exposed, the table of layers checked, the facts written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import carries_gradient
from onnx_gradcam.editor.targets.axes import follow, label_input, letters
from onnx_gradcam.editor.targets.layer import find_layer, on_path
from onnx_gradcam.editor.targets.score import Score, find_image, find_score
from onnx_gradcam.errors import InputError, TargetError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.hazards import guard_padded_pools
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import between
from onnx_gradcam.graph.shapes import Shape
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import PREFIX, Carried, CarriedLayer

from .writer import Product

__all__ = ["Exported", "finish_export"]


@dataclass(eq=False, kw_only=True)
class Exported:
    """An exported model.

    Attributes:
        model: the graph, its target layer among the outputs.
        target: name of that output.
        shape: of it.
        layout: its axes, e.g. `NCHW`.
        reason: why this layer, in words.
        score: name of the output that holds the scores.
        image: name of the input that takes images.
        image_layout: its axes, e.g. `NCHW`; empty where they cannot be told.
        image_shape: of it.
        image_dtype: its NumPy type.
        carried: what the model says of itself in its metadata.
        warnings: what the user should know.
    """

    model: Model
    target: str
    shape: Shape
    layout: str
    reason: str
    score: str
    image: str
    image_layout: str
    image_shape: Shape
    image_dtype: str
    carried: Carried
    warnings: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write the model; it appears complete or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        self.model.save(path)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a proto; external weights stay references."""
        return self.model.to_proto()


def finish_export(
    product: Product,
    layer: str | None = None,
    *,
    output: str | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Exported:
    """Expose the target layer and write down what the framework knew; nothing in the model is computed otherwise.

    The target is the tensor on the path to the score, not a copy of it. It and the tensors of all other layers bear the
    layers' names where these are free.
    The model of `product` is changed in place.

    Args:
        product: what an exporter read.
        layer: the framework's name of the target layer, a tensor or a node; `None` for the one that `attach` would
            choose.
        output: the output that holds the scores, where several would do.
        labels: class names; by default those of the framework.
        preprocessing: how images become the input; by default what the framework says.

    Raises:
        TargetError: the layer is not in the model, the score does not depend on it, or nothing looks like scores.
        InputError: class names or preprocessing that do not fit.
        ModelError: what came out is no valid ONNX.
    """
    t = Builder(product.model)
    warnings = list(product.warnings)
    _strip_weights_off_inputs(t)
    guard_padded_pools(t)
    score, image = find_score(t, output), find_image(t)
    carries = carries_gradient(t)
    _refuse_folded(t, product, layer)
    names = {name: entry.tensor for name, entry in product.layers.items()}
    chosen = find_layer(t, image, score.tensor, carries, layer or "auto", names)
    _, alive = between(t.nodes, [image.core], [score.output.core], carries)
    tensors = _resolved(t, names, alive)
    # Views of layers that only served to find the tensors that they show.
    t.model.remove_unread(t.nodes, list(t.graph.initializers.values()))
    target = chosen.chosen.tensor
    _name_after_layers(t, target, layer, tensors)
    t.expose(target)
    t.finish()
    carried = Carried(
        labels=_labels(product, labels, score, warnings),
        preprocessing=_preprocessing(product, preprocessing),
        layers=_table(t, product.layers, tensors),
        framework=product.framework,
        framework_version=product.version,
        target_layer=layer or "",
        parity=product.parity,
        score_kind=score.activation or "logit",
    )
    model = t.model
    for stale in [key for key in model.metadata if key.startswith(PREFIX)]:
        del model.metadata[stale]
    model.metadata.update(carried.to_props())
    model.check()
    return Exported(
        model=model,
        target=target.name,
        shape=target.shape,
        layout=chosen.chosen.describe(),
        reason=chosen.reason,
        score=score.output.name,
        image=image.name,
        image_layout=letters(label_input(Builder(model), image) or ()),
        image_shape=image.shape,
        image_dtype=str(image.dtype),
        carried=carried,
        warnings=warnings,
    )


def _strip_weights_off_inputs(t: Builder) -> None:
    """Take weights off the list of inputs, where older exporters put them: a caller has nothing to override there."""
    for value in [i for i in t.graph.inputs if i.name in t.graph.initializers]:
        t.graph.inputs.remove(value)


def _refuse_folded(t: Builder, product: Product, layer: str | None) -> None:
    """Refuse a layer whose tensor an optimisation took away, rather than call it unknown."""
    entry = product.layers.get(layer or "")
    if entry is not None and t.find(entry.tensor) is None:
        raise TargetError(
            f"layer {layer!r} became part of another operator when the model was converted; choose the layer behind it"
        )


def _resolved(t: Builder, names: Mapping[str, str], alive: set[ir.Value]) -> dict[str, Value]:
    """The tensor on the path of each layer; layers that the score does not depend on are left out."""
    by_name = {str(o.name): o for node in t.nodes for o in node.outputs}
    by_name |= {str(i.name): i for i in t.graph.inputs}
    found = {name: by_name.get(tensor) for name, tensor in names.items()}
    traced = {name: on_path(t, t.wrap(value), alive) for name, value in found.items() if value is not None}
    return {name: value for name, value in traced.items() if value.core in alive}


def _name_after_layers(t: Builder, target: Value, layer: str | None, tensors: Mapping[str, Value]) -> None:
    """Give tensors the names of their layers, the target first; inputs and outputs keep theirs, and so do taken names.

    Of a tensor's several names (a module is what its last part is) the one asked for is taken, or the shortest.
    """
    names: dict[Value, list[str]] = {target: [layer] if layer else []}
    for name, value in tensors.items():
        names.setdefault(value, []).append(name)
    if not names[target] and target.name.isdecimal():
        # Numbers change with every export; nodes are named after modules.
        node = target.core.producer()
        names[target] = [] if node is None else [str(node.name)]
    taken = _tensor_names(t)
    for value, mine in names.items():
        wanted = layer if value is target and layer else min(mine, key=len, default="")
        if value.name in mine and wanted != layer:
            continue
        fixed = value.core.is_graph_input() or value.core.is_graph_output()
        if wanted and wanted.isprintable() and wanted not in taken and not fixed:
            t.rename(value, wanted)
            taken.add(wanted)


def _tensor_names(t: Builder) -> set[str]:
    """The names of all tensors, those in subgraphs too."""
    names = {str(v.name) for v in (*t.graph.inputs, *t.graph.initializers.values())}
    for node in ir.traversal.RecursiveGraphIterator(t.graph):
        names.update(str(value.name) for value in (*node.inputs, *node.outputs) if value is not None)
    return names


def _table(t: Builder, layers: Mapping[str, CarriedLayer], tensors: Mapping[str, Value]) -> dict[str, CarriedLayer]:
    layouts = follow(Builder(t.model))
    table = {}
    for name, value in tensors.items():
        layout = layouts.get(value.core)
        table[name] = replace(
            layers[name],
            tensor=value.name,
            shape=list(value.known_shape or ()),
            layout=layers[name].layout if layout is None else letters(layout),
        )
    return table


def _labels(product: Product, given: Sequence[str] | None, score: Score, warnings: list[str]) -> list[str] | None:
    """The class names: those given have to fit, the framework's are left out with a warning where they do not."""
    labels = product.labels if given is None else given
    if labels is None:
        return None
    if score.classes is not None and len(labels) != score.classes:
        why = f"there are {len(labels)} class names for {score.classes} classes"
        if given is not None:
            raise InputError(f"{why}: are they this model's?")
        warnings.append(f"{why}, so the names that came with the model are left out; give others with --labels")
        return None
    return list(labels)


def _preprocessing(product: Product, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    described = product.preprocessing if given is None else given
    if described is None:
        return None
    parse_preprocessing(described)
    return dict(described)
