"""Read Keras files without Keras: each layer's output becomes an ONNX tensor of the layer's name.

The preprocessing of a `keras.applications` network, which its file does not contain, is recognised by the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import BATCH, Product, Writer
from onnx_gradcam.images.preprocessing import PRESETS
from onnx_gradcam.metadata import CarriedLayer

from .archive import REMEDY, Archive, open_archive
from .call import Layer, Tensor
from .parts import Arguments, Container, Context, count_variables, layer_entries, policy_of
from .weights import ByPath, LayerList, Source

__all__ = ["preprocessing_of", "read_keras"]


@dataclass(frozen=True)
class _Network:
    """How a network of `keras.applications` is recognised beyond its name."""

    mode: str  # the preset for its `preprocess_input`
    convolutions: tuple[int, ...]  # its number of layers with Conv in their class, with and without its classifier
    within: bool = False  # whether the network begins with layers that prepare the image


# Counted in Keras 3.15; the modes are those of each keras/src/applications/<module>.py, `preprocess_input`.
_NETWORKS = {
    "vgg16": _Network("keras-caffe", (13,)),
    "vgg19": _Network("keras-caffe", (16,)),
    "resnet50": _Network("keras-caffe", (53,)),
    "resnet101": _Network("keras-caffe", (104,)),
    "resnet152": _Network("keras-caffe", (155,)),
    "resnet50v2": _Network("keras-tf", (53,)),
    "resnet101v2": _Network("keras-tf", (104,)),
    "resnet152v2": _Network("keras-tf", (155,)),
    "inception_v3": _Network("keras-tf", (94,)),
    "inception_resnet_v2": _Network("keras-tf", (244,)),
    "xception": _Network("keras-tf", (40,)),
    "mobilenet": _Network("keras-tf", (28, 27)),
    "mobilenetv2": _Network("keras-tf", (52,)),
    "nasnet_mobile": _Network("keras-tf", (196,)),
    "nasnet_large": _Network("keras-tf", (268, 263)),
    "densenet121": _Network("keras-torch", (120,)),
    "densenet169": _Network("keras-torch", (168,)),
    "densenet201": _Network("keras-torch", (200,)),
    "mobilenetv3small": _Network("none", (54, 52), within=True),
    "mobilenetv3large": _Network("none", (64, 62), within=True),
    **{
        f"efficientnetb{i}": _Network("none", (count,), within=True)
        for i, count in enumerate((81, 115, 115, 130, 160, 194, 224, 273))
    },
    **{
        f"efficientnetv2-{size}": _Network("none", (count,), within=True)
        for size, count in zip(("b0", "b1", "b2", "b3", "s", "m", "l"), (91, 111, 116, 136, 170, 245, 339), strict=True)
    },
    "convnext_tiny": _Network("none", (18,), within=True),
    **{f"convnext_{size}": _Network("none", (36,), within=True) for size in ("small", "base", "large", "xlarge")},
}


def preprocessing_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The preprocessing of a network of `keras.applications`; `None` unless name, layers and input agree."""
    inner = config.get("config")
    if config.get("class_name") not in {"Functional", "Model"} or not isinstance(inner, Mapping):
        return None
    # MobileNets have their sizes in their names: mobilenet_1.00_224.
    name = re.sub(r"_\d\.\d+_(\d+|None)$", "", str(inner.get("name"))).lower()
    network = _NETWORKS.get(name)
    layers = [layer for layer in inner.get("layers", ()) if isinstance(layer, Mapping)]
    classes = [str(layer.get("class_name")) for layer in layers]
    if network is None or sum("Conv" in kind for kind in classes) not in network.convolutions:
        return None
    within = bool({"Rescaling", "Normalization"} & set(classes[1:3]))
    shape = layers[0]["config"].get("batch_shape") or layers[0]["config"].get("batch_input_shape")
    if classes[0] != "InputLayer" or network.within != within or not isinstance(shape, list) or shape[3:] != [3]:
        return None
    _, height, width, _ = shape
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    described: dict[str, Any] = replace(PRESETS[network.mode], layout="NCHW", size=size).to_dict()
    return described


_LAYOUTS = {3: "NCW", 4: "NCHW", 5: "NCDHW"}
_LARGEST_SIZE = 2**20
_FREE = {4: (BATCH, "height", "width", "channels")}


def read_keras(path: str | Path) -> Product:
    """Read a `.keras` file of Keras 3 or 2, or an `.h5` file that holds a whole model.

    Needs h5py, but neither Keras nor TensorFlow. Weights are read when the product's model is saved; until then the
    file must not move. A functional or sequential model of Keras's own layers is written at opset 18:

    * Each layer's tensor is named after the layer: `inner/layer` for a layer of an inner model, `layer:1`,
      `layer:2` ... for further calls of a shared layer. An inner model stands for its output.
    * Maps are `[N, C, H, W]`, even if they are `[N, H, W, C]` in Keras, and so are inputs of rank 4. Other inputs, and
      outputs, keep Keras's axes: an output of rank 4 is a transposed copy of the layer's tensor, named
      `layer/channels_last`.
    * Everything is computed in float32, even after mixed-precision training.

    Raises:
        InputError: there is no such file.
        ExportError: it is damaged or not a Keras model, or a layer or its configuration is not supported.
    """
    archive = open_archive(path)
    try:
        return _product(archive)
    except RecursionError as exc:
        raise ExportError(f"{archive.name}: its configuration is nested too deeply; refused") from exc
    except ExportError as exc:
        if str(exc).startswith(archive.name):
            raise
        raise type(exc)(f"{archive.name}: {exc}") from exc


def _product(archive: Archive) -> Product:
    config = archive.config
    source: Source
    if archive.legacy:
        source = LayerList(archive.weights, lambda entry: count_variables(entry, archive.major))
    else:
        source = ByPath(archive.weights)
    if isinstance(config.get("config"), list):  # sequential models of Keras below 2.2.3
        config = {**config, "config": {"layers": config["config"]}}
    model = Container(config, source, "", archive.major)
    writer = Writer(str(_name(config)))
    channels_last = not any(c.get("data_format") == "channels_first" for c, _ in _configs(config))
    context = Context(writer=writer, major=archive.major, channels_last=channels_last)
    warnings = list(_warnings(config))
    outputs = model(context, Arguments(_inputs(context, model, config), {}), "")
    for tensor in outputs:
        if tensor.moved:
            copied = context.call(Layer(path=tensor.value.name, kind="output")).plain(tensor)
            writer.output(copied.value, f"{tensor.value.name}/channels_last")
        else:
            writer.expose(tensor.value)
    finished = writer.finished()
    kept = {o.name for node in finished.core.graph for o in node.outputs} | {i.name for i in finished.core.graph.inputs}
    layers = {
        name: CarriedLayer(
            tensor=tensor.value.name,
            kind=kind,
            shape=list(tensor.value.known_shape or ()),
            layout=_layout(tensor, channels_last=channels_last),
        )
        for name, (tensor, kind) in context.layers.items()
        if tensor.value.name in kept
    }
    return Product(
        model=finished,
        framework="keras",
        version=archive.version,
        layers=layers,
        image_layout="NHWC"
        if channels_last and any(i.rank == 4 for i in map(writer.wrap, writer.graph.inputs))
        else "",
        preprocessing=preprocessing_of(config),
        warnings=warnings,
    )


def _layout(tensor: Tensor, *, channels_last: bool) -> str:
    return _LAYOUTS.get(tensor.rank, "") if tensor.moved or (tensor.rank > 3 and not channels_last) else ""


def _name(config: Mapping[str, Any]) -> object:
    inner = config.get("config")
    return (inner.get("name") if isinstance(inner, Mapping) else None) or "keras"


def _configs(entry: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Configuration and entry of each layer, inner models included."""
    config = entry.get("config")
    for inner in layer_entries(entry) if isinstance(config, Mapping) and "layers" in config else ():
        yield inner["config"], inner
        yield from _configs(inner)


def _inputs(context: Context, model: Container, config: Mapping[str, Any]) -> list[Tensor]:
    """The inputs of the graph."""
    if model.kind == "Sequential":
        first = model.entries[0]
        name = model.inputs[0].layer or "input"
        shape = _batch_shape(first["config"]) or config["config"].get("build_input_shape")
        if shape is None and isinstance(build := config.get("build_config"), Mapping):
            shape = build.get("input_shape")
        return [_input(context, name, shape, first["config"].get("dtype") if model.inputs[0].layer else None)]
    entries = {str(entry["config"]["name"]): entry for entry in model.entries}
    tensors = []
    for reference in model.inputs:
        entry = entries.get(reference.layer)
        if entry is None or entry["class_name"] != "InputLayer":
            raise ExportError(f"the input {reference.layer!r} is not an InputLayer; save the model again")
        tensors.append(_input(context, reference.layer, _batch_shape(entry["config"]), entry["config"].get("dtype")))
    return tensors


def _batch_shape(config: Mapping[str, Any]) -> Any:
    return config.get("batch_shape") or config.get("batch_input_shape")


def _input(context: Context, name: str, shape: Any, dtype: object) -> Tensor:
    if not isinstance(shape, list) or not all(
        d is None or (isinstance(d, int) and not isinstance(d, bool) and d > 0) for d in shape
    ):
        raise ExportError(f"the shape of input {name!r} is {shape!r}; build the model before you save it")
    if max((d for d in shape if d is not None), default=0) > _LARGEST_SIZE:
        raise ExportError(f"the shape of input {name!r} is {shape}, larger than any image; refused")
    if dtype not in (None, "float32", "float16", "bfloat16", "float64", "uint8"):
        raise ExportError(f"input {name!r} has the dtype {dtype!r}, so it is not an image; {REMEDY}")
    rank = len(shape)
    free = _FREE.get(rank, (BATCH, *(f"{name}_{i}" for i in range(1, rank))))
    if context.writer.graph.inputs and rank == 4:
        free = (BATCH, *(f"{name}_{axis}" for axis in free[1:]))
    if rank == 4 and not context.channels_last:
        free = (free[0], free[3], free[1], free[2])
    sizes = [BATCH, *(symbol if size is None else size for size, symbol in zip(shape[1:], free[1:], strict=True))]
    moved = rank == 4 and context.channels_last
    if moved:
        sizes = [sizes[0], sizes[3], sizes[1], sizes[2]]
    return Tensor(context.writer.input(name, np.float32, tuple(sizes)), moved)


def _warnings(config: Mapping[str, Any]) -> Iterator[str]:
    policies = {policy_of(entry, str(inner["name"])) for inner, entry in _configs(config) if _computes(entry)}
    rounded = sorted(policies - {"float32"})
    if rounded:
        yield f"the model's precision is {', '.join(rounded)} in Keras; here everything is computed in float32"
    for inner, entry in _configs(config):
        if entry["class_name"] == "InputLayer" and inner.get("dtype") == "uint8":
            yield f"input {inner['name']!r} takes uint8 in Keras and the same numbers as float32 here"


def _computes(entry: Mapping[str, Any]) -> bool:
    return entry["class_name"] not in {"InputLayer", "Functional", "Model", "Sequential", "TFOpLambda"}
