"""Imports run one way, modules keep their privates, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnx_gradcam

PACKAGE = Path(onnx_gradcam.__file__).parent

# Each part may import the parts named here, itself, and nothing else of the package.
PLAIN = {"errors", "files", "options"}
BASE = {*PLAIN, "feeds"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "feeds": {"errors", "files"},
    "options": {"errors"},
    "metadata": PLAIN,
    "graph": {"errors", "files"},
    "images": PLAIN,
    "autodiff": {*PLAIN, "graph"},
    "editor.methods": {*PLAIN, "graph"},
    "editor.targets": {*PLAIN, "graph"},
    "editor": {*BASE, "graph", "autodiff", "images.preprocessing", "metadata", "editor.methods", "editor.targets"},
    "runtime.session": {"errors", "files", "graph"},
    "runtime": {*BASE, "graph", "images", "metadata", "editor", "editor.methods", "editor.targets"},
    "exporters": {*PLAIN, "graph", "autodiff", "images", "metadata", "editor", "editor.targets", "runtime.session"},
    "evaluation": {*BASE, "graph", "autodiff", "images", "metadata", "editor", "editor.targets"}
    | {"runtime", "exporters"},
    "batching": {*PLAIN, "feeds", "images", "runtime"},
    "serve": {*BASE, "graph", "images", "metadata", "editor", "editor.targets", "runtime"}
    | {"batching.records", "batching.writers"},
    "web": {*PLAIN, "graph", "images", "metadata", "editor", "runtime"},
    "studio": {*PLAIN, "images", "editor", "editor.methods", "editor.targets", "runtime"}
    | {"evaluation", "serve.limits", "web"},
}
ANYTHING = {"cli", "__main__", "__init__"}
"""What nothing imports may import everything."""

MOST_FLOORS = 12
MOST_FILES = 248
LEAST_LINES = 60


def is_under(module: str, part: str) -> bool:
    """Whether a module is a part or inside it; whole names are compared, not beginnings of names."""
    return module == part or module.startswith(f"{part}.")


def part(module: str) -> str:
    """The most specific part that a module belongs to."""
    name = module.removeprefix("onnx_gradcam.")
    parts = [p for p in ALLOWED if is_under(name, p)]
    return max(parts, key=len) if parts else name.split(".")[0]


def imported(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """The modules of the package that a file imports anywhere, lazily or not, each with the name it takes."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.startswith("onnx_gradcam."))
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(p for p in (base, node.module) if p)
            if source.split(".")[0] != "onnx_gradcam":
                continue
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield (submodule, "") if submodule in MODULES else (source, alias.name)


FILES = {
    path: ".".join(("onnx_gradcam", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = set(FILES.values())


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_imports_run_one_way(path):
    module = FILES[path]
    mine = part(module)
    if mine in ANYTHING or module == "onnx_gradcam":
        return
    assert mine in ALLOWED, f"say in ALLOWED what {module} may import"
    for other, name in imported(path, module):
        if other == "onnx_gradcam":
            assert name == "__version__" or mine in {"evaluation", "serve", "web", "batching"}, f"{module} takes {name}"
            continue
        theirs = other.removeprefix("onnx_gradcam.")
        allowed = {mine, *ALLOWED[mine]} | ({"runtime"} if mine == "runtime.session" else set())
        assert any(is_under(theirs, one) for one in allowed), f"{module} imports {other}"


def test_no_module_takes_a_private_name_of_another():
    private = [
        f"{module}: {other}.{name}"
        for path, module in FILES.items()
        for other, name in imported(path, module)
        if name.startswith("_") and not name.startswith("__")
    ]
    assert private == []


def file_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for path, module in FILES.items():
        graph[module] |= {other for other, _ in imported(path, module) if other in MODULES and other != module}
    # The package's own __init__ imports public names lazily, on first use.
    graph["onnx_gradcam"] = set()
    return graph


def depth(graph: dict[str, set[str]]) -> int:
    """The longest chain of imports.

    Raises:
        AssertionError: there is a circle.
    """
    depths: dict[str, int] = {}

    def of(node: str, above: tuple[str, ...]) -> int:
        assert node not in above, f"a circle: {' -> '.join((*above[above.index(node) :], node))}"
        if node not in depths:
            depths[node] = 1 + max((of(other, (*above, node)) for other in graph[node]), default=0)
        return depths[node]

    return max(of(node, ()) for node in graph)


def test_there_is_no_circle_of_files():
    depth(file_graph())


def test_parts_are_floors_without_circles_and_few():
    floors: dict[str, set[str]] = {}
    for module, others in file_graph().items():
        mine = part(module)
        floors.setdefault(mine, set()).update(part(other) for other in others if part(other) != mine)
    floors["onnx_gradcam"] = set()
    assert depth({name: {o for o in others if o in floors} for name, others in floors.items()}) <= MOST_FLOORS


def test_a_circle_is_noticed():
    with pytest.raises(AssertionError, match="a circle: a -> b -> a"):
        depth({"a": {"b"}, "b": {"a"}})


def test_module_names_occur_once():
    stems = [path.stem for path in FILES if path.stem not in {"__init__", "__main__"}]
    assert sorted({stem for stem in stems if stems.count(stem) > 1}) == []


def test_there_are_few_files_and_small_ones_say_why():
    assert len(FILES) <= MOST_FILES
    silent = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if path.stem in {"__init__", "__main__"} or text.count("\n") >= LEAST_LINES:
            continue
        if "A file of its own" not in (ast.get_docstring(ast.parse(text)) or ""):
            silent.append(path.name)
    assert silent == []


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("onnxruntime", {"onnx_gradcam.runtime.session", "onnx_gradcam.cli.doctor"}),
        ("cv2", {"onnx_gradcam.images.decoding", "onnx_gradcam.cli.doctor"}),
    ],
)
def test_one_module_alone_imports_a_heavy_library(library, only):
    users = set()
    for path, module in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] == library for name in names):
                users.add(module)
    assert users <= only


def loaded_by(code: str) -> set[str]:
    heavy = ("numpy", "onnx", "onnx_ir", "onnxruntime", "cv2", "google.protobuf")
    check = f"{code}\nimport sys\nprint(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["onnx_gradcam", "onnx_gradcam.errors", "onnx_gradcam.options", "onnx_gradcam.cli", "onnx_gradcam.files"]
)
def test_nothing_heavy_is_loaded_at_first(module):
    assert loaded_by(f"import {module}") == set()


@pytest.mark.parametrize("module", ["onnx_gradcam.runtime.session", "onnx_gradcam.images.decoding"])
def test_running_needs_no_graph_code(module):
    assert not loaded_by(f"import {module}") & {"onnx", "onnx_ir", "google.protobuf"}


def test_the_graph_side_needs_no_runtime():
    assert not loaded_by("import onnx_gradcam.editor.attachment") & {"onnxruntime", "cv2"}
