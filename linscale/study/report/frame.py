"""One self-contained HTML page around what a report says: style, figures and scripts inside, nothing from outside."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from linscale.config import UserError
from linscale.study.report.figures import Figure, to_json

FOLDER = Path(__file__).parent
PLOTLY = "plotly-cartesian.min.js"
SCRIPTS = ("page.js", "controls.js")


@dataclass(frozen=True)
class Page:
    """What differs between pages."""

    title: str
    lead: str
    """HTML under the title."""
    body: str
    """HTML."""
    groups: Sequence[dict[str, Any]]
    """What can be shown and hidden, as `figures.series` gives them."""
    figures: Sequence[Figure]
    head: str = ""
    """Further HTML of the head."""
    scripts: tuple[str, ...] = ()
    """Files of this folder that run after the page's own; elements with their data stand in `body`."""


def write_page(page: Page, out: Path) -> Path:
    """Write the page to the file `out`, whole or not at all, and return it. UserError when it cannot be written."""
    text = Template(_read("page.html")).substitute(
        title=escape(page.title),
        lead=page.lead,
        head=page.head,
        style=_read("page.css"),
        body=page.body,
        plotly=_read(PLOTLY),
        figures=script_json({"groups": list(page.groups), "figures": [to_json(each) for each in page.figures]}),
        script="\n".join(_read(name) for name in (*SCRIPTS, *page.scripts)),
    )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return out


def script_json(value: Any) -> str:
    """JSON that may stand in a script of a page: it cannot end it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def template(name: str, parts: Mapping[str, str]) -> str:
    """The HTML of a file of this folder with its parts, HTML too, in place."""
    return Template(_read(name)).substitute(parts)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").strip()
