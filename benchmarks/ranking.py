"""Ranks methods by several metrics on trained models and photographs, in the manner of LATEC.

Run by hand or every night; it goes on where it stopped::

    python benchmarks/ranking.py MODEL --images FOLDER --preprocess torchvision --results ranking.jsonl

Every image is a line of the file of results, so that a stopped run loses one image. Each metric with a better
direction orders the methods by their median over images, and a method's rank in a group is the mean of its ranks by the
metrics of the group (Klein et al. 2024, section 4, with groups by name). Unlike there, `random` and `centre` are ranked
too, and the agreement of the metrics (Kendall's W) and those that decide nothing are printed. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from measure import table

from onnx_gradcam.evaluation.experiment import evaluate
from onnx_gradcam.evaluation.metrics import METRICS
from onnx_gradcam.evaluation.statistics import kendall_w, told_apart
from onnx_gradcam.options import Options

METHODS = "gradcam,gradcam++,layercam,hirescam,eigencam,input-x-gradient,integrated-gradients,saliency"
CHOSEN = "deletion,insertion,road,region_perturbation,infidelity,sensitivity,random_logit"
SUFFIXES = {".png", ".jpg", ".jpeg"}

Values = Mapping[str, Mapping[str, float]]


def run(chosen: argparse.Namespace) -> list[Values]:
    """The values of every image, by method and metric; images that the file of results has are not run again."""
    setting = {
        "model": Path(chosen.model).name,
        "methods": chosen.methods,
        "metrics": chosen.metrics,
        "steps": chosen.steps,
    }
    lines = chosen.results.read_text(encoding="utf-8").splitlines() if chosen.results.exists() else []
    done = {entry["path"]: entry["values"] for entry in map(json.loads, lines) if entry["setting"] == setting}
    images = sorted(str(path) for path in Path(chosen.images).iterdir() if path.suffix.lower() in SUFFIXES)
    images = images[: chosen.count]
    left = [image for image in images if image not in done]
    if left:
        evaluation = evaluate(
            chosen.model, left, methods=chosen.methods.split(","), metrics=chosen.metrics.split(","),
            options=Options(preprocess=chosen.preprocess), steps=chosen.steps, threads=1,
        )  # fmt: skip
        with chosen.results.open("a", encoding="utf-8") as file:
            for image, results in zip(left, evaluation, strict=True):
                if not isinstance(results, Exception):
                    done[image] = results[0].values
                    file.write(json.dumps({"setting": setting, "path": image, "values": done[image]}) + "\n")
                    file.flush()
    return [done[image] for image in images if image in done]


def ranks(worths: Sequence[float]) -> list[float]:
    """Ranks from 1 for the highest; equal values share their mean rank."""
    values = np.array(worths)
    return [float((values > value).sum() + ((values == value).sum() + 1) / 2) for value in values]


def report(rows: Sequence[Values]) -> str:
    """Mean ranks by group, and what the metrics allow to say."""
    methods = list(rows[0])
    directed = [name for name in rows[0][methods[0]] if METRICS[name].better]
    columns = {
        name: {method: [METRICS[name].worth(row[method][name]) for row in rows] for method in methods}
        for name in directed
    }
    medians = {name: [float(np.median(column[method])) for method in methods] for name, column in columns.items()}
    by_metric = {name: ranks(values) for name, values in medians.items()}
    groups = list(dict.fromkeys(METRICS[name].group for name in directed))
    cells = []
    for i, method in enumerate(methods):
        of = {g: float(np.mean([r[i] for n, r in by_metric.items() if METRICS[n].group == g])) for g in groups}
        cells.append((of[groups[0]], [method, *(f"{of[g]:.1f}" for g in groups)]))
    own = [method for method in methods if method not in {"random", "centre"}]
    agreement = kendall_w({name: [medians[name][methods.index(m)] for m in own] for name in directed})
    undecided = [name for name, column in columns.items() if not told_apart({m: column[m] for m in own})]
    text = table(["mean rank by", *groups], [row for _, row in sorted(cells, key=lambda cell: cell[0])])
    words = (
        "" if agreement is None else f"\n\n{len(rows)} images; Kendall's W of {len(directed)} metrics: {agreement:.2f}"
    )
    return text + words + (f"; best and worst not told apart by: {', '.join(undecided)}" if undecided else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print the ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--images", required=True)
    parser.add_argument("--preprocess", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--metrics", default=CHOSEN)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20)
    chosen = parser.parse_args(arguments)
    sys.stdout.write(report(run(chosen)) + "\n")


if __name__ == "__main__":
    main()
