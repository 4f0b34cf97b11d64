"""The feature maps that heads read, one of each level of a detector's pyramid or of each branch of an ensemble.

Where a score is read from several grids, the last tensor on every path lies far back, before the grids part. The set of
the last tensors of every grid has the score behind it as well: each path from the image leads through one of them.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence

import onnx_ir as ir

from onnx_gradcam.errors import TargetError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.paths import QUANTISATION, VIEWS, between, dominators, node_inputs

from .layer import LINEAR, Candidate, Layer, Paths, check_grid, find_layer, grid_sizes, is_pooled, unviewed

__all__ = ["BACKBONE", "find_layers"]

BACKBONE = "backbone"
"""The name that stands for the end of a detector's backbone."""

_ROUNDING = VIEWS | QUANTISATION | {"DynamicQuantizeLinear", "Sub"}
"""What may be between a feature map and a convolution; a quantised one subtracts its zero point."""


def find_layers(
    paths: Paths,
    layer: str = "auto",
    names: dict[str, str] | None = None,
    classes: int | None = None,
    *,
    boxes: bool = False,
    several: bool = True,
) -> tuple[Layer, ...]:
    """The target tensors: the one of `find_layer`, or where `several` may be explained together, a set.

    `auto` takes the inputs of the heads of a detector (`boxes`), one of each grid. For other models it takes a set only
    where no single tensor is on every path, or only the image itself, scaled or shifted. `backbone` is the end of a
    detector's backbone: of the tensors that all these levels are computed from, the last one of the coarsest grid.

    Raises:
        TargetError: as `find_layer`.
        UnsupportedError: as `find_layer`.
    """
    automatic = layer == "auto" and several and paths.class_token_head is None
    if boxes and (automatic or layer == BACKBONE) and (levels := _levels(paths, boxes=True)):
        if layer == BACKBONE:
            return (_backbone(paths, levels),)
        return _layers(paths, levels, "detection head reads")
    branching = automatic and classes is None
    try:
        single = find_layer(paths, layer, names, classes, boxes=boxes)
    except TargetError:
        levels = _levels(paths, boxes=boxes) if branching else []
        if not levels:
            raise
    else:
        levels = _levels(paths, boxes=boxes) if branching and _is_image(paths, single.chosen) else []
        if not levels:
            return (single,)
    return _layers(paths, levels, "branches of the model end in")


def _is_image(paths: Paths, candidate: Candidate) -> bool:
    """Whether a tensor is computed from the image without a convolution or product: it is no feature map."""
    nodes, _ = between(paths.nodes, [paths.image.core], [candidate.tensor.core], paths.way)
    return not any(node.op_type in LINEAR for node in nodes)


def _layers(paths: Paths, levels: Sequence[Candidate], what: str) -> tuple[Layer, ...]:
    for level in levels:
        check_grid(level)
    shown = f"the last feature map{'s' if len(levels) > 1 else ''} that the {what}{grid_sizes(*levels)}"
    return tuple(Layer(level, shown, paths.candidates) for level in levels)


def _backbone(paths: Paths, levels: Sequence[Candidate]) -> Layer:
    """The last tensor of the coarsest grid among those that all levels are computed from."""
    sources = [between(paths.nodes, [paths.image.core], [level.tensor.core], paths.way)[1] for level in levels]
    common = set.intersection(*sources)
    shared = [c for c in paths.candidates if c.tensor.core in common and math.prod(c.probe_grid) > 1]
    if not shared:
        raise TargetError("the levels of this detector have no feature map in common; name layers with --layer")
    fewest = min(math.prod(c.probe_grid) for c in shared)
    coarsest = [c for c in shared if math.prod(c.probe_grid) == fewest]
    chosen = unviewed(paths.t, coarsest[-1], coarsest)
    check_grid(chosen)
    return Layer(
        chosen, f"the end of the backbone, which all levels are computed from{grid_sizes(chosen)}", paths.candidates
    )


def _levels(paths: Paths, *, boxes: bool) -> list[Candidate]:
    """The last tensors of every grid that the score is read from, in graph order; empty if other paths are left.

    For `boxes` these are the inputs of heads; else the last ones of every branch, before pooling.
    """
    # Of what the score appends the sizes are not known; it moves numbers of the last tensors whose sizes are.
    positions = {c.tensor.core: c for c in paths.candidates if c.probe_grid}
    levels: dict[ir.Value, Candidate] = {}
    groups: dict[tuple[int, ...], list[ir.Value]] = {}
    for value in _exits(paths, positions):
        end = value if boxes else _unpooled(value, positions)
        groups.setdefault(positions[end].probe_grid, []).append(end)
    for grid, exits in groups.items():
        level = _level(paths, positions, grid, exits, boxes=boxes)
        # Branches that share nothing have a layer each.
        found = [level] if level else [_level(paths, positions, grid, [value], boxes=boxes) for value in exits]
        levels |= {c.tensor.core: c for c in found if c is not None}
    if not levels or _reaches(paths, levels):
        return []
    place = {value: i for i, value in enumerate(positions)}
    return sorted(levels.values(), key=lambda c: place[c.tensor.core])


def _exits(paths: Paths, positions: Iterable[ir.Value]) -> list[ir.Value]:
    """The tensors with positions that a node reads whose result leads to no such tensor any more."""
    known = set(positions)
    exits: dict[ir.Value, None] = {}
    leads: set[ir.Value] = set()
    for node in reversed(paths.nodes):
        onward = any(o in known or o in leads for o in node.outputs if o in paths.alive)
        for value in node_inputs(node):
            if value not in paths.alive or not paths.way(node, value):
                continue
            if onward:
                leads.add(value)
            elif value in known:
                exits[value] = None
    return list(exits)[::-1]


def _unpooled(value: ir.Value, positions: Container[ir.Value]) -> ir.Value:
    """The tensor with positions that a pooled one is computed from."""
    source: ir.Value | None = value
    while source is not None and is_pooled(source):
        node = source.producer()
        source = node.inputs[0] if node is not None else None
    return source if source is not None and source in positions else value


def _level(
    paths: Paths,
    positions: Mapping[ir.Value, Candidate],
    grid: tuple[int, ...],
    exits: Sequence[ir.Value],
    *,
    boxes: bool,
) -> Candidate | None:
    """The last tensor of a grid on every path to `exits` that no head has changed yet; `None` if there is none.

    For `boxes` that is where another head parts, such as that of the boxes, or else what the last convolution over
    several positions reads: behind that one the score of a box depends on a single position.
    """
    chain = dominators(paths.nodes, paths.image.core, exits, paths.way)
    shared = [positions[v] for v in chain if v in positions and positions[v].probe_grid == grid and not is_pooled(v)]
    if not shared:
        return None
    if not boxes:
        return unviewed(paths.t, shared[-1], shared)
    on_path = set(paths.nodes)
    parting = [c for c in shared if _feeds_another_head(c.tensor.core, on_path)]
    if parting:
        return unviewed(paths.t, parting[-1], shared)
    before = [c for c in shared if any(node.op_type in LINEAR for node in _behind(paths, c, exits))] or shared
    wide = (
        c
        for c in reversed(before)
        if any(_mixes_positions(paths.t, node) for node in _behind(paths, c, [paths.score.core]))
    )
    return unviewed(paths.t, next(wide, before[-1]), shared)


def _behind(paths: Paths, candidate: Candidate, sinks: Sequence[ir.Value]) -> list[ir.Node]:
    return between(paths.nodes, [candidate.tensor.core], sinks, paths.way)[0]


def _mixes_positions(t: Builder, node: ir.Node) -> bool:
    """Whether a convolution or product reads several positions for one of its results."""
    if node.op_type not in LINEAR or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    weights = t.wrap(node.inputs[1])
    if node.op_type in {"Conv", "ConvTranspose"}:
        return weights.known_shape is not None and any(size != 1 for size in weights.shape[2:])
    return weights.array() is None


def _feeds_another_head(value: ir.Value, on_path: set[ir.Node]) -> bool:
    """Whether a convolution or matrix product beside the paths to the score reads a tensor, perhaps rounded."""
    todo, seen = [value], set()
    while todo:
        value = todo.pop()
        for node in value.consumers():
            if node in seen:
                continue
            seen.add(node)
            if node.op_type in LINEAR and node not in on_path:
                return True
            if node.op_type in _ROUNDING:
                todo += node.outputs
    return False


def _reaches(paths: Paths, levels: Iterable[ir.Value]) -> bool:
    """Whether a path from the image to the score leads past all levels."""
    cut = set(levels)
    past = between(
        paths.nodes,
        [paths.image.core],
        [paths.score.core],
        lambda node, value: value not in cut and paths.way(node, value),
    )
    return bool(past[0])
