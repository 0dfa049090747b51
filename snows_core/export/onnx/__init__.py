"""A pruned network as an ONNX file that was compared with PyTorch."""
