import json

import pytest

from onnx_gradcam.editor.targets.classes import read_labels
from onnx_gradcam.errors import InputError
from onnx_gradcam.images.preprocessing import PRESETS, Preprocessing, parse_preprocessing

IMAGENET = {
    "size": [224, 224],
    "resize": "short_crop",
    "color": "bgr",
    "scale": 1.0,
    "layout": "NCHW",
    "dtype": "float16",
    "mean": [104.0, 117.0, 123.0],
    "short": 256,
}


def test_mapping_inline_json_and_file_read_the_same(tmp_path):
    expected = Preprocessing(
        size=(224, 224),
        resize="short_crop",
        short=256,
        color="bgr",
        mean=(104.0, 117.0, 123.0),
        dtype="float16",
    )
    file = tmp_path / "prep.json"
    file.write_text(json.dumps(IMAGENET), encoding="utf-8")
    sources = (IMAGENET, json.dumps(IMAGENET), file, str(file), expected)
    assert [parse_preprocessing(source) for source in sources] == [expected] * 5


@pytest.mark.parametrize("name", PRESETS)
def test_json_form_reads_back_exactly(name):
    preset = PRESETS[name]
    assert parse_preprocessing(name) is preset
    assert Preprocessing.from_json(preset.to_json()) == preset


def test_json_form_has_only_what_is_set():
    assert json.loads(Preprocessing(size=(8, 6), mean=(1.0,)).to_json()) == {
        "size": [8, 6],
        "resize": "stretch",
        "color": "rgb",
        "scale": 1.0,
        "mean": [1.0],
        "layout": "NCHW",
        "dtype": "float32",
    }


def test_one_number_is_the_mean_and_std_of_all_channels():
    assert parse_preprocessing({"mean": 128, "std": 2.5}) == Preprocessing(mean=(128,), std=(2.5,))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"meen": [1]}, "unknown key 'meen' in the preprocessing; did you mean 'mean'"),
        ('{"sise": [1, 2]}', "unknown key 'sise' in the inline JSON; did you mean 'size'"),
        ({"resize": "short-crop"}, "\"resize\" cannot be 'short-crop'; did you mean 'short_crop'"),
        ({"color": ["rgb"]}, '"color" cannot be'),
        ({"layout": "CHW"}, "\"layout\" cannot be 'CHW'; did you mean 'NCHW'"),
        ({"dtype": "float"}, "did you mean 'float64', 'float32', 'float16'"),
        ({"size": 224}, '"size" has to be [height, width]'),
        ({"size": [2**20, 2**20]}, "at most 134217728 pixels, not 1048576 x 1048576"),
        ({"size": [224, 0]}, '"size" has to be [height, width]'),
        ({"size": [224.0, 224]}, '"size" has to be [height, width]'),
        ({"size": [True, 224]}, '"size" has to be [height, width]'),
        ({"scale": 0}, '"scale" has to be a number other than 0'),
        ('{"scale": NaN}', '"scale" has to be a number other than 0, not nan'),
        ({"scale": "1/255"}, "\"scale\" has to be a number other than 0, not '1/255'"),
        ({"mean": [1, 2]}, '"mean" has to have 1 or 3 values'),
        ({"mean": "1"}, '"mean" has to have 1 or 3 values'),
        ({"mean": [1, 2, "3"]}, "\"mean\" has to be a number, not '3'"),
        ({"std": [1, 0, 1]}, '"std" has to be a number other than 0, not 0'),
        ({"color": "gray", "std": [1, 1, 1]}, '"std" has to have 1 value, not'),
        ({"short": 256}, '"short" belongs to "resize": "short_crop", but "resize" is "stretch"'),
        ({"short": -1, "resize": "short_crop"}, '"short" has to be a number of pixels'),
        ({"short": 200, "resize": "short_crop", "size": [224, 224]}, "too small to crop 224x224 from"),
        ("[1]", "unknown preprocessing"),
        ('{"scale": 1', "is not valid JSON"),
        ("torchvison", "give a preset (torchvision, keras-caffe"),
        ("torchvison", "unknown preprocessing 'torchvison'; did you mean 'torchvision'"),
    ],
)
def test_what_makes_no_sense_is_refused(source, said):
    with pytest.raises(InputError) as caught:
        parse_preprocessing(source)
    assert said in str(caught.value)


def test_a_file_that_holds_no_object_is_refused(tmp_path):
    for content, said in ((b"[]", "not a list"), (b"\xff\xfe\x00", "not a UTF-8 text"), (b"", "not valid JSON")):
        file = tmp_path / "prep.json"
        file.write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            parse_preprocessing(file)
        assert "prep.json" in str(caught.value)
    with pytest.raises(InputError, match="is a folder"):
        parse_preprocessing(tmp_path)


def test_a_description_as_json_has_it():
    made = Preprocessing(size=(8, 6), mean=(1.0,)).to_dict()
    assert (made["size"], made["mean"]) == ([8, 6], [1.0])
    assert "std" not in made
    for preset in PRESETS.values():
        assert parse_preprocessing(preset.to_dict()) == preset


class TestFitted:
    def test_free_dimensions_are_symbols_none_or_negative(self):
        fitted = Preprocessing().for_input("NHWC", ["N", 8, 6, 3], "float16")
        assert (fitted.size, fitted.layout, fitted.dtype) == ((8, 6), "NHWC", "float16")
        assert PRESETS["torchvision"].for_input("NCHW", [None, 3, -1, "W"], "float32").size == (224, 224)
        with pytest.raises(InputError, match="has 2 channels"):
            Preprocessing().for_input("NCHW", [1, 2, 8, 6], "float32")

    def test_the_model_gives_size_layout_and_type(self):
        fitted = PRESETS["torchvision"].fitted(channels=3, height=299, width=299, layout="NHWC", dtype="float16")
        assert (fitted.size, fitted.layout, fitted.dtype) == ((299, 299), "NHWC", "float16")
        assert fitted.fallback_size is None
        assert fitted.mean == (0.485, 0.456, 0.406)

    def test_an_open_size_takes_the_presets_usual_one(self):
        assert PRESETS["keras-tf"].fitted().size == (224, 224)
        assert PRESETS["none"].fitted().size is None

    def test_a_size_asked_for_stays_where_the_model_leaves_it_open(self):
        asked = Preprocessing(size=(100, 120))
        assert asked.fitted(height=None, width=120).size == (100, 120)

    def test_a_size_asked_for_against_a_fixed_one(self):
        with pytest.raises(InputError, match=r"256x256 .* but the model's input is 224x224"):
            Preprocessing(size=(256, 256)).fitted(height=224, width=224)
        with pytest.raises(InputError, match=r"256x250 .* input is \?x224"):
            Preprocessing(size=(256, 250)).fitted(height=None, width=224)

    def test_one_side_open_needs_a_size(self):
        with pytest.raises(InputError, match=r"input is 224x\? .* one side open"):
            PRESETS["torchvision"].fitted(height=224, width=None)

    def test_short_too_small_for_the_models_size(self):
        with pytest.raises(InputError, match='"short" is 256 pixels, too small to crop 299x299'):
            Preprocessing(resize="short_crop", short=256).fitted(height=299, width=299)

    def test_one_channel_makes_it_gray(self):
        fitted = PRESETS["keras-tf"].fitted(channels=1)
        assert (fitted.color, fitted.mean, fitted.std) == ("gray", (1.0,), None)
        assert Preprocessing(mean=(2.0, 2.0, 2.0)).fitted(channels=1).mean == (2.0,)

    def test_one_channel_against_a_mean_for_each_of_three(self):
        with pytest.raises(InputError, match=r'1 channel, but "mean" has a value for each of 3 \(0.485'):
            PRESETS["torchvision"].fitted(channels=1)

    @pytest.mark.parametrize(("color", "channels"), [("gray", 3), ("rgb", 4), ("bgr", 2)])
    def test_channels_that_the_color_does_not_give(self, color, channels):
        with pytest.raises(InputError, match=f'{channels} channels, but "color": "{color}"'):
            Preprocessing(color=color).fitted(channels=channels)

    def test_an_integer_input_takes_raw_pixels_only(self):
        assert PRESETS["none"].fitted(dtype="uint8").dtype == "uint8"
        assert Preprocessing(mean=(128.0,)).fitted(dtype="int8").dtype == "int8"
        with pytest.raises(InputError, match=r"int8 \(-128 to 127\), but .* from 0 to 255"):
            PRESETS["none"].fitted(dtype="int8")
        with pytest.raises(InputError, match=r"uint8 \(0 to 255\), but .* from -2.118 to 2.64"):
            PRESETS["torchvision"].fitted(dtype="uint8")
        with pytest.raises(InputError, match="from 0 to 1"):  # would round to two levels
            Preprocessing(scale=1 / 255).fitted(dtype="uint8")

    def test_a_type_that_is_no_number(self):
        with pytest.raises(InputError, match="of type string"):
            PRESETS["none"].fitted(dtype="string")


def test_value_range_over_all_channels():
    # The lowest is channel 0 at pixel 0: -0.485 / 0.229; the highest channel 2 at 255: (1 - 0.406) / 0.225.
    low, high = PRESETS["torchvision"].value_range()
    assert low == pytest.approx(-2.1179039)
    assert high == pytest.approx(2.64)
    assert Preprocessing(scale=-1.0).value_range() == (-255.0, 0.0)


def test_labels_one_a_line(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeff tench\r\n\n0: größe, ü\x0bx\u2028y\nlast\n\n \n".encode())
    assert read_labels(file) == ["tench", "", "0: größe, ü\x0bx\u2028y", "last"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not a UTF-8 text file"),
        (b"a\0b", "not a UTF-8 text file"),
        (b"a\n" * 2**23 + b"b", "larger than 16 MB"),
    ],
)
def test_what_is_no_label_file(tmp_path, content, said):
    file = tmp_path / "labels.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_labels(file)
    assert "labels.txt" in str(caught.value)


def test_no_label_file(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_labels(tmp_path / "none.txt")
    with pytest.raises(InputError, match="null"):
        read_labels("a\0b")


@pytest.mark.real
def test_the_label_files_and_descriptions_of_real_models(real_data):
    assert read_labels(real_data / "labels" / "imagenet_1000_names.txt")[281] == "tabby"
    for entry in json.loads((real_data / "MANIFEST.json").read_text(encoding="utf-8"))["models"]:
        if isinstance(entry.get("preprocessing"), dict):
            described = parse_preprocessing(entry["preprocessing"])
            assert json.loads(described.to_json()) == entry["preprocessing"]
