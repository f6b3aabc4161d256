"""The peers in decode.py: their libraries' `generate`, as their users call it. Each runs in a process of its own."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from decode_setting import Setting

PEERS = {"fla-hgrn2": "fla", "transformers-llama": "transformers", "transformers-llama-static": "transformers"}
ARCH = {"fla-hgrn2": "hgrn2", "transformers-llama": "llama", "transformers-llama-static": "llama"}
GPU_ONLY = ("fla-hgrn2",)
Row = dict[str, Any]


def rows(script: Path, options: argparse.Namespace) -> Iterator[Row]:
    """A row a peer and number of texts. What a peer wrote before it failed or its time was over counts."""
    for name, package in PEERS.items():
        if ARCH[name] not in options.archs:
            continue
        if name in GPU_ONLY and (options.tiny or not torch.cuda.is_available()):
            continue
        if importlib.util.find_spec(package) is None:
            yield {"peer": name, "failed": f"{package} is not installed"}
            continue
        command = [sys.executable, str(script), "--peer", name, *["--tiny"] * options.tiny]
        command += ["--threads", str(options.threads)] if options.threads else []
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.peer_limit, env=environment)
            out, reason = done.stdout, f"status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
            failed = done.returncode != 0
        except subprocess.TimeoutExpired as error:
            out = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            failed, reason = True, f"not done in {options.peer_limit:g} s"
        yield from (json.loads(line) for line in out.splitlines() if line.startswith("{"))
        if failed:
            yield {"peer": name, "failed": reason}


def measure(name: str, setting: Setting) -> None:
    """Write a row as JSON for each number of texts."""
    model = peer_model(name, setting)
    options = {"cache_implementation": "static"} if name.endswith("static") else {}
    for texts in setting.peer_texts:
        prompt = setting.prompt if texts == 1 else setting.short
        began = time.perf_counter()
        torch.manual_seed(0)
        ids = torch.randint(setting.shape["vocab_size"], (texts, prompt), device=setting.device)
        generate_ms(model, ids, setting.peer_steps, **options)  # kernels are compiled and chosen
        warm_s = time.perf_counter() - began
        spent = [generate_ms(model, ids, setting.peer_steps, **options) for _ in range(2)]
        row = {"peer": name, "arch": ARCH[name], "texts": texts, "prompt": prompt, "ms": sum(spent) / 2}
        row |= {"tokens_per_s": 2e3 * texts / sum(spent), "noise": abs(spent[0] - spent[1]) / max(spent)}
        print(json.dumps(row | {"warm_up_s": warm_s}), flush=True)


class Clock:
    """A streamer: told of every token, once it is on the host."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def generate_ms(model: Any, ids: torch.Tensor, steps: int, **options: Any) -> float:
    """Milliseconds between tokens, without the first, greedy."""
    clock = Clock()
    model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=steps + 2, min_new_tokens=steps + 2,
        streamer=clock, **options,
    )  # fmt: skip
    times = clock.times[2:]  # those of the prompt, and of the first token
    return 1e3 * (times[-1] - times[0]) / (len(times) - 1)


def peer_model(name: str, setting: Setting) -> Any:
    """A causal language model of the same shape, from its library's stock config, in the setting's precision."""
    from linscale.models import CONFIGS

    config = CONFIGS[ARCH[name]](**setting.shape)
    shape = {
        "vocab_size": config.vocab_size, "hidden_size": config.d_model, "intermediate_size": config.glu_width,
        "num_hidden_layers": config.n_layers, "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": setting.context, "eos_token_id": None, "bos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.device(setting.device):
        if name == "fla-hgrn2":
            from fla.models import HGRN2Config, HGRN2ForCausalLM

            model: Any = HGRN2ForCausalLM(HGRN2Config(**shape, num_heads=config.n_heads))
        else:
            from transformers import LlamaConfig, LlamaForCausalLM

            llama = LlamaConfig(**shape, num_attention_heads=config.n_heads, attn_implementation="sdpa")
            model = LlamaForCausalLM(llama)
    return model.to(device=setting.device, dtype=setting.dtype).eval()
