"""The pass after every exporter: expose the layer to explain, name tensors after layers, write the metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import carries_gradient
from onnx_gradcam.editor.origins import read_statements
from onnx_gradcam.editor.planning import as_exported, with_class_scores
from onnx_gradcam.editor.targets.axes import follow, label_input, letters
from onnx_gradcam.editor.targets.classes import check_labels
from onnx_gradcam.editor.targets.layer import follow_paths, on_path
from onnx_gradcam.editor.targets.levels import find_layers
from onnx_gradcam.editor.targets.score import find_image, find_score, input_name, with_batch_axis
from onnx_gradcam.editor.targets.task import USUAL_TASK, Task, find_task, outputs_for
from onnx_gradcam.errors import InputError, TargetError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.hazards import guard_padded_pools
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import between
from onnx_gradcam.graph.shapes import Shape, named
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import PREFIX, Carried, CarriedLayer
from onnx_gradcam.options import Options

from .writer import Product

__all__ = ["Exported", "finish_export"]


@dataclass(eq=False, kw_only=True)
class Exported:
    """An exported model.

    Attributes:
        model: the graph, its target layer among the outputs.
        target: name of that output; of a model with several branches, that of the last one.
        shape: its shape.
        layout: its axes, e.g. `NCHW`.
        reason: why this layer was chosen, in words.
        task: what the model does.
        outputs: names of the outputs that are explained: that with the scores, or all with the scores of a detector.
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
    task: str
    outputs: list[str]
    image: str
    image_layout: str
    image_shape: Shape
    image_dtype: str
    framework_layout: str
    carried: Carried
    warnings: list[str] = field(default_factory=list)

    @property
    def score(self) -> str:
        """Name of the (first) output that is explained."""
        return self.outputs[0]

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
            "task": self.task,
            "scores_output": self.score,
            "outputs": self.outputs,
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


@dataclass(frozen=True, eq=False)
class _Aim:
    """What a layer is chosen for.

    Attributes:
        t: the builder over the graph in which `tensor` is.
        tensor: what is differentiated.
        end: the tensor whose layers are listed.
        outputs: the model's outputs that are explained.
        classes: the number of classes; `None` if unknown.
        activation: the last activation before the scores of classes; empty for none.
    """

    t: Builder
    tensor: Value
    end: Value
    outputs: list[str]
    classes: int | None = None
    activation: str = ""


def _aim(model: Model, options: Options, task: Task) -> _Aim:
    """Append, for a task that needs it, one score per class; `_without` removes it."""
    if task.needs_reference:
        # The reference is given when the model is explained; until then the embedding itself has to do.
        t = Builder(model)
        outputs = outputs_for(t, task, options.output)
        embedding = t.wrap(next(o for o in t.graph.outputs if o.name == outputs[0]))
        return _Aim(t, embedding, embedding, outputs)
    if task.boxes and options.labels is None and options.background is None:
        # Which of the logits is the background matters to whoever reads them, not to the layer or the output.
        options = options.replaced({"background": "none"})
    own, nodes = list(model.core.graph.outputs), set(model.core.graph)
    scored, _ = with_class_scores(model, options, task)
    read = [str(o.name) for o in own if any(use.node not in nodes for use in o.uses())]
    t = Builder(model)
    outputs = read if read and options.output is None else outputs_for(t, task, options.output)
    score = find_score(t, scored.output if isinstance(scored.output, str) else None)
    # Scores behind a ranking are a tensor inside the model: all its outputs tell of them.
    shown = [score.output.name] if score.output.core in own else [str(o.name) for o in own]
    return _Aim(t, score.tensor, score.output, outputs or shown, score.classes, score.activation)


def _without(model: Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Builder:
    """A builder over the model with these inputs and outputs only, without nodes that merely served to find tensors."""
    graph = model.core.graph
    for value in [o for o in graph.outputs if o not in outputs]:
        graph.outputs.remove(value)
    # Such as the box to explain, which the score reads.
    for value in [i for i in graph.inputs if i not in inputs]:
        graph.inputs.remove(value)
    model.remove_unread(list(graph), list(graph.initializers.values()))
    return Builder(model)


def finish_export(
    product: Product,
    layer: str | None = None,
    options: Options | None = None,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Exported:
    """Expose the target layer and write what the framework knows into the metadata; no value changes.

    The target is the tensor on the path to the score, not a copy of it. Tensors are named after their layers where
    these names are free. The model of `product` is changed in place. The other arguments are those of `export`: `layer`
    may also be a tensor or a node, `options` say what the model does (task, outputs, image, format of boxes), and
    labels and preprocessing must fit the model.
    """
    model, warnings = product.model, list(product.warnings)
    options = options or Options()
    with_batch_axis(model, options.image)
    options = as_exported(model, options, read_statements(model.metadata, model.folder))
    task, graph = find_task(options.task or USUAL_TASK), model.core.graph
    # Older exporters list weights as inputs too: callers have nothing to override there.
    for value in [i for i in graph.inputs if i.name in graph.initializers]:
        graph.inputs.remove(value)
    guard_padded_pools(Builder(model))
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    aim = _aim(model, options.replaced({"labels": list(labels)}) if labels else options, task)
    image, carries = find_image(aim.t, options.image), carries_gradient(aim.t)
    _refuse_folded(aim.t, product, layer)
    names = {name: entry.tensor for name, entry in product.layers.items()}
    answers = aim.classes if task.maps_are_scores else None
    paths = follow_paths(aim.t, image, aim.tensor, carries)
    # The levels of a detector are exposed when it is explained: which ones depends on its boxes.
    *branches, chosen = find_layers(paths, layer or "auto", names, answers, boxes=task.boxes, several=not task.boxes)
    _, alive = between(aim.t.nodes, [image.core], [aim.end.core], carries)
    tensors = _resolved(aim.t, names, alive)
    t = _without(model, inputs, outputs)
    target = t.wrap(chosen.chosen.tensor.core)
    _name_after_layers(t, target.core, layer, tensors)
    for tensor in (*(branch.chosen.tensor.core for branch in branches), target.core):
        t.expose(t.wrap(tensor))
    t.finish()
    carried = Carried(
        labels=_labels(product, labels, aim.classes, task, warnings),
        preprocessing=_preprocessing(product, preprocessing),
        layers=_table(t, product.layers, tensors),
        framework=product.framework,
        framework_version=product.version,
        target_layer=layer or "",
        task="" if task.name == USUAL_TASK else task.name,
        outputs=aim.outputs if options.output or task.answers is not None else [],
        image_input=options.image or "",
        parity=product.parity,
        score_kind=(aim.activation or "logit") if task.classes_compete and task.scores is None else "",
        biases=product.biases,
    )
    for stale in [key for key in model.metadata if key.startswith(PREFIX)]:
        del model.metadata[stale]
    model.metadata.update(carried.to_props())
    model.check()
    finished = Builder(model)
    source = next(v for v in map(finished.wrap, inputs) if v.name == input_name(image))
    return Exported(
        model=model,
        target=target.name,
        shape=named(target.shape),
        layout=chosen.chosen.describe(),
        reason=chosen.reason,
        task=task.name,
        outputs=aim.outputs,
        image=source.name,
        image_layout=letters(label_input(finished, source) or ()),
        image_shape=named(source.shape),
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


def _resolved(t: Builder, names: Mapping[str, str], alive: set[ir.Value]) -> dict[str, ir.Value]:
    """Each layer's tensor on the path to the score; layers that the score does not depend on are left out."""
    by_name = {str(o.name): o for node in t.nodes for o in node.outputs}
    by_name |= {str(i.name): i for i in t.graph.inputs}
    values = {name: by_name.get(tensor) for name, tensor in names.items()}
    traced = {name: on_path(t, t.wrap(value), alive).core for name, value in values.items() if value is not None}
    return {name: value for name, value in traced.items() if value in alive}


def _name_after_layers(t: Builder, target: ir.Value, layer: str | None, tensors: Mapping[str, ir.Value]) -> None:
    """Name tensors after their layers, the target first; inputs and outputs keep their names.

    Of several layers with one tensor (a module and its last part) the requested one counts, else the shortest name.
    """
    names: dict[ir.Value, list[str]] = {target: [layer] if layer else []}
    for name, value in tensors.items():
        names.setdefault(value, []).append(name)
    if not names[target] and str(target.name).isdecimal():
        # Numbers change with every export; nodes are named after modules.
        node = target.producer()
        names[target] = [] if node is None else [str(node.name)]
    taken = _tensor_names(t)
    for value, layers in names.items():
        name = layer if value is target and layer else min(layers, key=len, default="")
        if value.name in layers and name != layer:
            continue
        fixed = value.is_graph_input() or value.is_graph_output()
        if name and name.isprintable() and name not in taken and not fixed:
            t.rename(t.wrap(value), name)
            taken.add(name)


def _tensor_names(t: Builder) -> set[str]:
    """The names of all tensors, in subgraphs too."""
    names = {str(v.name) for v in (*t.graph.inputs, *t.graph.initializers.values())}
    for node in ir.traversal.RecursiveGraphIterator(t.graph):
        names.update(str(value.name) for value in (*node.inputs, *node.outputs) if value is not None)
    return names


def _table(t: Builder, layers: Mapping[str, CarriedLayer], tensors: Mapping[str, ir.Value]) -> dict[str, CarriedLayer]:
    layouts = follow(Builder(t.model))
    table = {}
    for name, value in tensors.items():
        layout = layouts.get(value)
        table[name] = replace(
            layers[name],
            tensor=str(value.name),
            shape=list(named(t.wrap(value).known_shape or ())),
            layout=layers[name].layout if layout is None else letters(layout),
        )
    return table


def _labels(
    product: Product, labels: Sequence[str] | None, classes: int | None, task: Task, warnings: list[str]
) -> list[str] | None:
    """The class names: the user's must fit; the framework's are dropped with a warning if they do not."""
    if labels is not None and not task.names_apply:
        raise InputError(f"class names do not apply to the task {task.name}; leave out the labels")
    names = product.labels if labels is None else labels
    if names is None or not task.names_apply:
        return None
    try:
        check_labels(names, classes)
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
