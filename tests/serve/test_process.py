"""linscale serve as a process: it says where it listens, drains when it is told to stop, and refuses bad options."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from fastapi import FastAPI

from linscale.cli import main
from linscale.cli import serve as command
from linscale.config import UserError
from linscale.generate.sample import sample
from linscale.serve.process import drain, listen
from linscale.serve.process import run as serve_until_told
from tests.lazy import Lazy
from tests.serve.conftest import BYTES, KEY, save_run, serving, tiny

openai = Lazy("openai")

LONG = {"prompt": "x", "temperature": 0, "stream": True, "ignore_eos": True}
START = "import sys, torch; torch.set_num_threads(1); from linscale.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "keys").write_text(f"{KEY}\n\nanother\n")
    return save_run(folder / "small", tiny())


@contextmanager
def process(run, *options):
    """A server as a process, and a client of it."""
    words = ("serve", str(run), "--port", "0", "--api-key-file", str(run.parent / "keys"), *options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen([sys.executable, "-c", START, *words], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr.readline() == "linscale: loading small\n"
        line = server.stderr.readline()
        address = re.fullmatch(r"linscale: serving small at (http://127\.0\.0\.1:\d+)/v1\n", line)
        assert address, line + server.stderr.read()
        with httpx.Client(base_url=address[1], headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
            yield server, client
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def streamed(client, **body):
    """The events of a completion."""
    with client.stream("POST", "/v1/completions", json={**LONG, **body}) as answer:
        assert answer.status_code == 200
        yield from (line.removeprefix("data: ") for line in answer.iter_lines() if line)


@pytest.mark.slow
def test_it_drains_when_it_is_told_to_stop(run):
    with process(run, "--slots", "2", "--drain-s", "60") as (server, client):
        with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="another") as theirs:
            text = (
                theirs.completions.create(model="small", prompt="To be", temperature=0, max_tokens=30).choices[0].text
            )
        assert text == sample(tiny(), BYTES, "To be", max_tokens=30, temperature=0)
        events = streamed(client, max_tokens=2000)
        next(events)
        server.send_signal(signal.SIGTERM)
        refused = client.post("/v1/completions", json={"prompt": "x"})
        while refused.status_code == 200:  # the signal is on its way
            refused = client.post("/v1/completions", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert int(refused.headers["Retry-After"]) > 0
        assert client.get("/health").status_code == 503
        assert server.poll() is None
        *_, last, done = events
        assert (json.loads(last)["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
        assert server.wait(10) == 0
        assert (
            server.stderr.read()
            == "linscale: stopping: texts under way (1) have 60 s to end; a second signal ends them\n"
        )


def test_texts_that_do_not_end_in_time_are_given_up(tmp_path):
    with serving(tmp_path, tiny(), max_tokens=10**6) as server:
        events = streamed(server.http, max_tokens=10**6)
        next(events)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(server.post, "/v1/completions", **{**LONG, "stream": False}, max_tokens=10**6)
            while server.service.admitted < 2:
                time.sleep(0.01)
            began = time.monotonic()
            server.call(drain(server.service, 0.2, asyncio.Event()))
            *_, last = events
            assert 0.1 < time.monotonic() - began < 5
            for error in (json.loads(last)["error"], whole.result().json()["error"]):
                assert error["message"] == "the server shut down before the text ended"
                assert error["code"] == "shutting_down"
            assert whole.result().status_code == 503
        assert server.post("/v1/completions", prompt="x").status_code == 503
        assert server.rests()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--port", "99999"), "port = 99999: expected 0 to 65535"),
        (("--host", "192.0.2.1", "--port", "0"), "cannot listen at 192.0.2.1"),
        (("--host", "no.such.name.invalid"), "host = 'no.such.name.invalid'"),
        (("--api-key-file", "nothing"), "api_key_file = 'nothing': cannot be read"),
        (("--api-key", " "), "api_key: one is empty or not ASCII"),
        (("--max-tokens", "0"), "max_tokens = 0"),
        (("--device", "tpu"), "invalid choice"),
        (("--slots", "0"), "slots = 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_bad_option_is_one_line(run, capsys, options, problem):
    assert main(["serve", str(run), *options]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_a_folder_that_is_not_there_and_a_package_that_is_missing(run, capsys, monkeypatch):
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 2
    assert f"port = {port}: cannot listen at 127.0.0.1 (Address already in use)" in capsys.readouterr().err
    assert main(["serve", "none"]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    with listen("127.0.0.1", 0) as first, listen("127.0.0.1", first.getsockname()[1]) as second:  # both still load
        first.listen()
        with pytest.raises(UserError, match=r"port = \d+: cannot listen at 127.0.0.1 \(Address already in use\)"):
            serve_until_told(FastAPI(), second, 1, print)
    monkeypatch.setattr(command, "NEEDED", ("fastapi", "no_such_package"))
    assert main(["serve", str(run)]) == 2
    assert "no_such_package: not installed; pip install 'linscale[serve]'" in capsys.readouterr().err


def test_small_answers_are_sent_at_once():
    found = asyncio.Queue()

    async def nodelay():
        with listen("127.0.0.1", 0) as bound:
            server = await asyncio.start_server(lambda _, writer: found.put_nowait(writer), sock=bound)
            _, client = await asyncio.open_connection(*bound.getsockname())
            writer = await found.get()
            option = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for each in (client, writer):
                each.close()
                await each.wait_closed()
            server.close()
            return option

    assert asyncio.run(nodelay())
