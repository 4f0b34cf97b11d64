"""Damaged models, images, requests and framework files, from a seed, and what may come of them.

A case is a kind and a number, and is the same on every computer. It may end in the project's own error, with nothing
written, or in a right result. Another exception, a file left behind, a crash, or more than 20 seconds is a fault.
`python tests/support/fuzzing.py --models 5000 --others 2000` runs as many as you like, in processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20
"""The longest that a case may take."""

MEMORY = 8 << 30
"""Bytes of address space of the process that runs cases, so that a fault cannot take the computer down."""

PREPROCESS = {"size": [8, 8], "resize": "stretch", "scale": 1 / 255}
NUMBERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 5, 17, 255, 4096, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
OPERATORS = (
    "Relu",
    "Conv",
    "MaxPool",
    "Reshape",
    "Concat",
    "Gather",
    "Softmax",
    "Nope",
    "",
    "Slice",
    "Pad",
    "Loop",
    "If",
)
WORDS = ("", "x", "y", "ä", "a" * 3000, "../x", "\0", "0", "-1", "nan", "[", "{}", "null", "true", "1e999", "[[[[")


# ----- models ----------------------------------------------------------------


@cache
def sources() -> list[bytes]:
    """Small models of several kinds, one of them explained, as bytes."""
    from support.graphs import graph, vit

    from onnx_gradcam.editor.attachment import attach

    plain = graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) b = BatchNormalization(c, s, o, m, v) a = Relu(b)"
        "q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) p = GlobalAveragePool(q) f = Flatten(p) l = Gemm(f, W)"
        "y = Softmax(l)",
        K=(6, 3, 3, 3),
        W=(6, 4),
        s=(6,),
        o=(6,),
        m=(6,),
        v=np.full(6, 0.5, np.float32),
    )
    shapes = graph(
        "c = Conv(x, K) a = Clip(c, zero, six) n = Shape(a) b = Slice(n, i0, i1) d = Concat<axis=0>(b, minus)"
        "p = AveragePool<kernel_shape=[6,6]>(a) f = Reshape(p, d) y = MatMul(f, W)",
        K=(6, 3, 3, 3),
        W=(6, 4),
        zero=np.float32(0),
        six=np.float32(6),
        i0=[0],
        i1=[1],
        minus=[-1],
    )
    function = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18, "own" : 1]> g (float[N,3,8,8] x) => (float[N,4] y) {'
        "a = own.block(x, K) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W) }"
        '<domain: "own", opset_import: ["" : 18]> block (x, k) => (z) { c = Conv(x, k) z = own.twice(c) }'
        '<domain: "own", opset_import: ["" : 18]> twice (x) => (z) { c = Relu(x) z = Add(c, c) }'
    )
    function.opset_import.add(domain="own", version=1) if len(function.opset_import) < 2 else None
    function.functions[0].opset_import.add(domain="own", version=1)
    function.graph.initializer.extend(t for t in plain.graph.initializer if t.name in {"K", "W"})
    explained = attach(plain, preprocess=PREPROCESS, labels=["a", "b", "c", "d"]).to_proto()
    return [m.SerializeToString() for m in (plain, shapes, function, vit(), explained)]


def damaged_model(rng: random.Random) -> bytes:
    """A model with damage to bytes, attributes, sizes, functions, metadata or names."""
    data = rng.choice(sources())
    ways = (in_bytes, in_attributes, in_sizes, in_functions, in_metadata, in_names)
    way = rng.choice(ways)
    if way is in_bytes:
        return in_bytes(rng, data)
    proto = onnx.load_model_from_string(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        way(rng, proto)
    return proto.SerializeToString()


def in_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, inserted, removed, repeated or cut off."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, size = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 16))
        way = rng.randrange(5)
        if way == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            content[at : at + size] = rng.randbytes(size)
        elif way == 2:
            del content[at : at + size]
        elif way == 3:
            content[at:at] = content[at : at + size]
        elif rng.random() < 0.2:
            del content[at:]
    return bytes(content)


def nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [*proto.graph.node, *(node for function in proto.functions for node in function.node)]


def in_attributes(rng: random.Random, proto: onnx.ModelProto) -> None:
    node = rng.choice(nodes(proto))
    if not node.attribute or rng.random() < 0.2:
        name = rng.choice(("axis", "axes", "pads", "strides", "perm", "kernel_shape", "group", "to", "auto_pad", "k"))
        value = rng.choice(([rng.choice(NUMBERS)] * rng.randrange(1, 5), rng.choice(NUMBERS), 0.5, "SAME", [0.5]))
        node.attribute.append(onnx.helper.make_attribute(name, value))
        return
    attribute = rng.choice(node.attribute)
    way = rng.randrange(6)
    if way == 0 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif way == 1:
        attribute.ints.extend(rng.choice(NUMBERS) for _ in range(rng.randrange(1, 4)))
    elif way == 2:
        del attribute.ints[:]
    elif way == 3:
        attribute.i = rng.choice(NUMBERS)
    elif way == 4:
        attribute.type = rng.choice(onnx.AttributeProto.AttributeType.values())
    else:
        attribute.name = rng.choice(("", "axis", "pads", "group", "dilations", "unknown"))


def in_sizes(rng: random.Random, proto: onnx.ModelProto) -> None:
    way = rng.randrange(5)
    tensor = rng.choice(proto.graph.initializer)
    info = rng.choice([*proto.graph.input, *proto.graph.output])
    dims = info.type.tensor_type.shape.dim
    if way == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif way == 1:
        tensor.data_type = rng.choice((0, 1, 2, 7, 8, 9, 10, 11, 16, 21, 99))
    elif way == 2 and dims:
        dims[rng.randrange(len(dims))].dim_value = rng.choice(NUMBERS)
    elif way == 3:
        info.type.tensor_type.elem_type = rng.choice((0, 1, 2, 6, 7, 8, 9, 10, 11, 16, 99))
    elif rng.random() < 0.5:
        dims.add().dim_value = rng.choice(NUMBERS)
    else:
        del dims[rng.randrange(3) :]


def in_functions(rng: random.Random, proto: onnx.ModelProto) -> None:
    way = rng.randrange(6)
    if not proto.functions:
        node = rng.choice(proto.graph.node)
        function = proto.functions.add(name=node.op_type, domain=rng.choice(("", "own", "com.microsoft")))
        function.input.extend(node.input[: rng.randrange(4)])
        function.output.extend(node.output)
        function.node.append(node)
        function.opset_import.add(domain="", version=rng.choice((1, 6, 18, 99)))
        return
    function = rng.choice(proto.functions)
    if way == 0:
        function.node.add(
            op_type=rng.choice([f.name for f in proto.functions]), domain="own", input=["x"], output=["r"]
        )
    elif way == 1 and function.input:
        del function.input[rng.randrange(len(function.input)) :]
    elif way == 2:
        function.output.append(rng.choice(("x", "nowhere", "")))
    elif way == 3:
        function.name = rng.choice(WORDS)
    elif way == 4:
        del function.opset_import[:]
    else:
        proto.functions.append(function)


def in_metadata(rng: random.Random, proto: onnx.ModelProto) -> None:
    prefix = "onnx_gradcam."
    if not proto.metadata_props or rng.random() < 0.2:
        names = ("heatmap", "labels", "preprocessing", "layers", "framework", "task", "outputs", "image_input")
        proto.metadata_props.add(key=prefix + rng.choice(names), value=rng.choice(WORDS))
        return
    at = rng.randrange(len(proto.metadata_props))
    entry = proto.metadata_props[at]
    way = rng.randrange(3)
    if way == 0:
        entry.value = rng.choice((*WORDS, *(i.name for i in (*proto.graph.input, *proto.graph.output)), "NHWC"))
    elif way == 1:
        del proto.metadata_props[at]
    else:
        with contextlib.suppress(UnicodeDecodeError):
            entry.value = in_bytes(rng, entry.value.encode()).decode("utf-8", "ignore")


def in_names(rng: random.Random, proto: onnx.ModelProto) -> None:
    """Tensors, operators and opsets renamed, left out or doubled."""
    graph, way = proto.graph, rng.randrange(9)
    node = rng.choice(nodes(proto))
    names = [name for n in nodes(proto) for name in (*n.input, *n.output)]
    if way == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice((*names, *WORDS))
    elif way == 1 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice((*names, *WORDS))
    elif way == 2:
        node.op_type = rng.choice(OPERATORS)
    elif way == 3:
        node.domain = rng.choice(("ai.onnx", "com.microsoft", "own", "ai.onnx.ml", "\0"))
    elif way == 4 and graph.node:
        del graph.node[rng.randrange(len(graph.node))]
    elif way == 5:
        proto.opset_import[0].version = rng.choice((0, 1, 6, 7, 9, 11, 13, 26, 99, -1))
    elif way == 6:
        graph.output[rng.randrange(len(graph.output))].name = rng.choice((*names, *WORDS))
    elif way == 7 and graph.initializer:
        del graph.initializer[rng.randrange(len(graph.initializer))]
    elif node.input:
        del node.input[rng.randrange(len(node.input)) :]


def use_model(rng: random.Random, folder: Path) -> bool:
    """Inspect, attach and explain; whether there was a result."""
    from onnx_gradcam import Explainer, attach, inspect
    from onnx_gradcam.errors import ExplainError

    path, target = folder / "model.onnx", folder / "out" / "explained.onnx"
    path.write_bytes(damaged_model(rng))
    with contextlib.suppress(ExplainError):
        inspect(path)
    with contextlib.suppress(ExplainError):
        attach(path, check=True).save(target)
    opened = target if target.exists() else path
    try:
        explainer = Explainer(opened, preprocess=PREPROCESS)
        explanation = explainer(np.full((12, 10, 3), 99, np.uint8))
    except ExplainError:
        return target.exists()
    heatmap = explanation.heatmap
    assert np.isfinite(heatmap).all(), "a heatmap with NaN"
    assert heatmap.min() >= 0, "a heatmap below 0"
    assert heatmap.max() <= 1.0001, "a heatmap above 1"
    return True


# ----- images, metadata, requests --------------------------------------------


@cache
def explainer() -> Any:
    from onnx_gradcam import Explainer

    return Explainer(sources()[4])


@cache
def pictures() -> list[bytes]:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    coded = [cv2.imencode(ending, pixels)[1].tobytes() for ending in (".png", ".jpg", ".webp", ".bmp", ".ppm", ".tiff")]
    # An orientation, as cameras write it.
    exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    return [*coded, coded[1][:2] + exif + coded[1][2:]]


def use_image(rng: random.Random, folder: Path) -> bool:
    """Explain a damaged image, by its bytes and by its path."""
    from onnx_gradcam.errors import ExplainError

    data = in_bytes(rng, rng.choice(pictures()))
    path = folder / "image.png"
    path.write_bytes(data)
    results = []
    for source in (data, path):
        with contextlib.suppress(ExplainError):
            results.append(explainer()(source))
    assert len(results) in {0, 2}, "bytes and file differ"
    return bool(results)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    if depth < 3 and rng.random() < 0.3:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 3 and rng.random() < 0.2:
        return {rng.choice(WORDS): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice((*NUMBERS, *WORDS, True, False, None, 0.5, 1e308, -0.0, "rgb", "bgr", "stretch"))


def changed(rng: random.Random, document: Any) -> Any:
    """A JSON document with one value somewhere in it changed, removed, doubled or renamed."""
    if isinstance(document, dict) and document and rng.random() < 0.85:
        key = rng.choice(list(document))
        way = rng.random()
        if way < 0.75:
            return document | {key: changed(rng, document[key])}
        if way < 0.9:
            return {k: v for k, v in document.items() if k != key}
        return {(rng.choice(WORDS) if k == key else k): v for k, v in document.items()}
    if isinstance(document, list) and document and rng.random() < 0.85:
        at = rng.randrange(len(document))
        if rng.random() < 0.8:
            return [*document[:at], changed(rng, document[at]), *document[at + 1 :]]
        return [*document[:at], *document[at + 1 :]] if rng.random() < 0.5 else [*document, document[at]]
    if isinstance(document, str) and rng.random() < 0.5:
        return document + rng.choice(WORDS)
    return value(rng)


def use_description(rng: random.Random, folder: Path) -> bool:
    """Use a damaged description of the preprocessing, and a damaged label file."""
    from onnx_gradcam import Explainer
    from onnx_gradcam.errors import ExplainError

    whole = {"size": [8, 8], "resize": "short_crop", "short": 9, "color": "bgr", "scale": 0.1, "mean": [1, 2, 3]}
    description = changed(rng, whole | {"std": [1, 2, 3]})
    labels = folder / "labels.txt"
    names = rng.choice((b"a\nb\nc\nd\n", json.dumps({"0": "a", "1": "b", "2": "c", "3": "d"}).encode(), b"a,b,c,d"))
    labels.write_bytes(in_bytes(rng, names))
    try:
        opened = Explainer(sources()[0], preprocess=description, labels=rng.choice((None, labels)))
        opened(np.full((12, 10, 3), 99, np.uint8))
    except ExplainError:
        return False
    return True


def use_request(rng: random.Random, folder: Path) -> bool:
    """Answer a damaged request; through the REST parser as well, where the server is installed."""
    from onnx_gradcam.errors import ExplainError
    from onnx_gradcam.serve.answering import Answerer
    from onnx_gradcam.serve.limits import Limits
    from onnx_gradcam.serve.query import Query, Tensor

    entries = [
        {"name": "x", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192},
        {"name": "target_class", "datatype": "INT64", "shape": [1], "data": [2]},
    ]
    if rng.random() < 0.5:
        coded = in_bytes(rng, rng.choice(pictures())).hex()
        entries = [{"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [coded]}]
    document = {"inputs": entries, "outputs": [{"name": "heatmap"}], "parameters": {"target": 1}, "id": "7"}
    for _ in range(rng.choice((0, 1, 1, 2))):
        document = changed(rng, document)
    answerer = Answerer(explainer(), Limits())
    try:
        with contextlib.suppress(ImportError):
            from onnx_gradcam.serve import rest

            answerer.answer(rest._parsed(in_bytes(rng, json.dumps(document).encode()))[1])
        if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
            return False
        # The transports check the kinds of these members before they make tensors.
        entries = [e for e in document["inputs"] if isinstance(e, dict) and isinstance(e.get("data"), list)]
        entries = [e for e in entries if isinstance(e.get("shape"), list) and isinstance(e.get("name"), str)]
        entries = [e for e in entries if isinstance(e.get("datatype"), str)]
        tensors = [Tensor(e["name"], e["datatype"], e["shape"], e["data"]) for e in entries]
        parameters = document.get("parameters")
        answerer.answer(Query(tensors, parameters if isinstance(parameters, dict) else {}))
    except ExplainError:
        return False
    return True


# ----- framework files -------------------------------------------------------


@cache
def symbol() -> Any:
    return json.loads((ROOT / "models" / "shapes-symbol.json").read_text("utf-8"))


@cache
def archive() -> dict[str, bytes]:
    path = ROOT / "tests" / "oracles" / "keras" / "keras_sequential.keras"
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def use_symbol(rng: random.Random, folder: Path) -> bool:
    """Export a damaged MXNet symbol, sometimes with damaged weights."""
    from onnx_gradcam.errors import ExplainError
    from onnx_gradcam.exporters.mxnet import read_mxnet

    path, weights = folder / "m-symbol.json", folder / "m-0000.params"
    document = copy.deepcopy(symbol())
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = changed(rng, document)
    path.write_bytes(json.dumps(document).encode())
    data = (ROOT / "models" / "shapes-0000.params").read_bytes()
    weights.write_bytes(in_bytes(rng, data) if rng.random() < 0.3 else data)
    try:
        read_mxnet(path, weights, input_shape=(3, 96, 96)).model.to_proto()
    except ExplainError:
        return False
    return True


def use_keras(rng: random.Random, folder: Path) -> bool:
    """Export a damaged Keras archive."""
    from onnx_gradcam.errors import ExplainError
    from onnx_gradcam.exporters.keras import read_keras

    members = dict(archive())
    config = json.loads(members["config.json"])
    for _ in range(rng.choice((0, 1, 1, 2))):
        config = changed(rng, config)
    members["config.json"] = json.dumps(config).encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as opened:
        for name, content in members.items():
            damaged = rng.random() < 0.2 and name.endswith(".h5")
            opened.writestr(name, in_bytes(rng, content) if damaged else content)
    path = folder / "m.keras"
    path.write_bytes(in_bytes(rng, written.getvalue()) if rng.random() < 0.2 else written.getvalue())
    try:
        read_keras(path).model.to_proto()
    except ExplainError:
        return False
    return True


KINDS: dict[str, Callable[[random.Random, Path], bool]] = {
    "model": use_model,
    "image": use_image,
    "description": use_description,
    "request": use_request,
    "symbol": use_symbol,
    "keras": use_keras,
}


# ----- running cases ---------------------------------------------------------


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def outcome(kind: str, number: int, folder: Path) -> str:
    """`result` or `refused`; otherwise what went wrong, in one line."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    os.chdir(folder)
    before = names(tempfile.gettempdir())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answered = KINDS[kind](random.Random(f"{kind} {number}"), folder)
    except Exception as exc:
        frames = traceback.extract_tb(exc.__traceback__)
        place = next((f for f in reversed(frames) if "onnx_gradcam" in f.filename), frames[-1])
        where = f"{Path(place.filename).name}:{place.lineno} {place.name}"
        return f"fault {type(exc).__name__} at {where}: {' '.join(str(exc).split())[:150]}"
    left = [p.name for p in (folder / "out").iterdir() if p.name != "explained.onnx" or not answered]
    left += [name for name in names(tempfile.gettempdir()) - before if name.startswith("onnx-gradcam")]
    return f"fault: files left behind: {left}" if left else "result" if answered else "refused"


def serve_cases(kind: str, first: int, count: int, folder: Path) -> None:
    """The child: run cases and print a line before and after each."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for number in range(first, first + count):
        print(number, outcome(kind, number, folder), file=answers, flush=True)


def run_cases(kind: str, count: int, first: int = 0) -> Iterator[tuple[int, str]]:
    """The outcome of each case; a crash or a hang is one too, and the next case runs in a new process."""
    end = first + count
    while first < end:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            words = [sys.executable, __file__, "--serve", kind, "--first", str(first), "--models", str(end - first)]
            paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
            child = subprocess.Popen(
                [*words, "--folder", str(Path(folder) / "case")],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": paths, "TMPDIR": folder},
            )
            lines: Queue[str] = Queue()
            reader = threading.Thread(target=_forward, args=(child.stdout, lines), daemon=True)
            reader.start()
            try:
                # The first case waits for the imports.
                patience = SECONDS + 60.0
                while first < end:
                    line = lines.get(timeout=patience)
                    if not line:
                        yield first, f"fault: the process ended with {child.wait()}"
                        first += 1
                        break
                    yield first, line.partition(" ")[2].strip()
                    first, patience = first + 1, float(SECONDS)
            except Empty:
                yield first, f"fault: more than {SECONDS} seconds"
                first += 1
            finally:
                child.kill()
                child.wait()
                reader.join()
                child.stdout.close()


def _forward(stream: Any, lines: Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200, help="Number of models.")
    parser.add_argument("--others", type=int, default=100, help="Number of cases of each other kind.")
    parser.add_argument("--kind", choices=KINDS, help="Only this kind.")
    parser.add_argument("--first", type=int, default=0, help="Number of the first case.")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_cases(arguments.serve, arguments.first, arguments.models, arguments.folder)
        return
    counts: Counter[str] = Counter()
    for kind in [arguments.kind] if arguments.kind else KINDS:
        for number, answer in run_cases(
            kind, arguments.models if kind == "model" else arguments.others, arguments.first
        ):
            counts[f"{kind} {answer.split()[0].rstrip(':')}"] += 1
            if answer.startswith("fault"):
                print(kind, number, answer, flush=True)
    print(dict(counts))
    sys.exit(any("fault" in name for name in counts))


if __name__ == "__main__":
    main()
