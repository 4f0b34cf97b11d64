"""Scripts that convert a model in another Python environment, which needs the framework but not this package.

`exporters.elsewhere` starts them with a folder as the only argument: `request.json` in it says what to convert, and
`answer.json` and `model.onnx` come back.
"""
