"""Planted shortcuts and planted drift: how often `report` and `drift` find them, and how often they are wrong.

Run by hand, a minute on one core::

    python benchmarks/planted.py --trials 60

Everything is made here: images of 32x32 with a disk over smooth noise, red for one class and green for the other, and
two models written down by hand. The honest one counts reddish and greenish pixels. The other one knows the first class
by a mark in a corner, of a place and size of each trial, that all images of that class carry. Both see the same images
with the mark, so that only what the model looks at differs. For drift, two runs of each trial have images of their own.
Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from measure import table
from onnx import TensorProto, helper, numpy_helper

from onnx_gradcam.evaluation.audit import CHECKS, shortcut_shares
from onnx_gradcam.evaluation.drift import drift
from onnx_gradcam.runtime.explainer import Explainer

Array = npt.NDArray[Any]
SIZE, PREPROCESS = 32, {"scale": 1 / 255, "mean": [0.5] * 3}
RED, GREEN, BLUE = (1, -0.5, -0.5), (-0.5, 1, -0.5), (-0.5, -0.5, 1)


def model(first: Sequence[float]) -> onnx.ModelProto:
    """Two colour filters of 5x5, of `first` and of green, rectified, averaged: a score each."""
    filters = np.array([first, GREEN], np.float32)[:, :, None, None] * np.ones((1, 1, 5, 5), np.float32) / 25
    nodes = [
        helper.make_node("Conv", ["x", "K", "k"], ["a"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "W"], ["y"]),
    ]
    # A bias below zero: noise alone does not count as a colour.
    weights = {"K": filters, "k": np.full(2, -0.1, np.float32), "W": 40 * np.eye(2, dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def images(rng: np.random.Generator, count: int, *, spread: float = 1.0, radius: tuple[int, int] = (4, 8)) -> Array:
    """Disks anywhere (`spread` 1) or in the middle (0), of both classes by turns, ``uint8 [count, 32, 32, 3]``."""
    made = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for i in range(count):
        noise = np.kron(rng.uniform(60, 190, (8, 8, 1)), np.ones((4, 4, 3))) + rng.normal(0, 12, (SIZE, SIZE, 3))
        size = rng.uniform(*radius)
        y, x = SIZE / 2 + spread * rng.uniform(-8, 8, 2)
        disk = (rows - y) ** 2 + (columns - x) ** 2 < size**2
        noise[disk] = rng.normal(0, 12, 3) + ((210, 60, 60) if i % 2 == 0 else (60, 200, 60))
        made[i] = np.clip(noise, 0, 255)
    return made


def marked(rng: np.random.Generator, made: Array) -> Array:
    """The same images with a blue mark, of one place and size, in a corner of every one of the first class."""
    side, inset = int(rng.integers(4, 7)), int(rng.integers(0, 3))
    rows, columns = (
        slice(inset, inset + side) if rng.random() < 0.5 else slice(-inset - side, SIZE - inset) for _ in "yx"
    )
    made = made.copy()
    made[::2, rows, columns] = (40, 60, 230)
    return made


def heatmaps(explainer: Explainer, made: Array) -> tuple[list[Array], list[Array]]:
    """The input and the heatmap of every image, each for its own class."""
    inputs = ((made / 255 - 0.5).transpose(0, 3, 1, 2)).astype(np.float32)
    classes = [i % 2 for i in range(len(made))]
    found = explainer.run(inputs, classes)[explainer.metadata.heatmap]
    return list(inputs), list(found)


def as_batch(folder: Path, maps: Sequence[Array]) -> Path:
    """Heatmaps as the command `batch` writes them."""
    part = folder / "part-00000000"
    part.mkdir(parents=True)
    with (part / "index.jsonl").open("w", encoding="utf-8") as index:
        for i, heatmap in enumerate(maps):
            np.savez(part / f"{i}.npz", heatmap=heatmap[None])
            entry = {"file": f"{i}.npz", "classes": [i % 2], "labels": [("red", "green")[i % 2]]}
            index.write(json.dumps(entry) + "\n")
    return folder


def area_under_roc(planted: Sequence[float], honest: Sequence[float]) -> float:
    """The probability that a planted trial has a larger figure than an honest one, equal ones counting half."""
    a, b = np.array(planted)[:, None], np.array(honest)[None]
    return float(((a > b) + (a == b) / 2).mean())


def shortcuts(trials: int, count: int) -> list[list[str]]:
    """`fixed` of both models on the same marked images."""
    explainers = [Explainer(model(first), preprocess=PREPROCESS, threads=1) for first in (BLUE, RED)]
    figures: list[list[float]] = [[], []]
    for trial in range(trials):
        rng = np.random.default_rng([1, trial])
        made = marked(rng, images(rng, count))
        for explainer, column in zip(explainers, figures, strict=True):
            inputs, maps = heatmaps(explainer, made)
            column.append(shortcut_shares(inputs, maps, [i % 2 for i in range(count)]).get("fixed", 0.0))
    limit = CHECKS["fixed"].limit
    shares = [np.mean(np.array(column) > limit) for column in figures]
    return [["mark in a corner", f"{area_under_roc(*figures):.3f}", f"{shares[0]:.1%}", f"{shares[1]:.1%}"]]


KINDS = {
    "the model looks at a mark": {"model": BLUE},
    "objects are in the middle": {"spread": 0.2},
    "objects are smaller": {"radius": (3, 5)},
}


def drifts(trials: int, count: int) -> list[list[str]]:
    """The smallest probability of `drift` between an honest run and another, planted or not."""
    explainers = {first: Explainer(model(first), preprocess=PREPROCESS, threads=1) for first in (BLUE, RED)}

    def surprise(trial: int, first: Sequence[float], **change: Any) -> tuple[float, bool]:
        rng = np.random.default_rng([2, trial])
        before = marked(rng, images(rng, count))
        after = marked(rng, images(rng, count, **change))
        with tempfile.TemporaryDirectory() as folder:
            runs = [
                as_batch(Path(folder) / name, heatmaps(explainers[tuple(one)], made)[1])
                for name, one, made in (("before", RED, before), ("after", first, after))
            ]
            found = drift(*runs, seed=trial)
        least = min(min(one.where, one.concentration) for one in found.classes)
        return -float(np.log10(least)), found.drifted

    honest = [surprise(trial, RED) for trial in range(trials)]
    rows = []
    for kind, change in KINDS.items():
        others = {name: value for name, value in change.items() if name != "model"}
        planted = [surprise(1000 + trial, change.get("model", RED), **others) for trial in range(trials)]
        area = area_under_roc([value for value, _ in planted], [value for value, _ in honest])
        shares = [f"{np.mean([alarm for _, alarm in some]):.1%}" for some in (planted, honest)]
        rows.append([kind, f"{area:.3f}", *shares])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument(
        "--images", type=int, default=24, help="images of a trial of report; drift has four times as many"
    )
    chosen = parser.parse_args(arguments)
    head = ["planted", "AUC", "found", "false alarms"]
    for title, rows in (
        ("shortcuts", shortcuts(chosen.trials, chosen.images)),
        ("drift", drifts(chosen.trials, 4 * chosen.images)),
    ):
        sys.stdout.write(f"\n{title}, {chosen.trials} trials\n\n" + table(head, rows) + "\n")


if __name__ == "__main__":
    main()
