"""ONNX graphs of modules, by tracing: for export.py and for the checks of layers."""

ONNX_OPSET = 18
"""Version of ONNX's operators where nobody asks for another."""
