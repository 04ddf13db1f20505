"""The ONNX backend: models for stock ONNX Runtime, with weights of any width."""
