"""Every profile: which rules a gradient is written with for one runtime, and which operators that runtime documents.

To add a profile, add one entry to `PROFILES`; options, messages and tests find it there.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.graph.builder import Builder

from .conform import Documented, Profile, all_of, constant, listed, rank, single_output
from .cpu import blocked_rules
from .lowerings import ARITHMETIC, BOOLEANS, pool, pools_by_convolution

__all__ = ["PROFILES"]


_MODES = {"nearest", "linear"}
_COORDINATES = {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}


def _tensorrt_resize(t: Builder, node: ir.Node) -> str | None:
    mode = node.attributes.get_string("mode", "nearest")
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    antialias = node.attributes.get_int("antialias", 0)
    beyond = [m for m, ok in ((mode, _MODES), (coordinates, _COORDINATES)) if m not in ok]
    beyond += ["antialias"] if antialias else []
    return f"with {beyond[0]} is beyond what it documents" if beyond else None


def _webgpu_resize(t: Builder, node: ir.Node) -> str | None:
    if node.attributes.get_int("antialias", 0):
        return "with antialias is beyond what it runs"  # not in the table, and fails at run time
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") != "align_corners":
        return None
    before, after = (None if v is None else t.wrap(v).known_shape for v in (node.inputs[0], node.outputs[0]))
    for a, b in zip(before or (None,), after or (None,), strict=False):
        if not (isinstance(a, int) and isinstance(b, int) and b >= a):
            return "with align_corners to a smaller size is beyond what it documents"
    return None


_ENTRIES = (
    Profile(name="portable", title="every runtime", rules=rules, separate_weights=True, tested=True),
    Profile(name="cpu", title="ONNX Runtime's CPU provider", rules=blocked_rules, separate_weights=True, tested=True),
    Profile(
        name="openvino",
        title="OpenVINO",
        rules=rules,
        documented=Documented(
            source="openvinotoolkit/openvino, src/frontends/onnx/docs/supported_ops.md at 0ae60f0",
            operators=listed(
                """
                Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Attention AveragePool BatchNormalization Cast
                CastLike Ceil Celu Clip Col2Im Compress Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh
                CumSum DFT DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten
                Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
                GridSample GroupNormalization GRU HardSigmoid HardSwish Hardmax Identity If InstanceNormalization
                IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop
                LpNormalization MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
                NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN Range
                Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
                ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan
                ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
                SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
                Where Xor
                """
            ),
            lowerings=ARITHMETIC,
        ),
        separate_weights=True,
        tested=True,
    ),
    Profile(
        name="cuda",
        title="ONNX Runtime's CUDA provider",
        rules=rules,
        documented=Documented(
            source=(
                "microsoft/onnxruntime, docs/OperatorKernels.md at 001d12d, operators implemented by "
                "CUDAExecutionProvider"
            ),
            operators=listed(
                """
                Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast Ceil Clip Compress Concat
                ConcatFromSequence ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
                Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu
                Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity
                If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
                LogSoftmax Loop MatMul MatMulInteger Max MaxPool Min Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow
                QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike
                Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
                ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding
                Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Size Slice Softmax Softplus
                Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh TensorScatter ThresholdedRelu Tile TopK
                Transpose Trilu Unsqueeze Where Xor
                """
            ),
            lowerings=ARITHMETIC,
            floats=frozenset({"float16", "float32", "float64"}),
        ),
    ),
    Profile(
        name="tensorrt",
        title="NVIDIA TensorRT, through ONNX Runtime or by its own parser",
        rules=rules,
        documented=Documented(
            source="onnx/onnx-tensorrt, docs/operators.md at 6d0ab7b (TensorRT 8.5; newer versions add to it)",
            operators=listed(
                """
                Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil
                Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
                DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
                GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
                GridSample GRU HardSwish HardSigmoid Identity If InstanceNormalization IsNaN LeakyRelu Less
                LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean
                MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow PRelu
                QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
                ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
                ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round Scan ScatterElements ScatterND
                Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
                Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
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
                "Resize": _tensorrt_resize,
            },
            lowerings={**ARITHMETIC, "AveragePool": pool, "MaxPool": pool},
            host=False,  # it takes a whole model or none of it
        ),
    ),
    Profile(
        name="webgpu",
        title="ONNX Runtime Web on WebGPU",
        rules=lambda: pools_by_convolution(rules()),
        documented=Documented(
            source="onnxruntime-web 1.30.0, docs/webgpu-operators.md",
            operators=listed(
                """
                Abs Acos Acosh Add ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Clip
                Concat Conv ConvTranspose Cos Cosh CumSum DFT DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf
                Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool
                Greater GreaterOrEqual HardSigmoid HardSwish If InstanceNormalization LayerNormalization LeakyRelu
                Less LessOrEqual Log MatMul MaxPool Mul Neg Not Pad Pow Range Reciprocal ReduceL1 ReduceL2
                ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
                Reshape Resize ScatterND Shape Sigmoid Sin Sinh Slice Softmax Split Sqrt Squeeze Sub Tan Tanh
                ThresholdedRelu Tile Transpose Unsqueeze Where
                """
            ),
            # GridSample is left out: the table lists it up to opset 19 only.
            limits={
                "Conv": rank(3, 4),
                "ConvTranspose": rank(3, 4),
                "MaxPool": single_output,
                "Resize": _webgpu_resize,
            },
            lowerings={**ARITHMETIC, **BOOLEANS},
        ),
        tested=True,
    ),
)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in _ENTRIES}
"""Profiles by name."""
