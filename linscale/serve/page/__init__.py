"""The page at /: type a text, see it go on, save and fork what the model remembers. One answer, nothing from elsewhere.

page.html    with page.css and, in this order,
api.js       requests, their events, numbers
text.js      writing
states.js    saved states; begins
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from string import Template

from fastapi import APIRouter, Response

FOLDER = Path(__file__).parent
SCRIPTS = ("api.js", "text.js", "states.js")

router = APIRouter()


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """How a policy names a script or a style that stands in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


STYLE, SCRIPT = _read("page.css"), "\n".join(map(_read, SCRIPTS))
PAGE = Template(_read("page.html")).substitute(style=STYLE, script=SCRIPT)
POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_source(SCRIPT)}",
        f"style-src {_source(STYLE)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text can become HTML by no assignment
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return Response(PAGE, media_type="text/html", headers=HEADERS)
