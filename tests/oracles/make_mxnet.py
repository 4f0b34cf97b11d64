"""Make `mxnet/operators.json`: small networks, one or more for each operator, and what MXNet makes of them.

Run with MXNet 1.9.1 on Python 3.11 (`pip install mxnet==1.9.1 numpy==1.26.4`)::

    python tests/oracles/make_mxnet.py
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("MXNET_MKLDNN_ENABLED", "0")  # MXNet's own kernels: oneDNN has no dilated deconvolution
np.bool = np.bool_  # MXNet 1.9.1 uses the name that NumPy 1.24 dropped
import mxnet as mx  # noqa: E402

OUT = Path(__file__).with_name("mxnet") / "operators.json"
INPUTS = {
    "map": (2, 4, 5, 6),
    "square": (2, 4, 6, 6),
    "row": (2, 6),
    "sequence": (2, 4, 9),
    "volume": (2, 2, 3, 4, 3),
}
S = mx.sym
C = S.contrib


def positive(x):
    return S.abs(x) + 0.5


def pooled(x, **kw):
    return S.Pooling(x, **{"kernel": (3, 2), "stride": (2, 2), "pad": (1, 1), "name": "y"} | kw)


def statistics(x):
    return S.mean(x, axis=(2, 3), keepdims=True)


def gated(x):
    parts = S.SliceChannel(x, num_outputs=2, axis=1, name="parts")
    return S.broadcast_mul(parts[0], S.tanh(parts[1]), name="y")


def first_and_third(x):
    parts = S.SliceChannel(x, num_outputs=4, axis=1, squeeze_axis=True)
    return parts[0] + 2 * parts[2]


def per_case():
    """Input and network of each case; the layer under test is called `y`."""
    yield (
        "convolution",
        "map",
        lambda x: S.Convolution(
            x, kernel=(3, 2), stride=(2, 1), pad=(1, 1), dilate=(1, 2), num_filter=6, num_group=2, name="y"
        ),
    )
    yield (
        "convolution_no_bias",
        "map",
        lambda x: S.Convolution(
            x, kernel=(1, 1), num_filter=3, no_bias=True, layout="NCHW", workspace=512, cudnn_tune="off", name="y"
        ),
    )
    yield "convolution_1d", "sequence", lambda x: S.Convolution(x, kernel=(3,), pad=(1,), num_filter=3, name="y")
    yield "convolution_3d", "volume", lambda x: S.Convolution(x, kernel=(2, 2, 2), num_filter=3, name="y")
    yield "convolution_v1", "map", lambda x: S.Convolution_v1(x, kernel=(3, 3), pad=(1, 1), num_filter=3, name="y")
    yield (
        "deconvolution",
        "map",
        lambda x: S.Deconvolution(
            x, kernel=(3, 4), stride=(2, 3), pad=(1, 1), adj=(1, 2), num_filter=6, num_group=2, name="y"
        ),
    )
    yield (
        "deconvolution_bias",
        "map",
        lambda x: S.Deconvolution(x, kernel=(3, 3), dilate=(2, 1), num_filter=3, no_bias=False, name="y"),
    )
    yield (
        "deconvolution_target",
        "map",
        lambda x: S.Deconvolution(x, kernel=(4, 4), stride=(2, 2), target_shape=(9, 12), num_filter=2, name="y"),
    )
    for kind in ("max", "avg"):
        for convention in ("valid", "full"):
            yield (
                f"pool_{kind}_{convention}",
                "map",
                lambda x, k=kind, c=convention: pooled(x, pool_type=k, pooling_convention=c),
            )
    yield (
        "pool_avg_full_square",
        "square",
        lambda x: pooled(x, kernel=(3, 3), pool_type="avg", pooling_convention="full", pad=(1, 1)),
    )
    yield (
        "pool_avg_full_exclusive",
        "square",
        lambda x: pooled(x, kernel=(3, 3), pool_type="avg", pooling_convention="full", count_include_pad=False),
    )
    yield (
        "pool_avg_full_unpadded",
        "map",
        lambda x: pooled(x, kernel=(3, 3), pool_type="avg", pooling_convention="full", pad=(0, 0)),
    )
    yield "pool_avg_exclusive", "map", lambda x: pooled(x, pool_type="avg", count_include_pad=False)
    yield "pool_sum", "map", lambda x: pooled(x, pool_type="sum")
    yield "pool_lp", "map", lambda x: pooled(x, pool_type="lp", p_value=2)
    yield "pool_defaults", "map", lambda x: S.Pooling(x, kernel=(2, 2), name="y")
    yield "pool_1d", "sequence", lambda x: S.Pooling(x, kernel=(3,), stride=(2,), pool_type="avg", name="y")
    yield (
        "pool_v1",
        "map",
        lambda x: S.Pooling_v1(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="avg", name="y"),
    )
    for kind in ("avg", "max", "sum"):
        yield f"pool_global_{kind}", "map", lambda x, k=kind: S.Pooling(x, global_pool=True, pool_type=k, name="y")
    yield "pool_global_lp", "map", lambda x: S.Pooling(x, global_pool=True, pool_type="lp", p_value=2, name="y")
    yield "adaptive_one", "map", lambda x: C.AdaptiveAvgPooling2D(x, name="y")
    yield "adaptive_even", "square", lambda x: C.AdaptiveAvgPooling2D(x, output_size=3, name="y")
    yield "adaptive_uneven", "map", lambda x: C.AdaptiveAvgPooling2D(x, output_size=(2, 4), name="y")
    yield "upsampling_nearest", "map", lambda x: S.UpSampling(x, scale=3, sample_type="nearest", name="y")
    for scale in (2, 3):
        yield (
            f"upsampling_bilinear_{scale}",
            "map",
            lambda x, s=scale: S.UpSampling(x, S.var("w"), scale=s, sample_type="bilinear", num_filter=4, name="y"),
        )
    yield "resize_aligned", "map", lambda x: C.BilinearResize2D(x, height=7, width=9, name="y")
    yield "resize_half_pixel", "map", lambda x: C.BilinearResize2D(x, height=7, width=4, align_corners=False, name="y")
    yield "resize_scale", "square", lambda x: C.BilinearResize2D(x, scale_height=1.5, scale_width=2.0, name="y")
    yield (
        "resize_like",
        "map",
        lambda x: C.BilinearResize2D(S.Pooling(x, kernel=(2, 2), stride=(2, 2)), like=x, mode="like", name="y"),
    )
    pads = (0, 0, 0, 0, 1, 2, 3, 1)
    for mode in ("constant", "edge", "reflect"):
        yield f"pad_{mode}", "map", lambda x, m=mode: S.Pad(x, mode=m, pad_width=pads, constant_value=1.5, name="y")
    yield "pad_zero_then_pool", "map", lambda x: S.Pooling(
        S.Pad(0 - positive(x), mode="constant", pad_width=(0, 0, 0, 0, 1, 1, 1, 1)),
        kernel=(3, 3), stride=(2, 2), name="y",
    )  # fmt: skip
    yield "batch_norm_fixed", "map", lambda x: S.BatchNorm(x, name="y")
    yield "batch_norm_free", "map", lambda x: S.BatchNorm(x, fix_gamma=False, eps=2e-5, momentum=0.99, name="y")
    yield "batch_norm_v1", "map", lambda x: S.BatchNorm_v1(x, fix_gamma=False, name="y")
    yield "batch_norm_row", "row", lambda x: S.BatchNorm(x, fix_gamma=False, use_global_stats=True, name="y")
    yield "instance_norm", "map", lambda x: S.InstanceNorm(x, eps=1e-4, name="y")
    yield "layer_norm_last", "map", lambda x: S.LayerNorm(x, name="y")
    yield "layer_norm_channels", "map", lambda x: S.LayerNorm(x, axis=1, eps=1e-3, name="y")
    for mode in ("instance", "channel", "spatial"):
        yield f"l2_{mode}", "map", lambda x, m=mode: S.L2Normalization(x, mode=m, eps=0.1, name="y")
    yield "lrn", "map", lambda x: S.LRN(x, nsize=3, alpha=0.1, beta=0.6, knorm=1.5, name="y")
    yield "softmax_output", "row", lambda x: S.SoftmaxOutput(x, name="y")
    yield "softmax_output_map", "map", lambda x: S.SoftmaxOutput(x, name="y")
    yield "softmax_output_multi", "map", lambda x: S.SoftmaxOutput(x, multi_output=True, name="y")
    yield "softmax_output_preserved", "map", lambda x: S.SoftmaxOutput(x, preserve_shape=True, name="y")
    yield "softmax_activation_instance", "row", lambda x: S.SoftmaxActivation(x, name="y")
    yield "softmax_activation_channel", "map", lambda x: S.SoftmaxActivation(x, mode="channel", name="y")
    yield "softmax", "map", lambda x: S.softmax(x, axis=1, temperature=2.0, name="y")
    yield "softmax_last", "map", lambda x: S.softmax(x, name="y")
    yield "log_softmax", "map", lambda x: S.log_softmax(x, axis=-2, name="y")
    yield "softmin", "row", lambda x: S.softmin(x, name="y")
    yield "logistic", "row", lambda x: S.LogisticRegressionOutput(x, name="y")
    yield "linear_regression", "row", lambda x: S.LinearRegressionOutput(x * 2, name="y")
    yield "mean_absolute_regression", "row", lambda x: S.MAERegressionOutput(x * 2, name="y")
    yield "svm", "row", lambda x: S.SVMOutput(x * 2, name="y")
    yield "make_loss", "row", lambda x: S.MakeLoss(x * 2, name="y")
    for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign"):
        yield f"activation_{kind}", "map", lambda x, k=kind: S.Activation(x, act_type=k, name="y")
    yield "leaky_rrelu", "map", lambda x: S.LeakyReLU(x, act_type="rrelu", lower_bound=0.2, name="y")[0] * 2
    for kind in ("leaky", "elu", "selu", "gelu", "prelu"):
        yield f"leaky_{kind}", "map", lambda x, k=kind: S.LeakyReLU(x, act_type=k, slope=0.3, name="y")
    yield "prelu_row", "row", lambda x: S.LeakyReLU(x, act_type="prelu", name="y")
    yield "prelu_shared", "map", lambda x: S.LeakyReLU(x, S.var("g", shape=(1,)), act_type="prelu", name="y")
    for name in ("relu", "sigmoid", "tanh", "softsign", "erf", "exp", "abs", "square", "negative", "floor", "ceil"):
        yield name, "row", lambda x, n=name: getattr(S, n)(x, name="y")
    for name in ("sin", "cos"):
        yield name, "row", lambda x, n=name: getattr(S, n)(x, name="y")
    for name in ("log", "sqrt", "rsqrt", "reciprocal"):
        yield name, "row", lambda x, n=name: getattr(S, n)(positive(x), name="y")
    yield "clip", "row", lambda x: S.clip(x, a_min=-0.3, a_max=0.7, name="y")
    yield "hard_sigmoid", "row", lambda x: S.hard_sigmoid(x, alpha=0.3, beta=0.4, name="y")
    for name in ("add", "sub", "mul", "maximum", "minimum"):
        yield f"broadcast_{name}", "map", lambda x, n=name: getattr(S, f"broadcast_{n}")(x, statistics(x), name="y")
    yield "broadcast_div", "map", lambda x: S.broadcast_div(x, statistics(positive(x)), name="y")
    yield "broadcast_power", "map", lambda x: S.broadcast_power(positive(x), statistics(x), name="y")
    for name in ("add", "sub", "mul"):
        yield f"elemwise_{name}", "map", lambda x, n=name: getattr(S, f"elemwise_{n}")(x, S.tanh(x), name="y")
    yield "elemwise_div", "map", lambda x: S.elemwise_div(x, positive(x), name="y")
    yield "elemwise_maximum", "row", lambda x: S.maximum(x, S.tanh(x) * 0.5)
    yield "elemwise_minimum", "row", lambda x: S.minimum(x, S.tanh(x) * 0.5)
    yield "elemwise_power", "row", lambda x: positive(x) ** S.tanh(x)
    scalars = {
        "plus": lambda x: x + 2.5,
        "minus": lambda x: x - 2.5,
        "rminus": lambda x: 2.5 - x,
        "mul": lambda x: x * 2.5,
        "div": lambda x: x / 2.5,
        "rdiv": lambda x: 2.5 / positive(x),
        "power": lambda x: positive(x) ** 1.5,
        "rpower": lambda x: S.pow(1.5, x),
        "maximum": lambda x: S.maximum(x, 0.2),
        "minimum": lambda x: S.minimum(x, 0.2),
    }
    for name, make in scalars.items():
        yield f"scalar_{name}", "row", make
    yield "add_n", "row", lambda x: S.add_n(x, S.tanh(x), x * x, name="y")
    yield "broadcast_to", "map", lambda x: S.broadcast_to(statistics(x), shape=(0, 0, 3, 2), name="y")
    yield "broadcast_axis", "map", lambda x: S.broadcast_axis(statistics(x), axis=(2, 3), size=(3, 2), name="y")
    yield "broadcast_like", "map", lambda x: S.broadcast_like(statistics(x), x, name="y")
    shapes = {
        "keep_rest": (0, -1),
        "numbers": (-1, 60),
        "tail": (0, 2, -1, 6),
        "join": (0, -3, 0),
        "all": (-2, 1, 1),
        "split": (0, -4, 2, -1, 0, 0),
        "split_join": (0, -4, 2, 2, -3),
        "join_batch": (-3, -2),
    }
    for name, shape in shapes.items():
        yield f"reshape_{name}", "map", lambda x, s=shape: S.Reshape(x, shape=s, name="y")
    yield "reshape_reverse", "map", lambda x: S.Reshape(x, shape=(-1, 0, 6), reverse=True, name="y")
    yield "reshape_reverse_join", "map", lambda x: S.Reshape(x, shape=(-2, -3), reverse=True, name="y")
    yield "flatten", "map", lambda x: S.Flatten(x, name="y")
    yield "transpose", "map", lambda x: S.transpose(x, axes=(0, 2, 3, 1), name="y")
    yield "transpose_default", "row", lambda x: S.transpose(x, name="y")
    yield "swap_axis", "map", lambda x: S.SwapAxis(x, dim1=1, dim2=3, name="y")
    yield "expand_dims", "map", lambda x: S.expand_dims(x, axis=-1, name="y")
    yield "squeeze", "map", lambda x: S.squeeze(statistics(x), axis=(2, 3), name="y")
    yield "squeeze_all", "map", lambda x: S.squeeze(statistics(x), name="y")
    yield "concat", "map", lambda x: S.Concat(x, S.tanh(x), S.broadcast_add(statistics(x), x), dim=1, name="y")
    yield "concat_last", "map", lambda x: S.Concat(x, S.tanh(x), dim=-1, name="y")
    yield "stack", "row", lambda x: S.stack(x, S.tanh(x), axis=1, name="y")
    yield "split", "map", gated
    yield "split_squeezed", "map", first_and_third
    yield "slice", "map", lambda x: S.slice(x, begin=(None, 1, 0, -4), end=(None, 3, None, -1), name="y")
    yield (
        "slice_steps",
        "map",
        lambda x: S.slice(x, begin=(None, None, -1), end=(None, None, 0), step=(None, 2, -2), name="y"),
    )
    yield "slice_axis", "map", lambda x: S.slice_axis(x, axis=-1, begin=1, end=-2, name="y")
    yield "slice_axis_open", "map", lambda x: S.slice_axis(x, axis=2, begin=-2, end=None, name="y")
    yield (
        "slice_like",
        "map",
        lambda x: S.slice_like(x, S.Pooling(x, kernel=(2, 2), stride=(2, 2)), axes=(2, 3), name="y"),
    )
    yield "slice_like_all", "map", lambda x: S.slice_like(x, S.Pooling(x, kernel=(2, 2), stride=(2, 2)), name="y")
    yield "crop", "map", lambda x: S.Crop(x, offset=(1, 2), h_w=(3, 2), num_args=1, name="y")
    yield "crop_center", "map", lambda x: S.Crop(x, h_w=(3, 3), center_crop=True, num_args=1, name="y")
    yield (
        "crop_like",
        "map",
        lambda x: S.Crop(x, S.Pooling(x, kernel=(2, 2), stride=(2, 2)), offset=(1, 1), num_args=2, name="y"),
    )
    yield "dense", "map", lambda x: S.FullyConnected(x, num_hidden=3, name="y")
    yield "dense_no_bias", "row", lambda x: S.FullyConnected(x, num_hidden=3, no_bias=True, name="y")
    yield "dense_last_axis", "sequence", lambda x: S.FullyConnected(x, num_hidden=3, flatten=False, name="y")
    yield "dot", "row", lambda x: S.dot(x, S.var("w", shape=(5, 6)), transpose_b=True, name="y")
    yield "batch_dot", "sequence", lambda x: S.batch_dot(x, S.tanh(x), transpose_a=True, name="y")
    for name in ("mean", "sum", "max", "min", "prod"):
        yield name, "map", lambda x, n=name: getattr(S, n)(x, axis=(2, 3), name="y")
    yield "mean_kept", "map", lambda x: S.mean(x, axis=-1, keepdims=True, name="y")
    yield "sum_excluded", "map", lambda x: S.sum(x, axis=(0, 1), exclude=True, name="y")
    yield "norm", "map", lambda x: S.norm(x, axis=1, name="y")
    yield "norm_1", "map", lambda x: S.norm(x, ord=1, axis=(2, 3), keepdims=True, name="y")
    yield "cast", "row", lambda x: S.Cast(S.Cast(x * 4, dtype="int32"), dtype="float32", name="y") + x
    yield "dropout", "row", lambda x: S.Dropout(x * 2, p=0.5, name="y")
    yield "identity", "row", lambda x: S.identity(S.BlockGrad(x * 2), name="y")
    yield "several_outputs", "row", lambda x: S.Group([S.tanh(x, name="y"), S.SoftmaxOutput(x * 2, name="z")])
    old = {
        "max_padded": {"pool_type": "max"},
        "max_full": {"pool_type": "max", "pooling_convention": "full"},
        "avg_full": {"pool_type": "avg", "pooling_convention": "full"},
        "avg_full_unpadded": {"pool_type": "avg", "pooling_convention": "full", "pad": (0, 0)},
        "sum_full": {"pool_type": "sum", "pooling_convention": "full", "kernel": (2, 3)},
        "global": {"pool_type": "max", "global_pool": True},
    }
    for name, kw in old.items():
        geometry = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "name": "y"} | kw
        yield f"pool_v1_{name}", "square", lambda x, g=geometry: S.Pooling_v1(x, **g)
    yield "resize_to_one", "map", lambda x: C.BilinearResize2D(x, height=1, width=3, align_corners=False, name="y")
    yield (
        "resize_scale_half_pixel",
        "map",
        lambda x: C.BilinearResize2D(x, scale_height=0.5, scale_width=1.3, align_corners=False, name="y"),
    )
    line = (1, 6)
    yield "arange", "row", lambda x: S.broadcast_add(x, S.reshape(S.arange(1, 7, 2, repeat=2), shape=line), name="y")
    yield "zeros", "row", lambda x: S.broadcast_sub(S.zeros(line), x, name="y")
    yield "ones", "row", lambda x: S.broadcast_add(x, S.ones(line), name="y")


def encoded(array: np.ndarray) -> dict:
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode()}


def bound(symbol, x, rng) -> tuple[list[np.ndarray], bytes]:
    """The outputs in prediction, and the parameter file with random weights."""
    net = symbol.simple_bind(mx.cpu(), grad_req="null", data=x.shape)
    save = {}
    for prefix, values in (("arg", net.arg_dict), ("aux", net.aux_dict)):
        for name, value in values.items():
            if name == "data":
                value[:] = x
            elif not name.endswith("label"):
                low, high = (0.5, 1.5) if name.endswith(("var", "gamma")) else (-0.7, 0.7)
                value[:] = rng.uniform(low, high, value.shape)
                save[f"{prefix}:{name}"] = value
    outputs = [output.asnumpy() for output in net.forward(is_train=False)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "y.params"
        mx.nd.save(str(path), save)
        return outputs, path.read_bytes()


def main() -> None:
    rng = np.random.default_rng(7)
    inputs = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in INPUTS.items()}
    cases = {}
    for name, source, make in per_case():
        mx.name.NameManager._current.value = mx.name.NameManager()
        symbol = make(mx.sym.var("data"))
        outputs, params = bound(symbol, inputs[source], rng)
        cases[name] = {
            "input": source,
            "symbol": json.loads(symbol.tojson()),
            "params": base64.b64encode(params).decode(),
            "outputs": {n: encoded(v) for n, v in zip(symbol.list_outputs(), outputs, strict=True)},
        }
    provenance = {
        "made by": "tests/oracles/make_mxnet.py",
        "with": f"mxnet {mx.__version__}, numpy {np.__version__}, CPU",
        "weights": "random, seed 7",
    }
    inputs_json = {name: encoded(x) for name, x in inputs.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}" for name, case in cases.items()]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        f'{{"provenance": {json.dumps(provenance)},\n"inputs": {json.dumps(inputs_json)},\n"cases": {{\n'
        + ",\n".join(lines)
        + "\n}}\n"
    )


if __name__ == "__main__":
    main()
