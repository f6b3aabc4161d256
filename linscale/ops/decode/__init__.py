"""Kernels of a decoding step (kernels.py), launched on buffers that stay where they are, so that a graph can hold them."""
