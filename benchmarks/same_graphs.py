"""Whether a restructuring leaves every explained model as it was: digests from before and after, compared.

    python benchmarks/same_graphs.py dump before.json
    python benchmarks/same_graphs.py dump after.json --cases before.json
    python benchmarks/same_graphs.py compare before.json after.json

`dump` attaches the explanation to every model of the folders, and to a few of them under nearly every option, and
writes what came out: nodes, initializers, inputs and outputs, metadata, and a checksum of the whole file; or why the
model was refused. With `--cases` it attaches what that file lists and nothing else, so that names which have moved are
no trouble: of the package it takes `attach` alone, and for the first dump `onnx-gradcam methods --json`.

`compare` sorts the cases into those that are identical and those that differ, by what differs. The exit code is 1 where
an explained model differs, and 0 where only sentences do: messages of errors, warnings, reasons.

What is left out: the version of the package, the order of the entries of the metadata, and the numbers of weights that
lie in other files.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import onnx_gradcam
from onnx_gradcam import attach

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "models", ROOT.parent / "shared" / "data" / "models")
LARGEST = 300 * 2**20
"""Bytes of the largest model that is attached to."""

VERSIONED = {"onnx_gradcam.version"}
"""Entries of the metadata that change with every release."""

Choices = dict[str, Any]

PROFILES = ("portable", "cpu", "cuda", "tensorrt", "webgpu")

EVERYWHERE: tuple[Choices, ...] = (
    {},
    {"weights": "gradient"},
    {"weights": "finite"},
    {"method": "hirescam"},
    {"method": "fullgrad"},
    {"method": "shapleycam"},
    {"method": "guided-backprop"},
    {"method": "gradient", "grad_dtype": "float32"},
    {"score": "output", "weights": "gradient"},
    {"class_input": "all"},
    *({"method": "gradient", "profile": profile} for profile in PROFILES),
)
"""What is asked of every model."""

VARIED: dict[str, tuple[str, str]] = {
    "shapes": ("relu_6", "relu_4"),
    "resnet_4b_cifar10": ("50", "45"),
    "squeezenet1_1_imagenet_fp16": ("conv10_2", "fire8/concat_1"),
    "vit_pgd_2_3_16_cifar10": ("/1/1.1/1.1.1/Add_output_0", "/1/1.1/1.1.0/Add_output_0"),
    "mlperf_tiny_resnet8_cifar10_int8io_qdq": ("Relu__26:0", "Relu__19:0"),
    "st_mobilenetv1_025_224_plantvillage": (
        "mobilenet_v1_alpha_0.25/conv_pw_13_relu/Relu6:0",
        "mobilenet_v1_alpha_0.25/conv_pw_11_relu/Relu6:0",
    ),
}
"""Models that every option is tried on, by the names of their files, with two of their layers."""

LINEAR, OTHER = "shapes", "resnet_4b_cifar10"
"""Models on which every method meets other options: every preset on the one with a linear head, these on the other."""

MET: tuple[Choices, ...] = (
    {"profile": "cpu"},
    {"modifier": "guided"},
    {"modifier": "deconvnet"},
    {"eigen_smooth": True},
    {"against": "runner-up"},
    {"class_input": "none"},
    {"layer": list(VARIED[OTHER])},
)

DETECTOR = {"task": "detection", "output": ["792", "814", "836"]}
TASKS: dict[str, tuple[Choices, ...]] = {
    "deeplabv3_mnv2_dm05_voc21": (
        {"task": "segmentation"},
        {"task": "segmentation", "mask": "all"},
        {"task": "segmentation", "mask": "input"},
        {"task": "segmentation", "score": "output"},
    ),
    "nanodet_m_416_coco": (
        DETECTOR,
        {**DETECTOR, "box_rank": 2},
        {**DETECTOR, "box": 7},
        {"task": "detection", "output": "836", "boxes": "yolov5"},
        {"task": "detection", "output": "839", "boxes": "yolov8"},
        {"task": "detection"},
    ),
    "shapes": (
        {"task": "regression"},
        {"task": "embedding", "reference": [1.0, -1.0, 0.5, 0.0, 2.0, 1.5]},
        {"task": "embedding"},
        {"task": "segmentation"},
    ),
}
"""What beside classification is tried on which model; every method with the first of them."""

WITH_TASKS: tuple[Choices, ...] = (
    {"method": "gradcam"},
    {"method": "gradient"},
    {"class_input": "none"},
    {"expose_activation": True},
)

WRONG: tuple[Choices, ...] = (
    *({key: "nothing"} for key in ("layer", "method", "preset", "output", "image", "profile", "against")),
    {"layer": []},
    {"against": 999},
    {"class_input": "none", "target": 999},
)
"""What is not there, for the sentences that say so."""

PARTS = ("nodes", "initializers", "inputs and outputs", "metadata", "rest of the file")
GRAPHS = (*PARTS, "outcome", "only in one dump", "the original model")
"""Kinds of differences that count; what is said in sentences is beside them."""

SENTENCES = ("error text", "reason or warnings")


@dataclass(frozen=True)
class Case:
    """One model, how it is handed over, and what is asked for.

    Attributes:
        model: path of the file, below the repository where it lies in it.
        given: as `path` or `bytes`, or as the path of a copy with `external` weights.
        choices: the keywords of `attach`.
    """

    model: str
    given: str
    choices: Choices

    @property
    def key(self) -> str:
        """The case in one line."""
        beside = "" if self.given == "path" else f" as {self.given}"
        return f"{self.model}{beside} {json.dumps(self.choices, sort_keys=True)}"

    @property
    def path(self) -> Path:
        """Where the model lies."""
        return ROOT / self.model


# ----- the cases -------------------------------------------------------------


def registered(*arguments: str) -> list[str]:
    """The names that `onnx-gradcam methods` lists."""
    command = [sys.executable, "-m", "onnx_gradcam", "methods", "--json", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 - our own command
    return [next(iter(entry.values())) for entry in json.loads(done.stdout)]


def model_files(folders: Iterable[Path]) -> Iterator[Path]:
    """Every model below the folders that is not too large."""
    for folder in folders:
        if not folder.is_dir():
            print(f"{folder}: no such folder, left out", file=sys.stderr)
        for path in sorted(folder.rglob("*.onnx")):
            if path.stat().st_size <= LARGEST:
                yield path.resolve()


def first_cases(folders: Iterable[Path]) -> list[Case]:
    """What is attached in a first dump, each case once."""
    methods, presets = registered(), registered("--presets")
    found: dict[str, Case] = {}
    for path in model_files(folders):
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
        cases = [Case(name, "path", choices) for choices in every_choice(path.stem, methods, presets)]
        if path.stem in VARIED:
            cases += [Case(name, given, EVERYWHERE[n]) for given in ("bytes", "external") for n in (0, 1)]
        found.update((case.key, case) for case in cases)
    for name in sorted({*VARIED, *TASKS} - {Path(case.model).stem for case in found.values()}):
        print(f"{name}.onnx is in none of the folders: its options are not tried", file=sys.stderr)
    return list(found.values())


def every_choice(name: str, methods: Sequence[str], presets: Sequence[str]) -> Iterator[Choices]:
    """What is asked of one model."""
    yield from EVERYWHERE
    by_method = [{"method": method} for method in methods]
    if name in VARIED:
        by_preset = [{"preset": preset} for preset in presets]
        yield from [*by_method, *by_preset, *one_by_one(VARIED[name])]
        met = {LINEAR: by_preset, OTHER: MET}.get(name, ())
        yield from (one | other for one, other in itertools.product(by_method, met))
        yield from WRONG if name == LINEAR else ()
    tasks = TASKS.get(name, ())
    yield from tasks
    yield from (choices | task for task in tasks[:1] for choices in [*by_method, *EVERYWHERE])
    yield from (choices | task for task in tasks[1:] for choices in WITH_TASKS)


def one_by_one(layers: tuple[str, str]) -> Iterator[Choices]:
    """Every option beside method and preset."""
    values: dict[str, Sequence[Any]] = {
        "profile": PROFILES,
        "weights": ("linear", "gradient", "finite"),
        "class_input": ("required", "none", "all"),
        "grad_dtype": ("float32",),
        "modifier": ("guided", "deconvnet"),
        "eigen_smooth": (True,),
        "channels": ("max", "sum"),
        "score": ("logit", "output"),
        "against": (1, "runner-up"),
        "layer": (layers[1], list(layers)),
        "expose_activation": (True,),
        "labels": (["one", "two"],),
        "preprocessing": ({"size": [8, 8], "scale": 0.5},),
    }
    for key, each in values.items():
        yield from ({key: value} for value in each)
    yield {"class_input": "none", "target": 1}
    yield from ({"layer": list(layers), "combine": combine} for combine in ("mean", "max", "product"))


# ----- what came out ---------------------------------------------------------


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def in_short(text: str, limit: int = 300) -> str:
    """A text, or its beginning and its checksum where it is long."""
    return text if len(text) <= limit else f"{text[:limit]}... sha256 {sha(text.encode())}"


def tensor_line(tensor: TensorProto) -> str:
    """Name, type, shape and checksum; the place of numbers that lie in another file."""
    head = f"{tensor.name} {TensorProto.DataType.Name(tensor.data_type)}{list(tensor.dims)}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return f"{head} at {sorted((entry.key, entry.value) for entry in tensor.external_data)}"
    if tensor.data_type == TensorProto.STRING:
        return f"{head} {sha(repr(list(tensor.string_data)).encode())}"
    return f"{head} {sha(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())}"


def attribute_text(attribute: AttributeProto) -> str:
    """Name, kind and value; subgraphs and tensors by their checksums."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        text = tensor_line(value)
    elif isinstance(value, (int, float, bytes)):
        text = repr(value)
    elif isinstance(value, onnx.GraphProto):
        text = f"{len(value.node)} nodes {sha(value.SerializeToString(deterministic=True))}"
    else:
        text = repr(list(value))
    return in_short(f"{attribute.name}={AttributeProto.AttributeType.Name(attribute.type)} {text}")


def node_line(node: onnx.NodeProto) -> str:
    """Operator, inputs, outputs and attributes."""
    attributes = sorted(attribute_text(attribute) for attribute in node.attribute)
    kind = f"{node.domain or 'ai.onnx'}.{node.op_type}"
    return f"{kind} {list(node.input)} -> {list(node.output)} {{{', '.join(attributes)}}}"


def value_line(kind: str, value: onnx.ValueInfoProto) -> str:
    """Kind, name and type of a tensor."""
    return f"{kind} {value.name} {helper.printable_type(value.type)}"


def parts(model: onnx.ModelProto) -> dict[str, list[str]]:
    """What a model consists of, in lines."""
    graph = model.graph
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key not in VERSIONED}
    rest = [f"IR version {model.ir_version}, graph {graph.name!r}, {len(model.functions)} functions"]
    rest += [f"name of the node that makes {list(node.output)}: {node.name}" for node in graph.node]
    rest += sorted(value_line("tensor", value) for value in graph.value_info)
    del model.metadata_props[:]
    rest.append(f"all but the metadata: {sha(model.SerializeToString(deterministic=True))}")
    lines = (
        [node_line(node) for node in graph.node],
        [tensor_line(tensor) for tensor in graph.initializer],
        [
            *(value_line("input", value) for value in graph.input),
            *(value_line("output", value) for value in graph.output),
            *(f"opset {opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import),
        ],
        [f"{key}={value}" for key, value in sorted(entries.items())],
        rest,
    )
    return dict(zip(PARTS, lines, strict=True))


def hand_over(case: Case, scratch: Path) -> str | bytes:
    """The model as `attach` gets it."""
    if case.given == "bytes":
        return case.path.read_bytes()
    if case.given == "path":
        return str(case.path)
    copy = scratch / f"{case.path.stem}_external.onnx"
    if not copy.exists():
        onnx.save(onnx.load(case.path), copy, save_as_external_data=True, location=f"{copy.name}.data")
    return str(copy)


def run(case: Case, scratch: Path) -> dict[str, Any]:
    """Attach, and say what came out: the parts and what was said, or the error."""
    choices = dict(case.choices)
    if "reference" in choices:
        choices["reference"] = np.asarray(choices["reference"], np.float32)
    source = hand_over(case, scratch)
    try:
        explained = attach(source, **choices)
        model = explained.to_proto()
    except Exception as exc:  # noqa: BLE001 - what is no refusal is found here too, and told apart
        own = any(base.__module__.split(".")[0] == "onnx_gradcam" for base in type(exc).__mro__)
        text = str(exc).replace(str(source), "MODEL") if isinstance(source, str) else str(exc)
        return {"outcome": "refused" if own else "failed", "error text": [type(exc).__name__, text]}
    said = [str(explained.reason), *map(str, explained.warnings)]
    return {"outcome": "explained", "reason or warnings": said, "parts": parts(model)}


# ----- a dump ----------------------------------------------------------------


def dump(out: Path, cases: Sequence[Case]) -> None:
    """Attach every case and write what came out; lines that many models share are written once."""
    print(f"{len(cases)} cases with {Path(onnx_gradcam.__file__).parent}", file=sys.stderr)
    models = {case.model: sha(case.path.read_bytes()) for case in cases}
    numbers: dict[str, int] = {}
    entries: list[dict[str, Any]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(cases, 1):
            result = run(case, Path(scratch))
            for part, lines in result.get("parts", {}).items():
                result["parts"][part] = [numbers.setdefault(line, len(numbers)) for line in lines]
            entries.append({"model": case.model, "given": case.given, "choices": case.choices, "result": result})
            if number % 250 == 0 or number == len(cases):
                print(f"{number} cases, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    about = {package: version(package) for package in ("numpy", "onnx", "onnx-ir")}
    whole = {"about": about, "models": models, "cases": entries, "lines": list(numbers)}
    out.write_text(json.dumps(whole, ensure_ascii=False))
    counts = Counter(entry["result"]["outcome"] for entry in entries)
    print(f"{out}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))


def stored_cases(path: Path) -> list[Case]:
    """The cases of a dump."""
    return [case_of(entry) for entry in json.loads(path.read_text())["cases"]]


def case_of(entry: Mapping[str, Any]) -> Case:
    return Case(entry["model"], entry["given"], entry["choices"])


# ----- a comparison ----------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same.

    Attributes:
        kind: what of the case differs.
        case: the case in one line.
        before: the first line that differs; empty where there is none.
        after: the line in its place.
    """

    kind: str
    case: str
    before: str
    after: str


def results(whole: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What came out, by the case in one line."""
    lines, found = whole["lines"], {}
    for entry in whole["cases"]:
        result = dict(entry["result"])
        result["parts"] = {part: [lines[n] for n in numbers] for part, numbers in result.get("parts", {}).items()}
        found[case_of(entry).key] = result
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any], *, partial: bool) -> Iterator[Difference]:
    """Everything that two dumps differ in.

    Args:
        before: a dump.
        after: another one.
        partial: cases that are in one of them only do not count.
    """
    for model in sorted(before["models"].keys() & after["models"].keys()):
        if before["models"][model] != after["models"][model]:
            yield Difference("the original model", model, before["models"][model], after["models"][model])
    old, new = results(before), results(after)
    for case in old:
        if case in new:
            yield from of_case(case, old[case], new[case])
    if not partial:
        yield from (Difference("only in one dump", case, "there", "missing") for case in old if case not in new)
        yield from (Difference("only in one dump", case, "missing", "there") for case in new if case not in old)


def of_case(case: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    """What one case differs in."""
    if old["outcome"] != new["outcome"]:
        yield Difference("outcome", case, outcome_text(old), outcome_text(new))
        return
    for kind in SENTENCES:
        if old.get(kind) != new.get(kind):
            yield Difference(kind, case, ": ".join(old[kind]), ": ".join(new[kind]))
    found: dict[str, Difference] = {}
    for part in PARTS:
        pairs = itertools.zip_longest(old["parts"].get(part, ()), new["parts"].get(part, ()), fillvalue="")
        first = next(((a, b) for a, b in pairs if a != b), None)
        # The checksum of the whole file, in its rest, says nothing new where one of the first three differs.
        if first is not None and (part != PARTS[-1] or found.keys().isdisjoint(PARTS[:3])):
            found[part] = Difference(part, case, *first)
    yield from found.values()


def outcome_text(result: Mapping[str, Any]) -> str:
    """What became of a case, with the error where there was one."""
    return ": ".join([result["outcome"], *result.get("error text", ())])


def compare(before: Mapping[str, Any], after: Mapping[str, Any], *, limit: int, messages: bool, partial: bool) -> int:
    """Print what differs, by kind; 1 where a graph does."""
    found = list(differences(before, after, partial=partial))
    both = {case_of(entry).key for entry in before["cases"]} & {case_of(entry).key for entry in after["cases"]}
    print(f"{len(both)} cases in both: {len(both - {each.case for each in found})} identical")
    if before["about"] != after["about"]:
        print(f"made with other packages: {before['about']} and {after['about']}")
    for kind in (*GRAPHS, *SENTENCES):
        these = [each for each in found if each.kind == kind]
        if these:
            print(f"{len(these)} with a difference: {kind}")
        shown = limit if kind in GRAPHS else len(these) if messages else 0
        show(these, shown, sentences=kind in SENTENCES)
    return int(any(each.kind in GRAPHS for each in found))


def show(these: Sequence[Difference], limit: int, *, sentences: bool) -> None:
    """The first of them; a sentence that many cases share once."""
    first: dict[tuple[str, ...], Difference] = {}
    for each in these:
        first.setdefault((each.before, each.after) if sentences else (each.case,), each)
    for each in itertools.islice(first.values(), limit):
        print(f"  {each.case}\n    before: {each.before or '-'}\n    after:  {each.after or '-'}")
    if 0 < limit < len(first):
        print(f"  and {len(first) - limit} more (--limit)")


# ----- the command line ------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("dump", help="attach to every model and write what came out")
    one.add_argument("out", type=Path)
    which = one.add_mutually_exclusive_group()
    which.add_argument("--models", type=Path, nargs="+", default=FOLDERS, metavar="FOLDER", help="folders of models")
    which.add_argument("--cases", type=Path, metavar="BEFORE.json", help="attach the cases of this dump again")
    one.add_argument("--only", default="", metavar="TEXT", help="only cases that have this in their line")
    one.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth case, for a quick look")
    two = commands.add_parser("compare", help="say what differs between two dumps")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument("--limit", type=int, default=5, help="how many cases of each kind are shown")
    two.add_argument("--messages", action="store_true", help="show sentences that differ as well")
    two.add_argument("--partial", action="store_true", help="cases that one dump lacks do not count")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments().parse_args(argv)
    if asked.command == "dump":
        cases = stored_cases(asked.cases) if asked.cases else first_cases(asked.models)
        dump(asked.out, [case for case in cases if asked.only in case.key][:: asked.every])
        return 0
    before, after = (json.loads(path.read_text()) for path in (asked.before, asked.after))
    return compare(before, after, limit=asked.limit, messages=asked.messages, partial=asked.partial)


if __name__ == "__main__":
    sys.exit(main())
