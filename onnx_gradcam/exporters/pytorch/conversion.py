"""Convert a captured network to an ONNX graph with either of PyTorch's own exporters."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
import torch

from onnx_gradcam.editor.targets.layer_names import DYNAMO_SCOPES
from onnx_gradcam.errors import ExplainError, ExportError, reason
from onnx_gradcam.exporters.writer import BATCH
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model

from .capture import Captured, named_outputs, silent

__all__ = ["INPUT", "ConversionError", "Exporter", "convert"]

Exporter = Literal["dynamo", "torchscript"]

INPUT = "input"
SIDES = ("height", "width")
_OPSET = 18
_HIDDEN = "onnx_gradcam.kept"


class ConversionError(ExportError):
    """One of PyTorch's exporters fails on a network; the other one may succeed."""


def convert(
    network: Captured | torch.jit.ScriptModule,
    x: Any,
    exporter: Exporter,
    free: Sequence[int],
    *,
    keep_normalization: bool,
) -> Model:
    """The graph of a network, its outputs named as by the capture; the axes `free` of the input may have any size.

    Unless `keep_normalization`, batch normalizations become part of the convolutions in front of them.
    """
    symbols = {axis: (BATCH, "", *SIDES)[axis] for axis in free}
    try:
        with silent(), torch.no_grad():
            names = [*named_outputs(network(x))] if isinstance(network, torch.jit.ScriptModule) else network.named(x)
            proto = _EXPORTERS[exporter](network, x, symbols, names, keep=keep_normalization)
    except ExplainError:
        raise
    except Exception as exc:
        raise ConversionError(
            f"PyTorch's {exporter} exporter cannot export the network: {reason(_innermost(exc))}; try the other one"
        ) from exc
    model = load(proto)
    model.name = "the exported network"
    _name_sizes(model, symbols)
    return model


def _by_dynamo(network: Any, x: Any, symbols: dict[int, str], names: list[str], *, keep: bool) -> onnx.ModelProto:
    free = {axis: torch.export.Dim.DYNAMIC if axis == 0 else torch.export.Dim.AUTO for axis in symbols}
    program = torch.export.export(network, (x,), dynamic_shapes=({**free},), strict=False)
    exported = torch.onnx.export(program, opset_version=_OPSET, dynamo=True, verbose=False, optimize=not keep)
    if exported is None:  # never with dynamo=True
        raise RuntimeError("it returned no graph")
    if keep:
        _optimize_around(exported, "BatchNormalization")
    (image,) = exported.model.graph.inputs
    image.name = INPUT
    for value, name in zip(exported.model.graph.outputs, names, strict=True):
        value.name = name
    for node in exported.model.graph:
        kept = node.metadata_props.get(DYNAMO_SCOPES)
        node.metadata_props.clear()  # stack traces contain local paths
        node.doc_string = None
        if kept:
            node.metadata_props[DYNAMO_SCOPES] = kept
    proto: onnx.ModelProto = ir.to_proto(exported.model)
    return proto


def _optimize_around(program: torch.onnx.ONNXProgram, operator: str) -> None:
    """The exporter's optimizations, which leave the nodes of one operator as they are.

    No pattern of the optimizer matches a node of another domain, and there is no option to leave one pattern out.
    """
    for node in program.model.graph:
        if node.op_type == operator:
            node.domain = _HIDDEN
    program.optimize()
    for node in program.model.graph:
        if node.domain == _HIDDEN:
            node.domain = ""


def _by_torchscript(network: Any, x: Any, symbols: dict[int, str], names: list[str], *, keep: bool) -> onnx.ModelProto:
    # The network is in evaluation mode; told so, the exporter merges, and told to preserve the mode, it does not.
    mode = torch.onnx.TrainingMode.PRESERVE if keep else torch.onnx.TrainingMode.EVAL
    with tempfile.TemporaryDirectory(prefix="onnx-gradcam-") as folder:
        # Weights above 2 GB are written beside this file.
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            network, (x,), path, dynamo=False, opset_version=_OPSET, input_names=[INPUT], output_names=names,
            training=mode,
            dynamic_axes={INPUT: symbols, **{name: {0: BATCH} for name in names if 0 in symbols}},
        )  # fmt: skip
        return onnx.load(path)


_EXPORTERS = {"dynamo": _by_dynamo, "torchscript": _by_torchscript}


def _name_sizes(model: Model, symbols: dict[int, str]) -> None:
    """Name the free axes of the input throughout the graph, and drop all other symbols."""
    image = model.core.graph.inputs[0]
    old = {str(image.shape[axis]): name for axis, name in symbols.items()} if image.shape is not None else {}
    graph = model.core.graph
    for value in {*graph.inputs, *graph.outputs, *(o for node in graph for o in node.outputs)}:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else old.get(str(d)) for d in value.shape])
    model.infer()


def _innermost(exc: BaseException) -> BaseException:
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return exc
