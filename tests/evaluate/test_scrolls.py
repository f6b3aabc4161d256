"""SCROLLS: samples of its own files and others', prompts that keep their questions, answers one by one or together."""

import json
import lzma
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from linscale.cli import main
from linscale.config import UserError, parse
from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.evaluate import answers as module
from linscale.evaluate import overlap, scrolls
from linscale.evaluate.answers import answer
from linscale.evaluate.prompts import Sample, encode
from linscale.evaluate.scrolls import FORMS, scrolls_tasks
from linscale.evaluate.task import PerRun
from linscale.generate.sample import stream
from linscale.models import CONFIGS, build_model
from linscale.train.config import RunConfig
from linscale.train.trainer import train
from tests.quick import quick

BYTES = load_tokenizer("byte")
BPE = train_bpe(["The cat sat.\n\nQuestion: who?\nAnswer: no yes " * 30], 300)
STORY = "The cat sat on a mat.\nIt was warm (very warm).\n\nThen it ran far away, "
CHOICES = "Who ran?\n\n (A) The  cat\n (B) The dog\n (C) The\nman (D) No one\n\n\n"
ASKED = "\n\nQuestion: Who ran?\nAnswer:"


def line(key: str, text: str, output: str | None) -> dict[str, object]:
    return {"id": key, "pid": f"{key}_0", "input": text, "output": output}


LINES = {
    "gov_report/validation": [line("a", STORY, "A cat."), line("b", f"{STORY} too", "Two cats."),
                              line("a", STORY, "It sat.")],
    "qmsum/validation": [line(str(k), f"Who {k}?\n\n{STORY * (k % 2 + 1)}", f"cat {k}") for k in range(5)],
    "qasper/validation": [line("a", f"Who ran?\n\n{STORY}", "The cat"), line("b", f"Ran it?\n\n{STORY}", "Yes"),
                          line("b", f"Ran it?\n\n{STORY}", "No."), line("a", f"Who ran?\n\n{STORY}", "yes")],
    "quality/validation": [line("a", f"{CHOICES}{STORY}", "The cat"), line("b", f"{CHOICES}{STORY} so", "The man")],
    "contract_nli/validation": [line(str(k), f"It ran {k}.\n\n{STORY}", output)
                                for k, output in enumerate(["Entailment", "Not mentioned", "Contradiction"])],
    "qmsum_val": [{"context": STORY, "queries": [{"query": "Who ran?", "answer": "a cat"}] * 2}],
    "leval_tv_show_summ": [{"input": STORY, "instructions": ["Sum it up."], "outputs": ["A cat."]}],
    "leval_quality": [{"input": STORY, "instructions": [CHOICES], "outputs": ["(C) The man"]}],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, lines in LINES.items():
        write(tmp_path, name, lines)
    return tmp_path


def write(folder: Path, name: str, lines: list[dict[str, object]]) -> Path:
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rouge-score is not installed, the share of equal texts in its place."""
    try:
        overlap.rouge_scorer.cache_clear()
        overlap.rouge_scorer()
    except UserError:
        monkeypatch.setattr(scrolls, "rouge_scorer", lambda: None)
        monkeypatch.setattr(
            scrolls, "rouge", lambda text, others: dict.fromkeys(overlap.ROUGE, 100.0 * (text in others))
        )


@pytest.fixture(params=quick(["hgrn2", "llama"], "llama"))
def model(request: pytest.FixtureRequest):
    shape = {"vocab_size": 300, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.5}
    torch.manual_seed(1)
    return build_model(CONFIGS[request.param](**shape)).double().eval()


def samples(folder: Path, name: str) -> list[Sample]:
    (task,) = scrolls_tasks(folder, [name])
    return task.file.samples


def test_lines_with_one_id_are_references_of_one_sample(folder: Path) -> None:
    first, second = samples(folder, "scrolls-gov_report")
    assert first.references == ("A cat.", "It sat.")
    assert (second.document, second.references) == (f"{STORY} too", ("Two cats.",))
    assert first.ending == "\n\nQuestion: What is a summary of the preceding text?\nAnswer:"


def test_questions_stand_behind_their_document(folder: Path) -> None:
    who, ran = samples(folder, "scrolls-qasper")
    assert who == Sample(STORY, ASKED, ("The cat", "yes"))
    assert (ran.references, ran.choices, ran.per_character) == (("Yes", "No."), ("no", "yes"), False)
    assert [sample.references for sample in samples(folder, "scrolls-qmsum")] == [(f"cat {k}",) for k in range(5)]
    assert samples(folder, "qmsum-val") == [Sample(STORY, ASKED, ("a cat",))] * 2
    first, _ = samples(folder, "scrolls-gov_report")
    assert samples(folder, "leval-summ_screen_fd") == [replace(first, references=("A cat.",))]


def test_choices_are_taken_out_of_the_text(folder: Path) -> None:
    expected = Sample(STORY.strip(), ASKED, ("The cat",), ("The cat", "The dog", "The man", "No one"))
    first, second = samples(folder, "scrolls-quality")
    assert (first, second.references) == (expected, ("The man",))
    assert samples(folder, "leval-quality") == [replace(expected, document=STORY, references=("The man",))]
    none, *_ = samples(folder, "scrolls-contract_nli")
    assert none.ending == "\n\nHypothesis: It ran 0.\nConclusion:"
    assert none.choices == ("Not mentioned", "Entailment", "Contradiction")


def whole_prompt(sample: Sample, context: int | None, budget: int, tokenizer) -> list[int]:
    tokens = tokenizer.encode(sample.document + sample.ending)
    return tokens if context is None else tokens[-(context - budget) :]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_a_prompt_is_the_end_of_the_whole_text_that_a_context_has_room_for(folder: Path, tokenizer) -> None:
    for name in ("scrolls-gov_report", "scrolls-quality", "scrolls-contract_nli"):
        asked = samples(folder, name)
        whole = encode(asked, tokenizer)
        assert len(whole.documents) == len({sample.document for sample in asked})
        for context in (None, 130, 100):
            cut = whole.cut(context or 10**9, 20)
            for sample, prompt in zip(asked, cut.prompts, strict=True):
                budget = 20
                if sample.choices:
                    choices = [tokenizer.encode(f"{sample.ending} {choice}") for choice in sample.choices]
                    budget = max(map(len, choices)) - len(tokenizer.encode(sample.ending)) - 1
                tokens = [*cut.documents[prompt.document].tolist(), *prompt.ending]
                assert tokens == whole_prompt(sample, context, budget, tokenizer)


def test_one_document_is_cut_once_for_its_longest_question() -> None:
    asked = [Sample(STORY, ending, ("x",)) for ending in ("\n\nWho?", "\n\nWho ran?")]
    cut = encode(asked, BYTES).cut(50, 7)
    assert [document.tolist() for document in cut.documents] == [BYTES.encode(STORY)[-(50 - 7 - 10) :]]


def alone(model, sample: Sample, prompt: list[int], tokenizer, most: int) -> str:
    """The answer by whole passes over one prompt."""
    if not sample.choices:
        made: list[int] = []
        for token in stream(model, tokenizer, prompt, max_tokens=most, temperature=0):
            if token == tokenizer.eos_id or "\n" in tokenizer.decode(made):
                break
            made.append(token)
        return tokenizer.decode(made).split("\n")[0]
    nats = []
    for choice in sample.choices:
        tokens = tokenizer.encode(f" {choice}")
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        total = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum().item()
        nats.append(total / len(choice) if sample.per_character else total)
    return sample.choices[nats.index(max(nats))]


@pytest.mark.slow
@torch.no_grad()
def test_answers_are_those_of_every_prompt_alone_in_any_batch_and_order(model, folder: Path, monkeypatch) -> None:
    asked = [sample for name in FORMS if (folder / f"{FORMS[name].file}.jsonl").exists()
             for sample in samples(folder, name)]  # fmt: skip
    prompts = encode(asked, BPE).cut(90, 12)
    texts = [[*prompts.documents[prompt.document].tolist(), *prompt.ending] for prompt in prompts.prompts]
    expected = [alone(model, sample, text, BPE, 12) for sample, text in zip(asked, texts, strict=True)]
    assert len(set(expected)) > 4
    for most in (1024, 1, 5):
        monkeypatch.setattr(module, "MOST_SEQUENCES", most)
        assert answer(model, BPE, asked, prompts, 12) == expected
    back = encode(asked[::-1], BPE).cut(90, 12)
    assert answer(model, BPE, asked[::-1], back, 12) == expected[::-1]


@torch.no_grad()
def test_a_model_that_gives_the_references_gets_100(folder: Path, monkeypatch) -> None:
    model = build_model(CONFIGS["tnl"](vocab_size=257, d_model=16, n_layers=1, head_dim=8, d_ff=16)).eval()
    monkeypatch.setattr(module, "likeliest", lambda sample, nats: sample.references[0])
    for name in ("scrolls-qmsum", "scrolls-qasper", "scrolls-quality", "scrolls-contract_nli", "qmsum-val"):
        (task,) = scrolls_tasks(folder, [name], "none")
        known = {sample.ending: sample.references[0] for sample in task.file.samples}

        def repeat(model, tokenizer, state, endings, *, max_tokens, stop, known=known):
            return [tokenizer.encode(f" {known[tokenizer.decode(ending)]}\nmore") for ending in endings]

        monkeypatch.setattr(module, "continue_greedily", repeat)
        monkeypatch.setattr(scrolls, "rouge", lambda text, others, rouge=scrolls.rouge: rouge(text.strip(), others))
        found = {result.metric: result.value for result in task.run(model, BYTES)}
        assert found == {"truncated": 0, "kept": 1, **dict.fromkeys(FORMS[name].metrics, pytest.approx(100))}
        if name == "scrolls-qasper":
            monkeypatch.setattr(module, "continue_greedily", lambda *_, **options: [BYTES.encode(" \nx")])
            (f1, *_) = task.run(model, BYTES)
            assert f1.value == 50  # the one that is generated is taken as Unanswerable


def test_no_answer_to_a_question_of_qasper_is_unanswerable(tmp_path: Path) -> None:
    write(tmp_path, "qasper/validation", [line("a", f"Who?\n\n{STORY}", "Unanswerable")])
    (task,) = scrolls_tasks(tmp_path)
    assert [task._scores(text, task.file.samples[0])["f1"] for text in (" ", "cat")] == [100, 0]


@torch.no_grad()
def test_what_was_cut_stands_beside_the_score(folder: Path) -> None:
    model = build_model(CONFIGS["tnl"](vocab_size=257, d_model=16, n_layers=1, head_dim=8, d_ff=16)).eval()
    (task,) = scrolls_tasks(folder, ["scrolls-qmsum"], max_tokens=4)
    size, behind = len(STORY), len("\n\nQuestion: Who 0?\nAnswer:") + 4
    for context, truncated, kept in (
        (behind + size, 2 / 5, (3 + 2 / 2) / 5), (behind + 2 * size, 0, 1), ("none", 0, 1),
        (behind + 10, 1, (3 * 10 / size + 2 * 10 / (2 * size)) / 5),
    ):  # fmt: skip
        results = {result.metric: result for result in replace(task, context=context).run(model, BYTES)}
        assert set(results) == set(task.metrics)
        assert results["truncated"].value == pytest.approx(truncated)
        assert results["kept"].value == pytest.approx(kept)
        assert {result.count for result in results.values()} == {5}
        assert results["rouge1"].se is not None
        assert results["kept"].se is None


def test_what_does_not_fit_is_refused_before_it_is_read(folder: Path, monkeypatch) -> None:
    shape = {"d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 16}
    tnl, llama = (build_model(CONFIGS[arch](vocab_size=257, **shape)) for arch in ("tnl", "llama"))
    (task,) = scrolls_tasks(folder, ["scrolls-qmsum"], context=50, max_tokens=25)
    assert "51 tokens of question and answer leave a context of 50 no room" in (task.obstacle(tnl, BYTES) or "")
    assert replace(task, max_tokens=20).obstacle(tnl, BYTES) is None
    assert "the tokenizer has 284 tokens, the model 257" in (task.obstacle(tnl, BPE) or "")
    huge = Sample("x" * 3, ASKED, ("x",))
    prompts = encode([huge], BYTES)
    monkeypatch.setattr(type(task.file), "prompts", lambda self, tokenizer: replace(
        prompts, documents=[range(10**12)]))  # fmt: skip
    whole = replace(task, context="none")
    assert whole.obstacle(tnl, BYTES) is None
    assert "the keys and values of 10000000" in (whole.obstacle(llama, BYTES) or "")
    assert replace(task, context=4096).obstacle(llama, BYTES) is None


def test_the_training_length_is_the_run_s(folder: Path) -> None:
    (task,) = scrolls_tasks(folder, ["scrolls-qmsum"])
    assert isinstance(task, PerRun)
    known = task.for_run({"train": {"length": 512}})
    assert (known.context, known.file) == (512, task.file)
    assert replace(task, context="none").for_run({"train": {"length": 512}}).context == "none"


def test_what_makes_another_number_makes_another_version(folder: Path) -> None:
    options = [{}, {"context": 64}, {"context": "none"}, {"max_tokens": 9}, {"limit": 3}]
    versions = {scrolls_tasks(folder, ["scrolls-qmsum"], **option)[0].version(BYTES) for option in options}
    versions.add(scrolls_tasks(folder, ["scrolls-qmsum"])[0].version(BPE))
    (folder / "qmsum_val.jsonl").rename(folder / "other.jsonl")
    path, lines = folder / "qmsum/validation.jsonl", LINES["qmsum/validation"]
    same = scrolls_tasks(folder, ["scrolls-qmsum"])[0].version(BYTES)
    content = path.read_bytes()
    path.with_name("validation.jsonl.xz").write_bytes(lzma.compress(content.rstrip(b"\n")))
    path.unlink()
    assert scrolls_tasks(folder, ["scrolls-qmsum"])[0].version(BYTES) == same
    write(folder, "qmsum/validation", lines[:-1])
    assert len(versions | {scrolls_tasks(folder, ["scrolls-qmsum"])[0].version(BYTES)}) == 7


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([line("a", f"Who?\n\n{STORY}", None)], "an output is null; use a split with outputs"),
        ([line("a", "no gap", "x")], "no empty line between question and document"),
        ([line("a", "Who?\n\n  ", "x")], "an empty document"),
        ([{"id": "a", "output": "x"}], "no field 'input'"),
        ([], "no samples"),
    ],
)
def test_files_in_another_form_are_refused(tmp_path: Path, lines, problem) -> None:
    write(tmp_path, "qasper/validation", lines)
    with pytest.raises(UserError, match=rf"qasper.validation\.jsonl: .*{re.escape(problem)}"):
        scrolls_tasks(tmp_path)


def test_damaged_lines_and_missing_files_are_named(folder: Path) -> None:
    (folder / "qasper/validation.jsonl").write_text('{"id": "a"\n')
    with pytest.raises(UserError, match="line 1 is not JSON"):
        scrolls_tasks(folder, ["scrolls-qasper"])
    with pytest.raises(UserError, match=r"scrolls-narrative_qa: no .*narrative_qa.validation\.jsonl"):
        scrolls_tasks(folder, ["scrolls-narrative_qa"])
    with pytest.raises(UserError, match="scrolls = 'qasper': no such task; there are scrolls-gov_report"):
        scrolls_tasks(folder, ["qasper"])
    with pytest.raises(UserError, match=r"none of gov_report/validation\.jsonl"):
        scrolls_tasks(folder / "qmsum")
    with pytest.raises(UserError, match="data = none: no such folder"):
        scrolls_tasks(Path("none"))


def test_the_job_cuts_to_the_length_of_each_run_s_training_and_does_nothing_twice(folder: Path, capsys) -> None:
    (folder / "text.txt").write_text("".join(f"the cat sat on mat {k}\n" for k in range(100)))
    options = PrepareOptions(document_bytes=300, val_fraction=0.2, workers=1)
    prepare([str(folder / "text.txt")], tokenizer="byte", out=folder / "data", options=options)
    shape = {"arch": "tnl", "vocab_size": 257, "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 16}
    for length in (64, 128):
        recipe = {"tokens": 128, "batch_tokens": 128, "length": length, "checkpoints": 1, "validation_tokens": 128}
        values = {"name": f"l{length}", "model": shape, "data": {"path": str(folder / "data")}}
        train(folder / "runs" / f"l{length}", parse(RunConfig, {**values, "train": {**recipe, "device": "cpu"}}))
    command = ["evaluate", str(folder / "runs"), "--suite", "scrolls", "--data", str(folder), "--json"]
    command += ["--scrolls", "scrolls-quality", "scrolls-qmsum", "--max-tokens", "9"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    kept = {r["run"]: (r["value"], r["count"], r["task_version"].partition("-context")[2])
            for r in first["results"] if (r["task"], r["metric"]) == ("scrolls-quality", "kept")}  # fmt: skip
    room = [length - len(f"{ASKED} The man") + 1 for length in (64, 128)]
    size = len(STORY.strip())
    assert kept == {
        "l64": (pytest.approx((room[0] / size + room[0] / (size + 4)) / 2), 2, "64-end-max9"),
        "l128": (1, 2, "128-end-max9"),
    }
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {**first, "done": 0, "known": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "suite scrolls: no files; name their folder with --data"),
        (("--data", ".", "--context", "all"), "context = 'all': expected train, none, or a number of tokens"),
        (("--data", ".", "--context", "0"), "context = '0'"),
        (("--data", ".", "--max-tokens", "0"), "max_tokens"),
        (
            ("--data", "/nowhere", "--scrolls", "scrolls-qasper"),
            "data = /nowhere: no such folder; expected one with files of samples",
        ),
    ],
)
def test_options_are_explained_before_a_run_is_looked_at(options, message, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(tmp_path), "--suite", "scrolls", *options]) == 2
    assert message in capsys.readouterr().err
