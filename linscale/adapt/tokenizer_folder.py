"""The tokenizer of a Hugging Face folder: into a run folder, and out of one.

A run folder holds tokenizer.json and, beside it, the other files of the tokenizer as they came (chat template, names
of special tokens). Which token ends a text and which opens one is in the model's config there; here tokenizer.json
says so itself, under MARKS, where it would not be found otherwise.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from linscale.config import UserError
from linscale.data.tokenizer import (
    BYTE_FORMAT,
    END_OF_TEXT,
    FILE,
    MARKS,
    OPENS,
    ByteTokenizer,
    SubwordTokenizer,
    Tokenizer,
    load_tokenizer,
)
from linscale.run_folder import read_json, write_json

MODEL = "config.json"
CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
COMPANIONS = (
    CONFIG,
    GENERATION,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
)
"""Other files of a tokenizer, copied as they are."""


def import_tokenizer(folder: Path, out: Path, model: Mapping[str, Any]) -> Tokenizer:
    """Copy the tokenizer of `folder` into `out`; `model` is the content of config.json. Returns it as it is loaded.

    Several tokens that end a text go to generation_config.json, where transformers has them.

    Raises UserError where there is no tokenizer.json, or the special tokens of the config are not in it.
    """
    if not (folder / FILE).is_file():
        raise UserError(
            f"{folder}: no {FILE}; write one with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    content = read_json(folder / FILE)
    copy_companions(folder, out)
    ends = model.get("eos_token_id")
    if isinstance(ends, list) and not (out / GENERATION).exists():
        write_json(out / GENERATION, {"eos_token_id": ends})
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{folder / FILE}: not in the Hugging Face tokenizer.json format")
    content.pop(MARKS, None)
    named = _named(folder)
    vocabulary = SubwordTokenizer._build(content, FILE)
    eos = _special(model, "eos", vocabulary, named, folder)
    bos = _special(model, "bos", vocabulary, named, folder)
    if content == byte_level_bytes() and {eos, bos} <= {None, END_OF_TEXT}:
        write_json(out / FILE, BYTE_FORMAT)
        return load_tokenizer(out)
    write_json(out / FILE, content)
    plain = load_tokenizer(out)
    marks: dict[str, Any] = {}
    eos_id = vocabulary.token_to_id(eos) if eos else plain.eos_id
    if eos and eos_id != plain.eos_id:
        marks["eos"] = eos
    if bos and vocabulary.token_to_id(bos) != eos_id:
        marks["bos"] = bos
    if named and not (_said_to_open(named) or _opens(vocabulary, vocabulary.token_to_id(bos or eos or ""))):
        marks[OPENS] = False
    if marks:
        write_json(out / FILE, {**content, MARKS: marks})
    return load_tokenizer(out)


@contextlib.contextmanager
def tokenizer_of(spec: str) -> Iterator[str]:
    """`spec`, or of a Hugging Face folder the place of its tokenizer as the model's run folder would have it.

    Texts that are made into tokens by it end with the token that the model's config names.
    """
    folder = Path(spec)
    values = read_json(folder / MODEL) if (folder / MODEL).is_file() and (folder / FILE).is_file() else None
    if not isinstance(values, dict) or "model_type" not in values:
        yield spec
        return
    with tempfile.TemporaryDirectory() as place:
        import_tokenizer(folder, Path(place), values)
        yield place


def copy_companions(folder: Path, out: Path) -> None:
    """Copy what stands beside a tokenizer.json, as it is."""
    for name in COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def _named(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, where there is one."""
    content = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return content if isinstance(content, dict) else {}


def _said_to_open(named: Mapping[str, Any]) -> bool:
    """Whether tokenizer_config.json says that a token opens a text; where `export` wrote it, that linscale did so."""
    return bool((named.get(MARKS) or {}).get(OPENS) or named.get("add_bos_token"))


def _opens(vocabulary: tokenizers.Tokenizer, bos_id: int | None) -> bool:
    """Whether the tokenizer itself puts that token in front of a text."""
    first: list[int] = vocabulary.encode("a").ids[:1]
    return first == [bos_id]


def _special(
    model: Mapping[str, Any], kind: str, vocabulary: tokenizers.Tokenizer, named: Mapping[str, Any], folder: Path
) -> str | None:
    """The token that ends ("eos") or opens ("bos") a text: by the model's config, the first of several; else by the
    tokenizer's."""
    number = model.get(f"{kind}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    if isinstance(number, int):
        token: str | None = vocabulary.id_to_token(number) if number >= 0 else None
        if token is None:
            raise UserError(f"{folder / MODEL}: {kind}_token_id = {number}: no token of {folder / FILE}")
        return token
    name = named.get(f"{kind}_token")
    name = name.get("content") if isinstance(name, dict) else name
    return name if isinstance(name, str) and vocabulary.token_to_id(name) is not None else None


def export_tokenizer(source: Path, out: Path, context: int) -> tuple[dict[str, Any], str]:
    """Write the tokenizer of the run folder `source` into `out` as transformers reads it.

    Returns the special tokens for the model's config, and the token that users must put in front of a text: "" where
    none does, or the tokenizer itself.
    """
    tokenizer = load_tokenizer(source)
    content = {key: value for key, value in read_json(source / FILE).items() if key != MARKS}
    byte = isinstance(tokenizer, ByteTokenizer)
    write_json(out / FILE, byte_level_bytes() if byte else _with_eos(content, tokenizer))
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    ids: dict[str, Any] = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    vocabulary = tokenizers.Tokenizer.from_file(str(out / FILE))
    if not (out / CONFIG).exists():
        names = {f"{kind}_token": vocabulary.id_to_token(ids[f"{kind}_token_id"]) for kind in ("bos", "eos")}
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "pad_token": names["eos_token"],
        }
        settings |= {MARKS: {OPENS: bool(tokenizer.opening)}}
        write_json(out / CONFIG, {**settings, "model_max_length": context, "clean_up_tokenization_spaces": False})
    if not (out / GENERATION).exists():
        write_json(out / GENERATION, {**ids, "pad_token_id": tokenizer.eos_id})
    own = bool(_named(source).get("add_bos_token")) or _opens(vocabulary, tokenizer.bos_id)
    return ids, str(vocabulary.id_to_token(tokenizer.bos_id)) if tokenizer.opening and not own else ""


def _with_eos(content: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer.json that holds the end-of-text token, which linscale adds on its own where there is none."""
    vocabulary = SubwordTokenizer._build(content, FILE)
    return content if vocabulary.id_to_token(tokenizer.eos_id) is not None else tokenizer.content


@cache
def _byte_level_bytes() -> str:
    """The byte tokenizer as byte-level BPE without merges: id = byte, 256 ends a text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's letters for bytes
    other = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(other)}
    found = tokenizers.Tokenizer(tokenizers.models.BPE({letters[byte]: byte for byte in range(256)}, []))
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    found.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)])
    text: str = found.to_str()
    return text


def byte_level_bytes() -> dict[str, Any]:
    """The byte tokenizer's tokenizer.json in Hugging Face's format."""
    found: dict[str, Any] = json.loads(_byte_level_bytes())
    return found
