"""`onnx-gradcam attach`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import ModelFile, explains, model_source, named, option
from ._output import layers, say, shape, warn
from ._texts import LogitBias, LogitScale, Prompts, Templates, TextEmbeddings, Tokenizer, of_texts

if TYPE_CHECKING:
    import onnx

    from onnx_gradcam import Explained

__all__ = ["attach"]


@explains()
def attach(
    model: ModelFile,
    *,
    out: Annotated[
        Path,
        option("Output", "File to write; - is standard output.", "-o", "--out", metavar="FILE", show_default=False),
    ],
    engine: Annotated[
        str | None,
        option(
            "Runtime",
            "What will run the model, which sets --class-input and --profile: {engines}.",
            "--for",
            show_default=False,
            **named("engines"),
        ),
    ] = None,
    check: Annotated[
        bool | None,
        option(
            "Output",
            "Run both models on a random input and refuse to write if an original output changed. [default: check, "
            "unless the weights exceed 1 GB]",
            "--check/--no-check",
            show_default=False,
        ),
    ] = None,
    prompts: Prompts = None,
    tokenizer: Tokenizer = None,
    templates: Templates = None,
    text_embeddings: TextEmbeddings = None,
    logit_scale: LogitScale = None,
    logit_bias: LogitBias = None,
    choices: dict[str, Any],
) -> None:
    """Add heatmap outputs to a model.

    The explained model is an ordinary ONNX file: its own inputs and outputs, and heatmap, cam and heatmap_class beside
    them. It stores class names and preprocessing, so that `explain` needs neither.

    \b
    Examples:
      onnx-gradcam attach model.onnx -o explained.onnx
      onnx-gradcam attach model.onnx -o explained.onnx --labels names.txt --preprocess torchvision
      onnx-gradcam attach model.onnx -o tabby.onnx --class-input none --target tabby
      onnx-gradcam attach model.onnx -o explained.onnx --for openvino
      onnx-gradcam attach clip.onnx -o dogs.onnx --prompt "a dog" --prompt "a cat" --tokenizer tokenizer.json
    """  # noqa: D301 - \b keeps the lines of the examples apart
    fixed = choices.get("class_input") or _class_input_of(engine)
    if choices.get("target") is not None and fixed != "none":
        raise typer.BadParameter(
            "it fixes the class in the model, which takes --class-input none; without it, the class is chosen when "
            "the model runs.",
            param_hint="--target",
        )
    if model != "-" and os.path.realpath(out) == os.path.realpath(model):
        raise typer.BadParameter("this is the model itself; choose another name.", param_hint="-o")
    from onnx_gradcam import attach as attach_to  # noqa: PLC0415 - --help must not wait for it

    numbers = {"logit_scale": logit_scale, "logit_bias": logit_bias}
    source = of_texts(model_source(model), choices, prompts, tokenizer, templates, text_embeddings, numbers)
    explained = attach_to(source, engine=engine, check=check, **choices)
    if str(out) == "-":
        _to_stdout(explained.to_proto())
    else:
        explained.save(out)
        _report(out, explained, choices.get("target"), engine)
    for warning in explained.warnings:
        warn(warning)


def _class_input_of(engine: str | None) -> str | None:
    if engine is None:
        return None
    from onnx_gradcam.editor.engines import find_engine  # noqa: PLC0415 - --help must not wait for it

    return find_engine(engine).class_input


def _to_stdout(proto: onnx.ModelProto) -> None:
    from onnx_gradcam.errors import InputError  # noqa: PLC0415 - --help must not wait for it

    if any(len(tensor.external_data) for tensor in proto.graph.initializer):
        raise InputError(
            "the model's weights are stored in another file, which standard output cannot hold; name a file with -o"
        )
    sys.stdout.buffer.write(proto.SerializeToString())
    sys.stdout.buffer.flush()


def _report(out: Path, explained: Explained, target: str | None, engine: str | None) -> None:
    metadata = explained.metadata
    shapes = {str(value.name): _sizes(value) for value in explained.model.core.graph.outputs}
    names = [metadata.heatmap, metadata.cam, metadata.heatmap_class, metadata.attribution, metadata.heatmap_box]
    names += [metadata.completeness, metadata.heatmap_score, metadata.detection_scores, metadata.detection_boxes]
    added = [f"{name} {shape(shapes[name])}" for name in names if name]
    say(f"{out}: the model with the outputs {', '.join(added)} added.")
    chosen = layers(metadata)
    say(f"{chosen[0].upper()}{chosen[1:]}: {explained.reason}.")
    choice = _class_choice(explained, target)
    say(f"Method {metadata.method}, weights {metadata.weights}, score {metadata.score_tensor!r}; {choice}.")
    for name in filter(shapes.__contains__, metadata.layers):
        say(f"Activation maps: output {name!r} {shape(shapes[name])}.")
    stored = {"class names": metadata.labels, "preprocessing": metadata.preprocessing}
    if engine is not None:
        _report_engine(engine, explained)
    names = [name for name, value in stored.items() if value is not None]
    say(
        f"Stored in the model: {' and '.join(names)}." if names else "The model stores no class names or preprocessing."
    )
    if metadata.raised_from is not None:
        opsets = f"opset {metadata.raised_from} to {explained.model.opset}"
        say(f"Raised from {opsets}, in which the explanation is written.")
    if explained.difference is not None:
        say(f"Checked against the original on a random input: largest relative difference {explained.difference:.1g}.")


def _report_engine(name: str, explained: Explained) -> None:
    from onnx_gradcam.editor.engines import find_engine  # noqa: PLC0415 - --help must not wait for it

    engine, profile = find_engine(name), explained.metadata.profile
    tested = f"tested {engine.tested}" if engine.tested else "not tested there"
    advice = f"; {engine.advice}" if engine.advice else ""
    say(f"For {engine.title} ({tested}), with profile {profile}{advice}.".replace("`", "").replace("*", ""))


def _class_choice(explained: Explained, target: str | None) -> str:
    metadata = explained.metadata
    if metadata.class_input:
        box = f", the box by {metadata.box_input!r}" if metadata.box_input else ""
        return f"the class is chosen by the input {metadata.class_input!r}{box}"
    if metadata.all_classes:
        return "all classes are explained at once"
    return "the predicted class is explained" if target is None else f"class {target!r} is explained"


def _sizes(value: Any) -> list[int | str | None] | None:
    return None if value.shape is None else [size if isinstance(size, int) else size.value for size in value.shape]
