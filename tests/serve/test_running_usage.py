"""What a page needs to show how a text grows: the counts of tokens in every chunk, and what a token adds to a state."""

import json

import pytest

from linscale.models.count import state_elements
from tests.serve.conftest import serving, tiny

TOKENS = 200  # of which several chunks are made, even where the loop lags and puts many into one
ASKED = {"stream": True, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


def usages(server, path, body, **options):
    """The usage of every chunk."""
    answer = server.post(path, **ASKED, **body, stream_options=options).text
    chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    return [chunk.get("usage", "none") for chunk in chunks]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "To be"}),
        pytest.param(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "To be?"}]}, marks=pytest.mark.slow
        ),
    ],
)
def test_every_chunk_has_the_counts_so_far_where_they_are_asked_for(server, path, body):
    running = usages(server, path, body, include_usage=True, continuous_usage_stats=True)
    made = [usage["completion_tokens"] for usage in running]
    assert made == sorted(made)
    assert made[-1] == TOKENS
    assert len(set(made)) > 2
    assert {usage["total_tokens"] - usage["completion_tokens"] for usage in running} == {running[0]["prompt_tokens"]}
    last = usages(server, path, body, include_usage=True)
    assert last == [None] * (len(last) - 1) + [running[-1]]
    assert set(usages(server, path, body, continuous_usage_stats=True)) == {"none"}


def test_a_token_adds_to_a_softmax_state_what_the_model_says(server, tmp_path):
    linear = server.http.get("/v1/models").json()["data"][0]
    assert linear["state_bytes"] == 4 * state_elements(server.worker.engine.model.config, 0)
    assert linear["state_bytes_per_token"] == 0
    with serving(tmp_path, tiny("llama"), context=64) as other:
        softmax = other.http.get("/v1/models").json()["data"][0]
    assert softmax["state_bytes_per_token"] == softmax["softmax_bytes_per_token"] == linear["softmax_bytes_per_token"]
    assert softmax["state_bytes"] == 64 * softmax["state_bytes_per_token"]
