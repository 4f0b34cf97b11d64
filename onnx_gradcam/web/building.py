"""A static web page that runs an explained model in the visitor's browser."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.editor.attachment import with_required_choices
from onnx_gradcam.errors import InputError, ModelError, reason
from onnx_gradcam.files import Drafts, make_folder, read_file
from onnx_gradcam.graph.model import Model
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.drawing import COLORMAPS, colorize
from onnx_gradcam.images.preprocessing import PADDING, PRESETS, Preprocessing, parse_preprocessing
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.runtime.answers import conversion
from onnx_gradcam.runtime.detections import EMPTY_TABLE, Selection

from .runtime_files import runtime_files

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["build_page"]

_LARGEST: Final = 2**30
"""Bytes of weights: WebAssembly has 4 GB of memory, which contains the model twice while it is loaded."""
_SAMPLES: Final = (".jpg", ".jpeg", ".png", ".webp")
_LARGEST_SAMPLE: Final = 2**24
"""Bytes of a sample image, which visitors download."""


def build_page(
    model: str | Path,
    folder: str | Path,
    *,
    runtime: str | Path | Mapping[str, bytes] | None = None,
    title: str | None = None,
    sample: str | Path | None = None,
    notify: Callable[[str], object] = lambda _: None,
    **choices: Unpack[Choices],
) -> list[str]:
    """Write a web page that explains images in the visitor's browser; its folder is written atomically.

    Args:
        model: path of a classifier or detector; one that is not explained yet is attached first. Class and box become
            required inputs, as onnxruntime-web cannot feed optional ones.
        folder: the folder to create; it may exist if it is empty.
        runtime: onnxruntime-web, as `npm pack` or `npm install` fetch it, or its files by name; by default, it is
            downloaded once from npm's registry.
        title: heading and title of the page; by default the name of the model's file.
        sample: image to try the page with; by default a drawn star and circle.
        notify: called with a line of text before a download.
        choices: fields of `onnx_gradcam.Options`; for an explained model only `probabilities`.

    Returns:
        The files written, relative to `folder`.

    Raises:
        InputError: an argument cannot be used, or the folder is not empty or cannot be written.
        ExplainError: the model cannot be shown on a page; see `onnx_gradcam.errors`.

    Example::

        build_page("explained.onnx", "site", probabilities="sigmoid")
    """
    explained, metadata = with_required_choices(model, choices)
    _check(explained, metadata)
    size = explained.weight_bytes
    if size > _LARGEST:
        raise ModelError(
            f"the model has {size / 1e9:.1f} GB of weights, and a page can hold at most 1 GB; use a smaller one"
        )
    description = _description(explained, metadata, title or Path(model).stem)
    files = {"site.json": b"", "model.onnx": _serialized(explained), **_assets()}
    if sample is not None:
        description["sample"] = f"sample{_sample_suffix(sample)}"
        files[description["sample"]] = read_file(sample, _LARGEST_SAMPLE)
    description["model"]["bytes"] = len(files["model.onnx"])
    files["site.json"] = json.dumps(description, ensure_ascii=False, allow_nan=False).encode()
    if not isinstance(runtime, Mapping):
        runtime = runtime_files(None if runtime is None else Path(runtime), notify)
    files |= {f"ort/{name}": data for name, data in runtime.items()}
    _write(files, Path(folder))
    return sorted(files)


def _sample_suffix(sample: str | Path) -> str:
    """The suffix of an image that browsers can show, which is read to see that it is one."""
    suffix = Path(sample).suffix.lower()
    if suffix not in _SAMPLES:
        raise InputError(f"the sample image {str(sample)!r} is no file that browsers show; give {', '.join(_SAMPLES)}")
    read_image(sample)
    return suffix


def _check(model: Model, metadata: Metadata) -> None:
    if metadata.task not in {"classification", "detection"} or metadata.all_classes:
        raise InputError(
            "a page shows classifiers and detectors that explain one class at a time, but this model is explained for "
            f"{'all classes at once' if metadata.all_classes else metadata.task}; start from one of these"
        )
    if not metadata.batched:
        raise ModelError(
            f"a page feeds batches of images, and the input {metadata.image_input!r} takes one without a batch axis; "
            "export the model with one"
        )
    if not metadata.class_input:
        raise InputError(
            "the class is fixed in this model, but visitors of a page choose it; start from the original model"
        )
    if metadata.task == "detection" and not (metadata.box_input and metadata.heatmap_box and metadata.detection_scores):
        raise InputError(
            "the box is fixed in this model, but visitors of a page choose it; start from the original model"
        )
    others = [value.name for value in model.core.graph.inputs]
    others = [name for name in others if name not in {metadata.image_input, metadata.class_input, metadata.box_input}]
    if others:
        raise ModelError(f"the model has another input, {others[0]!r}, which a page cannot feed; make it a constant")


def _detector(metadata: Metadata) -> dict[str, Any] | None:
    """Names of what a detector has, and which boxes are in its list; `None` for a classifier."""
    if metadata.task != "detection":
        return None
    return {
        "box": metadata.box_input,
        "heatmapBox": metadata.heatmap_box,
        "scores": metadata.detection_scores,
        "corners": metadata.detection_boxes,
        "least": Selection.least,
        "overlap": Selection.overlap,
        "empty": EMPTY_TABLE,
    }


def _description(model: Model, metadata: Metadata, title: str) -> dict[str, Any]:
    """The content of site.json."""
    way = conversion(metadata)
    preprocessing = _fitted(model, metadata)
    batch = model.shape(metadata.image_input)[0]
    disabled = ";".join(metadata.disabled_optimizers)
    options: dict[str, Any] = {"executionProviders": ["wasm"], "logSeverityLevel": 3}
    if disabled:
        options["extra"] = {"optimization": {"disable_specified_optimizers": disabled}}
    ramp = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1).repeat(3, axis=2)
    channels = dataclasses.replace(preprocessing, size=None, resize="stretch", short=None, align=None, layout="NHWC")
    levels = prepare(ramp, channels)[0][:, 0]
    fields = {"size", "resize", "short", "align", "color", "layout", "dtype"}
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
        "detector": _detector(metadata),
        "scores": {
            "singleLogit": metadata.single_logit,
            "kind": metadata.activation,
            "way": "given" if way == "none" else way,
            "probabilities": way != "none",
        },
        "preprocessing": {
            **{key: value for key, value in dataclasses.asdict(preprocessing).items() if key in fields},
            "padding": PADDING,
            # The input values of the 256 levels of each channel, as computed by the native runtime.
            "levels": (levels.view(np.uint16) if levels.dtype == np.float16 else levels).tolist(),
        },
        "labels": metadata.labels,
        "sample": "sample.jpg",
        "colormaps": {name: _colours(name).tobytes().hex() for name in COLORMAPS},
    }


def _fitted(model: Model, metadata: Metadata) -> Preprocessing:
    if metadata.preprocessing is None:
        raise InputError(
            "the model carries no preprocessing; give it with --preprocess: one of "
            f"{', '.join(PRESETS)}, or a JSON object with size, color, scale, mean and std"
        )
    name = metadata.image_input
    preprocessing, dtype = parse_preprocessing(metadata.preprocessing), str(model.info(name).dtype)
    return preprocessing.for_input(metadata.layout, model.shape(name), dtype)


def _colours(name: str) -> npt.NDArray[np.uint8]:
    return colorize(np.arange(256, dtype=np.float32)[None] / 255, name)


def _serialized(model: Model) -> bytes:
    """The model as one file, including external weights."""
    try:
        complete = ir.external_data.load_to_model(model.core)
        return bytes(ir.to_proto(complete).SerializeToString())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model.name}: its external weights cannot be read ({reason(error)}); restore the file beside the model"
        ) from error


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
