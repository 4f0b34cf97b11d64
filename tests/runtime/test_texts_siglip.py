"""Texts as classes of SigLIP as PyTorch's newer exporter writes it: scores and LeGrad against PyTorch in float64."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from autodiff.pytorch_models import vision
from exporters.pytorch.zoo import needs
from support.graphs import run
from typer.testing import CliRunner

from onnx_gradcam import attach, text_classifier
from onnx_gradcam.cli import app

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]

WIDTH, HEADS, SIDE, TOKENS, WORDS = 48, 4, 4, 16, 99


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def siglip(request):
    """A small random SigLIP, an image, and the tokens of two texts."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    needs("onnxscript", "transformers", "tokenizers", "torchvision")
    vision()  # which transformers looks for
    import transformers  # noqa: PLC0415

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    text = {**sizes, "vocab_size": WORDS, "max_position_embeddings": TOKENS, "projection_size": WIDTH}
    config = transformers.SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 64, "patch_size": 16})
    config._attn_implementation = request.param
    model = transformers.SiglipModel(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # new models have biases of zero
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    yield model, torch.randn(1, 3, 64, 64), torch.randint(2, WORDS, (2, TOKENS))
    torch.set_num_threads(threads)


@pytest.fixture
def tokenizer(tmp_path):
    import tokenizers  # noqa: PLC0415

    words = {f"w{i}": i for i in range(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))  # noqa: S106
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "w1", "model_max_length": TOKENS}))
    return tmp_path / "tokenizer.json"


def written(model, x, ids, file, opset):
    """The dual encoder as `file`, for any number of images and texts."""
    import torch  # noqa: PLC0415

    class Dual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, pixel_values):
            answer = self.model(input_ids=input_ids, pixel_values=pixel_values)
            return answer.logits_per_image, answer.text_embeds, answer.image_embeds

    # The exporter takes a size of one for a constant.
    args = (ids.repeat(2, 1)[:3], x.repeat(2, 1, 1, 1))
    torch.onnx.export(
        Dual(),
        args,
        str(file),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes={"input_ids": {0: torch.export.Dim("texts")}, "pixel_values": {0: torch.export.Dim("batch")}},
        input_names=["input_ids", "pixel_values"],
        output_names=["logits_per_image", "text_embeds", "image_embeds"],
        external_data=False,
    )


def by_pytorch(model, x, ids, index):
    """The logits, and LeGrad of a text: the positive derivatives by the pooling attention, for each block's tokens."""
    import torch  # noqa: PLC0415

    model, x = model.double(), x.double()
    vision, head, after = model.vision_model, model.vision_model.head, []
    hooks = [layer.register_forward_hook(lambda _, __, out: after.append(out)) for layer in vision.encoder.layers]
    logits = model(input_ids=ids, pixel_values=x)
    for hook in hooks:
        hook.remove()
    text = logits.text_embeds[index].detach()
    weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
    total = 0
    for tokens in after:
        read = vision.post_layernorm(tokens.detach())
        q, k, v = (
            (source @ w.T + b).reshape(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for source, w, b in zip((head.probe, read, read), weights, biases, strict=True)
        )
        attention = torch.softmax(q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5, -1)
        pooled = head.attention.out_proj((attention @ v).transpose(1, 2).reshape(1, 1, WIDTH))
        image = (pooled + head.mlp(head.layernorm(pooled)))[0, 0]
        score = image @ text / image.norm() * model.logit_scale.exp()
        total = total + torch.autograd.grad(score, attention)[0].clamp(min=0).mean((1, 2))
    model.float()
    return logits.logits_per_image.detach().numpy(), total.reshape(1, SIDE, SIDE).numpy()


@pytest.mark.parametrize("opset", [18, 23])
def test_scores_and_legrad_are_those_of_pytorch(siglip, tokenizer, opset, tmp_path):
    model, x, ids = siglip
    file, out = tmp_path / "siglip.onnx", tmp_path / "explained.onnx"
    written(model, x, ids, file, opset)
    logits, expected = by_pytorch(model, x, ids, 1)
    texts = [" ".join(f"w{i}" for i in row) for row in ids.tolist()]
    prompts = [word for text in texts for word in ("--prompt", text)]
    command = ["attach", str(file), *prompts, "--tokenizer", str(tokenizer), "--method", "legrad", "-o", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    made = attach(text_classifier(file, texts, tokenizer=tokenizer), method="legrad", check=True).to_proto()
    for source in (onnx.load(out), made):
        results = run(source, pixel_values=x.numpy(), target_class=np.array([1], np.int64))
        np.testing.assert_allclose(results["logits_per_image"], logits, atol=1e-5)
        np.testing.assert_allclose(results["cam"], expected, atol=1e-5 * expected.max())
    pair = np.concatenate([x.numpy(), -x.numpy()])
    both = run(made, pixel_values=pair, target_class=np.array([1, 0], np.int64))
    np.testing.assert_allclose(both["cam"][:1], expected, atol=1e-5 * expected.max())
    for method in ("gradcam", "chefer", "rollout", "input-x-gradient"):
        attach(text_classifier(file, texts, tokenizer=tokenizer), method=method, check=True)
