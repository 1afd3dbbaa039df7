"""One small interface over inference engines: `run`, `describe`, `close`.

`tasks.runtimes.onnx.OnnxRuntime` and `tasks.runtimes.pytorch.PyTorchRuntime` have it.
No engine is imported here, so that serving with one needs no other installed.
"""
