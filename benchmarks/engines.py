"""Run explained models on every engine that is here, and write how far their heatmaps are from ONNX Runtime's.

    python benchmarks/engines.py RESULTS.json --models FOLDER --engines openvino opencv
    python benchmarks/engines.py RESULTS.json --models FOLDER --engines node web webgpu   # in another environment
    python benchmarks/engines.py RESULTS.json --write docs/engine_table.md

Engines do not fit into one environment, so results are kept in a file, from where the run also goes on after a stop.
Models are the demo, five networks with random weights at a quarter of their width, and every `.onnx` file below the
folders that takes one image alone. Each is attached with the default method, and classifiers also with `gradient`,
written for the engine (`attach --for`), and run on two inputs, each with another class, or the surest boxes of two
classes. The exit code is 1 if a cell is silently wrong: the engine computes the scores of ONNX Runtime and another map.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measure import table
from networks import NETWORKS, build

from onnx_gradcam import attach
from onnx_gradcam.editor.attachment import Explained
from onnx_gradcam.errors import ExplainError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.engine_runs import ENGINES, SWITCHES, TABS, AbsentError, Run, Tabs  # noqa: E402
from support.helpers import quiet_session  # noqa: E402
from support.web_pages import launched  # noqa: E402

Array = np.ndarray[Any, Any]

RIGHT = 1e-4
SAME_SCORES = 1e-3
LARGEST = 120 * 2**20
"""Bytes of the largest model."""
LARGEST_IN = {"web": 2**25, "webgpu": 2**22}
"""The same for a tab, which gets the model as text, and for WebGPU without a graphics card."""

INTRODUCTION = """# Models and engines

After reading this page you know which models were run on which engine, and how far the heatmaps are from those of ONNX
Runtime on the CPU. `benchmarks/engines.py` writes this page; it is run by hand before a release, as the models are not
part of this project. A cell is the largest difference of a heatmap, whose values go from 0 to 1, or of a raw map,
relative to its largest value, over two inputs with another class each:

- **original refused**: the engine does not run the model without an explanation either.
- **refused**: it runs the model but not the explained one; the reason stands below the table.
- **scores differ**: its own scores are further than 1e-3 from those of ONNX Runtime, relative to the largest one, as
  where it rounds quantized numbers otherwise; the map's difference, in parentheses, then says nothing of the
  explanation.
- **moves**: in ONNX Runtime itself the map moves at least half as far when the input's values change by a millionth of
  themselves, or by a step of their type where that is more (float16, integers): an activation lies so close to a kink,
  or a number so close to the middle between two quantized ones, that rounding decides.
- an empty cell was not run: the model is too large for the test in a tab, or WebGPU takes too long without a graphics
  card.

Engines are of the versions that [Engines](engines.md) names. Models whose names begin with `det_`, `ul_`, `odd_` or
`d2_` are small ones with the outputs of a family of detectors or with unusual scores.
"""


def sources(folders: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """The models with their names."""
    yield "shapes (demo)", ROOT / "models" / "shapes.onnx"
    for name in NETWORKS:
        yield f"{name}, random weights", build(name, size=64, width=1.0 if name == "vit_small" else 0.25)
    for folder in folders:
        for path in sorted(folder.rglob("*.onnx")):
            if path.stat().st_size <= LARGEST:
                yield path.stem, path


def inputs(explained: Explained, chosen: Sequence[int]) -> list[dict[str, Array]]:
    """Two inputs of smooth noise with the classes that are fed; the box is the surest one."""
    metadata, model = explained.metadata, explained.model
    info = model.info(metadata.image_input)
    shape = [size if isinstance(size, int) else 64 for size in model.shape(metadata.image_input)]
    if "N" in metadata.layout:
        shape[metadata.layout.index("N")] = 1
    rng, sets = np.random.default_rng(7), []
    for index in chosen:
        pixels = rng.standard_normal(shape)
        for axis in (metadata.layout.index("H"), metadata.layout.index("W")):
            pixels = sum(np.roll(pixels, step, axis) for step in range(4)) / 2
        whole = np.issubdtype(info.dtype, np.integer)
        feeds = {metadata.image_input: (128 + 50 * pixels if whole else pixels).clip(-128, 255).astype(info.dtype)}
        feeds |= {name: np.array([n]) for name, n in ((metadata.class_input, index), (metadata.box_input, -1)) if name}
        sets.append(feeds)
    return sets


def reason(error: Exception) -> str:
    """The first telling line of an engine's refusal."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or "support" in line] or lines or [type(error).__name__]
    return telling[0].replace("|", "/")[:160]


def cell(run: Run, source: Any, choices: dict[str, Any], largest: int) -> dict[str, Any]:
    """What one engine makes of one model."""
    try:
        explained = attach(source, **choices)
    except ExplainError as exc:
        return {"not attached": str(exc)[:200]}
    proto, metadata = explained.to_proto(), explained.metadata
    others = {i.name for i in proto.graph.input} - {metadata.class_input, metadata.box_input, metadata.image_input}
    if others or not metadata.of_images:
        return {"not attached": "it takes more than one image"}
    if proto.ByteSize() > largest:
        return {}
    session = quiet_session(proto)
    own = [metadata.scores_output, metadata.heatmap, metadata.heatmap_class, metadata.cam]
    # OpenCV wants to be asked for all outputs at once.
    names = [*own, *(o.name for o in proto.graph.output if o.name not in own)]
    try:
        sets, want = wanted(session, explained, names)
    except Exception as exc:  # noqa: BLE001 - ONNX Runtime's errors have no common class
        return {"not attached": f"it does not run on noise: {reason(exc)}"}
    try:
        got = run(proto, sets, names)
    except AbsentError:
        raise
    except Exception as exc:  # noqa: BLE001 - engines refuse with exceptions of any kind
        image = {metadata.image_input: sets[0][metadata.image_input]}
        return {"refused" if runs(run, source, image) else "original refused": reason(exc)}
    maps = apart(want, got)
    found = {"maps": maps, "scores": worst(want, got, 0, relative=True), "classes": classes(want, got)}
    if maps > RIGHT:
        nudged = [[session.run(names, nudge(feeds, metadata.image_input, seed)) for feeds in sets] for seed in range(8)]
        found["moves"] = max(apart(want, other) for other in nudged)
    return found


def wanted(session: Any, explained: Explained, names: list[str]) -> tuple[list[dict[str, Array]], list[list[Array]]]:
    """The inputs, and what ONNX Runtime makes of them; of a detector of one class, both have the first."""
    last: Exception | None = None
    for chosen in ((0, 1), (0, 0)):
        sets = inputs(explained, chosen)
        try:
            return sets, [session.run(names, feeds) for feeds in sets]
        except Exception as exc:  # noqa: BLE001 - as above
            last = exc
    assert last is not None
    raise last


def runs(run: Run, source: Any, image: dict[str, Array]) -> bool:
    """Whether the engine runs the model without an explanation."""
    original = source if isinstance(source, onnx.ModelProto) else onnx.load(source)
    try:
        run(original, [image], [o.name for o in original.graph.output])
    except Exception:  # noqa: BLE001 - engines refuse with exceptions of any kind
        return False
    return True


def nudge(feeds: dict[str, Array], name: str, seed: int) -> dict[str, Array]:
    """The same input, its values changed by a millionth of themselves, or by a step of their type if that is more."""
    pixels = feeds[name]
    signs, kind = np.random.default_rng(seed).choice([-1, 1], pixels.shape), pixels.dtype
    if np.issubdtype(kind, np.integer):
        bounds = np.iinfo(kind)
        return {**feeds, name: (pixels.astype(np.int64) + signs).clip(bounds.min, bounds.max).astype(kind)}
    step = max(1e-6, float(np.finfo(kind).eps))
    return {**feeds, name: (pixels * (1 + step * signs)).astype(kind)}


def apart(want: list[list[Array]], got: list[list[Array]]) -> float:
    """The largest difference of the heatmaps and of the raw maps, relative to the largest value."""
    return max(worst(want, got, 1), worst(want, got, 3, relative=True))


def worst(want: list[list[Array]], got: list[list[Array]], at: int, *, relative: bool = False) -> float:
    """The largest difference of one output over all inputs; infinity where a value is not finite."""
    found = 0.0
    for wanted, given in zip(want, got, strict=True):
        a, b = wanted[at].astype(np.float64), given[at].astype(np.float64).reshape(wanted[at].shape)
        difference = np.abs(a - b).max() / (max(np.abs(a).max(), 1e-30) if relative else 1.0)
        found = max(found, float(difference) if np.isfinite(difference) else float("inf"))
    return found


def classes(want: list[list[Array]], got: list[list[Array]]) -> bool:
    """Whether the engine explained the class that was fed."""
    return all(a[2].tolist() == b[2].ravel().tolist() for a, b in zip(want, got, strict=True))


def is_wrong(found: dict[str, Any]) -> bool:
    """Whether a cell is silently wrong."""
    if "maps" not in found:
        return False
    bar = max(RIGHT, 2 * found.get("moves", 0.0))
    return not found["classes"] or (found["maps"] > bar and found["scores"] <= SAME_SCORES)


def written(found: dict[str, Any]) -> str:
    """A cell of the table."""
    if "maps" not in found:
        return next((key for key in found), "")
    text = f"{found['maps']:.0e}"
    if not found["classes"]:
        return f"**another class** ({text})"
    if found["scores"] > SAME_SCORES:
        return f"scores differ ({text})"
    return f"**{text}**" if is_wrong(found) else f"{text} (moves)" if found["maps"] > RIGHT else text


def measured(results: dict[str, Any], path: Path, folders: Sequence[Path], engines: Sequence[str]) -> None:
    """Fill in what is missing, saved after every model."""
    with ExitStack() as stack:
        tabs = Tabs(stack.enter_context(launched(*SWITCHES))) if set(engines) & set(TABS) else None
        for name, source in sources(folders):
            for engine in engines:
                run = tabs(engine) if tabs is not None and engine in TABS else ENGINES[engine]
                for method in ("default", "gradient"):
                    row = results.setdefault(f"{name} / {method}", {})
                    if engine in row or row.get("skipped"):
                        continue
                    choices = {"engine": engine} | ({} if method == "default" else {"method": "gradient"})
                    found = cell(run, source, choices, LARGEST_IN.get(engine, sys.maxsize))
                    if "not attached" in found and "not yet" not in found and engine != "webgpu":
                        row["skipped"] = found["not attached"]
                    row[engine] = found
                    print(f"{name}, {method}, {engine}: {written(found)}", file=sys.stderr, flush=True)
            path.write_text(json.dumps(results, indent=1), "utf-8")


def page(results: dict[str, Any]) -> str:
    """The page of the docs."""
    engines = [name for name in (*ENGINES, *TABS) if any(name in row for row in results.values())]
    rows, notes = [], []
    for name, row in results.items():
        if row.get("skipped"):
            continue
        rows.append([name, *(written(row.get(engine, {})) for engine in engines)])
        notes += [f"- {name}, {e}: `{row[e]['refused']}`" for e in engines if "refused" in row.get(e, {})]
    cells = [row.get(engine, {}) for row in results.values() if not row.get("skipped") for engine in engines]
    ran = [found for found in cells if "maps" in found]
    wrong = sum(map(is_wrong, ran))
    models = len({name.rsplit(" / ", 1)[0] for name, row in results.items() if not row.get("skipped")})
    summary = (
        f"{models} models, {len(ran)} cells with numbers: {len(ran) - wrong} are within 1e-4, move in ONNX Runtime "
        f"too, or belong to scores that differ; {wrong} are wrong.\n"
    )
    parts = [INTRODUCTION, summary, table(["model / method", *engines], rows)]
    if notes:
        parts.append("## Why engines refuse explained models\n\n" + "\n".join(notes) + "\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Run explained models on every engine that is here.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders of models")
    parser.add_argument("--engines", nargs="*", default=[], choices=[*ENGINES, *TABS])
    parser.add_argument("--write", type=Path, help="the page to write")
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text("utf-8")) if options.results.is_file() else {}
    measured(results, options.results, options.models, options.engines)
    if options.write:
        options.write.write_text(page(results), "utf-8")
    return int(any(is_wrong(found) for row in results.values() for found in row.values() if isinstance(found, dict)))


if __name__ == "__main__":
    raise SystemExit(main())
