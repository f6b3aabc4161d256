"""linscale: which linear-complexity language model to train with this compute, and the means to train it."""

from linscale.adapt.on_import import register_with_transformers

__version__ = "0.1.0"

register_with_transformers()


def __getattr__(name: str) -> object:
    """`linscale.load(path) -> (model, tokenizer)`, imported when asked for: `import linscale` alone needs no torch."""
    if name == "load":
        from linscale.checkpoint import load

        return load
    raise AttributeError(f"module 'linscale' has no attribute {name!r}")
