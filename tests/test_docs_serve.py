"""docs/reference/serve.md is true: options with defaults, paths, fields, codes of errors, metrics."""

import dataclasses
import inspect
import re
from pathlib import Path

from linscale.cli.serve import serve as command
from linscale.generate.engine import Stats
from linscale.generate.engine_config import EngineConfig
from linscale.serve import about, chat, completions, page, states
from linscale.serve.metrics import Metrics
from linscale.serve.options import ServeOptions
from linscale.serve.saved_states import SHOWN
from linscale.serve.schemas import ChatRequest, CompletionRequest, ForkRequest, Message, StateRequest, StreamOptions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "serve.md").read_text(encoding="utf-8")


def section(heading):
    return re.split(r"^## ", PAGE.split(f"\n## {heading}\n")[1], flags=re.M)[0]


def names(text):
    return set(re.findall(r"`([\w.]+)`", text))


def test_every_option_and_its_default():
    parameters = inspect.signature(command).parameters
    defaults = {name: each.default for name, each in parameters.items() if name not in ("path", "engine", "options")}
    for config in (EngineConfig, ServeOptions):
        defaults |= {field.name: field.default for field in dataclasses.fields(config)}
    shown = {f"--{name.replace('_', '-')}": str(value) for name, value in defaults.items()}
    shown = {name: "unset" if value in ("None", "()") else value for name, value in shown.items()}
    assert dict(re.findall(r"^\| `(--[\w-]+)` \| `([^`]+)` \|", PAGE, re.M)) == shown
    assert set(re.findall(r"--[a-z][\w-]+", PAGE)) <= set(shown)


def test_every_path():
    made = {
        f"{method} {route.path}"
        for module in (about, chat, completions, page, states)
        for route in module.router.routes
        for method in route.methods
    }
    written = set(re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", section("Paths")))
    assert written == {path.replace(":path", "") for path in made} | {"GET /openapi.json"}


def test_every_field():
    shared = names(section("Completions"))
    assert set(CompletionRequest.model_fields) | set(StreamOptions.model_fields) <= shared
    assert set(ChatRequest.model_fields) | set(Message.model_fields) <= shared | names(section("Chats"))
    fields = {field.alias or name for name, field in StateRequest.model_fields.items()}
    assert fields | set(ForkRequest.model_fields) | set(SHOWN) <= names(section("States"))
    models = names(section("Paths"))
    keys = re.findall(r'^        "(\w+)":', inspect.getsource(about._model), re.M)
    assert set(keys) - {"id", "object", "created", "owned_by"} <= models


def test_every_error_and_every_metric():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "linscale" / "serve").glob("*.py"))
    assert names(section("Errors")) - {"code", "param"} == set(re.findall(r'code="(\w+)"', sources))
    statuses = set(re.findall(r"^\| (\d{3}) \|", section("Errors"), re.M))
    assert set(re.findall(r"ApiError\(\s*(\d{3})", sources)) <= statuses
    text = Metrics(lambda: Stats(*[0] * len(Stats._fields))).text().decode()
    made = {name for name in re.findall(r"^# TYPE (\w+) ", text, re.M) if not name.endswith("_created")}
    assert made == {name for name in names(section("Metrics")) if name.startswith("linscale_")}
