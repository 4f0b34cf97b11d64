import cv2
import numpy as np
import pytest

from onnx_gradcam.errors import InputError
from onnx_gradcam.images import drawing as render
from onnx_gradcam.images.decoding import read_image
from onnx_gradcam.images.drawing import COLORMAPS, SUFFIXES, colorize, draw_boxes, overlay, save_image, sheet

BLUE, RED = (0, 0, 128), (128, 0, 0)  # the two ends of jet


# A colour that no text, smoothed in grey, has; under the two ends of jet at half opacity.
PLAIN, COLD, HOT = (60, 76, 90), (30, 38, 109), (94, 38, 45)


def gray_image(height, width):
    return np.full((height, width, 3), 100, np.uint8)


def plain_image(height, width):
    return np.full((height, width, 3), PLAIN, np.uint8)


class TestColorize:
    def test_jet_from_blue_over_green_to_red(self):
        colours = colorize(np.array([[0.0, 0.5, 1.0]]))
        assert tuple(colours[0, 0]) == BLUE
        assert colours[0, 1].argmax() == 1
        assert tuple(colours[0, 2]) == RED

    @pytest.mark.parametrize("name", COLORMAPS)
    def test_every_map_tells_cold_from_hot(self, name):
        colours = colorize(np.linspace(0, 1, 256)[None], name).astype(int)
        assert len({tuple(colour) for colour in colours[0].tolist()}) > 100
        assert np.abs(colours[0, 0] - colours[0, -1]).sum() > 100

    def test_blue_white_red(self):
        """Matplotlib's bwr: linear from blue to white in the middle, and on to red."""
        colours = colorize(np.array([[0, 0.25, 0.5, 0.75, 1]]), "bwr")
        expected = [(0, 0, 255), (128, 128, 255), (255, 255, 255), (255, 128, 128), (255, 0, 0)]
        assert colours[0].tolist() == [list(colour) for colour in expected]

    def test_rounding_noise_is_clipped_anything_else_refused(self):
        assert tuple(colorize(np.array([[1 + 1e-6]]))[0, 0]) == RED
        for wrong in ([[-0.5, 0.2]], [[0.0, 3.5]], [[0.0, np.nan]]):
            with pytest.raises(InputError, match=r"scale it to \[0, 1\]"):
                colorize(np.array(wrong))

    def test_refusals(self):
        with pytest.raises(InputError, match="there is no colour map 'virids'; did you mean 'viridis'"):
            colorize(np.zeros((2, 2)), "virids")
        with pytest.raises(InputError, match=r"not of shape \[1, 2, 2\]"):
            colorize(np.zeros((1, 2, 2)))


class TestOverlay:
    def test_blends_by_hand(self):
        blended = overlay(gray_image(1, 2), np.array([[0.0, 1.0]]))
        assert blended.tolist() == [[[50, 50, 114], [114, 50, 50]]]
        blended = overlay(gray_image(1, 2), np.array([[0.0, 1.0]]), opacity=0.25)
        assert blended.tolist() == [[[75, 75, 107], [107, 75, 75]]]

    def test_where_the_model_did_not_look_the_image_stays(self):
        blended = overlay(gray_image(1, 3), np.array([[0.0, np.nan, 1.0]]))
        assert blended.tolist() == [[[50, 50, 114], [100, 100, 100], [114, 50, 50]]]

    def test_the_two_ends_of_opacity(self):
        image, heatmap = gray_image(3, 5), np.random.default_rng(0).random((3, 5))
        np.testing.assert_array_equal(overlay(image, heatmap, opacity=0), image)
        np.testing.assert_array_equal(overlay(image, heatmap, opacity=1, colormap="bone"), colorize(heatmap, "bone"))

    def test_refusals(self):
        with pytest.raises(InputError, match=r"heatmap is \[3, 4\] and the image \[4, 3\]"):
            overlay(gray_image(4, 3), np.zeros((3, 4)))
        with pytest.raises(InputError, match=r"opacity is 1\.5"):
            overlay(gray_image(4, 3), np.zeros((4, 3)), opacity=1.5)
        with pytest.raises(InputError, match="not float64"):
            overlay(np.zeros((4, 3, 3)), np.zeros((4, 3)))


def solid(drawn, colour):
    """The box (top, left, height, width) of all pixels of one colour."""
    rows, columns = np.nonzero((drawn == colour).all(axis=2))
    return rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1


class TestSheet:
    def test_photo_first_then_one_panel_a_class_none_stretched(self):
        drawn = sheet(plain_image(300, 240), [("cold", np.zeros((300, 240))), ("hot", np.ones((300, 240)))])
        boxes = [solid(drawn, colour) for colour in (PLAIN, COLD, HOT)]
        assert [box[2:] for box in boxes] == [(300, 240)] * 3
        tops, lefts = [box[0] for box in boxes], [box[1] for box in boxes]
        assert len(set(tops)) == 1
        assert lefts == sorted(lefts)
        assert lefts[1] - lefts[0] == lefts[2] - lefts[1] > 240

    def test_colour_bar_has_hot_on_top(self):
        drawn = sheet(gray_image(300, 300), [("a", np.full((300, 300), 0.5))])
        top, bottom = solid(drawn, RED), solid(drawn, BLUE)
        assert top[0] < bottom[0]
        assert top[1] == bottom[1] > 600  # right of both panels
        bar = drawn[top[0] : bottom[0] + bottom[2], top[1]]
        assert len(bar) == 300
        np.testing.assert_array_equal(bar, colorize(np.linspace(1, 0, 300)[:, None])[:, 0])

    def test_labels_of_the_bar(self, monkeypatch):
        written = []
        write = render._write
        monkeypatch.setattr(
            render, "_write", lambda c, text, at, s: written.append((text, at[1])) or write(c, text, at, s)
        )
        sheet(gray_image(300, 300), [])
        (one, above), (zero, below) = written[1:]
        assert (one, zero) == ("1", "0")
        assert above < below

    def test_a_small_image_is_enlarged_by_a_whole_factor(self):
        photo = np.random.default_rng(3).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        drawn = sheet(photo, [("cat 0.83", np.zeros((32, 32)))])
        large = photo.repeat(7, axis=0).repeat(7, axis=1)
        found = [
            (top, left)
            for top in range(drawn.shape[0] - 223)
            for left in range(40)
            if (drawn[top : top + 224, left : left + 224] == large).all()
        ]
        assert len(found) == 1

    def test_a_huge_image_is_reduced(self):
        drawn = sheet(plain_image(1500, 3000), [])
        assert solid(drawn, PLAIN)[2:] == (500, 1000)

    def test_very_wide_images_go_below_each_other(self):
        drawn = sheet(plain_image(100, 1000), [("hot", np.ones((100, 1000)))])
        photo, hot = solid(drawn, PLAIN), solid(drawn, HOT)
        assert photo[1] == hot[1]
        assert hot[0] > photo[0] + 100

    def test_seven_classes_make_rows(self):
        drawn = sheet(gray_image(224, 224), [(str(n), np.zeros((224, 224))) for n in range(7)])
        assert 2 * 224 < drawn.shape[0] < 2 * 300
        assert 4 * 224 < drawn.shape[1] < 5 * 224

    @pytest.mark.parametrize(("panels", "columns"), [(3, 4), (4, 3), (5, 3), (7, 4), (8, 3)])
    def test_no_row_is_left_with_one_panel(self, panels, columns):
        drawn = sheet(plain_image(224, 224), [("", np.ones((224, 224)))] * panels, ends=None)
        assert drawn.shape[1] == columns * (224 + 12) + 12

    def test_captions_of_one_and_two_lines_leave_the_panels_in_line(self):
        long = "a name that does not fit above a panel of this width 0.83"
        drawn = sheet(plain_image(224, 224), [("hot", np.ones((224, 224))), (long, np.zeros((224, 224)))])
        assert len({solid(drawn, colour)[0] for colour in (PLAIN, HOT, COLD)}) == 1

    def test_the_bar_is_beside_the_first_row_only(self):
        drawn = sheet(gray_image(224, 224), [("", np.full((224, 224), 0.5))] * 7)
        top, bottom = solid(drawn, RED), solid(drawn, BLUE)
        assert bottom[0] + bottom[2] - top[0] == 224

    @pytest.mark.parametrize("image", [(1, 1), (1, 3000), (3000, 1), (5, 7)])
    def test_odd_images(self, image):
        drawn = sheet(gray_image(*image), [("x 0.5", np.zeros(image))], title="odd")
        assert max(drawn.shape) < 1300

    def test_rows_of_panels_have_the_photo_in_the_first(self):
        hot = [(str(n), np.ones((224, 224))) for n in range(4)]
        drawn = sheet(plain_image(224, 224), hot, row=2)
        assert solid(drawn, PLAIN)[2:] == (224, 224)
        _, left, height, width = solid(drawn, HOT)
        assert left > 224
        assert 2 * 224 < height < 2 * 224 + 60
        assert 2 * 224 < width < 2 * 224 + 20
        below = drawn[-224:, 12:236]
        assert (below == 255).all()

    def test_ends_of_the_bar_and_none(self, monkeypatch):
        written = []
        monkeypatch.setattr(render, "_write", lambda *given: written.append(given[1]))
        signed = sheet(gray_image(300, 300), [], colormap="bwr", ends=("-1", "1"))
        assert written[1:] == ["1", "-1"]
        top, bottom = solid(signed, (255, 0, 0)), solid(signed, (0, 0, 255))
        assert top[0] < bottom[0]
        assert sheet(gray_image(300, 300), [], ends=None).shape[1] < signed.shape[1]

    def test_a_heatmap_of_another_size_is_refused(self):
        with pytest.raises(InputError, match=r"heatmap of 'tabby' is \[7, 7\] and the image \[224, 224\]"):
            sheet(gray_image(224, 224), [("tabby", np.zeros((7, 7)))])

    def test_a_title_adds_a_line_of_ink(self):
        plain = sheet(gray_image(224, 224), [])
        titled = sheet(gray_image(224, 224), [], title="model")
        extra = titled.shape[0] - plain.shape[0]
        assert extra > 10
        assert titled.shape[1] == plain.shape[1]
        assert (titled[12 : 12 + extra] < 100).any()


class TestCaptions:
    def width(self, text):
        return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]

    def test_short_ones_stay(self):
        assert render._shortened("tabby 0.83", 200, 0.5) == "tabby 0.83"

    def test_long_ones_keep_their_beginning_and_the_score(self):
        text = "Egyptian cat of the very long name that goes on and on 0.83"
        shortened = render._shortened(text, 200, 0.5)
        assert shortened.startswith("Egyptian cat")
        assert shortened.endswith(" 0.83")
        assert self.width(shortened) <= 200
        assert self.width(shortened) > 150

    def test_one_endless_word(self):
        shortened = render._shortened("x" * 5000, 200, 0.5)
        assert shortened.startswith("xxx")
        assert 150 < self.width(shortened) <= 200
        assert render._shortened("wide", 1, 0.5) == ""

    def test_a_percentage_stays_whole(self):
        shortened = render._shortened("Egyptian cat of the very long name that goes on and on 8.1 %", 200, 0.5)
        assert shortened.endswith(" 8.1 %")
        assert shortened.startswith("Egyptian")

    def test_long_ones_take_two_lines(self):
        room = self.width("integrated-gradients Bernese ") + 1
        first, second = render._wrapped("integrated-gradients Bernese mountain 36.1 %", room, 0.5)
        assert (first, second) == ("integrated-gradients Bernese", "mountain 36.1 %")
        assert render._wrapped("boxer 8.1 %", room, 0.5) == ["boxer 8.1 %"]
        # A number and its unit are not parted.
        assert render._wrapped("boxer of the long name 8.1 %", self.width("boxer of the long name 8.1") + 1, 0.5) == [
            "boxer of the long name",
            "8.1 %",
        ]

    def test_line_breaks_become_blanks(self):
        assert render._drawable(" a\n\tb\x0b c ") == "a b c"

    def test_scripts_that_opencv_4_cannot_draw(self, monkeypatch):
        monkeypatch.delattr(cv2, "FontFace", raising=False)
        assert render._drawable("größe 猫 é…") == "gro?e ? e..."

    @pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 4 draws ASCII only")
    def test_scripts_that_opencv_5_draws(self):
        assert render._drawable("größe 猫 é…") == "größe 猫 é…"


class TestSaveImage:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_reads_back(self, tmp_path, suffix):
        image = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
        save_image(image, tmp_path / f"out{suffix.upper()}")
        back = read_image(tmp_path / f"out{suffix.upper()}")
        assert np.abs(back.astype(int) - image).mean() < (4 if suffix in (".jpg", ".jpeg", ".webp") else 1e-9)

    def test_transparency_is_kept_or_refused(self, tmp_path):
        image = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
        save_image(image, tmp_path / "a.png")
        back = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(back[:, :, [2, 1, 0, 3]], image)
        with pytest.raises(InputError, match=r"\.jpg file cannot hold transparency; save it as one of \.png"):
            save_image(image, tmp_path / "a.jpg")
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]

    def test_replaces_and_leaves_nothing_else(self, tmp_path):
        file = tmp_path / "out.png"
        file.write_bytes(b"old")
        save_image(gray_image(2, 2), file)
        assert read_image(file)[0, 0, 0] == 100
        assert list(tmp_path.iterdir()) == [file]

    def test_refusals_write_nothing(self, tmp_path, capfd):
        with pytest.raises(InputError, match=r"does not end in the suffix of an image; did you mean '\.png'"):
            save_image(gray_image(2, 2), tmp_path / "out.pgn")
        with pytest.raises(InputError, match=r"does not end in the suffix of an image \(allowed: \.png"):
            save_image(gray_image(2, 2), tmp_path / "out")
        with pytest.raises(InputError, match="cannot be written: No such file"):
            save_image(gray_image(2, 2), tmp_path / "gone" / "out.png")
        with pytest.raises(InputError, match=r"1x20000 .* cannot be saved as \.webp"):
            save_image(gray_image(1, 20_000), tmp_path / "out.webp")
        folder = tmp_path / "folder.png"
        folder.mkdir()
        with pytest.raises(InputError, match=r"folder\.png' is a folder"):
            save_image(gray_image(2, 2), folder)
        assert list(tmp_path.iterdir()) == [folder]
        assert capfd.readouterr() == ("", "")


# ----- boxes -------------------------------------------------------------------


def test_the_lines_of_a_box_are_white_on_its_edges_between_dark_ones():
    image = np.full((300, 400, 3), 120, np.uint8)
    drawn = draw_boxes(image, [((100, 120, 250, 260), "dog 0.93")])
    assert (image == 120).all()
    assert (drawn[200, 100] == 255).all()
    assert (drawn[260, 200] == 255).all()
    assert (drawn[200, 98] < 60).all()
    assert (drawn[200, 175] == 120).all()
    # The caption is above the box.
    assert (drawn[100:118, 100:150] < 60).any()


@pytest.mark.parametrize("box", [(0, 0, 399, 299), (-20, -20, 30, 20), (380, 280, 420, 330), (100, 0, 120, 299)])
def test_a_caption_stays_in_the_image(box):
    image = np.full((300, 400, 3), 120, np.uint8)
    dark = (draw_boxes(image, [(box, "a long name of a class 0.12")]) == 32).all(2)
    text = (draw_boxes(image, [(box, "")]) == 32).all(2)
    assert dark.sum() > text.sum() + 500


def test_captions_of_neighbours_do_not_cover_each_other():
    image = np.full((300, 400, 3), 120, np.uint8)
    box = (100, 100, 300, 200)
    lines, one, three = (
        (draw_boxes(image, [(box, caption) for caption in captions]) == 32).all(2).sum()
        for captions in ([""], ["dog 0.9"], ["dog 0.9", "cat 0.8", "cow 0.7"])
    )
    assert three - one > 1.3 * (one - lines) > 0
