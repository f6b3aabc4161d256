"""The README.md of an exported folder: how to load it, and where its weights come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from linscale.config import human, to_dict
from linscale.models import LanguageModelConfig
from linscale.models.count import arch, count_parameters
from linscale.run_folder import CONFIG, EVALUATIONS, METRICS, latest_records, read_json

RECIPE = (
    "seed", "length", "batch_tokens", "tokens", "documents", "lr", "betas", "eps", "weight_decay", "grad_clip",
    "schedule", "warmup_tokens", "decay_fraction", "min_lr_ratio",
)  # fmt: skip
"""Fields of a run's recipe that a card names, where they are there."""

LLAMA = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""
OTHER = """```python
import linscale  # pip install linscale; or leave this out and pass trust_remote_code=True below
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""


def model_card(config: LanguageModelConfig, manifest: Mapping[str, Any], run: Path, opening: str) -> str:
    """README.md of a checkpoint with this manifest; `run` is the run folder where what else is known of it stands.

    opening  the token that users must put in front of a text, or ""
    """
    settings = read_json(run / CONFIG) if (run / CONFIG).is_file() else {}
    name, total = settings.get("run") or run.name, count_parameters(config).total
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [linscale, {arch(config)}]",
        "---",
        "",
        f"# {name}",
        "",
        f"A language model of architecture {arch(config)} with {human(total)} parameters, exported by linscale.",
        "",
        LLAMA if arch(config) == "llama" else OTHER,
        "",
        *(
            [f"A text begins behind `{opening}`: put it in front of a prompt that opens a document.", ""]
            if opening
            else []
        ),
        "## Provenance",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _provenance(manifest, settings, run)),
        "",
        "## Config",
        "",
        "| Field | Value |",
        "|---|---|",
        *(f"| `{key}` | {value} |" for key, value in to_dict(config).items()),
        "",
    ]
    return "\n".join(lines)


def _provenance(manifest: Mapping[str, Any], settings: Mapping[str, Any], run: Path) -> Iterator[tuple[str, str]]:
    source = manifest.get("source")
    if source:
        yield _begun(source)
    else:
        if first := (settings.get("start") or {}).get("source"):
            yield _begun(first)
        yield "step", f"{manifest['step']:,}"
        yield "tokens", f"{manifest.get('tokens', 0):,}"
    if data := (settings.get("data") or {}).get("fingerprint"):
        yield "data fingerprint", f"`{data}`"
    if tokenizer := manifest.get("tokenizer"):
        yield "tokenizer fingerprint", f"`{tokenizer}`"
    train = {} if source else settings.get("train") or {}
    for field in RECIPE:
        if train.get(field) is not None:
            yield f"train.{field}", str(train[field])
    yield from _losses(run, manifest["step"])
    for field in ("code",) if source else ("precision", "torch", "code"):
        if value := settings.get(field):
            yield f"{'imported' if source else 'trained'} with {field}", f"`{value}`"
    for file, written in manifest["files"].items():
        if not file.startswith("optimizer"):
            yield f"sha256 of the checkpoint's {file}", f"`{written['sha256']}`"


def _begun(source: Mapping[str, Any]) -> tuple[str, str]:
    """The folder whose weights a model has, or began with; a seed drew what is new in a linearized one."""
    word = "imported" if source.get("seed") is None else "linearized"
    return f"{word} from", f"`{source['folder']}` ({source['model_type']}), which says how it was trained"


def _losses(run: Path, step: int) -> Iterator[tuple[str, str]]:
    """What was recorded at the step: the training loss, and every measure that is not a part of another."""
    for record in latest_records(run / METRICS, containing='"loss"'):
        if record.get("step") == step and record.get("metric") == "loss":
            yield "training loss (nats per token)", f"{record['value']:.4f}"
    for record in latest_records(run / EVALUATIONS, ("step", "task", "task_version", "metric")):
        if record.get("step") == step and isinstance(record.get("value"), float) and "." not in str(record["metric"]):
            yield f"{record.get('task')}: {record['metric']}", f"{record['value']:.4f}"
