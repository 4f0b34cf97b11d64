"""Train the demo classifier and write the other files of this folder.

    python models/train_shapes.py

Needs `torch`, `onnxscript` and the project's dependencies, and about fifteen minutes on a CPU core. All random numbers
come from a fixed seed; another CPU or PyTorch version changes the last digits of the weights, but hardly the figures in
README.md.

An image contains one to three shapes of different classes. The network has six independent logits, trained with binary
cross-entropy: above 0 means that the shape is in the image, and the sigmoid is its probability. With a softmax the
classes would compete, and an image with a circle and a star would have no right answer. With sigmoids both logits are
high, and each has its own heatmap.

Test accuracy counts a new image as right only if all six answers are right.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from draw_shapes import CROWDED, LABELS, Pixels, Scene, draw_image, draw_images
from torch import nn

FOLDER = Path(__file__).parent
SIDE = 96
TRAIN_SEED, STEPS, BATCH = 0, 1600, 64
LOCATED_STEPS, LOCATED_BATCH = 400, 32
LOCATION = 0.2  # weight of the loss term that asks where a shape is
TEST_IMAGES = 2000
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
EXAMPLE_SIDE = 256
EXAMPLES = {  # file stem: the seed and the two shapes, back to front
    "circle_and_star": (115, ["circle", "star"]),
    "square_and_ring": (109, ["square", "ring"]),
    "triangle_and_cross": (112, ["triangle", "cross"]),
}


class ShapeNet(nn.Module):
    """Seven convolutions, global average pooling and one linear layer; the last activation maps are 12 x 12.

    The receptive field is 78 x 78 pixels. With 46 x 46, about the size of the largest shape, circles were recognized
    only by their rims, and half of their heatmaps peaked outside.
    """

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
            _block(64, 64),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, len(LABELS))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Preprocessed images `[N, 3, 96, 96]` to logits `[N, 6]`."""
        return self.head(self.pool(self.features(image)).flatten(1))


Loss = Callable[[ShapeNet, np.random.Generator], torch.Tensor]


def _block(channels: int, filters: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU())


def preprocess(pixels: list[Pixels], interpolation: int = cv2.INTER_LINEAR) -> torch.Tensor:
    """Apply `PREPROCESSING` to RGB uint8 images of any size; returns `[N, 3, 96, 96]`."""
    resized = [cv2.resize(image, (SIDE, SIDE), interpolation=interpolation) for image in pixels]
    batch = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(PREPROCESSING[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (batch * PREPROCESSING["scale"] - mean) / std


def presence(images: list[Scene]) -> torch.Tensor:
    """1 if the image contains the class, else 0: `[N, 6]`."""
    targets = torch.zeros(len(images), len(LABELS))
    for row, image in zip(targets, images, strict=True):
        row[[shape.index for shape in image.shapes]] = 1
    return targets


def boxes(images: list[Scene]) -> torch.Tensor:
    """1 inside the box of the image's shape of the class, else 0: `[N, 6, 96, 96]`."""
    masks = torch.zeros(len(images), len(LABELS), SIDE, SIDE)
    for maps, image in zip(masks, images, strict=True):
        for index, (x0, y0, x1, y1) in image.shapes:
            maps[index, y0:y1, x0:x1] = 1
    return masks


def answers(model: ShapeNet, rng: np.random.Generator) -> torch.Tensor:
    """Cross-entropy of the six answers to a batch of new images."""
    scenes = draw_images(int(rng.integers(2**62)), BATCH)
    images = preprocess([scene.pixels for scene in scenes]).to(memory_format=torch.channels_last)
    return nn.functional.binary_cross_entropy_with_logits(model(images), presence(scenes))


def answers_and_places(model: ShapeNet, rng: np.random.Generator) -> torch.Tensor:
    """The same of harder images, and minus the logarithm of the share of each heatmap inside its shape's box.

    Trained on the answers alone, the network recognizes a shape as well from beside it, where the receptive field still
    covers its outline.
    """
    scenes = draw_images(int(rng.integers(2**62)), LOCATED_BATCH, least=0, style=CROWDED)
    images = preprocess([scene.pixels for scene in scenes]).to(memory_format=torch.channels_last)
    logits, heatmaps = look(model, images)
    present = presence(scenes)
    inside = (heatmaps * boxes(scenes)).sum((2, 3)) + 1e-3
    missed = -torch.log(inside / (heatmaps.sum((2, 3)) + 1e-3))
    location = (missed * present).sum() / present.sum().clamp(min=1)
    return nn.functional.binary_cross_entropy_with_logits(logits, present) + LOCATION * location


def train() -> ShapeNet:
    """Train a network on the answers, then on the answers and the places of the shapes."""
    torch.manual_seed(TRAIN_SEED)
    rng = np.random.default_rng(TRAIN_SEED)
    model = ShapeNet().to(memory_format=torch.channels_last)
    descend(model, rng, answers, STEPS, 6e-3)
    descend(model, rng, answers_and_places, LOCATED_STEPS, 2e-3)
    return model.to(memory_format=torch.contiguous_format).eval()


def descend(model: ShapeNet, rng: np.random.Generator, loss_of: Loss, steps: int, max_lr: float) -> None:
    """Minimize a loss by AdamW with a one-cycle schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=steps)
    begun, running = time.perf_counter(), 0.7
    for step in range(1, steps + 1):
        loss = loss_of(model, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running += 0.02 * (loss.item() - running)
        if step % 100 == 0:
            print(f"step {step:5d}  loss {running:.4f}  {time.perf_counter() - begun:5.0f} s", flush=True)


class Figures(NamedTuple):
    """Shares between 0 and 1 over a set of images; README.md explains each of them."""

    exact: float
    answers: float
    top: float
    pointing: float
    inside: float
    pointing_by_class: tuple[float, ...]


def look(model: ShapeNet, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[N, 6]` and the unnormalized heatmaps of all classes, `[N, 6, 96, 96]`.

    With pooling and a linear head Grad-CAM is CAM (Zhou et al. 2016, eq. 2) up to a constant: `relu(sum_k W_ck A_k)`.
    """
    activations = model.features(images)
    logits = model.head(model.pool(activations).flatten(1))
    cams = torch.einsum("ck,nkhw->nchw", model.head.weight, activations).relu()
    return logits, nn.functional.interpolate(cams, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


@torch.inference_mode()
def measure(model: ShapeNet, images: list[Scene]) -> Figures:
    """Measure accuracy and localization on `images` of 96 x 96."""
    exact, answers, top, inside = [], [], [], []
    hits: list[list[bool]] = [[] for _ in LABELS]
    for start in range(0, len(images), 100):
        chunk = images[start : start + 100]
        logits, heatmaps = look(model, preprocess([image.pixels for image in chunk]))
        present = presence(chunk) == 1
        right = (logits > 0) == present
        exact += right.all(dim=1).tolist()
        answers += right.flatten().tolist()
        top += present.gather(1, logits.argmax(dim=1, keepdim=True))[present.any(dim=1)].flatten().tolist()
        for image, maps in zip(chunk, heatmaps.numpy(), strict=True):
            for shape in image.shapes:
                x0, y0, x1, y1 = shape.box
                heatmap = maps[shape.index]
                y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
                hits[shape.index].append(bool(x0 <= x < x1 and y0 <= y < y1))
                inside.append(heatmap[y0:y1, x0:x1].sum() / max(heatmap.sum(), 1e-12))
    means = (float(np.mean(values)) for values in (exact, answers, top, np.concatenate(hits), inside))
    return Figures(*means, tuple(float(np.mean(of_class)) for of_class in hits))


def export(model: ShapeNet) -> None:
    """Write shapes.pt2, shapes.onnx, shapes.txt and shapes.json; both models take any batch size."""
    example = torch.zeros(2, 3, SIDE, SIDE)
    shapes = {"image": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    program.example_inputs = None  # a third of the file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains local paths
    torch.export.save(program, FOLDER / "shapes.pt2")

    exported = torch.onnx.export(
        model,
        (example,),
        dynamic_shapes=shapes,
        input_names=["image"],
        output_names=["logits"],
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
    tidy(proto)
    onnx.helper.set_model_props(
        proto,
        {
            "onnx_gradcam.labels": json.dumps(LABELS),
            "onnx_gradcam.preprocessing": json.dumps(PREPROCESSING),
            "onnx_gradcam.probabilities": "sigmoid",  # several shapes are in one image
        },
    )
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, FOLDER / "shapes.onnx")
    (FOLDER / "shapes.txt").write_text("\n".join(LABELS) + "\n")
    (FOLDER / "shapes.json").write_text(json.dumps(PREPROCESSING, indent=2) + "\n")


def tidy(proto: onnx.ModelProto) -> None:
    """Remove the exporter's metadata, such as stack traces with local paths, except each node's module path."""
    graph = proto.graph
    for item in [*graph.input, *graph.output, *graph.value_info, *graph.initializer, graph]:
        item.ClearField("metadata_props")
    for node in graph.node:
        scopes = [prop for prop in node.metadata_props if prop.key == "pkg.torch.onnx.name_scopes"]
        node.ClearField("metadata_props")
        node.metadata_props.extend(scopes)


def check_export(model: ShapeNet) -> float:
    """The largest difference of the stored models' logits from the trained network's, relative to the largest logit.

    Both files are run at batch sizes 1 and 3.
    """
    session = onnxruntime.InferenceSession(FOLDER / "shapes.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(FOLDER / "shapes.pt2").module()
    worst = 0.0
    for batch in (1, 3):
        images = preprocess([image.pixels for image in draw_images(batch, batch)])
        with torch.inference_mode():
            expected = model(images)
            again = program(images)
        (logits,) = session.run(["logits"], {"image": images.numpy()})
        for stored in (torch.from_numpy(logits), again):
            worst = max(worst, float((stored - expected).abs().max() / expected.abs().max()))
    assert worst < 1e-5, f"the exported models differ from the trained one by {worst:.1e}"
    return worst


@torch.inference_mode()
def write_examples(model: ShapeNet) -> None:
    """Draw the example images and write boxes.json; fails if the network is wrong about an image."""
    boxes = {}
    for stem, (seed, names) in EXAMPLES.items():
        indices = [LABELS.index(name) for name in names]
        image = draw_image(np.random.default_rng(seed), indices, EXAMPLE_SIDE)
        for interpolation in (cv2.INTER_LINEAR, cv2.INTER_AREA):
            logits, heatmaps = look(model, preprocess([image.pixels], interpolation))
            predicted = torch.nonzero(logits[0] > 0).flatten().tolist()
            assert predicted == sorted(indices), f"{stem}: predicted {[LABELS[i] for i in predicted]}"
            for shape in image.shapes:
                heatmap = heatmaps[0, shape.index].numpy()
                y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
                x0, y0, x1, y1 = (edge * SIDE / EXAMPLE_SIDE for edge in shape.box)
                hit = x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
                assert hit, f"{stem}: the heatmap for {LABELS[shape.index]} points elsewhere"
        cv2.imwrite(str(FOLDER / f"{stem}.png"), cv2.cvtColor(image.pixels, cv2.COLOR_RGB2BGR))
        boxes[f"{stem}.png"] = [
            {"label": LABELS[shape.index], "index": shape.index, "box": list(shape.box)} for shape in image.shapes
        ]
    (FOLDER / "boxes.json").write_text(json.dumps(boxes, indent=2) + "\n")


def write_figures(columns: tuple[Figures, Figures, Figures], difference: float) -> None:
    """Replace the table in README.md."""
    rows = [
        ("test accuracy: all six answers right", "exact"),
        ("one answer right", "answers"),
        ("top-1: the highest logit's shape is in the image", "top"),
        ("pointing game: the heatmap's maximum is inside the shape's box", "pointing"),
        ("share of the heatmap inside the shape's box", "inside"),
    ]
    lines = ["| measured | one shape | two or three shapes | crowded |", "|---|---|---|---|"]
    for name, key in rows:
        lines.append(f"| {name} | {' | '.join(f'{getattr(column, key):.2%}' for column in columns)} |")
    by_class = zip(LABELS, columns[1].pointing_by_class, strict=True)
    lines += ["", f"Pointing game by class, second column: {', '.join(f'{k} {v:.0%}' for k, v in by_class)}."]
    lines += [
        f"The stored models' logits differ from the trained network's by at most {difference:.0e} of the largest."
    ]
    readme = FOLDER / "README.md"
    before, rest = readme.read_text().split("<!-- figures -->")
    _, after = rest.split("<!-- end of figures -->")
    table = "\n".join(lines)
    readme.write_text(f"{before}<!-- figures -->\n{table}\n<!-- end of figures -->{after}")
    print(table)


def main() -> None:
    """Train, measure on new images, export, and draw the example images."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # noqa: FBT003
    cv2.setNumThreads(1)
    model = train()
    single = measure(model, draw_images(1001, TEST_IMAGES, least=1, most=1))
    several = measure(model, draw_images(1002, TEST_IMAGES, least=2, most=3))
    crowded = measure(model, draw_images(1003, TEST_IMAGES, least=0, style=CROWDED))
    export(model)
    write_figures((single, several, crowded), check_export(model))
    write_examples(model)


if __name__ == "__main__":
    main()
