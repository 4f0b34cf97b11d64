"""A static page around an explained model, which runs in the visitor's browser."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.editor.attachment import with_required_class
from onnx_gradcam.errors import InputError, ModelError
from onnx_gradcam.files import Drafts, make_folder
from onnx_gradcam.graph.model import Model
from onnx_gradcam.images.decoding import prepare
from onnx_gradcam.images.drawing import COLORMAPS, colorize
from onnx_gradcam.images.preprocessing import PRESETS, Preprocessing, parse_preprocessing
from onnx_gradcam.metadata import Metadata

__all__ = ["Probabilities", "build_site"]

Probabilities = Literal["softmax", "sigmoid", "none"]

_LARGEST: Final = 2**30
"""Bytes of weights: a browser's WebAssembly holds 4 GB, in which the model lies twice while it is loaded."""
_GIVEN: Final = {"softmax": "given", "sigmoid": "given", "logsoftmax": "exponential"}
"""How the scores of a model that ends in an activation become probabilities."""


def build_site(
    source: str | Path,
    folder: str | Path,
    runtime: Mapping[str, bytes],
    *,
    probabilities: Probabilities | None = None,
    **choices: Any,
) -> list[str]:
    """Write the page; its folder appears complete or not at all.

    Args:
        source: an explained model, or one that is attached first; its class becomes an input that is always fed, as
            onnxruntime-web takes no optional one.
        folder: what is written; it may not be there yet, or is empty.
        runtime: the files of onnxruntime-web by name, as `runtime_files` gives them.
        probabilities: what the model's plain scores become on the page; by default `softmax`, and `sigmoid` for a
            single logit. A model that ends in one of the two has probabilities already.
        choices: fields of `onnx_gradcam.options.Options`, for a model that is not explained yet.

    Returns:
        The files written, below `folder`.

    Raises:
        ExplainError: the model cannot be shown this way, or the folder is not empty or cannot be written.
    """
    model, metadata = with_required_class(source, choices)
    _check(model, metadata)
    size = sum(v.const_value.nbytes for v in model.core.graph.initializers.values() if v.const_value is not None)
    if size > _LARGEST:
        raise ModelError(
            f"the model has {size / 1e9:.1f} GB of weights, more than the 1 GB that a page can hold; use a smaller one"
        )
    facts = _facts(model, metadata, _way(metadata, probabilities), Path(source).stem)
    files = {"site.json": b"", "model.onnx": _serialised(model), **_assets()}
    facts["model"]["bytes"] = len(files["model.onnx"])
    files["site.json"] = json.dumps(facts, ensure_ascii=False, allow_nan=False).encode()
    files |= {f"ort/{name}": data for name, data in runtime.items()}
    _write(files, Path(folder))
    return sorted(files)


def _check(model: Model, metadata: Metadata) -> None:
    if metadata.task != "classification" or metadata.all_classes:
        raise InputError(
            f"the page is for classifiers that explain one class at a time, and this model is explained for "
            f"{'all classes at once' if metadata.all_classes else metadata.task}; start from a classifier"
        )
    if not metadata.class_input:
        raise InputError(
            "the class is fixed in this model, and the page lets its visitors choose; start from the original model"
        )
    others = [value.name for value in model.core.graph.inputs]
    others = [name for name in others if name not in {metadata.image_input, metadata.class_input}]
    if others:
        raise ModelError(
            f"the model has another input, {others[0]!r}, which the page could not fill; make it a constant"
        )


def _way(metadata: Metadata, wanted: Probabilities | None) -> str:
    """How scores become what the page shows."""
    given = _GIVEN.get(metadata.activation)
    if given is None:
        return wanted or ("sigmoid" if metadata.single_logit else "softmax")
    if wanted not in {None, "none"}:
        raise InputError(
            f"the model ends in {metadata.activation} and gives probabilities already; leave --probabilities out"
        )
    return wanted or given


def _facts(model: Model, metadata: Metadata, way: str, title: str) -> dict[str, Any]:
    """What the page knows of the model: site.json."""
    preprocessing = _fitted(model, metadata)
    batch = model.shape(metadata.image_input)[0]
    disabled = ";".join(metadata.disabled_optimizers)
    options: dict[str, Any] = {"executionProviders": ["wasm"], "logSeverityLevel": 3}
    if disabled:
        options["extra"] = {"optimization": {"disable_specified_optimizers": disabled}}
    ramp = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1).repeat(3, axis=2)
    plain = dataclasses.replace(preprocessing, size=None, resize="stretch", short=None, layout="NHWC")
    levels = prepare(ramp, plain)[0][:, 0]
    shown = {"size", "resize", "short", "color", "layout", "dtype"}
    return {
        "title": title,
        "model": {
            "file": "model.onnx",
            "bytes": 0,
            "options": options,
            "image": metadata.image_input,
            "class": metadata.class_input,
            "scores": metadata.scores_output,
            "heatmap": metadata.heatmap,
            "heatmapClass": metadata.heatmap_class,
            "batch": batch if isinstance(batch, int) and batch > 0 else None,
        },
        "scores": {
            "singleLogit": metadata.single_logit,
            "kind": metadata.activation,
            "way": "given" if way == "none" else way,
            "probabilities": way != "none",
        },
        "preprocessing": {
            **{key: value for key, value in dataclasses.asdict(preprocessing).items() if key in shown},
            # The input value of each of the 256 levels of each channel, as the native runtime computes it.
            "levels": (levels.view(np.uint16) if levels.dtype == np.float16 else levels).tolist(),
        },
        "labels": metadata.labels,
        "colormaps": {name: _colours(name).tobytes().hex() for name in COLORMAPS},
    }


def _fitted(model: Model, metadata: Metadata) -> Preprocessing:
    if metadata.preprocessing is None:
        raise InputError(
            "how images become this model's input is not known; attach with --preprocess: one of "
            f"{', '.join(PRESETS)}, or a JSON object with size, color, scale, mean and std"
        )
    name = metadata.image_input
    described, dtype = parse_preprocessing(metadata.preprocessing), str(model.info(name).dtype)
    return described.for_input(metadata.layout, model.shape(name), dtype)


def _colours(name: str) -> npt.NDArray[np.uint8]:
    return colorize(np.arange(256, dtype=np.float32)[None] / 255, name)


def _serialised(model: Model) -> bytes:
    """The model as one file, weights that lay in another one included."""
    try:
        whole = ir.external_data.load_to_model(model.core)
        return bytes(ir.to_proto(whole).SerializeToString())
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.name}: its weights cannot be read ({error}); is the file beside it whole?") from error


def _assets() -> dict[str, bytes]:
    assets = {entry.name: entry.read_bytes() for entry in (resources.files(__package__) / "static").iterdir()}
    return {name.replace("ort-LICENSE", "ort/LICENSE"): data for name, data in assets.items()}


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    make_folder(folder.parent)
    with Drafts() as drafts:
        draft = drafts.folder(folder)
        for name, data in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(data)
