# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A detector
#
# After reading this page you can explain single boxes of a detector. We know of no package with the weights of one
# that may be passed on, so a small one is trained here, in less than a minute, on the shapes of
# [the demo](../demo.md). Its table of boxes is that of YOLOv8; with your own YOLO model, begin at section 3:
# [detectors](../detectors.md) lists the kinds that are known.
#
# ```bash
# pip install -e .   # in a clone of onnx-gradcam
# pip install torch onnxscript
# ```
#
# ## 1. The detector
#
# The demo's own convolutions, and a head of two: at each of the 12 x 12 positions the distances to the four edges of a
# box and a score for each class.

# %%
import sys
from pathlib import Path

import torch
from torch import nn

import onnx_gradcam

clone = Path(onnx_gradcam.__file__).parents[1]
sys.path.append(str(clone / "models"))

from draw_shapes import LABELS, draw_images
from train_shapes import PREPROCESSING, ShapeNet, preprocess

GRID, STRIDE = 12, 8


class Detector(nn.Module):
    """Images `[N, 3, 96, 96]` to a table `[N, 4 + 6, 144]`: centre, width and height in pixels, and probabilities."""

    def __init__(self, features):
        super().__init__()
        self.features = features
        self.neck = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
        self.edges, self.classes = nn.Conv2d(64, 4, 1), nn.Conv2d(64, len(LABELS), 1)
        nn.init.constant_(self.classes.bias, -4.0)  # most positions have no shape
        steps = (torch.arange(GRID) + 0.5) * STRIDE
        self.register_buffer("centres", torch.stack(torch.meshgrid(steps, steps, indexing="xy")))

    def forward(self, images):
        """The table."""
        edges, logits = self.heads(self.features(images))
        return torch.cat([self.boxes(edges), logits.sigmoid()], 1).flatten(2)

    def heads(self, maps):
        """Distances from each position to the left, top, right and bottom edge in pixels, and logits."""
        maps = self.neck(maps)
        return self.edges(maps).exp() * STRIDE, self.classes(maps)

    def boxes(self, edges):
        """Centre, width and height of the boxes, in pixels."""
        before, after = edges[:, :2], edges[:, 2:]
        return torch.cat([self.centres + (after - before) / 2, before + after], 1)


# %% [markdown]
# A position belongs to the shape whose box it is in the middle of. The backbone stays as it is, so that its maps are
# computed once for all epochs.

# %%
torch.manual_seed(0)
demo = ShapeNet()
demo.load_state_dict(torch.export.load(clone / "models" / "shapes.pt2").state_dict)
detector = Detector(demo.features.eval().requires_grad_(requires_grad=False))

scenes = draw_images(1, 1000)
with torch.inference_mode():
    maps = [detector.features(preprocess([s.pixels for s in scenes[i : i + 100]])) for i in range(0, len(scenes), 100)]
maps = torch.cat(maps).clone()

labels = torch.zeros(len(scenes), len(LABELS), GRID, GRID)
distances = torch.zeros(len(scenes), 4, GRID, GRID)
x, y = detector.centres
for row, scene in enumerate(scenes):
    for shape in scene.shapes:
        x0, y0, x1, y1 = shape.box
        middle = ((x - (x0 + x1) / 2).abs() < (x1 - x0) / 5 + 2) & ((y - (y0 + y1) / 2).abs() < (y1 - y0) / 5 + 2)
        labels[row, shape.index, middle] = 1
        distances[row, :, middle] = torch.stack([x - x0, y - y0, x1 - x, y1 - y])[:, middle]
placed = labels.amax(1, keepdim=True)

epochs, batch = 15, 50
trained = [p for p in detector.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, epochs=epochs, steps_per_epoch=len(scenes) // batch)
for _ in range(epochs):
    for rows in torch.randperm(len(scenes)).split(batch):
        edges, logits = detector.heads(maps[rows])
        scores = nn.functional.binary_cross_entropy_with_logits(logits, labels[rows], reduction="sum")
        misses = ((edges - distances[rows]).abs() * placed[rows]).sum() / STRIDE
        loss = (scores + misses) / placed[rows].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
print(f"loss {loss.item():.2f}")
detector.eval()

# %% [markdown]
# ## 2. To ONNX
#
# What its output is, is found out; `inspect` says why.

# %% tags=["remove-stderr"]
from onnx_gradcam import export, inspect

export(detector, "detector.onnx", size=(96, 96), labels=list(LABELS), preprocess=PREPROCESSING)
print(inspect("detector.onnx").score.reason)

# %% [markdown]
# ## 3. Every box
#
# The boxes that are left after suppressing overlaps, each with its own heatmap:

# %%
from onnx_gradcam import Explainer

image = clone / "models" / "circle_and_star.png"
explainer = Explainer("detector.onnx")
for box in explainer.boxes(image):
    print(f"{box.caption:12} {[round(edge) for edge in box.xyxy]}")

explainer(image, box="all")

# %% [markdown]
# By default the layer is the last that the head reads, and HiResCAM the method: each score is read at one position,
# in the middle of the shape, and nothing else counts there. What this position was made of is further back:

# %%
behind = Explainer("detector.onnx", layer="features")
behind(image, box="all")

# %% [markdown]
# ## 4. One box, and its model
#
# A class takes its surest box; a number is that of the list.

# %%
print(behind(image, target="circle").target.caption)

# %% [markdown]
# `attach` writes the model that computes these heatmaps wherever it runs. Its input `target_box` chooses the box;
# without it, the surest is explained.

# %% tags=["remove-stderr"]
import onnxruntime

from onnx_gradcam import attach

attach("detector.onnx", layer="features").save("explained.onnx")
session = onnxruntime.InferenceSession("explained.onnx")
feeds = {session.get_inputs()[0].name: behind.prepared(image).tensor[None]}
heatmap, index, boxes = session.run(["heatmap", "heatmap_box", "detection_boxes"], feeds)
print(heatmap.shape, "box", index, boxes[0, index[0]].round(1), "in pixels of 96 x 96")
