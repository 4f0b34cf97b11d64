"""Open a PyTorch source: an exported program (`.pt2`), vetted first, or a network of a library, folder or factory.

A program is a graph in JSON and weights. `torch.export.load` trusts both: it unpickles what does not load as plain
weights, evaluates the expressions of sizes as Python, looks operators up by attribute and unpacks compiled code. So the
allowed content of a file is listed here, and anything else needs trust.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from onnx_gradcam.editor.origins import from_timm, from_torchvision, from_transformers
from onnx_gradcam.errors import ExplainError, ExportError, InputError, near_matches, reason

from .archives import kind_of, members
from .capture import silent
from .state_dicts import fit, read_weights, unwrapped

__all__ = ["Source", "load_program", "open_source"]

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
    """Read an exported program; one whose content could run code needs `trust`."""
    if not trust:
        _vet(path)
    try:
        with silent():
            return torch.export.load(path)
    except Exception as exc:
        raise ExportError(
            f"{path}: PyTorch {torch.__version__} cannot read the exported program "
            f"({reason(exc)}); save it again with this version, or fetch it again"
        ) from exc


def _vet(path: Path) -> None:
    listed = members(path)
    if "serialized_exported_program.json" in listed:
        raise _untrusted(path, "has the format of PyTorch 2.7 and older, which is unpickled")
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
                raise _untrusted(path, f"holds the size {str(value[key])[:60]!r}, which is not arithmetic")
            elif (key == "as_operator" or (key == "target" and "inputs" in value)) and not _is_operator(value[key]):
                raise _untrusted(path, f"calls {str(value[key])[:60]!r}, which is not an operator on tensors")
            elif key == "name" and not _NAME.fullmatch(str(value[key])):
                raise _untrusted(path, f"holds the name {str(value[key])[:60]!r}, which is not a Python name")
            elif key == "range_constraints" and not all(map(_NAME.fullmatch, value[key])):
                raise _untrusted(path, "holds a size without a name")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ExportError(f"{path}: a damaged program ({reason(exc)}); fetch the file again") from exc


def _entries(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every entry of every object in a JSON value, as `(key, object)`."""
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
    """Whether a size is arithmetic over symbols only: PyTorch evaluates it as Python when it reads the program."""
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


def _untrusted(path: Path, problem: str) -> ExportError:
    return ExportError(
        f"{path}: the program {problem}; save it again from PyTorch, or pass --trust if you trust its author"
    )


_FACTORY = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")
_TORCHVISION = "torchvision.models"
_TIMM = "timm"


@dataclass(eq=False, kw_only=True)
class Source:
    """A network and what is known about it."""

    network: torch.nn.Module  # in evaluation mode
    size: tuple[int, int] | None = None  # height and width of its images
    channels: int | None = None  # number of channels of its images
    batch: int | None = None  # its only batch size; `None` for any
    free: bool = True  # whether height and width may vary
    labels: Sequence[str] | None = None  # class names
    preprocessing: Mapping[str, Any] | None = None  # how images become its input
    kinds: dict[str, str] = field(default_factory=dict)  # class of each module by path

    def __post_init__(self) -> None:
        modules = self.network.named_modules()
        self.kinds = {p: str(getattr(m, "original_name", type(m).__name__)) for p, m in modules} | self.kinds


def open_source(source: Any, weights: str | Path | None, *, trust: bool) -> Source:
    """The network of a source; `export_pytorch` lists the kinds of sources."""
    if isinstance(source, torch.nn.Module):
        opened = Source(network=source)
        _fill(opened, weights)
        return opened
    text = str(source)
    if text.startswith(f"{_TIMM}:"):
        return _from_timm(text.partition(":")[2], weights)
    factory = _FACTORY.fullmatch(text)
    if factory and not Path(text).exists():
        return _from_factory(factory[1], factory[2], weights, trust=trust)
    path = Path(source)
    if weights is not None:
        raise InputError(f"{path} has its own weights; leave out {weights}")
    if (path / "config.json").is_file():
        return _from_transformers(path)
    return _from_file(path, trust=trust)


def _fill(opened: Source, weights: str | Path | None) -> None:
    if weights is not None:
        fit(opened.network, read_weights(weights), weights)


def _from_file(path: Path, *, trust: bool) -> Source:
    kind = kind_of(path)
    if kind == "program":
        return _from_program(path, trust=trust)
    if kind == "torchscript":
        if not trust:
            raise ExportError(
                f"{path}: a TorchScript is a program that may read and write files; pass --trust if you trust its "
                "author, or export the network itself as .pt2"
            )
        try:
            with silent():
                script = torch.jit.load(path, map_location="cpu")
            return Source(network=script, free=False)
        except Exception as exc:
            raise ExportError(f"{path}: damaged TorchScript ({reason(exc)}); fetch the file again") from exc
    read_weights(path)
    raise ExportError(
        f"{path}: holds weights without their network; give the network as module:factory, timm:NAME or "
        "torchvision.models:NAME, and this file with --weights"
    )


def _from_program(path: Path, *, trust: bool) -> Source:
    program = load_program(path, trust=trust)
    training = next((node for node in program.graph.nodes if _is_training(node)), None)
    if training is not None:
        raise ExportError(
            f"{path}: the network was exported in training mode (its {training.target} is random or depends on the "
            "other images); call eval() on it before torch.export.export"
        )
    inputs = [n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    shape = inputs[0].meta["val"].shape if inputs else ()
    if len(inputs) != 1 or len(shape) != 4:
        raise ExportError(
            f"{path}: the program takes {len(inputs)} input(s), the first of {len(shape)} axes; export a network that "
            "takes images only, [batch, channels, height, width]"
        )
    batch, channels, height, width = (size if isinstance(size, int) else None for size in shape)
    stacks = [dict(node.meta.get("nn_module_stack") or {}).values() for node in program.graph.nodes]
    kinds = {str(module): str(kind).rpartition(".")[2] for stack in stacks for module, kind in stack}
    try:
        with silent():
            network = torch.export.unflatten(program)
    except Exception as exc:
        raise ExportError(
            f"{path}: its modules cannot be restored ({reason(exc)}); save it with a newer PyTorch"
        ) from exc
    return Source(
        network=network,
        size=(height, width) if height and width else None,
        channels=channels,
        batch=batch,
        free=not height and not width,
        kinds=kinds,
    )


def _is_training(node: Any) -> bool:
    """Whether an operator of a program is in training mode."""
    flags = {"aten.batch_norm.default": 5, "aten.dropout.default": 2, "aten.feature_dropout.default": 2}
    flag = flags.get(str(node.target))
    return flag is not None and len(node.args) > flag and bool(node.args[flag])


def _from_factory(module: str, name: str, weights: str | Path | None, *, trust: bool) -> Source:
    if module == _TORCHVISION:
        return _from_torchvision(name, weights)
    if not trust:
        raise ExportError(
            f"{module}:{name} is code that would be run; pass --trust if you trust its author, or export the network "
            "as .pt2, which needs no code"
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        factory: Any = importlib.import_module(module)
        for part in name.split("."):
            factory = getattr(factory, part)
        network = factory if isinstance(factory, torch.nn.Module) else factory()
    except ExplainError:
        raise
    except Exception as exc:  # it is the user's code: anything may happen
        raise ExportError(
            f"{module}:{name} failed with {type(exc).__name__}: {reason(exc)}; give the name of a function without "
            "arguments that returns the network"
        ) from exc
    finally:
        sys.path.remove(here)
    if not isinstance(network, torch.nn.Module):
        raise ExportError(f"{module}:{name} returns a {type(network).__name__}; it must return a torch.nn.Module")
    opened = Source(network=network)
    _fill(opened, weights)
    return opened


def _from_torchvision(name: str, weights: str | Path | None) -> Source:
    models = _library(_TORCHVISION, "torchvision")
    classifiers = models.list_models(module=models)
    if name not in classifiers:
        raise InputError(f"torchvision has no classifier {name!r}{near_matches(name, classifiers)}")
    published = models.get_model_weights(name)
    if weights is None:
        raise InputError(
            f"{_TORCHVISION}:{name} without weights would be random; give --weights FILE, or download torchvision's "
            f"own: {', '.join(entry.name for entry in published)}"
        )
    # The size belongs to the architecture, everything else to the published weights.
    usual = from_torchvision(next(iter(published)).transforms()) if len(published) else None
    size = None if usual is None else (usual["size"][0], usual["size"][1])
    if str(weights) in published.__members__:
        entry = published[str(weights)]
        network = _fetched(lambda: models.get_model(name, weights=entry), f"{_TORCHVISION}:{name}")
        described = from_torchvision(entry.transforms())
        return Source(network=network, size=size, labels=entry.meta.get("categories"), preprocessing=described)
    network = _fitted(lambda **sizes: models.get_model(name, weights=None, **sizes), weights)
    return Source(network=network, size=size)


def _from_timm(name: str, weights: str | Path | None) -> Source:
    timm = _library("timm", "timm")
    models = timm.list_models()
    if name.partition(".")[0] not in models:
        raise InputError(f"timm has no model {name!r}{near_matches(name, models)}")
    if weights is None:
        network = _fetched(lambda: timm.create_model(name, pretrained=True), f"{_TIMM}:{name}")
    else:
        network = _fitted(lambda **sizes: timm.create_model(name, pretrained=False, **sizes), weights)
    config = getattr(network, "pretrained_cfg", None) or {}
    channels, *size = config.get("input_size") or (None,)
    return Source(
        network=network,
        size=(size[0], size[1]) if size else None,
        channels=channels,
        labels=config.get("label_names"),
        preprocessing=from_timm(config),
    )


def _fetched(make: Callable[[], Any], source: str) -> Any:
    try:
        return make()
    except Exception as exc:
        raise ExportError(
            f"{source}: its weights cannot be downloaded ({reason(exc)}); give them with --weights FILE"
        ) from exc


def _fitted(make: Callable[..., Any], weights: str | Path) -> Any:
    """A network with weights from a file; its number of classes follows the file if only that differs."""
    network = make()
    own = network.state_dict()
    state = unwrapped(read_weights(weights), own)
    other = {(own[k].shape, v.shape) for k, v in state.items() if k in own and own[k].shape != v.shape}
    classes = {stored[0] for shape, stored in other if shape[1:] == stored[1:]}
    if len(classes) == 1 and all(shape[1:] == stored[1:] for shape, stored in other):
        network = make(num_classes=classes.pop())
    fit(network, state, weights)
    return network


def _from_transformers(folder: Path) -> Source:
    transformers = _library("transformers", "transformers")
    try:
        # Eager attention: the fused one cannot be exported for some networks and hides the gradient in others.
        network, loading = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager", dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as exc:
        raise ExportError(f"{folder}: transformers cannot read an image classifier from it ({reason(exc)})") from exc
    missing = [str(key) for key in (*loading["missing_keys"], *loading["mismatched_keys"])]
    if missing:
        raise ExportError(
            f"{folder}: its weights lack {', '.join(missing[:5])}, which would be random; is it a trained classifier?"
        )
    config = network.config
    preprocessing = None
    if (folder / "preprocessor_config.json").is_file():
        preprocessing = from_transformers(_json(folder / "preprocessor_config.json"), config.model_type)
    size = getattr(config, "image_size", None) or (preprocessing or {}).get("size")
    size = (size, size) if isinstance(size, int) else size
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    return Source(
        network=network,
        size=(size[0], size[1]) if size else None,
        channels=getattr(config, "num_channels", None),
        labels=None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names,
        preprocessing=preprocessing,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ExportError(f"{path}: not valid JSON ({reason(exc)}); fetch the file again") from exc
    if not isinstance(content, dict):
        raise ExportError(f"{path}: not a JSON object; fetch the file again")
    return content


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as exc:
        raise ExportError(
            f"{package} cannot be imported ({reason(exc)}); run pip install {package}, in a build for the installed "
            "PyTorch"
        ) from exc
