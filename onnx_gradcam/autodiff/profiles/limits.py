"""Limits that documents of several providers name."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder

from .provider import Limit

__all__ = ["absent", "all_of", "constant", "listed", "rank", "single_output"]


def listed(names: str) -> frozenset[str]:
    """The operators of a list, separated by blanks."""
    return frozenset(names.split())


def all_of(*limits: Limit) -> Limit:
    """The first thing that any of them finds."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        return next((why for one in limits if (why := one(t, node)) is not None), None)

    return limit


def rank(*ranks: int) -> Limit:
    """The first input has one of these ranks."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        found = node.inputs[0]
        shape = None if found is None else t.wrap(found).known_shape
        if shape is not None and len(shape) in ranks:
            return None
        return f"of a tensor of rank {'unknown' if shape is None else len(shape)} is beyond what it documents"

    return limit


def constant(*positions: int) -> Limit:
    """The inputs at these positions, where they are given, are constants."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        for i in positions:
            value = node.inputs[i] if i < len(node.inputs) else None
            if value is not None and t.wrap(value).array() is None:
                return f"with the computed input {value.name!r} is beyond what it documents"
        return None

    return limit


def single_output(t: Builder, node: ir.Node) -> str | None:
    """No second output, the indices of a MaxPool."""
    return "with indices is beyond what it documents" if len(node.outputs) > 1 else None


def absent(*names: str) -> Limit:
    """None of these attributes is given, unless it is zero."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        for name in names:
            given = node.attributes.get(name)
            if given is not None and not _zeros(given.value):
                return f"with {name} is beyond what it documents"
        return None

    return limit


def _zeros(value: object) -> bool:
    return not any(value) if isinstance(value, Sequence) and not isinstance(value, str) else value == 0
