"""Run a framework in a separate process to export TFLite models, and Keras models with code of their own.

Such a process may use another environment and needs settings of its own: Keras chooses its backend when it is
imported, and tf2onnx takes several times the memory with protobuf's fast implementation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_gradcam.errors import ExportError, InputError
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.read import read_proto
from onnx_gradcam.metadata import CarriedLayer

from .parity import compare, run
from .writer import BATCH, Product

__all__ = ["Converted", "Route", "convert_elsewhere", "read_keras_with", "read_tflite"]

Array = npt.NDArray[Any]

_START = Path(__file__).parent / "workers" / "start.py"

_SETTINGS = {
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True, eq=False)
class Converted:
    """A worker's result."""

    model: Model
    answer: dict[str, Any]  # the worker's own entries
    reference: dict[int, dict[str, Array]]  # the framework's tensors, by batch size and name; the image's is empty


def convert_elsewhere(
    worker: str, request: Mapping[str, Any], *, packages: str, python: str | Path | None = None, **settings: str
) -> Converted:
    """Have the script `worker` in `workers` convert the model `request["path"]`, in the interpreter `python`.

    `packages` are those that it needs, as arguments of `pip install`; `settings` are environment variables.
    """
    executable = str(python or sys.executable)
    source = request["path"]
    with tempfile.TemporaryDirectory(prefix="onnx-gradcam-") as scratch:
        folder = Path(scratch)
        (folder / "request.json").write_text(json.dumps(request), "utf-8")
        try:
            done = subprocess.run(  # noqa: S603 - the user's own interpreter, a script of this package
                [executable, str(_START), worker, scratch],
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, **_SETTINGS, **settings},
            )
        except OSError as exc:
            raise InputError(
                f"the Python {executable!r} cannot be started ({exc.strerror}); give another one with --python"
            ) from exc
        if done.returncode:
            raise ExportError(f"{source}: cannot be converted: {_failure(done)}")
        answer = json.loads((folder / "answer.json").read_text("utf-8"))
        if "refused" in answer:
            raise ExportError(f"{source}: {answer['refused']}")
        if "missing" in answer:
            raise ExportError(
                f"{source}: the Python module {answer['missing']!r} is missing for {executable}; "
                f"run `{executable} -m pip install {packages}`, or give a Python that has it with --python"
            )
        proto, _ = read_proto(folder / "model.onnx")
        _name_batch(proto)
        model = load(proto)
        reference = _reference(folder / "reference.npz")
    model.name = str(source)
    return Converted(model, answer, reference)


def _reference(path: Path) -> dict[int, dict[str, Array]]:
    tensors: dict[int, dict[str, Array]] = {}
    if path.exists():
        with np.load(path) as archive:
            for key in archive.files:
                batch, _, name = key.partition(" ")
                tensors.setdefault(int(batch), {})[name] = archive[key]
    return tensors


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a traceback, or the signal that ended the process."""
    if done.returncode < 0:
        return f"the converter was stopped by signal {-done.returncode}; is there enough memory?"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    # The exception's message may span several lines.
    starts = [i for i, line in enumerate(lines) if line.split(":")[0].endswith(("Error", "Exception"))]
    start = starts[-1] if starts else -1
    return " ".join(lines[start:])[:400] if lines else "the converter failed without a message"


def _name_batch(proto: onnx.ModelProto) -> None:
    """Give the free first dimension, which converters number, its usual name."""
    del proto.graph.value_info[:]
    for info in (*proto.graph.input, *proto.graph.output):
        dims = info.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_param = BATCH


_IDENTIFIER = b"TFL3"
_ENDINGS = re.compile(r"(_prequant|_dequant|_quantize|__\d+|:\d+)+$")
_BEHIND = {"Transpose", "DequantizeLinear"}


def read_tflite(path: str | Path, *, python: str | Path | None = None) -> Product:
    """Read a TFLite model; its layers are those of the original Keras model, as far as its tensors tell.

    `python` is the interpreter that has TensorFlow and tf2onnx; by default the current one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror}); give the path of a .tflite file") from exc
    if head[4:] != _IDENTIFIER:
        raise ExportError(
            f"{path}: not a TFLite model (the identifier {_IDENTIFIER.decode()} is missing); is it the right file?"
        )
    converted = convert_elsewhere(
        "from_tflite", {"path": str(path.resolve())}, packages="tensorflow tf2onnx", python=python
    )
    return Product(model=converted.model, framework="tflite", version="", layers=_layers(converted.model))


def _layers(model: Model) -> dict[str, CarriedLayer]:
    """The layers that tensors are named after.

    TFLite names the result of fused operators by all of their names, the last one first:
    `net/relu_1/Relu;net/bn_1/FusedBatchNormV3;net/conv_1/Conv2D`.
    """
    layers = {}
    for node in model.core.graph:
        first, *_ = _ENDINGS.sub("", str(node.outputs[0].name)).split(";")
        parts = first.split("/")
        if len(parts) > 1 and node.op_type not in _BEHIND:
            layers[parts[-2]] = CarriedLayer(tensor=str(_unquantised(node).name), kind=parts[-1])
    return layers


def _unquantised(node: ir.Node) -> ir.Value:
    """A node's output as real numbers: dequantised if that happens once, else before the rounding."""
    output = node.outputs[0]
    if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
        return output
    value = output
    while len(readers := [use.node for use in value.uses()]) == 1 and readers[0].op_type in _BEHIND:
        value = readers[0].outputs[0]
        if readers[0].op_type == "DequantizeLinear":
            return value
    return node.inputs[0]


Route = Literal["tf", "torch"]

_PACKAGES = {"tf": "tensorflow tf2onnx tf-keras", "torch": "keras torch onnxscript"}
_BACKENDS = {"tf": "tensorflow", "torch": "torch"}


def read_keras_with(
    route: Route,
    path: str | Path,
    *,
    layer: str | None = None,
    custom: str | None = None,
    trust: bool = False,
    python: str | Path | None = None,
) -> Product:
    """Have Keras load and convert a model, with each layer that outputs maps under its name.

    A layer inside another one is named `outer/inner`. If the image size is fixed, the outputs and one layer (`layer`,
    else the last) are compared with Keras's at batch 1 and 3.

    Args:
        route: `tf` or `torch`.
        path: a .keras, .h5 or .hdf5 file; with `tf` also the folder of a SavedModel.
        layer: the layer to compare.
        custom: the module that defines the model's own classes; needs `trust`.
        trust: run code that comes with the model: Lambda layers, classes of `custom`, a SavedModel's graph.
        python: the interpreter that has the framework; by default the current one.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a .keras or .h5 file, or a SavedModel")
    if custom is not None and not trust:
        raise InputError(f"{path}: the classes of {custom!r} are code, which runs with --trust only")
    if path.is_dir() and route == "torch":
        raise InputError(f"{path}: a SavedModel is TensorFlow's own format; use --via tf")
    if path.is_dir() and not trust:
        raise ExportError(
            f"{path}: a SavedModel is a program, which may write files when it is loaded; pass --trust to run it"
        )
    request = {"path": str(path.resolve()), "layer": layer, "custom": custom, "trust": trust}
    converted = convert_elsewhere(
        f"keras_on_{route}", request, packages=_PACKAGES[route], python=python, KERAS_BACKEND=_BACKENDS[route]
    )
    parity = _compared(converted)
    graph, answer = converted.model.core.graph, converted.answer
    for value in [o for o in graph.outputs if o.name not in answer["outputs"]]:
        graph.outputs.remove(value)
    tensors = {str(o.name): o for node in graph for o in node.outputs}
    layers = {
        name: CarriedLayer(tensor=_untransposed(tensors, tensor) if kind != "Permute" else tensor, kind=kind)
        for name, kind, tensor in answer["layers"]
        if tensor in tensors
    }
    return Product(model=converted.model, framework="keras", version=answer["version"], layers=layers, parity=parity)


def _compared(converted: Converted) -> str:
    """The difference from Keras's values, in words; empty if Keras computed none, an error if too large."""
    gaps = []
    for batch, reference in converted.reference.items():
        image = reference.pop("")
        values = run(converted.model, image, reference)
        gaps.append(compare(values, reference, f"batch {batch}", "Keras"))
    batches = " and ".join(map(str, converted.reference))
    return f"within {max(gaps):.0e} of Keras's values, relative, at batch {batches}" if gaps else ""


def _untransposed(tensors: Mapping[str, ir.Value], tensor: str) -> str:
    """The tensor behind the Transposes that a converter adds because Keras computes channels last."""
    node = tensors[tensor].producer()
    while node is not None and node.op_type in {"Transpose", "Identity"} and node.inputs[0] is not None:
        source = str(node.inputs[0].name)
        if source not in tensors:
            break
        tensor, node = source, tensors[source].producer()
    return tensor
