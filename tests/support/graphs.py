"""Small models in ONNX text, with random weights that depend on their names alone."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from onnx_gradcam.autodiff.backward import carries_gradient
from onnx_gradcam.editor.targets.layer import Layer, find_layer, follow_paths
from onnx_gradcam.editor.targets.score import find_score, image_inputs
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.runtime.session import Session

Array = np.ndarray[Any, Any]


def weight(name: str, *shape: int, dtype: Any = np.float32) -> Array:
    """Random numbers of the standard deviation that keeps activations about one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = int(np.prod(shape[1:])) or 1
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(dtype)


def graph(
    body: str,
    *,
    inputs: str = "float[N,3,8,8] x",
    outputs: str = "float[N,4] y",
    opset: int = 18,
    dtype: Any = np.float32,
    **constants: Array | tuple[int, ...] | list[int] | int,
) -> onnx.ModelProto:
    """A model from the body of a graph in ONNX text.

    Args:
        body: the nodes.
        inputs: the graph's inputs.
        outputs: its outputs.
        opset: version of the default operator set.
        dtype: of random weights.
        constants: initializers: an array as it is, a tuple for random weights of that shape, a list or a number for
            `int64`.
    """
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        if isinstance(value, tuple):
            array = weight(name, *value, dtype=dtype)
        else:
            array = np.asarray(value, np.int64) if isinstance(value, list | int) else np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def placed_detector(gain: float = 1) -> onnx.ModelProto:
    """A detector of 64 boxes of two classes that its graph decodes; a larger `gain` makes scores differ more."""
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(64, 2).T[None]
    return graph(
        "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, C) a = Relu(c) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, D) "
        "b = Relu(d) bs = Conv(b, B) br = Reshape(bs, four) ab = Abs(br) ss = Conv(b, S) sr = Reshape(ss, wide) "
        "p = Sigmoid(sr) l, r = Split<axis=1>(ab, halves) lo = Sub(cells, l) hi = Add(cells, r) "
        "co = Concat<axis=1>(lo, hi) m = Mul(co, s) y = Concat<axis=1>(m, p)",
        inputs="float[N,3,32,32] x",
        outputs="float[N,6,64] y",
        C=weight("C", 6, 3, 3, 3) * np.float32(gain), D=(7, 6, 3, 3), B=(4, 7, 1, 1),
        S=weight("S", 2, 7, 1, 1) * np.float32(gain), four=[0, 4, 64], wide=[0, 2, 64], halves=[2, 2],
        cells=(grid + 0.5).astype(np.float32), s=np.array(4, np.float32),
    )  # fmt: skip


def colour_detector(shape: str = "N,3,32,32") -> onnx.ModelProto:
    """A detector of red (class 0) and blue (class 1) squares of 12 pixels in 32x32 pixels around zero.

    Its 64 boxes of 12 pixels are around the cells of 4 pixels; the score of a box is how much of its colour it holds.
    """
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(64, 2).T[None]
    colours = np.array([[1, -1, 0], [0, -1, 1]], np.float32)[:, :, None, None] / 16
    return graph(
        "i = Reshape(x, sizes) a = Conv<strides=[4,4]>(i, K) b = Relu(a) n = Conv<pads=[1,1,1,1]>(b, D) d = Relu(n) "
        "bs = Conv(d, B, reach) "
        "br = Reshape(bs, four) ab = Abs(br) ss = Conv(d, S, floor) sr = Reshape(ss, wide) p = Sigmoid(sr) "
        "l, r = Split<axis=1>(ab, halves) lo = Sub(cells, l) hi = Add(cells, r) co = Concat<axis=1>(lo, hi) "
        "m = Mul(co, s) y = Concat<axis=1>(m, p)",
        inputs=f"float[{shape}] x",
        outputs="float[N,6,64] y",
        sizes=[-1, 3, 32, 32],
        K=np.tile(colours, (1, 1, 4, 4)), D=np.eye(2, dtype=np.float32)[:, :, None, None] * np.ones((3, 3), "f") / 9,
        B=np.zeros((4, 2, 1, 1), np.float32), reach=np.full(4, 1.5, np.float32), floor=np.full(2, -9, np.float32),
        S=16 * np.eye(2, dtype=np.float32)[:, :, None, None], four=[0, 4, 64], wide=[0, 2, 64], halves=[2, 2],
        cells=(grid + 0.5).astype(np.float32), s=np.array(4, np.float32),
    )  # fmt: skip


def suppressing_detector() -> onnx.ModelProto:
    """A detector with NMS in its graph, which leaves no box in a black image."""
    return graph(
        "r = Reshape(x, flat) m = ReduceMax(r, two) k = Conv(x, K) kr = Reshape(k, flat) "
        "t = Transpose<perm=[0,2,1]>(kr) p = Sigmoid(t) q = Mul(p, m) st = Transpose<perm=[0,2,1]>(q) "
        "picked = NonMaxSuppression(corners, st, most, iou, least) col = Slice(picked, two, three, one) "
        "which = Squeeze(col, one) line = Reshape(q, all) "
        "g = Gather(line, which) scores = Unsqueeze(g, zero)",
        inputs="float[1,1,8,8] x",
        outputs="float[1,M] scores",
        K=np.full((1, 1, 1, 1), 3, np.float32), flat=[0, 1, 64], all=[-1], zero=[0], one=[1], two=[2], three=[3],
        most=[4], iou=np.array([0.5], np.float32), least=np.array([0.3], np.float32),
        corners=np.repeat(np.arange(64, dtype=np.float32), 4).reshape(1, 64, 4) + np.array([0, 0, 1, 1], np.float32),
    )  # fmt: skip


def thresholded_detector(*, softmax: bool = False, size: tuple[int, int] = (24, 30)) -> onnx.ModelProto:
    """A detector as torchvision exports it: one image without a batch axis, scaled and padded in the graph.

    Of the boxes of two levels, `[16, 3]` and `[4, 3]`, those above a threshold are chosen, then decoded, suppressed and
    scaled back: `boxes`, `scores` and `labels`, whose number depends on the image. With `softmax` there is one level,
    class 0 is the background, and the boxes are decoded first and chosen for one class after the other, as in SSD.
    """
    height, width = size
    scaled = (14, 15)
    lines = [
        'm = Sub(x, mean) n = Div(m, std) u = Unsqueeze(n, i0) r = Resize<mode="linear">(u, none, none, scaled)',
        "g = Gather<axis=0>(r, zero) sh = Shape<start=1>(g) missing = Sub(whole, sh)",
        "pads = Concat<axis=0>(no, missing) p = Pad(g, pads) w = Unsqueeze(p, i0) z = Concat<axis=0>(w)",
        "c = Conv<pads=[1,1,1,1], strides=[2,2]>(z, C) a0 = Relu(c)",
        "d = Conv<pads=[1,1,1,1], strides=[2,2]>(a0, D) b0 = Relu(d)",
        "e = Conv<pads=[1,1,1,1], strides=[2,2]>(b0, D) b1 = Relu(e)",
    ]
    levels = [(4, 4), (2, 2)][: 1 if softmax else 2]
    for i in range(len(levels)):
        for name, last in (("s", 3), ("q", 4)):
            lines.append(
                f"{name}c{i} = Conv(b{i}, {name.upper()}) {name}t{i} = Transpose<perm=[0,2,3,1]>({name}c{i}) "
                f"{name}r{i} = Reshape({name}t{i}, to{last})"
            )
    last = len(levels) - 1
    joined = {name: ", ".join(f"{name}r{i}" for i in range(last + 1)) for name in "sq"}
    lines += [f"{name}a = Concat<axis=1>({joined[name]})" for name in "sq"]
    # torchvision counts the boxes of a level by the size of its map.
    lines.append("grid = Shape<start=2>(b0) till0 = ReduceProd(grid) from1 = Identity(till0)")
    if softmax:
        lines += [
            "sf = Softmax<axis=-1>(sa) s0 = Squeeze(sf, i0) q0 = Squeeze(qa, i0) qd = Mul(q0, two)",
            "all0 = Add(anchors, qd)",
        ]
    for i in range(2):
        if softmax:
            lines.append(
                f"f{i} = Gather<axis=1>(s0, class{i}) gt{i} = Greater(f{i}, least) nz{i} = NonZero(gt{i}) "
                f"tr{i} = Transpose(nz{i}) k{i} = GatherND(f{i}, tr{i}) kb{i} = GatherND(all0, tr{i})"
            )
        else:
            lines.append(
                f"sl{i} = Slice(sa, from{i}, till{i}, i1) sg{i} = Gather<axis=0>(sl{i}, zero) p{i} = Sigmoid(sg{i}) "
                f"f{i} = Reshape(p{i}, flat) gt{i} = Greater(f{i}, least) nz{i} = NonZero(gt{i}) "
                f"tr{i} = Transpose(nz{i}) k{i} = GatherND(f{i}, tr{i}) at{i} = Squeeze(tr{i}, i1)"
            )
        lines.append(f"n{i} = Shape(k{i}) t{i} = Min(n{i}, most) v{i}, o{i} = TopK(k{i}, t{i})")
        if softmax:
            lines.append(f"x{i} = Gather<axis=0>(kb{i}, o{i}) l{i} = ConstantOfShape<value=int64[1] {{{i + 1}}}>(t{i})")
            lines.append(f"lab{i} = Expand(l{i}, t{i})")
        else:
            lines.append(
                f"row{i} = Gather<axis=0>(at{i}, o{i}) lab{i} = Mod(row{i}, three) box{i} = Div(row{i}, three) "
                f"ql{i} = Slice(qa, from{i}, till{i}, i1) qg{i} = Gather<axis=0>(ql{i}, zero) "
                f"qk{i} = Gather<axis=0>(qg{i}, box{i}) an{i} = Slice(anchors, from{i}, till{i}, i0) "
                f"ak{i} = Gather<axis=0>(an{i}, box{i}) qm{i} = Mul(qk{i}, two) x{i} = Add(ak{i}, qm{i})"
            )
    lines.append(
        "xs = Concat<axis=0>(x0, x1) vs = Concat<axis=0>(v0, v1) labs = Concat<axis=0>(lab0, lab1) "
        "ub = Unsqueeze(xs, i0) us = Unsqueeze(vs, i01) sel = NonMaxSuppression(ub, us, most, iou) "
        "kept = Gather<axis=1>(sel, two_) xk = Gather<axis=0>(xs, kept) boxes = Mul(xk, back) "
        "scores = Gather<axis=0>(vs, kept) labels = Gather<axis=0>(labs, kept)"
    )
    anchors = [
        (stride * (x - 0.5), stride * (y - 0.5), stride * (x + 1.5), stride * (y + 1.5))
        for (h, w), stride in zip(levels, (4, 8), strict=False)
        for y in range(h)
        for x in range(w)
    ]
    return graph(
        "\n".join(lines),
        inputs=f"float[3,{height},{width}] x",
        outputs="float[M,4] boxes, float[M] scores, int64[M] labels",
        C=(7, 3, 3, 3), D=(7, 7, 3, 3), S=weight("S", 3, 7, 1, 1) * np.float32(4), Q=(4, 7, 1, 1),
        mean=np.full((3, 1, 1), 0.5, np.float32), std=np.full((3, 1, 1), 0.25, np.float32),
        i0=[0], i1=[1], i01=[0, 1], zero=0, none=np.zeros(0, np.float32),
        scaled=[1, 3, *scaled], whole=[16, 16], no=[0, 0, 0, 0], to3=[1, -1, 3], to4=[1, -1, 4], flat=[-1],
        least=np.array(0.3, np.float32), most=[8], three=np.array(3, np.int64), two=np.array(2, np.float32), two_=2,
        iou=np.array([0.5], np.float32), anchors=np.array(anchors, np.float32), class0=1, class1=2,
        back=np.array([width / 15, height / 14] * 2, np.float32),
        from0=[0], till1=[20],
    )  # fmt: skip


def two_stage_detector() -> onnx.ModelProto:
    """A detector as torchvision's Faster R-CNN: five regions are chosen, pooled and classified, class 0 is none.

    `lg` `[5, 3]` are the logits; the features `b` do not decide which regions are chosen.
    """
    rows, columns = np.mgrid[:12, :15] * 2.0
    cells = np.stack([columns - 4, rows - 4, columns + 6, rows + 6], -1).reshape(-1, 4)
    return graph(
        "u = Unsqueeze(x, i0) c = Conv<pads=[1,1,1,1], strides=[2,2]>(u, C) a = Relu(c) rp = Conv(a, R) "
        "rf = Reshape(rp, flat) pv, pi = TopK(rf, five) regions = Gather<axis=0>(cells, pi) n = Shape(pi) "
        "zb = ConstantOfShape<value=int64[1] {0}>(n) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, D) b = Relu(d) "
        "ra = RoiAlign<output_height=2, output_width=2, sampling_ratio=2, spatial_scale=0.25>(b, regions, zb) "
        "fl = Flatten(ra) lg = Gemm(fl, W) sm = Softmax<axis=-1>(lg) fg = Slice(sm, i1, big, i1) f = Reshape(fg, flat) "
        "gt = Greater(f, least) nz = NonZero(gt) tr = Transpose(nz) k = GatherND(f, tr) at = Squeeze(tr, i1) "
        "region = Div(at, two) kb = Gather<axis=0>(regions, region) lz = Mod(at, two) lab = Add(lz, one) "
        "ub = Unsqueeze(kb, i0) us = Unsqueeze(k, i01) sel = NonMaxSuppression(ub, us, five, iou) "
        "kept = Gather<axis=1>(sel, two) boxes = Gather<axis=0>(kb, kept) scores = Gather<axis=0>(k, kept) "
        "labels = Gather<axis=0>(lab, kept)",
        inputs="float[3,24,30] x",
        outputs="float[M,4] boxes, float[M] scores, int64[M] labels",
        C=(7, 3, 3, 3), D=(7, 7, 3, 3), R=(1, 7, 1, 1), W=weight("W", 28, 3) * np.float32(9), i0=[0], i1=[1],
        i01=[0, 1], one=1, two=2, five=[5], big=[99], flat=[-1], cells=cells.astype(np.float32),
        least=np.array(0.05, np.float32), iou=np.array([0.5], np.float32),
    )  # fmt: skip


def builder(model: onnx.ModelProto) -> Builder:
    return Builder(load(model))


def choose(model: onnx.ModelProto, layer: str = "auto", names: dict[str, str] | None = None) -> Layer:
    """The target tensor that is chosen in a model of one image and one score."""
    t = builder(model)
    score = find_score(t)
    return find_layer(follow_paths(t, image_inputs(t)[0], score.tensor, carries_gradient(t)), layer, names)


HAS_VNNI = "vnni" in (Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else "vnni")
"""Whether the processor adds products of 8 bits without saturation; ONNX Runtime's int8 scores depend on it."""


def run(
    model: onnx.ModelProto, *, disabled: list[str] | None = None, optimized: bool = True, **feeds: Array
) -> dict[str, Array]:
    """All outputs by name."""
    if not optimized:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        plain = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip([o.name for o in plain.get_outputs()], plain.run(None, feeds), strict=True))
    session = Session(model.SerializeToString(), disabled_optimizers=disabled or [], threads=1)
    return session.run(feeds)


def images(count: int = 2, *shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Random model inputs, `[count, 3, 8, 8]` by default."""
    return np.random.default_rng(seed).standard_normal((count, *(shape or (3, 8, 8)))).astype(dtype)


WIDTH, SIDE, HEADS = 8, 4, 2


def vit(
    *,
    head: str = "class",
    registers: int = 0,
    fused: bool = False,
    decomposed: bool = False,
    batch: str = "N",
    blocks: int = 2,
) -> onnx.ModelProto:
    """A small vision transformer over `[N, 3, 8, 8]`, as exporters write it: patches of 2x2, so 4x4 tokens.

    Args:
        head: what it reads: `class` for the class token, `mean` for all tokens, `both` for the two side by side.
        registers: how many register tokens stand between class token and patches.
        fused: one matrix for queries, keys and values.
        decomposed: layer normalisation in arithmetic.
        batch: size or symbol of the batch.
        blocks: how many.
    """
    prefix = 1 + registers
    count = prefix + SIDE * SIDE
    lines = [
        "a = Conv<strides=[2, 2]>(x, K) m = Reshape(a, merged) k = Transpose<perm=[0, 2, 1]>(m)",
        "b = Shape<start=0, end=1>(x) cs = Concat<axis=0>(b, prefix_shape) cls = Expand(prefix_tokens, cs)",
        "c = Concat<axis=1>(cls, k) t0 = Add(c, position)",
    ]
    for i in range(blocks):
        lines += [
            _norm(f"t{i}", f"n{i}", decomposed=decomposed),
            _attention(f"n{i}", f"b{i}_", fused=fused),
            f"r{i} = Add(t{i}, b{i}_out)",
            _norm(f"r{i}", f"p{i}", decomposed=decomposed),
            f"u{i} = MatMul(p{i}, Wu) g{i} = Tanh(u{i}) d{i} = MatMul(g{i}, Wd) t{i + 1} = Add(r{i}, d{i})",
        ]
    lines.append(_norm(f"t{blocks}", "z", decomposed=decomposed))
    lines.append(
        {
            "class": "f = Gather<axis=1>(z, zero) y = Gemm(f, V)",
            "slice": "f0 = Slice(z, zeros, ones, ones) f = Squeeze(f0, ones) y = Gemm(f, V)",
            "mean": "f = ReduceMean<keepdims=0>(z, ones) y = Gemm(f, V)",
            "patches": "f0 = Slice(z, first_patch, last, ones) f = ReduceMean<keepdims=0>(f0, ones) y = Gemm(f, V)",
            "both": "f1 = Gather<axis=1>(z, zero) f2 = Slice(z, first_patch, last, ones)"
            " f3 = ReduceMean<keepdims=0>(f2, ones) f = Concat<axis=1>(f1, f3) y = Gemm(f, V)",
        }[head]
    )
    return graph(
        "\n".join(lines),
        inputs=f"float[{batch},3,8,8] x",
        outputs=f"float[{batch},4] y",
        K=(WIDTH, 3, 2, 2),
        merged=[0, WIDTH, SIDE * SIDE],
        prefix_shape=[prefix, WIDTH],
        prefix_tokens=(1, prefix, WIDTH),
        position=(1, count, WIDTH),
        gamma=1 + weight("gamma", WIDTH) / 5,
        beta=(WIDTH,),
        W=(WIDTH, 3 * WIDTH),
        Wq=(WIDTH, WIDTH),
        Wk=(WIDTH, WIDTH),
        Wv=(WIDTH, WIDTH),
        Wo=(WIDTH, WIDTH),
        Wu=(WIDTH, 2 * WIDTH),
        Wd=(2 * WIDTH, WIDTH),
        V=(2 * WIDTH if head == "both" else WIDTH, 4),
        three_heads=[0, count, 3, HEADS, WIDTH // HEADS],
        heads=[0, count, HEADS, WIDTH // HEADS],
        joined=[0, count, WIDTH],
        scale=np.float32((WIDTH // HEADS) ** -0.5),
        tiny=np.float32(1e-5),
        zero=0,
        one=1,
        two=2,
        zeros=[0],
        ones=[1],
        minus=[-1],
        last=[2**63 - 1],
        first_patch=[prefix],
    )


def _norm(x: str, y: str, *, decomposed: bool) -> str:
    if not decomposed:
        return f"{y} = LayerNormalization<axis=-1>({x}, gamma, beta)"
    return (
        f"{y}_m = ReduceMean({x}, minus) {y}_d = Sub({x}, {y}_m) {y}_s = Mul({y}_d, {y}_d)"
        f" {y}_v = ReduceMean({y}_s, minus) {y}_e = Add({y}_v, tiny) {y}_r = Sqrt({y}_e)"
        f" {y}_q = Div({y}_d, {y}_r) {y}_g = Mul({y}_q, gamma) {y} = Add({y}_g, beta)"
    )


def _attention(x: str, p: str, *, fused: bool) -> str:
    if fused:
        parts = (
            f"{p}w = MatMul({x}, W) {p}h = Reshape({p}w, three_heads) {p}t = Transpose<perm=[2, 0, 3, 1, 4]>({p}h)"
            f" {p}q = Gather<axis=0>({p}t, zero) {p}k0 = Gather<axis=0>({p}t, one) {p}v = Gather<axis=0>({p}t, two)"
        )
    else:
        parts = " ".join(
            f"{p}{n}w = MatMul({x}, W{n}) {p}{n}h = Reshape({p}{n}w, heads)"
            f" {p}{m} = Transpose<perm=[0, 2, 1, 3]>({p}{n}h)"
            for n, m in (("q", "q"), ("k", "k0"), ("v", "v"))
        )
    return (
        f"{parts} {p}k = Transpose<perm=[0, 1, 3, 2]>({p}k0) {p}l = MatMul({p}q, {p}k) {p}ls = Mul({p}l, scale)"
        f" {p}a = Softmax({p}ls) {p}c = MatMul({p}a, {p}v) {p}j = Transpose<perm=[0, 2, 1, 3]>({p}c)"
        f" {p}f = Reshape({p}j, joined) {p}out = MatMul({p}f, Wo)"
    )


def freed(model: onnx.ModelProto, size: tuple[int, int] | None = None, rows: int | None = None) -> onnx.ModelProto:
    """A copy whose only input has a free batch, height and width, or those given.

    A last pool over a window becomes one over all positions, and a Reshape to one row one to any number of rows.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    pools = [node for node in model.graph.node if node.op_type == "AveragePool"]
    reshaped = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    if reshaped and pools:
        pools[-1].op_type = "GlobalAveragePool"
        del pools[-1].attribute[:]
    for tensor in model.graph.initializer:
        if tensor.name in reshaped:
            target = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.array([-1, *target[1:]]), tensor.name))
    sizes = {0: rows, 2: size and size[0], 3: size and size[1]}
    for axis, number in sizes.items():
        dim = model.graph.input[0].type.tensor_type.shape.dim[axis]
        dim.Clear()
        if number is None:
            dim.dim_param = "N?HW"[axis]
        else:
            dim.dim_value = number
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return model
