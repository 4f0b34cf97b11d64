"""Raw maps of signals, volumes and clips by PyTorch's autograd: `python make_dimensions.py FOLDER`.

FOLDER holds `make/own.py`, which defines the modules and seeds them, and `models`, whose `.npz` files hold their inputs
and outputs. A module is used only if its outputs are those stored. PyTorch 2.13.0.
"""

import sys
from pathlib import Path

import numpy as np
import torch

NAMES = ("d1_as_2d", "d1_audio_wave", "d1_ecg12", "d1_vibration_tc", "d2_spectrogram_tf", "d3_mri", "video_ncthw")
NAMES += ("video_ntchw",)


def main(folder: Path) -> None:
    source = (folder / "make" / "own.py").read_text()
    # The modules are defined before they are run from the command line.
    own = {"__name__": "own"}
    sys.argv = ["own.py", "none"]
    exec(compile(source, "own.py", "exec"), own)  # noqa: S102
    results, maps, relu = {}, [], torch.nn.functional.relu

    def recorded(*arguments, **options):
        maps.append(relu(*arguments, **options))
        return maps[-1]

    # Modules and functions both come here.
    torch.nn.functional.relu = recorded

    def save(name, module, arguments, inputs, outputs, dynamic=None, note=""):
        if name not in NAMES:
            return
        own["seeded"](module)
        (x,) = arguments
        x = x[:1]
        maps.clear()
        y = module(x)
        with np.load(folder / "models" / f"{name}.npz") as stored:
            assert np.allclose(stored[f"out_{outputs[0]}"][:1], y.detach().numpy(), atol=1e-5), name
        activation = maps[-1]
        for target in range(y.shape[1]):
            (gradient,) = torch.autograd.grad(y[0, target], activation, retain_graph=True)
            axes = tuple(range(2, activation.ndim))
            weights = gradient.mean(axes, keepdim=True)
            results[f"{name}_gradcam_{target}"] = (weights * activation).sum(1)[0].detach().numpy()
            results[f"{name}_hirescam_{target}"] = (gradient * activation).sum(1)[0].detach().numpy()
        if name.startswith(("video", "d2")):
            return  # large gradients, and an input without channels
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf)[0, 0], leaf)
        results[f"{name}_gradient_0"] = gradient[0].numpy()

    own["save"] = save
    for name in NAMES:
        own["J"][name]()
    missing = [name for name in NAMES if f"{name}_gradcam_0" not in results]
    assert not missing, missing
    np.savez_compressed(Path(__file__).with_name("dimensions.npz"), **results)


main(Path(sys.argv[1]))
