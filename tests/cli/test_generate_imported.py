"""An imported model writes from a prompt what transformers writes: opened alike, and ended alike."""

import io
import json
import sys

import pytest
import tokenizers
import torch

from linscale.adapt.tokenizer_folder import export_tokenizer, import_tokenizer
from linscale.cli import main, serve
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.generate.end_tokens import end_tokens
from linscale.generate.engine_config import EngineConfig
from tests.lazy import Lazy

transformers = Lazy("transformers")

WORDS = ["the cat sat on the mat, and the dog looked at the cat"] * 3


def tokenizer_of(content, opens):
    """As released models have it: one that puts <s> in front of a text, or one that does not."""
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    made.add_special_tokens(["<s>", "</s>"])
    if opens:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.mark.slow
@pytest.mark.parametrize("opens", [True, False])
def test_a_text_is_that_of_transformers(opens, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizer_of(train_bpe(WORDS, 280).content, opens)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=len(tokenizer), **shape, **ends, initializer_range=0.5)
    )
    prompt = tokenizer("the cat", return_tensors="pt")

    def greedy():
        made = theirs.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
        return made[0, prompt["input_ids"].shape[1] :].tolist()

    whole = greedy()
    other = next(token for token in whole[3:] if token not in whole[:3])
    theirs.generation_config.eos_token_id = [tokenizer.eos_token_id, other]
    theirs.save_pretrained("hf")
    tokenizer.save_pretrained("hf")
    assert main(["import", "hf", "run"]) == 0
    for words, expected in (((), greedy()), (("--ignore-eos",), whole)):
        capsys.readouterr()
        ask = ["generate", "run", "--prompt", "the cat", "--temperature", "0", "--max-tokens", "12", "--json", *words]
        assert main(ask) == 0
        assert json.loads(capsys.readouterr().out)["tokens"] == expected
    (tmp_path / "hf" / "generation_config.json").unlink()
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(
        json.dumps({**settings, "eos_token_id": [ends["eos_token_id"], other]})
    )
    assert main(["import", "hf", "old"]) == 0  # before generation_config.json, these tokens stood in config.json
    assert end_tokens(tmp_path / "old", load_tokenizer("old")) == (other,)
    assert serve._fitting(EngineConfig(), tmp_path / "run" / "checkpoints" / "step_00000000").context == 32
    assert serve._fitting(EngineConfig(context=64), tmp_path / "run").context == 64
    for count, said in ((31, ""), (32, "more than the 32 that this model was trained for")):
        capsys.readouterr()
        assert main(["generate", "run", "--prompt", "", "--max-tokens", str(count)]) == 0
        assert said in (err := capsys.readouterr().err)
        assert bool(said) == bool(err)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat sat\n" * 3))
    assert main(["chat", "run", "--max-tokens", "20", "--seed", "1"]) == 0
    assert capsys.readouterr().err.count("more than the 32 that this model was trained for") == 1
    assert main(["generate", "run", "--prompt", "a", "--stop-tokens", "9999"]) == 2
    assert "stop_tokens = 9999: not one of the model's" in capsys.readouterr().err
    assert main(["export", "run", "again"]) == 0
    card = (tmp_path / "again" / "README.md").read_text()
    assert "imported with code" in card
    assert not [said for said in ("trained with", "| step |", "A text begins behind") if said in card]


def test_a_tokenizer_of_our_own_still_opens_a_text_when_it_comes_back(tmp_path):
    for name in ("run", "hf", "back", "hf again"):
        (tmp_path / name).mkdir()
    train_bpe(WORDS, 280).save(tmp_path / "run")
    for source, out, back in (("run", "hf", "back"), ("back", "hf again", "run")):
        ids, opening = export_tokenizer(tmp_path / source, tmp_path / out, 64)
        assert opening == "<|endoftext|>"
        tokenizer = import_tokenizer(tmp_path / out, tmp_path / back, ids)
        assert tokenizer.opening == [tokenizer.eos_id]
