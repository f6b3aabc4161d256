"""Datasets in the layout of the Hugging Face Hub, there or in a folder, streamed by the `datasets` library.

Every data file of the split is one source, so that a preparation that is resumed passes over whole files.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from linscale.config import UserError
from linscale.data.faults import LOOK_UP_WAITS_S, fault, persist
from linscale.data.sources import Source, UnavailableInputError, require_content

KIND = "dataset"
ROWS = 64
"""Taken from the library at a time."""
NAMING = "expected hf:NAME[@REVISION][:CONFIG][:SPLIT]"
AGAIN = "; run the same command again to go on from there"


@dataclass(frozen=True)
class DatasetFile(Source):
    """One data file of a split. `text_bytes` is about how much text it holds."""

    text_bytes: int
    split: _Split
    number: int

    def texts(self, text_field: str) -> Iterator[Any]:
        """What the column `text_field` holds, row by row. Raises UserError naming the columns where it is missing."""
        stream = self.split.stream(self.name, text_field)
        try:
            part = stream.shard(num_shards=self.split.files, index=self.number).with_format("arrow")
            for rows in part.iter(batch_size=ROWS):
                if text_field not in rows.column_names:
                    raise _no_column(self.name, text_field, rows.column_names)
                yield from rows[text_field].to_pylist()
        except UserError:
            raise
        except Exception as error:  # of whatever library reads this format
            text, transient = fault(error)
            raise UserError(f"{self.name}: {text}{AGAIN if transient else ''}") from None


@dataclass
class _Split:
    """A split of a dataset that is open, of which one column is read."""

    builder: Any
    name: str
    files: int
    _stream: Any = None

    def stream(self, source: str, text_field: str) -> Any:
        """The rows of the split. Of a format that is stored by columns, only `text_field` is fetched."""
        if self._stream is not None:
            return self._stream
        stream = self._opened(source)
        if stream.column_names is not None and text_field not in stream.column_names:
            raise _no_column(source, text_field, stream.column_names)
        if getattr(self.builder.config, "columns", ()) is None:
            self.builder.config.columns = [text_field]
            stream = self._opened(source)
        if stream.num_shards != self.files:
            raise UserError(f"{source}: split '{self.name}' has {self.files} files but {stream.num_shards} parts, "
                            "which cannot be streamed file by file; give its files as inputs")  # fmt: skip
        self._stream = stream
        return stream

    def _opened(self, source: str) -> Any:
        opened = partial(self.builder.as_streaming_dataset, split=self.name)
        return persist(opened, LOOK_UP_WAITS_S, f"{source}: ", UserError, AGAIN)


class _Name(NamedTuple):
    """The parts of an input; `first` and `second` are what follows the dataset's name."""

    dataset: str
    revision: str | None
    first: str
    second: str


def dataset_files(name: str, spec: str) -> Sequence[DatasetFile]:
    """The data files of the split that the input `name`, 'hf:' and `spec`, names, in order.

    A single name after the dataset's is a config, or else a split. Raises UserError when `datasets` is not installed,
    the dataset, revision, config or split does not exist (naming those that do), the Hub is out of reach, and where a
    config or split has to be named.
    """
    try:
        import datasets
    except ImportError:
        raise UnavailableInputError(
            f"input '{name}': needs the package datasets: pip install 'linscale[data]'"
        ) from None
    given = _parse(name, spec)
    with no_progress(datasets):
        known = _looked_up(name, partial(datasets.get_dataset_config_names, given.dataset, revision=given.revision))
        config, split = given.first, given.second
        if not split and config not in known:
            config, split = "", config
        if config and config not in known:
            raise UserError(f"input '{name}': no config '{config}'; there are {', '.join(known)}")
        if not config and len(known) > 1:
            find_default = partial(datasets.get_dataset_default_config_name, given.dataset, revision=given.revision)
            if _looked_up(name, find_default) is None:
                raise UserError(f"input '{name}': which config? There are {', '.join(known)}; {NAMING}")
        load = partial(datasets.load_dataset_builder, given.dataset, config or None, revision=given.revision)
        builder = _looked_up(name, load)
        paths, split = _split_files(name, builder, split, known if split == given.first else ())
        return _sources(name, builder, split, paths)


def _split_files(name: str, builder: Any, split: str, configs: Sequence[str]) -> tuple[list[str], str]:
    """The paths or URLs of a split's files, and the split; `configs` are those that `split` may have been meant as."""
    data_files = {str(each): files for each, files in (builder.config.data_files or {}).items()}
    if not data_files:
        raise UnavailableInputError(
            f"input '{name}': no data files to stream: the Hub is out of reach, or it holds none"
        )
    chosen = split or ("train" if "train" in data_files or len(data_files) > 1 else next(iter(data_files)))
    if chosen not in data_files:
        hint = f"; nor is it a config (there are {', '.join(configs)})" if configs and split else f"; {NAMING}"
        raise UserError(f"input '{name}': no split '{chosen}'; there are {', '.join(data_files)}{hint}")
    return [str(file) for file in data_files[chosen]], chosen


def _sources(name: str, builder: Any, split: str, paths: Sequence[str]) -> Sequence[DatasetFile]:
    found = [_looked_up(name, partial(_size_and_version, file)) for file in paths]
    info, total = (builder.info.splits or {}).get(split), sum(size for size, _ in found)
    text_per_byte = info.num_bytes / total if info is not None and info.num_bytes and total else 1.0
    opened, files = _Split(builder, split, len(paths)), []
    for number, (file, (size, tag)) in enumerate(zip(paths, found, strict=True)):
        match = re.fullmatch(r"hf://datasets/([^@]+)@([^/]+)/(.*)", file)
        dataset, revision, inside = match.groups() if match else (file, "", _inside(file, builder))
        label, text_bytes = f"{name}/{inside}", max(1, round(size * text_per_byte))
        require_content(label, size)
        identity = ("hf", dataset, inside, size, tag)
        files.append(DatasetFile(label, KIND, "", size, file, identity, revision, text_bytes, opened, number))
    return files


def _inside(file: str, builder: Any) -> str:
    """The path of a data file in its folder."""
    folder = str(Path(builder.base_path or "").resolve())
    return file.removeprefix(folder).lstrip("/")


def _size_and_version(file: str) -> tuple[int, str]:
    """Size, and what tells versions of a file apart: on the Hub the content's hash, so that only its change counts."""
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(file)
    info = filesystem.info(path)
    return int(info["size"]), str(next((info[key] for key in ("blob_id", "ETag", "mtime") if info.get(key)), file))


def _parse(name: str, spec: str) -> _Name:
    dataset, *rest = spec.split(":")
    if len(rest) > 2 or not dataset:
        raise UserError(f"input '{name}': {NAMING}")
    first, second, *_ = (*rest, "", "")
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        return _Name(str(folder), None, first, second)
    dataset, _, revision = dataset.partition("@")
    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1:
        raise UnavailableInputError(f"input '{name}': no such folder; a dataset on the Hub is named ORG/NAME")
    if Path(dataset).is_dir():
        raise UserError(f"input '{name}': {dataset} is a folder here; only a dataset on the Hub has revisions")
    return _Name(dataset, revision or None, first, second)


def _looked_up(name: str, action: Callable[[], Any]) -> Any:
    return persist(action, LOOK_UP_WAITS_S, f"input '{name}': ", UnavailableInputError, "")


@contextlib.contextmanager
def no_progress(datasets: Any) -> Iterator[None]:
    """Inside, the library draws no bars of its own."""
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _no_column(source: str, text_field: str, columns: Sequence[str]) -> UserError:
    return UserError(f"{source}: no column '{text_field}' (found {', '.join(columns)}); set text_field")
