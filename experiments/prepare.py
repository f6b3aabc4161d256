"""Data of the experiments, made once.

    python experiments/prepare.py characters data/characters [TEXT]   # a token a character; by default Shakespeare
    python experiments/prepare.py cifar data/cifar.npz FOLDER         # grey CIFAR-10, a token a pixel

characters: split as nanoGPT does, the first nine tenths of the text for training, the rest for validation, each one
document (arXiv 2402.14746 compares on that split). cifar: FOLDER holds the published batches for Python
(`data_batch_1` to `_5`, `test_batch`), or a subset as JPEGs in `cifar10_jpeg_{train,test}.npz` (`jpeg`, all bytes end
to end; `offsets`; `labels`; `classes`), for which Pillow is needed. Grey is the luma of ITU-R BT.601, as in the Long
Range Arena.
"""

from __future__ import annotations

import io
import itertools
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from linscale.config import UserError, fingerprint, to_dict
from linscale.data.documents import read_documents
from linscale.data.inputs import find_sources
from linscale.data.manifest import MANIFEST, Manifest, SourceRecord, tokenizer_record
from linscale.data.tokenizer import SubwordTokenizer
from linscale.data.writer import SplitState, SplitWriter
from linscale.run_folder import code_version, write_json

LUMA = np.array([0.299, 0.587, 0.114])
TRAIN_SHARE = 0.9


def characters(out: Path, text: str) -> None:
    """A prepared corpus of a text in two documents, with a tokenizer of its characters."""
    if (out / MANIFEST).exists():
        return
    vocab = {character: number for number, character in enumerate(sorted(set(text)))}
    stock = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    stock.decoder = tokenizers.decoders.Fuse()
    tokenizer = SubwordTokenizer(json.loads(stock.to_str()), "characters")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out)
    cut = int(TRAIN_SHARE * len(text))
    splits = {}
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        writer = SplitWriter(out, split, tokenizer, SplitState())
        writer.add(np.array([vocab[character] for character in part], tokenizer.dtype), len(part.encode()))
        splits[split] = writer.finish()
    manifest = Manifest(
        code_version=code_version(),
        dtype="uint16",
        tokenizer=tokenizer_record(tokenizer),
        settings={"tokenizer": "characters", "train_share": TRAIN_SHARE},
        inputs_fingerprint=fingerprint(text),
        sources=(SourceRecord(name="text", bytes=len(text.encode())),),
        left_out=(),
        splits=splits,
    )
    write_json(out / MANIFEST, to_dict(manifest))


def shakespeare() -> str:
    """The text that ships with the package."""
    (source,), _ = find_sources(["builtin:tinyshakespeare"])
    return "".join(document.text for document in read_documents(source, text_field="text", document_bytes=None))


def cifar(out: Path, folder: Path) -> None:
    """An .npz file of grey images as sequences, for `data.labelled`."""
    if (folder / "data_batch_1").exists():
        names = {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]}
        splits = {split: _from_batches([folder / name for name in each]) for split, each in names.items()}
        meta = folder / "batches.meta"
        classes = _unpickled(meta)["label_names"] if meta.exists() else [str(number) for number in range(10)]
    elif (folder / "cifar10_jpeg_train.npz").exists():
        files = {"train": folder / "cifar10_jpeg_train.npz", "val": folder / "cifar10_jpeg_test.npz"}
        splits = {split: _from_jpegs(path) for split, path in files.items()}
        classes = np.load(files["train"])["classes"].tolist()
    else:
        raise UserError(f"{folder}: neither data_batch_1 of CIFAR-10 for Python nor cifar10_jpeg_train.npz is there")
    arrays: dict[str, Any] = {"symbols": np.array(256), "classes": np.array([str(each) for each in classes])}
    for split, (images, labels) in splits.items():
        arrays |= {split: images, f"{split}_labels": labels}
        print(f"{split}: {len(images)} images of {images.shape[1]} pixels")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)


def _unpickled(path: Path) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")


def _from_batches(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    batches = [_unpickled(path) for path in paths]
    colours = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 1024)  # planes of red, green, blue
    return _grey(colours.transpose(0, 2, 1)), np.concatenate([np.array(batch["labels"]) for batch in batches])


def _from_jpegs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    file = np.load(path)
    jpeg, offsets = file["jpeg"].tobytes(), file["offsets"]
    spans = itertools.pairwise(offsets)
    images = [np.asarray(Image.open(io.BytesIO(jpeg[start:end])).convert("RGB")) for start, end in spans]
    return _grey(np.stack(images).reshape(len(images), 1024, 3)), file["labels"].astype(np.int64)


def _grey(colours: np.ndarray) -> np.ndarray:
    """(N, 1024, 3) of 0 to 255 -> (N, 1024), rounded."""
    return np.rint(colours.astype(np.float64) @ LUMA).astype(np.uint8)


def main() -> None:
    match sys.argv[1:]:
        case ["characters", out]:
            characters(Path(out), shakespeare())
        case ["characters", out, text]:
            characters(Path(out), Path(text).read_text(encoding="utf-8"))
        case ["cifar", out, folder]:
            cifar(Path(out), Path(folder))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"prepare.py: {error}")
