"""What networks take, layout by layout: heat where the evidence is, or one sentence that names the option."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.graphs import graph
from typer.testing import CliRunner

from onnx_gradcam import Explainer
from onnx_gradcam.cli import app
from onnx_gradcam.errors import ExplainError

HEAD = "a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)"


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@dataclass(frozen=True)
class Case:
    """A network that adds up its neighbourhoods, so that its score is where its input is not zero.

    Attributes:
        layout: the axes of the input that is explained, as the model has them.
        sizes: the input's sizes.
        body: nodes up to the feature maps `c`, or the whole network.
        more: further inputs, in ONNX text.
        outputs: in ONNX text.
        constants: initializers.
        choices: of `Explainer`.
        feeds: values of the other inputs.
        said: what is said of a default.
        refused: a pattern of the sentence, where the network is refused.
        head: the nodes from `c` to the scores `y`.
        kind: the type of the input.
    """

    layout: str
    sizes: tuple[int, ...]
    body: str
    constants: dict[str, Any]
    more: str = ""
    outputs: str = "float[1,2] y"
    choices: dict[str, Any] = field(default_factory=dict)
    feeds: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    refused: str = ""
    head: str = HEAD
    kind: str = "float"

    @property
    def preprocess(self) -> str | None:
        """Images of one or three channels need to be told how they become the input."""
        channels = dict(zip(self.layout, self.sizes, strict=True)).get("C")
        return "none" if channels in {1, 3} and set("HW") <= set(self.layout) and "D" not in self.layout else None

    def model(self) -> onnx.ModelProto:
        inputs = f"{self.kind}[{','.join(map(str, self.sizes))}] x{self.more}"
        constants = {"W": np.array([[1, -1]] * 2, np.float32), **self.constants}
        return graph(f"{self.body} {self.head}", inputs=inputs, outputs=self.outputs, **constants)


def conv(source: str, rank: int) -> str:
    """A convolution with the kernel `K` of size 3 that keeps positions."""
    return f"c = Conv<pads=[{','.join('1' * 2 * rank)}]>({source}, K)"


def kernel(channels: int, dimensions: int) -> np.ndarray:
    """Two maps, each a neighbourhood's sum in which the middle counts most."""
    sums = np.ones((2, channels, *[3] * dimensions), np.float32)
    middle = (slice(None), slice(None), *[1] * dimensions)
    sums[middle] = 2
    return sums


def over_frames(frames: int, reduce: str = "ReduceMean") -> str:
    """A head that joins the vectors of frames or tiles."""
    return (
        f"a = Relu(c) p = GlobalAveragePool(a) f = Reshape(p, frames{frames}) m = {reduce}<keepdims=0>(f, first) "
        "y = Gemm(m, W)"
    )


K1, K2, K3 = (lambda c: kernel(c, 1)), (lambda c: kernel(c, 2)), (lambda c: kernel(c, 3))
IMAGE = (1, 3, 12, 15)
POOLED = "a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p)"
SHARED = (
    "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) "
    "d = Conv<pads=[1,1,1,1]>(b, K) e = Relu(d) q = GlobalAveragePool(e) h = Flatten(q) s = Add(f, h) y = Gemm(s, W)"
)
FRAMES = {"frames4": [1, 4, 2], "frames6": [1, 6, 2], "first": [1]}


def image(head: str, more: str = "", **given: Any) -> Case:
    """A network of a photo and something else, which `head` combines."""
    constants = {"K": K2(3), **given.pop("constants", {})}
    return Case("NCHW", IMAGE, conv("x", 2), constants, more=more, head=head, **given)


CASES: dict[str, Case] = {
    "signal [N,C,T]": Case("NCW", (1, 3, 20), conv("x", 1), {"K": K1(3)}),
    "signal [N,T,C]": Case("NWC", (1, 20, 3), f"t = Transpose<perm=[0,2,1]>(x) {conv('t', 1)}", {"K": K1(3)}),
    "signal [N,T,C], convolved in two dimensions": Case(
        "NWC",
        (1, 20, 3),
        f"u = Unsqueeze(x, one) t = Transpose<perm=[0,3,1,2]>(u) {conv('t', 2)}",
        {"K": K2(3), "one": [1]},
    ),
    "wave [N,T]": Case("NW", (1, 24), f"u = Unsqueeze(x, one) {conv('u', 1)}", {"K": K1(1), "one": [1]}),
    "signal [C,T]": Case(
        "CW",
        (3, 20),
        f"u = Unsqueeze(x, zero) {conv('u', 1)}",
        {"K": K1(3), "zero": [0]},
        refused="or export the model with an axis of samples",
    ),
    "spectrogram [N,1,T,F]": Case("NCHW", (1, 1, 20, 11), conv("x", 2), {"K": K2(1)}),
    "spectrogram [N,1,F,T]": Case("NCHW", (1, 1, 11, 20), conv("x", 2), {"K": K2(1)}),
    "spectrogram [N,T,F]": Case(
        "NHW",
        (1, 20, 11),
        f"u = Unsqueeze(x, one) t = Transpose<perm=[0,1,3,2]>(u) {conv('t', 2)}",
        {"K": K2(1), "one": [1]},
    ),
    "volume [N,C,D,H,W]": Case("NCDHW", (1, 1, 6, 7, 9), conv("x", 3), {"K": K3(1)}),
    "volume [N,D,H,W,C]": Case(
        "NDHWC", (1, 6, 7, 9, 2), f"t = Transpose<perm=[0,4,1,2,3]>(x) {conv('t', 3)}", {"K": K3(2)}
    ),
    "clip [N,C,T,H,W]": Case("NCDHW", (1, 3, 6, 7, 9), conv("x", 3), {"K": K3(3)}),
    "clip [N,T,C,H,W]": Case(
        "NDCHW", (1, 6, 3, 7, 9), f"t = Transpose<perm=[0,2,1,3,4]>(x) {conv('t', 3)}", {"K": K3(3)}
    ),
    "clip [N,T,H,W,C]": Case(
        "NDHWC", (1, 6, 7, 9, 3), f"t = Transpose<perm=[0,4,1,2,3]>(x) {conv('t', 3)}", {"K": K3(3)}
    ),
    "clip [N,T,C,H,W], frame by frame": Case(
        "NDCHW",
        (1, 6, 3, 7, 9),
        f"r = Reshape(x, s) {conv('r', 2)}",
        {"K": K2(3), "s": [6, 3, 7, 9], **FRAMES},
        head=over_frames(6),
    ),
    "clip [N,T,H,W], frame by frame": Case(
        "NDHW",
        (1, 6, 7, 9),
        f"r = Reshape(x, s) {conv('r', 2)}",
        {"K": K2(1), "s": [6, 1, 7, 9], **FRAMES},
        head=over_frames(6),
    ),
    "bag of tiles [N,n,C,H,W]": Case(
        "NDCHW",
        (1, 4, 3, 7, 9),
        f"r = Reshape(x, s) {conv('r', 2)}",
        {"K": K2(3), "s": [4, 3, 7, 9], **FRAMES},
        head=over_frames(4, "ReduceMax"),
    ),
    "bag of tiles [n,C,H,W]": Case(
        "NCHW",
        (4, 3, 7, 9),
        conv("x", 2),
        {"K": K2(3), "zero": [0]},
        head="a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) m = ReduceMax<keepdims=1>(f, zero) y = Gemm(m, W)",
        refused="name another output with --output, or export the model with one row of scores",
    ),
    "image [N,C,H,W] of 11 bands": Case("NCHW", (1, 11, 12, 15), conv("x", 2), {"K": K2(11)}),
    "image [N,H,W,C] of 11 bands": Case(
        "NHWC", (1, 12, 15, 11), f"t = Transpose<perm=[0,3,1,2]>(x) {conv('t', 2)}", {"K": K2(11)}
    ),
    "image [C,H,W]": Case("CHW", (3, 12, 15), f"u = Unsqueeze(x, zero) {conv('u', 2)}", {"K": K2(3), "zero": [0]}),
    "image [H,W,C]": Case(
        "HWC",
        (12, 15, 3),
        f"u = Unsqueeze(x, zero) t = Transpose<perm=[0,3,1,2]>(u) {conv('t', 2)}",
        {"K": K2(3), "zero": [0]},
    ),
    "image and table [N,F]": image(
        f"{POOLED} g = Gemm(t, G) z = Mul(f, g) y = Gemm(z, W)",
        ", float[1,4] t",
        constants={"G": ones(4, 2)},
        feeds={"t": [1, 2, 3, 4]},
    ),
    "image and table, not fed": image(
        f"{POOLED} g = Gemm(t, G) z = Mul(f, g) y = Gemm(z, W)",
        ", float[1,4] t",
        constants={"G": ones(4, 2)},
        refused=r"'t' float32 \[1, 4\]; give it with --feed NAME=VALUE",
    ),
    "color and depth": image(
        "a = Relu(c) u = Conv<pads=[1,1,1,1]>(d, D) v = Relu(u) w = Add(a, v) p = GlobalAveragePool(w) f = Flatten(p) "
        "y = Gemm(f, W)",
        ", float[1,1,12,15] d",
        constants={"D": K2(1)},
        feeds={"d": "zeros"},
    ),
    "two images (Siamese)": Case(
        "NCHW",
        IMAGE,
        SHARED,
        {"K": K2(3)},
        more=", float[1,3,12,15] b",
        head="",
        choices={"image": "x"},
        feeds={"b": "zeros"},
    ),
    "two images, neither named": Case(
        "NCHW", IMAGE, SHARED, {"K": K2(3)}, more=", float[1,3,12,15] b", head="", refused="name one with --input"
    ),
    "two images, maps of change": Case(
        "NCHW",
        IMAGE,
        "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) d = Conv<pads=[1,1,1,1]>(b, K) e = Relu(d) s = Sub(a, e) "
        "y = Conv(s, M)",
        {"K": K2(3), "M": np.array([[1, 0], [-1, 0], [0, 0]], np.float32).reshape(3, 2, 1, 1)},
        more=", float[1,3,12,15] b",
        head="",
        outputs="float[1,3,12,15] y",
        feeds={"b": "zeros"},
        choices={"image": "x", "task": "segmentation", "mask": "all"},
    ),
    "image and texts [T,L]": image(
        f"{POOLED} e = Cast<to=1>(ids) t = Gemm<transB=1>(e, E) y = Gemm<transB=1>(f, t)",
        ", int64[2,3] ids",
        constants={"E": np.ones((2, 3), np.float32)},
        feeds={"ids": [[1, 2, 3], [0, 0, 1]]},
    ),
    "image, tokens and attention_mask": image(
        f"{POOLED} e = Cast<to=1>(input_ids) w = Mul(e, attention_mask) g = ReduceMean(w, last) z = Mul(f, g) "
        "y = Gemm(z, W)",
        ", int64[1,4] input_ids, float[1,4] attention_mask",
        constants={"last": [1]},
        feeds={"input_ids": [[5, 6, 7, 8]]},
        said="'attention_mask' takes ones",
    ),
    "image and orig_target_sizes": image(
        f"{POOLED} s = Cast<to=1>(orig_target_sizes) g = ReduceMean(s, last) z = Mul(f, g) y = Gemm(z, W)",
        ", int64[1,2] orig_target_sizes",
        constants={"last": [1]},
        said="width and height of the photo",
    ),
    "image and scale_factor": image(
        f"{POOLED} g = ReduceMean(scale_factor, last) z = Mul(f, g) y = Gemm(z, W)",
        ", float[1,2] scale_factor",
        constants={"last": [1]},
        said="the scale of the photo",
    ),
    "image and im_info": image(
        f"{POOLED} g = ReduceMean(im_info, last) z = Mul(f, g) y = Gemm(z, W)",
        ", float[1,3] im_info",
        constants={"last": [1]},
        said="height, width and scale of the model's input",
    ),
    "image and state": image(
        f"{POOLED} z = Add(f, h) y = Gemm(z, W) h_next = Add(z, h)",
        ", float[1,2] h",
        outputs="float[1,2] y, float[1,2] h_next",
        choices={"output": "y"},
        said="'h' takes zeros",
    ),
    "image and is_training": image(
        f"{POOLED} n = Not(is_training) g = Cast<to=1>(n) z = Mul(f, g) y = Gemm(z, W)",
        ", bool[1] is_training",
        said="'is_training' takes zeros",
    ),
    "image and keep_prob, not fed": image(
        f"{POOLED} z = Mul(f, keep_prob) y = Gemm(z, W)",
        ", float keep_prob",
        refused=r"'keep_prob' float32 \[\]; give it with --feed",
    ),
    "image and keep_prob, fed": image(
        f"{POOLED} z = Mul(f, keep_prob) y = Gemm(z, W)", ", float keep_prob", feeds={"keep_prob": 1}
    ),
    "weights as inputs": Case("NCHW", IMAGE, conv("x", 2), {"K": K2(3)}, more=", float[2,3,3,3] K"),
    "two clips (SlowFast)": Case(
        "NCDHW",
        (1, 3, 6, 7, 9),
        "c = Conv<pads=[1,1,1,1,1,1]>(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) "
        "d = Conv<pads=[1,1,1,1,1,1]>(slow, K) e = Relu(d) q = GlobalAveragePool(e) h = Flatten(q) s = Add(f, h) "
        "y = Gemm(s, W)",
        {"K": K3(3)},
        more=", float[1,3,2,7,9] slow",
        head="",
        choices={"image": "x"},
        feeds={"slow": "zeros"},
    ),
    "tokens [N,L]": Case(
        "NL",
        (1, 7),
        "e = Gather(E, x) p = ReduceMean<keepdims=0>(e, first) y = Gemm(p, W)",
        {"E": ones(9, 2), "first": [1]},
        head="",
        kind="int64",
        refused="name one with --input",
    ),
    "table [N,F]": Case("NF", (1, 2), "y = Gemm(x, W)", {}, head="", refused="name one with --input"),
}


def at_the_evidence(case: Case) -> tuple[np.ndarray, tuple[int, ...]]:
    """An input that is zero but at one place, and the place among its positions."""
    place = {letter: 2 * n // 3 for letter, n in zip(case.layout, case.sizes, strict=True)}
    x = np.zeros(case.sizes, np.float32)
    x[tuple(slice(None) if letter in "NC" else place[letter] for letter in case.layout)] = 1
    return x, tuple(2 * n // 3 for letter, n in zip(case.layout, case.sizes, strict=True) if letter in "DHW")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refused])
def test_heat_is_where_the_evidence_is(name):
    case = CASES[name]
    explainer = Explainer(case.model(), preprocess=case.preprocess, feeds=case.feeds, **case.choices)
    assert explainer.metadata.layout == case.layout
    assert case.said in " ".join(explainer.warnings)
    x, place = at_the_evidence(case)
    heatmap = explainer(x[0] if case.layout.startswith("N") else x, 0).heatmap
    assert heatmap.shape == tuple(n for letter, n in zip(case.layout, case.sizes, strict=True) if letter in "DHW")
    assert np.unravel_index(heatmap.argmax(), heatmap.shape) == place
    assert np.count_nonzero(heatmap) <= 3 ** len(place)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_the_sentence_names_what_to_do(name, tmp_path):
    case = CASES[name]
    with pytest.raises(ExplainError, match=case.refused) as raised:
        Explainer(case.model(), preprocess=case.preprocess, feeds=case.feeds, **case.choices)(at_the_evidence(case)[0])
    assert "\n" not in str(raised.value)
    onnx.save(case.model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", at_the_evidence(case)[0])
    command = ["explain", str(tmp_path / "m.onnx"), str(tmp_path / "x.npy"), "-o", str(tmp_path / "out.png")]
    result = CliRunner().invoke(app, [*command, "--preprocess", "none"] if case.preprocess else command)
    assert result.exit_code != 0
    assert re.search(case.refused, result.output)
    assert not (tmp_path / "out.png").exists()


def test_the_page_lists_these_layouts():
    page = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \| (explained|refused)", page, re.MULTILINE)
    assert dict(rows) == {name: "refused" if case.refused else "explained" for name, case in CASES.items()}
    assert len(CASES) >= 30
