"""/v1/chat/completions by the OpenAI client: in the plain form, and by a model's own template."""

import json

import pytest
from pydantic import ValidationError

from linscale.generate.chat_template import conversation
from linscale.generate.jinja_template import ChatTemplate
from linscale.generate.sample import sample, write
from linscale.generate.sampling import Sampling
from linscale.serve.schemas import ChatRequest, StateRequest
from tests.lazy import Lazy
from tests.serve.conftest import BYTES, serving

openai = Lazy("openai")

JSON = {"Content-Type": "application/json"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "a state?"}]},
    {"role": "assistant", "content": "Memory."},
    {"role": "user", "content": "Whose?"},
]
PLAIN = "Be brief.\nUser: What is\na state?\nAssistant: Memory.\nUser: Whose?\nAssistant:"
TEMPLATE = """{{ bos_token }}{% for m in messages %}
<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}
<assistant>{{ tone }}"""


def test_the_plain_form():
    assert conversation([{**each, "content": "x"} for each in CHAT[1:]]) == "User: x\nAssistant: x\nUser: x\nAssistant:"


def test_a_conversation_is_answered_in_the_plain_form(server, model):
    expected = sample(model, BYTES, PLAIN, max_tokens=40, temperature=0).lstrip()
    answer = server.openai.chat.completions.create(model="run", messages=CHAT, max_tokens=40, temperature=0)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", expected, "length")
    assert answer.usage.prompt_tokens == 1 + len(PLAIN)
    chunks = list(
        server.openai.chat.completions.create(
            model="run", messages=CHAT, max_completion_tokens=40, temperature=0, stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_logprobs_with_bytes(server):
    answer = server.openai.chat.completions.create(
        model="run", messages=CHAT, max_tokens=5, temperature=0, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for each in content:
        assert bytes(each.bytes).decode() == each.token == each.top_logprobs[0].token
        assert each.logprob == each.top_logprobs[0].logprob > each.top_logprobs[1].logprob


def test_a_models_own_template_and_the_tokens_that_end_its_answers(model, tmp_path):
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    template = ChatTemplate(TEMPLATE, BYTES, names, stop_tokens=[ord("'")])
    tokens = [256, *b"<user>Hi<|endoftext|>", 256, *b"<assistant>calm"]
    expected = "".join(
        piece.text for piece in write(model, BYTES, tokens, Sampling(temperature=0, stop_tokens=(ord("'"),)))
    )
    with serving(tmp_path, model, template=template) as server:
        answer = server.openai.chat.completions.create(
            model="run",
            messages=[{"role": "user", "content": "Hi<|endoftext|>"}],
            temperature=0,
            extra_body={"chat_template_kwargs": {"tone": "calm"}},
        )
        for half in (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            {"chat_template_kwargs": {"tone": "\ud800"}},
        ):
            content = json.dumps({"messages": CHAT, **half})
            refused = server.http.post("/v1/chat/completions", content=content, headers=JSON)
            assert refused.status_code == 400
            assert "not valid Unicode" in refused.json()["error"]["message"]
        assert answer.usage.prompt_tokens == len(tokens)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")


@pytest.mark.slow
def test_texts_and_plain_answers_end_at_every_token_that_ends_them(server, model, tmp_path):
    def texts(asked, **more):
        ask = {"max_tokens": 80, "temperature": 0, **more}
        (text,) = asked.post("/v1/completions", prompt="Hi", **ask).json()["choices"]
        (answer,) = asked.post("/v1/chat/completions", messages=CHAT[3:], **ask).json()["choices"]
        return text["text"], answer["message"]["content"]

    wholes = texts(server)
    end = next(letter for letter in wholes[0][3:] if letter in wholes[1])
    with serving(tmp_path, model, end_tokens=(ord(end),)) as other:
        assert texts(other, ignore_eos=True) == wholes
        assert texts(other) == tuple(whole[: whole.index(end) + 1] for whole in wholes)


def test_a_conversation_goes_on_from_its_state(server, names):
    first = {"messages": CHAT[1:2], "max_tokens": 9, "temperature": 0}
    one = server.post("/v1/chat/completions", **first, save_state="talk").json()
    assert one["state"]["name"] == "talk"
    content = one["choices"][0]["message"]["content"]
    two = server.post(
        "/v1/chat/completions", messages=CHAT[3:], state="talk", max_tokens=9, temperature=0, save_state="talk",
        replace=True,
    ).json()  # fmt: skip
    assert two["usage"]["prompt_tokens_details"]["cached_tokens"] == one["state"]["tokens"]
    whole = [CHAT[1], {"role": "assistant", "content": content}, CHAT[3]]
    again = server.post("/v1/chat/completions", messages=whole, max_tokens=9, temperature=0).json()
    assert again["usage"]["prompt_tokens"] - two["usage"]["prompt_tokens"] in (0, 1)  # the space behind "Assistant:"
    assert two["state"]["tokens"] > one["state"]["tokens"]


WRONG = {
    "no messages": ({"messages": []}, "messages", "at least 1 item"),
    "none at all": ({"messages": None}, "messages", "valid list"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'system'"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content",
        "text",
    ),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "tools are not supported"),
    "tool_choice": ({"tool_choice": "required"}, "tool_choice", "tools are not supported"),
    "json": ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    "two limits": ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "both"),
    "alternatives alone": ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    "too many alternatives": ({"logprobs": True, "top_logprobs": 21}, "logprobs", "0 to 20"),
    "a template's variables": ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "no chat template"),
}


@pytest.mark.parametrize(("body", "field", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(server, body, field, reason):
    answer = server.post("/v1/chat/completions", **{"messages": CHAT, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].startswith(field)
    assert reason in error["message"]


def test_a_report_of_many_mistakes_ends_at_the_first_of_a_list():
    wrong = {"messages": [{"role": "x", "content": 1}] * 1000, "stop_tokens": ["a"] * 1000}
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate(wrong)
    assert error.value.error_count() < 10
    with pytest.raises(ValidationError) as error:
        StateRequest.model_validate({"name": "a", "tokens": ["a"] * 1000})
    assert error.value.error_count() == 1


def test_harmless_fields_and_errors_of_the_client(server):
    server.openai.chat.completions.create(
        model="run", messages=CHAT, max_tokens=1, user="me", metadata={"a": "b"}, tool_choice="none", store=False,
        response_format={"type": "text"}, modalities=["text"], parallel_tool_calls=True, seed=1,
    )  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="tools are not supported") as error:
        server.openai.chat.completions.create(
            model="run", messages=CHAT, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert error.value.param == "tools"
