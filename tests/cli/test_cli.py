"""The command line as a user calls it: what it prints where, exit statuses, and bad input as one clear line."""

import functools
import importlib
import json
import os
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from linscale import cli
from linscale.cli import main, output
from linscale.config import UserError
from linscale.generate.continuation import Piece
from linscale.run_folder import write_json

RUN = """
name = "small"

[model]
arch = "hgrn2"
vocab_size = 257
d_model = 16
n_layers = 1
head_dim = 8
d_ff = 32

[data]
path = "corpus"

[train]
tokens = 2048
batch_tokens = 256
length = 32
checkpoints = 2
validation_tokens = 256
device = "cpu"
"""

STUDY = """
name = "ladder"
archs = ["tnl"]

[data]
path = "corpus"

[train]
tokens = 2048
batch_tokens = 256
length = 32

[[sizes]]
name = "a"
d_model = 16
n_layers = 1
head_dim = 8
"""

PREPARE = ["data", "prepare", "builtin:tinyshakespeare", "--document-bytes", "4096", "--val-fraction", "0.05"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a prepared corpus, a train file, a study file, and a trained run."""
    folder = tmp_path_factory.mktemp("user")
    before = Path.cwd()
    os.chdir(folder)
    try:
        (folder / "small.toml").write_text(RUN)
        (folder / "ladder.toml").write_text(STUDY)
        (folder / "file").write_text("text")
        assert main([*PREPARE, "--out", "corpus"]) == 0
        assert main(["train", "small.toml", "--out", "run"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def call(place, monkeypatch, capsys):
    """Run a command line in that folder; returns its exit status, standard output and standard error."""
    monkeypatch.chdir(place)

    def run(*words):
        capsys.readouterr()
        status = main(list(words))
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("nope", "unknown command 'linscale nope'; expected one of info, data, train, runs, study, "),
        ("study nope", "unknown command 'linscale study nope'; expected one of plan, run, status, report"),
        ("info --lenght 5", "--lenght, 5; Perhaps you meant: --length INT"),
        ("info --length many", "--length: invalid literal for int() with base 10: 'many'"),
        ("info --length 0", "length = 0: expected at least 1"),
        ("info mamba", "arch = 'mamba': expected one of llama, tnl, hgrn2, cosformer2"),
        ("info tnl --size 12M", "size = '12M': expected one of 70M"),
        ("train", "Missing from linscale train: PATH"),
        ("generate run", "prompt: not given; expected --prompt TEXT, --file FILE or --state NAME"),
        ("data prepare file.txt --out new --workers 0", "workers = 0: input should be greater than or equal to 1"),
        ("data prepare file.txt --out new --val-fraction 2", "val_fraction = 2.0: input should be less than 1"),
        ("data prepare file.txt --out new", "input 'file.txt': no such file or folder"),
        ("data prepare builtin:tinyshakespeare --out file", "out = file: is a file; expected a folder"),
        ("data prepare builtin:tinyshakespeare --out file/new", "file/new: a file is in the way; expected a folder"),
        ("data prepare builtin:tinyshakespeare --tokenizer bpe:7 --out new", "tokenizer = 'bpe:7'"),
        ("data verify run", "run: not a prepared corpus"),
        ("train none.toml", "none.toml: no such file; expected a TOML file"),
        ("train small.toml --out file", "file: a file is in the way; expected a folder"),
        ("train small.toml --out corpus/manifest.json/x", "a file is in the way"),
        ("generate none --prompt x", "none: no such folder; expected a run folder or a checkpoint folder"),
        ("generate corpus --prompt x", "corpus: neither a checkpoint nor a run folder with checkpoints"),
        ("generate run --prompt x --max-tokens 0", "max_tokens = 0: expected at least 1"),
        ("generate run --prompt \udcff", "prompt: character 0 is not valid Unicode"),
        ("study run ladder.toml --workers 0", "workers = 0: expected at least 1"),
        ("study run ladder.toml --address head:6379", "address = head:6379: not an option of executor = local"),
        ("study run ladder.toml --executor ray --workers 2", "workers = 2: not an option of executor = ray"),
        ("study run ladder.toml --out file", "file/ladder: a file is in the way; expected a folder"),
        ("study report ladder.toml --out none", "none/ladder: no such folder"),
    ],
)
def test_bad_input_is_one_line_that_names_it(call, words, problem):
    status, out, err = call(*words.split())
    assert (status, out) == (2, "")
    assert err.startswith("linscale: ")
    assert problem in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("d_model = 16", "d_model = -16", "model.d_model = -16: input should be greater than 0"),
        ("head_dim = 8", "head_dim = 7", "model: d_model = 16 is not a multiple of head_dim = 7"),
        (
            '"hgrn2"',
            '"mamba"',
            "model.arch = 'mamba': expected one of 'llama', 'tnl', 'hgrn2', 'cosformer2', 'recurrent_transformer', "
            "'linearized'",
        ),
        ("vocab_size = 257", "vocab_size = 256", "model.vocab_size = 256: the tokenizer of corpus has 257 tokens"),
        ("length = 32", "lenght = 32", "unknown key 'train.lenght' (expected one of tokens, batch_tokens, length,"),
        ("tokens = 2048", "tokens = 0", "train.tokens = 0: input should be greater than 0"),
        ('path = "corpus"', 'path = "none"', "none: not a prepared corpus"),
        ('name = "small"', 'name = "../small"', "name = '../small': string should match pattern"),
        ("[train]", "[train", "not valid TOML"),
    ],
)
def test_a_bad_train_file_is_one_line_and_leaves_no_run(call, place, old, new, problem):
    (place / "bad.toml").write_text(RUN.replace(old, new))
    status, out, err = call("train", "bad.toml", "--out", "bad")
    assert (status, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1
    assert not (place / "bad" / "config.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        "info tnl --size 410M",
        "data verify corpus",
        "train small.toml --out run",
        "study plan ladder.toml --workers 1",
        "study status ladder.toml",
        "runs .",
        "generate run --prompt ROMEO: --max-tokens 4",
        " ".join([*PREPARE, "--out", "corpus"]),
    ],
)
def test_json_stands_alone_on_standard_output(call, words):
    status, out, err = call(*words.split(), "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)
    status, out, err = call(*words.split())
    assert (status, err) == (0, "")
    assert out.strip()


def test_every_command_explains_itself(call, capsys):
    assert call("--help")[0] == 0
    assert call("--version")[1].startswith("linscale ")
    assert call()[:2] == (2, "")
    for name in cli.SUMMARIES:
        with pytest.raises(SystemExit) as end:
            call(*name.split(), "--help")
        assert end.value.code == 0
        text = capsys.readouterr().out
        place = functools.reduce(lambda verbs, word: verbs[word], name.split(), cli.VERBS)
        module, function = place.split(".")
        assert f"usage: linscale {name}" in text
        command = getattr(importlib.import_module(f"linscale.cli.{module}"), function)
        assert command.__doc__.splitlines()[0] in text


@pytest.mark.parametrize("prompt", ["", "é漢字🦋", "to be " * 500])
def test_any_text_can_be_continued(call, prompt):
    status, out, _ = call("generate", "run", "--prompt", prompt, "--max-tokens", "3", "--json")
    assert status == 0
    assert json.loads(out)["prompt"] == prompt


def test_a_continuation_is_the_same_as_text_and_as_json(call):
    words = ["generate", "run", "--prompt", "To be", "--max-tokens", "30", "--top-p", "0.9", "--seed", "4"]
    found = json.loads(call(*words, "--logprobs", "2", "--json")[1])
    assert call(*words)[1] == f"To be{found['continuation']}\n"
    assert found["finish_reason"] in ("stop", "length")
    assert {len(found[name]) for name in ("tokens", "logprobs", "top_logprobs", "offsets")} == {len(found["tokens"])}
    assert [len(best) for best in found["top_logprobs"]] == [2] * len(found["tokens"])
    stop = found["continuation"][3:5]
    cut = json.loads(call(*words, "--stop", "no such text", "--stop", stop, "--json")[1])
    assert cut["continuation"] == found["continuation"][: found["continuation"].index(stop)]
    assert cut["finish_reason"] == "stop"
    status, _, err = call(*words, "--min-p", "1.5")
    assert (status, "min_p = 1.5: expected 0 to 1" in err) == (2, True)


def test_text_is_printed_as_it_is_made(call, capsys, monkeypatch):
    printed = []

    def stream(session, sampling):
        for text in ("one", "", "two"):
            yield Piece(65, text, 0, None, (), None)
            printed.append(capsys.readouterr().out)

    monkeypatch.setattr("linscale.generate.session.Session.stream", stream)
    assert call("generate", "run", "--prompt", "zero")[:2] == (0, "\n")
    assert printed == ["zeroone", "", "two"]


def test_signals_and_system_errors_are_one_line(call, monkeypatch):
    def meet(event):
        def info():
            """Meets an event."""
            event()

        monkeypatch.setattr("linscale.cli.info.info", info)
        return call("info")

    def full():
        raise OSError(28, "No space left on device", "somewhere")

    def interrupted():
        raise KeyboardInterrupt

    def refused():
        raise UserError("x = 1: expected 2")

    before = signal.getsignal(signal.SIGTERM)
    again = "run the same command again to go on"
    assert meet(full)[::2] == (2, "linscale: somewhere: No space left on device; what was written before is kept\n")
    assert meet(interrupted)[::2] == (130, f"linscale: interrupted; {again}\n")
    assert meet(refused)[::2] == (2, "linscale: x = 1: expected 2\n")
    assert meet(lambda: signal.raise_signal(signal.SIGTERM))[::2] == (143, f"linscale: terminated; {again}\n")
    assert signal.getsignal(signal.SIGTERM) is before
    thread = threading.Thread(target=lambda: meet(lambda: None))  # where no handler may be set
    thread.start()
    thread.join()


def test_sigterm_saves_the_step_that_is_being_done_and_the_same_command_goes_on(call, place, monkeypatch):
    """The handler of the process is the real one; the signal comes from the loop itself, so that it comes in time."""
    from linscale.train import trainer

    passed = []

    def step(run, batches):
        passed.append(None)
        if len(passed) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(run, batches)

    accumulate = trainer._accumulate
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_accumulate", step)
        status, out, err = call("train", "small.toml", "--out", "stopped", "--json")
    assert status == 0
    assert json.loads(out)["state"] == "stopped"
    assert err.splitlines()[-1] == (
        "linscale: stopped: stopped by SIGTERM and saved at step 3 of 8; run the same command again to go on"
    )
    assert (Path("stopped") / "checkpoints" / "step_00000003").is_dir()
    status, out, _ = call("train", "small.toml", "--out", "stopped", "--json")
    assert (status, json.loads(out)["state"]) == (0, "done")
    name = "checkpoints/step_00000008/model.safetensors"
    assert (Path("stopped") / name).read_bytes() == (Path("run") / name).read_bytes()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_the_time_left_and_nothing_before_it_begins(monkeypatch, terminal):
    now = [100.0]
    console = Console(force_terminal=terminal, width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    monkeypatch.setattr(output, "stderr_console", lambda: console)
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: now[0]))  # others in the process keep theirs
    with output.ProgressBar():
        pass
    assert console.export_text() == ""
    with output.ProgressBar() as bar:
        for completed in (500, 510, 520, 1000, 1000):  # a resume: the 500 before are no speed of this process
            bar.update("work", completed, 1000)
            if terminal:
                assert bar._bars is not None
                left = bar._bars.tasks[0].fields["left"]
                assert left == {500: "ETA ...", 510: "ETA 9:48", 520: "ETA 9:36", 1000: "ETA 0:00"}[completed]
            now[0] += 12.0
    console.file.close()
    if not terminal:
        lines = console.export_text().splitlines()
        assert lines == ["work  51%  ETA 9:48", "work  52%  ETA 9:36", "work  100%  ETA 0:00"]


def test_times_and_sizes_for_people():
    seconds = (0.1234, 59.9, 95, 7200, 86400 * 3, 3.2e10, 1.96e12)
    found = [output.duration(value) for value in seconds]
    assert found == ["0.123 s", "59.9 s", "1 min 35 s", "2 h", "3 days", "1,014 years", "62,109 years"]
    assert [output.file_size(value) for value in (12, 1_234_567, 15.4e12)] == ["12 B", "1.23 MB", "15.4 TB"]


def test_a_damaged_newest_checkpoint_is_not_passed_over_in_silence(call, place, caplog):
    newest = sorted((place / "run" / "checkpoints").iterdir())[-1] / "model.safetensors"
    good = newest.read_bytes()
    newest.write_bytes(good[:-1])
    try:
        assert call("generate", "run", "--prompt", "x", "--max-tokens", "2")[0] == 0
        assert re.search(r"passing over a damaged checkpoint: .*truncated", caplog.text)
        status, _, err = call("generate", str(newest.parent), "--prompt", "x")
        assert (status, "truncated" in err) == (2, True)
    finally:
        newest.write_bytes(good)


def test_a_run_of_another_config_is_refused_by_field(call, place):
    (place / "other.toml").write_text(RUN.replace("length = 32", "length = 64"))
    status, _, err = call("train", "other.toml", "--out", "run")
    assert status == 2
    assert "run: made with another config (train.length = 32 there, 64 here)" in err
    write_json(place / "odd" / "config.json", [])
    status, _, err = call("train", "small.toml", "--out", "odd")
    assert status == 2
    assert "config.json: not the config of a run" in err
