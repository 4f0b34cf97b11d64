"""Decompositions of the operators that ONNX Runtime's optimiser fuses (its `docs/ContribOperators.md`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .builder import Builder, Value
from .decompose import decomposes, to_channels_first, to_channels_last

_ACTIVATION_DEFAULTS = {"LeakyRelu": (0.01,), "HardSigmoid": (0.2, 0.5), "Clip": (-math.inf, math.inf)}


def _activated(t: Builder, x: Value, activation: str, parameters: Sequence[float] = ()) -> Value | None:
    """Append the activation that a fused operator names; `None` for an unknown one."""
    first, second = (*parameters, *_ACTIVATION_DEFAULTS.get(activation, ())[len(parameters) :], 0.0, 0.0)[:2]
    if activation in {"Relu", "Sigmoid", "Tanh"}:
        return t.op(activation, x)
    if activation == "LeakyRelu":
        return t.op("LeakyRelu", x, alpha=first)
    if activation == "HardSigmoid":
        return t.op("HardSigmoid", x, alpha=first, beta=second)
    if activation == "Clip":
        return t.op("Clip", x, first, second)
    return x if activation == "" else None


@decomposes("FusedConv")
def fused_conv(
    t: Builder, x: Value, w: Value, b: Value | None = None, z: Value | None = None,
    *, activation: str = "", activation_params: Sequence[float] = (), **window: Any,
) -> Value | None:  # fmt: skip
    """Conv, then a sum with a tensor, then an activation."""
    y = t.op("Conv", x, w, b, **window)
    return _activated(t, y if z is None else y + z, activation, activation_params)


@decomposes("FusedGemm")
def fused_gemm(
    t: Builder, a: Value, b: Value, c: Value | None = None,
    *, activation: str = "", activation_alpha: float | None = None, activation_beta: float | None = None,
    activation_gamma: float | None = None,  # noqa: ARG001 - no activation here has a third parameter
    **attributes: Any,
) -> Value | None:  # fmt: skip
    """Gemm, then an activation."""
    numbers = [p for p in (activation_alpha, activation_beta) if p is not None]
    return _activated(t, t.op("Gemm", a, b, c, **attributes), activation, numbers)


@decomposes("FusedMatMul", "TransposeMatMul")
def fused_matmul(
    t: Builder, a: Value, b: Value,
    *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0, transBatchB: int = 0,
) -> Value | None:  # fmt: skip
    """MatMul with transposed operands and a factor."""
    if transBatchA or transBatchB:
        return None
    y = (_swapped(t, a) if transA else a) @ (_swapped(t, b) if transB else b)
    return y if alpha == 1.0 else y * alpha


def _swapped(t: Builder, x: Value) -> Value:
    return t.transpose(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])


@decomposes("Gelu")
def gelu(t: Builder, x: Value) -> Value:
    """The product of x and the normal distribution function at x."""
    return x * (t.op("Erf", x * math.sqrt(0.5)) + 1.0) * 0.5


@decomposes("BiasGelu")
def bias_gelu(t: Builder, x: Value, bias: Value) -> Value:
    """Gelu of a sum."""
    return gelu(t, x + bias)


@decomposes("FastGelu")
def fast_gelu(t: Builder, x: Value, bias: Value | None = None) -> Value:
    """Gelu, approximated with tanh."""
    x = x if bias is None else x + bias
    inner = (x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)
    return x * (t.op("Tanh", inner) + 1.0) * 0.5


@decomposes("QuickGelu")
def quick_gelu(t: Builder, x: Value, *, alpha: float = 1.702) -> Value:
    """The product x sigmoid(alpha x)."""
    return x * t.op("Sigmoid", x * alpha)


@decomposes("BiasAdd")
def bias_add(t: Builder, x: Value, bias: Value, skip: Value) -> Value:  # noqa: ARG001
    """A sum of three."""
    return x + bias + skip


@decomposes("SkipLayerNormalization")
def skip_layer_normalization(
    t: Builder, x: Value, skip: Value, gamma: Value, beta: Value | None = None, bias: Value | None = None,
    *, epsilon: float = 1e-12,
) -> Sequence[Value]:  # fmt: skip
    """Layer normalisation of a sum; the fourth output is the sum."""
    total = x + skip if bias is None else x + skip + bias
    normal, mean, deviation = t.ops("LayerNormalization", total, gamma, beta, outputs=3, axis=-1, epsilon=epsilon)
    return normal, mean, deviation, total


@decomposes("SkipSimplifiedLayerNormalization")
def skip_rms_normalization(
    t: Builder, x: Value, skip: Value, gamma: Value, bias: Value | None = None, *, epsilon: float = 1e-12
) -> Sequence[Value]:
    """Root-mean-square normalisation of a sum; the fourth output is the sum."""
    total = x + skip if bias is None else x + skip + bias
    inverse = t.op("Reciprocal", t.op("Sqrt", t.mean(total * total, [total.rank - 1]) + epsilon))
    return total * inverse * gamma, inverse, inverse, total


@decomposes("SimplifiedLayerNormalization", domain="")
def rms_normalization(
    t: Builder, x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    """Root-mean-square normalisation."""
    wide = t.cast(x, np.float32) if stash_type == 1 else x
    axes = range(axis % x.rank, x.rank)
    normal = wide * t.op("Reciprocal", t.op("Sqrt", t.mean(wide * wide, axes) + epsilon))
    return t.cast(normal, x.dtype) * scale


@decomposes("GroupNorm")
def group_norm(
    t: Builder, x: Value, gamma: Value, beta: Value,
    *, activation: int, groups: int, channels_last: int = 1, epsilon: float = 1e-5,
) -> Value | None:  # fmt: skip
    """Group normalisation, channels last by default, with an optional SiLU."""
    first = to_channels_first(t, x) if channels_last else x
    channels = first.shape[1]
    if not isinstance(channels, int):
        return None
    grouped = t.merged(first, 1, parts=[groups])
    centred = grouped - t.mean(grouped, [2])
    normal = centred / t.op("Sqrt", t.mean(centred * centred, [2]) + epsilon)
    spread = t.ints(1, channels, *(1,) * (x.rank - 2))
    weight, offset = (t.cast(t.op("Reshape", p, spread), x.dtype) for p in (gamma, beta))
    y = t.reshape_like(normal, first) * weight + offset
    y = to_channels_last(t, y) if channels_last else y
    return y * t.op("Sigmoid", y) if activation else y


@decomposes("NhwcMaxPool")
def nhwc_max_pool(t: Builder, x: Value, **window: Any) -> Value:
    """MaxPool over channels-last tensors."""
    return to_channels_last(t, t.op("MaxPool", to_channels_first(t, x), **window))


@decomposes("MultiHeadAttention")
def multi_head_attention(
    t: Builder, query: Value, key: Value | None = None, value: Value | None = None, bias: Value | None = None,
    *rest: Value | None, num_heads: int, scale: float = 0.0, unidirectional: int = 0,
    mask_filter_value: float = -10000.0,  # noqa: ARG001 - masks are not covered
) -> Value | None:  # fmt: skip
    """Attention over queries, keys and values `[N, T, H]`; masks, packed inputs and caches are not covered."""
    attention_bias = rest[1] if len(rest) > 1 else None
    others = [r for i, r in enumerate(rest) if i != 1 and r is not None]
    if key is None or value is None or key.rank != 3 or others or unidirectional:
        return None
    parts = [query, key, value]
    if bias is not None:
        sizes = [p.dims_behind_batch()[-1] for p in parts]
        offsets = t.ops("Split", bias, t.ints(*sizes), outputs=3)
        parts = [p + o for p, o in zip(parts, offsets, strict=True)]
    return _attend(t, parts, num_heads, scale, attention_bias)


@decomposes("Attention")
def attention(
    t: Builder, x: Value, weights: Value, bias: Value | None = None, *rest: Value | None,
    num_heads: int, qkv_hidden_sizes: Sequence[int] = (), scale: float = 0.0, unidirectional: int = 0,
    do_rotary: int = 0, **unserved: Any,
) -> Value | None:  # fmt: skip
    """Attention with its own projection of `[N, T, H]`; masks, caches and rotary embeddings are not covered."""
    attention_bias = rest[2] if len(rest) > 2 else None
    others = [r for i, r in enumerate(rest) if i != 2 and r is not None]
    width = weights.shape[1]
    unknown = set(unserved) - {"mask_filter_value", "past_present_share_buffer", "rotary_embedding_dim"}
    if others or unidirectional or do_rotary or unknown or not isinstance(width, int):
        return None
    packed = x @ weights
    packed = packed if bias is None else packed + bias
    sizes = qkv_hidden_sizes or [width // 3] * 3
    parts = t.ops("Split", packed, t.ints(*sizes), outputs=3, axis=-1)
    return _attend(t, parts, num_heads, scale, attention_bias)


def _attend(t: Builder, parts: Sequence[Value], heads: int, scale: float, attention_bias: Value | None) -> Value:
    """softmax(q k^T scale + bias) v over heads of equal width."""
    q, k, v = (t.transpose(t.merged(p, 2, parts=[heads]), [0, 2, 1, 3]) for p in parts)
    width = int(parts[0].dims_behind_batch()[-1]) // heads
    scores = (q @ t.transpose(k, [0, 1, 3, 2])) * (scale or 1.0 / math.sqrt(width))
    scores = scores if attention_bias is None else scores + attention_bias
    mixed = t.transpose(t.op("Softmax", scores, axis=-1) @ v, [0, 2, 1, 3])
    return t.merged(mixed, 2)
