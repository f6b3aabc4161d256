"""linscale data: from text to token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from linscale.adapt.tokenizer_folder import tokenizer_of
from linscale.cli.output import Json, ProgressBar, file_size, print_json, print_table
from linscale.config import human
from linscale.data import PrepareOptions, TokenDataset
from linscale.data import prepare as prepare_corpus

DEFAULTS = PrepareOptions()


def prepare(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    *,
    out: Path,
    tokenizer: str = "byte",
    options: Annotated[PrepareOptions, tyro.conf.OmitArgPrefixes] = DEFAULTS,
    json: Json = False,
) -> None:
    """Turn text into a folder of memory-mapped token shards with a validation split.

    Reads .txt, .jsonl and .parquet, plain or .gz/.zst/.xz: files and folders, here or behind a URL (https://, s3://,
    gs:// and whatever fsspec opens), datasets of the Hugging Face Hub, and builtin:tinyshakespeare. All is streamed.
    Killed and called again it continues; finished and called again it does nothing.

    Args:
        inputs: Files, folders, URLs (s3://bucket/*.jsonl.zst), builtin:NAME, or hf:NAME[@REVISION][:CONFIG][:SPLIT], a
            dataset on the Hub or a folder laid out like one; SPLIT is train unless given. URLs and hf: need
            pip install 'linscale[data]'.
        out: The folder to make.
        tokenizer: byte, bpe:SIZE (trained on the inputs), or the path of a tokenizer.json, of a run folder, or of a
            model's Hugging Face folder, whose config.json says which token ends a text.
        options: How text becomes a corpus.
    """
    with ProgressBar() as bar:

        def show(read: int, total: int, documents: int, tokens: int) -> None:
            bar.update(f"{file_size(total)}: {human(documents)} documents, {human(tokens)} tokens", read, total)

        with tokenizer_of(tokenizer) as place:
            manifest = prepare_corpus(inputs, tokenizer=place, out=out, options=options, progress=show)
    if json:
        print_json(manifest)
        return
    rows = [
        (name, human(split["documents"]), human(split["tokens"]), f"{split['bytes_per_token']:.3f}")
        for name, split in manifest["splits"].items()
    ]
    name = manifest["tokenizer"]["name"]
    print_table(f"{out}: tokenizer {name}", ("split", "documents", "tokens", "bytes/token"), rows)


def verify(folder: Annotated[Path, tyro.conf.Positional], *, json: Json = False) -> None:
    """Read every shard of a prepared folder and compare it with its checksum.

    Args:
        folder: Folder made by `linscale data prepare`.
    """
    TokenDataset.open(folder, verify=True)
    if json:
        print_json({"folder": str(folder), "ok": True})
    else:
        print(f"{folder}: every file is as it was written")
