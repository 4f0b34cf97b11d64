"""Keras models that only Keras itself can run: custom and subclassed ones, and SavedModels.

Two routes: TensorFlow and tf2onnx, or Keras on PyTorch and PyTorch's exporter. Each runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from onnx_gradcam.errors import ExportError
from onnx_gradcam.metadata import CarriedLayer

from .elsewhere import Converted, convert_elsewhere
from .parity import compare, run
from .product import Product

__all__ = ["Route", "read_keras_with"]

Route = Literal["tf", "torch"]

_PACKAGES = {"tf": "tensorflow tf2onnx tf-keras", "torch": "keras torch onnxscript"}
_SETTINGS = {"tf": {"KERAS_BACKEND": "tensorflow"}, "torch": {"KERAS_BACKEND": "torch"}}


def read_keras_with(
    route: Route,
    path: str | Path,
    *,
    layer: str | None = None,
    custom: str | None = None,
    trust: bool = False,
    python: Path | None = None,
) -> Product:
    """Let Keras load a model and convert it, every layer that gives maps under its name.

    A layer inside another one is called `outer/inner`. What the graph computes is compared with Keras at batch 1 and 3,
    where the model says how large its picture is: the outputs and one layer.

    Args:
        route: `tf` or `torch`.
        path: a .keras, .h5 or .hdf5 file; with `tf` also the folder of a SavedModel.
        layer: the layer to compare; by default the last one.
        custom: the module that defines the model's own classes; takes `trust`.
        trust: let code that comes with the model run: Lambda layers, classes of `custom`, a SavedModel's graph.
        python: the interpreter that has the framework; by default the one that runs this.

    Raises:
        ExportError: no such file, it takes `trust`, what converting it takes is missing, or it cannot be converted.
        UnsupportedError: the graph computes something else than Keras.
    """
    path = Path(path)
    if not path.exists():
        raise ExportError(f"{path}: no such file or folder; give a .keras or .h5 file, or a SavedModel")
    if custom is not None and not trust:
        raise ExportError(f"{path}: the classes of {custom!r} are code, and code runs with --trust alone")
    if path.is_dir() and route == "torch":
        raise ExportError(f"{path}: a SavedModel is TensorFlow's own format; use --via tf")
    if path.is_dir() and not trust:
        raise ExportError(
            f"{path}: a SavedModel is a program, which may write files when it is loaded; it takes --trust"
        )
    request = {"path": str(path.resolve()), "layer": layer, "custom": custom, "trust": trust}
    converted = convert_elsewhere(
        f"keras_on_{route}", request, packages=_PACKAGES[route], python=python, **_SETTINGS[route]
    )
    parity = _compared(converted)
    graph, answer = converted.model.core.graph, converted.answer
    for value in [o for o in graph.outputs if o.name not in answer["outputs"]]:
        graph.outputs.remove(value)
    made = {str(o.name): o for node in graph for o in node.outputs}
    layers = {
        name: CarriedLayer(tensor=_unmoved(made, tensor) if kind != "Permute" else tensor, kind=kind)
        for name, kind, tensor in answer["layers"]
        if tensor in made
    }
    return Product(model=converted.model, framework="keras", version=answer["version"], layers=layers, parity=parity)


def _compared(converted: Converted) -> str:
    """How far the graph is from what Keras computed; empty where Keras could compute nothing.

    Raises:
        UnsupportedError: too far.
    """
    gaps = []
    for batch, reference in converted.reference.items():
        picture = reference.pop("")
        found = run(converted.model, picture, reference)
        gaps.append(compare(found, reference, f"batch {batch}", "Keras"))
    batches = " and ".join(map(str, converted.reference))
    return f"within {max(gaps):.0e} of Keras's values, relative, at batch {batches}" if gaps else ""


def _unmoved(made: Mapping[str, ir.Value], tensor: str) -> str:
    """What the converter's own Transposes, Keras computing channels last, made a layer's tensor of."""
    node = made[tensor].producer()
    while node is not None and node.op_type in {"Transpose", "Identity"} and node.inputs[0] is not None:
        source = str(node.inputs[0].name)
        if source not in made:
            break
        tensor, node = source, made[source].producer()
    return tensor
