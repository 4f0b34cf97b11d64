"""What `inspect` does: collect the facts about a model, then print them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import typer

from onnx_gradcam.editor.plan import Plan, make_plan
from onnx_gradcam.editor.targets.axes import letters
from onnx_gradcam.editor.targets.layer import Candidate
from onnx_gradcam.editor.targets.score import Score, find_score
from onnx_gradcam.editor.targets.task import candidates
from onnx_gradcam.errors import ExplainError, TargetError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.read import read_proto
from onnx_gradcam.metadata import Carried, Metadata
from onnx_gradcam.options import Options

from .output import complain, say, say_json, shape, table

__all__ = ["facts", "run"]

_SHOWN_CANDIDATES = 12


def run(source: Path | bytes, name: str, *, as_json: bool, **choices: Any) -> None:
    """Print the facts about a model.

    Raises:
        ModelError: the file is no usable model.
        typer.Exit: code 1 where the model cannot be explained.
    """
    found = facts(source, **choices)
    if as_json:
        say_json({"model": name, **found})
    else:
        _say(name, found)
    if found["refusal"] is not None:
        if not as_json:
            complain(found["refusal"])
        raise typer.Exit(1)


def facts(source: Path | bytes, **choices: Any) -> dict[str, Any]:
    """What there is to know about a model, as JSON values.

    `explained` is what an explained model says of itself, else `None`; `score`, `head`, `layer`, `candidates`,
    `weights`, `missing_rules` and `warnings` are left out from where the model could not be understood on, and
    `refusal` says why; `tasks` says then which outputs could be explained as something else.

    Args:
        source: path or bytes of the model.
        choices: fields of `onnx_gradcam.Options`.

    Raises:
        ModelError: the file is no usable model.
    """
    proto, _ = read_proto(source)
    props = {p.key: p.value for p in proto.metadata_props}
    weights = {t.name for t in proto.graph.initializer}
    carried = Carried.from_props(props)
    explained = Metadata.from_props(props)
    found: dict[str, Any] = {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "producer": " ".join(filter(None, (proto.producer_name, proto.producer_version))),
        "inputs": [_tensor(info) for info in proto.graph.input if info.name not in weights],
        "outputs": [_tensor(info) for info in proto.graph.output],
        "labels": carried.labels,
        "preprocessing": carried.preprocessing,
        "framework": " ".join(filter(None, (carried.framework, carried.framework_version))),
        "layers": {name: asdict(layer) for name, layer in carried.layers.items()},
        "explained": None if explained is None else asdict(explained),
        "refusal": None,
    }
    if explained is not None:
        return found
    try:
        if not {"against", "reference"}.isdisjoint(choices):
            from onnx_gradcam.runtime.choices import resolve_choices  # noqa: PLC0415 - it runs models, which others need not

            choices = resolve_choices(source, choices, None, None)
        return found | _planned(make_plan(source, Options(**choices)))
    except ExplainError as exc:
        known = _score_alone(source, choices) if isinstance(exc, TargetError) else {}
        if not known:
            found["tasks"] = _tasks(source)
        return found | known | {"refusal": str(exc)}


def _tasks(source: Path | bytes) -> dict[str, list[str]]:
    """Which outputs could be explained as what; nothing for a model that cannot be read on."""
    try:
        return candidates(Builder(load(source)))
    except ExplainError:
        return {}


def _planned(work: Plan) -> dict[str, Any]:
    layer = work.layer
    return {
        "image_input": work.image.name,
        "image_layout": letters(work.layout),
        "score": _score(work.score),
        "head": _head(work),
        "layer": {**_candidate(layer.chosen), "reason": layer.reason},
        "candidates": [_candidate(c) for c in layer.candidates],
        "task": work.options.task,
        "method": work.method.name,
        "method_reason": _why_method(work),
        "weights": work.weights,
        "grad_dtype": work.options.grad_dtype,
        "missing_rules": list(work.problems),
        "warnings": work.warnings,
        "refusal": work.refusal,
    }


def _why_method(work: Plan) -> str:
    """Why a method that nobody asked for is not the usual default."""
    if work.options.method is not None or work.method.name == "gradcam":
        return ""
    return f"the default for a {work.options.task}, whose places count each by itself; gradcam averages over them"


def _head(work: Plan) -> str:
    if work.head is None:
        return "no average over all places right behind the layer"
    return work.head.why


def _score_alone(source: Path | bytes, choices: dict[str, Any]) -> dict[str, Any]:
    """The score of a model that no layer could be found for; nothing where there is none either."""
    try:
        score = find_score(Builder(load(source)), choices.get("output"), choices.get("score", "logit"))
    except ExplainError:
        return {}
    return {"score": _score(score)}


def _score(score: Score) -> dict[str, Any]:
    return {
        "output": score.output.name,
        "tensor": score.tensor.name,
        "classes": score.classes,
        "single_logit": score.single_logit,
        "activation": score.activation,
        "reason": score.reason,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    node = candidate.tensor.core.producer()
    return {
        "tensor": candidate.tensor.name,
        "operator": None if node is None else node.op_type,
        "node": None if node is None else node.name,
        "shape": list(candidate.tensor.shape),
        "grid": list(candidate.grid),
        "layout": candidate.describe(),
        "every_path": candidate.every_path,
    }


def _tensor(info: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return {"name": info.name, "dtype": (kind or "unknown").removesuffix("_type"), "shape": None}
    tensor = info.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    names = {"float": "float32", "double": "float64"}
    return {
        "name": info.name,
        "dtype": names.get(dtype, dtype),
        "shape": sizes if tensor.HasField("shape") else None,
    }


def _say(name: str, found: dict[str, Any]) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opset"].items())
    say(f"{name}: opset {opsets}" + (f", made by {found['producer']}" if found["producer"] else ""))
    for kind in ("inputs", "outputs"):
        say(kind)
        say(table([(repr(v["name"]), v["dtype"], shape(v["shape"])) for v in found[kind]]))
    say(f"class names: {_labels(found['labels'])}")
    say(f"preprocessing: {found['preprocessing'] or 'none carried'}")
    if found["framework"]:
        say(f"exported from {found['framework']}")
    if found["explained"] is not None:
        _say_explained(found["explained"])
    if "score" in found:
        _say_score(found["score"])
    if "layer" in found:
        _say_plan(found)
    for task, outputs in found.get("tasks", {}).items():
        say(f"could be explained with --task {task}: output {', '.join(map(repr, outputs))}")


def _labels(labels: list[str] | None) -> str:
    if not labels:
        return "none carried"
    return f"{len(labels)} ({', '.join(labels[:3])}{' ...' if len(labels) > 3 else ''})"


def _say_explained(said: dict[str, Any]) -> None:
    say(f"explained already, by onnx-gradcam {said['version']}: {said['method']} of layer {said['target_tensor']!r}")
    say(f"  weights {said['weights']}, score {said['score_tensor']!r}, scores in output {said['scores_output']!r}")
    say(f"  image in {said['image_input']!r} ({said['layout']})")
    say(f"  heatmap in {said['heatmap']!r}, raw map in {said['cam']!r}")
    chooser = f"comes from the input {said['class_input']!r}" if said["class_input"] else "is fixed in the graph"
    say(f"  the class {chooser}; output {said['heatmap_class']!r} says which one it was")


def _say_score(score: dict[str, Any]) -> None:
    count = "an unknown number of" if score["classes"] is None else score["classes"]
    say(f"score: {score['tensor']!r}, {count} classes")
    say(f"  {score['reason']}")


def _say_plan(found: dict[str, Any]) -> None:
    layer = found["layer"]
    say(f"image: {found['image_input']!r}, {found['image_layout']}")
    say(f"layer: {layer['tensor']!r} {shape(layer['shape'])} {layer['layout']}")
    say(f"  {layer['reason']}")
    say(f"head: {found['head']}")
    if found["task"] != "classification":
        say(f"task: {found['task']}")
    say(f"method: {found['method']}, weights {found['weights']}")
    if found["method_reason"]:
        say(f"  {found['method_reason']}")
    named = _named_rows(found)
    if named:
        _say_choices(named, f"layers of the {found['framework'].split()[0]} model")
    if not any(row[0] == "*" for row in named):
        _say_choices(_candidate_rows(found), "tensors" if named else "layers")
    say("operators on the way without a rule:" + ("" if found["missing_rules"] else " none"))
    for line in found["missing_rules"]:
        say(f"  {line}")
    for line in found["warnings"]:
        say(f"warning: {line}")


def _say_choices(rows: list[tuple[str, ...]], what: str) -> None:
    """Layers to choose from, the last first and not too many of them, but the chosen one always."""
    shown = [row for i, row in enumerate(rows) if i < _SHOWN_CANDIDATES or row[0] == "*"]
    hidden = len(rows) - len(shown)
    say(f"{what} to choose from with --layer, the last first" + (f" ({hidden} more with --json)" if hidden else ""))
    say(table(shown))


def _candidate_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            "*" if c["tensor"] == found["layer"]["tensor"] else " ",
            repr(c["tensor"]),
            c["operator"] or "input",
            shape(c["shape"]),
            c["layout"],
            "every path" if c["every_path"] else "a branch",
        )
        for c in reversed(found["candidates"])
    ]


def _named_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Those layers of the framework that have places: name, class, shape, and the tensor where its name is another."""
    candidates = {c["tensor"]: c for c in found["candidates"]}
    return [
        (
            "*" if layer["tensor"] == found["layer"]["tensor"] else " ",
            repr(name),
            layer["kind"],
            shape(candidates[layer["tensor"]]["shape"]),
            candidates[layer["tensor"]]["layout"],
            "every path" if candidates[layer["tensor"]]["every_path"] else "a branch",
            "" if name == layer["tensor"] else f"tensor {layer['tensor']!r}",
        )
        for name, layer in reversed(found["layers"].items())
        if layer["tensor"] in candidates
    ]
