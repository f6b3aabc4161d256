"""linscale import and linscale export: models from Hugging Face folders, and to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from linscale.adapt.huggingface import Dtype, export, import_folder
from linscale.cli.output import Json, file_size, print_json, print_table
from linscale.cli.session import Run

Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


def import_model(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Out,
    *,
    dtype: Dtype | None = None,
    json: Json = False,
) -> None:
    """Make a run folder of a LLaMA-family model, or of one that linscale exported, from a Hugging Face folder.

    Whatever is in the folder that would change an answer and is not supported is refused by name. The weights pass one
    tensor at a time.

    Args:
        folder: A folder with config.json, tokenizer.json and safetensors weights, in one file or in shards.
        out: The run folder to make; the model is its checkpoint at step 0.
        dtype: What to convert the weights to. By default they are kept as they are, to the bit.
    """
    _report(import_folder(folder, out, dtype), "Imported", json)


def export_model(
    run: Run,
    out: Out,
    *,
    dtype: Dtype | None = None,
    json: Json = False,
) -> None:
    """Write a trained model as a Hugging Face folder, with a model card.

    A LLaMA is written as transformers' own. Other architectures load with AutoModelForCausalLM after `import linscale`,
    or with trust_remote_code=True; transformers' generate, peft and lm-evaluation-harness work on them.

    Args:
        run: A run folder (its newest checkpoint), or one of its checkpoints.
        out: The folder to make.
        dtype: What to convert the weights to: matrices, and a LLaMA's vectors. By default they are kept as they are.
    """
    _report(export(run, out, dtype), "Exported", json)


def _report(out: Path, title: str, json: bool) -> None:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    if json:
        print_json({"folder": str(out), "bytes": {str(path.relative_to(out)): path.stat().st_size for path in files}})
        return
    rows = [(path.relative_to(out).as_posix(), file_size(path.stat().st_size)) for path in files]
    print_table(f"{title}: {out}", ("file", "size"), rows)
