"""Rules of matrix products, Einsum and determinants.

Gemm reads a matrix as transposed, so that no rule stores a large weight a second time.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.decompose import MICROSOFT

from ._sizes import index_along


@vjp("MatMul", broadcasts=True)
def matmul(t: Builder, g: Value, y: Value, a: Value, b: Value) -> Sequence[Cotangent]:
    """The cotangents g B^T and A^T g; a vector is a row on the left and a column on the right, as in `numpy.matmul`."""
    row, column = a.rank == 1, b.rank == 1
    left = _unsqueeze(t, a, 0) if row else a
    right = _unsqueeze(t, b, 1) if column else b
    if column:
        g = _unsqueeze(t, g, g.rank)
    if row:
        g = _unsqueeze(t, g, g.rank - 1)

    def first() -> Value:
        if right.rank == 2:
            # Gemm takes matrices: flatten the batch dimensions into the rows.
            product = t.op("Gemm", _rows(t, g), right, transB=1)
            da = t.reshape_like(product, left) if left.rank > 2 else product
        else:
            da = t.op("MatMul", g, _swapped(t, right), shape=(*g.shape[:-1], left.shape[-1]))
        return _squeeze(t, da, -2) if row else da

    def second() -> Value:
        if right.rank == 2:
            db = t.op("Gemm", _rows(t, left), _rows(t, g), transA=1, shape=right.shape)
        else:
            db = t.op("MatMul", _swapped(t, left), g, shape=(*g.shape[:-2], *right.shape[-2:]))
        return _squeeze(t, db, -1) if column else db

    return [first, second]


def _unsqueeze(t: Builder, x: Value, axis: int) -> Value:
    return t.op("Unsqueeze", x, t.ints(axis))


def _squeeze(t: Builder, x: Value, axis: int) -> Value:
    return t.op("Squeeze", x, t.ints(axis))


def _rows(t: Builder, x: Value) -> Value:
    """`x` as a matrix whose rows are its vectors along the last dimension."""
    return x if x.rank == 2 else t.op("Flatten", x, axis=x.rank - 1)


def _swapped(t: Builder, x: Value) -> Value:
    """`x` with its last two dimensions exchanged."""
    return t.transpose(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])


@vjp("Gemm", broadcasts=True)
def gemm(
    t: Builder, g: Value, y: Value, a: Value, b: Value, c: Value | None = None,
    *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """One Gemm of the cotangent with the other operand for each; C is broadcast."""

    def first() -> Value:
        if transA:
            return t.op("Gemm", b, g, alpha=alpha, transA=transB, transB=1, shape=a.shape)
        return t.op("Gemm", g, b, alpha=alpha, transB=1 - transB, shape=a.shape)

    def second() -> Value:
        if transB:
            return t.op("Gemm", g, a, alpha=alpha, transA=1, transB=transA, shape=b.shape)
        return t.op("Gemm", a, g, alpha=alpha, transA=1 - transA, shape=b.shape)

    return [first, second, lambda: g if beta == 1.0 else g * beta]


@vjp("Einsum", broadcasts=True)
def einsum(t: Builder, g: Value, y: Value, *xs: Value, equation: str) -> Sequence[Cotangent]:
    """The Einsum of the cotangent with the other operands.

    Serves spaces, an ellipsis, repeated labels within an operand and an implicit output.
    """
    terms, result = _parse(equation, [x.rank for x in xs])

    def cotangent(i: int) -> Value:
        factors = [(result, g), *((s, x) for j, (s, x) in enumerate(zip(terms, xs, strict=True)) if j != i)]
        return _spread(t, *_contract(t, factors, terms[i]), terms[i], xs[i])

    return [lambda i=i: cotangent(i) for i in range(len(xs))]  # type: ignore[misc]


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The labels of the operands and of the output, one letter a dimension, an ellipsis included."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    # In ONNX every ellipsis stands for the same number of dimensions.
    count = max((r - len(s.replace("...", "")) for s, r in zip(terms, ranks, strict=True) if "..." in s), default=0)
    dots = "".join([c for c in string.ascii_letters if c not in equation][:count])
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        output = dots + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return [term.replace("...", dots) for term in terms], output.replace("...", dots)


def _contract(t: Builder, factors: Sequence[tuple[str, Value]], term: str) -> tuple[str, Value]:
    """The product of the factors, summed to the labels of `term` that occur in any of them."""
    labels = "".join(c for c in dict.fromkeys(term) if any(c in operand for operand, _ in factors))
    scalars = [v for operand, v in factors if not operand]
    tensors = [(operand, v) for operand, v in factors if operand]
    if len(tensors) == 1 and tensors[0][0] == labels:
        value = tensors[0][1]
    elif tensors:
        value = t.op("Einsum", *(v for _, v in tensors), equation=f"{','.join(s for s, _ in tensors)}->{labels}")
    else:
        value = scalars.pop()
    for scalar in scalars:
        value = value * scalar
    return labels, value


def _spread(t: Builder, labels: str, value: Value, term: str, x: Value) -> Value:
    """`value`, whose labels differ, as the cotangent of an operand with the labels `term`.

    The cotangent is the same along a label that occurs in no other operand, because that was summed over. It is zero
    off the diagonal that a repeated label picks.
    """
    there = [c in labels and term.index(c) == axis for axis, c in enumerate(term)]
    missing = [axis for axis, kept in enumerate(there) if not kept]
    if missing:
        value = t.op("Unsqueeze", value, t.ints(*missing))
    if value.shape != x.shape or None in x.shape:
        value = t.op("Expand", value, t.shape_of(x))
    for axis, label in enumerate(term):
        first = term.index(label)
        if first != axis:
            value = t.op("Where", t.op("Equal", index_along(t, x, first), index_along(t, x, axis)), value, 0.0)
    return value


@vjp("Inverse", domain=MICROSOFT)
def inverse(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """ONNX Runtime's, which spatial transformers use: -Y^T g Y^T."""
    transposed = _swapped(t, y)
    return [-(transposed @ g @ transposed)]


@vjp("Det")
def determinant(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """The matrix of cofactors, which exists for singular matrices too.

    Each of the n^2 cofactors is a determinant, which is affordable for the small matrices in models.
    """
    n = x.shape[-1] if isinstance(x.shape[-1], int) else x.shape[-2]
    one = t.const(np.int64(1))
    if n == 1:
        return [t.reshape_like(g, x)]
    size: Value = t.const(np.int64(n)) if isinstance(n, int) else t.op("Squeeze", t.op("Shape", x, start=x.rank - 1))
    rows = t.op("Range", t.const(np.int64(0)), size, one)
    column = t.op("Unsqueeze", rows, t.ints(1))
    short = t.op("Range", t.const(np.int64(0)), size - one, one)
    # Row i contains all indices except i.
    others = short + t.cast(t.op("GreaterOrEqual", short, column), np.int64)
    # [..., n, n] -> [..., i, n - 1, n] -> [..., i, n - 1, j, n - 1] -> [..., i, j, n - 1, n - 1]
    minors = t.op("Gather", t.op("Gather", x, others, axis=x.rank - 2), others, axis=x.rank)
    lead = x.rank - 2
    minors = t.transpose(minors, [*range(lead), lead, lead + 2, lead + 1, lead + 3])
    parity = t.cast(t.op("Mod", rows + column, t.const(np.int64(2))), x.dtype) * -2.0 + 1.0
    return [t.op("Unsqueeze", g, t.ints(-2, -1)) * (t.op("Det", minors) * parity)]
