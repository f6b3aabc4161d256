"""Every test runs on one thread, so that two pytest workers share two cores."""

import torch

torch.set_num_threads(1)
