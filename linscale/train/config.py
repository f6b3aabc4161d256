"""What a training run is: the model, the data, the recipe."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic

from linscale.config import config, human
from linscale.data.copying import CopyingConfig
from linscale.models import LinearizedConfig, ModelConfig, RecurrentTransformerConfig
from linscale.train.curriculum import Curriculum
from linscale.train.teacher_config import TeacherConfig

Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Positive = Annotated[int, pydantic.Field(gt=0)]
Natural = Annotated[int, pydantic.Field(ge=0)]
Fraction = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]

LOG_SPACING_START = 0.02  # of the run: the first checkpoint of log spacing, 1.7 decades of compute before the last


@config
class TrainConfig:
    """The recipe of one run, in tokens: steps, accumulation and warm-up steps are derived.

    The defaults are those of arXiv 2406.16690 (AdamW, constant rate 3e-4, weight decay 0.1) with the betas, eps
    and clipping of the code it was trained with.
    """

    tokens: Positive
    """Tokens to train on; the run takes tokens // batch_tokens steps."""
    batch_tokens: Positive
    """Tokens per optimizer step; a multiple of `length`."""
    length: Positive
    """Tokens per sequence."""
    micro_batch: Positive | None = None
    """Sequences per forward pass of a rank; divides batch_tokens / length. Unset, or more than a rank's share of the
    batch: all of its share at once."""
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights and of the order of the data."""
    unique_tokens: Positive | None = None
    """Tokens of text that there are to train on, drawn from the training split by the seed and read again and again;
    the first of a larger number are those of a smaller one. By default all of the split."""
    start: Annotated[str, pydantic.Field(min_length=1)] | None = None
    """Checkpoint, or run folder (the newest one of it), whose weights the run begins with, as step 0 of its own; by
    default they are drawn by the seed."""
    teacher: TeacherConfig | None = None
    """A frozen model to learn from; by default the text alone is learnt."""
    trained: Literal["all", "mixers", "new"] = "all"
    """The weights that are trained, the others stay as they are. mixers: of layers without softmax. new: what these
    have and softmax attention has not, in a linearized model."""
    lr: Annotated[float, pydantic.Field(gt=0.0)] = 3e-4
    """Peak learning rate."""
    new_lr: Annotated[float, pydantic.Field(gt=0.0)] | None = None
    """Peak learning rate of the new weights of a linearized model; by default the same."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    eps: Annotated[float, pydantic.Field(gt=0.0)] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, pydantic.Field(ge=0.0)] = 0.1
    """Decoupled weight decay, on the matrices of linear maps and embeddings only."""
    grad_clip: Annotated[float, pydantic.Field(ge=0.0)] = 1.0
    """Largest norm of the gradient, longer ones are scaled down; 0 turns clipping off."""
    dropout: Annotated[float, pydantic.Field(ge=0.0, lt=1.0)] = 0.0
    """Share of what mixers and MLPs add, of embeddings and of softmax weights that is left out, while training."""
    max_skipped: Natural = 10
    """Steps in a row that may leave the weights as they are because the loss or the gradient is not finite; the next
    one stops the run."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """Learning rate after warm-up: constant, half a cosine down, or constant and then linearly down (wsd)."""
    warmup_tokens: Natural = 0
    """Tokens over which the learning rate rises linearly to its peak."""
    decay_fraction: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.2
    """wsd: the part of the run, at its end, over which the learning rate falls."""
    min_lr_ratio: Fraction = 0.1
    """cosine and wsd: the last learning rate over the peak."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forward and backward pass; weights stay in fp32. auto: bf16 autocast on CUDA, fp32 on the CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. auto: CUDA when there is a device, else the CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile every block with torch.compile, which fuses what stands between matrix products. auto: where the Triton
    kernels run."""
    capture: Literal["auto", "on", "off"] = "off"
    """Forward and backward pass as one CUDA graph, for small models, whose kernels a host launches slower than a GPU
    runs them. One GPU, and one pass a step. auto: where these and nothing else stand in the way."""
    activation_checkpointing: Literal["none", "cheap", "full"] = "none"
    """What the backward pass computes again instead of keeping it. cheap: all but matrix products and attention, for a
    third of the memory at a few percent of the time where blocks are compiled. full: all but what enters each block, a
    third more work."""
    sequence_parallel: Positive = 1
    """Ranks that share a sequence, each holding length / sequence_parallel of its tokens; the context that fits grows
    with them. The number of ranks that torchrun starts is a multiple of it."""
    documents: bool = False
    """Keep documents apart: no information crosses from one to the next inside a sequence."""
    checkpoints: Positive = 20
    """Checkpoints, the last step included; each is evaluated on the validation split. Fewer where steps coincide."""
    checkpoint_spacing: Literal["linear", "log"] = "log"
    """Where they lie: evenly over the steps, or evenly over the logarithm of compute, from 2% of the run."""
    validation_tokens: Positive = 1_048_576
    """Tokens of the validation split to evaluate each checkpoint on; all of it when it has fewer."""
    keep_optimizer: Literal["last", "all"] = "last"
    """Checkpoints that keep their optimizer state. last: the two newest while training, the last one afterwards."""
    log_every: Positive = 10
    """Steps between two readings of the device (sooner when a second has passed); every step is recorded."""
    curriculum: Curriculum | None = None
    """How the difficulty of a generated task grows; by default all of the training is at its own."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Tools that get a copy of the metrics as they come, each of them a package to install."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.batch_tokens % self.length:
            raise ValueError(f"batch_tokens = {self.batch_tokens} must be a multiple of length = {self.length}")
        if self.micro_batch and self.sequences % self.micro_batch:
            raise ValueError(
                f"micro_batch = {self.micro_batch} must divide batch_tokens / length = {self.sequences} sequences"
            )
        if self.length % self.sequence_parallel:
            raise ValueError(f"sequence_parallel = {self.sequence_parallel} must divide length = {self.length}")
        if self.sequence_parallel > 1 and self.documents:
            raise ValueError(
                f"sequence_parallel = {self.sequence_parallel} with documents = true: packed documents are not cut "
                "between ranks; set documents = false, or sequence_parallel = 1 (FSDP alone takes any number of ranks)"
            )
        if self.trained != "all" and self.start is None:
            raise ValueError(f"trained = {self.trained!r}: the other weights would stay as the seed drew them; "
                             "set start, a checkpoint to begin with")  # fmt: skip
        if self.unique_tokens is not None and self.unique_tokens < self.length:
            raise ValueError(f"unique_tokens = {self.unique_tokens} must be at least length = {self.length}")
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens = {self.tokens} must be at least batch_tokens = {self.batch_tokens}")
        if self.validation_tokens < self.length:
            raise ValueError(f"validation_tokens = {self.validation_tokens} must be at least length = {self.length}")
        if self.warmup_tokens >= self.tokens:
            raise ValueError(f"warmup_tokens = {self.warmup_tokens} must be fewer than tokens = {self.tokens}")
        if self.schedule == "wsd" and self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"decay_fraction = {self.decay_fraction} and warmup_tokens = {human(self.warmup_tokens)} overlap: "
                f"together they take {self.warmup_steps + self.decay_steps} of {self.steps} steps"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.tokens // self.batch_tokens

    @property
    def sequences(self) -> int:
        """Sequences per optimizer step."""
        return self.batch_tokens // self.length

    @property
    def micro_sequences(self) -> int:
        """Sequences per forward pass."""
        return self.micro_batch or self.sequences

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes per optimizer step, of a rank that trains alone; parallel.split_batch is for any number."""
        return self.batch_tokens // (self.length * self.micro_sequences)

    @property
    def warmup_steps(self) -> int:
        """Steps until the learning rate is at its peak."""
        return math.ceil(self.warmup_tokens / self.batch_tokens)

    @property
    def decay_steps(self) -> int:
        """wsd: steps of the final decay, at least one."""
        return max(1, round(self.decay_fraction * self.steps))


@config
class DataConfig:
    """The data of a run."""

    path: Annotated[str, pydantic.Field(min_length=1)] | None = None
    """Folder prepared by `linscale data prepare`."""
    task: CopyingConfig | None = None
    """Instead of a folder: sequences that are made."""
    labelled: Annotated[str, pydantic.Field(min_length=1)] | None = None
    """Instead of a folder: an .npz file of sequences with classes."""

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if [self.path, self.task, self.labelled].count(None) != 2:
            raise ValueError(
                "data needs one of path, a folder made by `linscale data prepare`, task, and labelled, an .npz file"
            )
        return self


@config
class RunConfig:
    """One run: what a training TOML holds."""

    name: Name
    """Name of the run in its records, and of its folder."""
    study: str | None = None
    """Study the run belongs to."""
    size: str | None = None
    """Label of the model's size, such as 160M."""
    model: ModelConfig
    """The architecture (`arch`) and its shape."""
    data: DataConfig
    """Where the tokens come from."""
    train: TrainConfig
    """The recipe."""

    @pydantic.model_validator(mode="after")
    def _made(self) -> RunConfig:
        """A task, its curriculum and its recipe."""
        task, curriculum, train = self.data.task, self.train.curriculum, self.train
        if self.data.path is None and train.unique_tokens is not None:
            raise ValueError(
                f"train.unique_tokens = {train.unique_tokens}: expected data.path, a text to draw them from"
            )
        if self.data.path is None and train.teacher is not None:
            raise ValueError("train.teacher: learns from text; expected data.path")
        if self.data.path is None and (train.documents or train.sequence_parallel > 1):
            name = "task" if task else "labelled"
            raise ValueError(f"data.{name}: its sequences are no documents, and ranks do not share them; expected "
                             "train.documents = false and train.sequence_parallel = 1")  # fmt: skip
        if task is None:
            if curriculum is not None:
                raise ValueError("train.curriculum: text has no difficulty; expected data.task, or no curriculum")
            return self
        if train.length != task.length():
            raise ValueError(
                f"train.length = {train.length}: expected the {task.length()} tokens of a sequence of data.task, "
                f"{task.noise} of noise and twice {task.payload} of payload"
            )
        if self.model.vocab_size < task.symbols:
            raise ValueError(f"model.vocab_size = {self.model.vocab_size}: the task has {task.symbols} symbols")
        if curriculum is not None and task.noise < curriculum.start:
            raise ValueError(
                f"data.task.noise = {task.noise}: less than train.curriculum.start = {curriculum.start}, with which "
                "training begins; choose a lower start or more noise"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _new(self) -> RunConfig:
        """Weights that only a linearized model has."""
        if self.model.arch != "linearized" and (self.train.trained == "new" or self.train.new_lr is not None):
            field = (
                f"trained = {self.train.trained!r}" if self.train.new_lr is None else f"new_lr = {self.train.new_lr}"
            )
            raise ValueError(
                f"train.{field}: a model of arch {self.model.arch!r} has no new weights; expected 'linearized'"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _pieces(self) -> RunConfig:
        """What cannot be shared between ranks along a sequence."""
        choice = self.model.linear.in_one_piece if isinstance(self.model, LinearizedConfig) else None
        if choice and self.train.sequence_parallel > 1:
            raise ValueError(
                f"train.sequence_parallel = {self.train.sequence_parallel}: model.linear.{choice} reads a "
                "sequence as one piece; set it to 1 (FSDP alone takes any number of ranks)"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _windows(self) -> RunConfig:
        """A recurrent transformer and the texts it is trained on."""
        if not isinstance(self.model, RecurrentTransformerConfig):
            return self
        block, rows, length = self.model.recurrence.block, self.model.recurrence.table, self.train.length
        if 2 * block > length:
            raise ValueError(
                f"model.recurrence.block = {block}: a window of {2 * block} tokens is longer than train.length = "
                f"{length}; choose a block up to {length // 2} (0: softmax over the whole text) or longer texts"
            )
        if rows is not None and rows < length:
            raise ValueError(f"model.recurrence.table = {rows}: expected a row for each of train.length = {length}")
        if block and self.train.sequence_parallel > 1:
            raise ValueError(
                f"train.sequence_parallel = {self.train.sequence_parallel}: a recurrent transformer reads its windows "
                "one after another; set it to 1 (FSDP alone takes any number of ranks)"
            )
        return self


def checkpoint_steps(train: TrainConfig) -> list[int]:
    """The steps after which a checkpoint is written, ascending; the last step is always among them.

    Log spacing is what a curve of loss against log compute wants: as many points in each decade.
    """
    steps, count = train.steps, min(train.checkpoints, train.steps)
    if count == 1:
        return [steps]
    if train.checkpoint_spacing == "linear":
        return [round(steps * k / count) for k in range(1, count + 1)]
    first = max(1.0, LOG_SPACING_START * steps)
    ratio = steps / first
    return sorted({round(first * ratio ** (k / (count - 1))) for k in range(count)})
