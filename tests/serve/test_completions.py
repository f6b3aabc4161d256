"""/v1/completions by the OpenAI client: the text of the library, in every form that the API has."""

import threading

import pytest
import torch

from linscale.generate.sample import opened, sample, write
from linscale.generate.sampling import Sampling
from tests.lazy import Lazy
from tests.serve.conftest import BYTES, serving, tiny

openai = Lazy("openai")

PROMPT = "To be, or not"


def written(model, prompt=PROMPT, **sampling):
    """The pieces that the library writes behind a prompt."""
    with torch.no_grad():
        return list(write(model, BYTES, opened(BYTES, prompt), Sampling(**sampling)))


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def test_the_text_is_that_of_the_library(server, model):
    whole = sample(model, BYTES, PROMPT, max_tokens=40, temperature=0)
    assert len(set(whole)) > 4
    assert server.complete(PROMPT, max_tokens=40) == whole
    assert server.complete([256, *PROMPT.encode()], max_tokens=40) == whole
    assert server.complete(PROMPT) == whole[:16]
    options = {"seed": 5, "temperature": 0.9, "top_p": 0.8}
    extras = {"top_k": 30, "min_p": 0.01, "repetition_penalty": 1.3}
    answer = server.openai.completions.create(
        model="run", prompt=PROMPT, max_tokens=30, **options, extra_body={**extras, "ignore_eos": True}
    )
    assert answer.choices[0].text == text_of(written(model, max_tokens=30, **options, **extras))
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (14, 30, 44)
    empty = server.post("/v1/completions", temperature=0).json()
    assert empty["choices"][0]["text"] == sample(model, BYTES, "", max_tokens=16, temperature=0)
    assert empty["usage"]["prompt_tokens"] == 1


def test_without_a_seed_every_request_draws_anew(server):
    assert len({server.complete(PROMPT, temperature=1) for _ in range(4)}) > 1
    assert len({server.complete(PROMPT, temperature=1, seed=3) for _ in range(4)}) == 1


def test_a_stream_has_the_same_text_and_ends_with_the_usage(server, model):
    whole = written(model, max_tokens=40, temperature=0)
    chunks = list(
        server.openai.completions.create(
            model="run",
            prompt=PROMPT,
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *written_chunks, last = chunks
    assert "".join(chunk.choices[0].text for chunk in written_chunks) == text_of(whole)
    assert [chunk.choices[0].finish_reason for chunk in written_chunks if chunk.choices[0].finish_reason] == ["length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert (last.choices, last.usage.completion_tokens) == ([], 40)
    with server.http.stream("POST", "/v1/completions", json={"prompt": PROMPT, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])
    assert '"usage"' not in "".join(lines)


def test_a_text_ends_at_a_stop_string_or_token_which_streams_do_not_show(server, model):
    whole = text_of(written(model, max_tokens=60, temperature=0))
    stop = whole[20:23]
    expected = whole[: whole.index(stop)]
    for stops in (stop, ["never", stop]):
        answer = server.openai.completions.create(
            model="run", prompt=PROMPT, max_tokens=60, temperature=0, stop=stops, stream=True
        )
        chunks = list(answer)
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"
    token = ord(whole[8])
    answer = server.post("/v1/completions", prompt=PROMPT, temperature=0, stop_tokens=[token]).json()
    assert answer["choices"][0]["text"] == whole[: whole.index(chr(token)) + 1]


def test_logprobs_are_those_of_the_model(server, model):
    pieces = written(model, max_tokens=8, temperature=0, logprobs=3)
    for stream in (False, True):
        answer = server.openai.completions.create(
            model="run", prompt=PROMPT, max_tokens=8, temperature=0, logprobs=3, stream=stream
        )
        parts = [part.choices[0].logprobs for part in answer] if stream else [answer.choices[0].logprobs]
        assert [token for part in parts for token in part.tokens] == [chr(piece.token) for piece in pieces]
        found = [nats for part in parts for nats in part.token_logprobs]
        assert found == pytest.approx([piece.logprob for piece in pieces], abs=1e-4)
        assert [offset for part in parts for offset in part.text_offset] == [*range(8)]
        best = [alternatives for part in parts for alternatives in part.top_logprobs]
        assert [len(each) for each in best] == [3] * 8
        for alternatives, piece in zip(best, pieces, strict=True):
            assert (
                alternatives[chr(piece.token)] == max(alternatives.values()) == pytest.approx(piece.logprob, abs=1e-4)
            )


def test_log_probabilities_that_json_does_not_have(tmp_path):
    broken = tiny()
    with torch.no_grad():
        for others in (slice(32), slice(44, None)):  # all but 12 tokens
            broken.head.weight[others, 0] = float("-inf")
        broken.embedding.weight[ord("~")] = float("nan")
    with serving(tmp_path, broken) as server:
        for stream in (False, True):
            body = {"max_tokens": 3, "logprobs": 20, "stream": stream, "temperature": 0}
            text = server.post("/v1/completions", prompt="a~", **body).text
            assert "gives no probabilities" in text
            assert "NaN," not in text
            least = server.post("/v1/completions", prompt="ab", **body).text
            assert ("-9999.0" in least, "Infinity" in least) == (True, False)
        assert server.rests()


def test_an_answer_of_log_probabilities_is_not_made_in_the_loop(server, monkeypatch):
    threads = set()
    text = server.service.token_text.text
    monkeypatch.setattr(
        server.service.token_text, "text", lambda token: threads.add(threading.current_thread()) or text(token)
    )
    for path, body in (
        ("/v1/completions", {"prompt": "x", "logprobs": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "logprobs": True}),
    ):
        assert server.post(path, max_tokens=2, **body).json()["choices"][0]["logprobs"]
    assert threads
    assert server.call(this_thread()) not in threads


async def this_thread():
    return threading.current_thread()


def test_several_prompts_and_several_texts_of_each(server, model):
    options = {"max_tokens": 12, "temperature": 1.0}
    answer = server.openai.completions.create(model="run", prompt=["a", "bc"], n=3, seed=7, echo=True, **options)
    expected = [
        prompt + text_of(written(model, prompt, seed=seed, **options)) for prompt in ("a", "bc") for seed in (7, 8, 9)
    ]
    assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate(expected))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 72)
    texts = [""] * 6
    for chunk in server.openai.completions.create(
        model="run", prompt=[[256, 97], [256, 98, 99]], n=3, seed=7, echo=True, stream=True, **options
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected
    first, second = (server.complete(PROMPT, temperature=1, n=2).strip() for _ in range(2))
    assert first != second


WRONG = {
    "temperature": ({"temperature": -1}, "temperature", "at least 0"),
    "a word for a number": ({"temperature": "hot"}, "temperature", "valid number"),
    "not a number": ({"top_p": 2}, "top_p", "0 to 1"),
    "true for a number": ({"max_tokens": True}, "max_tokens", "valid integer"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "at least 1"),
    "too many tokens": ({"max_tokens": 2001}, "max_tokens", "at most 2000"),
    "too many texts": ({"n": 7}, "n", "at most 6"),
    "no texts": ({"n": 0}, "n", "greater than or equal to 1"),
    "logprobs": ({"logprobs": 21}, "logprobs", "0 to 20"),
    "logprobs of the prompt": ({"logprobs": 1, "echo": True}, "logprobs", "not computed for the prompt"),
    "a wrong seed": ({"seed": -4}, "seed", "0 to 2^63"),
    "an empty stop": ({"stop": [""]}, "stop", "none of them empty"),
    "a wrong stop": ({"stop": [1]}, "stop", "a list of strings"),
    "no prompts": ({"prompt": []}, "prompt", "none empty"),
    "mixed prompts": ({"prompt": ["a", 1]}, "prompt", "a list of strings"),
    "an unknown token": ({"prompt": [1, 300]}, "prompt", "0 to 256"),
    "a huge token": ({"prompt": [10**30]}, "prompt", "0 to 256"),
    "a prompt too long": ({"prompt": "x" * 3000}, "prompt", "at most 3000"),
    "an unknown field": ({"tempratur": 1}, "tempratur", "unknown field"),
    "an unknown field inside": ({"stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
    "suffix": ({"suffix": "x"}, "suffix", "not supported"),
    "best_of": ({"best_of": 2}, "best_of", "not supported"),
    "logit_bias": ({"logit_bias": {"50256": -100}}, "logit_bias", "not supported"),
    "penalties": ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
    "a state's name": ({"state": "../x"}, "state", "expected 1 to 100 letters"),
    "a state to save": ({"save_state": "a/b"}, "save_state", "expected 1 to 100 letters"),
    "a state of two": ({"save_state": "a", "n": 2}, "save_state", "one has a state"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "field", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(server, body, field, reason, stream):
    answer = server.post("/v1/completions", **{"prompt": "x", "stream": stream, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert reason in error["message"]
    assert "Traceback" not in answer.text


def test_what_a_client_sent_is_not_sent_back_without_end_nor_are_prompts_encoded_that_are_too_many(server, monkeypatch):
    answer = server.post("/v1/completions", prompt="x", model="y" * 50_000)
    assert len(answer.text) < 3000
    monkeypatch.setattr(server.service, "encode", lambda text: pytest.fail("encoded"))
    assert server.post("/v1/completions", prompt=["x"] * 7).json()["error"]["code"] == "invalid_value"


def test_what_is_harmless_is_taken(server):
    server.openai.completions.create(
        model="run", prompt="x", max_tokens=2, user="me", best_of=1, suffix=None, logit_bias={}, presence_penalty=0
    )


def test_the_clients_own_errors(server):
    with pytest.raises(openai.BadRequestError, match="top_p = 7"):
        server.openai.completions.create(model="run", prompt="x", top_p=7)
    with pytest.raises(openai.NotFoundError, match="model 'gpt-4': not served here; expected 'run'") as error:
        server.openai.completions.create(model="gpt-4", prompt="x")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="state 'none'"):
        server.openai.completions.create(model="run", prompt="x", extra_body={"state": "none"})


@pytest.mark.parametrize(
    ("content", "kind", "problem"),
    [
        (b"{", "application/json", "not JSON: Expecting property name"),
        (b"", "application/json", "the request is empty"),
        (b"[" * 10_000, "application/json", "nested too deep"),
        (b"\xff", "application/json", "not UTF-8"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", "a number of too many digits"),
        (b"[1]", "application/json", "not a JSON object"),
        (b'{"prompt": "\\ud800"}', "application/json", "not valid Unicode"),
        (b'{"prompt": "x", "top_p": NaN}', "application/json", "top_p = nan"),
        (b'{"prompt": "x"}', "text/plain", "Content-Type: application/json"),
    ],
    ids=["half", "empty", "deep", "not UTF-8", "a long number", "a list", "half a character", "nan", "plain text"],
)
def test_what_is_no_request_is_answered_so(server, content, kind, problem):
    answer = server.http.post("/v1/completions", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400, answer.text
    assert problem in answer.json()["error"]["message"]
