"""LibraGrad: a backward pass after which the input times its gradient, plus biases, add up to the score.

Mehri et al. 2025, "LibraGrad: Balancing gradient flow for universally better vision transformer attributions" (CVPR;
arXiv 2411.16760). Of affine maps, rectifiers and pools, `S = <x, dS/dx> + sum <b, dS/db>` holds as it is (FullGrad,
Srinivas and Fleuret 2019, proposition 1). It does not of attention, smooth activations, products and normalizations,
so their cotangents are pruned or scaled here, operator by operator; the forward pass stays as it is:

* A product is shared among its factors; if one of them is a gate (squashed numbers: a sigmoid, a softmax, a standard
  deviation ...), that one counts as constant. So do denominators, and attention maps.
* A smooth activation `phi` passes the cotangent times `(phi(x) - phi(0)) / x`, the slope of its chord from zero.
* A normalization passes it as if its standard deviation or norm were constant.
* A function of degree p, such as a square root, passes its own derivative divided by p (Euler's theorem).

Which factor is a gate follows from the operators that computed it, so no module needs to be known by its name.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value

from .registry import Cotangent, Rule, RuleFunction, Table
from .rules._chords import CHORDS, CONSTANT_SCALES, Chord

__all__ = ["libra"]

_MOVES = {
    *("Identity", "Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Dropout", "Where", "Flatten"),
    "Slice",
}
"""Operators that a gate is looked for behind, because they show the same numbers."""

_SHIFTS = {"Add", "Sub", "Mul", "Neg"}
"""The same where the other operand is a constant."""

_GATES = {
    *("Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softmax", "Sqrt", "Reciprocal", "Pow", "ReduceL2", "ReduceSumSquare"),
    "Exp",
}
"""Operators that compute a gate; so does a quotient by what depends on the image."""

_FACTORS = {"Mul": 2, "MatMul": 2, "Gemm": 2, "Conv": 2, "ConvTranspose": 2, "Einsum": 52}
"""Operators that multiply their first inputs, and how many of them at most."""

_ATTENTION = {"MatMul", "Einsum"}
"""Products in which a softmax is an attention map, and nothing else is a gate."""

_AFFINE = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat", "ScatterElements", "ScatterND")),
    "Where": (1, 2),
    **dict.fromkeys(
        (
            *("Abs", "AveragePool", "BatchNormalization", "Cast", "CastLike", "CenterCropPad", "Clip", "Col2Im"),
            *("Compress", "CumSum", "DFT", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements"),
            *("GatherND", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GridSample", "HardSigmoid"),
            *("Identity", "LeakyRelu", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "Neg", "PRelu", "Pad"),
            *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape"),
            *("Resize", "ReverseSequence", "RoiAlign", "STFT", "Slice", "SpaceToDepth", "Split", "Squeeze"),
            *("ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze"),
        ),
        (0,),
    ),
}
"""Operators that are affine, or piecewise, in some of their inputs: positions, `None` for all."""

_DEGREES = {"Sqrt": 0.5, "Reciprocal": -1.0, "ReduceSumSquare": 2.0}
"""Operators of a degree: `f(s x) = s^p f(x)` for positive s."""


def libra(table: Table, moving: Collection[ir.Value] = frozenset()) -> Table:
    """LibraGrad: cotangents pruned and scaled so that the input times its gradient, plus biases, is the score.

    `moving` are the tensors that depend on the image. An operator that is in none of the tables of this module has no
    rule, and a path through it is refused.

    Mehri et al. 2025 (CVPR).
    """
    surroundings = _Surroundings(table, moving)
    return {
        key: replace(rule, choose=functools.partial(surroundings.rule, rule)) if not key[0] else _without(rule, key[1])
        for key, rule in table.items()
    }


def _without(rule: Rule, what: str) -> Rule:
    return replace(rule, problem=f"the modifier libra has no rule for {what}")


class _Surroundings:
    """Chooses the rule of a node by what surrounds it."""

    def __init__(self, table: Table, moving: Collection[ir.Value]) -> None:
        self._table, self._moving = table, moving
        self._chosen: dict[ir.Node, Rule] = {}

    def rule(self, rule: Rule, node: ir.Node) -> Rule:
        """The rule for a node, of the plain one for its operator."""
        if node not in self._chosen:
            self._chosen[node] = self._choice(rule, node)
        return self._chosen[node]

    def _choice(self, rule: Rule, node: ir.Node) -> Rule:
        kind, moving = node.op_type, self._moving_inputs(node)
        if kind in _FACTORS:
            return self._of_product(rule, node, [i for i in moving if i < _FACTORS[kind]])
        if kind == "Div" and 0 in moving:
            return replace(rule, stops=rule.stops | {1})
        if kind in {"Softmax", "LogSoftmax"}:
            return replace(rule, where=_nowhere) if self._attends(node) else _without(rule, _PROBABILITY)
        function = self._function(rule, node, moving)
        return _without(rule, _named(kind)) if function is None else replace(rule, function=function)

    def _function(self, rule: Rule, node: ir.Node, moving: Sequence[int]) -> RuleFunction | None:
        """What computes the cotangents of a node by its operator alone; `None` for an operator in no table."""
        kind, degree = node.op_type, self._degree(node, moving)
        if degree is not None:
            return _scaled(rule, 1.0 / degree)
        if kind in CHORDS:
            return _along_chord(rule.function, CHORDS[kind])
        if kind in CONSTANT_SCALES:
            return CONSTANT_SCALES[kind] if set(moving) <= {0} else None
        allowed = _AFFINE.get(kind, ())
        return rule.function if allowed is None or set(moving) <= set(allowed) else None

    def _moving_inputs(self, node: ir.Node) -> list[int]:
        """The positions of the inputs that depend on the image and carry a gradient."""
        rule = self._table.get((node.domain, node.op_type))
        stops = frozenset() if rule is None else rule.stops
        return [i for i, v in enumerate(node.inputs) if v is not None and v in self._moving and i not in stops]

    def _degree(self, node: ir.Node, moving: Sequence[int]) -> float | None:
        """The degree of a node in its input; `None` where it has none or is not known."""
        if node.op_type == "Div":
            return -1.0
        if node.op_type == "Pow" and moving == [0] and node.inputs[1] is not None:
            exponents = ir.convenience.get_const_tensor(node.inputs[1])
            values = set() if exponents is None else {float(p) for p in np.asarray(exponents.numpy()).flat}
            return values.pop() if len(values) == 1 and 0.0 not in values else None
        return _DEGREES.get(node.op_type)

    def _of_product(self, rule: Rule, node: ir.Node, factors: Sequence[int]) -> Rule:
        """The rule of a product of factors that depend on the image: gates are constant, the others share it."""
        if len(factors) < 2:
            return rule
        gates = [i for i in factors if self._is_gate(node, i)]
        if 0 < len(gates) < len(factors):
            # What attends all the same can be differentiated by itself.
            kept = [i for i in gates if (maker := self._maker(node.inputs[i])) is not None and self._attends(maker)]
            rule = replace(rule, stops=rule.stops | (set(gates) - set(kept)))
        shared = len(factors) - len(gates) if len(gates) < len(factors) else len(factors)
        if shared < 2:
            return rule
        return replace(rule, function=_scaled(rule, 1.0 / shared, set(factors)))

    def _is_gate(self, node: ir.Node, index: int) -> bool:
        """Whether an input of a product is squashed, or for a matrix product an attention map."""
        maker = self._maker(node.inputs[index])
        if maker is None or maker.domain:
            return False
        if node.op_type in _ATTENTION:
            return maker.op_type == "Softmax"
        if node.op_type != "Mul":
            return False
        return maker.op_type in _GATES or (maker.op_type == "Div" and 1 in self._moving_inputs(maker))

    def _maker(self, value: ir.Value | None) -> ir.Node | None:
        """The node that computes a tensor, behind what moves its numbers or shifts and scales all of them."""
        node = None if value is None else value.producer()
        while node is not None:
            source = self._passed(node)
            if source is None:
                return node
            node = source.producer()
        return None

    def _passed(self, node: ir.Node) -> ir.Value | None:
        """The one input whose numbers a node moves, shifts or scales; `None` where it does something else."""
        moving = self._moving_inputs(node)
        if node.domain or len(moving) != 1:
            return None
        scales = node.op_type == "Div" and moving == [0]
        return node.inputs[moving[0]] if node.op_type in _MOVES | _SHIFTS or scales else None

    def _attends(self, node: ir.Node) -> bool:
        """Whether a node is a softmax that is read as an attention map only."""
        return node.op_type == "Softmax" and self._only_attends(node.outputs[0])

    def _only_attends(self, value: ir.Value) -> bool:
        reads = [(use.node, use.idx) for use in value.uses() if any(o in self._moving for o in use.node.outputs)]
        return bool(reads) and all(self._read_as_attention(node, index) for node, index in reads)

    def _read_as_attention(self, node: ir.Node, index: int) -> bool:
        if node.op_type not in _ATTENTION:
            return self._passed(node) is not None and self._only_attends(node.outputs[0])
        factors = self._moving_inputs(node)
        gates = [i for i in factors if self._is_gate(node, i)]
        return index in gates and len(gates) < len(factors)


def _named(kind: str) -> str:
    """An operator, in a refusal."""
    return f"{kind} with parameters computed from the image" if kind in {*_AFFINE, *CONSTANT_SCALES} else kind


_PROBABILITY = "a softmax that is no attention map; explain the logit with --score logit"


def _nowhere(node: ir.Node) -> bool:  # noqa: ARG001 - it is a `Rule.where`
    return False


def _scaled(rule: Rule, factor: float, positions: Collection[int] | None = None) -> RuleFunction:
    """The rule with the cotangents of some inputs, by default all, multiplied by a number."""

    @functools.wraps(rule.function)
    def scaled(t: Builder, g: Value, y: Value, *inputs: Value | None, **attributes: Any) -> Sequence[Cotangent]:
        shares = rule.function(t, g * factor, y, *inputs, **attributes)
        if positions is None:
            return shares
        whole = rule.function(t, g, y, *inputs, **attributes)
        return [shares[i] if i in positions else cotangent for i, cotangent in enumerate(whole)]

    return scaled


def _along_chord(function: RuleFunction, chord: Chord) -> RuleFunction:
    @functools.wraps(function)
    def along(t: Builder, g: Value, y: Value, x: Value, **attributes: Any) -> Sequence[Cotangent]:
        return [g * chord.slope(t, x, y, **attributes)]

    return along
