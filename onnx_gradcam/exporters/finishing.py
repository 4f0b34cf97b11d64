"""The pass after every exporter: expose the layer to explain, name tensors after layers, write the metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import carries_gradient
from onnx_gradcam.editor.targets.axes import follow, label_input, letters
from onnx_gradcam.editor.targets.classes import check_labels
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
        shape: its shape.
        layout: its axes, e.g. `NCHW`.
        reason: why this layer was chosen, in words.
        score: name of the output that holds the scores.
        image: name of the image input.
        image_layout: its axes, e.g. `NCHW`; empty if unknown.
        image_shape: its shape.
        image_dtype: its NumPy dtype.
        framework_layout: the framework's axes of the image, if they differ; else empty.
        carried: what the model's metadata says.
        warnings: for the user.
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
    framework_layout: str
    carried: Carried
    warnings: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write the model atomically; an `InputError` says that the file cannot be written."""
        self.model.save(path)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values: layer, scores, layers, class names, preprocessing, parity and warnings."""
        carried = self.carried
        return {
            "framework": carried.framework,
            "framework_version": carried.framework_version,
            "input": self.image,
            "input_shape": list(self.image_shape),
            "input_layout": self.image_layout,
            "target": self.target,
            "shape": list(self.shape),
            "layout": self.layout,
            "reason": self.reason,
            "scores_output": self.score,
            "score_kind": carried.score_kind,
            "layers": {name: asdict(layer) for name, layer in carried.layers.items()},
            "labels": carried.labels,
            "preprocessing": carried.preprocessing,
            "parity": carried.parity,
            "warnings": self.warnings,
        }

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
    """Expose the target layer and write what the framework knows into the metadata; no value changes.

    The target is the tensor on the path to the score, not a copy of it. Tensors are named after their layers where
    these names are free. The model of `product` is changed in place. The other arguments are those of `export`: `layer`
    may also be a tensor or a node, and labels and preprocessing must fit the model.
    """
    t = Builder(product.model)
    warnings = list(product.warnings)
    # Older exporters list weights as inputs too: callers have nothing to override there.
    for value in [i for i in t.graph.inputs if i.name in t.graph.initializers]:
        t.graph.inputs.remove(value)
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
        framework_layout=product.image_layout,
        carried=carried,
        warnings=warnings,
    )


def _refuse_folded(t: Builder, product: Product, layer: str | None) -> None:
    """Refuse a layer whose tensor an optimization removed, rather than call it unknown."""
    entry = product.layers.get(layer or "")
    if entry is not None and t.find(entry.tensor) is None:
        raise TargetError(
            f"layer {layer!r} was merged into another operator when the model was converted; choose the next layer"
        )


def _resolved(t: Builder, names: Mapping[str, str], alive: set[ir.Value]) -> dict[str, Value]:
    """Each layer's tensor on the path to the score; layers that the score does not depend on are left out."""
    by_name = {str(o.name): o for node in t.nodes for o in node.outputs}
    by_name |= {str(i.name): i for i in t.graph.inputs}
    values = {name: by_name.get(tensor) for name, tensor in names.items()}
    traced = {name: on_path(t, t.wrap(value), alive) for name, value in values.items() if value is not None}
    return {name: value for name, value in traced.items() if value.core in alive}


def _name_after_layers(t: Builder, target: Value, layer: str | None, tensors: Mapping[str, Value]) -> None:
    """Name tensors after their layers, the target first; inputs and outputs keep their names.

    Of several layers with one tensor (a module and its last part) the requested one counts, else the shortest name.
    """
    names: dict[Value, list[str]] = {target: [layer] if layer else []}
    for name, value in tensors.items():
        names.setdefault(value, []).append(name)
    if not names[target] and target.name.isdecimal():
        # Numbers change with every export; nodes are named after modules.
        node = target.core.producer()
        names[target] = [] if node is None else [str(node.name)]
    taken = _tensor_names(t)
    for value, layers in names.items():
        name = layer if value is target and layer else min(layers, key=len, default="")
        if value.name in layers and name != layer:
            continue
        fixed = value.core.is_graph_input() or value.core.is_graph_output()
        if name and name.isprintable() and name not in taken and not fixed:
            t.rename(value, name)
            taken.add(name)


def _tensor_names(t: Builder) -> set[str]:
    """The names of all tensors, in subgraphs too."""
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


def _labels(product: Product, labels: Sequence[str] | None, score: Score, warnings: list[str]) -> list[str] | None:
    """The class names: the user's must fit; the framework's are dropped with a warning if they do not."""
    names = product.labels if labels is None else labels
    if names is None:
        return None
    try:
        check_labels(names, score.classes)
    except InputError as exc:
        if labels is not None:
            raise
        warnings.append(f"the class names that came with the model are dropped: {exc}")
        return None
    return list(names)


def _preprocessing(product: Product, preprocessing: Mapping[str, Any] | None) -> dict[str, Any] | None:
    described = product.preprocessing if preprocessing is None else preprocessing
    if described is None:
        return None
    parse_preprocessing(described)
    return dict(described)
