"""Load a model: from a path, bytes or a proto to the normalised form that the rest of the package works on.

A file of its own: `decompose` and `inline` build on `Model`, which builds on `read`; in `read` it would close a circle.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from onnx_gradcam.errors import ModelError, reason
from onnx_gradcam.files import ModelSource

from .decompose import decompose
from .inline import inline_known_branches
from .model import Model
from .read import invalid_models_refused, normalise, opset_of, read_proto

__all__ = ["load"]


def load(source: ModelSource) -> Model:
    """Load and normalise a model; external weights stay unread.

    Example::

        load("models/shapes.onnx").shape("image")  # ("batch", 3, 96, 96)

    Raises:
        ModelError: the file is missing, damaged or unsafe, or cannot be raised to opset 18.
    """
    with invalid_models_refused(source):
        return _loaded(source)


def _loaded(source: ModelSource) -> Model:
    proto, folder = read_proto(source)
    before = opset_of(proto)
    small, weights = normalise(proto)
    try:
        model = ir.from_proto(small)
    except ir.serde.SerdeError as exc:
        cause = exc.__cause__ or exc
        raise ModelError(
            f"the model is not valid ONNX: {reason(cause)}; export it again with a current exporter"
        ) from exc
    graph = model.graph
    for value in [v for v in graph.inputs if v.name in weights]:
        graph.inputs.remove(value)
        tensor = ir.serde.deserialize_tensor(weights[str(value.name)], base_path=str(folder or ""))
        value.const_value = tensor
        value.shape = ir.Shape(tensor.shape.numpy())
        value.dtype = tensor.dtype
        graph.register_initializer(value)
    name = str(source) if isinstance(source, (str, Path)) else "the model"
    loaded = Model(model, folder, name)
    if before < loaded.opset:
        loaded.raised_from = before
    loaded.infer()
    inline_known_branches(loaded)
    decompose(loaded)
    return loaded
