"""Einsum: the cotangent of an operand is the Einsum of the output's cotangent with the other operands."""

from __future__ import annotations

import string
from collections.abc import Sequence

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

from ._index import index_along


@vjp("Einsum", broadcasts=True)
def einsum(t: Builder, g: Value, y: Value, *xs: Value, equation: str) -> Sequence[Cotangent]:
    """Every legal equation: spaces, an ellipsis, labels repeated within an operand, an output left implicit."""
    terms, result = _parse(equation, [x.rank for x in xs])

    def cotangent(i: int) -> Value:
        factors = [(result, g), *((s, x) for j, (s, x) in enumerate(zip(terms, xs, strict=True)) if j != i)]
        return _spread(t, *_contract(t, factors, terms[i]), terms[i], xs[i])

    return [lambda i=i: cotangent(i) for i in range(len(xs))]  # type: ignore[misc]


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The operands' labels and the output's, one letter a dimension: an ellipsis gets letters of its own."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    # ONNX wants the same number of dimensions behind every ellipsis.
    count = max((r - len(s.replace("...", "")) for s, r in zip(terms, ranks, strict=True) if "..." in s), default=0)
    dots = "".join([c for c in string.ascii_letters if c not in equation][:count])
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        output = dots + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return [term.replace("...", dots) for term in terms], output.replace("...", dots)


def _contract(t: Builder, factors: Sequence[tuple[str, Value]], wanted: str) -> tuple[str, Value]:
    """The product of the factors summed down to those labels of `wanted` that any of them has."""
    labels = "".join(c for c in dict.fromkeys(wanted) if any(c in term for term, _ in factors))
    scalars = [v for term, v in factors if not term]
    tensors = [(term, v) for term, v in factors if term]
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
    """`value`, which has each of its labels once, as the cotangent of an operand with the labels `term`.

    A label that only the operand has was summed: its cotangent is the same everywhere. A label that it has twice
    picked a diagonal: its cotangent is zero elsewhere.
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
