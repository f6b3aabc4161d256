"""One token of S sequences: what a layer of a decoding step computes, on buffers that stay where they are.

    project     y = a(norm(x) Wᵀ) + residual
    mix         S <- decay S + k vᵀ in place, o = Sᵀ q                       linear attention
    convolve, linear_mix                                                     linearized layers: linearized.py
    attend      keys and values appended in place, softmax attention of one query       softmax layers

plain.py is the definition, in plain PyTorch, and how a CPU decodes; kernel.py launches kernels.py on a GPU. Nothing
here allocates what outlives a call, so that a CUDA graph can hold a step.
"""

from linscale.ops.decode.shapes import LinearMix, Mix, Projection

__all__ = ["LinearMix", "Mix", "Projection"]
