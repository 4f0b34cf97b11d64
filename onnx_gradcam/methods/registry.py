"""Which CAM methods there are.

A method is a pure function `method(t, A, G)` of the builder, the activation maps `A`, `float32 [N, C, *spatial]`, and
their cotangent `G`, which has the shape of `A` or, where it is the same at every place, size one along the spatial
axes. It returns the raw signed map, `[N, *spatial]`. Adding a method is adding one function.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["METHODS", "Method", "find_method", "method", "methods"]

Function = Callable[[Builder, Value, Value], Value]


@dataclass(frozen=True)
class Method:
    """A CAM method.

    Attributes:
        name: its identifier.
        title: its name in the literature.
        reference: paper and equation.
        function: the method itself.
    """

    name: str
    title: str
    reference: str
    function: Function


METHODS: dict[str, Method] = {}


def method(name: str, *, title: str, reference: str) -> Callable[[Function], Function]:
    """Register a method."""

    def register(function: Function) -> Function:
        METHODS[name] = Method(name, title, reference, function)
        return function

    return register


def methods() -> dict[str, Method]:
    """The table of all methods; their files are imported on the first call."""
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return METHODS


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        TargetError: there is none.
    """
    table = methods()
    if name not in table:
        raise TargetError(f"there is no method {name!r}{near_matches(name, table)}; `methods` lists them")
    return table[name]
