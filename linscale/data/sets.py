"""Evaluation sets: what they are, where their files lie, and the content that published numbers are comparable on.

Those with an open licence ship with the package, in `tasks/`, whose README names sources and licences; the others a
user prepares (`linscale tasks prepare`). A folder that is given is looked into first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.data.decompress import DECOMPRESSORS, decompress

SHIPPED = Path(__file__).parent / "tasks"
COMPRESSIONS = (".zst", ".xz", ".gz", "")


@dataclass(frozen=True)
class EvaluationSet:
    """One split of one data set."""

    records: int
    """Lines of its file."""
    sha256: str
    """Of the file, decompressed."""
    licence: str
    shipped: bool = True
    ending: str = ".jsonl"
    """Of its file, before that of a compression. A .jsonl has one object a line."""


SETS = {
    "arc_challenge_test": EvaluationSet(
        1172, "a03a11a8fee86f6d0607f426e7b3b7a9180a4894170e934da75596e93c4b51f1", "CC BY-SA 4.0"
    ),
    "arc_easy_test": EvaluationSet(
        2376, "6ce8fb7b4baa1a5d6f2f1b92a3055787cf04759819c3f03195cda787822f7f12", "CC BY-SA 4.0"
    ),
    "boolq_dev": EvaluationSet(
        3270, "dbad2984e58eaa2184b6d0acfe2e94a73b9868381046255d6be6c3bed9088b68", "CC BY-SA 3.0"
    ),
    "commonsense_qa_dev": EvaluationSet(
        1221, "4c036e81eec3cb86477bc1b97c21c56aa17d92ab9f8537c855dc0cf724b05fe0", "MIT"
    ),
    "hellaswag_val": EvaluationSet(10042, "d5c08c3e5771307e73886dc9d2744df8ca5f372a7857f32fe77df8c58942f950", "MIT"),
    "lambada_openai_test": EvaluationSet(
        5153, "9acdcb12e8c2ef4eb3d0958b547a8c7076488df2d6ff460377881ab3841f3d97", "none stated", shipped=False
    ),
    "mmlu_dev": EvaluationSet(285, "0b841f7363db50b453f487870576f828e3b8bb106b6a721db67fa382e4a37ec8", "MIT"),
    "mmlu_test": EvaluationSet(14042, "903179ca496c3a80683685a3e4bcec761d2826df64682892cde15def955f6e7d", "MIT"),
    "openbookqa_test": EvaluationSet(
        500, "bbaca15e985ba386b2f73e9659fce608cf7722a35343864dbe7115cbbda341ab", "Apache-2.0"
    ),
    "paul_graham_essays": EvaluationSet(
        49, "3170ba9ce8e7780a681007d996ba44acee19f878d4c73cb330870790ae0a7b40", "their author's", shipped=False
    ),
    "piqa_valid": EvaluationSet(1838, "61533005e22f175534909b1ec8eacb6da03c233933558d1bafb15787453b1f55", "AFL-3.0"),
    "sciq_validation": EvaluationSet(
        1000, "8f8a4292f68d609ddf3af1946a0b195a7bf350d492ff3e8c5925639c8b5f82f2", "CC BY-NC 3.0", shipped=False
    ),
    "wikitext2_raw_test": EvaluationSet(
        4358, "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08", "CC BY-SA 3.0", ending=".txt"
    ),
    "winogrande_xl_dev": EvaluationSet(
        1267, "69f3d7f3a900d775339b04c7de672609c40fca573e50f594f2ae66d8782505be", "CC BY"
    ),
}


def look_for_set(folder: Path | None, name: str) -> Path | None:
    """The file of a set, in whichever compression: in `folder`, or else as it ships; None where it is in neither."""
    for place in (folder, SHIPPED):
        for compression in COMPRESSIONS if place else ():
            path = Path(place or "", name + SETS[name].ending + compression)
            if path.is_file():
                return path
    return None


def find_set(folder: Path | None, name: str) -> Path:
    """The file of a set. Raises UserError where there is none, with how to get one."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"data = {folder}: no such folder; expected one of evaluation sets")
    if path := look_for_set(folder, name):
        return path
    raise UserError(f"{name}{SETS[name].ending}: {absence(folder, name)}")


def absence(folder: Path | None, name: str) -> str:
    """Why a set is not there, and the commands that change it."""
    where = f"not in {folder} nor shipped" if folder else "does not ship"
    remedy = f"linscale tasks prepare {folder or 'DIR'} --sets {name} --from hub (or a folder), then --data"
    return f"{where} (licence: {SETS[name].licence}); get it with: {remedy} {folder or 'DIR'}"


def read_content(path: Path) -> bytes:
    """A file's bytes, decompressed. Raises UserError where it is damaged."""
    with path.open("rb") as file:
        if path.suffix in DECOMPRESSORS:
            return b"".join(decompress(str(path), path.suffix, file))
        return file.read()


def set_name(path: Path) -> str:
    """The set that a file is of, by its name."""
    return path.name.partition(".")[0]


def difference(name: str, content: bytes) -> str | None:
    """How a content is not the expected one of a set, or None."""
    found = hashlib.sha256(content).hexdigest()
    if found == SETS[name].sha256:
        return None
    lines = content.count(b"\n")
    count = "" if lines == SETS[name].records else f" in {lines} lines, not {SETS[name].records}"
    return f"its content has sha256 {found[:12]}…{count}, expected {SETS[name].sha256[:12]}…"


def verified_content(path: Path) -> bytes:
    """The content of a set's file. Raises UserError when it is not the expected one."""
    content = read_content(path)
    if wrong := difference(set_name(path), content):
        raise UserError(f"{path}: {wrong}; restore the original file")
    return content


def read_set(path: Path) -> list[dict[str, Any]]:
    """The records of a set's .jsonl file. Raises UserError when its content is not the expected one."""
    return records_of(verified_content(path))


def records_of(content: bytes) -> list[dict[str, Any]]:
    """One object a line."""
    return [json.loads(line) for line in content.decode().split("\n") if line]
