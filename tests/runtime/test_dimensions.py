"""Signals, spectrograms, volumes and clips: their maps, pictures and refusals."""

from __future__ import annotations

import itertools
import wave
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.graphs import graph
from support.helpers import quiet_session
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach, evaluate, verify
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError, TargetError, UnsupportedError
from onnx_gradcam.images import drawing
from onnx_gradcam.images.views import view_of
from onnx_gradcam.options import Options

MODELS = Path(__file__).parents[2].parent / "shared" / "detectors" / "models"
ORACLE = Path(__file__).parents[1] / "oracles" / "dimensions.npz"
OF_PYTORCH = ("d1_as_2d", "d1_audio_wave", "d1_ecg12", "d1_vibration_tc", "d2_spectrogram_tf", "d3_mri")
OF_PYTORCH += ("video_ncthw", "video_ntchw")
HEAD = "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)"

SIGNAL = {
    "body": f"c = Conv<pads=[1,1]>(x, K) a = Relu(c) {HEAD}",
    "inputs": "float[N,2,20] x",
    "constants": {"K": (5, 2, 3), "W": (5, 4)},
}
LAST = {
    "body": f"t = Transpose<perm=[0,2,1]>(x) c = Conv<pads=[1,1]>(t, K) a = Relu(c) {HEAD}",
    "inputs": "float[N,20,2] x",
    "constants": {"K": (5, 2, 3), "W": (5, 4)},
}
VOLUME = {
    "body": f"c = Conv<pads=[1,1,1,1,1,1], strides=[2,2,2]>(x, K) a = Relu(c) {HEAD}",
    "inputs": "float[N,1,8,10,12] x",
    "constants": {"K": (5, 1, 3, 3, 3), "W": (5, 4)},
}
CLIP = {
    "body": "t = Transpose<perm=[0,2,1,3,4]>(x) "
    f"c = Conv<pads=[1,1,1,1,1,1], strides=[2,2,2]>(t, K) a = Relu(c) {HEAD}",
    "inputs": "float[N,6,3,8,8] x",
    "constants": {"K": (5, 3, 3, 3, 3), "W": (5, 4)},
}
SWAPPED = {
    "body": f"u = Unsqueeze(x, one) t = Transpose<perm=[0,1,3,2]>(u) c = Conv<pads=[1,1,1,1]>(t, K) a = Relu(c) {HEAD}",
    "inputs": "float[N,12,7] x",
    "constants": {"K": (5, 1, 3, 3), "W": (5, 4), "one": [1]},
}
KINDS = {"signal": SIGNAL, "last": LAST, "volume": VOLUME, "clip": CLIP, "swapped": SWAPPED}
LAYOUTS = {"signal": "NCW", "last": "NWC", "volume": "NCDHW", "clip": "NDCHW", "swapped": "NHW"}


def model(kind: str, **changed: str) -> onnx.ModelProto:
    made = {**KINDS[kind], **changed}
    return graph(made["body"], inputs=made["inputs"], **made["constants"])


def sizes(kind: str) -> tuple[int, ...]:
    """Sizes of an input without its batch."""
    return tuple(int(n) for n in KINDS[kind]["inputs"].split("[N,")[1].split("]")[0].split(","))


def sample(kind: str, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((rows, *sizes(kind))).astype(np.float32)


def outputs_of(explained, x) -> dict[str, np.ndarray]:
    session = quiet_session(explained.to_proto())
    values = session.run(None, {"x": x})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_grad_cam_is_the_sum_of_the_maps_by_the_weights_of_the_head(kind):
    """Behind global average pooling, the gradient of the score by channel k is W[k, class] at every position."""
    explained = attach(model(kind), expose_activation=True, check=True)
    assert explained.metadata.layout == LAYOUTS[kind]
    x = sample(kind, 2)
    outputs = outputs_of(explained, x)
    maps = outputs[explained.metadata.target_tensor]
    weights = next(onnx.numpy_helper.to_array(i) for i in model(kind).graph.initializer if i.name == "W")
    positions = np.prod(maps.shape[2:])
    expected = np.stack(
        [np.tensordot(weights[:, c], m, 1) for c, m in zip(outputs["heatmap_class"], maps, strict=True)]
    )
    expected = expected / positions
    if kind == "swapped":
        expected = expected.swapaxes(1, 2)
    assert np.abs(outputs["cam"] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert outputs["heatmap"].shape == (
        2,
        *(n for n, letter in zip(x.shape, LAYOUTS[kind], strict=True) if letter in "DHW"),
    )
    assert 0 <= outputs["heatmap"].min() <= outputs["heatmap"].max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "gradcam++", "xgradcam"])
def test_gradients_are_those_of_finite_differences(kind, method):
    if method == "gradcam":
        assert verify(model(kind), sample(kind)).agrees
    explained = Explainer(model(kind), method=method)(sample(kind), 1)
    assert explained.cam.ndim == explained.heatmap.ndim == len(set(LAYOUTS[kind]) & set("DHW"))


@pytest.mark.parametrize("kind", ["signal", "last", "volume", "clip"])
def test_attributions_have_the_shape_of_the_input_and_complete_the_score(kind):
    x = sample(kind)
    explainer = Explainer(model(kind), method="integrated-gradients")
    (result,) = explainer(x, 2).maps
    assert result.attribution.shape == sizes(kind)
    session = quiet_session(model(kind))
    (scores,), (base,) = (session.run(None, {"x": v})[0] for v in (x, np.zeros_like(x)))
    assert abs(result.attribution.sum() - (scores[2] - base[2])) <= 5e-3 * abs(scores).max()
    gradient = Explainer(model(kind), method="gradient")(x, 2).maps[0].attribution
    step = 1e-2 * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    up, down = (session.run(None, {"x": x + sign * step})[0][0, 2] for sign in (1, -1))
    assert abs((up - down) / 2 - float((gradient * step[0]).sum())) <= 0.05 * abs(up - down)


def test_heat_is_resized_linearly_along_every_axis():
    """The map of a volume is that of torch's trilinear interpolation: the product of three linear ones."""
    outputs = outputs_of(attach(model("volume")), sample("volume"))
    cam = np.maximum(outputs["cam"][0], 0)
    expected = cam / cam.max()
    for axis, n in enumerate(outputs["heatmap"].shape[1:]):
        cells = expected.shape[axis]
        places = np.clip((np.arange(n) + 0.5) * cells / n - 0.5, 0, cells - 1)
        expected = np.apply_along_axis(lambda line, p=places, c=cells: np.interp(p, np.arange(c), line), axis, expected)
    assert np.abs(outputs["heatmap"][0] - expected).max() <= 1e-6


def test_the_length_of_a_signal_may_be_free():
    explainer = Explainer(model("signal", inputs="float[N,2,T] x"))
    for length in (20, 33):
        assert explainer(np.ones((2, length), np.float32)).heatmap.shape == (length,)
    assert attach(model("signal", inputs="float[N,2,T] x"), check=True).difference == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["scorecam", "gscorecam", "ablationcam", "guided-gradcam", "eigencam"])
def test_methods_for_images_are_refused_by_name(kind, method):
    with pytest.raises(UnsupportedError, match=r"is for images, and this input is .*; choose one of gradcam, "):
        Explainer(model(kind), method=method)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"preset": "pytorch-grad-cam"}, "--preset pytorch-grad-cam is for images"),
        ({"preprocess": "none"}, "preprocessing makes images, and the model's input is NCW"),
        ({"augment": True}, "augmentation takes images"),
    ],
)
def test_choices_for_images_are_refused(choices, sentence):
    with pytest.raises((UnsupportedError, InputError), match=sentence):
        Explainer(model("signal"), **choices)


def test_what_takes_images_only_says_so(tmp_path):
    with pytest.raises(UnsupportedError, match="evaluate takes images, and the input 'x' is NCW; use explain with an"):
        evaluate(model("signal"), [tmp_path / "x.npy"], methods=["gradcam"], options=Options())
    onnx.save(model("signal"), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", sample("signal"))
    for command in (["web", "-o", "site"], ["batch", "x.npy", "-o", "out"], ["compare", "m.onnx", "--images", "x.npy"]):
        name, *rest = command
        rest = [str(tmp_path / one) if "." in one or one in {"site", "out"} else one for one in rest]
        result = CliRunner().invoke(app, [name, str(tmp_path / "m.onnx"), *rest])
        assert result.exit_code != 0
        assert "takes images, and the input 'x' is NCW" in result.output
    with pytest.raises(InputError, match="takes arrays and no pictures"):
        Explainer(model("signal"))("photo.png")


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.ones((2, 21), np.float32), r"shape \[2, 21\], and the input is 'x' float32 \[N, 2, 20\] \(NCW\)"),
        (np.ones((1, 20), np.float32), r"shape \[1, 20\]"),
        (np.ones((2, 2, 20), np.float32), "give one sample"),
        (np.full((2, 20), np.nan, np.float32), "not finite"),
        (np.full((2, 20), "a"), "not of numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, sentence):
    with pytest.raises(InputError, match=sentence):
        Explainer(model("signal"))(array)


def test_frames_with_a_row_of_scores_each_are_refused():
    folded = graph(
        f"r = Reshape(x, s) c = Conv<pads=[1,1,1,1]>(r, K) a = Relu(c) {HEAD}",
        inputs="float[2,3,3,8,8] x", outputs="float[6,4] y", K=(5, 3, 3, 3), W=(5, 4), s=[6, 3, 8, 8],
    )  # fmt: skip
    with pytest.raises(TargetError, match=r"score 'y' \[6, 4\] is not the batch of the input 'x', as where frames"):
        attach(folded)
    frames = graph(
        f"r = Reshape(x, s) c = Conv<pads=[1,1,1,1]>(r, K) a = Relu(c) {HEAD}",
        inputs="float[1,6,8,8] x", outputs="float[6,4] y", K=(5, 1, 3, 3), W=(5, 4), s=[6, 1, 8, 8],
    )  # fmt: skip
    with pytest.raises(
        TargetError, match=r"as where frames .* folded into the batch; name another output with --output"
    ):
        attach(frames)


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_file_is_explained_by_the_command_line(kind, tmp_path):
    onnx.save(model(kind), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", sample=sample(kind))
    command = [
        "explain",
        str(tmp_path / "m.onnx"),
        f"{tmp_path}/s.npz:sample",
        "-o",
        str(tmp_path / "out.png"),
        "--npy",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("out_*.npy")
    assert np.array_equal(np.load(file), Explainer(model(kind))(sample(kind)).heatmap)
    assert (tmp_path / "out.png").stat().st_size > 0
    np.save(tmp_path / "s.npy", sample(kind))
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "m.onnx"), str(tmp_path / "s.npy")]).exit_code == 0
    attached = ["attach", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "e.onnx")]
    assert CliRunner().invoke(app, attached).exit_code == 0
    reopened = Explainer(tmp_path / "e.onnx")(tmp_path / "s.npy")
    assert np.array_equal(reopened.heatmap, np.load(file))


def test_the_sheet_of_an_array_shows_the_input_and_no_photo(monkeypatch):
    written = []
    monkeypatch.setattr(drawing, "_write", lambda *given: written.append(given[1]))
    explanation = Explainer(model("signal"))(sample("signal"))
    explanation.sheet()
    assert "input" in written
    assert "photo" not in written


PICTURES = {
    "CW": (3, 50),
    "WC": (50, 20),
    "HW": (30, 20),
    "CHW": (11, 30, 20),
    "CDHW": (1, 16, 9, 7),
    "DCHW": (9, 3, 8, 6),
}


@pytest.mark.parametrize("layout", PICTURES)
def test_heat_stands_in_the_picture_where_the_input_stands(layout):
    """A single bright position is where the map of that position is drawn."""
    shape = PICTURES[layout]
    spatial = [n for n, letter in zip(shape, layout, strict=True) if letter in "DHW"]
    view = view_of(np.zeros(shape, np.float32), layout)
    assert view.image.dtype == np.uint8
    heat = np.zeros(spatial, np.float32)
    heat[tuple(0 for _ in spatial)] = 1
    drawn = view.flat(heat)
    assert drawn.shape == view.image.shape[:2]
    assert drawn[0, 0] == 1
    assert np.nanmin(drawn) == 0
    assert np.nanmean(drawn) < 0.5


@pytest.mark.real
@pytest.mark.parametrize("name", OF_PYTORCH)
def test_maps_are_those_of_pytorch(name):
    """Oracle: tests/oracles/make_dimensions.py, by autograd."""
    if not (MODELS / f"{name}.onnx").is_file():
        pytest.skip("the folder of models is not beside the project")
    with np.load(MODELS / f"{name}.npz") as stored, np.load(ORACLE) as oracle:
        (x,) = (stored[key][:1] for key in stored if key.startswith("in_"))
        for method in ("gradcam", "hirescam"):
            explainer = Explainer(MODELS / f"{name}.onnx", method=method)
            targets = [key for key in oracle if key.startswith(f"{name}_{method}_")]
            assert len(targets) > 2
            for key in targets:
                expected = np.squeeze(oracle[key]) if name == "d1_as_2d" else oracle[key]
                cam = explainer(x, int(key.rpartition("_")[2])).cam
                assert np.abs(cam - expected).max() <= 1e-4 * np.abs(expected).max(), key
        if f"{name}_gradient_0" in oracle:
            gradient = Explainer(MODELS / f"{name}.onnx", method="gradient")(x, 0).maps[0].attribution
            expected = oracle[f"{name}_gradient_0"]
            assert np.abs(gradient - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.real
def test_maps_of_a_volume_are_those_of_monai():
    """Oracle: `compute_map` of MONAI 1.6.1, and autograd, stored beside the model."""
    path = MODELS / "monai_densenet3d.onnx"
    if not path.is_file():
        pytest.skip("the folder of models is not beside the project")
    names = [o for node in onnx.load(path).graph.node for o in node.output if "denseblock2" in o and "Concat" in o]
    with np.load(path.with_suffix(".npz")) as stored:
        for method in ("gradcam", "hirescam"):
            explainer = Explainer(path, method=method, layer=names[-1])
            for target in range(3):
                cam = explainer(stored["in_image"], target).cam
                expected = stored[f"{method}{target}"]
                assert np.abs(cam - expected).max() <= 1e-4 * np.abs(expected).max()
                if method == "gradcam":
                    assert np.abs(np.maximum(cam, 0) - stored[f"monai_relu{target}"]).max() <= 1e-5


@pytest.mark.real
@pytest.mark.parametrize("name", ["video_frames_tsn", "video_thw_lstm", "mil_bag"])
def test_frames_and_tiles_in_the_batch_are_positions(name):
    if not (MODELS / f"{name}.onnx").is_file():
        pytest.skip("the folder of models is not beside the project")
    with np.load(MODELS / f"{name}.npz") as stored:
        (x,) = (stored[key] for key in stored if key.startswith("in_"))
    choices = {"output": "logits"} if name == "mil_bag" else {}
    assert verify(MODELS / f"{name}.onnx", x, **choices).agrees
    explanation = Explainer(MODELS / f"{name}.onnx", **choices)(x)
    assert explanation.heatmap.shape == (x.shape[1], *x.shape[-2:])
    assert explanation.cam.shape[0] == x.shape[1]


@pytest.mark.parametrize("kind", ["signal", "last", "volume"])
def test_occlusion_is_the_score_that_windows_cost_along_every_axis(kind):
    """By hand: windows of an eighth of each side, moved by half of that; the mean cost of those over a position."""
    x, session = sample(kind), quiet_session(model(kind))
    layout = LAYOUTS[kind]
    spatial = [axis for axis, letter in enumerate(layout) if letter in "DHW"]
    windows = []
    for axis in spatial:
        width = max(x.shape[axis] // 8, 1)
        starts = range(0, x.shape[axis] - width + max(width // 2, 1), max(width // 2, 1))
        windows.append([slice(start, start + width) for start in starts])
    whole = session.run(None, {"x": x})[0][0, 1]
    lost, count = np.zeros((2, *(x.shape[axis] for axis in spatial)))
    for window in itertools.product(*windows):
        hidden = x.copy()
        where = dict(zip(spatial, window, strict=True))
        hidden[tuple(where.get(axis, slice(None)) for axis in range(x.ndim))] = 0
        lost[window] += whole - session.run(None, {"x": hidden})[0][0, 1]
        count[window] += 1
    cam = Explainer(model(kind), method="occlusion")(x, 1).cam
    assert np.abs(cam - lost / count).max() <= 1e-4 * np.abs(lost / count).max()


@pytest.mark.parametrize("kind", ["signal", "volume"])
def test_rise_finds_the_part_that_the_score_is_read_from(kind):
    """All but one eighth of the input is zero, where no mask changes the score."""
    x = np.zeros((1, *sizes(kind)), np.float32)
    spatial = [axis for axis, letter in enumerate(LAYOUTS[kind]) if letter in "DHW"]
    part = tuple(slice(0, x.shape[axis] // 2) if axis in spatial else slice(None) for axis in range(x.ndim))
    x[part] = 3 * np.abs(sample(kind))[part]
    explainer = Explainer(model(kind), method="rise", batch_size=200)
    heat = explainer(x).heatmap
    inside = heat[tuple(slice(0, n // 2) for n in heat.shape)]
    assert inside.mean() > heat.mean() + 0.1


@pytest.mark.parametrize("method", ["occlusion", "rise"])
def test_masks_of_an_input_without_channels_are_refused(method):
    with pytest.raises(UnsupportedError, match="needs an axis of channels, and this input is NWH"):
        Explainer(model("swapped"), method=method)


SEGMENTED = {
    "body": "c = Conv<pads=[1,1,1,1,1,1]>(x, K) a = Relu(c) y = Conv(a, L)",
    "inputs": "float[N,1,6,7,5] x",
    "outputs": "float[N,3,6,7,5] y",
}


def test_a_segmentation_of_a_volume_is_explained_by_the_sum_over_its_own_mask():
    """HiResCAM at the only layer: the weights of the class, where the class is predicted, times the maps."""
    source = graph(**SEGMENTED, K=(4, 1, 3, 3, 3), L=(3, 4, 1, 1, 1))
    x = np.random.default_rng(2).standard_normal((1, 1, 6, 7, 5)).astype(np.float32)
    explained = attach(source, task="segmentation", expose_activation=True, check=True)
    session = quiet_session(explained.to_proto())
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"x": x, "target_class": np.array([2])}), strict=True))
    weights = next(onnx.numpy_helper.to_array(i) for i in source.graph.initializer if i.name == "L")[2, :, 0, 0, 0]
    maps = outputs[explained.metadata.target_tensor][0]
    expected = np.tensordot(weights, maps, 1) * (outputs["y"][0].argmax(0) == 2)
    assert np.abs(outputs["cam"][0] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert outputs["heatmap"].shape == (1, 6, 7, 5)
    with pytest.raises(TargetError, match="these maps are volumes; use --mask own"):
        attach(source, task="segmentation", mask="input")


@pytest.mark.parametrize("kind", ["signal", "last"])
def test_a_signal_is_read_from_columns(kind, tmp_path):
    x = sample(kind)[0].round(4)
    columns = x.T if kind == "signal" else x
    for header in ("", "lead I,lead II"):
        np.savetxt(tmp_path / "s.csv", columns, delimiter=",", fmt="%.4f", header=header, comments="")
        explainer = Explainer(model(kind))
        assert np.array_equal(explainer(tmp_path / "s.csv").heatmap, explainer(x).heatmap)
    (tmp_path / "bad.csv").write_text("1,2\n3\n")
    with pytest.raises(InputError, match=r"bad\.csv' cannot be read as a signal .*; give its samples as a \.npy file"):
        Explainer(model(kind))(tmp_path / "bad.csv")
    with pytest.raises(InputError, match=r"signal of 2 channels, and the input has the axes CDHW; give a \.npy file"):
        Explainer(model("volume"))(tmp_path / "s.csv")
    onnx.save(model(kind), tmp_path / "m.onnx")
    command = ["explain", str(tmp_path / "m.onnx"), str(tmp_path / "s.csv"), "-o", str(tmp_path / "out.png"), "--npy"]
    assert CliRunner().invoke(app, command).exit_code == 0
    (file,) = tmp_path.glob("out_*.npy")
    assert np.array_equal(np.load(file), Explainer(model(kind))(x).heatmap)


@pytest.mark.parametrize("name", ["s.csv", "S.WAV"])
def test_a_model_of_images_says_that_a_file_is_a_signal(name, tmp_path):
    image_model = graph(
        f"c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) {HEAD}", inputs="float[N,3,8,8] x", K=(5, 3, 3, 3), W=(5, 4)
    )
    (tmp_path / name).write_text("1,2\n3,4\n")
    explainer = Explainer(image_model, preprocess="torchvision")
    with pytest.raises(InputError) as refused:
        explainer(tmp_path / name)
    assert str(refused.value) == (
        f"{str(tmp_path / name)!r} is a signal, and the input 'x' float32 [N, 3, 8, 8] takes images; give an image, or "
        "the model's input as a .npy file"
    )
    onnx.save(image_model, tmp_path / "m.onnx")
    out = tmp_path / "out.png"
    command = ["explain", str(tmp_path / "m.onnx"), str(tmp_path / name), "--preprocess", "torchvision", "-o", str(out)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code != 0
    assert "is a signal, and the input 'x'" in " ".join(run.output.split())
    assert not out.exists()


@pytest.mark.parametrize(("width", "kind", "scale"), [(1, "u1", 127), (2, "<i2", 32767), (4, "<i4", 2**31 - 1)])
def test_a_wave_is_read_from_minus_one_to_one(width, kind, scale, tmp_path):
    x = np.clip(sample("signal")[0] / 4, -1, 1)
    whole = np.rint(x.T * scale + (128 if width == 1 else 0)).astype(kind)
    with wave.open(str(tmp_path / "s.wav"), "wb") as file:
        file.setparams((2, width, 8000, 0, "NONE", "NONE"))
        file.writeframes(whole.tobytes())
    explainer = Explainer(model("signal"), method="gradient")
    assert np.abs(explainer.prepared(tmp_path / "s.wav").tensor - x).max() <= 1.5 / scale
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"bad\.wav' cannot be read as a signal"):
        explainer(tmp_path / "bad.wav")
