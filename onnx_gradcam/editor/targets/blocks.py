"""Find the attention maps of a vision transformer, and the blocks that they are in.

An attention map is a Softmax over tokens, made from a product, whose rows then weight the tokens of another product.
Exporters put casts, guards against NaN and views between the two; the map is what the second product reads, since its
gradient is that of the map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import VIEWS, between, carries_content

from .axes import Axis
from .layer import PRODUCTS, Candidate, reads_prefix

__all__ = ["AttentionMaps", "Block", "find_attention", "find_blocks"]

_ON_THE_WAY = {*VIEWS, "Add", "Sub", "Mul", "Div", "Where", "Clip", "Min", "Max", "Softcap", "Tanh"}
"""Operators between the product of queries and keys and its Softmax: scales, masks, biases and caps."""


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention maps that lead from the grid of tokens to the score.

    Attributes:
        blocks: the map of every block in order, as its product reads it: `[N, heads, T, T]`, or `[N * heads, T, T]`.
        pooling: the map of a last attention that pools the tokens, with a few rows; `None` for none.
        skipped: the number of tokens before and behind the grid that `pooling` has no columns for.
        tokens: the axis of tokens, of which the grid is a part.
        answer: what the head takes from each token where nothing pools them, `[T]`: the class token, or a mean.
    """

    blocks: Sequence[Value]
    pooling: Value | None
    skipped: tuple[int, int]
    tokens: Axis
    answer: npt.NDArray[np.float32]


def find_attention(
    t: Builder, title: str, image: Value, path: Sequence[ir.Node], candidates: Sequence[Candidate]
) -> AttentionMaps:
    """The attention maps on the path from the image to the score.

    Raises:
        UnsupportedError: there are none, or they are not all over the same tokens, one block after the other; the
            sentence names the method's `title`.
    """
    maps = list(_maps(t, path))
    if not maps:
        raise UnsupportedError(
            f"{title} looks at the attention maps of a vision transformer, and the model has none (a Softmax over "
            "tokens between two products); choose another method, such as gradcam"
        )
    last = maps[-1]
    rows, columns = _shape(last)[-2:]
    axis = _tokens_of(maps[0], candidates)
    if axis is None or _windows(maps[0], image):
        raise UnsupportedError(_not_over_tokens(title, maps[0], image))
    count, total = math.prod(axis.grid), _shape(maps[0])[-1]
    pooling = maps.pop() if rows != columns and columns in {total, count} else None
    skipped = (axis.before, axis.after) if columns < total else (0, 0)
    for value in maps:
        if _shape(value)[-2:] != (total, total) or _windows(value, image):
            raise UnsupportedError(_not_over_tokens(title, value, image))
    for first, second in itertools.pairwise(maps):
        if not between(t.nodes, [first.core], [second.core], carries_content)[0]:
            raise UnsupportedError(
                f"{title} follows one block after the other, and the attention maps {first.name!r} and {second.name!r} "
                "are side by side; choose another method, such as gradcam"
            )
    behind = path[next(i for i, node in enumerate(path) if last.core in node.inputs) :]
    return AttentionMaps(maps, pooling, skipped, axis, _answer(t, behind, axis, candidates))


def _tokens_of(value: Value, candidates: Sequence[Candidate]) -> Axis | None:
    """The axis of tokens that a map is over; `None` where no tensor has one of its size."""
    rows, columns = _shape(value)[-2:]
    axes = [c.tokens for c in candidates if c.tokens is not None and _length(c.tokens) == columns]
    return axes[-1] if axes and rows == columns else None


def _length(axis: Axis) -> int:
    return axis.before + math.prod(axis.grid) + axis.after


def _answer(
    t: Builder, behind: Sequence[ir.Node], axis: Axis, candidates: Sequence[Candidate]
) -> npt.NDArray[np.float32]:
    """What the head, the nodes `behind` the last map, takes from each token: the class token, or a mean."""
    tokens = {c.tensor.core: c for c in candidates if c.tokens is not None}
    count = math.prod(axis.grid)
    weights = np.zeros(_length(axis), np.float32)
    if any(reads_prefix(t, node, tokens[v]) for node in behind for v in node.inputs if v in tokens):
        weights[0 if axis.before else count] = 1
        return weights
    computed = {output for node in behind for output in node.outputs}
    ends = [c.tokens for v, c in tokens.items() if v in computed and c.every_path and c.tokens is not None]
    whole = not ends or _length(ends[-1]) == len(weights)
    read = slice(None) if whole else slice(axis.before, axis.before + count)
    weights[read] = 1 / weights[read].size
    return weights


def _not_over_tokens(title: str, value: Value, image: Value) -> str:
    rows, columns = _shape(value)[-2:]
    if _windows(value, image):
        found = f"the map {value.name!r} attends inside windows of {columns} positions"
    else:
        found = f"the map {value.name!r} is {rows} x {columns}, which are not the tokens of the other tensors"
    return f"{title} needs attention over all tokens, and {found}; choose another method, such as gradcam"


def _shape(value: Value) -> tuple[int, ...]:
    """The sizes of a map in the example binding of free dimensions."""
    return value.probe_shape or value.dims("an attention map")


def _windows(value: Value, image: Value) -> bool:
    """Whether the first axis of a map of rank 4 holds more than the batch."""
    return value.rank == 4 and _shape(value)[0] > _shape(image)[0]


def _maps(t: Builder, path: Sequence[ir.Node]) -> Iterator[Value]:
    """The attention maps on a path in order, as the products read them."""
    alive = set(path)
    for node in path:
        if node.op_type != "Softmax" or not _from_product(node, alive):
            continue
        value = t.wrap(node.outputs[0])
        if value.known_shape is None or value.rank not in {3, 4}:
            continue
        if node.attributes.get_int("axis", -1) % value.rank == value.rank - 1:
            read = _as_weights(t, value, alive)
            if read is not None:
                yield read


def _from_product(node: ir.Node, alive: set[ir.Node]) -> bool:
    """Whether a Softmax weighs what a product of two tensors computed, behind scales, masks and views."""
    here: ir.Node | None = node
    while here is not None:
        source = next((p for v in here.inputs if v is not None and (p := v.producer()) in alive), None)
        if source is None or source.op_type in PRODUCTS:
            return source is not None
        here = source if source.op_type in _ON_THE_WAY else None
    return False


def _as_weights(t: Builder, value: Value, alive: set[ir.Node]) -> Value | None:
    """A Softmax's output as the product that sums by it reads it; `None` if there is no such product."""
    for use in value.core.uses():
        node, index = use.node, use.idx
        if node not in alive:
            continue
        if node.op_type == "MatMul" and index == 0:
            return value
        if node.op_type == "Einsum" and _contracts_last(node, index):
            return value
        if (node.op_type in VIEWS and index == 0) or (node.op_type == "Where" and index > 0):
            behind = t.wrap(node.outputs[0])
            kept = (
                behind.known_shape is not None and behind.rank in {3, 4} and _shape(behind)[-2:] == _shape(value)[-2:]
            )
            turned = node.op_type == "Transpose" and not _keeps_last_two(node, value.rank)
            read = _as_weights(t, behind, alive) if kept and not turned else None
            if read is not None:
                return read
    return None


def _keeps_last_two(node: ir.Node, rank: int) -> bool:
    return tuple(node.attributes.get_ints("perm", ()))[-2:] == (rank - 2, rank - 1)


def _contracts_last(node: ir.Node, index: int) -> bool:
    """Whether an Einsum sums over the last axis of one of its inputs."""
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    term = terms.split(",")[index]
    return bool(result) and not term.endswith(".") and term[-1] not in result


@dataclass(frozen=True, eq=False)
class Block:
    """One block of a transformer.

    Attributes:
        attention: the attention map, `[N, heads, T, T]` or `[N * heads, T, T]`, with rows that sum to one; where a last
            attention pools the tokens, its map with a few rows, the same for all blocks.
        output: the tokens behind the block, `[N, T, C]`.
    """

    attention: Value
    output: Value


def find_blocks(t: Builder, path: Sequence[ir.Node], candidates: Sequence[Candidate]) -> list[Block]:
    """All blocks in order: an attention map, and the last sum of tokens on every path before the next map.

    A model without attention maps, or with fused attention, is refused.
    """
    place = {output: i for i, node in enumerate(path) for output in node.outputs}
    sums = [c for c in candidates if c.tokens is not None and c.every_path and _is_sum(c.tensor, place)]
    counts = {c.tensor.shape[c.layout.index(c.tokens)] for c in sums}
    every = list(_maps(t, path))
    maps = [v for v in every if v.shape[-2] == v.shape[-1] and v.shape[-1] in counts]
    grids = {math.prod(c.tokens.grid) for c in sums if c.tokens is not None}
    last = every[-1] if every and every[-1].shape[-2] != every[-1].shape[-1] else None
    pooling = last if last is not None and last.shape[-1] in counts | grids else None
    ends = [place[m.core] for m in maps[1:]] + [len(path) if pooling is None else place[pooling.core]] * bool(maps)
    blocks = []
    for attention, end in zip(maps, ends, strict=True):
        inside = [c.tensor for c in sums if place[attention.core] < place.get(c.tensor.core, -1) < end]
        if inside:
            blocks.append(Block(pooling or attention, inside[-1]))
    if not blocks:
        raise UnsupportedError(
            "LeGrad looks at the attention maps of a vision transformer, and the model has none (a Softmax over tokens "
            "behind which the tokens are added up); export it with eager attention, or choose another method"
        )
    return blocks


def _is_sum(value: Value, place: Container[ir.Value]) -> bool:
    """Whether a value is a sum of values on the path; one with a bias is not, be it stored or computed of weights."""
    node = value.core.producer()
    return node is not None and node.op_type in {"Add", "Sum"} and all(v in place for v in node.inputs)
