"""ONNX Runtime Web on WebGPU."""

from __future__ import annotations

import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder

from .limits import listed, rank, single_output
from .lowerings import ARITHMETIC, BOOLEANS
from .provider import Provider

__all__ = ["WEBGPU"]


def _resize(t: Builder, node: ir.Node) -> str | None:
    if node.attributes.get_int("antialias", 0):
        return "with antialias is beyond what it runs"  # not in the table, and fails at run time
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") != "align_corners":
        return None
    before, after = (None if v is None else t.wrap(v).known_shape for v in (node.inputs[0], node.outputs[0]))
    for a, b in zip(before or (None,), after or (None,), strict=False):
        if not (isinstance(a, int) and isinstance(b, int) and b >= a):
            return "with align_corners to a smaller size is beyond what it documents"
    return None


WEBGPU = Provider(
    name="webgpu",
    source="onnxruntime-web 1.30.0, docs/webgpu-operators.md",
    operators=listed(
        """
        Abs Acos Acosh Add ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Clip Concat Conv
        ConvTranspose Cos Cosh CumSum DFT DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf Exp Expand Flatten
        Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
        HardSigmoid HardSwish If InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log MatMul MaxPool
        Mul Neg Not Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
        ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ScatterND Shape Sigmoid Sin Sinh Slice
        Softmax Split Sqrt Squeeze Sub Tan Tanh ThresholdedRelu Tile Transpose Unsqueeze Where
        """
    ),
    limits={
        "Conv": rank(3, 4),
        "ConvTranspose": rank(3, 4),
        "MaxPool": single_output,
        "Resize": _resize,
    },
    lowerings={**ARITHMETIC, **BOOLEANS},
)
"""GridSample is left out: the table has it up to opset 19 alone."""
