"""The pointing game for segmentation and detection: does a heatmap point at the object it explains?

Run by hand::

    python benchmarks/task_localisation.py MODEL --task segmentation --labels voc21.txt --photos FOLDER --boxes FOLDER \
        --preprocess '{"size": [257, 257], "resize": "stretch", ...}'

`--boxes` is a folder of PASCAL VOC XML files, one per image. Every class that has a box in an image is explained if
the model finds it: for segmentation, if its mask covers at least `--least` of the image; for detection, if the score of
its highest-scoring box is at least `--least`. A hit is a heatmap whose maximum is inside a box of the class, as in
`pointing_game.py`. Prints markdown.
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
from onnx_gradcam.evaluation.boxes import Annotation
from onnx_gradcam.runtime.explainer import Explainer

SAME = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""PASCAL VOC's class names, and COCO's names where they differ."""


def read_voc(boxes: Path, photos: Path, labels: Sequence[str]) -> Iterator[Game]:
    """Every class with boxes in an image that the model has, too."""
    for file in sorted(boxes.glob("*.xml")):
        root = ET.parse(file).getroot()  # noqa: S314 - the user's own files
        photo = next(iter(photos.rglob(f"{file.stem}.*")), None)
        if photo is None:
            continue
        boxes_of: dict[str, list[tuple[float, ...]]] = {}
        for thing in root.iter("object"):
            corners = thing.find("bndbox")
            if corners is not None:
                box = tuple(float(corners.findtext(key, "0")) - 1 for key in ("xmin", "ymin", "xmax", "ymax"))
                boxes_of.setdefault(thing.findtext("name", ""), []).append(box)
        for name, corners in boxes_of.items():
            classes = [i for i, label in enumerate(labels) if label in {name, SAME.get(name)}]
            if classes:
                yield Game(photo, Annotation(name, corners, classes))


def found_by(explainer: Explainer, games: Sequence[Game], least: float) -> dict[int, list[Game]]:
    """Class -> its objects that the model finds."""
    chosen: dict[int, list[Game]] = {}
    scores: dict[Path, Any] = {}
    photos = list(dict.fromkeys(game.image for game in games))
    for photo, explanation in zip(photos, explainer.stream(photos), strict=True):
        if isinstance(explanation, ExplainError):
            raise explanation
        scores[photo] = explanation.scores
    for game in games:
        (index,) = game.annotation.classes
        if scores[game.image][index] >= least:
            chosen.setdefault(index, []).append(game)
    return chosen


def measure(model: Path, games: Sequence[Game], least: float, **choices: Any) -> tuple[Explainer, list[Result]]:
    """Explain the objects that the model finds, and check where each heatmap points."""
    explainer = Explainer(model, **choices)
    return explainer, play(explainer, found_by(explainer, games, least))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Play the pointing game for segmentation and detection.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=["segmentation", "detection"], required=True)
    parser.add_argument("--labels", type=Path, required=True, help="class names, one per line")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--boxes", type=Path, required=True, help="folder of PASCAL VOC XML files")
    parser.add_argument("--preprocess", required=True, help="preset, JSON file or JSON object")
    parser.add_argument("--least", type=float, default=0.3, help="lowest score of an object that counts as found")
    parser.add_argument(
        "--output", action="append", help="output with the scores; repeat it for a detector with several"
    )
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--method", action="append", help="repeat it for one row per method")
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
    lines: list[list[object]] = []
    for method in options.method or [None]:
        explainer, results = measure(options.model, games, options.least, **choices, method=method)
        if not results:
            sys.exit(f"the model finds none of the {len(games)} objects")
        metadata = explainer.metadata
        lines += [[f"{metadata.method}, `{metadata.target_tensor}`", *row] for row in rows(results)]
    print(f"{options.model.name}; {machine('onnxruntime-gpu', 'onnxruntime')}\n")
    header = ["objects", "count", "maximum in a box", "random pixel", "image centre", "energy in the boxes"]
    print(table(["method, layer", *header, "blank"], lines))


if __name__ == "__main__":
    main()
