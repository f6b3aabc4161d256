"""The chat template that came with a model: a conversation as the tokens that the model was trained to answer.

Rendered as transformers renders it: Jinja in a sandbox, from chat_template.jinja, chat_template.json or the entry of
tokenizer_config.json, beside the run's tokenizer.json. One thing differs from its defaults: what people wrote is text,
so a special token's name in a message does not become that token (transformers has `sanitize_control_tokens`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from linscale.config import UserError
from linscale.data.tokenizer import END_OF_TEXT, FILE, MARKS, ByteTokenizer, Tokenizer
from linscale.generate.snapshot import Snapshot
from linscale.run_folder import CHECKPOINTS, read_json

JINJA, JSON, CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
GENERATION, NAMES = "generation_config.json", "special_tokens_map.json"
BREAK = "\ufdd0"  # a noncharacter, put inside of special tokens' names that people wrote
ANSWER = "\ufdd1"  # another, in the place of an answer
Message = Mapping[str, Any]


class ChatTemplate:
    """Conversations as tokens. Messages have a `role` and a `content`, a string; keys that are None count as absent."""

    def __init__(
        self, source: str, tokenizer: Tokenizer, names: Mapping[str, str], stop_tokens: Sequence[int] = ()
    ) -> None:
        """`names` are variables of the template, such as bos_token; `stop_tokens` end an answer, besides the
        end-of-text token. Raises UserError for a template that Jinja cannot read."""
        self.stop_tokens = tuple(stop_tokens)
        self._names = dict(names)
        self._bos_id = tokenizer.bos_id
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"chat template: {error}; expected a Jinja template") from None
        self._special = _special_tokens(tokenizer)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._encode = _encoder(tokenizer, self._pattern, self._special)

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None, *, to_answer: bool = True
    ) -> str:
        """The text of a conversation, up to where an answer begins, or without `to_answer` its last message ends.

        Raises UserError where the template refuses the conversation, such as two turns of one speaker.
        """
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        values = {**self._names, "tools": [], "documents": None, **(variables or {})}
        try:
            return self._template.render({**values, "messages": chat, "add_generation_prompt": to_answer})
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise UserError(f"messages: the model's chat template refuses them: {error}") from None

    def tokens(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> list[int]:
        """The tokens of a conversation, up to where an answer begins."""
        return self._encode(self.render(self._as_text(messages), *self._as_text([variables or {}])))

    def tokens_behind(
        self, snapshot: Snapshot, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """The tokens of messages that are read behind a text.

        The text is taken to end with an answer, which is closed where it is not. One that lacks special tokens of the
        template has had no turn of it: the messages are a new conversation, without the token that opens a text.
        """
        tokens = self.tokens(messages, variables)
        tokens = tokens[1:] if tokens[:1] == [self._bos_id] else tokens
        marks, seen = {token for token in tokens if token in self._special.values()}, snapshot.seen
        if marks and (seen is None or not all(token < len(seen) and seen[token] for token in marks)):
            return tokens
        earlier = [{"role": "user", "content": "."}, {"role": "assistant", "content": ANSWER}]
        chat = [*earlier, *self._as_text(messages)]
        _, answer, rest = self.render(chat, *self._as_text([variables or {}])).rpartition(ANSWER)
        if not answer:
            raise UserError("messages: the model's chat template leaves answers out; send the whole conversation")
        tokens = self._encode(rest)
        closed = tokens[:1] == list(snapshot.last[-1:]) and tokens[0] in self.stop_tokens
        return tokens[1:] if closed else tokens

    def _as_text(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages with special tokens' names broken, so that they are encoded as text."""
        return [
            {key: self._broken(value) if isinstance(value, str) else value for key, value in message.items()}
            for message in messages
        ]

    def _broken(self, text: str) -> str:
        plain = text.replace(BREAK, "").replace(ANSWER, "")
        return self._pattern.sub(lambda name: name[0][:1] + BREAK + name[0][1:], plain)


def load_chat_template(path: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template beside the tokenizer.json of a run folder or checkpoint folder; None where there is none.

    Raises UserError for files that are not what they are expected to be.
    """
    folder = path
    if not (path / FILE).is_file() and path.resolve().parent.name == CHECKPOINTS:
        folder = path.resolve().parent.parent
    config = _object(folder / CONFIG)
    if (folder / JINJA).is_file():
        source: Any = (folder / JINJA).read_text(encoding="utf-8")
    else:
        source = _object(folder / JSON).get("chat_template") or config.get("chat_template")
    if isinstance(source, list):  # several templates by name
        named = {each.get("name"): each.get("template") for each in source if isinstance(each, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise UserError(
            f"{folder / CONFIG}: chat_template: expected a Jinja template, or a list with one named default"
        )
    names = {**_names(_object(folder / NAMES)), **_names(config)}
    if not (folder / CONFIG).is_file():
        by_id = {token: name for name, token in _special_tokens(tokenizer).items()}
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        names = {**{name: by_id[token] for name, token in ids.items() if token in by_id}, **names}
    return ChatTemplate(source, tokenizer, names, _ends(folder, names, tokenizer))


def _ends(folder: Path, names: Mapping[str, str], tokenizer: Tokenizer) -> list[int]:
    """Tokens that end an answer, besides the end-of-text token: of generation_config.json, and the eos_token."""
    listed = _object(folder / GENERATION).get("eos_token_id")
    ends = listed if isinstance(listed, list) else [listed]
    ends = [*ends, _special_tokens(tokenizer).get(names.get("eos_token", ""))]
    known = {token for token in ends if isinstance(token, int) and 0 <= token < tokenizer.vocab_size}
    return sorted(known - {tokenizer.eos_id})


def _names(content: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a file names, such as bos_token."""
    named = {key: value for key, value in content.items() if key.endswith("_token")}
    named = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: value for key, value in named.items() if isinstance(value, str)}


def _object(path: Path) -> dict[str, Any]:
    """A JSON object of a file, empty where there is none."""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    if isinstance(tokenizer, ByteTokenizer):
        return {END_OF_TEXT: tokenizer.eos_id}
    return {token["content"]: token["id"] for token in tokenizer.content["added_tokens"] if token["special"]}


def _encoder(tokenizer: Tokenizer, pattern: re.Pattern[str], special: Mapping[str, int]) -> Callable[[str], list[int]]:
    """Tokens of a text in which the names of special tokens stand for them, unless they are broken."""
    if isinstance(tokenizer, ByteTokenizer):

        def encode_bytes(text: str) -> list[int]:
            parts = re.split(f"({pattern.pattern})", text)
            tokens = [[special[part]] if part in special else [*part.replace(BREAK, "").encode()] for part in parts]
            return [token for part in tokens for token in part]

        return encode_bytes
    content = {key: value for key, value in tokenizer.content.items() if key != MARKS}
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    library.add_special_tokens([tokenizers.AddedToken(BREAK, special=True, normalized=False)])
    mark = library.token_to_id(BREAK)
    return lambda text: [token for token in library.encode(text, add_special_tokens=False).ids if token != mark]


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    found.filters["tojson"] = _to_json
    found.globals["raise_exception"] = _raise
    found.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return found


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, which marks answers for training: what is inside is kept."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
