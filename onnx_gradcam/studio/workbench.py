"""What the studio knows: the model, images, opened explainers and explanations, each with a bound."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.methods.catalogue import find_method, methods
from onnx_gradcam.editor.presets import PRESETS
from onnx_gradcam.errors import InputError, ServerError
from onnx_gradcam.evaluation.inspection import Inspection, inspect
from onnx_gradcam.images.decoding import read_image, resized, unprepared
from onnx_gradcam.images.drawing import COLORMAPS, encode_image
from onnx_gradcam.images.masks import Look
from onnx_gradcam.images.overlays import OVERLAYS
from onnx_gradcam.images.preprocessing import PRESETS as PREPROCESSING
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.attaching import attach
from onnx_gradcam.runtime.detections import Selection
from onnx_gradcam.runtime.explainer import Explainer, Prepared
from onnx_gradcam.runtime.explanation import Explanation, library_of, method_sheet
from onnx_gradcam.serve.limits import Limits, decode_image

from .jobs import Ticket
from .recipes import Recipe, Spoken, attach_choices, attach_command, explain_command, python_code

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["LIMITS", "MOST_IMAGES", "Workbench", "png_of"]

LIMITS: Final = Limits(request_bytes=1 << 18, image_bytes=64 << 20, image_pixels=64_000_000)
"""Images are larger than those that are sent to servers, and the page's other requests are small."""

MOST_IMAGES: Final = 16
"""Images that are kept."""
_EXPLAINERS, _EXPLANATIONS, _THUMBNAILS = 8, 32, 512
_IMAGE_BYTES: Final = 1 << 30
"""Bytes of pixels that are kept."""
_MODEL_BYTES: Final = 4 << 30
"""Bytes of weights that are kept open."""
_SHOWN, _SMALLEST, _THUMBNAIL = 1024, 224, 128
"""The longer side of what the page shows, in pixels, and the least one."""
_MOST_BOXES: Final = 100

Image = npt.NDArray[np.uint8]
T = TypeVar("T")


class _Bounded(Generic[T]):
    """The values that were used last; safe to use from threads."""

    def __init__(self, most: int, cost: Callable[[T], int] = lambda _: 0, most_cost: int = 0) -> None:
        self._most, self._cost, self._most_cost = most, cost, most_cost
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> T | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: T) -> T:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > 1 and (len(self._values) > self._most or self._too_costly()):
                self._values.popitem(last=False)
            return value

    def _too_costly(self) -> bool:
        return sum(map(self._cost, self._values.values())) > self._most_cost

    def values(self) -> list[T]:
        with self._lock:
            return list(self._values.values())


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of the studio: its path on the command line or the name of the file, its file and its pixels."""

    key: str
    name: str
    data: bytes
    pixels: Image
    number: int

    def to_dict(self) -> dict[str, Any]:
        """What the page lists."""
        height, width = self.pixels.shape[:2]
        return {"id": self.key, "name": Path(self.name).name, "height": height, "width": width}


class Workbench:
    """A model and what was looked at with it.

    Args:
        model: path of the model, explained or not.
        images: paths of images to begin with.
        provider: execution provider.
        threads: number of CPU threads within an operator.
        spoken: how choices are said on the command line.
        limits: upper bounds on images that are dropped on the page.
        choices: fields of `onnx_gradcam.Options`.

    Raises:
        ExplainError: the model cannot be explained with these choices, or an image cannot be read.
    """

    def __init__(
        self,
        model: str | Path,
        images: Sequence[str | Path] = (),
        *,
        provider: str = "cpu",
        threads: int | None = None,
        spoken: Spoken,
        limits: Limits = LIMITS,
        **choices: Unpack[Choices],
    ) -> None:
        self.model, self.limits = Path(model), limits
        self._name, self._spoken = str(model), spoken
        self._base: dict[str, Any] = {name: value for name, value in choices.items() if name != "method"}
        self._execution: dict[str, Any] = {"provider": provider, "threads": threads, "batch_size": 8}
        self._ticket: Ticket | None = None
        self._numbers = itertools.count()
        kept = (
            max(2, min(_EXPLAINERS, _MODEL_BYTES // max(1, self.model.stat().st_size))) if self.model.is_file() else 2
        )
        self._explainers: _Bounded[Explainer] = _Bounded(kept)
        self._explanations: _Bounded[Explanation] = _Bounded(_EXPLANATIONS)
        self._sheets: _Bounded[dict[str, str]] = _Bounded(_EXPLANATIONS)
        self._thumbnails: _Bounded[str] = _Bounded(_THUMBNAILS)
        self._pictures: _Bounded[Picture] = _Bounded(MOST_IMAGES, lambda one: one.pixels.nbytes, _IMAGE_BYTES)
        inspection = inspect(self.model, Options().replaced(choices))
        self._described = "preprocess" in choices or inspection.preprocessing is not None
        # Without preprocessing nothing is explained, but the page can say so and offer what to choose from.
        first = Recipe(preprocess=None if self._described else "none")
        opened = self._opened(first, choices.get("method"))
        self._labels, self._metadata = opened.labels, opened.metadata
        if inspection.explained is None:
            # The page names the method, which need not be opened again for that.
            named = self._choices(first, opened.metadata.method)
            self._explainers.put(json.dumps(named, sort_keys=True, default=str), opened)
        self.description = self._describe(inspection, opened)
        for path in images:
            self._add(str(path), Path(path).read_bytes() if Path(path).is_file() else b"", read_image(path))

    def _describe(self, inspection: Inspection, opened: Explainer) -> dict[str, Any]:
        """What the page has to know of the model and the registries."""
        metadata, decisions = opened.metadata, inspection.decisions
        image = next(i for i in opened.session.inputs if i.name == metadata.image_input)
        chosen = {layer.tensor for layer in decisions.levels} if decisions else set()
        names = {layer["tensor"]: name for name, layer in inspection.layers.items()}
        layers = [
            {
                "name": names.get(layer.tensor, layer.tensor),
                "tensor": layer.tensor,
                "operator": layer.operator or "input",
                "grid": "x".join(map(str, layer.grid)),
                "channels": layer.shape[layer.layout.index("C")] if "C" in layer.layout else None,
                "everyPath": layer.every_path,
                "chosen": layer.tensor in chosen,
            }
            for layer in (reversed(decisions.candidates) if decisions else ())
        ]
        detector = metadata.task == "detection"
        return {
            "name": self.model.name,
            "task": metadata.task,
            "explained": inspection.explained is not None,
            "method": metadata.method,
            "preset": metadata.preset,
            "input": {"name": image.name, "shape": list(image.shape), "dtype": image.dtype},
            "warnings": list(opened.warnings),
            "labels": opened.labels,
            "detector": detector,
            "chooses": bool(metadata.box_input if detector else metadata.class_input or metadata.all_classes),
            "least": Selection.least,
            "methods": [
                {"name": m.name, "title": m.title, "family": m.family, "cost": m.cost, "layer": m.needs_layer}
                for m in methods().values()
                if detector or not m.of_boxes
            ],
            "presets": [{"name": p.name, "title": p.title, "draws": p.name in OVERLAYS} for p in PRESETS.values()],
            "layers": layers,
            "preprocessing": {
                "presets": list(PREPROCESSING),
                "described": self._described,
                "fitted": opened.preprocessing.to_dict() if self._described else None,
            },
            "colormaps": list(COLORMAPS),
            "look": {"colormap": Look().colours, "opacity": Look().opacity},
            "limits": {"bytes": self.limits.image_bytes, "pixels": self.limits.image_pixels},
        }

    def images(self) -> list[dict[str, Any]]:
        """The images that are kept, in the order in which they came."""
        return [picture.to_dict() for picture in sorted(self._pictures.values(), key=lambda picture: picture.number)]

    def add(self, name: str, data: bytes) -> dict[str, Any]:
        """Keep an image that was dropped on the page.

        Raises:
            ServerError: it is too large, damaged, or of another format.
        """
        plain = Path(name.replace("\\", "/")).name[:200] or "image.png"
        return self._add(plain, data, decode_image(data, self.limits, free_size=False))

    def add_sample(self) -> dict[str, Any]:
        """Keep the sample image, which is a file of the package."""
        path = Path(str(resources.files("onnx_gradcam.web") / "static" / "sample.jpg"))
        data = path.read_bytes()
        return self._add(str(path), data, read_image(data))

    def _add(self, name: str, data: bytes, pixels: Image) -> dict[str, Any]:
        key = _digest(name, hashlib.sha256(pixels.tobytes()).hexdigest())
        return self._pictures.put(key, Picture(key, name, data, pixels, next(self._numbers))).to_dict()

    def picture(self, key: str) -> Picture:
        """An image that is kept."""
        found = self._pictures.get(key)
        if found is None:
            raise ServerError("this image is no longer kept; choose it again", 404)
        return found

    def explain(self, key: str, recipe: Recipe, ticket: Ticket) -> dict[str, Any]:
        """Explain an image; what the page shows.

        Raises:
            ExplainError: see `onnx_gradcam.errors`.
        """
        self._ticket = ticket
        picture = self.picture(key)
        explained: dict[str, tuple[Explanation, str]] = {}
        for method in recipe.methods or [""]:
            explained[method] = self._explained(picture, recipe, method)
        first = self._opened(recipe, recipe.first)
        (explanation, _), *_ = explained.values()
        sheet = _digest(*(made for _, made in explained.values()))
        self._sheets.put(sheet, {method: made for method, (_, made) in explained.items()})
        scores = explanation.scores.astype(np.float64)
        shares = explanation.probabilities
        return {
            "sheet": sheet,
            "scores": _numbers(scores),
            "shares": None if shares is None else _numbers(shares),
            "boxes": [box.to_dict() for box in explanation.boxes[:_MOST_BOXES]] if self.description["detector"] else [],
            "panels": [self._panel(method, *one) for method, one in explained.items()],
            "seen": _seen(first.prepared(picture.pixels), first),
            "warnings": list(dict.fromkeys(first.warnings)),
        }

    def _panel(self, method: str, explanation: Explanation, key: str) -> dict[str, Any]:
        shown = explanation.maps[0]
        title = find_method(method or self._metadata.method).title
        heatmap = explanation.heatmap_on_image()
        return {
            "key": key,
            "method": method or self._metadata.method,
            "title": title,
            "target": shown.target.to_dict(),
            "box": shown.boxes[0].to_dict() if shown.boxes else None,
            "overImage": explanation.look().over_image,
            "warnings": explanation.warnings,
            "hottest": _place(heatmap),
        }

    def _explained(self, picture: Picture, recipe: Recipe, method: str) -> tuple[Explanation, str]:
        """An explanation, made or kept, with its key."""
        explainer = self._opened(recipe, method or None)
        key = _made_by(picture, recipe, method)
        kept = self._explanations.get(key)
        if kept is not None:
            return kept, key
        if self._ticket is not None:
            self._ticket.progress(f"Explaining with {find_method(method or explainer.metadata.method).title}")
        return self._explanations.put(key, self._run(explainer, picture, recipe)), key

    def _run(self, explainer: Explainer, picture: Picture, recipe: Recipe) -> Explanation:
        """Explain an image; one above the limit is refused by models that take any size."""
        height, width = picture.pixels.shape[:2]
        if explainer.preprocessing.size is None and height * width > self.limits.input_pixels:
            raise ServerError(
                f"the model takes images of any size, and this one is {width}x{height}, above the limit of "
                f'{self.limits.input_pixels} pixels; give the preprocessing a "size": [height, width]'
            )
        box = None if recipe.box is None else Selection(which="number", value=recipe.box)
        return explainer(picture.pixels, recipe.target, box)

    def _opened(self, recipe: Recipe, method: str | None) -> Explainer:
        """The explainer of a recipe and a method, opened or kept."""
        choices = self._choices(recipe, method)
        key = json.dumps(choices, sort_keys=True, default=str)
        kept = self._explainers.get(key)
        if kept is not None:
            return kept
        if self._ticket is not None:
            self._ticket.progress(f"Opening {self.model.name}")
        return self._explainers.put(key, Explainer(self.model, progress=self._progress, **self._execution, **choices))

    def _choices(self, recipe: Recipe, method: str | None) -> dict[str, Any]:
        return {**self._base, **recipe.choices, **({"method": method} if method else {})}

    def _progress(self, done: int, total: int) -> None:
        if self._ticket is not None:
            self._ticket.progress("Explaining", done, total)

    def thumbnail(self, key: str, recipe: Recipe, ticket: Ticket) -> dict[str, Any]:
        """What the recipe's layer shows, small."""
        self._ticket = ticket
        picture, method = self.picture(key), recipe.first
        made = _made_by(picture, recipe, method)
        kept = self._thumbnails.get(made)
        if kept is None:
            ticket.progress("Looking at a layer")
            choices = self._choices(recipe, method)
            # Not kept open: there are many layers, and few are chosen.
            explainer = Explainer(self.model, progress=self._progress, **self._execution, **choices)
            explanation = self._run(explainer, picture, recipe)
            kept = self._thumbnails.put(made, _embedded(_drawn(explanation, explanation.look(), _THUMBNAIL)))
        return {"thumbnail": kept}

    def heat(self, key: str, recipe: Recipe) -> bytes:
        """The picture that lies over the image: the colours alone, or what the preset's library draws, PNG."""
        explanation = self._explanations.get(key)
        if explanation is None:
            raise ServerError("this explanation is no longer kept; choose the class again", 404)
        library = library_of(None, recipe.look, explanation.preset)
        if library is not None:
            return png_of(explanation.drawn_by(library))
        look = explanation.look(**recipe.look)
        # The page fades it: (1 - opacity) * image + opacity * colours.
        return encode_image(_drawn(explanation, replace(look, opacity=1.0), _SHOWN), ".png")

    def sheet(self, key: str, recipe: Recipe) -> bytes:
        """The picture that `explain` writes, PNG."""
        return encode_image(method_sheet(self._of_sheet(key), **recipe.look).pixels, ".png")

    def numbers(self, key: str) -> bytes:
        """The arrays of `explain --npz`, of the first method."""
        file = io.BytesIO()
        np.savez_compressed(file, **next(iter(self._of_sheet(key).values())).arrays())
        return file.getvalue()

    def _of_sheet(self, key: str) -> dict[str, Explanation]:
        made = {method: self._explanations.get(one) for method, one in (self._sheets.get(key) or {}).items()}
        kept = {method: explanation for method, explanation in made.items() if explanation is not None}
        if not kept or len(kept) < len(made):
            raise ServerError("this explanation is no longer kept; choose the class again", 404)
        return kept

    def attached(self, recipe: Recipe, ticket: Ticket) -> bytes:
        """The explained model of the recipe's first method, as one file."""
        ticket.progress("Attaching the explanation")
        if self.description["explained"]:
            raise InputError("the model is explained already; copy the file")
        explained = attach(self.model, Options().replaced(attach_choices(recipe, self._base)))
        initializers = explained.to_proto().graph.initializer
        if not explained.model.fits_one_file or any(len(tensor.external_data) for tensor in initializers):
            raise InputError("the model's weights are in other files, which a download cannot hold; use the command")
        return bytes(explained.to_proto().SerializeToString())

    def reproduce(self, key: str, recipe: Recipe) -> dict[str, str]:
        """The commands and the Python code that make what the page shows."""
        name = self.picture(key).name
        return {
            "command": explain_command(self._name, name, recipe, self._base, self._labels, self._spoken),
            "python": python_code(self._name, name, recipe, self._base, self._labels),
            "attach": attach_command(self._name, recipe, self._base, self._spoken),
        }


def _made_by(picture: Picture, recipe: Recipe, method: str | None) -> str:
    """The key of what a method makes of an image by a recipe."""
    return _digest(picture.key, method, json.dumps(recipe.choices, sort_keys=True), recipe.target, recipe.box)


def png_of(image: Image) -> bytes:
    """An image in the size in which the page shows it."""
    return encode_image(resized(image, *_shown_size(image, _SHOWN)), ".png")


def _drawn(explanation: Explanation, look: Look, longest: int) -> Image:
    """A heatmap over its image, in the size in which it is shown."""
    height, width = _shown_size(explanation.image, longest)
    shown = resized(explanation.shown(0, look).astype(np.float32), height, width)
    return look.draw(resized(explanation.image, height, width), shown)


def _shown_size(image: Image, longest: int) -> tuple[int, int]:
    """Height and width of an image on the page: large ones reduced, small ones enlarged by a whole factor."""
    height, width = image.shape[:2]
    longer = max(height, width)
    factor = longest / longer if longer > longest else math.ceil(min(_SMALLEST, longest) / longer)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _seen(prepared: Prepared | InputError, explainer: Explainer) -> dict[str, Any]:
    """The image as the model sees it, and the numbers it gets."""
    if isinstance(prepared, InputError):
        raise prepared
    tensor = prepared.tensor.astype(np.float64)
    return {
        "image": _embedded(png_of(unprepared(prepared.tensor, explainer.preprocessing))),
        "shape": list(tensor.shape),
        "dtype": str(prepared.tensor.dtype),
        "low": float(tensor.min()),
        "high": float(tensor.max()),
        "mean": float(tensor.mean()),
        "std": float(tensor.std()),
        "settings": explainer.preprocessing.to_dict(),
    }


def _place(heatmap: npt.NDArray[np.float32]) -> str:
    """Where a heatmap over the image is hottest, in words; empty if it is blank."""
    if not heatmap.max() > 0:
        return ""
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    rows, columns = ("top", "middle", "bottom"), ("left", "centre", "right")
    words = rows[int(3 * row // heatmap.shape[0])], columns[int(3 * column // heatmap.shape[1])]
    return "centre" if words == ("middle", "centre") else " ".join(words)


def _embedded(png: bytes | Image) -> str:
    data = png if isinstance(png, bytes) else encode_image(png, ".png")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _numbers(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:32]
