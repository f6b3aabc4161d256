"""The probe: how long a planned run takes on this machine, from trial passes and the rate of matrix products."""

from __future__ import annotations

import torch

from linscale.distributed import limit_threads
from linscale.models import ModelConfig, build_model
from linscale.models.count import flops_per_token
from linscale.study.plan import PlannedRun
from linscale.train.utilisation import fastest, matrix_rate

TRIAL_TOKENS = 1024
LIMIT_S = 2.0  # a pass expected to take longer is priced by the matrix rate instead of being tried
LIMIT_PARAMS = 50_000_000  # so is a larger model: a plan allocates next to nothing
ASSUMED_UTILISATION = 0.4  # of the matrix rate, where nothing could be tried


class Probe:
    """Prices runs by what this machine does: trial passes of models that are small enough, else its matrix rate."""

    def __init__(self, threads: int) -> None:
        """threads: how many a run will have on the CPU."""
        limit_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.matrix_rate = matrix_rate(self.device)  # FLOP/s
        self._utilisation = ASSUMED_UTILISATION
        self.tried = 0

    @torch.enable_grad()
    def seconds(self, run: PlannedRun) -> float:
        """Training time of a run, alone on this device."""
        train = run.config.train
        length = min(train.length, TRIAL_TOKENS)
        sequences = min(train.micro_sequences, max(1, TRIAL_TOKENS // length))
        flops = flops_per_token(run.config.model, "train", length) * sequences * length
        quick = flops / (ASSUMED_UTILISATION * self.matrix_rate) < LIMIT_S
        if quick and run.total_params <= LIMIT_PARAMS:
            self._utilisation = flops / (_trial(run.config.model, sequences, length, self.device) * self.matrix_rate)
            self.tried += 1
        return run.exact_flops / (self._utilisation * self.matrix_rate)


def _trial(model_config: ModelConfig, sequences: int, length: int, device: str) -> float:
    """Seconds of one forward and backward pass."""
    model = build_model(model_config).to(device)
    tokens = torch.zeros(sequences, length, dtype=torch.long, device=device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(tokens, targets=tokens).loss
        loss.mean().backward()

    return fastest(step, device, repeats=2)
