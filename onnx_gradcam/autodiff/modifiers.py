"""Modifiers, as functions from one rule table to another: guided backpropagation, deconvolutional network, LibraGrad.

A modified table is passed to `backward`, so a modifier combines with every profile. The first two change the rules of
all rectifiers, and no others; LibraGrad has a module of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value

from .libra import libra
from .registry import Cotangent, RuleFunction, Table

__all__ = ["COMPLETE", "MODIFIERS", "RECTIFIERS", "deconvnet", "guided"]

RECTIFIERS = (
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "HardSwish", "Mish", "Softplus", "Swish",
    "ThresholdedRelu", "Clip",
)  # fmt: skip
"""Operators that pass positive numbers and suppress negative ones; Clip is ReLU6 in exported models."""

Modify = Callable[[RuleFunction], RuleFunction]


def guided(table: Table, moving: Collection[ir.Value] = ()) -> Table:  # noqa: ARG001 - every modifier takes both
    """Guided backpropagation: a rectifier passes positive cotangents only, times its own derivative.

    Springenberg et al. 2015, "Striving for simplicity", section 3.4.
    """
    return _modified(table, _guide)


def deconvnet(table: Table, moving: Collection[ir.Value] = ()) -> Table:  # noqa: ARG001 - every modifier takes both
    """The deconvolutional network: a rectifier passes positive cotangents, whatever its input is.

    Zeiler and Fergus 2014, section 2.1; other libraries call it "relu" or "rectified".
    """
    return _modified(table, _rectify)


def _modified(table: Table, modify: Modify) -> Table:
    rectifiers = {("", op_type): table["", op_type] for op_type in RECTIFIERS if ("", op_type) in table}
    return {**table, **{key: replace(rule, function=modify(rule.function)) for key, rule in rectifiers.items()}}


def _guide(function: RuleFunction) -> RuleFunction:
    @functools.wraps(function)
    def guided_rule(t: Builder, g: Value, y: Value, *inputs: Value | None, **attributes: Any) -> Sequence[Cotangent]:
        return function(t, t.op("Relu", g), y, *inputs, **attributes)

    return guided_rule


def _rectify(function: RuleFunction) -> RuleFunction:
    @functools.wraps(function)
    def rectified_rule(t: Builder, g: Value, y: Value, *inputs: Value | None, **attributes: Any) -> Sequence[Cotangent]:  # noqa: ARG001
        # The deconvolutional network has no gradient by a slope: its rectifiers depend on the cotangent alone.
        return [t.op("Relu", g), *(None,) * (len(inputs) - 1)]

    return rectified_rule


MODIFIERS: dict[str, Callable[[Table, Collection[ir.Value]], Table]] = {
    "guided": guided,
    "deconvnet": deconvnet,
    "libra": libra,
}
"""Modifiers by name, from the rules and the tensors that depend on the image."""

COMPLETE = frozenset({"libra"})
"""Modifiers after which the input times its gradient, plus biases, is the score."""
