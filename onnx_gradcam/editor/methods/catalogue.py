"""The methods, and the ingredients they are made of.

A method is one function, registered with `method`. It takes the graph builder and the ingredients it names as
parameters; `INGREDIENTS` says what each one is, what it requires of the model and what it costs.

* A method of the family `cam` returns the raw signed map, `[N, *spatial]`.
* A method of the family `attribution` returns a value for every value of the image, `[N, C, H, W]`.
* Methods of the families `sampling` (gradients at many images) and `perturbation` (scores of many images) run the model
  many times and cannot be part of it. They take a `Probe`, name the ingredients they use in `uses`, and return a value
  for every value of the image, `[C, H, W]`, or a map of the layer's or the image's size, `[h, w]`. A few methods of the
  family `cam` work like that too, because no operator of ONNX computes what they need.

Example::

    @method("gradcam", title="Grad-CAM", reference="Selvaraju et al. 2017, eq. 1 and 2")
    def grad_cam(t, A, G, total):
        return total(A, t.mean(G, [2, 3]))
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from onnx_gradcam.errors import TargetError, near_matches, same_name
from onnx_gradcam.options import ChannelReduction, Combine, ModifierName, Options

__all__ = ["INGREDIENTS", "METHODS", "OF_SOME", "Family", "Ingredient", "Method", "Variable", "find_method", "method"]
__all__ += ["methods"]

Family = Literal["cam", "attribution", "sampling", "perturbation"]
Variable = Literal["layer", "image", "attention"]


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """Something a method can ask for by the name of a parameter.

    Attributes:
        about: what it is.
        form: its dtype and shape, or its signature.
        cost: what it costs besides the forward pass, in words; empty for nothing.
        gradient_of: what the score is differentiated with respect to; `None` if it is no derivative.
        at_layer: it belongs to the explained layer.
        second_order: it takes a second derivative.
        reruns_head: it evaluates the model behind the layer again.
        smoothable: what it computes can be replaced by its leading principal component (eigen smoothing).
        per_bias: it depends on which biases the network had, and not only on what the network computes.
        of_boxes: it compares the boxes that a detector finds, which only methods outside the model do.
        of_attention: it looks at attention maps, which only transformers have.
    """

    about: str
    form: str
    cost: str = ""
    gradient_of: Variable | None = None
    at_layer: bool = False
    second_order: bool = False
    reruns_head: bool = False
    smoothable: bool = False
    per_bias: bool = False
    of_boxes: bool = False
    of_attention: bool = False


INGREDIENTS: dict[str, Ingredient] = {
    "x": Ingredient(about="the image as the model receives it", form="float32 `[N, C, H, W]`"),
    "A": Ingredient(about="activation maps of the explained layer", form="float32 `[N, C, *spatial]`", at_layer=True),
    "G": Ingredient(
        about="gradient of the score with respect to `A`",
        form="as `A`, or of size one along the spatial axes if it is the same at all positions",
        cost="the gradient of the head",
        gradient_of="layer",
        at_layer=True,
    ),
    "HA": Ingredient(
        about="Hessian of the score with respect to `A`, times `A`",
        form="as `A`",
        cost="the gradient of that",
        gradient_of="layer",
        at_layer=True,
        second_order=True,
    ),
    "gx": Ingredient(
        about="gradient of the score with respect to `x`", form="as `x`", cost="one backward pass", gradient_of="image"
    ),
    "biases": Ingredient(
        about="each bias times the gradient of the tensor it is added to",
        form="list of float32 `[N, C, h, w]`",
        cost="one more for the biases",
        gradient_of="image",
        per_bias=True,
    ),
    "constants": Ingredient(
        about="each additive constant (biases, class tokens, positions ...) times the gradient of where it is added",
        form="list of float32 `[N, C, h, w]`, of those that are added to maps or tokens",
        gradient_of="image",
        per_bias=True,
    ),
    "attentions": Ingredient(
        about="gradient of the score with respect to each attention map, and the number of tokens before the grid",
        form="list of float32 `[N, heads, T, T]`, int",
        cost="for each block the head and its gradient",
        gradient_of="attention",
        at_layer=True,
        of_attention=True,
    ),
    "P": Ingredient(
        about="the attention maps of all blocks, and of a last attention that pools the tokens",
        form="`Attention` of float32 `[N, heads, T, T]`",
        at_layer=True,
        of_attention=True,
    ),
    "GP": Ingredient(
        about="gradient of the score with respect to `P`",
        form="as `P`",
        cost="the gradient back to the first block",
        gradient_of="attention",
        at_layer=True,
        of_attention=True,
    ),
    "head": Ingredient(
        about="the score for other activation maps, n for each sample",
        form="`(maps [N * n, C, *spatial], n) -> [N, n]`",
        cost="the head once for each position",
        at_layer=True,
        reruns_head=True,
    ),
    "total": Ingredient(
        about="the weighted sum of maps over channels, or the leading principal component with eigen smoothing",
        form="`(maps [N, C, *spatial], weights that broadcast) -> [N, *spatial]`",
        smoothable=True,
    ),
    "spread": Ingredient(
        about="a raw map as factors of the pixels: rectified and resized as the preset says",
        form="`(map [N, *spatial]) -> [N, H, W]`",
        at_layer=True,
    ),
    "settings": Ingredient(about="the options that the method takes", form="by the names of their fields"),
    "baselines": Ingredient(
        about="the images that stand for no information", form="list of float32 `[N, C, *spatial]`, or of size one"
    ),
    "gradients": Ingredient(
        about="gradient of the score at other images, n for each sample",
        form="`(images [N * n, C, *spatial], n) -> [N * n, C, *spatial]`",
        cost="a pass forward and backward for each of the images, and a forward pass for each baseline",
        gradient_of="image",
    ),
    "score": Ingredient(about="the explained score", form="float32 `[N]`"),
    "probability": Ingredient(about="the probability of the explained class", form="float32 `[N]`"),
    "similarity": Ingredient(
        about="how like the explained box the box found is that is most like it: in place, class and sureness",
        form="float32 `[N]`",
        of_boxes=True,
    ),
}
"""The ingredients by name."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method.

    Attributes:
        name: identifier.
        title: its name in the literature.
        reference: paper and equation.
        function: the method itself.
        family: see the module.
        uses: the ingredients of a method that cannot be part of a model; other methods name them as parameters.
        passes: the cost of a method that cannot be part of a model, in words.
        outside: why it cannot be part of a model, in words that follow its title; empty if it can.
        modifier: how rectifiers pass the gradient of the image back; `None` for the plain gradient.
        objective: what is differentiated, by its name in `onnx_gradcam.editor.targets.score`.
        combine: how the heatmaps of several layers become one; `None` for the preset's way.
        linear_head: it is defined only for pooling and one linear layer behind the activation maps.
        absolute: the sign of an attribution has no meaning, so its heatmap shows absolute values.
        additive: a raw map holds shares of the score at each position, so those of several layers can be added.
        image_map: it returns a map of the image's size, where others of its family attribute to each value.
        inside: the same as a part of a model, where that is possible beside running the model many times.
        takes: the options that only some methods take, and their defaults, by the names of their fields.
    """

    name: str
    title: str
    reference: str
    function: Callable[..., Any]
    family: Family = "cam"
    uses: tuple[str, ...] = ()
    passes: str = ""
    outside: str = ""
    modifier: ModifierName | None = None
    objective: str = "class"
    combine: Combine | None = None
    linear_head: bool = False
    absolute: bool = False
    additive: bool = False
    image_map: bool = False
    inside: Method | None = None
    takes: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The names of its ingredients, which are the parameters behind the builder, or `uses`."""
        return self.uses if self.runs_often else tuple(inspect.signature(self.function).parameters)[1:]

    @property
    def ingredients(self) -> list[Ingredient]:
        """What it asks for, in the order of `INGREDIENTS`."""
        return [ingredient for name, ingredient in INGREDIENTS.items() if name in self.needs]

    @property
    def runs_often(self) -> bool:
        """Whether NumPy computes it from runs of the model, most often many, so that it cannot be part of it."""
        return bool(self.outside)

    @property
    def needs_layer(self) -> bool:
        """Whether it looks at a layer, and not only at the image."""
        return any(ingredient.at_layer for ingredient in self.ingredients)

    @property
    def channels(self) -> ChannelReduction:
        """How the channels of an attribution become one map by default."""
        return "max" if self.absolute else "sum"

    @property
    def reruns_head(self) -> bool:
        """Whether it evaluates the model behind the layer again."""
        return any(ingredient.reruns_head for ingredient in self.ingredients)

    @property
    def combines(self) -> bool:
        """Whether its maps of several layers can become one; it is then part of the model, and looks at each alone."""
        alone = self.runs_often or self.reruns_head or self.linear_head or self.of_attention
        return self.family == "cam" and not alone

    @property
    def second_order(self) -> bool:
        """Whether it takes second derivatives."""
        return any(ingredient.second_order for ingredient in self.ingredients)

    @property
    def smoothable(self) -> bool:
        """Whether eigen smoothing applies to it."""
        return any(ingredient.smoothable for ingredient in self.ingredients)

    @property
    def per_bias(self) -> bool:
        """Whether it depends on which biases the network had."""
        return any(ingredient.per_bias for ingredient in self.ingredients)

    @property
    def of_boxes(self) -> bool:
        """Whether it explains boxes alone, which it has to know the places of."""
        return any(ingredient.of_boxes for ingredient in self.ingredients)

    @property
    def of_attention(self) -> bool:
        """Whether it looks at attention maps, which only transformers have."""
        return any(ingredient.of_attention for ingredient in self.ingredients)

    def differentiates(self, variable: Variable) -> bool:
        """Whether it takes the gradient of the score with respect to the layer, the image or attention maps."""
        return any(ingredient.gradient_of == variable for ingredient in self.ingredients)

    @property
    def takes_gradients(self) -> bool:
        """Whether it takes any gradient of the score, which a modifier can change."""
        return any(ingredient.gradient_of is not None for ingredient in self.ingredients)

    def settings(self, options: Options) -> dict[str, Any]:
        """What the options that it takes are for a user's choices."""
        given = {name: options.baselines if name == "baseline" else getattr(options, name) for name in self.takes}
        return {name: self.takes[name] if value is None else value for name, value in given.items()}

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        if self.passes:
            return self.passes
        parts = ["one forward pass", *(ingredient.cost for ingredient in self.ingredients if ingredient.cost)]
        return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


OF_SOME = ("baseline", "steps", "idgi", "smooth", "players", "max_passes")
"""The options that only some methods take, by the names of their fields; `Method.takes` has their defaults."""

METHODS: dict[str, Method] = {}

_Function = Callable[..., Any]


def method(name: str, **fields: Any) -> Callable[[_Function], _Function]:
    """Register a method; `fields` are the other fields of `Method`."""

    def register(function: _Function) -> _Function:
        METHODS[name] = Method(name=name, function=function, **fields)
        return function

    return register


def methods() -> dict[str, Method]:
    """All methods by name, family by family, those that look at a layer first; imports their modules if need be.

    Example::

        print([name for name, method in methods().items() if method.family == "attribution"])
    """
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    families = get_args(Family)

    def place(registered: Method) -> tuple[int, bool, str]:
        # Not the order of registration alone: that depends on who imported which module first.
        return families.index(registered.family), not registered.needs_layer, registered.function.__module__

    return {registered.name: registered for registered in sorted(METHODS.values(), key=place)}


def find_method(name: str) -> Method:
    """The method of a name or title; case, hyphens, underscores and spaces do not count."""
    table = methods()
    spellings = {**{m.title: m.name for m in table.values()}, **{key: key for key in table}}
    spelling = same_name(name, spellings)
    if spelling is None:
        raise TargetError(f"there is no method {name!r}{near_matches(name, table)}; `methods` lists them")
    return table[spellings[spelling]]
