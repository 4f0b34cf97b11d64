"""What a visitor of the studio chose, checked, and the command and the Python code that make the same picture."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from onnx_gradcam.editor.targets.classes import find_label, parse_top
from onnx_gradcam.errors import ServerError, TargetError, near_matches
from onnx_gradcam.images.masks import Look
from onnx_gradcam.images.preprocessing import PRESETS

__all__ = ["Recipe", "Spoken", "attach_choices", "attach_command", "explain_command", "python_code"]

Spoken = Callable[[Mapping[str, Any]], Sequence[str]]
"""How choices of `onnx_gradcam.Options` are said on the command line."""

_MOST_METHODS: Final = 6
_LONGEST: Final = 2000
"""Characters of a name, and names of layers, in a request."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an image is explained and drawn; `None` and empty fields leave the choice to the tool.

    Attributes:
        methods: the methods to compare, each with a panel.
        preset: library whose conventions to follow.
        layer: names of the layers to explain.
        preprocess: how an image becomes the model's input: a preset's name or a JSON object.
        target: index of the class.
        box: of a detector, the number of the box in the list.
        colormap: name of the colour map.
        opacity: of the heatmap, from 0 to 1.

    Raises:
        ServerError: a field is of another kind.
        InputError: there is no such colour map, or the opacity is out of range.
    """

    methods: Sequence[str] = ()
    preset: str | None = None
    layer: Sequence[str] = ()
    preprocess: str | Mapping[str, Any] | None = None
    target: int | None = None
    box: int | None = None
    colormap: str | None = None
    opacity: float | None = None

    def __post_init__(self) -> None:
        for name in ("methods", "layer"):
            if not _is_names(getattr(self, name)):
                raise ServerError(f"{name!r} is not a list of names; reload the page")
        for name in ("preset", "colormap"):
            value = getattr(self, name)
            if value is not None and not _is_names([value]):
                raise ServerError(f"{name!r} is not a name; reload the page")
        for name in ("target", "box"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31):
                raise ServerError(f"{name!r} is not a number from 0 on; reload the page")
        if not isinstance(self.preprocess, (str, Mapping, type(None))):
            raise ServerError("'preprocess' is neither a name nor a JSON object; reload the page")
        # On the command line it may be the path of a file, which a page has no business to open.
        if isinstance(self.preprocess, str) and self.preprocess not in PRESETS:
            raise ServerError(
                f"unknown preprocessing {self.preprocess[:99]!r}{near_matches(self.preprocess[:99], PRESETS)}; choose "
                f"one of {', '.join(PRESETS)}"
            )
        if isinstance(self.opacity, bool) or not isinstance(self.opacity, (int, float, type(None))):
            raise ServerError("'opacity' is not a number; reload the page")
        if len(self.methods) > _MOST_METHODS or len(set(self.methods)) < len(self.methods):
            raise ServerError(f"methods are compared once each, and {_MOST_METHODS} at most; choose fewer")
        Look(**self.look)

    @classmethod
    def read(cls, values: Any) -> Recipe:
        """Read the JSON object that the page sends."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise ServerError("the choices are not a JSON object; reload the page")
        for name in values:
            if name not in names:
                raise ServerError(f"there is no choice {name[:99]!r}{near_matches(name[:99], names)}; reload the page")
        return cls(**values)

    @property
    def first(self) -> str | None:
        """The first method; `None` for the tool's choice."""
        return next(iter(self.methods), None)

    @property
    def look(self) -> dict[str, Any]:
        """The fields of `onnx_gradcam.images.masks.Look` that are chosen."""
        return _chosen({"colormap": self.colormap, "opacity": self.opacity})

    @property
    def choices(self) -> dict[str, Any]:
        """The fields of `onnx_gradcam.Options` that are chosen, but for the method."""
        layer = self.layer[0] if len(self.layer) == 1 else list(self.layer) or None
        return _chosen({"preset": self.preset, "layer": layer, "preprocess": self.preprocess})


def explain_command(
    model: str, image: str, recipe: Recipe, base: Mapping[str, Any], labels: Sequence[str] | None, spoken: Spoken
) -> str:
    """The command that writes the recipe's picture; `base` are the choices that the studio was started with."""
    words = ["onnx-gradcam", "explain", model, image, "-o", _out(image)]
    if recipe.target is not None:
        words += ["--target", str(_class_word(recipe.target, labels))]
    if recipe.box is not None:
        words += ["--box", str(recipe.box)]
    if recipe.methods:
        words += ["--method", ",".join(recipe.methods)]
    words += spoken({name: value for name, value in {**base, **recipe.choices}.items() if name != "method"})
    words += [part for name, value in recipe.look.items() for part in (f"--{name}", str(value))]
    return shlex.join(words)


def attach_command(model: str, recipe: Recipe, base: Mapping[str, Any], spoken: Spoken) -> str:
    """The command that writes the explained model of the recipe's first method."""
    out = f"{Path(model).stem}-explained.onnx"
    return shlex.join(["onnx-gradcam", "attach", model, "-o", out, *spoken(attach_choices(recipe, base))])


def attach_choices(recipe: Recipe, base: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of `onnx_gradcam.Options` for the recipe's first method."""
    return {**base, **recipe.choices, **({"method": recipe.first} if recipe.first else {})}


def python_code(model: str, image: str, recipe: Recipe, base: Mapping[str, Any], labels: Sequence[str] | None) -> str:
    """The Python code that writes the recipe's picture."""
    choices = {name: _plain(value) for name, value in {**base, **recipe.choices}.items() if name != "method"}
    asked = [repr(image)]
    if recipe.target is not None:
        asked.append(repr(_class_word(recipe.target, labels)))
    names = ["Explainer"]
    if recipe.box is not None:
        asked.append(f'box=Selection(which="number", value={recipe.box})')
        names.append("Selection")
    call, look = ", ".join(asked), [f"{name}={value!r}" for name, value in recipe.look.items()]
    if not recipe.methods:
        made = [f"explanation = Explainer({_arguments(model, choices)})({call})"]
        drawn = f"explanation.sheet({', '.join(look)})"
    else:
        names.append("method_sheet")
        made = [
            "explanations = {",
            f"    method: Explainer({_arguments(model, choices)}, method=method)({call})",
            f"    for method in {list(recipe.methods)!r}",
            "}",
        ]
        drawn = f"method_sheet({', '.join(['explanations', *look])})"
    heading = f"from onnx_gradcam import {', '.join(names)}"
    return "\n".join([heading, "", *made, f"{drawn}.save({_out(image)!r})", ""])


def _class_word(index: int, labels: Sequence[str] | None) -> int | str:
    """The name of a class if it stands for this class alone, else its index."""
    name = labels[index] if labels is not None and index < len(labels) else ""
    try:
        unique = bool(name) and "," not in name and parse_top(name) is None and find_label(name, labels) == index
    except TargetError:
        return index
    return name if unique and not name.lstrip("+-").isdecimal() and not name.startswith("-") else index


def _out(image: str) -> str:
    return f"{Path(image).stem}_gradcam.png"


def _arguments(model: str, choices: Mapping[str, Any]) -> str:
    return ", ".join([repr(model), *(f"{name}={value!r}" for name, value in choices.items())])


def _plain(value: Any) -> Any:
    """A value as it is written in code: a path is text."""
    return str(value) if isinstance(value, Path) else value


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _is_names(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) <= _LONGEST
        and all(isinstance(name, str) and 0 < len(name) <= _LONGEST for name in value)
    )
