"""Find the explained layer and read it as `[N, C, *spatial]`."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from onnx_gradcam.errors import TargetError, UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import QUANTISATION, VIEWS, Carries, between, carries_content, dominators, node_inputs

from .axes import Axis, Layout, follow, frames_of, label_input, letters, window
from .layer_names import LayerNames

__all__ = ["Candidate", "Layer", "blocked", "find_layer", "on_path"]
__all__ += ["LINEAR", "PRODUCTS", "Paths", "check_grid", "follow_paths", "grid_sizes", "is_pooled", "reads_prefix"]
__all__ += ["unviewed"]

_POOLS = {"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "NhwcMaxPool"}
_ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
PRODUCTS = {"MatMul", "Einsum"}
LINEAR = {"Conv", "ConvTranspose", "Gemm", *PRODUCTS}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A tensor with spatial positions.

    Attributes:
        tensor: the activation maps.
        layout: the meaning of its axes.
        every_path: whether it is on every path from the image to the score.
    """

    tensor: Value
    layout: Layout
    every_path: bool

    @property
    def tokens(self) -> Axis | None:
        """The token axis, if the positions are tokens of a transformer."""
        return next((axis for axis in self.layout if axis is not None and axis.kind == "T"), None)

    @property
    def channels(self) -> int | str | None:
        """The number of channels."""
        return next(d for d, axis in zip(self.tensor.shape, self.layout, strict=True) if axis and axis.kind == "C")

    @property
    def grid(self) -> tuple[int | str | None, ...]:
        """The spatial sizes."""
        if self.tokens is not None:
            return self.tokens.grid
        return tuple(self.unfolded_sizes(self.tensor.shape)[i] for i in self.spatial)

    @property
    def probe_grid(self) -> tuple[int, ...]:
        """The spatial sizes in the example binding of free dimensions; empty where they are unknown."""
        if self.tokens is not None:
            return self.tokens.grid
        shape = self.tensor.probe_shape
        if shape is None:
            return ()
        return tuple(int(self.unfolded_sizes(shape)[i] or 0) for i in self.spatial)

    @property
    def frames(self) -> int:
        """How many frames the first axis holds for each sample of the batch; 0 where it is the batch alone."""
        return frames_of(self.layout)

    @property
    def unfolded(self) -> Layout:
        """The layout with frames as an axis of their own."""
        first = self.layout[0]
        if not self.frames or first is None:
            return self.layout
        return (*(axis for axis, _ in first.parts), *self.layout[1:])

    def unfolded_sizes(self, sizes: Sequence[int | str | None]) -> tuple[int | str | None, ...]:
        """Sizes of the tensor's axes as sizes of the `unfolded` ones."""
        if not self.frames:
            return tuple(sizes)
        rows = sizes[0] // self.frames if isinstance(sizes[0], int) else None
        return (rows, self.frames, *sizes[1:])

    @property
    def spatial(self) -> list[int]:
        """The spatial axes among the `unfolded` ones, height first."""
        pairs = [(axis.place, i) for i, axis in enumerate(self.unfolded) if axis is not None and axis.kind == "S"]
        return [i for _, i in sorted(pairs)]

    def describe(self) -> str:
        """Layout in the usual letters, e.g. `NCHW`, `NHWC` or `NTC`."""
        return letters(self.layout)

    def canonical(self, t: Builder, value: Value) -> Value:
        """`value`, which has the target tensor's axes, as `[N, C, *spatial]` without class and register tokens."""
        tokens = self.tokens
        where = {axis.kind: i for i, axis in enumerate(self.unfolded) if axis is not None}
        if self.frames:
            behind = t.op("Shape", value, start=1)
            shape = self.unfolded_sizes(value.shape)
            value = t.op("Reshape", value, t.op("Concat", t.ints(-1, self.frames), behind, axis=0), shape=shape)
        if tokens is None:
            return t.transpose(value, [where["N"], where["C"], *self.spatial])
        if tokens.before or tokens.after:
            count = math.prod(tokens.grid)
            starts, ends = t.ints(tokens.before), t.ints(tokens.before + count)
            value = t.op("Slice", value, starts, ends, t.ints(where["T"]))
        value = t.transpose(value, [where["N"], where["C"], where["T"]])
        return t.op("Reshape", value, t.ints(0, 0, *tokens.grid))

    def restored(self, t: Builder, value: Value) -> Value:
        """`[N, C, *spatial]` with the axes of the target tensor, `canonical` undone; refused if it has class tokens."""
        kinds = [axis.kind if axis is not None else "" for axis in self.layout]
        if self.tokens is not None:
            if self.tokens.before or self.tokens.after:
                raise UnsupportedError(
                    f"layer {self.tensor.name!r} holds class tokens besides its spatial positions, "
                    "which maps alone do not tell; choose a method that does not run the head again"
                )
            flat = t.merged(value, 2)
            return t.transpose(flat, ["NCT".index(k) for k in kinds])
        kinds = [axis.kind if axis is not None else "" for axis in self.unfolded]
        value = t.transpose(
            value, ["NC".index(k) if k in "NC" else 2 + self.spatial.index(i) for i, k in enumerate(kinds)]
        )
        if not self.frames:
            return value
        behind = t.op("Shape", value, start=2)
        return t.op("Reshape", value, t.op("Concat", t.ints(-1), behind, axis=0))


@dataclass(frozen=True, eq=False)
class Layer:
    """The explained tensor, the reason for it, and the other candidates.

    Attributes:
        chosen: the explained tensor.
        reason: why it was chosen, in words.
        candidates: all tensors with spatial positions between image and score, in graph order.
    """

    chosen: Candidate
    reason: str
    candidates: Sequence[Candidate] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Paths:
    """The paths from the image to the score.

    Attributes:
        t: the graph.
        image: the image input.
        score: what is explained.
        carries: which edges a gradient can cross.
        way: which edges make a path: those of `carries`, or all that carry content where no gradient gets through.
        nodes: the nodes on any path that a gradient can cross, in topological order.
        alive: the tensors on these paths.
        chain: the tensors on every path, in order, both ends included.
        layouts: the meaning of the axes of all tensors.
        candidates: all tensors with spatial positions on these paths, in graph order.
    """

    t: Builder
    image: Value
    score: Value
    carries: Carries
    way: Carries
    nodes: Sequence[ir.Node]
    alive: set[ir.Value]
    chain: Sequence[ir.Value]
    layouts: dict[ir.Value, Layout]
    candidates: Sequence[Candidate]

    @cached_property
    def class_token_head(self) -> _ClassTokenHead | None:
        """The head, if it reads class and register tokens only."""
        return _class_token_head(self.t, self.candidates, self.nodes)


def follow_paths(t: Builder, image: Value, score: Value, carries: Carries) -> Paths:
    """Find the paths on which a layer can be.

    Raises:
        TargetError: the score does not depend on the image.
        UnsupportedError: step functions stop every gradient of the score.
    """
    clip = _clip(t, image)
    layouts = follow(t, {} if clip is None else {image.core: clip})
    positions = _POSITIONS[image.rank] if clip is None else {3}
    way = carries
    path, alive = between(t.nodes, [image.core], [score.core], carries)
    if not path:
        way = carries_content
        nodes, reached = between(t.nodes, [image.core], [score.core], way)
        # Behind a step function in front of the layer, such as a rounded image, there is a gradient all the same.
        path, alive = between(nodes, reached, [score.core], carries)
    chain = dominators(t.nodes, image.core, [score.core], way)
    if not chain:
        raise TargetError(f"the score {score.name!r} does not depend on the input {image.name!r}; name another output")
    if not path:
        raise UnsupportedError(blocked(t, image, score, carries))
    on_every_path = set(chain)
    batch = (image.probe_shape or (0,))[0]
    candidates = [
        Candidate(t.wrap(o), layout, o in on_every_path)
        for node in path
        for o in node.outputs
        if o in alive and (layout := layouts.get(o)) is not None and _has_positions(t.wrap(o), layout, batch, positions)
    ]
    return Paths(t, image, score, carries, way, path, alive, chain, layouts, candidates)


def find_layer(
    paths: Paths,
    layer: str = "auto",
    names: dict[str, str] | None = None,
    classes: int | None = None,
    *,
    boxes: bool = False,
) -> Layer:
    """Choose the target tensor; `layer` is the name of a tensor, a node or a framework's layer (`names`), or `auto`.

    `auto` skips maps of one channel or of `classes` channels, which are the model's answer, and with `boxes` all
    tensors behind the last convolution or matrix product, which describe boxes.

    Raises:
        TargetError: no such layer, it has no spatial positions, or the score does not depend on it.
        UnsupportedError: step functions stop every gradient behind the layer.
    """
    t, image, score, carries, alive = paths.t, paths.image, paths.score, paths.carries, paths.alive
    candidates = paths.candidates
    head = paths.class_token_head
    if layer != "auto":
        value, how = _requested(t, layer, names or {}, candidates, alive)
        value = on_path(t, _dequantised(t, value), alive)
        _, reached = between(t.nodes, [image.core], [score.core], carries_content)
        if value.core in reached - {score.core} and not between(t.nodes, [value.core], [score.core], carries)[0]:
            raise UnsupportedError(blocked(t, value, score, carries))
        chosen, reason = _candidate(layer, value, candidates, alive, paths.layouts), how
        if head is not None:
            _refuse_behind_attention(t, head, chosen, carries)
    elif head is not None:
        chosen, reason = _feeding(t, image, head, candidates, paths.way)
    else:
        chosen, reason = _automatic(t, _no_answers(candidates, paths.nodes, classes, boxes=boxes), score)
    check_grid(chosen)
    return Layer(chosen, reason, candidates)


def check_grid(chosen: Candidate) -> None:
    """Refuse a layer without positions, and tokens whose number depends on the image's size."""
    if 0 in chosen.grid:
        raise TargetError(
            f"layer {chosen.tensor.name!r} has no positions ({' x '.join(map(str, chosen.grid))}): the image is too "
            "small for the model's convolutions and pools; export the model for a larger one"
        )
    if chosen.tokens is not None and not isinstance(chosen.tensor.shape[chosen.layout.index(chosen.tokens)], int):
        raise TargetError(
            f"the grid of the tokens of {chosen.tensor.name!r} depends on the image's size, which the model leaves "
            "open; export it with a fixed size"
        )


def blocked(t: Builder, image: Value, score: Value, carries: Carries) -> str:
    """Why no gradient of the score reaches the image, in a sentence that names the last node that stops it."""
    path, _ = between(t.nodes, [image.core], [score.core], carries_content)
    stops = [node for node in path if not any(carries(node, v) for v in node_inputs(node))]
    return (
        f"the derivative of {stops[-1].op_type} ({str(stops[-1].outputs[0].name)!r}) is zero, so no gradient of the "
        f"score {score.name!r} passes it; choose a method without gradients, such as eigencam or scorecam"
    )


def _clip(t: Builder, image: Value) -> Layout | None:
    """The layout of a clip or volume, whose frames the graph may make rows of the batch; `None` for other inputs."""
    layout = label_input(t, image) if image.rank in {4, 5} else None
    return layout if layout is not None and letters(layout).count("D") else None


_POSITIONS = {2: {1}, 3: {1, 2}, 4: {2}, 5: {3}}
"""The number of spatial axes of a layer, by the rank of the input; graphs add one of size one to a signal."""


def _has_positions(value: Value, layout: Layout, batch: int, positions: Container[int]) -> bool:
    """Whether a tensor has one of so many spatial axes, one of channels, the input's batch, and no unknown axis."""
    kinds = [axis.kind if axis is not None else None for axis in layout]
    frames = frames_of(layout)
    if frames:
        kinds[0] = "N"
    if None in kinds or kinds.count("C") != 1 or kinds.count("N") != 1 or not value.is_float:
        return False
    if value.probe_shape is not None and value.probe_shape[kinds.index("N")] != batch * (frames or 1):
        return False
    tokens = next((axis for axis in layout if axis is not None and axis.kind == "T"), None)
    if tokens is not None:
        return not frames and kinds.count("T") == 1 and "S" not in kinds and math.prod(tokens.grid) > 1
    sizes = [d for d, kind in zip(value.shape, kinds, strict=True) if kind == "S"]
    return len(sizes) + bool(frames) in positions and any(d != 1 for d in sizes)


def _no_answers(
    candidates: Sequence[Candidate], path: Sequence[ir.Node], classes: int | None, *, boxes: bool
) -> list[Candidate]:
    """The candidates without those that hold the model's answer for each position."""
    if classes is not None:
        return [c for c in candidates if c.channels not in {1, classes}]
    if not boxes:
        return list(candidates)
    last = max((i for i, node in enumerate(path) if node.op_type in LINEAR), default=len(path))
    before = {o for node in path[:last] for o in node.outputs}
    return [c for c in candidates if c.tensor.core in before]


def _automatic(t: Builder, candidates: Sequence[Candidate], score: Value) -> tuple[Candidate, str]:
    useful = [c for c in candidates if c.every_path and not is_pooled(c.tensor.core)]
    if not useful:
        shown = ", ".join(repr(c.tensor.name) for c in candidates[-5:])
        hint = f"; name one with --layer, for example one of {shown}" if shown else ""
        raise TargetError(f"no tensor with spatial positions is on every path to the score {score.name!r}{hint}")
    chosen = unviewed(t, useful[-1], useful)
    where = "on every path to the score, before pooling or flattening"
    return chosen, f"the last tensor with spatial extent{grid_sizes(chosen)} {where}"


def grid_sizes(*candidates: Candidate) -> str:
    """The spatial sizes in brackets, such as ` (8x8, 4x?)`, `?` for free or computed ones; empty if all are."""
    if not any(isinstance(side, int) for candidate in candidates for side in candidate.grid):
        return ""
    return f" ({', '.join(map(_grid_size, candidates))})"


def _grid_size(candidate: Candidate) -> str:
    return "x".join(str(size) if isinstance(size, int) else "?" for size in candidate.grid)


def is_pooled(value: ir.Value) -> bool:
    """Whether a tensor is a pooling result, or a view of one."""
    node = value.producer()
    while node is not None and node.op_type in VIEWS | QUANTISATION and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    # One of every few positions is none of several.
    picks = node is not None and {*node.attributes.get_ints("kernel_shape", ())} == {1}
    return node is not None and node.op_type in _POOLS and not picks


def unviewed(t: Builder, chosen: Candidate, useful: Sequence[Candidate]) -> Candidate:
    """The tensor that `chosen` is a view of (transposed, reshaped, quantized and dequantized).

    Quantization clips, and is often all that is left of a rectifier: what it reads is not the same layer.
    """
    node = chosen.tensor.core.producer()
    by_value = {c.tensor.core: c for c in useful}
    clipped = False
    while node is not None and node.op_type in VIEWS | QUANTISATION:
        source = node.inputs[0]
        if source is None:
            break
        producer = source.producer()
        clipped = node.op_type == "QuantizeLinear" or (clipped and node.op_type != "DequantizeLinear")
        if source in by_value and node.op_type not in QUANTISATION and not clipped:
            chosen = by_value[source]
        node = producer if source in by_value or not t.wrap(source).is_float else None
    return chosen


@dataclass(frozen=True)
class _ClassTokenHead:
    """A head that reads only class and register tokens.

    Attributes:
        last: the tokens that it reads.
        mixers: the attentions (any product of two activations) in front of it, in graph order; behind the last one
            the patch tokens no longer reach the score, so their gradient is zero there.
    """

    last: Candidate
    mixers: Sequence[ir.Node]


def _class_token_head(t: Builder, candidates: Sequence[Candidate], path: Sequence[ir.Node]) -> _ClassTokenHead | None:
    tokens = {c.tensor.core: c for c in candidates if c.tokens is not None}
    readers = {v: [n for n in path if v in n.inputs] for v in tokens}
    read = [v for v in tokens if readers[v] and all(reads_prefix(t, n, tokens[v]) for n in readers[v])]
    if not read:
        return None
    alive = {o for n in path for o in n.outputs}
    before = path[: path.index(readers[read[-1]][0])]
    mixers = [n for n in before if n.op_type in _ATTENTION or (n.op_type in PRODUCTS and alive.issuperset(n.inputs))]
    return _ClassTokenHead(tokens[read[-1]], mixers)


def _feeding(
    t: Builder, image: Value, head: _ClassTokenHead, candidates: Sequence[Candidate], carries: Carries
) -> tuple[Candidate, str]:
    """The token grid that feeds the last attention."""
    chain = dominators(t.nodes, image.core, [head.mixers[-1].outputs[0]], carries)[:-1] if head.mixers else []
    feeding = [
        c for c in candidates if c.tensor.core in chain and c.tokens is not None and c.channels == head.last.channels
    ]
    if not feeding:
        raise TargetError(
            f"the head reads the class token of {head.last.tensor.name!r} only, and which token grid feeds the last "
            "attention cannot be told; name a layer in front of it with --layer"
        )
    chosen = unviewed(t, feeding[-1], feeding)
    grid = _grid_size(chosen)
    return chosen, (
        f"the head reads the class token only, so this is the last normalised grid of {grid} tokens "
        "that the last attention reads"
    )


def _refuse_behind_attention(t: Builder, head: _ClassTokenHead, chosen: Candidate, carries: Carries) -> None:
    mixed = [n.outputs[0] for n in head.mixers]
    if chosen.tokens is not None and not between(t.nodes, [chosen.tensor.core], mixed, carries)[0]:
        raise TargetError(
            f"behind the last attention only the class token reaches the score, so the patch tokens of "
            f"{chosen.tensor.name!r} have no gradient; choose a layer in front of it, or auto"
        )


def reads_prefix(t: Builder, node: ir.Node, source: Candidate) -> bool:
    """Whether a Gather or Slice keeps class and register tokens only."""
    axis = source.tokens
    if axis is None or not (axis.before or axis.after) or node.inputs[0] is not source.tensor.core:
        return False
    where, first = source.layout.index(axis), axis.before
    count = math.prod(axis.grid)
    if node.op_type == "Slice":
        kept = window(t, node, where, first + count + axis.after)
        if kept is None:
            # Bounds computed from shapes: a slice this short holds no whole grid, but may hold all tokens before it.
            result = t.wrap(node.outputs[0]).probe_shape
            return result is not None and result[where] <= first
        return kept[1] <= first or kept[0] >= first + count
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) % len(source.layout) == where:
        index = None if node.inputs[1] is None else t.wrap(node.inputs[1]).array()
        return index is not None and not any(0 <= i % (first + count + axis.after) - first < count for i in index.flat)
    return False


def _requested(
    t: Builder, layer: str, names: dict[str, str], candidates: Sequence[Candidate], alive: set[ir.Value]
) -> tuple[Value, str]:
    """The tensor that a layer's name means, and why, in words."""
    table = LayerNames(t, names, alive)
    named = table.find(layer)
    if named is None:
        others = [*(c.tensor.name for c in candidates), *(str(n.name) for n in t.nodes if n.name)]
        raise TargetError(
            f"the model has no layer {layer!r}{table.near(layer, others) or '; inspect lists the layers'}"
        )
    return named


def _dequantised(t: Builder, value: Value) -> Value:
    """The real numbers that a quantized tensor stands for, if the graph has them."""
    readers = () if value.is_float else value.core.consumers()
    return next((t.wrap(n.outputs[0]) for n in readers if n.op_type == "DequantizeLinear"), value)


def _candidate(
    layer: str,
    value: Value,
    candidates: Sequence[Candidate],
    alive: set[ir.Value],
    layouts: dict[ir.Value, Layout],
) -> Candidate:
    """The candidate that a requested tensor is."""
    for candidate in candidates:
        if candidate.tensor is value:
            return candidate
    layout = layouts.get(value.core)
    if value.core not in alive:
        raise TargetError(f"the score does not depend on layer {layer!r}; inspect lists the layers on its path")
    kinds = {axis.kind if axis is not None else "" for axis in layout or (None,)}
    if kinds.isdisjoint({"", "c", "r", "*"}):
        raise TargetError(
            f"layer {layer!r} of shape {list(value.shape)} has a single position; choose a layer with several"
        )
    raise TargetError(
        f"the spatial axes of layer {layer!r} of shape {value.known_shape} are unknown; choose another layer"
    )


def on_path(t: Builder, value: Value, alive: set[ir.Value]) -> Value:
    """The first tensor in `alive` before `value` and its Transpose, Identity and Cast nodes; else the last one seen.

    Exporters expose layers as copies that nothing reads.
    """
    while value.core not in alive:
        node = value.core.producer()
        if node is None or node.op_type not in {"Transpose", "Identity", "Cast"} or node.inputs[0] is None:
            break
        value = t.wrap(node.inputs[0])
    return value
