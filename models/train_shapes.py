"""Trains the demo classifier and writes everything else in this folder.

    python models/train_shapes.py

Needs `torch`, `onnxscript` and `onnxruntime` beside the project's own dependencies, two CPU threads and about five
minutes. Every random number comes from a fixed seed; on another processor or another PyTorch the weights differ in the
last digits, the figures in README.md hardly.

What is learnt: a picture holds one to three shapes of different classes, and the network answers for each class
whether the picture holds it. Six independent logits, trained by binary cross-entropy: a logit above 0 says "it is
there", its sigmoid is the probability, and the highest logit is the shape the network is surest of. With a softmax
the classes would compete for one answer and a picture with a circle and a star would have no right one; like this,
both logits are high and each has its own heatmap.

Test accuracy is the strictest reading of that, on fresh pictures of another seed: a picture counts only if all six
answers are right (`exact` in the table). The table also has the usual top-1 figure on pictures with a single shape.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from draw_shapes import LABELS, Picture, Pixels, draw_picture, draw_pictures
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).parent
SIDE = 96
TRAIN_SEED, SINGLE_SEED, SEVERAL_SEED, LARGE_SEED = 0, 1001, 1002, 1003
STEPS, BATCH, TEST_PICTURES = 1200, 64, 2000
PREPROCESSING: dict[str, Any] = {
    "size": [SIDE, SIDE],
    "resize": "stretch",
    "color": "rgb",
    "scale": 1 / 255,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "layout": "NCHW",
    "dtype": "float32",
}
EXAMPLES = {"circle_and_star": 1, "square_and_ring": 2, "triangle_and_cross": 3}
EXAMPLE_SIDE = 320


class ShapeNet(nn.Module):
    """Six convolutions, global average pooling and one linear layer: `[N, 3, 96, 96]` to logits `[N, 6]`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(3, 16),
            nn.MaxPool2d(2),
            _block(16, 32),
            nn.MaxPool2d(2),
            _block(32, 48),
            _block(48, 48),
            nn.MaxPool2d(2),
            _block(48, 64),
            _block(64, 64),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, len(LABELS))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits `[N, 6]` of preprocessed pictures."""
        return self.head(self.pool(self.features(image)).flatten(1))


def _block(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU())


def preprocess(pixels: list[Pixels], interpolation: int = cv2.INTER_LINEAR) -> torch.Tensor:
    """RGB uint8 pictures of any size to the network's input `[N, 3, 96, 96]`, as `PREPROCESSING` says."""
    resized = [
        p if p.shape[:2] == (SIDE, SIDE) else cv2.resize(p, (SIDE, SIDE), interpolation=interpolation) for p in pixels
    ]
    batch = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(PREPROCESSING[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (batch * PREPROCESSING["scale"] - mean) / std


def presence(pictures: list[Picture]) -> torch.Tensor:
    """1 where the picture holds the class, 0 elsewhere: `[N, 6]`."""
    wanted = torch.zeros(len(pictures), len(LABELS))
    for row, picture in zip(wanted, pictures, strict=True):
        row[[shape.index for shape in picture.shapes]] = 1
    return wanted


def train() -> ShapeNet:
    """A network trained on `STEPS` batches, every picture drawn for it and seen once."""
    model = ShapeNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=STEPS)
    rng = np.random.default_rng(TRAIN_SEED)
    begun, running = time.perf_counter(), 0.7
    for step in range(1, STEPS + 1):
        pictures = draw_pictures(int(rng.integers(2**62)), BATCH)
        images = preprocess([p.pixels for p in pictures]).to(memory_format=torch.channels_last)
        loss = F.binary_cross_entropy_with_logits(model(images), presence(pictures))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running += 0.02 * (loss.item() - running)
        if step % 100 == 0:
            print(f"step {step:5d}  loss {running:.4f}  {time.perf_counter() - begun:5.0f} s", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
