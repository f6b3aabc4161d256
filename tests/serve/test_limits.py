"""Who may use a server, what is too much, and what becomes of a request whose client leaves."""

import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from linscale.generate.engine import Engine
from linscale.generate.sample import sample
from linscale.serve.limits import names_of
from linscale.serve.metrics import Metrics
from tests.lazy import Lazy
from tests.serve.conftest import BYTES, KEY, serving, tiny

openai = Lazy("openai")

LONG = {"prompt": "x", "max_tokens": 2000, "temperature": 0, "ignore_eos": True}


def raw(server, request: bytes) -> socket.socket:
    """A connection on which a request, or a part of one, was sent."""
    connection = socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=10)
    connection.sendall(request)
    return connection


def posted(body: dict, path="/v1/completions", extra="") -> bytes:
    content = json.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n{extra}"
    )
    return f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode()


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_key_is_needed(server):
    for key in ("wrong", "", "sk-tin", "sk-tiny2", "\u00e9"):
        headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
        answer = httpx.get(f"{server.address}/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.address}/metrics").status_code == 401
    assert httpx.get(f"{server.address}/openapi.json").status_code == 401
    assert httpx.get(f"{server.address}/health").status_code == 200
    for key in (KEY, "other"):
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0) as client:
            assert [each.id for each in client.models.list()] == ["run"]
    stranger = openai.OpenAI(base_url=f"{server.address}/v1", api_key="no", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="not known"):
        stranger.models.list()


def test_models(server):
    assert server.openai.models.retrieve("run").owned_by == "linscale"
    with pytest.raises(openai.NotFoundError, match="model 'a/b'"):
        server.openai.models.retrieve("a/b")
    (model,) = server.http.get("/v1/models").json()["data"]
    assert (model["architecture"], model["context"], model["slots"]) == ("hgrn2", None, 4)
    assert model["state_bytes"] == server.worker.stats().state_bytes
    assert "completions" in json.dumps(server.http.get("/openapi.json").json())


def test_paths_and_methods_that_are_not_there(server):
    answer = server.http.get("/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "/v1/nothing: no such path")
    assert server.http.get("/v1/completions").status_code == 405
    assert server.http.get("/v1/completions").json()["error"]["type"] == "invalid_request_error"


def test_a_request_that_is_too_large(server):
    for content in (b"x" * 100_001, (b"x" * 1000 for _ in range(200))):
        answer = server.http.post("/v1/completions", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    padded = server.http.post(
        "/v1/completions", content=body + b" " * (100_000 - len(body)), headers={"Content-Type": "application/json"}
    )
    assert padded.status_code == 200


def test_a_request_that_does_not_arrive(model, tmp_path):
    with serving(tmp_path, model, body_s=0.2) as server:
        with raw(server, posted({"prompt": "x"})[:-3]) as connection:
            assert b" 408 " in connection.recv(10_000)
        with raw(server, posted({"prompt": "x"})[:-3]):
            pass
        assert server.complete("x")
        assert server.rests()


def test_names_and_pages(model, tmp_path):
    assert names_of("0.0.0.0", ()) is None
    assert names_of("127.0.0.2", ("a.example",)) == ("localhost", "127.0.0.1", "::1", "127.0.0.2", "a.example")
    hosts, page = names_of("127.0.0.1", ("model.lan",)), "https://page.example"
    with serving(tmp_path, model, hosts=hosts, cors_origin=(page,), api_key=(KEY,)) as server:

        def status(host=None, origin=None, method="GET", **headers):
            given = {"Host": host or "localhost", **({"Origin": origin} if origin else {}), **headers}
            return server.http.request(method, "/v1/models", headers=given)

        for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "MODEL.LAN:1"):
            assert status(host).status_code == 200
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "localhost@evil.example"):
            assert status(host).status_code == 403, host
        with raw(server, b"GET /health HTTP/1.0\r\n\r\n") as connection:
            assert b" 403 " in connection.recv(10_000)
        assert status(origin="https://evil.example").json()["error"]["code"] == "unknown_origin"
        assert status(origin="null").status_code == 403
        assert status("localhost:80", origin="http://localhost:80").status_code == 200
        allowed = status(origin=page)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, page)
        asked = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
        del server.http.headers["Authorization"]
        assert status(origin=page, method="OPTIONS", **asked).status_code == 200
        refused = status(origin=page)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, page)


def test_a_text_that_is_longer_than_softmax_layers_have_room_for(tmp_path):
    with serving(tmp_path, tiny("llama"), context=64) as server:
        prompt = "x" * 40
        for path, body, field in (
            ("/v1/completions", {"prompt": prompt, "max_tokens": 30}, "prompt"),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt * 2}]}, "messages"),
            ("/v1/states", {"name": "a", "text": prompt * 2}, "text"),
        ):
            error = server.post(path, **body).json()["error"]
            assert (error["param"], error["code"]) == (field, "context_length_exceeded")
            assert "more than the 64 that a text may have here" in error["message"]
        assert server.http.get("/v1/models").json()["data"][0]["context"] == 64
        chat = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}], ignore_eos=True)
        assert chat.json()["usage"]["total_tokens"] == 64  # as many as there is room for
        assert server.complete("abc", max_tokens=9) == sample(tiny("llama"), BYTES, "abc", max_tokens=9, temperature=0)


def test_beyond_the_slots_and_the_queue_clients_are_told_to_come_again(server):
    """Four run and eight wait; what was told to come again is not counted, and room is there as soon as one leaves."""
    assert server.rests()
    streams = [raw(server, posted({**LONG, "stream": True})) for _ in range(12)]
    until(lambda: server.service.admitted == 12)
    answer = server.post("/v1/completions", prompt="x")
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.json()["error"]["type"] == "rate_limit_error"
    with pytest.raises(openai.RateLimitError):
        server.openai.completions.create(model="run", prompt="x")
    assert server.post("/v1/states", name="never", text="x").status_code == 429
    assert server.http.get("/health").status_code == 200
    streams[0].close()
    until(lambda: server.service.admitted == 11)
    streams[0] = raw(server, posted({**LONG, "stream": True}))
    until(lambda: server.service.admitted == 12)
    for stream in streams:
        stream.close()
    assert server.rests()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_within_a_step(server, stream, monkeypatch):
    steps, step = [], Engine.step

    def slow(self):
        time.sleep(0.01)
        steps.append(time.monotonic())
        step(self)

    monkeypatch.setattr(Engine, "step", slow)
    for body in ({**LONG, "stream": stream}, {**LONG, "stream": stream, "n": 2}):
        connection = raw(server, posted(body))
        until(lambda: server.worker.stats().running > 0)
        connection.close()
        left = time.monotonic()
        until(lambda: server.worker.stats().running == 0)
        assert len([at for at in steps if at > left + 0.02]) <= 2
        assert server.rests()
    with raw(server, posted({"name": "x", "text": "y" * 2900, "stream": stream}, "/v1/states")):
        until(lambda: server.worker.stats().reading > 0)
    assert server.rests()
    assert server.http.get("/v1/states/x").status_code == 404


@pytest.mark.slow
def test_one_client_that_leaves_does_not_disturb_others(server):
    expected = server.complete("y", max_tokens=300)
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(server.complete, "y", max_tokens=300) for _ in range(3)]
        for _ in range(6):
            raw(server, posted({**LONG, "stream": True})).close()
        assert {other.result() for other in others} == {expected}
    assert server.rests()


def test_metrics(server):
    before = values(server)
    server.complete("abc", max_tokens=7)
    server.post("/v1/completions", prompt="x", top_p=7)
    server.http.get("/v1/no/such/path")
    after = values(server)

    def grown(name, **labels):
        key = name, tuple(sorted(labels.items()))
        return after[key] - before.get(key, 0)

    assert grown("linscale_requests_total", path="/v1/completions", status="200") == 1
    assert grown("linscale_requests_total", path="/v1/completions", status="400") == 1
    assert grown("linscale_requests_total", path="other", status="404") == 1
    assert grown("linscale_tokens_made_total") == 7
    assert grown("linscale_tokens_read_total") == 3  # the last one is read by a step
    assert grown("linscale_time_to_first_token_seconds_count") == 1
    assert after["linscale_slots", ()] == 4
    assert after["linscale_running", ()] == 0
    assert after["linscale_step_seconds", ()] > 0


def values(server):
    """The samples of /metrics, as Prometheus' own parser reads them."""
    text = server.http.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_when_the_engine_fails_clients_are_told_and_health_says_so(model, tmp_path, monkeypatch, caplog):
    with serving(tmp_path, model) as server:
        stream = server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True})
        with stream as answer, caplog.at_level(logging.CRITICAL):
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            monkeypatch.setattr(Engine, "step", broken)
            last = json.loads([*lines][-1].removeprefix("data: "))
        assert last["error"]["type"] == "server_error"
        until(lambda: not server.worker.alive)
        health = server.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "engine stopped")
        answer = server.post("/v1/completions", prompt="x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_stopped")


def broken(self):
    raise RuntimeError("a device is gone")


def test_a_mistake_of_ours_is_a_500_that_says_nothing(server, monkeypatch, caplog):
    monkeypatch.setattr(Metrics, "text", lambda self: 1 // 0)
    with caplog.at_level(logging.CRITICAL):
        answer = server.http.get("/metrics")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the server failed on this request; its log says why"
    assert "ZeroDivision" not in answer.text


@pytest.mark.slow
def test_a_long_prompt_does_not_hold_up_the_loop(server):
    """While a text is read, other paths answer."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(server.post, "/v1/states", name="slow", text="z" * 2900)
        asked = 0
        while not reading.done():
            assert server.http.get("/health").elapsed.total_seconds() < 1
            asked += 1
    assert reading.result().status_code == 201
    assert asked
    server.http.delete("/v1/states/slow")
