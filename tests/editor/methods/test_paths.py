"""Path methods and XRAI against `saliency` (tests/oracles/make_paths.py), and against what holds by construction."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.graphs import graph, images, run, vit
from typer.testing import CliRunner

from onnx_gradcam import attach
from onnx_gradcam.cli import app
from onnx_gradcam.editor.methods import integrated, regions
from onnx_gradcam.editor.methods.baselines import baseline
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.errors import InputError, UnsupportedError
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import Prober

ORACLE = dict(np.load(Path(__file__).parents[2] / "oracles/paths.npz"))
SHARED = Path(__file__).parents[4] / "shared/methods/oracles"
BODY = "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)"
SIZES = {"K": (6, 3, 3, 3), "L": (5, 6, 3, 3), "W": (5, 4)}


class Numeric:
    """A probe of the oracle's network, in float64."""

    batch_size = 16
    size = (40, 40)

    def __init__(self, **settings):
        self.x, self.settings = ORACLE["x"].transpose(2, 0, 1), {"idgi": False, "smooth": 0} | settings
        self.baselines = [baseline(word, self.x, None) for word in settings.get("baseline", ["darkest"])]
        self.rng = np.random.default_rng(0)

    def gradients_and_scores(self, some):
        rows = np.asarray(some, np.float32).transpose(0, 2, 3, 1).reshape(len(some), -1).astype(np.float64)
        hidden = np.tanh(rows @ ORACLE["weights"].T.astype(np.float64))
        flat = ((1 - hidden**2) * ORACLE["head"]) @ ORACLE["weights"]
        return flat.reshape(-1, *ORACLE["x"].shape).transpose(0, 3, 1, 2), hidden @ ORACLE["head"]

    def gradients(self, some):
        return self.gradients_and_scores(some)[0]

    def scores(self, some):
        return self.gradients_and_scores(some)[1]

    def steps(self, total):
        return (range(i, min(i + 16, total)) for i in range(0, total, 16))


def model(**ends):
    return graph(BODY, **SIZES, **ends)


def explained(method, x, classes=(1,), source=None, **choices):
    return Prober(probed(source or model(), Options(method=method, **choices))).run(x, list(classes))


def score(x, index=1):
    return run(model(), x=x.astype(np.float32))["y"][0, index]


def test_integrated_gradients_of_pair():
    found = integrated.integrated_gradients_of_pair(Numeric(steps=25)).transpose(1, 2, 0)
    np.testing.assert_allclose(found, ORACLE["integrated"], rtol=0, atol=1e-6 * np.abs(ORACLE["integrated"]).max())


@pytest.mark.parametrize(("name", "steps", "leeway"), [("guided", 60, 0.02), ("guided-free", 20, 1.0)])
def test_guided_integrated_gradients_are_the_library_s_to_the_last_digits(name, steps, leeway, monkeypatch):
    monkeypatch.setattr(integrated, "_LEEWAY", leeway)
    found = integrated.guided_integrated_gradients(Numeric(steps=steps)).transpose(1, 2, 0)
    np.testing.assert_allclose(found, ORACLE[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "more"), [("xrai", {}), ("xrai-fast", {"fast": True}), ("xrai-part", {"area": 0.2})])
def test_xrai_ranks_regions_as_the_library(name, more):
    probe = Numeric(steps=20, baseline=["darkest", "lightest"])
    masks = np.unpackbits(ORACLE["segments"], axis=-1)[..., :40].astype(bool)
    attribution = regions._attribution(probe)
    found = regions.ranked(attribution, masks, **more)
    # The library rounds its paths elsewhere.
    np.testing.assert_allclose(found, ORACLE[name], rtol=0, atol=1e-6 * np.abs(ORACLE[name]).max())
    assert found.sum() == pytest.approx(attribution.sum())


def test_regions_are_scikit_image_s():
    x = ORACLE["x"].transpose(2, 0, 1).astype(np.float64)
    labels = regions.segmented(2 * (x - x.min()) / np.ptp(x) - 1, 250, least=40)
    pairs = np.unique(np.stack([labels.ravel(), ORACLE["labels"].ravel()]), axis=1)
    assert pairs.shape[1] == labels.max() + 1 == ORACLE["labels"].max() + 1 > 5


def test_a_dilated_mask_holds_what_is_near():
    mask = np.zeros((12, 20), bool)
    mask[3, 4] = mask[10, 18] = True
    rows, columns = np.ogrid[:12, :20]
    expected = (np.hypot(rows - 3, columns - 4) <= 5) | (np.hypot(rows - 10, columns - 18) <= 5)
    np.testing.assert_array_equal(regions.dilated(mask, 5), expected)


@pytest.mark.skipif(not SHARED.exists(), reason="the oracles of shared/ are not here")
@pytest.mark.parametrize(
    ("method", "key", "tolerance", "choices"),
    [
        ("integrated-gradients-pair-saliency", "ig_black_25", 1e-6, {"baseline": "darkest"}),
        ("integrated-gradients-pair-saliency", "ig_black_200", 1e-6, {"baseline": "darkest", "steps": 200}),
        # The oracle's gradients are PyTorch's: steps of float32 choose other values at the edge of the share.
        ("guided-ig", "guided_ig_black", 1e-3, {"baseline": "darkest"}),
        ("blur-ig", "blur_ig", 2e-5, {}),
    ],
)
def test_a_convolutional_network_of_pytorch(method, key, tolerance, choices, monkeypatch):
    monkeypatch.setattr(integrated, "_BLUR", 35.0)
    oracle = np.load(SHARED / "o2_saliency.npz")
    x, expected = oracle["x_hwc"].transpose(2, 0, 1)[None], oracle[key].transpose(2, 0, 1)
    found = explained(method, x, [int(oracle["class"])], SHARED / "o2_cnn.onnx", **choices)["attribution"][0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("method", ["integrated-gradients", "guided-ig", "blur-ig"])
def test_idgi_adds_up_exactly(method):
    x = images(1)
    start = integrated.blurred(x[0], integrated._BLUR)[None] if method == "blur-ig" else np.zeros_like(x)
    found = explained(method, x, steps=7, idgi=True)["attribution"]
    assert found.sum() == pytest.approx(score(x) - score(start), abs=1e-5)
    assert not np.allclose(found, explained(method, x, steps=7)["attribution"], atol=1e-3)


def test_a_point_without_gradient_leaves_its_change_to_the_next():
    gradients = [np.array([0.0, 0.0]), np.array([3.0, 4.0]), np.array([0.0, 0.0]), np.array([1.0, 0.0])]
    answers = zip(gradients, [0.0, 1.0, 5.0, 7.0], strict=True)
    np.testing.assert_allclose(integrated.important_directions(answers), 7 * np.array([0.36, 0.64]))


def test_of_several_baselines_the_attributions_are_averaged():
    x = images(1)
    one, two, both = (
        explained("integrated-gradients", x, baseline=words)["attribution"]
        for words in ("darkest", "lightest", ["darkest", "lightest"])
    )
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-4, atol=1e-6)
    ends = [score(np.full_like(x, level)) for level in (x.min(), x.max())]
    assert both.sum() == pytest.approx(score(x) - np.mean(ends), rel=0.03)


@pytest.mark.parametrize("kind", ["black", "white", "mean", "uniform:3", "blur:2", "array.npy", "photo.png"])
def test_the_attribution_adds_up_from_every_baseline(kind, tmp_path):
    x = images(1)
    how = {"scale": 1 / 255, "mean": [0.5], "std": [0.25], "resize": "stretch"}
    means, ranges = x.mean((2, 3), keepdims=True), (x.min(), x.max())
    if "." in kind:
        kind = str(tmp_path / kind)
        import cv2  # noqa: PLC0415 - the pixels of a file

        cv2.imwrite(kind, np.full((5, 5, 3), 51, np.uint8)) if kind.endswith("png") else np.save(kind, x[0] / 2)
    expected = {
        "black": np.full_like(x, -2),
        "white": np.full_like(x, 2),
        "mean": np.broadcast_to(means, x.shape),
        "uniform:3": np.random.default_rng(3).uniform(*ranges, x.shape),
        "blur:2": integrated.blurred(x[0], 2)[None],
        "npy": x / 2,
        "png": np.full_like(x, (0.2 - 0.5) / 0.25),
    }[kind.rpartition(".")[2]]
    found = explained("integrated-gradients", x, baseline=kind, preprocess=how, steps=200)["attribution"]
    assert found.sum() == pytest.approx(score(x) - score(expected), abs=0.02 * float(abs(score(x))))


def test_expected_gradients_approach_integrated_gradients():
    x = images(1)
    runs = [
        Prober(probed(model(), Options(method="expected-gradients", baseline="zero")), seed=seed).run(x, [1])
        for seed in range(8)
    ]
    samples = np.stack([r["attribution"] for r in runs])
    exact = explained("integrated-gradients", x)["attribution"]
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - exact) <= 3 * error + 1e-6).mean() > 0.93


def test_smoothing_averages_over_noisy_copies():
    x = images(1)
    linear = graph("f = Flatten(x) y = Gemm(f, W)", W=(192, 4))
    found = explained("integrated-gradients", x, source=linear, steps=3, smooth=4)["attribution"]
    rng = np.random.default_rng(0)
    noise = 0.15 * np.ptp(x) * np.mean([rng.standard_normal(x.shape[1:]) for _ in range(4)], 0)
    plain = explained("integrated-gradients", x, source=linear, steps=3)["attribution"]
    np.testing.assert_allclose(found, plain / x * (x + noise), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (model(), ["zero"]),
        (model(), ["black", "lightest", "mean"]),
        (model(inputs="float[2,3,8,8] x", outputs="float[2,4] y"), ["darkest"]),
        (vit(blocks=1), ["zero"]),
    ],
    ids=["zero", "several", "fixed batch", "transformer"],
)
def test_a_model_that_computes_integrated_gradients_itself(source, words):
    x, how = images(2), {"scale": 1 / 255, "mean": [0.4], "std": [0.5], "resize": "stretch"}
    choices = {"method": "integrated-gradients", "baseline": words, "steps": 9, "preprocess": how}
    attached = attach(source, **choices)
    found = run(attached.to_proto(), x=x, target_class=np.array([1, 2], np.int64))
    expected = Prober(probed(source, Options(**choices))).run(x, [1, 2])
    for name in ("attribution", "cam", "heatmap"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5 * np.abs(expected[name]).max())
    levels = {"zero": 0 * x, "black": 0 * x - 0.8, "white": 0 * x + 1.2, "mean": 0 * x + x.mean((2, 3), keepdims=True)}
    levels["lightest"], levels["darkest"] = (0 * x + end((1, 2, 3), keepdims=True) for end in (x.max, x.min))
    scores = [run(source, x=b.astype(np.float32))["y"][[0, 1], [1, 2]] for b in (x, *(levels[word] for word in words))]
    left = scores[0] - np.mean(scores[1:], 0) - found["attribution"].sum((1, 2, 3))
    np.testing.assert_allclose(found["completeness"], left, atol=1e-4)
    assert np.abs(left).max() < 0.2 * np.abs(scores[0] - np.mean(scores[1:], 0)).max()
    assert attached.metadata.completeness == "completeness"


@pytest.mark.parametrize(
    ("choices", "error", "why"),
    [
        ({"baseline": "uniform:1"}, UnsupportedError, "the baseline 'uniform:1' cannot be a part of a model"),
        ({"idgi": True}, UnsupportedError, "takes --idgi in explain alone"),
        ({"against": "runner-up"}, UnsupportedError, "explains the score of a class, and no box or comparison"),
        ({"baseline": "white"}, InputError, "carries no preprocessing, so it is not known what a white image"),
    ],
)
def test_what_a_model_does_not_compute_itself(choices, error, why):
    with pytest.raises(error, match=why):
        attach(model(), method="integrated-gradients", **choices)


@pytest.mark.parametrize(
    ("choices", "error", "why"),
    [
        ({"method": "gradcam", "baseline": "mean"}, UnsupportedError, "Grad-CAM takes no --baseline; leave it out"),
        ({"method": "blur-ig", "baseline": "mean"}, UnsupportedError, "takes no --baseline"),
        ({"method": "smoothgrad", "steps": 3}, UnsupportedError, "takes no --steps"),
        ({"method": "eigencam", "modifier": "guided"}, UnsupportedError, "takes no gradient, which --modifier would"),
        ({"method": "occlusion", "modifier": "libra"}, UnsupportedError, "takes no gradient, which --modifier would"),
        ({"method": "integrated-gradients", "baseline": "grey"}, InputError, "baseline is 'grey'"),
        ({"method": "integrated-gradients", "baseline": "blur"}, InputError, "give a number behind the colon"),
        ({"method": "integrated-gradients", "baseline": "mean:2"}, InputError, "takes no number"),
        ({"method": "integrated-gradients", "steps": 0}, InputError, "steps is 0; give an integer from 1 on"),
        ({"method": "integrated-gradients", "baseline": "black"}, InputError, "carries no preprocessing"),
    ],
)
def test_refusals(choices, error, why):
    with pytest.raises(error, match=why):
        explained(choices.pop("method"), images(1), **choices)


def test_a_baseline_of_another_size_is_refused(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((3, 4, 4), np.float32))
    with pytest.raises(InputError, match=r"the array has shape \[3, 4, 4\]"):
        explained("integrated-gradients", images(1), baseline=str(tmp_path / "small.npy"))


def test_the_command_line(tmp_path):
    np.save(tmp_path / "x.npy", images(1)[0])
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    words = ["explain", tmp_path / "m.onnx", tmp_path / "x.npy", "--preprocess", "none", "--method"]
    call = partial(CliRunner().invoke, app)
    more = ["integrated-gradients", "--baseline", "darkest", "--baseline", "mean", "--steps", "5", "--idgi"]
    result = call([str(word) for word in [*words, *more, "-o", tmp_path / "map.png"]])
    assert result.exit_code == 0, result.output
    attached = [
        "attach",
        tmp_path / "m.onnx",
        "-o",
        tmp_path / "e.onnx",
        "--method",
        "integrated-gradients",
        "--steps",
        "4",
    ]
    result = call([str(word) for word in attached])
    assert result.exit_code == 0, result.output
    result = call([str(word) for word in ["explain", tmp_path / "e.onnx", *words[2:-1], "-o", tmp_path / "again.png"]])
    assert result.exit_code == 0, result.output
    result = call([str(word) for word in [*words, "gradcam", "--steps", "5", "-o", tmp_path / "other.png"]])
    assert result.exit_code == 1
    assert "Grad-CAM takes no --steps; leave it out, or choose one of integrated-gradients" in result.output
    result = call([str(word) for word in [*words, "rise", "--modifier", "guided", "-o", tmp_path / "other.png"]])
    assert result.exit_code == 1
    assert "RISE takes no gradient, which --modifier would change; leave it out" in result.output
    assert not (tmp_path / "other.png").exists()
