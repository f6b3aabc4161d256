"""Runs that learn from a frozen teacher: what is compared, what is trained, what is refused; nothing lost by a stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from linscale import checkpoint
from linscale.config import UserError, to_dict
from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.tokenizer import MARKS, OPENS, SubwordTokenizer, load_tokenizer
from linscale.distributed import ALONE
from linscale.models.linearized import new_parameters
from linscale.run_folder import latest_records
from linscale.train.config import RunConfig
from linscale.train.objective import Attention, Logits, Texts
from linscale.train.optim import build_optimizer
from linscale.train.teacher_config import TeacherConfig
from linscale.train.trainer import train

from .teachers import save_run, student_of, teacher_of

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def folders(make: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher that read the corpus, and its student as it begins."""
    place = tmp_path_factory.mktemp("models")
    first = teacher_of()
    save_run(first, place / "first")
    train(place / "teacher", make(model=to_dict(first.config), start=str(place / "first"), tokens=256 * 40))
    teacher = checkpoint.load_model(checkpoint.newest(place / "teacher"))
    save_run(student_of(teacher), place / "student")
    return {"teacher": place / "teacher", "student": place / "student"}


@pytest.fixture
def texts() -> Texts:
    tokens = torch.randint(257, (3, 24), generator=torch.Generator().manual_seed(1))
    return Texts(tokens[:, :-1], tokens[:, 1:])


def taught(make: Make, folders: dict[str, Path], loss: str, **changes: Any) -> RunConfig:
    model = checkpoint.model_config(checkpoint.newest(folders["student"]))
    teacher = {"folder": str(folders["teacher"]), "loss": loss}
    return make(**{"model": to_dict(model), "start": str(folders["student"]), "teacher": teacher, **changes})


def scores(run: Path, metric: str) -> list[float]:
    found = latest_records(run / "evaluations.jsonl")
    return [record["value"] for record in found if record["metric"] == metric]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(run) / "model.safetensors")


@pytest.mark.parametrize("compare", ["added", "attended"])
def test_each_mixer_is_compared_on_what_enters_the_teachers(texts: Texts, compare: str) -> None:
    """Against the teacher gone through by hand; gradients are those of each layer's error in its own mixer."""
    teacher = teacher_of().requires_grad_(False)
    student = student_of(teacher)
    objective = Attention(TeacherConfig(folder="x", loss="attention", compare=compare), teacher)
    context = teacher._context(texts.tokens, None, None)
    x, errors, squares = teacher.embedding(texts.tokens), [], []
    for own, given in zip(student.blocks, teacher.blocks, strict=True):
        entered = given.mixer_norm(x)
        added = given.mixer(entered, None, context)[0]
        pair = (own.mixer(entered, None, context)[0], added)
        if compare == "attended":
            pair = tuple(mixer.attend(entered, None, context)[0] for mixer in (own.mixer, given.mixer))
        errors.append((pair[0] - pair[1]).square().mean(-1))
        squares.append(pair[1].square().mean())
        x = x + added
        x = x + given.mlp(given.mlp_norm(x))
    objective.prepare([texts, texts], "fp32", ALONE)
    torch.testing.assert_close(objective.scale, torch.stack(squares))
    expected = torch.stack([error / square for error, square in zip(errors, squares, strict=True)], -1)
    measured = objective.measures(student, texts)
    torch.testing.assert_close(measured[..., 1:], expected)
    torch.testing.assert_close(measured[..., 0], expected.mean(-1))
    loss = objective.loss(student, texts)
    torch.testing.assert_close(loss, expected.mean(-1))
    mixers = [(name, p) for name, p in student.named_parameters() if ".mixer." in name]
    if compare == "attended":
        mixers = [(name, p) for name, p in mixers if "o_proj" not in name]
    pairs = (torch.autograd.grad(value.sum(), [p for _, p in mixers]) for value in (loss, expected.mean(-1)))
    for found, wanted in zip(*pairs, strict=True):
        assert wanted.norm() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    others = [p for name, p in student.named_parameters() if ".mixer." not in name]
    assert not any(torch.autograd.grad(objective.loss(student, texts).sum(), others, allow_unused=True))


def test_softmax_kept_everywhere_is_the_teacher(texts: Texts) -> None:
    teacher = teacher_of()
    same = student_of(teacher, softmax_layers=(0, 1))
    attention = Attention(TeacherConfig(folder="x", loss="attention"), teacher)
    logits = Logits(TeacherConfig(folder="x", loss="logits"), teacher)
    with torch.no_grad():
        assert attention.measures(same, texts).abs().max() == 0
        assert logits.loss(same, texts).abs().max() < 1e-6
        assert attention.loss(student_of(teacher), texts).mean() > 1e-3
        assert logits.loss(student_of(teacher), texts).mean() > 1e-3


@pytest.mark.slow
def test_attention_transfer_teaches_every_layer_and_leaves_the_rest(
    make: Make, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = taught(make, folders, "attention", trained="new", tokens=256 * 30, lr=1e-2)
    assert train(tmp_path / "run", config)["mfu"] is None
    for metric in ("attention_error", "attention_error_0", "attention_error_1"):
        errors = scores(tmp_path / "run", metric)
        assert len(errors) == 5
        assert errors[-1] < 0.95 * errors[0], (metric, errors)
    assert scores(tmp_path / "run", "loss")[-1] < scores(tmp_path / "run", "loss")[0]  # of the whole model
    before, after, new = weights(folders["student"]), weights(tmp_path / "run"), new_parameters(config.model)
    assert {name for name in after if not torch.equal(before[name], after[name])} == new


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teachers_predictions(
    make: Make, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = taught(make, folders, "logits", tokens=256 * 30, trained="mixers", new_lr=1e-2)
    train(tmp_path / "run", config)
    divergences = scores(tmp_path / "run", "divergence")
    assert divergences[-1] < 0.9 * divergences[0]
    before, after = weights(folders["student"]), weights(tmp_path / "run")
    assert {name for name in after if torch.equal(before[name], after[name])} == {n for n in after if "mixer." not in n}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["attention", "logits"])
def test_a_taught_run_goes_on_bit_for_bit(loss: str, make: Make, folders: dict[str, Path], tmp_path: Path) -> None:
    config = taught(make, folders, loss, micro_batch=4)
    train(tmp_path / "whole", config)
    seen: list[int] = []
    stopped = train(tmp_path / "run", config, on_step=lambda status: seen.append(status["step"]),
                    stop=lambda: bool(seen) and seen[-1] >= 3)  # fmt: skip
    assert stopped["state"] == "stopped"
    train(tmp_path / "run", config)
    left, right = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(left[name], right[name]) for name in right)
    for metric in ("loss", "attention_error" if loss == "attention" else "divergence"):
        assert scores(tmp_path / "run", metric) == scores(tmp_path / "whole", metric)


@pytest.mark.slow
def test_passes_and_what_is_made_again_do_not_change_what_is_learnt(
    make: Make, folders: dict[str, Path], tmp_path: Path
) -> None:
    ways = {"one": {}, "four": {"micro_batch": 2}, "again": {"activation_checkpointing": "cheap"}}
    for name, way in ways.items():
        train(tmp_path / name, taught(make, folders, "attention", checkpoints=1, tokens=1024, **way))
    one, four, again = (weights(tmp_path / name) for name in ways)
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(again[name], one[name], rtol=2e-4, atol=2e-5)


def test_a_run_begins_with_anothers_weights(make: Make, folders: dict[str, Path], tmp_path: Path) -> None:
    """At a rate of nothing it ends with them, those in half precision too; and it is not a run from the seed."""
    half = student_of(teacher_of()).bfloat16()
    (save_run(half, tmp_path / "half") / "chat_template.jinja").write_text("a template")
    config = make(model=to_dict(half.config), start=str(tmp_path / "half"), lr=1e-300, tokens=768, checkpoints=1)
    train(tmp_path / "run", config)
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[name], p.float()) for name, p in half.named_parameters())
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == "a template"
    with pytest.raises(UserError, match=r"another config \(start.fingerprint = '\w+' there, None here\)"):
        train(tmp_path / "run", make(model=to_dict(half.config), lr=1e-300, tokens=768, checkpoints=1))
    (tmp_path / "half").rename(tmp_path / "moved")
    moved = make(model=to_dict(half.config), start=str(tmp_path / "moved"), lr=1e-300, tokens=768, checkpoints=1)
    assert train(tmp_path / "run", moved)["state"] == "done"


def test_new_weights_have_a_rate_of_their_own(make: Make) -> None:
    model = student_of(teacher_of(), "supra")
    optimizer = build_optimizer(model, make(model=to_dict(model.config), lr=1e-3, new_lr=1e-2, weight_decay=0.2).train)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["rate"] for group in optimizer.param_groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    new = new_parameters(model.config)
    assert all(rate == pytest.approx(10.0 if name in new else 1.0) for name, rate in rates.items())
    assert decays["blocks.0.mixer.q_features.weight"] == 0.2
    assert decays["blocks.0.mixer.q_features.bias"] == 0.0


@pytest.mark.parametrize(("changes", "message"), [
    ({"start": "nowhere"}, r"train.start = 'nowhere': no such folder"),
    ({"teacher": {"folder": ".", "loss": "logits"}}, r"train.teacher.folder = '.': no checkpoints .*linscale import"),
    ({"teacher": {"folder": ".", "loss": "logits", "compare": "attended"}}, r"compare = 'attended': is for loss"),
    ({"teacher": {"folder": ".", "loss": "attention", "text_weight": 0.1}}, r"text_weight = 0.1: layers are compared"),
    ({"trained": "new", "start": None}, r"trained = 'new': the other weights would stay as the seed drew them"),
    ({"model": {"arch": "hgrn2"}, "trained": "new"}, r"train.trained = 'new': a model of arch 'hgrn2' has no new"),
    ({"model": {"arch": "hgrn2"}, "new_lr": 0.1}, r"train.new_lr = 0.1: a model of arch 'hgrn2' has no new weights"),
])  # fmt: skip
def test_bad_recipes_are_refused(
    make: Make, folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", taught(make, folders, "logits", **changes))


def test_other_models_and_tokenizers_are_refused(
    make: Make, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    supra = student_of(teacher_of(), "supra").config
    with pytest.raises(UserError, match=r"train.start = .*another model \(linear = .*'softmax'.* there, .*'relu'"):
        train(tmp_path / "run", taught(make, folders, "logits", model=to_dict(supra)))
    save_run(student_of(teacher_of(), n_layers=3), tmp_path / "deep")
    deep = {"folder": str(tmp_path / "deep"), "loss": "attention"}
    with pytest.raises(UserError, match=r"train.teacher.folder = .*: its n_layers is 3, that of the model 2; .*equal"):
        train(tmp_path / "run", taught(make, folders, "attention", teacher=deep))
    prepare(
        [str(data.parent / "text.txt")],
        tokenizer="bpe:257",
        out=tmp_path / "bpe",
        options=PrepareOptions(document_bytes=300, val_fraction=0.1, workers=1),
    )
    with pytest.raises(UserError, match=r"data.path = .*prepared with another tokenizer .*--tokenizer .*student"):
        train(tmp_path / "run", taught(make, folders, "logits", path=tmp_path / "bpe"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_which_token_opens_a_text_is_the_starts_matter(make: Make, tmp_path: Path) -> None:
    """A corpus made with the plain tokenizer serves; the run has that of the checkpoint it began with."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the cat number {n} sat on a mat" for n in range(900)) + "\n")
    options = PrepareOptions(document_bytes=300, val_fraction=0.1, workers=1)
    prepare([str(text)], tokenizer="bpe:257", out=tmp_path / "data", options=options)
    tokenizer = load_tokenizer(tmp_path / "data")
    marked = SubwordTokenizer({**tokenizer.content, MARKS: {OPENS: False}}, "marked")
    save_run(teacher_of(), tmp_path / "start", marked)
    config = make(model=to_dict(teacher_of().config), start=str(tmp_path / "start"), path=tmp_path / "data",
                  tokens=768, checkpoints=1)  # fmt: skip
    train(tmp_path / "run", config)
    assert tokenizer.opening == [tokenizer.eos_id]
    assert checkpoint.load(tmp_path / "run")[1].opening == []
