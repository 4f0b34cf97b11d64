"""ONNX Runtime's CUDA provider."""

from __future__ import annotations

from .limits import listed
from .lowerings import ARITHMETIC
from .provider import Provider

__all__ = ["CUDA"]

CUDA = Provider(
    name="cuda",
    source="microsoft/onnxruntime, docs/OperatorKernels.md at 001d12d, operators implemented by CUDAExecutionProvider",
    operators=listed(
        """
        Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast Ceil Clip Compress Concat
        ConcatFromSequence ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout
        Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
        GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity If
        InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop
        MatMul MatMulInteger Max MaxPool Min Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear
        RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
        ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
        Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round Scan ScatterElements ScatterND Selu Shape Shrink
        Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh
        TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
        """
    ),
    lowerings=ARITHMETIC,
    floats=frozenset({"float16", "float32", "float64"}),
)
