"""PyTorch's exported programs (`.pt2`), vetted before PyTorch opens them.

A program is a graph in JSON and weights. `torch.export.load` trusts both: it unpickles what does not load as plain
weights, evaluates the expressions of sizes as Python, looks operators up by attribute and unpacks compiled code. So
what a file may hold is listed here, and anything else needs trust.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from onnx_gradcam.errors import ModelError

from .archives import members
from .silence import silent

__all__ = ["load_program"]

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/.*|extra/.*|models/[^/]+\.json|"
    r"data/sample_inputs/[^/]+\.pt|"
    r"data/weights/(weight_\d+|[^/]+\.json|[^/]+\.pt)|data/constants/(tensor_\d+|[^/]+\.json|[^/]+\.pt)"
)
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.\w+(\.\w+)?|"
    r"torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)|"
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)|"
    r"math\.\w+|torch\.sym_\w+|torch\._sym_sqrt"
)
_ON_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save|_save)\b")
_NAME = re.compile(r"[\w.]*")  # it is written into Python code
_SYMBOL = re.compile(r"[a-z]+\d*|oo|int_oo|pi|E")
_FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|floor|ceiling|FloorDiv|"
    r"ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|"
    r"PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|"
    r"TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity|OpaqueUnaryFn_sqrt|Eq|Ne|Lt|Le|Gt|Ge|"
    r"And|Or|Not|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
)
_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def load_program(path: Path, *, trust: bool) -> Any:
    """Read an exported program.

    Raises:
        ModelError: it is damaged, or it holds what could run code and is not trusted.
    """
    if not trust:
        _vet(path)
    try:
        with silent():
            return torch.export.load(path)
    except Exception as exc:
        raise ModelError(
            f"{path}: PyTorch {torch.__version__} cannot read the exported program "
            f"({' '.join(str(exc).split())[:200]}); save it again with this version, or fetch it again"
        ) from exc


def _vet(path: Path) -> None:
    listed = members(path)
    if "serialized_exported_program.json" in listed:
        raise _untrusted(path, "is in the form of PyTorch 2.7 and older, which is unpickled")
    with zipfile.ZipFile(path) as archive:
        for name in listed:
            inner = str(PurePosixPath(*PurePosixPath(name).parts[1:]))
            if not _MEMBERS.fullmatch(inner):
                raise _untrusted(path, f"holds {inner!r}, which may be code")
            if inner.endswith(".json"):
                _vet_json(path, archive, name)
            elif inner.endswith(".pt"):
                _vet_pickle(path, inner, archive.read(name))


def _vet_json(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    try:
        content = json.loads(archive.read(name))
        for key, value in _entries(content):
            if key == "use_pickle" and value[key]:
                record = str(value["path_name"])
                _vet_pickle(path, record, archive.read(f"{name.rpartition('/')[0]}/{record}"))
            elif key == "expr_str" and not _is_arithmetic(value[key]):
                raise _untrusted(path, f"holds the size {str(value[key])[:60]!r}, which is no arithmetic")
            elif (key == "as_operator" or (key == "target" and "inputs" in value)) and not _is_operator(value[key]):
                raise _untrusted(path, f"calls {str(value[key])[:60]!r}, which is no operator on tensors")
            elif key == "name" and not _NAME.fullmatch(str(value[key])):
                raise _untrusted(path, f"holds the name {str(value[key])[:60]!r}, which could not be Python's")
            elif key == "range_constraints" and not all(map(_NAME.fullmatch, value[key])):
                raise _untrusted(path, "holds a size that has no name")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ModelError(f"{path}: a damaged program ({exc}); fetch the file again") from exc


def _entries(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every entry of every object in a JSON value, as its key and its object."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, content
            yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)


def _is_operator(target: object) -> bool:
    text = str(target)
    return bool(_OPERATORS.fullmatch(text)) and not _ON_FILES.match(text)


def _is_arithmetic(text: object) -> bool:
    """Whether a size is arithmetic over symbols alone: it is evaluated as Python when the program is read."""
    try:
        tree = ast.parse(str(text).strip(), mode="eval")
    except SyntaxError:
        return False
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    named = {id(node.args[0]) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_symbol(node)}
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Name) and not ((_FUNCTION if id(node) in called else _SYMBOL).fullmatch(node.id)):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in named:
            return False  # functions read a string as an expression
    return True


def _is_symbol(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "Symbol" and len(call.args) == 1


def _vet_pickle(path: Path, name: str, content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="meta", weights_only=True)
    except Exception as exc:
        raise _untrusted(path, f"holds {name!r}, which is more than plain tensors") from exc


def _untrusted(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: the program {what}; save it again from PyTorch, or pass --trust if you trust its author"
    )
