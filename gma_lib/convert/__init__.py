"""Stage 03: ONNX graphs to what a runtime loads."""
