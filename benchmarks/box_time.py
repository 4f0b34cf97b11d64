"""How long do the heatmaps of the boxes of one image take, in plain forward passes of the detector?

Run by hand::

    python benchmarks/box_time.py MODEL PHOTO --boxes 20 --preprocess '{"size": [416, 416], ...}'

Measured are one box; the surest `--boxes` boxes, whose forward pass runs once; and the same boxes with the whole model
run for each of them, as libraries do that take one backward pass a box. Reading the photo and drawing do not count. As
the lists of photos are short at a usual least score, the boxes are the best of the table without suppression. Prints
markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
from measure import alternate, machine, table

from onnx_gradcam.runtime.explainer import Explainer
from onnx_gradcam.runtime.runners import Attached, Choice
from onnx_gradcam.runtime.session import Session


def surest(scores: np.ndarray[tuple[int, ...], np.dtype[np.float32]], count: int) -> list[Choice]:
    """The class and index of the boxes with the highest scores, from a table `[boxes, K]`."""
    best = np.argsort(-scores.max(1), kind="stable")[:count]
    return [(int(scores[index].argmax()), int(index)) for index in best]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photo")
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--preprocess", type=json.loads)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args(arguments)
    choices = {"preprocess": options.preprocess} if options.preprocess else {}
    explainer = Explainer(options.model, threads=options.threads, **choices)
    runner = explainer.runner
    if not isinstance(runner, Attached) or runner.halved is None:
        parser.error("this model cannot be cut at what depends on the box")
    halved, prepared = runner.halved, explainer.prepared(options.photo)
    if isinstance(prepared, Exception):
        raise prepared
    row = prepared.tensor[None]
    table_of_boxes = explainer.run(row, [-1], tables=True)[explainer.metadata.detection_scores][0]
    chosen = surest(table_of_boxes, options.boxes)
    plain = Session(options.model, threads=options.threads)
    name = explainer.metadata.image_input

    def shared() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        return halved.run(halved.forward(row), chosen)

    def apart() -> list[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]]:
        return [explainer.run(row, [index], [box]) for index, box in chosen]

    together, single = shared(), apart()
    heatmap = explainer.metadata.heatmap
    difference = max(float(np.abs(a[heatmap][0] - b).max()) for a, b in zip(single, together[heatmap], strict=True))
    ratios = alternate(
        lambda: plain.run({name: row}), lambda: explainer.run(row, *zip(*chosen[:1], strict=True)), shared, apart,
        runs=options.runs,
    )  # fmt: skip
    print(machine("onnxruntime", "numpy"))
    print(f"\n{options.model}: largest difference of a heatmap {difference:.1e}; in plain forward passes:\n")
    sides = ("one box", f"{len(chosen)} boxes, one forward pass", f"{len(chosen)} boxes, each by itself")
    print(table(["", "passes"], [[side, str(ratio)] for side, ratio in zip(sides, ratios, strict=True)]))


if __name__ == "__main__":
    main()
