"""What is hot, and the styles that show it."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_gradcam.errors import InputError
from onnx_gradcam.images.decoding import Placement
from onnx_gradcam.images.drawing import colorize, overlay
from onnx_gradcam.images.masks import STYLES, Look, hot_box, hot_region
from onnx_gradcam.runtime.answers import Target
from onnx_gradcam.runtime.explanation import ClassMap, Explanation, _symmetric, method_sheet

NAN = np.nan
LINE = (255, 221, 0)


def photo(height=40, width=60):
    return np.random.default_rng(5).integers(0, 200, (height, width, 3), dtype=np.uint8)


def two_spots(height=40, width=60):
    """A large hot spot of value 1 at rows 10 to 19, columns 20 to 39, a small one of 0.8, and 0.1 elsewhere."""
    heatmap = np.full((height, width), 0.1, np.float32)
    heatmap[10:20, 20:40] = 1
    heatmap[30:33, 5:9] = 0.8
    return heatmap


class TestRegion:
    def test_part_of_the_largest_value(self):
        heatmap = np.array([[0.0, 0.1, 0.2], [0.24, 0.4, NAN]])
        np.testing.assert_array_equal(hot_region(heatmap), [[0, 0, 1], [1, 1, 0]])
        np.testing.assert_array_equal(hot_region(heatmap, threshold=1), [[0, 0, 0], [0, 1, 0]])

    def test_percent_of_what_was_seen(self):
        heatmap = np.full((10, 20), NAN)
        heatmap[:, :10] = np.random.default_rng(0).permutation(100).reshape(10, 10) / 100
        region = hot_region(heatmap, top_percent=20)
        assert region.sum() == 20
        assert heatmap[region].min() == 0.8

    def test_ties_at_the_limit_are_hot_zeros_never(self):
        assert hot_region(np.array([[0.5, 0.5, 0.5, 0.1]]), top_percent=25).sum() == 3
        assert hot_region(np.array([[0.5, 0.0, 0.0, 0.0]]), top_percent=100).sum() == 1
        for blank in (np.zeros((3, 4)), np.full((3, 4), NAN)):
            assert not hot_region(blank).any()
            assert not hot_region(blank, top_percent=50).any()

    def test_no_map(self):
        with pytest.raises(InputError, match="give that of one sample"):
            hot_region(np.zeros((1, 4, 4)))

    def test_box_of_the_largest_part(self):
        assert hot_box(hot_region(two_spots())) == (20, 10, 40, 20)
        assert hot_box(hot_region(two_spots(), threshold=0.05)) == (0, 0, 60, 40)
        assert hot_box(np.zeros((4, 4), bool)) is None


class TestStyles:
    def test_mask_darkens_the_rest(self):
        image, heatmap = photo(), two_spots()
        drawn = Look(style="mask", opacity=0.75).draw(image, heatmap)
        hot = heatmap > 0.5
        np.testing.assert_array_equal(drawn[hot], image[hot])
        np.testing.assert_allclose(drawn[~hot], image[~hot] / 4, atol=0.51)

    def test_box_is_drawn_around_the_largest_part(self):
        drawn = Look(style="box").draw(photo(), two_spots())
        rows, columns = np.nonzero((drawn == LINE).all(axis=2))
        corners = rows.min(), rows.max(), columns.min(), columns.max()
        np.testing.assert_allclose(corners, (10, 19, 20, 39), atol=1)
        np.testing.assert_array_equal(drawn[14, 29], photo()[14, 29])

    def test_contour_follows_every_part(self):
        image, heatmap = photo(), two_spots()
        drawn = Look(style="contour").draw(image, heatmap)
        changed = (drawn != image).any(axis=2)
        assert changed[10:20, 20].all()
        assert changed[30:33, 5].all()
        assert not changed[14, 25:35].any()
        assert not changed[:5].any()

    def test_alpha_fades_out(self):
        heatmap = np.array([[0.0, 0.5, 1.0, NAN]])
        drawn = Look(style="alpha", opacity=0.8).draw(photo(1, 4), heatmap)
        assert drawn.shape == (1, 4, 4)
        assert drawn[0, :, 3].tolist() == [0, 102, 204, 0]
        np.testing.assert_array_equal(drawn[0, :3, :3], colorize(heatmap[:, :3])[0])

    def test_signed_has_white_at_zero_over_grey(self):
        image = photo(1, 3)
        drawn = Look(style="signed", opacity=1).draw(image, np.array([[-1.0, 0.0, 1.0]]))
        assert drawn[0].tolist() == [[0, 0, 255], [255, 255, 255], [255, 0, 0]]
        plain = Look(style="signed", opacity=0).draw(image, np.array([[-1.0, 0.0, NAN]])).astype(int)
        grey = round(float(image[0, 0] @ (0.299, 0.587, 0.114)))
        np.testing.assert_allclose(plain[0, 0], (0, 0, grey), atol=1)
        assert (np.ptp(plain[0, 1:], axis=1) == 0).all()

    @pytest.mark.parametrize("style", STYLES)
    def test_blank_tiny_and_odd(self, style):
        for size in ((1, 1), (1, 50), (3, 7)):
            for heatmap in (np.zeros(size), np.full(size, NAN)):
                drawn = Look(style=style).draw(photo(*size), heatmap)
                assert drawn.shape[:2] == size
                if style in {"box", "contour"}:
                    np.testing.assert_array_equal(drawn, photo(*size))

    @pytest.mark.parametrize(
        ("look", "sentence"),
        [
            ({"style": "contor"}, "there is no style 'contor'; did you mean 'contour'"),
            ({"colormap": "jett"}, "there is no colour map 'jett'; did you mean 'jet'"),
            ({"opacity": 2}, "opacity is 2"),
            ({"threshold": 0}, "threshold is 0"),
            ({"top_percent": 0}, "the percentage of pixels is 0"),
        ],
    )
    def test_refusals(self, look, sentence):
        with pytest.raises(InputError, match=sentence):
            Look(**look)


def explanation(cam=((1.0, -2.0), (0.0, 0.5)), classes=1):
    """A model that saw the middle 20 of 40 columns."""
    image = np.full((20, 40, 3), 90, np.uint8)
    cam = np.array(cam, np.float32)
    heatmap = np.array([[1, 0], [0, 0.5]], np.float32)
    maps = [ClassMap(Target(i, f"class {i}", 0.5), heatmap, cam) for i in range(classes)]
    return Explanation(image, Placement((10, 0, 30, 20), 20, 40), np.full(3, 0.5), None, maps)


class TestExplanation:
    def test_margins_that_the_model_did_not_see_are_not_tinted(self):
        drawn = explanation().overlay().pixels
        assert (drawn[:, :10] == 90).all()
        assert (drawn[:, 30:] == 90).all()
        assert (drawn[:, 10:30] != 90).any(axis=2).all()
        inside = explanation().heatmap_on_image()[:, 10:30]
        np.testing.assert_array_equal(drawn[:, 10:30], overlay(explanation().image[:, 10:30], inside))

    def test_signed_map_is_divided_by_its_largest_magnitude(self):
        drawn = explanation().overlay(style="signed", opacity=1).pixels
        assert drawn[0, 29].tolist() == [0, 0, 255]
        assert drawn[0, 10].tolist() == [255, 128, 128]
        blank = explanation(cam=((0, 0), (0, 0))).overlay(style="signed", opacity=1).pixels
        assert (blank[:, 10:30] == 255).all()

    def test_outliers_of_an_attribution_count_as_one(self):
        """99 values of 1 and one of 50: without its last 2 % the sum of 149 ends among the large one."""
        cam = np.ones((10, 10), np.float32)
        cam[0, 0] = -50
        assert _symmetric(cam, spread=True)[1, 1] == pytest.approx(1 / 50)
        big = np.ones((40, 40), np.float32)
        big[0, 0] = -9
        assert _symmetric(big, spread=True)[0, :2].tolist() == [-1.0, 1.0]
        assert _symmetric(big, spread=False)[0, 1] == pytest.approx(1 / 9)

    def test_region_and_box(self):
        got = explanation()
        # at 0.9 only the upper left cell, that begins at column 10
        x0, y0, x1, y1 = got.box(threshold=0.9)
        assert (x0, y0) == (10, 0)
        assert x1 <= 20
        assert y1 <= 10
        # 40 pixels, and their mirror images of the same value
        assert 40 <= got.region(top_percent=10).sum() < 50

    def test_a_sheet_of_methods(self):
        one = method_sheet({"gradcam": explanation(), "layercam": explanation()}).pixels
        several = method_sheet({"gradcam": explanation(classes=2), "layercam": explanation(classes=2)}).pixels
        # the photo and one panel a class in each row, against the photo and one panel
        assert several.shape[0] == one.shape[0]
        assert 1.4 < several.shape[1] / one.shape[1] < 1.5
        with pytest.raises(InputError, match="a sheet is not transparent"):
            explanation().sheet(style="alpha")
