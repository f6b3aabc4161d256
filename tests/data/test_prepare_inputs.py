"""Preparing from URLs and datasets: killed at any moment and run again, the same bytes as undisturbed."""

import gzip
import json
import os
import random
import subprocess
import sys

import pytest

from linscale.config import UserError
from linscale.data import PrepareOptions, prepare
from linscale.data.journal import Journal, require_same
from linscale.data.manifest import SourceRecord
from linscale.run_folder import read_json

CHILD = """
import json, sys, time
from pathlib import Path
from linscale.data import PrepareOptions, prepare
module = sys.modules["linscale.data.prepare"]

def main(inputs, out, options, shards):
    module.BATCH_CHARACTERS = 20_000
    def progress(*counts):
        journal = json.loads((Path(out) / "journal.json").read_text())
        if shards and sum(len(split["shards"]) for split in journal["splits"].values()) >= shards:
            print("now", flush=True)
            time.sleep(600)
    prepare(inputs, out=out, options=PrepareOptions(**options), progress=progress)

if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
"""
OPTIONS = {"shard_tokens": 60_000, "val_fraction": 0.05}


@pytest.fixture
def lines():
    """300 kB of JSON lines."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(1, 9))) for _ in range(300)]
    texts = [" ".join([str(number), *draw.choices(words, k=draw.randrange(200))]) for number in range(600)]
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def killed_and_run_again(tmp_path, inputs, *kills):
    """Prepare `inputs` undisturbed, and once more killed after so many closed shards; compare."""
    script, out = tmp_path / "child.py", tmp_path / "out"
    script.write_text(CHILD)
    for shards in (*kills, 0):
        arguments = {"inputs": inputs, "out": str(out), "options": OPTIONS, "shards": shards}
        command, env = [sys.executable, script, json.dumps(arguments)], os.environ | {"HF_HOME": str(tmp_path / "hf")}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        if shards:
            assert process.stdout.readline() == "now\n"
            process.kill()
            assert read_json(out / "journal.json")["position"] != [0, 0]
        process.communicate(timeout=60)
    assert process.returncode == 0
    prepare(inputs, out=tmp_path / "whole", options=PrepareOptions(**OPTIONS))
    assert files(out) == files(tmp_path / "whole")
    assert len(files(out)) > 8


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
def test_killed_while_reading_over_http(host, lines, tmp_path, ranges):
    pytest.importorskip("aiohttp")
    host.ranges, host.files["/a.jsonl"] = ranges, lines
    host.files["/b.jsonl.gz"] = gzip.compress(lines[: lines.rindex(b"\n", 0, 200_000)])
    killed_and_run_again(tmp_path, [f"{host.url}/a.jsonl", f"{host.url}/b.jsonl.gz"], 1, 3)


@pytest.mark.slow
def test_killed_while_reading_a_dataset(lines, tmp_path, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    for name, end in (("a", len(lines)), ("b", 200_000)):
        (tmp_path / "folder" / f"{name}.jsonl").write_bytes(lines[: lines.rindex(b"\n", 0, end)])
    killed_and_run_again(tmp_path, [f"hf:{tmp_path}/folder"], 2)


@pytest.mark.slow
def test_a_url_whose_file_changed_is_refused(host, lines, tmp_path):
    pytest.importorskip("aiohttp")
    host.files["/a.jsonl"] = lines
    prepare([f"{host.url}/a.jsonl"], out=tmp_path, options=PrepareOptions(**OPTIONS))
    host.files["/a.jsonl"] = lines.replace(b"e", b"f")
    with pytest.raises(UserError, match=r'files: http.*/a.jsonl was at revision "\w+", and is at "\w+" now'):
        prepare([f"{host.url}/a.jsonl"], out=tmp_path, options=PrepareOptions(**OPTIONS))


def test_a_dataset_that_moved_on_is_named_with_its_revision(tmp_path):
    there, now = (
        Journal(settings={}, inputs_fingerprint=commit, sources=(record,), splits={})
        for commit, record in ((c, SourceRecord(name="hf:a/b/x.parquet", bytes=1, revision=c)) for c in ("c0", "c1"))
    )
    with pytest.raises(UserError, match="was at revision c0, which hf:NAME@REVISION pins, and is at c1 now"):
        require_same(tmp_path, there, now, {})
