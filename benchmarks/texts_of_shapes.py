"""Train a small CLIP-like dual encoder on drawn shapes, and score methods by the object that a text names.

A vision transformer, or a convolutional network (CLIP has both kinds), sees three shapes of four kinds and colours;
captions such as `a red circle` are words of an embedding with a transformer block. The loss is SigLIP's: every image
with every caption, right or wrong (Zhai et al. 2023, eq. 1). Then each method explains the score of each object's
caption, and hits if its maximum is in the box.

    python benchmarks/texts_of_shapes.py --folder texts/ --steps 2000     # takes torch; some minutes on two cores
    python benchmarks/texts_of_shapes.py --folder texts/ --steps 2000 --tower convolutional
    python benchmarks/texts_of_shapes.py --folder texts/                  # scores what is there
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np

SIDE, PATCH, WIDTH, HEADS, BLOCKS, CELLS = 48, 6, 64, 4, 3, 3
COLOURS = {"red": (220, 50, 50), "green": (60, 180, 75), "blue": (60, 90, 220), "yellow": (230, 200, 50)}
KINDS = ("circle", "square", "triangle", "cross")
TEXTS = [f"a {colour} {kind}" for colour in COLOURS for kind in KINDS]
WORDS = sorted({word for text in TEXTS for word in text.split()})
METHODS = (
    "chefer", "chefer-last", "rollout", "rollout-max", "legrad", "gradcam", "gradcam++", "hirescam", "layercam",
    "xgradcam", "eigengradcam", "eigencam", "saliency", "input-x-gradient", "activationmap",
)  # fmt: skip


def shape(kind: str, size: int) -> np.ndarray:
    """Where a shape is, `bool [size, size]`."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    return {
        "circle": x * x + y * y <= 1,
        "square": np.ones((size, size), bool),
        "triangle": np.abs(x) <= (y + 1) / 2,
        "cross": (np.abs(x) < 0.35) | (np.abs(y) < 0.35),
    }[kind]


def scene(rng: np.random.Generator) -> tuple[np.ndarray, list[int], np.ndarray]:
    """An image `uint8 [48, 48, 3]` of three shapes, the indices of their texts, and their boxes `[3, 4]`."""
    image = rng.integers(90, 140, (SIDE, SIDE, 3)).astype(np.uint8)
    cells = rng.choice(CELLS * CELLS, 3, replace=False)
    texts, boxes = rng.choice(len(TEXTS), 3, replace=False), []
    for cell, text in zip(cells, texts, strict=True):
        size = int(rng.integers(11, 15))
        top, left = (int(c) * SIDE // CELLS + int(rng.integers(0, 17 - size)) for c in divmod(int(cell), CELLS))
        _, colour, kind = TEXTS[text].split()
        image[top : top + size, left : left + size][shape(kind, size)] = COLOURS[colour]
        boxes.append((left, top, left + size, top + size))
    return image, [int(t) for t in texts], np.array(boxes)


def batch(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs `float32 [N, 3, 48, 48]`, which of the texts are right `[N, 16]`, and boxes `[N, 16, 4]`, -1 for none."""
    images, right, boxes = np.empty((count, SIDE, SIDE, 3), np.uint8), np.zeros((count, len(TEXTS)), bool), []
    for i in range(count):
        images[i], texts, places = scene(rng)
        right[i, texts] = True
        row = np.full((len(TEXTS), 4), -1)
        row[texts] = places
        boxes.append(row)
    return (images.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32), right, np.array(boxes)


def train(folder: Path, steps: int, tower: str) -> None:
    """Train both towers, and write `vision.onnx` and `texts.npz`."""
    import torch  # noqa: PLC0415 - scoring needs none
    from torch import nn  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in self.qkv(self.before(x)).chunk(3, -1))
            x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return x + self.narrow(functional.gelu(self.wide(self.between(x))))

    class Tower(nn.Module):
        def __init__(self, first: nn.Module, count: int, blocks: int) -> None:
            super().__init__()
            self.first, self.token = first, nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
            self.places = nn.Parameter(torch.randn(1, count + 1, WIDTH) * 0.02)
            self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
            x = self.head(self.norm(self.blocks(x))[:, 0])
            return x / x.norm(dim=-1, keepdim=True)

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths, layers = (3, 32, WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH), []
            for i, (before, after) in enumerate(pairwise(widths)):
                layers += [nn.Conv2d(before, after, 3, 1 + i % 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            self.features, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], WIDTH, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.head(self.features(x).mean((2, 3)))
            return x / x.norm(dim=-1, keepdim=True)

    if tower == "convolutional":
        vision: nn.Module = Convolutional()
    else:
        vision = Tower(nn.Conv2d(3, WIDTH, PATCH, PATCH), (SIDE // PATCH) ** 2, BLOCKS)
    language = Tower(nn.Embedding(len(WORDS), WIDTH), 3, 1)
    ids = torch.tensor([[WORDS.index(word) for word in text.split()] for text in TEXTS])
    scale, bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-3.0))
    parameters = [*vision.parameters(), *language.parameters(), scale, bias]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    rng = np.random.default_rng(0)
    for step in range(steps):
        x, right, _ = batch(rng, 64)
        logits = vision(torch.from_numpy(x)) @ language(ids).T * scale.exp() + bias
        loss = -functional.logsigmoid(logits * torch.from_numpy(right * 2.0 - 1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            found = ((logits > 0).numpy() == right).mean()
            print(f"step {step + 1}: loss {loss.item():.3f}, {found:.1%} of captions right", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, 3, SIDE, SIDE)
    torch.onnx.export(
        vision.eval(), (example,), str(folder / "vision.onnx"), input_names=["pixel_values"],
        output_names=["image_embeds"], dynamo=False, opset_version=18, dynamic_axes={"pixel_values": {0: "batch"}},
    )  # fmt: skip
    with torch.no_grad():
        embeddings = language(ids).numpy()
    np.savez(folder / "texts.npz", embeddings=embeddings, names=TEXTS, scale=scale.exp().item(), bias=bias.item())


def hits(model: object, method: str, x: np.ndarray, boxes: np.ndarray, **choices: object) -> tuple[int, int]:
    """How many maxima are in the box of the text's object, and of how many."""
    from onnx_gradcam import Explainer  # noqa: PLC0415 - training needs none

    explainer = Explainer(model, method=method, preprocess="none", **choices)
    rows, texts = np.nonzero(boxes[..., 0] >= 0)
    inside = 0
    for start in range(0, len(rows), 64):
        part = slice(start, start + 64)
        maps = explainer.run(x[rows[part]], [int(text) for text in texts[part]])["heatmap"]
        for one, (left, top, right, bottom) in zip(maps, boxes[rows[part], texts[part]], strict=True):
            y, x_ = np.unravel_index(int(one.argmax()), one.shape)
            inside += bool(left <= x_ < right and top <= y < bottom and one.max() > 0)
    return inside, len(rows)


def main() -> None:
    """Train if asked to, and print the table of methods."""
    from onnx_gradcam import Explainer, ExplainError, text_classifier  # noqa: PLC0415 - training needs none

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is, or will be")
    parser.add_argument("--steps", type=int, default=0, help="train for so many steps first")
    parser.add_argument("--tower", choices=["transformer", "convolutional"], default="transformer")
    parser.add_argument("--images", type=int, default=200, help="images to score methods on")
    given = parser.parse_args()
    if given.steps:
        train(given.folder, given.steps, given.tower)
    stored = np.load(given.folder / "texts.npz")
    numbers = {"logit_scale": float(stored["scale"]), "logit_bias": float(stored["bias"])}
    model = text_classifier(given.folder / "vision.onnx", embeddings=given.folder / "texts.npz", **numbers)
    x, right, boxes = batch(np.random.default_rng(1), given.images)
    scores = Explainer(model, preprocess="none").run(x, [0] * len(x))["logits_per_image"]
    print(f"{((scores > 0) == right).mean():.1%} of captions right")
    print("| method | score | over the other texts |\n| --- | --- | --- |")
    for method in METHODS:
        try:
            shares = [hits(model, method, x, boxes, **more) for more in ({}, {"against": "others"})]
        except ExplainError as exc:
            print(f"| `{method}` | {exc} | |", flush=True)
            continue
        print(f"| `{method}` | {' | '.join(f'{inside / count:.1%}' for inside, count in shares)} |", flush=True)


if __name__ == "__main__":
    main()
