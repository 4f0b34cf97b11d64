"""Engines that run explained models, and how a model has to be written for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnx_gradcam.errors import TargetError, near_matches

if TYPE_CHECKING:
    from onnx_gradcam.options import Choices

__all__ = ["ENGINES", "Engine", "find_engine"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What runs an explained model.

    Attributes:
        name: identifier.
        title: its name, and the interfaces that are meant.
        class_input: whether the inputs of the class and the box are `optional`, `required` or `none` there.
        profile: the profile that writes gradients for it.
        tested: where its heatmaps are compared with ONNX Runtime's; empty if nowhere.
        advice: what else to know, one sentence without a full stop; empty for nothing.
    """

    name: str
    title: str
    class_input: Literal["optional", "required", "none"]
    profile: str
    tested: str = ""
    advice: str = ""

    @property
    def choices(self) -> Choices:
        """How a model is attached for it, as fields of `Options`."""
        return {"class_input": self.class_input, "profile": self.profile}


_CI = "in CI"
_ENTRIES = (
    Engine(
        name="onnxruntime",
        title="ONNX Runtime on the CPU: Python, C, C++",
        class_input="optional",
        profile="portable",
        tested=f"{_CI}, 1.31",
        advice="`cpu` writes gradients that this provider computes in half to two thirds of the time",
    ),
    Engine(
        name="cuda",
        title="ONNX Runtime on CUDA",
        class_input="optional",
        profile="cuda",
        advice="turn TF32 off where maps have to equal those of the CPU",
    ),
    Engine(
        name="tensorrt",
        title="TensorRT, through ONNX Runtime or by its own parser",
        class_input="required",
        profile="tensorrt",
    ),
    Engine(
        name="openvino",
        title="OpenVINO on the CPU",
        class_input="required",
        profile="openvino",
        tested=f"{_CI}, 2026.4.1",
        advice="set `INFERENCE_PRECISION_HINT=f32`: where it computes in bfloat16, maps differ by up to 0.09",
    ),
    Engine(
        name="onnxruntime-openvino",
        title="ONNX Runtime on OpenVINO's execution provider",
        class_input="required",
        profile="openvino",
        tested=f"{_CI}, 1.24.1",
        advice="it ignores an *optional* class or box",
    ),
    Engine(
        name="opencv",
        title="OpenCV 5, `cv2.dnn`",
        class_input="required",
        profile="portable",
        tested=f"{_CI}, 5.0",
        advice="ask for all outputs of the model at once",
    ),
    Engine(
        name="opencv4",
        title="OpenCV 4, `cv2.dnn`",
        class_input="none",
        profile="portable",
        advice="it ignores a class that is fed, so name one with `--target`; it refuses some models all the same",
    ),
    Engine(
        name="web",
        title="ONNX Runtime Web on WebAssembly",
        class_input="required",
        profile="portable",
        tested=f"{_CI}, 1.30.0 in headless Chromium",
        advice="`onnx-gradcam web` makes a whole page",
    ),
    Engine(
        name="webgpu",
        title="ONNX Runtime Web on WebGPU",
        class_input="required",
        profile="webgpu",
        tested=f"{_CI}, 1.30.0 in headless Chromium without a graphics card",
        advice="operators that WebGPU lacks run in WebAssembly",
    ),
    Engine(
        name="node",
        title="onnxruntime-node",
        class_input="required",
        profile="portable",
        tested=f"{_CI}, 1.30.0",
        advice="it ignores an *optional* class or box; `npm install --ignore-scripts` spares a download of CUDA",
    ),
    Engine(
        name="triton",
        title="Triton Inference Server",
        class_input="required",
        profile="portable",
        tested=_CI,
        advice="`onnx-gradcam triton` makes a whole model repository",
    ),
)

ENGINES: dict[str, Engine] = {engine.name: engine for engine in _ENTRIES}
"""Engines by name."""


def find_engine(name: str) -> Engine:
    """The engine of this name.

    Raises:
        TargetError: there is none.

    Example:
        >>> find_engine("node").class_input
        'required'
    """
    if name not in ENGINES:
        raise TargetError(f"there is no engine {name!r}{near_matches(name, ENGINES)}; there are {', '.join(ENGINES)}")
    return ENGINES[name]
