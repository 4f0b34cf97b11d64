"""Operators whose derivative is zero wherever it exists.

The score does not depend on a tensor that reaches it through these operators only. Operators without a rule are not in
this list: they are refused. The list is a file of its own, as each family of rules is.

A file of its own: a list, which no family of rules owns.
"""

from __future__ import annotations

from onnx_gradcam.autodiff.registry import zero_gradient

# Step functions; the rule of Sign decides by what reads it.
zero_gradient("Ceil", "Floor", "Round")

# Indices and counts.
zero_gradient("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Shape", "Size")

# Truth values.
zero_gradient("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor")

# Integers.
zero_gradient("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor")

# The shape, the type or a random number alone decides the output.
zero_gradient(
    "Bernoulli", "Constant", "ConstantOfShape", "EyeLike", "Multinomial", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike",
)  # fmt: skip
