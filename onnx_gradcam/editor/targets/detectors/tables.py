"""One normal form for the tables of all detectors: `[N, boxes, classes]`, and what is differentiated of it.

What a person is shown is the probability that the model's own post-processing reports. What is differentiated is its
logit, which has a gradient where the probability is rounded to one: the input of a Sigmoid, the class's input of a
Softmax, and the logarithm of a product of probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnx_gradcam.graph.builder import Attribute, Builder, Value
from onnx_gradcam.graph.paths import QUANTISATION, RESHAPES

from .columns import kind_of, producer_of, source_of

__all__ = ["Activation", "Factor", "Table", "factors_of", "joined", "rearranged", "unactivated"]

Activation = Literal["sigmoid", "softmax", "none"]

_COPIED = {*RESHAPES, "Transpose", "Identity", "Cast", "Concat", "Slice", "Split", "Gather", "Flatten"}
"""Operators that move numbers, and are repeated behind the logits."""


@dataclass(frozen=True, eq=False)
class Factor:
    """A probability that the score of a box is a product of.

    Attributes:
        value: the logits, or the probabilities themselves, `[N, boxes, K]` or `[N, boxes, 1]`.
        activation: what makes probabilities of them; `softmax` is over the last axis, background included.
        power: the exponent of the probability in the product.
        first: the column of the first class, and `classes` their number, behind a softmax.
    """

    value: Value
    activation: Activation
    power: float = 1.0
    first: int = 0
    classes: int | None = None

    def kept(self, t: Builder, first: int, classes: int | None) -> Factor:
        """The columns of some of the classes; the rest is background."""
        if self.activation == "softmax":
            return replace(self, first=first, classes=classes)
        return replace(self, value=_columns_from(t, self.value, first, classes))

    def parts(self, t: Builder) -> tuple[Value, Value | None]:
        """The classes' columns of `value`, and for a softmax the logarithm of its denominator, `[N, boxes, 1]`."""
        if self.activation != "softmax":
            return self.value, None
        total = t.reduce("ReduceLogSumExp", self.value, [2])
        return _columns_from(t, self.value, self.first, self.classes), total


@dataclass(frozen=True, eq=False)
class Table:
    """The scores of all boxes for all classes.

    Attributes:
        factors: the score of a box for a class is the product of these probabilities; a single factor without an
            activation is explained as it is.
    """

    factors: tuple[Factor, ...]

    def scores(self, t: Builder) -> Value:
        """The probabilities, `[N, boxes, K]`."""
        total: Value | None = None
        for factor in self.factors:
            value, denominator = factor.parts(t)
            if factor.activation == "sigmoid":
                value = t.op("Sigmoid", value)
            elif denominator is not None:
                value = t.op("Exp", value - denominator)
            if factor.power != 1:
                value = value**factor.power
            total = value if total is None else total * value
        assert total is not None  # noqa: S101 - a table has a factor
        return total

    @property
    def comparable(self) -> bool:
        """Whether the logits of different boxes and classes order them as the probabilities do."""
        return len(self.factors) > 1 or self.factors[0].activation != "softmax"

    def ranking(self, t: Builder) -> Value:
        """Numbers in the order of the probabilities, `[N, boxes, K]`; those of a sigmoid are told apart at one too."""
        return self.factors[0].value if self.monotone else self.scores(t)

    @property
    def monotone(self) -> bool:
        """Whether the logits order the boxes of a class as the probabilities do."""
        return self.comparable and len(self.factors) == 1 and self.factors[0].power == 1

    def of_one_box(self, t: Builder, rank: int, box: int | None) -> tuple[Value, Value]:
        """The score of one box for every class, as shown and as differentiated, both `[N, K]`.

        The box is the one of a rank among all, counted for each class, or the one of an index.
        """
        ranking = self.ranking(t)
        indices = None
        if box is None:
            _, order = t.ops("TopK", ranking, t.ints(rank + 1), outputs=2, axis=1)
            indices = t.op("Gather", order, t.const(rank, np.int64), axis=1)
        logs: Value | None = None
        for factor in self.factors:
            value, denominator = factor.parts(t)
            value = _at(t, value, indices, box)
            total = None if denominator is None else _at(t, denominator, indices, box)
            if len(self.factors) == 1 and factor.power == 1:
                shown = value if factor.activation == "none" else t.op("Sigmoid", value)
                return (shown if total is None else t.op("Exp", value - total)), value
            log = _log_probability(t, value, total, factor)
            logs = log if logs is None else logs + log
        assert logs is not None  # noqa: S101 - a table has a factor
        return t.op("Exp", logs), logs


def _log_probability(t: Builder, value: Value, total: Value | None, factor: Factor) -> Value:
    if factor.activation == "sigmoid":
        log = -t.op("Softplus", -value)
    elif total is not None:
        log = value - total
    else:
        log = t.op("Log", t.op("Max", value, float(np.finfo(np.float16).tiny)))
    return log * factor.power if factor.power != 1 else log


def _at(t: Builder, table: Value, indices: Value | None, box: int | None) -> Value:
    """One row of a table, `[N, K]` or `[N, 1]`, or for every class the row of its own index, `[N, K]`."""
    if indices is None:
        return t.op("Gather", table, t.const(box or 0, np.int64), axis=1)
    if table.shape[2] == 1 and indices.shape[1] != 1:
        return t.op("GatherElements", t.op("Squeeze", table, t.ints(2)), indices, axis=1)
    rows = t.op("Unsqueeze", indices, t.ints(1))
    return t.op("Squeeze", t.op("GatherElements", table, rows, axis=1), t.ints(1))


def _columns_from(t: Builder, value: Value, first: int, classes: int | None) -> Value:
    size = value.shape[2]
    if first == 0 and (classes is None or classes == size):
        return value
    end = np.iinfo(np.int64).max if classes is None else first + classes
    return t.op("Slice", value, t.ints(first), t.ints(end), t.ints(2))


def joined(t: Builder, tables: Sequence[Table]) -> Table:
    """Tables of the same classes (the levels of a pyramid), one behind the other.

    Probabilities of different activations are joined as they are.
    """
    if len(tables) == 1:
        return tables[0]
    if len({tuple((f.activation, f.power) for f in table.factors) for table in tables}) > 1:
        tables = [Table((Factor(table.scores(t), "none"),)) for table in tables]
    levels = zip(*(table.factors for table in tables), strict=True)
    return Table(
        tuple(replace(same[0], value=t.op("Concat", *(factor.value for factor in same), axis=1)) for same in levels)
    )


def rearranged(t: Builder, value: Value, axis: int) -> Value:
    """A table with its classes on `axis` as `[N, boxes, K]`: what has no batch is one sample, grids become rows."""
    rank = value.rank
    axis %= rank
    if rank == 2:
        value, axis, rank = t.op("Unsqueeze", value, t.ints(0)), axis + 1, 3
    order = [0, *(i for i in range(1, rank) if i != axis), axis]
    value = t.transpose(value, order)
    if rank == 3:
        return value
    size = value.shape[rank - 1]
    assert isinstance(size, int)  # noqa: S101 - the columns of a table are counted before
    return t.op("Reshape", value, t.ints(0, -1, size))


def factors_of(t: Builder, value: Value, axis: int) -> tuple[Factor, ...]:
    """The factors of probabilities with their classes on `axis`, from the operators that compute them."""
    node = value.core.producer()
    operands = [t.wrap(i) for i in node.inputs if i is not None] if node is not None else []
    if node is not None and node.op_type == "Sqrt" and kind_of(t, operands[0]) == "score":
        return tuple(replace(f, power=f.power / 2) for f in factors_of(t, operands[0], axis))
    alike = all(v.rank == value.rank and kind_of(t, v) == "score" for v in operands)
    if node is not None and node.op_type == "Mul" and alike:
        return tuple(f for v in operands for f in factors_of(t, v, axis))
    logits, activations = _Unactivated(t).of(value)
    (activation,) = activations if len(activations) == 1 else ("none",)
    if activation == "softmax" and not _over(t, value, axis):
        activation = "none"
    source = value if activation == "none" else logits
    return (Factor(rearranged(t, source, axis), activation),)  # type: ignore[arg-type]


def _over(t: Builder, value: Value, axis: int) -> bool:
    """Whether a table is a softmax over its classes, moved but not cut."""
    while producer_of(value) != "Softmax":
        node, source = value.core.producer(), source_of(value.core.producer())
        if node is None or source is None or node.op_type not in {"Transpose", "Identity", "Cast", *QUANTISATION}:
            return False
        if node.op_type == "Transpose":
            axis = node.attributes["perm"].as_ints()[axis]
        value = t.wrap(source)
    node = value.core.producer()
    assert node is not None  # noqa: S101 - a Softmax computes it
    return node.attributes.get_int("axis", -1) % value.rank == axis % value.rank


def unactivated(t: Builder, value: Value) -> Value:
    """A table with the logits in place of the probabilities that a Sigmoid or Softmax makes of them."""
    return _Unactivated(t).of(value)[0]


class _Unactivated:
    """A tensor without the activations at its end, though these are in front of operators that move numbers."""

    def __init__(self, t: Builder) -> None:
        self.t = t
        self.done: dict[ir.Value, tuple[Value, frozenset[str]]] = {}

    def of(self, value: Value) -> tuple[Value, frozenset[str]]:
        """The tensor before the activations, and which these are; the tensor itself where there are none."""
        if value.core not in self.done:
            self.done[value.core] = self._of(value)
        return self.done[value.core]

    def _of(self, value: Value) -> tuple[Value, frozenset[str]]:
        node, t = value.core.producer(), self.t
        source = source_of(node)
        if node is None or source is None:
            return value, frozenset()
        if node.op_type in {"Sigmoid", "Softmax"}:
            return t.wrap(source), frozenset({str(node.op_type).lower()})
        if node.op_type in QUANTISATION:
            before, activations = self.of(t.wrap(source))
            return (before, activations) if before.is_float else (value, frozenset())
        if node.op_type not in _COPIED or not value.is_float:
            return value, frozenset()
        data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        results = [self.of(t.wrap(i)) for i in data if i is not None]
        activations = frozenset().union(*(activation for _, activation in results))
        if not activations:
            return value, frozenset()
        inputs = [v for v, _ in results] + [t.wrap(i) if i is not None else None for i in node.inputs[len(results) :]]
        attributes: dict[str, Attribute] = {a.name: a.value for a in node.attributes.values() if isinstance(a, ir.Attr)}
        copies = t.ops(str(node.op_type), *inputs, outputs=len(node.outputs), **attributes)  # type: ignore[arg-type]
        copy = copies[list(node.outputs).index(value.core)]
        return t.refine(copy, value.shape) if value.known_shape is not None else copy, activations
