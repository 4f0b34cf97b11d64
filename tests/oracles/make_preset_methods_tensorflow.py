"""Writes `preset_methods_tensorflow.npz`: what tf-keras-vis and xplique return, method by method.

Needs what make_presets_tensorflow.py needs:
`TF_USE_LEGACY_KERAS=1 python tests/oracles/make_preset_methods_tensorflow.py`. For each case, `PRESET/METHOD` is the
library's own result, a map `[H, W]`. Some results are of methods that the presets refuse: they show why.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tensorflow as tf
from make_presets_tensorflow import keras, network
from preset_network import CASES, inputs
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
from tf_keras_vis.layercam import Layercam
from tf_keras_vis.saliency import Saliency
from tf_keras_vis.scorecam import Scorecam
from tf_keras_vis.utils.scores import CategoricalScore
from xplique import attributions

LAYER = "second"
CLASS_MAPS = {
    "gradcam": Gradcam,
    "gradcam++-tf-keras-vis": GradcamPlusPlus,
    "layercam": Layercam,
    "scorecam-tf-keras-vis": Scorecam,
}
XPLIQUE = {"gradcam": attributions.GradCAM, "gradcam++": attributions.GradCAMPP, "fem": attributions.FEM}


def main():
    model = network()
    linear = keras.models.clone_model(model)
    linear.set_weights(model.get_weights())
    linear.layers[-1].activation = keras.activations.linear
    facts = {}
    for case, (sample, index) in CASES.items():
        x = inputs()[sample : sample + 1].transpose(0, 2, 3, 1)
        score = CategoricalScore([index])
        where = {"penultimate_layer": LAYER, "seek_penultimate_conv_layer": False}
        for name, kind in CLASS_MAPS.items():
            facts[f"{case}/tf-keras-vis/{name}"] = np.asarray(kind(model)(score, x, **where))[0]
        facts[f"{case}/tf-keras-vis/saliency"] = np.asarray(Saliency(model)(score, x))[0]
        for name, kind in XPLIQUE.items():
            explained = kind(linear, conv_layer=LAYER).explain(x, np.eye(5, dtype=np.float32)[[index]])
            facts[f"{case}/xplique/{name}"] = np.asarray(explained)[0, ..., 0]
    versions = {"tensorflow": tf.__version__, "tf-keras-vis": "0.8.7", "xplique": "2.0.2"}
    versions |= {"network": "preset_network.py"}
    path = Path(__file__).with_name("preset_methods_tensorflow.npz")
    np.savez_compressed(path, provenance=np.array(json.dumps(versions)), **facts)


if __name__ == "__main__":
    main()
