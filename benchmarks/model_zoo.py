"""Every trained classifier of a collection, explained and checked: the table of docs/models.md.

Run by hand on a folder that holds a `MANIFEST.json` (models with their preprocessing, labels and the classes that they
give for named photographs), the models and the photographs::

    python benchmarks/model_zoo.py DATA --write docs/models.md

For every classifier it checks that the class with the highest score is the manifest's, that the explained model's own
outputs are the original's, and that the three ways to weights agree. Prints markdown; the exit code is 1 where a
float32 or float16 classifier misses a bar.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import machine, table

from onnx_gradcam.editor.methods.cam import Total
from onnx_gradcam.editor.methods.catalogue import METHODS, find_method, method
from onnx_gradcam.editor.plan import Plan, make_plan
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

This page is written by `benchmarks/model_zoo.py`. The models come from public repositories, named below, and are not
part of this project. Columns:

- **top-1**: photographs for which the explained model's best class is the one recorded for the original model.
- **outputs**: largest difference between the explained model's own outputs and the original's, relative to the largest
  output; bar 1e-5 in float32, 2e-3 in float16.
- **weights**: what `--weights auto` takes.
- **linear**, **finite**: largest difference between these channel weights and those of `gradient`, relative to the
  largest weight; bar 1e-4 and 1e-2. A dash where the head does not allow them: both
  need an average over all places right behind the layer, `linear` nothing but one linear layer behind that, `finite`
  no rounding.

A model passes when it misses none of these bars. Of a head with two dashes this page says only that the model's own
outputs are left as they were; the gradient through it is checked by the rules' own tests.
"""


@dataclass
class Finding:
    """What was seen of one model.

    Attributes:
        entry: of the manifest.
        work: the plan, where there is one.
        right: photographs whose best class is the manifest's.
        photographs: how many there were.
        outputs: largest relative difference of the model's own outputs.
        agreement: largest relative difference of the channel weights from `gradient`, by their name.
        trouble: what failed, in words.
    """

    entry: Mapping[str, Any]
    work: Plan | None = None
    right: int = 0
    photographs: int = 0
    outputs: float = 0.0
    agreement: dict[str, float] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    @property
    def quantised(self) -> bool:
        """Whether the model holds quantised numbers."""
        return "QuantizeLinear" in self.entry["op_types"]


def image_paths(entry: Mapping[str, Any], data: Path) -> list[Path]:
    """The photographs that the manifest has results for; any photograph where it has none."""
    return [data / name for name in entry["top3"] or [SPARE_PHOTO]]


def tensor(explainer: Explainer, path: Path) -> Array:
    """A photograph as the model's input, `[1, ...]`."""
    return prepare(read_image(path), explainer.preprocessing)[0][None]


def relative(got: Array, wanted: Array) -> float:
    """Largest difference, relative to the largest value."""
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def check(entry: Mapping[str, Any], data: Path) -> Finding:
    """Explain a model's photographs and compare with the original and with the manifest."""
    found = Finding(entry)
    path = data / entry["file"]
    try:
        found.work = make_plan(path)
        explainer = Explainer(path, labels=data / entry["labels"], preprocess=entry["preprocessing"])
        original = Session(path, disabled_optimizers=explainer.metadata.disabled_optimizers)
        for image in image_paths(entry, data):
            check_image(found, explainer, original, image)
        found.agreement = weights_agreement(found, explainer, path, data)
    except ExplainError as exc:
        found.trouble.append(str(exc))
        return found
    if found.right < found.photographs:
        found.trouble.append(f"top-1 of {found.photographs - found.right} photographs is another")
    if found.outputs > (bar := OUTPUT_BARS.get(entry["preprocessing"]["dtype"], 1e-5)):
        found.trouble.append(f"outputs differ by {found.outputs:.0e}, bar {bar:.0e}")
    for name, difference in found.agreement.items():
        if difference > WEIGHT_BARS[name]:
            found.trouble.append(f"{name} weights differ by {difference:.0e}, bar {WEIGHT_BARS[name]:.0e}")
    return found


def check_image(found: Finding, explainer: Explainer, original: Session, path: Path) -> None:
    """Best class and outputs on one photograph."""
    best = explainer(path).top(1)[0]
    recorded = found.entry["top3"].get(str(path.relative_to(path.parents[2])))
    if recorded is not None:
        found.photographs += 1
        found.right += best.index == recorded[0][0]
    x = tensor(explainer, path)
    plain = original.run({explainer.metadata.image_input: x})
    explained = explainer.run(x, [-1])
    found.outputs = max([found.outputs, *(relative(explained[name], value) for name, value in plain.items())])


def weights_agreement(found: Finding, explainer: Explainer, path: Path, data: Path) -> dict[str, float]:
    """How far the linear and the finite channel weights are from the gradient's, over all photographs."""
    work = found.work
    assert work is not None
    x = np.concatenate([tensor(explainer, image) for image in image_paths(found.entry, data)])
    ways = ["gradient", "finite", "linear"] if work.head is not None else []
    seen: dict[str, Array] = {}
    for way in ways:
        if way == "linear" and not (work.head is not None and work.head.linear):
            continue
        if way == "gradient" and work.problems:
            found.trouble.append(f"gradient weights: {work.problems[0]}")
            return {}
        try:
            probe = Explainer(path, preprocess=found.entry["preprocessing"], weights=way, method=PROBE)
        except UnsupportedError:
            # Differences see nothing through rounding, and are refused there.
            if way == "finite" and found.quantised:
                continue
            raise
        seen[way] = probe.run(x, [-1] * len(x))[WEIGHTS_OUTPUT]
    return {way: relative(value, seen["gradient"]) for way, value in seen.items() if way != "gradient"}


PROBE = "gradcam_with_weights"


def grad_cam_with_weights(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """Grad-CAM that puts its channel weights out as well."""
    t.output(t.mean(G, range(2, G.rank), keepdims=False), WEIGHTS_OUTPUT)
    return find_method("gradcam").function(t, A, G, total)


def one_dash(value: float | None) -> str:
    """A small number, or a dash."""
    return "–" if value is None else f"{value:.1e}"


def code(name: str) -> str:
    """A name in type, without the middle where it is long."""
    return f"`{name}`" if len(name) <= LONGEST_NAME else f"`{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}`"


def row(found: Finding) -> list[object]:
    """A model's line of the table."""
    entry, work = found.entry, found.work
    if work is None:
        return [f"`{entry['name']}`", *["–"] * 7]
    return [
        f"`{entry['name']}`",
        f"{code(work.layer.chosen.tensor.name)} {'x'.join(map(str, work.layer.chosen.grid))}",
        code(work.score.tensor.name) + (f" before {work.score.activation}" if work.score.activation else ""),
        work.weights,
        f"{found.right} of {found.photographs}" if found.photographs else "none recorded",
        one_dash(found.outputs),
        one_dash(found.agreement.get("linear")),
        one_dash(found.agreement.get("finite")),
    ]


def report(findings: Sequence[Finding]) -> str:
    """The page."""
    header = ["model", "layer", "score", "weights", "top-1", "outputs", "linear", "finite"]
    parts = [INTRODUCTION, f"Run with {machine('onnx', 'onnx-ir', 'onnxruntime-gpu', 'onnxruntime')}.\n"]
    for title, quantised in (("Float models", False), ("Quantised models", True)):
        these = [f for f in findings if f.quantised == quantised]
        if not these:
            continue
        good = sum(not f.trouble for f in these)
        parts.append(f"## {title}\n\n{good} of {len(these)} pass.\n\n{table(header, map(row, these))}\n")
        parts += [f"- `{f.entry['name']}`: {'not yet: ' if quantised else ''}{t}" for f in these for t in f.trouble]
        if any(f.trouble for f in these):
            parts.append("")
    parts.append("## Why this layer, and where the model comes from\n")
    reasons = [
        [f"`{f.entry['name']}`", f.work.layer.reason if f.work else "–", head_in_words(f), source(f.entry)]
        for f in findings
    ]
    parts.append(table(["model", "layer chosen", "head", "source"], reasons) + "\n")
    return "\n".join(parts)


def head_in_words(found: Finding) -> str:
    """What lies behind the layer."""
    if found.work is None:
        return "–"
    return found.work.head.why if found.work.head is not None else "no average over all places behind the layer"


def source(entry: Mapping[str, Any]) -> str:
    """Repository, file and commit."""
    origin = entry.get("provenance") or {}
    parts = [origin.get("repo", ""), origin.get("path", ""), str(origin.get("commit", ""))[:10]]
    return " ".join(part for part in parts if part) or "–"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Explain and check every classifier of a collection.")
    parser.add_argument("data", type=Path, help="folder with MANIFEST.json, models and photographs")
    parser.add_argument("--write", type=Path, help="file for the page, beside printing it")
    parser.add_argument("--only", nargs="+", help="names of models")
    options = parser.parse_args(argv)
    if PROBE not in METHODS:
        method(PROBE, title="Grad-CAM with its weights", reference="for measuring")(grad_cam_with_weights)
    manifest = json.loads((options.data / "MANIFEST.json").read_text())
    entries = [
        entry
        for entry in manifest["models"]
        if entry["kind"] == "classifier" and entry["file"].startswith(FOLDERS)
        if options.only is None or entry["name"] in options.only
    ]
    findings = []
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
