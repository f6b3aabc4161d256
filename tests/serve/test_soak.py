"""A thousand requests, 64 at once: a tenth leave, a tenth are malformed. The others get the text that they get alone,
and when all are through nothing is left of them."""

import asyncio
import gc
import json
import os
import random
from pathlib import Path

import httpx
import pytest

from linscale.generate.sample import opened, write
from linscale.generate.sampling import Sampling
from linscale.serve.generation import Generation
from linscale.serve.streams import Streams
from tests.serve.conftest import BYTES, serving

REQUESTS, AT_ONCE, KINDS = 1000, 64, 12
MALFORMED = [
    {"content": b"{"},
    {"json": {"prompt": "x", "temperature": -1}},
    {"json": {"prompt": "x", "nonsense": 1}},
    {"json": {"prompt": "x" * 10_000}},
    {"json": {"prompt": [1, 999]}},
    {"json": {"prompt": "x", "state": "none"}},
    {"content": b"x" * 60_000},
]
MOST_GROWTH = 8 * 2**20  # bytes of memory over the second half


def bodies(draw):
    """Requests of some kinds, which differ in all that a slot holds."""
    for number in range(KINDS):
        prompt = "".join(draw.choices("abcdefg hij", k=draw.randrange(1, 60)))
        sampling = {"max_tokens": draw.randrange(6, 14), "temperature": number % 3 / 2, "seed": number}
        extras = [{}, {"top_k": 9}, {"repetition_penalty": 1.4}, {"top_p": 0.7, "logprobs": 2}][number % 4]
        yield {"prompt": prompt, **sampling, **extras}


def alone(model, body):
    """The text that the library writes."""
    rules = {key: value for key, value in body.items() if key != "prompt"}
    return "".join(piece.text for piece in write(model, BYTES, opened(BYTES, body["prompt"]), Sampling(**rules)))


async def streamed(client, body):
    """The text of a stream, and whether it came to its end."""
    text, ended = "", False
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line:
                text += json.loads(line[6:])["choices"][0]["text"]
    assert ended
    return text


async def leaves(client, body, after_s):
    """A client that goes away."""
    request = {**body, "max_tokens": 2000, "ignore_eos": True}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after_s):
            await streamed(client, request) if body["seed"] % 2 else await client.post("/v1/completions", json=request)


async def one(client, number, kinds, texts, draw):
    """Send request `number`; what became of it."""
    body = kinds[number % KINDS]
    if number % 10 == 3:
        await leaves(client, body, draw.uniform(0.0, 0.2))
        return "left"
    if number % 10 == 7:
        answer = await client.post("/v1/completions", **draw.choice(MALFORMED))
        assert answer.status_code in (400, 404, 413), answer.text
        assert answer.json()["error"]["message"]
        return "malformed"
    if draw.random() < 0.5:
        text = await streamed(client, body)
    else:
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        text = answer.json()["choices"][0]["text"]
    assert text == texts[number % KINDS]
    return "written"


async def half(address, numbers, kinds, texts):
    """Send some requests, 64 at once."""
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    turn, draw = asyncio.Semaphore(AT_ONCE), random.Random(numbers[0])
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60, trust_env=False) as client:

        async def in_turn(number):
            async with turn:
                return await one(client, number, kinds, texts, draw)

        return await asyncio.gather(*map(in_turn, numbers))


def left_behind(server):
    """Tasks, connections, open files, and our objects, when nothing is asked."""
    assert server.rests(20)
    gc.collect()

    async def tasks():
        for _ in range(100):
            if not server.server.server_state.connections:
                break
            await asyncio.sleep(0.05)
        return len(asyncio.all_tasks())

    counts = {"tasks": server.call(tasks())}
    counts["connections"] = len(server.server.server_state.connections)
    counts["files"] = len(os.listdir("/proc/self/fd"))
    objects = [each for each in gc.get_objects() if type(each) in (Generation, Streams)]
    return counts | {"objects": len(objects), "texts": len(server.worker._commands)}


def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what is open in /proc")
def test_a_thousand_requests(model, tmp_path):
    kinds = list(bodies(random.Random(1)))
    texts = [alone(model, body) for body in kinds]
    assert len(set(texts)) > KINDS // 2
    limits = {"max_prompt_tokens": 5000, "max_tokens": 2000, "max_waiting": 64, "max_body_bytes": 50_000}
    with serving(tmp_path, model, slots=16, **limits) as server:
        asyncio.run(half(server.address, range(50), kinds, texts))
        before = left_behind(server)
        became = asyncio.run(half(server.address, range(50, REQUESTS // 2), kinds, texts))
        size = memory()
        became += asyncio.run(half(server.address, range(REQUESTS // 2, REQUESTS + 50), kinds, texts))
        assert memory() - size < MOST_GROWTH
        assert left_behind(server) == before
        assert before["connections"] == before["objects"] == before["texts"] == 0
        assert {kind: became.count(kind) for kind in set(became)} == {"left": 100, "malformed": 100, "written": 800}
