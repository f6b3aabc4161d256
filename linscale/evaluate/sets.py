"""Evaluation sets: local files, each held to the content that published numbers are comparable on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.data.decompress import decompress

CHECKSUMS = {
    "arc_challenge_test": "a03a11a8fee86f6d0607f426e7b3b7a9180a4894170e934da75596e93c4b51f1",
    "arc_easy_test": "6ce8fb7b4baa1a5d6f2f1b92a3055787cf04759819c3f03195cda787822f7f12",
    "boolq_dev": "dbad2984e58eaa2184b6d0acfe2e94a73b9868381046255d6be6c3bed9088b68",
    "hellaswag_val": "d5c08c3e5771307e73886dc9d2744df8ca5f372a7857f32fe77df8c58942f950",
    "lambada_openai_test": "9acdcb12e8c2ef4eb3d0958b547a8c7076488df2d6ff460377881ab3841f3d97",
    "openbookqa_test": "bbaca15e985ba386b2f73e9659fce608cf7722a35343864dbe7115cbbda341ab",
    "piqa_valid": "61533005e22f175534909b1ec8eacb6da03c233933558d1bafb15787453b1f55",
    "sciq_validation": "8f8a4292f68d609ddf3af1946a0b195a7bf350d492ff3e8c5925639c8b5f82f2",
    "winogrande_xl_dev": "69f3d7f3a900d775339b04c7de672609c40fca573e50f594f2ae66d8782505be",
}
"""sha256 of the JSON lines of a set, decompressed."""
ENDINGS = (".jsonl.zst", ".jsonl.xz", ".jsonl.gz", ".jsonl")


def find_set(folder: Path, name: str) -> Path:
    """The file of a set in a folder, in whichever compression. Raises UserError where there is none."""
    for ending in ENDINGS:
        if (path := folder / f"{name}{ending}").is_file():
            return path
    raise UserError(f"{folder / name}.jsonl: no such file, nor compressed (.zst, .xz, .gz); put it there or set --data")


def read_set(path: Path) -> list[dict[str, Any]]:
    """The records of a set's file. Raises UserError when its content is not the expected one."""
    name, _, compression = path.name.partition(".jsonl")
    with path.open("rb") as file:
        content = b"".join(decompress(str(path), compression, file)) if compression else file.read()
    found = hashlib.sha256(content).hexdigest()
    if found != CHECKSUMS[name]:
        expected = f"{CHECKSUMS[name][:12]}…"
        raise UserError(f"{path}: its lines have sha256 {found[:12]}…, expected {expected}; restore the original file")
    return [json.loads(line) for line in content.decode().split("\n") if line]
