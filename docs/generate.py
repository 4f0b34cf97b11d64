"""Writes the pages that a registry knows the truth of: `python docs/generate.py` after a rule or method was added."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import onnx

from onnx_gradcam.autodiff.coverage import Row, coverage
from onnx_gradcam.editor.engines import ENGINES
from onnx_gradcam.editor.methods.catalogue import INGREDIENTS, Method, methods
from onnx_gradcam.editor.presets import PRESETS
from onnx_gradcam.evaluation.audit import CHECKS
from onnx_gradcam.evaluation.metrics import METRICS
from onnx_gradcam.images.preprocessing import PRESETS as PREPROCESSING

FOLDER = Path(__file__).parent


def operators_page() -> str:
    """The coverage table: every operator of ONNX and every other one that is served."""
    rows = coverage()
    asked = [row for row in rows if row.differentiable]
    served = sum(row.support != "none" for row in asked)
    lines = [
        "# Operators that a gradient can cross",
        "",
        f"Written by `docs/generate.py` from the schemas of onnx {onnx.__version__};",
        "`onnx-gradcam ops` prints the same for the installed version.",
        "",
        f"**{served} of the {len(asked)}** inputs that ONNX calls differentiable are served. A gradient crosses an",
        "input by a *rule* of its own; by *expansion* of the operator into the simpler ones of its ONNX function",
        "body; or not, because its derivative is *zero* everywhere. A *decomposition* writes an operator in standard",
        "ones when the model is loaded. A model whose gradient would have to cross an input marked *none* is refused,",
        "in one sentence.",
        "",
        "An If has no floating-point input and so no row: the gradient crosses it by what its branches read from",
        "outside, as it does a Scan. A Loop is written out where its trip count and condition are known; it is refused",
        "where they are not, or where it is too long.",
        "",
        "| operator | since opset | inputs |",
        "| --- | --- | --- |",
    ]
    for (domain, operator, since), group in groupby(rows, key=lambda r: (r.domain, r.operator, r.since_version)):
        name = f"{domain}.{operator}" if domain else operator
        lines.append(f"| {name} | {since} | {_inputs(list(group))} |")
    return "\n".join(lines) + "\n"


def _inputs(rows: list[Row]) -> str:
    """`rule: X, W` for each kind of support, in the order of the inputs."""
    kinds = dict.fromkeys(row.support for row in rows)
    return "; ".join(f"*{kind}*: {', '.join(r.input for r in rows if r.support == kind)}" for kind in kinds)


def _defaults(method: Method) -> str:
    """The options that only some methods take, with their defaults."""

    def said(value: object) -> str:
        return ", ".join(value) if isinstance(value, tuple) else str(value or "off")

    return "; ".join(f"`--{name.replace('_', '-')}` {said(value)}" for name, value in method.takes.items())


def _formulas() -> list[str]:
    """A row for each function of the registry: the methods that it computes, and the first line of its docstring."""
    names: dict[str, list[str]] = {}
    for method in methods().values():
        formula = (method.function.__doc__ or "").split("\n")[0].replace("|", "\\|")
        names.setdefault(formula, []).append(f"`{method.name}`")
    return [f"| {', '.join(group)} | {formula} |" for formula, group in names.items()]


def methods_page() -> str:
    """The tables of methods and of their ingredients."""
    lines = [
        "# Methods",
        "",
        "Choose how a heatmap is computed with `--method`; `onnx-gradcam methods` prints this list. Names are also",
        "accepted in other spellings, such as `Grad-CAM`. `docs/generate.py` writes this page from the registry.",
        "",
        "```",
        "onnx-gradcam explain model.onnx photo.jpg --preprocess torchvision --method layercam",
        "```",
        "",
        "A method of the family `cam` weights the maps of a layer; one of the family `attribution` computes a value",
        "for each value of the image, in the output `attribution`. Methods that run the model many times (`sampling`:",
        "its gradient at many images; `perturbation`: its score) work with `explain`; they cannot be part of a model.",
        "Integrated gradients can be both.",
        "",
        "| method | name | family | cost | reference |",
        "| --- | --- | --- | --- | --- |",
        *(f"| `{m.name}` | {m.title} | {m.family} | {m.cost} | {m.reference} |" for m in methods().values()),
        "",
        "## Formulas",
        "",
        "`S` is the score and `x` the image; `A_ki` is the activation map of channel `k` at position `i`, and `G_ki`",
        "its gradient dS/dA_ki. How a map becomes a heatmap in [0, 1] is up to the [preset](presets.md).",
        "",
        "| method | map |",
        "| --- | --- |",
        *_formulas(),
        "",
        "## Options of some methods",
        "",
        "What these mean is in [path methods](paths.md) and [games](games.md).",
        "",
        "| method | options it takes, and their defaults |",
        "| --- | --- |",
        *(f"| `{m.name}` | {_defaults(m)} |" for m in methods().values() if m.takes),
        "",
        "## Gallery",
        "",
        "The figure shows each method's map of one image, for the class star (`docs/gallery.py` draws it). Activation",
        "map, FEM and FullGrad depend on the class little or not at all. Methods of attention maps are for",
        "transformers and left out.",
        "",
        "![One panel a method, each over a star and a circle](images/methods.jpg)",
        "",
        "## Transformers",
        "",
        "`rollout`, `chefer` and `legrad` look at the attention maps of a vision transformer, as PyTorch's exporters",
        "write them with eager and with fused attention. Rollout follows where tokens come from and does not depend on",
        "the class; `chefer` weights the maps by the gradient of the score. `chefer-last` reads the last block alone,",
        "as its authors do for CLIP. Where a last attention pools the tokens, as in SigLIP, it is one step more, and",
        "`legrad` takes the gradient of its map, for the tokens behind each block, in place of the block's own. A",
        "model that attends inside windows (Swin, MaxViT) or along channels has no such map; `gradcam` serves it.",
        "",
        "## Ingredients",
        "",
        "A method is one function of the ingredients that it names as parameters; its cost follows from theirs.",
        "",
        "| name | what | dtype and shape | cost besides the forward pass |",
        "| --- | --- | --- | --- |",
        *(f"| `{name}` | {i.about} | {i.form} | {i.cost or '-'} |" for name, i in INGREDIENTS.items()),
        "",
        "## Biases",
        "",
        "FullGrad adds a map for the bias of each convolution and each batch normalization, quantised or not, where",
        "their outputs are maps. Most exporters multiply a normalization into the convolution in front of it. That",
        "changes nothing where the convolution had no bias: there is one bias before and after. Where it had one,",
        "two become one, and the heatmap is not that of the framework's model.",
        "",
        "Export PyTorch models with `--keep-normalization`. The readers of Keras and MXNet keep normalizations",
        "anyway. Of other files the names of nodes and weights tell, and a warning says which node was merged, or",
        "may have been:",
        "",
        "| exporter | a merged convolution | the convolution had a bias |",
        "| --- | --- | --- |",
        "| this package | recorded | recorded |",
        "| PyTorch, dynamo | by the scope of its node | by the name of its bias |",
        "| PyTorch, TorchScript | by the name of its weight | not said: it may have had one |",
        "| tf2onnx, TFLite | by the names of its bias and output | by the name of its bias |",
        "| ONNX Runtime's optimizer | by the name of its weight | not said: it may have had one |",
        "| other optimizers | by numbers in place of names | not said: it may have had one |",
        "",
        "Networks that were fused before the export, as Ultralytics does, leave no trace in the file.",
    ]
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- written by docs/generate.py -->", "<!-- end -->"


def _with_table(name: str, table: list[str]) -> str:
    """A page with its table written anew; what stands around it is kept."""
    before, rest = (FOLDER / name).read_text(encoding="utf-8").split(BEGIN)
    return "\n".join([before + BEGIN, *table, END]) + rest.split(END)[1]


def presets_page() -> str:
    """The page of presets, its table written anew; what stands around it is kept."""
    rows = [
        f"| `{p.name}` | {p.title} | {p.score} | {p.change or '-'} | {p.steps} | {p.differs or '-'} |"
        for p in PRESETS.values()
    ]
    pairs = [
        f"| `{p.name}` | {p.title} | {', '.join(f'`{name}` ({what})' for name, what in p.functions.items())} | "
        f"{', '.join(f'`{name}`: `{other}`' for name, other in p.instead.items()) or '-'} |"
        for p in PRESETS.values()
        if p.methods is not None
    ]
    table = [
        "| preset | library | methods, and what each was compared with | other name, and the method to use |",
        "| --- | --- | --- | --- |",
        *pairs,
        "",
        "| preset | library | score | change of the cotangent | from raw map to heatmap | the library's own map is |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
    return _with_table("presets.md", table)


def engines_page() -> str:
    """The page of engines, its table written anew; what stands around it is kept."""
    table = [
        "| engine | `--for` | class input | profile | tested | what else to know |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {e.title} | `{e.name}` | {e.class_input} | `{e.profile}` | {e.tested or 'no'} | {e.advice or '-'} |"
            for e in ENGINES.values()
        ),
    ]
    return _with_table("engines.md", table)


def preprocessing_page() -> str:
    """The page of preprocessing, the table of presets written anew; what stands around it is kept."""
    table = [
        "| preset | resize | colour | scale | mean | std | size, where the model leaves it open | made for |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| `{name}` | `{p.resize}`{', ' + p.align if p.align else ''} | `{p.color}` | {_inverse(p.scale)} | "
            f"{_numbers(p.mean, '0')} | {_numbers(p.std, '1')} | "
            f"{' x '.join(map(str, p.fallback_size)) if p.fallback_size else '-'} | {USES[name]} |"
            for name, p in PREPROCESSING.items()
        ),
    ]
    return _with_table("preprocessing.md", table)


def evaluate_page() -> str:
    """The page of metrics, its table written anew; what stands around it is kept."""
    table = [
        "| `--metric` | asks for | meaning | better | cost | default |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| `{name}` | {m.group} | {m.meaning} | {m.better} | {m.cost} | {'yes' if m.default else ''} |"
            for name, m in METRICS.items()
        ),
    ]
    return _with_table("evaluate.md", table)


def trust_page() -> str:
    """The page of checks, its table written anew; what stands around it is kept."""
    signs = {"higher": "≥", "lower": "≤"}
    table = [
        "| check | figure | passes if |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {c.meaning} | {signs[c.better]} {c.limit:g} |" for name, c in CHECKS.items()),
    ]
    return _with_table("trust.md", table)


USES = {
    "torchvision": "torchvision, and most classifiers that were trained in PyTorch",
    "keras-caffe": "`keras.applications`: VGG, ResNet50 to ResNet152",
    "keras-tf": "`keras.applications`: Inception, Xception, MobileNet to MobileNetV2, ResNetV2, NASNet",
    "keras-torch": "`keras.applications`: DenseNet",
    "mxnet-gluon": "Gluon's model zoo, GluonCV",
    "ultralytics": "YOLOv5 to YOLO26, and exports of YOLOv6 and YOLOv7",
    "yolox": "YOLOX since 0.1.1",
    "none": "models that take pixels, 0 to 255, as EfficientNet and ConvNeXt of `keras.applications`",
}


def _inverse(scale: float) -> str:
    return "1" if scale == 1 else f"1/{1 / scale:g}"


def _numbers(values: tuple[float, ...] | None, default: str) -> str:
    return ", ".join(f"{value:g}" for value in values) if values else default


PAGES = {
    "operators.md": operators_page,
    "methods.md": methods_page,
    "presets.md": presets_page,
    "engines.md": engines_page,
    "preprocessing.md": preprocessing_page,
    "evaluate.md": evaluate_page,
    "trust.md": trust_page,
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
