"""The bodies of requests. Every field of the OpenAI API has a place here: done, harmless, or refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from linscale.generate.sampling import Sampling

Ignored: TypeAlias = Any
"""Accepted, and without effect on the answer."""


def unsupported(what: str, *neutral: Any) -> AfterValidator:
    """A field that would change the answer in a way that is not done here; None and `neutral` values change nothing."""

    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            raise ValueError(f"{what} not supported; leave it out")
        return value

    return AfterValidator(check)


def _stops(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        return value
    raise ValueError("expected a string or a list of strings")


class Body(BaseModel):
    """A JSON object whose unknown keys and types are errors; null is as if the key were absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    "Give the counts of tokens in a last chunk."
    continuous_usage_stats: bool | None = None
    "With include_usage, give the counts so far in every chunk, as vLLM does."
    include_obfuscation: Ignored = None


class Generation(Body):
    """What completions and chats share."""

    model: str | None = None
    "The name that /v1/models gives; it may be left out."
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    "By default a new one for every request, or where a state has drawn, its draws go on."
    stop: Annotated[Any, AfterValidator(_stops)] | None = None
    "A string, or a list of them."
    stop_tokens: list[int] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    "Texts of one prompt; they draw with seeds that follow each other."
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    state: str | None = None
    "A saved state, behind which the prompt is read."
    save_state: str | None = None
    "A name to save the state behind the new text under."
    replace: bool | None = None
    "Replace a state of that name."
    max_tokens: int | None = None
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    presence_penalty: Annotated[Any, unsupported("penalties other than repetition_penalty are", 0)] = None
    frequency_penalty: Annotated[Any, unsupported("penalties other than repetition_penalty are", 0)] = None
    logit_bias: Annotated[Any, unsupported("biases of tokens are", {})] = None

    def sampling(
        self, max_tokens: int, logprobs: int | None, stop_tokens: tuple[int, ...] = (), stop: tuple[str, ...] = ()
    ) -> Sampling:
        """How tokens are drawn; `stop_tokens` and `stop` end a text too. Raises UserError for a value out of range."""
        fields = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "ignore_eos")
        given = {name: value for name in fields if (value := getattr(self, name)) is not None}
        ends = (*(self.stop_tokens or ()), *stop_tokens)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(max_tokens=max_tokens, logprobs=logprobs, stop_tokens=ends, stop=(*stop, *stops), **given)

    @property
    def usage_asked(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def running_usage_asked(self) -> bool:
        """Whether every chunk of it has the counts so far."""
        return bool(self.usage_asked and self.stream_options and self.stream_options.continuous_usage_stats)


def _prompts(value: Any) -> Any:
    """A text, a list of texts, tokens, or a list of lists of tokens."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        for kind in (_is_text, _is_token, _are_tokens):
            if all(map(kind, value)):
                return value
    raise ValueError("expected a string, a list of strings, a list of tokens, or a list of such lists, none empty")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_token(value: Any) -> bool:
    return type(value) is int


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_token, value))


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: Annotated[Any, AfterValidator(_prompts)] | None = None
    "By default an empty text, or with `state` none."
    echo: bool | None = None
    "Give the prompt in front of the text."
    logprobs: int | None = None
    "Give the log-probability of each token and of this many of the most probable ones."
    best_of: Annotated[Any, unsupported("choosing the best of several texts is", 1)] = None
    suffix: Annotated[Any, unsupported("text behind the new one is", "")] = None


class TextPart(Body):
    type: Literal["text"]
    text: str
    cache_control: Ignored = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    "Text, or parts of text, which are joined by line ends."
    name: str | None = None
    reasoning_content: str | None = None
    refusal: Ignored = None
    annotations: Ignored = None
    tool_calls: Annotated[Any, unsupported("tools are", [])] = None
    function_call: Annotated[Any, unsupported("tools are")] = None
    audio: Annotated[Any, unsupported("audio is")] = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        others = {"name": self.name, "reasoning_content": self.reasoning_content}
        return {"role": self.role, "content": content, **{key: value for key, value in others.items() if value}}


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    "The same as max_tokens."
    logprobs: bool | None = None
    "Give the log-probability of each token."
    top_logprobs: int | None = None
    "And of this many of the most probable ones."
    chat_template_kwargs: dict[str, Any] | None = None
    "Variables of the model's chat template."
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None
    tools: Annotated[Any, unsupported("tools are", [])] = None
    tool_choice: Annotated[Any, unsupported("tools are", "none", "auto")] = None
    functions: Annotated[Any, unsupported("tools are", [])] = None
    function_call: Annotated[Any, unsupported("tools are", "none", "auto")] = None
    response_format: Annotated[Any, unsupported("formats other than text are", {"type": "text"})] = None
    modalities: Annotated[Any, unsupported("output other than text is", ["text"])] = None
    audio: Annotated[Any, unsupported("audio is")] = None
    reasoning_effort: Annotated[Any, unsupported("a choice of effort is", "none")] = None
    verbosity: Annotated[Any, unsupported("a choice of verbosity is")] = None
    web_search_options: Annotated[Any, unsupported("web search is")] = None


class StateRequest(Body):
    """POST /v1/states."""

    name: str
    text: str | None = None
    tokens: Annotated[list[int], Field(min_length=1)] | None = None
    origin: Annotated[str | None, Field(alias="from")] = None
    "A saved state to read the text behind."
    replace: bool | None = None
    keep_tokens: bool | None = None
    "Keep the tokens of the text in the file."
    stream: bool | None = None
    "Tell how far the text is read."


class ForkRequest(Body):
    """POST /v1/states/{name}/fork."""

    name: str
    replace: bool | None = None
