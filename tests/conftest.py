"""Every test runs on one thread, so that two pytest workers share two cores."""

import os

# numpy's BLAS reads it when it is loaded, here and in processes that tests start. Its threads wait for each other
# busily: in fits of small matrices, on a machine with other work, that is several times what they compute.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
