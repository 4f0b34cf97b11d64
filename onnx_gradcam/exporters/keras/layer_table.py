"""The table of Keras layer classes and operations.

A new Keras layer is one function in a module of `layers`::

    @keras_layer("LeakyReLU")
    def leaky_relu(call, x, *, negative_slope=0.3):
        return Tensor(call.op("LeakyRelu", x.value, alpha=negative_slope), x.moved)

Its keyword parameters are the keys of the layer's configuration; unknown keys are refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from onnx_gradcam.errors import ExportError, near_matches

from .archive import REMEDY
from .call import Call, Layer, Outputs, Tensor
from .weights import Slot

__all__ = ["LAYERS", "OPERATIONS", "TF_FUNCTIONS", "LayerRule", "keras_layer", "operation", "rule_of"]

_PUBLIC = ("keras.layers", "keras.layers.experimental.preprocessing", "tf_keras.layers", "tensorflow.keras.layers")
"""The modules of the public classes."""

_NEUTRAL = frozenset(
    {"name", "trainable", "dtype", "batch_input_shape", "batch_shape", "input_shape", "input_dtype", "build_config"}
)
"""Configuration keys without effect on a trained layer."""

_NEUTRAL_ENDS = ("_initializer", "_regularizer", "_constraint")

_OFF = frozenset(
    {"quantization_config", "lora_rank", "lora_alpha", "sparse", "ragged", "virtual_batch_size", "use_gate",
     "sliding_window"}
)  # fmt: skip
"""Configuration keys of features that must be switched off."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerRule:
    """How a layer class is written in ONNX."""

    write: Callable[..., Outputs]  # the function: call, tensors, configuration
    slots: tuple[Slot, ...]  # the class's variables
    neutral: frozenset[str]  # further configuration keys without effect, or that only decide about variables
    modules: tuple[str, ...]
    parameters: Mapping[str, Any]  # the configuration keys that the function takes, with their defaults
    arguments: frozenset[str]  # the arguments of a call, besides tensors, that the function takes

    def slots_of(self, config: Mapping[str, Any], major: int) -> list[Slot]:
        """The variables of a layer with this configuration."""
        return [slot for slot in self.slots if self._has(slot.when, config, major)]

    def _has(self, when: str, config: Mapping[str, Any], major: int) -> bool:
        if when.startswith("keras"):
            return major == int(when.removeprefix("keras"))
        if when.startswith("no "):
            return config.get(when.removeprefix("no ")) is None
        return not when or bool(config.get(when, self.parameters.get(when, True)))

    def options(self, config: Mapping[str, Any], layer: Layer) -> dict[str, Any]:
        """The function's keyword arguments; unknown, missing and infinite entries are refused."""
        options = {}
        for key, value in config.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ExportError(f"{layer}: its configuration has {key} = {value}; save a model with finite values")
            if key in self.parameters:
                options[key] = value
            elif key in _NEUTRAL or key in self.neutral or "*" in self.neutral or key.endswith(_NEUTRAL_ENDS):
                continue
            elif key not in _OFF or value not in (None, False):
                raise ExportError(f"{layer}: its configuration has the unknown entry {key} = {value!r}; {REMEDY}")
        for key, default in self.parameters.items():
            if default is inspect.Parameter.empty and key not in options:
                raise ExportError(f"{layer}: its configuration lacks {key!r}; save the model again")
        return options


_Write = TypeVar("_Write", bound=Callable[..., Outputs])

LAYERS: dict[str, LayerRule] = {}
"""The layer classes by name."""

OPERATIONS: dict[str, Callable[..., Outputs]] = {}
"""The classes of `keras.ops`, which Keras 3 inserts for expressions such as `x + 3.0`."""

TF_FUNCTIONS: dict[str, Callable[..., Outputs]] = {}
"""The functions of TensorFlow, which Keras 2 inserts for them."""


def keras_layer(
    *names: str,
    weights: Sequence[Slot] = (),
    neutral: Sequence[str] = (),
    modules: Sequence[str] = _PUBLIC,
    arguments: Sequence[str] = (),
) -> Callable[[_Write], _Write]:
    """Register the function that writes layers of the classes `names`.

    Args:
        names: of the classes.
        weights: the variables in the order of their creation.
        neutral: configuration keys without effect on a trained model; `*` for all.
        modules: the modules of the classes, as Keras writes them.
        arguments: the arguments of a call, besides tensors, that the function takes; others must have no effect.
    """

    def register(write: _Write) -> _Write:
        signature = inspect.signature(write).parameters.values()
        rule = LayerRule(
            write=write,
            slots=tuple(weights),
            neutral=frozenset(neutral) | {slot.when for slot in weights if slot.when},
            modules=tuple(modules),
            parameters={p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY and p.name not in arguments},
            arguments=frozenset(arguments),
        )
        LAYERS.update(dict.fromkeys(names, rule))
        return write

    return register


def operation(*names: str, tf: Sequence[str] = ()) -> Callable[[_Write], _Write]:
    """Register the function that writes operations: classes `names` of Keras 3, functions `tf` of TensorFlow."""

    def register(write: _Write) -> _Write:
        OPERATIONS.update(dict.fromkeys(names, write))
        TF_FUNCTIONS.update(dict.fromkeys(tf, write))
        return write

    return register


def rule_of(entry: Mapping[str, Any], layer: Layer) -> LayerRule:
    """The rule of a layer; refused if the class is unknown, or somebody's own of the same name."""
    rule = LAYERS.get(layer.kind)
    module, registered = entry.get("module"), entry.get("registered_name")
    if rule is None:
        own = f" of {module}" if module and module not in _PUBLIC else ""
        raise ExportError(f"{layer}{own}: this class is not supported{near_matches(layer.kind, LAYERS)}; {REMEDY}")
    if registered not in (None, layer.kind) or (module is not None and module not in rule.modules):
        owner = registered if registered not in (None, layer.kind) else module
        raise ExportError(f"{layer}: this is a class of {owner!r}, not Keras's own; {REMEDY}")
    return rule


def written(
    rule: LayerRule, call: Call, xs: Sequence[Tensor], named: Mapping[str, Any], options: Mapping[str, Any]
) -> Outputs:
    """Run a rule on the arguments of a call, by place and by name, with the number of tensors checked."""
    try:
        inspect.signature(rule.write).bind(call, *xs, **named, **options)
    except TypeError:
        call.refuse(f"it is called with {len(xs) + len(named)} tensors")
    return rule.write(call, *xs, **named, **options)
