"""Every pair of preset and method: the numbers of the library, or a refusal that names both.

The libraries' results are stored by `tests/oracles/make_preset_methods_*.py` and `make_presets_*.py`.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from oracles.preset_network import CASES, HEIGHT, WIDTH, images, inputs
from support.graphs import graph, run
from support.preset_oracles import FOLDER, OPENVINO, ORACLE, network
from typer.testing import CliRunner

from onnx_gradcam import Explainer
from onnx_gradcam.cli import app
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.methods.catalogue import find_method, methods
from onnx_gradcam.editor.presets import PRESETS
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.images.overlays import library_overlay
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import Prober

RESULTS = {
    name: value
    for source in ("torch", "tensorflow")
    for name, value in dict(np.load(FOLDER / f"preset_methods_{source}.npz")).items()
}
MXNET = dict(np.load(FOLDER / "preset_methods_mxnet.npz"))
LIBRARIES = [name for name, preset in PRESETS.items() if name != "default" and not preset.detectors]
"""Presets of libraries that explain classifiers; the maps of a detector are in `targets/test_levels.py`."""
PAIRS = [(preset, method) for preset in LIBRARIES for method in methods()]
COMPARED = [(preset, method) for preset, method in PAIRS if method in PRESETS[preset].methods]
REFUSED = [pair for pair in PAIRS if pair not in COMPARED]

SEED = 7
"""Seed of the noise; see `oracles/make_preset_methods_torch.py`."""

LAYERS = {"ablationcam": "c", "refinecam": ["b", "a"]}
"""The layers where they are not the second convolution."""

ELSEWHERE = {
    "keras-vis": "heatmap/keras-vis",
    "keras-vis-0.4.1": "heatmap/keras-vis-0.4.1",
    "chollet-1e": "heatmap/chollet-1e",
    "chollet-2e": "cells/chollet",
    "keras-io": "cells/keras-io",
    "tf-explain": "cam/tf-explain",
    "pair-saliency": "heatmap/pair-saliency",
}
"""Where the results of presets that have one method are stored."""

ATOL = {"mxnet": 1.1 / 255, "openvino-xai": 2.1 / 255}
"""Presets that cut decimals off; see `test_presets.py`."""


def stored(preset: str, method: str, case: str) -> np.ndarray | None:
    """What the library returns."""
    if preset == "mxnet":
        return ORACLE[f"mxnet/{case}/heatmap"] / 255 if method == "gradcam" else MXNET[f"{case}/attribution"]
    if preset == "openvino-xai":
        return OPENVINO[f"{case}/heatmap"] / 255
    if preset == "captum" and method == "gradcam":
        return ORACLE[f"{case}/heatmap/captum"]
    return RESULTS.get(f"{case}/{preset}/{method}", ORACLE.get(f"{case}/{ELSEWHERE.get(preset)}"))


def explained(preset: str, name: str, case: str, layer="", **choices) -> dict[str, np.ndarray]:
    """The outputs for one case, without the axis of the batch."""
    sample, index = CASES[case]
    method, width = find_method(name), HEIGHT if preset == "mxnet" else WIDTH
    if not layer:
        layer = LAYERS.get(name, "a") if method.needs_layer else "auto"
    options = Options(method=name, preset=preset, layer=layer, **choices)
    # pytorch-grad-cam was asked for the predicted class, which Finer-CAM compares with the three next ones.
    target = -1 if method.objective == "finer" else index
    x = inputs()[sample : sample + 1, ..., :width]
    if method.runs_often:
        results = Prober(probed(network(width=width), options), seed=SEED, batch_size=64).run(x, [target])
    else:
        proto = attach(network(width=width), options).to_proto()
        results = run(proto, x=x, target_class=np.array([target], np.int64))
    return {key: value[0] for key, value in results.items()}


def scaled(values):
    spread = np.ptp(values)
    return (values - values.min()) / (spread if spread > 0 else 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("preset", "method"), COMPARED)
def test_the_numbers_of_the_library(preset, method, case):
    expected = stored(preset, method, case)
    assert expected is not None, f"no result of {PRESETS[preset].title} is stored for {method}"
    got = explained(preset, method, case)
    if method == "occlusion":  # one value for all channels
        np.testing.assert_allclose(got["cam"], expected[0], atol=1e-4 * np.abs(expected).max())
    elif expected.ndim == 3:
        # MXNet's integers are rounded down, resized and rounded again.
        atol = (3.1 / 255 if preset == "mxnet" else 1e-4) * np.abs(expected).max()
        np.testing.assert_allclose(got["attribution"], expected, atol=atol)
    else:
        resized = cv2.resize(expected, got["heatmap"].shape[::-1])
        if preset in {"captum", "xplique", "tf-explain"}:  # which do not scale the values to [0, 1]
            resized = scaled(resized)
        np.testing.assert_allclose(got["heatmap"], resized, atol=ATOL.get(preset, 1e-4))


@pytest.mark.parametrize(("preset", "method"), REFUSED)
def test_refused_by_name(preset, method, tmp_path):
    options = Options(method=method, preset=preset)
    make = probed if find_method(method).runs_often else attach
    with pytest.raises(UnsupportedError) as refusal:
        make(network(), options)
    sentence = str(refusal.value)
    assert PRESETS[preset].title in sentence
    assert f"--method {method} " in sentence
    if method in PRESETS[preset].instead:
        assert f"use --method {PRESETS[preset].instead[method]}, or" in sentence
    assert sentence.endswith("or leave out --preset")


def test_the_pairs_of_issue_reports():
    assert len(COMPARED) > 50
    for preset, method in [
        ("pytorch-grad-cam", "eigencam"),
        ("pytorch-grad-cam", "eigengradcam"),
        ("torch-cam", "gradcam++"),
        ("mxnet", "saliency"),
        ("keras-vis", "layercam"),
    ]:
        assert (preset, method) in REFUSED
    for preset in PRESETS.values():
        assert set(preset.instead.values()) <= set(preset.methods or ())
        assert not set(preset.instead) & set(preset.methods or ())


@pytest.mark.parametrize(
    ("preset", "method", "other"),
    [
        ("pytorch-grad-cam", "eigengradcam-pytorch-grad-cam", "eigengradcam"),
        ("torch-cam", "gradcam++-torch-cam", "gradcam++"),
        ("torch-cam", "cam", "cam"),
        ("torch-cam", "finercam", "finercam"),
        ("torch-cam", "refinecam", "refinecam"),
        ("tf-keras-vis", "scorecam-tf-keras-vis", "scorecam-tf-keras-vis"),
        ("xplique", "gradcam++", "gradcam++"),
        ("xplique", "fem", "fem"),
    ],
)
def test_what_is_refused_would_be_wrong(preset, method, other, monkeypatch):
    """By a tenth of the range or more."""
    without = {key: value for key, value in vars(PRESETS[preset]).items() if key not in {"methods", "instead"}}
    monkeypatch.setitem(PRESETS, preset, type(PRESETS[preset])(**without))
    layer = "auto" if method == "cam" else ""
    differences = []
    for case in ("mixed", "second"):
        got = explained(preset, other, case, layer)["heatmap"]
        differences.append(
            np.abs(got - scaled(cv2.resize(RESULTS[f"{case}/{preset}/{method}"], (WIDTH, HEIGHT)))).max()
        )
    assert max(differences) > 0.1


class TestConditions:
    """Pairs that agree only under a condition."""

    def test_several_layers(self):
        both = explained("pytorch-grad-cam", "layercam", "mixed", ["b", "a"])["heatmap"]
        np.testing.assert_allclose(both, RESULTS["mixed/pytorch-grad-cam/layercam/both"], atol=1e-4)
        with pytest.raises(
            UnsupportedError, match=r"torch-cam 0\.5\.0 combines several layers for LayerCAM .* name one"
        ):
            attach(network(), layer=["b", "a"], method="layercam", preset="torch-cam")

    def test_ablation_behind_a_relu(self):
        with pytest.raises(UnsupportedError, match=r"AblationCAM of pytorch-grad-cam 1\.5\.7 .* behind a Relu"):
            probed(network(), Options(layer="a", method="ablationcam", preset="pytorch-grad-cam"))

    def test_the_sign_of_eigen_smoothing(self):
        with pytest.raises(UnsupportedError, match="leaves the sign of eigen smoothing to NumPy"):
            attach(network(), layer="a", preset="pytorch-grad-cam", eigen_smooth=True)

    def test_numpys_sign_cannot_be_written_into_a_model(self):
        with pytest.raises(
            UnsupportedError, match=r"Eigen-CAM of pytorch-grad-cam takes the sign of NumPy's .* use exp"
        ):
            attach(network(), layer="a", method="eigencam-pytorch-grad-cam", preset="pytorch-grad-cam")


class TestDefaults:
    """The method of a preset without one."""

    def test_the_tasks_own_where_the_preset_stands_for_it(self):
        assert attach(network(), preset="torch-cam").metadata.method == "gradcam"

    def test_else_the_presets_first(self):
        assert attach(network(), layer="a", preset="openvino-xai").metadata.method == "reciprocam-openvino-xai"

    def test_segmentation(self):
        maps = graph(
            "c = Conv(x, K) a = Relu(c) y = Conv(a, L)", outputs="float[N,4,h,w] y", K=(6, 3, 3, 3), L=(4, 6, 3, 3)
        )
        assert attach(maps, task="segmentation", preset="pytorch-grad-cam").metadata.method == "hirescam"
        assert attach(maps, task="segmentation", preset="keras-io").metadata.method == "gradcam"


class TestCaptum:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("method", ["guided-gradcam", "saliency", "input-x-gradient", "smoothgrad-squared"])
    def test_drawn_as_captum_draws_it(self, method, case):
        got = explained("captum", method, case)
        drawn = library_overlay("captum", images()[CASES[case][0]], got["heatmap"], got["cam"])
        off = np.abs(drawn.astype(int) - RESULTS[f"{case}/drawn/captum/{method}"])
        assert off.max() <= 3
        assert (off > 1).mean() < 0.01

    def test_channels_are_chosen_by_the_user(self):
        largest = explained("captum", "saliency", "mixed", channels="max")
        np.testing.assert_allclose(largest["cam"], RESULTS["mixed/captum/saliency"].max(0), rtol=1e-3, atol=1e-6)


class TestMxnet:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("free", [False, True])
    def test_the_tutorials_saliency(self, case, free):
        if free:
            sample, index = CASES[case]
            proto = attach(network("height", "width"), layer="a", method="guided-gradcam", preset="mxnet").to_proto()
            x = inputs()[sample : sample + 1, ..., :HEIGHT]
            heatmap = run(proto, x=x, target_class=np.array([index], np.int64))["heatmap"][0]
        else:
            heatmap = explained("mxnet", "guided-gradcam", case)["heatmap"]
        np.testing.assert_allclose(heatmap, MXNET[f"{case}/gray"], atol=3.1 / 255)

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("first", [True, False])
    def test_the_tutorials_colour_image(self, case, first):
        attribution, image = MXNET[f"{case}/attribution"], images()[CASES[case][0]][:, :HEIGHT]
        blank = np.zeros((HEIGHT, HEIGHT))
        pixels = attribution if first else np.moveaxis(attribution, 0, -1)
        drawn = library_overlay("mxnet", image, blank, blank, attribution=pixels)
        assert np.abs(drawn.astype(int) - MXNET[f"{case}/panel"]).max() <= 1

    def test_an_explanation_draws_it(self, tmp_path):
        cv2.imwrite(str(tmp_path / "p.png"), images()[0])
        explainer = Explainer(
            network().SerializeToString(),
            layer="a",
            method="guided-gradcam",
            preset="mxnet",
            preprocess={"size": [HEIGHT, WIDTH]},
        )
        explanation = explainer(tmp_path / "p.png", 1)
        got, attribution = explanation.overlay().pixels, explanation.maps[0].attribution
        expected = 255 * scaled(np.moveaxis(attribution, 0, -1))[:, :, ::-1]
        assert np.abs(got - expected).max() <= 1

    def test_a_blank_attribution_stays_blank(self):
        proto = attach(network(), layer="a", method="guided-gradcam", preset="mxnet").to_proto()
        results = run(proto, x=np.zeros((1, 3, HEIGHT, WIDTH), np.float32), target_class=np.array([0], np.int64))
        assert np.isfinite(results["heatmap"]).all()


def test_on_the_command_line(tmp_path: Path):
    model, image, out = tmp_path / "m.onnx", tmp_path / "p.png", tmp_path / "o.png"
    model.write_bytes(network().SerializeToString())
    cv2.imwrite(str(image), images()[0])
    words = ["explain", str(model), str(image), "-o", str(out), "--preprocess", '{"scale": 0.00784, "size": [20, 26]}']
    refused = CliRunner().invoke(app, [*words, "--method", "gradcam++", "--preset", "torch-cam"])
    assert refused.exit_code == 1
    assert "torch-cam 0.5.0 computes something else than --method gradcam++ under that name" in refused.stderr
    assert not out.exists()
    made = CliRunner().invoke(
        app, [*words, "--layer", "a", "--method", "eigencam-pytorch-grad-cam", "--preset", "pytorch-grad-cam"]
    )
    assert made.exit_code == 0, made.stderr
    assert out.exists()
    listed = CliRunner().invoke(app, ["methods", "--presets"])
    assert "gradcam++-torch-cam (GradCAMpp)" in listed.stdout


def test_the_explainer_takes_the_same_pairs():
    source = network().SerializeToString()
    with pytest.raises(UnsupportedError, match="use --method eigencam-pytorch-grad-cam"):
        Explainer(source, layer="a", method="eigencam", preset="pytorch-grad-cam")
