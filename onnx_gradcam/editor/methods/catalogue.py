"""Which methods there are.

A method is a pure function of the builder and of what it asks for by the names of its parameters:

| name | what | type, shape |
| --- | --- | --- |
| `A` | activation maps of the target layer | float32 `[N, C, *spatial]` |
| `G` | their cotangent: the derivative of the explained score | as `A`, or of size one along the spatial axes where it is the same at every place |
| `HA` | the Hessian of the explained score with respect to `A`, times `A` | as `A` |
| `head` | a function `(maps [N * n, C, *spatial], n) -> [N, n]`: the explained score for n other maps a sample | |
| `biases` | the bias of each layer times the cotangent of what it is added to | a list of `[N, C, h, w]` |
| `attentions` | the cotangent of each block's attention map, and the number of tokens before the grid | a list of `[N, heads, T, T]`, int |
| `score` | the explained score | float32 `[N]` |
| `total` | a function `(maps, weights) -> [N, *spatial]`: the sum over channels of maps times weights that broadcast, if any, or with eigen smoothing the leading component of the products | |
| `x` | the image as the model gets it | float32 `[N, C, H, W]` |
| `gx` | its cotangent | as `x` |

A method of the family `cam` returns the raw signed map, `[N, *spatial]`; one of the family `attribution` a number for
every value of the image, `[N, C, H, W]`. Both are written into the model.

Methods that run the model many times are no part of a model: `sampling` differentiates at many images, `perturbation`
watches the score change. They are functions of a `Probe`, and say what of the above they use. They return a number for
every value of the image, `[C, H, W]`, or a map of the layer's or the image's size, `[h, w]`. Adding a method is
adding one function.
"""  # noqa: E501 - a row of the table is one line

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from onnx_gradcam.errors import TargetError, near_matches

__all__ = ["METHODS", "Family", "Method", "find_method", "method", "methods"]

Family = Literal["cam", "attribution", "sampling", "perturbation"]
Modifier = Literal["guided", "deconvnet"]
Combine = Literal["mean", "max", "product"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method.

    Attributes:
        name: its identifier.
        title: its name in the literature.
        reference: paper and equation.
        function: the method itself.
        family: see above.
        uses: what it uses where its function does not say by its parameters; `head` is the model behind the layer.
        passes: what it costs, in words, where that does not follow.
        modifier: how the cotangent of the image is changed on its way back: `guided`, `deconvnet` or not.
        objective: what is differentiated, by its name in `onnx_gradcam.editor.targets.objective`.
        combine: how the heatmaps of several layers become one, where it is not what the preset says.
        linear_head: it is defined for pooling and one linear layer behind the activation maps alone.
        absolute: the sign of an attribution does not matter, so that its heatmap shows absolute values.
    """

    name: str
    title: str
    reference: str
    function: Callable[..., Any]
    family: Family = "cam"
    uses: tuple[str, ...] = ()
    passes: str = ""
    modifier: Modifier | None = None
    objective: str = "class"
    combine: Combine | None = None
    linear_head: bool = False
    absolute: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What it asks for: the names of its parameters behind the builder, or what it says it uses."""
        return self.uses if self.runs_often else tuple(inspect.signature(self.function).parameters)[1:]

    @property
    def runs_often(self) -> bool:
        """Whether it runs the model many times, so that it cannot be a part of it."""
        return self.family in {"sampling", "perturbation"}

    @property
    def needs_layer(self) -> bool:
        """Whether it looks at a layer, and not at the image alone."""
        return not {"A", "G", "head"}.isdisjoint(self.needs)

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        if self.passes:
            return self.passes
        if "HA" in self.needs:
            return "one forward pass, the gradient of the head and the gradient of that"
        if "gx" in self.needs:
            return "one forward and one backward pass"
        return "one forward pass and the gradient of the head" if "G" in self.needs else "one forward pass"


METHODS: dict[str, Method] = {}

_Function = Callable[..., Any]


def method(name: str, **facts: Any) -> Callable[[_Function], _Function]:
    """Register a method; `facts` are the other fields of `Method`."""

    def register(function: _Function) -> _Function:
        METHODS[name] = Method(name=name, function=function, **facts)
        return function

    return register


def methods() -> dict[str, Method]:
    """The table of all methods, family by family; their files are imported on the first call."""
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    families = get_args(Family)
    return {name: METHODS[name] for name in sorted(METHODS, key=lambda name: families.index(METHODS[name].family))}


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        TargetError: there is none.
    """
    table = methods()
    if name not in table:
        raise TargetError(f"there is no method {name!r}{near_matches(name, table)}; `methods` lists them")
    return table[name]
