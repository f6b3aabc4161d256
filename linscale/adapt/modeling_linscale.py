"""The model class of this folder, for `trust_remote_code=True`: it is linscale's own, and comes with that package."""

try:
    from linscale.adapt.transformers_config import LinscaleConfig
    from linscale.adapt.transformers_model import LinscaleForCausalLM
except ImportError as error:
    raise ImportError(
        f"this model needs the package linscale with its adapter for transformers: pip install linscale ({error})"
    ) from error

__all__ = ["LinscaleConfig", "LinscaleForCausalLM"]
