"""ONNX's own reference evaluator, with the operators it gets wrong put right."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["as_double", "evaluator"]

_FLOAT, _DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


class ConvTranspose(OpRun):
    """Transposed convolution; the evaluator's own slices grouped weights along the wrong axis."""

    op_domain = ""

    def _run(
        self,
        X: npt.NDArray[Any],
        W: npt.NDArray[Any],
        B: npt.NDArray[Any] | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,  # noqa: ARG002
        output_padding: list[int] | None = None,
        output_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[npt.NDArray[Any]]:
        n, kernel = X.ndim - 2, W.shape[2:]
        group, strides, dilations = group or 1, strides or [1] * n, dilations or [1] * n
        extra, pads = output_padding or [0] * n, pads or [0] * (2 * n)
        if (auto_pad or "NOTSET") != "NOTSET" or output_shape:
            raise NotImplementedError("ConvTranspose with auto_pad or output_shape")
        full = [
            s * (x - 1) + d * (k - 1) + 1 + e
            for s, x, d, k, e in zip(strides, X.shape[2:], dilations, kernel, extra, strict=True)
        ]
        out = np.zeros((X.shape[0], group, W.shape[1], *full), X.dtype)
        x = X.reshape(X.shape[0], group, X.shape[1] // group, *X.shape[2:])
        w = W.reshape(group, W.shape[0] // group, *W.shape[1:])
        for offset in np.ndindex(*kernel):
            steps = zip(dilations, offset, strides, X.shape[2:], strict=True)
            where = tuple(slice(d * o, d * o + s * (size - 1) + 1, s) for d, o, s, size in steps)
            if x.size:
                tap = w[(slice(None),) * 3 + offset]
                out[(slice(None),) * 3 + where] += np.einsum("ngi...,gio->ngo...", x, tap)
        inside = tuple(slice(p, f - q) for p, f, q in zip(pads[:n], full, pads[n:], strict=True))
        y = out.reshape(X.shape[0], group * W.shape[1], *full)[(slice(None),) * 2 + inside]
        if B is not None:
            y = y + B.reshape(1, -1, *[1] * n)
        return (np.ascontiguousarray(y),)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """The reference evaluator for `model`."""
    return ReferenceEvaluator(model, new_ops=[ConvTranspose])


def as_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model computing in float64, so that differences of its outputs mean something."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    _retype_graph(double.graph)
    for function in double.functions:
        for node in function.node:
            _retype_node(node)
    return double


def _retype_graph(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type == _FLOAT:
            info.type.tensor_type.elem_type = _DOUBLE
    for tensor in graph.initializer:
        _retype_tensor(tensor)
    for node in graph.node:
        _retype_node(node)


def _retype_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in {"to", "dtype"} and attribute.i == _FLOAT:
            attribute.i = _DOUBLE
        elif attribute.type == onnx.AttributeProto.TENSOR:
            _retype_tensor(attribute.t)
        elif attribute.type == onnx.AttributeProto.GRAPH:
            _retype_graph(attribute.g)
        elif node.op_type == "Constant" and attribute.name in {"value_float", "value_floats"}:
            array = np.asarray(onnx.helper.get_attribute_value(attribute), np.float64)
            attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(array)))


def _retype_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _FLOAT:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
