"""Stage 02: the model as ONNX graphs."""
