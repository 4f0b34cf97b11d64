"""Which operator has which VJP rule.

A rule is `rule(t, g, y, *inputs, **attributes)` and returns one cotangent an input: `t` is the builder, `g` the
cotangent of the output `y`, the inputs come in ONNX order and the attributes as keywords with their ONNX defaults,
so that an attribute nobody thought of is an error and never a wrong map. A cotangent may be a function without
arguments: it is called only when that input lies on the path. `None` says that the rule cannot serve this input.

A rule of an operator with subgraphs also gets, as `captured`, the tensors that these read from outside and that lie on
the path, and, as `table` and `dtype`, the rules and the type to differentiate the subgraphs with; the cotangents of the
captured tensors follow those of the inputs.

The backward pass undoes broadcasting, adds up cotangents and checks their shapes; rules do none of that.
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

__all__ = ["RULES", "ZERO", "Cotangent", "Rule", "RuleFunction", "Table", "rules", "vjp", "zero_gradient"]

Cotangent = Value | Callable[[], Value] | None
RuleFunction = Callable[..., Sequence[Cotangent]]
Key = tuple[str, str]
"""Domain and operator."""


@dataclass(frozen=True)
class Rule:
    """A VJP rule and what the backward pass has to know of it.

    Attributes:
        function: the rule.
        broadcasts: the operator broadcasts its inputs; cotangents are summed back to each input's shape.
        stops: inputs that carry no gradient although they may hold floating-point numbers, by position.
        all_outputs: `g` and `y` are tuples over all outputs (`None` for an output without a cotangent).
        subgraphs: the rule differentiates the operator's subgraphs, for the tensors that they capture as well.
    """

    function: RuleFunction
    broadcasts: bool = False
    stops: frozenset[int] = frozenset()
    all_outputs: bool = False
    subgraphs: bool = False

    def unknown_attributes(self, node: ir.Node) -> list[str]:
        """Attributes of `node` that the rule does not know."""
        parameters = inspect.signature(self.function).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return []
        known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        return sorted(set(node.attributes) - known)


Table = Mapping[Key, Rule]

RULES: dict[Key, Rule] = {}
"""Every rule, by domain and operator."""

ZERO: set[Key] = set()
"""Operators whose derivative is zero everywhere it exists: a gradient through them is zero, not missing."""


def vjp(
    *op_types: str,
    domain: str = "",
    broadcasts: bool = False,
    stops: Iterable[int] = (),
    all_outputs: bool = False,
    subgraphs: bool = False,
) -> Callable[[RuleFunction], RuleFunction]:
    """Register the VJP rule of `op_types`; see `Rule` for the options."""

    def register(function: RuleFunction) -> RuleFunction:
        for op_type in op_types:
            key = domain, op_type
            if key in RULES or key in ZERO:
                raise ValueError(f"{op_type} is registered already")
            RULES[key] = Rule(function, broadcasts, frozenset(stops), all_outputs, subgraphs)
        return function

    return register


def zero_gradient(*op_types: str, domain: str = "") -> None:
    """Declare that the derivative of `op_types` is zero."""
    ZERO.update((domain, op_type) for op_type in op_types)


def rules() -> dict[Key, Rule]:
    """The table of all rules; the rule files are imported on the first call."""
    package = importlib.import_module(f"{__package__}.rules")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return RULES


def attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node` as plain Python values."""
    return {name: attr.value for name, attr in node.attributes.items()}
