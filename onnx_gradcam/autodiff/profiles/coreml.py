"""ONNX Runtime's CoreML provider, which writes ML programs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder

from .limits import absent, all_of, constant, listed, rank, single_output
from .lowerings import ARITHMETIC, MASKS
from .planes import PLANES
from .provider import Provider

__all__ = ["COREML"]


def _pow(t: Builder, node: ir.Node) -> str | None:
    wrong = [v for v in node.inputs if v is not None and t.wrap(v).dtype != np.float32]
    return "of other types than float32 is beyond what it documents" if wrong else None


def _undescribed(t: Builder, node: ir.Node) -> str | None:
    return "has limits there that its document does not describe"


def _reciprocal(t: Builder, node: ir.Node) -> str | None:
    return "adds 1e-4 to its input there"


def _transposed(t: Builder, node: ir.Node) -> str | None:
    if node.attributes.get_string("auto_pad", "NOTSET") in {"SAME_UPPER", "SAME_LOWER"}:
        return "with auto_pad is beyond what it documents"
    return None


def _depth_to_space(t: Builder, node: ir.Node) -> str | None:
    shape = None if node.inputs[0] is None else t.wrap(node.inputs[0]).known_shape
    free = shape is None or not all(isinstance(d, int) for d in shape)
    crd = node.attributes.get_string("mode", "DCR") == "CRD"
    return "of mode CRD without a fixed shape is beyond what it documents" if free and crd else None


COREML = Provider(
    name="coreml",
    source="microsoft/onnxruntime, tools/ci_build/github/apple/coreml_supported_mlprogram_ops.md at 04f568d",
    operators=listed(
        """
        Add ArgMax AveragePool Cast Clip Concat Conv ConvTranspose Cos DepthToSpace Ceil Div Elu Erf Exp GatherND Gemm
        Gelu GlobalAveragePool GlobalMaxPool GridSample GroupNormalization HardSigmoid Identity InstanceNormalization
        LayerNormalization LeakyRelu MatMul MaxPool Max Mul Pow PRelu Range Reciprocal ReduceSum ReduceMean ReduceMax
        Relu Reshape Resize Round Shape Sin Slice Softplus Split Sub Sigmoid Softmax Sqrt Squeeze Tanh Tile Transpose
        Unsqueeze
        """
    ),
    limits={
        "AveragePool": rank(4),
        "MaxPool": all_of(rank(4), single_output),
        "GlobalAveragePool": rank(4),
        "GlobalMaxPool": rank(4),
        "Conv": all_of(rank(3, 4), constant(2)),
        "ConvTranspose": all_of(
            rank(3, 4), constant(1, 2), absent("output_padding", "output_shape", "kernel_shape"), _transposed
        ),
        "DepthToSpace": _depth_to_space,
        "Gemm": constant(1),
        "GridSample": _undescribed,
        "Pow": _pow,
        "Reciprocal": _reciprocal,
        "Resize": _undescribed,
        "Slice": constant(1, 2, 3, 4),
        "Split": constant(1),
        "Tile": rank(1, 2, 3, 4, 5),
    },
    lowerings={**ARITHMETIC, **MASKS, **PLANES},
)
