"""Texts as classes: the scores of the classifier are those of the dual encoder it is made from."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run, weight
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach, text_classifier
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError, TargetError, UnsupportedError

WIDTH, TOKENS = 6, 7
TEXTS = ["a round dog", "a cat"]
BODY = (
    "c = Conv(pixel_values, K) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) "
    "fl = ReduceL2(f, one) image_embeds = Div(f, fl) "
    "e = Gather(T, input_ids) w = Cast<to=1>(attention_mask) u = Unsqueeze(w, two) m = Mul(e, u) "
    "s = ReduceSum<keepdims=0>(m, one) h = Tanh(s) g = MatMul(h, P) gl = ReduceL2(g, one) text_embeds = Div(g, gl) "
    "x = Transpose(text_embeds) d = MatMul(image_embeds, x) q = Exp(scale) "
    "logits_per_image = Mul(d, q) logits_per_text = Transpose(logits_per_image)"
)
INPUTS = f"float[N,3,8,8] pixel_values, int64[K,{TOKENS}] input_ids, int64[K,{TOKENS}] attention_mask"
OUTPUTS = "float[N,K] logits_per_image, float[K,N] logits_per_text, float[K,6] text_embeds, float[N,6] image_embeds"
VOCABULARY = {"[pad]": 0, "[end]": 1, "a": 2, "round": 3, "dog": 4, "cat": 5, "of": 6, "photo": 7, "[unk]": 8}


def dual(inputs=INPUTS, outputs=OUTPUTS, body=BODY) -> onnx.ModelProto:
    """A dual encoder in CLIP's names: convolutional maps on one side, a bag of words on the other."""
    return graph(
        body,
        inputs=inputs,
        outputs=outputs,
        K=(WIDTH, 3, 3, 3),
        T=weight("T", 9, 5),
        P=weight("P", 5, WIDTH),
        scale=np.float32(2),
        one=[1],
        two=[2],
    )


def ids(*texts: str) -> dict[str, np.ndarray]:
    rows = [[VOCABULARY[word] for word in text.split()] + [1] for text in texts]
    table = np.array([row + [0] * (TOKENS - len(row)) for row in rows])
    return {"input_ids": table, "attention_mask": np.array([[i < len(r) for i in range(TOKENS)] for r in rows], int)}


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="onnx-gradcam[text] is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="[unk]"))  # noqa: S106
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A [end]", special_tokens=[("[end]", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[pad]"}))
    return tmp_path / "tokenizer.json"


def test_scores_are_those_of_the_dual_encoder(tokenizer):
    x = images(3)
    made = text_classifier(dual(), TEXTS, tokenizer=tokenizer)
    assert [value.name for value in made.graph.input] == ["pixel_values"]
    assert [value.name for value in made.graph.output] == ["logits_per_image"]
    assert not {"T", "P"} & {one.name for one in made.graph.initializer}
    expected = run(dual(), pixel_values=x, **ids(*TEXTS))["logits_per_image"]
    np.testing.assert_allclose(run(made, pixel_values=x)["logits_per_image"], expected, atol=1e-5)
    explained = attach(made, check=True)
    assert explained.metadata.labels == TEXTS
    results = run(explained.to_proto(), pixel_values=x, target_class=np.array([1]))
    assert results["heatmap"].max() > 0
    np.testing.assert_allclose(results["logits_per_image"], expected, atol=1e-5)


def test_a_text_tower_of_a_fixed_number_of_texts_takes_that_number(tokenizer):
    fixed = dual(INPUTS.replace("K,", "2,"), OUTPUTS.replace("N,K", "N,2").replace("[K", "[2"))
    x = images(1)
    scores = run(text_classifier(fixed, TEXTS, tokenizer=tokenizer), pixel_values=x)["logits_per_image"]
    np.testing.assert_allclose(scores, run(dual(), pixel_values=x, **ids(*TEXTS))["logits_per_image"], atol=1e-5)
    with pytest.raises(UnsupportedError, match="takes 2 texts at once, and 1 are given"):
        text_classifier(fixed, ["a dog"], tokenizer=tokenizer)


def test_templates_are_averaged_as_vectors_of_length_one(tokenizer):
    x = images(2)
    templates = ["a photo of {}", "{}", "photo of {}"]
    made = text_classifier(dual(), TEXTS, tokenizer=tokenizer, templates=templates)
    parts = [run(dual(), pixel_values=x, **ids(*(t.replace("{}", one) for one in TEXTS))) for t in templates]
    mean = np.mean([part["text_embeds"] for part in parts], axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    expected = np.exp(2) * parts[0]["image_embeds"] @ mean.T
    np.testing.assert_allclose(run(made, pixel_values=x)["logits_per_image"], expected, atol=1e-5)


def tower(normalized: bool = True) -> onnx.ModelProto:
    body = (
        BODY[: BODY.index("e = Gather")]
        if normalized
        else BODY[: BODY.index("f = Flatten")] + "image_embeds = Flatten(p)"
    )
    return dual("float[N,3,8,8] pixel_values", "float[N,6] image_embeds", body)


@pytest.mark.parametrize("normalized", [True, False])
def test_embeddings_of_texts_make_a_classifier_of_a_vision_tower(normalized, tmp_path):
    x = images(2)
    both = run(dual(), pixel_values=x, **ids(*TEXTS))
    file = tmp_path / "prompts.npz"
    np.savez(file, embeddings=both["text_embeds"] * 7, names=TEXTS)
    made = text_classifier(tower(normalized), embeddings=file, logit_scale=float(np.exp(2)), logit_bias=-1.5)
    results = run(attach(made, check=True).to_proto(), pixel_values=x)
    np.testing.assert_allclose(results["logits_per_image"], both["logits_per_image"] - 1.5, atol=1e-5)
    assert Explainer(made, preprocess="none").labels == TEXTS


def test_the_lead_over_all_other_texts():
    made = text_classifier(tower(), [*TEXTS, "c"], embeddings=weight("E", 3, WIDTH))
    x = images(1)
    one, two = (attach(made, against="others", target=i, class_input="none").to_proto() for i in (0, 1))
    assert not np.allclose(run(one, pixel_values=x)["cam"], run(two, pixel_values=x)["cam"])
    # The gradient of S_0 - log(exp S_1 + exp S_2) is that of the logits, weighted by the softmax over the others.
    maps = [run(attach(made, target=i, class_input="none").to_proto(), pixel_values=x) for i in range(3)]
    rest = np.exp(maps[0]["logits_per_image"][0, 1:])
    rest /= rest.sum()
    expected = maps[0]["cam"] - rest[0] * maps[1]["cam"] - rest[1] * maps[2]["cam"]
    np.testing.assert_allclose(run(one, pixel_values=x)["cam"], expected, atol=1e-4 * np.abs(expected).max())


REFUSED = [
    ({"texts": ["a", "a"]}, InputError, "'a' is given twice"),
    ({"texts": ["a"], "templates": ["photo"]}, InputError, "no {} for the text"),
    ({"texts": ["a"]}, InputError, "by a tokenizer or by their embeddings"),
    ({"texts": ["a"], "embeddings": np.ones((2, WIDTH))}, InputError, "2 embeddings and 1 texts"),
    ({"texts": ["a"], "embeddings": np.zeros((1, WIDTH))}, InputError, "zero or not finite"),
    ({"texts": ["a"], "embeddings": np.ones((1, 5))}, TargetError, "which output embeds the image as .N, 5."),
    ({"texts": ["a"], "embeddings": np.ones((1, WIDTH)), "logit_scale": 0}, InputError, "scale of logits is 0"),
]


@pytest.mark.parametrize(("choices", "error", "sentence"), REFUSED)
def test_what_makes_no_classifier_is_refused(choices, error, sentence):
    with pytest.raises(error, match=sentence):
        text_classifier(tower(), **choices)


def test_a_model_without_texts_and_a_file_that_is_no_tokenizer_are_refused(tokenizer, tmp_path):
    with pytest.raises(TargetError, match="only input, so it takes no texts"):
        text_classifier(tower(), TEXTS, tokenizer=tokenizer)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"is no tokenizer\.json"):
        text_classifier(dual(), TEXTS, tokenizer=tmp_path / "other.json")


def test_prompts_through_the_command_line(tokenizer, tmp_path):
    model, out, picture = tmp_path / "dual.onnx", tmp_path / "out.onnx", tmp_path / "photo.png"
    onnx.save(dual(), model)
    prompts = [word for text in TEXTS for word in ("--prompt", text)]
    result = CliRunner().invoke(app, ["attach", str(model), *prompts, "-o", str(out)])
    assert result.exit_code == 0, result.stderr
    x = images(2)
    expected = run(dual(), pixel_values=x, **ids(*TEXTS))["logits_per_image"]
    np.testing.assert_allclose(run(onnx.load(out), pixel_values=x)["logits_per_image"], expected, atol=1e-5)
    import cv2  # noqa: PLC0415

    cv2.imwrite(str(picture), np.full((8, 8, 3), 90, np.uint8))
    words = ["explain", str(model), str(picture), *prompts, "--preprocess", "none", "--target", TEXTS[1], "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    (explained,) = json.loads(result.stdout)["images"][0]["explained"]
    assert explained["label"] == TEXTS[1]
    result = CliRunner().invoke(app, ["attach", str(model), "--logit-scale", "9", "-o", str(out)])
    assert result.exit_code == 2
    assert "--text-embeddings" in result.stderr
