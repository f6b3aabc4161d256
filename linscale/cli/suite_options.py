"""What can be chosen of the suites of `linscale evaluate`: a group for each, whose docstrings are the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from linscale.config import config

Mode = Literal["easy", "standard"]
Part = Literal["softmax", "linear", "mixers"]


@config
class RecallOptions:
    """suite recall"""

    sizes: tuple[Annotated[int, Field(ge=2)], ...] = (4, 16, 64)
    """How much is to be held."""
    examples: Annotated[int, Field(ge=1)] = 64
    """Sequences of each kind and size."""
    passkey_lengths: str = "256,1024,4096"
    """Tokens of a text with a pass key."""


@config
class TextOptions:
    """suites ppl and text"""

    text: tuple[Path, ...] = ()
    """Files or folders on this machine, in what forms `linscale data prepare` takes, or builtin:tinyshakespeare."""
    window: Annotated[int, Field(ge=1)] = 2048
    """Tokens of a window; longer ones than in training are welcome."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Tokens a window moves on; by default windows stand side by side."""


@config
class SetOptions:
    """suites ppl, csr, mmlu, needle, scrolls and single tasks"""

    data: Path | None = None
    """A folder of evaluation sets, looked into before those that ship: for LAMBADA, SciQ and the needle's essays,
    which do not (`linscale tasks prepare` makes one), and for scrolls."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """The first records of each set of questions alone (of each subject of MMLU)."""


@config
class NeedleOptions:
    """suite needle"""

    modes: tuple[Mode, ...] = ("easy", "standard")
    """easy: the text has question and answer together; standard: it has the answer."""
    lengths: str = "1000..16000x35"
    """Tokens of a prompt, such as 1000,2000 or 1000..16000x35, which is 35 at equal distances."""
    depths: str = "0..100x35"
    """Percent of the text before the needle."""
    filler: Path | None = None
    """The text around it, as `linscale data prepare` takes it; by default paul_graham_essays in --data."""


@config
class ScrollsOptions:
    """suite scrolls"""

    scrolls: tuple[str, ...] = ()
    """Its tasks, such as scrolls-qasper qmsum-val; by default all that have a file in --data."""
    context: str = "train"
    """Tokens of a prompt and its answer, such as 4096; longer documents keep their end. train: the length of training.
    none: documents are whole."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """The most tokens of an answer."""


@config
class HarnessOptions:
    """suite lm-eval:TASK"""

    include: tuple[Path, ...] = ()
    """Folders of task files (.yaml) of your own, which may read local data."""
    hub: bool = False
    """Let the harness fetch data from the Hugging Face Hub; without it, only what is on this machine is used."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; by default as the task has it."""


@config
class AblationOptions:
    """all suites"""

    without: tuple[Part, ...] = ()
    """Every task once more, with the outputs of these mixers set to zero: softmax shows what linear layers do by
    themselves, linear what softmax layers do, mixers (all of them) what is left where no token knows of another one."""


@config
class Options:
    """What can be chosen of every suite."""

    recall: RecallOptions = RecallOptions()
    text: TextOptions = TextOptions()
    sets: SetOptions = SetOptions()
    needle: NeedleOptions = NeedleOptions()
    scrolls: ScrollsOptions = ScrollsOptions()
    harness: HarnessOptions = HarnessOptions()
    ablation: AblationOptions = AblationOptions()
