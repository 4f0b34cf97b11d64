"""The pointing game: does a heatmap have its maximum inside the box of the object it explains?

Run by hand::

    python benchmarks/pointing_game.py MODEL --boxes BOXES.json --images FOLDER --preprocess torchvision

The file of boxes is JSON with `images`: name -> `file` (relative to the folder), `objects`: label -> `boxes`, each
`[x0, y0, x1, y1]` in pixels of the image, and `imagenet_candidates`, the model's classes that mean this object.
The highest-scoring candidate of each object is explained, if it is among the model's `--rank` highest scores. If an
object has several boxes, any of them counts. If several pixels have the largest value (bilinear interpolation is flat
at the image's border), the middle of them counts. A blank heatmap is a miss.

The preprocessing should show the model the whole image (`"resize": "stretch"`). Prints markdown.

Zhang et al. 2018, Top-down neural attention by excitation backprop, section 4.2 (here without a tolerance around the
boxes); energy inside the box as in Wang et al. 2020, Score-CAM, section 4.2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, table

from onnx_gradcam.errors import ExplainError
from onnx_gradcam.evaluation.boxes import Annotation, energy_inside, points_inside, read_boxes
from onnx_gradcam.runtime.explainer import Explainer

SMALL = 0.25


@dataclass(frozen=True)
class Game:
    """The objects of one kind in one image.

    Attributes:
        image: its path.
        annotation: their boxes, and the model's classes that mean them.
    """

    image: Path
    annotation: Annotation


@dataclass(frozen=True)
class Result:
    """Where a heatmap points.

    Attributes:
        hit: whether its maximum is inside a box.
        energy: share of its sum inside the boxes.
        area: share of the image that the boxes cover: the score of a heatmap that knows nothing.
        centre: whether the centre of the image is inside a box.
        blank: whether the heatmap is zero everywhere.
    """

    hit: bool
    energy: float
    area: float
    centre: bool
    blank: bool


def read_games(boxes: Path, images: Path) -> list[Game]:
    """All objects that have classes in the model."""
    entries: Mapping[str, Any] = json.loads(boxes.read_text())["images"]
    paths = {Path(entry["file"]).name: images / entry["file"] for entry in entries.values()}
    return [
        Game(paths[name], annotation)
        for name, annotations in read_boxes(boxes).items()
        for annotation in annotations
        if annotation.classes
    ]


def choose_classes(explainer: Explainer, games: Iterable[Game], rank: int) -> dict[int, list[Game]]:
    """Class to explain -> its objects; objects that the model does not rank high enough are left out."""
    of_image: dict[Path, list[Game]] = defaultdict(list)
    for game in games:
        of_image[game.image].append(game)
    chosen: dict[int, list[Game]] = defaultdict(list)
    for explanation, games_of_image in zip(explainer.stream(of_image), of_image.values(), strict=True):
        if isinstance(explanation, ExplainError):
            raise explanation
        top = [target.index for target in explanation.top(rank)]
        for game in games_of_image:
            recognised = [index for index in top if index in game.annotation.classes]
            if recognised:
                chosen[recognised[0]].append(game)
    return chosen


def play(explainer: Explainer, chosen: Mapping[int, Sequence[Game]]) -> list[Result]:
    """Explain every object and look where its heatmap points."""
    results = []
    for index, games in chosen.items():
        for explanation, game in zip(explainer.stream((g.image for g in games), index), games, strict=True):
            if isinstance(explanation, ExplainError):
                raise explanation
            heatmap = explanation.heatmap_on_image()
            inside = game.annotation.inside(*heatmap.shape)
            results.append(
                Result(
                    hit=points_inside(heatmap, inside),
                    energy=energy_inside(heatmap, inside),
                    area=float(inside.mean()),
                    centre=bool(inside[heatmap.shape[0] // 2, heatmap.shape[1] // 2]),
                    blank=not heatmap.any(),
                )
            )
    return results


def rows(results: Sequence[Result]) -> list[list[object]]:
    """All objects, those with small boxes, and those that are not in the image centre."""
    parts = {
        "all": results,
        f"boxes below {SMALL:.0%} of the image": [r for r in results if r.area < SMALL],
        "not in the image centre": [r for r in results if not r.centre],
    }
    lines: list[list[object]] = []
    for name, part in parts.items():
        if not part:
            continue
        count, hits, centres = len(part), sum(r.hit for r in part), sum(r.centre for r in part)
        energy, area = (float(np.mean([getattr(r, k) for r in part])) for k in ("energy", "area"))
        lines.append(
            [
                name,
                count,
                f"{hits / count:.1%} ({hits})",
                f"{area:.1%}",
                f"{centres / count:.1%} ({centres})",
                f"{energy:.1%}",
                sum(r.blank for r in part),
            ]
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Play the pointing game: does a heatmap point into the object's box?")
    parser.add_argument("model", type=Path)
    parser.add_argument("--boxes", type=Path, required=True, help="JSON file of the boxes")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--preprocess", required=True, help="preset, JSON file or JSON object")
    parser.add_argument(
        "--rank", type=int, default=5, help="explain objects whose class is among this many highest-scoring classes"
    )
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--method", default="gradcam")
    options = parser.parse_args(argv)
    explainer = Explainer(options.model, preprocess=options.preprocess, layer=options.layer, method=options.method)
    games = read_games(options.boxes, options.images)
    results = play(explainer, choose_classes(explainer, games, options.rank))
    if not results:
        sys.exit(f"the model ranks none of the {len(games)} objects among its top {options.rank} classes")
    metadata = explainer.metadata
    subject = f"{options.model.name}, {metadata.method} at `{metadata.target_tensor}`, rank {options.rank} or better"
    print(f"{subject}; {machine('onnxruntime-gpu', 'onnxruntime')}\n")
    header = ["objects", "count", "maximum in the box", "random pixel", "image centre", "energy in the box"]
    print(table([*header, "blank"], rows(results)))


if __name__ == "__main__":
    main()
