"""Methods for vision transformers: which tokens reach the answer, followed through the attention maps of all blocks.

`P` are the attention maps P_b of the blocks b = 1 .. B, `GP` the gradients of the score with respect to them; h counts
heads, i attending and j attended tokens. A map is followed from the answer back to the image, as one row times a matrix
a block, so that no product of matrices is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_gradcam.graph.builder import Builder, Value

from .cam import as_map
from .catalogue import method

__all__ = ["Attention", "rolled_out"]


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention maps of a transformer, or their gradients.

    Attributes:
        blocks: `float32 [N, heads, T, T]` of every block in order.
        pooling: `float32 [N, heads, rows, T]` of a last attention that pools the tokens; `None` for none.
        skipped: the number of tokens at both ends that `pooling` has no columns for.
        answer: what the head takes from each token where nothing pools them, `[T]`: the class token, or a mean.
        before: the number of class and register tokens before the grid.
        count: the number of tokens in the grid.
    """

    blocks: Sequence[Value]
    pooling: Value | None
    skipped: tuple[int, int]
    answer: npt.NDArray[np.float32]
    before: int
    count: int


@method("legrad", title="LeGrad", reference="Bousselham et al. 2024, eq. 5 to 8; without its own min-max normalization")
def le_grad(t: Builder, A: Value, attentions: Sequence[tuple[Value, int]]) -> Value:
    """sum_b mean_ht max(dS_b / dE_bht, 0), with E_b the attention maps of block b and S_b the score of its output.

    Where a last attention pools the tokens, E_b is its map for the output of block b. The mean is over heads h and
    attending tokens t; the columns of class and register tokens are left out.
    """
    terms = []
    for gradient, before in attentions:
        columns = t.mean(t.op("Relu", gradient), [1, 2], keepdims=False)
        count = math.prod(A.dims_behind_batch()[1:])
        terms.append(t.op("Slice", columns, t.ints(before), t.ints(before + count), t.ints(1)))
    return as_map(t, terms[0] if len(terms) == 1 else t.op("Sum", *terms), A)


@method(
    "rollout",
    title="Attention rollout",
    reference="Abnar and Zuidema 2020, section 3; min-max. It does not depend on the class",
)
def rollout(t: Builder, A: Value, P: Attention) -> Value:
    """The class token's row of prod_b (mean_h P_bh + I) / 2, or the mean of the rows that the head averages."""
    return rolled_out(t, A, P, lambda maps: t.mean(maps, [1], keepdims=False))


@method(
    "rollout-max",
    title="Attention rollout over the strongest heads",
    reference="Gildenblat 2020, vit_rollout.py: max over heads, of which 0.9 is discarded. No class either",
)
def rollout_of_the_strongest(t: Builder, A: Value, P: Attention) -> Value:
    """Rollout of max_h P_bh, whose lowest nine tenths are zero but for the class token's own entry."""
    return rolled_out(t, A, P, lambda maps: t.reduce("ReduceMax", maps, [1], keepdims=False), discard=0.9)


def rolled_out(
    t: Builder, A: Value, P: Attention, over_heads: Callable[[Value], Value], *, discard: float = 0.0
) -> Value:
    """Rollout with heads made one by `over_heads`, and the lowest part of each map set to zero."""
    row = _answer(t, P, None if P.pooling is None else over_heads(P.pooling))
    for maps in reversed(P.blocks):
        one = over_heads(maps)
        one = _discarded(t, one, len(P.answer) ** 2, discard) if discard else one
        # A row of (F + I) / 2, divided by its sum, is one of (F + I) / (sum F + 1).
        scaled = row / t.transpose(t.sum(one, [2]) + 1.0, [0, 2, 1])
        row = scaled @ one + scaled
    return _on_grid(t, row, P, A)


def _discarded(t: Builder, one: Value, entries: int, share: float) -> Value:
    """Maps `[N, T, T]` of so many `entries` without their lowest values, but always with the first entry."""
    flat = t.merged(one, 1)
    lowest = t.ops("TopK", flat, t.ints(int(entries * share)), outputs=2, axis=1, largest=0)[1]
    none = t.cast(t.op("Mul", lowest, t.const(0, np.int64)), np.float32)
    kept = t.op("ScatterElements", t.full_like(flat, 1.0), lowest, none, axis=1)
    first = t.const(np.eye(1, entries, dtype=np.float32))
    return t.reshape_like(t.op("Mul", flat, t.op("Max", kept, first)), one)


@method(
    "chefer",
    title="Transformer relevance (Chefer)",
    reference="Chefer, Gur and Wolf, ICCV 2021, eq. 5 and 6; min-max. A pooling attention is one more step (our own)",
)
def chefer(t: Builder, A: Value, P: Attention, GP: Attention) -> Value:
    """The class token's row of prod_b (I + mean_h max(GP_bh P_bh, 0)), or the mean of the rows that the head averages.

    The same number as eq. 13 and 14 of Chefer et al., CVPR 2021, with the attention in place of its relevance.
    """
    return _relevance(t, A, P, GP, first=0)


@method(
    "chefer-last",
    title="Transformer relevance (Chefer) of the last block",
    reference="Chefer et al. 2021, CLIP_explainability.ipynb: only the last block, as for CLIP; min-max",
)
def chefer_of_the_last_block(t: Builder, A: Value, P: Attention, GP: Attention) -> Value:
    """The class token's row of I + mean_h max(GP_Bh P_Bh, 0), or the mean of the rows that the head averages."""
    return _relevance(t, A, P, GP, first=len(P.blocks) - 1)


def _relevance(t: Builder, A: Value, P: Attention, GP: Attention, first: int) -> Value:
    """Relevance over the blocks from index `first` on."""

    def relevant(maps: Value, gradient: Value) -> Value:
        return t.mean(t.op("Relu", t.op("Mul", gradient, maps)), [1], keepdims=False)

    pooled = None if P.pooling is None or GP.pooling is None else relevant(P.pooling, GP.pooling)
    row = _answer(t, P, pooled)
    for maps, gradient in reversed(list(zip(P.blocks, GP.blocks, strict=True))[first:]):
        row = row @ relevant(maps, gradient) + row
    return _on_grid(t, row, P, A)


def _answer(t: Builder, P: Attention, pooled: Value | None) -> Value:
    """What the answer takes from each token, `[N, 1, T]`: `pooled [N, rows, T]` if an attention pools them."""
    if pooled is None:
        # ONNX Runtime's MatMul cannot broadcast one row to an empty batch.
        size = t.op("Concat", t.op("Shape", P.blocks[-1], end=1), t.ints(1, len(P.answer)), axis=0)
        batch = P.blocks[-1].shape[0]
        return t.op("Expand", t.const(P.answer.reshape(1, 1, -1)), size, shape=(batch, 1, len(P.answer)))
    row = t.mean(pooled, [1])
    before, after = P.skipped
    return t.op("Pad", row, t.ints(0, 0, before, 0, 0, after)) if before or after else row


def _on_grid(t: Builder, row: Value, P: Attention, A: Value) -> Value:
    """The tokens of the grid, less the lowest, as a map."""
    grid = t.op("Slice", row, t.ints(P.before), t.ints(P.before + P.count), t.ints(2))
    return as_map(t, grid - t.reduce("ReduceMin", grid, [2]), A)
