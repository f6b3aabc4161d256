"""/v1/states: a text read once, gone on from by any request, listed, forked and deleted."""

import errno
import json
import shutil
import threading

import pytest

from linscale.generate.sample import sample
from linscale.generate.session import Session
from linscale.generate.state_store import StateStore
from linscale.serve import saved_states
from tests.quick import quick
from tests.serve.conftest import BYTES, serving, tiny

TEXT = "It was the best of times, it was the worst of times. "


@pytest.mark.parametrize("arch", quick(["recurrent_transformer", "llama"], "llama"))
def test_texts_and_states_of_the_other_kinds_of_memory(arch, tmp_path):
    """A window that slides, across the end of its block of 64 tokens; keys and values of all tokens."""
    model = tiny(arch)
    with serving(tmp_path, model) as server:
        whole = sample(model, BYTES, TEXT, max_tokens=40, temperature=0)
        assert server.complete(TEXT, max_tokens=40) == whole
        assert server.post("/v1/states", name="times", text=TEXT).status_code == 201
        answer = server.post("/v1/completions", state="times", temperature=0, max_tokens=40).json()
        assert answer["choices"][0]["text"] == whole


def test_a_state_is_created_listed_forked_deleted_and_gone_on_from(server, model, names):
    made = server.post("/v1/states", name="times", text=TEXT)
    assert made.status_code == 201
    state = made.json()
    assert (state["object"], state["name"], state["tokens"]) == ("state", "times", 1 + len(TEXT))
    assert server.http.get("/v1/states/times").json() == state
    assert server.http.get("/v1/states").json() == {"object": "list", "data": [state]}
    copy = server.post("/v1/states/times/fork", name="again")
    assert (copy.status_code, copy.json()["tokens"]) == (201, state["tokens"])
    whole = sample(model, BYTES, TEXT, max_tokens=20, temperature=0)
    for name in ("times", "again"):
        answer = server.post("/v1/completions", state=name, temperature=0, max_tokens=20).json()
        assert answer["choices"][0]["text"] == whole
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == answer["usage"]["prompt_tokens"]
    further = server.post(
        "/v1/states", name="more", **{"from": "times"}, tokens=[ord("A"), ord("B")], keep_tokens=False
    )
    assert further.json()["tokens"] == state["tokens"] + 2
    behind = server.complete("AB", state="times")
    assert behind == server.post("/v1/completions", state="more", temperature=0).json()["choices"][0]["text"]
    assert server.http.delete("/v1/states/times").json() == {"object": "state", "name": "times", "deleted": True}
    assert server.http.get("/v1/states/times").status_code == 404
    assert server.post("/v1/completions", state="times").status_code == 404


def test_a_text_that_is_saved_and_gone_on_from_is_the_one_of_an_uninterrupted_run(server, names):
    options = {"temperature": 1, "seed": 3}
    whole = server.complete(TEXT, max_tokens=40, **options)
    first = server.post("/v1/completions", prompt=TEXT, max_tokens=15, save_state="half", **options).json()
    assert first["state"]["tokens"] == 1 + len(TEXT) + 15
    second = server.post("/v1/completions", state="half", max_tokens=25, temperature=1).json()
    assert first["choices"][0]["text"] + second["choices"][0]["text"] == whole
    several = server.post("/v1/completions", state="half", max_tokens=25, temperature=1, n=3, seed=1).json()
    assert len({choice["text"] for choice in several["choices"]}) > 1
    with server.http.stream(
        "POST", "/v1/completions", json={"prompt": "x", "save_state": "streamed", "stream": True}
    ) as answer:
        last = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")][-1]
    assert (last["choices"], last["state"]["name"]) == ([], "streamed")


def test_a_long_text_tells_how_far_it_is_read(server, names):
    body = {"name": "long", "text": TEXT * 40, "stream": True}
    with server.http.stream("POST", "/v1/states", json=body) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    *progress, state = (json.loads(line) for line in lines[:-1])
    assert [each["read"] for each in progress] == sorted({each["read"] for each in progress})
    assert len(progress) > 10
    assert progress[-1]["read"] == progress[-1]["total"] == state["tokens"] == 1 + len(TEXT) * 40


WRONG = {
    "a name": ("/v1/states", {"name": "../a", "text": "x"}, 400, "name", "expected 1 to 100 letters"),
    "no name": ("/v1/states", {"text": "x"}, 400, "name", "required"),
    "no text": ("/v1/states", {"name": "b"}, 400, "text", "expected one of them"),
    "two texts": ("/v1/states", {"name": "b", "text": "x", "tokens": [1]}, 400, "text", "expected one of them"),
    "a token": ("/v1/states", {"name": "b", "tokens": [257]}, 400, "tokens", "0 to 256"),
    "no tokens": ("/v1/states", {"name": "b", "tokens": []}, 400, "tokens", "at least 1 item"),
    "too long": ("/v1/states", {"name": "b", "text": "x" * 3000}, 400, "text", "at most 3000"),
    "an origin": ("/v1/states", {"name": "b", "text": "x", "from": "nope"}, 404, "from", "there is none"),
    "tokens that were not kept": (
        "/v1/states", {"name": "b", "text": "x", "from": "a", "keep_tokens": True}, 400, "keep_tokens", "no tokens",
    ),
    "taken": ("/v1/states", {"name": "a", "text": "x"}, 409, "name", "there already"),
    "a fork of none": ("/v1/states/nope/fork", {"name": "b"}, 404, "name", "there is none"),
    "a fork to itself": ("/v1/states/a/fork", {"name": "a"}, 409, "name", "there already"),
    "a fork to a path": ("/v1/states/a/fork", {"name": "/etc/x"}, 400, "name", "expected 1 to 100 letters"),
    "a completion's name": ("/v1/completions", {"save_state": "a"}, 409, "save_state", "there already"),
}  # fmt: skip


def test_what_is_wrong_is_named(server, names):
    assert server.post("/v1/states", name="a", text="x").status_code == 201
    for case, (path, body, status, field, reason) in WRONG.items():
        answer = server.post(path, **body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, field), case
        assert reason in error["message"], case
    for method in ("GET", "DELETE"):
        assert server.http.request(method, "/v1/states/nope").status_code == 404
        assert server.http.request(method, "/v1/states/%2e%2e%2fa").status_code in (400, 404)
    assert server.post("/v1/states", name="a", text="y", replace=True).status_code == 201


def test_a_damaged_state_and_one_of_another_model_are_refused_without_the_place_of_the_folder(server, names):
    folder = server.service.states._store.folder
    server.post("/v1/states", name="whole", text="x")
    (folder / "half.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-9])
    other = tiny("tnl")
    StateStore(folder).save("other", session_of(other).snapshot(), other, BYTES)
    for name, reason in (("half", "damaged or not a state"), ("other", "made by model")):
        answer = server.post("/v1/completions", prompt="x", state=name)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (409, "state_unusable")
        assert reason in error["message"]
        assert str(folder) not in error["message"]
    assert [each["name"] for each in server.http.get("/v1/states").json()["data"]] == ["other", "whole"]
    (folder / "half.safetensors").unlink()


def session_of(model):
    session = Session(model, BYTES)
    session.read([256, 1, 2])
    return session


def test_states_are_loaded_once_kept_within_bounds_and_read_again_when_their_file_changes(model, tmp_path, monkeypatch):
    loads, load = [], StateStore.load

    def noted(self, name, *rest, **more):
        loads.append(name)
        return load(self, name, *rest, **more)

    monkeypatch.setattr(StateStore, "load", noted)
    with serving(tmp_path, model) as server:
        for name in "abc":
            server.post("/v1/states", name=name, text=TEXT + name)
        assert server.complete("x", state="c")
        assert loads == []  # what was saved is in memory
        states = server.service.states
        states._loaded.clear()
        threads = [threading.Thread(target=server.complete, args=("x",), kwargs={"state": "a"}) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert loads == ["a"]
        server.post("/v1/states/b/fork", name="a", replace=True)
        assert server.complete("x", state="a") == server.complete("x", state="b")
        assert loads == ["a", "a", "b"]
        (one,) = {saved_states._bytes(each) for each in states._loaded.values()}
        states._most_bytes = 2 * one
        for name in "cbac":
            server.complete("x", state=name)
        assert [version.name for version in states._loaded] == ["a", "c"]
        states._most_bytes = 0
        assert server.complete("x", state="b") == server.complete("x", state="a")
        assert not states._loaded


def test_a_state_that_is_deleted_or_saved_by_others_meanwhile(server, names, monkeypatch):
    store = server.service.states._store
    server.post("/v1/states", name="a", text="x")
    path, record = store.path("a"), store.show("a")

    def deleted(self, name):
        path.unlink(missing_ok=True)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(StateStore, "show", deleted)
        gone = server.http.get("/v1/states/a")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "state_not_found")
        server.post("/v1/states", name="b", text="x")
        path = store.path("b")
        patch.setattr(StateStore, "list", lambda self: {"b": self.show("b")})
        assert server.http.get("/v1/states").json()["data"] == []
    server.post("/v1/states", name="c", text="x")
    copy = shutil.copyfile
    monkeypatch.setattr("shutil.copyfile", lambda old, new: (old.unlink(), copy(old, new)))
    gone = server.post("/v1/states/c/fork", name="d")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "state_not_found")


def test_a_state_that_cannot_be_written_leaves_the_one_before(server, names, monkeypatch):
    before = server.post("/v1/states", name="a", text="x").json()
    with monkeypatch.context() as patch:
        patch.setattr("linscale.generate.saved_state.save_file", full)
        for path, body in (
            ("/v1/states", {"name": "a", "text": "y"}),
            ("/v1/completions", {"prompt": "y", "save_state": "a"}),
        ):
            error = server.post(path, **body, replace=True).json()["error"]
            assert (error["type"], error["code"]) == ("server_error", "state_not_saved")
            assert "No space left on device" in error["message"]
            assert str(server.service.states._store.folder) not in error["message"]
    assert server.http.get("/v1/states/a").json() == before
    assert server.rests()


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")
