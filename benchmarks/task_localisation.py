"""Do the maps of a segmentation or of a detected box lie on the object? The pointing game for models of other tasks.

Run by hand::

    python benchmarks/task_localisation.py MODEL --task segmentation --labels voc21.txt --photos FOLDER --boxes FOLDER \
        --preprocess '{"size": [257, 257], "resize": "stretch", ...}'

`--boxes` is a folder of PASCAL VOC's XML files, one a photograph. Every class that has a box in a photograph is
explained there, if the model finds it: in a segmentation where its own mask holds at least `--least` of the image,
in a detector where the score of its best box is at least `--least`. The maximum of the heatmap has to lie in a box of
that class, as in `pointing_game.py`. Prints markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from measure import machine, table
from pointing_game import Game, Result, play, rows

from onnx_gradcam.editor.targets.classes import read_labels
from onnx_gradcam.errors import ExplainError
from onnx_gradcam.runtime.explainer import Explainer

SAME = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""PASCAL VOC's names of classes that COCO has others for."""


def read_voc(boxes: Path, photos: Path, labels: Sequence[str]) -> Iterator[Game]:
    """Every class in every photograph that has boxes and that the model knows."""
    for file in sorted(boxes.glob("*.xml")):
        root = ET.parse(file).getroot()  # noqa: S314 - files of one's own choice
        photo = next(iter(photos.rglob(f"{file.stem}.*")), None)
        if photo is None:
            continue
        found: dict[str, list[list[float]]] = {}
        for thing in root.iter("object"):
            corners = thing.find("bndbox")
            if corners is not None:
                box = [float(corners.findtext(key, "0")) - 1 for key in ("xmin", "ymin", "xmax", "ymax")]
                found.setdefault(thing.findtext("name", ""), []).append(box)
        for name, these in found.items():
            known = [i for i, label in enumerate(labels) if label in {name, SAME.get(name)}]
            if known:
                yield Game(photo, name, these, known)


def found_by(explainer: Explainer, games: Sequence[Game], least: float) -> dict[int, list[Game]]:
    """Class -> the objects of it that the model finds."""
    chosen: dict[int, list[Game]] = {}
    scores: dict[Path, Any] = {}
    photos = list(dict.fromkeys(game.image for game in games))
    for photo, explanation in zip(photos, explainer.stream(photos), strict=True):
        if isinstance(explanation, ExplainError):
            raise explanation
        scores[photo] = explanation.scores
    for game in games:
        (index,) = game.classes
        if scores[game.image][index] >= least:
            chosen.setdefault(index, []).append(game)
    return chosen


def measure(model: Path, games: Sequence[Game], least: float, **choices: Any) -> tuple[Explainer, list[Result]]:
    """Explain what the model finds, and look where each heatmap points."""
    explainer = Explainer(model, **choices)
    return explainer, play(explainer, found_by(explainer, games, least))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Do the maps of segmentations and of detected boxes lie on objects?")
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=["segmentation", "detection"], required=True)
    parser.add_argument("--labels", type=Path, required=True, help="class names, one a line")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--boxes", type=Path, required=True, help="folder of PASCAL VOC's XML files")
    parser.add_argument("--preprocess", required=True, help="preset, JSON file or JSON object")
    parser.add_argument("--least", type=float, default=0.3, help="the lowest score of what counts as found")
    parser.add_argument("--output", action="append", help="output of the scores; several for a detector")
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--method", action="append", help="several for one row each")
    options = parser.parse_args(argv)
    games = list(read_voc(options.boxes, options.photos, read_labels(options.labels)))
    choices: Mapping[str, Any] = {
        "task": options.task,
        "labels": options.labels,
        "preprocess": options.preprocess,
        "output": options.output,
        "layer": options.layer,
        "threads": 2,
    }
    found: list[list[object]] = []
    for method in options.method or [None]:
        explainer, results = measure(options.model, games, options.least, **choices, method=method)
        if not results:
            sys.exit(f"the model finds none of the {len(games)} objects")
        facts = explainer.metadata
        found += [[f"{facts.method}, `{facts.target_tensor}`", *row] for row in rows(results)]
    print(f"{options.model.name}; {machine('onnxruntime-gpu', 'onnxruntime')}\n")
    header = ["objects", "count", "maximum in a box", "a random pixel", "the image's middle", "energy in the boxes"]
    print(table(["method, layer", *header, "blank"], found))


if __name__ == "__main__":
    main()
