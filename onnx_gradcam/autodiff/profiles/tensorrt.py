"""NVIDIA TensorRT, through ONNX Runtime or by its own parser, which takes a whole model or none of it."""

from __future__ import annotations

import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder

from .limits import all_of, constant, listed, rank, single_output
from .lowerings import ARITHMETIC
from .planes import pool
from .provider import Provider

__all__ = ["TENSORRT"]

_MODES = {"nearest", "linear"}
_COORDINATES = {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}


def _resize(t: Builder, node: ir.Node) -> str | None:
    mode = node.attributes.get_string("mode", "nearest")
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    antialias = node.attributes.get_int("antialias", 0)
    beyond = [m for m, ok in ((mode, _MODES), (coordinates, _COORDINATES)) if m not in ok]
    beyond += ["antialias"] if antialias else []
    return f"with {beyond[0]} is beyond what it documents" if beyond else None


TENSORRT = Provider(
    name="tensorrt",
    source="onnx/onnx-tensorrt, docs/operators.md at 6d0ab7b (TensorRT 8.5; newer versions add to it)",
    operators=listed(
        """
        Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip
        Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout
        Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool
        GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GRU HardSwish HardSigmoid Identity If
        InstanceNormalization IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool
        MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad
        Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal
        ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round Scan ScatterElements ScatterND Selu
        Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum
        Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
        """
    ),
    limits={
        "AveragePool": rank(4, 5),
        "MaxPool": all_of(rank(4, 5), single_output),
        "CumSum": constant(1),
        "Slice": constant(3),
        "Squeeze": constant(1),
        "Unsqueeze": constant(1),
        "TopK": constant(1),
        "Resize": _resize,
    },
    lowerings={**ARITHMETIC, "AveragePool": pool, "MaxPool": pool},
    host=False,
)
