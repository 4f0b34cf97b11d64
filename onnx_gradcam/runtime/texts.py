"""Texts as classes: make a classifier of K texts out of a dual encoder such as CLIP or SigLIP.

The texts become constants: the text tower runs once, here, and is no part of the classifier, which is an ordinary model
with one score a text, `[N, K]`. Every method, metric, server and page takes it as it is.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_gradcam.editor.origins import read_statements
from onnx_gradcam.editor.targets.score import find_image
from onnx_gradcam.errors import InputError, TargetError, UnsupportedError, near_matches
from onnx_gradcam.files import ModelSource, open_file, read_text
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import node_inputs, reached_from
from onnx_gradcam.graph.read import invalid_models_refused
from onnx_gradcam.metadata import Carried

from .session import Session

__all__ = ["text_classifier"]

Array = npt.NDArray[Any]

_LARGEST_JSON = 2**26
_LONGEST = 4096
"""Tokens; tokenizers without a limit say 10^30."""
_TINY = 1e-12


def text_classifier(
    model: ModelSource,
    texts: Sequence[str] | None = None,
    *,
    tokenizer: str | Path | None = None,
    templates: Sequence[str] = (),
    embeddings: str | Path | Array | None = None,
    output: str | None = None,
    image: str | None = None,
    logit_scale: float = 100.0,
    logit_bias: float = 0.0,
) -> onnx.ModelProto:
    """A classifier whose classes are texts.

    Args:
        model: a dual encoder with `tokenizer`, or a vision tower with `embeddings`.
        texts: the texts, in the order of their classes; they become the class names.
        tokenizer: `tokenizer.json` of a dual encoder; `tokenizer_config.json` and `config.json` beside it say how texts
            are padded. Takes the package tokenizers.
        templates: sentences with `{}` for the text, such as `a photo of a {}.`; the embeddings of a text are averaged
            over them and normalized again (Radford et al. 2021, section 3.1.4).
        embeddings: of the texts, `[K, D]`: an array, a `.npy` file, or a `.npz` file with `embeddings` and, if `texts`
            are not given, `names`. Their length is of no account.
        output: the scores `[N, K]` of a dual encoder, or the embedding `[N, D]` of a vision tower, by default found.
        image: name of the image input, where several could be it.
        logit_scale: with `embeddings`, the factor of the cosine similarity: 100 for CLIP as published.
        logit_bias: what is added to it: SigLIP has one.

    Returns:
        The classifier, weights included, with the names of the classes and the preprocessing that is stored in the
        model or beside it. Its score is the logit, without a softmax over the texts that happen to be given.

    Raises:
        InputError: the texts, the tokenizer or the embeddings cannot be read or used.
        TargetError: the output or the image cannot be determined.
        UnsupportedError: the model takes another number of texts, or its text tower is not apart from the image.
        ModelError: the file is not a usable model, or the text tower does not run.

    Example::

        clip = text_classifier("clip.onnx", ["a dog", "a cat"], tokenizer="tokenizer.json")
        Explainer(clip, method="chefer-last")("photo.jpg", target="a dog").overlay().save("dog.png")
    """
    _check_texts(texts, templates)
    if (embeddings is None) == (tokenizer is None):
        raise InputError("texts are given by a tokenizer or by their embeddings; give one of the two")
    with invalid_models_refused(model):
        loaded = load(model)
        t = Builder(loaded)
        picture = find_image(t, image)
        if tokenizer is not None:
            if texts is None:
                raise InputError("there are no texts to explain the image by; give at least one")
            scores = _folded(t, picture, list(texts), Path(tokenizer), templates or ["{}"], output)
        else:
            matrix, names = _embeddings(embeddings, texts)
            texts = names
            scores = _similarity(t, picture, matrix, output, logit_scale, logit_bias)
        return _alone(loaded, scores, picture, texts, Path(tokenizer).parent if tokenizer is not None else None)


def _check_texts(texts: Sequence[str] | None, templates: Sequence[str]) -> None:
    for kind, given in (("text", texts or ()), ("template", templates)):
        if isinstance(given, str) or not all(isinstance(one, str) and one.strip() for one in given):
            raise InputError(f"a {kind} is {given!r:.80}; give a list of sentences that are not empty")
    repeated = next((one for one in texts or () if list(texts or ()).count(one) > 1), None)
    if repeated is not None:
        raise InputError(f"the text {repeated!r} is given twice; leave one out")
    without = next((one for one in templates if "{}" not in one), None)
    if without is not None:
        raise InputError(f"the template {without!r} has no {{}} for the text; write it where the text goes")


def _alone(
    model: Model, scores: Value, picture: Value, names: Sequence[str] | None, beside: Path | None
) -> onnx.ModelProto:
    """The model with one input and one output, its weights inside, and what is known of it."""
    graph = model.core.graph
    graph.outputs[:] = [scores.core]
    model.remove_unread(list(graph), list(graph.initializers.values()))
    for value in [v for v in graph.inputs if v is not picture.core]:
        if value.uses():
            raise UnsupportedError(
                f"the scores {scores.name!r} need the input {value.name!r} too, which is no text; fix it with --bake "
                "first"
            )
        graph.inputs.remove(value)
    if model.weight_bytes > onnx.checker.MAXIMUM_PROTOBUF:
        raise UnsupportedError(
            f"the image's part has {model.weight_bytes / 1e9:.1f} GB of weights, more than one file holds; export it "
            "in float16"
        )
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), value.const_value.dtype, name=value.name)
    for node in graph:  # sizes of another number of texts
        for result in node.outputs:
            if not result.is_graph_output():
                result.shape = None
    statements = read_statements(model.metadata, model.folder)
    carried = Carried.from_props(model.metadata)
    probabilities = carried.probabilities or ("sigmoid" if _is_siglip(_facts(beside)) else "")
    known = replace(
        carried,
        labels=None if names is None else list(names),
        preprocessing=statements.preprocessing,
        probabilities=probabilities,
        outputs=[],
        image_input=picture.name,
    )
    model.metadata.clear()
    model.metadata.update(known.to_props())
    return model.to_proto()


# ----- embeddings ------------------------------------------------------------


def _embeddings(given: Any, texts: Sequence[str] | None) -> tuple[Array, list[str] | None]:
    """Rows of length one, float64 `[K, D]`, and the names of the texts."""
    names = None if texts is None else list(texts)
    if isinstance(given, (str, Path)):
        try:
            open_file(Path(given)).close()
            stored = np.load(given, allow_pickle=False)
            if not isinstance(stored, np.ndarray):
                own = stored["names"].tolist() if "names" in stored else None
                names, stored = own if names is None else names, stored["embeddings"]
        except (InputError, OSError, ValueError, EOFError, KeyError) as exc:
            raise InputError(
                f"the file {str(given)!r} holds no embeddings of texts ({exc}); write the keys embeddings [K, D] and "
                "names [K] with numpy.savez"
            ) from exc
        given = stored
    matrix = np.asarray(given, np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(f"embeddings of texts are [K, D], and these are {list(matrix.shape)}; give a row a text")
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > _TINY).all()):
        raise InputError("an embedding of a text is zero or not finite; compute it again")
    if names is not None and len(names) != len(matrix):
        raise InputError(f"there are {len(matrix)} embeddings and {len(names)} texts; give a name for each")
    if names is not None:
        _check_texts([str(name) for name in names], ())
    return matrix / length, None if names is None else [str(name) for name in names]


def _similarity(t: Builder, picture: Value, matrix: Array, output: str | None, scale: float, bias: float) -> Value:
    """Append the scaled cosine similarity of the image's embedding to each text, `[N, K]`."""
    if not (np.isfinite([scale, bias]).all() and scale > 0):
        raise InputError(f"the scale of logits is {scale} and their bias {bias}; give a positive and a finite number")
    late = reached_from(t.nodes, [picture.core], _always)
    width = matrix.shape[1]
    outputs = {str(v.name): t.wrap(v) for v in t.graph.outputs if v in late}
    fitting = {n: v for n, v in outputs.items() if v.is_float and v.rank == 2 and v.shape[1] in {width, None}}
    fitting |= {n: v for n, v in outputs.items() if v.is_float and v.rank == 2 and isinstance(v.shape[1], str)}
    name = output or ("image_embeds" if "image_embeds" in fitting else next(iter(fitting), ""))
    if output is not None and output not in fitting:
        near = near_matches(output, fitting) or f"; it could be {', '.join(fitting)}"
        raise TargetError(f"the output {output!r} is no embedding [N, {width}] of the image{near}")
    if not name or (output is None and len(fitting) > 1 and name != "image_embeds"):
        raise TargetError(
            f"which output embeds the image as [N, {width}], as the texts are, cannot be told (outputs: "
            f"{', '.join(outputs)}); name it with --output"
        )
    embedding = fitting[name]
    length = t.op("Max", t.reduce("ReduceL2", embedding, [1]), _TINY)
    weights = t.const((scale * matrix.T).astype(embedding.dtype))
    scores = (embedding / length) @ weights
    shown = "text_scores" if t.taken("logits_per_image") else "logits_per_image"
    return t.output(scores + bias if bias else scores, shown)


# ----- dual encoders ---------------------------------------------------------


def _folded(
    t: Builder, picture: Value, texts: list[str], tokenizer: Path, templates: Sequence[str], output: str | None
) -> Value:
    """Replace what depends on the texts alone by its values; the scores, `[N, K]`."""
    inputs = [v for v in map(t.wrap, t.graph.inputs) if v is not picture]
    late, early = (
        reached_from(t.nodes, [picture.core], _always),
        reached_from(t.nodes, [v.core for v in inputs], _always),
    )
    if not inputs:
        raise TargetError(
            f"{picture.name!r} is the model's only input, so it takes no texts; give their embeddings with "
            "--text-embeddings"
        )
    scores = _scores(t, [v for v in t.graph.outputs if v in late and v in early], output)
    read = _needed(t.nodes, [scores.core])
    border = {v for node in read if any(o in late for o in node.outputs) for v in node_inputs(node)}
    constant = [v for node in t.nodes for v in node.outputs if v in border and v in early and v not in late]
    sizes = {v.shape[0] for v in inputs if v.known_shape} - {None}
    if len(sizes) == 1 and isinstance(count := next(iter(sizes)), int) and count != len(texts):
        raise UnsupportedError(
            f"the model takes {count} texts at once, and {len(texts)} are given; give {count}, or export it with a "
            "free number of texts"
        )
    part = _part(t, inputs, constant)
    session = Session(part.SerializeToString(), folder=t.model.folder)
    words = _Words(tokenizer, inputs)
    runs = [session.run(words.feeds([one.replace("{}", text) for text in texts])) for one in templates]
    if len(runs) > 1:
        values = _averaged(constant, [[run[str(v.name)] for v in constant] for run in runs], len(texts))
    else:
        values = [runs[0][str(v.name)] for v in constant]
    t.graph.outputs[:] = [scores.core]
    for value, array in zip(constant, values, strict=True):
        ir.convenience.replace_all_uses_with(value, t.const(array).core)
    batch = scores.shape[0] if scores.known_shape else None
    if scores.known_shape is not None and isinstance(scores.shape[-1], int) and scores.shape[-1] != len(texts):
        raise TargetError(f"the output {scores.name!r} has no score for each text; name another with --output")
    scores.core.shape = ir.Shape([batch, len(texts)])
    return scores


def _always(node: ir.Node, value: ir.Value) -> bool:  # noqa: ARG001 - a node may depend on an input in whatever way
    return True


def _needed(nodes: Sequence[ir.Node], values: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that some tensors are computed by, in order."""
    needed, kept = set(values), []
    for node in reversed(nodes):
        if any(o in needed for o in node.outputs):
            kept.append(node)
            needed.update(node_inputs(node))
    return kept[::-1]


def _scores(t: Builder, outputs: Sequence[ir.Value], named: str | None) -> Value:
    """The output with a score for each image and text."""
    values = {str(v.name): t.wrap(v) for v in outputs}
    name = named or ("logits_per_image" if "logits_per_image" in values else next(iter(values), ""))
    if name not in values or (named is None and len(values) > 1 and name != "logits_per_image"):
        shown = ", ".join(str(v.name) for v in t.graph.outputs)
        raise TargetError(
            f"which output scores images by texts cannot be told (outputs: {shown}); name it with --output, or give "
            "embeddings of the texts with --text-embeddings"
        )
    return values[name]


def _part(t: Builder, inputs: Sequence[Value], results: Sequence[ir.Value]) -> onnx.ModelProto:
    """The part of the model that computes some tensors from the texts."""
    whole = t.model.to_proto()
    nodes = _needed(t.nodes, results)
    names = {str(o.name) for node in nodes for o in node.outputs}
    read = {str(v.name) for node in nodes for v in node_inputs(node)}
    part = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import, functions=whole.functions)
    part.graph.name = "texts"
    part.graph.node.extend(node for node in whole.graph.node if names.intersection(node.output))
    part.graph.initializer.extend(one for one in whole.graph.initializer if one.name in read)
    given = {v.name for v in inputs}
    part.graph.input.extend(info for info in whole.graph.input if info.name in given & read)
    for value in results:
        part.graph.output.append(onnx.helper.make_tensor_value_info(str(value.name), t.wrap(value).elem_type, None))
    return part


def _averaged(tensors: Sequence[ir.Value], runs: Sequence[Sequence[Array]], count: int) -> list[Array]:
    """The embeddings averaged over runs, each normalized before and after; there has to be one tensor of them."""
    changing = [i for i in range(len(tensors)) if any(not np.array_equal(r[i], runs[0][i]) for r in runs)]
    axes = [i for i, size in enumerate(runs[0][changing[0]].shape) if size == count] if len(changing) == 1 else []
    if len(axes) != 1 or runs[0][changing[0]].ndim != 2:
        raise UnsupportedError(
            "where the model holds the embeddings of texts cannot be told, so they cannot be averaged over templates; "
            "give one template"
        )
    stacked = np.stack([np.moveaxis(run[changing[0]], axes[0], 0).astype(np.float64) for run in runs])
    length = np.linalg.norm(stacked, axis=2, keepdims=True)
    if np.ptp(length) > 1e-2 * length.mean():
        raise UnsupportedError(
            "the embeddings of texts are not of one length where the image meets them, so they cannot be averaged over "
            "templates; give one template"
        )
    mean = (stacked / length).mean(0)
    mean *= length.mean() / np.linalg.norm(mean, axis=1, keepdims=True)
    values = list(runs[0])
    values[changing[0]] = np.moveaxis(mean, 0, axes[0]).astype(runs[0][changing[0]].dtype)
    return values


# ----- tokens ----------------------------------------------------------------


def _facts(folder: Path | None) -> dict[str, Any]:
    """What `config.json` and `tokenizer_config.json` in a folder say, the latter first."""
    facts: dict[str, Any] = {}
    for name in ("config.json", "tokenizer_config.json"):
        path = None if folder is None else folder / name
        if path is not None and path.is_file():
            try:
                said = json.loads(read_text(path, _LARGEST_JSON, "a JSON object"))
            except (InputError, ValueError) as exc:
                raise InputError(f"the file {str(path)!r} cannot be read ({exc}); repair or remove it") from exc
            facts |= said if isinstance(said, dict) else {}
    return facts


def _is_siglip(facts: Mapping[str, Any]) -> bool:
    return any(str(facts.get(key, "")).lower().startswith("siglip") for key in ("model_type", "tokenizer_class"))


class _Words:
    """Makes the text inputs of a model from sentences, as the model's own tokenizer does."""

    def __init__(self, path: Path, inputs: Sequence[Value]) -> None:
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415 - an optional dependency
        except ImportError as exc:
            raise InputError(
                "reading a tokenizer takes the package tokenizers: pip install tokenizers, or give the "
                "tokens with --bake"
            ) from exc
        text = read_text(path, _LARGEST_JSON, "a tokenizer")
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as exc:  # it raises nothing narrower
            raise InputError(f"the file {str(path)!r} is no tokenizer.json ({exc}); take the one of the model") from exc
        self._facts = _facts(path.parent)
        self._inputs = {_role(v): v for v in inputs}
        unknown = self._inputs.get("")
        if unknown is not None or "ids" not in self._inputs:
            names = ", ".join(repr(v.name) for v in inputs)
            raise TargetError(f"which of the inputs {names} take tokens cannot be told; give them with --bake")
        self._length = self._fixed_length()
        if self._length:
            self._tokenizer.enable_truncation(self._length)

    def _fixed_length(self) -> int:
        """To how many tokens texts are padded; 0 for the longest of them, which a mask or causal attention allows."""
        ids = self._inputs["ids"]
        declared = ids.shape[1] if ids.known_shape is not None and ids.rank == 2 else None
        padding = self._tokenizer.padding or {}
        text = self._facts.get("text_config") or {}
        said = [declared, padding.get("length"), self._facts.get("model_max_length")]
        said.append(text.get("max_position_embeddings") if isinstance(text, dict) else None)
        length = next((int(n) for n in said if isinstance(n, (int, float)) and 0 < n <= _LONGEST), 0)
        if not length and "mask" not in self._inputs:
            raise InputError(
                "to what length texts are padded is not said; put tokenizer_config.json of the model beside its "
                "tokenizer.json"
            )
        return length

    def _pad(self) -> int:
        padding = self._tokenizer.padding
        if padding:
            return int(padding["pad_id"])
        token = self._facts.get("pad_token") or ""
        number = self._tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token)
        if number is None and "mask" not in self._inputs:
            raise InputError(
                "what texts are padded with is not said; put tokenizer_config.json of the model beside its "
                "tokenizer.json"
            )
        return number or 0

    def feeds(self, texts: Sequence[str]) -> dict[str, Array]:
        """The values of the text inputs, `[K, tokens]` each."""
        encoded = [self._tokenizer.encode(self._plain(text)) for text in texts]
        rows = [[number for number, kept in zip(one.ids, one.attention_mask, strict=True) if kept] for one in encoded]
        length = self._length or max(map(len, rows))
        ids = np.full((len(rows), length), self._pad(), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        places = np.broadcast_to(np.arange(length), ids.shape)
        made = {"ids": ids, "mask": mask, "places": places, "types": np.zeros_like(ids)}
        return {v.name: made[role].astype(v.dtype) for role, v in self._inputs.items()}

    def _plain(self, text: str) -> str:
        """A text as SigLIP was trained on: without capitals, and the first version without punctuation."""
        if not _is_siglip(self._facts):
            return text
        text = text.lower()
        if str(self._facts.get("tokenizer_class", "")).startswith("SiglipTokenizer"):
            text = text.translate(str.maketrans("", "", string.punctuation))
        return " ".join(text.split())


def _role(value: Value) -> str:
    """What a text input takes, by its name; empty if unknown."""
    name = value.name.lower()
    if value.dtype is None or value.dtype.kind not in "iub":
        return ""
    roles = {"mask": "mask", "position": "places", "type": "types", "ids": "ids", "text": "ids", "token": "ids"}
    return next((role for word, role in roles.items() if word in name), "")
