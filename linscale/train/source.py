"""Where the sequences of a run come from: a prepared corpus, a task that makes them, or a set of them with classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.data.copying import Copying
from linscale.data.labelled import Labelled, LabelledReader
from linscale.data.loader import Batch, Loader, count_windows
from linscale.data.shards import QUICK_BYTES, TokenDataset
from linscale.distributed import Ranks
from linscale.evaluate.classes import ClassesTask
from linscale.evaluate.copying import CopyingTask
from linscale.evaluate.perplexity import Validation
from linscale.models import LanguageModel
from linscale.train.config import DataConfig, TrainConfig
from linscale.train.curriculum import Course


class Corpus:
    """Windows of a prepared corpus."""

    def __init__(self, data: TokenDataset) -> None:
        self.data, self.place = data, str(data.folder)

    @property
    def tokenizer(self) -> Any:
        """Of the text: a Tokenizer."""
        return self.data.tokenizer

    def verify(self) -> None:
        """Compare the checksums of a small corpus."""
        self.data.verify(at_most=QUICK_BYTES)

    def save(self, run: Path) -> None:
        """Put into a run folder what those who read it need."""
        self.data.tokenizer.save(run)

    def reader(self, recipe: TrainConfig, ranks: Ranks, sequences: int) -> Loader:
        """Batches of training. Raises UserError where a split is too short, the validation split too."""
        count_windows(self.data, "val", recipe.length, 1)
        return Loader(
            self.data, "train", length=recipe.length, sequences=sequences, seed=recipe.seed, rank=ranks.replica,
            world=ranks.replicas, documents=recipe.documents, unique=recipe.unique_tokens,
        )  # fmt: skip

    def scored(self, recipe: TrainConfig) -> int:
        """Targets of a step."""
        return recipe.batch_tokens

    def course(self, run: Path, recipe: TrainConfig, ranks: Ranks) -> None:
        """Text has no difficulty."""

    def validation(self, settings: Mapping[str, Any], ranks: Ranks) -> Validation:
        """What every checkpoint is measured by."""
        return Validation(self.data, settings, ranks)


class Made:
    """Sequences of a task."""

    def __init__(self, data: Copying) -> None:
        self.data, self.place = data, f"the task {data.task.kind!r}"

    @property
    def tokenizer(self) -> Any:
        """None: there is no text."""
        return None

    def verify(self) -> None:
        """Nothing: there are no files."""

    def save(self, run: Path) -> None:
        """Nothing: a task is all in the config."""

    def reader(self, recipe: TrainConfig, ranks: Ranks, sequences: int) -> MadeReader:
        """Batches of training, of the whole difficulty until another one is set."""
        return MadeReader(replace(self.data, rank=ranks.replica, world=ranks.replicas), sequences)

    def scored(self, recipe: TrainConfig) -> int:
        """Targets of a step."""
        return recipe.sequences * self.data.task.payload

    def course(self, run: Path, recipe: TrainConfig, ranks: Ranks) -> Course | None:
        """The curriculum of a run in this folder."""
        return None if recipe.curriculum is None else Course(recipe.curriculum, self.data.task.noise, run, ranks)

    def loss_at(
        self, model: LanguageModel, settings: Mapping[str, Any], ranks: Ranks, step: int, difficulty: int
    ) -> float:
        """What a look behind a step finds, by all ranks: the loss on fresh sequences of a difficulty."""
        count = settings["train"]["curriculum"]["sequences"]
        data = replace(self.data, rank=ranks.replica, world=ranks.replicas)
        task = CopyingTask(data, difficulty, count, settings["precision"], 1 + step * count, ranks)
        return task.run(model)[0].value

    def validation(self, settings: Mapping[str, Any], ranks: Ranks) -> CopyingTask:
        """What every checkpoint is measured by: the whole task, on the sequences that `validation_tokens` are."""
        task, recipe = self.data.task, settings["train"]
        data = replace(self.data, rank=ranks.replica, world=ranks.replicas)
        sequences = recipe["validation_tokens"] // task.length()
        return CopyingTask(data, task.noise, sequences, settings["precision"], ranks=ranks)


class MadeReader:
    """Batches of a task by their numbers; `noise`, how hard they are, may be set between two of them."""

    def __init__(self, data: Copying, sequences: int) -> None:
        self.data, self.sequences, self.noise = data, sequences, data.task.noise

    def batch(self, step: int) -> Batch:
        """The batch of `step` >= 0."""
        return self.data.batch(step, self.sequences, self.noise)

    def windows_of(self, step: int) -> np.ndarray:
        """The numbers of its sequences."""
        share = self.sequences // self.data.world
        return step * self.sequences + self.data.rank * share + np.arange(share)


class Classes:
    """Sequences with classes, of a file."""

    def __init__(self, data: Labelled) -> None:
        self.data, self.place = data, str(data.path)

    @property
    def tokenizer(self) -> Any:
        """None: there is no text."""
        return None

    def verify(self) -> None:
        """Nothing: all was looked at when it was read."""

    def save(self, run: Path) -> None:
        """Nothing: there is no text to be made of tokens."""

    def reader(self, recipe: TrainConfig, ranks: Ranks, sequences: int) -> LabelledReader:
        """Batches of training."""
        return LabelledReader(self.data.shared_by(ranks.replica, ranks.replicas), sequences, recipe.seed)

    def scored(self, recipe: TrainConfig) -> int:
        """Targets of a step."""
        return recipe.sequences

    def course(self, run: Path, recipe: TrainConfig, ranks: Ranks) -> None:
        """A set has no difficulty."""

    def validation(self, settings: Mapping[str, Any], ranks: Ranks) -> ClassesTask:
        """What every checkpoint is measured by: the first sequences of the validation split."""
        sequences = settings["train"]["validation_tokens"] // self.data.length
        data = self.data.shared_by(ranks.replica, ranks.replicas)
        return ClassesTask(data, sequences, settings["precision"], ranks)


Source = Corpus | Made | Classes
Reader = Loader | MadeReader | LabelledReader


def open_source(data: DataConfig, recipe: TrainConfig) -> Source:
    """What a run reads. Raises UserError for a corpus that is not whole, and for sequences of another length."""
    if data.task is not None:
        return Made(Copying(data.task, recipe.seed))
    if data.labelled is not None:
        found = Labelled.open(Path(data.labelled))
        if found.length != recipe.length:
            raise UserError(f"train.length = {recipe.length}: the sequences of {found.path} have {found.length} tokens")
        return Classes(found)
    assert data.path is not None
    return Corpus(TokenDataset.open(Path(data.path)))
