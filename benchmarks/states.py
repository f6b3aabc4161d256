"""What a saved state costs: bytes, and seconds to read the text, to save, to load and to go on.

    python benchmarks/states.py hgrn2 --size 410M --tokens 64 1024

Weights are random, which changes none of it. The first line of a process's first load is the hash of the weights,
once; the rest is every further load.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time

import torch

from linscale.data.tokenizer import load_tokenizer
from linscale.generate.identity import model_hash
from linscale.generate.session import Session
from linscale.generate.state_store import StateStore
from linscale.models import CONFIGS, LanguageModel, build_model, preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", choices=sorted(CONFIGS))
    parser.add_argument("--size", help="a published size such as 410M; by default 4 layers of width 128")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    small = {"vocab_size": 257, "d_model": 128, "n_layers": 4, "head_dim": 64}
    model = build_model(preset(options.arch, options.size) if options.size else CONFIGS[options.arch](**small))
    began = time.perf_counter()
    model_hash(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.arch}, {count / 1e6:.1f}M parameters, hashed in {time.perf_counter() - began:.2f} s")
    print(f"{'tokens':>10}{'MB':>9}{'read s':>9}{'save ms':>9}{'load ms':>9}{'next token ms':>15}")
    with tempfile.TemporaryDirectory() as folder:
        for tokens in options.tokens:
            print(row(model, StateStore(folder), tokens), flush=True)


def row(model: LanguageModel, store: StateStore, tokens: int) -> str:
    tokenizer, session = load_tokenizer("byte"), Session(model, load_tokenizer("byte"))
    draws = torch.randint(0, 256, (tokens,), generator=torch.Generator().manual_seed(0)).numpy()
    times = [time.perf_counter()]
    session.read(draws)
    times.append(time.perf_counter())
    path = store.save("state", session.snapshot(), model, tokenizer, replace=True)
    times.append(time.perf_counter())
    resumed = store.resume("state", model, tokenizer)
    times.append(time.perf_counter())
    resumed.read([1])
    times.append(time.perf_counter())
    read, save, load, step = (b - a for a, b in itertools.pairwise(times))
    size = path.stat().st_size / 1e6
    return f"{tokens:>10,}{size:>9.3g}{read:>9.3g}{1e3 * save:>9.3g}{1e3 * load:>9.3g}{1e3 * step:>15.3g}"


if __name__ == "__main__":
    main()
