"""The options that make a classifier of texts out of a dual encoder, which `attach` and `explain` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import option

if TYPE_CHECKING:
    import onnx

__all__ = ["LogitBias", "LogitScale", "Prompts", "Templates", "TextEmbeddings", "Tokenizer", "of_texts"]

_LARGEST_LIST = 2**20

Prompts = Annotated[
    list[str] | None,
    option(
        "Model",
        "Text to explain the image by, for CLIP-like models: a class of its own. Repeat it for more.",
        "--prompt",
        "--prompts",
        metavar="TEXT",
        show_default=False,
    ),
]
Tokenizer = Annotated[
    Path | None,
    option("Model", "tokenizer.json of a CLIP-like model. [default: the one beside the model]", metavar="FILE"),
]
Templates = Annotated[
    list[str] | None,
    option(
        "Model",
        "Sentence with {} for the prompt, or a .txt file of them; several are averaged.",
        "--template",
        metavar="TEXT|FILE",
        show_default=False,
    ),
]
TextEmbeddings = Annotated[
    Path | None,
    option(
        "Model", "For a vision tower: embeddings of the texts, .npz (embeddings, names) or .npy [K, D].", metavar="FILE"
    ),
]
LogitScale = Annotated[
    float | None, option("Model", "With --text-embeddings: factor of the similarity. [default: 100]", metavar="NUMBER")
]
LogitBias = Annotated[
    float | None, option("Model", "With --text-embeddings: what is added to it. [default: 0]", metavar="NUMBER")
]


def of_texts(
    source: Path | bytes,
    choices: dict[str, Any],
    prompts: list[str] | None,
    tokenizer: Path | None,
    templates: list[str] | None,
    embeddings: Path | None,
    numbers: dict[str, float | None],
) -> Path | bytes | onnx.ModelProto:
    """The model, or the classifier of texts that the options make of it; `choices` lose what names its output."""
    given = {name: value for name, value in numbers.items() if value is not None}
    if embeddings is None:
        flag = next((f"--{name.replace('_', '-')}" for name in given), "")
        if flag:
            raise typer.BadParameter("it is for --text-embeddings; give both.", param_hint=flag)
        if not prompts:
            for name, value in {"--tokenizer": tokenizer, "--template": templates}.items():
                if value:
                    raise typer.BadParameter("it is for prompts; give them with --prompt.", param_hint=name)
            return source
        if tokenizer is None:
            tokenizer = _beside(source)
    elif tokenizer is not None or templates:
        flag = "--tokenizer" if tokenizer is not None else "--template"
        raise typer.BadParameter("the embeddings are computed already; leave it out.", param_hint=flag)
    from onnx_gradcam import text_classifier  # noqa: PLC0415 - --help must not wait for it

    outputs = choices.pop("output", None) or [None]
    if len(outputs) > 1:
        raise typer.BadParameter("texts are compared with one output; name one.", param_hint="--output")
    more: dict[str, Any] = {"templates": _sentences(templates or []), "output": outputs[0], **given}
    return text_classifier(
        source, prompts or None, tokenizer=tokenizer, embeddings=embeddings, image=choices.pop("image", None), **more
    )


def _beside(source: Path | bytes) -> Path:
    """The tokenizer beside a model."""
    path = None if isinstance(source, bytes) else source.parent / "tokenizer.json"
    if path is None or not path.is_file():
        raise typer.BadParameter("there is no tokenizer.json beside the model; name it.", param_hint="--tokenizer")
    return path


def _sentences(templates: list[str]) -> list[str]:
    """The templates, those of files included."""
    from onnx_gradcam.files import read_text  # noqa: PLC0415 - --help must not wait for it

    sentences: list[str] = []
    for one in templates:
        if one.lower().endswith(".txt"):
            lines = read_text(one, _LARGEST_LIST, "a template a line").splitlines()
            sentences += [line.strip() for line in lines if line.strip()]
        else:
            sentences.append(one)
    return sentences
