"""Crops and padding inside the graph: a heatmap is placed over the part of the image that the layer covers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import builder, graph, run, weight
from typer.testing import CliRunner

from onnx_gradcam.cli import app
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.targets.axes import channels_first
from onnx_gradcam.editor.targets.extent import edges, follow_extents
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.images.drawing import save_image
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.runtime.explainer import Explainer

TAIL = "a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)"
SAME = f"c = Conv<pads=[1,1,1,1]>(u, K) {TAIL}"
PREPROCESS = {"resize": "stretch", "scale": 1 / 255}
BOX = {"low": [4, 2], "high": [12, 14], "axes": [2, 3]}


def network(head: str, size: str = "16,16", tail: str = SAME, **constants) -> onnx.ModelProto:
    return graph(
        f"{head} {tail}",
        inputs=f"float[N,3,{size}] x",
        K=weight("K", 6, 3, 3, 3) * 5,
        W=(6, 4),
        **constants,
    )


def extent_of(model: onnx.ModelProto, name: str = "a") -> list[list[float]] | None:
    t = builder(model)
    found, _ = follow_extents(t, t.find("x"), channels_first(4))
    value = t.find(name)
    return edges(found[value.core]) if value.core in found else None


def rows(height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(4).random((2, 3, height, width), np.float32)


def box(height: int, width: int, model: onnx.ModelProto) -> tuple[int, ...]:
    return attach(model).metadata.box_in(height, width)


def test_a_crop_of_fixed_size():
    model = network("u = Slice(x, low, high, axes)", **BOX)
    x = rows()
    found = run(attach(model).to_proto(), x=x)
    inner = run(attach(network("u = Identity(x)", "8,12")).to_proto(), x=x[:, :, 4:12, 2:14])
    np.testing.assert_allclose(found["cam"], inner["cam"], atol=1e-6)
    np.testing.assert_allclose(found["heatmap"][:, 4:12, 2:14], inner["heatmap"], atol=1e-6)
    around = np.ones((16, 16), bool)
    around[4:12, 2:14] = False
    assert not found["heatmap"][:, around].any()
    assert box(16, 16, model) == (4, 2, 12, 14)


@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
def test_a_crop_of_any_size(size):
    model = network("u = Slice(x, low, high, axes)", "H,V", low=[3, 2], high=[-3, -4], axes=[2, 3])
    x = rows(*size)
    found = run(attach(model).to_proto(), x=x)["heatmap"]
    inner = run(attach(network("u = Identity(x)", "H,V")).to_proto(), x=x[:, :, 3:-3, 2:-4])["heatmap"]
    np.testing.assert_allclose(found[:, 3:-3, 2:-4], inner, atol=1e-5)
    assert found.shape == (2, *size)
    assert not found[:, :3].any()
    assert box(*size, model) == (3, 2, size[0] - 3, size[1] - 4)


@pytest.mark.parametrize("free", [False, True])
def test_padding_that_no_window_takes_is_cropped_away(free):
    pads = [0, 0, 4, 2, 0, 0, 4, 6]
    model = network("u = Pad(x, pads)", "H,V" if free else "16,16", pads=pads)
    x = rows()
    found = run(attach(model).to_proto(), x=x)["heatmap"]
    wide = np.pad(x, ((0, 0), (0, 0), (4, 4), (2, 6)))
    outer = run(attach(network("u = Identity(x)", "24,24")).to_proto(), x=wide)["heatmap"]
    np.testing.assert_allclose(found, outer[:, 4:20, 2:18], atol=1e-5)
    assert box(16, 16, model) == (-4, -2, 20, 22)


def test_a_resize_before_the_crop_scales_it():
    model = network(
        "r = Resize(x, , , sizes) u = Slice(r, low, high, axes)", "32,64", low=[2, 2], high=[14, 14], axes=[2, 3],
        sizes=[2, 3, 16, 16],
    )  # fmt: skip
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert extent_of(model) == [[0, 0.125], [0, 0.125], [0, 0.875], [0, 0.875]]
    assert box(32, 64, model) == (4, 8, 28, 56)


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ("u = Pad(x, three)", "c = Conv<strides=[2,2]>(u, K7) " + TAIL),
        ("u = Pad(x, late)", "c = Conv<strides=[2,2]>(u, K) " + TAIL),
        ("u = Pad(x, one)", f"d = MaxPool<kernel_shape=[3,3], strides=[2,2]>(u) c = Conv(d, K) {TAIL}"),
        ("v = Pad(x, two) u = Conv(v, P)", f"c = Conv(u, K6) {TAIL}"),
        ("u = Identity(x)", f"c = Conv(u, K) {TAIL}"),
        ("e = Slice(x, z2, ends, axes, two2) o = Slice(x, o2, ends, axes, two2) u = Add(e, o)", SAME),
        ("l = Slice(x, z1, s1, w1) r = Slice(x, s1, e1, w1) u = Concat<axis=3>(r, l)", SAME),
        ("u = Slice(x, z1, s1, c1)", SAME),
    ],
)
def test_what_crops_and_pads_nothing(head, tail):
    model = network(
        head, tail=tail, three=[0, 0, 3, 3, 0, 0, 3, 3], late=[0, 0, 0, 0, 0, 0, 1, 1], one=[0, 0, 1, 1, 0, 0, 1, 1],
        two=[0, 0, 2, 2, 0, 0, 2, 2], K7=(6, 3, 7, 7), K6=(6, 6, 3, 3), P=(6, 3, 3, 3), z2=[0, 0], o2=[1, 1],
        ends=[99, 99], axes=[2, 3], two2=[2, 2], z1=[0], s1=[5], e1=[16], w1=[3], c1=[1],
    )  # fmt: skip
    assert extent_of(model) == []
    explained = attach(model)
    assert explained.metadata.extent == []
    assert not any("cannot be followed" in warning for warning in explained.warnings)


def test_part_of_a_padding_is_lost_in_the_windows_behind_it():
    model = network("u = Pad(x, pads)", tail=f"c = Conv(u, K) {TAIL}", pads=[0, 0, 4, 4, 0, 0, 4, 4])
    assert box(16, 16, model) == (-3, -3, 19, 19)


def test_a_center_crop():
    model = network("u = CenterCropPad<axes=[2,3]>(x, to)", to=[9, 20])
    assert box(16, 16, model) == (3, -2, 12, 18)


def test_channels_last_and_a_batch_cut_change_nothing_else():
    model = graph(
        f"v = Slice(x, low, high, axes) u = Transpose<perm=[0,3,1,2]>(v) {SAME}",
        inputs="float[N,16,20,3] x",
        K=(6, 3, 3, 3),
        W=(6, 4),
        low=[4, 2],
        high=[12, 14],
        axes=[1, 2],
    )
    assert box(16, 20, model) == (4, 2, 12, 14)


def test_bounds_that_the_graph_computes_are_said():
    model = network(
        "s = Shape<start=2, end=3>(x) h = Div(s, two) u = Slice(x, zero, h, axis)", "H,V", two=[2], zero=[0], axis=[2]
    )
    explained = attach(model)
    assert explained.metadata.extent == []
    assert any("Slice (node 'u') crops or pads the image cannot be followed" in w for w in explained.warnings)


def test_layers_of_different_parts_are_refused():
    model = network("d = Conv<pads=[1,1,1,1]>(x, P) e = Relu(d) u = Slice(e, low, high, axes)", P=(3, 3, 3, 3), **BOX)
    with pytest.raises(UnsupportedError, match="the layers cover different parts of the image"):
        attach(model, layer=["e", "a"])
    assert attach(model, layer="e").metadata.extent == []
    assert box(16, 16, model) == (4, 2, 12, 14)


@pytest.mark.parametrize(
    ("method", "preset"),
    [
        *((method, "default") for method in ("gradcam", "scorecam", "scorecam-torch-cam", "ablationcam")),
        *(("gradcam", preset) for preset in ("pytorch-grad-cam", "torch-cam", "keras-vis")),
    ],
)
def test_every_way_to_run_a_method_places_its_maps(method, preset):
    explainer = Explainer(network("u = Slice(x, low, high, axes)", **BOX), method=method, preset=preset,
                          preprocess=PREPROCESS)  # fmt: skip
    inner = Explainer(network("u = Identity(x)", "8,12"), method=method, preset=preset, preprocess=PREPROCESS)
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    whole, part = explainer(pixels), inner(pixels[4:12, 2:14])
    np.testing.assert_allclose(whole.cam, part.cam, atol=1e-4)
    np.testing.assert_allclose(whole.heatmap[4:12, 2:14], part.heatmap, atol=1e-4)
    drawn, expected = whole.overlay().pixels, part.overlay().pixels
    assert np.abs(drawn[4:12, 2:14].astype(int) - expected).max() <= 2
    drawn[4:12, 2:14] = pixels[4:12, 2:14]
    np.testing.assert_array_equal(drawn, pixels)
    signed, alone = whole.overlay(style="signed").pixels, part.overlay(style="signed").pixels
    assert np.abs(signed[4:12, 2:14].astype(int) - alone).max() <= 2


def test_padding_is_drawn_by_every_preset():
    explainer = Explainer(network("u = Pad(x, pads)", pads=[0, 0, 4, 4, 0, 0, 4, 4]), preprocess=PREPROCESS)
    explanation = explainer(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for preset in ("default", "torch-cam", "keras-io"):
        assert explanation.overlay(preset=preset).pixels.shape == (16, 16, 3)
    assert np.isfinite(explanation.heatmap_on_image()).all()


def test_all_classes_at_once_are_placed_too():
    model = network("u = Slice(x, low, high, axes)", **BOX)
    every = run(attach(model, class_input="all").to_proto(), x=rows())["heatmap"]
    one = run(attach(model).to_proto(), x=rows(), target_class=np.array([2, 2], np.int64))["heatmap"]
    np.testing.assert_allclose(every[:, 2], one, atol=1e-6)


def test_the_command_places_the_heatmap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(network("u = Slice(x, low, high, axes)", **BOX), "cropped.onnx")
    save_image(np.full((16, 16, 3), 90, np.uint8), "grey.png")
    arguments = ["--preprocess", '{"resize": "stretch", "scale": 0.004}']
    for model in ("cropped.onnx", "explained.onnx"):
        assert CliRunner().invoke(app, ["attach", "cropped.onnx", "-o", "explained.onnx"]).exit_code == 0
        result = CliRunner().invoke(app, ["explain", model, "grey.png", *arguments, "--npz", "-o", "o.png"])
        assert result.exit_code == 0, result.stderr
        heatmap = np.load("o.npz")["heatmap"][0]
        assert heatmap[4:12, 2:14].any()
        assert heatmap.sum() == heatmap[4:12, 2:14].sum()


def test_a_forged_extent_is_refused():
    from onnx_gradcam.errors import ModelError  # noqa: PLC0415 - of this test alone

    props = attach(network("u = Identity(x)")).metadata.to_props()
    for text in ("[[1, 2]]", '["a"]', "[[1], [2], [3], [4]]", "[[1e99, 0], [0, 0], [0, 1], [0, 1]]", "{}"):
        with pytest.raises(ModelError, match=r"onnx_gradcam\.extent"):
            Metadata.from_props(props | {"onnx_gradcam.extent": text})
