import json
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib

import cv2
import numpy as np
import onnxruntime
import pytest
from support.graphs import HAS_VNNI

from onnx_gradcam.errors import InputError
from onnx_gradcam.images import decoding as image_module
from onnx_gradcam.images.decoding import Placement, prepare, read_image
from onnx_gradcam.images.preprocessing import PRESETS, Preprocessing, parse_preprocessing

RGB = np.array(  # 2 x 3, no two pixels or channels alike
    [[[10, 20, 30], [40, 50, 60], [70, 80, 90]], [[100, 110, 120], [130, 140, 150], [160, 170, 180]]], np.uint8
)


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)


def encode(array, suffix=".png", *options):
    done, data = cv2.imencode(suffix, array, options)
    assert done
    return data.tobytes()


def bgr(array):
    return np.ascontiguousarray(array[:, :, ::-1])


class TestReadImage:
    def test_file_path_bytes_and_array_agree(self, tmp_path):
        data = encode(bgr(RGB))
        file = tmp_path / "ö.png"
        file.write_bytes(data)
        for source in (file, str(file), data, RGB):
            image = read_image(source)
            assert image.dtype == np.uint8
            assert image.flags.c_contiguous
            np.testing.assert_array_equal(image, RGB)

    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
    def test_lossless_formats(self, suffix):
        np.testing.assert_array_equal(read_image(encode(bgr(RGB), suffix)), RGB)

    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_lossy_formats(self, suffix):
        smooth = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
        image = read_image(encode(bgr(smooth), suffix))
        assert np.abs(image.astype(int) - smooth).mean() < 4

    def test_grey_becomes_rgb(self):
        image = read_image(encode(RGB[:, :, 0]))
        np.testing.assert_array_equal(image, np.stack([RGB[:, :, 0]] * 3, axis=2))

    def test_transparency_is_dropped(self):
        transparent = np.dstack([bgr(RGB), np.full((2, 3), 7, np.uint8)])
        np.testing.assert_array_equal(read_image(encode(transparent)), RGB)

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    def test_16_bits_become_8(self, suffix):
        deep = bgr(RGB).astype(np.uint16) * 257
        np.testing.assert_array_equal(read_image(encode(deep, suffix)), RGB)

    @pytest.mark.parametrize(
        ("orientation", "turned"),
        [
            (1, lambda a: a),
            (2, lambda a: a[:, ::-1]),
            (3, lambda a: a[::-1, ::-1]),
            (4, lambda a: a[::-1]),
            (5, lambda a: a.transpose(1, 0, 2)),
            (6, lambda a: a.transpose(1, 0, 2)[:, ::-1]),
            (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
            (8, lambda a: a.transpose(1, 0, 2)[::-1]),
        ],
    )
    def test_exif_orientation(self, orientation, turned):
        stored = RGB.repeat(16, axis=0).repeat(16, axis=1)
        exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        jpeg = encode(bgr(stored), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 98)
        image = read_image(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
        assert image.shape == turned(stored).shape
        assert np.abs(image.astype(int) - turned(stored)).max() < 12

    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (RGB[:, :, 1], np.stack([RGB[:, :, 1]] * 3, axis=2)),
            (RGB[:, :, 1:2], np.stack([RGB[:, :, 1]] * 3, axis=2)),
            (np.dstack([RGB, RGB[:, :, 0]]), RGB),
            (np.asfortranarray(RGB[:, ::-1]), RGB[:, ::-1]),
        ],
    )
    def test_arrays(self, array, expected):
        np.testing.assert_array_equal(read_image(array), expected)

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (RGB / 255, r"array of float64, but it has to be uint8 .* scale and convert"),
            (RGB.astype(np.int64), "array of int64"),
            (RGB[..., :2], r"shape \[2, 3, 2\]"),
            (RGB[None], r"shape \[1, 2, 3, 3\]"),
            (RGB[:0], r"shape \[0, 3, 3\]"),
        ],
    )
    def test_arrays_of_another_kind_are_refused(self, array, said):
        with pytest.raises(InputError, match=said):
            read_image(array)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_an_image_of_pillow_is_that_of_its_file(self, orientation, tmp_path):
        pillow = pytest.importorskip("PIL.Image")
        exif = pillow.Exif()
        exif[0x0112] = orientation
        pillow.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
        with pillow.open(tmp_path / "turned.png") as image:
            np.testing.assert_array_equal(read_image(image), read_image(tmp_path / "turned.png"))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
    def test_modes_of_pillow(self, mode):
        pillow = pytest.importorskip("PIL.Image")
        image = pillow.fromarray(RGB).convert(mode)
        np.testing.assert_array_equal(read_image(image), np.asarray(image.convert("RGB")))

    def test_images_of_pillow_that_are_refused(self):
        pillow = pytest.importorskip("PIL.Image")
        with pytest.raises(InputError, match="mode 'F', not 8 bits a channel; convert it to RGB"):
            read_image(pillow.new("F", (2, 2)))
        with pytest.raises(InputError, match="above the limit of 8 pixels"):
            read_image(pillow.new("RGB", (3, 3)), max_pixels=8)

    def test_a_tensor_of_pytorch_has_its_channels_first_or_last(self):
        for array in (RGB, np.moveaxis(RGB, -1, 0)):
            np.testing.assert_array_equal(read_image(Tensor(array)), RGB)
        np.testing.assert_array_equal(read_image(Tensor(RGB[:, :, 0])), read_image(RGB[:, :, 0]))

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            (
                "https://example.org/cat.jpg",
                "is an address, and nothing is fetched from the network; download the file",
            ),
            ([RGB, RGB], "and not a list; several images go to `stream`"),
            (None, "and not a NoneType"),
        ],
    )
    def test_what_is_no_image_is_refused_by_its_kind(self, source, said):
        with pytest.raises(InputError, match=said):
            read_image(source)


class Tensor:
    """What a tensor of PyTorch has that is used of it."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array


@pytest.mark.parametrize("name", ["torchvision", "keras-caffe", "keras-tf", "mxnet-gluon"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_image_of_an_input_is_the_one_it_was_made_from(name, layout, photo):
    shape = ("N", 3, 256, 256) if layout == "NCHW" else ("N", 256, 256, 3)
    preprocessing = parse_preprocessing(name).for_input(layout, shape, "float32")
    tensor, _ = prepare(photo, preprocessing)
    image = image_module.unprepared(tensor, preprocessing)
    assert image.shape == (256, 256, 3)
    again, _ = prepare(image, parse_preprocessing({**preprocessing.to_dict(), "resize": "none", "size": [256, 256]}))
    np.testing.assert_allclose(again, tensor, atol=1e-5 * np.abs(tensor).max())


class TestBadImages:
    @pytest.mark.parametrize(
        ("suffix", "kept", "said"),
        [
            (None, 0, "is empty"),
            (None, -1, "is not an image that OpenCV can read"),
            (".png", -20, "is a damaged image, it is truncated"),
            (".png", 11, "is a damaged image, its header is damaged or truncated"),
            (".jpg", -40, "is a damaged image, it is truncated"),
            (".jpg", 20, "is a damaged image, it is truncated"),
            (".tiff", -30, "is a damaged image"),
            (".webp", -9, "is a damaged image"),
            (".bmp", -9, "is a damaged image"),
            (".ppm", -9, "is a damaged image"),
            (".jp2", -9, "is a damaged image"),
        ],
    )
    def test_one_sentence_that_names_the_file_and_a_silent_terminal(self, tmp_path, capfd, suffix, kept, said):
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        content = encode(noise, suffix) if suffix else b"this is a text, not an image\n" * 40
        file = tmp_path / "bad.png"
        file.write_bytes(content[:kept])
        with pytest.raises(InputError) as caught:
            read_image(file)
        assert said in str(caught.value)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")

    def test_missing_file_folder_and_impossible_name(self, tmp_path):
        with pytest.raises(InputError, match=r"there is no file '.*gone\.png'"):
            read_image(tmp_path / "gone.png")
        with pytest.raises(InputError, match="is a folder"):
            read_image(tmp_path)
        with pytest.raises(InputError, match="cannot be read"):
            read_image("a\0b.png")

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
    def test_what_libjpeg_says_does_not_reach_a_terminal(self, tmp_path):
        jpeg = encode(np.zeros((32, 32, 3), np.uint8), ".jpg")
        file = tmp_path / "extra.jpg"
        file.write_bytes(jpeg[:-2] + bytes(9) + jpeg[-2:])  # read all the same, with a complaint
        code = "import sys, os; from onnx_gradcam.images.decoding import read_image\n"
        code += "print(read_image(sys.argv[1]).shape); os.write(2, b'afterwards')"
        master, slave = os.openpty()
        done = subprocess.run([sys.executable, "-c", code, file], stdout=subprocess.PIPE, stderr=slave, check=True)
        os.close(slave)
        assert done.stdout.strip() == b"(32, 32, 3)"
        assert os.read(master, 1000) == b"afterwards"
        os.close(master)

    def test_what_the_libraries_say_is_left_out_of_a_log_and_nothing_else(self, tmp_path):
        def chunk(kind, content):
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        png, jpeg = encode(noise), encode(noise, ".jpg")
        # Right checksums around pixels that cannot be unpacked; a marker in the middle of the scan.
        (tmp_path / "bad.png").write_bytes(png[:33] + chunk(b"IDAT", b"\x78\x01" + bytes(40)) + chunk(b"IEND", b""))
        middle = len(jpeg) // 2
        (tmp_path / "bad.jpg").write_bytes(jpeg[:middle] + b"\xff\xd5" + jpeg[middle + 2 :])
        code = """if True:
            import os, sys, threading
            from onnx_gradcam.errors import InputError
            from onnx_gradcam.images import decoding
            with decoding.QUIET:
                os.write(2, b"a line of a server\\nand half ")
                for name in sys.argv[1:]:
                    try:
                        decoding.read_image(name)
                    except InputError as error:
                        print(error)
                print("a warning of Python", file=sys.stderr)
            os.write(2, b"afterwards")"""
        command = [sys.executable, "-c", code, tmp_path / "bad.png", tmp_path / "bad.jpg"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "bad.png' is a damaged image" in done.stdout
        assert done.stderr.split("\n") == ["a line of a server", "and half a warning of Python", "afterwards"]

    def test_a_process_without_stderr_decodes(self, tmp_path):
        (tmp_path / "image.png").write_bytes(encode(noisy := np.zeros((4, 5, 3), np.uint8)))
        code = "import os, sys; from onnx_gradcam.images.decoding import read_image; os.close(2)\n"
        code += "print(read_image(sys.argv[1]).shape)"
        command = [sys.executable, "-c", code, tmp_path / "image.png"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        assert done.stdout.strip() == str(noisy.shape)

    def test_a_bad_profile_in_a_good_image_is_not_reported(self, capfd):
        content = b"x\0\0" + zlib.compress(b"junk" * 40)
        profile = struct.pack(">I", len(content)) + b"iCCP" + content + struct.pack(">I", zlib.crc32(b"iCCP" + content))
        data = encode(bgr(RGB))
        np.testing.assert_array_equal(read_image(data[:33] + profile + data[33:]), RGB)
        assert capfd.readouterr() == ("", "")

    def test_opencvs_log_level_is_set_back(self):
        log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
        before = log.getLogLevel()
        assert before > 0
        broken = encode(RGB, ".bmp")[:-9]

        def read_many():
            for _ in range(50):
                with pytest.raises(InputError):
                    read_image(broken)

        threads = [threading.Thread(target=read_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.getLogLevel() == before

    def test_a_decompression_bomb_is_refused_before_it_is_decoded(self, monkeypatch):
        def chunk(kind, content):
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
        bomb += chunk(b"IDAT", zlib.compress(bytes(10_000_000))) + chunk(b"IEND", b"")
        monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
        tracemalloc.start()
        with pytest.raises(InputError, match=r"is 30000x30000 .* above the limit of 134217728 pixels"):
            read_image(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()

    def test_the_limit_of_pixels_is_inclusive(self):
        data = encode(RGB)
        assert read_image(data, max_pixels=6).shape == (2, 3, 3)
        with pytest.raises(InputError, match="above the limit of 5 pixels"):
            read_image(data, max_pixels=5)

    def test_the_limit_of_bytes(self, monkeypatch, tmp_path):
        monkeypatch.setattr(image_module, "MAX_BYTES", 2**20)
        file = tmp_path / "large.bmp"
        file.write_bytes(bytes(2**20 + 1))
        with pytest.raises(InputError, match="larger than 1 MB"):
            read_image(file)

    def test_opencv_is_not_imported_before_a_image_is_touched(self):
        code = "import sys, onnx_gradcam.images.decoding, onnx_gradcam.images.drawing; print('cv2' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stdout.strip() == b"False"

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            ("ImportError('libGL.so.1: cannot open shared object file')", r"libGL.so.1.*`opencv-python-headless`"),
            ("ModuleNotFoundError('no')", "not installed.*opencv-python-headless"),
        ],
    )
    def test_opencv_that_does_not_load(self, monkeypatch, tmp_path, error, said):
        (tmp_path / "cv2.py").write_text(f"raise {error}", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "cv2")
        with pytest.raises(InputError, match=said):
            read_image(encode(RGB))


class TestPrepare:
    def test_by_hand(self):
        description = Preprocessing(scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 5.0))
        values, placement = prepare(RGB, description)
        assert values.dtype == np.float32
        expected = [  # (pixel / 2 - mean) / std
            [[2.0, 9.5, 17.0], [24.5, 32.0, 39.5]],
            [[2.0, 5.75, 9.5], [13.25, 17.0, 20.75]],
            [[2.4, 5.4, 8.4], [11.4, 14.4, 17.4]],
        ]
        np.testing.assert_array_equal(values, np.array(expected, np.float32))
        assert placement == Placement((0, 0, 3, 2), 2, 3)

    def test_bgr_and_channels_last(self):
        values, _ = prepare(RGB, Preprocessing(color="bgr", layout="NHWC", mean=(30.0, 20.0, 10.0), dtype="float64"))
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, RGB[:, :, ::-1] - [30.0, 20.0, 10.0])

    def test_gray_is_the_luma_of_bt_601(self):
        colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50], [77, 77, 77]]], np.uint8)
        # 0.299 R + 0.587 G + 0.114 B, rounded
        for layout, shape in (("NCHW", (1, 1, 5)), ("NHWC", (1, 5, 1))):
            values, _ = prepare(colours, Preprocessing(color="gray", layout=layout, scale=2.0))
            assert values.shape == shape
            np.testing.assert_array_equal(values.ravel(), [2 * 76, 2 * 150, 2 * 29, 2 * 124, 2 * 77])

    def test_integers_are_rounded_and_clipped(self):
        levels = np.array([[[0] * 3, [1] * 3, [127] * 3, [128] * 3, [129] * 3, [255] * 3]], np.uint8)
        cases = {
            ("int8", 1.0, 128.0): [-128, -127, -1, 0, 1, 127],
            ("int8", 2.0, 255.0): [-128, -128, -1, 1, 3, 127],
            ("uint8", 1.0, 0.0): [0, 1, 127, 128, 129, 255],
            ("uint8", 0.3, 0.0): [0, 0, 38, 38, 39, 76],
            ("uint8", 1.0, 128.0): [0, 0, 0, 0, 1, 127],
            ("int16", 200.0, 0.0): [0, 200, 25400, 25600, 25800, 32767],
        }
        for (dtype, scale, mean), expected in cases.items():
            values, _ = prepare(levels, Preprocessing(dtype=dtype, scale=scale, mean=(mean,)))
            assert values.dtype == dtype
            assert values[0, 0].tolist() == expected, (dtype, scale, mean)

    def test_presets_against_their_libraries_formulas(self, photo):
        whole = photo.astype(np.float64)
        centre = whole[16:240, 16:240]
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        expected = {
            "torchvision": ((centre / 255 - mean) / std).transpose(2, 0, 1),
            "mxnet-gluon": ((centre / 255 - mean) / std).transpose(2, 0, 1),
            "keras-caffe": whole[:, :, ::-1] - [103.939, 116.779, 123.68],
            "keras-tf": whole / 127.5 - 1.0,
            "keras-torch": (whole / 255 - mean) / std,
            # Square images are as a stretch has them; tests/images/test_letterbox.py has the others.
            "ultralytics": (whole / 255).transpose(2, 0, 1),
            "yolox": whole[:, :, ::-1].transpose(2, 0, 1),
            "none": whole.transpose(2, 0, 1),
        }
        assert expected.keys() == PRESETS.keys()
        for name, values in expected.items():
            # The crop is 224 of 256; where a preset stretches, to 256 so that no pixel is resampled.
            side = values.shape[1] if name in ("torchvision", "mxnet-gluon") else 256
            got, _ = prepare(photo, PRESETS[name].fitted(height=side, width=side))
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, values, rtol=2e-7, atol=2e-7, err_msg=name)

    def test_a_smaller_image_is_an_average_of_areas(self, photo):
        values, placement = prepare(photo, Preprocessing(size=(64, 32), layout="NHWC", dtype="uint8"))
        blocks = photo.reshape(64, 4, 32, 8, 3).mean(axis=(1, 3))
        assert np.abs(values - blocks).max() <= 0.5 + 1e-9
        assert placement.box == (0, 0, 256, 256)

    def test_one_side_smaller_and_one_larger(self):
        stripes = np.zeros((2, 8, 3), np.uint8)
        stripes[:, ::2] = 200  # averages to 100 whatever happens to the height
        values, _ = prepare(stripes, Preprocessing(size=(6, 4), dtype="uint8"))
        assert values.shape == (3, 6, 4)
        assert set(values.ravel().tolist()) == {100}

    def test_a_larger_image_is_bilinear_between_pixel_centres(self):
        ramp = np.array([[[0] * 3, [100] * 3]], np.uint8)
        values, _ = prepare(ramp, Preprocessing(size=(1, 4)))
        assert values[0, 0].tolist() == [0, 25, 75, 100]

    def test_short_crop_cuts_the_centre(self):
        wide = np.zeros((64, 128, 3), np.uint8)
        wide[:, :, 0] = np.arange(128)
        description = Preprocessing(size=(56, 56), resize="short_crop", short=64, dtype="uint8")
        values, placement = prepare(wide, description)
        assert values[0, 0].tolist() == list(range(36, 92))
        assert placement == Placement((36, 4, 92, 60), 64, 128)

    @pytest.mark.parametrize(
        ("size", "image", "box"),
        [
            # short = 256 for 224: half of 512, so 1 input pixel = 2 pixels; 32 input pixels are cut off the height.
            ((224, 224), (512, 1024), (288, 32, 736, 480)),
            # short = round(299 * 256 / 224) = 342
            ((299, 299), (342, 342), (22, 22, 321, 321)),
            # a wide crop of a square: the width decides, 448 * 256/224 = 512 wide
            ((224, 448), (512, 512), (32, 144, 480, 368)),
        ],
    )
    def test_short_crop_by_default_keeps_seven_eighths(self, size, image, box):
        _, placement = prepare(np.zeros((*image, 3), np.uint8), Preprocessing(size=size, resize="short_crop"))
        assert placement.box == box

    def test_refusals(self):
        with pytest.raises(InputError, match=r'2x3 .* "none" requires exactly 4x6'):
            prepare(RGB, Preprocessing(size=(4, 6), resize="none"))
        with pytest.raises(InputError, match=r"10x15 .* too small for a crop of 10x20"):
            prepare(RGB, Preprocessing(size=(10, 20), resize="short_crop", short=10))
        with pytest.raises(InputError, match=r"1x9000 .* too narrow .* 256x2304000"):
            prepare(np.zeros((1, 9000, 3), np.uint8), Preprocessing(size=(224, 224), resize="short_crop"))
        with pytest.raises(InputError, match="needs the size of the crop"):
            prepare(RGB, Preprocessing(resize="short_crop"))
        with pytest.raises(InputError, match=r"not float64 of shape \[2, 3, 3\]"):
            prepare(RGB / 255, Preprocessing())
        assert prepare(RGB, Preprocessing(resize="none"))[0].shape == (3, 2, 3)


def test_a_placement_on_the_image_of_another_size():
    assert Placement((1, 2, 3, 4), 4, 8).scaled(8, 4) == Placement((0.5, 4, 1.5, 8), 8, 4)


class TestProject:
    def test_whole_image_is_cv2_bilinear(self):
        heatmap = np.random.default_rng(1).random((7, 5), dtype=np.float32)
        laid = Placement((0, 0, 40, 30), 30, 40).project(heatmap)
        assert laid.dtype == np.float32
        np.testing.assert_allclose(laid, cv2.resize(heatmap, (40, 30)), atol=1e-6)
        np.testing.assert_array_equal(Placement((0, 0, 5, 7), 7, 5).project(heatmap), heatmap)

    def test_a_crop_by_hand(self):
        # Two cells of 2 pixels each over columns 1 to 5 of 6: centres at 2 and 4.
        laid = Placement((1, 0, 5, 1), 2, 6).project(np.array([[0.0, 1.0]]))
        assert laid.tolist() == [[0, 0, 0.25, 0.75, 1, 0], [0] * 6]

    def test_pixels_whose_centre_is_outside_of_a_fractional_box_are_zero(self):
        laid = Placement((1.6, 0.4, 4.4, 2.6), 4, 6).project(np.ones((3, 3)))
        assert laid.tolist() == [[0, 0, 1, 1, 0, 0]] * 3 + [[0] * 6]

    @pytest.mark.parametrize("image", [(300, 500), (700, 260), (224, 224), (90, 100)])
    @pytest.mark.parametrize("description", [PRESETS["torchvision"], Preprocessing(size=(224, 200))])
    def test_a_spot_that_the_model_sees_is_laid_back_where_it_is(self, image, description):
        height, width = image
        spot_y, spot_x = int(height * 0.4), int(width * 0.55)
        laid = np.zeros((height, width, 3), np.uint8)
        laid[spot_y - 3 : spot_y + 4, spot_x - 3 : spot_x + 4] = 255
        values, placement = prepare(laid, description.fitted())
        seen = values[0] - values[0].min()
        laid = placement.project(seen)
        assert laid.shape == image
        rows, columns = np.indices(image)
        assert (laid * rows).sum() / laid.sum() == pytest.approx(spot_y, abs=0.1)
        assert (laid * columns).sum() / laid.sum() == pytest.approx(spot_x, abs=0.1)

    def test_what_is_no_heatmap(self):
        for wrong in (np.zeros((1, 2, 2)), np.zeros((0, 2))):
            with pytest.raises(InputError, match="a heatmap is"):
                Placement((0, 0, 1, 1), 1, 1).project(wrong)


@pytest.mark.real
def test_scores_of_real_classifiers_are_reproduced(real_data):
    """Every image whose scores are known, to the four decimals they are stored with."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    compared = 0
    for entry in json.loads((real_data / "MANIFEST.json").read_text(encoding="utf-8"))["models"]:
        if entry["kind"] != "classifier" or not entry["top3"] or not entry["file"].endswith(".onnx"):
            continue
        session = onnxruntime.InferenceSession(
            str(real_data / entry["file"]), options, providers=["CPUExecutionProvider"]
        )
        description = parse_preprocessing(entry["preprocessing"])
        for photo, top in entry["top3"].items():
            values, _ = prepare(read_image(real_data / photo), description)
            scores = session.run(None, {session.get_inputs()[0].name: values[None]})[0].ravel()
            assert scores[top[0][0]] == scores.max(), (entry["name"], photo)
            # What float32 sums of large activations leave of a small score is relative to the largest.
            rounding = 2e-4 * max(1.0, float(np.abs(scores).max()))
            for index, _, score in top:
                tolerance = 2e-3 if "fp16" in entry["name"] else 2e-4
                if "int8" in entry["name"] and not HAS_VNNI:
                    tolerance = 0.2  # the stored scores are those of a processor whose products do not saturate
                assert scores[index] == pytest.approx(score, rel=tolerance, abs=rounding), (entry["name"], photo)
            compared += 1
    assert compared >= 35
