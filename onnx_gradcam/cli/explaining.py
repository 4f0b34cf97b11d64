"""What `explain` does: run the model, write what was asked for, report."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from onnx_gradcam.errors import ImageError, near_matches
from onnx_gradcam.runtime.explainer import Explainer, Explanation, Picture, Target, Wanted
from onnx_gradcam.runtime.render import COLORMAPS, SUFFIXES

from .output import complain, finite, say, say_json, table, warn
from .progress import bars
from .sources import Place, find_pictures, places
from .writing import make_folder, write_whole

__all__ = ["Request", "run"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to explain, and what to make of it; see the options of the command.

    Attributes:
        model: path or bytes of the model.
        name: what to call it.
        images: pictures, folders, patterns.
        out: file or folder for pictures.
        target: the classes, `None` for the one with the highest score.
        draw: whether to write pictures.
        npy: whether to write one array for each class.
        npz: whether to write one archive for each picture.
        arrays: folder for these.
        as_json: print JSON.
        batch_size: pictures to run at once.
        colormap: the heatmap's colours.
        opacity: of the heatmap on the photo, 0 to 1.
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
    colormap: str
    opacity: float

    @property
    def quiet(self) -> bool:
        """Whether standard output is for something else than sentences."""
        return self.as_json or self.out == "-"


def run(request: Request, **choices: Any) -> None:
    """Explain the pictures.

    Args:
        request: what to explain.
        choices: arguments of `Explainer`.

    Raises:
        ExplainError: nothing can be explained this way.
        typer.Exit: code 1 where a picture could not be read; the others are done.
    """
    pictures = find_pictures(request.images)
    targets = places(pictures, request.out, request.arrays)
    _check_drawing(request, targets[0])
    with bars("explaining", len(pictures)) as shown:
        runs = shown.within if shown is not None else None
        explainer = Explainer(request.model, batch_size=request.batch_size, progress=runs, **choices)
        for warning in explainer.warnings:
            warn(warning)
        reports = []
        for report in _explained(explainer, pictures, targets, request):
            reports.append(report)
            if shown is not None:
                shown.advance()
    facts = explainer.metadata
    if request.as_json:
        say_json(
            {
                "model": request.name,
                "target_tensor": facts.target_tensor,
                "score_tensor": facts.score_tensor,
                "method": facts.method,
                "weights": facts.weights,
                "images": reports,
            }
        )
    elif not request.quiet and any("error" not in report for report in reports):
        say(f"layer {facts.target_tensor!r}, method {facts.method}, weights {facts.weights}")
    if any("error" in report for report in reports):
        raise typer.Exit(1)


def _explained(
    explainer: Explainer, pictures: Sequence[str], targets: Sequence[Place], request: Request
) -> Iterator[dict[str, Any]]:
    """Explain the pictures one after the other, write and say what was asked for; the report of each."""
    sources = (sys.stdin.buffer.read() if p == "-" else p for p in pictures)
    wanted: Wanted = None
    if request.target:
        wanted = request.target[0] if len(request.target) == 1 else list(request.target)
    results = explainer.stream(sources, wanted, batch_size=request.batch_size)
    for picture, place, result in zip(pictures, targets, results, strict=True):
        if isinstance(result, ImageError):
            complain(str(result))
            yield {"path": picture, "error": str(result)}
            continue
        files = _write(result, place, request)
        _warn_of_blank(picture, result)
        if not request.quiet:
            drawn = place.picture if request.draw else None
            (_say_short if len(pictures) > 1 else _say_whole)(picture, result, drawn)
        yield _report(picture, result, files)


def _check_drawing(request: Request, place: Place) -> None:
    """Refuse before the model runs what could not be drawn after it."""
    if not request.draw:
        return
    if request.colormap not in COLORMAPS:
        raise ImageError(
            f"there is no colour map {request.colormap!r}{near_matches(request.colormap, COLORMAPS)} "
            f"(known: {', '.join(COLORMAPS)})"
        )
    if request.out != "-" and place.picture.suffix.lower() not in SUFFIXES:
        raise ImageError(
            f"{str(place.picture)!r} ends in no known kind of picture{near_matches(place.picture.suffix, SUFFIXES)} "
            f"(known: {', '.join(SUFFIXES)})"
        )


def _write(explanation: Explanation, place: Place, request: Request) -> list[str | None]:
    """Write what was asked for; the `.npy` file of each class, or `None`."""
    if request.draw:
        _draw(explanation.sheet(colormap=request.colormap, opacity=request.opacity), place.picture)
    if request.npz:
        everything: dict[str, Any] = {
            "heatmap": np.stack([m.heatmap for m in explanation.maps]),
            "cam": np.stack([m.cam for m in explanation.maps]),
            "classes": np.array([m.target.index for m in explanation.maps], np.int64),
            "scores": np.array([m.target.score for m in explanation.maps], np.float64),
        }
        _save_array(place.arrays, ".npz", lambda file: np.savez_compressed(file, **everything))
    if not request.npy:
        return [None] * len(explanation.maps)
    return [
        _save_array(place.arrays, f"_{m.target.index}.npy", lambda file, m=m: np.save(file, m.heatmap))  # type: ignore[misc]
        for m in explanation.maps
    ]


def _draw(sheet: Picture, path: Path) -> None:
    if str(path) != "-":
        make_folder(path.parent)
        sheet.save(path)
        return
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "sheet.png"
        sheet.save(draft)
        sys.stdout.buffer.write(draft.read_bytes())
        sys.stdout.buffer.flush()


def _save_array(base: Path, end: str, write: Callable[[Any], None]) -> str:
    """Write an array file, which appears whole or not at all; its path."""
    path = base.with_name(base.name + end)
    write_whole(path, write)
    return str(path)


def _report(picture: str, explanation: Explanation, files: Sequence[str | None]) -> dict[str, Any]:
    return {
        "path": picture,
        "top": [_class(target) for target in explanation.top()],
        "explained": [{**_class(m.target), "heatmap": file} for m, file in zip(explanation.maps, files, strict=True)],
    }


def _class(target: Target) -> dict[str, Any]:
    return {"index": target.index, "label": target.label, "score": finite(target.score)}


def _warn_of_blank(picture: str, explanation: Explanation) -> None:
    for m in explanation.maps:
        if not np.any(m.heatmap):
            warn(f"{picture}: the heatmap of {m.target.label!r} is zero everywhere: nothing here speaks for this class")


def _say_whole(picture: str, explanation: Explanation, drawn: Path | None) -> None:
    """The result for a single picture: its best classes and the explained ones, marked."""
    say(f"{picture} -> {drawn}" if drawn else picture)
    explained = [m.target for m in explanation.maps]
    shown = list({target.index: target for target in (*explanation.top(), *explained)}.values())
    marked = {target.index for target in explained}
    rows = [
        ("*" if target.index in marked else " ", str(target.index), target.label, f"{target.score:.4g}")
        for target in shown
    ]
    say(table([("", "class", "name", "score"), *rows], right=(1, 3)))
    say("  * explained")


def _say_short(picture: str, explanation: Explanation, drawn: Path | None) -> None:
    """The result for one picture of many, on one line."""
    classes = ", ".join(f"{m.target.label} {m.target.score:.4g}" for m in explanation.maps)
    say(f"{picture}: {classes}" + (f" -> {drawn}" if drawn else ""))
