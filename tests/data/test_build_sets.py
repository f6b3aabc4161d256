"""Folders of evaluation sets: from files and from data sets as the Hub has them, which become ours byte for byte."""

import dataclasses
import gzip
import hashlib
import json

import pytest

from linscale.cli import main
from linscale.data import hub_sets
from linscale.data.build_sets import ESSAYS, build_sets
from linscale.data.hub_sets import HUB_SETS
from linscale.data.sets import SETS, find_set, read_set, verified_content
from tests.lazy import lazy_or_skip

datasets = lazy_or_skip("datasets")
SHIPPED = [name for name, each in SETS.items() if each.shipped]
SCIQ = {
    "question": "q é", "distractor3": "c", "distractor1": "a", "distractor2": "b", "correct_answer": "d", "support": "",
}  # fmt: skip
ESSAY_RECORDS = [{"id": "avg", "text": "\n\nIt was “late”."}, {"id": "web20", "text": "Why?\n"}]
INVENTED = {
    "lambada_openai_test": [{"text": 'He said "é"\n\nand ran'}],
    "sciq_validation": [SCIQ],
    "paul_graham_essays": ESSAY_RECORDS,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The library keeps its notes in the test's folder, a Hub out of reach is not waited for, and the sets that do not
    ship are invented."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub_sets, "LOOK_UP_WAITS_S", ())
    for name, records in INVENTED.items():
        sha256 = hashlib.sha256(as_lines(records)).hexdigest()
        monkeypatch.setitem(SETS, name, dataclasses.replace(SETS[name], sha256=sha256, records=len(records)))


def as_lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def hub_records(name):
    """What the Hub has where we have these records: other orders of fields, fields more, other labels, lines cut."""
    if name == "wikitext2_raw_test":
        lines = verified_content(find_set(None, name)).decode().split("\n")[:-1]
        return [{"text": "" if line == " " else f"{line}\n"} for line in lines]
    records = INVENTED[name] if name in INVENTED else read_set(find_set(None, name))
    if name.startswith("arc"):
        for number, record in enumerate(records):
            if number % 3 == 0:
                labels = [str(place + 1) for place in range(len(record["choices"]["label"]))]
                record["answerKey"] = labels[record["choices"]["label"].index(record["answerKey"])]
                record["choices"] = {"label": labels, "text": record["choices"]["text"]}
    return [{"idx": number, **dict(reversed(record.items()))} for number, record in enumerate(records)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with all data sets, laid out as on the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    configs = {}
    for name, source in HUB_SETS.items():
        config = source.config or "default"
        file = folder / source.dataset / config / f"{source.split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(hub_records(name)).to_parquet(file)
        configs.setdefault(source.dataset, {}).setdefault(config, set()).add(source.split)
    for dataset, splits in configs.items():
        card = [
            {"config_name": config, "data_files": [{"split": each, "path": f"{config}/{each}-*"} for each in names]}
            for config, names in splits.items()
        ]
        (folder / dataset / "README.md").write_text(f"---\n{json.dumps({'configs': card})}\n---\n")
    (folder / ESSAYS).mkdir()
    for record in ESSAY_RECORDS:
        (folder / ESSAYS / f"{record['id']}.txt").write_text(record["text"])
    return folder


@pytest.mark.slow
def test_data_sets_of_the_hub_become_our_files_byte_for_byte(hub, tmp_path, monkeypatch):
    load = datasets.load_dataset
    monkeypatch.setattr("datasets.load_dataset", lambda name, *rest, split: load(str(hub / name), *rest, split=split))
    for source, names in ((str(hub), list(SETS)), ("hub", ["arc_easy_test", "sciq_validation"])):
        out = tmp_path / f"{len(names)} sets"
        assert {each.name: each.state for each in build_sets(out, source, names)} == dict.fromkeys(names, "written")
        for name in names:
            assert find_set(out, name).parent == out
            assert verified_content(find_set(out, name))
    assert {each.state for each in build_sets(out, "hub", names)} == {"there already"}


@pytest.mark.slow
def test_files_of_any_compression_and_what_is_missing(tmp_path, capsys):
    source, out = tmp_path / "files", tmp_path / "out"
    source.mkdir()
    (source / "lambada_openai_test.jsonl.gz").write_bytes(gzip.compress(as_lines(INVENTED["lambada_openai_test"])))
    assert main(["tasks", "prepare", str(out), "--from", str(source)]) == 0
    assert f"{out}: 1 of {len(SETS)} sets" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["lambada_openai_test.jsonl.zst"]
    names = ["--sets", "sciq_validation,lambada_openai_test"]
    assert main(["tasks", "prepare", str(out), "--from", str(source), *names, "--json"]) == 1
    states = {row["set"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states == {"sciq_validation": "not found", "lambada_openai_test": "there already"}


def test_another_content_is_not_written(tmp_path, capsys):
    source, out = tmp_path / "files", tmp_path / "out"
    source.mkdir()
    (source / "sciq_validation.jsonl").write_bytes(as_lines([SCIQ, SCIQ]))
    assert main(["tasks", "prepare", str(out), "--from", str(source)]) == 1
    assert "its content has sha256" in (told := capsys.readouterr().out)
    assert "in 2 lines, not 1" in told
    assert not out.exists()
    folder = source / "EleutherAI" / "lambada_openai" / "default"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list([{"body": "no text"}]).to_parquet(folder / "test.parquet")
    (folder.parent / "README.md").write_text(
        "---\nconfigs: [{config_name: default, data_files: [{split: test, path: default/test.parquet}]}]\n---\n"
    )
    (failed,) = build_sets(out, str(source), ["lambada_openai_test"])
    assert failed.state == "failed"
    assert failed.text.endswith("a record without 'text' (fields: body)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--from none", "from = none: no such folder; expected one, or hub for the Hugging Face Hub"),
        ("--from . --sets piqa", "sets = 'piqa': no such set; there are arc_challenge_test"),
        ("--from .", "from = .: none of the sets is in it"),
    ],
)
def test_options_are_explained(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tasks", "prepare", "out", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_essays_are_not_on_the_hub(tmp_path):
    (missing,) = build_sets(tmp_path / "out", "hub", ["paul_graham_essays"])
    assert missing.state == "not found"
    assert "copy PaulGrahamEssays of" in missing.text


def test_the_hub_out_of_reach_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (failed,) = build_sets(tmp_path / "out", "hub", ["sciq_validation"])
    assert failed.state == "failed"
    assert failed.text.startswith("sciq_validation (allenai/sciq:validation): cannot be reached")


def test_the_list_says_where_sets_are(tmp_path, capsys):
    (tmp_path / "piqa_valid.jsonl").write_text("{}\n")
    assert main(["tasks", "list", "--json"]) == 0
    rows = {row["set"]: row for row in json.loads(capsys.readouterr().out)}
    assert {rows[name]["content"] for name in SHIPPED} == {"ok"}
    assert rows["sciq_validation"]["where"] == "not here"
    assert main(["tasks", "list", "--data", str(tmp_path), "--json"]) == 1
    rows = {row["set"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["piqa_valid"]["content"] == "altered"


def test_a_set_that_cannot_be_decompressed_is_listed_among_the_others(tmp_path, capsys):
    (tmp_path / "boolq_dev.jsonl.zst").write_bytes(b"no frame")
    assert main(["tasks", "list", "--data", str(tmp_path), "--json"]) == 1
    found = {row["set"]: row["content"] for row in json.loads(capsys.readouterr().out)}
    assert (found["boolq_dev"], found["piqa_valid"], len(found)) == ("altered", "ok", len(SETS))
