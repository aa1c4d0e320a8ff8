"""ONNX graphs: written by torch's exporters, run by onnxruntime, tried in other readers."""
