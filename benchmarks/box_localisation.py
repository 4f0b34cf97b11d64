"""Does the heatmap of one detected box show that box's object, and does the score of the box depend on what it shows?

Run by hand::

    python benchmarks/box_localisation.py MODEL --labels coco80.txt --photos FOLDER --boxes FOLDER \
        --preprocess '{"size": [416, 416], ...}' --layer auto --layer 492

`--boxes` is a folder of PASCAL VOC XML files, one per image. Of every class in an image, the surest box is explained if
its score is at least `--least` and it overlaps one of the annotated boxes by half (intersection over union). In
that one box the maximum of the heatmap and its sum should be. Then the hottest tenth of the input's pixels is made
grey, or all others, and the model runs again: how much of the box's score is left? Prints markdown, a row for each
`--layer` (`auto`, a name, or several names joined by commas) and each `--method`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import machine, table
from pointing_game import Game
from task_localisation import read_voc

from onnx_gradcam.editor.targets.classes import read_labels
from onnx_gradcam.evaluation.boxes import Annotation, energy_inside, matched, points_inside
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.runtime.explainer import Box, Explainer

SHARE = 0.1
"""The share of the pixels that is made grey or kept."""


@dataclass(frozen=True)
class Found:
    """A box of the model, and the annotated box that it is."""

    game: Game
    box: Box
    annotated: Annotation


@dataclass(frozen=True)
class Result:
    """What the heatmap of one box shows."""

    points: bool
    blank: bool
    energy: float
    deleted: float
    kept: float


def found(explainer: Explainer, games: Sequence[Game], least: float) -> Iterator[Found]:
    """The annotated objects that the surest box of their class is."""
    for game in games:
        boxes = explainer.boxes(game.image, list(game.annotation.classes), least=least)[:1]
        if any(box.xyxy is None for box in boxes):
            sys.exit("the model does not tell where its boxes are")
        yield from (Found(game, box, annotated) for box, annotated in matched(boxes, game.annotation))


def play(explainer: Explainer, object_: Found) -> Result:
    """Explain a box; where its heatmap is, and what its score depends on."""
    image, box = read_image(object_.game.image), object_.box
    explanation = explainer(image, box.target.index, box=box.index)
    shown = explanation.heatmap_on_image()
    inside = object_.annotated.inside(*shown.shape)
    grey = prepare(np.full_like(image, 127), explainer.preprocessing)[0]
    tensor = prepare(image, explainer.preprocessing)[0]
    if not shown.any():
        return Result(points=False, blank=True, energy=0.0, deleted=np.nan, kept=np.nan)
    heatmap = explanation.maps[0].heatmap
    hottest = np.zeros(heatmap.size, bool)
    hottest[np.argsort(heatmap, axis=None, kind="stable")[-round(SHARE * heatmap.size) :]] = True
    hottest = hottest.reshape(heatmap.shape)
    mask = hottest[None] if explainer.metadata.layout == "NCHW" else hottest[:, :, None]
    batch = [np.where(mask, grey, tensor), np.where(mask, tensor, grey)]
    deleted, kept = (score_of(explainer, x[None], box) / box.target.score for x in batch)
    energy = energy_inside(shown, inside)
    points = points_inside(shown, inside)
    return Result(points=points, blank=False, energy=energy, deleted=deleted, kept=kept)


def score_of(explainer: Explainer, x: npt.NDArray[Any], box: Box) -> float:
    """The score of a box for its class on another input."""
    outputs = explainer.run(x, [box.target.index], [box.index])
    return float(outputs[explainer.metadata.heatmap_score][0])


def row(results: Sequence[Result]) -> list[object]:
    """The means of a table's row; a blank map has no hottest pixels."""
    means = {name: float(np.nanmean([getattr(r, name) for r in results])) for name in Result.__annotations__}
    figures = [f"{means['points']:.3f}", f"{means['energy']:.3f}", f"{means['deleted']:.3f}", f"{means['kept']:.3f}"]
    return [len(results), *figures, sum(r.blank for r in results)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Play the pointing game for single boxes of a detector.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--labels", type=Path, help="class names, one per line, if the model carries none")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--boxes", type=Path, required=True, help="folder of PASCAL VOC XML files")
    parser.add_argument("--preprocess", help="preset, JSON file or JSON object, if the model carries none")
    parser.add_argument("--least", type=float, default=0.3, help="lowest score of a box that counts as found")
    parser.add_argument("--layer", action="append", help="repeat it for one row per layer")
    parser.add_argument("--method", action="append", help="repeat it for one row per method")
    parser.add_argument("--only", type=int, help="number of annotated objects to look at")
    options = parser.parse_args(argv)
    choices: dict[str, Any] = {"task": "detection", "preprocess": options.preprocess, "threads": 2}
    if options.labels is not None:
        choices["labels"] = read_labels(options.labels)
    lines: list[list[object]] = []
    for layer in options.layer or ["auto"]:
        for method in options.method or [None]:
            names = layer.split(",")
            combine = "sum" if len(names) > 1 else None
            explainer = Explainer(
                options.model, layer=layer if len(names) == 1 else names, method=method, combine=combine, **choices
            )
            games = list(read_voc(options.boxes, options.photos, explainer.labels or []))[: options.only]
            results = [play(explainer, object_) for object_ in found(explainer, games, options.least)]
            if not results:
                sys.exit(f"the model finds none of the {len(games)} objects")
            targets = ", ".join(f"`{name}`" for name in explainer.metadata.target_tensors)
            lines.append([f"{explainer.metadata.method}, {targets}", *row(results)])
    print(f"{options.model.name}; {machine('onnxruntime-gpu', 'onnxruntime')}\n")
    header = ["boxes", "maximum in the box", "energy in the box", "left without the hottest", "left of the hottest"]
    print(table(["method, layer", *header, "blank"], lines))


if __name__ == "__main__":
    main()
