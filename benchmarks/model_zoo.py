"""Explain and check every trained classifier of a collection, and write docs/models.md.

Run it on a folder with a `MANIFEST.json` (models with their preprocessing, labels and the classes that they predict for
named images), the models and the images::

    python benchmarks/model_zoo.py DATA --write docs/models.md

For every classifier it checks that the top-1 class is the manifest's, that the explained model's own outputs are the
original's, and that the three ways to compute channel weights agree. Prints markdown; the exit code is 1 if a float32
or float16 classifier misses a bar.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import machine, table

from onnx_gradcam.editor.methods.cam import Total
from onnx_gradcam.editor.methods.catalogue import METHODS, find_method, method
from onnx_gradcam.editor.plan import Plan
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import ExplainError, UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.runtime.explainer import Explainer
from onnx_gradcam.runtime.session import Session

Array = npt.NDArray[Any]

FOLDERS = ("models/onnx_native", "models/onnx_derived")
OUTPUT_BARS = {"float32": 1e-5, "float16": 2e-3}
WEIGHT_BARS = {"linear": 1e-4, "finite": 1e-2}
WEIGHTS_OUTPUT = "channel_weights"
LONGEST_NAME = 48
SPARE_PHOTO = "photos/classic/omnixai_cat.jpg"

INTRODUCTION = """# Trained models

After reading this page you know on which trained models onnx-gradcam was tested, and how exact it is there.
`benchmarks/model_zoo.py` writes this page. The models come from the public repositories listed below and are not part
of this project. The columns are:

- **top-1**: images for which the explained model's top-1 class is the class recorded for the original model.
- **outputs**: largest difference between the explained model's own outputs and the original's, relative to the largest
  output; the bar is 1e-5 in float32 and 2e-3 in float16.
- **weights**: how `--weights auto` computes the channel weights.
- **linear**, **finite**: largest difference between these channel weights and those of `gradient`, relative to the
  largest weight; the bars are 1e-4 and 1e-2. A dash means that the head does not allow them: both need an average over
  all spatial positions directly after the layer, `linear` needs a single linear layer after that, and `finite` needs a
  head without rounding.

A model passes if it meets all of these bars. For a head with two dashes, this page only shows that the model's own
outputs are unchanged; the tests of the gradient rules check its gradient.
"""


@dataclass
class Finding:
    """The result of checking one model.

    Attributes:
        entry: its entry in the manifest.
        plan: how the model is explained; `None` if it cannot be.
        right: number of images whose top-1 class is the manifest's.
        photographs: number of images with a recorded class.
        outputs: largest relative difference of the model's own outputs.
        agreement: largest relative difference of the channel weights from `gradient`, by their name.
        trouble: the failures, in words.
    """

    entry: Mapping[str, Any]
    plan: Plan | None = None
    right: int = 0
    photographs: int = 0
    outputs: float = 0.0
    agreement: dict[str, float] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    @property
    def quantised(self) -> bool:
        """Whether the model is quantised."""
        return "QuantizeLinear" in self.entry["op_types"]


def image_paths(entry: Mapping[str, Any], data: Path) -> list[Path]:
    """The images for which the manifest has results; a spare image if it has none."""
    return [data / name for name in entry["top3"] or [SPARE_PHOTO]]


def tensor(explainer: Explainer, path: Path) -> Array:
    """An image as the model's input, `[1, ...]`."""
    return prepare(read_image(path), explainer.preprocessing)[0][None]


def relative(values: Array, expected: Array) -> float:
    """The largest difference, relative to the largest expected value."""
    values, expected = values.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(values - expected).max() / max(np.abs(expected).max(), 1e-30))


def check(entry: Mapping[str, Any], data: Path) -> Finding:
    """Explain a model's images and compare the results with the original model and with the manifest."""
    finding = Finding(entry)
    path = data / entry["file"]
    try:
        finding.plan = make_plan(path)
        explainer = Explainer(path, labels=data / entry["labels"], preprocess=entry["preprocessing"])
        original = Session(path, disabled_optimizers=explainer.metadata.disabled_optimizers)
        for image in image_paths(entry, data):
            check_image(finding, explainer, original, image)
        finding.agreement = weights_agreement(finding, explainer, path, data)
    except ExplainError as exc:
        finding.trouble.append(str(exc))
        return finding
    if finding.right < finding.photographs:
        finding.trouble.append(f"the top-1 class of {finding.photographs - finding.right} images is another")
    if finding.outputs > (bar := OUTPUT_BARS.get(entry["preprocessing"]["dtype"], 1e-5)):
        finding.trouble.append(f"outputs differ by {finding.outputs:.0e}, bar {bar:.0e}")
    for name, difference in finding.agreement.items():
        if difference > WEIGHT_BARS[name]:
            finding.trouble.append(f"{name} weights differ by {difference:.0e}, bar {WEIGHT_BARS[name]:.0e}")
    return finding


def check_image(finding: Finding, explainer: Explainer, original: Session, path: Path) -> None:
    """Compare the top-1 class and the outputs on one image."""
    best = explainer(path).top(1)[0]
    recorded = finding.entry["top3"].get(str(path.relative_to(path.parents[2])))
    if recorded is not None:
        finding.photographs += 1
        finding.right += best.index == recorded[0][0]
    x = tensor(explainer, path)
    plain = original.run({explainer.metadata.image_input: x})
    explained = explainer.run(x, [-1])
    finding.outputs = max([finding.outputs, *(relative(explained[name], value) for name, value in plain.items())])


def weights_agreement(finding: Finding, explainer: Explainer, path: Path, data: Path) -> dict[str, float]:
    """Largest relative difference of the linear and the finite channel weights from the gradient's, over all images."""
    plan = finding.plan
    assert plan is not None
    x = np.concatenate([tensor(explainer, image) for image in image_paths(finding.entry, data)])
    ways = ["gradient", "finite", "linear"] if plan.head is not None else []
    results: dict[str, Array] = {}
    for way in ways:
        if way == "linear" and not (plan.head is not None and plan.head.linear):
            continue
        if way == "gradient" and plan.problems:
            finding.trouble.append(f"gradient weights: {plan.problems[0]}")
            return {}
        try:
            probe = Explainer(path, preprocess=finding.entry["preprocessing"], weights=way, method=PROBE)
        except UnsupportedError:
            # Finite differences vanish in rounding, so they are refused.
            if way == "finite" and finding.quantised:
                continue
            raise
        results[way] = probe.run(x, [-1] * len(x))[WEIGHTS_OUTPUT]
    return {way: relative(value, results["gradient"]) for way, value in results.items() if way != "gradient"}


PROBE = "gradcam_with_weights"


def grad_cam_with_weights(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """Grad-CAM that also outputs its channel weights."""
    t.output(t.mean(G, range(2, G.rank), keepdims=False), WEIGHTS_OUTPUT)
    return find_method("gradcam").function(t, A, G, total)


@contextmanager
def probe_registered() -> Iterator[None]:
    """A with block in which `PROBE` is a method; it is none of the product's, so it is gone afterwards."""
    method(PROBE, title="Grad-CAM with its weights", reference="for measuring")(grad_cam_with_weights)
    try:
        yield
    finally:
        del METHODS[PROBE]


def one_dash(value: float | None) -> str:
    """A small number, or a dash."""
    return "–" if value is None else f"{value:.1e}"


def code(name: str) -> str:
    """A name in backquotes, without its middle if it is long."""
    return f"`{name}`" if len(name) <= LONGEST_NAME else f"`{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}`"


def row(finding: Finding) -> list[object]:
    """The row of a model."""
    entry, plan = finding.entry, finding.plan
    if plan is None:
        return [f"`{entry['name']}`", *["–"] * 7]
    return [
        f"`{entry['name']}`",
        f"{code(plan.layer.chosen.tensor.name)} {'x'.join(map(str, plan.layer.chosen.grid))}",
        code(plan.score.tensor.name) + (f" before {plan.score.activation}" if plan.score.activation else ""),
        plan.weights,
        f"{finding.right} of {finding.photographs}" if finding.photographs else "none recorded",
        one_dash(finding.outputs),
        one_dash(finding.agreement.get("linear")),
        one_dash(finding.agreement.get("finite")),
    ]


def report(findings: Sequence[Finding]) -> str:
    """The page."""
    header = ["model", "layer", "score", "weights", "top-1", "outputs", "linear", "finite"]
    parts = [INTRODUCTION, f"Measured with {machine('onnx', 'onnx-ir', 'onnxruntime-gpu', 'onnxruntime')}.\n"]
    for title, quantised in (("Float models", False), ("Quantised models", True)):
        group = [f for f in findings if f.quantised == quantised]
        if not group:
            continue
        good = sum(not f.trouble for f in group)
        parts.append(f"## {title}\n\n{good} of {len(group)} pass.\n\n{table(header, map(row, group))}\n")
        parts += [f"- `{f.entry['name']}`: {'not yet: ' if quantised else ''}{t}" for f in group for t in f.trouble]
        if any(f.trouble for f in group):
            parts.append("")
    parts.append("## Explained layers and sources\n")
    reasons = [
        [f"`{f.entry['name']}`", f.plan.layer.reason if f.plan else "–", head_in_words(f), source(f.entry)]
        for f in findings
    ]
    parts.append(table(["model", "reason for the layer", "head", "source"], reasons) + "\n")
    return "\n".join(parts)


def head_in_words(finding: Finding) -> str:
    """The part of the model after the layer."""
    if finding.plan is None:
        return "–"
    return (
        finding.plan.head.why
        if finding.plan.head is not None
        else "no average over all spatial positions after the layer"
    )


def source(entry: Mapping[str, Any]) -> str:
    """The repository, file and commit that a model comes from."""
    origin = entry.get("provenance") or {}
    parts = [origin.get("repo", ""), origin.get("path", ""), str(origin.get("commit", ""))[:10]]
    return " ".join(part for part in parts if part) or "–"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Explain and check every classifier of a collection.")
    parser.add_argument("data", type=Path, help="folder with MANIFEST.json, models and images")
    parser.add_argument("--write", type=Path, help="also write the page to this file")
    parser.add_argument("--only", nargs="+", help="names of models")
    options = parser.parse_args(argv)
    manifest = json.loads((options.data / "MANIFEST.json").read_text())
    entries = [
        entry
        for entry in manifest["models"]
        if entry["kind"] == "classifier" and entry["file"].startswith(FOLDERS)
        if options.only is None or entry["name"] in options.only
    ]
    findings = []
    with probe_registered():
        for entry in entries:
            print(f"{entry['name']} ...", file=sys.stderr)
            findings.append(check(entry, options.data))
    page = report(findings)
    print(page)
    if options.write is not None:
        options.write.write_text(page)
    return int(any(f.trouble for f in findings if not f.quantised))


if __name__ == "__main__":
    sys.exit(main())
