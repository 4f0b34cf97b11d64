"""torchvision's detectors, exported as its users do, against PyTorch's own gradient of the surest box.

Their weights are random, their backbones small. Features are what `head` reads, the logit is what it gives.
"""

from __future__ import annotations

import importlib
import io
from collections import OrderedDict
from typing import Any

import numpy as np
import onnx
import pytest
from autodiff.pytorch_models import vision
from exporters.pytorch.zoo import needs
from support.graphs import run

from onnx_gradcam.editor.attachment import attach

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]

CLASSES = 5
SIZE = (75, 90)
"""Height and width of the image: neither that of the network, nor a multiple of 32 when it is scaled to that."""


def has_ops() -> bool:
    return True


@pytest.fixture(scope="module")
def detection(torch):
    """`torchvision.models.detection`, with NMS in Python where its compiled operators do not fit PyTorch."""
    needs("torchvision")
    vision()
    extension, models = (importlib.import_module(f"torchvision.{name}") for name in ("extension", "models.detection"))
    if extension._has_ops():
        yield models
        return
    library, before = torch.library.Library("torchvision", "IMPL"), extension._has_ops
    iou = importlib.import_module("torchvision.ops").box_iou

    @torch.jit.ignore
    def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        left, kept = scores.argsort(descending=True).tolist(), []
        overlaps = iou(boxes, boxes)
        while left:
            kept.append(left.pop(0))
            left = [i for i in left if overlaps[kept[-1], i] <= threshold]
        return torch.tensor(kept, dtype=torch.long)

    library.impl("nms", nms, "CPU")
    extension._has_ops = has_ops
    yield models
    extension._has_ops = before


def backbone(torch: Any) -> Any:
    """Three maps of strides 4, 8 and 16."""
    nn = torch.nn

    class Backbone(nn.Module):  # type: ignore[name-defined, misc]
        out_channels = 32

        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU())
            self.third = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU())

        def forward(self, x: Any) -> Any:
            first = self.start(x)
            second = self.second(first)
            return OrderedDict(a=first, b=second, c=self.third(second))

    return Backbone()


def retinanet(torch: Any, detection: Any, grid: Any) -> Any:
    return detection.RetinaNet(
        backbone(torch), CLASSES, min_size=64, max_size=96, anchor_generator=grid, score_thresh=0.01
    )


def fcos(torch: Any, detection: Any, grid: Any) -> Any:
    return detection.FCOS(backbone(torch), CLASSES, min_size=64, max_size=96, anchor_generator=grid, score_thresh=0.01)


def ssd(torch: Any, detection: Any, grid: Any) -> Any:
    module = importlib.import_module("torchvision.models.detection.ssd")
    grid = importlib.import_module("torchvision.models.detection.anchor_utils").DefaultBoxGenerator([[2]] * 3)
    body = backbone(torch)
    body.out_channels = [32, 32, 32]
    head = module.SSDHead(body.out_channels, grid.num_anchors_per_location(), CLASSES)
    return module.SSD(body, grid, (64, 96), CLASSES, head=head)


def probabilities(name: str, outputs: dict[str, Any]) -> tuple[Any, Any]:
    """The scores of all boxes, as the network's own post-processing has them, and what is differentiated."""
    logits = outputs["cls_logits"][0]
    if name == "ssd":
        scores = logits.softmax(-1).clone()
        scores[:, 0] = 0
        return scores, logits
    if name == "fcos":
        scores = (logits.sigmoid() * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
        return scores, scores.log()
    return logits.sigmoid(), logits


NETWORKS = {"retinanet": retinanet, "fcos": fcos, "ssd": ssd}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_maps_of_all_levels_are_those_of_pytorch(name, torch, detection):
    torch.manual_seed(0)
    anchors = importlib.import_module("torchvision.models.detection.anchor_utils").AnchorGenerator
    network = NETWORKS[name](torch, detection, anchors(((8,), (16,), (32,)), ((1.0,),) * 3)).eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape) * (1.3 / parameter[0].numel() ** 0.5)
    image, file = torch.rand(3, *SIZE), io.BytesIO()
    torch.onnx.export(
        network, ([image],), file, dynamo=False, opset_version=17, input_names=["image"],
        output_names=["boxes", "scores", "labels"],
    )  # fmt: skip
    source = onnx.load_from_string(file.getvalue())

    images, _ = network.transform([image])
    features = list(network.backbone(images.tensors).values())
    for feature in features:
        feature.retain_grad()
    scores, explained = probabilities(name, network.head(features))
    box, index = divmod(int(scores.argmax()), CLASSES)
    explained[box, index].backward()
    maps = [(f.grad * f).sum(1).detach().numpy() for f in features]

    result = attach(source)
    metadata = result.metadata
    assert (metadata.task, metadata.layout) == ("detection", "CHW")
    got = run(result.to_proto(), disabled=metadata.disabled_optimizers, image=image.numpy())
    assert (int(got["heatmap_box"][0]), int(got["heatmap_class"][0])) == (box, index)
    np.testing.assert_allclose(got["detection_scores"][0], scores.detach().numpy(), atol=1e-5)
    assert got["heatmap"].shape == (1, *SIZE)
    assert len(got["scores"]) > 0
    for corners, score, label in zip(got["boxes"], got["scores"], got["labels"], strict=True):
        places = np.abs(got["detection_boxes"][0] - corners).max(1) + np.abs(
            got["detection_scores"][0, :, label] - score
        )
        assert places.min() < 1e-4
    assert len(metadata.target_tensors) == len(maps)
    largest = max(np.abs(m).max() for m in maps)
    for layer in metadata.target_tensors:
        one = run(attach(source, layer=layer).to_proto(), disabled=metadata.disabled_optimizers, image=image.numpy())[
            "cam"
        ]
        (expected,) = (m for m in maps if m.shape == one.shape)
        np.testing.assert_allclose(one, expected, atol=1e-4 * largest)
