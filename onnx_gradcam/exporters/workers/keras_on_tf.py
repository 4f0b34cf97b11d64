"""Convert Keras models and SavedModels to ONNX with TensorFlow and tf2onnx; run by `exporters.elsewhere`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .conversation import RefusedError, checked_tensor, record
from .keras_files import Caught, image_shape, keras_version, load_model, output_names

__all__ = ["work"]

_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Traced:
    """A frozen TensorFlow graph and its tensors."""

    graph: Any  # a GraphDef without variables
    image: str  # the input
    outputs: dict[str, str]  # the model's outputs, tensor by name
    layers: list[tuple[str, str, str]]  # name, class and tensor of each layer, in execution order
    version: str  # of Keras, if known
    run: Callable[[Any], list[Any]]  # returns Keras's values of the outputs, then of the layers, for an image
    shape: list[int | None]  # of the image


def work(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Convert `request["path"]`."""
    import tensorflow as tf  # noqa: PLC0415 - its absence is an answer
    import tf2onnx  # noqa: PLC0415

    path = request["path"]
    traced = _saved_model(tf, path) if Path(path).is_dir() else _keras(tf, request)
    names = dict.fromkeys([*traced.outputs.values(), *(tensor for _, _, tensor in traced.layers)])
    renamed = {tensor: name for name, tensor in traced.outputs.items()}
    tf2onnx.convert.from_graph_def(
        traced.graph, input_names=[traced.image], output_names=list(names), opset=18,
        tensors_to_rename={traced.image: "input"} | renamed, output_path=str(folder / "model.onnx"),
    )  # fmt: skip
    layers = [[name, kind, renamed.get(tensor, tensor)] for name, kind, tensor in traced.layers]
    tensors = [*traced.outputs, *(tensor for _, _, tensor in layers)]
    checked = {*traced.outputs, checked_tensor(layers, request["layer"])}
    record(folder, traced.shape, lambda image: dict(zip(tensors, traced.run(image), strict=True)), checked)
    return {"version": traced.version, "outputs": list(traced.outputs), "layers": layers}


def _keras(tf: Any, request: dict[str, Any]) -> Traced:
    """A model that Keras loads, traced with the outputs of all layers."""
    version = keras_version(request["path"])
    if version.startswith("2."):
        import tf_keras as keras  # noqa: PLC0415 - reads files that Keras 3 cannot
    else:
        import keras  # noqa: PLC0415
    model = load_model(request, keras)
    caught = Caught(model)

    def run(batch: Any) -> list[Any]:
        caught.outputs.clear()
        result = model(batch, training=False)
        return [result, list(caught.maps().values())]

    shape = image_shape(model)
    spec = tf.TensorSpec(shape, tf.float32, name="input")
    function = tf.function(run, autograph=False).get_concrete_function(spec)
    graph, tensors = _frozen(tf, function)
    maps = caught.maps()
    own = [t.name for t in tensors[: len(tensors) - len(maps)]]
    pairs = zip(maps, tensors[len(own) :], strict=True)
    layers = [(name, caught.kinds[name], tensor.name) for name, tensor in pairs]
    outputs = dict(zip(output_names(model, len(own)), own, strict=True))
    return Traced(
        graph, "input:0", outputs, layers, version, lambda x: tf.nest.flatten(function(tf.constant(x))), shape
    )


def _saved_model(tf: Any, path: str) -> Traced:
    """The serving signature of a SavedModel; its layers are the scopes of its nodes."""
    try:
        loaded = tf.saved_model.load(path)
    except OSError as exc:
        raise RefusedError("the folder contains no SavedModel; is it the right one?") from exc
    if _SIGNATURE not in loaded.signatures:
        raise RefusedError(f"has no signature {_SIGNATURE!r}; save it with one")
    function = loaded.signatures[_SIGNATURE]
    images = function.structured_input_signature[1]
    if len(images) != 1:
        raise RefusedError(f"its signature has {len(images)} inputs; save one with a single input, the image")
    graph, tensors = _frozen(tf, function)
    image = next(i for i in function.inputs if i.dtype != tf.resource)
    # Both are sorted by key.
    outputs = dict(zip(sorted(function.structured_outputs), (t.name for t in tensors), strict=True))
    layers = _scopes(tf, graph)

    def run(batch: Any) -> list[Any]:
        own = function(**{next(iter(images)): tf.constant(batch)})
        targets = [tensor for _, _, tensor in layers]
        maps = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
        inside = maps.prune(maps.graph.get_tensor_by_name(image.name), targets)
        return [*(own[key] for key in sorted(own)), *inside(tf.constant(batch))]

    return Traced(graph, image.name, outputs, layers, "", run, list(image.shape))


def _scopes(tf: Any, graph: Any) -> list[tuple[str, str, str]]:
    """The last maps under each scope `call/model/layer/...`, to which Keras 3 appends the number of the call."""
    with tf.Graph().as_default() as scratch:
        tf.import_graph_def(graph, name="")
    last: dict[str, tuple[str, str]] = {}
    for operation in scratch.get_operations():
        scopes = str(operation.name).split("/")[:-1]
        kind = str(operation.type)
        if kind in {"Const", "Identity", "Placeholder"} or len(scopes) < 3 or not operation.outputs:
            continue
        tensor = operation.outputs[0]
        if tensor.shape.rank is None or tensor.shape.rank < 3 or not tensor.dtype.is_floating:
            continue
        _, model, *parts = scopes
        numbered = model.endswith("_1")
        for depth in range(1, len(parts) + 1):
            if numbered and not parts[depth - 1].endswith("_1"):
                break
            name = "/".join(part.removesuffix("_1") if numbered else part for part in parts[:depth])
            last.pop(name, None)
            last[name] = (kind, tensor.name)
    return [(name, kind, tensor) for name, (kind, tensor) in last.items()]


def _frozen(tf: Any, function: Any) -> tuple[Any, list[Any]]:
    """The graph of a function, with variables and captured tensors as constants, and its outputs."""
    from tensorflow.python.framework import convert_to_constants  # noqa: PLC0415 - there is no public way

    frozen = convert_to_constants.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    graph = frozen.graph.as_graph_def(add_shapes=True)
    captured = {inside.op.name: outside for outside, inside in function.graph.captures if outside.dtype != tf.resource}
    for node in graph.node:
        if node.op == "Placeholder" and node.name in captured:
            value = tf.make_tensor_proto(captured[node.name].numpy())
            shape = node.attr["_output_shapes"]
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
            node.attr["_output_shapes"].CopyFrom(shape)
    return graph, list(frozen.outputs)
