"""What methods ask for, appended to the graph: activation maps, their cotangents, the score, the image.

Here alone the backward pass and the methods meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import backward, carries_gradient, cotangents_or_zero
from onnx_gradcam.autodiff.precision import float32_cotangents
from onnx_gradcam.autodiff.providers import conform, find_profile
from onnx_gradcam.errors import TargetError, UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import between

from .head import evaluate_behind, finite_cotangent, linear_cotangent, linear_maps
from .methods.cam import leading_projection, weighted_sum
from .plan import Plan
from .targets.layer import find_blocks
from .targets.score import Score

__all__ = ["Quantities", "free_name"]


class Quantities:
    """What the methods of a plan ask for; each is appended at most once, and only if it is asked for.

    Attributes:
        classes: the explained class of every sample, `int64 [N]`.
        class_input: the name of the input that chooses it, empty where it is fixed.
    """

    def __init__(self, work: Plan) -> None:
        self.work = work
        self.classes, self.class_input = _classes(work.t, work)

    def of(self, layer: int) -> dict[str, Any]:
        """What the method asks for by the names of its parameters, for one of the layers."""
        makers: dict[str, Callable[[], Any]] = {
            "A": lambda: self.maps[layer],
            "G": lambda: self._shaped(layer),
            "HA": lambda: self.curvatures[layer],
            "head": lambda: self.head,
            "total": lambda: self.total,
            "score": lambda: self.score,
            "x": lambda: self.image,
            "gx": lambda: self.image_cotangent,
            "biases": lambda: self.bias_terms,
            "attentions": lambda: self.attentions,
        }
        return {name: makers[name]() for name in self.work.method.needs}

    def head(self, maps: Value, copies: int) -> Value:
        """The explained score for other activation maps, as often as there are copies of each sample.

        Args:
            maps: `float32 [N * copies, C, *spatial]`, the copies of a sample one behind the other.
            copies: how many there are.

        Returns:
            `float32 [N, copies]`.

        Raises:
            UnsupportedError: the head cannot be run again.
        """
        work, t = self.work, self.work.t
        layer, score = work.layer.chosen, work.score.tensor
        start = t.cast(layer.restored(t, maps), layer.tensor.dtype)
        scores = evaluate_behind(t, work.path, layer.tensor, start, score)
        flat = t.cast(t.op("Reshape", scores, t.ints(-1, copies, math.prod(score.dims_behind_batch()))), np.float32)
        wanted = t.cast(t.op("Reshape", self.seed, t.ints(0, 1, -1)), np.float32)
        return t.sum(t.op("Mul", flat, wanted), [2], keepdims=False)

    def total(self, maps: Value, weights: Value | None = None) -> Value:
        """The sum over channels of maps times weights, or the leading component of the products.

        Args:
            maps: `float32 [N, C, *spatial]`.
            weights: of a shape that broadcasts; `None` for ones.

        Returns:
            `float32 [N, *spatial]`.
        """
        t = self.work.t
        if self.work.options.eigen_smooth:
            return leading_projection(t, maps if weights is None else t.op("Mul", maps, weights))
        return t.sum(maps, [1], keepdims=False) if weights is None else weighted_sum(t, maps, weights)

    @cached_property
    def maps(self) -> list[Value]:
        """The activation maps of every layer, `float32 [N, C, *spatial]`."""
        t = self.work.t
        return [t.cast(layer.chosen.canonical(t, layer.chosen.tensor), np.float32) for layer in self.work.layers]

    @cached_property
    def cotangents(self) -> list[Value]:
        """The cotangents of the maps; of size one along spatial axes where they are the same at every place."""
        work, t = self.work, self.work.t
        if work.weights == "linear" and work.head is not None:
            return [
                linear_cotangent(
                    t, work.head, work.score, self.maps[0], self.classes, sign=self._sign, seed=self._flat_seed
                )
            ]
        if work.weights == "finite" and work.head is not None:
            return [finite_cotangent(t, work.head, work.score, self.maps[0], self.seed, work.path)]
        own = work.modifier if "gx" not in work.method.needs else work.options.modifier
        pairs = zip(work.layers, self._backward(work.targets, own), strict=True)
        return [layer.chosen.canonical(t, g) for layer, g in pairs]

    def _backward(self, wrt: list[Value], modifier: str | None) -> list[Value]:
        """The cotangents of some tensors, in float32."""
        work, t = self.work, self.work.t
        since = len(t.appended)
        table, grad_dtype = work.table(modifier), work.options.grad_dtype
        found = float32_cotangents(t, work.score.tensor, self.seed, wrt, table, grad_dtype)
        return conform(t, find_profile(work.options.profile), found, since)[0]

    def _shaped(self, layer: int) -> Value:
        """The cotangent as the method sees it."""
        change, maps, gradient = self.work.preset.cotangent, self.maps[layer], self.cotangents[layer]
        return gradient if change is None else change(self.work.t, maps, gradient)

    @cached_property
    def bias_terms(self) -> list[Value]:
        """Every bias of a convolution or batch normalisation times the cotangent of what it is added to.

        Returns:
            One `float32 [N, C, h, w]` a layer; batch normalisation folded into a convolution before counts the same.
        """
        work, t = self.work, self.work.t
        found = {t.wrap(node.outputs[0]): bias for node in work.path if (bias := _bias(t, node)) is not None}
        cotangents = self._backward(list(found), work.modifier) if found else []
        pairs = zip(cotangents, found.values(), strict=True)
        return [t.op("Mul", g, t.op("Reshape", bias, t.ints(-1, *[1] * (g.rank - 2)))) for g, bias in pairs]

    @cached_property
    def image(self) -> Value:
        """The image, `float32 [N, C, H, W]`."""
        t = self.work.t
        return t.cast(self.work.image_candidate.canonical(t, self.work.image), np.float32)

    @cached_property
    def image_cotangent(self) -> Value:
        """The cotangent of the image, `float32 [N, C, H, W]`."""
        work, t = self.work, self.work.t
        (gradient,) = self._backward([work.image], work.modifier)
        return work.image_candidate.canonical(t, gradient)

    @cached_property
    def attentions(self) -> list[tuple[Value, int]]:
        """For every block of a transformer, how the score depends on what its tokens attend to.

        The score is the one that the block's own output would have in place of the last block's (Bousselham et al.
        2024, eq. 5).

        Returns:
            The cotangent of the attention map, `float32 [N, heads, T, T]`, and the number of tokens before the grid.
        """
        work, t = self.work, self.work.t
        layer, score = work.layer, work.score.tensor
        path, _ = between(t.nodes, [work.image.core], [score.core], carries_gradient(t))
        blocks = find_blocks(t, path, layer.candidates)
        last = blocks[-1].output
        behind = path[[node.outputs[0] for node in path].index(last.core) + 1 :]
        scores = [score if b.output is last else evaluate_behind(t, behind, last, b.output, score) for b in blocks]
        t.adopt()
        tokens = layer.chosen.tokens
        found = []
        for block, value in zip(blocks, scores, strict=True):
            seed = t.op("Reshape", self.seed, t.op("Shape", value), shape=value.known_shape)
            (gradient,) = backward(t, {value: seed}, [block.attention], work.table(work.modifier))
            found.append((t.cast(gradient, np.float32), tokens.before if tokens is not None else 0))
        return found

    @cached_property
    def score(self) -> Value:
        """The explained score, `float32 [N]`."""
        t, tensor = self.work.t, self.work.score.tensor
        if self.work.objective is not None:
            return self.work.objective(t, self.class_scores, self.classes)
        axes = range(1, tensor.rank)
        return t.cast(t.sum(t.op("Mul", tensor, self.seed), axes, keepdims=False), np.float32)

    def all_classes(self) -> Value:
        """Grad-CAM's raw maps of all classes behind a linear head, `float32 [N, K, *spatial]`."""
        work = self.work
        if work.head is None:
            raise UnsupportedError("the maps of all classes at once take a linear head")
        return linear_maps(work.t, work.head, work.score, self.maps[0])

    @cached_property
    def curvatures(self) -> list[Value]:
        """The Hessian of the score with respect to the maps of every layer, times these maps: of their shape."""
        work, t = self.work, self.work.t
        if work.weights == "linear":
            return [t.full_like(maps, 0.0) for maps in self.maps]
        t.adopt()
        found = []
        for layer, maps, gradient in zip(work.layers, self.maps, self.cotangents, strict=True):
            tensor = layer.chosen.tensor
            (product,) = cotangents_or_zero(t, {gradient: maps}, [tensor], work.table(work.modifier))
            found.append(t.cast(layer.chosen.canonical(t, product), np.float32))
        return found

    @cached_property
    def class_scores(self) -> Value:
        """The scores of all classes, `float32 [N, K]`."""
        t = self.work.t
        return t.cast(t.op("Reshape", self.work.score.tensor, t.ints(0, -1)), np.float32)

    @cached_property
    def _flat_seed(self) -> Value | None:
        """The cotangent of the scores, `float32 [N, K]`, where it is not one at the class and zero elsewhere."""
        t, work = self.work.t, self.work
        if work.objective is None:
            return None
        value = self.score
        t.adopt()
        (gradient,) = backward(t, {value: t.full_like(value, 1.0)}, [self.class_scores])
        return gradient

    @cached_property
    def probability(self) -> Value:
        """The probability of the explained class, `float32 [N]`."""
        t, score = self.work.t, self.work.score
        if self._sign is not None:
            own = t.cast(t.op("Reshape", score.tensor, t.ints(0, -1)), np.float32)
            spread = own if self._is_probability else t.op("Sigmoid", own)
            # The complement of a probability is one minus it.
            return t.op("Squeeze", self._sign * (spread - 0.5) + 0.5, t.ints(1))
        if self._is_probability:
            spread = self.class_scores
        elif score.activation == "sigmoid":
            spread = t.op("Sigmoid", self.class_scores)
        else:
            spread = t.op("Softmax", self.class_scores, axis=1)
        picked = t.op("GatherElements", spread, t.op("Unsqueeze", self.classes, t.ints(1)), axis=1)
        return t.op("Squeeze", picked, t.ints(1))

    @property
    def _is_probability(self) -> bool:
        """Whether the explained tensor is what a Softmax or Sigmoid gave already."""
        return self.work.score.activation in {"softmax", "sigmoid"} and self.work.score.tensor is self.work.score.output

    @cached_property
    def seed(self) -> Value:
        """The cotangent of the score tensor: one at the explained class, and for a single logit its sign."""
        t, score = self.work.t, self.work.score
        if self._flat_seed is not None:
            return t.reshape_like(t.cast(self._flat_seed, score.tensor.dtype), score.tensor)
        if self._sign is not None:
            return t.reshape_like(t.cast(self._sign, score.tensor.dtype), score.tensor)
        hot = t.op("Equal", t.op("Unsqueeze", self.classes, t.ints(1)), _every_class(t, score))
        return t.reshape_like(t.cast(hot, score.tensor.dtype), score.tensor)

    @cached_property
    def _sign(self) -> Value | None:
        """For a single logit, +1 or -1 a sample, `float32 [N, 1]`."""
        t = self.work.t
        if not self.work.score.single_logit:
            return None
        return t.cast(t.op("Unsqueeze", self.classes, t.ints(1)), np.float32) * 2.0 - 1.0


def _classes(t: Builder, work: Plan) -> tuple[Value, str]:
    """The explained class of every sample, `int64 [N]`, and the name of the input that chooses it."""
    score, options = work.score, work.options
    best = _best_class(t, score)
    if options.class_input in {"none", "all"}:
        fixed = work.fixed_class
        if fixed is None:
            return best, ""
        if score.classes is not None and not 0 <= fixed < score.classes:
            raise TargetError(f"class {fixed} is out of range; the model has classes 0 to {score.classes - 1}")
        return t.op("Expand", t.ints(fixed), t.op("Shape", best), shape=best.shape), ""
    name = free_name(t, "target_class")
    if options.class_input == "required":
        wanted = t.input(name, np.int64, (score.tensor.shape[0],))
    else:
        wanted = t.default_input(name, np.array([-1], np.int64))
    chosen = t.op("Where", wanted < t.const(0, np.int64), best, wanted)
    # Broadcasting takes several classes for one image as well: the reshape refuses them.
    chosen = t.op("Reshape", chosen, t.shape_of(best), shape=best.shape)
    # Looking the class up in a table makes a class out of range an error instead of an empty map.
    return t.op("Gather", _every_class(t, score), chosen, shape=best.shape), name


def _every_class(t: Builder, score: Score) -> Value:
    """The numbers of all classes, `int64 [K]`."""
    if score.classes is not None:
        return t.const(np.arange(score.classes, dtype=np.int64))
    count = t.op("Squeeze", t.op("Shape", score.tensor, start=score.class_axis, end=score.class_axis + 1))
    return t.op("Range", t.const(0, np.int64), count, t.const(1, np.int64))


def _best_class(t: Builder, score: Score) -> Value:
    """The class with the highest score, `int64 [N]`."""
    batch = score.tensor.shape[0]
    if score.single_logit:
        flat = t.op("Reshape", score.tensor, t.ints(-1), shape=(batch,))
        threshold = 0.5 if score.activation == "sigmoid" and score.tensor is score.output else 0.0
        return t.cast(flat > threshold, np.int64)
    best = t.op("ArgMax", score.tensor, axis=score.class_axis, keepdims=0)
    return t.op("Reshape", best, t.ints(-1), shape=(batch,)) if best.rank != 1 else best


def _bias(t: Builder, node: ir.Node) -> Value | None:
    """What a convolution or batch normalisation adds to each channel, `float32 [C]`; `None` where it adds nothing."""
    inputs = [None if v is None else t.wrap(v).array() for v in node.inputs]
    if node.op_type == "Conv" and len(inputs) > 2 and inputs[2] is not None:
        return t.const(inputs[2].astype(np.float32))
    if node.op_type != "BatchNormalization" or any(v is None for v in inputs[1:5]):
        return None
    scale, shift, mean, variance = (np.asarray(v, np.float64) for v in inputs[1:5])
    deviation = np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return t.const((shift - mean * scale / deviation).astype(np.float32))


def free_name(t: Builder, name: str) -> str:
    """`name`, or with a prefix where the model has a tensor of that name already."""
    while t.taken(name):
        name = f"gradcam_{name}"
    return name
