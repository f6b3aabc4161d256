"""A tiny model behind a real server: uvicorn in a thread, and clients of the OpenAI API."""

import asyncio
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn

from linscale import checkpoint
from linscale.data.tokenizer import load_tokenizer
from linscale.generate.engine import Engine
from linscale.generate.engine_config import EngineConfig
from linscale.generate.state_store import StateStore
from linscale.generate.worker import Worker
from linscale.models import CONFIGS, build_model
from linscale.serve.app import create_app
from linscale.serve.options import ServeOptions
from tests.lazy import Lazy

openai = Lazy("openai")

BYTES = load_tokenizer("byte")
KEY = "sk-tiny"


def tiny(arch="hgrn2"):
    """A model that writes ASCII alone, in which every part matters."""
    shape = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 32, "init_std": 0.8}
    model = build_model(CONFIGS[arch](**shape, tie_embeddings=False), seed=0)
    with torch.no_grad():
        for matrix in (each for each in model.blocks.parameters() if each.shape[0] == 32):
            matrix[0] = 0
        model.embedding.weight[:, 0] = 10  # a channel that is always up, by which other tokens are put down
        model.head.weight[:, 0] = torch.tensor([0.0 if 32 <= token < 127 else -80.0 for token in range(257)])
    return model.eval()


def save_run(folder: Path, model) -> Path:
    """A run folder with the model."""
    optimizer = torch.optim.SGD(model.parameters())
    checkpoint.save(folder, 1, model, optimizer, {"tokens": 0, "tokenizer": BYTES.fingerprint})
    BYTES.save(folder)
    return folder


class Running:
    """A server that runs, and ways to ask it."""

    def __init__(self, app, worker, server):
        self.app, self.worker, self.server = app, worker, server
        self.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        self.http = httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
        self.openai = openai.OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0)

    @property
    def service(self):
        return self.app.state.service

    def post(self, path, **body):
        return self.http.post(path, json=body)

    def complete(self, prompt, **body):
        """The text that greedy decoding, unless told otherwise, writes."""
        answer = self.post("/v1/completions", prompt=prompt, **{"temperature": 0, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    def call(self, work):
        """Await something in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.server.servers[0].get_loop()).result(30)

    def rests(self, seconds=5.0):
        """Whether nothing runs, waits or is counted any more, soon."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = self.worker.stats()
            if not (stats.running or stats.reading or stats.waiting or self.service.admitted):
                return not self.service.open_streams
            time.sleep(0.01)
        return False


@contextmanager
def serving(
    folder,
    model,
    *,
    slots=4,
    context=256,
    chunk=64,
    template=None,
    hosts=None,
    tokenizer=BYTES,
    end_tokens=(),
    **options,
):
    """Serve a model from a thread; its states are in folder/run/states."""
    engine = Engine(model, tokenizer, EngineConfig(slots=slots, context=context, chunk=chunk))
    with Worker(engine) as worker:
        app = create_app(
            worker,
            StateStore(folder / "run" / "states"),
            ServeOptions(**options),
            template=template,
            hosts=hosts,
            end_tokens=end_tokens,
        )
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        running = Running(app, worker, server)
        try:
            yield running
        finally:
            running.http.close()
            running.openai.close()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="package")
def model():
    return tiny()


@pytest.fixture(scope="package")
def server(model, tmp_path_factory):
    """A server with a key, few slots, and small limits."""
    limits = {"max_prompt_tokens": 3000, "max_tokens": 2000, "max_waiting": 8, "max_choices": 6}
    with serving(
        tmp_path_factory.mktemp("serve"), model, api_key=("other", KEY), max_body_bytes=100_000, **limits
    ) as it:
        yield it


@pytest.fixture
def names(server):
    """Deletes the states that a test leaves."""
    yield
    for state in server.http.get("/v1/states").json()["data"]:
        assert server.http.delete(f"/v1/states/{state['name']}").json()["deleted"]
