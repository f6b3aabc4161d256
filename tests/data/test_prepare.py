"""Preparing a corpus: the same bytes for any number of workers, any number of kills, and a disk that was full."""

import itertools
import json
import os
import random
import subprocess
import sys

import pytest

from linscale.config import UserError
from linscale.data import PrepareOptions, TokenDataset, load_tokenizer, prepare
from linscale.data.encode import split_of
from linscale.run_folder import write_json

CHILD = """
import importlib, json, os, sys, time
from linscale.data import PrepareOptions
module = importlib.import_module("linscale.data.prepare")

def stop_at(count):
    "Say so and wait to be killed at the count-th moment at which a file is about to be synced, renamed or removed."
    left = [count]
    def watched(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                print("now", flush=True)
                time.sleep(600)
            return function(*arguments, **options)
        return call
    os.fsync, os.replace, os.unlink = watched(os.fsync), watched(os.replace), watched(os.unlink)

def main(inputs, out, tokenizer, options, pool_bytes, stop, limit):
    module.POOL_BYTES = pool_bytes
    if stop:
        stop_at(stop)
    if limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    def progress(*counts):
        if not limit:
            print(*counts, flush=True)
    try:
        module.prepare(inputs, out=out, tokenizer=tokenizer, options=PrepareOptions(**options), progress=progress)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        sys.exit(2)

if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Three files, 900 documents of 0 to 2 kB of random words, some with the name of the end-of-text token."""
    folder, draw = tmp_path_factory.mktemp("inputs"), random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(1, 9))) for _ in range(500)] + ["<|endoftext|>", "é"]
    for name in "abc":
        texts = [" ".join([f"{name}{number}", *draw.choices(words, k=draw.randrange(400))]) for number in range(300)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def child(tmp_path, inputs):
    """A starter of real processes that prepare `inputs` into a folder."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)

    def start(out, *, tokenizer="byte", pool_bytes=1 << 30, stop=0, limit=0, **options):
        arguments = {"inputs": [str(inputs)], "out": str(out), "tokenizer": tokenizer, "options": OPTIONS | options}
        arguments |= {"pool_bytes": pool_bytes, "stop": stop, "limit": limit}
        command = [sys.executable, str(script), json.dumps(arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start


OPTIONS = {"shard_tokens": 100_000, "val_fraction": 0.05}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, inputs):
    """What an undisturbed preparation in this process writes, by tokenizer."""
    made = {}
    for tokenizer in ("byte", "bpe:400"):
        out = tmp_path_factory.mktemp("whole") / "out"
        prepare([str(inputs)], tokenizer=tokenizer, out=out, options=PrepareOptions(**OPTIONS))
        made[tokenizer] = files(out)
        assert len(made[tokenizer]) >= 10
        assert not any(name.startswith(".") or name == "journal.json" for name in made[tokenizer])
    return made


@pytest.mark.slow
def test_documents_go_to_the_split_of_their_hash(inputs, tmp_path):
    manifest = prepare([str(inputs)], tokenizer="bpe:400", out=tmp_path / "out", options=PrepareOptions(**OPTIONS))
    dataset = TokenDataset.open(tmp_path / "out", verify=True)
    lines = [line for path in sorted(inputs.iterdir()) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [json.loads(line)["text"] for line in lines]
    for split in ("train", "val"):
        starts = dataset.document_starts(split, 0, dataset.tokens(split)).tolist()
        found = [
            dataset.tokenizer.decode(dataset.read(split, first + 1, after))
            for first, after in itertools.pairwise([*starts, dataset.tokens(split) - 1])
        ]
        assert found == [text for text in texts if split_of(text.encode(), 0, 0.05) == split]
        assert manifest["splits"][split]["documents"] == len(found)
    assert 20 < len(found) < 80
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert manifest["tokenizer"]["vocab_size"] == dataset.vocab_size == 400


def test_the_share_and_the_seed_of_the_validation_split():
    texts = [f"document {number}".encode() for number in range(4000)]
    drawn = [{text for text in texts if split_of(text, seed, 0.1) == "val"} for seed in (0, 1)]
    assert all(330 < len(split) < 470 for split in drawn)
    assert len(drawn[0] & drawn[1]) < 80
    assert drawn[0] <= {text for text in texts if split_of(text, 0, 0.2) == "val"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_writes_the_same_bytes(child, whole, tmp_path, workers):
    out, _ = child(tmp_path / "out", tokenizer="bpe:400", pool_bytes=0, workers=workers).communicate(timeout=60)
    assert files(tmp_path / "out") == whole["bpe:400"]
    read = [int(line.split()[0]) for line in out.splitlines()]
    assert read == sorted(read)
    assert read[-1] == int(out.split()[-3])


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:400"])
def test_kill_at_any_moment_and_go_on(child, whole, tmp_path, tokenizer):
    """Killed over and over at random moments around syncs and renames, it arrives at the same bytes, and a shard
    that the journal lists is never written again."""
    draw, out, kills = random.Random(tokenizer), tmp_path / "out", 0
    done = {}
    while True:
        process = child(out, tokenizer=tokenizer, stop=draw.randrange(1, 28))
        killed = "now" in (line.strip() for line in iter(process.stdout.readline, ""))
        process.kill()
        process.communicate(timeout=60)
        assert {name: (out / name).stat().st_mtime_ns for name in done} == done
        if not killed:
            break
        kills += 1
        assert kills < 40
        journal = out / "journal.json"
        splits = json.loads(journal.read_text())["splits"].values() if journal.exists() else []
        names = [shard[kind]["name"] for split in splits for shard in split["shards"] for kind in ("bin", "docs")]
        assert set(names) >= set(done)
        done = {name: (out / name).stat().st_mtime_ns for name in names}
    assert kills >= 3
    assert len(done) > 2
    assert files(out) == whole[tokenizer]


@pytest.mark.slow
def test_killed_with_workers_it_leaves_no_process_and_goes_on(child, whole, tmp_path):
    """The pipe that parent and workers write to closes only when all of them are gone."""
    out = tmp_path / "out"
    process = child(out, tokenizer="bpe:400", pool_bytes=0, workers=2, shard_tokens=50_000, stop=8)
    while process.stdout.readline() != "now\n":
        assert process.poll() is None
    assert (out / "tokenizer.json").exists()  # it is past the training: a shard is being closed, both workers wait
    process.kill()
    process.communicate(timeout=20)
    assert child(out, tokenizer="bpe:400", pool_bytes=0, workers=2, shard_tokens=50_000).wait(timeout=60) == 0
    dataset = TokenDataset.open(out, verify=True)
    undisturbed = json.loads(whole["bpe:400"]["manifest.json"])["splits"]
    for split in ("train", "val"):
        assert dataset.tokens(split) == undisturbed[split]["tokens"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_keeps_what_is_there(child, whole, tmp_path):
    """A file size limit stands in for the full disk: the write fails the same way."""
    process = child(tmp_path / "out", limit=63_800, shard_tokens=30_000)
    message, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message.startswith("UserError")
    assert "free space and run the same command again" in message
    assert (tmp_path / "out" / "train-00000.bin").exists()
    assert child(tmp_path / "out", shard_tokens=30_000).wait(timeout=60) == 0
    undisturbed = json.loads(whole["byte"]["manifest.json"])["splits"]
    assert TokenDataset.open(tmp_path / "out", verify=True).tokens("train") == undisturbed["train"]["tokens"]


def test_finished_it_does_nothing(inputs, tmp_path):
    first = prepare([str(inputs)], out=tmp_path / "out", options=PrepareOptions(**OPTIONS))
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")}
    again = prepare([str(inputs)], out=tmp_path / "out", options=PrepareOptions(**OPTIONS, workers=7))
    assert again == first
    assert times == {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != ".lock"
    }
    (tmp_path / "out" / "train-00000.bin").unlink()
    with pytest.raises(UserError, match="missing; delete the folder"):
        prepare([str(inputs)], out=tmp_path / "out", options=PrepareOptions(**OPTIONS))


def test_another_corpus_in_the_folder_is_refused(tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"line {number}\n" for number in range(500)))

    def run(tokenizer="byte", **changes):
        options = PrepareOptions(**({"document_bytes": 64, "val_fraction": 0.1} | changes))
        return prepare([str(tmp_path / "in.txt")], tokenizer=tokenizer, out=tmp_path / "out", options=options)

    first = run()
    older = {name: value for name, value in first["settings"].items() if name != "seed"}
    write_json(tmp_path / "out" / "manifest.json", {**first, "settings": older})  # by a version without seeds
    assert run()["splits"] == first["splits"]
    with pytest.raises(UserError, match=r"holds another corpus \(seed 0, now 1\)"):
        run(seed=1)
    with pytest.raises(UserError, match=r"holds another corpus \(document_bytes 64, now 100\); choose another"):
        run(document_bytes=100)
    with pytest.raises(UserError, match="tokenizer 'byte', now 'bpe:300'"):
        run(tokenizer="bpe:300")
    os.utime(tmp_path / "in.txt", ns=(1, 1))
    with pytest.raises(UserError, match="other or changed input files"):
        run()


def test_an_attempt_that_left_nothing_gives_way_to_other_settings(tmp_path):
    """A bad line, a split without documents: the remedy is another call, not deleting a folder first."""
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    attempts = [{}, {"text_field": "body", "val_fraction": 1e-9}, {"text_field": "body", "val_fraction": 1 - 1e-9}]
    messages = ["set text_field", "the val split is empty: val_fraction = 1e-09 of 2 documents; .* raise val_fraction"]
    messages.append("the train split is empty.*lower val_fraction")
    for options, message in zip(attempts, messages, strict=True):
        with pytest.raises(UserError, match=message):
            prepare([str(tmp_path / "in.jsonl")], out=tmp_path / "out", options=PrepareOptions(**options))
    lines = "".join(json.dumps({"body": f"document {number}"}) + "\n" for number in range(200))
    (tmp_path / "in.jsonl").write_text(lines)
    options = PrepareOptions(text_field="body", val_fraction=0.1)
    manifest = prepare([str(tmp_path / "in.jsonl")], out=tmp_path / "out", options=options)
    assert sum(split["documents"] for split in manifest["splits"].values()) == 200


def test_an_own_tokenizer(inputs, tmp_path, whole):
    (tmp_path / "own.json").write_bytes(whole["bpe:400"]["tokenizer.json"])
    manifest = prepare(
        [str(inputs)], tokenizer=str(tmp_path / "own.json"), out=tmp_path / "out", options=PrepareOptions(**OPTIONS)
    )
    assert manifest["settings"]["tokenizer_fingerprint"] == load_tokenizer(tmp_path / "own.json").fingerprint
    assert (tmp_path / "out" / "train-00000.bin").read_bytes() == whole["bpe:400"]["train-00000.bin"]


def test_folders_that_are_not_ours_are_left_alone(inputs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are not a linscale corpus"):
        prepare([str(inputs)], out=tmp_path)
    with pytest.raises(UserError, match="is a file; expected a folder"):
        prepare([str(inputs)], out=tmp_path / "notes.txt")
    with pytest.raises(UserError, match="no such file or folder"):
        prepare([str(inputs / "missing.txt")], out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_importing_data_loads_no_torch():
    code = "import sys, linscale.data; print([name for name in ('torch', 'duckdb') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
