"""Operators whose derivative is zero wherever it exists.

A tensor that reaches the score through these alone has no influence on it that a gradient could show. This is not a
list of operators without a rule: those are refused.
"""

from __future__ import annotations

from onnx_gradcam.autodiff.registry import zero_gradient

# Step functions.
zero_gradient("Ceil", "Floor", "Round", "Sign")

# Indices and counts.
zero_gradient("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Shape", "Size")

# Truth values.
zero_gradient("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor")

# Integers.
zero_gradient("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor")

# Only the shape, the type or the dice decide the output.
zero_gradient(
    "Bernoulli", "Constant", "ConstantOfShape", "EyeLike", "Multinomial", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike",
)  # fmt: skip
