# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A vision transformer
#
# After reading this page you can explain a vision transformer and choose among the methods for it by measurement. We
# know of no package with the weights of one that may be passed on, so this one is trained here, in less than a minute,
# on the shapes of [the demo](../demo.md). With a transformer of timm or Transformers only the first section differs.
#
# ```bash
# pip install -e .   # in a clone of onnx-gradcam
# pip install torch onnxscript
# ```
#
# ## 1. The transformer
#
# A hybrid (Dosovitskiy et al. 2021, section 3.1): the patches are the 6 x 6 positions of a convolutional network,
# here the demo's own in front of its last layer, pooled once more. Two blocks of attention follow, and the class
# token is read.

# %%
import math
import sys
from pathlib import Path

import torch
from torch import nn

import onnx_gradcam

clone = Path(onnx_gradcam.__file__).parents[1]
sys.path.append(str(clone / "models"))

from draw_shapes import LABELS, draw_images
from train_shapes import PREPROCESSING, ShapeNet, preprocess, presence

WIDTH, HEADS, BLOCKS, PATCHES = 64, 4, 2, 36


class Block(nn.Module):
    """Attention and a perceptron, each normalized first and added to what it reads."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens):
        """Tokens `[N, T, WIDTH]` to the same."""
        n, t, _ = tokens.shape
        q, k, v = self.qkv(self.norm1(tokens)).reshape(n, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        tokens = tokens + self.out((attention @ v).transpose(1, 2).reshape(n, t, WIDTH))
        return tokens + self.mlp(self.norm2(tokens))


class Transformer(nn.Module):
    """Images `[N, 3, 96, 96]` to six independent logits."""

    def __init__(self, stem):
        super().__init__()
        self.stem = stem
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, PATCHES + 1, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(LABELS))

    def forward(self, images):
        """The logits."""
        return self.logits(self.stem(images).flatten(2).transpose(1, 2))

    def logits(self, patches):
        """The same, of patches `[N, 36, WIDTH]`."""
        first = self.class_token.expand(patches.shape[0], -1, -1)
        tokens = self.blocks(torch.cat([first, patches], 1) + self.positions)
        return self.head(self.norm(tokens)[:, 0])


# %% [markdown]
# The stem stays as it is, so that its patches are computed once for all epochs.

# %%
torch.manual_seed(0)
demo = ShapeNet()
demo.load_state_dict(torch.export.load(clone / "models" / "shapes.pt2").state_dict)
network = Transformer(nn.Sequential(*demo.features[:9], nn.MaxPool2d(2)).eval().requires_grad_(requires_grad=False))


def look_up(seed, count):
    """Patches `[N, 36, WIDTH]` of new images, and what is in them `[N, 6]`."""
    scenes = draw_images(seed, count)
    with torch.inference_mode():
        maps = [network.stem(preprocess([s.pixels for s in scenes[i : i + 100]])) for i in range(0, count, 100)]
    return torch.cat(maps).flatten(2).transpose(1, 2).clone(), presence(scenes)


patches, present = look_up(1, 1500)
epochs, batch = 10, 50
trained = [p for p in network.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, weight_decay=1e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs=epochs, steps_per_epoch=len(patches) // batch)
for _ in range(epochs):
    for rows in torch.randperm(len(patches)).split(batch):
        loss = nn.functional.binary_cross_entropy_with_logits(network.logits(patches[rows]), present[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

network.eval()
fresh, expected = look_up(2, 300)
with torch.inference_mode():
    right = ((network.logits(fresh) > 0) == (expected > 0)).float().mean()
print(f"{right:.1%} of the answers to new images are right")

# %% [markdown]
# ## 2. To ONNX
#
# The maps are those of the patches: the class token is left out, and the rest is put back in the grid of 6 x 6.

# %% tags=["remove-stderr"]
from onnx_gradcam import export, inspect

export(network, "vit.onnx", size=(96, 96), labels=list(LABELS), preprocess=PREPROCESSING)
print(inspect("vit.onnx").decisions.layer_reason)

# %% [markdown]
# ## 3. What it looks at

# %%
from onnx_gradcam import Explainer, method_sheet

image = clone / "models" / "circle_and_star.png"
methods = ["gradcam", "hirescam", "rollout", "chefer", "legrad"]
method_sheet({m: Explainer("vit.onnx", method=m)(image, target=["circle", "star"]) for m in methods})

# %% [markdown]
# Attention mixes the patches: in the last block a patch already holds what the others know, so that its own place
# says less than a position of a convolutional network does. `rollout` follows where tokens come from, and knows no
# class: its maps of circle and star are the same. `chefer` and `legrad` follow the gradient of the score to the
# attention of every block ([methods](../methods.md#transformers)).
#
# ## 4. Which to believe
#
# Measure it, on images of your own with boxes: how often the maximum is in the box of the explained shape (`pointing`),
# and how much of the heat (`energy`).

# %%
import json

import cv2

from onnx_gradcam import evaluate

boxes = {}
for number, scene in enumerate(draw_images(3, 20)):
    cv2.imwrite(f"{number}.png", scene.pixels[:, :, ::-1])
    boxes[f"{number}.png"] = [{"label": LABELS[shape.index], "box": shape.box} for shape in scene.shapes]
Path("boxes.json").write_text(json.dumps(boxes))

evaluation = evaluate("vit.onnx", sorted(boxes), methods=methods, metrics=["pointing", "energy"], boxes="boxes.json")
print(f"{'':10} {'pointing':>10} {'energy':>10}")
for name, means in evaluation.means.items():
    print(f"{name:10} {means['pointing'].mean:10.2f} {means['energy'].mean:10.2f}")

# %% [markdown]
# On these images the maps that weight attention by the gradient point best, and a map of the last grid less well
# than in a convolutional network. That need not be so for yours: measure it.
