"""Prepare: from text files to a folder of token shards, in parallel, in bounded memory, resumable.

One process reads documents and hands them out in batches; workers tokenize; the first one writes them in the
order they were read, so the corpus is the same byte for byte with any number of workers. `journal.json` holds, as
of the last closed shard, the position in the input and the length of every open file; a run that was killed goes
on from there. The last thing written is the manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from linscale.config import UserError, config, fingerprint, to_dict
from linscale.data.documents import read_documents
from linscale.data.encode import Batch, Encoder, encode_in_order, split_of
from linscale.data.inputs import find_sources
from linscale.data.journal import Journal, require_same, resume_or_begin
from linscale.data.manifest import JOURNAL, MANIFEST, SPLITS, Manifest, SourceRecord, SplitRecord, tokenizer_record
from linscale.data.shards import TokenDataset
from linscale.data.sources import Source
from linscale.data.tokenizer import FILE as TOKENIZER_FILE
from linscale.data.tokenizer import SubwordTokenizer, Tokenizer, bpe_size, load_tokenizer, train_bpe
from linscale.data.writer import SplitState, SplitWriter
from linscale.distributed import cores
from linscale.run_folder import code_version, disk_errors, locked, write_json

POOL_BYTES = 16 << 20
"""Inputs smaller than this are tokenized before worker processes would have started."""
BATCH_CHARACTERS = 1 << 20

Progress = Callable[[int, int, int, int], None]
"""Called with bytes read, bytes in total, documents and tokens written (since the beginning, not the resume)."""


@config
class PrepareOptions:
    """How text becomes a corpus."""

    text_field: str = "text"
    """The field of a .jsonl line, or the column of a .parquet file or of a dataset, that holds the text."""
    document_bytes: Annotated[int, Field(ge=16)] | None = None
    """Cut documents longer than this many bytes into several, at line ends. Without it a .txt file is one document."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """The share of documents that goes to the validation split, chosen by a hash of their text."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that tokenize; by default one for each core. The corpus does not depend on it."""
    shard_tokens: Annotated[int, Field(ge=1)] = 100_000_000
    """A shard is closed at the end of the document that brings it to this many tokens."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Another seed draws another validation split."""
    bpe_sample_bytes: Annotated[int, Field(ge=1)] = 50_000_000
    """With tokenizer bpe:SIZE, train it on this much text, taken from the start of every file in proportion to size."""


def prepare(
    inputs: Sequence[str],
    *,
    tokenizer: str = "byte",
    out: str | Path,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tokenize `inputs` (files, folders, URLs, datasets: see inputs.py) into the folder `out`; returns its manifest.

    `tokenizer` is 'byte', 'bpe:SIZE' (trained on the inputs), or the path of a tokenizer.json. Killed and called
    again it continues; finished and called again it does nothing. Worker processes are spawned: a script that calls
    this needs `if __name__ == "__main__":`. Raises UserError for bad input, for a split without documents, for a
    full disk (what is there is kept), and when `out` holds another corpus.
    """
    out, options = Path(out), options or PrepareOptions()
    sources, left_out = find_sources(inputs)
    given = None if bpe_size(tokenizer) else load_tokenizer(tokenizer)
    settings = {"tokenizer": given.name if given else tokenizer, "tokenizer_fingerprint": given and given.fingerprint}
    settings |= _lasting(options)
    inputs_fingerprint = fingerprint([source.identity for source in sources])
    empty = {name: SplitState() for name in SPLITS}
    records = tuple(SourceRecord(name=each.name, bytes=each.size, revision=each.revision) for each in sources)
    journal = Journal(settings=settings, inputs_fingerprint=inputs_fingerprint, sources=records, splits=empty)
    if out.exists() and not out.is_dir():
        raise UserError(f"out = {out}: is a file; expected a folder")
    with disk_errors(out), locked(out):
        if (out / MANIFEST).exists():
            manifest = TokenDataset.open(out).manifest
            require_same(out, manifest, journal, _lasting(PrepareOptions()))
        else:
            journal = resume_or_begin(out, journal, _lasting(PrepareOptions()))
            chosen = given or _trained(out, tokenizer, sources, options)
            chosen.save(out)
            splits = _write(out, sources, chosen, options, journal, progress)
            manifest = Manifest(
                code_version=code_version(),
                dtype="uint16" if chosen.dtype.itemsize == 2 else "uint32",
                tokenizer=tokenizer_record(chosen),
                settings=settings,
                inputs_fingerprint=inputs_fingerprint,
                sources=records,
                left_out=tuple(left_out),
                splits=splits,
            )
            write_json(out / MANIFEST, to_dict(manifest))
        for left in (out / JOURNAL, *out.glob(".*.tmp")):
            left.unlink(missing_ok=True)
    return to_dict(manifest)


def _lasting(options: PrepareOptions) -> dict[str, Any]:
    """The options that decide what the corpus is."""
    return {name: value for name, value in to_dict(options).items() if name != "workers"}


def _trained(out: Path, spec: str, sources: list[Source], options: PrepareOptions) -> Tokenizer:
    """The tokenizer an interrupted run trained, or one trained now on a sample of the training documents."""
    if (out / TOKENIZER_FILE).exists():
        return load_tokenizer(out)
    size = bpe_size(spec)
    assert size is not None
    return train_bpe(_sample(sources, options), size)


def _sample(sources: list[Source], options: PrepareOptions) -> Iterator[str]:
    """The start of every source, as far as its share of `bpe_sample_bytes`, without validation documents."""
    total = sum(source.size for source in sources)
    for source in sources:
        left = -(-options.bpe_sample_bytes * source.size // total)
        for document in read_documents(source, text_field=options.text_field, document_bytes=options.document_bytes):
            if split_of(document.text.encode(), options.seed, options.val_fraction) == "train":
                yield document.text[:left]
                left -= len(document.text.encode())
            if left <= 0:
                break


def _write(
    out: Path,
    sources: list[Source],
    tokenizer: Tokenizer,
    options: PrepareOptions,
    journal: Journal,
    progress: Progress | None,
) -> dict[str, SplitRecord]:
    """Tokenize from the journal's position to the end, keeping the journal; returns the finished splits."""
    writers = {name: SplitWriter(out, name, tokenizer, state) for name, state in journal.splits.items()}
    total = sum(source.size for source in sources)
    encode = Encoder(tokenizer, options.seed, options.val_fraction)
    batches = _batches(sources, options, journal.position)
    try:
        with contextlib.closing(encode_in_order(batches, encode, _workers(tokenizer, total, options))) as encoded:
            for batch, documents in encoded:
                for position, document in zip(batch.positions, documents, strict=True):
                    writer = writers[document.split]
                    if writer.open_tokens >= options.shard_tokens:
                        writer.close_shard()
                        splits = {name: each.checkpoint() for name, each in writers.items()}
                        journal = dataclasses.replace(journal, position=position, splits=splits)
                        write_json(out / JOURNAL, to_dict(journal))
                    writer.add(document.tokens, document.text_bytes)
                if progress:
                    documents_done = sum(each.documents for each in writers.values())
                    progress(batch.bytes_read, total, documents_done, sum(each.tokens for each in writers.values()))
        _require_documents(writers, options)
        return {name: writer.finish() for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.release()


def _require_documents(writers: dict[str, SplitWriter], options: PrepareOptions) -> None:
    total = sum(writer.documents for writer in writers.values())
    for name, writer in writers.items():
        if writer.documents == 0:
            remedy = {"val": "raise val_fraction", "train": "lower val_fraction"}[name]
            raise UserError(
                f"the {name} split is empty: val_fraction = {options.val_fraction} of {total} documents; "
                f"set document_bytes (now {options.document_bytes}) to cut them into more, {remedy}, or give more input"
            )


def _batches(sources: list[Source], options: PrepareOptions, start: tuple[int, int]) -> Iterator[Batch]:
    """The documents from position `start` on, about a megabyte of text at a time."""
    positions: list[tuple[int, int]] = []
    texts: list[str] = []
    size = bytes_before = 0
    for number, source in enumerate(sources):
        documents = read_documents(source, text_field=options.text_field, document_bytes=options.document_bytes)
        for position, document in enumerate(documents if number >= start[0] else ()):
            if (number, position) < start:
                continue
            positions.append((number, position))
            texts.append(document.text)
            size += len(document.text)
            if size >= BATCH_CHARACTERS:
                yield Batch(positions, texts, bytes_before + document.bytes_read)
                positions, texts, size = [], [], 0
        bytes_before += source.size
    yield Batch(positions, texts, bytes_before)


def _workers(tokenizer: Tokenizer, total: int, options: PrepareOptions) -> int:
    """1 means in this process: bytes are encoded faster than they are sent, and small inputs before workers start."""
    if not isinstance(tokenizer, SubwordTokenizer) or total < POOL_BYTES:
        return 1
    return options.workers or cores()
