"""Keras's attention and Einstein-sum layers, and table look-ups: what vision transformers consist of.

Products are written as MatMul where the equation allows it, since the meaning of axes is followed through these.
"""

from __future__ import annotations

import math
from typing import Any

from onnx_gradcam.exporters.keras.call import Call, Outputs, Tensor
from onnx_gradcam.exporters.keras.layer_table import keras_layer, operation
from onnx_gradcam.exporters.keras.weights import Slot
from onnx_gradcam.graph.builder import Value

from .activations import activate

__all__: list[str] = []

_PROJECTIONS = ("query", "key", "value", "output")


def _slots(projection: str) -> list[Slot]:
    part = f"{projection}_dense"
    return [
        Slot(f"{projection}_kernel", part=part),
        Slot(f"{projection}_bias", when="use_bias", part=part),
    ]


@keras_layer(
    "MultiHeadAttention",
    weights=[slot for projection in _PROJECTIONS for slot in _slots(projection)],
    neutral=["dropout", "seed", "softmax_robust_masking", "query_shape", "key_shape", "value_shape"],
    arguments=["query", "value", "key", "return_attention_scores"],
)
def multi_head_attention(
    call: Call,
    query: Tensor,
    value: Tensor,
    key: Tensor | None = None,
    *,
    num_heads: Any,
    key_dim: Any,
    value_dim: Any = None,
    use_bias: Any = True,
    output_shape: Any = None,
    attention_axes: Any = None,
    return_attention_scores: Any = False,
) -> Outputs:
    """Scaled dot-product attention of several heads, over all axes between batch and channels.

    The scores are `[N, heads, T, S]`, with all positions of maps in a row.
    """
    rank = query.rank
    every = list(range(1, rank - 1))
    if rank < 3 or sorted(a % rank for a in _listed(attention_axes, every)) != every:
        call.refuse(f"its attention_axes {attention_axes!r} are not all axes between batch and channels")
    heads, depth = int(num_heads), int(value_dim or key_dim)
    source = value if key is None else key
    q = _heads(call, query, "query", heads, int(key_dim), use_bias=bool(use_bias))
    k = _heads(call, source, "key", heads, int(key_dim), use_bias=bool(use_bias))
    v = _heads(call, value, "value", heads, depth, use_bias=bool(use_bias))
    scaled = call.op("Transpose", q, perm=[0, 2, 1, 3]) * (1.0 / math.sqrt(key_dim))
    scores = call.op("Softmax", scaled @ call.op("Transpose", k, perm=[0, 2, 3, 1]), axis=-1)
    mixed = call.op("Transpose", scores @ call.op("Transpose", v, perm=[0, 2, 1, 3]), perm=[0, 2, 1, 3])
    flat = call.op("Reshape", mixed, call.writer.ints(0, 0, heads * depth))
    sizes = _listed(output_shape, [query.shape[-1]])
    y = flat @ call.weight("output_kernel", [heads, depth, *sizes], shape=[heads * depth, math.prod(sizes)])
    if use_bias:
        y = y + call.weight("output_bias", sizes, shape=[math.prod(sizes)])
    if rank > 3 or len(sizes) > 1:
        y = call.op("Reshape", y, call.writer.ints(*_between(call, query), *sizes))
    attended = call.settle(Tensor(y))
    return [attended, Tensor(scores)] if return_attention_scores else attended


def _listed(value: Any, default: list[Any]) -> list[Any]:
    if value is None:
        return default
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _between(call: Call, x: Tensor) -> list[int]:
    """The target of a Reshape for batch and positions: sizes kept where known, the batch as it is."""
    sizes = x.shape[1:-1]
    if len(sizes) > 1 and not all(isinstance(size, int) for size in sizes):
        call.refuse(f"some of the sizes {list(sizes)} that it attends to are unknown")
    return [0, *(int(size) if isinstance(size, int) else 0 for size in sizes)]


def _heads(call: Call, x: Tensor, projection: str, heads: int, depth: int, *, use_bias: bool) -> Value:
    """A projection, `[N, positions, heads, depth]`."""
    channels, plain = x.shape[-1], call.plain(x).value
    if x.rank > 3:
        _between(call, x)
        plain = call.op("Reshape", plain, call.writer.ints(0, -1, _known(call, channels)))
    kernel = call.weight(
        f"{projection}_kernel", [channels, heads, depth], shape=[_known(call, channels), heads * depth]
    )
    y = plain @ kernel
    if use_bias:
        y = y + call.weight(f"{projection}_bias", [heads, depth], shape=[heads * depth])
    return call.op("Reshape", y, call.writer.ints(0, 0, heads, depth))


def _known(call: Call, size: int | str | None) -> int:
    if not isinstance(size, int):
        call.refuse("its number of channels is unknown")
    return size


@keras_layer("EinsumDense", weights=[Slot("kernel"), Slot("bias", when="bias_axes")], neutral=["output_shape"])
def einsum_dense(call: Call, x: Tensor, *, equation: str, activation: Any = None, bias_axes: Any = None) -> Tensor:
    """An Einstein sum of the tensor and a kernel, such as `abc,cd->abd`."""
    y = _einsum(call, x, equation)
    if bias_axes:
        y = y + call.weight("bias", list(call.shape_of("bias")))
    return activate(call, call.settle(Tensor(y)), activation)


def _einsum(call: Call, x: Tensor, equation: str) -> Value:
    left, _, result = equation.replace(" ", "").partition("->")
    own, _, kernel = left.partition(",")
    if "..." in own:
        rest = "".join(c for c in "zyxwvutsrqponmlkjihgfedcba" if c not in equation)[: x.rank - len(own) + 3]
        own, result = own.replace("...", rest), result.replace("...", rest)
    sizes, plain = call.shape_of("kernel"), call.plain(x).value
    summed = len([c for c in kernel if c not in result])
    kept, free = own[: len(own) - summed], kernel[summed:]
    if not summed or own[len(kept) :] != kernel[:summed] or result != kept + free:
        weight = call.weight("kernel", sizes)
        return call.op("Einsum", plain, weight, equation=f"{own},{kernel}->{result}")
    # The last axes of the tensor are summed: a matrix product.
    expected = [*x.shape[len(kept) :], *sizes[summed:]]
    weight = call.weight("kernel", expected, shape=[math.prod(sizes[:summed]), math.prod(sizes[summed:])])
    places = x.shape[1 : len(kept)]
    if (summed > 1 or len(free) != 1) and sum(not isinstance(size, int) for size in places) > 1:
        call.refuse(f"several of the sizes {list(places)} that it keeps are unknown")
    around = [0, *(size if isinstance(size, int) else -1 for size in places)]
    if summed > 1:
        plain = call.op("Reshape", plain, call.writer.ints(*around, math.prod(sizes[:summed])))
    y = plain @ weight
    return y if len(free) == 1 else call.op("Reshape", y, call.writer.ints(*around, *sizes[summed:]))


@keras_layer("Embedding", weights=[Slot("embeddings")], neutral=["input_length"])
def embedding(call: Call, x: Tensor, *, input_dim: Any, output_dim: Any, mask_zero: Any = False) -> Tensor:
    """The rows of a table that indices name; other numbers are truncated to indices, as in Keras."""
    if mask_zero:
        call.refuse("it masks the index 0 in all layers behind it (mask_zero)")
    table = call.weight("embeddings", [input_dim, output_dim])
    indices = call.writer.cast(call.plain(x).value, "int64")
    return call.settle(Tensor(call.op("Gather", table, indices, axis=0)))


@operation("Matmul", tf=["linalg.matmul", "matmul"])
def matmul(call: Call, x1: Any, x2: Any, *, transpose_a: Any = False, transpose_b: Any = False) -> Tensor:
    """A product of matrices, the last two axes of each tensor."""
    operands = []
    for x, turned in ((x1, transpose_a), (x2, transpose_b)):
        value = call.plain(x).value if isinstance(x, Tensor) else call.writer.const(x, "float32")
        if value.rank < 2:
            call.refuse("one of its operands is a vector")
        order = [*range(value.rank - 2), value.rank - 1, value.rank - 2]
        operands.append(call.op("Transpose", value, perm=order) if turned else value)
    return call.settle(Tensor(operands[0] @ operands[1]))


@operation("Einsum", tf=["einsum", "linalg.einsum"])
def einsum(call: Call, *operands: Any, subscripts: str = "", equation: str = "") -> Tensor:
    """The Einstein sum of tensors and constants."""
    values = [call.plain(x).value if isinstance(x, Tensor) else call.writer.const(x, "float32") for x in operands]
    return call.settle(Tensor(call.op("Einsum", *values, equation=(subscripts or equation).replace(" ", ""))))
