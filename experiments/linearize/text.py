"""The text of the linearization experiment: which documents of which domains, and what is held back.

    python experiments/linearize/text.py FOLDER OUT [--share 1.0]

FOLDER holds `train` and `val` with a file a domain (SHARES): `NAME.jsonl`, or that with .xz or .zst, an object with
`text` a line. OUT/train gets a file a domain with the documents whose hashed number is below the domain's share (times
--share, for fewer tokens); OUT/held.jsonl the first documents of every domain in `val`, 100 kB each; OUT/novels.jsonl
the novels of `val` whole, for the loss by position. All of it is 107M tokens of SmolLM2's tokenizer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.data.documents import read_documents
from linscale.data.inputs import find_sources

SHARES = {
    "dialogue": 1.0, "newswire": 1.0, "novels": 0.5, "python_code": 1.0, "reviews": 1.0, "science_papers": 1.0,
    "techdocs": 1.0, "textbooks": 1.0, "webdocs": 1.0, "wikipedia": 1.0, "wikipedia_b": 1.0,
}  # fmt: skip
"""How much of a domain is taken: of novels half, as they would be a quarter of the text."""
HELD_BYTES = 100_000
SEED = b"linearize"


def taken(document: str, share: float) -> bool:
    """Whether the document with this id is in a share: those of a smaller share are in every larger one."""
    digest = hashlib.blake2b(document.encode(), digest_size=8, key=SEED).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def file_of(folder: Path, name: str) -> Path | None:
    """The file of a domain, in whichever compression."""
    found = (folder / f"{name}.jsonl{compression}" for compression in (".xz", ".zst", ""))
    return next((path for path in found if path.exists()), None)


def train_text(folder: Path, out: Path, share: float) -> Iterator[tuple[str, int]]:
    """Write the training files; name and bytes of each."""
    out.mkdir(parents=True, exist_ok=True)
    for name, own in SHARES.items():
        source = file_of(folder, name)
        if source is None:
            raise UserError(f"{folder}: no file {name}.jsonl, plain or with .xz or .zst")
        if own * share >= 1:
            target = out / source.name
            shutil.copyfile(source, target)
        else:
            target = out / f"{name}.jsonl.xz"
            with lzma.open(target, "wt", encoding="utf-8") as file:
                for number, text in enumerate(texts(source)):
                    if taken(f"{name}-{number}", own * share):
                        file.write(line(text))
        yield name, target.stat().st_size


def held_text(folder: Path, out: Path) -> int:
    """Write the documents that losses are measured on; returns their bytes."""
    size = 0
    with open(out, "w", encoding="utf-8") as file:
        for name in SHARES:
            source, left = file_of(folder, name), HELD_BYTES
            for text in texts(source) if source else ():
                if left <= 0:
                    break
                kept = text.encode()[:left].decode(errors="ignore")
                file.write(line(kept))
                left -= len(kept.encode()) + 1
                size += len(kept.encode())
    return size


def texts(source: Path) -> Iterator[str]:
    (found,), _ = find_sources([str(source)])
    return (document.text for document in read_documents(found))


def line(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of everything, at most 1")
    options: Any = parser.parse_args()
    for name, size in train_text(options.folder / "train", options.out / "train", options.share):
        print(f"{name:<16}{size / 1e6:6.1f} MB", flush=True)
    print(f"held            {held_text(options.folder / 'val', options.out / 'held.jsonl') / 1e6:6.1f} MB of text")
    novels = file_of(options.folder / "val", "novels")
    if novels is None:
        raise UserError(f"{options.folder / 'val'}: no file novels.jsonl, plain or with .xz or .zst")
    with open(options.out / "novels.jsonl", "w", encoding="utf-8") as file:
        file.writelines(line(text) for text in texts(novels))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"text.py: {error}")
