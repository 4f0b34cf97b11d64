"""Scripts that convert a model in a Python of their own, which needs the framework but not this package.

`export.elsewhere` starts them: a folder is the one argument, `request.json` in it says what to convert, and
`answer.json` and `model.onnx` come back.
"""
