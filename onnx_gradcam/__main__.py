"""`python -m onnx_gradcam`: the same as the command `onnx-gradcam`."""

from .cli import main

if __name__ == "__main__":
    main()
