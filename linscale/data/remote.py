"""Remote inputs: files behind a URL that fsspec opens, looked up: s3://, gs://, https://, memory://, and others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from linscale.config import UserError
from linscale.data.faults import LOOK_UP_WAITS_S, persist
from linscale.data.remote_file import RemoteReader
from linscale.data.sources import ACCEPTED, Source, UnavailableInputError, accepted, require_content, suffixes

EXTRA = "pip install 'linscale[data]'"
IN_EXTRA = ("aiohttp", "datasets", "s3fs", "gcsfs")
TAGS = (
    *("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "content_md5", "checksum", "crc32c", "blob_id", "sha"),
    *("generation", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modificationTime", "modify"),
    *("modified", "created"),
)
"""Where file systems keep what tells two versions of a file apart, checksums before times."""


@dataclass(frozen=True)
class RemoteFile(Source):
    """A file behind a URL."""

    filesystem: Any
    path: str

    def open(self) -> BinaryIO:
        """The bytes from its start. Raises UserError when the file is another than the one that was looked up."""
        return cast(BinaryIO, RemoteReader(self.name, self.filesystem, self.path, self.size, self.require_same))

    def require_same(self) -> None:
        """Raises UserError when the file was replaced since it was looked up."""
        self.filesystem.invalidate_cache()
        info = self.filesystem.info(self.path)
        if (info["size"], _tag(info)) != (self.size, self.revision):
            raise UserError(f"{self.name}: it changed while it was read; run the command again with another --out")


def remote_files(name: str) -> tuple[list[Source], list[str]]:
    """The sources behind a URL, which is a file, a folder or a pattern, and the names of files left out of folders.

    A folder over http is one whose URL ends in '/' and which the host answers with links. Raises UserError for a
    protocol that is not known or lacks its package, for a file that is missing or empty, a host that does not answer
    or does not let us in, and a file whose size the host does not tell.
    """
    from fsspec.core import url_to_fs

    label = _without_secrets(name)
    try:
        filesystem, path = url_to_fs(name)
    except ImportError as error:
        package = (error.__cause__ if isinstance(error.__cause__, ImportError) else error).name or "?"
        remedy = EXTRA if package.split(".")[0] in IN_EXTRA else f"pip install {package.split('.')[0]}"
        raise UnavailableInputError(f"input '{label}': needs the package {package}: {remedy}") from None
    except ValueError as error:
        raise UserError(
            f"input '{label}': {error}; expected a path, or a URL such as s3://... or https://..."
        ) from None

    def look_up() -> tuple[bool, Mapping[str, Any]]:
        return _list(filesystem, path, web="http" in filesystem.protocol)

    prefix = f"input '{label}': "
    several, found = persist(look_up, LOOK_UP_WAITS_S, prefix, UnavailableInputError, "")
    if not several:
        return [_source(label, filesystem, path, found[path])], []
    if not found:
        raise UnavailableInputError(f"{prefix}no files there; accepted are {ACCEPTED}")
    names = {file: _without_secrets(str(filesystem.unstrip_protocol(file))) for file in found}
    sources: list[Source] = []
    for file, info in found.items():
        if not suffixes(_file_name(filesystem, file)):
            continue
        if info.get("size") is None:
            info = persist(lambda: filesystem.info(file), LOOK_UP_WAITS_S, prefix, UnavailableInputError, "")  # noqa: B023
        sources.append(_source(names[file], filesystem, file, info))
    return sources, [names[file] for file in found if not suffixes(_file_name(filesystem, file))]


def _list(filesystem: Any, path: str, web: bool) -> tuple[bool, Mapping[str, Any]]:
    """Whether `path` may stand for several files, and what is known of each, hidden ones aside, sorted."""
    filesystem.invalidate_cache()
    if re.search(r"[*[]" if web else r"[*?[]", path):
        root = re.split(r"[*?[]", path)[0].rpartition("/")[0]
        found = filesystem.glob(path, detail=True)
    elif path.endswith("/") if web else filesystem.info(path)["type"] == "directory":
        root, found = path.rstrip("/"), filesystem.find(path, detail=True)
    else:
        return False, {path: filesystem.info(path)}
    parts = {file: file[len(root) :].strip("/").split("/") for file, info in found.items() if info["type"] == "file"}
    seen = [file for file in parts if not any(part.startswith(".") for part in parts[file])]
    return True, {file: found[file] for file in sorted(seen, key=parts.__getitem__)}


def _source(name: str, filesystem: Any, path: str, info: Mapping[str, Any]) -> RemoteFile:
    kind, compression = accepted(name, _file_name(filesystem, path))
    size, tag, url = info.get("size"), _tag(info), str(filesystem.unstrip_protocol(path))
    if size is None:
        raise UserError(f"input '{name}': the host does not tell its size, so a change of it could not be noticed; "
                        "download it and give the file")  # fmt: skip
    require_content(name, size)
    identity = (name if tag else url, size, tag)  # signatures in a URL expire
    return RemoteFile(name, kind, compression, size, url, identity, tag, filesystem, path)


def _file_name(filesystem: Any, path: str) -> str:
    return urlsplit(path).path if "http" in filesystem.protocol else path


def _tag(info: Mapping[str, Any]) -> str:
    """What the host says tells versions of a file apart, empty where it says nothing."""
    value = next((info[key] for key in TAGS if info.get(key)), "")
    return str(value.timestamp() if isinstance(value, datetime) else value)


def _without_secrets(url: str) -> str:
    """A URL as it may be printed and recorded: without what follows '?', and without a name and password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return url
    return parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2]).geturl()
