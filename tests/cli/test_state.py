"""States on the command line: read once, gone on from as if never interrupted; generate and chat as they are called."""

import dataclasses
import importlib
import inspect
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linscale import cli
from linscale.checkpoint import load, save
from linscale.cli import main
from linscale.data.tokenizer import load_tokenizer
from linscale.generate import session as sessions
from linscale.generate.sample import sample
from linscale.generate.saved_state import StateRecord
from linscale.models import CONFIGS, build_model

ROOT = Path(__file__).parent.parent.parent
SHARED = {"json", "sampling", "store"}  # of several commands; generate.md has the fields of Sampling
TEXT = "To be, or not to be,\nthat is the question:\nWhether 'tis nobler in the mind\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run `run` of a tiny HGRN2 that writes ASCII alone, and the text in a file."""
    folder, tokenizer = tmp_path_factory.mktemp("user"), load_tokenizer("byte")
    shape = {"vocab_size": 257, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.5}
    model = build_model(CONFIGS["hgrn2"](**shape, tie_embeddings=False))
    with torch.no_grad():
        model.embedding.weight[:, 0] += 6  # a channel that is always up, by which other tokens are put down
        model.head.weight[:, 0] = torch.tensor([0.0 if 32 <= token < 127 else -50.0 for token in range(257)])
    optimizer = torch.optim.SGD(model.parameters())
    save(folder / "run", 1, model, optimizer, {"tokens": 0, "tokenizer": tokenizer.fingerprint})
    tokenizer.save(folder / "run")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def call(place, monkeypatch, capsys):
    """Run a command line in that folder; returns its exit status, standard output and standard error."""
    monkeypatch.chdir(place)

    def run(*words, given=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        capsys.readouterr()
        status = main(list(words))
        return status, *capsys.readouterr()

    yield run
    for path in (place / "run" / "states").glob("*.safetensors"):
        path.unlink()


def continuation(call, *words):
    status, out, _ = call("generate", "run", *words, "--json")
    assert status == 0
    return json.loads(out)["continuation"]


@pytest.mark.slow
def test_what_is_generated_from_a_state_is_what_an_uninterrupted_run_makes(call, place):
    model, tokenizer = load(place / "run")
    whole = sample(model, tokenizer, TEXT, max_tokens=30, temperature=0.8, seed=7)
    assert len(set(whole)) > 5
    assert continuation(call, "--prompt", TEXT, "--max-tokens", "30", "--seed", "7") == whole
    first = continuation(call, "--file", "text.txt", "--max-tokens", "12", "--seed", "7", "--save-state", "a")
    second = continuation(call, "--state", "a", "--max-tokens", "18", "--save-state", "b")
    assert first + second == whole
    penalised = ("--repetition-penalty", "1.5", "--max-tokens", "12")
    expected = continuation(call, "--prompt", TEXT * 3, *penalised, "--seed", "7")
    continuation(call, "--prompt", TEXT * 3, *penalised[:2], "--max-tokens", "5", "--seed", "7", "--save-state", "p")
    assert expected.endswith(continuation(call, "--state", "p", *penalised[:2], "--max-tokens", "7"))
    assert continuation(call, "--state", "a", "--max-tokens", "18") == second
    assert call("state", "create", "run", "--name", "c", "--prompt", TEXT)[0] == 0
    assert continuation(call, "--state", "c", "--max-tokens", "30", "--seed", "7") == whole
    status, out, err = call(
        "generate", "run", "--state", "c", "--prompt", "So", "--max-tokens", "5", "--save-state", "d"
    )
    assert (status, out[:2], len(out)) == (0, "So", 8)
    assert err == f"linscale: state 'd' saved behind {1 + len(TEXT) + 2 + 5} tokens\n"


def test_states_are_listed_shown_forked_and_deleted(call):
    status, out, err = call("state", "create", "run", "--name", "a", "--file", "text.txt", "--keep-tokens")
    assert (status, err) == (0, "")
    assert out.startswith(f"state 'a': {1 + len(TEXT)} tokens in ")
    assert call("state", "fork", "run", "a", "b")[:2] == (0, "state 'b': a copy of 'a'\n")
    assert call("state", "create", "run", "--name", "a", "--prompt", "x", "--state", "a", "--replace", "--bf16")[0] == 0
    status, out, _ = call("state", "list", "run", "--json")
    listed = {each["name"]: each for each in json.loads(out)}
    assert {name: each["tokens"] for name, each in listed.items()} == {"a": 2 + len(TEXT), "b": 1 + len(TEXT)}
    status, out, _ = call("state", "show", "run", "b", "--json")
    assert json.loads(out) == listed["b"]
    out = call("state", "show", "run", "b")[1]
    assert "hgrn2, " in out
    assert f"{1 + len(TEXT)}, kept" in out
    assert "bfloat16, rounded from float32" in call("state", "show", "run", "a")[1]
    assert "hgrn2" in call("state", "list", "run")[1]
    step = str(Path("run") / "checkpoints" / "step_00000001")
    assert json.loads(call("state", "list", step, "--json")[1])[0]["name"] == "a"
    assert call("state", "delete", "run", "a")[:2] == (0, "state 'a': deleted\n")
    assert call("state", "list", "run", "--store", "elsewhere", "--json")[1] == "[]\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("state nope", "unknown command 'linscale state nope'; expected one of create, list, show, fork, delete"),
        ("state create run --name a", "prompt, file: expected one of --prompt TEXT and --file FILE"),
        ("state create run --name a --prompt x --file y", "prompt, file: expected one of"),
        ("state create run --name ../a --prompt x", "state name '../a': expected 1 to 100 letters"),
        ("state create run --name a --file none.txt", "file none.txt: no such file"),
        ("state create run --name a --prompt \udcff", "prompt: character 0 is not valid Unicode"),
        ("state create none --name a --prompt x", "none: no such folder; expected a run folder or a checkpoint folder"),
        ("state create text.txt --name a --prompt x", "text.txt: no such folder"),
        ("state show run a", "state 'a': not in run/states, which has none"),
        ("state fork run a b", "state 'a': not in run/states, which has none"),
        ("state delete run a", "state 'a': not in run/states, which has none"),
        ("generate run", "prompt: not given; expected --prompt TEXT, --file FILE or --state NAME"),
        ("generate run --prompt x --file y", "prompt and file: both are given"),
        ("generate run --state a", "state 'a': not in run/states, which has none"),
        ("generate run --prompt x --save-state a/b", "state name 'a/b'"),
        ("generate run --prompt x --seed -1", "seed = -1"),
        ("chat run --state a", "state 'a': not in run/states, which has none"),
        ("generate run --prompt x --logprobs 1", "logprobs: not part of the text; add --json"),
        ("chat run --max-tokens 0", "max_tokens = 0: expected at least 1"),
        ("chat run --logprobs 1", "logprobs: a conversation shows none"),
    ],
)
def test_bad_input_is_one_line_that_names_it(call, words, problem):
    status, out, err = call(*words.split())
    assert (status, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_long_file_is_read_in_chunks_with_progress_and_its_state_is_no_larger(call, place, monkeypatch):
    draw = random.Random(0)
    words = [draw.choice(["to", "be", "or", "not", "that", "is\n", "the", "question"]) for _ in range(6000)]
    (place / "long.txt").write_text(" ".join(words))
    count = (place / "long.txt").stat().st_size + 1
    monkeypatch.setattr(sessions, "CHUNK", 1000)
    assert count > 20 * sessions.CHUNK
    lengths, advance = [], sessions.Session._advance
    monkeypatch.setattr(
        sessions.Session,
        "_advance",
        lambda self, tokens, state: lengths.append(len(tokens)) or advance(self, tokens, state),
    )
    status, out, err = call("state", "create", "run", "--name", "long", "--file", "long.txt")
    assert status == 0
    assert f"{count:,} tokens in " in out
    assert "reading long.txt  100%" in err
    assert set(lengths[:-1]) == {sessions.CHUNK}
    assert sum(lengths) == count
    assert call("state", "create", "run", "--name", "short", "--file", "text.txt")[0] == 0
    sizes = {each["name"]: each["bytes"] for each in json.loads(call("state", "list", "run", "--json")[1])}
    assert abs(sizes["long"] - sizes["short"]) < 200
    given = continuation(call, "--prompt", (place / "long.txt").read_text(), "--max-tokens", "20")
    assert continuation(call, "--state", "long", "--max-tokens", "20") == given


def test_a_conversation_keeps_its_state_and_forks(call, place):
    options = ("--max-tokens", "6", "--seed", "1")
    given = "Hello\n\n/save\n/save a\nMore\n/save\n/fork b\nAnd more\n/save\n/nope\n/save ../c\n/quit\nnever"
    status, out, err = call("chat", "run", *options, given=given)
    assert status == 0
    answers = out.splitlines()
    assert [len(answer) for answer in answers] == [6, 6, 6]
    notes = err.splitlines()
    assert "a name is needed the first time" in notes[0]
    assert [note for note in notes if "saved behind" in note] == [
        f"linscale: state '{name}' saved behind {tokens} tokens"
        for name, tokens in (("a", 29), ("a", 57), ("b", 57), ("b", 89))
    ]
    assert "/nope: not a command" in notes[-2]
    assert "state name '../c'" in notes[-1]
    # From the fork's copy of the state, the same message is answered alike; what was never read again is all known.
    assert call("chat", "run", "--state", "a", "--max-tokens", "6", given="And more\n")[1].splitlines() == answers[2:]
    prompt = "User: Hello\nAssistant:"
    whole = continuation(call, "--prompt", prompt, *options)
    assert whole == answers[0]
    assert continuation(call, "--prompt", f"{prompt}{whole}\nUser: More\nAssistant:", "--temperature", "0")


def test_a_conversation_by_the_template_of_the_model(call, place, monkeypatch):
    """The template of the run folder, whose turns are read behind each other, and a token of it that ends answers."""
    source = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}="
    (place / "run" / "chat_template.jinja").write_text(source)
    try:
        _, out, err = call("chat", "run", "--max-tokens", "5", "--seed", "1", given="Hi\nMore\n/save talk\n")
    finally:
        (place / "run" / "chat_template.jinja").unlink()
    first = out.splitlines()[0]
    assert first == continuation(call, "--prompt", "[Hi]=", "--max-tokens", "5", "--seed", "1")
    whole = f"[Hi]={first}][More]={out.splitlines()[1]}"
    assert err == f"linscale: state 'talk' saved behind {1 + len(whole)} tokens\n"


def test_an_interrupted_answer_ends_and_is_kept(call, monkeypatch):
    """Ctrl-C after three characters of the first answer, and while the third message is read."""
    calls = []

    def interrupted(owner, name, count):
        method = getattr(owner, name)

        def call(self, *given):
            calls.append(count(*given))
            if len(calls) in (4, 13):
                raise KeyboardInterrupt
            return method(self, *given)

        monkeypatch.setattr(owner, name, call)

    interrupted(sessions.Session, "_advance", lambda tokens, state: len(tokens))
    interrupted(sessions.Solo, "step", lambda needs: 1)
    given = "Hello\n/save a\nMore\nLost\n/save b\n"
    status, out, err = call("chat", "run", "--max-tokens", "6", "--seed", "1", given=given)
    assert status == 0
    assert calls[12] == len("\nUser: Lost\nAssistant:")
    assert [len(answer) for answer in out.splitlines()] == [3, 6, 0]
    assert [note.split()[-2] for note in err.splitlines()] == [str(23 + 3), str(23 + 3 + 22 + 6)]


def test_the_page_is_true(call, place):
    """Every field, command and option is in it, and its Python runs."""
    page = (ROOT / "docs" / "reference" / "states.md").read_text()
    for field in dataclasses.fields(StateRecord):
        assert re.search(rf"^\|.*`{field.name}`.* \|", page, re.M), field.name
    for verb, place_of in {**cli.VERBS["state"], "chat": cli.VERBS["chat"], "generate": cli.VERBS["generate"]}.items():
        module, name = place_of.split(".")
        command = getattr(importlib.import_module(f"linscale.cli.{module}"), name)
        assert re.search(rf"`(state )?{verb} RUN.*`", page)
        for option in inspect.signature(command).parameters.values():
            if option.kind is option.KEYWORD_ONLY and option.name not in SHARED:
                assert f"--{option.name.replace('_', '-')}`" in page, (verb, option.name)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(code.replace("runs/small", "run"), {})


@pytest.mark.slow
def test_text_is_printed_as_it_is_made(place):
    """The real command: the first characters are there long before the last."""
    words = [sys.executable, "-m", "linscale", "generate", "run", "--prompt", "x", "--max-tokens", "100000000"]
    with subprocess.Popen(
        words, cwd=place, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as child:
        assert len(child.stdout.read(200)) == 200
        child.kill()
