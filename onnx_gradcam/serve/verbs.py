"""The verbs `predict` and `explain`: what clients of KServe's V1 protocol and of Vertex AI send and read, and images.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol; ExplainResponse and Attribution in
googleapis, google/cloud/aiplatform/v1/prediction_service.proto and explanation.proto.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from email.parser import HeaderParser
from typing import Any, Final

import numpy as np
import orjson

from onnx_gradcam.errors import ServerError, near_matches, reason
from onnx_gradcam.feeds import Input

from .answering import IMAGES, image_outputs
from .query import Query, Result, Tensor, check_counts, datatype_of
from .service import Served

__all__ = ["Accepted", "accepted", "explained_image", "image_query", "predicted", "read_json"]

_MAX_CONTAINERS: Final = 1 << 18
"""Lists and objects in a body: once parsed, each takes fifty times its two bytes."""
_MAX_PARTS: Final = 16
_MAX_PART_HEAD: Final = 4096
_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")
_JSON, _PNG, _NUMPY = "application/json", "image/png", "application/x-npy"
_INPUT: Final = "image"
"""The key of an image in an instance, and of what is attributed to it."""
_FEEDS: Final = "feeds"
"""The key of the values of a model's other inputs in an instance."""
_EXPLAIN: Final = "explain"
"""The parameter of `predict` that puts the explanation into each prediction."""

Accepted = str


def read_json(body: bytes | memoryview, most: int = _MAX_CONTAINERS) -> dict[str, Any]:
    """Parse a JSON object, with a bound on lists and objects.

    Raises:
        ServerError: it is no JSON, no object, or has too many of them.
    """
    whole = bytes(body)
    if whole.count(b"[") + whole.count(b"{") > most:
        raise ServerError(f"the body has more than {most} lists and objects; send flat lists")
    try:
        document = orjson.loads(whole)
    except orjson.JSONDecodeError as error:
        raise ServerError(f"the body is not JSON ({reason(error, 120)})") from error
    if not isinstance(document, dict):
        raise ServerError("the body is not an object; send a JSON object")
    return document


def predicted(model: Served, body: bytes, *, explain: bool) -> bytes:
    """Answer `{"instances": [...], "parameters": {...}}`, with explanations or without."""
    with model.stage("parse"):
        document = read_json(body)
        instances = document.get("instances", document.get("inputs"))
        if not isinstance(instances, list) or not instances:
            raise ServerError("'instances' is missing or empty; send a list of images as {'image': {'b64': '...'}}")
        parameters = document.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ServerError("'parameters' is not an object")
        check_counts(parameters=parameters)
        parameters = dict(parameters)
        inside = parameters.pop(_EXPLAIN, False)
        if not isinstance(inside, bool):
            raise ServerError(f"the parameter {_EXPLAIN!r} is {str(inside)[:40]!r}; send true or false")
        if len(instances) > model.limits.rows:
            raise ServerError(
                f"{len(instances)} instances exceed the limit of {model.limits.rows} heatmaps per request; send "
                "several requests",
                413,
            )
        images, feeds = [_image(one) for one in instances], _feeds(model, instances)
    return _answered(model, images, parameters, feeds, explain=explain, inside=inside)


def explained_image(model: Served, images: list[bytes], parameters: Mapping[str, Any], kind: Accepted) -> bytes:
    """Answer image files: a document as of `predicted`, the overlay of the first map, or all heatmaps for NumPy."""
    if kind == _JSON:
        return _answered(model, images, parameters, [], explain=True, inside=False)
    results = model.answer(_query(images, parameters, ["overlay_png" if kind == _PNG else "heatmap"]))
    with model.stage("encode"):
        if kind == _PNG:
            return b"".join(one for one in results[0].data[:1] if isinstance(one, bytes))
        file = io.BytesIO()
        np.save(file, results[0].data, allow_pickle=False)
        return file.getvalue()


def accepted(header: str) -> Accepted:
    """The kind of answer that an Accept header asks for: JSON, PNG or NumPy; the first that is known.

    Raises:
        ServerError: none of them, status 406.
    """
    for one in header.split(",")[:32]:
        kind = one.partition(";")[0].strip().lower()
        if kind in (_PNG, "image/*"):
            return _PNG
        if kind in (_NUMPY, "application/octet-stream"):
            return _NUMPY
        if kind in (_JSON, "application/*", "*/*", ""):
            return _JSON
    raise ServerError(f"the answer is {_JSON}, {_PNG} or {_NUMPY}; ask for one of them with Accept", 406)


def image_query(body: bytes, content_type: str, fields: Mapping[str, str]) -> tuple[list[bytes], dict[str, Any]] | None:
    """The images and parameters of a form with files `image`, or of a body that is an image file; `None` for others."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images, texts = _form(body, content_type)
        return images, _parameters({**fields, **texts})
    if kind.startswith("image/") or body.startswith(_SIGNATURES):
        return [body], _parameters(fields)
    return None


def _answered(
    model: Served,
    images: list[bytes],
    parameters: Mapping[str, Any],
    feeds: Sequence[Tensor],
    *,
    explain: bool,
    inside: bool,
) -> bytes:
    outputs = [name for name in image_outputs(model.explainer.metadata) if not name.endswith("png")]
    unused = {"heatmap", *(() if explain or inside else ("cam", "overlay_jpeg"))}
    results = model.answer(_query(images, parameters, [name for name in outputs if name not in unused], feeds))
    with model.stage("encode"):
        document = _document(model, results, len(images))
        explanations = document.pop("explanations")
        if inside:
            for prediction, explanation in zip(document["predictions"], explanations, strict=True):
                prediction["explanation"] = explanation
        if explain:
            document["explanations"] = explanations
        return bytes(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def _query(
    images: list[bytes], parameters: Mapping[str, Any], outputs: list[str], feeds: Sequence[Tensor] = ()
) -> Query:
    return Query([Tensor(IMAGES, "BYTES", [len(images)], images), *feeds], parameters, outputs)


def _feeds(model: Served, instances: Sequence[Any]) -> list[Tensor]:
    """The values of other inputs in the instances, `{"image": ..., "feeds": {"table": [1, 2]}}`, one row for each."""
    given = [one.get(_FEEDS, {}) if isinstance(one, dict) else {} for one in instances]
    if any(not isinstance(one, dict) or one.keys() != given[0].keys() for one in given):
        raise ServerError(f"{_FEEDS!r} is no object, or names other inputs in one instance than in another")
    others, tensors = model.others, []
    for name in given[0]:
        if name not in others:
            raise ServerError(f"the model has no other input {name[:99]!r} to feed{near_matches(name[:99], others)}")
        tensors.append(_fed(name, [one[name] for one in given], others[name]))
    return tensors


def _fed(name: str, values: list[Any], info: Input) -> Tensor:
    """Values of an input, one of each instance, as a tensor; an input without rows takes a value they all have."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ServerError(f"the values for {name[:99]!r} are no array ({reason(error, 120)})") from error
    if array.dtype.kind not in "fiub":
        raise ServerError(f"the values for {name[:99]!r} are not numbers; send numbers or nested lists")
    if array.ndim == len(info.shape) + 1 and (array.shape[1:2] == (1,) or (array == array[:1]).all()):
        array = array.squeeze(1) if array.shape[1:2] == (1,) else array[0]
    return Tensor(name, datatype_of(info.dtype), list(array.shape), array.reshape(-1).tolist())


def _document(model: Served, results: list[Result], count: int) -> dict[str, Any]:
    """Predictions and explanations, one per image; of each the surest class comes first."""
    data = {result.name: result.data for result in results}
    predictions: list[dict[str, Any]] = [{"scores": row} for row in data["scores"]]
    explanations: list[dict[str, Any]] = [{"attributions": []} for _ in range(count)]
    order = np.argsort(-np.nan_to_num(np.asarray(data["score"]), nan=-np.inf), kind="stable")
    for row in order.tolist():
        prediction, index = predictions[int(data["image"][row])], int(data["heatmap_class"][row])
        if "label" not in prediction:
            prediction |= {"class": index, "label": data["label"][row], "score": data["score"][row]}
        if "box_index" in data:
            place = {"box": data["box"][row]} if "box" in data else {}
            found = {"class": index, "label": data["label"][row], "score": data["score"][row], **place}
            prediction.setdefault("detections", []).append({**found, "box_index": data["box_index"][row]})
        if "cam" in data:
            explanations[int(data["image"][row])]["attributions"].append(_attribution(model, data, row, index))
    return {"predictions": predictions, "explanations": explanations}


def _attribution(model: Served, data: Mapping[str, Any], row: int, index: int) -> dict[str, Any]:
    """Vertex's Attribution: its readers take no other keys; inside an input's entry there may be more."""
    image = {
        "b64_jpeg": base64.b64encode(data["overlay_jpeg"][row]).decode(),
        "cam": data["cam"][row],
        "heatmap_class": index,
    }
    return {
        "baselineOutputValue": model.baseline(index),
        "instanceOutputValue": data["score"][row],
        "outputIndex": [index],
        "outputDisplayName": data["label"][row],
        "outputName": "scores",
        "featureAttributions": {_INPUT: image},
    }


def _image(instance: Any) -> bytes:
    """The image file of an instance: `{"image": {"b64": "..."}}`, or `{"b64": "..."}` alone."""
    inner = instance.get(_INPUT, instance) if isinstance(instance, dict) else None
    text = inner.get("b64") if isinstance(inner, dict) else None
    if not isinstance(text, str):
        raise ServerError("an instance is not an image; send each as {'image': {'b64': '...'}}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServerError(f"'b64' is not base64 ({reason(error)}); encode the image file") from error


def _parameters(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parameters as text: the index of a box is a number, and several classes are separated by commas."""
    parameters: dict[str, Any] = dict(texts)
    box, target = parameters.get("box", ""), parameters.get("target", "")
    if box.isascii() and box.isdigit() and len(box) < 19:
        parameters["box"] = int(box)
    if "," in target and not target.lstrip().startswith("["):
        parameters["target"] = [one.strip() for one in target.split(",")]
    return parameters


def _form(body: bytes, content_type: str) -> tuple[list[bytes], dict[str, str]]:
    """The files `image` and the other fields of `multipart/form-data` (RFC 7578), which only their boundary bounds."""
    boundary = HeaderParser().parsestr(f"Content-Type: {content_type}\n\n").get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise ServerError("the form has no valid boundary in its Content-Type; let the client make it, as curl -F does")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), _MAX_PARTS + 2)
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        more = len(parts) > _MAX_PARTS
        problem = f"has more than {_MAX_PARTS} parts" if more else "is truncated: its last boundary is missing"
        raise ServerError(f"the form {problem}; send a file named 'image'")
    images, texts = [], {}
    for part in parts[1:-1]:
        head, blank, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not blank or len(head) > _MAX_PART_HEAD:
            raise ServerError("a part of the form has no header, or one that is too long; send a file named 'image'")
        disposition = HeaderParser().parsestr(head.decode("utf-8", "replace"))
        name = disposition.get_param("name", header="content-disposition")
        if name == "image":
            images.append(content)
        elif isinstance(name, str) and len(content) <= _MAX_PART_HEAD:
            texts[name] = content.decode("utf-8", "replace")
        else:
            raise ServerError("a field of the form has no name, or is too long; send a file named 'image'")
    if not images:
        raise ServerError("the form has no file named 'image'; send it with curl -F image=@photo.jpg")
    return images, texts
