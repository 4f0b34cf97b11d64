"""What `explain` does: run the model, write what was asked for, report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import typer

from onnx_gradcam.editor.targets.classes import parse_top
from onnx_gradcam.errors import InputError, near_matches
from onnx_gradcam.files import Drafts, make_folder
from onnx_gradcam.images.drawing import SUFFIXES, TRANSPARENT, encode_image
from onnx_gradcam.images.masks import Look
from onnx_gradcam.runtime.explainer import Explainer, Explanation, Target, Wanted
from onnx_gradcam.runtime.explanation import method_sheet

from .output import complain, finite, say, say_json, table, warn
from .progress import bars
from .sources import Place, find_images, places

__all__ = ["Request", "run"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to explain, and what to make of it; see the options of the command.

    Attributes:
        model: path or bytes of the model.
        name: what to call it.
        images: images, folders, patterns.
        out: file or folder for images.
        target: the classes, `None` for the one with the highest score.
        draw: whether to write images.
        npy: whether to write one array for each class.
        npz: whether to write one archive for each image.
        arrays: folder for these.
        as_json: print JSON.
        batch_size: images to run at once.
        methods: several to be shown together, or one; none for the default.
        look: how heatmaps are shown, fields of `Look`.
    """

    model: Path | bytes
    name: str
    images: Sequence[str]
    out: str | None
    target: Sequence[str] | None
    draw: bool
    npy: bool
    npz: bool
    arrays: Path | None
    as_json: bool
    batch_size: int
    methods: Sequence[str]
    look: Mapping[str, Any]

    @property
    def quiet(self) -> bool:
        """Whether standard output is for something else than sentences."""
        return self.as_json or self.out == "-"


def run(request: Request, **choices: Any) -> None:
    """Explain the images.

    Args:
        request: what to explain.
        choices: arguments of `Explainer`.

    Raises:
        ExplainError: nothing can be explained this way.
        typer.Exit: code 1 where an image could not be read; the others are done.
    """
    images = find_images(request.images)
    targets = places(images, request.out, request.arrays)
    _check_drawing(request, targets[0])
    with bars("explaining", len(images)) as shown:
        runs = shown.within if shown is not None else None
        choices |= {"batch_size": request.batch_size, "progress": runs}
        several = {method: {**choices, "method": method} for method in request.methods} or {"": choices}
        explainers = {method: Explainer(request.model, **mine) for method, mine in several.items()}
        for warning in dict.fromkeys(warning for explainer in explainers.values() for warning in explainer.warnings):
            warn(warning)
        reports = []
        for report in _explained(explainers, images, targets, request):
            reports.append(report)
            if shown is not None:
                shown.advance()
    if request.as_json:
        facts = [_facts(explainer) for explainer in explainers.values()]
        how = facts[0] if len(facts) == 1 else {"methods": facts}
        say_json({"model": request.name, **how, "images": reports})
    elif not request.quiet and any("error" not in report for report in reports):
        for explainer in explainers.values():
            used = explainer.metadata
            say(f"layer {used.target_tensor!r}, method {used.method}, weights {used.weights}")
    if any("error" in report for report in reports):
        raise typer.Exit(1)


def _facts(explainer: Explainer) -> dict[str, str]:
    return {name: getattr(explainer.metadata, name) for name in ("target_tensor", "score_tensor", "method", "weights")}


def _explained(
    explainers: Mapping[str, Explainer], images: Sequence[str], targets: Sequence[Place], request: Request
) -> Iterator[dict[str, Any]]:
    """Explain the images one after the other, write and say what was asked for; the report of each."""
    # Every method reads the images anew, and standard input holds its image only once.
    stdin = cache(sys.stdin.buffer.read)
    wanted: Wanted = None
    if request.target:
        wanted = request.target[0] if len(request.target) == 1 else list(request.target)
    streams = [
        explainer.stream((stdin() if p == "-" else p for p in images), wanted, batch_size=request.batch_size)
        for explainer in explainers.values()
    ]
    for image, place, *results in zip(images, targets, *streams, strict=True):
        failed = next((result for result in results if isinstance(result, InputError)), None)
        if failed is not None:
            complain(str(failed))
            yield {"path": image, "error": str(failed)}
            continue
        found: dict[str, Explanation] = dict(zip(explainers, results, strict=True))
        files = _write(found, place, request)
        _warn_of_blank(image, found)
        if not request.quiet:
            drawn = place.image if request.draw else None
            (_say_short if len(images) > 1 else _say_whole)(image, results[0], drawn)
        yield _report(image, found, files, request)


def _check_drawing(request: Request, place: Place) -> None:
    """Refuse before the model runs what could not be drawn after it."""
    if not request.draw:
        return
    style = Look(**request.look).style
    suffix = place.image.suffix
    if request.out != "-" and suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{str(place.image)!r} ends in no known kind of image{near_matches(suffix, SUFFIXES)} "
            f"(known: {', '.join(SUFFIXES)})"
        )
    if style != "alpha":
        return
    tops = [parse_top(one) for one in request.target or []]
    if len(request.methods) > 1 or len(tops) > 1 or any(top is not None and top.count > 1 for top in tops):
        raise InputError("the style alpha makes one transparent image: ask for one class and one method")
    if request.out != "-" and suffix.lower() not in TRANSPARENT:
        raise InputError(f"a {suffix} file holds no transparency: choose one of {', '.join(TRANSPARENT)}")


def _write(found: Mapping[str, Explanation], place: Place, request: Request) -> list[str | None]:
    """Write what was asked for; the `.npy` file of each class, method by method, or `None`."""
    with Drafts() as drafts:
        if request.draw:
            _draw(found, place.image, request.look, drafts)
        if request.npy or request.npz:
            make_folder(place.arrays.parent)
        files: list[str | None] = []
        for method, explanation in found.items():
            base = place.arrays
            if len(found) > 1:
                base = base.with_name(f"{base.name}_{method}")
            if request.npz:
                with drafts.file(base.with_name(f"{base.name}.npz")).open("wb") as file:
                    np.savez_compressed(file, **_arrays(explanation))
            for m in explanation.maps:
                path = base.with_name(f"{base.name}_{m.target.index}.npy") if request.npy else None
                if path is not None:
                    with drafts.file(path).open("wb") as file:
                        np.save(file, m.heatmap)
                files.append(None if path is None else str(path))
    return files


def _draw(found: Mapping[str, Explanation], path: Path, look: Mapping[str, Any], drafts: Drafts) -> None:
    (first, *_) = found.values()
    drawing = first.overlay(**look) if look["style"] == "alpha" else method_sheet(found, **look)
    if str(path) == "-":
        sys.stdout.buffer.write(encode_image(drawing.pixels, ".png"))
        sys.stdout.buffer.flush()
        return
    make_folder(path.parent)
    drafts.file(path).write_bytes(encode_image(drawing.pixels, path.suffix.lower()))


def _arrays(explanation: Explanation) -> dict[str, Any]:
    return {
        "heatmap": np.stack([m.heatmap for m in explanation.maps]),
        "cam": np.stack([m.cam for m in explanation.maps]),
        "classes": np.array([m.target.index for m in explanation.maps], np.int64),
        "scores": np.array([m.target.score for m in explanation.maps], np.float64),
    }


def _report(
    image: str, found: Mapping[str, Explanation], files: Sequence[str | None], request: Request
) -> dict[str, Any]:
    explained: list[dict[str, Any]] = []
    for method, explanation in found.items():
        for which, m in enumerate(explanation.maps):
            entry: dict[str, Any] = {"method": method} if len(found) > 1 else {}
            entry |= {**_class(m.target), "heatmap": files[len(explained)]}
            if request.look["style"] == "box":
                regions = {name: request.look[name] for name in ("threshold", "top_percent") if name in request.look}
                entry["box"] = explanation.box(which, **regions)
            explained.append(entry)
    (first, *_) = found.values()
    return {"path": image, "top": [_class(target) for target in first.top()], "explained": explained}


def _class(target: Target) -> dict[str, Any]:
    return {"index": target.index, "label": target.label, "score": finite(target.score)}


def _warn_of_blank(image: str, found: Mapping[str, Explanation]) -> None:
    for method, explanation in found.items():
        for sentence in explanation.warnings:
            warn(f"{image}, {method}: {sentence}" if len(found) > 1 else f"{image}: {sentence}")


def _say_whole(image: str, explanation: Explanation, drawn: Path | None) -> None:
    """The result for a single image: its best classes and the explained ones, marked."""
    say(f"{image} -> {drawn}" if drawn else image)
    explained = [m.target for m in explanation.maps]
    shown = list({target.index: target for target in (*explanation.top(), *explained)}.values())
    marked = {target.index for target in explained}
    rows = [
        ("*" if target.index in marked else " ", str(target.index), target.label, f"{target.score:.4g}")
        for target in shown
    ]
    say(table([("", "class", "name", "score"), *rows], right=(1, 3)))
    say("  * explained")


def _say_short(image: str, explanation: Explanation, drawn: Path | None) -> None:
    """The result for one image of many, on one line."""
    classes = ", ".join(f"{m.target.label} {m.target.score:.4g}" for m in explanation.maps)
    say(f"{image}: {classes}" + (f" -> {drawn}" if drawn else ""))
