"""The plan of a study: which runs a study file asks for, and the bill, before anything is trained or allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from linscale.config import config, load_toml, parse, to_dict
from linscale.data.prepare import PrepareOptions
from linscale.models import SIZES, ModelConfig, Recurrence, preset
from linscale.models.count import count_parameters, flops_per_token, paper_flops_per_step, paper_parameters
from linscale.study.envelope_fit import FitConfig
from linscale.study.laws import PFLOP_S_DAY
from linscale.study.pac_study import require_amounts
from linscale.train.config import DataConfig, Name, RunConfig, TrainConfig, checkpoint_steps

Arch = Literal["llama", "tnl", "hgrn2", "cosformer2", "recurrent_transformer"]

MASTER_BYTES = 4  # weights are kept in fp32
OVERHEAD_FLOPS = 300_000  # a token's calls and elementwise work, some 5 us of a core of 60 GFLOP/s
OPTIMIZER_BYTES = 8  # AdamW's two moments in fp32; kept in the two newest checkpoints while training


@config
class SizeConfig:
    """One rung of the ladder, for all architectures or for some."""

    name: Name
    "Label of the rung; names the runs."
    shape: str | None = None
    "A published size such as 160M or 1B-2048x18. Instead of d_model and n_layers."
    d_model: PositiveInt | None = None
    "Width."
    n_layers: PositiveInt | None = None
    "Depth."
    head_dim: PositiveInt = 128
    "Width of a head."
    d_ff: PositiveInt | None = None
    "Inner width of the GLU; by default 8/3 · d_model rounded up to a multiple of 256."
    archs: tuple[Arch, ...] | None = None
    "The architectures that have this rung; by default all of the study."
    tokens: PositiveInt | None = None
    "Tokens for this rung, instead of train.tokens."
    unique_tokens: PositiveInt | None = None
    "Tokens of text for this rung, instead of train.unique_tokens."
    length: PositiveInt | None = None
    "Tokens per sequence for this rung, instead of train.length; batch_tokens stays."
    batch_tokens: PositiveInt | None = None
    "Tokens per optimizer step for this rung, instead of train.batch_tokens."
    micro_batch: PositiveInt | None = None
    "Sequences per forward pass for this rung, instead of train.micro_batch."
    lr: PositiveFloat | None = None
    "Learning rate for this rung, instead of train.lr."
    warmup_tokens: NonNegativeInt | None = None
    "Warm-up of this rung, instead of train.warmup_tokens."
    seeds: tuple[NonNegativeInt, ...] | None = None
    "Seeds of this rung, instead of the study's."

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if self.shape is not None and self.shape not in SIZES:
            raise ValueError(f"shape = {self.shape!r}: expected one of {', '.join(SIZES)}")
        own = [self.d_model, self.n_layers, self.d_ff, None if self.head_dim == 128 else self.head_dim]
        explicit = self.d_model is not None and self.n_layers is not None
        if (self.shape is None and not explicit) or (self.shape is not None and any(own)):
            raise ValueError(f"size {self.name!r} needs either shape alone, or d_model and n_layers")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError(f"seeds = {list(self.seeds)} of size {self.name!r}: expected one or more, all different")
        return self


@config
class ModelOptions:
    """What all models of the study share."""

    vocab_size: PositiveInt | None = None
    "Rows of the embedding; by default the tokenizer's vocabulary."
    softmax_every: NonNegativeInt = 0
    "A hybrid: one layer in this many is softmax attention."
    init_std: PositiveFloat = 0.02
    "Standard deviation of fresh matrices."
    recurrence: Recurrence = Recurrence()
    "The windows of recurrent transformers."


@config
class StudyData:
    """Where the text comes from: a prepared folder, or inputs that the study prepares into its own folder."""

    path: str | None = None
    "Folder made by `linscale data prepare`."
    inputs: tuple[str, ...] = ()
    "Text files, folders, URLs, hf:NAME, or builtin:tinyshakespeare; prepared once into <study>/data."
    tokenizer: str = "byte"
    "For inputs: byte, bpe:SIZE, or the path of a tokenizer.json."
    options: PrepareOptions = PrepareOptions()
    "For inputs: how text becomes a corpus."

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (not self.inputs):
            raise ValueError("data needs either path, a folder made by `linscale data prepare`, or inputs")
        return self


@config
class SampleConfig:
    """The continuation that each architecture's best run writes at the end."""

    prompt: Annotated[str, Field(min_length=1)] = "The "
    "The text to continue."
    max_tokens: PositiveInt = 200
    "Length of the continuation."
    temperature: Annotated[float, Field(ge=0)] = 0.8
    "0 is greedy."


@config
class StudyConfig:
    """What a study file holds: every architecture at every size, on the same data, by the same recipe."""

    name: Name
    "Names the study's folder."
    archs: tuple[Arch, ...] = ("llama", "tnl", "hgrn2", "cosformer2")
    "Architectures."
    sizes: tuple[SizeConfig, ...]
    "The ladder."
    seeds: tuple[NonNegativeInt, ...] = (0,)
    "Every rung is trained once with each."
    data: StudyData
    "The corpus."
    train: TrainConfig
    "The recipe of every run; train.seed is replaced by `seeds`."
    model: ModelOptions = ModelOptions()
    "What all models share."
    fit: FitConfig = FitConfig()
    "How the laws are fitted."
    sample: SampleConfig = SampleConfig()
    "The samples at the end."

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for field, values in (("archs", self.archs), ("sizes", [s.name for s in self.sizes]), ("seeds", self.seeds)):
            if not values:
                raise ValueError(f"{field} is empty: expected at least one")
            twice = [value for value in dict.fromkeys(values) if list(values).count(value) > 1]
            if twice:
                raise ValueError(f"{field} names {twice[0]!r} twice")
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study with its price."""

    config: RunConfig
    params: int
    """N without embeddings, by the paper's formula."""
    total_params: int
    compute: float
    """Training FLOPs by the paper's closed form, which the laws use."""
    exact_flops: float
    """Training FLOPs of every matrix product, head included."""
    disk_bytes: int
    """Checkpoints at their most: weights of all, optimizer states of two."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def arch(self) -> str:
        return self.config.model.arch

    @property
    def work(self) -> float:
        """What its time is about proportional to: FLOPs, and for toy models the rest that every token costs."""
        return self.exact_flops + OVERHEAD_FLOPS * self.config.train.steps * self.config.train.batch_tokens

    @property
    def pflop_s_days(self) -> float:
        return self.compute / PFLOP_S_DAY


def load_study(path: str | Path) -> StudyConfig:
    """Read a study file. Raises UserError naming every problem in it, and shapes that do not fit an architecture.

    And where no run could lead to the law that it asks for.
    """
    study: StudyConfig = load_toml(path, StudyConfig)
    runs = planned_runs(study, vocab_size=study.model.vocab_size or 256, data_path="-")
    if study.fit.law == "pac":
        require_amounts(runs, str(path))
    return study


def planned_runs(study: StudyConfig, *, vocab_size: int, data_path: str) -> list[PlannedRun]:
    """Every run of the study, by architecture, size and seed. Builds no model.

    vocab_size  what study.model.vocab_size leaves open
    """
    runs = []
    for arch in study.archs:
        for size in study.sizes:
            if size.archs is None or arch in size.archs:
                seeds = size.seeds or study.seeds
                runs += [_planned_run(study, arch, size, seed, vocab_size, data_path) for seed in seeds]
    return runs


def _planned_run(
    study: StudyConfig, arch: str, size: SizeConfig, seed: int, vocab_size: int, data_path: str
) -> PlannedRun:
    model = _model_config(study.model, arch, size, vocab_size)
    own = ("tokens", "unique_tokens", "length", "batch_tokens", "micro_batch", "lr", "warmup_tokens")
    changes = {name: getattr(size, name) for name in own if getattr(size, name) is not None}
    recipe = {**to_dict(study.train), "seed": seed, **changes}
    train: TrainConfig = parse(TrainConfig, recipe, source=f"size {size.name!r}: train")
    name = f"{arch}-{size.name}" + (f"-s{seed}" if len(size.seeds or study.seeds) > 1 else "")
    data = DataConfig(path=data_path)
    parts = {"name": name, "study": study.name, "size": size.name, "data": to_dict(data)}
    whole = {**parts, "model": to_dict(model), "train": to_dict(train)}
    run: RunConfig = parse(RunConfig, whole, source=f"size {size.name!r}")
    total, tokens = count_parameters(model).total, train.steps * train.batch_tokens
    optimizers = len(checkpoint_steps(train)) if train.keep_optimizer == "all" else 2
    return PlannedRun(
        config=run,
        params=paper_parameters(model),
        total_params=total,
        compute=paper_flops_per_step(model, train.sequences, train.length) * train.steps,
        exact_flops=flops_per_token(model, "train", train.length) * tokens,
        disk_bytes=total * (MASTER_BYTES * len(checkpoint_steps(train)) + OPTIMIZER_BYTES * optimizers),
    )


def _model_config(options: ModelOptions, arch: str, size: SizeConfig, vocab_size: int) -> ModelConfig:
    if size.shape is not None:
        shape = to_dict(preset(arch, size.shape))
    else:
        names = ("d_model", "n_layers", "head_dim", "d_ff")
        shape = {"arch": arch, **{name: getattr(size, name) for name in names}}
    shared = {**to_dict(options), "vocab_size": options.vocab_size or vocab_size}
    if arch != "recurrent_transformer":
        del shared["recurrence"]
    model: ModelConfig = parse(ModelConfig, {**shape, **shared}, source=f"size {size.name!r}")
    return model
