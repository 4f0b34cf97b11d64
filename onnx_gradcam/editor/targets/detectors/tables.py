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

from .columns import kind_of, moved_axis, producer_of, source_of, start_of

__all__ = ["Activation", "Factor", "OneBox", "Table", "copied", "factors_of", "joined", "narrowed", "rearranged"]
__all__ += ["unactivated"]

Activation = Literal["sigmoid", "softmax", "none"]

_MOVED = {"Transpose", "Identity", "Cast", "Split", "Squeeze", *QUANTISATION}
"""Operators behind which a softmax over an axis is one still, if the axis is not cut."""

_HIDDEN = -1e4
"""The logit of what is no class; float16 has it too."""

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
        hidden: the number of columns in front that keep their numbers though they are no classes: their probability is
            zero.
    """

    value: Value
    activation: Activation
    power: float = 1.0
    first: int = 0
    classes: int | None = None
    hidden: int = 0

    def without_first(self, columns: int) -> Factor:
        """The same with a probability of zero in the first columns, which are the background."""
        return replace(self, first=columns, hidden=columns) if self.activation == "softmax" else self

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
        value = _columns_from(t, self.value, self.first, self.classes)
        if self.hidden:
            rows = value.shape[:2]
            value = t.op("Pad", value, t.ints(0, 0, self.hidden, 0, 0, 0), t.const(_HIDDEN, value.dtype))
            value = t.refine(value, (*rows, self.value.shape[2] if self.classes is None else None))
        return value, total


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

    def of_one_box(self, t: Builder, rank: int, box: Value) -> OneBox:
        """One box of every sample: the one at an index `[1]` or `[N]`; where that is negative, the one of a rank.

        The rank counts for each class. An index out of range is an error when the model runs.
        """
        ranking = self.ranking(t)
        _, order = t.ops("TopK", ranking, t.ints(rank + 1), outputs=2, axis=1)
        # ONNX does not infer the number of classes where that of the boxes is free.
        order = t.refine(order, (ranking.shape[0], rank + 1, ranking.shape[2]))
        best = t.op("Gather", order, t.const(rank, np.int64), axis=1)
        given = t.op("Unsqueeze", box, t.ints(1))
        indices = t.chosen(given, best, t.indices(self.factors[0].value, 1))
        logs: Value | None = None
        for factor in self.factors:
            value, denominator = factor.parts(t)
            value = _at(t, value, indices)
            total = None if denominator is None else _at(t, denominator, indices)
            if len(self.factors) == 1 and factor.power == 1:
                shown = value if factor.activation == "none" else t.op("Sigmoid", value)
                return OneBox(indices, shown if total is None else t.op("Exp", value - total), value)
            log = _log_probability(t, value, total, factor)
            logs = log if logs is None else logs + log
        assert logs is not None  # noqa: S101 - a table has a factor
        return OneBox(indices, t.op("Exp", logs), logs)


@dataclass(frozen=True, eq=False)
class OneBox:
    """The scores of one box of every sample.

    Attributes:
        indices: its index, for every class, `int64 [N, K]`.
        shown: its probability for every class, `[N, K]`.
        logits: what is differentiated, `[N, K]`.
    """

    indices: Value
    shown: Value
    logits: Value


def _log_probability(t: Builder, value: Value, total: Value | None, factor: Factor) -> Value:
    if factor.activation == "sigmoid":
        log = -t.op("Softplus", -value)
    elif total is not None:
        log = value - total
    else:
        log = t.op("Log", t.op("Max", value, float(np.finfo(np.float16).tiny)))
    return log * factor.power if factor.power != 1 else log


def _at(t: Builder, table: Value, indices: Value) -> Value:
    """For every class the row of a table at its own index, `[N, K]`."""
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
    assert isinstance(value.shape[rank - 1], int)  # noqa: S101 - the columns of a table are counted before
    return t.merged(value, 1, rank - 1)


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
    source = narrowed(t, source, axis, 0, source.shape[axis])
    return (Factor(rearranged(t, source, axis), activation),)  # type: ignore[arg-type]


def _over(t: Builder, value: Value, axis: int) -> bool:
    """Whether a table is a softmax over its classes, moved but not cut."""
    while producer_of(value) != "Softmax":
        node, source = value.core.producer(), source_of(value.core.producer())
        there = None if source is None else moved_axis(value, t.wrap(source), axis % value.rank)
        if node is None or source is None or there is None or node.op_type not in _MOVED:
            return False
        value, axis = t.wrap(source), there
    node = value.core.producer()
    assert node is not None  # noqa: S101 - a Softmax computes it
    return node.attributes.get_int("axis", -1) % value.rank == axis % value.rank


def narrowed(t: Builder, value: Value, axis: int, start: int, end: int | str | None) -> Value:
    """Some neighbouring columns of a table along an axis.

    Where the graph joins columns that other layers compute, only those asked for are joined, so that a path to the
    score leads through the layers of the classes alone, and not through those of the boxes.
    """
    if isinstance(end, int) and (found := _narrowed(t, value, axis, start, end)) is not None:
        return found
    if start == 0 and end == value.shape[axis]:
        return value
    return t.op("Slice", value, t.ints(start), t.ints(int(end or 0)), t.ints(axis))


def _narrowed(t: Builder, value: Value, axis: int, start: int, end: int) -> Value | None:
    """As `narrowed`; `None` where the graph joins no columns."""
    node, source = value.core.producer(), source_of(value.core.producer())
    if node is None or source is None:
        return None
    if node.op_type == "Concat":
        along = node.attributes["axis"].as_int() % value.rank == axis
        return _chosen(t, node, axis, start, end) if along else _each(t, node, axis, start, end)
    before = t.wrap(source)
    if node.op_type in {"Split", "Slice"}:
        first = start_of(t, node, value.core, axis) if _cuts_only(t, node, axis, before) else None
        return None if first is None else _narrowed(t, before, axis, first + start, first + end)
    there = moved_axis(value, before, axis) if node.op_type in _COPIED | QUANTISATION else None
    per_axis = [i for i in node.inputs[1:] if node.op_type in QUANTISATION and i is not None and t.wrap(i).rank]
    if there is None or per_axis or not before.is_float:
        return None
    inner = _narrowed(t, before, there, start, end)
    if inner is None or node.op_type not in RESHAPES:
        return None if inner is None else copied(t, node, [inner, *node.inputs[1:]])[0]
    return _reshaped(t, inner, before, [end - start if i == axis else size for i, size in enumerate(value.shape)])


def _chosen(t: Builder, node: ir.Node, axis: int, start: int, end: int) -> Value | None:
    """The operands of a Concat along `axis` that hold its columns from `start` to `end`."""
    pieces, at = [], 0
    for operand in (t.wrap(i) for i in node.inputs if i is not None):
        size = operand.shape[axis]
        if not isinstance(size, int):
            return None
        if max(at, start) < min(at + size, end):
            pieces.append(narrowed(t, operand, axis, max(start - at, 0), min(end - at, size)))
        at += size
    return pieces[0] if len(pieces) == 1 else t.op("Concat", *pieces, axis=axis)


def _each(t: Builder, node: ir.Node, axis: int, start: int, end: int) -> Value | None:
    """A Concat along another axis, of operands that are narrowed each."""
    operands = [_narrowed(t, t.wrap(i), axis, start, end) for i in node.inputs if i is not None]
    if any(operand is None for operand in operands):
        return None
    return t.op("Concat", *operands, axis=node.attributes["axis"].as_int())


def _cuts_only(t: Builder, node: ir.Node, axis: int, before: Value) -> bool:
    """Whether a Split or Slice changes no other axis."""
    after, shape = t.wrap(node.outputs[0]).probe_shape, before.probe_shape
    if after is None or shape is None:
        return False
    return all(a == b for i, (a, b) in enumerate(zip(after, shape, strict=True)) if i != axis)


def _reshaped(t: Builder, inner: Value, before: Value, sizes: Sequence[int | str | None]) -> Value | None:
    """`inner` with the sizes given; a free one is that of the same axis of `before`, or what is left."""
    kept = [i < before.rank and before.shape[i] == size for i, size in enumerate(sizes)]
    dims = [size if isinstance(size, int) else 0 if keep else -1 for size, keep in zip(sizes, kept, strict=True)]
    return t.op("Reshape", inner, t.ints(*dims)) if dims.count(-1) < 2 else None


def copied(t: Builder, node: ir.Node, inputs: Sequence[Value | ir.Value | None]) -> list[Value]:
    """The outputs of a node like `node` with other inputs."""
    attributes: dict[str, Attribute] = {a.name: a.value for a in node.attributes.values() if isinstance(a, ir.Attr)}
    values = [t.wrap(i) if isinstance(i, ir.Value) else i for i in inputs]
    return list(t.ops(str(node.op_type), *values, outputs=len(node.outputs), **attributes))  # type: ignore[arg-type]


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
        copies = copied(t, node, [*(v for v, _ in results), *node.inputs[len(results) :]])
        for output, copy in zip(node.outputs, copies, strict=True):
            t.sized_as(output, copy)
        return copies[list(node.outputs).index(value.core)], activations
