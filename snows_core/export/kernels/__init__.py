"""Where zeros make a network faster: rules of libraries and GPUs, and PyTorch's own 2:4 kernels."""
