"""What the data path delivers: `prepare` in MB of text a second, the loader in tokens a second. No GPU.

    python benchmarks/data.py [TEXT ...] [--vocab 8192] [--out RESULT.json]

`prepare` runs with one worker, that is on one core, with a BPE tokenizer that is there already; the peer is the
tokenizer's own library on the same documents, also on one core, its tokens thrown away. The loader gives batches of 16
windows of 2048 tokens, one process and one thread, from a corpus of 100 million tokens in memory; the peer is the usual
recipe: slices of a memory map at random places, converted and stacked one by one. Both rounds are repeated in turn,
the fastest of each counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # of the tokenizers library

import numpy as np
import torch
from ops_cpu import processor

from linscale.data.documents import read_documents
from linscale.data.loader import Loader
from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.shards import TokenDataset
from linscale.data.sources import find_sources
from linscale.data.tokenizer import load_tokenizer
from linscale.run_folder import code_version

LENGTH, SEQUENCES, BATCHES, ROUNDS = 2048, 16, 100, 5
CORPUS_TOKENS = 100_000_000
DOCUMENT_TOKENS = 700


def main() -> None:
    """Print both tables, and write them where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", default=["builtin:tinyshakespeare"])
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "torch": torch.__version__,
        "code": code_version(),
        "prepare": prepare_rows(arguments.text, arguments.vocab),
        "loader": loader_rows(),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def prepare_rows(inputs: list[str], vocab: int) -> dict[str, float]:
    """MB/s of text, by what does it."""
    options = PrepareOptions(workers=1, document_bytes=65536, val_fraction=0.02)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        prepare(inputs, tokenizer=f"bpe:{vocab}", out=first, options=options)
        tokenizer = str(first / "tokenizer.json")
        library = load_tokenizer(tokenizer)._tokenizer
        sources, _ = find_sources(inputs)
        texts = [document.text for source in sources for document in read_documents(source, document_bytes=65536)]
        size = sum(len(text.encode()) for text in texts) / 1e6
        again = iter(range(10**6))
        seconds = fastest_in_turn(
            {
                "prepare": lambda: prepare(
                    inputs, tokenizer=tokenizer, out=Path(folder) / f"{next(again)}", options=options
                ),
                "tokenizers": lambda: library.encode_batch_fast(texts, add_special_tokens=False),
            },
            rounds=2,
        )
    print(f"prepare, bpe:{vocab}, {size:.1f} MB of text, one core")
    rates = {name: size / value for name, value in seconds.items()}
    for name, rate in rates.items():
        print(f"  {name:<12}{rate:8.2f} MB/s")
    print(f"  ratio {rates['prepare'] / rates['tokenizers']:.2f}")
    return {"text_mb": size, **rates}


def loader_rows() -> dict[str, float]:
    """Tokens/s, by what does it."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = corpus(Path(folder))
        loaders = {
            name: Loader(dataset, "train", length=LENGTH, sequences=SEQUENCES, seed=0, documents=documents)
            for name, documents in (("rows", False), ("documents", True))
        }
        steps = iter(range(10**9))
        data = np.memmap(next(dataset.folder.glob("train-*.bin")), np.uint16, mode="r")
        random = torch.Generator().manual_seed(0)

        def recipe() -> None:
            places = torch.randint(len(data) - LENGTH - 1, (SEQUENCES,), generator=random).tolist()
            torch.stack([torch.from_numpy(data[at : at + LENGTH].astype(np.int64)) for at in places])
            torch.stack([torch.from_numpy(data[at + 1 : at + 1 + LENGTH].astype(np.int64)) for at in places])

        def many(work: Callable[[], object]) -> Callable[[], None]:
            return lambda: [work() for _ in range(BATCHES)] and None

        works = {name: many(lambda loader=loader: loader.batch(next(steps))) for name, loader in loaders.items()}
        seconds = fastest_in_turn({**works, "recipe": many(recipe)}, ROUNDS)
    print(f"loader, {SEQUENCES} x {LENGTH}, one thread")
    rates = {name: BATCHES * SEQUENCES * LENGTH / value for name, value in seconds.items()}
    for name, rate in rates.items():
        print(f"  {name:<12}{rate / 1e6:8.1f} M tokens/s")
    print(f"  ratio of rows to the recipe {rates['rows'] / rates['recipe']:.2f}")
    return rates


def corpus(folder: Path) -> TokenDataset:
    """A prepared corpus of random bytes in documents of about DOCUMENT_TOKENS, as large as asked for."""
    random = np.random.default_rng(0)
    text = random.integers(97, 123, CORPUS_TOKENS, dtype=np.uint8)
    text[random.integers(0, len(text), len(text) // DOCUMENT_TOKENS)] = ord("\n")
    (folder / "text.txt").write_bytes(text.tobytes())
    options = PrepareOptions(document_bytes=DOCUMENT_TOKENS)
    prepare([str(folder / "text.txt")], out=folder / "corpus", options=options)
    return TokenDataset.open(folder / "corpus")


def fastest_in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each, called in turn after one each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in times.items()}


if __name__ == "__main__":
    main()
