"""Bytes of a pruned network by way of storing it, and eight-bit numbers."""
