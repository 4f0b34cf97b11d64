"""Load Keras models safely and capture their layers' outputs, with Keras 3 or tf_keras, the successor of Keras 2."""

from __future__ import annotations

import functools
import importlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .conversation import RefusedError

__all__ = ["Caught", "image_shape", "keras_version", "load_model", "output_names"]

_LARGEST_CONFIG = 64 * 2**20
_OWN_MODULES = ("keras", "tf_keras", "tensorflow", "builtins")


def load_model(request: dict[str, Any], keras: Any) -> Any:
    """The Keras model of a request; refused if it contains code and is not trusted. `keras` may be `tf_keras`."""
    code = _code(_config(request["path"]))
    if code and not request["trust"]:
        raise RefusedError(f"{code}; a model's code runs with --trust only")
    classes = {}
    if request["custom"]:
        sys.path.insert(0, str(Path.cwd()))
        module = importlib.import_module(request["custom"])
        classes = {name: thing for name, thing in vars(module).items() if callable(thing) and not name.startswith("_")}
    try:
        return keras.models.load_model(
            request["path"], compile=False, safe_mode=not request["trust"], custom_objects=classes
        )
    except ModuleNotFoundError:
        raise
    except Exception as exc:
        reason = " ".join(str(exc).split())[:300]
        raise RefusedError(
            f"Keras {keras.__version__} cannot load it ({reason}); name the module of its own classes with --custom "
            "and --trust, or load it where it was made and save it as .keras"
        ) from exc


def keras_version(path: str) -> str:
    """The version of Keras that wrote a file; empty if unknown."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(_member(archive, "metadata.json")).get("keras_version", ""))
    return _text(_attributes(path).get("keras_version", ""))


def _config(path: str) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return json.loads(_member(archive, "config.json"))
    config = _attributes(path).get("model_config")
    if config is None:
        raise RefusedError("contains weights without a model; save the whole model")
    return json.loads(_text(config))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.namelist():
        raise RefusedError(f"not a Keras archive ({name} is missing); is it the right file?")
    if archive.getinfo(name).file_size > _LARGEST_CONFIG:
        raise RefusedError(f"its {name} is larger than any model needs; refused")
    return archive.read(name)


def _attributes(path: str) -> dict[str, Any]:
    import h5py  # noqa: PLC0415 - its absence is an answer

    try:
        with h5py.File(path, "r") as file:
            return dict(file.attrs)
    except OSError as exc:
        raise RefusedError("neither a .keras archive nor a complete HDF5 file; is it the right file?") from exc


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _code(config: Any) -> str:
    """The code in a model's configuration that Keras would run, in words; empty if there is none."""
    for entry in _objects(config):
        kind = entry.get("class_name")
        if kind in {"Lambda", "__lambda__"}:
            name = (entry.get("config") or {}).get("name", "") if isinstance(entry.get("config"), dict) else ""
            return f"the Lambda layer {name!r} holds code"
        module = entry.get("module")
        if isinstance(module, str) and isinstance(kind, str) and module.split(".")[0] not in _OWN_MODULES:
            return f"{kind} is defined in the module {module!r}"
        if str(entry.get("registered_name") or "").startswith("Custom>"):
            return f"{kind} is a custom class"
    return ""


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """All dictionaries in a configuration."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def image_shape(model: Any) -> list[int | None]:
    """The shape of the one input, its batch free."""
    shape = getattr(model, "input_shape", None) if getattr(model, "inputs", None) else None
    if shape is None:
        built: Any = model.get_build_config() if hasattr(model, "get_build_config") else None
        shape = (built or {}).get("input_shape")
    if isinstance(shape, dict):
        shape = list(shape.values())
    if shape and isinstance(shape[0], (list, tuple)):
        if len(shape) > 1:
            raise RefusedError("has several inputs; save a model with one, the image")
        shape = shape[0]
    if not shape:
        raise RefusedError("does not say the shape of its input; call it once before you save it")
    return [None, *shape[1:]]


def output_names(model: Any, count: int) -> list[str]:
    """The names of a model's outputs, numbered if Keras has none for them."""
    names = list(getattr(model, "output_names", None) or [])
    return names if len(names) == count else [f"output_{i}" if i else "output" for i in range(count)]


class Caught:
    """The outputs of all layers of a Keras model, in execution order, captured while the model is called."""

    def __init__(self, model: Any) -> None:
        self.outputs: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        for name, layer in _layers(model, ""):
            self.kinds[name] = type(layer).__name__
            self._catch(name, layer)

    def _catch(self, name: str, layer: Any) -> None:
        original = layer.call

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            # The last of several calls counts.
            self.outputs.pop(name, None)
            self.outputs[name] = result
            return result

        # Bypasses Keras's tracking of attributes.
        layer.__dict__["call"] = call

    def maps(self) -> dict[str, Any]:
        """The outputs with spatial positions: single floating-point tensors of rank 3 or more."""
        return {
            name: value
            for name, value in self.outputs.items()
            if len(getattr(value, "shape", ())) >= 3 and "float" in str(getattr(value, "dtype", ""))
        }


def _layers(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """All layers with their names, those of inner models as `outer/inner`."""
    for layer in model._flatten_layers(recursive=False, include_self=False):  # noqa: SLF001 - there is no public walk
        if type(layer).__name__ == "InputLayer":
            continue
        inner = layer is getattr(model, "_functional", None)
        if not inner:
            yield prefix + layer.name, layer
        yield from _layers(layer, prefix if inner else f"{prefix}{layer.name}/")
