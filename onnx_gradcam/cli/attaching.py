"""What `attach` does: attach, compare with the original, write, report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from onnx_gradcam.editor.attachment import Explained
from onnx_gradcam.editor.attachment import attach as attach_to
from onnx_gradcam.editor.targets.classes import find_class, read_labels
from onnx_gradcam.errors import ModelError
from onnx_gradcam.graph.read import read_proto
from onnx_gradcam.graph.shapes import TensorInfo
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import Carried, Metadata
from onnx_gradcam.runtime.agreement import Precision, check_agreement, random_feeds
from onnx_gradcam.runtime.choices import resolve_choices
from onnx_gradcam.runtime.session import Session

from .output import say, shape, warn

__all__ = ["run"]

Array = npt.NDArray[Any]
_Named = dict[str, Array]

_LARGEST_CHECKED = 10**9
"""Bytes of weights above which running both models is left to those who ask for it."""


def run(
    source: Path | bytes,
    out: Path,
    *,
    target: str | None,
    check: bool | None,
    labels: Path | None,
    preprocess: str | None,
    **choices: Any,
) -> None:
    """Write the explained model.

    Args:
        source: path or bytes of the model.
        out: where the explained model goes; `-` is standard output.
        target: number or name of the class that is fixed.
        check: whether to compare with the original; `None` where the weights are not too large.
        labels: file of class names.
        preprocess: how images become the model's input.
        choices: fields of `onnx_gradcam.Options`.

    Raises:
        ExplainError: the model cannot be explained this way, or its own outputs changed; nothing is written.
    """
    names = None if labels is None else read_labels(labels)
    described = None if preprocess is None else parse_preprocessing(preprocess)
    if target is not None:
        choices["target"] = _class_index(target, source, names)
    if not {"against", "reference"}.isdisjoint(choices):
        choices = resolve_choices(source, choices, names, described)
    explained = attach_to(
        source,
        labels=names,
        preprocess=described,
        **choices,
    )
    facts = explained.metadata
    if facts.preprocessing is not None:
        _check_preprocessing(explained)
    size = _weight_bytes(explained)
    if check is None:
        check = size <= _LARGEST_CHECKED
        if not check:
            warn(f"not compared with the original by a run, for its {size / 1e9:.1f} GB of weights; --check does it")
    compared = _compare(source, explained) if check else None
    if str(out) == "-":
        _to_stdout(explained.to_proto())
    else:
        explained.save(out)
        _say(out, explained, compared, choices.get("target"))
    for warning in explained.warnings:
        warn(warning)


def _class_index(target: str, source: Path | bytes, names: Sequence[str] | None) -> int:
    """The class that is fixed in the graph; the range is checked where it is built in."""
    if names is None:
        proto, _ = read_proto(source)
        names = Carried.from_props({p.key: p.value for p in proto.metadata_props}).labels
    return find_class(target, names)


def _check_preprocessing(explained: Explained) -> None:
    """Refuse a description that contradicts the model now rather than when the first image comes."""
    facts, model = explained.metadata, explained.model
    described, dtype = parse_preprocessing(facts.preprocessing or {}), str(model.info(facts.image_input).dtype)
    described.for_input(facts.layout, model.shape(facts.image_input), dtype)


def _weight_bytes(explained: Explained) -> int:
    initializers = explained.model.core.graph.initializers.values()
    return sum(v.const_value.nbytes for v in initializers if v.const_value is not None)


def _compare(source: Path | bytes, explained: Explained) -> float:
    """The largest relative difference of the original outputs, on a random input.

    Raises:
        ModelError: they differ, or one of the two models does not run.
    """
    # One after the other: both at once would hold the weights twice.
    try:
        feeds, original = _random_run(source, explained, {})
    except ModelError as exc:
        raise ModelError(
            f"the original itself does not run: {exc}; nothing was written (--no-check writes it all the same)"
        ) from exc
    try:
        _, results = _random_run(explained.to_proto().SerializeToString(), explained, feeds)
        return check_agreement(original, results, _precision(explained))
    except ModelError as exc:
        raise ModelError(
            f"the explained model does not hold against the original: {exc}; nothing was written (--no-check writes "
            "it all the same)"
        ) from exc


def _random_run(model: Path | bytes, explained: Explained, given: Mapping[str, Array]) -> tuple[_Named, _Named]:
    """What one of the two models is fed, beyond `given` at random, and what it gives."""
    folder = explained.model.folder if isinstance(model, bytes) else None
    session = Session(model, folder=folder, disabled_optimizers=explained.metadata.disabled_optimizers)
    wanted = [i for i in session.inputs if i.name not in given]
    feeds = {**given, **random_feeds(wanted, _input_shapes(session, explained))}
    return feeds, session.run(feeds)


def _input_shapes(session: Session, explained: Explained) -> Mapping[str, Sequence[int]]:
    """A shape for every input; free dimensions as shape inference tried them, one for those it knows nothing of."""
    shapes = {i.name: explained.model.info(i.name).probe_shape for i in session.inputs}
    facts = explained.metadata
    rows = (shapes[facts.image_input] or (1,))[0]
    return {
        i.name: (rows,)
        if i.name == facts.class_input
        else shapes[i.name] or [d if isinstance(d, int) else 1 for d in i.shape]
        for i in session.inputs
    }


def _precision(explained: Explained) -> Precision:
    if any(node.op_type == "QuantizeLinear" for node in explained.model.core.graph):
        return "quantised"
    types = {TensorInfo.of(value).elem_type for value in explained.model.tensors()}
    return "float16" if onnx.TensorProto.FLOAT16 in types else "float32"


def _to_stdout(proto: onnx.ModelProto) -> None:
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        raise ModelError(
            "the model's weights lie in another file, which standard output has no place for; give -o a file"
        )
    sys.stdout.buffer.write(proto.SerializeToString())
    sys.stdout.buffer.flush()


def _say(out: Path, explained: Explained, compared: float | None, target: int | None) -> None:
    facts = explained.metadata
    shapes = {str(o.name): _sizes(o) for o in explained.model.core.graph.outputs}
    added = ", ".join(f"{name} {shape(shapes[name])}" for name in (facts.heatmap, facts.cam, facts.heatmap_class))
    say(f"{out}: the model with {added} added.")
    say(f"Layer {facts.target_tensor!r}: {explained.reason}.")
    say(
        f"Method {facts.method}, weights {facts.weights}, score {facts.score_tensor!r}; {_class_choice(facts, target)}."
    )
    if facts.target_tensor in shapes:
        say(f"The activation maps are given out as {facts.target_tensor!r} {shape(shapes[facts.target_tensor])}.")
    carried = [
        what
        for what, there in (("class names", facts.labels), ("preprocessing", facts.preprocessing))
        if there is not None
    ]
    say(f"It carries {' and '.join(carried)}." if carried else "It carries neither class names nor preprocessing.")
    if compared is not None:
        say(f"Its own outputs agree with the original's on a random input: largest relative difference {compared:.1g}.")


def _class_choice(facts: Metadata, target: int | None) -> str:
    if facts.class_input:
        return f"the class comes from the input {facts.class_input!r}"
    if facts.all_classes:
        return "all classes are explained at once"
    return "the class with the highest score is explained" if target is None else f"class {target} is explained"


def _sizes(value: Any) -> list[int | str | None] | None:
    """The sizes of an ONNX IR value; free ones by their symbol."""
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]
