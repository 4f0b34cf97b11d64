"""The blocks of a vision transformer: attention maps, and what each block hands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from .layer import Candidate

__all__ = ["Block", "find_blocks"]


@dataclass(frozen=True, eq=False)
class Block:
    """One block of a transformer.

    Attributes:
        attention: what every token attends to, `[N, heads, T, T]`, each row adding up to one.
        output: what the block hands on, `[N, T, C]`.
    """

    attention: Value
    output: Value


def find_blocks(t: Builder, path: Sequence[ir.Node], candidates: Sequence[Candidate]) -> list[Block]:
    """Every block, in order: an attention map, and the last sum of tokens on every path before the next one.

    Args:
        t: the graph.
        path: the nodes between the picture and the score.
        candidates: every tensor with places on the way, in graph order.

    Raises:
        UnsupportedError: the model has none, or its attention is written so that there is no map.
    """
    place = {output: i for i, node in enumerate(path) for output in node.outputs}
    sums = [c for c in candidates if c.tokens is not None and c.every_path and _is_sum(c.tensor)]
    counts = {c.tensor.shape[c.layout.index(c.tokens)] for c in sums}
    maps = [
        value
        for node in path
        if node.op_type == "Softmax"
        and (value := t.wrap(node.outputs[0])).known_shape is not None
        and value.rank == 4
        and value.shape[2] == value.shape[3]
        and value.shape[2] in counts
    ]
    ends = [place[m.core] for m in maps[1:]] + [len(path)] * bool(maps)
    blocks = []
    for attention, end in zip(maps, ends, strict=True):
        inside = [c.tensor for c in sums if place[attention.core] < place.get(c.tensor.core, -1) < end]
        if inside:
            blocks.append(Block(attention, inside[-1]))
    if not blocks:
        raise UnsupportedError(
            "LeGrad looks at the attention maps of a vision transformer, and the model has none (a Softmax over tokens "
            "behind which the tokens are added up); export it with eager attention, or choose another method"
        )
    return blocks


def _is_sum(value: Value) -> bool:
    node = value.core.producer()
    return node is not None and node.op_type in {"Add", "Sum"}
