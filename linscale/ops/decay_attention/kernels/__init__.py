"""The Triton kernels of `decay_attention`; ../kernel.py launches them. Imported only where they run."""
