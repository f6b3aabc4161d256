"""What a run begins with and learns from: other checkpoints, told by their content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linscale import checkpoint
from linscale.checkpoint.tensors import MODEL, parts
from linscale.config import UserError, fingerprint, parse, to_dict
from linscale.data.shards import TokenDataset
from linscale.data.tokenizer import Tokenizer, load_tokenizer
from linscale.models import LanguageModelConfig, ModelConfig
from linscale.run_folder import CONFIG, read_json
from linscale.train.config import RunConfig


@dataclass(frozen=True)
class Origin:
    """A checkpoint that a run reads."""

    path: Path
    manifest: dict[str, Any]

    @property
    def model(self) -> LanguageModelConfig:
        """Its model."""
        config: LanguageModelConfig = parse(
            ModelConfig, self.manifest["model"], source=str(self.path / checkpoint.MANIFEST)
        )
        return config

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises UserError where there is none."""
        return load_tokenizer(self.run)

    @property
    def run(self) -> Path:
        """The folder that holds its tokenizer."""
        return self.path if (self.path / checkpoint.TOKENIZER).is_file() else self.path.resolve().parent.parent


def find_origin(folder: str | Path, field: str) -> Origin:
    """The checkpoint that a folder is, or the newest one of a run folder. Raises UserError, by `field`, for others."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{field} = {str(folder)!r}: no such folder; expected a run folder or a checkpoint folder")
    if not (path / checkpoint.MANIFEST).exists():
        found = checkpoint.list_checkpoints(path)
        if not found:
            raise UserError(
                f"{field} = {str(folder)!r}: no checkpoints in it; expected a run folder or a checkpoint folder "
                "(`linscale import` makes a run folder of a Hugging Face folder)"
            )
        path = found[-1]
    return Origin(path, checkpoint.read_manifest(path))


def origins(config: RunConfig, dataset: Any) -> dict[str, dict[str, Any]]:
    """What config.json says of `train.start` and `train.teacher`: where they are, fingerprints of their content, the
    Hugging Face folder that they come from.

    Raises UserError for one that is not there, another model than `model`, a teacher that cannot teach it, or another
    tokenizer than the data's.
    """
    found = {}
    if config.train.start is not None:
        found["start"] = origin = find_origin(config.train.start, "train.start")
        _require_same_model(config, origin)
    if config.train.teacher is not None:
        found["teacher"] = find_origin(config.train.teacher.folder, "train.teacher.folder")
        _require_fitting(config, found["teacher"])
    for name, origin in found.items():
        if isinstance(dataset, TokenDataset):
            require_same_tokenizer(dataset, origin, f"train.{name}")
    return {
        name: {"path": origin.path.resolve().as_posix(), "fingerprint": _content(origin), "source": _source(origin)}
        for name, origin in found.items()
    }


def require_same_tokenizer(dataset: TokenDataset, origin: Origin, field: str) -> None:
    """Raises UserError for a corpus whose tokens are not those of a checkpoint."""
    if not dataset.tokenizer.same_tokens(origin.tokenizer):
        raise UserError(
            f"data.path = {str(dataset.folder)!r}: prepared with another tokenizer than that of {field}; prepare it "
            f"again with `linscale data prepare --tokenizer {origin.run}`"
        )


def _content(origin: Origin) -> str:
    """That of the weights and of what they mean."""
    files = parts(origin.manifest, MODEL)
    return fingerprint([origin.manifest["model"], *(origin.manifest["files"][name]["sha256"] for name in files)])


def _source(origin: Origin) -> dict[str, Any] | None:
    """What the first of the checkpoints that it goes back to says of a Hugging Face folder, where there is one."""
    settings = read_json(origin.run / CONFIG) if (origin.run / CONFIG).is_file() else {}
    found: dict[str, Any] | None = origin.manifest.get("source") or (settings.get("start") or {}).get("source")
    return found


def _require_same_model(config: RunConfig, origin: Origin) -> None:
    here, there = to_dict(config.model), to_dict(origin.model)
    fields = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    if fields:
        named = ", ".join(f"{name} = {there.get(name)!r} there, {here.get(name)!r} here" for name in fields)
        raise UserError(f"train.start = {str(config.train.start)!r}: has another model ({named}); expected the same")


def _require_fitting(config: RunConfig, origin: Origin) -> None:
    """A teacher of logits has the same vocabulary, one of attention the same layers."""
    assert config.train.teacher is not None
    logits = config.train.teacher.loss == "logits"
    fields = ("vocab_size",) if logits else ("n_layers", "d_model", "head_dim")
    for field in fields:
        there, here = getattr(origin.model, field), getattr(config.model, field)
        if there != here:
            raise UserError(
                f"train.teacher.folder = {config.train.teacher.folder!r}: its {field} is {there}, that of the model "
                f"{here}; with loss = {config.train.teacher.loss!r} they are expected to be equal"
            )
