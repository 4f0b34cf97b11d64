"""Plant faults in the VJP rules, one at a time, and check that the tests notice each of them.

Each fault is planted in a copy of the package in a temporary folder; the working tree is not touched. The tests of the
file run first; if they pass, the gradient checks over the ONNX node cases follow. To add a fault, add a line to
`FAULTS`: the file below `onnx_gradcam`, a description, a text that occurs in the file once, and its replacement.

    python benchmarks/mutate_rules.py                 all faults; exit code 1 if one survives
    python benchmarks/mutate_rules.py pooling Softmax faults whose file or description contains one of the words
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CORPUS = "tests/autodiff/test_corpus.py"


class Fault(NamedTuple):
    """A mistake that a person could make."""

    file: str
    description: str
    old: str
    new: str


RULES = "autodiff/rules/"
ACT, ELE, LIN, RED = (RULES + name for name in ("activation.py", "elementwise.py", "linear.py", "reduction.py"))
NORM, CONV, WIN, POOL = (RULES + name for name in ("normalization.py", "convolution.py", "_windows.py", "pooling.py"))
SHAPE, SIZE, IND, RES = (RULES + name for name in ("shape.py", "_sizes.py", "indexing.py", "resize.py"))
REC, QUANT, LOSS = (RULES + name for name in ("recurrent.py", "quantization.py", "loss.py"))
ENGINE, EXPAND = "autodiff/backward.py", "autodiff/expand.py"

FAULTS = [
    # Signs.
    Fault(ELE, "sign: Sub", "return [g, lambda: -g]", "return [g, lambda: g]"),
    Fault(ELE, "sign: Cos", '-(g * t.op("Sin", x))', 'g * t.op("Sin", x)'),
    Fault(ELE, "sign: Div", "-(g * y / b)", "(g * y / b)"),
    Fault(ELE, "sign: Reciprocal", "-(g * y * y)", "(g * y * y)"),
    Fault(ACT, "sign: Tanh", "g * (1.0 - y * y)", "g * (1.0 + y * y)"),
    Fault(ACT, "sign: Softmax", "weighted - y *", "weighted + y *"),
    Fault(NORM, "sign: standardised", "(centred - self.value * mean", "(centred + self.value * mean"),
    Fault(NORM, "sign: LRN", "direct - wide * (2.0", "direct + wide * (2.0"),
    Fault(LIN, "sign: Det", "* -2.0 + 1.0", "* 2.0 - 1.0"),
    # Factors and terms.
    Fault(ELE, "factor: Sqrt", "g / (y * 2.0)", "g / y"),
    Fault(ELE, "factor: Mean", "g * (1.0 / len(xs))", "g"),
    Fault(ELE, "operand: Mul", "[lambda: g * b, lambda: g * a]", "[lambda: g * a, lambda: g * b]"),
    Fault(ELE, "operand: Where", 't.op("Where", condition, 0.0, g)', 't.op("Where", condition, g, 0.0)'),
    Fault(ELE, "exponent: Pow", "(a ** (e - 1.0)) * e", "(a**e) * e"),
    Fault(ACT, "factor: LeakyRelu", "g, g * alpha)]", "g, g)]"),
    Fault(ACT, "term: Elu", "g * (y + alpha)", "g * (y + 1.0)"),
    Fault(ACT, "factor: tanh Gelu", "3.0 * scale * cubic", "scale * cubic"),
    Fault(ACT, "bound: Clip", "y < high, g, 0.0", "y < high, g, g"),
    Fault(ACT, "term: Swish", "s + x * alpha", "s + x"),
    Fault(RED, "count: ReduceMean", "r.kept(g) * _one_over_count(t, x, y)", "r.kept(g)"),
    Fault(RED, "factor: ReduceSumSquare", "r.kept(g) * 2.0 * x", "r.kept(g) * x"),
    Fault(RED, "zeros: ReduceProd", 't.op("Where", others > 0.0, 0.0, r.kept(g) * product)', "r.kept(g) * product"),
    Fault(LIN, "transpose: Gemm transA", "alpha=alpha, transA=transB, transB=1", "alpha=alpha, transA=1, transB=1"),
    Fault(LIN, "factor: Gemm beta", "g if beta == 1.0 else g * beta", "g"),
    Fault(LIN, "rows: MatMul vector", "return _squeeze(t, db, -1) if column else db", "return db"),
    Fault(NORM, "factor: BatchNormalization variance", "factor * -0.5 /", "factor * -1.0 /"),
    Fault(NORM, "term: mean of LayerNormalization", "s - mean(s, self.axes) if", "s if"),
    Fault(NORM, "mirror: even LRN window", "channel_means(t, direct * wide / s, after, before)",
          "channel_means(t, direct * wide / s, before, after)"),
    Fault(RED, "direction: CumSum", 't.op("CumSum", g, axis, exclusive=exclusive, reverse=1 - reverse)',
          't.op("CumSum", g, axis, exclusive=exclusive, reverse=reverse)'),
    Fault(RED, "zeros: CumProd", 't.op("Equal", count, t.const(np.int32(1)))', "zero"),
    Fault(QUANT, "mask: saturated numbers", 't.op("Where", inside, g / step, 0.0)', "g / step"),
    Fault(REC, "term: GRU update", "(1.0 - update) * candidate + update * h", "(1.0 - update) * candidate + h"),
    Fault(REC, "gate: LSTM peephole", "peep[2] * c", "peep[0] * c"),
    # Axes and permutations.
    Fault(ACT, "axis: LogSoftmax", "t.sum(g, [axis])", "t.sum(g, [-1])"),
    Fault(SHAPE, "axis: Transpose", "np.argsort(order)", "np.asarray(order)"),
    Fault(SHAPE, "axis: Concat", "starts.append(starts[-1] + sizes(t, x, [axis])[0])",
          "starts.append(starts[-1] + sizes(t, xs[0], [axis])[0])"),
    Fault(SHAPE, "order: DepthToSpace CRD", "(0, 1, 3, 5, 2, 4)", "(0, 1, 5, 3, 2, 4)"),
    Fault(SHAPE, "order: negative Slice", "first = first - (span - 1).least(0)", "first = first - span"),
    Fault(SHAPE, "triangle: Trilu", 't.op("Trilu", g, k, upper=upper)', 't.op("Trilu", g, None, upper=upper)'),
    Fault(SHAPE, "sign: negative Pad", "[b.least(0) for b in before]", "list(before)"),
    Fault(SIZE, "axis: contract", "for d in dims[axis + 2 :]:", "for d in dims[axis + 1 :]:"),
    Fault(IND, "twice: Gather of one element", "len(np.unique(picked)) == len(picked)", "True"),
    Fault(LIN, "diagonal: Einsum", "if first != axis:", "if first > axis:"),
    Fault(CONV, "axis: Conv bias", "t.sum(g, [0, *range(2, g.rank)]", "t.sum(g, [0, *range(3, g.rank)]"),
    Fault(CONV, "groups: weight of Conv", "t.transpose(split, [2, 1, 0,", "t.transpose(split, [1, 2, 0,"),
    # Pads, strides and windows.
    Fault(WIN, "pad: SAME_UPPER as SAME_LOWER", 'if auto_pad == "SAME_UPPER" else', 'if auto_pad == "SAME_LOWER" else'),
    Fault(WIN, "pad: rows that a stride drops", "max(surplus, 0), max(-surplus, 0)", "max(surplus, 0), 0"),
    Fault(WIN, "pad: dynamic sizes", "max(-slack, 0), max(slack, 0)", "max(-slack, 0), 0"),
    Fault(WIN, "extent: dilations", "(k - 1) * d + 1", "(k - 1) + 1"),
    Fault(CONV, "pad: ConvTranspose output_shape", "begin.append(small if upper else total - small)",
          "begin.append(total - small if upper else small)"),
    Fault(CONV, "stride: weight of Conv", '"strides": list(over.dilations), "dilations": list(over.strides)',
          '"strides": list(over.strides), "dilations": list(over.dilations)'),
    Fault(POOL, "count: padded AveragePool", "counted = [\n        (Size(t, 0), p + h + q) if padded else (p, p + h)",
          "counted = [\n        (Size(t, 0), p + h + q) if not padded else (p, p + h)"),
    # Ties.
    Fault(POOL, "tie: MaxPool gives to all maxima", 'first = t.op("Xor", any_so_far, hit)', "pass"),
    Fault(POOL, "tie: GlobalMaxPool", 't.op("Where", top, g / count, 0.0)', 't.op("Where", top, g, 0.0)'),
    Fault(RED, "tie: ReduceMax", 'r.kept(g) / r.again("ReduceSum", hit) * hit', "r.kept(g) * hit"),
    Fault(ELE, "tie: Max", 'share = g / t.op("Sum", *hits)', "share = g"),
    Fault(ACT, "tie: Relu at zero", "g: Value, y: Value, x: Value) -> Sequence[Cotangent]:\n"
          '    """The gradient passes where the output is positive."""\n    return [t.op("Where", y > 0.0',
          "g: Value, y: Value, x: Value) -> Sequence[Cotangent]:\n"
          '    """The gradient passes where the output is positive."""\n    return [t.op("Where", y >= 0.0'),
    Fault(IND, "tie: scattered maxima", 'g / put(t.cast(kept, g.dtype), t.cast(written, g.dtype), "add")', "g"),
    # Scattered and picked elements.
    Fault(IND, "twice: GatherElements", '(base, values, "add")', '(base, values, "none")'),
    Fault(IND, "zeros: factors that are scattered", 't.op("Where", others < 0.5, rest, 0.0)', "rest"),
    Fault(IND, "offset: Compress", "exclusive=1)", "exclusive=0)"),
    Fault(LOSS, "sign: losses", "return -(picked * g)", "return picked * g"),
    Fault(LOSS, "weights: mean of a loss", "g = g / t.sum(picked)", "g = g / t.sum(t.cast(chosen, x.dtype))"),
    # Resize.
    Fault(RES, "mode: repeats where it interpolates", 'if mode == "nearest" and (coordinate', "if (coordinate"),
    Fault(RES, "factor: mean instead of sum", "[mean * float(math.prod(kernel)), None", "[mean, None"),
    # The engine: broadcasting, accumulation, stops.
    Fault(ENGINE, "unbroadcast: leading axes", "g = t.sum(g, range(lead), keepdims=False)",
          "g = t.sum(g, range(g.rank - lead, g.rank), keepdims=False)"),
    Fault(ENGINE, "unbroadcast: ones", "if target == 1 and size != 1:", "if target == 1 and size == 1:"),
    Fault(ENGINE, "unbroadcast: unknown sizes", "return _fold(t, g, x) if unsure else g", "return g"),
    Fault(ENGINE, "unbroadcast: empty",
          'target = t.op("Max", t.op("Shape", x), t.ints(1))', 'target = t.op("Shape", x)'),
    Fault(ENGINE, "accumulation", "pending.setdefault(x, []).append(g)", "pending[x] = [g]"),
    Fault(ENGINE, "stop", "or i in rule.stops or not path.carries(node, x)", "or not path.carries(node, x)"),
    Fault(EXPAND, "default attributes", "if name not in node.attributes and attribute", "if attribute"),
]  # fmt: skip

TESTS = {
    ENGINE: ["engine"],
    EXPAND: ["expand"],
    WIN: ["rules_convolution", "rules_pooling"],
    ACT: ["rules_activation", "rules_softmax"],
    RED: ["rules_reduction", "rules_cumulative"],
    LIN: ["rules_linear", "rules_einsum"],
    IND: ["rules_indexing", "rules_scatter"],
    SIZE: ["rules_shape", "rules_indexing", "rules_resize"],
}
"""The tests of a file, where they are not `rules_<file>` alone."""


def tests_of(file: str) -> list[str]:
    """The test files that have to notice a fault in `file`."""
    return [f"tests/autodiff/test_{name}.py" for name in TESTS.get(file, [f"rules_{Path(file).stem}"])]


def copy_project(target: Path) -> None:
    """Copy what the tests need into `target`."""
    for name in ("onnx_gradcam", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)


def noticed(folder: Path, tests: list[str]) -> str | None:
    """The first test that fails in `folder`; `None` if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 and not lines:
        sys.exit(f"pytest itself failed in {folder}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return lines[0].split(" - ")[0].split(" ", 1)[1]


def planted(text: str, fault: Fault) -> str:
    """`text` with the fault in it."""
    if text.count(fault.old) != 1:
        sys.exit(f"{fault.file}: {fault.description}: the text occurs {text.count(fault.old)} times, not once")
    return text.replace(fault.old, fault.new)


def imports_the_copy(folder: Path) -> bool:
    """Whether Python imports the package from `folder`, and not the installed one."""
    script = "import onnx_gradcam; print(onnx_gradcam.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip()).is_relative_to(folder)


def main(words: list[str]) -> int:
    """Plant the faults that `words` choose; 1 if one survives, else 0."""
    chosen = [f for f in FAULTS if not words or any(w in f.file or w in f.description for w in words)]
    survivors = []
    for fault in chosen:
        planted((ROOT / "onnx_gradcam" / fault.file).read_text(), fault)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        copy_project(folder)
        if not imports_the_copy(folder):
            sys.exit("Python does not import the copy of the package")
        for tests in sorted({tuple(tests_of(f.file)) for f in chosen}):
            failing = noticed(folder, list(tests))
            if failing is not None:
                sys.exit(f"{failing} fails without any fault")
        for i, fault in enumerate(chosen, 1):
            began = time.perf_counter()
            path = folder / "onnx_gradcam" / fault.file
            original = path.read_text()
            path.write_text(planted(original, fault))
            by = noticed(folder, tests_of(fault.file)) or noticed(folder, [CORPUS])
            path.write_text(original)
            verdict = f"killed by {by}" if by else "SURVIVED"
            seconds = time.perf_counter() - began
            print(
                f"{i:3d}/{len(chosen)} {path.name:18s} {fault.description:36s} {verdict} ({seconds:.0f} s)",
                flush=True,
            )
            if by is None:
                survivors.append(fault)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults noticed")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
