"""The registry of VJP rules (vector-Jacobian products): how each operator hands a cotangent to its inputs.

A rule is `rule(t, g, y, *inputs, **attributes)` and returns one cotangent for each input. `t` is the builder, `g` the
cotangent of the output `y`. The inputs come in ONNX order, and the attributes are keywords with their ONNX defaults:
an attribute that a rule does not name is an error, never a wrong heatmap. Long signatures have the inputs on their
first lines and the attributes on the next. A cotangent can be a function without
arguments, which is called only if that input is on the path. `None` means that the rule cannot serve this input.

A rule of an operator with subgraphs has three more keywords: `captured`, the outer tensors on the path that the
subgraphs read; `table` and `dtype`, the rules and the type to differentiate the subgraphs with. It returns the
cotangents of the captured tensors after those of the inputs.

The reverse pass undoes broadcasting, adds cotangents up and checks their shapes; rules do not.

Example:
    >>> @vjp("Tanh")
    ... def tanh(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    ...     return [g * (1.0 - y * y)]
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnx_gradcam.graph.builder import Value

__all__ = ["RULES", "ZERO", "Cotangent", "Rule", "RuleFunction", "Table", "rule_of", "rules", "vjp", "zero_gradient"]

Cotangent = Value | Callable[[], Value] | None
RuleFunction = Callable[..., Sequence[Cotangent]]
Key = tuple[str, str]
"""Domain and operator."""


@dataclass(frozen=True)
class Rule:
    """A VJP rule and how the reverse pass calls it.

    Attributes:
        function: the rule.
        broadcasts: the operator broadcasts its inputs; cotangents are summed to the shape of each.
        stops: positions of inputs that carry no gradient, floating-point or not.
        all_outputs: `g` and `y` are tuples over all outputs (`None` for an output without a cotangent).
        subgraphs: the rule differentiates the operator's subgraphs, for the tensors that they capture as well.
        where: the nodes that the rule applies to, all by default; the derivative of the others is zero.
        choose: the rule for one node, where that depends on what surrounds the node; by default this one.
        problem: why the nodes of this rule cannot be differentiated; empty where they can.
    """

    function: RuleFunction
    broadcasts: bool = False
    stops: frozenset[int] = frozenset()
    all_outputs: bool = False
    subgraphs: bool = False
    where: Callable[[ir.Node], bool] | None = None
    choose: Callable[[ir.Node], Rule] | None = None
    problem: str = ""

    def applies_to(self, node: ir.Node) -> bool:
        """Whether the rule differentiates `node`; otherwise its derivative is zero."""
        return self.where is None or self.where(node)

    def unknown_attributes(self, node: ir.Node) -> list[str]:
        """The attributes of `node` that the rule does not name."""
        parameters = inspect.signature(self.function).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return []
        return sorted(set(node.attributes) - {p.name for p in parameters if p.kind is p.KEYWORD_ONLY})


Table = Mapping[Key, Rule]

RULES: dict[Key, Rule] = {}
"""Every rule, by domain and operator."""

ZERO: set[Key] = set()
"""Operators whose derivative is zero wherever it exists: they block a gradient, and need no rule."""


def vjp(
    *op_types: str,
    domain: str = "",
    broadcasts: bool = False,
    stops: Iterable[int] = (),
    all_outputs: bool = False,
    subgraphs: bool = False,
    where: Callable[[ir.Node], bool] | None = None,
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the VJP rule of `op_types`; `Rule` explains the options."""

    def register(function: RuleFunction) -> RuleFunction:
        for op_type in op_types:
            key = domain, op_type
            if key in RULES or key in ZERO:
                raise ValueError(f"{op_type} is registered already")
            RULES[key] = Rule(function, broadcasts, frozenset(stops), all_outputs, subgraphs, where)
        return function

    return register


def zero_gradient(*op_types: str, domain: str = "") -> None:
    """Declare that the derivative of `op_types` is zero wherever it exists."""
    ZERO.update((domain, op_type) for op_type in op_types)


def rules() -> dict[Key, Rule]:
    """The registered rules; the first call imports the files below `rules`."""
    package = importlib.import_module(f"{__package__}.rules")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return RULES


def rule_of(table: Table, node: ir.Node) -> Rule | None:
    """The rule of a table for a node; `None` where it has none."""
    rule = table.get((node.domain, node.op_type))
    return rule if rule is None or rule.choose is None else rule.choose(node)


def attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node` as plain Python values."""
    return {name: attr.value for name, attr in node.attributes.items()}
