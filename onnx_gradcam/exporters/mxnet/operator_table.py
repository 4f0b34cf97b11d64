"""The table of MXNet operators: one function per operator, whose signature says how to read the symbol's attributes.

A rule is written `rule(t, data, weight, bias=None, *, kernel, no_bias=False)`: the operator's inputs by position under
the operator's own names, its attributes by keyword with the operator's own defaults. An attribute that the rule does
not name is an error, never ignored. Errors about sizes are classes of their own, from which `fitting_side` finds the
image size that a network was trained for.
"""

from __future__ import annotations

import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import Writer
from onnx_gradcam.graph.builder import Value

__all__ = [
    "OPERATORS", "SHAPE_REMEDY", "FeatureMismatchError", "FreeSizeError", "Ints", "Operator", "SizeError", "SparseInts",
    "fitting_side", "fixed", "fixed_sizes", "mxnet_operator",
]  # fmt: skip

SHAPE_REMEDY = "give the shape of one image with --input-shape C,H,W (in Python: input_shape)"
_USUAL_SIDES = (224, 227, 299, 28, 32, 64, 96, 112, 128, 256)
_LARGEST_SIDE = 2048


class FreeSizeError(ExportError):
    """A node needs a number, but the image size is free."""


class SizeError(ExportError):
    """Tensors whose shapes do not fit each other; an image of another size may fit."""


class FeatureMismatchError(SizeError):
    """A dense layer's weights take more or fewer features than the image yields."""

    def __init__(self, features: int, expected: int) -> None:
        super().__init__(
            f"its weights take {expected} features, but the image gives {features}; give the size that the network was "
            "trained for with --input-shape C,H,W (in Python: input_shape)"
        )
        self.excess = features - expected


def fixed(dim: int | str | None, subject: str) -> int:
    """A dimension that must be a number; `subject` names what depends on it."""
    if not isinstance(dim, int):
        raise FreeSizeError(f"{subject} depends on the image size, which is free; {SHAPE_REMEDY}")
    return dim


def fixed_sizes(x: Value, subject: str) -> tuple[int, ...]:
    """The spatial sizes of a tensor in channels-first layout, which must be numbers."""
    return tuple(fixed(dim, subject) for dim in x.shape[2:])


def fitting_side(attempt: Callable[[int], object]) -> int | None:
    """The side of a square image that fits the weights; `None` if they do not tell.

    `attempt` writes the network for a side. Pooling and strides round, so several sides may fit: a usual one is
    preferred, then a multiple of 8.
    """

    def excess(side: int) -> int:
        try:
            attempt(side)
        except FeatureMismatchError as exc:
            return exc.excess
        except SizeError:
            return -1
        return 0

    low, high = 1, _LARGEST_SIDE  # sides below low are too small, from high on too large
    if excess(high) <= 0:
        return None
    for side in _USUAL_SIDES:
        if low <= side < high:
            difference = excess(side)
            if difference == 0:
                return side
            low, high = (side + 1, high) if difference < 0 else (low, side)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if excess(middle) < 0 else (low, middle)
    round_side = -(-low // 8) * 8
    return next((side for side in (round_side, low) if excess(side) == 0), None)


Ints = tuple[int, ...]
SparseInts = tuple[int | None, ...]
Result = TypeVar("Result", bound="Value | tuple[Value, ...]")
Rule = Callable[..., Result]
Layout = Literal["kept", "lost", "made"]

LABEL = "_label"
"""The input of a loss, which predictions do not need."""

_TRAINING = frozenset({"ctx_group", "lr_mult", "wd_mult", "force_mirroring", "mirror_stage", "profiler_scope"})
_INTEGER = re.compile(r"[+-]?\d{1,18}L?")
_MOST_NUMBERS = 64
_LONGEST_ATTRIBUTE = 4096


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text.rstrip("L"))


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _flag(text: str) -> bool:
    return {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}[text]


def _sparse_integers(text: str) -> SparseInts:
    inner = text.strip()
    if inner[:1] in ("(", "[") and inner[-1:] == {"(": ")", "[": "]"}[inner[0]]:
        inner = inner[1:-1].strip().removesuffix(",")
    parts = [part.strip() for part in inner.split(",")] if inner else []
    if len(parts) > _MOST_NUMBERS:
        raise ValueError(text)
    return tuple(None if part == "None" else _integer(part) for part in parts)


def _integers(text: str) -> Ints:
    numbers = _sparse_integers(text)
    if None in numbers:
        raise ValueError(text)
    return typing.cast("Ints", numbers)


_PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (_integer, "an integer"),
    float: (_number, "a finite number"),
    bool: (_flag, "True or False"),
    str: (str, "a word"),
    Ints: (_integers, "a tuple of integers"),
    SparseInts: (_sparse_integers, "a tuple of integers and None"),
}


@dataclass(frozen=True)
class _Attribute:
    kind: Any
    optional: bool
    required: bool

    def parsed(self, name: str, text: str) -> Any:
        if self.optional and text == "None":
            return None
        parse, kind = _PARSERS[self.kind]
        try:
            return parse(text[:_LONGEST_ATTRIBUTE])
        except (ValueError, KeyError) as exc:
            shown = text if len(text) < 60 else text[:60] + "..."
            raise ExportError(f"its attribute {name} is {shown!r}, but must be {kind}") from exc


@dataclass(frozen=True)
class Operator:
    """An MXNet operator and its rule."""

    rule: Rule[Any]  # appends the ONNX nodes
    inputs: tuple[str, ...]  # names of its positional inputs
    needed: int  # how many of them are required
    variadic: bool  # whether it takes any number of inputs
    attributes: Mapping[str, _Attribute]  # the attributes that change its result
    ignored: frozenset[str]  # attributes that change speed or training only
    layout: Layout  # whether maps stay channels first, may not, or result from any input

    def parsed(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """The attributes as the rule's keyword arguments; unknown or missing ones are refused."""
        parsed = {}
        for name, text in texts.items():
            if name in self.attributes:
                parsed[name] = self.attributes[name].parsed(name, text)
            elif not self._is_ignored(name):
                raise ExportError(f"its attribute {name} ({text[:60]!r}) is unknown; export the model without it")
        for name, attribute in self.attributes.items():
            if attribute.required and name not in parsed:
                raise ExportError(f"its attribute {name} is missing; save the symbol again with MXNet")
        return parsed

    def _is_ignored(self, name: str) -> bool:
        hidden = name.startswith("__") and name.endswith("__")
        return hidden or name in self.ignored or name in _TRAINING or name.endswith(("_lr_mult", "_wd_mult"))


OPERATORS: dict[str, Operator] = {}
"""By MXNet's name."""


def mxnet_operator(
    *names: str, ignored: tuple[str, ...] = (), layout: Layout = "kept"
) -> Callable[[Rule[Result]], Rule[Result]]:
    """Register a rule for an MXNet operator under its names in all versions."""

    def register(rule: Rule[Result]) -> Rule[Result]:
        operator = _described(rule, frozenset(ignored), layout)
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"{name} has a rule already")
            OPERATORS[name] = operator
        return rule

    return register


def _described(rule: Rule[Any], ignored: frozenset[str], layout: Layout) -> Operator:
    parameters = list(inspect.signature(rule).parameters.values())[1:]
    hints = typing.get_type_hints(rule, {**vars(inspect.getmodule(rule)), "Writer": Writer, "Value": Value})
    inputs = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    attributes = {}
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY:
            hint, required = hints[parameter.name], parameter.default is parameter.empty
            kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
            optional = type(None) in typing.get_args(hint)
            attributes[parameter.name] = _Attribute(kinds[0] if optional else hint, optional, required)
    names, needed = tuple(p.name for p in inputs), sum(p.default is p.empty for p in inputs)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return Operator(rule, names, needed, variadic, attributes, ignored, layout)
