"""transformers' trainer_state.json as a table: one row a step that was logged.

`loss` of its log is the training loss and becomes train_loss, so that no law takes it for the loss of held-out text:
that is eval_loss. flops are transformers' own estimate, total_flos, which only checkpoints and the end of a run say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.run_folder import read_json
from linscale.study.sources.table import Row, Table, lacking

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-\d+")
SPEED = re.compile(r"runtime|per_second")
NAMES = {
    "loss": "train_loss",
    "train_loss": "mean_train_loss",
    "num_input_tokens_seen": "tokens",
    "total_flos": "flops",
}
SHAPE = {
    "model_type": "arch",
    "hidden_size": "d_model",
    "n_embd": "d_model",
    "num_hidden_layers": "n_layers",
    "n_layer": "n_layers",
    "num_attention_heads": "n_heads",
    "n_head": "n_heads",
    "head_dim": "head_dim",
    "intermediate_size": "d_ff",
    "vocab_size": "vocab_size",
}
"""Fields of a model's config.json, and the columns they become."""
WANTED = ("tokens", "flops", "eval_loss", "total_params", "d_model")


def find(path: Path) -> list[Path]:
    """The state files that `path` is or holds, at most three folders down."""
    if path.is_file():
        return [path] if path.name.endswith(STATE) else []
    return sorted(file for depth in ("", "*/", "*/*/", "*/*/*/") for file in path.glob(depth + STATE))


def read(files: list[Path]) -> Table:
    """Every logged step of every run; a run is the folder that holds its checkpoint-* folders.

    Raises UserError for a file that is not such a state.
    """
    runs: dict[Path, list[tuple[Path, Mapping[str, Any]]]] = {}
    for file in files:
        state = read_json(file)
        if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
            raise UserError(f"{file}: has no log_history; expected a {STATE} of transformers")
        place = file.resolve().parent
        runs.setdefault(place.parent if CHECKPOINT.fullmatch(place.name) else place, []).append((file, state))
    rows = [row for place, states in runs.items() for row in _rows(place.name, states)]
    notes = lacking(rows, WANTED)
    if any(row.get("flops") is not None for row in rows):
        notes += ("flops are transformers' own estimate, 6 N D without embeddings; at checkpoints alone",)
    return Table(tuple(rows), f"trainer states of {len(runs)} run(s)", notes)


def _rows(run: str, states: list[tuple[Path, Mapping[str, Any]]]) -> list[Row]:
    """One run: the log of its last state, and what each state says of the step it was saved at."""
    states = sorted(states, key=lambda each: each[1].get("global_step") or 0)
    file, last = states[-1]
    model = _model(file.parent)
    rows: dict[int, dict[str, Any]] = {}
    for entry in last["log_history"]:
        step = int(entry.get("step") or 0)
        row = rows.setdefault(step, {"run": run, "step": step, "final": step == last.get("max_steps")} | model)
        summary = "total_flos" in entry  # of the whole run, written at its end
        for name, value in entry.items():
            if name == "step" or SPEED.search(name) or not isinstance(value, int | float):
                continue
            row[name if name == "train_loss" and not summary else NAMES.get(name, name)] = value
    for _, state in states:
        found = rows.get(int(state.get("global_step") or 0))
        if found is not None and state.get("total_flos"):
            found["flops"] = state["total_flos"]
    for row in rows.values():
        row["tokens"] = row.get("tokens") or None  # 0 where transformers did not count them
    return [rows[step] for step in sorted(rows)]


def _model(folder: Path) -> dict[str, Any]:
    """The shape in the config.json beside a state, and the parameters in its safetensors files."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    shape = {column: config[name] for name, column in SHAPE.items() if config.get(name) is not None}
    return shape | {"total_params": _stored_parameters(folder)}


def _stored_parameters(folder: Path) -> int | None:
    """Elements of every tensor in the safetensors files of a folder: a tied head is stored once."""
    total = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with open(file, "rb") as weights:
            header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for extent in tensor["shape"]:
                    size *= extent
                total += size
    return total or None
