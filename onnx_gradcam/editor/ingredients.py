"""The ingredients of methods, appended to the graph by the backward pass: maps, gradients, the score, the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import backward, carries_gradient, cotangents_or_zero
from onnx_gradcam.autodiff.modifiers import COMPLETE
from onnx_gradcam.autodiff.offsets import offset
from onnx_gradcam.autodiff.precision import float32_cotangents
from onnx_gradcam.autodiff.providers import conform, find_profile
from onnx_gradcam.errors import InputError, UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import between, carries_content, reached_from
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.options import GradDtype

from .head import copy_behind, evaluate_behind, finite_cotangent, linear_cotangent, linear_maps
from .methods.baselines import IN_GRAPH
from .methods.cam import leading_projection, weighted_sum
from .methods.maps import spatial_size
from .methods.transformers import Attention
from .plan import Plan
from .targets.blocks import AttentionMaps, find_attention, find_blocks
from .targets.classes import check_class
from .targets.detectors.decoder import single_positions
from .targets.layer import follow_paths
from .targets.score import Score
from .targets.task import free_name

__all__ = ["MAKERS", "Ingredients"]

_BIASED = {"Conv", "BatchNormalization"}
_MAPS = 4
"""Axes of a tensor of maps; FullGrad has nothing to place over the image for one without."""


class Ingredients:
    """The ingredients of a plan's method; each is appended at most once, and only if the method needs it.

    Attributes:
        classes: the explained class of every sample, `int64 [N]`.
        class_input: the name of the input that chooses it; empty if it is fixed.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.classes, self.class_input = _classes(plan.t, plan)

    def of(self, layer: int) -> dict[str, Any]:
        """The arguments of the method for one of the layers, by the names of its parameters."""
        return {name: MAKERS[name](self, layer) for name in self.plan.method.needs}

    def head(self, maps: Value, copies: int) -> Value:
        """The score `[N, n]` for other maps, `float32 [N * n, C, *spatial]`, n of a sample next to each other.

        Raises:
            UnsupportedError: the head cannot be evaluated for other maps.
        """
        plan, t = self.plan, self.plan.t
        layer, score = plan.layer.chosen, plan.score.tensor
        start = t.cast(layer.restored(t, maps), layer.tensor.dtype)
        scores = evaluate_behind(t, plan.path, layer.tensor, start, score)
        flat = t.cast(t.op("Reshape", scores, t.ints(-1, copies, math.prod(score.dims_behind_batch()))), np.float32)
        seed = t.cast(t.merged(self.seed, 1, parts=[1]), np.float32)
        return t.sum(t.op("Mul", flat, seed), [2], keepdims=False)

    def spread(self, cam: Value) -> Value:
        """A raw map `[N, *spatial]` as factors of the pixels, `[N, H, W]`, as the preset says."""
        t = self.plan.t
        return self.plan.preset.spread(t, cam, spatial_size(t, self.image))

    def total(self, maps: Value, weights: Value | None = None) -> Value:
        """The weighted sum of maps `[N, C, *spatial]` over channels, with eigen smoothing their leading component."""
        t = self.plan.t
        if self.plan.options.eigen_smooth:
            return leading_projection(t, maps if weights is None else t.op("Mul", maps, weights))
        return t.sum(maps, [1], keepdims=False) if weights is None else weighted_sum(t, maps, weights)

    @cached_property
    def maps(self) -> list[Value]:
        """The activation maps of every layer, `float32 [N, C, *spatial]`."""
        t = self.plan.t
        return [t.cast(layer.chosen.canonical(t, layer.chosen.tensor), np.float32) for layer in self.plan.layers]

    @cached_property
    def cotangents(self) -> list[Value]:
        """The cotangents of the maps; of size one along the spatial axes if the same at all positions."""
        plan, t = self.plan, self.plan.t
        if plan.weights == "linear" and plan.head is not None:
            return [
                linear_cotangent(
                    t, plan.head, plan.score, self.maps[0], self.classes, sign=self._sign, seed=self._flat_seed
                )
            ]
        if plan.weights == "finite" and plan.head is not None:
            return [finite_cotangent(t, plan.head, plan.score, self.maps[0], self.seed, plan.path)]
        modifier = plan.options.modifier if plan.method.differentiates("image") else plan.modifier
        pairs = zip(plan.layers, self._backward(plan.targets, modifier), strict=True)
        return [layer.chosen.canonical(t, g) for layer, g in pairs]

    def _backward(self, wrt: list[Value], modifier: str | None, grad_dtype: GradDtype | None = None) -> list[Value]:
        """The cotangents of tensors, in float32; computed as the options say, or in another type."""
        plan, t = self.plan, self.plan.t
        since = len(t.appended)
        table, grad_dtype = plan.table(modifier), grad_dtype or plan.options.grad_dtype
        cotangents = float32_cotangents(t, plan.score.tensor, self.seed, wrt, table, grad_dtype, self._points)
        return self._within_profile(cotangents, since)

    @cached_property
    def _points(self) -> set[ir.Value]:
        """The maps of a detector of which the score of a box reads a single position."""
        plan, t = self.plan, self.plan.t
        table = None if plan.detections is None else t.find(plan.detections.scores)
        if table is None or plan.objective is not None:
            return set()
        return single_positions(t, table, plan.image.free_batch)

    def _within_profile(self, gradients: Sequence[Value], since: int) -> list[Value]:
        """Gradients, of nodes appended after the first `since`, in operators that the profile's runtime documents."""
        return conform(self.plan.t, find_profile(self.plan.options.profile), gradients, since)[0]

    def gradient(self, layer: int) -> Value:
        """The cotangent of a layer, changed as the preset says."""
        change, maps, gradient = self.plan.preset.cotangent, self.maps[layer], self.cotangents[layer]
        return gradient if change is None else change(self.plan.t, maps, gradient)

    def spread_cotangent(self, layer: int) -> Value:
        """The cotangent of a layer in the shape of its maps, unchanged by the preset."""
        return self.plan.t.expand_like(self.cotangents[layer], self.maps[layer])

    @cached_property
    def bias_terms(self) -> list[Value]:
        """Every bias of a convolution or batch normalization times the cotangent of its output, `[N, C, h, w]` each.

        The bias of a convolution includes a folded batch normalization. Normalizations behind the pooling have no map.
        """
        plan, t = self.plan, self.plan.t
        computed = {o for node in plan.path for o in node.outputs}
        biases = {t.wrap(node.outputs[0]): bias for node in plan.path if (bias := _bias(t, node, computed)) is not None}
        cotangents = self._backward(list(biases), plan.modifier) if biases else []
        pairs = zip(cotangents, biases.values(), strict=True)
        return [t.op("Mul", g, t.op("Reshape", bias, t.ints(-1, *[1] * (g.rank - 2)))) for g, bias in pairs]

    @cached_property
    def image(self) -> Value:
        """The image, `float32 [N, C, H, W]`."""
        t = self.plan.t
        return t.cast(self.plan.image_candidate.canonical(t, self.plan.image), np.float32)

    @cached_property
    def image_cotangent(self) -> Value:
        """The cotangent of the image, `float32 [N, C, H, W]`."""
        plan, t = self.plan, self.plan.t
        if plan.is_complete or "constants" in plan.method.needs:
            gradient = self._shares[0]
        else:
            (gradient,) = self._backward([plan.image], plan.modifier)
        return plan.image_candidate.canonical(t, gradient)

    @cached_property
    def _shares(self) -> tuple[Value, list[tuple[Value, Value]]]:
        """The cotangent of the image; and of every node that adds something, its output with that times its cotangent.

        All of them come from one backward pass, but for float16 models, whose cotangents are scaled on the way to each.
        """
        plan, t = self.plan, self.plan.t
        table, chords = plan.table(plan.modifier), plan.modifier in COMPLETE
        moving = reached_from(t.nodes, [plan.image.core], carries_gradient(t))
        path, _ = between(t.nodes, [plan.image.core], [plan.score.tensor.core], carries_gradient(t, table))
        added = {
            t.wrap(node.outputs[0]): b for node in path if (b := offset(t, node, moving, chords=chords)) is not None
        }
        if any(v.dtype == np.float16 for v in added) and plan.options.grad_dtype == "model":
            (gradient,) = self._backward([plan.image], plan.modifier)
            cotangents = self._backward([*added], plan.modifier, "float32") if added else []
        else:
            gradient, *cotangents = self._backward([plan.image, *added], plan.modifier)
        pairs = zip(cotangents, added.items(), strict=True)
        return gradient, [(y, t.op("Mul", g, t.cast(b, np.float32), shape=y.known_shape)) for g, (y, b) in pairs]

    @cached_property
    def completeness(self) -> Value:
        """The score less the image times its gradient and less what the biases contribute, `float32 [N]`."""
        t = self.plan.t
        own = t.sum(t.op("Mul", self.image, self.image_cotangent), range(1, self.image.rank), keepdims=False)
        shares = [own, *(self._of_rows(y, product) for y, product in self._shares[1])]
        return self.score - (shares[0] if len(shares) == 1 else t.op("Sum", *shares))

    @cached_property
    def constant_terms(self) -> list[Value]:
        """Every additive constant of maps or tokens times the cotangent of what it is added to, `[N, C, h, w]` each."""
        plan, t = self.plan, self.plan.t
        paths = follow_paths(t, plan.image, plan.score.tensor, carries_gradient(t))
        places = {candidate.tensor: candidate for candidate in paths.candidates}
        terms = [(places.get(y), term) for y, term in self._shares[1]]
        return [place.canonical(t, term) for place, term in terms if place is not None and len(place.grid) == _MAPS - 2]

    def _of_rows(self, y: Value, values: Value) -> Value:
        """The sum of `values`, in the shape of a tensor of the graph, for each image: `[N]`."""
        t, batch = self.plan.t, self.plan.image.shape[0]
        if batch == 1:
            return t.op("Reshape", t.sum(values), t.ints(1))
        axis = _axis_of_rows(y, self.plan.image)
        if y.shape[axis] == batch:
            return t.sum(values, [i for i in range(values.rank) if i != axis], keepdims=False)
        # Windows of an image lie behind one another.
        front = t.transpose(values, [axis, *(i for i in range(values.rank) if i != axis)])
        rows = t.op("Shape", self.plan.image, end=1) if not isinstance(batch, int) else t.ints(batch)
        flat = t.op("Reshape", front, t.op("Concat", rows, t.ints(-1), axis=0), shape=(batch, None))
        return t.sum(flat, [1], keepdims=False)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The options that the method takes, by the names of their fields."""
        return self.plan.method.settings(self.plan.options)

    @cached_property
    def baselines(self) -> list[Value]:
        """The images that stand for no information, `float32 [N, C, *spatial]`; sizes may be one.

        Raises:
            UnsupportedError: one cannot be written into the model.
        """
        return [self._baseline(word) for word in self.settings["baseline"]]

    def _baseline(self, word: str) -> Value:
        plan, t = self.plan, self.plan.t
        if word in IN_GRAPH:
            return IN_GRAPH[word](t, self.image)
        if word not in {"black", "white"}:
            able = ", ".join((*IN_GRAPH, "black", "white"))
            raise UnsupportedError(f"the baseline {word!r} cannot be a part of a model; use explain, or one of {able}")
        if plan.preprocessing is None:
            raise InputError(
                f"the model carries no preprocessing, so it is not known what a {word} image is to it; give it with "
                "--preprocess, or take the baseline darkest, lightest or mean"
            )
        level = parse_preprocessing(plan.preprocessing).level(0 if word == "black" else 255)
        return t.const(np.array(level, np.float32).reshape(1, -1, *[1] * (self.image.rank - 2)))

    def gradients(self, images: Value, copies: int) -> Value:
        """The cotangents `[N * n, C, *spatial]` of other images, n of a sample next to each other.

        Raises:
            UnsupportedError: the model cannot be evaluated for more images than its batch holds.
        """
        plan, t = self.plan, self.plan.t
        start, score = self._evaluated(images, copies)
        t.adopt()
        since = len(t.appended)
        repeated = t.op("Expand", t.op("Unsqueeze", self.seed, t.ints(1)), t.ints(1, copies, *[1] * (score.rank - 1)))
        seed = t.reshape_like(repeated, score)
        table = plan.table(plan.modifier)
        gradients = float32_cotangents(t, score, seed, [start], table, plan.options.grad_dtype)
        (gradient,) = self._within_profile(gradients, since)
        return plan.image_candidate.canonical(t, gradient)

    def _evaluated(self, images: Value, copies: int) -> tuple[Value, Value]:
        """Other images, n for each sample, as the model takes them, and the score tensor of a copy of it for them."""
        plan, t = self.plan, self.plan.t
        if plan.task.boxes or plan.objective is not None or plan.task.takes_mask(plan.options):
            what = f"{plan.method.title} as a part of the model explains the score of a class, and no box or comparison"
            raise UnsupportedError(f"{what}; use explain")
        rows = plan.image.shape[0]
        # A batch of known name, so that gradients need not sum over what might have been broadcast.
        named = t.refine(images, (rows * copies if isinstance(rows, int) else t.unique("rows"), *images.shape[1:]))
        start = t.cast(plan.image_candidate.restored(t, named), plan.image.dtype)
        everything, _ = between(t.nodes, [plan.image.core], [plan.score.tensor.core], lambda *_: True)
        return start, evaluate_behind(t, everything, plan.image, start, plan.score.tensor)

    def left_of_change(self, attribution: Value) -> Value:
        """The score minus the mean of the baselines' scores minus the sum of an attribution to both, `float32 [N]`."""
        t, count = self.plan.t, len(self.baselines)
        like = [t.op("Unsqueeze", t.expand_like(start, self.image), t.ints(1)) for start in self.baselines]
        joined = like[0] if count == 1 else t.op("Concat", *like, axis=1)
        behind = t.op("Concat", t.ints(-1), t.op("Shape", self.image, start=1), axis=0)
        images = t.op("Reshape", joined, behind, shape=(None, *self.image.shape[1:]))
        _, tensor = self._evaluated(images, count)
        width = math.prod(self.plan.score.tensor.dims_behind_batch())
        apart = t.cast(t.op("Reshape", tensor, t.ints(-1, count, width)), np.float32)
        seed = t.cast(t.op("Reshape", self.seed, t.ints(-1, 1, width)), np.float32)
        scores = t.sum(t.op("Mul", apart, seed), [2], keepdims=False)
        change = self.score - t.mean(scores, [1], keepdims=False)
        return change - t.sum(attribution, range(1, attribution.rank), keepdims=False)

    @cached_property
    def attentions(self) -> list[tuple[Value, int]]:
        """The cotangent `[N, heads, rows, T]` of each block's attention map, and the number of tokens before the grid.

        The score of a block is that of its output in place of the last block's (Bousselham et al. 2024, eq. 5). Where
        an attention pools the tokens, its map for that output takes the place of the block's own.
        """
        plan, t = self.plan, self.plan.t
        layer, score = plan.layer, plan.score.tensor
        path, _ = between(t.nodes, [plan.image.core], [score.core], carries_gradient(t))
        blocks = find_blocks(t, path, layer.candidates)
        last = blocks[-1].output
        behind, _ = between(t.nodes, [last.core], [score.core], carries_content)
        copies = [{} if b.output is last else copy_behind(t, behind, last, b.output) for b in blocks]
        t.adopt()
        tokens = layer.chosen.tokens
        images, gradients = self._count_images(), []
        for block, copy in zip(blocks, copies, strict=True):
            since = len(t.appended)
            value, attention = copy.get(score.core, score), copy.get(block.attention.core, block.attention)
            seed = t.op("Reshape", self.seed, t.op("Shape", value), shape=value.known_shape)
            (gradient,) = backward(t, {value: seed}, [attention], plan.table(plan.modifier))
            gradients += self._within_profile([self._heads_apart(block.attention, gradient, images)], since)
        # A pooling attention may have no columns for the tokens before the grid.
        before = 0 if tokens is None or gradients[0].shape[-1] == math.prod(tokens.grid) else tokens.before
        return [(gradient, before) for gradient in gradients]

    @cached_property
    def _attention(self) -> AttentionMaps:
        plan, t = self.plan, self.plan.t
        path, _ = between(t.nodes, [plan.image.core], [plan.score.tensor.core], carries_gradient(t))
        return find_attention(t, plan.method.title, plan.image, path, plan.layer.candidates)

    @cached_property
    def attention_maps(self) -> Attention:
        """The attention maps of all blocks."""
        return self._by_head(lambda maps: maps)

    @cached_property
    def attention_cotangents(self) -> Attention:
        """The cotangents of the attention maps, of the score itself."""
        return self._by_head(lambda maps: self._backward(maps, self.plan.modifier))

    def _by_head(self, values_of: Callable[[list[Value]], list[Value]]) -> Attention:
        """Values of the attention maps' shapes, `float32 [N, heads, rows, columns]` each."""
        found = self._attention
        maps = [*found.blocks, *([] if found.pooling is None else [found.pooling])]
        images, parts = self._count_images(), zip(maps, values_of(maps), strict=True)
        values = [self._heads_apart(origin, value, images) for origin, value in parts]
        pooling = None if found.pooling is None else values.pop()
        before, count = found.tokens.before, math.prod(found.tokens.grid)
        return Attention(values, pooling, found.skipped, found.answer, before, count)

    def _count_images(self) -> Value:
        """The number of images, `int64 [1]`."""
        t, image = self.plan.t, self.plan.image
        return t.ints(image.shape[0]) if isinstance(image.shape[0], int) else t.op("Shape", image, end=1)

    def _heads_apart(self, origin: Value, value: Value, images: Value) -> Value:
        """A value shaped as the map `origin`, `[N, heads, ...]` or `[N * heads, ...]`, as the first, in float32."""
        t, image = self.plan.t, self.plan.image
        batch = (image.probe_shape or image.dims())[0]
        *outer, rows, columns = origin.probe_shape or origin.dims()
        heads = outer[-1] // (batch if origin.rank == 3 else 1)
        shape = t.op("Concat", images, t.ints(heads, rows, columns), axis=0)
        return t.op("Reshape", t.cast(value, np.float32), shape, shape=(image.shape[0], heads, rows, columns))

    @cached_property
    def score(self) -> Value:
        """The explained score, `float32 [N]`."""
        t, tensor = self.plan.t, self.plan.score.tensor
        if self.plan.objective is not None:
            return self.plan.objective(t, self.class_scores, self.classes)
        axes = range(1, tensor.rank)
        return t.cast(t.sum(t.op("Mul", tensor, self.seed), axes, keepdims=False), np.float32)

    def all_classes(self) -> Value:
        """Grad-CAM's raw maps of all classes behind a linear head, `float32 [N, K, *spatial]`."""
        plan = self.plan
        if plan.head is None:
            raise UnsupportedError("the maps of all classes at once need a linear head")
        return linear_maps(plan.t, plan.head, plan.score, self.maps[0])

    @cached_property
    def curvatures(self) -> list[Value]:
        """The Hessian of the score with respect to the maps of every layer, times these maps, in their shape."""
        plan, t = self.plan, self.plan.t
        if plan.weights == "linear":
            return [t.full_like(maps, 0.0) for maps in self.maps]
        cotangents = self.cotangents
        t.adopt()
        products = []
        for layer, maps, gradient in zip(plan.layers, self.maps, cotangents, strict=True):
            since = len(t.appended)
            tensor = layer.chosen.tensor
            (product,) = cotangents_or_zero(t, {gradient: maps}, [tensor], plan.table(plan.modifier))
            products += self._within_profile([t.cast(layer.chosen.canonical(t, product), np.float32)], since)
        return products

    @cached_property
    def class_scores(self) -> Value:
        """The scores of all classes, `float32 [N, K]`."""
        t = self.plan.t
        return t.cast(t.merged(self.plan.score.tensor, 1), np.float32)

    @cached_property
    def _flat_seed(self) -> Value | None:
        """The cotangent of the scores for an objective, `float32 [N, K]`; `None` for the score of one class."""
        t, plan = self.plan.t, self.plan
        if plan.objective is None:
            return None
        value, class_scores = self.score, self.class_scores
        t.adopt()
        since = len(t.appended)
        gradients = backward(t, {value: t.full_like(value, 1.0)}, [class_scores], plan.table(None))
        return self._within_profile(gradients, since)[0]

    @cached_property
    def probability(self) -> Value:
        """The probability of the explained class, `float32 [N]`."""
        t, score = self.plan.t, self.plan.score
        if self._sign is not None:
            own = t.cast(t.merged(score.tensor, 1), np.float32)
            probabilities = own if self._is_probability else t.op("Sigmoid", own)
            # The complement of a probability is one minus it.
            return t.op("Squeeze", self._sign * (probabilities - 0.5) + 0.5, t.ints(1))
        if self._is_probability:
            probabilities = self.class_scores
        elif score.activation == "sigmoid":
            probabilities = t.op("Sigmoid", self.class_scores)
        else:
            probabilities = t.op("Softmax", self.class_scores, axis=1)
        picked = t.op("GatherElements", probabilities, t.op("Unsqueeze", self.classes, t.ints(1)), axis=1)
        return t.op("Squeeze", picked, t.ints(1))

    @property
    def _is_probability(self) -> bool:
        """Whether the explained tensor is the output of a Softmax or Sigmoid."""
        return self.plan.score.activation in {"softmax", "sigmoid"} and self.plan.score.tensor is self.plan.score.output

    @cached_property
    def seed(self) -> Value:
        """The cotangent of the score tensor: one at the explained class, and for a single logit its sign."""
        t, score = self.plan.t, self.plan.score
        if self._flat_seed is not None:
            return t.reshape_like(t.cast(self._flat_seed, score.tensor.dtype), score.tensor)
        if self._sign is not None:
            return t.reshape_like(t.cast(self._sign, score.tensor.dtype), score.tensor)
        hot = t.op("Equal", t.op("Unsqueeze", self.classes, t.ints(1)), _every_class(t, score))
        return t.reshape_like(t.cast(hot, score.tensor.dtype), score.tensor)

    @cached_property
    def _sign(self) -> Value | None:
        """For a single logit, +1 or -1 for each sample, `float32 [N, 1]`."""
        t = self.plan.t
        if not self.plan.score.single_logit:
            return None
        return t.cast(t.op("Unsqueeze", self.classes, t.ints(1)), np.float32) * 2.0 - 1.0


MAKERS: Mapping[str, Callable[[Ingredients, int], Any]] = {
    "x": lambda ingredients, _: ingredients.image,
    "A": lambda ingredients, layer: ingredients.maps[layer],
    "G": lambda ingredients, layer: ingredients.gradient(layer),
    "HA": lambda ingredients, layer: ingredients.curvatures[layer],
    "gx": lambda ingredients, _: ingredients.image_cotangent,
    "biases": lambda ingredients, _: ingredients.bias_terms,
    "constants": lambda ingredients, _: ingredients.constant_terms,
    "attentions": lambda ingredients, _: ingredients.attentions,
    "P": lambda ingredients, _: ingredients.attention_maps,
    "GP": lambda ingredients, _: ingredients.attention_cotangents,
    "head": lambda ingredients, _: ingredients.head,
    "spread": lambda ingredients, _: ingredients.spread,
    "total": lambda ingredients, _: ingredients.total,
    "settings": lambda ingredients, _: ingredients.settings,
    "baselines": lambda ingredients, _: ingredients.baselines,
    "gradients": lambda ingredients, _: ingredients.gradients,
    "score": lambda ingredients, _: ingredients.score,
    "probability": lambda ingredients, _: ingredients.probability,
}
"""How each ingredient of `onnx_gradcam.editor.methods.catalogue.INGREDIENTS` is made, from the layer's index."""


def _classes(t: Builder, plan: Plan) -> tuple[Value, str]:
    """The explained class of every sample, `int64 [N]`, and the name of the input that chooses it."""
    score, options = plan.score, plan.options
    best = _best_class(t, score)
    if options.class_input in {"none", "all"}:
        fixed = plan.fixed_class
        if fixed is None:
            return best, ""
        return t.op("Expand", t.ints(check_class(fixed, score.classes)), t.op("Shape", best), shape=best.shape), ""
    name = free_name(t, "target_class")
    if options.class_input == "required":
        index = t.input(name, np.int64, (score.tensor.shape[0],))
    else:
        index = t.default_input(name, np.array([-1], np.int64))
    return t.chosen(index, best, _every_class(t, score)), name


def _every_class(t: Builder, score: Score) -> Value:
    """The indices of all classes, `int64 [K]`."""
    if score.classes is not None:
        return t.const(np.arange(score.classes, dtype=np.int64))
    return t.indices(score.tensor, score.class_axis)


def _best_class(t: Builder, score: Score) -> Value:
    """The class with the highest score, `int64 [N]`."""
    batch = score.tensor.shape[0]
    if score.single_logit:
        flat = t.op("Reshape", score.tensor, t.ints(-1), shape=(batch,))
        threshold = 0.5 if score.activation == "sigmoid" and score.tensor is score.output else 0.0
        return t.cast(flat > threshold, np.int64)
    scores = score.compared or score.tensor
    scores = scores if scores.rank > 1 else t.op("Unsqueeze", scores, t.ints(1))
    best = t.op("ArgMax", scores, axis=score.class_axis, keepdims=0)
    return t.op("Reshape", best, t.ints(-1), shape=(batch,)) if best.rank != 1 else best


def _axis_of_rows(y: Value, image: Value) -> int:
    """The axis of a tensor that holds the images of a batch, perhaps several rows of each behind one another."""
    batch, free = image.shape[0], image.free_batch
    probe = y.probe_shape or ()
    axes = [axis for axis, size in enumerate(y.shape) if size == batch and batch is not None]
    if not axes and free is not None:
        axes = [i for i, size in enumerate(probe) if size % free == 0 and not isinstance(y.shape[i], int)]
    if not axes and free is not None:
        axes = [axis for axis, size in enumerate(y.shape) if not isinstance(size, int)]
        axes = axes if len(axes) == 1 else []
    if not axes and isinstance(batch, int):
        axes = [axis for axis, size in enumerate(y.shape) if isinstance(size, int) and size % batch == 0]
    if not axes or (isinstance(batch, int) and len(axes) > 1):
        raise UnsupportedError(
            f"which values of {y.name!r} {list(y.shape)} belong to which image of a batch cannot be told, so "
            "neither can what biases contribute; export the model for one image, or with a free batch"
        )
    return axes[0]


def _added_bias(t: Builder, node: ir.Node) -> Value | None:
    """The bias of a convolution that has none of its own and is followed by an Add of one number a channel."""
    for value, other in (node.inputs, node.inputs[::-1]):
        convolution = None if value is None else value.producer()
        vector = None if other is None else t.wrap(other).array()
        if convolution is None or convolution.op_type != "Conv" or vector is None:
            continue
        channels = t.wrap(node.outputs[0]).shape[1]
        own = convolution.inputs[2] if len(convolution.inputs) > 2 else None
        if own is None and np.shape(vector)[-3:] == (channels, 1, 1) and vector.size == channels:
            return t.const(vector.reshape(-1).astype(np.float32))
    return None


def _bias(t: Builder, node: ir.Node, computed: Collection[ir.Value]) -> Value | None:
    """What a convolution or batch normalization adds to each map, `float32 [C]`; `None` for nothing.

    What is `computed` from the image is no bias of the model.
    """
    if t.wrap(node.outputs[0]).rank != _MAPS:
        return None
    if node.op_type not in _BIASED:
        return _added_bias(t, node) if node.op_type == "Add" else None
    inputs = [None if v is None else t.wrap(v).array() for v in node.inputs]
    if node.op_type == "Conv":
        bias = node.inputs[2] if len(inputs) > 2 else None
        if bias is None or bias in computed:
            return None
        # Quantised where it is no constant.
        return t.cast(t.wrap(bias), np.float32) if inputs[2] is None else t.const(inputs[2].astype(np.float32))
    if any(v is None for v in inputs[1:5]):
        return None
    scale, shift, mean, variance = (np.asarray(v, np.float64) for v in inputs[1:5])
    deviation = np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return t.const((shift - mean * scale / deviation).astype(np.float32))
