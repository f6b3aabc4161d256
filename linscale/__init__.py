"""linscale: which linear-complexity language model to train with this compute, and the means to train it."""

__version__ = "0.1.0"
