"""Overlays against the libraries' own; see tests/oracles/make_presets_*.py."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.preset_network import CASES, HEIGHT, WIDTH, images
from support.preset_oracles import OPENVINO, ORACLE, explained, network

from onnx_gradcam.editor.presets import PRESETS
from onnx_gradcam.errors import InputError
from onnx_gradcam.images.decoding import Placement
from onnx_gradcam.images.drawing import overlay
from onnx_gradcam.images.overlays import OVERLAYS, library_overlay
from onnx_gradcam.runtime.explainer import Explainer

DRAWN = [
    name
    for name in PRESETS
    if name in OVERLAYS.keys() - {"default", "mxnet", "chollet-2e", "openvino-xai", "ultralytics"}
]
HOW = {"size": None, "scale": 1 / 127.5, "mean": [1, 1, 1], "std": [1, 1, 1], "resize": "none"}
LARGE = ["torch-cam", "keras-io", "chollet-1e"]


def drawn(preset, case, *, width=WIDTH, times=1, rounding=0.0):
    """The overlay; `rounding` moves the maps by a part of their largest value, as float32 arithmetic may."""
    image = images()[CASES[case][0]][:, :width].repeat(times, axis=0).repeat(times, axis=1)
    found = explained(preset, case, width=width)
    maps = (found[name] + np.float32(rounding) * np.abs(found[name]).max() for name in ("heatmap", "cam"))
    return library_overlay(preset, image, *maps)


def explainer(preset, layer="a"):
    return Explainer(network().SerializeToString(), layer=layer, preset=preset, preprocess=HOW)


def within_a_level(*drawings, expected):
    """Every pixel of the first drawing, or of others whose maps are rounded in another way, is within a level."""
    assert all(drawing.dtype == np.uint8 for drawing in drawings)
    off = np.stack([np.abs(drawing.astype(int) - expected.astype(int)) for drawing in drawings])
    assert off.min(0).max() <= 1
    assert (off[0] > 1).mean() < 1e-3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("preset", DRAWN)
def test_within_a_level_of_the_library(preset, case):
    within_a_level(drawn(preset, case), expected=ORACLE[f"{case}/overlay/{preset}"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("preset", LARGE)
def test_on_a_larger_image(preset, case):
    # A value on the edge of two levels is a step of the colormap, and which side it is on depends on the processor.
    drawings = [drawn(preset, case, times=3, rounding=by) for by in (0.0, -1e-6, 1e-6)]
    within_a_level(*drawings, expected=ORACLE[f"{case}/overlay/{preset}/large"])


@pytest.mark.parametrize("case", CASES)
def test_mxnet(case):
    within_a_level(drawn("mxnet", case, width=HEIGHT), expected=ORACLE[f"mxnet/{case}/overlay"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("times", [1, 3])
def test_openvino(case, times):
    """From its own map: a value on the edge of two levels is a step of jet otherwise, which is several of colour."""
    image = images()[CASES[case][0]].repeat(times, axis=0).repeat(times, axis=1)
    saliency = OPENVINO[f"{case}/saliency"]
    got = library_overlay("openvino-xai", image, np.zeros((8, 8)), saliency)
    within_a_level(got, expected=OPENVINO[f"{case}/overlay" + ("/large" if times > 1 else "")])
    found = explained("openvino-xai", case, method="reciprocam-openvino-xai")
    ours = library_overlay("openvino-xai", image, found["heatmap"], found["cam"])
    assert (np.abs(ours.astype(int) - got) > 1).mean() < 0.02


@pytest.mark.parametrize("preset", [name for name in OVERLAYS if not PRESETS[name].detectors])
def test_a_image_of_which_the_model_saw_the_middle(preset):
    image = images()[0]
    found = explained(preset, "mixed")
    whole = np.full((HEIGHT + 9, WIDTH + 8, 3), 90, np.uint8)
    whole[5:-4, 3:-5] = image
    placement = Placement((3.2, 4.8, WIDTH + 2.9, HEIGHT + 5.1), *whole.shape[:2])
    got = library_overlay(preset, whole, found["heatmap"], found["cam"], placement)
    expected = whole.copy()
    expected[5:-4, 3:-5] = library_overlay(preset, image, found["heatmap"], found["cam"])
    np.testing.assert_array_equal(got, expected)
    assert not np.array_equal(got, whole)


@pytest.mark.parametrize("preset", OVERLAYS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (300, 7)])
def test_blank_maps_and_odd_images(preset, shape):
    """No library says what a blank map looks like; no number is divided by zero, and colours are those of zero."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    blank = library_overlay(preset, image, np.zeros((8, 8)), np.zeros((3, 4)))
    assert blank.shape == image.shape
    assert blank.dtype == np.uint8
    black = library_overlay(preset, np.zeros_like(image), np.zeros((8, 8)), np.zeros((3, 4)))
    assert len(np.unique(black.reshape(-1, 3), axis=0)) == 1


def test_every_preset_whose_library_draws_has_an_overlay():
    assert set(PRESETS) - set(OVERLAYS) == {"pair-saliency"}
    assert set(OVERLAYS) <= set(PRESETS)
    with pytest.raises(InputError, match="there is no overlay for the preset 'keras'; did you mean 'keras-io'"):
        library_overlay("keras", images()[0], np.zeros((8, 8)), np.zeros((3, 4)))


class TestExplanation:
    @pytest.fixture
    def explanation(self):
        return explainer("torch-cam")(images()[0], target=1)

    def test_follows_the_preset(self, explanation):
        expected = ORACLE["mixed/overlay/torch-cam"]
        within_a_level(explanation.overlay().pixels, expected=expected)
        within_a_level(explanation.overlay(style="overlay").pixels, expected=expected)

    def test_colours_that_are_asked_for_come_first(self, explanation):
        own = overlay(images()[0], explanation.heatmap, opacity=0.5)
        np.testing.assert_array_equal(explanation.overlay(opacity=0.5).pixels, own)
        np.testing.assert_array_equal(explanation.overlay(colormap="jet").pixels, own)

    def test_another_drawing_is_chosen_by_its_name(self, explanation):
        np.testing.assert_array_equal(
            explanation.overlay(preset="default").pixels, overlay(images()[0], explanation.heatmap)
        )
        with pytest.raises(InputError, match="there is no overlay for the preset 'torch'"):
            explanation.overlay(preset="torch")

    def test_a_name_and_colours_contradict_each_other(self, explanation):
        with pytest.raises(InputError, match="the overlay of a preset has its own colours"):
            explanation.overlay(preset="mxnet", colormap="jet")

    def test_a_sheet_shows_it_without_a_colour_bar(self, explanation):
        drawn = explanation.sheet().pixels
        assert drawn.shape[1] < explanation.sheet(preset="default").pixels.shape[1]
        panel = explanation.overlay().pixels
        colours = {tuple(c) for c in panel.reshape(-1, 3).tolist()}
        assert len(colours & {tuple(c) for c in drawn.reshape(-1, 3).tolist()}) > 0.95 * len(colours)

    def test_several_layers_are_drawn_from_their_one_heatmap(self):
        found = explainer("torch-cam", layer=["b", "a"])(images()[0], target=1)
        expected = library_overlay("torch-cam", images()[0], found.heatmap, found.heatmap)
        np.testing.assert_array_equal(found.overlay().pixels, expected)
