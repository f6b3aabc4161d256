"""Exported folders in use: auto classes, generate, peft and lm-evaluation-harness, against linscale's own answers."""

import functools
import json
import subprocess
import sys

import pytest
import torch

import linscale
from linscale.adapt.huggingface import export, import_folder
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.generate.batch import greedy
from tests.adapt.runs import run_of, tiny
from tests.lazy import Lazy
from tests.quick import quick

transformers = Lazy("transformers")

CASES = [("tnl", 0), ("hgrn2", 0), ("cosformer2", 0), ("hgrn2", 2), ("llama", 0), ("recurrent_transformer", 0)]
CASES += [("linearized", 2)]


@pytest.fixture(scope="module", params=quick(CASES, ("cosformer2", 0), ("hgrn2", 2), ("linearized", 2)))
def pair(request, tmp_path_factory):
    """A model, and its exported folder as transformers loads it."""
    arch, every = request.param
    fields = {"n_kv_heads": 2} if every or arch == "llama" else {}
    ours = tiny(arch, softmax_every=every, **fields)
    place = tmp_path_factory.mktemp(arch)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export(run_of(ours, place / "run"), place / "hf")).eval()
    return ours, theirs, place


def padded(prompts, side):
    """Tokens (B, T) and mask, padded on one side with a token that would matter."""
    width = max(map(len, prompts))
    empty = [[7] * (width - len(prompt)) for prompt in prompts]
    rows = [e + p if side == "left" else p + e for e, p in zip(empty, prompts, strict=True)]
    masks = [[0] * len(e) + [1] * len(p) for e, p in zip(empty, prompts, strict=True)]
    masks = masks if side == "left" else [sorted(mask, reverse=True) for mask in masks]
    return torch.tensor(rows), torch.tensor(masks)


PROMPTS = [[256, *text.encode()] for text in ("hello wor", "a", "to be or not to")]


def test_logits_loss_and_padding(pair, text):
    ours, theirs, _ = pair
    with torch.no_grad():
        expected = ours(text).logits
        found = theirs(input_ids=text, labels=text.masked_fill(text > 200, -100))
        torch.testing.assert_close(found.logits, expected, rtol=0, atol=2e-4)
        loss = ours(text[:, :-1], text[:, 1:].masked_fill(text[:, 1:] > 200, -100)).loss
        torch.testing.assert_close(found.loss, loss.sum() / (text[:, 1:] <= 200).sum(), rtol=1e-5, atol=0)
        torch.testing.assert_close(theirs(text, logits_to_keep=2).logits, expected[:, -2:], rtol=0, atol=2e-4)
        for side in ("left", "right"):
            tokens, mask = padded(PROMPTS, side)
            batch = theirs(input_ids=tokens, attention_mask=mask).logits
            for row, prompt in enumerate(PROMPTS):
                alone = ours(torch.tensor([prompt])).logits[0]
                torch.testing.assert_close(batch[row][mask[row].bool()], alone, rtol=0, atol=2e-4)


def test_generate_is_our_greedy_generation(pair):
    ours, theirs, _ = pair
    expected = greedy(ours, load_tokenizer("byte"), PROMPTS, max_tokens=12)
    tokens, mask = padded(PROMPTS, "left")
    found = theirs.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False)[:, tokens.shape[1] :]
    for row, tokens_of_row in zip(found.tolist(), expected, strict=True):
        assert row[: len(tokens_of_row)] == tokens_of_row
        assert set(row[len(tokens_of_row) :]) <= {256}


def test_beams_and_samples_go_on_from_their_own_states(pair):
    _, theirs, _ = pair
    tokens, mask = padded(PROMPTS, "left")
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "num_beams": 3}
    assert torch.equal(theirs.generate(tokens, **options), theirs.generate(tokens, use_cache=False, **options))
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": True, "num_return_sequences": 2, "top_k": 5}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(theirs.generate(tokens, use_cache=use_cache, **options))
    assert torch.equal(*found)


def test_the_past_is_a_state(pair, text):
    ours, theirs, _ = pair
    if not isinstance(theirs, Lazy("linscale.adapt.transformers_model").LinscaleForCausalLM):
        pytest.skip("transformers' own")
    with torch.no_grad():
        first = theirs(text[:, :50])
        past = first.past_key_values
        assert isinstance(past, Lazy("linscale.adapt.transformers_past").Past)
        assert past.get_seq_length() == 50
        rest = theirs(text[:, 50:], past_key_values=past, attention_mask=torch.ones_like(text))
        torch.testing.assert_close(rest.logits, ours(text).logits[:, 50:], rtol=0, atol=2e-4)
        assert rest.past_key_values is past
        assert past.get_seq_length() == 90
    assert theirs(text, use_cache=False).past_key_values is None
    with pytest.raises(ValueError, match="cannot forget"):
        past.crop(3)
    with pytest.raises(ValueError, match="a row has no token"):
        theirs(text, attention_mask=torch.zeros_like(text))
    with pytest.raises(ValueError, match="inputs_embeds: not supported"):
        theirs(inputs_embeds=torch.zeros(1, 2, 32))


def test_a_past_goes_on_in_the_next_call_and_reads_only_what_is_new(pair, text, monkeypatch):
    _, theirs, _ = pair
    options = {"attention_mask": torch.ones(2, 20), "max_new_tokens": 8, "do_sample": False, "eos_token_id": 999}
    first = theirs.generate(text[:, :20], return_dict_in_generate=True, **options)
    more = torch.cat([first.sequences, text[:, :5]], dim=1)
    options |= {"attention_mask": torch.ones(2, 33)}
    expected = theirs.generate(more, **options)
    assert torch.equal(theirs.generate(more, prefill_chunk_size=7, **options), expected)
    widths, forward = [], theirs.forward

    @functools.wraps(forward)
    def watched(*arguments, **named):
        widths.append(named["input_ids"].shape[1])
        return forward(*arguments, **named)

    monkeypatch.setattr(theirs, "forward", watched)
    assert torch.equal(theirs.generate(more, past_key_values=first.past_key_values, **options), expected)
    assert widths == [6] + [1] * 7


def test_saved_again_it_is_the_same_model(pair, text, tmp_path):
    _, theirs, _ = pair
    theirs.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(text).logits, theirs(text).logits)


def test_half_precision_keeps_what_decides_over_time(tmp_path, text):
    for arch, own in (("tnl", {"theta"}), ("hgrn2", {"lower_bound_logits"}), ("cosformer2", {"theta", "weight"})):
        ours = tiny(arch)
        out = export(run_of(ours, tmp_path / arch), tmp_path / f"{arch}-hf", "bf16")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
        assert theirs.model.embedding.weight.dtype == torch.bfloat16
        kept = {name.split(".")[-1] for name, x in theirs.named_parameters() if x.dtype == torch.float32}
        assert kept == own
        with torch.no_grad():
            exact = ours(text).logits
            assert (theirs(text).logits - exact).norm() < 0.1 * exact.norm()


ORDERS = {
    "linscale first": ("import linscale\nassert 'torch' not in sys.modules", ""),
    "linscale second": ("import transformers\nimport linscale", ""),
    "linscale last": ("import transformers\ntransformers.AutoModelForCausalLM\nimport linscale", ""),
    "remote code": ("assert 'linscale' not in sys.modules", ", trust_remote_code=True"),
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_load_it(tmp_path, order):
    out = export(run_of(tiny("tnl"), tmp_path / "run"), tmp_path / "hf")
    before, option = ORDERS[order]
    code = f"import sys\n{before}\nfrom transformers import AutoConfig, AutoModelForCausalLM\n"
    code += f"assert AutoConfig.from_pretrained(r'{out}'{option}).model_type == 'linscale'\n"
    code += f"print(type(AutoModelForCausalLM.from_pretrained(r'{out}'{option})).__name__)\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stdout.strip() == "LinscaleForCausalLM", result.stderr


@pytest.mark.slow
def test_remote_code_without_linscale_says_what_it_needs(tmp_path):
    out = export(run_of(tiny("tnl"), tmp_path / "run"), tmp_path / "hf")
    code = "import sys\nsys.modules['linscale'] = None\nfrom transformers import AutoModelForCausalLM\n"
    code += f"AutoModelForCausalLM.from_pretrained(r'{out}', trust_remote_code=True)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "this model needs the package linscale" in result.stderr


def test_a_config_without_ours_is_one_clear_line(tmp_path):
    out = export(run_of(tiny("tnl"), tmp_path / "run"), tmp_path / "hf")
    values = json.loads((out / "config.json").read_text())
    values["linscale"]["d_model"] = -1
    (out / "config.json").write_text(json.dumps(values))
    with pytest.raises(linscale.config.UserError, match=r"config.linscale: d_model = -1"):
        transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(out))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_lora_trains_and_merges(pair, text):
    peft = pytest.importorskip("peft")
    _, _, place = pair
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "hf")
    options = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, options)
    optimizer = torch.optim.AdamW([x for x in adapted.parameters() if x.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = adapted(input_ids=text, labels=text).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    with torch.no_grad():
        before = adapted.eval()(input_ids=text).logits
        torch.testing.assert_close(adapted.merge_and_unload()(text).logits, before, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_the_harness_measures_what_ours_does(pair):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    from linscale.evaluate.harness import harness_model

    _, _, place = pair
    theirs = huggingface.HFLM(pretrained=str(place / "hf"), device="cpu", batch_size=3, dtype="float32")
    ours = harness_model(*linscale.load(place / "run"))
    pairs = [("the cat", " sat"), ("a long context is here and it", " goes on"), ("x", "yz")]
    asked = [Instance("loglikelihood", {}, arguments, number) for number, arguments in enumerate(pairs)]
    for (found, greedy_found), (expected, greedy_expected) in zip(
        theirs.loglikelihood(asked), ours.loglikelihood(asked), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-5)
        assert greedy_found == greedy_expected
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [Instance("generate_until", {}, (text, options), n) for n, text in enumerate(["hello", "to be or", "a"])]
    assert theirs.generate_until(asked) == ours.generate_until(asked)


@pytest.mark.filterwarnings("ignore")
def test_a_text_opens_with_the_token_of_its_model(tmp_path):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    from linscale.evaluate.harness import harness_model

    run = run_of(tiny("llama"), tmp_path / "run")
    folder = export(run, tmp_path / "hf")
    content = train_bpe(["some words of a text"] * 9, 257).content
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").unlink()
    values = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 5, "eos_token_id": 6}
    (folder / "config.json").write_text(json.dumps(values))
    ours = harness_model(*linscale.load(import_folder(folder, tmp_path / "back")))
    theirs = huggingface.HFLM(pretrained=str(export(tmp_path / "back", tmp_path / "again")), device="cpu")
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id) == (5, 6)
    asked = [
        Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(["some words", "a text of words"])
    ]
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), rel=1e-5)
